"""The explorer as a page in Chromium: every view draws, asks nobody else, fits its window, keeps its address, and runs no label."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from datamodels import Attribution
from datamodels.explorer import export, gather
from tests.browser import Browser
from tests.explorer_pages import PLOT, STATE, Opened, browser, exported, file, opened_at, page, served
from tests.explorer_runs import HOSTILE, cells, content, folder, loose

__all__ = ["browser", "cells", "content", "exported", "file", "folder", "loose", "page", "served"]  # fixtures
pytestmark = pytest.mark.browser
VIEWS = ("map?s=3.1.1", "target/3", "train", "train/5", "groups", "whatif?w=1.1.1", "compare?t=3", "about")


def test_every_view_draws_and_asks_nobody(page: Opened) -> None:
    page.go()
    for view in VIEWS:
        page.show(view)
        assert page.run(f"{STATE}.view") == view.split("/")[0].split("?")[0]
        assert page.run("document.querySelectorAll('#content .panel').length") >= 1
        assert page.run("document.querySelectorAll('#content [role=alert]:not(:empty)').length") == 0
        page.quiet()


def test_an_export_is_there_in_three_seconds(file: Opened) -> None:
    times = []
    for _ in range(2):
        file.go()
        times.append(file.run("performance.now()"))
    assert min(times) < 3000
    assert file.run(f"{PLOT}.data[0].x.length") == 40
    assert file.run("document.title").endswith("A small run")


def test_search_finds_a_target_and_opens_it(page: Opened) -> None:
    page.go()
    page.browser.press("/")
    assert page.run("document.activeElement.id") == "search"
    page.browser.press("7")
    page.browser.until("document.querySelectorAll('#found [role=option]').length > 2")
    page.browser.press("ArrowDown")
    assert page.run("document.getElementById('search').getAttribute('aria-activedescendant')") == "found-0"
    page.browser.press("Enter")
    page.browser.until(f"{STATE}.view === 'target'")
    assert page.run(f"{STATE}.index") == 7
    page.quiet()


def test_the_address_holds_the_state(page: Opened) -> None:
    page.go("map?c=class&t=4&s=2.3.1&w=1.a&b=lasso&a=ridge")
    wanted = {
        "view": "map", "colour": "class", "target": 4, "selection": [2, 5, 6], "whatif": [1, 11], "attribution": "ridge", "other": "lasso",
    }  # fmt: skip
    assert page.run(STATE) | wanted == page.run(STATE)
    page.click("nav a:nth-child(3)")
    page.run("history.back()")
    page.browser.until(f"{STATE}.view === 'map'")
    address = page.run("location.hash")
    page.browser.events.clear()
    page.browser.call("Page.reload")
    page.browser.until("window.explorer && document.body.dataset.ready === 'true'")
    assert page.run("location.hash") == address
    assert page.run(STATE) | wanted == page.run(STATE)
    page.go("target/4000?a=nothing&t=-1&s=zz.zz&w=../..")
    assert page.run(f"[{STATE}.view, {STATE}.attribution, {STATE}.target, {STATE}.whatif]") == [
        "map",
        "lasso",
        None,
        [],
    ]
    page.quiet()


@pytest.mark.parametrize("width", [360, 1200])
def test_no_view_is_wider_than_its_window(file: Opened, width: int) -> None:
    file.browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    file.go()
    for view in VIEWS:
        file.show(view)
        assert file.run("document.documentElement.scrollWidth") <= width, view
    file.browser.call("Emulation.clearDeviceMetricsOverride")


def test_the_theme_follows_the_system_until_one_is_chosen(page: Opened) -> None:
    back = "getComputedStyle(document.body).backgroundColor.match(/[0-9]+/g).map(Number)"
    page.browser.call("Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}])
    page.go()
    assert max(page.run(back)) < 60
    page.click(".theme")
    assert min(page.run(back)) > 200
    page.go()
    assert min(page.run(back)) > 200
    page.run("localStorage.clear()")
    page.quiet()


def test_a_name_without_a_label_is_shown_once(file: Opened, loose: Path, tmp_path: Path) -> None:
    content = gather(loose / "a.h5ad", cache=tmp_path / "kept", progress=False)
    opened = opened_at(file.browser, export(content, tmp_path / "bare.html").as_uri())
    opened.go("groups")
    tiles = opened.run("[...document.querySelectorAll('.tile')].map(t => t.innerText.trim())")
    assert tiles
    assert all(re.fullmatch("cell[0-9]+", text) for text in tiles)
    opened.show("map")
    assert opened.run("[...document.querySelectorAll('.tools [data-mode]')].map(b => b.textContent)") == [
        "Move",
        "Select freely",
        "Select a box",
    ]
    opened.quiet()


def test_hostile_labels_are_text(browser: Browser, tmp_path: Path) -> None:
    names = np.array([HOSTILE, "plain", "<img src=x onerror=alert(1)>", "</SCRIPT>"] * 2)
    Attribution(
        np.random.default_rng(0).normal(size=(6, 8)),
        np.zeros(8),
        {"label": names, HOSTILE.replace("/", ""): names, "id": names, "text": names},
        provenance={"estimator": {"name": HOSTILE}},
    ).save(tmp_path / "a.h5ad")
    hostile = opened_at(browser, export(gather(tmp_path / "a.h5ad", progress=False), tmp_path / "out.html").as_uri())
    hostile.go()
    for view in ("map?s=1.1", "target/2", "train/1", "groups", "whatif?w=1", "about"):
        hostile.show(view)
        assert hostile.run("document.querySelectorAll('body img, main script').length") == 0
        hostile.quiet()
    hostile.show("target/2")
    assert "<img src=x onerror=alert(1)>" in hostile.run("document.querySelector('h1').textContent")
    hostile.show("map")
    hostile.run(f"{PLOT}.emit('plotly_hover', {{points: [{{pointIndex: 2}}], event: {{clientX: 5, clientY: 5}}}})")
    assert "<img src=x onerror=alert(1)>" in hostile.run("document.getElementById('card').textContent")
    browser.press("/", "i", "m", "g")
    browser.until("document.querySelectorAll('#found [role=option]').length > 0")
    assert hostile.run("document.querySelectorAll('body img').length") == 0
    hostile.quiet()
