"""The λ path: its grid, the choice of λ on held-out rows, and the refit at the chosen λ."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.regression import coordinate
from datamodels.regression.active_set import finish
from datamodels.regression.certificate import relative_gap
from datamodels.regression.statistics import Standardised, Statistics

_MAX_SWEEPS = 2_000
_MAX_PATH_SWEEPS = 100_000
_BATCH = 64
_PATH_TOL = 1e-4
# The validation error has turned when λ is below this share of its best value, and the error above its
# least by this share of the error's own standard error, which is about √(2/rows) of it.
_STOP_BELOW = 0.5
_STOP_ABOVE = 1.0
# A path with nonzeros for most of the rows nears interpolation, where each further λ costs most of all.
_SATURATED = 0.8


@dataclass(frozen=True, eq=False)
class PathFit:
    """Weights at the chosen λ, and what was tried.

    Attributes
    ----------
    w
        (n_targets, n) standardised weights of the refit on all rows.
    lam, gap
        (n_targets,) the chosen λ and the relative duality gap of the refit.
    val_error
        (n_targets,) mean squared error on held-out rows at the chosen λ.
    lams, errors, n_nonzero
        (n_targets, K) the path: λ, validation error (NaN where it was not walked), nonzeros (-1 there).
    """

    w: NDArray[np.float64]
    lam: NDArray[np.float64]
    gap: NDArray[np.float64]
    val_error: NDArray[np.float64]
    lams: NDArray[np.float64]
    errors: NDArray[np.float64]
    n_nonzero: NDArray[np.int64]


def lambda_max(problem: Standardised, l1_ratio: float = 1.0) -> NDArray[np.float64]:
    """The smallest λ at which every weight is 0, per target, (n_targets,)."""
    return np.abs(problem.q).max(axis=1, initial=0.0) / l1_ratio


def lambda_grid(largest: NDArray[np.float64], n_lambdas: int, eps: float) -> NDArray[np.float64]:
    """K values from `largest` down to eps times it, geometric, (n_targets, K)."""
    if n_lambdas == 1:
        return largest[:, None].copy()
    return largest[:, None] * np.geomspace(1.0, eps, n_lambdas)


def default_tolerance(problem: Standardised) -> float:
    """1e-8 where the Gram matrix is float64, 1e-5 where it is float32."""
    return 1e-8 if problem.gram.dtype == np.float64 else 1e-5


def solve_path(
    problem: Standardised, lams: NDArray[np.float64], *, l1_ratio: float = 1.0, tol: float | None = None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every solution of the path: lams (n_targets, K) descending -> standardised weights
    (n_targets, K, n) and relative gaps (n_targets, K)."""
    tol = default_tolerance(problem) if tol is None else tol
    return coordinate.solve_path(
        problem.gram, coordinate.diagonal_of(problem.gram), problem.q, problem.y_var,
        np.ascontiguousarray(lams), l1_ratio, tol, _MAX_PATH_SWEEPS,
    )  # fmt: skip


