"""Ridge without a decomposition per target, and in the kernel form, against closed forms on the rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from sklearn.linear_model import Ridge as SklearnRidge
from threadpoolctl import threadpool_info, threadpool_limits

from datamodels import threads
from datamodels.design import Design
from datamodels.errors import ConstantColumnWarning, RequestError
from datamodels.regression import decomposed, krylov
from datamodels.regression.decomposed import Tridiagonal
from datamodels.regression.estimators import Ridge
from datamodels.regression.fit import fit_problem
from datamodels.regression.kernel import BitRows, Kernel, kernel_errors, leave_one_out, ridge_kernel
from datamodels.regression.own_rows import blas_limit
from datamodels.regression.problem import Problem
from datamodels.regression.solution import Solution
from datamodels.regression.source import Source
from datamodels.regression.spectral import Spectrum, held_out_errors, ridge_grid
from datamodels.regression.statistics import Statistics
from tests.conftest import plant


def ridge_out_of_mask(problem: Problem, estimator: Ridge, **options: Any) -> Solution:
    settings = {"n_lambdas": estimator.n_lambdas, "intercept": estimator.intercept}
    return krylov.ridge_out_of_mask(problem, estimator.splits, **settings, **options)


class Fit(NamedTuple):
    weights: np.ndarray
    bias: float
    lam: float
    lams: np.ndarray
    scores: np.ndarray
    val_r2: float


def columns(x: np.ndarray, intercept: bool = True) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Z, and the centre and inverse scale that made it."""
    scale = x.std(axis=0)
    inverse = np.divide(1.0, scale, out=np.zeros(len(scale)), where=scale > 1e-9)
    centre = x.mean(axis=0) if intercept else np.zeros(x.shape[1])
    return (x - centre) * inverse, centre, inverse


def ridge_at(x: np.ndarray, y: np.ndarray, lam: float, intercept: bool = True) -> tuple[np.ndarray, float]:
    """Raw weights and bias from the normal equations."""
    z, centre, inverse = columns(x, intercept)
    mean = y.mean() if intercept else 0.0
    w = np.linalg.solve(z.T @ z / len(y) + lam * np.eye(x.shape[1]), z.T @ (y - mean) / len(y)) * inverse
    return w, mean - centre @ w


def gcv(x: np.ndarray, y: np.ndarray, lam: float, intercept: bool = True) -> float:
    z, m = columns(x, intercept)[0], len(y)
    hat = z @ np.linalg.solve(z.T @ z + m * lam * np.eye(z.shape[1]), z.T) + intercept / m
    return ((y - hat @ y) ** 2).mean() / (1 - np.trace(hat) / m) ** 2


def oracle(x: np.ndarray, y: np.ndarray, units: np.ndarray, estimator: Ridge) -> Fit:
    """Ridge of one target, every step from the rows."""
    z = columns(x, estimator.intercept)[0]
    lams = np.geomspace(10.0, 1e-4, estimator.n_lambdas) * (np.linalg.eigvalsh(z.T @ z / len(y))[-1] or 1.0)
    splits, val_r2 = estimator.splits(units), np.nan
    if splits:
        scores = np.zeros(len(lams))
        for held in splits:
            for i, lam in enumerate(lams):
                w, b = ridge_at(x[~held], y[~held], lam, estimator.intercept)
                scores[i] += ((y[held] - x[held] @ w - b) ** 2).sum()
        rows = np.concatenate([y[held] for held in splits])
        scores /= len(rows)
        val_r2 = 1 - scores.min() / rows.var()
    else:
        scores = np.array([gcv(x, y, lam, estimator.intercept) for lam in lams])
    lam = lams[scores.argmin()]
    return Fit(*ridge_at(x, y, lam, estimator.intercept), lam, lams, scores, val_r2)


