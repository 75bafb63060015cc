"""Duality gaps: how far a solution can be from the best one, whoever computed it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

UNSETTLED = 1e-10  # of ‖y‖²/m: how far unpenalised columns may be from their optimum for a gap to be known


def relative_gap(
    gram: NDArray[Any],
    q: NDArray[np.float64],
    y_var: NDArray[np.float64],
    w: NDArray[np.float64],
    lam: ArrayLike,
    l1_ratio: float = 1.0,
    penalty: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """Duality gap of the standardised elastic net, divided by the null objective ``y_var / 2``.

    The objective is ``1/(2m) ‖y - Zw‖² + λ Σ p_j (ρ |w_j| + (1 - ρ)/2 w_j²)``; see `gap_of`.

    Parameters
    ----------
    gram
        (n, n) ZᵀZ / m.
    q
        (n_targets, n) Zᵀy / m for centred y.
    y_var
        (n_targets,) ‖y‖² / m.
    w
        (n_targets, n) standardised weights.
    lam
        (n_targets,) λ, or one number.
    penalty
        Penalty factors p, (n,) or (n_targets, n); 1 when not given.

    Returns
    -------
    (n_targets,) relative gaps ≥ 0 up to rounding; 0 for constant targets.
    """
    return gap_of(q - w @ gram.astype(np.float64), q, y_var, w, lam, l1_ratio, penalty)


def gap_of(
    correlation: NDArray[np.float64],
    q: NDArray[np.float64],
    y_var: NDArray[np.float64],
    w: NDArray[np.float64],
    lam: ArrayLike,
    l1_ratio: float = 1.0,
    penalty: NDArray[np.float64] | None = None,
) -> NDArray[np.float64]:
    """`relative_gap` from the correlation Zᵀ(y - Zw)/m of every column with the residual, (n_targets, n).

    The quadratic part of the penalty is absorbed into the loss, whose dual point is the residual scaled
    into the feasible box (Friedman, Hastie & Tibshirani 2010; Fercoq, Gramfort & Salmon 2015). Columns with
    p = 0 must have correlation 0 up to rounding, which their own optimality says (else the gap is ∞, not known); with
    p = ∞ they do not count.
    """
    lam = np.broadcast_to(np.asarray(lam, dtype=np.float64), y_var.shape)
    p = np.ones_like(q) if penalty is None else np.broadcast_to(penalty, q.shape)
    taken = np.isfinite(p)
    ridge = lam[:, None] * (1 - l1_ratio) * np.where(taken, p, 0.0)
    slope = correlation - ridge * w
    fit = np.einsum("tn,tn->t", q, w)
    residual = y_var - fit - np.einsum("tn,tn->t", w, slope)
    scaled = np.divide(np.abs(slope), p, out=np.zeros_like(q), where=taken & (p > 0))
    largest = scaled.max(axis=1, initial=0.0)
    bound = np.divide(lam * l1_ratio, largest, out=np.full_like(largest, np.inf), where=largest > 0)
    best = np.divide(y_var - fit, residual, out=np.ones_like(residual), where=residual > 0)
    scaling = np.clip(best, -bound, bound)
    primal = residual / 2 + lam * l1_ratio * (np.where(taken, p, 0.0) * np.abs(w)).sum(axis=1)
    dual = scaling * (y_var - fit) - scaling**2 * residual / 2
    null = y_var / 2
    gap = np.divide(primal - dual, null, out=np.zeros_like(null), where=null > 0)
    unsettled = np.where(p == 0, np.abs(correlation) * (np.abs(w) + np.abs(correlation)), 0.0).sum(axis=1)
    return np.where(unsettled > UNSETTLED * y_var, np.inf, gap)
