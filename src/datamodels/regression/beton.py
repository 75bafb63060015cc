"""FFCV files (``.beton``, layout version 2), read and written with NumPy alone.

A file is, in little-endian order:

========== =========================================================================================================
header     24 bytes: version u2, fields u2, page size u4, samples u8, address of the allocation table u8
fields     1041 bytes each: type u1, name (16 bytes, ASCII), 1024 bytes of arguments
samples    one C struct per sample with a member per field: the number itself, or the address of its bytes
pages      from a multiple of the page size on; the bytes of one sample lie in one page, unaligned
table      to the end of the file, 24 bytes per array of a sample: sample u8, address u8, length u8
========== =========================================================================================================

The arguments of an array field are its shape (32 numbers u8, 0 past the last axis), the length of a text u8, and that
text, JSON, its dtype: ``[["", "<f4"]]``. Nothing of a file is believed: counts, lengths and addresses are
compared with its size, and every address with the allocation table, before they are used.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, RequestError, first_line
from datamodels.files import replacing
from datamodels.store.lazy import LazyRows

VERSION = 2
PAGE_SIZE = 8 << 20
_PAGE_SIZES = (2 << 20, 2 << 30)  # that the library writes
_HEADER = np.dtype([("version", "<u2"), ("fields", "<u2"), ("page_size", "<u4"), ("samples", "<u8"), ("table", "<u8")])
_FIELD = np.dtype([("type", "u1"), ("name", "u1", 16), ("arguments", "u1", 1024)])
_ARGUMENTS = np.dtype([("shape", "<u8", 32), ("length", "<u8")])
_ENTRY = np.dtype([("sample", "<u8"), ("address", "<u8"), ("length", "<u8")])
_AXES = 31  # with that of the samples, as many as every NumPy has
_CHUNK = 1 << 16  # entries of the allocation table that are looked at at once
_DTYPE = re.compile(r"[<>|=][biuf]\d{1,2}")

_FLOAT, _INT, _ARRAY, _TENSOR = 0, 1, 4, 6
_BYTES = np.dtype([("address", "<u8"), ("length", "<u8")])
_PICTURE = np.dtype([("mode", "u1"), ("width", "<u2"), ("height", "<u2"), ("address", "<u8")])
_KINDS: dict[int, tuple[str, np.dtype[Any]]] = {
    _FLOAT: ("a float", np.dtype("<f8")),
    _INT: ("an int", np.dtype("<i8")),
    2: ("a picture", _PICTURE),
    3: ("bytes", _BYTES),
    _ARRAY: ("an array", np.dtype("<u8")),
    5: ("JSON", _BYTES),
    _TENSOR: ("a tensor", np.dtype("<u8")),
}


class Field(NamedTuple):
    """One field: its type number, and for arrays the shape and dtype of one sample's."""

    type: int
    shape: tuple[int, ...]
    dtype: np.dtype[Any] | None


