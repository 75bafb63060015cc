"""Projected gradients of one checkpoint on disk: rows of features, written by any number of processes.

A folder of ``features.npy`` (n, dim) float32, ``weights.npy`` (n,) float32 (Q), ``done.npy`` (n,) uint8 and ``manifest.json``.
Files are allocated in full when the folder is made. Order of a write: data, flush, done flags, flush: a row is done or it does not count.
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, RequestError, WriteError, first_line, newer_format

FORMAT_VERSION = 1
_MANIFEST = "manifest.json"
_FLUSH_SECONDS = 0.5

Write = Callable[[int, NDArray[np.float32], NDArray[np.float32]], None]


class Features:
    """Features of n examples under one checkpoint.

    Attributes
    ----------
    path
        The folder.
    n, dim
        Rows and features.
    """

    def __init__(self, path: Path, n: int, dim: int) -> None:
        self.path, self.n, self.dim = path, n, dim

    @classmethod
    def open_or_create(cls, path: Path, n: int, dim: int, manifest: Mapping[str, Any]) -> Features:
        """The features at `path`, made when there are none. Processes may do this at the same time.

        Raises
        ------
        RequestError
            when the folder holds features of something else.
        """
        mine = {"format_version": FORMAT_VERSION, "n": n, "dim": dim, **manifest}
        try:
            path.mkdir(parents=True, exist_ok=True)
            _create(path / _MANIFEST, json.dumps(mine, indent=1).encode(), 0)
            _compare(path, mine)
            for name, shape, dtype in cls._arrays(n, dim):
                header = io.BytesIO()
                described = {"descr": np.dtype(dtype).str, "fortran_order": False, "shape": shape}
                np.lib.format.write_array_header_1_0(header, described)
                _create(path / name, header.getvalue(), int(np.prod(shape)) * np.dtype(dtype).itemsize)
        except OSError as error:
            raise WriteError(f"cannot make the features at {str(path)!r}: {first_line(error)}") from None
        return cls(path, n, dim)

    @staticmethod
    def _arrays(n: int, dim: int) -> tuple[tuple[str, tuple[int, ...], type], ...]:
        return (("features.npy", (n, dim), np.float32), ("weights.npy", (n,), np.float32), ("done.npy", (n,), np.uint8))

    def rows(self, *, writable: bool = False) -> NDArray[np.float32]:
        """(n, dim), read-only unless told and not loaded; rows that are not done hold anything."""
        return self._read("features.npy", "r+" if writable else "r")

    def weights(self) -> NDArray[np.float32]:
        """Q of each row, (n,)."""
        return np.array(self._read("weights.npy"))

    def done(self) -> NDArray[np.bool_]:
        """Which rows are there at this moment, (n,)."""
        return np.array(self._read("done.npy")).astype(bool)

    def _read(self, name: str, mode: Literal["r", "r+"] = "r") -> NDArray[Any]:
        try:
            found = np.load(self.path / name, mmap_mode=mode)
        except (OSError, ValueError) as error:
            raise CorruptStoreError(f"cannot read {str(self.path / name)!r}: {first_line(error)}") from None
        shape = (self.n, self.dim) if name == "features.npy" else (self.n,)
        if found.shape != shape:
            raise CorruptStoreError(f"{str(self.path / name)!r} has shape {found.shape}; it must be {shape}")
        return found

    @contextlib.contextmanager
    def writing(self) -> Iterator[Write]:
        """Gives a function that writes rows: (first row, features (k, dim), Q (k,)).

        Rows are marked as done once they are flushed, every half second and at the end, whatever ends it: what a killed
        process had not marked is computed again.
        """
        waiting: list[tuple[int, int]] = []
        flushed = time.monotonic()

        def flush() -> None:
            nonlocal flushed
            for name in ("features.npy", "weights.npy") if waiting else ():
                os.fsync(files[name][0])
            for start, count in waiting:
                _put(files["done.npy"], start, np.ones(count, dtype=np.uint8))
            if waiting:
                os.fsync(files["done.npy"][0])
            waiting.clear()
            flushed = time.monotonic()

        def write(start: int, features: NDArray[np.float32], weights: NDArray[np.float32]) -> None:
            with self._refused():
                _put(files["features.npy"], start * self.dim, np.ascontiguousarray(features, dtype=np.float32))
                _put(files["weights.npy"], start, np.ascontiguousarray(weights, dtype=np.float32))
                waiting.append((start, len(weights)))
                if time.monotonic() - flushed > _FLUSH_SECONDS:
                    flush()

        with contextlib.ExitStack() as stack:
            files = {}
            for name, _, _ in self._arrays(self.n, self.dim):
                file = stack.enter_context(open(self.path / name, "r+b", buffering=0))
                np.lib.format.read_magic(file)
                np.lib.format.read_array_header_1_0(file)
                files[name] = (file.fileno(), file.tell())
            try:
                yield write
            finally:
                with self._refused():
                    flush()

    @contextlib.contextmanager
    def _refused(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WriteError(f"cannot write to {str(self.path)!r}: {first_line(error)}") from None


def _put(file: tuple[int, int], first: int, values: NDArray[Any]) -> None:
    """Write values at element `first` of a file (descriptor, where its data begin)."""
    rest, place = values.data.cast("B"), file[1] + first * values.itemsize
    while rest:
        written = os.pwrite(file[0], rest, place)
        rest, place = rest[written:], place + written


def _create(path: Path, content: bytes, zeros: int) -> None:
    """Make a file of `content` and then zeros, wholly or not at all; one that is there stays."""
    if path.exists():
        return
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with open(temporary, "xb") as file:
            file.write(content)
            file.flush()
            if zeros and hasattr(os, "posix_fallocate"):
                os.posix_fallocate(file.fileno(), len(content), zeros)
            elif zeros:
                file.truncate(len(content) + zeros)
            os.fsync(file.fileno())
        with contextlib.suppress(FileExistsError):
            os.link(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _compare(path: Path, mine: Mapping[str, Any]) -> None:
    try:
        found = json.loads((path / _MANIFEST).read_text())
        version = found["format_version"]
    except (ValueError, KeyError, TypeError):
        raise CorruptStoreError(f"{str(path / _MANIFEST)!r} is no manifest of features") from None
    if version > FORMAT_VERSION:
        raise newer_format(f"the features at {str(path)!r}", version, FORMAT_VERSION)
    for key, value in mine.items():
        if found.get(key) != value:
            what = (
                "other training data: other inputs or labels, in another order, or changed at random by the loader"
                if key == "data"
                else f"{key} {found.get(key)!r}, and asked for is {value!r}"
            )
            raise RequestError(
                f"the features at {str(path)!r} are of {what}: choose another folder with out=..., or remove this one"
            )
