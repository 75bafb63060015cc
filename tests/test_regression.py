"""Estimators against oracles: scikit-learn, the plain reference, closed forms, and certificates."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet as SklearnElasticNet
from sklearn.linear_model import Lasso as SklearnLasso
from sklearn.linear_model import Ridge as SklearnRidge
from sklearn.linear_model import lasso_path

from datamodels import DifferenceInMeans, ElasticNet, Lasso, LeastSquares, Ridge, fit
from datamodels.design import Design
from datamodels.errors import ConstantColumnWarning, ConvergenceWarning, RequestError
from datamodels.regression import path as path_module
from datamodels.regression.active_set import finish
from datamodels.regression.certificate import relative_gap
from datamodels.regression.path import lambda_grid, lambda_max, solve_at, solve_path
from datamodels.regression.problem import Problem
from datamodels.regression.reference import elastic_net
from datamodels.regression.spectral import Spectrum, ridge_grid
from datamodels.regression.split_statistics import Standardised
from datamodels.regression.statistics import Statistics
from tests.conftest import Planted, plant, statistics_of


def columns(masks: np.ndarray) -> np.ndarray:
    scale = masks.std(axis=0)
    return (masks - masks.mean(axis=0)) / np.where(scale > 0, scale, 1)


def objective(z: np.ndarray, y: np.ndarray, w: np.ndarray, lam: float, ratio: float = 1.0) -> float:
    r = y - y.mean() - z @ w
    return r @ r / (2 * len(y)) + lam * (ratio * np.abs(w).sum() + (1 - ratio) / 2 * w @ w)


SHAPES = [(200, 30), (40, 60), (500, 120)]


@pytest.mark.parametrize(("m", "n"), SHAPES)
@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_the_whole_path_equals_that_of_scikit_learn(
    m: int, n: int, dtype: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    from datamodels.regression import statistics

    p = plant(m, n, 3, noise=0.5, seed=m)
    monkeypatch.setattr(statistics, "FLOAT64_UP_TO", 2048 if dtype is np.float64 else 10)
    total = statistics_of(p)
    problem = Standardised.of(total)
    assert problem.gram.dtype == dtype
    lams = lambda_grid(lambda_max(total), 30, 1e-2)
    weights, gaps = solve_path(total, lams, tol=1e-8 if dtype is np.float64 else 1e-6)
    assert gaps.max() <= (1e-8 if dtype is np.float64 else 1e-5)
    z = columns(p.masks)
    for k in range(3):
        y = p.outputs[:, k]
        theirs = lasso_path(z, y - y.mean(), alphas=lams[k], tol=1e-12, max_iter=100_000)[1]
        for i, lam in enumerate(lams[k]):
            ours = objective(z, y, weights[k, i], lam)
            best = objective(z, y, theirs[:, i], lam)
            assert ours <= best * (1 + 1e-4)
            assert ours >= best * (1 - 1e-4)


@pytest.mark.parametrize("ratio", [1.0, 0.7, 0.1])
def test_the_kernel_equals_the_reference(ratio: float) -> None:
    p = plant(120, 25, 2, noise=0.3, seed=8)
    total = statistics_of(p)
    problem = Standardised.of(total)
    for fraction in (0.5, 0.1, 0.01):
        lam = fraction * lambda_max(total, ratio)
        w, gap = solve_at(total, lam, l1_ratio=ratio, tol=1e-13)
        raw, bias = problem.to_raw(w)
        for k in range(2):
            expected, expected_bias = elastic_net(p.masks, p.outputs[:, k], lam[k], ratio)
            np.testing.assert_allclose(raw[:, k], expected, atol=1e-6)
            np.testing.assert_allclose(bias[k], expected_bias, atol=1e-6)
        assert gap.max() <= 1e-12


@pytest.mark.parametrize("ratio", [0.9, 0.3])
def test_elastic_net_equals_scikit_learn(ratio: float) -> None:
    p = plant(150, 20, 1, noise=0.3)
    total = statistics_of(p)
    lam = 0.1 * lambda_max(total, ratio)
    w, _ = solve_at(total, lam, l1_ratio=ratio)
    theirs = SklearnElasticNet(alpha=lam[0], l1_ratio=ratio, tol=1e-12, max_iter=100_000)
    theirs.fit(columns(p.masks), p.outputs[:, 0])
    np.testing.assert_allclose(w[0], theirs.coef_, atol=1e-5)


def test_gaps_are_those_of_an_independent_computation() -> None:
    """From the rows themselves: primal minus dual at the scaled residual, over the null objective."""
    p = plant(90, 15, 2, noise=0.4)
    total = statistics_of(p)
    problem = Standardised.of(total)
    z, rng = columns(p.masks), np.random.default_rng(0)
    w = rng.normal(size=(2, 15)) * 0.1
    lam = 0.3 * lambda_max(total)
    claimed = relative_gap(problem.gram, problem.q, problem.y_var, w, lam)
    for k in range(2):
        y = p.outputs[:, k] - p.outputs[:, k].mean()
        r = y - z @ w[k]
        bound = lam[k] * 90 / np.abs(z.T @ r).max()
        s = np.clip(y @ r / (r @ r), -bound, bound)
        dual = (y @ y - (y - s * r) @ (y - s * r)) / 180
        assert claimed[k] == pytest.approx(
            (objective(z, p.outputs[:, k], w[k], lam[k]) - dual) / (y @ y / 180), rel=1e-9
        )
    solved, gap = solve_at(total, lam)
    np.testing.assert_allclose(relative_gap(problem.gram, problem.q, problem.y_var, solved, lam), gap, atol=1e-12)


def test_at_lambda_max_nothing_enters_and_just_below_something_does() -> None:
    total = statistics_of(plant(100, 12, 4, noise=0.2))
    top = lambda_max(total)
    assert not solve_at(total, top)[0].any()
    assert (solve_at(total, top * 0.999)[0] != 0).any(axis=1).all()


def test_a_refit_from_the_solution_changes_nothing() -> None:
    total = statistics_of(plant(100, 40, 3, noise=0.2))
    lam = 0.05 * lambda_max(total)
    w, _ = solve_at(total, lam)
    again, _ = solve_at(total, lam, start=w)
    np.testing.assert_array_equal(again, w)


def test_float32_gram_reaches_its_tolerance(monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodels.regression import statistics

    p = plant(300, 60, 3, noise=0.4)
    exact = fit(masks=p.masks, outputs=p.outputs, progress=False)
    monkeypatch.setattr(statistics, "FLOAT64_UP_TO", 10)
    rough = fit(masks=p.masks, outputs=p.outputs, progress=False)
    assert rough.target_facts["gap"].max() <= 1e-5
    np.testing.assert_allclose(rough.weights, exact.weights, atol=2e-3)


@pytest.mark.parametrize(
    "estimator", [Lasso(n_lambdas=30), ElasticNet(n_lambdas=30), Ridge(), LeastSquares(), DifferenceInMeans()]
)
class TestEquivariance:
    """Held-out rows are drawn by position, so rows are permuted within design units only: here by
    permuting columns, and by scaling and shifting outputs."""

    def test_permuted_columns_permute_the_weights(self, estimator: object) -> None:
        p = plant(150, 20, 3, noise=0.3)
        order = np.random.default_rng(1).permutation(20)
        a = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False)
        b = fit(masks=p.masks[:, order], outputs=p.outputs, estimator=estimator, progress=False)
        np.testing.assert_allclose(b.weights, a.weights[order], atol=1e-5)
        np.testing.assert_allclose(b.bias, a.bias, atol=1e-5)

    @pytest.mark.parametrize("scale", [1e-9, 37.0, 1e9])
    def test_scaled_and_shifted_outputs_scale_and_shift(self, estimator: object, scale: float) -> None:
        if type(estimator) is ElasticNet:
            pytest.skip("one λ for both of its penalties: the elastic net is not equivariant to scale")
        p = plant(150, 20, 3, noise=0.3)
        a = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False)
        b = fit(masks=p.masks, outputs=scale * (p.outputs + 3), estimator=estimator, progress=False)
        np.testing.assert_allclose(b.weights / scale, a.weights, atol=1e-5)
        np.testing.assert_allclose(b.bias / scale, a.bias + 3, atol=1e-5)

    def test_targets_do_not_touch_each_other(self, estimator: object) -> None:
        p = plant(150, 20, 5, noise=0.3)
        every = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False)
        alone = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, targets=[3], progress=False)
        np.testing.assert_allclose(alone.weights[:, 0], every.weights[:, 3], atol=1e-6)

    def test_constant_columns_get_0_and_a_warning(self, estimator: object) -> None:
        p = plant(150, 20, 2, noise=0.3)
        p.masks[:, 4], p.masks[:, 9] = True, False
        with pytest.warns(ConstantColumnWarning, match="2 training examples.*first is 4"):
            a = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False)
        assert not a.weights[[4, 9]].any()
        assert np.isfinite(a.weights).all()

    def test_constant_targets_are_constant(self, estimator: object) -> None:
        p = plant(150, 20, 3, noise=0.3)
        p.outputs[:, 1] = 0.1
        a = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False)
        np.testing.assert_allclose(a.weights[:, 1], 0, atol=1e-12)
        assert a.bias[1] == pytest.approx(0.1)
        if "gap" in a.target_facts:
            assert a.target_facts["gap"][1] == 0

    def test_fewer_rows_than_columns(self, estimator: object) -> None:
        p = plant(40, 90, 2, noise=0.1, seed=2)
        a = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False)
        assert np.isfinite(a.weights).all()
        for k in range(2):
            assert np.corrcoef(a.predict(p.masks)[:, k], p.outputs[:, k])[0, 1] > 0.5
        if "gap" in a.target_facts:
            assert a.target_facts["gap"].max() <= 1e-5


def test_permuted_rows_and_columns_permute_the_lasso_path() -> None:
    p = plant(150, 20, 3, noise=0.3)
    rows, columns_ = np.random.default_rng(1).permutation(150), np.random.default_rng(2).permutation(20)
    here = statistics_of(p)
    there = statistics_of(Planted(p.masks[rows][:, columns_], p.outputs[rows], p.weights, p.bias))
    lams = lambda_grid(lambda_max(here), 20, 1e-2)
    a, b = solve_path(here, lams)[0], solve_path(there, lams)[0]
    np.testing.assert_allclose(b, a[:, :, columns_], atol=1e-4)


def test_permuting_whole_rows_permutes_nothing_that_is_fitted_on_all_of_them() -> None:
    p = plant(150, 20, 3, noise=0.3)
    order = np.random.default_rng(1).permutation(150)
    for estimator in (LeastSquares(), DifferenceInMeans(), Ridge(selection="gcv")):
        a = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False)
        b = fit(masks=p.masks[order], outputs=p.outputs[order], estimator=estimator, progress=False)
        np.testing.assert_allclose(a.weights, b.weights, atol=1e-6)


@pytest.mark.parametrize("estimator", [Lasso(), Lasso(folds=4), ElasticNet(l1_ratio=0.95)])
def test_planted_supports_are_found(estimator: Lasso) -> None:
    p = plant(600, 80, 6, noise=0.1, nonzero=5, seed=3)
    a = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False)
    for k in range(6):
        strongest = np.argsort(-np.abs(a.weights[:, k]))[:5]
        assert set(strongest) == set(np.flatnonzero(p.weights[:, k]))
    np.testing.assert_allclose(a.weights, p.weights, atol=0.06)
    assert a.target_facts["gap"].max() <= 1e-5
    assert a.target_facts["val_r2"].min() > 0.95
    np.testing.assert_array_equal(a.target_facts["n_nonzero"], (a.weights != 0).sum(axis=0))


def by_hand(p: Planted, fit_rows: np.ndarray, lam: float, k: int) -> tuple[np.ndarray, float]:
    """scikit-learn on standardised columns of some rows, in raw units."""
    x = p.masks[fit_rows]
    scale = x.std(axis=0)
    model = SklearnLasso(alpha=lam, tol=1e-12, max_iter=100_000).fit(x / scale, p.outputs[fit_rows, k])
    return model.coef_ / scale, model.intercept_


@pytest.mark.parametrize("estimator", [Lasso(n_lambdas=25, eps=0.01, seed=5), Lasso(n_lambdas=25, eps=0.01, folds=3)])
def test_lambda_is_the_best_on_the_held_out_rows(estimator: Lasso) -> None:
    """The recorded validation errors, the choice, and the refit are those of a loop with scikit-learn."""
    p = plant(160, 15, 2, noise=0.8, seed=7)
    a = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False)
    splits = estimator.splits(np.arange(160))
    for k in range(2):
        walked = np.flatnonzero(np.isfinite(a.target_facts["path_val_error"][k]))
        for i in walked[::5]:
            lam, error = a.target_facts["path_lam"][k, i], 0.0
            for held_out in splits:
                w, b = by_hand(p, ~held_out, lam, k)
                error += ((p.outputs[held_out, k] - p.masks[held_out] @ w - b) ** 2).sum()
            held = sum(held_out.sum() for held_out in splits)
            assert a.target_facts["path_val_error"][k, i] == pytest.approx(error / held, rel=2e-3)
        best = np.nanargmin(a.target_facts["path_val_error"][k])
        assert a.target_facts["lam"][k] == a.target_facts["path_lam"][k, best]
        w, b = by_hand(p, np.ones(160, bool), a.target_facts["lam"][k], k)
        np.testing.assert_allclose(a.weights[:, k], w, atol=1e-5)
        assert a.bias[k] == pytest.approx(b, abs=1e-5)
        spread = np.concatenate([p.outputs[s, k] for s in splits]).var()
        assert a.target_facts["val_r2"][k] == pytest.approx(1 - np.nanmin(a.target_facts["path_val_error"][k]) / spread)


def test_the_path_stops_once_the_error_has_turned_and_not_before() -> None:
    """The rule, from the rows: λ well below the best, and the held-out error above the least by several standard
    errors of a paired difference; or nonzeros for most of the rows."""
    p = plant(240, 40, 4, noise=1.0, seed=1)
    estimator = Lasso(eps=1e-4, val_fraction=0.4)
    facts = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False).target_facts
    assert np.isnan(facts["path_val_error"][:, -1]).any()
    (held_out,) = estimator.splits(np.arange(240))
    fitted = statistics_of(Planted(p.masks[~held_out], p.outputs[~held_out], p.weights, p.bias))
    weights, _ = solve_path(fitted, facts["path_lam"])
    x = p.masks[~held_out]
    z = (p.masks - x.mean(axis=0)) / x.std(axis=0)
    for k in range(4):
        prediction = z[held_out] @ weights[k].T + p.outputs[~held_out, k].mean()
        errors = ((p.outputs[held_out, [k]][:, None] - prediction) ** 2).mean(axis=0)
        walked = int(np.isfinite(facts["path_val_error"][k]).sum())
        np.testing.assert_allclose(facts["path_val_error"][k, :walked], errors[:walked], rtol=1e-2)
        best, ends = 0, []
        for i in range(walked):
            if errors[i] < errors[best]:
                best = i
            change = ((prediction[:, i] - prediction[:, best]) ** 2).mean()
            noise = 2 * np.sqrt(errors[best] * change / held_out.sum())
            risen = errors[i] - errors[best] > path_module._STOP_ABOVE * noise
            low = facts["path_lam"][k, i] < path_module._STOP_BELOW * facts["path_lam"][k, best]
            far = facts["path_lam"][k, i] < path_module._FAR_BELOW * facts["path_lam"][k, best]
            far &= errors[i] > errors[best] * (1 + np.sqrt(2 / held_out.sum()))
            saturated = (weights[k, i] != 0).sum() > path_module._SATURATED * (~held_out).sum()
            ends.append(i > best and low and (risen or far or saturated))
        assert not any(ends[:-1])
        assert ends[-1] or walked == 100


@pytest.mark.parametrize(("n_lambdas", "eps"), [(100, 1e-3), (1000, 1e-5)])
def test_stopping_costs_nothing_however_fine_the_grid(
    n_lambdas: int, eps: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Dense weak signals, where the validation error is flat for long: the stop finds nearly the λ of the
    whole path, and never the empty model where there is something to learn."""
    rng = np.random.default_rng(0)
    masks = rng.random((400, 200)) < 0.5
    outputs = masks @ (rng.normal(size=(200, 12)) * 0.3) + rng.normal(size=(400, 12)) * 2
    estimator = Lasso(n_lambdas=n_lambdas, eps=eps)
    stopped = fit(masks=masks, outputs=outputs, estimator=estimator, progress=False).target_facts
    monkeypatch.setattr(path_module, "_STOP_BELOW", 0.0)
    whole = fit(masks=masks, outputs=outputs, estimator=Lasso(n_lambdas=100, eps=1e-3), progress=False).target_facts
    assert (stopped["n_nonzero"] > 0).all()
    assert stopped["val_r2"].mean() > whole["val_r2"].mean() - 0.01


