"""FFCV files for the tests: written from arrays, read as arrays, and the sizes of their parts."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.regression import beton

HEADER, FIELD, ENTRY = 24, 1041, 24
SMALL_PAGE = 2 << 20


def put(path: Path, arrays: dict[str, NDArray[Any]], step: int = 1000, page_size: int = beton.PAGE_SIZE) -> Path:
    """Write whole arrays, `step` rows at a time."""

    def chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
        return (array[start : start + step] for start in range(0, len(array), step))

    beton.write(path, {name: (a.shape, a.dtype, chunks(a)) for name, a in arrays.items()}, page_size)
    return path


def read_all(path: Path) -> dict[str, NDArray[Any]]:
    file = beton.Beton(path)
    return {name: np.asarray(file.array(name)) for name in file.fields}
