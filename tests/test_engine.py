"""The engine of the regression: bits, working sets, penalty factors, rows of their own, memory, threads."""

from __future__ import annotations

from collections.abc import Callable

import numba
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels import DifferenceInMeans, ElasticNet, Lasso, Ridge, fit, memory
from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.regression import bits, row_path
from datamodels.regression.certificate import relative_gap
from datamodels.regression.path import lambda_grid, lambda_max, solve_at, solve_path
from datamodels.regression.problem import Problem
from datamodels.regression.reference import elastic_net
from datamodels.regression.rows import PackedRows
from datamodels.regression.split_statistics import SplitStatistics, Standardised
from datamodels.regression.statistics import Accumulator, Statistics
from datamodels.threads import ahead, spread
from tests.conftest import plant, statistics_of


@settings(max_examples=25, deadline=None)
@given(m=st.integers(1, 700), n=st.integers(1, 120), seed=st.integers(0, 99), alpha=st.floats(0, 1))
def test_every_engine_counts_the_same_integers(m: int, n: int, seed: int, alpha: float) -> None:
    x = np.random.default_rng(seed).random((m, n)) < alpha
    columns = bits.pack_columns(x)
    np.testing.assert_array_equal(bits.unpack_rows(columns, 0, np.empty((m, n), np.float32)), x)
    for engine in ("popcount", "int8", "float32"):
        gram = np.full((n, n), 3, dtype=np.uint16)
        bits.add_products(columns, gram, engine)  # type: ignore[arg-type]
        np.testing.assert_array_equal(gram, 3 + x.astype(int).T @ x.astype(int))
    keep = bits.pack_bits(x[:, 0], columns.shape[1])
    np.testing.assert_array_equal(bits.count_columns(columns, keep[None])[0], x[x[:, 0]].sum(axis=0))
    some = np.arange(0, n, 3)
    np.testing.assert_array_equal(
        bits.cross_counts(columns, keep, some), x[x[:, 0]].T.astype(int) @ x[x[:, 0]][:, some]
    )


def test_the_engine_is_chosen_by_a_measurement(monkeypatch: pytest.MonkeyPatch) -> None:
    for fastest in ("popcount", "float32"):
        bits.fastest_engine.cache_clear()
        monkeypatch.setattr(bits, "_seconds", lambda engine, fastest=fastest: 0.1 if engine == fastest else 1.0)
        assert bits.fastest_engine() == fastest
    bits.fastest_engine.cache_clear()


def test_a_buffer_that_overflows_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodels.regression import statistics

    p = plant(1500, 20, 2, noise=0.1)
    monkeypatch.setattr(statistics, "_BUFFER_BYTES", 1)
    accumulator = Accumulator(Statistics.empty(20, np.zeros(2)))
    for start in range(0, 1500, 333):
        accumulator.add(p.masks[start : start + 333], p.outputs[start : start + 333])
    found, expected = accumulator.finish(), statistics_of(p)
    np.testing.assert_array_equal(found.gram, expected.gram)
    np.testing.assert_allclose(found.xty, expected.rebased(np.zeros(2)).xty)


@pytest.mark.parametrize("folds", [None, 3])
def test_rows_that_come_later_fold_in(folds: int | None) -> None:
    """Statistics of old rows plus statistics of new ones give the fit of all of them."""
    p = plant(200, 15, 3, noise=0.3)
    estimator = Lasso(folds=folds)
    splits = estimator.splits(np.arange(200))
    parts = [
        SplitStatistics.of(
            Problem.build(masks=p.masks[rows], outputs=p.outputs[rows]), [held_out[rows] for held_out in splits]
        )
        for rows in (slice(0, 120), slice(120, 200))
    ]
    whole = estimator.solve(SplitStatistics.of(Problem.build(masks=p.masks, outputs=p.outputs), splits))
    added = estimator.solve(parts[0] + parts[1])
    np.testing.assert_allclose(added.weights, whole.weights, atol=1e-6)
    np.testing.assert_allclose(added.facts["lam"], whole.facts["lam"], rtol=1e-9)


@pytest.mark.parametrize("fewer", [2, 1])
def test_threads_do_not_change_an_answer(fewer: int) -> None:
    p = plant(400, 90, 30, noise=0.5)
    before = numba.get_num_threads()
    expected = fit(masks=p.masks, outputs=p.outputs, progress=False)
    try:
        numba.set_num_threads(min(fewer, before))
        found = fit(masks=p.masks, outputs=p.outputs, progress=False)
    finally:
        numba.set_num_threads(before)
    np.testing.assert_array_equal(found.weights, expected.weights)
    np.testing.assert_array_equal(found.bias, expected.bias)


