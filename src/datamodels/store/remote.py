"""The store on object storage: Zarr v3 arrays that `zarr.open_group` reads, one chunk per block of rows.

Beside the keys lies an array ``_rows`` (n_models,) of uint64 that says of every row what it is: ``state << 32 | checksum`` with
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
import io
import json
import math
import os
import random
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, RequestError, StoreError, first_line
from datamodels.spec import DESIGN_MASKS, LABELS, KeySpec, Spec
from datamodels.store.array import npy_bytes
from datamodels.store.base import Store, row_checksum
from datamodels.store.meta import Meta
from datamodels.store.objects import Changed, Objects
from datamodels.store.records import beat_of, campaign_file

ROWS = "_rows"
_ROOT = "zarr.json"
_ATTRIBUTE = "datamodels"
_TAKEN = (ROWS, _ROOT, "campaigns", "failures")  # names that keys cannot have
_CLAIMED, _COMPLETE, _LEFT = np.uint64(1), np.uint64(2), np.uint64(3)
_LOW, _SHIFT = np.uint64(0xFFFFFFFF), np.uint64(32)
_BLOCK_BYTES = 8 << 20
_LARGEST_BLOCK = 100  # rows
_BLOCKS_PER_STATE = 16
_PARALLEL = 16
_ZSTD_LEVEL = 1
_REMEDY = "`datamodels verify --forget` has its rows trained again"
_T = TypeVar("_T")
_R = TypeVar("_R")


class RemoteStore(Store):
    """A `Store` on object storage. Make one with `Store.create`, open one with `Store.open`.

    Attributes
    ----------
    block_rows
        Rows of a chunk. Writes of whole blocks cost least.
    lease
        Seconds after which rows that a writer claimed and left are taken over; ``DATAMODELS_LEASE`` in the environment.
    """

    path: str
    block_rows: int

    def __init__(self, path: str, objects: Objects, meta: Meta, block_rows: int) -> None:
        self.path = path
        self.spec, self.design, self.sweep = meta.spec, meta.design, meta.sweep
        self.block_rows = block_rows
        self.lease = float(os.environ.get("DATAMODELS_LEASE", "60"))
        self._objects = objects
        self._meta = meta
        self._states: dict[int, tuple[NDArray[np.uint64], Any]] = {}
        self._zarr: Any = None

    # -- creation and opening -----------------------------------------------------------------------

    @classmethod
    def _create(cls, path: str | Path, meta: Meta, facts: Mapping[str, NDArray[Any]]) -> Store:
        address = str(path)
        objects = Objects(address, make=True)
        if objects.read(_ROOT) is not None:
            raise StoreError(f"a store exists at {address!r}: open it, or choose another address; nothing was changed")
        block = _block_rows(meta.spec)
        for name, array in {DESIGN_MASKS: meta.design.packed_masks if meta.design else None, **facts}.items():
            if array is not None:
                objects.put(f"{name}.npy", npy_bytes(array))
        try:
            for name, document in _arrays(meta.spec, block).items():
                objects.create(f"{name}/{_ROOT}", document)
            # Last, since an address without it is no store.
            objects.create(_ROOT, _root(meta, block))
        except Changed as error:
            raise StoreError(
                f"{error} exists at {address!r} already: a creation was interrupted or is under way; choose another "
                "address, or remove what is there if nobody is at it"
            ) from None
        return cls._open(address)

    @classmethod
    def _exists(cls, path: str | Path) -> bool:
        try:
            return Objects(str(path)).read(_ROOT) is not None
        except FileNotFoundError:
            return False

    @classmethod
    def _open(cls, path: str | Path) -> Store:
        address = str(path)
        try:
            objects = Objects(address)
            found = objects.read(_ROOT)
        except FileNotFoundError:
            found = None
        if found is None:
            raise StoreError(
                f"there is no store at {address!r}; create one with `datamodels init` or Store.create"
            ) from None
        place = f"{address}/{_ROOT}"

        def masks() -> NDArray[np.uint8]:
            return _npy(objects, DESIGN_MASKS, address)

        try:
            document = json.loads(found[0])
            record = document["attributes"][_ATTRIBUTE]
            block = record["block_rows"]
            if {**document, "attributes": 0} != {"zarr_format": 3, "node_type": "group", "attributes": 0}:
                raise ValueError("it is no group of Zarr v3 as a store writes one")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptStoreError(f"{place} is damaged: {first_line(error)}") from None
        meta = Meta.of(record, place, f"the store {address!r}", masks)
        if type(block) is not int or not 1 <= block <= 1 << 20:
            raise CorruptStoreError(f"{place} is damaged: block_rows is {block!r}")
        store = cls(address, objects, meta, block)
        store._check_arrays()
        return store

    def _check_arrays(self) -> None:
        """That the arrays are those that the schema says."""
        wanted = _arrays(self.spec, self.block_rows)
        for name, found in zip(
            wanted, self._parallel(self._objects.read, (f"{n}/{_ROOT}" for n in wanted)), strict=True
        ):
            try:
                there, expected = json.loads(found[0] if found else b"null"), json.loads(wanted[name])
                same = there["shape"][1:] == expected["shape"][1:] and there["shape"][0] >= expected["shape"][0]
                same = same and there == {**expected, "shape": there["shape"], "attributes": there["attributes"]}
            except (ValueError, TypeError, KeyError, IndexError, RecursionError):
                same = False
            if not same:
                raise CorruptStoreError(
                    f"{self.path}/{name}/{_ROOT} is not what the store's schema says: it is missing or was edited"
                )

    # -- reading --------------------------------------------------------------------------------------

    def completed(self) -> NDArray[np.bool_]:
        return (self._all_states() >> _SHIFT) == _COMPLETE

    def completed_rows(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        index = np.asarray(rows, dtype=np.int64)
        numbers, where = np.unique(index // self._state_rows, return_inverse=True)
        self._refresh(numbers.tolist())
        states = np.array([self._states[n][0] for n in numbers]).reshape(len(numbers), self._state_rows)
        return (states[where, index % self._state_rows] >> _SHIFT) == _COMPLETE

    def checksums(self) -> NDArray[np.uint32] | None:
        return (self._all_states() & _LOW).astype(np.uint32)

    def array(self, key: str) -> NDArray[Any]:
        field = self.field(key)
        if self._zarr is None:
            import zarr
            from zarr.storage import ObjectStore

            there = ObjectStore(self._objects.store, read_only=True)
            self._zarr = self._objects.persist(
                lambda: zarr.open_group(there, mode="r", zarr_format=3, use_consolidated=False), "read", _ROOT
            )
        chunks = self._objects.persist(lambda: self._zarr[key], "read", key)
        return RemoteArray(chunks, self.n_models, field, self._objects)  # type: ignore[return-value]

    def _fact(self, name: str) -> NDArray[Any] | None:
        return _npy(self._objects, name, self.path)

    def _as_meta(self) -> Meta:
        return self._meta

    def _origin(self) -> str:
        return f"store:{self._meta.record['id']}"

    def _all_states(self) -> NDArray[np.uint64]:
        """Of every row ``state << 32 | checksum``, (n_models,). Chunks whose rows are all complete are read once."""
        numbers = range(-(-self.n_models // self._state_rows))
        self._refresh(numbers)
        if not len(numbers):
            return np.empty(0, np.uint64)
        return np.concatenate([self._states[i][0] for i in numbers])[: self.n_models]

    def _refresh(self, numbers: Iterable[int]) -> None:
        """Read states anew, but for chunks whose rows are all complete."""

        def stale(number: int) -> bool:
            known = self._states.get(number)
            return (
                known is None
                or not (known[0][: self.n_models - number * self._state_rows] >> _SHIFT == _COMPLETE).all()
            )

        self._parallel(self._read_state, filter(stale, numbers))

    @property
    def _state_rows(self) -> int:
        return self.block_rows * _BLOCKS_PER_STATE

    def _read_state(self, number: int) -> tuple[NDArray[np.uint64], Any]:
        found = self._objects.read(f"{ROWS}/c/{number}")
        if found is None:
            state = np.zeros(self._state_rows, np.uint64), None
        else:
            if len(found[0]) != 8 * self._state_rows:
                raise CorruptStoreError(
                    f"{self.path}/{ROWS}/c/{number} has {len(found[0])} bytes; {8 * self._state_rows} were written: "
                    "restore it from a copy"
                )
            state = np.frombuffer(found[0], "<u8").copy(), found[1]
        self._states[number] = state
        return state

    # -- writing --------------------------------------------------------------------------------------

    def _write_rows(self, rows: NDArray[np.int64], values: dict[str, NDArray[Any]], overwrite: bool) -> list[int]:
        order = np.argsort(rows)
        rows, written = rows[order], []
        stored = {key: np.ascontiguousarray(value[order], self.field(key).numpy_dtype) for key, value in values.items()}
        sums = np.array(
            [row_checksum(int(row), {key: value[i] for key, value in stored.items()}) for i, row in enumerate(rows)],
            dtype=np.uint64,
        )
        numbers = rows // self._state_rows
        for number in np.unique(numbers).tolist():
            at = np.flatnonzero(numbers == number)
            part = _Part(self, number, rows[at], {key: value[at] for key, value in stored.items()}, sums[at])
            written += part.write(overwrite)
        return sorted(written)

    def _parallel(self, function: Callable[[_T], _R], items: Iterable[_T]) -> list[_R]:
        work = list(items)
        if len(work) < 2:
            return [function(item) for item in work]
        with ThreadPoolExecutor(min(_PARALLEL, len(work))) as pool:
            return list(pool.map(function, work))

    def _forget(self, rows: NDArray[np.int64]) -> None:
        for number in np.unique(rows // self._state_rows).tolist():
            at = rows[rows // self._state_rows == number] - number * self._state_rows
            while True:
                state, tag = self._read_state(number)
                done = at[state[at] >> _SHIFT == _COMPLETE]
                state[done] = 0
                if not len(done) or self._swap(number, state, tag):
                    break

    def _swap(self, number: int, state: NDArray[np.uint64], tag: Any) -> bool:
        """Replace states, when they are still what was read; then they are known."""
        try:
            tag = self._objects.replace(f"{ROWS}/c/{number}", state.astype("<u8").tobytes(), tag)
        except Changed:
            return False
        self._states[number] = state, tag
        return True

    def extend(self, k: int) -> None:
        if k < 1:
            raise RequestError(f"cannot extend by {k} models; give 1 or more")
        while True:
            found = self._objects.read(_ROOT)
            fresh = RemoteStore._open(self.path)  # another process may have extended in the meantime
            assert isinstance(fresh, RemoteStore)
            meta = fresh._meta.with_models(fresh.n_models + k)
            try:
                for name, document in _arrays(meta.spec, fresh.block_rows).items():
                    self._grow(f"{name}/{_ROOT}", document)
                self._objects.replace(_ROOT, _root(meta, fresh.block_rows), None if found is None else found[1])
                break
            except Changed:
                continue
        self.__dict__.update(RemoteStore._open(self.path).__dict__)

    def _grow(self, name: str, document: bytes) -> None:
        """Say that an array has more rows, unless somebody said so of even more."""
        while True:
            found = self._objects.read(name)
            if found is not None and json.loads(found[0])["shape"][0] >= json.loads(document)["shape"][0]:
                return
            try:
                self._objects.replace(name, document, None if found is None else found[1])
                return
            except Changed:
                continue

    # -- failures and heartbeats ----------------------------------------------------------------------

    def record_failure(self, row: int, text: str) -> str:
        self._objects.put(f"failures/{row}.log", text.encode())
        return f"{self.path}/failures/{row}.log"

    def failures(self) -> dict[int, str]:
        names = {int(Path(name).stem): name for name in self._objects.names("failures") if Path(name).stem.isdecimal()}
        done = self.completed() if names else np.empty(0, np.bool_)
        return {row: f"{self.path}/{name}" for row, name in names.items() if row < len(done) and not done[row]}

    def failure_log(self, row: int) -> str:
        found = self._objects.read(f"failures/{row}.log")
        return found[0].decode(errors="replace") if found else ""

    def heartbeat(self, name: str, beat: dict[str, Any]) -> None:
        self._objects.put(campaign_file(name, "json"), json.dumps(beat).encode())

    def campaigns(self) -> list[dict[str, Any]]:
        names = [name for name in self._objects.names("campaigns") if name.endswith(".json")]
        beats = [beat_of(found[0]) for found in self._parallel(self._objects.read, names) if found]
        return [beat for beat in beats if beat is not None]

    def ask_to_stop(self, name: str, reason: str) -> None:
        self._objects.put(campaign_file(name, "stop"), reason.encode())

    def asked_to_stop(self, name: str) -> str | None:
        found = self._objects.read(campaign_file(name, "stop"))
        return found[0].decode(errors="replace") if found else None


class RemoteArray:
    """Rows of a key, read where they are asked for: slices, indices and lists of rows, as of a NumPy array.

    Parameters
    ----------
    chunks
        The Zarr array.
    rows
        How many rows there are.
    field
        The schema of the key.
    objects
        What reads again while the service fails.
    """

    def __init__(self, chunks: Any, rows: int, field: KeySpec, objects: Objects, *, flat: bool = False) -> None:
        self._chunks, self._field, self._objects, self._flat = chunks, field, objects, flat
        self.shape = (rows, math.prod(field.shape)) if flat else (rows, *field.shape)
        self.dtype = field.numpy_dtype

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any) -> Any:
        first, *rest = index if isinstance(index, tuple) else (index,)
        if first is Ellipsis:
            return np.asarray(self)[index]
        rows = np.arange(len(self))[first]
        if rows.ndim > 1:
            return np.asarray(self)[index]
        found = self._read(np.atleast_1d(rows))
        found = found[0] if rows.ndim == 0 else found
        if not rest:
            return found
        return found[tuple(rest)] if rows.ndim == 0 else found[(slice(None), *rest)]

    def _read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if not len(rows):
            return np.empty((0, *self.shape[1:]), self.dtype)
        low, high = int(rows.min()), int(rows.max()) + 1
        part = slice(low, high) if len(rows) == high - low and (np.diff(rows) == 1).all() else rows

        def once() -> NDArray[Any]:
            try:
                return np.asarray(self._chunks[part] if isinstance(part, slice) else self._chunks.oindex[part])
            except (RuntimeError, ValueError, MemoryError) as error:  # memory: a damaged chunk may claim any size
                raise CorruptStoreError(
                    f"{self._chunks.store_path}: a chunk of rows {low} to {high - 1} is damaged ({first_line(error)}); {_REMEDY}"
                ) from None

        found = self._objects.persist(once, "read", self._chunks.path)
        return found.reshape(len(rows), *self.shape[1:])

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> NDArray[Any]:
        found = self._read(np.arange(len(self)))
        return found if dtype is None else found.astype(dtype)

    def reshape(self, *shape: Any) -> RemoteArray:
        """The same with the value of a row flat: ``reshape(n_models, -1)`` and nothing else."""
        wanted = shape[0] if len(shape) == 1 else shape
        if tuple(wanted) not in ((len(self), -1), (len(self), math.prod(self._field.shape))):
            raise RequestError(f"rows of a remote store cannot take the shape {tuple(wanted)}; give ({len(self)}, -1)")
        return RemoteArray(self._chunks, len(self), self._field, self._objects, flat=True)


class _Late(Exception):
    """A claim is too old to write by."""


class _Part:
    """Rows of one chunk of ``_rows`` that are to be written, ascending, with their values and checksums."""

    def __init__(
        self,
        store: RemoteStore,
        number: int,
        rows: NDArray[np.int64],
        values: dict[str, NDArray[Any]],
        sums: NDArray[Any],
    ) -> None:
        self.store, self.number, self.rows, self.values = store, number, rows, values
        self.complete = (_COMPLETE << _SHIFT) | sums
        self.at = rows - number * store._state_rows
        self.blocks = rows // store.block_rows

    def write(self, overwrite: bool) -> list[int]:
        """Write what is not complete. Returns the rows that were written."""
        state, tag = self.store._states.get(self.number) or self.store._read_state(self.number)
        status = state >> _SHIFT
        first = self.number * self.store._state_rows
        touched = set((np.flatnonzero(status) + first) // self.store.block_rows)
        fresh = ~np.isin(self.blocks, list(touched)) if touched else np.ones(len(self.rows), np.bool_)
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
        made = dict(zip(jobs, self.store._parallel(self._create_chunk, jobs), strict=True))
        mine = np.zeros(len(self.rows), np.bool_)
        for position in positions:
            mine[position] = all(made[key, self.blocks[position]] for key in self.values)
        while mine.any():
            free = state[self.at] >> _SHIFT == 0
            mine &= free  # what was claimed or completed meanwhile is another's
            marked = state.copy()
            marked[self.at[mine]] = self.complete[mine]
            if self.store._swap(self.number, marked, tag):
                break
            state, tag = self.store._read_state(self.number)
            done = mine & (state[self.at] == self.complete)
            if done.any():  # an answer was lost, or somebody wrote equal bytes
                return done
        return mine

    def _create_chunk(self, job: tuple[str, int]) -> bool:
        key, block = job
        try:
            self.store._objects.create(self._name(key, block), self._encoded(key, self._merged(key, block, None, None)))
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
            state, tag = self.store._read_state(self.number)
            status = state[self.at[positions]] >> _SHIFT
            if not overwrite:
                positions, status = positions[status != _COMPLETE], status[status != _COMPLETE]
            now = time.monotonic()
            takeable = status != _CLAIMED
            for i, position in enumerate(positions.tolist()):
                if not takeable[i]:
                    claim = int(state[self.at[position]])
                    known, since = seen.get(position, (claim, now))
                    seen[position] = (claim, since if known == claim else now)
                    takeable[i] = known == claim and now - since >= self.store.lease
            taken = positions[takeable]
            if not len(taken):
                if len(positions):
                    time.sleep(min(pause * random.uniform(0.5, 1), self.store.lease / 4))
                    pause = min(2 * pause, 2.0)
                continue
            done = self._under_claim(taken, state, tag)
            written += done.tolist()
            positions = np.setdiff1d(positions, done)
        return written

    def _under_claim(self, taken: NDArray[np.int64], state: NDArray[np.uint64], tag: Any) -> NDArray[np.int64]:
        """Claim rows whose state was just read, write them, mark them. Returns those that were marked."""
        token = (_CLAIMED << _SHIFT) | np.uint64(random.SystemRandom().randrange(1, 1 << 32))
        claimed = state.copy()
        claimed[self.at[taken]] = token
        until = time.monotonic() + self.store.lease / 2
        if not self.store._swap(self.number, claimed, tag):
            return taken[:0]
        first = self.number * self.store._state_rows
        kept = set(((np.flatnonzero(claimed >> _SHIFT == _COMPLETE) + first) // self.store.block_rows).tolist())
        jobs = [(key, block, block in kept) for block in np.unique(self.blocks[taken]).tolist() for key in self.values]
        try:
            self.store._parallel(lambda job: self._put_into(*job, taken, until), jobs)
        except _Late:
            return taken[:0]
        except BaseException:
            self._leave(taken, token)
            raise
        while True:
            state, tag = self.store._states[self.number]
            held = taken[state[self.at[taken]] == token]
            marked = state.copy()
            marked[self.at[held]] = self.complete[held]
            if not len(held) or self.store._swap(self.number, marked, tag):
                return held
            state, _ = self.store._read_state(self.number)
            if (state[self.at[held]] == self.complete[held]).all():  # an answer was lost
                return held

    def _leave(self, taken: NDArray[np.int64], token: np.uint64) -> None:
        """Say that rows are claimed by nobody, so that nobody waits for them: what the service allows of it."""
        with contextlib.suppress(StoreError):
            state, tag = self.store._read_state(self.number)
            state[self.at[taken][state[self.at[taken]] == token]] = _LEFT << _SHIFT
            self.store._swap(self.number, state, tag)

    def _put_into(self, key: str, block: int, keep: bool, taken: NDArray[np.int64], until: float) -> None:
        """Put claimed rows into one chunk; a damaged one is made anew when it has no complete rows to `keep`."""
        while True:
            found = self.store._objects.read(self._name(key, block))
            try:
                chunk = self._merged(key, block, taken, None if found is None else found[0])
            except CorruptStoreError:
                if keep:
                    raise
                chunk = self._merged(key, block, taken, None)
            data = self._encoded(key, chunk)
            if time.monotonic() > until:
                raise _Late
            try:
                self.store._objects.replace(self._name(key, block), data, None if found is None else found[1])
                return
            except Changed:
                continue

    # -- bytes -----------------------------------------------------------------------------------------

    def _name(self, key: str, block: int) -> str:
        return "/".join([key, "c", str(block), *("0" for _ in self.values[key].shape[1:])])

    def _merged(self, key: str, block: int, only: NDArray[np.int64] | None, found: bytes | None) -> NDArray[Any]:
        """A chunk with these rows in it, (block_rows, ...): over zeros, or over what was found."""
        values, size = self.values[key], self.store.block_rows
        positions = np.flatnonzero(self.blocks == block)
        if only is not None:
            positions = np.intersect1d(positions, only)
        shape = (size, *values.shape[1:])
        chunk = (
            np.zeros(shape, values.dtype)
            if found is None
            else _decoded(found, shape, values.dtype, self._name(key, block))
        )
        chunk[self.rows[positions] - block * size] = values[positions]
        return chunk

    def _encoded(self, key: str, chunk: NDArray[Any]) -> bytes:
        raw = chunk.astype(chunk.dtype.newbyteorder("<"), copy=False).tobytes()
        return _zstd().encode(raw) if _packs(chunk.dtype) else raw


def _decoded(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    try:
        raw = _zstd().decode(data) if _packs(dtype) else data
    except (RuntimeError, ValueError, MemoryError) as error:  # memory: a damaged chunk may claim any size
        raise CorruptStoreError(f"{name} is damaged: {first_line(error)}; {_REMEDY}") from None
    if len(raw) != size:
        raise CorruptStoreError(f"{name} holds {len(raw)} bytes and not {size}: it is damaged; {_REMEDY}")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def _packs(dtype: np.dtype[Any]) -> bool:
    """Whether chunks are compressed: masks and integers are; noise in floats does not shrink."""
    return dtype.kind in "bui"


def _zstd() -> Any:
    from numcodecs import Zstd

    return Zstd(level=_ZSTD_LEVEL)


def _block_rows(spec: Spec) -> int:
    largest = max((field.numpy_dtype.itemsize * math.prod(field.shape) for field in spec.fields.values()), default=1)
    return max(1, min(_LARGEST_BLOCK, _BLOCK_BYTES // max(1, largest)))


def _arrays(spec: Spec, block: int) -> dict[str, bytes]:
    """The Zarr metadata of every array, name -> JSON."""
    taken = [key for key in spec.fields if key in _TAKEN or key.endswith(".npy")]
    if taken:
        raise RequestError(f"a remote store needs the name {taken[0]!r} for itself; give the key another")
    fields = {key: (field.numpy_dtype, field.shape, block) for key, field in spec.fields.items()}
    fields[ROWS] = (np.dtype(np.uint64), (), block * _BLOCKS_PER_STATE)
    return {name: _array(dtype, (spec.num_models, *shape), rows) for name, (dtype, shape, rows) in fields.items()}


def _array(dtype: np.dtype[Any], shape: Sequence[int], rows: int) -> bytes:
    codecs: list[Mapping[str, Any]] = [
        {"name": "bytes", **({"configuration": {"endian": "little"}} if dtype.itemsize > 1 else {})}
    ]
    if _packs(dtype) and dtype != np.uint64:
        codecs.append({"name": "zstd", "configuration": {"level": _ZSTD_LEVEL, "checksum": False}})
    fill: Any = False if dtype.kind == "b" else [0.0, 0.0] if dtype.kind == "c" else 0
    document = {
        "zarr_format": 3,
        "node_type": "array",
        "shape": list(shape),
        "data_type": dtype.name,
        "chunk_grid": {"name": "regular", "configuration": {"chunk_shape": [rows, *(max(1, n) for n in shape[1:])]}},
        "chunk_key_encoding": {"name": "default", "configuration": {"separator": "/"}},
        "fill_value": fill,
        "codecs": codecs,
        "attributes": {},
        "storage_transformers": [],
    }
    return json.dumps(document, indent=1).encode()


def _root(meta: Meta, block: int) -> bytes:
    record = {**meta.to_dict(), "block_rows": block}
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {_ATTRIBUTE: record}}, indent=1).encode()


def _npy(objects: Objects, name: str, address: str) -> Any:
    found = objects.read(f"{name}.npy")
    if found is None:
        return None
    try:
        return np.load(io.BytesIO(found[0]), allow_pickle=False)
    except Exception as error:  # a damaged header may raise anything
        raise CorruptStoreError(f"{address}/{name}.npy is damaged: {first_line(error)}") from None