class Beton:
    """An FFCV file, mapped into memory.

    Parameters
    ----------
    path
        The file.

    Attributes
    ----------
    n_samples
        How many samples there are.
    fields
        name -> field, in the order of the file.

    Raises
    ------
    CorruptStoreError
        when the file is truncated, or says something of itself that cannot be.
    RequestError
        when it cannot be opened, or has a field that only the program that wrote it knows.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        try:
            self._bytes: NDArray[np.uint8] = np.memmap(self.path, np.uint8, "r").view(np.ndarray)
        except OSError as error:
            raise RequestError(f"cannot read {str(path)!r}: {first_line(error)}") from None
        except ValueError:
            raise self._corrupt("it is empty") from None
        if len(self._bytes) < _HEADER.itemsize:
            raise self._corrupt(f"it has {len(self._bytes)} bytes, the header alone has {_HEADER.itemsize}")
        header = self._bytes[: _HEADER.itemsize].view(_HEADER)[0]
        self.n_samples, self._table_start = int(header["samples"]), int(header["table"])
        self._check_header(int(header["version"]), int(header["fields"]), int(header["page_size"]))
        fields_end = _HEADER.itemsize + int(header["fields"]) * _FIELD.itemsize
        self.fields = self._read_fields(self._bytes[_HEADER.itemsize : fields_end].view(_FIELD))
        sample = np.dtype([("", _KINDS[field.type][1]) for field in self.fields.values()], align=True)
        self._samples_end = fields_end + self.n_samples * sample.itemsize
        if self._samples_end > self._table_start:
            raise self._corrupt(
                f"{self.n_samples} samples of {sample.itemsize} bytes end at {self._samples_end}, past the start of the "
                f"allocation table at {self._table_start}"
            )
        self._samples = self._bytes[fields_end : self._samples_end].view(sample)
        self._entries = self._bytes[self._table_start :].view(_ENTRY)

    def _corrupt(self, what: str) -> CorruptStoreError:
        return CorruptStoreError(
            f"{str(self.path)!r} is no whole FFCV file: {what}; write it again, or restore it from a copy"
        )

    def _check_header(self, version: int, fields: int, page_size: int) -> None:
        size = len(self._bytes)
        if version != VERSION:
            raise self._corrupt(f"its layout has version {version}, known is version {VERSION}, which FFCV 1.0 writes")
        if page_size & (page_size - 1) or not _PAGE_SIZES[0] <= page_size <= _PAGE_SIZES[1]:
            raise self._corrupt(f"its page size is {page_size}, which is no power of 2 from {_PAGE_SIZES[0]} on")
        if not self._table_start:
            raise self._corrupt("it has no allocation table, so the program that wrote it was stopped before the end")
        if self._table_start > size or (size - self._table_start) % _ENTRY.itemsize:
            raise self._corrupt(
                f"it has {size} bytes, and an allocation table of {_ENTRY.itemsize} bytes per entry at {self._table_start}"
            )
        if not fields or _HEADER.itemsize + fields * _FIELD.itemsize > self._table_start:
            raise self._corrupt(f"it has {fields} fields, and an allocation table at {self._table_start}")
        if not self.n_samples:
            raise self._corrupt("it has 0 samples")

    def _read_fields(self, table: NDArray[Any]) -> dict[str, Field]:
        fields: dict[str, Field] = {}
        for entry in table:
            raw, kind = entry["name"].tobytes().split(b"\0")[0], int(entry["type"])
            name = raw.decode("ascii", "backslashreplace")
            if name in fields:
                raise self._corrupt(f"it has two fields {name!r}")
            if kind not in _KINDS:
                raise RequestError(
                    f"{str(self.path)!r} has a field {name!r} of type {kind}; known are {_kinds(*_KINDS)}: write the file "
                    "without it"
                )
            fields[name] = Field(kind, (), None)
            if kind in (_ARRAY, _TENSOR):
                fields[name] = Field(kind, *self._read_arguments(name, entry["arguments"]))
        return fields

    def _read_arguments(self, name: str, raw: NDArray[np.uint8]) -> tuple[tuple[int, ...], np.dtype[Any]]:
        arguments = raw[: _ARGUMENTS.itemsize].view(_ARGUMENTS)[0]
        shape = [int(size) for size in arguments["shape"]]
        while shape and not shape[-1]:
            shape.pop()
        if not math.prod(shape) or not 0 < len(shape) <= _AXES:
            raise self._corrupt(f"the field {name!r} has the shape {tuple(shape)}")
        text = raw[_ARGUMENTS.itemsize :].tobytes()
        if int(arguments["length"]) > len(text):
            raise self._corrupt(f"the dtype of {name!r} is {arguments['length']} bytes long, {len(text)} are there")
        text = text[: int(arguments["length"])]
        try:
            described = json.loads(text.decode("ascii"))
        except (ValueError, RecursionError) as error:
            raise self._corrupt(f"the dtype of {name!r} is no JSON text: {first_line(error)}") from None
        match described:
            case [["", str() as found]] if _DTYPE.fullmatch(found):
                try:
                    return tuple(shape), np.dtype(found)
                except TypeError:
                    pass
        raise self._corrupt(f"the field {name!r} has the dtype {text[:60]!r}; it must be one real number, bool or int")

    def array(self, name: str) -> NDArray[Any]:
        """All samples of the field `name`, (n_samples, *shape), read-only and not loaded.

        Numbers are a mapped column. Arrays are read from their pages when rows are taken: ``[i]``, ``[a:b]``, ``[indices]``.

        Raises
        ------
        CorruptStoreError
            when the addresses of the samples are not those of the allocation table.
        RequestError
            when there is no such field, or it holds no numbers.
        """
        field = self.fields.get(name)
        legal = [key for key, value in self.fields.items() if value.type in (_FLOAT, _INT, _ARRAY, _TENSOR)]
        if field is None or name not in legal:
            has = "has no field" if field is None else f"has {_kinds(field.type)} in the field"
            raise RequestError(f"{str(self.path)!r} {has} {name!r}; arrays and numbers are in {legal}")
        column = self._samples[f"f{list(self.fields).index(name)}"]
        if field.dtype is None:
            return column
        self._check_addresses(name, column, math.prod(field.shape) * field.dtype.itemsize)
        return BetonRows(self, name, column, field.shape, field.dtype)  # type: ignore[return-value]

    def _check_addresses(self, name: str, addresses: NDArray[np.uint64], length: int) -> None:
        """That each sample's bytes lie in the pages, where the allocation table says."""
        room = self._table_start - self._samples_end
        if self.n_samples * length > room:
            raise self._corrupt(
                f"{self.n_samples} samples of {name!r} have {length} bytes each; pages have {room} in all"
            )
        if self.n_samples > len(self._entries):
            raise self._corrupt(f"the allocation table has {len(self._entries)} entries for {self.n_samples} samples")
        found = np.zeros(self.n_samples, np.bool_)
        for start in range(0, len(self._entries), _CHUNK):
            part = self._entries[start : start + _CHUNK]
            part = part[
                (part["sample"] < self.n_samples)
                & (part["length"] == length)
                & (part["address"] >= self._samples_end)
                & (part["address"] <= self._table_start - length)
            ]
            found[part["sample"][addresses[part["sample"]] == part["address"]]] = True
        if not found.all():
            raise self._corrupt(f"the allocation table does not have the {name!r} of sample {int(np.argmin(found))}")

    def _gather(self, addresses: NDArray[np.uint64], length: int) -> NDArray[np.uint8]:
        """The bytes at addresses that were checked, (k, length)."""
        out = np.empty((len(addresses), length), np.uint8)
        for row, address in zip(out, addresses.tolist(), strict=True):
            row[:] = self._bytes[address : address + length]
        return out


