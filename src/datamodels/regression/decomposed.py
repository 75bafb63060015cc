"""Ridge of one output on rows of its own, exactly, from one decomposition: the way for small problems."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from datamodels.regression.own_rows import Bool, Float, Systems

_COLUMNS = 1024  # columns that are standardised in float64 at a time


class Tridiagonal:
    """A symmetric matrix A (k, k) as Q T Qᵀ with T tridiagonal, and one right-hand side q (k,).

    For one right-hand side this does what an eigendecomposition would at about a fifth of its cost: every λ
    takes O(k) operations (Eldén 1977).

    Parameters
    ----------
    matrix
        Is overwritten.
    """

    def __init__(self, matrix: Float, rhs: Float) -> None:
        from scipy.linalg.lapack import dsytrd, dsytrd_lwork

        room = int(dsytrd_lwork(len(matrix), lower=1)[0])
        # symmetric, so that the transpose is the same matrix in Fortran's order
        packed, self._diagonal, self._off, self._tau, _ = dsytrd(matrix.T, lower=1, lwork=room, overwrite_a=1)
        self._reflectors = np.asfortranarray(packed[1:, :-1])
        self.rhs = self._turn(rhs[:, None], "T")[:, 0]  # Qᵀq

    def largest(self) -> float:
        """The largest eigenvalue, at least 0."""
        from scipy.linalg import eigvalsh_tridiagonal

        last = len(self._diagonal) - 1
        found = eigvalsh_tridiagonal(
            self._diagonal, self._off, select="i", select_range=(last, last), check_finite=False
        )
        return max(float(found[0]), 0.0)

    def values(self) -> Float:
        """All eigenvalues (k,), at least 0."""
        from scipy.linalg import eigvalsh_tridiagonal

        return np.maximum(eigvalsh_tridiagonal(self._diagonal, self._off, check_finite=False), 0.0)

    def within(self, lams: Float) -> Float:
        """Qᵀw where (A + λ) w = q at every λ, (k, K)."""
        from scipy.linalg.lapack import dptsv

        off = self._off if self._off.size else np.zeros(1)  # asked for even where there is none
        return np.stack([dptsv(self._diagonal + lam, off, self.rhs)[2] for lam in lams], axis=1)

    def solve(self, lams: Float) -> Float:
        """w (k, K) where (A + λ) w = q."""
        return self._turn(self.within(lams), "N")

    def _turn(self, columns: Float, which: str) -> Float:
        """Q or, with "T", Qᵀ times columns (k, K). Q leaves the first row as it is."""
        from scipy.linalg.lapack import dormqr

        out = np.array(columns, order="F")
        if len(out) > 1:
            given = "L", which, self._reflectors, self._tau, out[1:]
            room = int(dormqr(*given, -1)[1][0])
            out[1:] = dormqr(*given, room)[0]
        return out


class Decomposed:
    """One of several systems, by ZᵀZ/m or, where there are fewer rows than columns, by ZZᵀ/m.

    Parameters
    ----------
    systems, run
        Which.
    gram
        (n, n) how many of its rows hold both examples; not looked at where there are fewer rows than columns.
    """

    def __init__(self, systems: Systems, run: int, gram: Float | None) -> None:
        self._systems, self._run, self.count = systems, run, int(systems.count[run])
        self._inverse, self._centre = systems.inverse[run], systems.centre[run]
        self._rows: Bool | None = None
        if self.count < len(self._inverse):
            self._rows = systems.masks.take(systems.fitted[run])
            matrix = np.zeros((self.count, self.count))
            for _, z in self._standardised(self._rows):
                matrix += z @ z.T
            matrix /= self.count
            rhs = systems.y[run, systems.fitted[run]] * systems.start[run].any()  # a constant output has no weights
        else:
            assert gram is not None
            scaled = self._centre * self._inverse
            matrix = gram * np.outer(self._inverse / self.count, self._inverse)
            matrix -= np.outer(scaled, scaled)
            rhs = systems.start[run] / self.count
        self._form = Tridiagonal(matrix, rhs)

    def _standardised(self, rows: Bool) -> Iterator[tuple[slice, Float]]:
        for start in range(0, rows.shape[1], _COLUMNS):
            part = slice(start, start + _COLUMNS)
            yield part, (rows[:, part] - self._centre[part]) * self._inverse[part]

    def largest(self) -> float:
        """The largest eigenvalue of ZᵀZ/m."""
        return self._form.largest()

    def weights(self, lams: Float) -> Float:
        """Standardised weights (K, n)."""
        solved = self._form.solve(lams).T
        if self._rows is None:
            return solved
        out = np.empty((len(lams), len(self._inverse)))
        for part, z in self._standardised(self._rows):
            out[:, part] = solved @ z / self.count
        return out

    def squared_errors(self, lams: Float, held: Bool, y: Float) -> Float:
        """Σ (y - prediction)² at every λ, (K,), over rows ``held`` (m,), of outputs y (m,) as given to the systems."""
        w = self.weights(lams)
        left = np.broadcast_to(y[held] - self._systems.y_mean[self._run], (len(lams), held.sum())).copy()
        for part, z in self._standardised(self._systems.masks.take(held)):
            left -= w[:, part] @ z.T
        return np.einsum("kh,kh->k", left, left)

    def gcv(self, lams: Float) -> Float:
        """Generalised cross-validation score (K,), as of `Spectrum.gcv`."""
        t, values = self._form.within(lams), self._form.values()
        squares = np.einsum("kl,kl->l", t, t)
        if self._rows is None:  # ‖y - Zw‖² = ‖y‖² - wᵀZᵀy - mλ‖w‖²
            variance = self._systems.y[self._run] @ self._systems.y[self._run] / self.count
            left = np.maximum(variance - self._form.rhs @ t - lams * squares, 0.0)
        else:  # y - Zw = λ (ZZᵀ/m + λ)⁻¹ y
            left = lams**2 * squares / self.count
        freedom = (values[:, None] / (values[:, None] + lams)).sum(axis=0) + self._systems.intercept
        return left / (1 - freedom / self.count) ** 2
