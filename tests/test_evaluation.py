"""LDS, its interval and ceiling, and the curve, against brute force and planted truths."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import spearmanr

from datamodels import Attribution, Lasso, LeastSquares, Store, fit, lds
from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.evaluation.curve import Curve, curve, extrapolate, save_plot
from datamodels.evaluation.ranks import resampled_spearman, unit_counts
from tests.conftest import plant


@settings(max_examples=40, deadline=None)
@given(m=st.integers(4, 40), ties=st.integers(1, 6), seed=st.integers(0, 999))
def test_resampled_correlations_are_those_of_repeated_rows(m: int, ties: int, seed: int) -> None:
    """A row that stands c times counts like c equal rows, ties at midranks."""
    rng = np.random.default_rng(seed)
    a, b = (rng.integers(0, ties + 2, (m, 2)).astype(float) for _ in range(2))
    a[:2], b[:2] = [[0, 0], [1, 1]], [[0, 1], [1, 0]]
    counts = np.vstack([np.ones(m), rng.integers(0, 3, (2, m))]).astype(float)
    counts[:, :2] += 1
    found = resampled_spearman(a, b, counts)
    for d in range(3):
        rows = np.repeat(np.arange(m), counts[d].astype(int))
        for k in range(2):
            assert found[d, k] == pytest.approx(spearmanr(a[rows, k], b[rows, k])[0], abs=1e-10)


def test_only_valid_rows_count() -> None:
    rng = np.random.default_rng(0)
    a, b, valid = rng.normal(size=(50, 4)), rng.normal(size=(50, 4)), rng.random((50, 4)) < 0.6
    found = resampled_spearman(a, b, np.ones((1, 50)), valid)[0]
    expected = [spearmanr(a[v, k], b[v, k])[0] for k, v in enumerate(valid.T)]
    np.testing.assert_allclose(found, expected, atol=1e-12)


def test_constant_predictions_score_0_and_constant_outputs_nothing() -> None:
    a = np.random.default_rng(0).normal(size=(20, 2))
    found = resampled_spearman(
        np.column_stack([a[:, 0], np.ones(20)]), np.column_stack([np.ones(20), a[:, 1]]), np.ones((1, 20))
    )
    assert found[0, 0] == 0
    assert np.isnan(found[0, 1])


def test_bootstrap_draws_whole_units() -> None:
    counts = unit_counts(np.array([5, 5, 2, 2, 9]), 200, 0)
    np.testing.assert_array_equal(counts[0], 1)
    np.testing.assert_array_equal(counts[:, 0], counts[:, 1])
    np.testing.assert_array_equal(counts[:, 2], counts[:, 3])
    np.testing.assert_array_equal(counts[1:, [0, 2, 4]].sum(axis=1), 3)


def test_lds_is_the_mean_rank_correlation_on_unused_rows() -> None:
    p = plant(400, 20, 5, noise=1.0)
    a = fit(masks=p.masks, outputs=p.outputs, rows=(0, 300), progress=False)
    score = lds(a, masks=p.masks, outputs=p.outputs)
    predicted = a.predict(p.masks[300:])
    per_target = [spearmanr(predicted[:, k], p.outputs[300:, k])[0] for k in range(5)]
    np.testing.assert_allclose(score.per_target, per_target, atol=1e-12)
    assert score.lds == pytest.approx(np.mean(per_target))
    assert score.pearson == pytest.approx(
        np.mean([np.corrcoef(predicted[:, k], p.outputs[300:, k])[0, 1] for k in range(5)])
    )
    residual = ((predicted - p.outputs[300:]) ** 2).sum(0) / ((p.outputs[300:] - p.outputs[300:].mean(0)) ** 2).sum(0)
    assert score.r2 == pytest.approx((1 - residual).mean())
    assert (score.n_models, score.n_units, score.n_targets) == (100, 100, 5)
    assert score.lds_ci[0] < score.lds < score.lds_ci[1]
    assert score.lds_ceiling is None


def test_used_rows_are_an_error_and_never_taken_by_default() -> None:
    p = plant(100, 8, 2, noise=0.5)
    a = fit(masks=p.masks, outputs=p.outputs, rows=(0, 80), progress=False)
    with pytest.raises(RequestError, match=r"10 of the 20 named rows were used by the fit .the first is row 70"):
        lds(a, masks=p.masks, outputs=p.outputs, rows=(70, 90))
    whole = fit(masks=p.masks, outputs=p.outputs, progress=False)
    with pytest.raises(RequestError, match="0 rows are left"):
        lds(whole, masks=p.masks, outputs=p.outputs)
    assert lds(a, masks=p.masks, outputs=p.outputs, rows=(85, 100)).n_models == 15


def test_used_rows_are_known_after_saving_growing_and_moving(tmp_path: Path) -> None:
    p = plant(60, 12, 2, noise=0.3)
    design = Design(n_train=12, alpha=0.5, n_models=30, seed=1)
    store = Store.create(tmp_path / "a", schema={"margins": {"shape": (2,), "dtype": "float64"}}, design=design)
    store.write_rows(np.arange(30), {"margins": p.outputs[:30]})
    file = fit(store, progress=False).save(tmp_path / "a.h5ad")
    store.extend(30)
    store.write_rows(np.arange(30, 60), {"margins": p.outputs[30:]})
    (tmp_path / "a").rename(tmp_path / "b")
    score = lds(Attribution.load(file), tmp_path / "b")
    assert score.n_models == 30
    with pytest.raises(RequestError, match="were used by the fit"):
        lds(Attribution.load(file), tmp_path / "b", rows=[0, 35])


def test_used_rows_are_known_in_copies_under_any_form(tmp_path: Path) -> None:
    """A store and its arrays, an original folder and its copy: the same models, whatever they are called."""
    import shutil

    p = plant(60, 40, 2, noise=0.3)
    design = Design.explicit(p.masks)
    store = Store.create(tmp_path / "a", schema={"margins": {"shape": (2,), "dtype": "float64"}}, design=design)
    store.write_rows(np.arange(60), {"margins": p.outputs})
    (tmp_path / "old").mkdir()
    for key in ("masks", "margins", "_completed"):
        shutil.copy(tmp_path / "a" / f"{key}.npy", tmp_path / "old")
    shutil.copytree(tmp_path / "old", tmp_path / "copy")
    arrays = {"masks": tmp_path / "a/masks.npy", "outputs": tmp_path / "a/margins.npy"}
    forms: list[dict[str, object]] = [{"source": tmp_path / name} for name in ("a", "old", "copy")] + [arrays]
    for fitted in forms:
        a = fit(**fitted, rows=(0, 50), progress=False)
        for judged in forms:
            assert lds(a, **judged).n_models == 10
            with pytest.raises(RequestError, match="5 of the 10 named rows were used"):
                lds(a, **judged, rows=(45, 55))


def test_masks_that_repeat_by_chance_are_not_taken_for_used_ones() -> None:
    p, q = plant(100, 4, 2, noise=0.3), plant(100, 4, 2, noise=0.3, seed=1)
    a = fit(masks=p.masks, outputs=p.outputs, progress=False)
    assert lds(a, masks=q.masks, outputs=q.outputs).n_models == 100


def test_other_runs_of_a_used_mask_are_not_new(tmp_path: Path) -> None:
    design = Design(n_train=12, alpha=0.5, n_models=60, seed=1, replicates=2)
    store = Store.create(tmp_path / "a", schema={"margins": {"shape": (2,), "dtype": "float64"}}, design=design)
    store.write_rows(np.arange(60), {"margins": plant(60, 12, 2).outputs})
    a = fit(store, rows=np.arange(0, 41), progress=False)
    assert lds(a, store).n_models == 18


def test_slices_and_train_targets_are_judged_on_their_own_outputs() -> None:
    p = plant(200, 10, 6, noise=0.5)
    a = fit(masks=p.masks, outputs=p.outputs, rows=(0, 150), progress=False)
    part = lds(a[[4, 1]], masks=p.masks, outputs=p.outputs)
    whole = lds(a, masks=p.masks, outputs=p.outputs)
    np.testing.assert_array_equal(part.per_target, whole.per_target[[4, 1]])
    some = fit(masks=p.masks, outputs=p.outputs, rows=(0, 150), targets=[4, 1], progress=False)
    np.testing.assert_allclose(lds(some, masks=p.masks, outputs=p.outputs).per_target, part.per_target, atol=1e-9)


def test_other_outputs_of_the_same_models_are_not_new() -> None:
    p = plant(100, 30, 6, noise=0.5)
    a = fit(masks=p.masks, outputs=p.outputs[:, :3], rows=(0, 80), progress=False)
    assert lds(a, masks=p.masks, outputs=p.outputs.astype(np.float32)).n_models == 20
    with pytest.raises(RequestError, match="were used by the fit"):
        lds(a, masks=p.masks, outputs=p.outputs, rows=(0, 90))


def test_targets_that_nobody_named_must_be_all_of_them() -> None:
    p = plant(100, 30, 6, noise=0.5)
    with pytest.raises(RequestError, match="2 targets and does not say which; the outputs have 6"):
        lds(Attribution(p.weights[:, 3:5], p.bias[3:5]), masks=p.masks, outputs=p.outputs, rows=slice(None))


def test_an_empty_model_predicts_the_mean_and_ranks_nothing() -> None:
    rng = np.random.default_rng(0)
    masks, outputs = rng.random((200, 10)) < 0.5, 50 + 0.002 * rng.normal(size=(200, 3))
    empty = Attribution(np.zeros((10, 3)), outputs[:150].mean(axis=0))
    score = lds(empty, masks=masks, outputs=outputs, rows=(150, 200))
    assert score.lds == 0
    assert score.n_constant_predictions == 3
    assert -0.1 < score.r2 <= 0


def test_the_key_that_was_fitted_is_judged_and_files_are_taken(tmp_path: Path) -> None:
    p = plant(80, 12, 5, noise=0.3)
    design = Design(n_train=12, alpha=0.5, n_models=80, seed=1)
    schema = {key: {"shape": (size,), "dtype": "float64"} for key, size in (("margins", 2), ("other", 5))}
    store = Store.create(tmp_path / "a", schema=schema, design=design)
    store.write_rows(np.arange(80), {"margins": p.outputs[:, :2] * 0, "other": design.masks() @ p.weights})
    file = fit(store, outputs_key="other", rows=(0, 60), progress=False).save(tmp_path / "a.h5ad")
    assert lds(file, store).lds > 0.9
    with pytest.raises(RequestError, match=r"targets up to 4; the outputs .'margins'. have 2"):
        lds(file, store, outputs_key="margins")


def test_rows_beyond_the_end_are_refused() -> None:
    p = plant(50, 8, 2)
    with pytest.raises(RequestError, match="beyond the 50 rows"):
        fit(masks=p.masks, outputs=p.outputs, rows=(10, 60), progress=False)


@pytest.mark.parametrize("rows", [100, "0:100"])
def test_rows_that_are_no_range_are_refused(rows: Any) -> None:
    p = plant(50, 8, 2)
    with pytest.raises(RequestError, match=r"give \(start, stop\), a slice"):
        fit(masks=p.masks, outputs=p.outputs, rows=rows, progress=False)


def test_a_score_reads_as_a_sentence() -> None:
    p = plant(60, 8, 2, noise=0.5)
    score = lds(fit(masks=p.masks, outputs=p.outputs, rows=(0, 40), progress=False), masks=p.masks, outputs=p.outputs)
    low, high = score.lds_ci
    assert f"LDS {score.lds:.3f} (95% interval {low:.3f} to {high:.3f}; no ceiling without replicates)" in str(score)
    assert "on 20 models" in str(score)


def test_an_attribution_of_unknown_rows_needs_rows() -> None:
    p = plant(50, 8, 2)
    bare = Attribution(p.weights, p.bias)
    with pytest.raises(RequestError, match="name the rows"):
        lds(bare, masks=p.masks, outputs=p.outputs)
    assert lds(bare, masks=p.masks, outputs=p.outputs, rows=slice(None)).lds == pytest.approx(1.0)


def replicated(tmp_path: Path, noise: float, masks: int = 400, replicates: int = 2) -> tuple[Store, Attribution]:
    """Outputs are a planted truth plus noise of known variance; the attribution is the truth itself."""
    design = Design(n_train=40, alpha=0.5, n_models=masks * replicates, seed=2, kind="bernoulli", replicates=replicates)
    weights = np.random.default_rng(0).normal(size=(40, 30))
    weights /= np.linalg.norm(weights, axis=0) / 2  # the outputs' variance over masks is 1
    outputs = design.masks() @ weights + noise * np.random.default_rng(1).normal(size=(design.n_models, 30))
    store = Store.create(tmp_path / "s", schema={"margins": {"shape": (30,), "dtype": "float64"}}, design=design)
    store.write_rows(np.arange(design.n_models), {"margins": outputs})
    return store, Attribution(weights, np.zeros(30))


@pytest.mark.parametrize("noise", [0.5, 1.0, 2.0])
def test_the_ceiling_is_what_the_truth_itself_reaches(tmp_path: Path, noise: float) -> None:
    """Reliability 1 / (1 + noise²) for Pearson; Spearman of normal outputs is (6/π) arcsin(r / 2)."""
    store, truth = replicated(tmp_path, noise)
    score = lds(truth, store, rows=slice(None))
    assert score.lds == pytest.approx(score.lds_ceiling, abs=0.03)
    pearson = 1 / np.sqrt(1 + noise**2)
    assert score.pearson == pytest.approx(pearson, abs=0.02)
    spearman = np.sqrt(6 / np.pi * np.arcsin(pearson**2 / 2))
    assert score.lds_ceiling == pytest.approx(spearman, abs=0.02)
    assert score.n_units == 400


def test_more_replicates_use_all_pairs_and_few_masks_give_no_ceiling(tmp_path: Path) -> None:
    store, truth = replicated(tmp_path, 1.0, masks=60, replicates=3)
    score = lds(truth, store, rows=slice(None))
    y = np.asarray(store.array("margins")).reshape(60, 3, 30)
    pairs = [[spearmanr(y[:, a, k], y[:, b, k])[0] for k in range(30)] for a, b in ((0, 1), (0, 2), (1, 2))]
    assert score.lds_ceiling == pytest.approx(np.sqrt(np.mean(pairs)))
    assert lds(truth, store, rows=slice(0, 24)).lds_ceiling is None


def test_intervals_cover_the_truth() -> None:
    """200 worlds with a known expected LDS: the 95 % interval covers it in at least 88 % of them. With true
    coverage .95 fewer than 176 of 200 happens less than once in 10,000 runs; the seed is fixed."""
    rng = np.random.default_rng(5)
    m, t, r = 60, 20, 0.6
    expected = 6 / np.pi * np.arcsin(r / 2)
    covered = 0
    for world in range(200):
        truth = rng.normal(size=(m, t))
        predicted = r * truth + np.sqrt(1 - r**2) * rng.normal(size=(m, t))
        counts = unit_counts(np.arange(m), 200, world)
        from datamodels.evaluation.lds import _means_over_targets

        draws = _means_over_targets(resampled_spearman(truth, predicted, counts)[1:], world)
        low, high = np.quantile(draws, [0.025, 0.975])
        covered += low <= expected <= high
    assert covered >= 176


def test_curve_grows_on_nested_rows_and_the_same_held_out_rows() -> None:
    p = plant(600, 40, 6, noise=3.0, seed=5)
    result = curve(estimator="lasso", masks=p.masks, outputs=p.outputs, sizes=[50, 100, 400], progress=False)
    assert result.sizes.tolist() == [50, 100, 400]
    assert result.lds[0] < result.lds[-1]
    assert {score.n_models for score in result.scores} == {90}
    drawn = np.random.default_rng(0).permutation(600)[:90]
    held_out = np.zeros(600, bool)
    held_out[drawn] = True
    first = np.flatnonzero(~held_out)[:100]
    by_hand = fit(masks=p.masks, outputs=p.outputs, rows=first, progress=False)
    assert result.lds[1] == pytest.approx(lds(by_hand, masks=p.masks, outputs=p.outputs, rows=held_out).lds, abs=1e-6)


def test_extrapolation_recovers_the_curve_that_it_assumes() -> None:
    sizes = np.array([250, 500, 1000, 2000])
    a, c = 1.9, 900.0
    values = (a + c / sizes) ** -0.5
    np.testing.assert_allclose(extrapolate(sizes, values), (a, c))
    result = Curve(sizes, tuple(_score(value) for value in values))
    assert result.asymptote == pytest.approx(a**-0.5)
    assert result.at(4000) == pytest.approx((a + c / 4000) ** -0.5)
    assert result.models_for(0.7) == pytest.approx(c / (0.7**-2 - a))
    assert result.models_for(0.75) is None
    low, high = result.models_for_interval(0.7)
    assert low <= result.models_for(0.7)
    assert high is None or high >= result.models_for(0.7)
    with pytest.raises(RequestError, match="between 0 and 1"):
        result.models_for(1.5)


def _score(value: float) -> object:
    from datamodels.evaluation.lds import LDS

    noise = np.random.default_rng(0).normal(size=50) * 0.005
    return LDS(value, (value, value), None, 0, 0, 1, 1, 1, 0, 0, 0.95, np.zeros(1), value + noise)


def test_extrapolation_never_promises_more_than_1() -> None:
    sizes = np.array([100, 200, 400])
    a, _ = extrapolate(sizes, np.array([0.3, 0.5, 0.9]))
    assert a >= 1
    a, c = extrapolate(sizes, np.array([0.5, 0.4, 0.3]))
    assert c == 0
    assert 0.3 < a**-0.5 < 0.5
    assert extrapolate(sizes, np.array([-0.1, 0.0, 0.4])) is None


def test_curve_judges_on_another_store_and_draws(tmp_path: Path) -> None:
    p = plant(300, 12, 3, noise=0.5)
    stores = []
    for name, seed, part in (("a", 1, slice(0, 200)), ("b", 2, slice(200, 300))):
        design = Design(n_train=12, alpha=0.5, n_models=len(p.masks[part]), seed=seed)
        stores.append(
            Store.create(tmp_path / name, schema={"margins": {"shape": (3,), "dtype": "float64"}}, design=design)
        )
        stores[-1].write_rows(np.arange(design.n_models), {"margins": design.masks() @ p.weights})
    result = curve(stores[0], LeastSquares(), test=stores[1], progress=False)
    assert result.sizes.tolist() == [25, 50, 100, 200]
    assert result.scores[-1].n_models == 100
    assert result.lds[-1] > 0.99
    for suffix in ("png", "svg"):
        assert save_plot(result, tmp_path / f"plots/c.{suffix}", ceiling=0.9).stat().st_size > 1000
    with pytest.raises(RequestError, match="same design"):
        curve(stores[0], test=stores[0], progress=False)
    with pytest.raises(RequestError, match="between 2 and the 200"):
        curve(stores[0], test=stores[1], sizes=[500], progress=False)


def test_scores_are_json_ready() -> None:
    import json

    p = plant(100, 8, 2, noise=0.5)
    a = fit(masks=p.masks, outputs=p.outputs, rows=(0, 80), estimator=Lasso(), progress=False)
    facts = json.loads(json.dumps(lds(a, masks=p.masks, outputs=p.outputs).to_dict()))
    assert {"lds", "lds_ci", "lds_ceiling", "n_models", "n_targets", "pearson", "r2"} <= set(facts)
