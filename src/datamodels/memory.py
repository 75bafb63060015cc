"""How much memory there is to use."""

from __future__ import annotations

import os
import re
from pathlib import Path

from datamodels.errors import RequestError

_SHARE = 0.6
_LEAST = 1 << 10  # text that says less has forgotten the unit
_UNITS = {"": 1, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30, "T": 1 << 40}


def bytes_of(given: float | str | None) -> int:
    """Bytes from a number, from text like ``"8GB"``, or by default most of what is free."""
    if given is None:
        return int(_SHARE * available())
    if isinstance(given, int | float):
        amount = int(given) if given < float("inf") else 0
    else:
        found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([KMGT]?)(?:i?B)?\s*", given, re.IGNORECASE)
        amount = int(float(found[1]) * _UNITS[found[2].upper()]) if found else 0
    if amount < (_LEAST if isinstance(given, str) else 1):
        raise RequestError(
            f"memory is {given!r}; give a positive number of bytes, or text with a unit like 500MB or 8GB"
        )
    return amount


def available() -> int:
    """Free memory in bytes, as far as the system and its control group let us have it."""
    free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        free = next(int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable"))
    except (OSError, StopIteration):
        pass
    try:
        group = Path("/sys/fs/cgroup")
        limit, used = ((group / name).read_text() for name in ("memory.max", "memory.current"))
        free = min(free, max(int(limit) - int(used), 0))
    except (OSError, ValueError):
        pass
    return free
