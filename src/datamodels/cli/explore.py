"""The commands explore and report, which share what they look at."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from datamodels.cli.common import FittedMasksKey, FittedOutputsKey, Json, Trust, emit
from datamodels.errors import RequestError

Looked = Annotated[
    list[Path],
    typer.Argument(help="Folder of a run, or attribution files (.h5ad) of the same targets.", metavar="RUN|FILE..."),
]
Stores = Annotated[
    list[str] | None,
    typer.Option(
        "--store",
        help="For files: store of the fit, or of models to judge it on; may repeat. Those that the files name by default.",
    ),
]
Test = Annotated[
    str | None,
    typer.Option(help="For files: store to judge them on; by default that of the fit, on rows that it has not used."),
]
Recipe = Annotated[
    Path | None, typer.Option(help="For files: YAML file of the dataset, and of how the models were trained.")
]
Groups = Annotated[
    str | None,
    typer.Option("--groups", help="Column of targets that says the subgroups; by default k-means finds them."),
]
AnnotatedFile = Annotated[
    Path | None,
    typer.Option(
        "--annotated",
        help="AnnData file whose obs says the subgroups: in the column of --groups, or what subgroups --write-to wrote.",
    ),
]


def explore(
    source: Looked,
    store: Stores = None,
    test: Test = None,
    recipe: Recipe = None,
    groups: Groups = None,
    annotated: AnnotatedFile = None,
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; a free one by default.")] = 0,
    export: Annotated[
        Path | None, typer.Option(help="Write one HTML file (.html) instead, which needs no server.")
    ] = None,
    umap: Annotated[
        bool, typer.Option("--umap", help="Draw a UMAP into the exported file too, which takes seconds to minutes.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    cache: Annotated[
        Path | None,
        typer.Option(help="Folder of what is computed once; .explorer in the run or beside the file by default."),
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Explore a run, or attribution files, in a browser: map of targets, training examples behind each, what if; or write it as
    one file.

    Example: datamodels explore runs/demo

    Example: datamodels explore ridge.h5ad lasso.h5ad --recipe recipe.yaml

    Example: datamodels explore runs/cells.h5ad --recipe cells.yaml --annotated annotated.h5ad

    Example: datamodels explore runs/demo --export demo.html
    """
    from datamodels.explorer import export as write
    from datamodels.explorer import gather, serve

    if umap and export is None:
        raise RequestError("--umap goes with --export; the served page draws a UMAP when it is chosen on the map")
    _refuse_other_than_html(export, "--export")
    _let_code_be_found(trust, recipe)
    content = gather(
        source,
        stores=store or (),
        test=test,
        recipe=recipe,
        group_by=groups,
        annotated=annotated,
        cache=cache,
        trust=trust,
    )
    if export is not None:
        path = write(content, export, umap=umap)
        size = path.stat().st_size
        emit({"page": str(path), "bytes": size}, f"wrote {path} ({size / 1e6:.1f} MB)", as_json)
        return

    def started(address: str) -> None:
        emit({"address": address}, f"the explorer is at {address} (Ctrl-C ends it)", as_json)

    serve(content, port=port, open_browser=browser, on_start=started)


def report(
    source: Looked,
    stores: Stores = None,
    test: Test = None,
    recipe: Recipe = None,
    groups: Groups = None,
    annotated: AnnotatedFile = None,
    masks_key: FittedMasksKey = None,
    outputs_key: FittedOutputsKey = None,
    clusters: Annotated[
        int | None, typer.Option(help="Clusters that k-means finds; by default as many as labels, else ten.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Page to write for files, .html; beside the first by default.")
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Judge a run or attribution files and write the explorer of them as one HTML file; of a run, results.json too.

    Example: datamodels report runs/demo

    Example: datamodels report lasso.h5ad --store runs/a --out page.html

    Example: datamodels report ridge.h5ad lasso.h5ad --recipe recipe.yaml
    """
    from datamodels.explorer import report_attribution, report_run

    _refuse_other_than_html(out, "--out")
    _let_code_be_found(trust, recipe)
    how: dict[str, Any] = {"group_by": groups, "annotated": annotated, "n_clusters": clusters, "trust": trust}
    if all(path.suffix == ".h5ad" for path in source):
        how |= {"masks_key": masks_key, "outputs_key": outputs_key}
        results = report_attribution(source, stores or (), test=test, recipe=recipe, out=out, **how)
    else:
        _refuse_for_runs(source, {"--store": stores, "--test": test, "--recipe": recipe, "--out": out})
        results = report_run(source[0], **how)
    emit(results, f"wrote {results['page']}", as_json)


def _refuse_for_runs(source: Sequence[Path], given: dict[str, Any]) -> None:
    if len(source) > 1:
        raise RequestError(f"{len(source)} things were given: give one run, or attribution files (.h5ad) alone")
    wrong = next((name for name, value in given.items() if value), None)
    if wrong is not None:
        raise RequestError(
            f"{wrong} goes with attribution files (.h5ad); a run names its own stores and recipe, and its page lies in its folder"
        )


def _refuse_other_than_html(path: Path | None, option: str) -> None:
    """Refuse a wrong name before minutes of work, not after."""
    if path is not None and path.suffix != ".html":
        raise RequestError(f"{option} is {str(path)!r}; it must end in .html")


def _let_code_be_found(trust: bool, recipe: Path | None) -> None:
    """Let code that a recipe or a trusted run names be imported from here, as training does."""
    if trust or recipe is not None:
        from datamodels.training.task import make_importable

        make_importable(Path.cwd())
