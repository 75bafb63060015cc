"""The demo at a small size: its numbers are real, it goes on where it was, and its page stands alone."""

from __future__ import annotations

import json
import re
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels import Attribution, Store, lds
from datamodels.applications import subgroups
from datamodels.datasets import digits, load
from datamodels.demo import run_demo
from datamodels.demo.job import HALF
from datamodels.design import Design
from datamodels.errors import NewerFormatError, RequestError
from datamodels.explorer import report_run
from datamodels.run import Run
from tests.explorer_runs import data_in

MODELS = 640


@pytest.fixture(scope="module")
def demo(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    folder = tmp_path_factory.mktemp("runs") / "demo"
    return folder, run_demo(folder, models=MODELS, progress=False)


def test_its_numbers_are_those_of_its_files(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, result = demo
    assert result["models"] == 2 * MODELS
    assert set(result) == {
        "lds", "lds_ci", "lds_ceiling", "ari", "ari_baseline", "nmi", "nmi_baseline", "models", "trained", "seconds", "page",
    }  # fmt: skip
    score = lds(Attribution.load(folder / "lasso.h5ad"), folder / "half_test")
    assert score.lds == result["lds"]
    assert result["lds"] > 0.2
    assert result["lds_ci"][0] < result["lds"] < result["lds_ci"][1]
    assert result["lds"] < result["lds_ceiling"] < 1
    assert result["ari"] > 0.3
    assert Attribution.load(folder / "lasso.h5ad").target_facts["gap"].max() <= 1e-5
    for name in ("half", "half_test", "tenth", "tenth_test"):
        assert Store.open(folder / name).verify().ok


def test_it_goes_on_where_it_was(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Rows that were lost are trained again to the same bytes, rows that were there stay, and so do the results."""
    folder, result = demo
    again = tmp_path / "demo"
    shutil.copytree(folder, again)
    flags = np.load(again / "half/_completed.npy", mmap_mode="r+")
    margins = np.load(again / "half/margins.npy", mmap_mode="r+")
    before = np.array(margins)
    flags[100:200] = False
    margins[100:200] = 0
    del flags, margins
    shutil.rmtree(again / "tenth_test")
    second = run_demo(again, models=MODELS, progress=False)
    np.testing.assert_array_equal(np.load(again / "half/margins.npy"), before)
    assert second["trained"] == 100 + MODELS // 16 * 2
    assert second["lds"] == pytest.approx(result["lds"], abs=1e-3)
    larger = run_demo(again, models=MODELS + 160, progress=False)
    assert larger["trained"] == 2 * 160
    np.testing.assert_array_equal(np.load(again / "half/margins.npy")[: len(before)], before)
    with pytest.raises(RequestError, match="another number of models"):
        run_demo(again, models=MODELS, progress=False)


def test_a_row_is_the_same_network_in_any_block() -> None:
    design = Design(n_train=1300, alpha=0.5, n_models=20, seed=0)
    many = HALF(np.arange(20), design.masks(), design)["margins"]
    for rows in ([7], [3, 19]):
        alone = HALF(np.array(rows), design.masks()[rows], design)["margins"]
        np.testing.assert_allclose(alone, many[rows], atol=1e-3)
    assert (many > 0).mean() > 0.9
    assert not np.allclose(many[0], many[1])


def test_replicates_are_other_networks_on_the_same_subset() -> None:
    design = Design(n_train=1300, alpha=0.1, n_models=60, seed=0, replicates=2)
    out = HALF(np.arange(60), design.masks(), design)["margins"]
    out = out - out.mean(axis=0)
    same = np.mean([np.corrcoef(out[i], out[i + 1])[0, 1] for i in range(0, 60, 2)])
    other = np.mean([np.corrcoef(out[i], out[(i + 2) % 60])[0, 1] for i in range(0, 60, 2)])
    assert other + 0.2 < same < 0.999


def test_the_run_says_what_belongs_together_and_can_be_moved(demo: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    folder, result = demo
    run = Run.load(folder)
    assert run.view.neighbours == "lasso"
    assert set(run.stores) == {"half", "half_test", "tenth", "tenth_test"}
    moved = tmp_path / "elsewhere"
    shutil.copytree(folder, moved)
    report = report_run(moved, progress=False)
    assert report["attributions"]["lasso"]["lds"] == result["lds"]
    assert json.loads((moved / "results.json").read_text())["subgroups"]["ari"] == result["ari"]


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"format_version": 5}, NewerFormatError, "version 5.*up to version 1"),
        (
            {"stores": {"half": "../../etc", "half_test": "b", "tenth": "c", "tenth_test": "d"}},
            RequestError,
            "outside of the run's folder",
        ),
        ({"attributions": {}}, RequestError, "damaged"),
        ({"unknown": 1}, RequestError, "damaged"),
        ({"view": {"neighbours": "nope", "embedding": "ridge"}}, RequestError, "view names 'nope'"),
        ({"stores": {"half": "half"}}, RequestError, "names the store"),
    ],
)
def test_damaged_and_hostile_runs_are_refused(
    demo: tuple[Path, dict[str, Any]], tmp_path: Path, change: dict[str, Any], error: type[Exception], message: str
) -> None:
    content = json.loads((demo[0] / "run.json").read_text())
    (tmp_path / "run.json").write_text(json.dumps({**content, **change}))
    with pytest.raises(error, match=message):
        Run.load(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(RequestError, match="not JSON"):
        Run.load(tmp_path)


def test_the_page_stands_alone_and_shows_the_results(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, result = demo
    page = (folder / "index.html").read_text()
    assert len(page) < 15e6
    own = re.sub(r"<(script|style).*?</\1>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(?!data:|#|")""", own)
    assert "http" not in own.replace("http-equiv", "")
    meta = data_in(page)["meta"]
    lasso = meta["attributions"][0]
    assert (lasso["name"], lasso["lds"]["value"]) == ("lasso", pytest.approx(result["lds"]))
    assert [lasso["lds"]["low"], lasso["lds"]["high"]] == pytest.approx(result["lds_ci"])
    assert lasso["lds"]["ceiling"] == pytest.approx(result["lds_ceiling"])
    assert {name: meta["groups"][name] for name in ("ari", "ari_baseline", "nmi", "nmi_baseline")} == {
        name: result[name] for name in ("ari", "ari_baseline", "nmi", "nmi_baseline")
    }
    assert meta["n_models"] == 2 * MODELS
    assert meta["curve"]["sizes"][-1] == MODELS - MODELS // 16 * 2
    assert meta["curve"]["ahead"]["lds"][-1] > meta["curve"]["lds"][-1]


def test_hidden_digits_are_those_that_subgroups_finds(demo: tuple[Path, dict[str, Any]]) -> None:
    folder, result = demo
    data = digits()
    found = subgroups(Attribution.load(folder / "ridge.h5ad"), labels=data.test.hidden, features=data.test.flat)
    for name in ("ari", "ari_baseline", "nmi", "nmi_baseline"):
        assert getattr(found, name) == pytest.approx(result[name])


def test_datasets_are_known_by_name() -> None:
    data = load("digits")
    assert data is digits()
    assert data.train.x.shape == (1300, 64)
    assert data.test.images.shape == (497, 8, 8)
    np.testing.assert_array_equal(data.train.y, data.train.hidden >= 5)
    with pytest.raises(RequestError, match="legal: digits"):
        load("imagenet")


@pytest.mark.slow
def test_at_full_size_it_reaches_its_numbers(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = run_demo(tmp_path / "demo", progress=False)
    assert result["models"] == 8000
    assert result["lds"] >= 0.50
    assert result["ari"] >= 0.65
    assert result["ari"] > result["ari_baseline"]
    assert result["nmi"] > result["nmi_baseline"]
