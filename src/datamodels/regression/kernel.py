"""Ridge with fewer rows than columns, from the m x m matrix ZZᵀ/m; and exact leave-one-out errors.

ZZᵀ/m and ZᵀZ/m share their nonzero eigenvalues, and weights are combinations of rows, so that
m² + mn numbers do what n² would (the dual form of Saunders, Gammerman & Vovk 1998).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.regression.problem import Problem
from datamodels.regression.solution import Solution, Splits
from datamodels.regression.spectral import Spectrum, chosen_fit, ridge_lambdas
from datamodels.regression.split_statistics import near_mean

_COLUMNS = 1024  # columns that are standardised in float64 at a time


@dataclass(frozen=True, eq=False)
class BitRows:
    """Masks and outputs of m rows in memory, masks at one bit an entry.

    Attributes
    ----------
    bits
        (m, ceil(n_train / 8)) packed masks.
    outputs
        (m, n_targets) minus ``shift``.
    shift
        (n_targets,) a constant near the mean of each target.
    """

    bits: NDArray[np.uint8]
    outputs: NDArray[np.float64]
    shift: NDArray[np.float64]
    n_train: int

    @classmethod
    def of(cls, problem: Problem, progress: Callable[[int], None] | None = None) -> BitRows:
        """One pass over the rows of a problem."""
        bits, outputs = [], []
        for x, y in problem.chunks():
            bits.append(np.packbits(x, axis=1))
            outputs.append(y)
            if progress:
                progress(len(x))
        y = np.concatenate(outputs)
        shift = near_mean(y)
        return cls(np.concatenate(bits), y - shift, shift, problem.n_train)

    def take(self, rows: NDArray[np.bool_]) -> BitRows:
        """Some of the rows, by a bool mask (m,); the shift stays."""
        return BitRows(self.bits[rows], self.outputs[rows], self.shift, self.n_train)

    def columns(self) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """All rows of a block of columns at a time: which columns, and their 0/1 entries (m, block)."""
        for start in range(0, self.n_train, _COLUMNS):
            stop = min(start + _COLUMNS, self.n_train)
            block = np.unpackbits(self.bits[:, start // 8 : -(-stop // 8)], axis=1, count=stop - start)
            yield slice(start, stop), block.astype(np.float64)

    def standardised(self, kernel: Kernel) -> Iterator[tuple[slice, NDArray[np.float64]]]:
        """Columns standardised with the mean and scale of the rows that ``kernel`` was fitted on."""
        for part, x in self.columns():
            yield part, (x - kernel.centre[part]) * kernel.inverse_scale[part]


@dataclass(frozen=True, eq=False)
class Kernel:
    """ZZᵀ/m = U diag(values) Uᵀ of the fitted rows, and c = Uᵀ(y - ȳ) of every target.

    Attributes
    ----------
    rows
        The fitted rows.
    values, vectors
        (m,) eigenvalues, ascending, and (m, m) eigenvectors.
    c
        (m, n_targets).
    y_var
        (n_targets,) ‖y - ȳ‖² / m.
    y_mean
        (n_targets,) ȳ minus the shift of the rows; minus the shift itself without intercept.
    mean, scale
        (n_train,) of the raw columns; scale 0 marks a constant column.
    """

    rows: BitRows
    values: NDArray[np.float64]
    vectors: NDArray[np.float64]
    c: NDArray[np.float64]
    y_var: NDArray[np.float64]
    y_mean: NDArray[np.float64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    intercept: bool

    @classmethod
    def of(cls, rows: Problem | BitRows, *, intercept: bool = True) -> Kernel:
        """Decompose ZZᵀ/m of some rows. Without intercept columns are scaled and nothing is centred."""
        from scipy.linalg import eigh

        if isinstance(rows, Problem):
            rows = BitRows.of(rows)
        m = len(rows.outputs)
        if m < 2:
            raise RequestError(f"{m} rows are too few to fit; at least 2 are needed")
        mean = np.empty(rows.n_train)
        for part, x in rows.columns():
            mean[part] = x.sum(axis=0) / m
        scale = np.sqrt(mean * (1 - mean))
        y_mean = rows.outputs.mean(axis=0) if intercept else -rows.shift
        y = rows.outputs - y_mean
        y_var = (y**2).mean(axis=0)
        y_var = np.where(y_var <= 1e-24 * rows.shift**2, 0.0, y_var)
        y[:, y_var == 0] = 0.0
        empty = np.empty(0)
        draft = cls(rows, empty, empty, empty, y_var, y_mean, mean, scale, intercept)
        gram = np.zeros((m, m))
        for _, z in rows.standardised(draft):
            gram += z @ z.T
        values, vectors = eigh(gram / m, overwrite_a=True, check_finite=False)
        return cls(rows, np.maximum(values, 0.0), vectors, vectors.T @ y, y_var, y_mean, mean, scale, intercept)

    @property
    def count(self) -> int:
        """Number of fitted rows, m."""
        return len(self.rows.outputs)

    @property
    def centre(self) -> NDArray[np.float64]:
        """What is taken off the columns, (n_train,): their means, or 0 without intercept."""
        return self.mean if self.intercept else np.zeros_like(self.mean)

    @property
    def inverse_scale(self) -> NDArray[np.float64]:
        """1 / scale, and 0 for constant columns, (n_train,)."""
        return np.divide(1.0, self.scale, out=np.zeros_like(self.scale), where=self.scale > 0)

    def ridge(self, lam: float | NDArray[np.float64]) -> NDArray[np.float64]:
        """Standardised ridge weights Zᵀ(ZZᵀ/m + λ)⁻¹(y - ȳ)/m, (n_targets, n_train), at one λ or one per target."""
        return self._from_rows(self.vectors @ (self.c / (self.values[:, None] + lam)))

    def least_squares(self) -> NDArray[np.float64]:
        """The least-squares solution of smallest norm, (n_targets, n_train)."""
        cutoff = self.values.max(initial=0.0) * self.rows.n_train * np.finfo(np.float64).eps * 100
        inverse = np.divide(1.0, self.values, out=np.zeros_like(self.values), where=self.values > cutoff)
        return self._from_rows(self.vectors @ (self.c * inverse[:, None]))

    def _from_rows(self, dual: NDArray[np.float64]) -> NDArray[np.float64]:
        """Zᵀ dual / m, (n_targets, n_train), of dual weights (m, n_targets)."""
        out = np.empty((dual.shape[1], self.rows.n_train))
        for part, z in self.rows.standardised(self):
            out[:, part] = dual.T @ z / self.count
        return out

    def to_raw(self, w: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standardised weights (n_targets, n_train) as raw (n_train, n_targets) and bias (n_targets,)."""
        raw = (w * self.inverse_scale).T
        if not self.intercept:
            return raw, np.zeros(len(w))
        return raw, self.y_mean + self.rows.shift - self.mean @ raw

    def gcv(self, lams: NDArray[np.float64]) -> NDArray[np.float64]:
        """Generalised cross-validation score (K, n_targets): Golub, Heath & Wahba 1979, with the
        intercept counted among the degrees of freedom."""
        scores = np.empty((len(lams), self.c.shape[1]))
        for i, lam in enumerate(lams):
            shrink = 1.0 / (self.values + lam)
            left = ((lam * shrink[:, None] * self.c) ** 2).sum(axis=0) / self.count
            freedom = (self.values * shrink).sum() + self.intercept
            scores[i] = left / (1 - freedom / self.count) ** 2
        return scores

    def squared_errors(self, held_out: BitRows, lams: NDArray[np.float64]) -> NDArray[np.float64]:
        """Σ (y - prediction)² over other rows at every λ, (K, n_targets)."""
        cross = np.zeros((len(held_out.outputs), self.count))
        pairs = zip(held_out.standardised(self), self.rows.standardised(self), strict=True)
        for (_, z), (_, fitted) in pairs:
            cross += z @ fitted.T
        cross = cross @ self.vectors / self.count
        centred = held_out.outputs - self.y_mean
        errors = np.empty((len(lams), self.c.shape[1]))
        for i, lam in enumerate(lams):
            left = centred - cross @ (self.c / (self.values[:, None] + lam))
            errors[i] = np.einsum("ht,ht->t", left, left)
        return errors


