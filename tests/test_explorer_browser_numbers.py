"""What the explorer says in Chromium is what Python computes: weights, what-ifs, agreement, downloads, a verification."""

from __future__ import annotations

import csv
import time
from pathlib import Path

import numpy as np
import pytest

from datamodels import Attribution
from datamodels.explorer import export, gather
from datamodels.explorer.content import Content
from tests.browser import Browser
from tests.explorer_pages import STATE, Opened, browser, exported, file, opened_at, page, served, site
from tests.explorer_runs import cells, content, dense_run, exporting, folder, loose

__all__ = ["browser", "cells", "content", "exported", "file", "folder", "loose", "page", "served", "site"]  # fixtures
pytestmark = pytest.mark.browser


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


def test_donors_are_shown_once_where_their_cells_share_a_weight(
    file: Opened, loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(exporting, "_KEPT", 12)
    content = gather([loose / "a.h5ad", loose / "b.h5ad"], recipe=loose / "recipe.yaml", progress=False)
    opened = opened_at(file.browser, export(content, tmp_path / "cells.html").as_uri())
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


def test_a_calibrated_attribution_shows_intervals(site: Opened) -> None:
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
    opened = opened_at(browser, export(content, tmp_path / "out.html").as_uri())
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
    opened = opened_at(browser, export(content, tmp_path / "out.html").as_uri())
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


def downloaded(file: Path) -> bytes:
    end = time.monotonic() + 20
    while not (file.is_file() and file.stat().st_size):
        assert time.monotonic() < end, f"{file.name} did not come"
        time.sleep(0.05)
    return file.read_bytes()


def test_downloads_hold_the_map_and_every_predicted_change(page: Opened, content: Content, tmp_path: Path) -> None:
    page.browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    page.go()
    for kind, start in (("png", b"\x89PNG"), ("svg", b"<svg")):
        page.run(
            f"[...document.querySelectorAll('.tools button')].find(b => b.textContent === '{kind.upper()}').click()"
        )
        assert downloaded(tmp_path / f"map.{kind}")[: len(start)] == start
    page.go("whatif?w=3.2.c")
    page.run("[...document.querySelectorAll('button')].find(b => b.textContent === 'CSV of every target').click()")
    rows = list(csv.DictReader(downloaded(tmp_path / "whatif.csv").decode().splitlines()))
    found = [float(row["predicted_change"]) for row in rows]
    np.testing.assert_allclose(found, content.whatif(content.attribution("lasso"), [3, 5, 17], add=False)[0], atol=1e-6)
    page.quiet()


def test_a_verification_retrains_and_its_address_keeps_it(site: Opened, file: Opened, tmp_path: Path) -> None:
    site.browser.call("Page.setDownloadBehavior", behavior="allow", downloadPath=str(tmp_path))
    site.go("whatif?w=3.2.c&a=ridge")
    site.run("const n = document.querySelector('input[name=runs]'); n.value = 2; n.form.requestSubmit()")
    site.browser.until("document.getElementById('verdict')", 60)
    assert site.run("document.querySelectorAll('#verify .chart .dot').length") == 40
    assert site.run("document.querySelectorAll('#verify .chart .error.across').length") == 40
    assert "on all training examples and on all but" in site.run("document.querySelector('#verify').textContent")
    site.run("[...document.querySelectorAll('#verify button')].find(b => b.textContent === 'CSV').click()")
    rows = list(csv.DictReader(downloaded(tmp_path / "verified.csv").decode().splitlines()))
    assert all(float(row["predicted_low"]) < float(row["predicted"]) < float(row["predicted_high"]) for row in rows)
    assert "v=" in site.run("location.hash")
    site.browser.call("Page.reload")
    site.browser.until("document.getElementById('verdict')")  # the address knows the verification
    site.quiet()
    file.go("whatif?w=3.2.c")
    assert "datamodels explore" in file.run("document.querySelector('#verify code').textContent")
