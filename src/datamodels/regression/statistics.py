"""What regression needs of (X, Y): counts, sums and products. Additive over rows."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError, newer_format
from datamodels.files import replacing
from datamodels.regression.bits import add_products, pack_columns, words_of
from datamodels.regression.problem import Problem

FORMAT_VERSION = 1
FLOAT64_UP_TO = 2048  # standardised Gram matrices of so many examples are float64, larger ones float32
FLOAT64_PRODUCTS_UP_TO = 2048  # and so are products with outputs
_BUFFER_BYTES = 16 << 20


@dataclass(eq=False)
class Statistics:
    """Sufficient statistics of m rows.

    Attributes
    ----------
    count
        m.
    sum_x
        (n_train,) how many rows hold each example.
    gram
        (n_train, n_train) XᵀX: how many rows hold both examples, in the smallest unsigned integers that
        hold the largest count.
    shift
        (n_targets,) a constant near the mean of each target; products use outputs minus shift, so
        that a target with mean 50 and deviation .002 loses nothing.
    sum_y, yty
        (n_targets,) sums of (y - shift) and of its square.
    xty
        (n_train, n_targets) Xᵀ(y - shift).
    """

    count: int
    sum_x: NDArray[np.float64]
    gram: NDArray[Any]
    shift: NDArray[np.float64]
    sum_y: NDArray[np.float64]
    yty: NDArray[np.float64]
    xty: NDArray[np.float64]

    @classmethod
    def empty(cls, n_train: int, shift: NDArray[np.float64], gram: NDArray[Any] | None = None) -> Statistics:
        """Statistics of no rows, for targets with this shift (n_targets,); `gram` is the memory to use, zeroed."""
        t = len(shift)
        return cls(
            0,
            np.zeros(n_train),
            np.zeros((n_train, n_train), dtype=np.uint16) if gram is None else gram,
            np.array(shift, dtype=np.float64),
            np.zeros(t),
            np.zeros(t),
            np.zeros((n_train, t)),
        )

    @classmethod
    def of(
        cls,
        problem: Problem,
        *,
        shift: NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Statistics:
        """One pass over the rows of a problem."""
        if not problem.n_rows:
            return cls.empty(problem.n_train, np.zeros(problem.n_targets) if shift is None else shift)
        from datamodels.regression.split_statistics import SplitStatistics  # which is built of these

        return SplitStatistics.of(problem, progress=progress, shift=shift).rest

    @property
    def n_train(self) -> int:
        return len(self.sum_x)

    @property
    def n_targets(self) -> int:
        return len(self.shift)

    def update(self, x: NDArray[np.bool_], y: NDArray[np.float64]) -> None:
        """Add rows: masks x (k, n_train) and outputs y (k, n_targets)."""
        self.add_sums(x, y)
        self.add_counts(pack_columns(x))

    def add_sums(self, x: NDArray[np.bool_], y: NDArray[np.float64]) -> None:
        """Add everything of some rows but their part of ``gram``."""
        centred = y - self.shift
        self.count += len(x)
        self.sum_x += x.sum(axis=0)
        self.sum_y += centred.sum(axis=0)
        self.yty += np.einsum("kt,kt->t", centred, centred)
        precision = np.float64 if self.n_train <= FLOAT64_PRODUCTS_UP_TO else np.float32
        self.xty += x.astype(precision).T @ centred.astype(precision, copy=False)

    def add_counts(self, columns: NDArray[np.uint64]) -> None:
        """Add the part of ``gram`` of rows whose sums were added already, as `bits.pack_columns` packs them."""
        self._widen()
        add_products(columns, self.gram)

    def add_part(self, part: Statistics) -> None:
        """Add the rows of statistics with the same shift, in place."""
        self.count += part.count
        for name in ("sum_x", "sum_y", "yty", "xty"):
            getattr(self, name).__iadd__(getattr(part, name))
        self._widen()
        np.add(self.gram, part.gram, out=self.gram, casting="unsafe")  # its counts fit, whatever their type

    def _widen(self) -> None:
        """Make ``gram`` hold the largest count."""
        dtype = count_dtype(self.sum_x.max(initial=0.0))
        if np.iinfo(self.gram.dtype).max < np.iinfo(dtype).max:
            self.gram = self.gram.astype(dtype)

    def of_targets(self, targets: slice) -> Statistics:
        """The same rows for some targets; nothing is copied."""
        names = ("shift", "sum_y", "yty")
        return replace(self, xty=self.xty[:, targets], **{name: getattr(self, name)[targets] for name in names})

    def rebased(self, shift: NDArray[np.float64]) -> Statistics:
        """The same rows with products relative to another shift."""
        move = self.shift - shift
        return Statistics(
            self.count,
            self.sum_x.copy(),
            self.gram.copy(),
            np.array(shift, dtype=np.float64),
            self.sum_y + self.count * move,
            self.yty + 2 * move * self.sum_y + self.count * move**2,
            self.xty + np.outer(self.sum_x, move),
        )

    def __add__(self, other: Statistics) -> Statistics:
        return self._combine(other, 1)

    def __sub__(self, other: Statistics) -> Statistics:
        """The rows of self without those of other, which must be among them."""
        if other.count > self.count or (self.n_train == other.n_train and (other.sum_x > self.sum_x).any()):
            raise RequestError(f"cannot take {other.count} rows away from {self.count} that they are not among")
        return self._combine(other, -1)

    def _combine(self, other: Statistics, sign: int) -> Statistics:
        if (self.n_train, self.n_targets) != (other.n_train, other.n_targets):
            raise RequestError(
                f"statistics of {self.n_train} x {self.n_targets} and {other.n_train} x {other.n_targets} do not combine"
            )
        if not np.array_equal(self.shift, other.shift):
            other = other.rebased(self.shift)
        sum_x = self.sum_x + sign * other.sum_x
        dtype = np.result_type(self.gram, other.gram, count_dtype(sum_x.max(initial=0.0)))
        gram = self.gram.astype(dtype)
        (np.add if sign > 0 else np.subtract)(gram, other.gram, out=gram, dtype=dtype)
        return Statistics(
            self.count + sign * other.count,
            sum_x,
            gram,
            self.shift,
            self.sum_y + sign * other.sum_y,
            self.yty + sign * other.yty,
            self.xty + sign * other.xty,
        )

    def save(self, path: str | Path) -> None:
        """Write an ``.npz`` file."""
        arrays = {name: getattr(self, name) for name in _NAMES}
        with replacing(path) as temporary, temporary.open("wb") as file:
            np.savez(file, format_version=FORMAT_VERSION, **arrays)

    @classmethod
    def load(cls, path: str | Path) -> Statistics:
        """Read what `save` wrote."""
        with np.load(path, allow_pickle=False) as data:
            if int(data["format_version"]) > FORMAT_VERSION:
                raise newer_format(str(path), int(data["format_version"]), FORMAT_VERSION)
            found = cls(count=int(data["count"]), **{name: data[name] for name in _NAMES if name != "count"})
        found.gram = found.gram.astype(count_dtype(found.sum_x.max(initial=0.0)), copy=False)
        return found


_NAMES = ("count", "sum_x", "gram", "shift", "sum_y", "yty", "xty")


def count_dtype(largest: float) -> np.dtype[Any]:
    """The smallest unsigned integers that hold a count."""
    return np.dtype(np.uint16 if largest < 1 << 16 else np.uint32 if largest < 1 << 32 else np.uint64)


def expected_dtype(x: NDArray[np.bool_], rows: int) -> np.dtype[Any]:
    """The integers that will hold the counts of so many rows, judged by the first masks x (k, n_train).

    Columns that are in more rows than they should by chance are expected to stay so. A wrong guess costs a copy.
    """
    if rows < 1 << 16:
        return count_dtype(rows)
    share = x.mean(axis=0)
    chance = share.mean() * (1 - share.mean()) / len(x)
    uneven = np.sqrt(max(float(share.var()) - float(chance), 0.0))
    return count_dtype(rows * min(1.0, float(share.mean()) + 4 * uneven) + 8 * np.sqrt(rows))


class Accumulator:
    """Adds rows to statistics, and multiplies masks only when many have come together."""

    def __init__(self, statistics: Statistics) -> None:
        self.statistics = statistics
        size = max(_BUFFER_BYTES, statistics.gram.nbytes // 16)
        self._columns = np.zeros(
            (statistics.n_train, words_of(8 * size // max(1, statistics.n_train))), dtype=np.uint64
        )
        self._filled = 0

    def add(self, x: NDArray[np.bool_], y: NDArray[np.float64]) -> None:
        """Add rows: masks x (k, n_train) and outputs y (k, n_targets)."""
        self.statistics.add_sums(x, y)
        room = 64 * self._columns.shape[1]
        for start in range(0, len(x), room):
            part = x[start : start + room]
            words = -(-len(part) // 64)
            if self._filled + words > self._columns.shape[1]:
                self._flush()
            pack_columns(part, self._columns, self._filled)
            self._filled += words

    def finish(self) -> Statistics:
        """The statistics of all rows that were added."""
        if self._filled:
            self._flush()
        return self.statistics

    def _flush(self) -> None:
        whole = -(-self._filled // 8) * 8
        self._columns[:, self._filled : whole] = 0
        self.statistics.add_counts(self._columns[:, :whole])
        self._filled = 0