def test_a_bumpy_validation_error_does_not_end_the_path() -> None:
    """Few held-out rows: the error may rise before it falls. Strong signals are never left unfitted."""
    rng = np.random.default_rng(0)
    effects = rng.normal(size=(60, 5))
    for seed in range(12):
        masks = Design(n_train=60, alpha=0.5, n_models=160, seed=seed).masks()
        outputs = masks @ effects + np.random.default_rng(seed).normal(size=(160, 5))
        facts = fit(masks=masks, outputs=outputs, progress=False).target_facts
        assert facts["val_r2"].min() > 0.3
        assert facts["n_nonzero"].min() > 10


@pytest.mark.parametrize("base", [0.0, 0.1])
def test_a_target_that_only_varies_on_held_out_rows_gets_no_weights(base: float) -> None:
    p = plant(300, 150, 1)
    outputs = np.full((300, 1), base)
    outputs[np.flatnonzero(Lasso().splits(np.arange(300))[0])[:2]] = 1
    a = fit(masks=p.masks, outputs=outputs, progress=False)
    assert not a.weights.any()
    assert a.target_facts["lam"][0] > 0
    assert a.bias[0] == pytest.approx(outputs.mean())


def test_nearly_dependent_columns_still_reach_the_tolerance() -> None:
    """Subsets of a fixed size make the Gram matrix singular; at small λ coordinate descent creeps there."""
    masks = Design(n_train=20, alpha=0.5, n_models=150, seed=0).masks()
    rng = np.random.default_rng(0)
    outputs = masks @ rng.normal(size=(20, 15)) + 0.01 * rng.normal(size=(150, 15))
    total = statistics_of(Planted(masks, outputs, np.zeros(0), np.zeros(0)))
    for fraction in (3e-3, 1e-3, 1e-4):
        _, gaps = solve_at(total, fraction * lambda_max(total))
        assert gaps.max() <= 1e-8
    assert (
        fit(masks=masks, outputs=outputs, estimator=Lasso(eps=1e-5), progress=False).target_facts["gap"].max() <= 1e-8
    )