def train_problem(m: int, n: int, *, alpha: float = 0.3, noise: float = 0.5, seed: int = 0, **kept: Any) -> Problem:
    p = plant(m, n, n, noise=noise, alpha=alpha, seed=seed)
    return Problem.build(masks=p.masks, outputs=p.outputs, targets_are_train=True, **kept)


def assert_equal_to_oracle(problem: Problem, estimator: Ridge, tol: float, **options: Any) -> dict[str, np.ndarray]:
    found = ridge_out_of_mask(problem, estimator, tol=tol, **options)
    assert found.facts["residual"].max() <= tol
    masks, outputs = problem.load()
    key = "path_gcv" if estimator.selection == "gcv" else "path_val_error"
    near = {"rtol": 2e3 * tol, "atol": 2e3 * tol}
    for k, j in enumerate(problem.train_columns):
        rows = ~masks[:, j]
        exact = oracle(masks[rows].astype(float), outputs[rows, k], problem.units[rows], estimator)
        np.testing.assert_allclose(found.facts["lam"][k], exact.lam, rtol=max(1e-6, tol))
        np.testing.assert_allclose(found.facts["path_lam"][k], exact.lams, rtol=max(1e-6, tol))
        np.testing.assert_allclose(found.facts[key][k], exact.scores, **near)
        np.testing.assert_allclose(found.weights[:, k], exact.weights, **near)
        np.testing.assert_allclose(found.bias[k], exact.bias, **near)
        if estimator.selection == "held_out":
            np.testing.assert_allclose(found.facts["val_r2"][k], exact.val_r2, **near)
        assert found.weights[j, k] == 0
    return found.facts


