"""Model outputs that datamodels are fitted to."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.errors import RequestError


def _split(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The logit of the correct class (..., k), and all logits with that one at -inf (..., k, classes)."""
    scores = np.array(logits, dtype=np.float64)
    y = np.asarray(labels)
    if scores.ndim < 2 or y.shape != scores.shape[-2:-1] or y.dtype.kind not in "iu":
        raise RequestError(
            f"logits have shape {scores.shape} and labels {y.shape} of {y.dtype}; they must be (..., k, classes) and integers (k,)"
        )
    if scores.shape[-1] < 2:
        raise RequestError("a margin compares classes: there must be at least two")
    if len(y) and not 0 <= y.min() <= y.max() < scores.shape[-1]:
        raise RequestError(f"labels lie in {y.min()}..{y.max()}; there are {scores.shape[-1]} classes")
    index = np.broadcast_to(y, scores.shape[:-1])[..., None]
    correct = np.take_along_axis(scores, index, -1)[..., 0]
    np.put_along_axis(scores, index, -np.inf, -1)
    return correct, scores


def margins(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Correct-class margin: the logit of the label minus the largest other logit.

    Parameters
    ----------
    logits
        (..., k, classes).
    labels
        (k,) integers.

    Returns
    -------
    (..., k), positive where the prediction is right.
    """
    correct, others = _split(logits, labels)
    return correct - others.max(axis=-1)


def log_odds_margins(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Log-odds margin ``log(p / (1 - p))`` of the label's probability p: what TRAK differentiates.

    Shapes as in `margins`; the two agree for two classes.
    """
    correct, others = _split(logits, labels)
    largest = others.max(axis=-1, keepdims=True)
    return correct - (largest[..., 0] + np.log(np.exp(others - largest).sum(axis=-1)))


def margins_from_proba(proba: ArrayLike, labels: ArrayLike, *, eps: float = 1e-6) -> NDArray[np.float64]:
    """Correct-class margin ``log p_label - max log p_other`` from ``predict_proba`` (..., k, classes).

    Probabilities are clipped to [eps, 1] first, so margins lie within ± log(1/eps).
    """
    return margins(np.log(np.clip(np.asarray(proba, dtype=np.float64), eps, 1.0)), labels)
