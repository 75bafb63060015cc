"""The explorer in a real headless Chromium: an exported file and a served run show what Python computes, and ask nobody else."""

from __future__ import annotations

import csv
import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from datamodels import Attribution, datasets
from datamodels.explorer import app, export, gather
from datamodels.explorer.content import Content
from datamodels.explorer.verify import Verifier
from tests.browser import Browser
from tests.test_explorer import DATA, HOSTILE, cells, content, dense_run, exporting, folder, loose

pytestmark = pytest.mark.browser
__all__ = [
    "cells",
    "content",
    "folder",
    "loose",
]  # fixtures: a run of 60 targets that are its examples, one of 40 targets and 60 examples

VIEWS = ("map?s=3.1.1", "target/3", "train", "train/5", "groups", "whatif?w=1.1.1", "compare?t=3", "about")
STATE = "explorer.state"
PLOT = "document.querySelector('.js-plotly-plot')"


class Opened(NamedTuple):
    """A page and where it may ask."""

    browser: Browser
    address: str
    origin: str

    def go(self, hash_: str = "") -> None:
        self.browser.call(
            "Page.navigate", url="about:blank"
        )  # an address that differs in its hash alone is not loaded again
        self.browser.events.clear()
        self.browser.open(f"{self.address}#/{hash_}")

    def show(self, hash_: str) -> None:
        """Another address without loading the page again."""
        drawn = self.run("explorer.drawn")
        self.run(f"location.hash = '#/about'; location.hash = {json.dumps('#/' + hash_)}")
        self.browser.until(
            f"explorer.drawn > {drawn} && explorer.addressOf({{}}).startsWith({json.dumps('#/' + hash_.split('?')[0])})"
        )

    def run(self, expression: str) -> Any:
        return self.browser.run(expression)

    def click(self, selector: str) -> None:
        """Click an element and wait for the view that it leads to."""
        drawn = self.run("explorer.drawn")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")
        self.browser.until(f"explorer.drawn > {drawn}")

    def point(self, i: int) -> tuple[float, float]:
        """Where a target is in the window."""
        return tuple(  # type: ignore[return-value]
            self.run(
                f"(() => {{ const p = {PLOT}, box = p.getBoundingClientRect(), at = (v, [a, b]) => (v - a) / (b - a);"
                f"return [box.left + at(p.data[0].x[{i}], p.layout.xaxis.range) * box.width,"
                f"box.top + (1 - at(p.data[0].y[{i}], p.layout.yaxis.range)) * box.height]; }})()"
            )
        )

    def quiet(self) -> None:
        assert self.browser.complaints(self.origin) == []


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    opened = Browser(tmp_path_factory.mktemp("browser"))
    yield opened
    opened.close()


@pytest.fixture(scope="module")
def exported(content: Content, tmp_path_factory: pytest.TempPathFactory) -> str:
    return export(content, tmp_path_factory.mktemp("exported") / "out.html").as_uri()


