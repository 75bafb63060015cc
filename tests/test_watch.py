"""Fits that follow a campaign: what they say, and when they end it."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import numpy as np
import pytest

from datamodels import Lasso, Ridge, Store, fit, watch
from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.evaluation.watch import Look
from datamodels.training.campaign import Summary, train

N_TRAIN, N_TARGETS = 40, 5
EFFECTS = np.random.default_rng(3).normal(size=(N_TRAIN, N_TARGETS)) * (np.arange(N_TRAIN) < 6)[:, None]


def slow_row(index: int, mask: np.ndarray, rng: np.random.Generator) -> dict[str, np.ndarray]:
    time.sleep(0.004)
    return {"margins": mask @ EFFECTS + 0.5 * rng.normal(size=N_TARGETS)}


def new_store(path: Path, n_models: int = 400, **field: object) -> Store:
    return Store.create(
        path,
        schema={"margins": {"shape": (N_TARGETS,), "dtype": "float64", **field}},
        design=Design(n_train=N_TRAIN, alpha=0.5, n_models=n_models, seed=1),
    )


def fill(store: Store, rows: range) -> None:
    """Rows that do not depend on when they are written."""
    masks = store.design.masks(rows.start, rows.stop)
    noise = np.random.default_rng(0).normal(size=(store.n_models, N_TARGETS))[rows.start : rows.stop]
    store.write_rows(np.asarray(rows), {"margins": masks @ EFFECTS + 0.5 * noise})


@pytest.mark.parametrize("estimator", [Lasso(), Lasso(folds=3), Ridge()])
def test_statistics_that_grow_give_the_fit_of_all_rows(tmp_path: Path, estimator: Lasso | Ridge) -> None:
    """Rows come between looks; the last fit is that of a watch that sees all rows at once."""
    store = new_store(tmp_path / "a")
    order = [range(200, 400), range(120), range(120, 200)]
    fill(store, order[0])
    seen: list[Look] = []

    def more(look: Look) -> None:
        seen.append(look)
        if len(seen) < len(order):
            fill(store, order[len(seen)])

    grown = watch(store, estimator, on_look=more, patience=30.0, growth=1.01)
    at_once = watch(store, estimator)
    assert [look.n_models for look in seen] == sorted({look.n_models for look in seen})
    assert len(seen) == 3
    assert len(at_once.looks) == 1
    np.testing.assert_allclose(grown.attribution.weights, at_once.attribution.weights, atol=1e-6)
    assert grown.looks[-1].score.lds == pytest.approx(at_once.looks[-1].score.lds)
    assert grown.ended == "all rows are complete"
    used = grown.attribution.provenance["sources"][0]["rows"]
    assert len(used) == grown.looks[-1].n_models == 340
    assert grown.looks[-1].score.n_models == 60
    direct = fit(store, estimator, rows=used, progress=False)
    assert np.corrcoef(direct.weights.ravel(), grown.attribution.weights.ravel())[0, 1] > 0.99


def test_a_campaign_is_stopped_when_the_wanted_lds_is_reached(tmp_path: Path) -> None:
    store = new_store(tmp_path / "a", 4000)
    summaries: list[Summary] = []
    campaign = threading.Thread(
        target=lambda: summaries.append(train(tmp_path / "a", slow_row, executor="inline", progress=False))
    )
    campaign.start()
    result = watch(store, reach=0.6, patience=30.0)
    campaign.join(timeout=60)
    assert not campaign.is_alive()
    low = result.looks[-1].score.lds_ci[0]
    assert low >= 0.6
    assert all(look.score.lds_ci[0] < 0.6 for look in result.looks[:-1])
    assert "has reached 0.6" in result.ended
    (summary,) = summaries
    assert summary.stopped == result.ended
    assert summary.ok
    assert 0 < summary.pending < 4000
    assert int(store.completed().sum()) == summary.done


def test_a_campaign_is_stopped_when_more_rows_are_not_worth_it(tmp_path: Path) -> None:
    store = new_store(tmp_path / "a", 3000)
    fill(store, range(1500))
    store.heartbeat("c", {"name": "c", "updated": time.time() + 60, "rows_per_second": 1.0, "running": True})

    def more(look: Look) -> None:
        done = int(store.completed().sum())
        fill(store, range(done, done + 60))

    result = watch(store, worth=0.5, growth=1.01, on_look=more)
    assert len(result.looks) == 3
    assert "are expected to raise the LDS by" in result.ended
    assert store.asked_to_stop("c") == result.ended
    look = result.looks[-1]
    assert look.expected is not None
    assert look.limit is not None
    assert look.score.lds - 0.05 < look.expected <= look.limit + 1e-9


def test_a_store_that_nobody_fills_is_taken_as_it_is(tmp_path: Path) -> None:
    store = new_store(tmp_path / "a")
    fill(store, range(200))
    result = watch(store, patience=0.5)
    assert result.ended == "no campaign is running"
    assert result.looks[-1].n_models + result.looks[-1].score.n_models == 200
    empty = new_store(tmp_path / "b")
    fill(empty, range(5))
    with pytest.raises(RequestError, match="5 rows are complete and no campaign is running"):
        watch(empty, patience=0.1)


def test_targets_that_are_train_examples_are_followed_too(tmp_path: Path) -> None:
    store = Store.create(
        tmp_path / "a",
        schema={"margins": {"shape": (8,), "dtype": "float64", "of": "train"}},
        design=Design(n_train=8, alpha=0.5, n_models=200, seed=1, kind="bernoulli"),
    )
    masks = store.design.masks()
    effects = np.random.default_rng(0).normal(size=(8, 8))
    store.write_rows(
        np.arange(200), {"margins": masks @ effects + 0.1 * np.random.default_rng(1).normal(size=(200, 8))}
    )
    result = watch(store)
    assert result.attribution.train_columns is not None
    assert not np.diagonal(result.attribution.weights).any()
    assert result.looks[-1].score.lds > 0.9


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"reach": 1.5}, "reach is 1.5; it must be between 0 and 1"),
        ({"worth": 0.0}, "worth is 0.0"),
        ({"held_out": 1.0}, "held_out is 1.0"),
        ({"growth": 1.0}, "growth is 1.0; it must be above 1"),
    ],
)
def test_options_that_mean_nothing_are_refused(tmp_path: Path, options: dict[str, float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        watch(new_store(tmp_path / "a"), **options)  # type: ignore[arg-type]
