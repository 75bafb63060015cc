"""Columns of facts about targets or training examples, as the page colours, sorts and saves them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray


@dataclass(frozen=True, eq=False)
class Column:
    """A column: float32 numbers, or int32 codes into `categories`, -1 where missing."""

    name: str
    values: NDArray[Any]
    description: str
    categories: tuple[str, ...] | None = None

    def about(self) -> dict[str, Any]:
        """JSON-ready, without the values."""
        kind = "number" if self.categories is None else "category"
        out: dict[str, Any] = {"name": self.name, "kind": kind, "description": self.description}
        return out if self.categories is None else {**out, "categories": list(self.categories)}

    def texts(self) -> list[str]:
        """The categories of all rows, "" where missing."""
        names = [*(self.categories or ()), ""]
        return [names[code] for code in self.values]


def number(name: str, values: ArrayLike, description: str) -> Column:
    return Column(name, np.asarray(values, dtype=np.float32), description)


def category(name: str, codes: ArrayLike, categories: Sequence[str], description: str) -> Column:
    return Column(name, np.asarray(codes, dtype=np.int32), description, tuple(str(one) for one in categories))


def column_of(name: str, values: NDArray[Any], description: str) -> Column:
    """Of numbers, truth values or text."""
    if values.dtype.kind in "iuf":
        return number(name, values, description)
    if values.dtype.kind == "b":
        return category(name, values, ("no", "yes"), description)
    names, codes = np.unique(values.astype(str), return_inverse=True)
    missing = np.flatnonzero(names == "")
    if len(missing):  # "" sorts first
        names, codes = names[1:], codes - 1
    return category(name, codes, names.tolist(), description)
