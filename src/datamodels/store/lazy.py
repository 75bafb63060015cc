"""Rows that are read where they are asked for, and otherwise look like a NumPy array."""

from __future__ import annotations

import copy
import math
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError


class LazyRows(ABC):
    """(rows, ...) values that are not in memory: takes the slices, indices and masks that an array takes, and reads only rows
    that they name.

    Attributes
    ----------
    shape
        As of an array; the first axis is rows.
    dtype
        Of the values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @abstractmethod
    def _read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """Rows in this order, (len(rows), values of a row)."""

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> NDArray[Any]:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if first is Ellipsis:
            return np.asarray(self)[index]
        wanted = np.asarray(np.arange(len(self))[first])
        found = self._read(wanted.reshape(-1)).reshape(wanted.shape + self.shape[1:])
        return found[(slice(None),) * wanted.ndim + tuple(rest)]

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        return self[:] if dtype is None else self[:].astype(dtype)

    def reshape(self, *shape: Any) -> LazyRows:
        """The same with the value of a row flat: ``reshape(rows, -1)`` and nothing else."""
        flat = math.prod(self.shape[1:])
        wanted = tuple(shape[0] if len(shape) == 1 else shape)
        if wanted not in ((len(self), -1), (len(self), flat)):
            raise RequestError(f"rows that are not in memory cannot take the shape {wanted}; give ({len(self)}, -1)")
        same = copy.copy(self)
        same.shape = (len(self), flat)
        return same
