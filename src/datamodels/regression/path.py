"""The λ path of many targets: its grid, the choice of λ on held-out rows, and the solution on all rows.

Statistics are turned into what `coordinate.fit_target` takes, targets are spread over threads, and what
coordinate descent leaves above the tolerance is finished by the exact active-set solver.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.regression.active_set import finish
from datamodels.regression.certificate import gap_of
from datamodels.regression.coordinate import fit_target
from datamodels.regression.moments import Moments, correlations, covariances, default_tolerance
from datamodels.regression.solver_types import Counts, Fits, Found, Rules, Target
from datamodels.regression.split_statistics import SplitStatistics
from datamodels.regression.statistics import Statistics
from datamodels.threads import spread

_MAX_SWEEPS = 2_000
_MAX_PATH_SWEEPS = 100_000  # where every solution is certified, and none is finished exactly
_FINISH_ROUNDS = 50
BATCH = 64
_PATH_TOL = 1e-4
# The validation error has turned when λ is below this share of its best value, and the error has risen by
# so many of its standard errors: those of a difference between two predictions of the same rows.
_STOP_BELOW = 0.7
_STOP_ABOVE = 2.0
# It has turned as well when λ is below this share and the error above by one of its own standard errors, about √(2/rows)
# of it: with few held-out rows differences are large and their standard errors too.
_FAR_BELOW = 0.5
# A path with nonzeros for most of the rows nears interpolation, where each further λ costs most of all.
_SATURATED = 0.8


@dataclass(frozen=True, eq=False)
class PathFit:
    """Weights at the chosen λ, and what was tried.

    Attributes
    ----------
    weights, bias
        (n, n_targets) float32 and (n_targets,): the refit on all rows, in raw mask units.
    lam, gap, n_nonzero
        (n_targets,) the chosen λ, and the relative duality gap and the nonzeros of the refit.
    val_r2
        (n_targets,) R² on held-out rows at the chosen λ; NaN where the output does not vary there.
    n_constant
        (n_targets,) training examples that are in all fitted rows or in none.
    lams, errors, path_n_nonzero
        (n_targets, K) the path: λ, validation error (NaN where it was not walked), nonzeros (-1 there).
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float64]
    lam: NDArray[np.float64]
    gap: NDArray[np.float64]
    n_nonzero: NDArray[np.int64]
    val_r2: NDArray[np.float64]
    n_constant: NDArray[np.int64]
    lams: NDArray[np.float64]
    errors: NDArray[np.float64]
    path_n_nonzero: NDArray[np.int64]

    @classmethod
    def empty(cls, n_train: int, n_targets: int, n_lambdas: int) -> PathFit:
        """Room for the results of so many targets."""
        t, k = n_targets, n_lambdas
        return cls(
            np.zeros((n_train, t), dtype=np.float32), np.zeros(t), np.zeros(t), np.zeros(t), np.zeros(t, np.int64),
            np.zeros(t), np.zeros(t, np.int64), np.zeros((t, k)), np.full((t, k), np.nan), np.full((t, k), -1),
        )  # fmt: skip

    def put(self, position: int, found: Found, fits: Fits, target: Target, shift: float) -> None:
        """Record the result of one target."""
        self.weights[found.features, position] = found.raw
        self.bias[position] = shift + found.constant
        self.lam[position], self.gap[position] = target.lams[found.chosen], found.gap
        self.n_nonzero[position] = len(found.features)
        self.n_constant[position] = np.count_nonzero(fits.inverse_scale[-1] == 0)
        self.val_r2[position] = _r_squared(found.errors[found.chosen], fits, target)
        self.lams[position], self.errors[position] = target.lams, found.errors
        self.path_n_nonzero[position] = found.n_nonzero


def _r_squared(error: float, fits: Fits, target: Target) -> float:
    """1 - error / variance on the held-out rows of all splits; NaN where the output does not vary there."""
    rows = fits.held_rows.sum()
    squares = target.held_yty.sum() / rows
    variance = squares - (target.held_sum_y.sum() / rows) ** 2
    return 1 - error / variance if variance > 1e-12 * squares else np.nan


def lambda_max(
    total: Statistics, l1_ratio: float = 1.0, *, intercept: bool = True, penalty: NDArray[np.float64] | None = None
) -> NDArray[np.float64]:
    """The smallest λ at which every penalised weight is 0, per target, (n_targets,)."""
    moments = Moments.of(SplitStatistics.join([total]), intercept=intercept)
    return np.concatenate([_largest(moments, part, l1_ratio, penalty) for part in _batches(total.n_targets)])


