"""Ranges of train examples under one checkpoint each, for processes that share the work and the folder."""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

_PER_SLOT = 2


class Range(NamedTuple):
    """Examples start..stop-1 under a checkpoint, `missing` of which are to be computed."""

    checkpoint: int
    start: int
    stop: int
    missing: int


def ranges_of(missing: NDArray[np.bool_], slots: int) -> list[Range]:
    """Ranges with about as many missing examples each, from missing (checkpoints, n): a checkpoint is one range where one
    process does all, and else is cut so that all have some, since each range is a pass over the loader."""
    chosen = np.flatnonzero(missing.any(axis=1))
    pieces = 1 if slots == 1 else math.ceil(_PER_SLOT * slots / max(1, len(chosen)))
    found = []
    for c in chosen.tolist():
        for part in np.array_split(np.flatnonzero(missing[c]), pieces):
            if len(part):
                found.append(Range(c, int(part[0]), int(part[-1]) + 1, len(part)))
    return found
