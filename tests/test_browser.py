"""The demo's page in a real headless Chromium: it says what was found, it is there at once, and it asks nobody."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.browser import Browser

pytestmark = pytest.mark.browser
PLOT = "document.querySelector('.js-plotly-plot')"


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


def test_the_demo_is_there_in_three_seconds_and_asks_nobody(browser: Browser, page: Path) -> None:
    assert page.stat().st_size < 15e6
    times = []
    for _ in range(2):
        browser.call("Page.navigate", url="about:blank")
        browser.open(page)
        times.append(browser.run("performance.now()"))
    assert min(times) < 3000
    assert browser.run(f"{PLOT}.data[0].x.length") == 497
    assert browser.run("document.querySelectorAll('.legend button').length") == 10
    assert browser.complaints() == []


def test_its_first_view_answers_at_one_glance(browser: Browser, page: Path) -> None:
    results = json.loads((page.parent / "results.json").read_text())
    score, groups = results["attributions"]["lasso"], results["subgroups"]
    browser.open(page)
    said = browser.run("document.querySelector('.keys').textContent")
    numbers = [
        score["lds"],
        *score["lds_ci"],
        score["lds_ceiling"],
        groups["ari"],
        groups["ari_baseline"],
        groups["nmi"],
    ]
    for number in numbers:
        assert any(word.strip("();,") == f"{number:#.3g}" for word in said.split()), (number, said)
    assert "models" in said
    keys, box = (f"document.querySelector('{name}').getBoundingClientRect()" for name in (".keys", ".map-box"))
    assert browser.run(f"{keys}.bottom <= {box}.top && {box}.top < innerHeight / 2")
    assert "rank correlation" in browser.run("document.querySelector('.keys .term').dataset.meaning")


def test_about_has_the_scores_the_curve_and_the_baseline(browser: Browser, page: Path) -> None:
    results = json.loads((page.parent / "results.json").read_text())
    browser.open(f"{page.resolve().as_uri()}#/about")
    said = browser.run("document.getElementById('content').textContent")
    for name in ("lasso", "ridge"):
        assert f"{results['attributions'][name]['pearson']:.3g}"[:4] in said
    assert browser.run("document.querySelectorAll('.chart .dot').length") == len(results["curve"]["points"])
    assert browser.run("document.querySelectorAll('.chart .estimated').length") == 1
    assert browser.run("document.querySelectorAll('.chart .column').length") == 30
    assert f"{results['subgroups']['nmi_baseline']:#.3g}" in said
    assert "datamodels demo --out" in said
    assert "store half_test" in said
    assert browser.complaints() == []


def test_hovering_shows_the_digit(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.run(f"{PLOT}.emit('plotly_hover', {{points: [{{pointIndex: 7}}], event: {{clientX: 5, clientY: 5}}}})")
    assert "target 7" in browser.run("document.getElementById('card').textContent")
    assert browser.run("document.querySelector('#card .thumb').offsetWidth") == 88
    assert browser.complaints() == []


@pytest.mark.parametrize("width", [360, 1200])
def test_the_page_fits_its_window(browser: Browser, page: Path, width: int) -> None:
    browser.call("Emulation.setDeviceMetricsOverride", width=width, height=800, deviceScaleFactor=1, mobile=False)
    browser.open(page)
    assert browser.run("document.documentElement.scrollWidth") <= width
