"""What each row of a remote store is, and how rows are written by any number of writers.

An array ``_rows`` (n_models,) of uint64 says of every row what it is: ``state << 32 | checksum`` with
state 2 for a complete row. Its chunks are of many blocks, so that few objects tell what is complete and nothing is ever listed.

How a row is written, with any number of writers and without a lock service:

1. *Create.* The chunks of a block that nobody has written are created, on condition that they do not exist. Who created all
   of them marks his rows complete, on condition that nobody has claimed or completed them meanwhile.
2. *Claim.* Otherwise the rows are claimed: state 1 and a random token take the place of the checksum, on condition that
   ``_rows`` is what was read. Only the holder of a claim puts its rows into chunks that exist, each time on condition that
   the chunk is what was read, and never later than half a lease after the claim. Then the rows are marked complete, where
   they still bear the token.
3. *Take over.* A claim that did not change for a whole lease, by the clock of the one who waits, is claimed anew; a writer
   that fails and lives gives its claim up (state 3).

So a chunk holds the bytes of a complete row before the row is marked, no writer touches rows that are complete or
another's, and a writer that stalls cannot come back to a block that was taken from it.
"""

from __future__ import annotations

import contextlib
import functools
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor, wait
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, StoreError
from datamodels.store.objects import Changed, Objects
from datamodels.store.zarr_format import BLOCKS_PER_STATE, ROWS, decoded, encoded

CLAIMED, COMPLETE, LEFT = np.uint64(1), np.uint64(2), np.uint64(3)
LOW, SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_PARALLEL = 16
_T = TypeVar("_T")
_R = TypeVar("_R")


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(_PARALLEL, "datamodels-requests")


if hasattr(os, "register_at_fork"):  # threads do not come along
    os.register_at_fork(after_in_child=_threads.cache_clear)


