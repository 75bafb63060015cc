"""Statistics as the compiled solver takes them: per fit of a target, and per batch of targets."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.regression import statistics
from datamodels.regression.bits import cross_counts
from datamodels.regression.solver_types import Counts, Fits, Target
from datamodels.regression.split_statistics import SplitStatistics
from datamodels.regression.statistics import Statistics

_NO_COLUMNS = np.zeros((0, 0), dtype=np.uint64)


@dataclass(frozen=True, eq=False)
class Moments:
    """The fits that all targets share: one per split on the rows it does not hold out, then the whole.

    Attributes
    ----------
    pieces
        Statistics of the rows that no split holds out, then of those of each split.
    """

    pieces: tuple[Statistics, ...]
    counts: Counts
    fits: Fits
    intercept: bool

    @classmethod
    def of(cls, data: SplitStatistics, *, intercept: bool) -> Moments:
        pieces, folds = (data.rest, *data.held_out), len(data.held_out) > 1
        matrices = data.counts
        if folds:
            total = data.total.gram
            matrices = np.concatenate([total[None], matrices[1:].astype(total.dtype, copy=False)])
        rows, sum_x = np.array([float(p.count) for p in pieces]), np.stack([p.sum_x for p in pieces])
        counts = Counts(matrices, folds, _NO_COLUMNS, _NO_COLUMNS)
        return cls(pieces, counts, make_fits(rows, sum_x, intercept), intercept)

    @property
    def shift(self) -> NDArray[np.float64]:
        """What outputs are measured from, (n_targets,): the constant of the statistics, or 0 without intercept."""
        shift = self.pieces[0].shift
        return shift if self.intercept else np.zeros_like(shift)

    def targets(
        self, part: slice, lams: NDArray[np.float64], penalty: NDArray[np.float64] | None = None
    ) -> list[Target]:
        """Some targets, with their λ (k, K)."""
        xty, sum_y, yty = self._outputs(part)
        factors = batch_penalty(penalty, self.fits.centre.shape[1], part)
        noise = 1e-24 * np.abs(self.pieces[0].shift[part]) ** 2
        return [
            make_target(
                xty[:, k], sum_y[:, k], yty[:, k], self.fits, factors[k], noise[k], self.intercept
            )._replace(lams=np.ascontiguousarray(lams[k]))
            for k in range(len(lams))
        ]  # fmt: skip

    def _outputs(self, part: slice) -> tuple[Any, Any, Any]:
        """xty (pieces, k, n), sum_y and yty (pieces, k) of some targets."""
        xty = np.stack([piece.xty[:, part].T for piece in self.pieces])
        sum_y = np.stack([piece.sum_y[part] for piece in self.pieces])
        yty = np.stack([piece.yty[part] for piece in self.pieces])
        if not self.intercept:  # then outputs are measured from 0
            shift = self.pieces[0].shift[part]
            count = np.array([[piece.count] for piece in self.pieces])
            yty += 2 * shift * sum_y + count * shift**2
            sum_y += count * shift
            xty += np.stack([np.outer(shift, piece.sum_x) for piece in self.pieces])
        return xty, sum_y, yty


def batch_penalty(penalty: NDArray[np.float64] | None, n_train: int, part: slice) -> NDArray[np.float64]:
    """Penalty factors of some targets, (k, n_train), one row each."""
    size = part.stop - part.start
    if penalty is None:
        return np.broadcast_to(np.ones(n_train), (size, n_train))
    if penalty.ndim == 1:
        return np.broadcast_to(penalty, (size, n_train))
    return np.ascontiguousarray(penalty[:, part].T)


def default_tolerance(n_train: int) -> float:
    """1e-8 where products with outputs are float64, 1e-5 where they are float32."""
    return 1e-8 if n_train <= statistics.FLOAT64_UP_TO else 1e-5


def fitted_sums(pieces: NDArray[np.float64]) -> NDArray[np.float64]:
    """Sums (F, ...) over the rows of each fit, from those of the rest and of each split (1 + splits, ...): the
    fit of a split takes all pieces but its own, the last fit all."""
    fits = [np.delete(pieces, s, axis=0).sum(axis=0) for s in range(1, len(pieces))]
    return np.stack([*fits, pieces.sum(axis=0)])


def make_fits(rows: NDArray[np.float64], sum_x: NDArray[np.float64], intercept: bool) -> Fits:
    """Standardisation of the columns of every fit, from counts of rows (pieces,) and columns (pieces, n)."""
    fitted = fitted_sums(rows)
    mean = fitted_sums(sum_x) / np.maximum(fitted, 1)[:, None]
    scale = np.sqrt(mean * (1 - mean))
    inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
    centre = mean if intercept else np.zeros_like(mean)
    return Fits(fitted, centre, inverse, np.ascontiguousarray(rows[1:]), np.ascontiguousarray(sum_x[1:]))


def make_target(
    xty: NDArray[np.float64],
    sum_y: NDArray[np.float64],
    yty: NDArray[np.float64],
    fits: Fits,
    penalty: NDArray[np.float64],
    noise: float,
    intercept: bool,
) -> Target:
    """One target without λ, from its products per piece (pieces, ...); a variance of at most `noise` is rounding."""
    fitted = fitted_sums(xty)
    y_mean = fitted_sums(sum_y) / fits.rows if intercept else np.zeros(len(fits.rows))
    y_var = fitted_sums(yty) / fits.rows - y_mean**2
    y_var = np.where(y_var <= noise, 0.0, y_var)
    nothing = y_var == 0  # nothing to explain, whatever rounding has left
    fitted[nothing] = (fits.rows * y_mean)[nothing, None] * fits.centre[nothing]
    held = [np.array(piece[1:], order="C") for piece in (xty, sum_y, yty)]
    factors = np.array(penalty, dtype=np.float64)
    return Target(fitted, y_mean, y_var, held[0], held[1], held[2], np.zeros(0), factors)


def correlations(fits: Fits, fit: int, target: Target) -> NDArray[np.float64]:
    """q = z_iᵀ(y - ȳ)/m of every column, (n,)."""
    centred = target.xty[fit] / fits.rows[fit] - fits.centre[fit] * target.y_mean[fit]
    return centred * fits.inverse_scale[fit]


def covariances(counts: Counts, part: int, fits: Fits, fit: int, features: NDArray[np.int64]) -> NDArray[np.float64]:
    """z_iᵀz_j/m of every column i with some features j, (n, k)."""
    inverse, centre = fits.inverse_scale[fit], fits.centre[fit]
    table = _counts_of(counts, part, len(fits.rows) - 1, features) / fits.rows[fit]
    return (table - np.outer(centre, centre[features])) * np.outer(inverse, inverse[features])


def _counts_of(counts: Counts, part: int, splits: int, features: NDArray[np.int64]) -> NDArray[np.float64]:
    """Rows of a part that hold both: all features by some, float64 (n, k)."""
    if len(counts.columns):
        return cross_counts(counts.columns, counts.keep[part], features)
    first = counts.matrices[0][:, features].astype(np.float64)
    if splits == 0 or (counts.folds and part == 2 * splits) or (not counts.folds and part < splits):
        return first
    other = counts.matrices[1 + part % splits][:, features]
    if splits <= part < 2 * splits:
        return other.astype(np.float64)
    return first - other if counts.folds else first + other
