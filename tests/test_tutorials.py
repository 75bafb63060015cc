"""The tutorials run, show pictures, and their notebooks are what their scripts say."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from tests.tutorials import SCRIPTS, executed

BY_NAME = pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
LARGEST = 1_500_000  # bytes of a notebook


def stored(script: Path) -> Any:
    return json.loads(script.with_suffix(".ipynb").read_text())


def pictures(notebook: Any) -> int:
    return sum(
        "image/png" in output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", ())
    )


def test_there_are_eight() -> None:
    assert [script.stem[:2] for script in SCRIPTS] == [f"0{number}" for number in range(1, 9)]
    assert {path.stem for path in SCRIPTS[0].parent.glob("*.ipynb")} == {script.stem for script in SCRIPTS}


@BY_NAME
def test_a_notebook_has_the_cells_of_its_script_executed_in_order(script: Path) -> None:
    cells = stored(script)["cells"]
    text = re.split(r"^# %%.*\n", script.read_text(), flags=re.MULTILINE)[1:]
    assert ["".join(cell["source"]).strip() for cell in cells] == [
        re.sub(r"^# ?", "", part, flags=re.MULTILINE).strip() if cell["cell_type"] == "markdown" else part.strip()
        for cell, part in zip(cells, text, strict=True)
    ]
    code = [cell for cell in cells if cell["cell_type"] == "code"]
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))


@BY_NAME
def test_a_notebook_has_pictures_and_no_traces_of_a_machine(script: Path) -> None:
    notebook = stored(script)
    assert pictures(notebook) >= 2
    assert script.with_suffix(".ipynb").stat().st_size < LARGEST
    outputs = json.dumps([cell.get("outputs") for cell in notebook["cells"]])
    assert not re.search(r"/home/|/root/|/tmp/|site-packages|Warning|Traceback", outputs)


@pytest.mark.notebooks
@BY_NAME
def test_it_runs_at_a_quick_size(script: Path) -> None:
    assert pictures(executed(script, quick=True)) >= 2
