"""Every code block of the docs runs, block after block, in one folder per document; those of the README: test_readme.py."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
DOCUMENTS = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCK = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def test_documents_have_blocks_of_known_languages_only() -> None:
    languages = {language for document in DOCUMENTS for language, _ in BLOCK.findall(document.read_text())}
    assert languages == {"python", "bash", "text"}


@pytest.mark.parametrize("document", DOCUMENTS[1:], ids=lambda path: str(path.relative_to(ROOT)))
def test_code_blocks_run(document: Path, tmp_path: Path) -> None:
    run_blocks(document, tmp_path)


def run_blocks(document: Path, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": ".",
    }
    script: list[str] = []
    for language, text in BLOCK.findall(document.read_text()):
        named = re.match(r"# file: (\S+)\n", text)
        if language == "python" and named:
            (tmp_path / named[1]).write_text(text)
        elif language == "python":
            script.append(text)
        elif language == "bash":
            lines = [line for line in text.splitlines() if not is_make(line)]
            bash = ["bash", "-e", "-c", "\n".join(lines)]
            result = subprocess.run(bash, cwd=tmp_path, env=environment, capture_output=True, text=True)
            assert result.returncode == 0, result.stderr
    if script:
        program = tmp_path / "blocks.py"
        # The guard that a script needs, since worker processes import it.
        program.write_text("\n".join(script) if "__main__" in "".join(script) else guarded(script))
        result = subprocess.run(
            [sys.executable, str(program)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert result.returncode == 0, result.stderr


def guarded(script: list[str]) -> str:
    body = "\n".join(script)
    return (
        "def main():\n"
        + "".join(f"    {line}\n" for line in body.splitlines())
        + "if __name__ == '__main__':\n    main()\n"
    )


def is_make(line: str) -> bool:
    """`make TARGET` is run by CI as a whole; here its target must exist."""
    found = re.match(r"make ([a-z-]+)", line)
    if found:
        assert re.search(rf"^{found[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), line
    return bool(found)


def anchors(text: str) -> set[str]:
    """What GitHub calls the headings of a document: lower case, without punctuation, spaces as hyphens, repeated ones numbered."""
    found: list[str] = []
    for heading in re.findall(r"^#{1,6} +(.+?)[ #]*$", re.sub(r"^```.*?^```$", "", text, flags=re.M | re.S), re.M):
        shown = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading)
        found.append(re.sub(r"[^\w\- ]", "", shown.lower()).replace(" ", "-"))
    return {name if not found[:i].count(name) else f"{name}-{found[:i].count(name)}" for i, name in enumerate(found)}


def test_anchors_are_those_of_github() -> None:
    text = "# A `b_c`: d, e\n## [Link](x.md#y) — two  spaces\n```bash\n# no heading\n```\n### Same ##\n### Same\n"
    assert anchors(text) == {"a-b_c-d-e", "link--two--spaces", "same", "same-1"}


def test_links_inside_the_project_lead_somewhere() -> None:
    for document in DOCUMENTS:
        for target, anchor in re.findall(r"\]\((?!\w+:)([^)#]*)(?:#([^)]+))?\)", document.read_text()):
            file = document.parent / target if target else document
            assert file.exists(), f"{document.name}: {target}"
            assert not anchor or anchor in anchors(file.read_text()), f"{document.name}: {target}#{anchor}"
