"""Spearman correlations of many targets under many resamplings of the rows, compiled."""

from __future__ import annotations

import numpy as np
from numba import njit, prange
from numpy.typing import NDArray


@njit(cache=True)
def _midranks(order, last, size, counts, ranks):  # type: ignore[no-untyped-def]
    """Midranks of rows that stand `counts` times each; ties are groups that end at `last`."""
    before = 0.0
    start = 0
    while start < size:
        stop = last[start] + 1
        here = 0.0
        for i in range(start, stop):
            here += counts[order[i]]
        rank = before + 0.5 * (here + 1.0)
        for i in range(start, stop):
            ranks[order[i]] = rank
        before += here
        start = stop


@njit(cache=True, parallel=True)
def _spearman(order_a, last_a, order_b, last_b, sizes, counts):  # type: ignore[no-untyped-def]
    targets, rows = order_a.shape
    draws = counts.shape[0]
    out = np.empty((draws, targets))
    for k in prange(targets):
        a = np.zeros(rows)
        b = np.zeros(rows)
        size = sizes[k]
        for d in range(draws):
            _midranks(order_a[k], last_a[k], size, counts[d], a)
            _midranks(order_b[k], last_b[k], size, counts[d], b)
            n = 0.0
            mean_a = 0.0
            mean_b = 0.0
            for i in range(size):
                row = order_a[k, i]
                c = counts[d, row]
                n += c
                mean_a += c * a[row]
                mean_b += c * b[row]
            if n > 0.0:
                mean_a /= n
                mean_b /= n
            aa = 0.0
            bb = 0.0
            ab = 0.0
            for i in range(size):
                row = order_a[k, i]
                c = counts[d, row]
                da = a[row] - mean_a
                db = b[row] - mean_b
                aa += c * da * da
                bb += c * db * db
                ab += c * da * db
            if aa <= 0.0:
                out[d, k] = np.nan
            elif bb <= 0.0:
                out[d, k] = 0.0
            else:
                out[d, k] = ab / np.sqrt(aa * bb)
    return out


def _sorted(values: NDArray[np.float64], valid: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Per target the valid rows in ascending order, and for each position the last one tied with it."""
    rows, targets = values.shape
    order = np.zeros((targets, rows), dtype=np.int64)
    last = np.zeros((targets, rows), dtype=np.int64)
    for k in range(targets):
        members = np.flatnonzero(valid[:, k])
        size = len(members)
        mine = members[np.argsort(values[members, k], kind="stable")]
        ends = np.flatnonzero(np.append(np.diff(values[mine, k]) != 0, True)) if size else np.empty(0, np.int64)
        order[k, :size] = mine
        last[k, :size] = np.repeat(ends, np.diff(ends, prepend=-1))
    return order, last


def resampled_spearman(
    truth: NDArray[np.float64],
    prediction: NDArray[np.float64],
    counts: NDArray[np.float64],
    valid: NDArray[np.bool_] | None = None,
) -> NDArray[np.float64]:
    """Spearman correlation per resampling and target, ties at midranks.

    Parameters
    ----------
    truth, prediction
        (m, n_targets).
    counts
        (draws, m) how often each row stands in each resampling; a row of ones is the plain correlation.
    valid
        (m, n_targets) rows that count for a target; all of them by default.

    Returns
    -------
    (draws, n_targets): NaN where the truth is constant, 0 where only the prediction is: a prediction
    without an opinion ranks nothing.
    """
    valid = np.ones(truth.shape, dtype=np.bool_) if valid is None else valid
    order_a, last_a = _sorted(truth, valid)
    order_b, last_b = _sorted(prediction, valid)
    return _spearman(
        order_a, last_a, order_b, last_b, valid.sum(axis=0), np.ascontiguousarray(counts, dtype=np.float64)
    )


def unit_counts(units: NDArray[np.int64], draws: int, seed: int) -> NDArray[np.float64]:
    """A row of ones, then `draws` bootstrap resamplings of whole units, as counts per row (1 + draws, m)."""
    codes = np.unique(units, return_inverse=True)[1]
    n = int(codes.max()) + 1
    drawn = np.random.default_rng(seed).multinomial(n, np.full(n, 1.0 / n), size=draws)
    return np.vstack([np.ones(len(units)), drawn[:, codes]]).astype(np.float64)
