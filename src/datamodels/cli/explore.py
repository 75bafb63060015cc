"""The command explore."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datamodels.cli.common import Json, Trust, emit
from datamodels.errors import RequestError


def explore(
    source: Annotated[
        Path, typer.Argument(help="Folder of a run, or an attribution file (.h5ad).", metavar="RUN|FILE")
    ],
    port: Annotated[int, typer.Option(help="Port on 127.0.0.1; a free one by default.")] = 0,
    export: Annotated[Path | None, typer.Option(help="Write one HTML file instead, which needs no server.")] = None,
    umap: Annotated[
        bool, typer.Option("--umap", help="Draw a UMAP into the exported file too, which takes seconds to minutes.")
    ] = False,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the page in a browser.")] = True,
    cache: Annotated[
        Path | None, typer.Option(help="Folder of what is computed once; .explorer in the run by default.")
    ] = None,
    trust: Trust = False,
    as_json: Json = False,
) -> None:
    """Explore a run in a browser: map of targets, training examples behind each, what if; or write it as one file.

    Example: datamodels explore runs/demo

    Example: datamodels explore runs/demo --export demo.html
    """
    from datamodels.explorer import export as write
    from datamodels.explorer import gather, serve

    if umap and export is None:
        raise RequestError("--umap goes with --export; the served page draws a UMAP when it is chosen on the map")
    content = gather(source, cache=cache, trust=trust)
    if export is not None:
        path = write(content, export, umap=umap)
        size = path.stat().st_size
        emit({"page": str(path), "bytes": size}, f"wrote {path} ({size / 1e6:.1f} MB)", as_json)
        return

    def started(address: str) -> None:
        emit({"address": address}, f"the explorer is at {address} (Ctrl-C ends it)", as_json)

    serve(content, port=port, open_browser=browser, on_start=started)
