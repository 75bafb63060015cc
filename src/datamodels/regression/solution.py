"""What fitting yields, before it is said where it comes from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
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

    @classmethod
    def joined(cls, parts: Sequence[Solution]) -> Solution:
        """From solutions of some targets each, in their order."""
        return cls(
            np.concatenate([part.weights for part in parts], axis=1),
            np.concatenate([part.bias for part in parts]),
            {name: np.concatenate([part.facts[name] for part in parts]) for name in parts[0].facts},
        )
