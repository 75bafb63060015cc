"""The store on object storage: Zarr v3 arrays that `zarr.open_group` reads, one chunk per block of rows."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.design import Design
from datamodels.errors import CorruptStoreError, RequestError, StoreError, first_line
from datamodels.spec import DESIGN_MASKS, MASKS, KeySpec
from datamodels.store.array import npy_bytes
from datamodels.store.base import Store
from datamodels.store.lazy import LazyRows
from datamodels.store.meta import Meta
from datamodels.store.objects import Changed, Objects
from datamodels.store.plan import row_checksum
from datamodels.store.records import beat_of, campaign_file
from datamodels.store.remote_rows import COMPLETE, LOW, SHIFT, Part, RowStates
from datamodels.store.zarr_format import (
    ATTRIBUTE,
    REMEDY,
    ROOT,
    arrays,
    block_rows,
    drawing,
    drawn,
    extended,
    neutral,
    root,
)


class RemoteStore(Store):
    """A `Store` on object storage. Make one with `Store.create`, open one with `Store.open`.

    Attributes
    ----------
    block_rows
        Rows of a chunk. Writes of whole blocks cost least.
    """

    path: str
    block_rows: int

    def __init__(self, path: str, objects: Objects, meta: Meta, block_rows: int) -> None:
        self.path = path
        self.spec, self.design, self.sweep = meta.spec, meta.design, meta.sweep
        self.block_rows = block_rows
        self._objects = objects
        self._meta = meta
        self._drawing = meta.design if drawn(meta) else None  # what draws the masks, where they are not stored
        self._states = RowStates(objects, block_rows)
        self._zarr: Any = None

    # -- creation and opening -----------------------------------------------------------------------

    @classmethod
    def _create(cls, path: str | Path, meta: Meta, facts: Mapping[str, NDArray[Any]]) -> Store:
        address = str(path)
        objects = Objects(address, make=True)
        if objects.read(ROOT) is not None:
            raise StoreError(f"a store exists at {address!r}: open it, or choose another address; nothing was changed")
        meta = drawing(meta)
        block = block_rows(meta)
        try:
            for name, array in {DESIGN_MASKS: meta.design.packed_masks if meta.design else None, **facts}.items():
                if array is not None:
                    objects.create(f"{name}.npy", npy_bytes(array))
            for name, document in arrays(meta, block).items():
                objects.create(f"{name}/{ROOT}", document)
            # Last, since an address without it is no store.
            objects.create(ROOT, root(meta, block))
        except Changed as error:
            raise StoreError(
                f"{error} exists at {address!r} already: a creation was interrupted or is under way; choose another "
                "address, or remove what is there if nobody is at it"
            ) from None
        return cls._open(address)

    @classmethod
    def _exists(cls, path: str | Path) -> bool:
        try:
            return Objects(str(path)).read(ROOT) is not None
        except FileNotFoundError:
            return False

    @classmethod
    def _open(cls, path: str | Path) -> Store:
        address = str(path)
        try:
            objects = Objects(address)
            found = objects.read(ROOT)
        except FileNotFoundError:
            found = None
        if found is None:
            raise StoreError(
                f"there is no store at {address!r}; create one with `datamodels init` or Store.create"
            ) from None
        place = f"{address}/{ROOT}"

        def masks() -> NDArray[np.uint8]:
            return _npy(objects, DESIGN_MASKS, address)

        try:
            document = json.loads(found[0])
            record = document["attributes"][ATTRIBUTE]
            block = record["block_rows"]
            if {**document, "attributes": 0} != {"zarr_format": 3, "node_type": "group", "attributes": 0}:
                raise ValueError("it is no group of Zarr v3 as a store writes one")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CorruptStoreError(f"{place} is damaged: {first_line(error)}") from None
        meta = Meta.of(record, place, f"the store {address!r}", masks)
        if type(block) is not int or not 1 <= block <= 1 << 20:
            raise CorruptStoreError(f"{place} is damaged: block_rows is {block!r}")
        if drawn(meta) - {MASKS} or (drawn(meta) and (meta.design is None or MASKS not in meta.spec.fields)):
            raise CorruptStoreError(f"{place} is damaged: its design cannot draw {sorted(drawn(meta))}")
        store = cls(address, objects, meta, block)
        store._check_arrays()
        return store

    def _check_arrays(self) -> None:
        """That the arrays are those that the schema says."""
        wanted = arrays(self._meta, self.block_rows)
        for name, found in zip(
            wanted, self._states.parallel(self._objects.read, (f"{n}/{ROOT}" for n in wanted)), strict=True
        ):
            try:
                there, expected = json.loads(found[0] if found else b"null"), json.loads(wanted[name])
                same = there["shape"][1:] == expected["shape"][1:] and there["shape"][0] >= expected["shape"][0]
                same = same and there == {**expected, "shape": there["shape"], "attributes": there["attributes"]}
            except (ValueError, TypeError, KeyError, IndexError, RecursionError):
                same = False
            if not same:
                raise CorruptStoreError(
                    f"{self.path}/{name}/{ROOT} is not what the store's schema says: it is missing or was edited"
                )

    # -- reading --------------------------------------------------------------------------------------

    def completed(self) -> NDArray[np.bool_]:
        return (self._states.all(self.n_models) >> SHIFT) == COMPLETE

    def completed_rows(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        return self._states.of(np.asarray(rows, dtype=np.int64), self.n_models) >> SHIFT == COMPLETE

    def checksums(self) -> NDArray[np.uint32] | None:
        return (self._states.all(self.n_models) & LOW).astype(np.uint32)

    def array(self, key: str) -> NDArray[Any]:
        field = self.field(key)
        if self._drawing is not None and key == MASKS:
            return DrawnMasks(self._drawing, field)  # type: ignore[return-value]
        if self._zarr is None:
            import zarr
            from zarr.storage import ObjectStore

            there = ObjectStore(self._objects.store, read_only=True)
            self._zarr = self._objects.persist(
                lambda: zarr.open_group(there, mode="r", zarr_format=3, use_consolidated=False), "read", ROOT
            )
        chunks = self._objects.persist(lambda: self._zarr[key], "read", key)
        return RemoteArray(chunks, self.n_models, field, self._objects)  # type: ignore[return-value]

    def _fact(self, name: str) -> NDArray[Any] | None:
        return _npy(self._objects, name, self.path)

    def as_meta(self) -> Meta:
        return neutral(self._meta)

    def _origin(self) -> str:
        return f"store:{self._meta.record['id']}"

    # -- writing --------------------------------------------------------------------------------------

    @property
    def stored(self) -> Mapping[str, KeySpec]:
        return {key: field for key, field in self.spec.fields.items() if self._drawing is None or key != MASKS}

    def _with_masks(self, rows: NDArray[np.int64], values: Mapping[str, Any]) -> Mapping[str, Any]:
        if self._drawing is None:
            return super()._with_masks(rows, values)
        if not isinstance(values, Mapping) or MASKS not in values:
            return values
        return {key: value for key, value in super()._with_masks(rows, values).items() if key != MASKS}

    def _write_rows(self, rows: NDArray[np.int64], values: dict[str, NDArray[Any]], overwrite: bool) -> list[int]:
        written: list[int] = []
        if (np.diff(rows) < 0).any():
            order = np.argsort(rows)
            rows, values = rows[order], {key: value[order] for key, value in values.items()}
        numbers = rows // self._states.rows
        for number in np.unique(numbers).tolist():
            at = slice(*np.searchsorted(numbers, [number, number + 1]).tolist())
            part = Part(self._states, number, rows[at], {key: value[at] for key, value in values.items()}, self._sums)
            written += part.write(overwrite)
        return sorted(written)

    def _sums(self, rows: NDArray[np.int64], values: Mapping[str, NDArray[Any]]) -> NDArray[np.uint64]:
        """The checksum of each row, over what is stored and what is drawn."""
        whole = {**values, **({MASKS: self._drawing.masks_of(rows)} if self._drawing else {})}
        sums = [
            row_checksum(row, {key: value[i] for key, value in whole.items()}) for i, row in enumerate(rows.tolist())
        ]
        return np.array(sums, dtype=np.uint64)

    def _forget(self, rows: NDArray[np.int64]) -> None:
        self._states.forget(rows)

    def extend(self, k: int) -> None:
        if k < 1:
            raise RequestError(f"cannot extend by {k} models; give 1 or more")
        while True:
            found = self._objects.read(ROOT)
            fresh = RemoteStore._open(self.path)  # another process may have extended in the meantime
            assert isinstance(fresh, RemoteStore)
            meta = extended(fresh._meta, fresh.n_models + k)
            try:
                for name, document in arrays(meta, fresh.block_rows).items():
                    self._grow(f"{name}/{ROOT}", document)
                self._objects.replace(ROOT, root(meta, fresh.block_rows), None if found is None else found[1])
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

    def _failure_logs(self) -> dict[int, str]:
        names = (name for name in self._objects.names("failures") if Path(name).stem.isdecimal())
        return {int(Path(name).stem): f"{self.path}/{name}" for name in names}

    def failure_log(self, row: int) -> str:
        found = self._objects.read(f"failures/{row}.log")
        return found[0].decode(errors="replace") if found else ""

    def heartbeat(self, name: str, beat: dict[str, Any]) -> None:
        self._objects.put(campaign_file(name, "json"), json.dumps(beat).encode())

    def campaigns(self) -> list[dict[str, Any]]:
        names = [name for name in self._objects.names("campaigns") if name.endswith(".json")]
        beats = [beat_of(found[0]) for found in self._states.parallel(self._objects.read, names) if found]
        return [beat for beat in beats if beat is not None]

    def ask_to_stop(self, name: str, reason: str) -> None:
        self._objects.put(campaign_file(name, "stop"), reason.encode())

    def asked_to_stop(self, name: str) -> str | None:
        found = self._objects.read(campaign_file(name, "stop"))
        return found[0].decode(errors="replace") if found else None


class RemoteArray(LazyRows):
    """Rows of a key, read where they are asked for.

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

    def __init__(self, chunks: Any, rows: int, field: KeySpec, objects: Objects) -> None:
        self._chunks, self._objects = chunks, objects
        self.shape, self.dtype = (rows, *field.shape), field.numpy_dtype

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
                    f"{self._chunks.store_path}: a chunk of rows {low} to {high - 1} is damaged ({first_line(error)}); {REMEDY}"
                ) from None

        return self._objects.persist(once, "read", self._chunks.path)


class DrawnMasks(LazyRows):
    """Masks that a design draws where they are asked for, so that they need no storage.

    Parameters
    ----------
    design
        Of the store.
    field
        The schema of the key.
    """

    def __init__(self, design: Design, field: KeySpec) -> None:
        self._design = design
        self.shape, self.dtype = (design.n_models, *field.shape), field.numpy_dtype

    def _read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        return self._design.masks_of(rows).astype(self.dtype, copy=False)


def _npy(objects: Objects, name: str, address: str) -> Any:
    found = objects.read(f"{name}.npy")
    if found is None:
        return None
    try:
        return np.load(io.BytesIO(found[0]), allow_pickle=False)
    except Exception as error:  # a damaged header may raise anything
        raise CorruptStoreError(f"{address}/{name}.npy is damaged: {first_line(error)}") from None