@pytest.mark.parametrize(("m", "n", "alpha", "ratio"), [(60, 20, 0.5, 1.0), (30, 50, 0.5, 1.0), (60, 20, 0.2, 0.4)])
def test_the_active_set_solver_reaches_the_optimum_from_anywhere(m: int, n: int, alpha: float, ratio: float) -> None:
    masks = Design(n_train=n, alpha=alpha, n_models=m, seed=1).masks()
    rng = np.random.default_rng(0)
    total = statistics_of(Planted(masks, rng.normal(size=(m, 1)), np.zeros(0), np.zeros(0)))
    problem = Standardised.of(total)
    for fraction in (0.5, 0.05, 1e-3):
        lam = fraction * lambda_max(total, ratio)
        for start in (np.zeros(n), rng.normal(size=n)):
            w = finish(problem.gram, problem.q[0], start, lam[0], ratio)
            assert relative_gap(problem.gram, problem.q, problem.y_var, w[None], lam, ratio)[0] < 1e-9


def test_least_squares_beyond_float64_sizes_is_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodels.regression import statistics

    p = plant(60, 150, 2, noise=0.1)
    wide = fit(masks=p.masks, outputs=p.outputs, estimator="ols", progress=False)
    monkeypatch.setattr(statistics, "FLOAT64_UP_TO", 10)
    large = fit(masks=p.masks, outputs=p.outputs, estimator="ols", progress=False)
    np.testing.assert_array_equal(large.weights, wide.weights)


