"""What commands share: their common options, and how they read and print."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from datamodels.errors import RequestError


class EstimatorName(StrEnum):
    lasso = "lasso"
    ridge = "ridge"
    elasticnet = "elasticnet"
    ols = "ols"
    difference = "difference"


class MethodName(StrEnum):
    kmeans = "kmeans"
    hdbscan = "hdbscan"
    leiden = "leiden"


StorePath = Annotated[str, typer.Argument(help="Folder or address of the store.", metavar="STORE")]
StorePaths = Annotated[list[str] | None, typer.Argument(help="Folders or addresses of stores.", metavar="STORE")]
AttributionPath = Annotated[Path, typer.Argument(help="Attribution file (.h5ad).", metavar="FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MasksFile = Annotated[Path | None, typer.Option("--masks", help="Masks, .npy (m, n_train), instead of a store.")]
OutputsFile = Annotated[Path | None, typer.Option("--outputs", help="Outputs, .npy (m, ...), instead of a store.")]
MasksKey = Annotated[str, typer.Option(help="Key of the masks in the store.")]
FittedMasksKey = Annotated[
    str | None, typer.Option("--masks-key", help="Key of the masks; that of the fit by default.")
]
FittedOutputsKey = Annotated[
    str | None, typer.Option("--outputs-key", help="Key of the outputs; that of the fit by default.")
]
OutputsKey = Annotated[str, typer.Option(help="Key of the outputs in the store.")]
RowRange = Annotated[str | None, typer.Option("--rows", help="Rows to use, START:STOP.")]
TargetRange = Annotated[str | None, typer.Option("--targets", help="Targets to use, START:STOP.")]
OfTrain = Annotated[bool, typer.Option("--targets-are-train", help="Target j is training example j.")]
EstimatorOption = Annotated[EstimatorName, typer.Option("--estimator", help="How to regress.")]
Lambdas = Annotated[int | None, typer.Option("--lambdas", help="Number of lambdas on the path.")]
Eps = Annotated[float | None, typer.Option(help="Smallest lambda over the largest (lasso, elastic net).")]
L1Ratio = Annotated[float | None, typer.Option(help="Share of the l1 penalty (elastic net).")]
ValFraction = Annotated[float | None, typer.Option(help="Share of rows that choose lambda.")]
Folds = Annotated[int | None, typer.Option(help="Folds that choose lambda, instead of a share of rows.")]
Recipe = Annotated[
    Path | None, typer.Option("--recipe", help="YAML file: dataset, recipe (how models are trained), outputs.")
]
Memory = Annotated[
    str | None, typer.Option("--memory", help="Memory for tables of counts, as 8GB; most of what is free by default.")
]
ExecutorOptions = Annotated[
    list[str] | None,
    typer.Option(
        "--executor-option",
        metavar="KEY=VALUE",
        help="A setting of ray or slurm, as partition=gpu; may be given several times.",
    ),
]
PoolName = Annotated[str, typer.Option("--executor", help="local: this process; ray: a cluster.")]
Seed = Annotated[int, typer.Option(help="Seed.")]
Trust = Annotated[
    bool, typer.Option("--trust", help="Import and call code that run.json names (datasets, architectures).")
]


def where(
    masks: Path | None,
    outputs: Path | None,
    masks_key: str,
    outputs_key: str,
    rows: str | None,
    targets: str | None,
    targets_are_train: bool,
) -> dict[str, Any]:
    """The options that say which rows and targets, as `datamodels.fit` and its like take them."""
    return {
        "masks": masks,
        "outputs": outputs,
        "masks_key": masks_key,
        "outputs_key": outputs_key,
        "rows": parse_range(rows, "--rows"),
        "targets": parse_range(targets, "--targets"),
        "targets_are_train": targets_are_train or None,
    }


def executor_of(name: str, options: list[str] | None) -> Any:
    """An executor's name, or its settings where --executor-option gives some."""
    from datamodels.executors import executor_named

    pairs: dict[str, str] = {}
    for text in options or []:
        key, equals, value = text.partition("=")
        if not key or not equals:
            raise RequestError(f"--executor-option is {text!r}; give KEY=VALUE")
        if key in pairs:
            raise RequestError(f"--executor-option gives {key!r} twice")
        pairs[key] = value
    return executor_named(name, pairs) if pairs else name


def refuse_suffix(path: Path, suffix: str) -> None:
    """Refuse a wrong name of ``--out`` before hours of work, not after."""
    if path.suffix != suffix:
        raise RequestError(f"--out is {str(path)!r}; it must end in {suffix}")


def emit(facts: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result: `facts` as one JSON object, or `text`."""
    print(json.dumps(_finite(facts)) if as_json else text)


def _finite(value: Any) -> Any:
    """The same value with null in place of NaN and inf, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def parse_range(text: str | None, option: str) -> slice | None:
    """``START:STOP``, either of which may be missing."""
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    try:
        low, high = (int(part) if part else None for part in (start, stop))
    except ValueError:
        colon = ""
    if not colon or (low or 0) < 0 or (high or 0) < 0:
        raise RequestError(f"{option} is {text!r}; give START:STOP, like 0:3500 or 3500:")
    return slice(low, high)


def read_labels(path: Path) -> Any:
    """Labels from a ``.npy`` file, or from a text file with one per line."""
    import numpy as np

    if not path.is_file():
        raise RequestError(f"there is no file {str(path)!r}")
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    return np.array(path.read_text().split("\n")[: -1 if path.read_text().endswith("\n") else None])
