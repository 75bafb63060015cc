"""The explorer's map in Chromium: mouse, keys, colours and selections, and the groups that it shows."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from datamodels import Attribution, datasets
from datamodels.explorer import export, gather
from datamodels.explorer.content import Content
from tests.explorer_pages import PLOT, STATE, Opened, browser, exported, file, opened_at, page, served
from tests.explorer_runs import DATA, cells, content, folder, loose

__all__ = ["browser", "cells", "content", "exported", "file", "folder", "loose", "page", "served"]  # fixtures
pytestmark = pytest.mark.browser


def test_a_filter_hides_targets_and_a_column_colours_them(page: Opened) -> None:
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


def test_keys_walk_the_map_open_a_target_and_come_back(page: Opened, content: Content) -> None:
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


def test_a_click_chooses_a_target_and_a_second_opens_it(page: Opened) -> None:
    page.go()
    page.browser.drag(page.point(7))
    page.browser.until(f"Number.isInteger({STATE}.target)")
    chosen = page.run(f"{STATE}.target")
    np.testing.assert_allclose(page.point(chosen), page.point(7), atol=8)
    page.browser.drag(page.point(7))
    page.browser.until(f"{STATE}.view === 'target'")
    assert page.run(f"{STATE}.index") == chosen
    page.quiet()


def test_a_selection_leads_to_a_what_if_of_its_top_helpers(page: Opened, folder: Path) -> None:
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
    opened = opened_at(file.browser, export(content, tmp_path / "cells.html").as_uri())
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


def test_given_groups_are_shown_and_mapped_by_their_names(file: Opened, loose: Path, tmp_path: Path) -> None:
    content = gather(
        loose / "a.h5ad", recipe=loose / "recipe.yaml", group_by="state", cache=tmp_path / "kept", progress=False
    )
    opened = opened_at(file.browser, export(content, tmp_path / "given.html").as_uri())
    opened.go("groups")
    assert "3 groups of targets: state" in opened.run("document.getElementById('content').textContent")
    opened.run("document.querySelectorAll('.groups tbody tr')[1].querySelector('button').click()")
    opened.browser.until(f"{STATE}.view === 'map' && document.querySelector('.js-plotly-plot')?.data")
    shown = opened.run(f"{PLOT}.data[0].x.map((x, i) => x === null ? -1 : i).filter(i => i >= 0)")
    assert shown == list(range(1, 60, 3))
    opened.quiet()