def test_validation_r2_of_folds_is_that_of_pooled_rows() -> None:
    p = plant(200, 10, 2, noise=1.0)
    values = [
        fit(masks=p.masks, outputs=p.outputs, estimator=Ridge(folds=k), progress=False).target_facts["val_r2"]
        for k in (5, 50, 200)
    ]
    np.testing.assert_allclose(values[1], values[0], atol=0.03)
    np.testing.assert_allclose(values[2], values[0], atol=0.03)


@pytest.mark.parametrize("kind", ["fixed_size", "antithetic"])
def test_held_out_rows_keep_design_units_together(kind: str) -> None:
    design = Design(n_train=10, alpha=0.5, n_models=60, kind=kind, replicates=3)
    units = design.units(np.arange(60))
    for estimator in (Lasso(val_fraction=0.3), Lasso(folds=4), Ridge()):
        splits = estimator.splits(units)
        for held_out in splits:
            assert not set(units[held_out]) & set(units[~held_out])
        assert np.sum(splits, axis=0).max() == 1
        if estimator.folds:
            assert np.sum(splits, axis=0).min() == 1


def test_other_seeds_hold_out_other_rows() -> None:
    units = np.arange(50)
    np.testing.assert_array_equal(Lasso(seed=1).splits(units), Lasso(seed=1).splits(units))
    assert not np.array_equal(Lasso(seed=1).splits(units), Lasso(seed=2).splits(units))


