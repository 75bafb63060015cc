"""Ridge and least squares from one eigendecomposition of the Gram matrix: all λ, all targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.regression.statistics import Standardised, Statistics, squared_error


@dataclass(frozen=True, eq=False)
class Spectrum:
    """ZᵀZ/m = V diag(values) Vᵀ, and u = Vᵀ Zᵀy/m of every target.

    Shapes: values (n,), vectors (n, n), u (n, n_targets).
    """

    problem: Standardised
    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    u: NDArray[np.float64]

    @classmethod
    def of(cls, statistics: Statistics, *, intercept: bool = True) -> Spectrum:
        """Decompose the standardised Gram matrix, in float64 at any size."""
        from scipy.linalg import eigh

        problem = Standardised.of(statistics, intercept=intercept, wide=True)
        values, vectors = eigh(problem.gram, check_finite=False)
        return cls(problem, np.maximum(values, 0.0), vectors, vectors.T @ problem.q.T)

    def ridge(self, lam: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Standardised ridge weights (n_targets, n) at one λ, or at one λ per target."""
        return (self.vectors @ (self.u / (self.values[:, None] + lam))).T

    def least_squares(self) -> NDArray[np.float64]:
        """The least-squares solution of smallest norm, (n_targets, n)."""
        cutoff = self.values.max(initial=0.0) * len(self.values) * np.finfo(np.float64).eps * 100
        inverse = np.divide(1.0, self.values, out=np.zeros_like(self.values), where=self.values > cutoff)
        return (self.vectors @ (self.u * inverse[:, None])).T

    def gcv(self, lams: NDArray[np.float64], count: int) -> NDArray[np.float64]:
        """Generalised cross-validation score (K, n_targets): Golub, Heath & Wahba 1979, with the
        intercept counted among the degrees of freedom."""
        scores = np.empty((len(lams), self.u.shape[1]))
        for i, lam in enumerate(lams):
            shrink = 1.0 / (self.values + lam)
            explained = ((2 * shrink - self.values * shrink**2)[:, None] * self.u**2).sum(axis=0)
            freedom = (self.values * shrink).sum() + self.problem.intercept
            scores[i] = np.maximum(self.problem.y_var - explained, 0.0) / (1 - freedom / count) ** 2
        return scores


def ridge_grid(spectrum: Spectrum, n_lambdas: int) -> NDArray[np.float64]:
    """λ geometric over [1e-4, 10] times the largest eigenvalue of ZᵀZ/m, descending, (K,)."""
    largest = float(spectrum.values.max(initial=0.0)) or 1.0
    return np.geomspace(10.0, 1e-4, n_lambdas) * largest


def held_out_errors(
    total: Statistics, held_out: Sequence[Statistics], lams: NDArray[np.float64], *, intercept: bool
) -> NDArray[np.float64]:
    """Mean squared held-out error of ridge at every λ, (K, n_targets), over all splits."""
    errors = np.zeros((len(lams), total.n_targets))
    for part in held_out:
        spectrum = Spectrum.of(total - part, intercept=intercept)
        for i, lam in enumerate(lams):
            weights, bias = spectrum.problem.to_raw(spectrum.ridge(lam))
            errors[i] += squared_error(part, weights, bias)
    return errors / sum(part.count for part in held_out)