def test_errors_in_threads_reach_the_caller_and_items_come_in_order() -> None:
    assert spread(lambda k: k * k, range(20)) == [k * k for k in range(20)]
    with pytest.raises(ZeroDivisionError):
        spread(lambda k: 1 // (k - 7), range(20))
    assert list(ahead(iter(range(9)))) == list(range(9))
    with pytest.raises(ZeroDivisionError):
        list(ahead(1 // (k - 3) for k in range(9)))


def test_a_working_set_finds_what_the_first_correlations_hide() -> None:
    """A pair of examples that cancel in y alone: one of them has no correlation with y until the other is in."""
    rng = np.random.default_rng(0)
    masks = rng.random((4000, 300)) < 0.5
    twin = np.where(rng.random(4000) < 0.9, masks[:, 0], ~masks[:, 0])
    masks[:, 1] = twin
    effects = np.zeros(300)
    effects[:2] = 1.0, -0.8 / 1.0
    y = masks[:, :1] * 1.0 - masks[:, 1:2] * 1.25 + masks[:, 2:60] @ rng.normal(size=(58, 1)) * 0.2
    y = y + 0.01 * rng.normal(size=(4000, 1))
    total = Statistics.of(Problem.build(masks=masks, outputs=y))
    problem = Standardised.of(total)
    lam = lambda_max(total) * 1e-3
    w, gap = solve_at(total, lam, tol=1e-10)
    assert relative_gap(problem.gram, problem.q, problem.y_var, w, lam)[0] <= 1.001e-10
    assert gap[0] <= 1e-10
    raw, _ = problem.to_raw(w)
    assert raw[0, 0] > 0.9
    assert raw[1, 0] < -1.1


def test_a_path_walked_in_stretches_is_as_good_at_every_step() -> None:
    p = plant(2000, 400, 4, noise=1.0, nonzero=15)
    total = statistics_of(p)
    problem = Standardised.of(total)
    lams = lambda_grid(lambda_max(total), 40, 1e-2)
    weights, gaps = solve_path(total, lams, tol=1e-6, certify=False)
    assert np.isnan(gaps).mean() > 0.3
    assert np.nanmax(gaps) <= 1.001e-6
    for i in range(40):
        gap = relative_gap(problem.gram, problem.q, problem.y_var, weights[:, i], lams[:, i])
        assert gap.max() <= 3e-6


class TestPenaltyFactors:
    def test_ones_change_nothing(self) -> None:
        p = plant(150, 30, 3, noise=0.4)
        plain = fit(masks=p.masks, outputs=p.outputs, progress=False)
        ones = fit(masks=p.masks, outputs=p.outputs, penalty_factors=np.ones((30, 3)), progress=False)
        np.testing.assert_array_equal(ones.weights, plain.weights)

    @pytest.mark.parametrize("ratio", [1.0, 0.6])
    def test_any_factors_equal_the_reference(self, ratio: float) -> None:
        p = plant(120, 25, 1, noise=0.3, seed=8)
        rng = np.random.default_rng(0)
        factors = rng.uniform(0.2, 3, 25)
        factors[[3, 11]], factors[[5, 6]] = 0.0, np.inf
        total = statistics_of(p)
        largest = lambda_max(total, ratio, penalty=factors)
        for share in (0.6, 0.1, 0.01):
            lam = share * largest
            w, gap = solve_at(total, lam, l1_ratio=ratio, tol=1e-13, penalty=factors)
            raw, bias = Standardised.of(total).to_raw(w)
            expected, expected_bias = elastic_net(p.masks, p.outputs[:, 0], lam[0], ratio, penalty=factors)
            np.testing.assert_allclose(raw[:, 0], expected, atol=1e-6)
            assert bias[0] == pytest.approx(expected_bias, abs=1e-6)
            assert not raw[[5, 6]].any()
            assert gap[0] <= 1e-12

    def test_lambda_max_is_that_of_the_residual_of_the_unpenalised(self) -> None:
        p = plant(120, 25, 2, noise=0.3, seed=8)
        factors = np.ones((25, 2))
        factors[[1, 4], 0], factors[7, 1] = 0.0, 4.0
        total = statistics_of(p)
        largest = lambda_max(total, penalty=factors)
        z = (p.masks - p.masks.mean(axis=0)) / p.masks.std(axis=0)
        y = p.outputs - p.outputs.mean(axis=0)
        r = y[:, 0] - z[:, [1, 4]] @ np.linalg.lstsq(z[:, [1, 4]], y[:, 0], rcond=None)[0]
        assert largest[0] == pytest.approx(np.abs(np.delete(z, [1, 4], axis=1).T @ r).max() / 120)
        assert largest[1] == pytest.approx((np.abs(z.T @ y[:, 1]) / factors[:, 1]).max() / 120)
        at = solve_at(total, largest, penalty=factors)[0]
        assert np.flatnonzero(at[0]).tolist() == [1, 4]
        below = solve_at(total, 0.99 * largest, penalty=factors)[0]
        assert (np.count_nonzero(below, axis=1) == [3, 1]).all()

    @pytest.mark.parametrize("estimator", [Lasso(), Lasso(folds=4), ElasticNet(l1_ratio=0.7)])
    @pytest.mark.parametrize("how", ["0.6GB", 1])
    def test_chosen_fits_with_unpenalised_examples_equal_the_reference(self, estimator: Lasso, how: int | str) -> None:
        """The refit on all rows begins where a fit of fewer rows ended: what is unpenalised has to move too."""
        rng = np.random.default_rng(0)
        masks = rng.random((200, 30)) < 0.5
        effects = rng.normal(size=(30, 12)) * (rng.random((30, 12)) < 0.2)
        outputs = 5 * masks[:, :1] + masks @ effects + rng.normal(size=(200, 12))
        factors = np.ones(30)
        factors[[0, 7]] = 0.0
        options = {"masks": masks, "outputs": outputs, "estimator": estimator, "memory": how, "progress": False}
        a = fit(penalty_factors=factors, **options)  # type: ignore[arg-type]
        ratio = getattr(estimator, "l1_ratio", 1.0)
        assert a.target_facts["gap"].max() <= 1e-8
        for k in range(12):
            expected, bias = elastic_net(masks, outputs[:, k], a.target_facts["lam"][k], ratio, penalty=factors)
            np.testing.assert_allclose(a.weights[:, k], expected, atol=2e-4)
            assert a.bias[k] == pytest.approx(bias, abs=1e-3)

    def test_a_gap_is_not_known_where_the_unpenalised_are_not_settled(self) -> None:
        p = plant(120, 10, 1, noise=0.3)
        problem = Standardised.of(statistics_of(p))
        factors = np.where(np.arange(10) == 2, 0.0, 1.0)
        gap = relative_gap(problem.gram, problem.q, problem.y_var, np.zeros((1, 10)), 0.1, 1.0, factors)
        assert gap[0] == np.inf

    def test_many_unpenalised_examples_are_solved_too(self) -> None:
        p = plant(116, 140, 2, noise=0.5)
        factors = np.where(np.arange(140) < 100, 0.0, 1.0)
        a = fit(
            masks=p.masks, outputs=p.outputs, estimator=Lasso(n_lambdas=10), penalty_factors=factors, progress=False
        )
        assert a.target_facts["gap"].max() <= 1e-8

    def test_factors_scale_as_columns_do(self) -> None:
        """One small factor lets its feature in before all others."""
        p = plant(200, 20, 1, noise=1.0)
        factors = np.ones(20)
        factors[13] = 0.01
        total = statistics_of(p)
        lams = lambda_grid(lambda_max(total, penalty=factors), 30, 1e-3)
        weights, gaps = solve_path(total, lams, penalty=factors)
        first = next(w for w in weights[0] if w.any())
        assert np.flatnonzero(first).tolist() == [13]
        assert gaps.max() <= 1e-8
        problem = Standardised.of(total)
        for i in range(0, 30, 7):
            again = relative_gap(problem.gram, problem.q, problem.y_var, weights[:, i], lams[:, i], 1.0, factors)
            assert again[0] <= 1.01e-8

    @pytest.mark.parametrize("of_train", [False, True])
    def test_per_target_factors_are_those_of_separate_fits(self, of_train: bool) -> None:
        p = plant(160, 8, 8, noise=0.5)
        factors = np.random.default_rng(1).uniform(0.3, 2, (8, 8))
        factors[2, 5] = 0.0
        options = {"masks": p.masks, "outputs": p.outputs, "targets_are_train": of_train, "progress": False}
        together = fit(penalty_factors=factors, **options)  # type: ignore[arg-type]
        for k in (0, 5):
            alone = fit(penalty_factors=factors[:, [k]], targets=[k], **options)  # type: ignore[arg-type]
            np.testing.assert_allclose(alone.weights[:, 0], together.weights[:, k], atol=1e-7)

    @pytest.mark.parametrize(
        ("factors", "estimator", "message"),
        [
            (np.ones(7), Lasso(), r"shape \(7,\); legal: \(8,\)"),
            (-np.ones(8), Lasso(), "0 or larger"),
            (np.full(8, np.nan), Lasso(), "0 or larger"),
            (np.zeros(8), Lasso(), "no weight that is penalised"),
            (np.ones(8), Ridge(), "takes no penalty factors"),
            (np.ones(8), DifferenceInMeans(), "takes no penalty factors"),
        ],
    )
    def test_factors_that_mean_nothing_are_refused(self, factors: np.ndarray, estimator: object, message: str) -> None:
        p = plant(60, 8, 1)
        with pytest.raises(RequestError, match=message):
            fit(masks=p.masks, outputs=p.outputs, estimator=estimator, penalty_factors=factors, progress=False)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "estimator", [Lasso(), Lasso(folds=3), ElasticNet(l1_ratio=0.6), Lasso(intercept=False), Lasso(n_lambdas=1)]
)
@pytest.mark.parametrize("shape", [(300, 60), (70, 110)])
def test_a_small_memory_gives_the_same_answer(estimator: Lasso, shape: tuple[int, int]) -> None:
    """Counts on demand from the rows, against the table of all counts."""
    p = plant(*shape, 5, noise=0.5)
    options = {"masks": p.masks, "outputs": p.outputs, "estimator": estimator, "progress": False}
    table = fit(**options)  # type: ignore[arg-type]
    demand = fit(memory=1024, **options)  # type: ignore[arg-type]
    np.testing.assert_allclose(demand.weights, table.weights, atol=1e-6)
    np.testing.assert_allclose(demand.bias, table.bias, atol=1e-6)
    for fact in ("lam", "val_r2", "path_val_error"):
        np.testing.assert_allclose(demand.target_facts[fact], table.target_facts[fact], rtol=1e-7, atol=1e-9)
    assert demand.target_facts["gap"].max() <= 1e-8


def test_a_small_memory_says_the_same_of_constant_columns() -> None:
    p = plant(100, 12, 2)
    p.masks[:, 4] = True
    with pytest.warns(UserWarning, match="1 training examples are in all 100 subsets or in none .the first is 4"):
        fit(masks=p.masks, outputs=p.outputs, memory="1K", progress=False)


@pytest.mark.parametrize(
    ("estimator", "shape"), [(Lasso(), (250, 40)), (Lasso(folds=3), (90, 40)), (ElasticNet(), (250, 40))]
)
def test_out_of_mask_paths_are_those_of_the_rows_alone(
    estimator: Lasso, shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The rows without the target, given alone, to the engine that uses tables."""
    m, n = shape
    design = Design(n_train=n, alpha=0.4, n_models=m, seed=3)
    masks = design.masks()
    rng = np.random.default_rng(0)
    outputs = masks @ (rng.normal(size=(n, n)) * (rng.random((n, n)) < 0.15)) + 0.3 * rng.normal(size=(m, n)) + 7
    monkeypatch.setattr(row_path, "_BATCH_BYTES", 16 * (m + n) * 7)  # batches of seven targets
    a = fit(masks=masks, outputs=outputs, estimator=estimator, targets_are_train=True, progress=False)
    assert a.target_facts["gap"].max() <= 1e-8
    for j in range(0, n, 9):
        rows = ~masks[:, j]
        kept = np.flatnonzero(np.arange(n) != j)
        alone = fit(masks=masks[rows][:, kept], outputs=outputs[rows][:, [j]], estimator=estimator, progress=False)
        np.testing.assert_allclose(a.weights[kept, j], alone.weights[:, 0], atol=1e-6)
        assert a.target_facts["val_r2"][j] == pytest.approx(alone.target_facts["val_r2"][0], abs=1e-7)
        assert a.bias[j] == pytest.approx(alone.bias[0], abs=1e-6)


def test_packed_rows_hold_several_sources_in_order() -> None:
    p, q = plant(100, 9, 2, seed=1), plant(77, 9, 2, seed=2)
    problem = Problem.assemble(
        [Problem.build(masks=part.masks, outputs=part.outputs).sources[0] for part in (p, q)], None, False
    )
    rows = PackedRows.read(problem)
    masks, outputs = np.concatenate([p.masks, q.masks]), np.concatenate([p.outputs, q.outputs])
    for j in range(9):
        np.testing.assert_array_equal(rows.rows_with(j), masks[:, j])
    np.testing.assert_array_equal(rows.outputs(slice(1, 2)), outputs[:, 1:])
    np.testing.assert_allclose(rows.products(outputs), masks.T @ outputs)
    some = masks[:, 2] & ~masks[:, 5]
    np.testing.assert_array_equal(rows.counts(rows.packed(some)[None])[0], masks[some].sum(axis=0))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (5, 5),
        (5e9, 5_000_000_000),
        ("4096", 4096),
        ("2KB", 2048),
        ("1.5 MiB", 3 << 19),
        ("8g", 8 << 30),
        ("1 T", 1 << 40),
    ],
)
def test_memory_is_read_as_people_write_it(given: float | str, expected: int) -> None:
    assert memory.bytes_of(given) == expected


@pytest.mark.parametrize("given", [0, -1, "8", float("inf"), "much", "0GB", "3 parsecs"])
def test_memory_that_is_none_is_refused(given: float | str) -> None:
    with pytest.raises(RequestError, match="unit like 500MB or 8GB"):
        memory.bytes_of(given)


def test_free_memory_is_a_share_of_the_machine() -> None:
    assert 1 << 20 < memory.bytes_of(None) < memory.available() <= 1 << 50


def peak_of(action: Callable[[], object]) -> int:
    import tracemalloc

    tracemalloc.start()
    action()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak


@pytest.mark.parametrize("memory_", [None, 1])
def test_float32_products_lose_nothing_that_matters(monkeypatch: pytest.MonkeyPatch, memory_: int | None) -> None:
    from datamodels.regression import statistics

    p = plant(900, 120, 4, noise=0.5)
    options = {"masks": p.masks, "outputs": p.outputs + 50, "memory": memory_, "progress": False}
    exact = fit(**options)  # type: ignore[arg-type]
    monkeypatch.setattr(statistics, "FLOAT64_PRODUCTS_UP_TO", 10)
    rough = fit(**options)  # type: ignore[arg-type]
    assert not np.array_equal(rough.weights, exact.weights)
    np.testing.assert_allclose(rough.weights, exact.weights, atol=2e-5)
    assert rough.target_facts["gap"].max() <= 1e-8


def test_examples_with_equal_masks_leave_no_dust() -> None:
    groups = np.repeat(np.arange(20), 10)
    masks = Design(n_train=200, alpha=0.5, n_models=300, seed=0, kind="grouped", groups=groups).masks()
    rng = np.random.default_rng(0)
    outputs = masks[:, ::10] @ rng.normal(size=(20, 8)) + rng.normal(size=(300, 8))
    found = fit(masks=masks, outputs=outputs, progress=False)
    assert found.target_facts["gap"].max() <= 1e-8
    weights = np.abs(found.weights)
    assert weights[weights > 0].min() > 1e-6
    np.testing.assert_array_equal(found.target_facts["n_nonzero"], (weights > 0).sum(axis=0))


def test_parts_of_one_block_are_told_from_others() -> None:
    """Statistics of held-out rows alone are not those of the rest, though they lie in one block."""
    p = plant(300, 20, 2, noise=0.5)
    held_out = np.arange(300) % 3 == 0
    data = SplitStatistics.of(Problem.build(masks=p.masks, outputs=p.outputs), [held_out])
    assert data.counts.base is None
    alone = Statistics.of(Problem.build(masks=p.masks[held_out], outputs=p.outputs[held_out]))
    lam = 0.1 * lambda_max(alone)
    np.testing.assert_allclose(solve_at(data.held_out[0], lam)[0], solve_at(alone, lam)[0], atol=1e-6)


def test_memory_does_not_grow_with_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodels.regression import problem

    monkeypatch.setattr(problem, "CHUNK_BYTES", 1 << 16)
    small, large = plant(2_000, 60, 5, seed=1), plant(20_000, 60, 5, seed=1)
    peaks = [
        peak_of(lambda p=p: SplitStatistics.of(Problem.build(masks=p.masks, outputs=p.outputs), []))
        for p in (small, small, large)
    ]
    assert peaks[2] < 1.2 * peaks[1] + 20_000 * 16  # the numbers of rows are kept