@pytest.mark.parametrize("intercept", [True, False])
def test_ridge_equals_scikit_learn(intercept: bool) -> None:
    p = plant(80, 20, 3, noise=0.5)
    a = fit(masks=p.masks, outputs=p.outputs, estimator=Ridge(intercept=intercept), progress=False)
    scale = p.masks.std(axis=0)
    for k in range(3):
        model = SklearnRidge(alpha=80 * a.target_facts["lam"][k], fit_intercept=intercept)
        model.fit(p.masks / scale, p.outputs[:, k])
        np.testing.assert_allclose(a.weights[:, k], model.coef_ / scale, atol=1e-6)
        assert a.bias[k] == pytest.approx(model.intercept_, abs=1e-8)


def test_ridge_is_chosen_on_the_held_out_rows() -> None:
    p = plant(100, 30, 3, noise=1.0)
    estimator = Ridge(n_lambdas=9)
    a = fit(masks=p.masks, outputs=p.outputs, estimator=estimator, progress=False)
    (held_out,) = estimator.splits(np.arange(100))
    x = p.masks[~held_out]
    scale = x.std(axis=0)
    for k in range(3):
        errors = []
        for lam in a.target_facts["path_lam"][k]:
            model = SklearnRidge(alpha=len(x) * lam).fit(x / scale, p.outputs[~held_out, k])
            errors.append(((p.outputs[held_out, k] - model.predict(p.masks[held_out] / scale)) ** 2).mean())
        np.testing.assert_allclose(a.target_facts["path_val_error"][k], errors, rtol=1e-8)
        assert a.target_facts["lam"][k] == a.target_facts["path_lam"][k, int(np.argmin(errors))]


