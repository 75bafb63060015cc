"""What the compiled solver takes and gives: plain tuples of arrays.

Letters: n features (training examples), S splits, F = S + 1 fits (one per split on the rows that it does not hold
out, then the whole), K values of λ.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray


class Counts(NamedTuple):
    """Where counts come from: matrices, or the rows themselves as bit-packed columns.

    Parts are numbered: 0 .. S-1 the rows fitted by each split, S .. 2S-1 those it holds out, 2S all.

    Attributes
    ----------
    matrices
        (1 + S, n, n) as in `SplitStatistics.counts`; (0, 0, 0) when there are columns.
    folds
        Whether the first matrix counts all rows (and a split fits those without its own), and not only
        those that no split holds out.
    columns
        (n, words) uint64 bits of all rows; (0, 0) when there are matrices.
    keep
        (2S + 1, words) the rows of each part.
    """

    matrices: NDArray[np.unsignedinteger]
    folds: bool
    columns: NDArray[np.uint64]
    keep: NDArray[np.uint64]


class Fits(NamedTuple):
    """What a target's fits share with those of other targets. F = S + 1, the whole last.

    rows (F,); centre (F, n) of the columns, the mean or 0 without intercept; inverse_scale (F, n);
    held_rows (S,); held_sum_x (S, n) counts on the held-out rows.
    """

    rows: NDArray[np.float64]
    centre: NDArray[np.float64]
    inverse_scale: NDArray[np.float64]
    held_rows: NDArray[np.float64]
    held_sum_x: NDArray[np.float64]


class Target(NamedTuple):
    """One target: xty (F, n), y_mean and y_var (F,) per fit; xty (S, n), sum and sum of squares (S,) on held-out
    rows; its λ (K,) descending, and its penalty factors (n,)."""

    xty: NDArray[np.float64]
    y_mean: NDArray[np.float64]
    y_var: NDArray[np.float64]
    held_xty: NDArray[np.float64]
    held_sum_y: NDArray[np.float64]
    held_yty: NDArray[np.float64]
    lams: NDArray[np.float64]
    penalty: NDArray[np.float64]


class Rules(NamedTuple):
    """``l1_ratio`` ρ; tolerances of the path and of the result; sweeps per λ; when the path ends (see `path`); whether
    every solution of the path is kept, and each certified; whether the result is refitted on all rows."""

    l1_ratio: float
    path_tol: float
    tol: float
    max_sweeps: int
    stop_below: float
    stop_above: float
    far_below: float
    far_above: float
    saturated: float
    keep_path: bool
    certify_path: bool
    refit: bool


class Found(NamedTuple):
    """errors (K,), the mean squared held-out error, NaN where the path was not walked, and n_nonzero (K,), -1
    there; index of the chosen λ; the result as features (k,), standardised weights (k,) and raw weights
    (k,), the constant b relative to the shift of the outputs, and its relative gap on all features; the
    path (K, n) in standardised weights and its gaps (K,), NaN where not certified, when asked for."""

    errors: NDArray[np.float64]
    n_nonzero: NDArray[np.int64]
    chosen: int
    features: NDArray[np.int64]
    weights: NDArray[np.float64]
    raw: NDArray[np.float64]
    constant: float
    gap: float
    path: NDArray[np.float64]
    path_gaps: NDArray[np.float64]
