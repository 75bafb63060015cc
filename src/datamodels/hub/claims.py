"""Claims: who works on which rows, until when. A claim is a small file; its name says it all.

A claim is committed on top of the commit that it was chosen from, so that of two people one is told to choose again.
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.hub.contents import NAME, There, choose, read_stores
from datamodels.hub.remote import Head, Repository, without_bars

_TIME = "%Y%m%dT%H%M%SZ"
_LONGEST = 24 * 365.0  # hours


@dataclass(frozen=True)
class Claim:
    """Rows of a store that are yours for a time.

    Attributes
    ----------
    store
        Its name on the Hub.
    start, stop
        The rows are start..stop-1.
    missing
        How many of them nobody had sent when they were claimed.
    until
        When the claim ends (UTC).
    """

    store: str
    start: int
    stop: int
    missing: int
    until: datetime

    @property
    def rows(self) -> str:
        """``START:STOP``, as ``datamodels train --rows`` takes it."""
        return f"{self.start}:{self.stop}"

    def to_dict(self) -> dict[str, Any]:
        """All of it and `rows`, JSON-ready."""
        facts = {"store": self.store, "start": self.start, "stop": self.stop, "missing": self.missing}
        return {**facts, "rows": self.rows, "until": self.until.isoformat(timespec="seconds")}


def claim(address: str, *, rows: int = 1000, hours: float = 24.0, store: str | None = None) -> Claim:
    """Claim the next rows that are neither on the Hub nor claimed by anybody.

    Parameters
    ----------
    address
        ``hf://datasets/USER/NAME``.
    rows
        How many; fewer when there are not as many, or another claim begins before.
    hours
        After that the claim ends, and others may claim those of its rows that are not on the Hub.
    store
        The name of the store; needed when the dataset holds several.

    Returns
    -------
    Claim
        Its range may span rows that are on the Hub already; pull them first, then they are not trained again.

    Raises
    ------
    RequestError
        when no row is free, nobody is logged in, or the account may not write.
    """
    if rows < 1:
        raise RequestError(f"rows is {rows}; give 1 or more")
    if not 0 < hours <= _LONGEST:
        raise RequestError(f"hours is {hours}; give a number above 0, of at most {_LONGEST:g} (a year)")
    repository = Repository(address)
    name, by = uuid.uuid4().hex[:12], repository.user()

    def attempt(head: Head) -> Claim:
        there = choose(read_stores(repository, head), store, repository.address)
        now = datetime.now(UTC)
        known = list(_claims(head, there.name))
        mine = next((claim for path, claim in known if path.endswith(f"-{name}.json")), None)
        if mine is not None:  # it was committed, and the answer was lost
            return mine
        valid = [claim for _, claim in known if claim.until > now]
        found = _free(there, valid, rows, now + timedelta(hours=hours), repository.address)
        path = f"claims/{there.name}/{found.start:08d}-{found.stop:08d}-{found.missing}-{found.until.strftime(_TIME)}-{name}.json"
        over = [path for path, claim in known if claim.until <= now or there.complete[claim.start : claim.stop].all()]
        facts = {**found.to_dict(), "by": by, "claimed": now.isoformat(timespec="seconds")}
        repository.commit(head, {path: json.dumps(facts).encode()}, f"Claim rows {found.rows}", deleted=over)
        return found

    with without_bars(True):
        return repository.racing(attempt)


def _free(there: There, claims: list[Claim], rows: int, until: datetime, address: str) -> Claim:
    """The first rows that are free, up to the next that somebody else works on."""
    free = ~there.complete
    taken = np.zeros(len(free), dtype=np.bool_)
    for claim in claims:
        taken[claim.start : claim.stop] = True
    taken &= free
    candidates: NDArray[np.int64] = np.flatnonzero(free & ~taken)
    if not len(candidates):
        live = [claim.until for claim in claims if taken[claim.start : claim.stop].any()]
        ends = f", {int(taken.sum())} claimed, the first until {min(live):%Y-%m-%d %H:%M} UTC" if live else ""
        raise RequestError(
            f"no row of {there.name!r} at {address} is free: {int(there.complete.sum())} of {len(free)} are there"
            f"{ends}; to add models, `datamodels extend` the store and push it"
        )
    chosen = candidates[:rows]
    others = np.flatnonzero(taken[chosen[0] :])
    if len(others):
        chosen = chosen[chosen < chosen[0] + others[0]]
    return Claim(there.name, int(chosen[0]), int(chosen[-1]) + 1, len(chosen), until.replace(microsecond=0))


def _claims(head: Head, store: str) -> Iterable[tuple[str, Claim]]:
    """The files of claims of a store, and what they say."""
    pattern = re.compile(rf"claims/({NAME})/(\d{{8,}})-(\d{{8,}})-(\d+)-(\d{{8}}T\d{{6}}Z)-[0-9a-f]{{12}}\.json")
    for path in head.files:
        found = pattern.fullmatch(path)
        if found and found[1] == store:
            until = datetime.strptime(found[5], _TIME).replace(tzinfo=UTC)
            yield path, Claim(store, int(found[2]), int(found[3]), int(found[4]), until)
