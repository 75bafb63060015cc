"""One file with the completed rows of a store: an uncompressed ``.npz`` under any name.

`numpy.load` opens it. Members are stored uncompressed, so they are mapped into memory in place.
"""

from __future__ import annotations

import json
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from datamodels.errors import RequestError, first_line, newer_format
from datamodels.files import replacing
from datamodels.store.array import header_bytes

FORMAT_VERSION = 1
_META = "meta.json"


def write(
    path: Path,
    arrays: dict[str, tuple[tuple[int, ...], np.dtype[Any], Iterator[NDArray[Any]]]],
    meta: dict[str, Any],
) -> None:
    """Write arrays given as name -> (shape, dtype, chunks of rows), replacing `path` in one step."""
    try:
        with replacing(path) as temporary, zipfile.ZipFile(temporary, "x", zipfile.ZIP_STORED) as archive:
            for name, (shape, dtype, chunks) in arrays.items():
                with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                    member.write(header_bytes(shape, dtype))
                    for chunk in chunks:
                        member.write(np.ascontiguousarray(chunk, dtype=dtype).tobytes())
            archive.writestr(_META, json.dumps({"format_version": FORMAT_VERSION, **meta}))
    except OSError as error:
        raise RequestError(f"cannot write {str(path)!r}: {first_line(error)}") from None


def read(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """The arrays, mapped read-only, and the meta data that `write` was given."""
    try:
        with zipfile.ZipFile(path) as archive:
            meta = json.loads(archive.read(_META))
            members = {
                info.filename.removesuffix(".npy"): info for info in archive.infolist() if info.filename != _META
            }
    except (OSError, KeyError, ValueError, zipfile.BadZipFile) as error:
        raise RequestError(
            f"{str(path)!r} is neither a store nor a file of datamodels.regression.write_dataset: {first_line(error)}"
        ) from None
    if meta["format_version"] > FORMAT_VERSION:
        raise newer_format(str(path), meta["format_version"], FORMAT_VERSION)
    return {name: _map(path, info) for name, info in members.items()}, meta


def _map(path: Path, info: zipfile.ZipInfo) -> NDArray[Any]:
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
        file.seek(info.header_offset + 30 + name_length + extra_length)
        npy_format.read_magic(file)
        shape, _, dtype = npy_format.read_array_header_1_0(file)
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape)
