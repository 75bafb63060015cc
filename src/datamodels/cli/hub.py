"""Commands about the Hugging Face Hub: push, pull, claim."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datamodels.cli.common import Json, emit
from datamodels.progress import note

if TYPE_CHECKING:
    from datamodels.hub import Exchanged

HubAddress = Annotated[str, typer.Argument(help="hf://datasets/USER/NAME.", metavar="ADDRESS")]
StoreName = Annotated[
    str | None, typer.Option("--store", help="Name of the store in the dataset, where it holds several.")
]


def push(
    source: Annotated[str, typer.Argument(help="Folder of a run, or folder or address of a store.", metavar="RUN")],
    address: HubAddress,
    store: StoreName = None,
    license: Annotated[str | None, typer.Option(help="For the card, as the Hub names it: mit, cc-by-4.0.")] = None,
    private: Annotated[bool, typer.Option("--private", help="Make a dataset that only you see.")] = False,
    recipe: Annotated[Path | None, typer.Option(help="A recipe file to send along.")] = None,
    replace: Annotated[
        bool, typer.Option("--replace", help="Replace run.json, attributions and recipes that differ there.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Send a run or a store to the Hugging Face Hub: the rows that it lacks. Exit status 1 when rows conflict or are bad.

    Example: datamodels push runs/a hf://datasets/me/a --license cc-by-4.0
    """
    from datamodels.hub import push as send

    result = send(source, address, store=store, license=license, private=private, recipe=recipe, replace=replace)
    _report(result, f"sent {result.rows} rows in {result.commits} commits to {result.address}", as_json)


def pull(
    address: HubAddress,
    target: Annotated[str, typer.Argument(help="Folder of the run, or folder or address of the store.", metavar="RUN")],
    store: StoreName = None,
    as_json: Json = False,
) -> None:
    """Make or complete a run or a store from the Hugging Face Hub. Exit status 1 when rows conflict or are bad.

    Example: datamodels pull hf://datasets/me/a runs/a
    """
    from datamodels.hub import pull as fetch

    result = fetch(address, target, store=store)
    _report(result, f"fetched {result.rows} rows from {result.address}", as_json)


def claim(
    address: HubAddress,
    rows: Annotated[int, typer.Option(help="How many rows to claim.")] = 1000,
    hours: Annotated[float, typer.Option(help="When the claim ends.")] = 24.0,
    store: StoreName = None,
    as_json: Json = False,
) -> None:
    """Claim rows that nobody has sent or works on; prints START:STOP for `train --rows`.

    Example: datamodels claim hf://datasets/me/a --rows 500

    Example: datamodels train runs/a --recipe recipe.yaml --rows $(datamodels claim hf://datasets/me/a --rows 500)
    """
    from datamodels.hub import claim as take

    taken = take(address, rows=rows, hours=hours, store=store)
    note(f"claimed {taken.missing} rows of {taken.store} until {taken.until:%Y-%m-%d %H:%M} UTC; push them before")
    emit(taken.to_dict(), taken.rows, as_json)


def _report(result: Exchanged, text: str, as_json: bool) -> None:
    from datamodels.store.records import as_ranges

    for name, store in result.stores.items():
        if store.conflicting:
            text += (
                f"; rows of {name} with other content on both sides, left as they are: {as_ranges(store.conflicting)}"
            )
        if store.bad_in_source:
            text += f"; rows of {name} whose checksum is wrong, refused: {as_ranges(store.bad_in_source)}"
    if result.kept:
        text += f"; files that differ on both sides, left as they are: {', '.join(result.kept)}"
    emit(result.to_dict(), text, as_json)
    if not result.ok:
        raise typer.Exit(1)