class RowStates:
    """The array ``_rows``: of every row ``state << 32 | checksum``.

    Attributes
    ----------
    block_rows
        Rows of a chunk of values.
    rows
        Rows of a chunk of states.
    lease
        Seconds after which rows that a writer claimed and left are taken over; ``DATAMODELS_LEASE`` in the environment.
    """

    def __init__(self, objects: Objects, block_rows: int) -> None:
        self.objects, self.block_rows = objects, block_rows
        self.rows = block_rows * BLOCKS_PER_STATE
        self.lease = float(os.environ.get("DATAMODELS_LEASE", "60"))
        self._known: dict[int, tuple[NDArray[np.uint64], Any]] = {}

    def all(self, n_models: int) -> NDArray[np.uint64]:
        """Of all rows, (n_models,). Chunks whose rows are all complete are read once."""
        numbers = range(-(-n_models // self.rows))
        self.refresh(numbers, n_models)
        return np.concatenate([np.empty(0, np.uint64), *(self._known[i][0] for i in numbers)])[:n_models]

    def of(self, rows: NDArray[np.int64], n_models: int) -> NDArray[np.uint64]:
        """Of some rows, (len(rows),)."""
        numbers, where = np.unique(rows // self.rows, return_inverse=True)
        self.refresh(numbers.tolist(), n_models)
        states = np.array([self._known[n][0] for n in numbers]).reshape(len(numbers), self.rows)
        return states[where, rows % self.rows]

    def refresh(self, numbers: Iterable[int], n_models: int) -> None:
        """Read chunks anew, but for those whose rows are all complete."""

        def stale(number: int) -> bool:
            known = self._known.get(number)
            return known is None or not (known[0][: n_models - number * self.rows] >> SHIFT == COMPLETE).all()

        self.parallel(self.read, filter(stale, numbers))

    def known(self, number: int) -> tuple[NDArray[np.uint64], Any]:
        """A chunk as it was read or written last, and the tag of that version."""
        return self._known.get(number) or self.read(number)

    def read(self, number: int) -> tuple[NDArray[np.uint64], Any]:
        """A chunk, (rows,), and the tag of its version."""
        found = self.objects.read(f"{ROWS}/c/{number}")
        if found is None:
            state = np.zeros(self.rows, np.uint64), None
        else:
            if len(found[0]) != 8 * self.rows:
                raise CorruptStoreError(
                    f"{self.objects.address}/{ROWS}/c/{number} has {len(found[0])} bytes; {8 * self.rows} were written: "
                    "restore it from a copy"
                )
            state = np.frombuffer(found[0], "<u8").copy(), found[1]
        self._known[number] = state
        return state

    def swap(self, number: int, state: NDArray[np.uint64], tag: Any) -> bool:
        """Replace a chunk, when it is still what was read; then it is known."""
        try:
            tag = self.objects.replace(f"{ROWS}/c/{number}", state.astype("<u8").tobytes(), tag)
        except Changed:
            return False
        self._known[number] = state, tag
        return True

    def forget(self, rows: NDArray[np.int64]) -> None:
        """Mark rows that are complete as free."""
        for number in np.unique(rows // self.rows).tolist():
            at = rows[rows // self.rows == number] - number * self.rows
            while True:
                state, tag = self.read(number)
                done = at[state[at] >> SHIFT == COMPLETE]
                state[done] = 0
                if not len(done) or self.swap(number, state, tag):
                    break

    def parallel(
        self, function: Callable[[_T], _R], items: Iterable[_T], meanwhile: Callable[[], object] | None = None
    ) -> list[_R]:
        """The function of each item, in threads: requests wait. What is to be done `meanwhile` is done in this one."""
        work = list(items)
        if len(work) < 2 and meanwhile is None:
            return [function(item) for item in work]
        running = [_threads().submit(function, item) for item in work]
        try:
            if meanwhile is not None:
                meanwhile()
        finally:
            wait(running)  # all of them, since nothing may go on behind an error
        return [one.result() for one in running]


class _Late(Exception):
    """A claim is too old to write by."""


class Part:
    """Rows of one chunk of ``_rows`` that are to be written, ascending, with their values, and what computes checksums."""

    def __init__(
        self,
        states: RowStates,
        number: int,
        rows: NDArray[np.int64],
        values: dict[str, NDArray[Any]],
        sums: Callable[[NDArray[np.int64], Mapping[str, NDArray[Any]]], NDArray[np.uint64]],
    ) -> None:
        self.states, self.number, self.rows, self.values = states, number, rows, values
        self._sums = sums
        self.at = rows - number * states.rows
        self.blocks = rows // states.block_rows

    @functools.cached_property
    def complete(self) -> NDArray[np.uint64]:
        """The states of these rows once they are complete, (rows,)."""
        return (COMPLETE << SHIFT) | self._sums(self.rows, self.values)

    def write(self, overwrite: bool) -> list[int]:
        """Write what is not complete. Returns the rows that were written."""
        state, tag = self.states.known(self.number)
        fresh = ~np.isin(self.blocks, self._blocks_with(state >> SHIFT != 0))
        written = np.zeros(len(self.rows), np.bool_)
        if fresh.any():
            written |= self._create(np.flatnonzero(fresh), state, tag)
        left = np.flatnonzero(~written)
        if len(left):
            written[self._claim_and_write(left, overwrite)] = True
        return self.rows[written].tolist()

    # -- blocks that nobody has written ---------------------------------------------------------------

    def _create(self, positions: NDArray[np.int64], state: NDArray[np.uint64], tag: Any) -> NDArray[np.bool_]:
        """Create the chunks of blocks and mark the rows of those that were all created. Returns which rows, (rows,)."""
        jobs = [(key, block) for block in np.unique(self.blocks[positions]).tolist() for key in self.values]
        made = dict(zip(jobs, self.states.parallel(self._create_chunk, jobs, lambda: self.complete), strict=True))
        mine = np.zeros(len(self.rows), np.bool_)
        for position in positions:
            mine[position] = all(made[key, self.blocks[position]] for key in self.values)
        while mine.any():
            free = state[self.at] >> SHIFT == 0
            mine &= free  # what was claimed or completed meanwhile is another's
            marked = state.copy()
            marked[self.at[mine]] = self.complete[mine]
            if self.states.swap(self.number, marked, tag):
                break
            state, tag = self.states.read(self.number)
            done = mine & (state[self.at] == self.complete)
            if done.any():  # an answer was lost, or somebody wrote equal bytes
                return done
        return mine

    def _create_chunk(self, job: tuple[str, int]) -> bool:
        key, block = job
        try:
            self.states.objects.create(self._name(key, block), encoded(self._merged(key, block, None, None)))
        except Changed:
            return False
        return True

    # -- rows of blocks that exist --------------------------------------------------------------------

    def _claim_and_write(self, positions: NDArray[np.int64], overwrite: bool) -> list[int]:
        """Claim rows, put them into their chunks, mark them; wait for those that others have claimed."""
        written: list[int] = []
        seen: dict[int, tuple[int, float]] = {}  # position -> the claim that was seen, and since when
        pause = 0.05
        while len(positions):
            state, tag = self.states.read(self.number)
            status = state[self.at[positions]] >> SHIFT
            if not overwrite:
                positions, status = positions[status != COMPLETE], status[status != COMPLETE]
            now = time.monotonic()
            takeable = status != CLAIMED
            for i, position in enumerate(positions.tolist()):
                if not takeable[i]:
                    claim = int(state[self.at[position]])
                    known, since = seen.get(position, (claim, now))
                    seen[position] = (claim, since if known == claim else now)
                    takeable[i] = known == claim and now - since >= self.states.lease
            taken = positions[takeable]
            if not len(taken):
                if len(positions):
                    time.sleep(min(pause * random.uniform(0.5, 1), self.states.lease / 4))
                    pause = min(2 * pause, 2.0)
                continue
            done = self._under_claim(taken, state, tag)
            written += done.tolist()
            positions = np.setdiff1d(positions, done)
        return written

    def _under_claim(self, taken: NDArray[np.int64], state: NDArray[np.uint64], tag: Any) -> NDArray[np.int64]:
        """Claim rows whose state was just read, write them, mark them. Returns those that were marked."""
        complete = self.complete  # before there is a claim that an error would leave behind
        token = (CLAIMED << SHIFT) | np.uint64(random.SystemRandom().randrange(1, 1 << 32))
        claimed = state.copy()
        claimed[self.at[taken]] = token
        until = time.monotonic() + self.states.lease / 2
        if not self.states.swap(self.number, claimed, tag):
            return taken[:0]
        kept = set(self._blocks_with(claimed >> SHIFT == COMPLETE).tolist())
        jobs = [(key, block, block in kept) for block in np.unique(self.blocks[taken]).tolist() for key in self.values]
        try:
            self.states.parallel(lambda job: self._put_into(*job, taken, until), jobs)
        except _Late:
            return taken[:0]
        except BaseException:
            self._leave(taken, token)
            raise
        while True:
            state, tag = self.states.known(self.number)
            held = taken[state[self.at[taken]] == token]
            marked = state.copy()
            marked[self.at[held]] = complete[held]
            if not len(held) or self.states.swap(self.number, marked, tag):
                return held
            state, _ = self.states.read(self.number)
            if (state[self.at[held]] == complete[held]).all():  # an answer was lost
                return held

    def _leave(self, taken: NDArray[np.int64], token: np.uint64) -> None:
        """Say that rows are claimed by nobody, so that nobody waits for them: what the service allows of it."""
        with contextlib.suppress(StoreError):
            state, tag = self.states.read(self.number)
            state[self.at[taken][state[self.at[taken]] == token]] = LEFT << SHIFT
            self.states.swap(self.number, state, tag)

    def _put_into(self, key: str, block: int, keep: bool, taken: NDArray[np.int64], until: float) -> None:
        """Put claimed rows into one chunk; a damaged one is made anew when it has no complete rows to `keep`."""
        while True:
            found = self.states.objects.read(self._name(key, block))
            try:
                chunk = self._merged(key, block, taken, None if found is None else found[0])
            except CorruptStoreError:
                if keep:
                    raise
                chunk = self._merged(key, block, taken, None)
            data = encoded(chunk)
            if time.monotonic() > until:
                raise _Late
            try:
                self.states.objects.replace(self._name(key, block), data, None if found is None else found[1])
                return
            except Changed:
                continue

    def _blocks_with(self, marked: NDArray[np.bool_]) -> NDArray[np.int64]:
        """Blocks of which a row is marked, given one mark per row of this chunk of states."""
        return np.unique((np.flatnonzero(marked) + self.number * self.states.rows) // self.states.block_rows)

    # -- bytes -----------------------------------------------------------------------------------------

    def _name(self, key: str, block: int) -> str:
        return "/".join([key, "c", str(block), *("0" for _ in self.values[key].shape[1:])])

    def _merged(self, key: str, block: int, only: NDArray[np.int64] | None, found: bytes | None) -> NDArray[Any]:
        """A chunk with these rows in it, (block_rows, ...): over zeros, or over what was found."""
        values, size = self.values[key], self.states.block_rows
        positions = np.flatnonzero(self.blocks == block)
        if only is not None:
            positions = np.intersect1d(positions, only)
        if len(positions) == size:  # the rows of a block, in their order
            return values[positions[0] : positions[-1] + 1]
        shape = (size, *values.shape[1:])
        chunk = (
            np.zeros(shape, values.dtype)
            if found is None
            else decoded(found, shape, values.dtype, self._name(key, block))
        )
        chunk[self.rows[positions] - block * size] = values[positions]
        return chunk
