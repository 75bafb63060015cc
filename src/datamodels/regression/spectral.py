"""Ridge and least squares from one eigendecomposition of the Gram matrix: all λ, all targets."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from datamodels.regression.solution import Solution
from datamodels.regression.split_statistics import SplitStatistics, Standardised, squared_error
from datamodels.regression.statistics import Statistics


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

    def to_raw(self, w: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standardised weights w (n_targets, n) as raw (n, n_targets) and bias (n_targets,)."""
        return self.problem.to_raw(w)

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
    return ridge_lambdas(float(spectrum.values.max(initial=0.0)), n_lambdas)


def ridge_lambdas(largest: float, n_lambdas: int) -> NDArray[np.float64]:
    """λ geometric over [1e-4, 10] times the largest eigenvalue of ZᵀZ/m, descending, (K,)."""
    return np.geomspace(10.0, 1e-4, n_lambdas) * (largest or 1.0)


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


def ridge_of_statistics(data: SplitStatistics, n_lambdas: int, *, intercept: bool) -> Solution:
    """Ridge of all targets from one decomposition: λ by error on the held-out rows, by GCV when there are none."""
    total, held_out = data.total, data.held_out
    spectrum = Spectrum.of(total, intercept=intercept)
    lams = ridge_grid(spectrum, n_lambdas)
    if not held_out:
        return chosen_fit(spectrum, spectrum.gcv(lams, total.count), lams, "path_gcv")
    scores = held_out_errors(total, held_out, lams, intercept=intercept)
    count = sum(part.count for part in held_out)
    mean, squares = (np.sum([getattr(part, name) for part in held_out], axis=0) / count for name in ("sum_y", "yty"))
    return chosen_fit(spectrum, scores, lams, "path_val_error", (mean, squares))


class Decomposition(Protocol):
    """What `chosen_fit` needs of a decomposed problem."""

    def ridge(self, lam: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Standardised weights (n_targets, n) at one λ per target."""

    def to_raw(self, w: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Raw weights (n, n_targets) and bias (n_targets,)."""


def chosen_fit(
    fitted: Decomposition,
    scores: NDArray[np.float64],
    lams: NDArray[np.float64],
    name: str,
    held_out: tuple[NDArray[np.float64], NDArray[np.float64]] | None = None,
) -> Solution:
    """The fit at the λ of least score (K, n_targets), and the facts of `Ridge`; `name` is that of the scores.
    ``held_out`` are mean and mean square (n_targets,) of held-out outputs, where there are any."""
    chosen = scores.argmin(axis=0)
    lam = lams[chosen]
    weights, bias = fitted.to_raw(fitted.ridge(lam))
    facts = {
        "lam": lam,
        "path_lam": np.broadcast_to(lams, (len(lam), len(lams))).copy(),
        name: np.ascontiguousarray(scores.T),
    }
    if held_out is not None:
        facts["val_r2"] = explained(scores[chosen, np.arange(len(lam))], *held_out)
    return Solution(weights, bias, facts)


def explained(
    error: NDArray[np.float64], mean: NDArray[np.float64], squares: NDArray[np.float64]
) -> NDArray[np.float64]:
    """1 - error / variance of held-out outputs, from their mean and mean square relative to a constant near
    the mean, (n_targets,); NaN where they do not vary."""
    variance = squares - mean**2
    return 1 - np.divide(error, variance, out=np.full_like(error, np.nan), where=variance > 1e-12 * squares)
