"""All masks of a problem in memory, one bit each, and statistics of any rows of it for any targets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from datamodels.regression import statistics
from datamodels.regression.bits import count_columns, pack_bits, pack_columns, unpack_rows, words_of
from datamodels.regression.problem import Problem
from datamodels.threads import ahead

_UNPACK_BYTES = 64 << 20


@dataclass(frozen=True, eq=False)
class PackedRows:
    """Masks as bit-packed columns.

    Attributes
    ----------
    columns
        (n_train, words) uint64.
    places
        (m,) which bit is which row of the problem, ascending.
    """

    problem: Problem
    columns: NDArray[np.uint64]
    places: NDArray[np.int64]

    @classmethod
    def read(cls, problem: Problem, progress: Callable[[int], None] | None = None) -> PackedRows:
        """One pass over the masks."""
        masks_only = replace(problem, targets=problem.targets[:0])
        columns = np.zeros((problem.n_train, words_of(problem.n_rows + 64)), dtype=np.uint64)
        places, used = [], 0
        for x, _ in ahead(masks_only.chunks()):
            words = -(-len(x) // 64)
            if used + words > columns.shape[1]:
                columns = np.pad(columns, ((0, 0), (0, words_of(64 * (used + words)) - columns.shape[1])))
            pack_columns(x, columns, used)
            places.append(64 * used + np.arange(len(x)))
            used += words
            if progress:
                progress(len(x))
        return cls(problem, columns, np.concatenate(places))

    @property
    def bits(self) -> int:
        return 64 * self.columns.shape[1]

    def rows_with(self, example: int) -> NDArray[np.bool_]:
        """Which rows hold a training example, (m,)."""
        bits = np.unpackbits(self.columns[example].view(np.uint8), bitorder="little")
        return bits[self.places].astype(np.bool_)

    def packed(self, rows: NDArray[np.bool_]) -> NDArray[np.uint64]:
        """Some rows (m,) as bits, (words,)."""
        bits = np.zeros(self.bits, dtype=np.bool_)
        bits[self.places] = rows
        return pack_bits(bits, self.columns.shape[1])

    def counts(self, kept: NDArray[np.uint64]) -> NDArray[np.float64]:
        """How many of several sets of rows, given as bits (k, words), hold each example: (k, n_train)."""
        return count_columns(self.columns, kept)

    def outputs(self, part: slice) -> NDArray[np.float64]:
        """Outputs of some targets (m, k), all rows."""
        return replace(self.problem, targets=self.problem.targets[part]).load_outputs()

    def products(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Xᵀ v (n_train, k) for values v (m, k) per row."""
        n = len(self.columns)
        precision = np.float64 if n <= statistics.FLOAT64_PRODUCTS_UP_TO else np.float32
        placed = np.zeros((self.bits, values.shape[1]), dtype=precision)
        placed[self.places] = values
        out = np.zeros((n, values.shape[1]))
        size = max(64, min(8192, _UNPACK_BYTES // (n * placed.itemsize)))
        buffer = np.empty((size, n), dtype=precision)
        for start in range(0, self.bits, size):
            x = unpack_rows(self.columns, start, buffer[: min(size, self.bits - start)])
            out += x.T @ placed[start : start + size]
        return out
