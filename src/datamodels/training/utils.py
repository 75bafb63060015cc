"""Functions that programs written for the original library import from here."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np

from datamodels.errors import RequestError

Mode = Literal["r", "r+", "c"]


def memmap_path(logdir: str | Path, key: str) -> Path:
    """Where the array of a key lies."""
    return Path(logdir) / f"{key}.npy"


def load_memmap(logdir: str | Path, key: str, mode: Mode) -> np.memmap:
    """The array of a key, mapped into memory.

    Raises
    ------
    RequestError
        for other modes: "w+" would empty the file.
    """
    if mode not in ("r", "r+", "c"):
        raise RequestError(f"mode is {mode!r}; legal: 'r', 'r+', 'c'")
    return np.lib.format.open_memmap(memmap_path(logdir, key), mode=mode)
