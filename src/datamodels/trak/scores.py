"""From features to scores: TRAK's τ = [mean over checkpoints of Φ (ΦᵀΦ + λ I)⁻¹ φ] × [mean of Q] (Park et al. 2023, section 3),
and products of loss gradients as they are."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError

RIDGE_UNIT = "mean squared gradient of a checkpoint"

_ROWS = 4096
_TARGETS = 1024

Matrix = NDArray[np.float32]
Similarity = Literal["dot", "cosine"]


class Kernel:
    """ΦᵀΦ + λ I of the features (n, dim) of one checkpoint, factored in float64.

    Parameters
    ----------
    features
        Φ.
    ridge
        λ in units of the mean squared length of a row of Φ, which no projection changes.

    Attributes
    ----------
    added
        λ, what was added to the diagonal.
    nbytes
        Memory that it takes.
    """

    def __init__(self, features: Matrix, ridge: float) -> None:
        from scipy.linalg import LinAlgError, cho_factor

        dim = features.shape[1]
        gram = np.zeros((dim, dim))
        for start in range(0, len(features), _ROWS):
            block = features[start : start + _ROWS].astype(np.float64)
            with np.errstate(invalid="ignore"):
                gram += block.T @ block
        if not np.isfinite(gram).all():
            norms(features, np.ones(len(features)), "train example")  # says which
        self.added = ridge * float(np.trace(gram)) / len(features)
        gram[np.diag_indices(dim)] += self.added
        self.nbytes = gram.nbytes
        try:
            self._factor = cho_factor(gram, lower=True, overwrite_a=True)
            pivots = np.diag(self._factor[0])
            if pivots.min() ** 2 <= 4e-16 * dim * pivots.max() ** 2:
                raise LinAlgError
        except LinAlgError:
            raise RequestError(
                f"the kernel of {len(features)} examples in {dim} dimensions is singular with ridge {ridge:g}; "
                "give a larger one: 1 (default) is the mean squared length of a gradient"
            ) from None

    def solve(self, targets: Matrix) -> None:
        """Replace each row φ of (t, dim) by (ΦᵀΦ + λ I)⁻¹ φ.

        Raises
        ------
        RequestError
            when a row is not finite.
        """
        from scipy.linalg import cho_solve

        norms(targets, np.ones(len(targets)), "target")
        for start in range(0, len(targets), _TARGETS):
            block = targets[start : start + _TARGETS]
            block[:] = cho_solve(self._factor, block.T.astype(np.float64)).T

    def own_scores(self, features: Matrix) -> NDArray[np.float64]:
        """φᵀ (ΦᵀΦ + λ I)⁻¹ φ of each row of (n, dim), (n,)."""
        from scipy.linalg import solve_triangular

        found = np.empty(len(features))
        for start in range(0, len(features), _ROWS):
            block = features[start : start + _ROWS].T.astype(np.float64)
            found[start : start + _ROWS] = (solve_triangular(self._factor[0], block, lower=True) ** 2).sum(axis=0)
        return found


def norms(features: Matrix, weights: NDArray[np.floating], what: str) -> NDArray[np.float64]:
    """Length of each row of (n, dim), (n,).

    Raises
    ------
    RequestError
        when a row, or its Q in `weights` (n,), is not finite; `what` the rows are is for the message.
    """
    found = np.empty(len(features))
    for start in range(0, len(features), _ROWS):
        found[start : start + _ROWS] = np.linalg.norm(features[start : start + _ROWS].astype(np.float64), axis=1)
    with np.errstate(invalid="ignore"):
        refuse_infinite(found * weights, what)
    return found


def refuse_infinite(values: NDArray[np.floating], what: str) -> None:
    """Raise a RequestError when a value, of a train example or target each, is not finite."""
    bad = np.flatnonzero(~np.isfinite(values))
    if len(bad):
        raise RequestError(
            f"gradients of {len(bad)} of {len(values)} {what}s are not finite, the first of number {bad[0]}: the model's "
            "gradients overflow, or it, its input or its label has NaN"
        )


def loss_factors(features: Matrix, weights: NDArray[np.floating], kind: Similarity, what: str) -> NDArray[np.floating]:
    """Factor of each row of features (n, dim), (n,): Q makes it minus the loss gradient, for ``cosine`` of length 1 or 0."""
    length = norms(features, weights, what)
    if kind == "dot":
        return weights
    return np.divide(np.sign(weights), length, out=np.zeros(len(length)), where=length > np.finfo(np.float32).tiny)


def scale(targets: Matrix, factors: NDArray[np.floating]) -> None:
    """Multiply each row of (t, dim) by its factor, (t,)."""
    for start in range(0, len(targets), _ROWS):
        targets[start : start + _ROWS] *= factors[start : start + _ROWS, None].astype(np.float32)


def stream_scores(
    train: Sequence[Matrix], queries: Sequence[Matrix], factors: Sequence[NDArray[np.floating]], out: Matrix
) -> None:
    """Fill `out` (n, t) with Σ_c factors_c Φ_c query_cᵀ, block by block; each block is written once.

    Parameters
    ----------
    train, queries, factors
        Of each checkpoint: features (n, dim), what they multiply (t, dim), and a number per train example (n,).
    out
        An array or a memory map.
    """
    n, t = out.shape
    for first in range(0, t, _TARGETS):
        columns = slice(first, min(first + _TARGETS, t))
        for start in range(0, n, _ROWS):
            rows = slice(start, min(start + _ROWS, n))
            out[rows, columns] = sum(
                np.asarray(some[rows]) @ np.asarray(query[columns]).T * factor[rows, None].astype(np.float32)
                for some, query, factor in zip(train, queries, factors, strict=True)
            )
