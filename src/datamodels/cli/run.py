"""The command run."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datamodels.cli.common import Json, emit
from datamodels.errors import RequestError

_Named = dict[str, str]


def run(
    folder: Annotated[Path, typer.Argument(help="Folder of the run, in which stores and attributions lie.")],
    attributions: Annotated[
        list[str],
        typer.Option(
            "--attribution", metavar="NAME=FILE", help="Attribution (.h5ad); may repeat, the first is shown first."
        ),
    ],
    stores: Annotated[
        list[str] | None,
        typer.Option("--store", metavar="NAME=STORE", help="Store; may repeat. Those that the files name by default."),
    ] = None,
    test: Annotated[
        str | None,
        typer.Option(help="Store to judge on; by default that of each fit, on rows that it has not used."),
    ] = None,
    recipe: Annotated[
        Path | None, typer.Option(help="YAML file of the dataset, and of how the models were trained.")
    ] = None,
    dataset: Annotated[str | None, typer.Option(help="Name of the dataset, where there is no recipe.")] = None,
    title: Annotated[str | None, typer.Option(help="Title of the page.")] = None,
    commands: Annotated[
        list[str] | None, typer.Option("--command", help="A command that makes the run again, to show; may repeat.")
    ] = None,
    neighbours: Annotated[str | None, typer.Option(help="Attribution that lists are of; the first by default.")] = None,
    embedding: Annotated[
        str | None, typer.Option(help="Attribution that the map and the subgroups are of; the first by default.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the run.json that is there.")] = False,
    as_json: Json = False,
) -> None:
    """Write run.json: which stores, attributions, dataset and recipe belong together, for explore, report, push and pull.

    Example: datamodels run runs --attribution ridge=runs/cells.h5ad --recipe cells.yaml --title "Blood cells"

    Example: datamodels run runs --attribution ridge=runs/a.h5ad --store cells=runs/cells --test runs/test --recipe cells.yaml
    """
    from datamodels.explorer import write_run

    made = write_run(
        folder,
        _named(attributions, "--attribution"),
        stores=_named(stores or [], "--store"),
        test=test,
        recipe=recipe,
        dataset=dataset,
        title=title,
        commands=commands or (),
        neighbours=neighbours,
        embedding=embedding,
        overwrite=overwrite,
    )
    path, found = made
    text = f"wrote {path}: {', '.join(found.attributions)} on {', '.join(found.stores) or 'no store'}"
    text += f"\nlook at it: datamodels explore {folder}"
    emit({"run": str(path), **found.model_dump()}, text, as_json)


def _named(texts: list[str], option: str) -> _Named:
    out: _Named = {}
    for text in texts:
        name, equals, place = text.partition("=")
        if not name or not equals or not place:
            raise RequestError(f"{option} is {text!r}; give NAME=PATH, like ridge=runs/ridge.h5ad")
        if name in out:
            raise RequestError(f"{option} names {name!r} twice")
        out[name] = place
    return out