def kernel_errors(
    rows: BitRows, held_out: Sequence[NDArray[np.bool_]], lams: NDArray[np.float64], *, intercept: bool = True
) -> NDArray[np.float64]:
    """Mean squared held-out error of ridge at every λ, (K, n_targets), over all splits.

    ``held_out`` are bool (m,); each split standardises with the rows that it fits.
    """
    errors = np.zeros((len(lams), rows.outputs.shape[1]))
    for chosen in held_out:
        errors += Kernel.of(rows.take(~chosen), intercept=intercept).squared_errors(rows.take(chosen), lams)
    return errors / sum(int(chosen.sum()) for chosen in held_out)


def ridge_kernel(
    problem: Problem,
    splits: Splits,
    *,
    n_lambdas: int = 30,
    intercept: bool = True,
    leave_out: bool = False,
    progress: Callable[[int], None] | None = None,
) -> Solution:
    """What ``Ridge.solve`` gives for these rows, from m x m matrices.

    Minimises ``1/(2m) ‖y - b - Zw‖² + λ/2 ‖w‖²``, λ per target by held-out error or GCV.

    Parameters
    ----------
    splits
        ``Ridge.splits``: design units (m,) to held-out rows of each split, bool (m,); none for GCV.
    leave_out
        Choose by `leave_one_out` instead.
    progress
        Called with the number of rows that were read.
    """
    held_out = splits(problem.units)
    rows = BitRows.of(problem, progress)
    kernel = Kernel.of(rows, intercept=intercept)
    lams = ridge_lambdas(float(kernel.values.max(initial=0.0)), n_lambdas)
    if leave_out:
        return chosen_fit(kernel, leave_one_out(problem, kernel, lams), lams, "path_loo")
    if not held_out:
        return chosen_fit(kernel, kernel.gcv(lams), lams, "path_gcv")
    scores = kernel_errors(rows, held_out, lams, intercept=intercept)
    y = np.concatenate([rows.outputs[held] for held in held_out])
    return chosen_fit(kernel, scores, lams, "path_val_error", (y.mean(axis=0), (y**2).mean(axis=0)))


