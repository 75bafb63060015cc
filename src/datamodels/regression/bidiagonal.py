"""Golub-Kahan bidiagonalisations that advance together: each step is two products with the masks."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.regression.own_rows import Bool, Float, Index, Systems

CHECK = 4  # steps between looks at the small problems
EIGENVALUE_TOL = 1e-9  # far below what is asked: a start nearly orthogonal to the largest would mislead
_TINY = 1e-12


class Runs:
    """Bidiagonalisations of many problems at once.

    With Z the standardised columns on the rows of a run, p and v orthonormal, from θ₁v₁ = Zᵀy:
    ρₖpₖ = Zvₖ - θₖpₖ₋₁ and θₖ₊₁vₖ₊₁ = Zᵀpₖ - ρₖvₖ. So VᵀZᵀZV = RᵀR with R upper bidiagonal, of diagonal ρ
    and superdiagonal θ₂...; and w = Vt with (RᵀR + mλ) t = θ₁e₁ leaves the residual -θₖ₊₁ρₖtₖ vₖ₊₁.

    Parameters
    ----------
    systems
        The problems.
    start
        (R, n) what to start from in the place of Zᵀy.
    steps
        Room for so many steps.
    dtype
        Of products and bases.
    probe
        Whether a run that would start from 0 starts from a random vector, to find its largest eigenvalue.
    """

    def __init__(
        self, systems: Systems, *, steps: int, dtype: type, start: Float | None = None, probe: bool = False
    ) -> None:
        self.systems, self.steps, self.dtype = systems, steps, dtype
        varying = systems.scale > 0
        start = (systems.start if start is None else start).copy()
        self.rhs = np.linalg.norm(start, axis=1)
        if probe:
            nothing = self.rhs == 0
            start[nothing] = np.random.default_rng(0).normal(size=start.shape[1]) * varying[nothing]
        norm = np.linalg.norm(start, axis=1)
        runs, n = start.shape
        self.room = np.minimum(varying.sum(axis=1), systems.count - systems.intercept)  # most steps there can be
        self.k = np.zeros(runs, dtype=np.int64)
        self.ended = (norm == 0) | (self.room == 0)
        self.basis: NDArray[Any] = np.empty((steps + 1, runs, n), dtype)  # memory is taken when it is written
        self.basis[0] = np.divide(start, norm[:, None], out=np.zeros_like(start), where=norm[:, None] > 0)
        self.rho, self.theta = np.zeros((runs, steps)), np.zeros((runs, steps + 1))
        self.p: NDArray[Any] = np.zeros(systems.fitted.shape, dtype)
        self.held: Index | None = None

    def watch(self, held: Bool, y: Float) -> None:
        """Follow the predictions of held-out rows (R, m), whose outputs are y (R, m)."""
        sizes = held.sum(axis=1)
        self.valid = np.arange(sizes.max()) < sizes[:, None]  # padded to the same number
        self.held = np.zeros(self.valid.shape, dtype=np.int64)
        self.held[self.valid] = np.nonzero(held)[1]
        self.seen: NDArray[Any] = np.empty((self.steps, len(held), sizes.max()), self.dtype)
        self.raw: NDArray[Any] = np.empty(held.shape, self.dtype)
        rows = np.take_along_axis(y, self.held, axis=1) - self.systems.y_mean[:, None]
        self.outputs = np.where(self.valid, rows, 0.0)

    @property
    def stopped(self) -> Bool:
        """Which runs cannot go on: exhausted, or out of room."""
        return self.ended | (self.k == self.steps)

    def advance(self, runs: Index, steps: int = CHECK) -> None:
        """Some steps of some runs; those that stop are left where they are."""
        for _ in range(steps):
            going = runs[~self.stopped[runs]]
            if len(going):
                self._step(going)

    def _step(self, runs: Index) -> None:
        k, systems = self.k[runs], self.systems
        scaled = self.basis[k, runs] * systems.inverse[runs]
        before = self.rho[runs, np.maximum(k - 1, 0)]
        back = np.divide(self.theta[runs, k], before, out=np.zeros(len(runs)), where=(k > 0) & (before > 0))
        total, sums, squares = self._pass(runs, scaled, back)
        rho = np.sqrt(squares)
        self.rho[runs, k] = rho
        total = systems.inverse[runs] * (total - systems.centre[runs] * sums[:, None])
        total *= np.divide(1.0, rho, out=np.zeros_like(rho), where=rho > 0)[:, None]
        total = total.astype(self.dtype, copy=False)
        if self.held is not None:
            rows = np.take_along_axis(self.raw[runs], self.held[runs], axis=1)
            self.seen[k, runs] = np.where(self.valid[runs], rows, 0.0)
        for i, (run, size) in enumerate(zip(runs, k + 1, strict=True)):
            old, new = self.basis[:size, run], total[i]
            whole = np.sqrt(new @ new)
            for _ in range(2):  # twice is enough (Giraud, Langou & Rozloznik 2005)
                new -= (old @ new) @ old
            theta = np.sqrt(new @ new)
            self.k[run] = size
            if size >= self.room[run] or theta <= _TINY * whole:
                self.ended[run] = True
            else:
                self.theta[run, size] = theta
                np.divide(new, theta, out=self.basis[size, run])

    def _pass(self, runs: Index, scaled: Float, back: Float) -> tuple[Float, Float, Float]:
        """One pass over X: p (unnormalised) of each run, its product with X, sum and sum of squares."""
        offset = np.einsum("rn,rn->r", self.systems.centre[runs], scaled).astype(self.dtype)
        scaled, back = scaled.astype(self.dtype), back.astype(self.dtype)
        total, sums, squares = np.zeros(scaled.shape), np.zeros(len(runs)), np.zeros(len(runs))
        rows: slice | Index = slice(None) if len(runs) == len(self.k) else runs  # views are cheaper
        for part, x in self.systems.masks.floats(self.dtype):
            p = scaled @ x.T
            p -= offset[:, None]
            if self.held is not None:
                self.raw[rows, part] = p
            p -= back[:, None] * self.p[rows, part]
            p *= self.systems.fitted[rows, part]
            self.p[rows, part] = p
            total += p @ x
            sums += p.sum(axis=1)
            squares += np.einsum("rm,rm->r", p, p)
        return total, sums, squares

    def _tridiagonal(self, runs: Index) -> tuple[Float, Float]:
        """RᵀR of some runs: diagonal (r, k) and off-diagonal (r, k), 0 beyond the steps a run has made."""
        top = max(1, int(self.k[runs].max()))
        made = np.arange(top) < self.k[runs][:, None]
        rho, theta = self.rho[runs, :top], self.theta[runs, : top + 1]
        inner = theta[:, :-1] ** 2  # θ₁ is kept apart, in rhs
        following = np.arange(1, top + 1) < self.k[runs][:, None]
        return np.where(made, rho**2 + inner, 0.0), np.where(following, rho * theta[:, 1:], 0.0)

    def small(self, runs: Index, lams: Float) -> tuple[Float, Float]:
        """Solve the small problems at λ (r, K): coefficients t (k, r, K) and relative residuals (r, K)."""
        diagonal, off = self._tridiagonal(runs)
        added = self.systems.count[runs][:, None] * lams
        top = diagonal.shape[1]
        d, z = np.empty((top, *lams.shape)), np.empty((top, *lams.shape))
        d[0], z[0] = diagonal[:, :1] + added, self.rhs[runs][:, None]
        for i in range(1, top):
            factor = off[:, i - 1, None] / d[i - 1]
            d[i] = diagonal[:, i, None] + added - off[:, i - 1, None] * factor
            z[i] = -factor * z[i - 1]
        t = z / d
        for i in range(top - 2, -1, -1):
            t[i] -= off[:, i, None] / d[i] * t[i + 1]
        last, order = np.maximum(self.k[runs] - 1, 0), np.arange(len(runs))
        coupling = self.theta[runs, self.k[runs]] * self.rho[runs, last]  # 0 once the space is exhausted
        left = np.abs(t[last, order]) * coupling[:, None]
        start = self.rhs[runs][:, None]
        residual = np.divide(left, start, out=np.zeros_like(left), where=start > 0)
        residual[(self.k[runs] == 0) & ~self.ended[runs]] = 1.0
        return t, residual

    def errors(self, runs: Index, lams: Float) -> tuple[Float, Float]:
        """Σ (y - prediction)² over the held-out rows at λ (r, K), and relative residuals."""
        assert self.held is not None
        t, residual = self.small(runs, lams)
        out = np.empty(lams.shape)
        for i, run in enumerate(runs):
            size = self.k[run]
            left = self.outputs[run] - t[:size, i].T @ self.seen[:size, run]
            out[i] = np.einsum("kh,kh->k", left, left)
        return out, residual

    def weights(self, runs: Index, lams: Float) -> Float:
        """Standardised weights (r, n) at one λ per run."""
        t, _ = self.small(runs, lams[:, None])
        return np.stack([t[: self.k[run], i, 0] @ self.basis[: self.k[run], run] for i, run in enumerate(runs)])

    def largest(self, runs: Index) -> tuple[Float, Float]:
        """Largest eigenvalue of ZᵀZ/m of each run, and a relative bound on what is missing.

        An eigenvalue lies within ‖residual‖ of a Ritz value, and within ‖residual‖² / gap where the others
        are a gap away (Parlett 1980, §11.7).
        """
        from scipy.linalg import eigh_tridiagonal

        diagonal, off = self._tridiagonal(runs)
        value, missing = np.zeros(len(runs)), np.zeros(len(runs))
        for i, run in enumerate(runs):
            size = int(self.k[run])
            if not size:
                continue
            low = max(0, size - 2)
            ritz, vectors = eigh_tridiagonal(
                diagonal[i, :size], off[i, : size - 1], select="i", select_range=(low, size - 1)
            )
            left = self.theta[run, size] * self.rho[run, size - 1] * abs(vectors[-1, -1])
            gap = ritz[-1] - ritz[0] - left
            value[i] = ritz[-1] / self.systems.count[run]
            missing[i] = (min(left, left**2 / gap) if gap > 0 else left) / ritz[-1] if ritz[-1] > 0 else 0.0
        return value, missing
