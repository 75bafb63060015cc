"""Positioned writes to ``.npy`` files that are allocated in full, and locks on their bytes."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import io
import itertools
import math
import os
import struct
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, StoreError, first_line
from datamodels.files import replacing


class NotRows(CorruptStoreError):
    """A file that is no array of rows of numbers."""


@dataclass(frozen=True)
class RowArray:
    """One ``.npy`` file: where its rows lie."""

    path: Path
    offset: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return math.prod(self.shape[1:]) * self.dtype.itemsize

    @classmethod
    def read(cls, path: Path) -> RowArray:
        """Parse the header.

        Raises
        ------
        CorruptStoreError
            when the file is missing, is no plain ``.npy`` file, or is in Fortran order.
        """
        try:
            with path.open("rb") as file:
                version = npy_format.read_magic(file)
                reader = npy_format.read_array_header_1_0 if version == (1, 0) else npy_format.read_array_header_2_0
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore")  # headers of Python 2
                    shape, fortran, dtype = reader(file)
                offset = file.tell()
        except FileNotFoundError:
            raise CorruptStoreError(f"{path} is missing from the store") from None
        except Exception as error:  # a damaged header may raise anything
            raise CorruptStoreError(f"{path} is not a readable .npy file: {first_line(error)}") from None
        if not shape or dtype.kind not in "biufc" or any(type(size) is not int or size < 0 for size in shape):
            raise NotRows(f"{path} holds {dtype} of shape {shape}; a store holds rows of numbers")
        if fortran and len(shape) > 1:
            raise CorruptStoreError(f"{path} is in Fortran order; a store has one row after the other")
        return cls(path, offset, shape, dtype)

    def check_size(self, rows: int) -> None:
        need, have = self.offset + rows * self.row_bytes, self.path.stat().st_size
        if have < need:
            raise CorruptStoreError(
                f"{self.path} is truncated: {have} bytes, {rows} rows need {need}; restore it from a copy"
            )

    def check_type(self, dtype: np.dtype[Any]) -> None:
        """That rows are single values of a type."""
        if len(self.shape) != 1 or self.dtype.newbyteorder("=") != dtype:
            raise CorruptStoreError(
                f"{self.path} holds {self.dtype} of shape {self.shape}; {dtype} (rows,) was written: restore it from a copy"
            )

    def grown_header(self, rows: int) -> bytes:
        """The header for more rows, of the same length, so that data stay where they are."""
        header = header_bytes((rows, *self.shape[1:]), self.dtype)
        if len(header) > self.offset:
            raise StoreError(f"{self.path} has no room for a longer header; copy it into a new store with merge")
        body = header[:-1].ljust(self.offset - 1) + b"\n"
        return body[:8] + struct.pack("<H", self.offset - 10) + body[10:]

    def grow(self, rows: int) -> None:
        """Reserve room for more rows; the header still says what it said."""
        with opened(self.path) as fd:
            reserve(fd, self.offset + rows * self.row_bytes)
            flush(fd)

    def write(self, rows: NDArray[np.int64], value: NDArray[Any]) -> None:
        """Write rows (ascending) in place and flush."""
        with opened(self.path) as fd:
            for start, stop in runs(rows):
                pwrite(fd, value[start:stop].tobytes(), self.offset + int(rows[start]) * self.row_bytes)
            flush(fd)

    def load(self, rows: int) -> NDArray[Any]:
        """The first rows, read into memory: where a disk cannot be read, a memory map would end the process.

        Raises
        ------
        StoreError
            when the disk refuses.
        CorruptStoreError
            when the file has become shorter.
        """
        try:
            with self.path.open("rb") as file:
                file.seek(self.offset)
                data = file.read(rows * self.row_bytes)
        except OSError as error:
            raise StoreError(f"cannot read {str(self.path)!r}: {first_line(error)}") from None
        if len(data) < rows * self.row_bytes:
            self.check_size(rows)
        return np.frombuffer(data, self.dtype).reshape(rows, *self.shape[1:])

    def memmap(self, rows: int) -> NDArray[Any]:
        shape = (rows, *self.shape[1:])
        if 0 in shape:
            return np.empty(shape, self.dtype)
        return np.memmap(self.path, self.dtype, "r", self.offset, shape)


def header_bytes(shape: tuple[int, ...], dtype: np.dtype[Any]) -> bytes:
    buffer = io.BytesIO()
    npy_format.write_array_header_1_0(
        buffer, {"shape": shape, "fortran_order": False, "descr": npy_format.dtype_to_descr(dtype)}
    )
    return buffer.getvalue()


def npy_bytes(array: NDArray[Any]) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array, allow_pickle=False)
    return buffer.getvalue()


def allocate(path: Path, shape: tuple[int, ...], dtype: np.dtype[Any], made: list[Path]) -> None:
    """Make a ``.npy`` file of zeros with all of its blocks reserved; refuses what exists."""
    header = header_bytes(shape, dtype)
    fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_RDWR, 0o666)
    made.append(path)
    try:
        reserve(fd, len(header) + math.prod(shape) * dtype.itemsize)
        pwrite(fd, header, 0)
        flush(fd)
    finally:
        os.close(fd)


def reserve(fd: int, size: int) -> None:
    """Grow a file to `size` bytes that are really there, so that later writes cannot run out of disk."""
    have = os.fstat(fd).st_size
    if have >= size:
        return
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(fd, have, size - have)
        return
    block = bytes(1 << 20)
    for start in range(have, size, len(block)):
        pwrite(fd, block[: size - start], start)


def pwrite(fd: int, data: bytes, position: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(fd, view, position)
        view, position = view[written:], position + written


flush = getattr(os, "fdatasync", os.fsync)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[int]:
    fd = os.open(path, os.O_RDWR)
    try:
        yield fd
    finally:
        os.close(fd)


@contextlib.contextmanager
def locked(fd: int, ranges: list[tuple[int, int]]) -> Iterator[None]:
    """Hold byte ranges of a file against other writers; freed when the file is closed or the process dies.

    Ranges are taken in ascending order, so two writers cannot wait for each other. File systems
    without locks are written without: then the user gives each row to one writer.
    """
    command = getattr(fcntl, "F_OFD_SETLKW", fcntl.F_SETLKW)
    for start, length in ranges:
        try:
            fcntl.fcntl(fd, command, struct.pack("hhqqi4x", fcntl.F_WRLCK, os.SEEK_SET, start, length, 0))
        except OSError as error:
            if error.errno not in (errno.ENOLCK, errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS):
                raise
    yield


def write_atomically(path: Path, data: bytes, *, sync: bool = True) -> None:
    """Replace a small file in one step."""
    with replacing(path, sync=sync) as temporary:
        temporary.write_bytes(data)


def sync_folder(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def remove(files: list[Path]) -> None:
    for file in files:
        file.unlink(missing_ok=True)


def runs(rows: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Stretches of consecutive numbers in a sorted array, as positions (start, stop)."""
    if not len(rows):
        return
    cuts = np.flatnonzero(np.diff(rows) != 1) + 1
    edges = [0, *cuts.tolist(), len(rows)]
    yield from itertools.pairwise(edges)
