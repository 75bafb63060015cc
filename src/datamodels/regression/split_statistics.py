"""Sums of fitted and of held-out rows, and what an estimator standardises by them."""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.regression import statistics as sums
from datamodels.regression.problem import Problem
from datamodels.regression.statistics import Accumulator, Statistics, expected_dtype
from datamodels.threads import ahead

_COPIED_BYTES = 1 << 30


@dataclass(frozen=True, eq=False)
class SplitStatistics:
    """Statistics of rows that were split for choosing λ.

    Attributes
    ----------
    held_out
        Statistics of the held-out rows of each split.
    rest
        Statistics of the rows that no split holds out.
    counts
        (1 + splits, n_train, n_train) the Gram matrices of ``rest`` and of ``held_out``, in one block.
    """

    rest: Statistics
    held_out: tuple[Statistics, ...]
    counts: NDArray[Any]

    @classmethod
    def of(
        cls,
        problem: Problem,
        splits: Sequence[NDArray[np.bool_]] = (),
        progress: Callable[[int], None] | None = None,
        *,
        shift: NDArray[np.float64] | None = None,
    ) -> SplitStatistics:
        """One pass over the rows of a problem. Splits (m,) do not overlap."""
        part_of = np.zeros(problem.n_rows, dtype=np.int64)  # 0: never held out
        for number, held_out in enumerate(splits, start=1):
            part_of[held_out] = number
        parts: list[Accumulator] = []
        position = 0
        for x, y in ahead(problem.chunks()):
            if not parts:
                empty = cls.empty(problem, len(splits), x, near_mean(y) if shift is None else shift)
                parts = [Accumulator(part) for part in empty]
            numbers = part_of[position : position + len(x)]
            for number in np.unique(numbers):
                chosen = numbers == number
                parts[number].add(x[chosen], y[chosen])
            position += len(x)
            if progress:
                progress(len(x))
        return cls.join([part.finish() for part in parts])

    @staticmethod
    def empty(problem: Problem, splits: int, x: NDArray[np.bool_], shift: NDArray[np.float64]) -> list[Statistics]:
        """Statistics of no rows for the rest and each split, whose Gram matrices are one block, given the first masks x
        (k, n_train)."""
        n = problem.n_train
        counts = np.zeros((splits + 1, n, n), dtype=expected_dtype(x, problem.n_rows))
        return [Statistics.empty(n, shift, gram) for gram in counts]

    @classmethod
    def join(cls, parts: Sequence[Statistics]) -> SplitStatistics:
        """From the statistics of the rest and of the held-out rows of each split."""
        base: Any = parts[0].gram.base
        if not _is_block(base, parts):  # one outgrew its integers, or none share
            base = np.stack([part.gram for part in parts])
            parts = [replace(part, gram=gram) for part, gram in zip(parts, base, strict=True)]
        return cls(parts[0], tuple(parts[1:]), base)

    @property
    def total(self) -> Statistics:
        """Statistics of all rows."""
        return functools.reduce(operator.add, self.held_out, self.rest)

    @property
    def n_train(self) -> int:
        return self.rest.n_train

    @property
    def n_targets(self) -> int:
        return self.rest.n_targets

    @property
    def count(self) -> int:
        return self.rest.count + sum(part.count for part in self.held_out)

    @property
    def parts(self) -> tuple[Statistics, ...]:
        """The rest and each split."""
        return self.rest, *self.held_out

    def of_targets(self, targets: slice) -> SplitStatistics:
        """The same rows for some targets; nothing is copied."""
        parts = [part.of_targets(targets) for part in self.parts]
        return SplitStatistics(parts[0], tuple(parts[1:]), self.counts)

    def __reduce__(self) -> tuple[Any, ...]:
        """For other processes: the matrices once."""
        return _put_together, (self.counts, [replace(part, gram=self.counts[0, :0]) for part in self.parts])

    def __add__(self, other: SplitStatistics) -> SplitStatistics:
        """More rows, split the same way."""
        return SplitStatistics.join([a + b for a, b in zip(self.parts, other.parts, strict=True)])


def _put_together(counts: NDArray[Any], bare: list[Statistics]) -> SplitStatistics:
    """Read-only matrices are of another type to compiled functions, so small ones are copied rather than compiled for."""
    counts = counts.copy() if counts.nbytes <= _COPIED_BYTES else counts
    parts = [replace(part, gram=gram) for part, gram in zip(bare, counts, strict=True)]
    return SplitStatistics(parts[0], tuple(parts[1:]), counts)