def _largest(
    moments: Moments, part: slice, l1_ratio: float, penalty: NDArray[np.float64] | None
) -> NDArray[np.float64]:
    targets = moments.targets(part, np.zeros((part.stop - part.start, 1)), penalty)
    return np.array([lambda_max_of(moments.counts, moments.fits, target, l1_ratio) for target in targets])


def lambda_grid(largest: NDArray[np.float64], n_lambdas: int, eps: float) -> NDArray[np.float64]:
    """K values from `largest` down to eps times it, geometric, (n_targets, K)."""
    if n_lambdas == 1:
        return largest[:, None].copy()
    return largest[:, None] * np.geomspace(1.0, eps, n_lambdas)


def solve_path(
    total: Statistics,
    lams: NDArray[np.float64],
    *,
    l1_ratio: float = 1.0,
    tol: float | None = None,
    intercept: bool = True,
    penalty: NDArray[np.float64] | None = None,
    certify: bool = True,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Every solution of the path: lams (n_targets, K) descending -> standardised weights (n_targets, K, n) and
    relative gaps (n_targets, K).

    Each is certified on all features, or without ``certify`` only the last of each stretch that is walked in one
    working set, as `fit_path` does it; the others then have gap NaN.
    """
    found = _solve(total, lams, None, l1_ratio, tol, intercept, penalty, keep_path=True, certify=certify)
    return np.stack([one.path for one in found]), np.stack([one.path_gaps for one in found])


def solve_at(
    total: Statistics,
    lam: NDArray[np.float64],
    *,
    l1_ratio: float = 1.0,
    tol: float | None = None,
    intercept: bool = True,
    penalty: NDArray[np.float64] | None = None,
    start: NDArray[np.float64] | None = None,
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The solution of every target at its own λ (n_targets,), from `start` (n_targets, n) or down a short path:
    standardised weights (n_targets, n), gaps (n_targets,)."""
    lams = lam[:, None]
    if start is None:
        largest = np.maximum(lambda_max(total, l1_ratio, intercept=intercept, penalty=penalty), lam)
        share = np.divide(lam, largest, out=np.ones_like(lam), where=largest > 0)
        lams = largest[:, None] * share[:, None] ** np.linspace(0.1, 1.0, 10)
        lams[:, -1] = lam
    found = _solve(total, lams, start, l1_ratio, tol, intercept, penalty, keep_path=False)
    weights = np.zeros((len(lam), total.n_train))
    for k, one in enumerate(found):
        weights[k, one.features] = one.weights
    return weights, np.array([one.gap for one in found])


def _solve(
    total: Statistics,
    lams: NDArray[np.float64],
    start: NDArray[np.float64] | None,
    l1_ratio: float,
    tol: float | None,
    intercept: bool,
    penalty: NDArray[np.float64] | None,
    *,
    keep_path: bool,
    certify: bool = False,
) -> list[Found]:
    moments = Moments.of(SplitStatistics.join([total]), intercept=intercept)
    tol = default_tolerance(total.n_train) if tol is None else tol
    sweeps = _MAX_PATH_SWEEPS if keep_path else _MAX_SWEEPS
    rules = Rules(l1_ratio, _PATH_TOL, tol, sweeps, 0.0, 0.0, 0.0, 0.0, np.inf, keep_path, certify, not keep_path)
    start = np.zeros((total.n_targets, total.n_train)) if start is None else start
    out = []
    for part in _batches(total.n_targets):
        targets = moments.targets(part, lams[part], penalty)
        out += _solve_all(moments, targets, rules, start[part])
    return out


def fit_path(
    data: SplitStatistics,
    *,
    n_lambdas: int,
    eps: float,
    l1_ratio: float = 1.0,
    tol: float | None = None,
    intercept: bool = True,
    penalty: NDArray[np.float64] | None = None,
    progress: Callable[[int], None] | None = None,
) -> PathFit:
    """Choose λ per target on held-out rows, then refit on all rows.

    Parameters
    ----------
    data
        Statistics of the held-out rows of each split and of all others.
    penalty
        Penalty factors (n,) or (n, n_targets) ≥ 0; 0 is unpenalised, ∞ excluded.
    """
    moments = Moments.of(data, intercept=intercept)
    rules = path_rules(
        data.count - max(part.count for part in data.held_out),
        sum(part.count for part in data.held_out),
        l1_ratio,
        default_tolerance(data.n_train) if tol is None else tol,
    )
    result = PathFit.empty(data.n_train, data.n_targets, n_lambdas)
    for part in _batches(data.n_targets):
        lams = lambda_grid(_largest(moments, part, l1_ratio, penalty), n_lambdas, eps)
        targets = moments.targets(part, lams, penalty)
        found = _solve_all(moments, targets, rules, None, progress)
        for position, (one, target) in enumerate(zip(found, targets, strict=True), part.start):
            result.put(position, one, moments.fits, target, float(moments.shift[position]))
    return result


def path_rules(fitted_rows: int, held_rows: int, l1_ratio: float, tol: float) -> Rules:
    """The rules of a path that is fitted on so many rows, and ends when the error on so many others has turned."""
    saturated = _SATURATED * fitted_rows
    # The difference of squared errors is (change of the prediction) x 2 x residual, up to a square.
    far = 1 + np.sqrt(2 / held_rows)
    return Rules(
        l1_ratio, _PATH_TOL, tol, _MAX_SWEEPS, _STOP_BELOW, 2 * _STOP_ABOVE, _FAR_BELOW, far, saturated, False, False, True
    )  # fmt: skip


def _solve_all(
    moments: Moments,
    targets: list[Target],
    rules: Rules,
    start: NDArray[np.float64] | None,
    progress: Callable[[int], None] | None = None,
) -> list[Found]:
    return spread(
        lambda k: solve_one(moments.counts, moments.fits, targets[k], rules, None if start is None else start[k]),
        range(len(targets)),
        progress,
    )


def solve_one(
    counts: Counts, fits: Fits, target: Target, rules: Rules, start: NDArray[np.float64] | None = None
) -> Found:
    """`fit_target`, and an exact finish where it missed the tolerance."""
    found = fit_target(counts, fits, target, rules, np.zeros(len(target.penalty)) if start is None else start)
    if rules.refit and found.gap > rules.tol:
        return _finished(counts, fits, target, rules, found)
    return found


def lambda_max_of(counts: Counts, fits: Fits, target: Target, l1_ratio: float) -> float:
    """The smallest λ at which every penalised weight of a target is 0 in all of its fits."""
    p, splits, best = target.penalty, len(fits.rows) - 1, 0.0
    penalised = (p > 0) & np.isfinite(p)
    for fit in range(splits + 1):
        q = correlations(fits, fit, target)
        free = np.flatnonzero((p == 0) & (fits.inverse_scale[fit] > 0))
        if len(free):
            table = covariances(counts, 2 * splits if fit == splits else fit, fits, fit, free)
            q = q - table @ np.linalg.lstsq(table[free], q[free], rcond=None)[0]
        best = max(best, float((np.abs(q[penalised]) / p[penalised]).max(initial=0.0)))
    return best / l1_ratio


def _finished(counts: Counts, fits: Fits, target: Target, rules: Rules, found: Found) -> Found:
    """The exact solution on a growing set of features, until all are certified; or `found` when that is better."""
    whole, p = len(fits.rows) - 1, target.penalty
    lam, ratio, y_var = target.lams[found.chosen], rules.l1_ratio, target.y_var[[whole]]
    q = correlations(fits, whole, target)
    w = np.zeros(len(p))
    w[found.features] = found.weights
    gap = found.gap
    for _ in range(_FINISH_ROUNDS):
        support = np.flatnonzero(w)
        residual = q - covariances(counts, 2 * whole, fits, whole, support) @ w[support]
        gap = float(gap_of(residual[None], q[None], y_var, w[None], lam, ratio, p)[0])
        if gap <= rules.tol:
            break
        near = np.flatnonzero((w != 0) | (p == 0) | (np.abs(residual) > 0.9 * p * lam * ratio))
        near = near[fits.inverse_scale[whole, near] > 0]
        gram = covariances(counts, 2 * whole, fits, whole, near)[near]
        w[near] = finish(gram, q[near], w[near], lam, ratio, p[near])
    if gap >= found.gap:
        return found
    support = np.flatnonzero(w)
    raw = w[support] * fits.inverse_scale[whole, support]
    constant = float(target.y_mean[whole] - raw @ fits.centre[whole, support])
    return found._replace(features=support, weights=w[support], raw=raw, constant=constant, gap=max(gap, 0.0))


def _batches(count: int) -> list[slice]:
    """Small groups of targets, so that progress shows and an interrupt is heard."""
    return [slice(start, min(start + BATCH, count)) for start in range(0, count, BATCH)]
