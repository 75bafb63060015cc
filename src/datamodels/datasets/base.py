"""The type that every loader returns."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split.

    Attributes
    ----------
    x
        (k, ...) float32 features.
    y
        (k,) int64 class labels that models are trained on.
    hidden
        (k,) labels that models never see, or None.
    images
        (k, height, width) uint8 pictures to show, or None.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    hidden: NDArray[Any] | None = None
    images: NDArray[np.uint8] | None = None

    def __len__(self) -> int:
        return len(self.y)


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test split, and what their labels mean."""

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    hidden_name: str | None = None


_LOADERS: dict[str, Callable[[], Dataset]] = {}


def register(name: str, loader: Callable[[], Dataset]) -> None:
    """Make a loader known under a name, for ``run.json``."""
    _LOADERS[name] = loader


def load(name: str) -> Dataset:
    """The dataset of a name."""
    if name not in _LOADERS:
        raise RequestError(f"dataset {name!r} is unknown; legal: {', '.join(sorted(_LOADERS))}")
    return _LOADERS[name]()
