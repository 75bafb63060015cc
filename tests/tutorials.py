"""Tutorials: a script in cells (`docs/tutorials/*.py`) and, beside it, the notebook that it became at full size.

``python -m tests.tutorials [NAME ...]`` executes them and writes the notebooks.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent.parent / "docs" / "tutorials"
SCRIPTS = sorted(FOLDER.glob("*.py"))
QUICK = "DATAMODELS_QUICK"  # what a tutorial reads in the environment, to take less than a minute
PATIENCE = 900  # seconds for a cell


def notebook_of(script: Path) -> Any:
    """The notebook of a script, not executed. Cells are numbered, so that writing it twice gives the same file."""
    import jupytext

    notebook = jupytext.read(script)
    for number, cell in enumerate(notebook.cells):
        cell["id"] = f"cell-{number}"
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def executed(script: Path, *, quick: bool) -> Any:
    """The notebook with its outputs, executed in an empty folder.

    Raises
    ------
    nbclient.exceptions.CellExecutionError
        when a cell fails; its message has the cell.
    """
    from nbclient import NotebookClient

    notebook = notebook_of(script)
    environment = {name: value for name, value in os.environ.items() if name != QUICK} | ({QUICK: "1"} if quick else {})
    with tempfile.TemporaryDirectory() as folder:
        client = NotebookClient(
            notebook,
            timeout=PATIENCE,
            resources={"metadata": {"path": folder}},
            record_timing=False,
            coalesce_streams=True,
        )
        client.execute(env=environment, cwd=folder)
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
    return notebook


def main() -> None:
    import nbformat

    wanted = sys.argv[1:]
    for script in SCRIPTS:
        if wanted and script.stem not in wanted:
            continue
        started = time.monotonic()
        notebook = executed(script, quick=False)
        target = script.with_suffix(".ipynb")
        nbformat.write(notebook, target)
        print(f"{script.stem}: {time.monotonic() - started:.0f} s, {target.stat().st_size / 1e3:.0f} kB", flush=True)


if __name__ == "__main__":
    main()