class TestOutOfMask:
    @pytest.mark.parametrize(("m", "n"), [(300, 40), (60, 90), (90, 60)])
    @pytest.mark.parametrize("tol", [1e-6, 1e-10])
    def test_it_equals_the_normal_equations(self, m: int, n: int, tol: float) -> None:
        facts = assert_equal_to_oracle(train_problem(m, n, targets=slice(0, 12)), Ridge(), tol)
        assert (facts["steps"] > 0).all()

    @pytest.mark.parametrize(
        "estimator",
        [
            Ridge(folds=4),
            Ridge(val_fraction=0.4, seed=3, n_lambdas=7),
            Ridge(n_lambdas=1),
            Ridge(intercept=False),
            Ridge(folds=3, intercept=False),
            Ridge(selection="gcv"),
        ],
    )
    def test_every_way_to_choose(self, estimator: Ridge) -> None:
        problem = train_problem(150, 25, alpha=0.5, targets=[3, 0, 24, 7])
        facts = assert_equal_to_oracle(problem, estimator, 1e-9)
        assert ((facts["steps"] == 0) == (estimator.selection == "gcv")).all()

    def test_gcv_with_fewer_rows_than_columns(self) -> None:
        assert_equal_to_oracle(train_problem(50, 60, alpha=0.4, targets=slice(0, 4)), Ridge(selection="gcv"), 1e-9)

    def test_it_equals_scikit_learn(self) -> None:
        problem = train_problem(200, 30, targets=[4])
        found = ridge_out_of_mask(problem, Ridge(), tol=1e-10)
        masks, outputs = problem.load()
        rows = ~masks[:, 4]
        z, _, inverse = columns(masks[rows])
        theirs = SklearnRidge(alpha=found.facts["lam"][0] * rows.sum()).fit(z, outputs[rows, 0])
        np.testing.assert_allclose(found.weights[:, 0], theirs.coef_ * inverse, atol=1e-8)

    def test_without_noise_the_smallest_lambda_is_solved_as_well(self) -> None:
        """Square, without noise and with λ down to 1e-4: as badly conditioned as the grid allows."""
        problem = train_problem(120, 80, alpha=0.3, noise=0.0, targets=slice(0, 6))
        facts = assert_equal_to_oracle(problem, Ridge(), 1e-9)
        assert (facts["lam"] == facts["path_lam"][:, -1]).any()
        found = ridge_out_of_mask(problem, Ridge(), tol=1e-6)
        np.testing.assert_allclose(found.facts["lam"], facts["lam"], rtol=1e-6)
        assert found.facts["residual"].max() <= 1e-6

    def test_targets_beyond_the_steps_are_decomposed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = train_problem(120, 60, alpha=0.4, targets=slice(0, 6))
        monkeypatch.setattr(krylov, "_MAX_STEPS", 5)
        facts = assert_equal_to_oracle(problem, Ridge(), 1e-9)
        assert (facts["steps"] == 0).all()
        assert not facts["path_residual"].any()

    def test_only_the_targets_that_failed_are_decomposed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        problem = train_problem(200, 30, targets=slice(0, 8))
        expected = ridge_out_of_mask(problem, Ridge(), tol=1e-10)
        find = krylov._eigenvalues

        def fail(runs: Any) -> Any:
            value, found = find(runs)
            found[[2, 5]] = False
            return value, found

        monkeypatch.setattr(krylov, "_eigenvalues", fail)
        mixed = ridge_out_of_mask(problem, Ridge(), tol=1e-10)
        assert np.flatnonzero(mixed.facts["steps"] == 0).tolist() == [2, 5]
        np.testing.assert_allclose(mixed.weights, expected.weights, atol=1e-8)
        np.testing.assert_allclose(mixed.bias, expected.bias, atol=1e-8)
        for name in ("lam", "path_val_error", "val_r2"):
            np.testing.assert_allclose(mixed.facts[name], expected.facts[name], rtol=1e-7, err_msg=name)

    @pytest.mark.parametrize(
        ("shape", "estimator"),
        [
            ((90, 60), Ridge(selection="gcv")),
            ((50, 60), Ridge(selection="gcv", intercept=False)),
            ((150, 40), Ridge(selection="gcv", intercept=False)),
            ((90, 60), Ridge(folds=3)),  # more rows than columns in all, fewer without the held-out ones
            ((50, 60), Ridge(intercept=False)),
        ],
    )
    def test_decompositions_of_either_form_equal_the_normal_equations(
        self, shape: tuple[int, int], estimator: Ridge, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(krylov, "_MAX_STEPS", 5)
        monkeypatch.setattr(decomposed, "_COLUMNS", 17)
        problem = train_problem(*shape, targets=slice(0, 5))
        if shape == (90, 60):
            outside = (~problem.load()[0][:, :5]).sum(axis=0)
            assert (outside >= 60).any()
            assert (2 * outside // 3 < 60).all()
        facts = assert_equal_to_oracle(problem, estimator, 1e-9)
        assert (facts["steps"] == 0).all()

    def test_the_only_example_gets_0_and_the_mean_of_the_models_without_it(self) -> None:
        masks, outputs = np.arange(9)[:, None] % 3 == 0, np.random.default_rng(0).normal(size=(9, 1))
        problem = Problem.build(masks=masks, outputs=outputs, targets_are_train=True)
        found = ridge_out_of_mask(problem, Ridge(selection="gcv"))
        assert found.weights.tolist() == [[0.0]]
        np.testing.assert_allclose(found.bias, outputs[~masks[:, 0]].mean(), rtol=1e-12)

    def test_gcv_of_a_constant_output_has_no_weights(self) -> None:
        for shape in [(150, 20), (40, 60)]:
            p = plant(*shape, shape[1], noise=0.5)
            p.outputs[:, 2] = 0.1
            problem = Problem.build(masks=p.masks, outputs=p.outputs, targets_are_train=True, targets=[2, 5])
            found = ridge_out_of_mask(problem, Ridge(selection="gcv"))
            assert not found.weights[:, 0].any()
            assert found.weights[:, 1].any()
            np.testing.assert_allclose(found.bias[0], 0.1, rtol=1e-12)
            assert found.facts["lam"][0] == found.facts["path_lam"][0, 0]

    @pytest.mark.parametrize("estimator", [Ridge(), Ridge(selection="gcv")])
    def test_targets_spread_over_threads_are_the_same(self, estimator: Ridge, monkeypatch: pytest.MonkeyPatch) -> None:
        problem, done = train_problem(300, 40, targets=slice(0, 21)), []
        expected = ridge_out_of_mask(problem, estimator, tol=1e-9)
        monkeypatch.setattr(krylov, "_SPREAD_ABOVE", 0)
        monkeypatch.setattr(krylov, "_LEAST", 2)
        monkeypatch.setattr(krylov, "_MAX_RUNS", 4)  # batches of several shares
        fit, sizes, limits = krylov._fit_batch, [], []

        def watched(batch: Any, *rest: Any) -> Solution:
            sizes.append(len(batch.columns))
            limits.extend(blas())
            return fit(batch, *rest)

        monkeypatch.setattr(krylov, "_fit_batch", watched)
        monkeypatch.setattr(krylov, "n_threads", lambda: 3)
        monkeypatch.setattr(threads, "n_threads", lambda: 3)
        with threadpool_limits(2):
            found = ridge_out_of_mask(problem, estimator, tol=1e-9, progress=done.append)
            assert set(blas()) == {2}
        assert sum(done) == 21
        assert sorted(sizes) == ([3, 3, 3, 4, 4, 4] if estimator.selection == "held_out" else [1, 4, 4, 4, 4, 4])
        assert set(limits) == {1}
        np.testing.assert_allclose(found.weights, expected.weights, atol=1e-7)
        assert list(found.facts) == list(expected.facts)
        for name in ("n_constant", "lam", "val_r2", "path_lam"):
            if name in found.facts:
                np.testing.assert_allclose(found.facts[name], expected.facts[name], rtol=1e-7, err_msg=name)

    @pytest.mark.parametrize("budget", [40_000, 200_000, 3_000_000])
    def test_batches_and_forms_of_the_masks_change_nothing(self, budget: int) -> None:
        problem = train_problem(500, 40, targets=slice(0, 20))
        expected, done = ridge_out_of_mask(problem, Ridge(), tol=1e-9), []
        found = ridge_out_of_mask(problem, Ridge(), tol=1e-9, budget=budget, progress=done.append)
        assert sum(done) == 20
        np.testing.assert_allclose(found.weights, expected.weights, atol=1e-7)
        np.testing.assert_allclose(found.facts["lam"], expected.facts["lam"], rtol=1e-8)

    def test_masks_are_kept_as_bools_as_bits_or_not_at_all(self) -> None:
        problem = train_problem(300, 41)
        masks = problem.load()[0]
        kinds = []
        for budget in (12_300, 2_000, 1_000):
            kept = krylov.Masks.of(problem, budget)
            kinds.append(None if kept.kept is None else kept.kept.dtype)
            np.testing.assert_array_equal(np.concatenate([x for _, x in kept.chunks()]), masks)
            np.testing.assert_array_equal(kept.sum_x, masks.sum(axis=0))
        assert kinds == [np.bool_, np.uint8, None]

    def test_a_path_in_part_chooses_the_same_and_says_what_is_rough(self) -> None:
        problem = train_problem(130, 90, noise=2.0, targets=slice(0, 20))
        whole = ridge_out_of_mask(problem, Ridge(), tol=1e-8)
        part = ridge_out_of_mask(problem, Ridge(), tol=1e-8, whole_path=False)
        assert whole.facts["path_residual"].max() <= 1e-8
        np.testing.assert_allclose(part.facts["lam"], whole.facts["lam"], rtol=1e-8)
        np.testing.assert_allclose(part.weights, whole.weights, atol=1e-6)
        residual = part.facts["path_residual"]
        assert residual.max() > 1e-8
        solved = residual <= 1e-8
        errors = part.facts["path_val_error"][solved], whole.facts["path_val_error"][solved]
        np.testing.assert_allclose(*errors, rtol=1e-5)
        chosen = np.abs(part.facts["path_lam"] / part.facts["lam"][:, None] - 1).argmin(axis=1)
        assert solved[np.arange(20), chosen].all()

    def test_design_units_stay_together(self) -> None:
        design = Design(n_train=12, alpha=0.5, n_models=160, seed=1, kind="bernoulli", replicates=2)
        masks = design.masks()
        outputs = masks @ np.random.default_rng(0).normal(size=(12, 12)) + np.random.default_rng(1).normal(
            size=(160, 12)
        )
        source = Source.from_arrays(masks, outputs)
        units = design.units(np.arange(160))
        source = Source(**{**vars(source), "units": units})
        problem = Problem.assemble([source], slice(0, 3), True)
        assert len(np.unique(problem.units)) == 80
        assert_equal_to_oracle(problem, Ridge(), 1e-9)

    def test_several_sources_are_fitted_as_one(self) -> None:
        p = plant(200, 20, 20, noise=0.5)
        whole = Problem.build(masks=p.masks, outputs=p.outputs, targets_are_train=True, targets=[2, 9])
        sources = [Source.from_arrays(p.masks[a:b], p.outputs[a:b]) for a, b in [(0, 70), (70, 200)]]
        parts = Problem.assemble(sources, [2, 9], True)
        a, b = (ridge_out_of_mask(problem, Ridge(), tol=1e-9) for problem in (whole, parts))
        np.testing.assert_array_equal(a.weights, b.weights)

    def test_constant_targets_have_no_weights_and_a_grid_all_the_same(self) -> None:
        p = plant(150, 20, 20, noise=0.5)
        p.outputs[:, 3] = 0.1
        p.outputs[:, 5] = np.where(p.masks[:, 5], p.outputs[:, 5], 7.0)
        problem = Problem.build(masks=p.masks, outputs=p.outputs, targets_are_train=True, targets=slice(2, 6))
        found = ridge_out_of_mask(problem, Ridge())
        assert not found.weights[:, [1, 3]].any()
        np.testing.assert_allclose(found.bias[[1, 3]], [0.1, 7.0], rtol=1e-12)
        assert np.isnan(found.facts["val_r2"][[1, 3]]).all()
        assert not found.facts["residual"][[1, 3]].any()
        for k, j in [(1, 3), (3, 5)]:
            z = columns(p.masks[~p.masks[:, j]])[0]
            top = np.linalg.eigvalsh(z.T @ z / len(z))[-1]
            np.testing.assert_allclose(found.facts["path_lam"][k, 0], 10 * top, rtol=1e-6)
            assert found.facts["lam"][k] == found.facts["path_lam"][k, 0]

    def test_a_large_mean_with_a_small_spread_loses_nothing(self) -> None:
        p = plant(200, 20, 20, noise=0.2)
        far = Problem.build(masks=p.masks, outputs=50 + 0.002 * p.outputs, targets_are_train=True, targets=[1, 8])
        near = Problem.build(masks=p.masks, outputs=p.outputs, targets_are_train=True, targets=[1, 8])
        a, b = (ridge_out_of_mask(problem, Ridge(), tol=1e-9) for problem in (far, near))
        np.testing.assert_allclose(a.weights / 0.002, b.weights, atol=1e-7)
        np.testing.assert_allclose((a.bias - 50) / 0.002, b.bias, atol=1e-7)

    def test_a_twin_of_the_target_gets_0_and_a_warning(self) -> None:
        p = plant(150, 20, 20, noise=0.5)
        p.masks[:, 1] = p.masks[:, 0]
        problem = Problem.build(masks=p.masks, outputs=p.outputs, targets_are_train=True)
        with pytest.warns(ConstantColumnWarning, match="2 targets .the first is train example 0"):
            fit_problem(problem, Ridge(), progress=False)
        found = ridge_out_of_mask(problem, Ridge())
        assert found.facts["n_constant"].tolist() == [2, 2] + [1] * 18
        assert found.weights[1, 0] == found.weights[0, 1] == 0
        assert np.isfinite(found.weights).all()

    def test_a_space_that_ends_early_is_decomposed(self) -> None:
        """All subsets of 4 examples, one of them twice: Zᵀy lies in a space that never meets the largest
        eigenvalue, 2, so that it must be found otherwise."""
        cube = (np.arange(16)[:, None] >> np.arange(4)) % 2 == 1
        masks = np.column_stack([np.zeros(16, bool), cube, cube[:, 3]])
        masks = np.concatenate([masks] * 4)
        outputs = np.repeat(masks[:, [1]].astype(float), 6, axis=1)
        problem = Problem.build(masks=masks, outputs=outputs, targets_are_train=True, targets=[0])
        found = ridge_out_of_mask(problem, Ridge(n_lambdas=5), tol=1e-9)
        assert found.facts["steps"].tolist() == [0]
        np.testing.assert_allclose(found.facts["path_lam"][0, 0], 20.0, rtol=1e-9)

    def test_outputs_of_models_that_saw_the_target_may_be_missing(self) -> None:
        p = plant(150, 20, 20, noise=0.5)
        holes = np.where(p.masks, np.nan, p.outputs)
        holes[:, 0] = p.outputs[:, 0]  # the first is read along with the masks
        ask = {"masks": p.masks, "targets_are_train": True, "targets": [0, 4]}
        a, b = (ridge_out_of_mask(Problem.build(outputs=y, **ask), Ridge()) for y in (p.outputs, holes))
        np.testing.assert_array_equal(a.weights, b.weights)
        row = int(np.flatnonzero(~p.masks[:, 4])[3])
        holes[row, 4] = np.inf
        with pytest.raises(RequestError, match=f"row {row}, target 4 is inf"):
            ridge_out_of_mask(Problem.build(outputs=holes, **ask), Ridge())

    def test_what_cannot_be_fitted_is_refused(self) -> None:
        masks = np.random.default_rng(0).random((30, 3)) < 0.5
        masks[:, 1] = True
        problem = Problem.build(masks=masks, outputs=np.ones((30, 3)), targets_are_train=True)
        with pytest.raises(RequestError, match="train example 1 is in 30 of 30 subsets: too few models"):
            ridge_out_of_mask(problem, Ridge())
        with pytest.raises(RequestError, match="targets_are_train=True"):
            ridge_out_of_mask(Problem.build(masks=masks, outputs=np.ones((30, 3))), Ridge())
        masks = np.eye(3, dtype=bool)[[0, 0, 0, 1, 2, 1]]
        problem = Problem.build(masks=masks, outputs=np.ones((6, 3)), targets_are_train=True)
        with pytest.raises(RequestError, match="1 rows are too few to fit"):
            ridge_out_of_mask(problem, Ridge(val_fraction=0.6))


def blas() -> list[int]:
    return [lib["num_threads"] for lib in threadpool_info() if lib["user_api"] == "blas"]


@pytest.mark.parametrize(("rows", "limit"), [(60, 1), (1 << 21, 2)])
def test_blas_has_one_thread_for_small_problems_only(rows: int, limit: int) -> None:
    masks = np.broadcast_to(np.zeros(8, dtype=bool), (rows, 8))
    problem = Problem.build(masks=masks, outputs=np.broadcast_to(0.0, (rows, 1)))
    with threadpool_limits(2):
        with blas_limit(problem):
            assert set(blas()) == {limit}
        with blas_limit(problem, threads=2):
            assert set(blas()) == {1}
        assert set(blas()) == {2}


@pytest.mark.parametrize("size", [1, 2, 3, 50])
def test_a_tridiagonal_form_is_the_matrix(size: int) -> None:
    rng = np.random.default_rng(size)
    root, q, lams = rng.normal(size=(size, size + 1)), rng.normal(size=size), np.array([2.0, 0.3, 1e-3])
    matrix = root @ root.T
    form = Tridiagonal(matrix.copy(), q)
    values = np.linalg.eigvalsh(matrix)
    np.testing.assert_allclose(np.sort(form.values()), values, atol=1e-12 * values[-1])
    np.testing.assert_allclose(form.largest(), values[-1], rtol=1e-12)
    solved = np.stack([np.linalg.solve(matrix + lam * np.eye(size), q) for lam in lams], axis=1)
    np.testing.assert_allclose(form.solve(lams), solved, rtol=1e-8, atol=1e-10)
    within = form.within(lams)
    np.testing.assert_allclose((within**2).sum(axis=0), (solved**2).sum(axis=0), rtol=1e-8)
    np.testing.assert_allclose(form.rhs @ within, q @ solved, rtol=1e-8)


class TestKernel:
    @pytest.mark.parametrize("intercept", [True, False])
    @pytest.mark.parametrize("shape", [(30, 70), (60, 25)])
    def test_it_equals_the_spectrum(self, shape: tuple[int, int], intercept: bool) -> None:
        p = plant(*shape, 4, noise=0.5, seed=1)
        p.masks[:, 3] = True
        problem = Problem.build(masks=p.masks, outputs=p.outputs)
        total = Statistics.of(problem)
        spectrum, kernel = Spectrum.of(total, intercept=intercept), Kernel.of(problem, intercept=intercept)
        rank = min(shape) - 2
        np.testing.assert_allclose(np.sort(kernel.values)[-rank:], np.sort(spectrum.values)[-rank:], atol=1e-10)
        lams = ridge_grid(spectrum, 9)
        for lam in (*lams, lams[:4]):
            ours, theirs = kernel.to_raw(kernel.ridge(lam)), spectrum.problem.to_raw(spectrum.ridge(lam))
            np.testing.assert_allclose(ours[0], theirs[0], atol=1e-8)
            np.testing.assert_allclose(ours[1], theirs[1], atol=1e-8)
        np.testing.assert_allclose(kernel.gcv(lams), spectrum.gcv(lams, total.count), rtol=1e-7)
        np.testing.assert_allclose(kernel.least_squares(), spectrum.least_squares(), atol=1e-7)
        assert not kernel.ridge(lams[0])[:, 3].any()

    @pytest.mark.parametrize("intercept", [True, False])
    def test_held_out_errors_are_those_of_the_spectrum(self, intercept: bool) -> None:
        p = plant(40, 90, 3, noise=0.5, alpha=0.4)
        problem = Problem.build(masks=p.masks, outputs=p.outputs + 5)
        splits = Ridge(folds=4).splits(problem.units)
        total = Statistics.of(problem)
        parts = [Statistics.of(problem.take(held), shift=total.shift) for held in splits]
        lams = ridge_grid(Spectrum.of(total), 8)
        expected = held_out_errors(total, parts, lams, intercept=intercept)
        ours = kernel_errors(BitRows.of(problem), splits, lams, intercept=intercept)
        np.testing.assert_allclose(ours, expected, rtol=1e-8)

    @pytest.mark.parametrize("estimator", [Ridge(), Ridge(folds=3), Ridge(selection="gcv"), Ridge(intercept=False)])
    def test_the_whole_fit_is_that_of_the_spectrum(self, estimator: Ridge) -> None:
        p = plant(45, 80, 5, noise=0.5, seed=4)
        p.outputs[:, 2] = 0.1
        problem, read = Problem.build(masks=p.masks, outputs=p.outputs), []
        splits, intercept = estimator.splits(problem.units), estimator.intercept
        ours = ridge_kernel(problem, estimator.splits, intercept=intercept, progress=read.append)
        assert sum(read) == 45
        total = Statistics.of(problem)
        parts = [Statistics.of(problem.take(held), shift=total.shift) for held in splits]
        spectrum = Spectrum.of(total, intercept=intercept)
        lams = ridge_grid(spectrum, 30)
        if splits:
            scores, key = held_out_errors(total, parts, lams, intercept=intercept), "path_val_error"
            held = np.concatenate([p.outputs[rows] for rows in splits])
            r2 = 1 - scores.min(axis=0) / np.where(held.var(axis=0) > 1e-20, held.var(axis=0), np.nan)
            np.testing.assert_allclose(ours.facts["val_r2"], r2, rtol=1e-7)
        else:
            scores, key = spectrum.gcv(lams, 45), "path_gcv"
        lam = lams[scores.argmin(axis=0)]
        weights, bias = spectrum.problem.to_raw(spectrum.ridge(lam))
        np.testing.assert_allclose(ours.weights, weights, atol=1e-8)
        np.testing.assert_allclose(ours.bias, bias, atol=1e-8)
        np.testing.assert_allclose(ours.facts["lam"], lam, rtol=1e-10)
        np.testing.assert_allclose(ours.facts["path_lam"], np.broadcast_to(lams, (5, 30)), rtol=1e-10)
        np.testing.assert_allclose(ours.facts[key], scores.T, rtol=1e-6, atol=1e-12)

    def test_columns_in_blocks_are_all_columns(self, monkeypatch: pytest.MonkeyPatch) -> None:
        from datamodels.regression import kernel

        p = plant(20, 50, 2, noise=0.5)
        problem = Problem.build(masks=p.masks, outputs=p.outputs)
        whole = Kernel.of(problem).ridge(0.1)
        monkeypatch.setattr(kernel, "_COLUMNS", 16)
        np.testing.assert_allclose(Kernel.of(problem).ridge(0.1), whole, atol=1e-12)

    def test_one_row_is_too_few(self) -> None:
        with pytest.raises(RequestError, match="1 rows are too few"):
            Kernel.of(Problem.build(masks=np.ones((1, 3), bool), outputs=np.ones((1, 2))))


@pytest.mark.parametrize("intercept", [True, False])
@pytest.mark.parametrize(("m", "n"), [(40, 15), (25, 40)])
def test_leave_one_out_equals_refits_without_each_row(m: int, n: int, intercept: bool) -> None:
    """Refits at the scale and the total penalty of all rows; their intercept is free."""
    p = plant(m, n, 3, noise=0.5, seed=2)
    p.outputs[:, 1] += 100
    problem = Problem.build(masks=p.masks, outputs=p.outputs)
    z = columns(p.masks.astype(float), intercept)[0]
    lams = np.array([3.0, 0.2, 1e-3])
    design = np.column_stack([z, np.ones(m)]) if intercept else z
    expected = np.zeros((3, 3))
    for i, lam in enumerate(lams):
        penalty = np.diag([m * lam] * n + [0.0] * intercept)
        for row in range(m):
            rest = np.arange(m) != row
            w = np.linalg.solve(design[rest].T @ design[rest] + penalty, design[rest].T @ p.outputs[rest])
            expected[i] += (p.outputs[row] - design[row] @ w) ** 2 / m
    spectrum = Spectrum.of(Statistics.of(problem), intercept=intercept)
    np.testing.assert_allclose(leave_one_out(problem, spectrum, lams), expected, rtol=1e-7)
    np.testing.assert_allclose(
        leave_one_out(problem, Kernel.of(problem, intercept=intercept), lams), expected, rtol=1e-7
    )


def test_leave_one_out_of_a_constant_target_is_0() -> None:
    p = plant(20, 30, 2, noise=0.5)
    p.outputs[:, 0] = 0.1
    problem = Problem.build(masks=p.masks, outputs=p.outputs)
    for fitted in (Spectrum.of(Statistics.of(problem)), Kernel.of(problem)):
        errors = leave_one_out(problem, fitted, np.array([1.0, 1e-3]))
        assert not errors[:, 0].any()
        assert (errors[:, 1] > 0).all()
