"""What other processes are sent of arrays and stores: where they lie, not what is in them."""

from __future__ import annotations

import mmap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.store import Store


@dataclass(frozen=True)
class Carried:
    """An array for pickling; one that is a file, mapped read-only as a whole, goes by the path of the file."""

    array: Any

    def __reduce__(self) -> tuple[Any, ...]:
        array = self.array
        if type(array) is np.memmap and isinstance(array.base, mmap.mmap) and array.mode == "r" and array.filename:
            order = "C" if array.flags.c_contiguous else "F"
            path = str(Path(array.filename).resolve())
            return _mapped, (path, array.dtype, array.offset, array.shape, order)
        return Carried, (np.asarray(array) if isinstance(array, np.memmap) else array,)


def _mapped(path: str, dtype: np.dtype[Any], offset: int, shape: tuple[int, ...], order: Any) -> Carried:
    return Carried(np.memmap(path, dtype, "r", offset, shape, order))


@dataclass(frozen=True)
class ArrayMasks:
    """Masks (m, n_train) that are there: (start, stop) -> rows."""

    carried: Carried

    def __call__(self, start: int, stop: int) -> NDArray[Any]:
        return self.carried.array[start:stop]


@dataclass(frozen=True)
class StoreMasks:
    """Masks of a store's rows: (start, stop) -> (stop - start, n_train)."""

    store: Store
    key: str

    def __call__(self, start: int, stop: int) -> NDArray[Any]:
        return self.store.masks(start, stop, key=self.key)

    def __reduce__(self) -> tuple[Any, ...]:
        return _store_masks, (self.store.address, self.key)


def _store_masks(address: str, key: str) -> StoreMasks:
    return StoreMasks(Store.open(address), key)
