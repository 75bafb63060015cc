"""The local store: a folder of ``<key>.npy`` arrays that anyone can `numpy.load`.

A row is written as data, flush, checksum, flush, completed, flush. Files are allocated in full when
they are created, and written at positions, so that a full disk is an error at creation and a
neighbour's bytes are never touched.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.design import Design
from datamodels.errors import CorruptStoreError, RequestError, StoreError, WriteError, first_line
from datamodels.spec import CHECKSUM, COMPLETED, DESIGN_MASKS, Spec
from datamodels.store.array import (
    NotRows,
    RowArray,
    allocate,
    flush,
    locked,
    npy_bytes,
    opened,
    pwrite,
    remove,
    runs,
    sync_folder,
    write_atomically,
)
from datamodels.store.base import Store
from datamodels.store.meta import Meta
from datamodels.store.plan import row_checksum
from datamodels.store.records import beat_of, campaign_file
from datamodels.sweep import Sweep

_META = "store.json"
_DESIGN_MASKS = f"{DESIGN_MASKS}.npy"
_EXTEND_LOCK = 1 << 60


class NpyStore(Store):
    """A `Store` in a local folder. Make one with `Store.create`, open one with `Store.open`."""

    path: Path

    def __init__(
        self,
        path: Path,
        spec: Spec,
        design: Design | None,
        sweep: Sweep | None,
        arrays: dict[str, RowArray],
        meta: Meta | None,
    ) -> None:
        self.path = path
        self.spec = spec
        self.design = design
        self.sweep = sweep
        self._arrays = arrays
        self._meta = meta

    # -- creation and opening -----------------------------------------------------------------------

    @classmethod
    def _create(cls, path: str | Path, meta: Meta, facts: Mapping[str, NDArray[Any]]) -> Store:
        path = Path(path)
        for name in (_META, f"{COMPLETED}.npy"):
            if (path / name).exists():
                raise StoreError(
                    f"a store exists at {str(path)!r}: open it, or choose another folder; nothing was changed"
                )
        made: list[Path] = []
        try:
            path.mkdir(parents=True, exist_ok=True)
            cls._create_files(path, meta, facts, made)
        except FileExistsError as error:
            remove(made)
            raise StoreError(
                f"{error.filename} exists already: a creation was interrupted or is under way; "
                "remove the folder if nobody is at it, or choose another; nothing was changed"
            ) from None
        except BaseException as error:
            remove(made)
            if not isinstance(error, OSError | OverflowError):
                raise
            raise WriteError(
                f"cannot create a store at {str(path)!r}: {first_line(error)}; nothing was left behind"
            ) from None
        return cls._open(path)

    @classmethod
    def _create_files(
        cls,
        path: Path,
        meta: Meta,
        facts: Mapping[str, NDArray[Any]],
        made: list[Path],
    ) -> None:
        rows = meta.spec.num_models
        for key, field in meta.spec.fields.items():
            allocate(path / f"{key}.npy", (rows, *field.shape), field.numpy_dtype, made)
        allocate(path / f"{CHECKSUM}.npy", (rows,), np.dtype(np.uint32), made)
        for name, array in {DESIGN_MASKS: meta.design.packed_masks if meta.design else None, **facts}.items():
            if array is not None:
                made.append(path / f"{name}.npy")
                write_atomically(made[-1], npy_bytes(array))
        made.append(path / _META)
        _write_meta(path, meta)
        # Last, since a folder without it is no store.
        allocate(path / f"{COMPLETED}.npy", (rows,), np.dtype(np.bool_), made)
        sync_folder(path)

    @classmethod
    def _exists(cls, path: str | Path) -> bool:
        return (Path(path) / f"{COMPLETED}.npy").is_file()

    @classmethod
    def _open(cls, path: str | Path) -> Store:
        path = Path(path)
        if not (path / f"{COMPLETED}.npy").is_file():
            part = (
                " (its creation was interrupted: remove the folder and create it again)"
                if (path / _META).is_file()
                else ""
            )
            if (path / "zarr.json").is_file():
                raise StoreError(
                    f"{str(path)!r} holds a store of object storage: open it as {path.absolute().as_uri()!r}"
                )
            raise StoreError(
                f"there is no store at {str(path)!r}{part}; create one with `datamodels init` or Store.create"
            )
        if not (path / _META).exists():
            if (path / f"{CHECKSUM}.npy").exists():
                raise CorruptStoreError(f"{path / _META} is missing from the store; restore it from a copy")
            return cls._open_classic(path)
        meta = _read_meta(path)
        spec = meta.spec
        arrays = {name: RowArray.read(path / f"{name}.npy") for name in [*spec.fields, CHECKSUM, COMPLETED]}
        for key, field in spec.fields.items():
            found = arrays[key]
            if found.shape[1:] != field.shape or found.dtype.newbyteorder("=") != field.numpy_dtype:
                raise CorruptStoreError(
                    f"{path / _META} says {key!r} is {field.dtype} {list(field.shape)} per row, and {found.path.name} "
                    f"holds {found.dtype} {list(found.shape[1:])}: one of them was edited"
                )
        for name, dtype in ((CHECKSUM, np.uint32), (COMPLETED, np.bool_)):
            arrays[name].check_type(np.dtype(dtype))
        for array in arrays.values():
            array.check_size(spec.num_models)
        return cls(path, spec, meta.design, meta.sweep, arrays, meta)

    @classmethod
    def _open_classic(cls, path: Path) -> Store:
        """A folder of the original library: no ``store.json``, no checksums."""
        arrays = {COMPLETED: RowArray.read(path / f"{COMPLETED}.npy")}
        arrays[COMPLETED].check_type(np.dtype(np.bool_))
        rows = arrays[COMPLETED].shape[0]
        for file in sorted(path.glob("*.npy")):
            if not file.name.startswith(("_", ".")):
                with contextlib.suppress(NotRows):  # a file of the user's beside the keys
                    array = RowArray.read(file)
                    if array.shape[0] >= rows:  # more when an extension was interrupted: the flags count
                        arrays[file.stem] = array
        if len(arrays) == 1:
            raise CorruptStoreError(f"{path} has {COMPLETED}.npy of {rows} rows and no array that has as many")
        schema = {
            key: {
                "shape": array.shape[1:],
                "dtype": array.dtype.newbyteorder("=").name,
                "allow_nonfinite": False,
            }
            for key, array in arrays.items()
            if key != COMPLETED
        }
        for array in arrays.values():
            array.check_size(rows)
        try:
            spec = Spec.model_validate({"num_models": rows, "schema": schema})
        except ValueError as error:
            raise CorruptStoreError(f"{path} is no store: {first_line(error)}") from None
        return cls(path, spec, None, None, arrays, None)

    # -- reading --------------------------------------------------------------------------------------

    def completed(self) -> NDArray[np.bool_]:
        return self._arrays[COMPLETED].load(self.n_models).view(np.uint8) != 0  # also of bytes that are no bool

    def array(self, key: str) -> NDArray[Any]:
        self.field(key)
        return self._arrays[key].memmap(self.n_models)

    def checksums(self) -> NDArray[np.uint32] | None:
        return self._arrays[CHECKSUM].load(self.n_models) if CHECKSUM in self._arrays else None

    def _fact(self, name: str) -> NDArray[Any] | None:
        file = self.path / f"{name}.npy"
        return _load(file) if file.exists() else None

    def as_meta(self) -> Meta:
        return self._meta or Meta.new(self.spec, None, None)

    def _origin(self) -> str:
        return f"store:{self._meta.record['id']}" if self._meta else f"folder:{self.path.resolve()}"

    # -- writing --------------------------------------------------------------------------------------

    def _write_rows(self, rows: NDArray[np.int64], values: dict[str, NDArray[Any]], overwrite: bool) -> list[int]:
        order = np.argsort(rows)
        rows = rows[order]
        values = {key: value[order] for key, value in values.items()}
        flags = self._arrays[COMPLETED]
        try:
            with (
                opened(flags.path) as fd,
                locked(fd, [(flags.offset + int(rows[a]), b - a) for a, b in runs(rows)]),
            ):
                done = np.array([os.pread(fd, 1, flags.offset + int(row)) != b"\0" for row in rows], dtype=np.bool_)
                if overwrite and done.any():
                    self._mark(fd, rows[done], False)
                elif done.any():
                    rows, values = rows[~done], {key: value[~done] for key, value in values.items()}
                if len(rows):
                    self._write_data(rows, values)
                    self._mark(fd, rows, True)
        except OSError as error:
            raise WriteError(
                f"cannot write to the store {str(self.path)!r}: {first_line(error)}; the rows of this write stay incomplete"
            ) from None
        self._forget_failures(rows)
        return rows.tolist()

    def _forget(self, rows: NDArray[np.int64]) -> None:
        flags = self._arrays[COMPLETED]
        try:
            with opened(flags.path) as fd, locked(fd, [(flags.offset + int(rows[a]), b - a) for a, b in runs(rows)]):
                self._mark(fd, rows, False)
        except OSError as error:
            raise WriteError(f"cannot write to the store {str(self.path)!r}: {first_line(error)}") from None

    def _write_data(self, rows: NDArray[np.int64], values: dict[str, NDArray[Any]]) -> None:
        """Data, flush, checksum, flush."""
        stored = {key: np.ascontiguousarray(value, dtype=self._arrays[key].dtype) for key, value in values.items()}
        for key, value in stored.items():
            self._arrays[key].write(rows, value)
        if CHECKSUM in self._arrays:
            sums = [
                row_checksum(int(row), {key: value[i] for key, value in stored.items()}) for i, row in enumerate(rows)
            ]
            self._arrays[CHECKSUM].write(rows, np.array(sums, dtype=np.uint32))

    def _mark(self, fd: int, rows: NDArray[np.int64], done: bool) -> None:
        byte = b"\1" if done else b"\0"
        for start, stop in runs(rows):
            pwrite(fd, byte * (stop - start), self._arrays[COMPLETED].offset + int(rows[start]))
        flush(fd)

    def extend(self, k: int) -> None:
        if k < 1:
            raise RequestError(f"cannot extend by {k} models; give 1 or more")
        flags = self._arrays[COMPLETED]
        try:
            with opened(flags.path) as fd, locked(fd, [(_EXTEND_LOCK, 1)]):
                self._reload()  # another process may have extended in the meantime
                rows = self.n_models + k
                names = [*self.spec.fields, *([CHECKSUM] if CHECKSUM in self._arrays else []), COMPLETED]
                headers = {name: self._arrays[name].grown_header(rows) for name in names}
                for name in names:
                    self._arrays[name].grow(rows)
                for name in names:
                    with opened(self._arrays[name].path) as file:
                        pwrite(file, headers[name], 0)
                        flush(file)
                if self._meta is not None:
                    _write_meta(self.path, self._meta.with_models(rows))
        except OSError as error:
            raise WriteError(
                f"cannot extend the store {str(self.path)!r}: {first_line(error)}; it still has {self.n_models} models"
            ) from None
        self._reload()

    def _reload(self) -> None:
        fresh = NpyStore._open(self.path)
        assert isinstance(fresh, NpyStore)
        self.__dict__.update(fresh.__dict__)

    # -- failures and heartbeats ----------------------------------------------------------------------

    def record_failure(self, row: int, text: str) -> str:
        file = self.path / "failures" / f"{row}.log"
        self._leave(file, text, sync=True)
        return str(file)

    def _failure_logs(self) -> dict[int, str]:
        folder = self.path / "failures"
        files = folder.glob("*.log") if folder.is_dir() else ()
        return {int(file.stem): str(file) for file in files if file.stem.isdecimal()}

    def failure_log(self, row: int) -> str:
        file = self.path / "failures" / f"{row}.log"
        return file.read_text(errors="replace") if file.exists() else ""

    def _forget_failures(self, rows: NDArray[np.int64]) -> None:
        if (self.path / "failures").is_dir():
            for row in rows:
                with contextlib.suppress(OSError):  # the row is there, and a log of a complete row is passed over
                    (self.path / "failures" / f"{row}.log").unlink(missing_ok=True)

    def heartbeat(self, name: str, beat: dict[str, Any]) -> None:
        self._leave(self.path / campaign_file(name, "json"), json.dumps(beat))

    def _leave(self, file: Path, text: str, *, sync: bool = False) -> None:
        try:
            write_atomically(file, text.encode(), sync=sync)
        except OSError as error:
            raise WriteError(f"cannot write {str(file)!r}: {first_line(error)}") from None

    def campaigns(self) -> list[dict[str, Any]]:
        folder = self.path / "campaigns"
        beats = []
        for file in sorted(folder.glob("[!.]*.json")) if folder.is_dir() else ():
            with contextlib.suppress(OSError):  # being replaced
                beats.append(beat_of(file.read_bytes()))
        return [beat for beat in beats if beat is not None]

    def ask_to_stop(self, name: str, reason: str) -> None:
        self._leave(self.path / campaign_file(name, "stop"), reason)

    def asked_to_stop(self, name: str) -> str | None:
        try:
            return (self.path / campaign_file(name, "stop")).read_text(errors="replace")
        except OSError:
            return None


def _write_meta(path: Path, meta: Meta) -> None:
    write_atomically(path / _META, json.dumps(meta.to_dict(), indent=1).encode())
    sync_folder(path)


def _read_meta(path: Path) -> Meta:
    file = path / _META
    try:
        record = json.loads(file.read_text())
    except (OSError, ValueError, RecursionError) as error:
        raise CorruptStoreError(f"{file} is damaged: {first_line(error)}") from None
    return Meta.of(record, str(file), f"the store {str(path)!r}", lambda: _load(path / _DESIGN_MASKS, mmap_mode="r"))


def _load(file: Path, **how: Any) -> NDArray[Any]:
    try:
        return np.load(file, allow_pickle=False, **how)
    except Exception as error:  # a damaged header may raise anything
        raise CorruptStoreError(f"{file} is damaged: {first_line(error)}; restore it from a copy") from None