class BetonRows(LazyRows):
    """The arrays of one field, (n_samples, *shape), read where they are asked for."""

    def __init__(
        self, file: Beton, name: str, addresses: NDArray[np.uint64], shape: tuple[int, ...], dtype: np.dtype[Any]
    ) -> None:
        self._file, self._name, self._addresses = file, name, addresses
        self.shape, self.dtype = (len(addresses), *shape), dtype

    def _read(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        raw = self._file._gather(self._addresses[rows], math.prod(self.shape[1:]) * self.dtype.itemsize)
        if self.dtype == np.bool_ and raw.max(initial=0) > 1:
            raise CorruptStoreError(
                f"{str(self._file.path)!r} has the byte {raw.max()} in the field {self._name!r} of bools: it is damaged"
            )
        return raw.view(self.dtype)


def _kinds(*types: int) -> str:
    return ", ".join(_KINDS[number][0] for number in types)


def write(
    path: str | Path,
    arrays: Mapping[str, tuple[tuple[int, ...], np.dtype[Any], Iterator[NDArray[Any]]]],
    page_size: int = PAGE_SIZE,
) -> None:
    """Write what FFCV's own writer writes, replacing `path` in one step.

    Parameters
    ----------
    arrays
        name -> (shape, dtype, chunks of rows), as for a dataset file; chunk k of each has the same rows. A shape (m,) makes
        a field of ints or floats (64 bits), any other a field of arrays.
    page_size
        A power of 2 of bytes from 2 MiB on; doubled until the arrays of one row fit.

    Raises
    ------
    RequestError
        when a name, dtype or size has no place in such a file, or the disk refuses.
    """
    layout = _Layout(
        {name: shape for name, (shape, _, _) in arrays.items()},
        {name: _stored(name, len(shape), dtype) for name, (shape, dtype, _) in arrays.items()},
        page_size,
    )
    layout = layout.checked()
    try:
        with replacing(path) as temporary, temporary.open("xb") as file:
            file.truncate(layout.table_start)
            file.write(layout.header())
            start = 0
            for chunks in zip(*(chunks for _, _, chunks in arrays.values()), strict=True):
                for position, data in layout.place(start, chunks):
                    file.seek(position)
                    file.write(data)
                start += len(chunks[0])
            file.flush()
    except OSError as error:
        raise RequestError(f"cannot write {str(path)!r}: {first_line(error)}") from None


def _stored(name: str, ndim: int, dtype: np.dtype[Any]) -> np.dtype[Any]:
    """The dtype that a field has in the file."""
    if not (name.isascii() and 0 < len(name) <= 16 and "\0" not in name):
        raise RequestError(f"{name!r} cannot name a field of an FFCV file: give 1 to 16 ASCII characters")
    if dtype.kind not in "biuf":
        raise RequestError(f"{name!r} has dtype {dtype}; an FFCV file has real numbers, bools and ints here")
    if ndim == 1:
        return np.dtype("<f8" if dtype.kind == "f" else "<i8")
    return dtype.newbyteorder("<")


@dataclass(frozen=True)
class _Layout:
    """Where the bytes of each row go."""

    shapes: dict[str, tuple[int, ...]]
    types: dict[str, np.dtype[Any]]
    page_size: int

    def checked(self) -> _Layout:
        """The same, with pages that have room for a row."""
        if len({shape[0] for shape in self.shapes.values()}) != 1 or not all(map(math.prod, self.shapes.values())):
            raise RequestError(
                f"an FFCV file has the same rows of every field, and none without values; got {self.shapes}"
            )
        size = self.page_size
        while size < self.row_bytes:
            size *= 2
        if size > _PAGE_SIZES[1]:
            raise RequestError(
                f"one row has {self.row_bytes} bytes; an FFCV file has room for {_PAGE_SIZES[1]}: write another format"
            )
        return replace(self, page_size=size)

    @cached_property
    def count(self) -> int:
        return next(iter(self.shapes.values()))[0]

    @cached_property
    def lengths(self) -> dict[str, int]:
        """Bytes of one sample of each field of arrays."""
        return {
            name: math.prod(shape[1:]) * self.types[name].itemsize
            for name, shape in self.shapes.items()
            if len(shape) > 1
        }

    @cached_property
    def row_bytes(self) -> int:
        return sum(self.lengths.values())

    @cached_property
    def sample(self) -> np.dtype[Any]:
        return np.dtype(
            [(name, "<u8" if name in self.lengths else self.types[name]) for name in self.shapes], align=True
        )

    @cached_property
    def samples_start(self) -> int:
        return _HEADER.itemsize + len(self.shapes) * _FIELD.itemsize

    @cached_property
    def pages_start(self) -> int:
        end = self.samples_start + self.count * self.sample.itemsize
        return -(-end // self.page_size) * self.page_size

    @cached_property
    def rows_per_page(self) -> int:
        return self.page_size // max(1, self.row_bytes)

    @cached_property
    def table_start(self) -> int:
        pages = -(-self.count // self.rows_per_page) if self.lengths else 0
        return self.pages_start + pages * self.page_size

    def header(self) -> bytes:
        """The header and the table of fields."""
        header = np.array([(VERSION, len(self.shapes), self.page_size, self.count, self.table_start)], _HEADER)
        fields = np.zeros(len(self.shapes), _FIELD)
        for field, (name, shape) in zip(fields, self.shapes.items(), strict=True):
            field["name"][: len(name)] = np.frombuffer(name.encode("ascii"), np.uint8)
            if name not in self.lengths:
                field["type"] = _FLOAT if self.types[name].kind == "f" else _INT
                continue
            field["type"] = _ARRAY
            text = json.dumps(self.types[name].descr).encode("ascii")
            arguments = np.zeros((), _ARGUMENTS)
            arguments["shape"][: len(shape) - 1] = shape[1:]
            arguments["length"] = len(text)
            raw = arguments.tobytes() + text
            field["arguments"][: len(raw)] = np.frombuffer(raw, np.uint8)
        return header.tobytes() + fields.tobytes()

    def place(self, start: int, chunks: Sequence[NDArray[Any]]) -> Iterator[tuple[int, bytes]]:
        """Positions in the file and what goes there, for rows from `start` on: samples, their pages, table entries."""
        rows = np.arange(start, start + len(chunks[0]), dtype=np.int64)
        page, place = np.divmod(rows, self.rows_per_page)
        addresses = self.pages_start + page * self.page_size + place * self.row_bytes
        samples, data = np.zeros(len(rows), self.sample), np.empty((len(rows), self.row_bytes), np.uint8)
        entries, offset = np.empty((len(rows), len(self.lengths)), _ENTRY), 0
        for name, chunk in zip(self.shapes, chunks, strict=True):
            values = np.ascontiguousarray(chunk, self.types[name])
            if name not in self.lengths:
                samples[name] = values
                continue
            samples[name] = addresses + offset
            length, column = self.lengths[name], list(self.lengths).index(name)
            data[:, offset : offset + length] = values.reshape(len(values), -1).view(np.uint8)
            for key, value in (("sample", rows), ("address", samples[name]), ("length", length)):
                entries[key][:, column] = value
            offset += length
        yield self.samples_start + start * self.sample.itemsize, samples.tobytes()
        for first in np.flatnonzero((place == 0) | (rows == start)) if self.lengths else ():
            yield int(addresses[first]), data[first : first + self.rows_per_page - int(place[first])].tobytes()
        yield self.table_start + start * len(self.lengths) * _ENTRY.itemsize, entries.tobytes()
