"""What a push or a pull did."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from datamodels.store import Merged


@dataclass(frozen=True)
class Exchanged:
    """How a push or a pull ended.

    Attributes
    ----------
    address
        The dataset on the Hub.
    revision
        Its commit after the push, or the one that was pulled.
    stores
        Per store the rows that travelled (``copied``), those that were there, those whose content differs on both sides or
        that the Hub has twice (left as they are), and those whose checksum is wrong (refused).
    files
        Other files that travelled.
    kept
        Other files that differ on both sides, and were left as they are.
    commits
        Commits that a push made.
    """

    address: str
    revision: str
    stores: dict[str, Merged]
    files: list[str]
    kept: list[str]
    commits: int = 0

    @property
    def ok(self) -> bool:
        """Whether no row differs on both sides or is damaged."""
        return not any(store.conflicting or store.bad_in_source for store in self.stores.values())

    @property
    def rows(self) -> int:
        """How many rows travelled."""
        return sum(len(store.copied) for store in self.stores.values())

    def to_dict(self) -> dict[str, Any]:
        """All of it, `ok` and `rows`, JSON-ready."""
        return {"ok": self.ok, "rows": self.rows, **asdict(self)}
