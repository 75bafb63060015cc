"""Problems that share masks and nothing else: each has rows, means and scales of its own."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.regression.problem import Problem
from datamodels.regression.solution import Solution
from datamodels.regression.split_statistics import near_mean

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
Index = NDArray[np.int64]
_ONE_THREAD_UP_TO = 1 << 23  # entries of the masks


def blas_limit(problem: Problem, threads: int = 1) -> AbstractContextManager[Any]:
    """Keep BLAS to one thread where problems are small or solved in several threads: its own threads would wait for each
    other, and on a busy machine spin while they do."""
    import scipy.linalg.lapack  # noqa: F401  (loaded now, or the limit would miss its BLAS)
    from threadpoolctl import threadpool_limits

    one = threads > 1 or problem.n_rows * problem.n_train <= _ONE_THREAD_UP_TO
    return threadpool_limits(1 if one else None, user_api="blas")


@dataclass(frozen=True, eq=False)
class Masks:
    """The masks of all rows, in memory as bools or as bits where they fit, else read again at each pass.

    Attributes
    ----------
    kept
        (m, n_train) bool, (m, ceil(n_train / 8)) packed uint8, or None.
    sum_x
        (n_train,) how many rows hold each example.
    """

    problem: Problem
    kept: Any
    plain: bool
    sum_x: Index
    count: int

    @classmethod
    def of(cls, problem: Problem, budget: int) -> Masks:
        problem = replace(problem, targets=problem.targets[:1], train_columns=None)
        m, n = problem.n_rows, problem.n_train
        plain = m * n <= budget
        kept = plain or m * n <= 8 * budget
        out: list[NDArray[Any]] = []
        sum_x = np.zeros(n, dtype=np.int64)
        for x, _ in problem.chunks():
            sum_x += x.sum(axis=0)
            if kept:
                out.append(x if plain else np.packbits(x, axis=1))
        return cls(problem, np.concatenate(out) if kept else None, plain, sum_x, m)

    @property
    def nbytes(self) -> int:
        return 0 if self.kept is None else self.kept.nbytes

    def chunks(self) -> Iterator[tuple[slice, Bool]]:
        """Some rows at a time: which, and their masks (rows, n_train)."""
        n = self.problem.n_train
        size = int(np.clip((1 << 20) // n, 128, 2048))  # in float64 about the size of a cache
        if self.kept is None:
            start = 0
            for x, _ in self.problem.chunks():
                yield slice(start, start + len(x)), x
                start += len(x)
            return
        for start in range(0, self.count, size):
            x = self.kept[start : start + size]
            yield slice(start, start + len(x)), x if self.plain else np.unpackbits(x, axis=1, count=n).view(np.bool_)

    def take(self, rows: Bool) -> Bool:
        """The masks of some rows, by a bool mask (m,): (k, n_train)."""
        return np.concatenate([x[rows[part]] for part, x in self.chunks()])

    def counts(self, rows: Bool) -> Float:
        """How many of some rows, by a bool mask (m,), hold both examples, (n_train, n_train)."""
        out = np.zeros((self.problem.n_train, self.problem.n_train))
        for part, x in self.chunks():
            chosen = x[rows[part]].astype(np.float32)  # sums of so few are exact
            out += chosen.T @ chosen
        return out

    def floats(self, dtype: type = np.float64) -> Iterator[tuple[slice, Float]]:
        for part, x in self.chunks():
            yield part, x.astype(dtype)


@dataclass(frozen=True, eq=False)
class Batch:
    """Targets that are solved together.

    Attributes
    ----------
    problem
        All rows, these targets.
    columns
        (b,) training example that each target is.
    outside
        (b, m) which rows do not hold it.
    y
        (b, m) outputs minus ``shift``; 0 where not outside.
    shift
        (b,) near the mean of the rows outside.
    """

    problem: Problem
    columns: Index
    outside: Bool
    y: Float
    shift: Float

    @classmethod
    def of(cls, problem: Problem, masks: Masks, positions: Index) -> Batch:
        assert problem.train_columns is not None
        columns = problem.train_columns[positions]
        problem = replace(problem, targets=problem.targets[positions], train_columns=columns)
        outside = np.empty((len(columns), masks.count), dtype=np.bool_)
        for part, x in masks.chunks():
            outside[:, part] = ~x[:, columns].T
        y, shift = _outputs(problem, outside), np.empty(len(columns))
        for b, rows in enumerate(outside):
            if not np.isfinite(y[b, rows]).all():  # an unseen row only: reading it again says which
                for _ in replace(problem.take(rows), targets=problem.targets[[b]], train_columns=None).chunks():
                    pass
            shift[b] = near_mean(y[b, rows][:, None])[0]
            y[b] = np.where(rows, y[b] - shift[b], 0.0)
        return cls(problem, columns, outside, y, shift)

    def take(self, part: Index) -> Batch:
        return Batch(
            replace(self.problem, targets=self.problem.targets[part], train_columns=self.columns[part]),
            *(getattr(self, name)[part] for name in ("columns", "outside", "y", "shift")),
        )


def _outputs(problem: Problem, outside: Bool) -> Float:
    """Outputs (n_targets, m) of all rows, read without their masks; NaN and inf are let through."""
    out, start = np.empty(outside.shape), 0
    for source in problem.sources:
        flat = source.outputs.reshape(len(source.outputs), -1)
        for low in range(0, len(source.rows), 1024):
            rows = source.rows[low : low + 1024]
            out[:, start : start + len(rows)] = flat[rows][:, problem.targets].T
            start += len(rows)
    return out


@dataclass(frozen=True, eq=False)
class Systems:
    """Standardised problems, each with rows, means, scales and an output of its own.

    Attributes
    ----------
    fitted
        (R, m) the rows of each.
    y
        (R, m) outputs minus ``y_mean``; 0 elsewhere.
    y_mean, count
        (R,) mean of the outputs as given, 0 when nothing is centred; number of rows.
    mean, scale
        (R, n) of the raw columns; scale 0 marks a constant column.
    start
        (R, n) Zᵀy; 0 for a constant output.
    """

    masks: Masks
    fitted: Bool
    y: Float
    y_mean: Float
    count: Index
    mean: Float
    scale: Float
    start: Float
    intercept: bool

    @classmethod
    def of(cls, masks: Masks, fitted: Bool, y: Float, shift: Float, intercept: bool) -> Systems:
        """From outputs y (R, m) minus shift (R,)."""
        count = fitted.sum(axis=1)
        y_mean = np.where(fitted, y, 0.0).sum(axis=1) / count if intercept else -shift
        y = np.where(fitted, y - y_mean[:, None], 0.0)
        sums, product = np.zeros((2, len(y), masks.problem.n_train))
        for part, x in masks.chunks():
            sums += fitted[:, part].astype(np.float32) @ x.astype(np.float32)  # integers: exact
            product += y[:, part] @ x.astype(np.float64)
        mean = sums / count[:, None]
        scale = np.sqrt(mean * (1 - mean))
        draft = cls(masks, fitted, y, y_mean, count, mean, scale, product, intercept)
        start = draft.inverse * (product - draft.centre * y.sum(axis=1)[:, None])
        if intercept:
            largest = np.maximum(np.abs(shift), np.abs(y_mean))
            start[(y**2).sum(axis=1) <= 1e-24 * count * largest**2] = 0.0
        return replace(draft, start=start)

    @cached_property
    def inverse(self) -> Float:
        """1 / scale, and 0 for constant columns, (R, n)."""
        return np.divide(1.0, self.scale, out=np.zeros_like(self.scale), where=self.scale > 0)

    @property
    def centre(self) -> Float:
        """What is taken off the columns, (R, n)."""
        return self.mean if self.intercept else np.zeros_like(self.mean)

    def take(self, runs: Index) -> Systems:
        names = ("fitted", "y", "y_mean", "count", "mean", "scale", "start")
        return replace(self, **{name: getattr(self, name)[runs] for name in names})

    def gradient(self, w: Float, lam: Float) -> Float:
        """Zᵀ(y - Zw) - mλw at standardised weights (R, n), from the rows in float64, (R, n)."""
        scaled = w * self.inverse
        offset = np.einsum("rn,rn->r", self.centre, scaled)
        total, sums = np.zeros_like(w), np.zeros(len(w))
        for part, x in self.masks.floats():
            left = np.where(self.fitted[:, part], self.y[:, part] - (scaled @ x.T - offset[:, None]), 0.0)
            total += left @ x
            sums += left.sum(axis=1)
        return self.inverse * (total - self.centre * sums[:, None]) - (self.count * lam)[:, None] * w

    def relative(self, gradient: Float) -> Float:
        """Norms of gradients (R, n) over those at w = 0, (R,); 0 for a constant output."""
        norm = np.linalg.norm(self.start, axis=1)
        return np.divide(np.linalg.norm(gradient, axis=1), norm, out=np.zeros_like(norm), where=norm > 0)

    def to_raw(self, w: Float, shift: Float, facts: dict[str, NDArray[Any]]) -> Solution:
        """Weights (n, R) and bias in the units of the outputs."""
        raw = w * self.inverse
        if not self.intercept:
            return Solution(raw.T, np.zeros(len(w)), facts)
        return Solution(raw.T, self.y_mean + shift - np.einsum("rn,rn->r", self.mean, raw), facts)