def test_gcv_equals_its_formula_on_the_rows() -> None:
    p = plant(60, 12, 2, noise=0.7)
    spectrum = Spectrum.of(Statistics.of(Problem.build(masks=p.masks, outputs=p.outputs)))
    lams = ridge_grid(spectrum, 7)
    assert lams[0] == pytest.approx(10 * spectrum.values.max())
    assert lams[-1] == pytest.approx(1e-4 * spectrum.values.max())
    scores = spectrum.gcv(lams, 60)
    z = columns(p.masks)
    for i, lam in enumerate(lams):
        hat = np.full((60, 60), 1 / 60) + z @ np.linalg.solve(z.T @ z + 60 * lam * np.eye(12), z.T)
        residual = p.outputs - hat @ p.outputs
        np.testing.assert_allclose(scores[i], (residual**2).mean(0) / (1 - np.trace(hat) / 60) ** 2, rtol=1e-8)


@pytest.mark.parametrize(("m", "n"), [(80, 10), (15, 40)])
def test_least_squares_equals_numpy_also_when_it_is_not_unique(m: int, n: int) -> None:
    p = plant(m, n, 2, noise=0.5)
    scale = p.masks.std(axis=0)
    assert (scale > 0).all()
    a = fit(masks=p.masks, outputs=p.outputs, estimator=LeastSquares(), progress=False)
    z = columns(p.masks)
    expected = np.linalg.lstsq(z, p.outputs - p.outputs.mean(axis=0), rcond=None)[0]
    np.testing.assert_allclose(a.weights, expected / scale[:, None], atol=1e-5)