def solve_at(
    problem: Standardised,
    lam: NDArray[np.float64],
    *,
    l1_ratio: float = 1.0,
    tol: float | None = None,
    start: NDArray[np.float64] | None = None,
    progress: Callable[[int], None] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The solution of every target at its own λ (n_targets,) -> weights (n_targets, n), gaps (n_targets,)."""
    tol = default_tolerance(problem) if tol is None else tol
    diagonal = coordinate.diagonal_of(problem.gram)
    start = np.zeros_like(problem.q) if start is None else start
    weights, gaps = np.empty_like(problem.q), np.empty(len(lam))
    for part in _batches(len(lam)):
        weights[part], gaps[part] = coordinate.solve_targets(
            problem.gram, diagonal, problem.q[part], problem.y_var[part], lam[part], l1_ratio, tol, _MAX_SWEEPS,
            start[part],
        )  # fmt: skip
        if progress:
            progress(len(gaps[part]))
    for k in np.flatnonzero(gaps > tol).tolist():
        exact = finish(problem.gram, problem.q[k], weights[k], lam[k], l1_ratio)[None]
        gap = relative_gap(problem.gram, problem.q[[k]], problem.y_var[[k]], exact, lam[k], l1_ratio)[0]
        if gap < gaps[k]:
            weights[k], gaps[k] = exact[0], max(gap, 0.0)
    return weights, gaps


def fit_path(
    total: Statistics,
    held_out: Sequence[Statistics],
    *,
    n_lambdas: int,
    eps: float,
    l1_ratio: float = 1.0,
    tol: float | None = None,
    intercept: bool = True,
    progress: Callable[[int], None] | None = None,
) -> PathFit:
    """Choose λ per target on held-out rows, then refit on all rows.

    Parameters
    ----------
    total
        Statistics of all rows.
    held_out
        Statistics of the held-out rows of each split; each is fitted on ``total`` minus them.
    """
    whole = Standardised.of(total, intercept=intercept)
    held_out = [part if np.array_equal(part.shift, total.shift) else part.rebased(total.shift) for part in held_out]
    fits = [Standardised.of(total - part, intercept=intercept) for part in held_out]
    # All rows count too: a target may be constant outside of the held-out rows, and its λ_max there 0.
    largest = np.max([lambda_max(fit, l1_ratio) for fit in [*fits, whole]], axis=0)
    lams = lambda_grid(largest, n_lambdas, eps)
    rows = total.count - max(part.count for part in held_out)
    errors, n_nonzero, chosen, start = _select(fits, held_out, lams, rows, l1_ratio, intercept, progress)
    lam = lams[np.arange(len(lams)), chosen]
    w, gap = solve_at(whole, lam, l1_ratio=l1_ratio, tol=tol, start=start * (whole.scale > 0), progress=progress)
    return PathFit(w, lam, gap, errors[np.arange(len(lams)), chosen], lams, errors, n_nonzero)


def _select(
    fits: list[Standardised],
    held_out: Sequence[Statistics],
    lams: NDArray[np.float64],
    rows: int,
    l1_ratio: float,
    intercept: bool,
    progress: Callable[[int], None] | None,
) -> tuple[Any, Any, Any, Any]:
    """`coordinate.select_path` for all targets, a batch at a time; `rows` are those of a fit."""
    shared = [
        _stack([fit.gram for fit in fits]),
        np.stack([coordinate.diagonal_of(fit.gram) for fit in fits]),
        np.stack([fit.inverse_scale for fit in fits]),
        np.stack([fit.mean for fit in fits]),
        _stack([part.gram for part in held_out]),
        np.stack([part.sum_x for part in held_out]),
        np.array([float(part.count) for part in held_out]),
    ]
    gram, diagonal, inverse_scale, mean, val_gram, val_sum_x, val_count = shared
    # Without intercept the model has no constant, which is -shift relative to the shifted outputs.
    y_mean = [fit.y_mean if intercept else -fit.shift for fit in fits]
    results = []
    for part in _batches(len(lams)):
        found = coordinate.select_path(
            gram, diagonal, np.stack([fit.q[part] for fit in fits]), np.stack([fit.y_var[part] for fit in fits]),
            inverse_scale, mean, np.stack([y[part] for y in y_mean]), intercept,
            val_gram, val_sum_x, np.stack([np.ascontiguousarray(s.xty[:, part].T) for s in held_out]), val_count,
            np.stack([s.sum_y[part] for s in held_out]), np.stack([s.yty[part] for s in held_out]),
            np.ascontiguousarray(lams[part]), l1_ratio, _PATH_TOL, _MAX_SWEEPS,
            _STOP_BELOW, 1 + _STOP_ABOVE * np.sqrt(2 / val_count.sum()), _SATURATED * rows,
        )  # fmt: skip
        results.append(found)
        if progress:
            progress(len(found[0]))
    columns = zip(*results, strict=True)
    errors, n_nonzero, chosen, start = (np.concatenate(column) for column in columns)
    return errors, n_nonzero, chosen, start


def _stack(arrays: list[NDArray[Any]]) -> NDArray[Any]:
    """Stack along a new first axis, without a copy of a single array."""
    return arrays[0][None] if len(arrays) == 1 else np.stack(arrays)


def _batches(count: int) -> list[slice]:
    """Small groups of targets, so that progress shows and an interrupt is heard."""
    return [slice(start, start + _BATCH) for start in range(0, count, _BATCH)]
