"""What a store says about itself."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np

from datamodels.errors import RequestError


def beat_of(data: bytes) -> dict[str, Any] | None:
    """A heartbeat as it was left; None for what is none (half a file, one of another program)."""
    try:
        beat = json.loads(data)
    except (ValueError, RecursionError):
        return None
    if isinstance(beat, dict) and "name" in beat and not _is_name(beat["name"]):
        return None
    numbers = ("updated", "rows_per_second")
    known = isinstance(beat, dict) and all(isinstance(beat.get(name, 0), int | float) for name in numbers)
    return beat if known and isinstance(beat.get("task", ""), str) else None


def campaign_file(name: str, suffix: str) -> str:
    """The file of a campaign in a store, ``campaigns/NAME.SUFFIX``.

    Raises
    ------
    RequestError
        when the name is none, so that no file outside of the folder is touched.
    """
    if not _is_name(name):
        raise RequestError(f"{name!r} cannot name a campaign; use letters, digits, '_', '-' and '.'")
    return f"campaigns/{name}.{suffix}"


def _is_name(name: Any) -> bool:
    return isinstance(name, str) and re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", name) is not None


@dataclass(frozen=True)
class Status:
    """How far a store is.

    Attributes
    ----------
    models, completed, failed, pending
        How many rows there are, are complete, failed in their last attempt, and are neither.
    rows_per_second, seconds_left
        Of the campaigns that run; None when none does.
    failed_rows
        Which rows failed.
    """

    models: int
    completed: int
    failed: int
    pending: int
    rows_per_second: float | None = None
    seconds_left: float | None = None
    failed_rows: list[int] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        return asdict(self)


@dataclass(frozen=True)
class Verified:
    """What `Store.verify` found.

    Attributes
    ----------
    checked
        How many rows are marked complete.
    bad_rows
        Those whose bytes are not what was written.
    has_checksums
        Whether the store keeps checksums; without, only masks and parameters were compared.
    """

    checked: int
    bad_rows: list[int]
    has_checksums: bool

    @property
    def ok(self) -> bool:
        """Whether no row is bad."""
        return not self.bad_rows

    def to_dict(self) -> dict[str, Any]:
        """All of it and `ok`, JSON-ready."""
        return {"ok": self.ok, **asdict(self)}


@dataclass(frozen=True)
class Merged:
    """What `Store.merge` did, as lists of rows.

    Attributes
    ----------
    copied
        Rows that are new here.
    already_there
        Complete in both, and left alone.
    conflicting
        Those of them whose content differs.
    bad_in_source
        Not copied, since their checksum is wrong there.
    """

    copied: list[int]
    already_there: list[int]
    conflicting: list[int]
    bad_in_source: list[int]

    def to_dict(self) -> dict[str, Any]:
        """How many rows were copied and already there, and which are conflicting or bad, JSON-ready."""
        return {**asdict(self), "copied": len(self.copied), "already_there": len(self.already_there)}


def as_ranges(rows: Sequence[int], most: int = 10) -> str:
    """Ascending rows in words: ``3, 10:20`` is row 3 and rows 10 to 19. After `most` parts, how many more rows there are."""
    index = np.asarray(rows, dtype=np.int64)
    parts = np.split(index, np.flatnonzero(np.diff(index) != 1) + 1) if len(index) else []
    words = [str(part[0]) if len(part) == 1 else f"{part[0]}:{part[-1] + 1}" for part in parts[:most]]
    more = sum(map(len, parts[most:]))
    return ", ".join(words) + (f" and {more} more" if more else "")