def leave_one_out(problem: Problem, fitted: Spectrum | Kernel, lams: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean squared leave-one-out error of ridge at every λ, (K, n_targets), exactly and without refits.

    With H = 11ᵀ/m + Z (ZᵀZ + mλ)⁻¹ Zᵀ and residuals e = (1 - H) y, the error of row i, predicted by the fit
    of all others, is e_i / (1 - H_ii) (Allen 1974; Golub, Heath & Wahba 1979). This holds at the mean and
    scale of *all* rows, which are not computed again without row i, and at the total penalty mλ of all
    rows; the intercept is refitted.

    Parameters
    ----------
    problem
        The rows that ``fitted`` was made from. A `Spectrum` needs a second pass over them; a `Kernel`
        holds what is needed and reads nothing.
    fitted
        Decomposition of the n x n or of the m x m matrix.
    lams
        (K,) positive.
    """
    if isinstance(fitted, Kernel):
        return _loo_kernel(fitted, lams)
    standard, m = fitted.problem, problem.n_rows
    centre = standard.mean if standard.intercept else np.zeros_like(standard.mean)
    y_mean = standard.shift + standard.y_mean if standard.intercept else np.zeros_like(standard.shift)
    vectors = fitted.vectors * standard.inverse_scale[:, None]
    offset = centre @ vectors
    errors = np.zeros((len(lams), problem.n_targets))
    for x, y in problem.chunks():
        along = x.astype(np.float64) @ vectors - offset
        centred = np.where(standard.y_var > 0, y - y_mean, 0.0)
        for i, lam in enumerate(lams):
            shrink = 1.0 / (fitted.values + lam)
            left = centred - along @ (shrink[:, None] * fitted.u)
            kept = 1 - standard.intercept / m - (along**2) @ shrink / m
            errors[i] += ((left / kept[:, None]) ** 2).sum(axis=0)
    return errors / m


def _loo_kernel(kernel: Kernel, lams: NDArray[np.float64]) -> NDArray[np.float64]:
    """1 - H has eigenvalues λ / (values + λ): neither residuals nor 1 - H_ii cancel however small λ is."""
    errors = np.empty((len(lams), kernel.c.shape[1]))
    for i, lam in enumerate(lams):
        left = lam / (kernel.values + lam)
        kept = kernel.vectors**2 @ left - kernel.intercept / kernel.count
        errors[i] = ((kernel.vectors @ (left[:, None] * kernel.c) / kept[:, None]) ** 2).mean(axis=0)
    return errors
