"""What fitting yields, before it is said where it comes from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Design units of rows (m,) -> the held-out rows of each split, bool (m,).
Splits = Callable[[NDArray[np.int64]], list[NDArray[np.bool_]]]


@dataclass(frozen=True, eq=False)
class Solution:
    """Raw weights (n_train, n_targets), bias (n_targets,), and facts with targets as first axis."""

    weights: NDArray[np.floating]
    bias: NDArray[np.float64]
    facts: dict[str, NDArray[Any]] = field(default_factory=dict)
