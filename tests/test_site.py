"""The documentation site: its navigation has all pages; it builds without warnings, needs no network, and opens from disk."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urldefrag

import pytest
import yaml

from tests.browser import Browser
from tests.test_reference import PAGES, names_on

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
SITE = yaml.safe_load((ROOT / "mkdocs.yml").read_text())


def leaves(nav: Any) -> list[str]:
    """The pages of a navigation, in order."""
    if isinstance(nav, str):
        return [nav]
    return [page for part in (nav.values() if isinstance(nav, dict) else nav) for page in leaves(part)]


def test_every_page_is_in_the_navigation_once() -> None:
    listed = leaves(SITE["nav"])
    assert len(set(listed)) == len(listed)
    generated = {page for page in listed if page.startswith(("examples/", "benchmarks/", "project/"))}
    written = {path.relative_to(DOCS).as_posix() for kind in ("*.md", "*.ipynb") for path in DOCS.rglob(kind)}
    assert set(listed) - generated == written
    scripts = {f"examples/{path.stem}.md" for path in ROOT.glob("examples/*.py") if path.stem != "common"}
    assert {page for page in generated if page.startswith("examples/")} == {"examples/index.md"} | scripts


class Page(HTMLParser):
    """What a page loads when it is opened, where its links lead, and the names that links can lead to."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.loads: list[str] = []
        self.links: list[str] = []
        self.ids: set[str] = set()
        self.scripts = ""
        self._in_script = False
        self.feed(path.read_text())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        given = {name: value or "" for name, value in attrs}
        self.ids |= {given[name] for name in ("id", "name") if name in given}
        self._in_script = tag == "script"
        if tag == "a" and "href" in given:
            self.links.append(given["href"])
        elif tag == "link" and not {*given["rel"].split()} & {"canonical", "prev", "next"}:
            self.loads.append(given["href"])
        elif tag != "a":
            self.loads += [given[name] for name in ("src", "srcset", "data", "poster") if name in given]

    def handle_data(self, data: str) -> None:
        self.scripts += data if self._in_script else ""

    def handle_endtag(self, tag: str) -> None:
        self._in_script = False


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the site, built as `make docs` does."""
    pytest.importorskip("mkdocs", reason="`make docs` installs what the site is built with")
    folder = tmp_path_factory.mktemp("site")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr
    return folder


@pytest.fixture(scope="session")
def pages(site: Path) -> dict[Path, Page]:
    return {path: Page(path) for path in site.rglob("*.html")}


@pytest.mark.slow
def test_every_page_of_the_navigation_is_built(site: Path, pages: dict[Path, Page]) -> None:
    assert {site / Path(page).with_suffix(".html") for page in leaves(SITE["nav"])} <= set(pages)


@pytest.mark.slow
def test_no_page_asks_another_host_for_anything(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        assert not [address for address in page.loads if re.match(r"\w+://|//", address)], path
        assert "://" not in page.scripts, path
    for sheet in site.rglob("*.css"):
        assert not re.search(r"(?:url\(|@import)\s*[\"']?(?:\w+:)?//", sheet.read_text()), sheet


@pytest.mark.slow
def test_every_link_of_the_site_leads_to_a_file_and_a_place_in_it(site: Path, pages: dict[Path, Page]) -> None:
    for path, page in pages.items():
        for link in [*page.links, *page.loads]:
            address, anchor = urldefrag(unquote(link))
            if re.match(r"\w+:", address) or path.name == "404.html":
                continue
            target = (path.parent / address).resolve() if address else path
            assert target.is_file(), f"{path.relative_to(site)}: {link}"
            assert not anchor or target.suffix != ".html" or anchor in pages[target].ids, (
                f"{path.relative_to(site)}: {link}"
            )


@pytest.mark.slow
def test_all_names_and_all_commands_with_their_options_are_on_the_site(pages: dict[Path, Page], site: Path) -> None:
    for page in PAGES:
        assert {*names_on(page)} <= pages[site / "reference" / f"{page.stem}.html"].ids, page
    from typer.main import get_command

    from datamodels.cli import app

    text = (site / "reference/command-line.html").read_text()
    commands: dict[str, Any] = get_command(app).commands  # type: ignore[attr-defined]
    for number, (name, command) in enumerate(commands.items()):
        after = [*commands, None][number + 1]
        part = text.partition(f'<h2 id="{name}"')[2].partition(f'<h2 id="{after}"')[0]
        assert all(
            option in part for parameter in command.params for option in parameter.opts if option.startswith("--")
        ), name
        assert f"datamodels {name}" in part


@pytest.mark.slow
def test_search_finds_words_of_all_kinds_of_pages(site: Path) -> None:
    entries = json.loads((site / "search/search_index.json").read_text())["docs"]
    for word, place in {
        "duality gap": "mathematics.html", "penalty_factors": "reference/fitting.html", "--replicates": "reference/command-line.html",
        "Adjusted Rand index": "reference/applications.html", "open_or_create": "index.html", "NMI": "examples/index.html",
    }.items():  # fmt: skip
        assert any(word in entry["text"] and entry["location"].startswith(place) for entry in entries), word


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 390], ids=["desktop", "phone"])
def test_pages_open_from_disk_at_any_width_without_errors_or_requests(site: Path, tmp_path: Path, width: int) -> None:
    opened = [
        "index.html",
        "reference/fitting.html",
        "reference/command-line.html",
        "gradients.html",
        "examples/sweep.html",
    ]
    opened += [f"tutorials/{path.stem}.html" for path in sorted(DOCS.glob("tutorials/*.ipynb"))]
    browser = Browser(tmp_path)
    try:
        browser.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=width < 600
        )
        for page in opened:
            browser.call("Page.navigate", url=(site / page).as_uri())
            browser.until(f"document.readyState === 'complete' && location.pathname.endsWith('{page}')")
            assert browser.run("document.documentElement.scrollWidth <= innerWidth"), page
            assert browser.run("[...document.images].every(image => image.naturalWidth)"), page
        browser.run("document.querySelector('input[name=query]').focus()")
        browser.run("document.querySelector('label[for=__search]').click()")
        browser.call("Input.insertText", text="knockoff")
        browser.until("document.querySelector('.md-search-result__link[href*=\"which-are-real.html\"]')")
        assert browser.complaints() == []
    finally:
        browser.close()
