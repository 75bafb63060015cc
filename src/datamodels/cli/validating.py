"""The command validate."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datamodels.cli.common import AttributionPath, Json, MethodName, Seed, StorePaths, emit, read_labels, refuse_suffix
from datamodels.errors import RequestError, first_line

if TYPE_CHECKING:
    from datamodels.applications.refits import StabilityCurve
    from datamodels.attribution import Attribution
    from datamodels.regression.problem import Problem


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
    columns: Annotated[
        Path | None, typer.Option(help="What is known of the targets: .h5ad (its obs) or .csv, one row per target.")
    ] = None,
    column: Annotated[list[str] | None, typer.Option(help="Column to test; may repeat; all by default.")] = None,
    labels: Annotated[Path | None, typer.Option(help="Class of each target, .npy or one per line.")] = None,
    seed: Seed = 0,
    jobs: Annotated[int | None, typer.Option(help="Worker processes; one per CPU by default.")] = None,
    out: Annotated[Path | None, typer.Option(help="Page to write, .html.")] = None,
    as_json: Json = False,
) -> None:
    """Check hidden subgroups: stability, shuffled labels, confounders, transfer; says what holds and what does not.

    Example: datamodels validate ridge.h5ad runs/a --clusters stability --columns cells.h5ad --column batch

    Example: datamodels validate ridge.h5ad runs/a --clusters 4 --recipe recipe.yaml --folder runs/check --out check.html
    """
    from datamodels.applications.subgroups import subgroups
    from datamodels.applications.validation import validate as run
    from datamodels.attribution import Attribution
    from datamodels.report.validation_page import save_report
    from datamodels.training.ensemble import TrainRecipe
    from datamodels.training.task import make_importable

    if out is not None:
        refuse_suffix(out, ".html")
    attribution = Attribution.load(file)
    problem = problem_of(attribution, stores)
    make_importable(Path.cwd())
    task = None if recipe is None else TrainRecipe.read(recipe)
    known = None if columns is None else read_columns(columns, column, attribution)
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
        task=task,
        folder=folder,
        n_refits=refits,
        shuffles=shuffles,
        null_models=models,
        replicates=replicates,
        seed=seed,
        jobs=jobs,
    )
    facts, text = found.to_dict(), found.report()
    if out is not None:
        facts["page"] = str(save_report(found, out))
        text += f"\nwrote {out}"
    emit(facts, text, as_json)


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
    from datamodels.regression.problem import OUTPUTS, Problem

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


def read_columns(path: Path, wanted: list[str] | None, attribution: Attribution) -> dict[str, Any]:
    """Columns of the targets: by the names that the attribution knows, else in the order of the file.

    All by default, but text that nearly every target has another of.
    """
    import pandas as pd

    from datamodels.applications.subgroups import IDS
    from datamodels.attribution import read_h5ad

    if path.suffix == ".h5ad":
        frame = read_h5ad(path).obs
    else:
        try:
            frame = pd.read_csv(path, index_col=0 if IDS in attribution.target_facts else None)
        except (OSError, ValueError) as error:
            raise RequestError(f"cannot read {str(path)!r} as CSV: {first_line(error)}") from None
    names = attribution.target_facts.get(IDS)
    if names is not None:
        frame.index = frame.index.astype(str)
        lost = [name for name in names.astype(str) if name not in frame.index]
        if lost:
            raise RequestError(f"{str(path)!r} lacks {len(lost)} of {len(names)} targets (the first is {lost[0]!r})")
        frame = frame.loc[names.astype(str)]
    if len(frame) != attribution.n_targets:
        raise RequestError(
            f"{str(path)!r} has {len(frame)} rows; there are {attribution.n_targets} targets: give one row each"
        )
    unknown = [name for name in wanted or [] if name not in frame]
    if unknown:
        raise RequestError(f"{str(path)!r} has no column {unknown[0]!r}; it has {', '.join(map(str, frame.columns))}")
    chosen = wanted or [
        name
        for name in frame.columns
        if pd.api.types.is_numeric_dtype(frame[name]) or frame[name].nunique() <= len(frame) // 2
    ]
    return {str(name): frame[name].to_numpy() for name in chosen}
