"""Columns of facts about targets or training examples, as the page colours, sorts and saves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

_EXACT = 2**53  # integers up to which float64, and so a browser, has them all


@dataclass(frozen=True, eq=False)
class Column:
    """A column: numbers as they were given, or int32 codes into `categories`, -1 where missing."""

    name: str
    values: NDArray[Any]
    description: str
    categories: tuple[str, ...] | None = None

    def about(self) -> dict[str, Any]:
        """JSON-ready, without the values."""
        kind = "number" if self.categories is None else "category"
        out: dict[str, Any] = {"name": self.name, "kind": kind, "description": self.description}
        if self.categories is None:
            return {**out, "wide": True} if self.packed.dtype == np.float64 else out
        return {**out, "categories": list(self.categories)}

    @cached_property
    def packed(self) -> NDArray[Any]:
        """What a page reads: codes, or numbers as float32, or as float64 where float32 would change them."""
        if self.categories is not None:
            return self.values
        wide = self.values.astype(np.float64)
        short = wide.astype(np.float32)
        return short if np.array_equal(short, wide, equal_nan=True) else wide

    @cached_property
    def n_known(self) -> int:
        """How many of the categories occur."""
        return len(np.unique(self.values[self.values >= 0]))

    def texts(self) -> list[str]:
        """The categories of all rows, "" where missing."""
        names = [*(self.categories or ()), ""]
        return [names[code] for code in self.values]


def number(name: str, values: ArrayLike, description: str) -> Column:
    """A column of computed numbers, whose figures beyond float32 say nothing."""
    return Column(name, np.asarray(values, dtype=np.float32), description)


def category(name: str, codes: ArrayLike, categories: Sequence[str], description: str) -> Column:
    return Column(name, np.asarray(codes, dtype=np.int32), description, tuple(str(one) for one in categories))


def column_of(name: str, values: NDArray[Any], description: str) -> Column:
    """Of numbers, truth values or text. Integers that a browser cannot hold, such as ids of 64 bits, are text."""
    kind, size = values.dtype.kind, values.dtype.itemsize
    if kind == "f":
        return Column(name, values.astype(f"f{min(8, max(4, size))}"), description)
    if kind in "iu" and np.abs(values.astype(np.float64)).max(initial=0) < _EXACT:
        return Column(name, values.astype(f"{kind}{size}"), description)
    if values.dtype.kind == "b":
        return category(name, values, ("no", "yes"), description)
    names, codes = np.unique(values.astype(str), return_inverse=True)
    missing = np.flatnonzero(names == "")
    if len(missing):  # "" sorts first
        names, codes = names[1:], codes - 1
    return category(name, codes, names.tolist(), description)
