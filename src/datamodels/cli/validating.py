"""The command validate."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datamodels.cli.common import AttributionPath, Json, MethodName, Seed, StorePaths, emit, read_labels, refuse_suffix
from datamodels.errors import RequestError
from datamodels.progress import note

if TYPE_CHECKING:
    import pandas as pd

    from datamodels.applications.refits import StabilityCurve
    from datamodels.attribution import Attribution
    from datamodels.datasets import Dataset
    from datamodels.regression.problem import Problem
    from datamodels.training.ensemble import TrainRecipe

_NAMES = (
    "id",
    "ids",
    "iid",
    "sample",
    "barcode",
    "cell",
    "name",
    "Unnamed: 0",
)  # columns that name rows, whatever they hold


def validate(
    file: AttributionPath,
    stores: StorePaths = None,
    clusters: Annotated[str | None, typer.Option(help="Number of clusters, or 'stability'.")] = None,
    method: Annotated[MethodName, typer.Option(help="How to cluster.")] = MethodName.kmeans,
    components: Annotated[int, typer.Option(help="Principal components to cluster on.")] = 10,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="YAML file of the recipe, to train on shuffled labels and subgroups."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="Folder for those models, with --recipe.")] = None,
    shuffles: Annotated[int, typer.Option(help="Shuffles of the labels.")] = 99,
    models: Annotated[int, typer.Option(help="Models per shuffle.")] = 300,
    refits: Annotated[int, typer.Option(help="Pairs of refits on halves of the models.")] = 20,
    replicates: Annotated[int, typer.Option(help="Runs per pair of subgroups.")] = 10,
    alpha: Annotated[
        float | None,
        typer.Option(help="Share of the training set that those on shuffled labels see; as the models by default."),
    ] = None,
    kind: Annotated[
        str | None, typer.Option(help="How their subsets are drawn, with --alpha: fixed_size, grouped, stratified, ...")
    ] = None,
    columns: Annotated[
        Path | None,
        typer.Option(
            help="What is known of the targets: .h5ad (its obs), .csv, .tsv or .parquet, a row per target, found by name."
        ),
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help="Column to test; may repeat; all by default.")] = None,
    features: Annotated[
        Path | None,
        typer.Option(
            help="Features of the targets, for markers: .npy, .h5ad (its X) or a table. By default those of the dataset where targets "
            "are training examples."
        ),
    ] = None,
    by_order: Annotated[
        bool,
        typer.Option(
            "--by-order", help="Rows of --columns and --features are the targets in their order; ignore names."
        ),
    ] = False,
    labels: Annotated[Path | None, typer.Option(help="Class of each target, .npy or one per line.")] = None,
    seed: Seed = 0,
    jobs: Annotated[
        int | None, typer.Option(help="Worker processes; by default one per CPU, or per GPU in use.")
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Page to write, .html.")] = None,
    as_json: Json = False,
) -> None:
    """Check hidden subgroups: stability, shuffled labels, confounders, transfer; says what holds and what does not.

    Example: datamodels validate ridge.h5ad runs/a --clusters stability --columns cells.h5ad --column batch

    Example: datamodels validate ridge.h5ad runs/a --clusters 4 --recipe recipe.yaml --folder runs/check --out check.html
    """
    from datamodels.applications.subgroups import subgroups, with_ids
    from datamodels.applications.validation import validate as run
    from datamodels.attribution import IDS, Attribution
    from datamodels.experiment import Part
    from datamodels.report.validation_page import save_report
    from datamodels.training.ensemble import TrainRecipe
    from datamodels.training.task import make_importable

    if out is not None:
        refuse_suffix(out, ".html")
    attribution = Attribution.load(file)
    problem = problem_of(attribution, stores)
    make_importable(Path.cwd())
    task = None if recipe is None else TrainRecipe.read(recipe)
    if recipe is None and (alpha, kind) != (None, None):
        raise RequestError("--alpha and --kind are for models on shuffled labels: give --recipe and --folder")
    if alpha is None and kind is not None:
        raise RequestError("--kind goes with --alpha, the share of the training set that a model sees")
    design = None
    if task is not None and alpha is not None:
        design = Part("shuffles", task, alpha, models, seed, kind=kind or "fixed_size").design  # type: ignore[arg-type]
    data = data_of(file, task)
    if IDS not in attribution.target_facts and problem.target_ids is not None:
        attribution = replace(attribution, target_facts={**attribution.target_facts, IDS: problem.target_ids})
    elif IDS not in attribution.target_facts and data is not None:
        attribution = with_ids(attribution, data, problem.sources[0].description.get("outputs_key"))
    known = None if columns is None else read_columns(columns, column, attribution, by_order=by_order)
    if features is not None:
        x, feature_names = read_features(features, attribution, by_order=by_order)
    else:
        x, feature_names = features_of(data, problem)
    groups = subgroups(
        attribution,
        n_clusters=parse_clusters(clusters),
        method=method.value,
        n_components=components,
        models=problem,
        seed=seed,
        progress=True,
    )
    found = run(
        problem,
        groups,
        labels=None if labels is None else read_labels(labels),
        columns=known,
        x=x,
        feature_names=feature_names,
        design=design,
        task=task,
        folder=folder,
        n_refits=refits,
        shuffles=shuffles,
        null_models=models,
        replicates=replicates,
        seed=seed,
        jobs=jobs,
    )
    emit({**found.to_dict(), **({} if out is None else {"page": str(out)})}, found.report(), as_json)
    if out is not None:
        save_report(found, out)
        note(f"wrote {out}")


def parse_clusters(text: str | None) -> Any:
    """A number, ``stability``, or nothing."""
    if text is None or text == "stability":
        return text
    try:
        return int(text)
    except ValueError:
        raise RequestError(f"--clusters is {text!r}; give a number, or 'stability'") from None


def stability_lines(curve: StabilityCurve) -> list[str]:
    """The curve as a table, with the choice marked."""
    name = "clusters" if curve.method == "kmeans" else "resolution"
    lines = [f"agreement of halves of the models, by {name}"]
    for i, row in enumerate(curve.table()):
        mark = "  <- chosen" if i == curve.chosen else ""
        lines.append(f"  {row['setting']:>5g}  adjusted Rand index {row['ari']:.2f} ± {row['error']:.2f}{mark}")
    return lines


def problem_of(attribution: Attribution, stores: list[str] | None) -> Problem:
    """The rows that an attribution was fitted on, of given stores or of those that it names; all their completed rows."""
    from datamodels.regression.problem import Problem
    from datamodels.regression.source import OUTPUTS

    told = list(attribution.provenance.get("sources", []))
    paths: list[Any] = list(stores or [source["path"] for source in told if source.get("path")])
    if not paths:
        raise RequestError("the attribution does not say which stores it was fitted on; give their folders")
    first: Mapping[str, Any] = told[0] if told else {}
    return Problem.build(
        paths,
        masks_key=first.get("masks_key") or "masks",
        outputs_key=first.get("outputs_key") or OUTPUTS,
        targets=attribution.target_facts.get("target"),
    )


def data_of(file: Path, task: TrainRecipe | None) -> Dataset | None:
    """What the models were trained on: the recipe's dataset, else that of the run in the file's folder where it is read from a file."""
    from datamodels.datasets import load
    from datamodels.datasets.registry import is_file
    from datamodels.run import FILE, Run

    if task is not None or not (file.parent / FILE).exists():
        return None if task is None else task.data
    name = Run.load(file.parent).dataset
    if name is None or not is_file(name):
        return None
    try:
        return load(name)
    except RequestError as error:
        note(f"without the names and features of the run's samples: {error}")
        return None


def features_of(data: Dataset | None, problem: Problem) -> tuple[Any, Any]:
    """Features of targets that are training examples, and their names; those that some sample lacks are left out."""
    import numpy as np

    if data is None or data.feature_names is None or problem.train_columns is None:
        return None, None
    x = data.train.flat[problem.train_columns]
    complete = np.isfinite(x).all(axis=0)
    return (x[:, complete], np.array(data.feature_names)[complete]) if complete.any() else (None, None)


def read_columns(
    path: Path, wanted: list[str] | None, attribution: Attribution, *, by_order: bool = False
) -> dict[str, pd.Series]:
    """Columns of the targets with their types, rows as `_rows` finds them.

    All by default, but text that nearly every target has another of.
    """
    import pandas as pd

    rows = _rows(path, attribution, by_order)
    frame = rows if isinstance(rows, pd.DataFrame) else rows.obs
    unknown = [name for name in wanted or [] if name not in frame]
    if unknown:
        raise RequestError(f"{str(path)!r} has no column {unknown[0]!r}; it has {', '.join(map(str, frame.columns))}")
    chosen = wanted or [
        name
        for name in frame.columns
        if pd.api.types.is_numeric_dtype(frame[name]) or frame[name].nunique() <= len(frame) // 2
    ]
    return {str(name): frame[name] for name in chosen}


def read_features(path: Path, attribution: Attribution, *, by_order: bool = False) -> tuple[Any, Any]:
    """Features of the targets (n_targets, features), and their names where the file has them; rows as `_rows` finds them."""
    import numpy as np
    import pandas as pd

    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False), None
    rows = _rows(path, attribution, by_order)
    if isinstance(rows, pd.DataFrame):
        numbers = rows.select_dtypes(["number", "bool"])
        return numbers.to_numpy(np.float64), np.array(numbers.columns, str)
    return rows.X, np.array(rows.var_names, str)


def _rows(path: Path, attribution: Attribution, by_order: bool) -> Any:
    """The rows of a file that are the targets, in their order: an AnnData object or a data frame, without the column of names.

    By the names that the attribution knows; else in the order of the file, unless the file has names that nothing can be said of.
    """
    import numpy as np
    import pandas as pd

    from datamodels.attribution import IDS, read_h5ad
    from datamodels.datasets.samples import read_table

    ids = None if by_order else attribution.target_facts.get(IDS)
    found: Any
    if path.suffix == ".h5ad":
        found = read_h5ad(path)
        texts = pd.DataFrame({"the names of observations": found.obs_names.astype(str)})
        told = (found.obs_names != np.arange(found.n_obs).astype(str)).any()
    else:
        found = read_table(path)
        texts = read_table(path, text=list(found.columns)).astype(str)
        told = any(_is_names(found[name]) for name in found.columns)
    if ids is None:
        if told and not by_order:
            raise RequestError(
                f"the rows of {str(path)!r} have names, and the attribution does not know those of its targets, so nothing says which row "
                "is whose: give --recipe, whose dataset may know them (or with_ids in Python, and save it), or --by-order where rows are the targets "
                "in their order"
            )
        if len(found) != attribution.n_targets:
            raise RequestError(
                f"{str(path)!r} has {len(found)} rows; there are {attribution.n_targets} targets: give one row each"
            )
        return found
    names = pd.Index(ids.astype(str))
    column = max(texts.columns, key=lambda name: names.isin(texts[name]).sum())
    index = pd.Index(texts[column])
    lost = names[~names.isin(index)]
    if len(lost):
        raise RequestError(
            f"{str(path)!r} lacks {len(lost)} of {len(names)} targets (the first is {lost[0]!r}; {column} was compared): give a file "
            "that has them, or --by-order where rows are the targets in their order"
        )
    twice = index[index.duplicated() & index.isin(names)]
    if len(twice):
        raise RequestError(f"{str(path)!r} has the sample {twice[0]!r} more than once; give one row each")
    order = index.get_indexer(names)
    return found.iloc[order].drop(columns=column) if isinstance(found, pd.DataFrame) else found[order]


def _is_names(column: pd.Series) -> bool:
    """Whether a column of a table seems to name its rows: each has another text, or the column is called so."""
    import numpy as np
    import pandas as pd

    if not column.is_unique or column.isna().any():
        return False
    counted = pd.api.types.is_integer_dtype(column.dtype) and (np.sort(column) == np.arange(len(column))).all()
    named = str(column.name).lower() in [name.lower() for name in _NAMES] and not counted
    return bool(named or pd.api.types.is_string_dtype(column.dtype))