def _is_block(base: Any, parts: Sequence[Statistics]) -> bool:
    """Whether the Gram matrices of the parts are those of one block, one after the other."""
    shape = (len(parts), *parts[0].gram.shape)
    if base is None or base.shape != shape or not base.flags.c_contiguous:
        return False
    return all(
        part.gram.dtype == base.dtype and part.gram.ctypes.data == matrix.ctypes.data
        for part, matrix in zip(parts, base, strict=True)
    )


def near_mean(y: NDArray[np.float64]) -> NDArray[np.float64]:
    """A shift for outputs y (k, n_targets): the mean, or the value itself where there is only one."""
    return np.where((y == y[0]).all(axis=0), y[0], y.mean(axis=0))


@dataclass(frozen=True, eq=False)
class Standardised:
    """The problem in standardised columns z_j = (x_j - mean_j) / scale_j.

    Attributes
    ----------
    gram
        (n_train, n_train) ZᵀZ / m; zero in rows and columns of constant examples. float64 up to
        2,048 examples, float32 above.
    q
        (n_targets, n_train) Zᵀ(y - ȳ) / m.
    y_var
        (n_targets,) ‖y - ȳ‖² / m: twice the null objective.
    mean, scale
        (n_train,) of the raw columns; scale 0 marks a constant column.
    y_mean
        (n_targets,) ȳ minus ``shift``.
    """

    gram: NDArray[Any]
    q: NDArray[np.float64]
    y_var: NDArray[np.float64]
    mean: NDArray[np.float64]
    scale: NDArray[np.float64]
    y_mean: NDArray[np.float64]
    shift: NDArray[np.float64]
    intercept: bool

    @classmethod
    def of(cls, statistics: Statistics, *, intercept: bool = True, wide: bool = False) -> Standardised:
        """Standardise. Without intercept columns are scaled and nothing is centred. ``wide`` asks for
        float64 at any size, which decompositions of singular matrices need."""
        s = statistics
        if s.count < 2:
            raise RequestError(f"{s.count} rows are too few to fit; at least 2 are needed")
        m = s.count
        mean = s.sum_x / m
        scale = np.sqrt(mean * (1 - mean))
        inverse = np.divide(1.0, scale, out=np.zeros_like(scale), where=scale > 0)
        if intercept:
            y_mean = s.sum_y / m
            cross = s.xty.T / m - np.outer(y_mean, mean)
            y_var = s.yty / m - y_mean**2
            centre = mean
        else:
            y_mean = np.zeros(s.n_targets)
            cross = (s.xty.T + np.outer(s.shift, s.sum_x)) / m
            y_var = (s.yty + 2 * s.shift * s.sum_y) / m + s.shift**2
            centre = np.zeros_like(mean)
        dtype = np.float64 if wide or s.n_train <= sums.FLOAT64_UP_TO else np.float32
        gram = np.empty(s.gram.shape, dtype=dtype)
        for start in range(0, s.n_train, 512):  # in blocks, so that no second float64 matrix is needed
            part = slice(start, start + 512)
            block = s.gram[part].astype(np.float64) / m - np.outer(centre[part], centre)
            gram[part] = block * np.outer(inverse[part], inverse)
        y_var = np.where(y_var <= 1e-24 * s.shift**2, 0.0, np.maximum(y_var, 0.0))
        q = np.ascontiguousarray(cross * inverse)
        q[y_var == 0] = 0.0
        return cls(gram, q, y_var, mean, scale, y_mean, s.shift, intercept)

    @property
    def constant(self) -> NDArray[np.bool_]:
        """Which training examples are in every row or in none, (n_train,)."""
        return self.scale == 0

    @property
    def inverse_scale(self) -> NDArray[np.float64]:
        """1 / scale, and 0 for constant columns, (n_train,)."""
        return np.divide(1.0, self.scale, out=np.zeros_like(self.scale), where=self.scale > 0)

    def to_raw(self, w: NDArray[np.float64]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Standardised weights w (n_targets, n_train) as raw (n_train, n_targets) and bias (n_targets,)."""
        raw = (w * self.inverse_scale).T
        if not self.intercept:
            return raw, np.zeros(len(w))
        return raw, self.y_mean + self.shift - self.mean @ raw


def squared_error(
    statistics: Statistics, weights: NDArray[np.float64], bias: NDArray[np.float64]
) -> NDArray[np.float64]:
    """Σ (y - bias - x·weights)² over the rows of `statistics`, per target, (n_targets,)."""
    s, b = statistics, bias - statistics.shift
    quadratic = np.einsum("nt,nt->t", weights, s.gram.astype(np.float64) @ weights)
    cross = np.einsum("nt,nt->t", weights, s.xty)
    return s.yty - 2 * b * s.sum_y - 2 * cross + s.count * b**2 + 2 * b * (s.sum_x @ weights) + quadratic
