"""Every code block of the README runs."""

from __future__ import annotations

from pathlib import Path

from tests.test_docs import DOCUMENTS, run_blocks


def test_code_blocks_of_the_readme_run(tmp_path: Path) -> None:
    run_blocks(DOCUMENTS[0], tmp_path)