def test_difference_in_means_is_what_its_name_says() -> None:
    p = plant(100, 8, 3, noise=0.5)
    a = fit(masks=p.masks, outputs=p.outputs, estimator=DifferenceInMeans(), progress=False)
    for j in range(8):
        inside = p.masks[:, j]
        np.testing.assert_allclose(a.weights[j], p.outputs[inside].mean(0) - p.outputs[~inside].mean(0), atol=1e-6)
    np.testing.assert_allclose(a.predict(p.masks).mean(axis=0), p.outputs.mean(axis=0), atol=1e-6)


def test_difference_in_means_over_all_subsets_is_the_banzhaf_value() -> None:
    """A game of six players with interactions, enumerated: mean marginal contribution over all coalitions."""
    n = 6
    every = ((np.arange(2**n)[:, None] >> np.arange(n)) & 1).astype(bool)
    game = np.random.default_rng(0).normal(size=2**n)
    banzhaf = [np.mean([game[s | (1 << j)] - game[s] for s in range(2**n) if not s >> j & 1]) for j in range(n)]
    a = fit(masks=every, outputs=game[:, None], estimator=DifferenceInMeans(), progress=False)
    np.testing.assert_allclose(a.weights[:, 0], banzhaf, atol=1e-6)


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), fraction=st.floats(0.001, 0.9), ratio=st.sampled_from([1.0, 0.5]))
def test_solutions_meet_the_optimality_conditions(seed: int, fraction: float, ratio: float) -> None:
    """Where w_j is 0 the correlation is at most λρ; elsewhere it equals λρ sign(w_j) + λ(1 - ρ) w_j."""
    total = statistics_of(plant(70, 25, 1, noise=0.5, seed=seed))
    problem = Standardised.of(total)
    lam = fraction * lambda_max(total, ratio)
    w, _ = solve_at(total, lam, l1_ratio=ratio, tol=1e-14)
    r = problem.q - w @ problem.gram
    on = w != 0
    slack = 1e-6 * lambda_max(total)[0]
    assert (np.abs(r[~on]) <= lam[0] * ratio + slack).all()
    np.testing.assert_allclose(r[on], lam[0] * (ratio * np.sign(w[on]) + (1 - ratio) * w[on]), atol=slack)


def test_a_missed_tolerance_is_said() -> None:
    p = plant(60, 40, 2, noise=0.5)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(path_module, "_MAX_SWEEPS", 1)
        patch.setattr(path_module, "finish", lambda gram, q, w, lam, l1_ratio, penalty: w)
        with pytest.warns(ConvergenceWarning, match="missed the tolerance"):
            a = fit(masks=p.masks, outputs=p.outputs, estimator=Lasso(eps=1e-6, tol=1e-12), progress=False)
    assert a.target_facts["gap"].max() > 1e-12


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Lasso(eps=2), "less than 1"),
        (lambda: Lasso(n_lambdas=0), "greater than or equal to 1"),
        (lambda: Lasso(l1_ratio=0.5), "l1_ratio"),
        (lambda: ElasticNet(l1_ratio=0), "greater than 0"),
        (lambda: Lasso(val_fraction=1.5), "less than 1"),
        (lambda: Lasso(unknown=1), "unknown"),
        (lambda: Lasso(folds=3, val_fraction=0.1), "not both"),
        (lambda: Ridge(selection="gcv", folds=3), "holds no rows out"),
        (lambda: fit(masks=np.eye(4, dtype=bool), outputs=np.ones((4, 1)), estimator="magic"), "legal: lasso, ridge"),
        (
            lambda: fit(masks=np.eye(4, dtype=bool), outputs=np.ones((4, 1)), estimator=Lasso(folds=9)),
            "use fewer folds",
        ),
        (
            lambda: fit(masks=np.eye(4, dtype=bool), outputs=np.ones((4, 1)), estimator=Lasso(val_fraction=0.01)),
            "val_fraction",
        ),
        (lambda: fit(masks=np.eye(4, dtype=bool)), "both masks and outputs"),
        (lambda: fit(), "give stores"),
    ],
)
def test_bad_requests_say_what_is_legal(make: object, message: str) -> None:
    with pytest.raises((RequestError, ValueError), match=message):
        make()
