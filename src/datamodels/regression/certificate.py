"""Duality gaps: how far a solution can be from the best one, whoever computed it."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


def relative_gap(
    gram: NDArray[Any],
    q: NDArray[np.float64],
    y_var: NDArray[np.float64],
    w: NDArray[np.float64],
    lam: ArrayLike,
    l1_ratio: float = 1.0,
) -> NDArray[np.float64]:
    """Duality gap of the standardised elastic net, divided by the null objective ``y_var / 2``.

    The objective is ``1/(2m) ‖y - Zw‖² + λ (ρ ‖w‖₁ + (1 - ρ)/2 ‖w‖²)``. Its quadratic part is
    absorbed into the loss, whose dual point is the residual scaled into the feasible box (Friedman,
    Hastie & Tibshirani 2010; Fercoq, Gramfort & Salmon 2015).

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

    Returns
    -------
    (n_targets,) relative gaps ≥ 0 up to rounding; 0 for constant targets.
    """
    lam = np.broadcast_to(np.asarray(lam, dtype=np.float64), y_var.shape)
    ridge = lam * (1 - l1_ratio)
    correlation = q - w @ gram.astype(np.float64) - ridge[:, None] * w
    fit = np.einsum("tn,tn->t", q, w)
    residual = y_var - fit - np.einsum("tn,tn->t", w, correlation)
    largest = np.abs(correlation).max(axis=1, initial=0.0)
    bound = np.divide(lam * l1_ratio, largest, out=np.full_like(largest, np.inf), where=largest > 0)
    best = np.divide(y_var - fit, residual, out=np.ones_like(residual), where=residual > 0)
    scaling = np.clip(best, -bound, bound)
    primal = residual / 2 + lam * l1_ratio * np.abs(w).sum(axis=1)
    dual = scaling * (y_var - fit) - scaling**2 * residual / 2
    null = y_var / 2
    return np.divide(primal - dual, null, out=np.zeros_like(null), where=null > 0)
