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


def beat(store: Store, name: str) -> None:
    store.heartbeat(name, {"name": name, "updated": time.time() + 60, "rows_per_second": 1.0, "running": True})


def test_a_campaign_is_stopped_when_more_rows_are_not_worth_it(tmp_path: Path) -> None:
    store = new_store(tmp_path / "a", 3000)
    fill(store, range(300))
    beat(store, "c")

    def more(look: Look) -> None:
        done = int(store.completed().sum())
        if done < 2400:
            fill(store, range(done, min(2 * done, 2400)))

    result = watch(store, worth=0.05, growth=1.01, on_look=more)
    assert "would raise the LDS by" in result.ended
    assert store.asked_to_stop("c") == result.ended
    first, look = result.looks[0], result.looks[-1]
    assert look.n_models >= 4 * first.n_models
    assert look.expected is not None
    assert look.limit is not None
    assert look.gain is not None
    assert look.gain[1] < 0.05
    assert look.score.lds - 0.05 < look.expected <= look.limit + 1e-9


def test_early_looks_do_not_end_a_campaign(tmp_path: Path) -> None:
    """Many weak influences: the LDS of few models says nothing about that of many."""
    effects = np.random.default_rng(0).normal(size=(150, 6))
    design = Design(n_train=150, alpha=0.5, n_models=2000, seed=1)
    store = Store.create(tmp_path / "a", schema={"margins": {"shape": (6,), "dtype": "float64"}}, design=design)
    masks, noise = design.masks(), np.random.default_rng(1).normal(size=(2000, 6)) * 6
    outputs = masks @ effects + noise

    def more(look: Look | None = None) -> None:
        done = int(store.completed().sum())
        rows = np.arange(done, min(2000, max(150, int(1.35 * done))))
        if len(rows):
            store.write_rows(rows, {"margins": outputs[rows]})

    more()
    beat(store, "c")
    result = watch(store, worth=0.02, growth=1.05, on_look=more)
    assert result.looks[-1].score.lds > 0.35
    assert result.looks[-1].n_models > 1000


def test_nobody_is_asked_to_stop_without_a_wish(tmp_path: Path) -> None:
    store = new_store(tmp_path / "a")
    fill(store, range(200))

    def late(look: Look) -> None:
        store.heartbeat("late", {"name": "late", "updated": time.time() - 12, "rows_per_second": 1.0, "running": True})

    assert watch(store, patience=0.2, on_look=late).ended == "no campaign is running"
    assert store.asked_to_stop("late") is None


def test_rows_that_come_without_heartbeats_are_waited_for(tmp_path: Path) -> None:
    """Classic workers leave no heartbeat."""
    store = new_store(tmp_path / "a", 300)
    fill(store, range(100))
    writer = Store.open(tmp_path / "a")

    def write() -> None:
        for start in range(100, 300, 20):
            time.sleep(0.3)
            fill(writer, range(start, start + 20))

    thread = threading.Thread(target=write)
    thread.start()
    result = watch(store, patience=2.0)
    thread.join()
    assert result.ended == "all rows are complete"


def test_rows_that_are_written_anew_count_once_and_as_they_are_now(tmp_path: Path) -> None:
    store = new_store(tmp_path / "a")
    fill(store, range(200))

    def change(look: Look) -> None:
        if not store.completed()[399]:
            rows = np.arange(100)
            store.write_rows(rows, {"margins": np.ones((100, N_TARGETS))}, overwrite=True)
            fill(store, range(200, 400))

    changed = watch(store, on_look=change, patience=30.0)
    afresh = watch(store)
    assert len(changed.looks) == 2
    np.testing.assert_allclose(changed.attribution.weights, afresh.attribution.weights, atol=1e-6)


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
