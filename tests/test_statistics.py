"""Statistics: what streams in adds up to what a direct computation gives."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.errors import NewerFormatError, RequestError
from datamodels.regression.problem import Problem
from datamodels.regression.split_statistics import Standardised, squared_error
from datamodels.regression.statistics import Statistics
from tests.conftest import plant


def direct(x: np.ndarray, y: np.ndarray, shift: np.ndarray) -> dict[str, np.ndarray]:
    z = x.astype(np.float64)
    c = y - shift
    return {"sum_x": z.sum(0), "gram": z.T @ z, "sum_y": c.sum(0), "yty": (c**2).sum(0), "xty": z.T @ c}


def assert_same(s: Statistics, x: np.ndarray, y: np.ndarray) -> None:
    assert s.count == len(x)
    for name, value in direct(x, y, s.shift).items():
        scale = len(x) * max(1.0, np.abs(y - s.shift).max() ** 2)
        np.testing.assert_allclose(getattr(s, name), value, atol=1e-13 * scale, err_msg=name)
    np.testing.assert_array_equal(s.gram, direct(x, y, s.shift)["gram"])


@settings(max_examples=30, deadline=None)
@given(m=st.integers(3, 60), cut=st.integers(1, 2), seed=st.integers(0, 99), move=st.floats(-1e3, 1e3))
def test_statistics_add_subtract_and_rebase(m: int, cut: int, seed: int, move: float) -> None:
    p = plant(m, 7, 3, noise=0.3, seed=seed)
    a = Statistics.of(Problem.build(masks=p.masks[:cut], outputs=p.outputs[:cut]))
    b = Statistics.of(Problem.build(masks=p.masks[cut:], outputs=p.outputs[cut:]), shift=np.full(3, move))
    assert_same(a + b, p.masks, p.outputs)
    assert_same(b + a, p.masks, p.outputs)
    rest = (b + a) - a
    assert rest.count == m - cut
    np.testing.assert_allclose(rest.rebased(np.zeros(3)).xty, b.rebased(np.zeros(3)).xty, atol=1e-8 * (1 + abs(move)))


def test_chunks_of_any_size_give_the_same_integers() -> None:
    p = plant(500, 30, 3, noise=1.0)
    problem = Problem.build(masks=p.masks, outputs=p.outputs)
    for size in (1, 7, 64, 500, 9999):
        s = Statistics.empty(30, np.zeros(3))
        for x, y in problem.chunks(size):
            s.update(x, y)
        assert_same(s, p.masks, p.outputs)


def test_counts_beyond_16_bits_stay_exact() -> None:
    s = Statistics.empty(2, np.zeros(1))
    s.count, s.gram = (1 << 16) - 1, np.full((2, 2), (1 << 16) - 1, dtype=np.uint16)
    s.sum_x = np.full(2, float((1 << 16) - 1))
    s.update(np.ones((3, 2), bool), np.zeros((3, 1)))
    assert s.gram.dtype == np.uint32
    np.testing.assert_array_equal(s.gram, (1 << 16) + 2)


@pytest.mark.parametrize("dtype", [np.float64, np.float32])
def test_a_large_mean_with_a_small_spread_loses_nothing(dtype: type) -> None:
    """Mean 50 and deviation .002: the weights are those of the centred outputs."""
    from datamodels import LeastSquares, fit

    p = plant(400, 10, 2, noise=0.2, seed=1)
    outputs = (50 + 0.002 * p.outputs).astype(dtype)
    far = fit(masks=p.masks, outputs=outputs, estimator=LeastSquares(), progress=False)
    near = fit(masks=p.masks, outputs=outputs.astype(np.float64) - 50, estimator=LeastSquares(), progress=False)
    np.testing.assert_allclose(far.weights, near.weights, rtol=1e-6, atol=1e-10)
    x = np.column_stack([p.masks, np.ones(400)]).astype(float)
    exact = np.linalg.lstsq(x, outputs.astype(np.float64) - 50, rcond=None)[0]
    np.testing.assert_allclose(far.weights, exact[:-1], rtol=2e-5, atol=1e-8)
    np.testing.assert_allclose(far.bias, exact[-1] + 50, rtol=1e-9)


def test_saved_statistics_come_back(tmp_path: Path) -> None:
    p = plant(50, 6, 2)
    s = Statistics.of(Problem.build(masks=p.masks, outputs=p.outputs))
    s.save(tmp_path / "s.npz")
    assert_same(Statistics.load(tmp_path / "s.npz"), p.masks, p.outputs)
    with np.load(tmp_path / "s.npz") as content:
        np.savez(tmp_path / "new.npz", **{**content, "format_version": 9})
    with pytest.raises(NewerFormatError, match="version 9"):
        Statistics.load(tmp_path / "new.npz")


def test_statistics_that_do_not_fit_each_other_are_refused() -> None:
    a, b = Statistics.empty(3, np.zeros(2)), Statistics.empty(4, np.zeros(2))
    with pytest.raises(RequestError, match="do not combine"):
        _ = a + b
    c = Statistics.empty(3, np.zeros(2))
    c.update(np.ones((2, 3), bool), np.ones((2, 2)))
    with pytest.raises(RequestError, match="cannot take 2 rows away from 0"):
        _ = a - c


def test_a_rebased_copy_shares_nothing() -> None:
    p = plant(30, 6, 2)
    s = Statistics.of(Problem.build(masks=p.masks, outputs=p.outputs))
    s.rebased(s.shift + 1).update(p.masks, p.outputs)
    assert_same(s, p.masks, p.outputs)


def test_errors_from_statistics_are_those_of_the_rows() -> None:
    p = plant(80, 9, 3, noise=0.5)
    s = Statistics.of(Problem.build(masks=p.masks, outputs=p.outputs))
    w, b = np.random.default_rng(0).normal(size=(9, 3)), np.array([1.0, -2.0, 0.5])
    np.testing.assert_allclose(squared_error(s, w, b), ((p.outputs - p.masks @ w - b) ** 2).sum(0), rtol=1e-10)


@pytest.mark.parametrize("intercept", [True, False])
def test_standardised_problem_is_that_of_the_columns(intercept: bool) -> None:
    p = plant(90, 8, 2, noise=0.5)
    p.masks[:, 3] = True
    s = Standardised.of(Statistics.of(Problem.build(masks=p.masks, outputs=p.outputs)), intercept=intercept)
    scale = p.masks.std(axis=0)
    z = (p.masks - (p.masks.mean(axis=0) if intercept else 0)) / np.where(scale > 0, scale, np.inf)
    y = p.outputs - (p.outputs.mean(axis=0) if intercept else 0)
    np.testing.assert_allclose(s.gram, z.T @ z / 90, atol=1e-12)
    np.testing.assert_allclose(s.q, y.T @ z / 90, atol=1e-12)
    np.testing.assert_allclose(s.y_var, (y**2).mean(axis=0), rtol=1e-12)
    assert s.constant.tolist() == [j == 3 for j in range(8)]


@pytest.mark.parametrize(
    ("masks", "outputs", "message"),
    [
        (np.ones((5, 3)), np.ones((4, 2)), "must be"),
        (np.full((5, 3), 0.5), np.ones((5, 2)), "masks hold 0.5"),
        (np.full((5, 3), 2, np.uint8), np.ones((5, 2)), "masks hold 2"),
        (np.eye(5, dtype=bool), np.full((5, 2), np.nan), "row 0, target 0 is nan"),
        (np.eye(5, dtype=bool), np.array([["a"]] * 5), "must be real numbers"),
        (np.eye(5, dtype=bool)[:0], np.ones((0, 2)), "no completed rows"),
    ],
)
def test_rows_that_cannot_be_regressed_are_refused(masks: np.ndarray, outputs: np.ndarray, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        list(Problem.build(masks=masks, outputs=outputs).chunks())


@pytest.mark.parametrize("form", ["fortran", "big-endian", "strided", "uint8 masks", "float masks", "float16"])
def test_arrays_of_any_layout_are_read_right(form: str) -> None:
    p = plant(60, 6, 4, noise=0.1)
    x, y = p.masks, p.outputs
    if form == "fortran":
        x, y = np.asfortranarray(x), np.asfortranarray(y)
    elif form == "big-endian":
        y = y.astype(">f8")
    elif form == "strided":
        x, y = np.repeat(x, 2, axis=0)[::2], np.repeat(y, 3, axis=1)[:, ::3]
    elif form == "uint8 masks":
        x = x.astype(np.uint8)
    elif form == "float masks":
        x = x.astype(np.float32)
    else:
        y = y.astype(np.float16)
    s = Statistics.of(Problem.build(masks=x, outputs=y))
    assert_same(s, p.masks, y.astype(np.float64))


def test_rows_targets_and_shapes_are_selected() -> None:
    p = plant(60, 6, 6, noise=0.1)
    cube = p.outputs.reshape(60, 2, 3)
    problem = Problem.build(masks=p.masks, outputs=cube, rows=(10, 30), targets=[5, 0])
    x, y = problem.load()
    np.testing.assert_array_equal(x, p.masks[10:30])
    np.testing.assert_array_equal(y, p.outputs[10:30][:, [5, 0]])
    picked = problem.take(np.array([3, 19]))
    np.testing.assert_array_equal(picked.load()[0], p.masks[[13, 29]])
