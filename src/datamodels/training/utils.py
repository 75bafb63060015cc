"""Functions that programs written for the original library import from here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

Mode = Literal["r", "r+", "w+", "c"]


def memmap_path(logdir: str | Path, key: str) -> Path:
    """Where the array of a key lies."""
    return Path(logdir) / f"{key}.npy"


def load_memmap(logdir: str | Path, key: str, mode: Mode) -> np.memmap:
    """The array of a key, mapped into memory."""
    array = np.load(memmap_path(logdir, key), mmap_mode=mode, allow_pickle=False)
    assert isinstance(array, np.memmap)
    return array