@pytest.fixture(scope="module")
def served(content: Content) -> Iterator[str]:
    import uvicorn

    made = app(content, verifier=Verifier(content, executor="inline"))
    server = uvicorn.Server(uvicorn.Config(made, host="127.0.0.1", port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    server.should_exit = True
    thread.join()


@pytest.fixture(params=["exported", "served"])
def page(request: pytest.FixtureRequest, browser: Browser) -> Iterator[Opened]:
    yield _opened(browser, request.getfixturevalue(request.param))
    browser.call("Emulation.clearDeviceMetricsOverride")
    browser.call("Emulation.setEmulatedMedia", features=[])


@pytest.fixture
def file(browser: Browser, exported: str) -> Opened:
    return _opened(browser, exported)


@pytest.fixture
def site(browser: Browser, served: str) -> Opened:
    return _opened(browser, served)


def _opened(browser: Browser, address: str) -> Opened:
    return Opened(browser, address, "file:" if address.startswith("file:") else address)


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


def test_colours_and_filters(page: Opened) -> None:
    page.go()
    colours = f"JSON.stringify({PLOT}.data[0].marker.color)"
    before = page.run(colours)
    assert page.run("document.querySelectorAll('.legend button').length") == len(
        np.unique(datasets.load(DATA).test.hidden)
    )
    page.run("document.querySelector('.legend button').click()")
    page.browser.until(f"{PLOT}.data[0].x.includes(null)")
    assert page.run("document.querySelector('.legend button').getAttribute('aria-pressed')") == "false"
    assert "h=" in page.run("location.hash")
    drawn = page.run("explorer.drawn")
    page.run(
        "const s = document.querySelector('.choices select'); s.value = 'mean output'; s.dispatchEvent(new Event('change'))"
    )
    page.browser.until(f"explorer.drawn > {drawn}")
    assert page.run(colours) != before
    assert page.run("document.querySelectorAll('.bar-legend .ends span').length") == 3
    assert "c=mean+output" in page.run("location.hash")
    page.quiet()


def test_the_map_without_a_mouse(page: Opened, content: Content) -> None:
    places = content.map(0)
    unit = (places - places.min(axis=0)) / np.ptp(places, axis=0)
    middle = int(np.abs(unit - 0.5).sum(axis=1).argmin())
    for key, axis, sign in (("ArrowRight", 0, 1), ("ArrowUp", 1, 1), ("ArrowLeft", 0, -1), ("ArrowDown", 1, -1)):
        page.go(f"map?t={middle}")
        page.run("document.querySelector('.map-box').focus()")
        page.browser.press(key)
        end, step = page.run(f"{STATE}.target"), sign * (unit - unit[middle])[:, axis]
        aside = np.abs(unit - unit[middle])[:, 1 - axis]
        able = (step > 1e-9) & (aside <= 1.5 * step)
        assert able.sum() > 1
        assert end == np.where(able, step + 2 * aside, np.inf).argmin()
    chosen = page.run(f"{STATE}.target")
    assert page.run("document.getElementById('said').textContent").startswith(f"target {chosen}")
    page.browser.press("Enter")
    page.browser.until(f"{STATE}.view === 'target' && document.querySelector('h1')?.textContent.startsWith('Target')")
    assert page.run(f"{STATE}.index") == chosen
    page.browser.press("Escape")
    page.browser.until("document.querySelector('.ring')")
    assert page.run(f"[{STATE}.view, {STATE}.target]") == ["map", chosen]
    page.quiet()


def test_the_map_by_mouse(page: Opened) -> None:
    page.go()
    page.browser.drag(page.point(7))
    page.browser.until(f"Number.isInteger({STATE}.target)")
    chosen = page.run(f"{STATE}.target")
    np.testing.assert_allclose(page.point(chosen), page.point(7), atol=8)
    page.browser.drag(page.point(7))
    page.browser.until(f"{STATE}.view === 'target'")
    assert page.run(f"{STATE}.index") == chosen
    page.quiet()


def test_a_selection_and_what_would_hurt_it(page: Opened, folder: Path) -> None:
    page.go()
    page.run("document.querySelector('[data-mode=select]').click()")
    left, top, right, bottom = page.run(f"(b => [b.left, b.top, b.right, b.bottom])({PLOT}.getBoundingClientRect())")
    page.browser.drag((left + 3, top + 3), (right - 3, bottom - 3))
    page.browser.until(f"{STATE}.selection.length === 40")
    page.browser.until("document.querySelector('.side').textContent.includes('40 targets selected')")
    weights = np.maximum(Attribution.load(folder / "lasso.h5ad").weights.astype(np.float32), 0).astype(np.float64)
    total = weights.sum(axis=1)
    page.run("[...document.querySelectorAll('.side button')].find(b => b.textContent.includes('top helpers')).click()")
    page.browser.until(f"{STATE}.view === 'whatif'")
    chosen = page.run(f"{STATE}.whatif")
    assert sorted(chosen) == sorted(np.argsort(-total, kind="stable")[:20].tolist())
    page.quiet()


def test_a_lasso_takes_the_points_within_it(page: Opened, content: Content) -> None:
    page.go()
    page.run("document.querySelector('[data-mode=lasso]').click()")
    places = content.map(0)
    order = np.argsort(places[:, 0])
    cut = float(places[order[12], 0] + places[order[13], 0]) / 2
    left, top, right, bottom = page.run(f"(b => [b.left, b.top, b.right, b.bottom])({PLOT}.getBoundingClientRect())")
    low, high = page.run(f"{PLOT}.layout.xaxis.range")
    x = left + (cut - low) / (high - low) * (right - left)
    page.browser.drag((left + 3, top + 3), (x, top + 3), (x, bottom - 3), (left + 3, bottom - 3), (left + 3, top + 5))
    page.browser.until(f"{STATE}.selection.length > 0")
    assert page.run(f"{STATE}.selection") == sorted(order[:13].tolist())
    assert "13 targets selected" in page.run("document.querySelector('.side').textContent")
    page.quiet()


def test_a_cluster_on_the_map_is_its_members(file: Opened, cells: Path, tmp_path: Path) -> None:
    content = gather(cells, progress=False)
    assert content.subgroups is not None
    opened = _opened(file.browser, export(content, tmp_path / "cells.html").as_uri())
    opened.go("groups")
    clusters = np.array(content.subgroups["clusters"])
    for number in np.unique(clusters):
        opened.show("groups")
        opened.run(f"document.querySelectorAll('.groups tbody tr')[{number}].querySelector('button').click()")
        opened.browser.until(f"{STATE}.view === 'map' && document.querySelector('.js-plotly-plot')?.data")
        shown = opened.run(f"{PLOT}.data[0].x.map((x, i) => x === null ? -1 : i).filter(i => i >= 0)")
        assert shown == np.flatnonzero(clusters == number).tolist()
    opened.show("target/7")
    assert re.search(
        "Over [0-9]+ models? that did not see it", opened.run("document.getElementById('content').textContent")
    )
    opened.quiet()


def test_donors_are_shown_once_where_their_cells_share_a_weight(
    file: Opened, loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_KEPT", 12)
    content = gather([loose / "a.h5ad", loose / "b.h5ad"], recipe=loose / "recipe.yaml", progress=False)
    opened = _opened(file.browser, export(content, tmp_path / "cells.html").as_uri())
    opened.go("target/7")
    weights = Attribution.load(loose / "a.h5ad").weights[:, 7].astype(np.float64)
    donors = {f"d{k}": weights[5 * k : 5 * k + 5].sum() for k in range(12)}
    expected = sorted((name for name in donors if donors[name] > 1e-4), key=lambda name: -donors[name])
    rows = opened.run("[...document.querySelectorAll('.pair .panel:first-child .row')].map(a => [a.querySelector('b').textContent, "
                      "a.querySelector('.who small').textContent, a.querySelector('.number').textContent])")  # fmt: skip
    assert [name for name, _, _ in rows] == expected
    assert {size for _, size, _ in rows} == {"5 examples"}
    assert [float(value) for _, _, value in rows] == pytest.approx([donors[name] for name in expected], rel=0.01)
    words = opened.run("document.getElementById('content').textContent")
    assert "a row is a whole one, its bar the sum" in words
    assert "Remove the 20 most helpful" in words
    opened.run(
        "[...document.querySelectorAll('button')].find(b => b.textContent.includes('most helpful: what')).click()"
    )
    opened.browser.until(f"{STATE}.view === 'whatif'")
    chosen = [5 * int(name[1:]) + i for name in expected[:4] for i in range(5)]
    assert opened.run(f"{STATE}.whatif") == sorted(chosen)
    opened.show("target/7?a=lasso")
    assert "not how it is divided among them" in opened.run("document.getElementById('content').textContent")
    opened.show("about")
    headings = opened.run("[...document.querySelectorAll('#content .panel')].map(p => p.firstChild.textContent)")
    assert headings == ["Is it right?", "What was run", "To take away"]  # and no 0 before it
    opened.quiet()


def test_a_name_without_a_label_is_shown_once(file: Opened, loose: Path, tmp_path: Path) -> None:
    content = gather(loose / "a.h5ad", cache=tmp_path / "kept", progress=False)
    opened = _opened(file.browser, export(content, tmp_path / "bare.html").as_uri())
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


def test_given_groups_are_shown_and_mapped_by_their_names(file: Opened, loose: Path, tmp_path: Path) -> None:
    content = gather(
        loose / "a.h5ad", recipe=loose / "recipe.yaml", group_by="state", cache=tmp_path / "kept", progress=False
    )
    opened = _opened(file.browser, export(content, tmp_path / "given.html").as_uri())
    opened.go("groups")
    assert "3 groups of targets: state" in opened.run("document.getElementById('content').textContent")
    opened.run("document.querySelectorAll('.groups tbody tr')[1].querySelector('button').click()")
    opened.browser.until(f"{STATE}.view === 'map' && document.querySelector('.js-plotly-plot')?.data")
    shown = opened.run(f"{PLOT}.data[0].x.map((x, i) => x === null ? -1 : i).filter(i => i >= 0)")
    assert shown == list(range(1, 60, 3))
    opened.quiet()


def test_a_target_shows_its_weights(page: Opened, folder: Path) -> None:
    page.go("target/3")
    weights = Attribution.load(folder / "lasso.h5ad").weights[:, 3]
    helpful = np.argsort(-weights, kind="stable")[: min(12, int((weights > 0).sum()))]
    links = page.run(
        "[...document.querySelectorAll('.pair .panel:first-child .row')].map(a => a.getAttribute('href').split('?')[0])"
    )
    assert links == [f"#/train/{j}" for j in helpful]
    assert page.run("document.querySelectorAll('.whisker').length") > 0
    assert page.run("[...document.querySelectorAll('.thumb')].every(t => t.offsetWidth >= 24)")
    page.quiet()


def test_what_if_is_what_python_computes(page: Opened, content: Content) -> None:
    page.go("train/5")
    page.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'Add to the what-if list').click()")
    page.browser.until(f"{STATE}.whatif.length === 1")
    page.click("nav a:nth-child(4)")
    page.browser.until("!!document.querySelector('input[name=ids]')")
    page.run("const i = document.querySelector('input[name=ids]'); i.value = '17, 3'; i.form.requestSubmit()")
    page.browser.until(f"{STATE}.whatif.length === 3 && document.querySelectorAll('.chips li').length === 3")
    for add in (False, True):
        expected = content.whatif(content.attribution("lasso"), [3, 5, 17], add=add)[0]
        page.show(f"whatif?w=3.2.c{'&add=1' if add else ''}")
        assert page.run(f"{STATE}.whatif") == [3, 5, 17]
        found = page.run(
            f"explorer.source.whatif('lasso', Int32Array.from({STATE}.whatif), {STATE}.add).then(a => [...a.predicted])"
        )
        np.testing.assert_allclose(found, expected, atol=1e-6)
        words = page.run("document.getElementById('told').textContent")
        assert f"of {(expected < 0).sum()} target" in words
        assert f"{(expected > 0).sum()} rise" in words
    page.quiet()


def test_intervals_of_a_calibrated_attribution(site: Opened) -> None:
    site.go("whatif?w=3.2.c&a=ridge")
    assert site.run("document.querySelectorAll('.whisker').length") > 0
    site.quiet()


def test_two_attributions_agree_as_python_says(page: Opened, content: Content) -> None:
    page.go("compare?t=3")
    lasso, ridge = content.attributions
    expected = content.agreement(lasso, ridge)
    for name in ("overlap", "cosine"):
        found = page.run(
            f"explorer.source.agreement('lasso', 'ridge').then(a => [...a.{name}].map(v => isNaN(v) ? null : v))"
        )
        np.testing.assert_allclose(np.array(found, dtype=float), expected[name], atol=1e-5)
    assert page.run("document.querySelectorAll('.pair .panel').length") == 2
    page.quiet()


ASKED = list(range(0, 300, 2))  # half of the training examples


@pytest.mark.parametrize(("room", "steps"), [(2 * 2 * 300 * 20, 32767), (2 * 300 * 20, 127)])
def test_a_file_of_dense_attributions_says_what_the_server_says(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int, steps: int
) -> None:
    monkeypatch.setattr(exporting, "_ROUNDED", room)
    content = dense_run(tmp_path, 300, 20)
    first, second = content.attributions
    opened = _opened(browser, export(content, tmp_path / "out.html").as_uri())
    opened.go("compare?t=3")
    agreement = content.agreement(first, second)
    for name in ("overlap", "cosine"):
        found = opened.run(f"explorer.source.agreement('b', 'a').then(a => [...a.{name}])")
        np.testing.assert_allclose(found, agreement[name], atol=1e-6)
    for shown in (first, second):
        unit = max(float(np.abs(shown.file.row(k)[1]).max()) for k in range(20)) / steps
        error = 5 * unit * np.sqrt(len(ASKED) / 12)  # five standard deviations of a sum of roundings
        for add in (False, True):
            expected = content.whatif(shown, ASKED, add=add)
            found = opened.run(
                f"explorer.source.whatif('{shown.name}', Int32Array.from({ASKED}), {str(add).lower()})"
                ".then(a => ['predicted', 'low', 'high'].map(k => a[k] && [...a[k]]))"
            )
            np.testing.assert_allclose(found[0], expected[0], atol=error)
            if shown.calibrated:
                np.testing.assert_allclose(found[1:], expected[1:], atol=1.2 * error)
            else:
                assert found[1:] == [None, None]
        for j in (0, 299):
            found = opened.run(
                f"explorer.source.weights('{shown.name}', 'train', {j}).then(w => [[...w.indices], [...w.values]])"
            )
            indices, values = shown.by_train.row(j)
            assert np.array(found[0])[np.abs(found[1]) > 0.1].size >= (np.abs(values) > 0.15).sum()
            np.testing.assert_allclose(found[1], values[np.searchsorted(indices, found[0])], atol=0.501 * unit)
    opened.show("whatif?w=3.2.c&a=b")
    assert f"1/{steps:,} of each target" in opened.run("document.getElementById('content').textContent")
    assert opened.run("document.querySelectorAll('.whisker').length") > 0
    opened.quiet()


def test_a_file_that_holds_too_little_refuses_a_what_if(
    browser: Browser, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_ROUNDED", 0)
    weights = np.random.default_rng(0).normal(size=(300, 20)).astype(np.float32)
    weights[:40] *= 30  # these are kept, but for a few
    Attribution(weights, np.zeros(20)).save(tmp_path / "a.h5ad")
    content = gather(tmp_path / "a.h5ad", progress=False)
    (shown,) = content.attributions
    opened = _opened(browser, export(content, tmp_path / "out.html").as_uri())
    opened.go("whatif?w=1e.1.1.1.1")  # 50 to 54
    kept = [np.abs(column) >= np.sort(np.abs(column))[-100] for column in weights.T]
    share = (np.abs(weights) * np.transpose(kept))[50:55].sum() / np.abs(weights[50:55]).sum()
    assert share < 0.8
    words = opened.run("document.getElementById('kept').textContent")
    assert f"{int(100 * share)} % of the weights" in words
    assert "too little" in words
    assert opened.run("document.querySelectorAll('.chips li').length") == 5
    assert opened.run("!document.getElementById('told')")
    opened.show("whatif?w=0.1.1")
    assert "too little" not in opened.run("document.getElementById('content').textContent")
    found = opened.run(
        f"explorer.source.whatif('{shown.name}', Int32Array.from([0, 1, 2]), false).then(a => [...a.predicted])"
    )
    np.testing.assert_allclose(found, content.whatif(shown, [0, 1, 2], add=False)[0], atol=2)
    opened.quiet()


def test_search(page: Opened) -> None:
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


def test_dark_and_light(page: Opened) -> None:
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


def test_hostile_labels_are_text(browser: Browser, tmp_path: Path) -> None:
    names = np.array([HOSTILE, "plain", "<img src=x onerror=alert(1)>", "</SCRIPT>"] * 2)
    Attribution(
        np.random.default_rng(0).normal(size=(6, 8)),
        np.zeros(8),
        {"label": names, HOSTILE.replace("/", ""): names, "id": names, "text": names},
        provenance={"estimator": {"name": HOSTILE}},
    ).save(tmp_path / "a.h5ad")
    hostile = _opened(browser, export(gather(tmp_path / "a.h5ad", progress=False), tmp_path / "out.html").as_uri())
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


def test_downloads(page: Opened, content: Content, tmp_path: Path) -> None:
    page.browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.go()
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<svg")):
        page.run(
            f"[...document.querySelectorAll('.tools button')].find(b => b.textContent === '{kind.upper()}').click()"
        )
        assert _downloaded(tmp_path / f"map.{kind}")[: len(start)] == start
    page.go("whatif?w=3.2.c")
    page.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'CSV of every target').click()")
    rows = list(csv.DictReader(_downloaded(tmp_path / "whatif.csv").decode().splitlines()))
    found = [float(row["predicted_change"]) for row in rows]
    np.testing.assert_allclose(found, content.whatif(content.attribution("lasso"), [3, 5, 17], add=False)[0], atol=1e-6)
    page.quiet()


def _downloaded(file: Path) -> bytes:
    end = time.monotonic() + 20
    while not (file.is_file() and file.stat().st_size):
        assert time.monotonic() < end, f"{file.name} did not come"
        time.sleep(0.05)
    return file.read_bytes()


def test_verification_retrains(site: Opened, file: Opened, tmp_path: Path) -> None:
    site.browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    site.go("whatif?w=3.2.c&a=ridge")
    site.run("const n = document.querySelector('input[name=runs]'); n.value = 2; n.form.requestSubmit()")
    site.browser.until("document.getElementById('verdict')", 60)
    assert site.run("document.querySelectorAll('#verify .chart .dot').length") == 40
    assert site.run("document.querySelectorAll('#verify .chart .error.across').length") == 40
    assert "on all training examples and on all but" in site.run("document.querySelector('#verify').textContent")
    site.run("[...document.querySelectorAll('#verify button')].find(b => b.textContent === 'CSV').click()")
    rows = list(csv.DictReader(_downloaded(tmp_path / "verified.csv").decode().splitlines()))
    assert all(float(row["predicted_low"]) < float(row["predicted"]) < float(row["predicted_high"]) for row in rows)
    assert "v=" in site.run("location.hash")
    site.browser.call("Page.reload")
    site.browser.until("document.getElementById('verdict')")  # the address knows the verification
    site.quiet()
    file.go("whatif?w=3.2.c")
    assert "datamodels explore" in file.run("document.querySelector('#verify code').textContent")
