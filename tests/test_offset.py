"""Fits with an offset: the algebra, what good and useless scores do, and who refuses one."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from datamodels import (
    Attribution,
    Design,
    ElasticNet,
    Lasso,
    LeastSquares,
    Ridge,
    Store,
    fit,
    intervals,
    lds,
    select,
    stability,
    watch,
)
from datamodels.errors import RequestError
from datamodels.evaluation.curve import curve
from datamodels.regression.estimator import Estimator
from datamodels.regression.estimators import from_description
from datamodels.regression.prior import prior_factors
from datamodels.regression.problem import Problem
from datamodels.regression.slopes import measure
from datamodels.regression.split_statistics import SplitStatistics

from .conftest import Planted, plant

ESTIMATORS = [Lasso, ElasticNet, Ridge, LeastSquares]


def scores(p: Planted, *, error: float, scale: float = 2.0, seed: int = 1) -> Attribution:
    noise = error * np.random.default_rng(seed).normal(size=p.weights.shape)
    return Attribution(scale * (p.weights + noise), np.zeros(p.weights.shape[1]), provenance={"sources": []})


def fitted(p: Planted, estimator: Any, **more: Any) -> Attribution:
    return fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False, **more)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_it_is_a_fit_of_the_residual_plus_the_offset(kind: Any) -> None:
    p = plant(150, 30, 5, noise=1.0)
    given = scores(p, error=0.1)
    result = fitted(p, kind(offset=given))
    problem = Problem.build(masks=p.masks, outputs=p.outputs)
    slope = measure(problem, given.weights, None).slope
    assert abs(slope - 0.5).max() < 0.2
    weights = given.weights * slope
    rest = fit(masks=p.masks, outputs=p.outputs - p.masks @ weights, estimator=kind(), progress=False)
    plain, taken = fitted(p, kind()), np.ones(5, dtype=bool)
    if "val_r2" in plain.target_facts:
        taken = _held_out_error(rest) < _held_out_error(plain)
        assert taken.any()
        held = p.outputs[np.concatenate([np.flatnonzero(part) for part in kind().splits(problem.units)])]
        expected = 1 - np.minimum(_held_out_error(rest), _held_out_error(plain)) / held.var(axis=0)
        np.testing.assert_allclose(result.target_facts["val_r2"], expected, rtol=1e-9)
        assert (result.target_facts["val_r2"] >= plain.target_facts["val_r2"]).all()
    np.testing.assert_array_equal(result.target_facts["offset_slope"], np.where(taken, slope, 0))
    np.testing.assert_allclose(result.weights, np.where(taken, rest.weights + weights, plain.weights), atol=1e-6)
    np.testing.assert_allclose(result.bias, np.where(taken, rest.bias, plain.bias), atol=1e-9)
    for name in set(rest.target_facts) - {"val_r2"}:
        for k in range(5):
            one = rest if taken[k] else plain
            np.testing.assert_array_equal(result.target_facts[name][k], one.target_facts[name][k])
    np.testing.assert_array_equal(result.target_facts["target"], np.arange(5))
    described = result.provenance["estimator"]
    assert described["name"] == f"{kind.name} with offset"
    assert set(described["offset"]) == {"name", "sha256"}
    with pytest.raises(RequestError, match="had an offset, which its description does not hold"):
        from_description(described)
    assert from_description(kind().describe()) == kind()


def _held_out_error(found: Attribution) -> Any:
    return np.nanmin(found.target_facts["path_val_error"], axis=1)


def test_an_offset_that_costs_a_sparse_fit_is_left_out() -> None:
    """Scores that are right about every weight, and of noise where the weights are 0."""
    p = plant(300, 100, 20, nonzero=15, noise=1.0)
    given = scores(p, error=0.25, seed=0)
    offset = given.weights * measure(Problem.build(masks=p.masks, outputs=p.outputs), given.weights, None).slope
    rest = fit(masks=p.masks, outputs=p.outputs - p.masks @ offset, estimator=Lasso(), progress=False)
    found = fitted(p, Lasso(offset=given))
    always, plain, chosen = (
        ((weights - p.weights) ** 2).sum(axis=0).mean()
        for weights in (rest.weights + offset, fitted(p, Lasso()).weights, found.weights)
    )
    assert plain < 0.6 * always
    assert chosen < 1.15 * plain
    assert (found.target_facts["offset_slope"] == 0).mean() > 0.7


def test_some_targets_and_several_sources_are_those_of_the_whole() -> None:
    p = plant(150, 30, 6, noise=1.0)
    given = scores(p, error=0.3)
    whole = fitted(p, Ridge(offset=given[[4, 1]]), targets=[4, 1])
    alone = fit(masks=p.masks, outputs=p.outputs[:, [4, 1]], estimator=Ridge(offset=given[[4, 1]]), progress=False)
    np.testing.assert_array_equal(whole.weights, alone.weights)
    np.testing.assert_array_equal(whole.target_facts["target"], [4, 1])
    odd = fitted(p, Ridge(offset=given), rows=np.arange(1, 150, 2))
    same = fit(masks=p.masks[1::2], outputs=p.outputs[1::2], estimator=Ridge(offset=given), progress=False)
    np.testing.assert_allclose(odd.weights, same.weights, atol=1e-7)


def test_true_scores_need_fewer_rows_and_random_ones_cost_nothing() -> None:
    p = plant(1200, 300, 20, nonzero=30, noise=1.0, seed=3)
    held = {"masks": p.masks, "outputs": p.outputs, "rows": (200, 1200), "draws": 10}
    random = Attribution(np.random.default_rng(4).normal(size=p.weights.shape), np.zeros(20))

    def error(rows: int, offset: Attribution | None) -> tuple[float, Attribution]:
        found = fitted(p, Lasso(offset=offset), rows=(0, rows))
        return float(((found.weights - p.weights) ** 2).sum(axis=0).mean()), found

    plain, plain_fit = error(200, None)
    good, _ = error(100, scores(p, error=0.05))
    assert good < 0.5 * plain  # with half of the rows
    useless, useless_fit = error(200, random)
    assert abs(useless_fit.target_facts["offset_slope"]).max() < 0.1
    assert useless < 1.05 * plain
    assert lds(useless_fit, **held).lds > lds(plain_fit, **held).lds - 0.02


def test_an_offset_goes_with_a_prior_and_with_penalty_factors() -> None:
    p = plant(150, 30, 3, noise=1.0)
    given = scores(p, error=0.2)
    both = fitted(p, Lasso(offset=given, prior=given))
    assert {"offset_slope", "prior_exponent", "prior_floor"} <= set(both.target_facts)
    assert {"offset", "prior"} <= set(both.provenance["estimator"])
    weights = given.weights * both.target_facts["offset_slope"]
    rest = fit(masks=p.masks, outputs=p.outputs - p.masks @ weights, estimator=Lasso(prior=given), progress=False)
    np.testing.assert_allclose(both.weights, rest.weights + weights, atol=1e-6)
    factors = prior_factors(given)
    factors[7] = np.inf
    kept = fitted(p, Lasso(offset=given), penalty_factors=factors)
    np.testing.assert_allclose(kept.weights[7], (given.weights * kept.target_facts["offset_slope"])[7], rtol=1e-6)


@pytest.mark.parametrize("kind", ESTIMATORS)
def test_out_of_mask_slopes_come_from_the_rows_that_do_not_hold_the_target(kind: Any) -> None:
    p = plant(200, 20, 20, noise=0.5)
    given = scores(p, error=0.2)
    seen = p.outputs + 50 * p.masks  # outputs of models that have seen the target are far from the others
    results = [
        fit(masks=p.masks, outputs=outputs, estimator=kind(offset=given), targets_are_train=True, progress=False)
        for outputs in (p.outputs, seen)
    ]
    np.testing.assert_allclose(results[0].weights, results[1].weights, atol=1e-5)
    slope = results[0].target_facts["offset_slope"]
    assert (slope != 0).any()
    assert abs(slope[slope != 0] - 0.5).max() < 0.15
    assert (results[0].weights[np.arange(20), np.arange(20)] == 0).all()
    others = ~np.eye(20, dtype=bool)
    assert np.corrcoef(results[0].weights[others], p.weights[others])[0, 1] > 0.95


def test_what_an_offset_has_used_is_used() -> None:
    p = plant(300, 30, 4, noise=1.0)
    rough = fitted(p, Ridge(), rows=(0, 100))
    with pytest.raises(RequestError, match="offset has used 50 of the 150 rows"):
        fitted(p, Lasso(offset=rough), rows=(50, 200))
    result = fitted(p, Lasso(offset=rough), rows=(100, 200))
    (source,) = result.provenance["sources"]
    np.testing.assert_array_equal(source["rows"], np.arange(200))
    assert lds(result, masks=p.masks, outputs=p.outputs, draws=10).n_models == 100
    with pytest.raises(
        RequestError, match=r"offset scores 30 training examples for 4 targets; the outputs are of 30\s+and 2"
    ):
        fitted(p, Lasso(offset=rough), rows=(100, 200), targets=[0, 1])
    broken = Attribution(np.full((30, 4), np.nan), np.zeros(4))
    with pytest.raises(RequestError, match="offset has scores that are NaN"):
        fitted(p, Lasso(offset=broken))
    with pytest.raises(
        RequestError, match=r"offset is of other targets: its target 0 is output 0 .*, and output 2 is fitted there"
    ):
        fitted(p, Lasso(offset=rough[[0, 1]]), rows=(100, 200), targets=[2, 3])
    with pytest.raises(RequestError, match="no prediction varies"):
        fitted(p, Lasso(offset=Attribution(np.zeros((30, 4)), np.zeros(4))))


def test_who_takes_an_offset_and_who_refuses_it(new_store: Any) -> None:
    p = plant(300, 12, 4, noise=0.5)
    given = scores(p, error=0.2)
    rows = {"masks": p.masks, "outputs": p.outputs}
    with pytest.raises(RequestError, match="'lasso with offset': fit one with Lasso"):
        intervals(fitted(p, Lasso(offset=given)), **rows)
    design = Design(n_train=12, alpha=0.5, kind="bernoulli")
    with pytest.raises(RequestError, match="offset scores 12 training examples for 4 targets; the outputs are of 24"):
        select(estimator=Lasso(offset=given), design=design, progress=False, **rows)
    store: Store = new_store(60)
    with pytest.raises(RequestError, match="can only be used through fit"):
        watch(store, Lasso(offset=given))
    often = stability(estimator=Lasso(offset=given), halves=4, q=4, progress=False, **rows)
    assert (often.frequency[p.weights != 0] > 0.7).all()
    steps = curve(estimator=Lasso(offset=given), sizes=[60, 200], progress=False, draws=10, **rows)
    assert steps.lds.min() > 0.8


@pytest.mark.parametrize("estimator", [Lasso, ElasticNet, Ridge, LeastSquares, lambda **o: Ridge(selection="gcv", **o)])
def test_statistics_take_no_offset(estimator: Any) -> None:
    p = plant(60, 12, 2)
    problem = Problem.build(masks=p.masks, outputs=p.outputs)
    data = SplitStatistics.of(problem, Lasso().splits(problem.units))
    chosen: Estimator = estimator(offset=scores(p, error=0.1))
    for direct in (
        lambda: chosen.splits(problem.units),
        lambda: chosen.solve(data),
    ):
        with pytest.raises(RequestError, match="can only be used through fit"):
            direct()
