"""The page in a real headless Chromium: it draws, it stays quiet, and nothing leaves the machine."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser

pytestmark = pytest.mark.browser


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    opened = Browser(tmp_path)
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a small demo, or of the folder that DATAMODELS_DEMO names."""
    if "DATAMODELS_DEMO" in os.environ:
        return Path(os.environ["DATAMODELS_DEMO"]) / "index.html"
    from datamodels.demo import run_demo

    return Path(run_demo(tmp_path_factory.mktemp("runs") / "demo", models=320, progress=False)["page"])


def test_the_demo_page_draws_everything_and_asks_nobody(browser: Browser, page: Path) -> None:
    browser.open(page)
    assert browser.run("document.querySelectorAll('#map .point').length") == 497
    assert browser.run("document.querySelectorAll('#curve .scatterlayer .trace').length") >= 3
    assert browser.run("document.querySelectorAll('#histogram .bars').length") == 2
    assert browser.run("[...document.querySelectorAll('.picture')].every(p => p.offsetWidth > 40)")
    assert browser.complaints() == []


def test_hovering_shows_the_digit_and_colours_change(browser: Browser, page: Path) -> None:
    browser.open(page)
    hover = "Plotly.Fx.hover(document.getElementById('map'), [{curveNumber: 0, pointNumber: 7}])"
    box = "document.getElementById('hover')"
    browser.run(
        f"document.getElementById('map').emit('plotly_hover', {{points: [{{pointIndex: 7}}], event: {{clientX: 5, clientY: 5}}}}); {hover}"
    )
    assert "target 7: " in browser.run(f"{box}.textContent")
    assert browser.run(f"!{box}.hidden && {box}.querySelector('.picture').offsetWidth") == 72
    colours = "JSON.stringify(document.getElementById('map').data[0].marker.color)"
    before = browser.run(colours)
    browser.run(
        "const s = document.getElementById('colour'); s.value = 'cluster'; s.dispatchEvent(new Event('change'))"
    )
    assert browser.run(colours) != before
    assert browser.run("document.getElementById('legend').children.length") == 10
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_its_window(browser: Browser, page: Path, width: int) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= width


def test_hostile_labels_do_nothing(browser: Browser, tmp_path: Path) -> None:
    from tests.test_demo import HOSTILE, hostile_page

    file = tmp_path / "hostile.html"
    file.write_text(hostile_page())
    browser.open(file)
    assert browser.run("document.querySelectorAll('main img, main script').length") == 0
    assert browser.run("[...document.querySelectorAll('.target .label')].map(e => e.textContent)") == HOSTILE * 2
    assert browser.complaints() == []
