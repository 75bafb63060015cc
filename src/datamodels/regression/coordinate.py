"""Compiled coordinate descent on the Gram matrix, targets in parallel.

Every kernel works on one target at a time and touches nothing shared, so the answer does not depend
on the number of threads. `reference.elastic_net` is the oracle.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray

_SWEEPS_PER_CHECK = 5


@njit(cache=True)
def _gap(q, y_var, w, r, lam, l1_ratio):  # type: ignore[no-untyped-def]
    """Duality gap in objective units, see `certificate.relative_gap`; r = q - gram @ w."""
    ridge = lam * (1.0 - l1_ratio)
    fit = 0.0
    inner = 0.0
    l1 = 0.0
    largest = 0.0
    for j in range(len(w)):
        c = r[j] - ridge * w[j]
        largest = max(largest, abs(c))
        if w[j] != 0.0:
            fit += q[j] * w[j]
            inner += w[j] * c
            l1 += abs(w[j])
    residual = y_var - fit - inner
    scaling = 1.0
    if residual > 0.0:
        scaling = (y_var - fit) / residual
    if largest > 0.0:
        bound = lam * l1_ratio / largest
        scaling = min(max(scaling, -bound), bound)
    primal = 0.5 * residual + lam * l1_ratio * l1
    return primal - (scaling * (y_var - fit) - 0.5 * scaling * scaling * residual)


@njit(cache=True)
def _solve(gram, diagonal, q, y_var, lam, l1_ratio, tol, max_sweeps, w, r):  # type: ignore[no-untyped-def]
    """Solve one target at one λ from the point (w, r = q - gram @ w), in place; returns its relative gap."""
    n = len(w)
    threshold = lam * l1_ratio
    ridge = lam * (1.0 - l1_ratio)
    active = np.empty(n, dtype=np.int64)
    null = 0.5 * y_var
    if null <= 0.0:
        return 0.0
    sweeps = 0
    while True:
        gap = _gap(q, y_var, w, r, lam, l1_ratio)
        if gap <= tol * null or sweeps >= max_sweeps:
            return max(gap, 0.0) / null
        count = 0
        for j in range(n):
            if w[j] != 0.0 or abs(r[j]) > threshold:
                active[count] = j
                count += 1
        for _ in range(_SWEEPS_PER_CHECK):
            moved = 0.0
            for a in range(count):
                j = active[a]
                old = w[j]
                u = r[j] + diagonal[j] * old
                new = 0.0
                if u > threshold:
                    new = (u - threshold) / (diagonal[j] + ridge)
                elif u < -threshold:
                    new = (u + threshold) / (diagonal[j] + ridge)
                if new != old:
                    step = new - old
                    w[j] = new
                    row = gram[j]
                    for i in range(n):
                        r[i] -= row[i] * step
                    moved = max(moved, diagonal[j] * step * step)
            sweeps += 1
            if moved <= 1e-4 * tol * y_var:
                break
        if moved <= 1e-30 * y_var:  # a fixed point to rounding: more sweeps cannot close the gap
            gap = _gap(q, y_var, w, r, lam, l1_ratio)
            changed = False
            for j in range(n):
                if w[j] == 0.0 and abs(r[j]) > threshold * (1.0 + 1e-12):
                    changed = True
            if not changed:
                return max(gap, 0.0) / null


@njit(cache=True, parallel=True)
def solve_targets(gram, diagonal, q, y_var, lam, l1_ratio, tol, max_sweeps, start):  # type: ignore[no-untyped-def]
    """Solve every target at its own λ.

    Shapes: gram (n, n), diagonal (n,), q and start (t, n), y_var and lam (t,). Returns w (t, n) and
    relative gaps (t,).
    """
    t, n = q.shape
    weights = np.empty((t, n))
    gaps = np.empty(t)
    for k in prange(t):
        w = start[k].copy()
        r = q[k].copy()
        for j in range(n):
            if w[j] != 0.0:
                for i in range(n):
                    r[i] -= gram[j, i] * w[j]
        gaps[k] = _solve(gram, diagonal, q[k], y_var[k], lam[k], l1_ratio, tol, max_sweeps, w, r)
        weights[k] = w
    return weights, gaps


@njit(cache=True, parallel=True)
def solve_path(gram, diagonal, q, y_var, lams, l1_ratio, tol, max_sweeps):  # type: ignore[no-untyped-def]
    """The whole path of every target: lams (t, K) -> w (t, K, n) and relative gaps (t, K)."""
    t, n = q.shape
    k_lams = lams.shape[1]
    weights = np.empty((t, k_lams, n))
    gaps = np.empty((t, k_lams))
    for k in prange(t):
        w = np.zeros(n)
        r = q[k].copy()
        for i in range(k_lams):
            gaps[k, i] = _solve(gram, diagonal, q[k], y_var[k], lams[k, i], l1_ratio, tol, max_sweeps, w, r)
            weights[k, i] = w
    return weights, gaps


@njit(cache=True)
def _validation_error(w, inverse_scale, mean, y_mean, gram, sum_x, xty, count, sum_y, yty, intercept):  # type: ignore[no-untyped-def]
    """Σ (y - prediction)² over the validation rows, from their statistics; outputs relative to the shift."""
    n = len(w)
    support = np.empty(n, dtype=np.int64)
    raw = np.empty(n)
    size = 0
    bias = y_mean
    for j in range(n):
        if w[j] != 0.0:
            support[size] = j
            raw[size] = w[j] * inverse_scale[j]
            if intercept:
                bias -= raw[size] * mean[j]
            size += 1
    cross = 0.0
    reach = 0.0
    quadratic = 0.0
    for a in range(size):
        j = support[a]
        cross += raw[a] * xty[j]
        reach += raw[a] * sum_x[j]
        row = gram[j]
        inner = 0.0
        for b in range(a):
            inner += row[support[b]] * raw[b]
        quadratic += raw[a] * (2.0 * inner + row[j] * raw[a])
    return yty - 2.0 * bias * sum_y - 2.0 * cross + count * bias * bias + 2.0 * bias * reach + quadratic


@njit(cache=True, parallel=True)
def select_path(  # type: ignore[no-untyped-def]
    gram, diagonal, q, y_var, inverse_scale, mean, y_mean, intercept,
    val_gram, val_sum_x, val_xty, val_count, val_sum_y, val_yty,
    lams, l1_ratio, tol, max_sweeps, stop_below, stop_above, saturated,
):  # fmt: skip
    """Walk the path of every target on all splits in step until the validation error has turned.

    The first axis of all arrays up to ``val_yty`` is the split (one for a hold-out, K for K folds):
    gram and val_gram (s, n, n); diagonal, inverse_scale, mean, val_sum_x (s, n); q and val_xty
    (s, t, n); y_var, y_mean, val_sum_y, val_yty (s, t); val_count (s,); lams (t, K).

    The path ends where λ is below ``stop_below`` times the λ of the least error, and either the error is
    above ``stop_above`` times the least or more than ``saturated`` weights are not 0.

    Returns errors (t, K), the mean squared validation error, NaN where the path was not walked;
    n_nonzero (t, K), -1 there; the chosen index (t,); the weights of the first split there (t, n).
    """
    splits, t, n = q.shape
    k_lams = lams.shape[1]
    errors = np.full((t, k_lams), np.nan)
    n_nonzero = np.full((t, k_lams), -1)
    chosen = np.zeros(t, dtype=np.int64)
    weights = np.zeros((t, n))
    total = val_count.sum()
    for k in prange(t):
        w = np.zeros((splits, n))
        r = q[:, k].copy()
        best = np.inf
        for i in range(k_lams):
            sse = 0.0
            for s in range(splits):
                _solve(
                    gram[s],
                    diagonal[s],
                    q[s, k],
                    y_var[s, k],
                    lams[k, i],
                    l1_ratio,
                    tol,
                    max_sweeps,
                    w[s],
                    r[s],
                )
                sse += _validation_error(
                    w[s], inverse_scale[s], mean[s], y_mean[s, k], val_gram[s], val_sum_x[s], val_xty[s, k],
                    val_count[s], val_sum_y[s, k], val_yty[s, k], intercept,
                )  # fmt: skip
            errors[k, i] = sse / total
            n_nonzero[k, i] = np.count_nonzero(w[0])
            if errors[k, i] < best:
                best = errors[k, i]
                chosen[k] = i
                weights[k] = w[0]
            elif lams[k, i] < stop_below * lams[k, chosen[k]] and (
                errors[k, i] > stop_above * best or n_nonzero[k, i] > saturated
            ):
                break
    return errors, n_nonzero, chosen, weights


def diagonal_of(gram: NDArray[Any]) -> NDArray[np.float64]:
    """The diagonal, with 1 in place of 0 so that constant columns divide harmlessly."""
    diagonal = np.array(np.diagonal(gram), dtype=np.float64)
    diagonal[diagonal == 0] = 1.0
    return diagonal
