"""One file with rows of masks and outputs, read without loading it.

Ours is an uncompressed ``.npz`` under any name: `numpy.load` opens it, and its members are mapped into memory in place.
Files of FFCV, see `datamodels.regression.beton`, are read as well.
"""

from __future__ import annotations

import json
import math
import struct
import tokenize
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.lib import format as npy_format
from numpy.typing import NDArray

from datamodels.errors import RequestError, first_line, newer_format
from datamodels.files import replacing
from datamodels.regression.beton import Beton
from datamodels.spec import MASKS
from datamodels.store.array import header_bytes

FORMAT_VERSION = 1
_META = "meta.json"
_META_BYTES = 1 << 20
_MEMBERS = ("masks", "outputs", "rows", "units")
CLASSIC_FIELDS = {MASKS: "mask", "margins": "targets"}  # what FFCV files of the original call the default keys
# What zipfile, json and NumPy raise for files that are none, or damaged.
_DAMAGE = (
    *(OSError, KeyError, ValueError, TypeError, EOFError, RuntimeError, SyntaxError),
    *(struct.error, tokenize.TokenError, zipfile.BadZipFile),
)


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


def read(
    path: Path, masks_key: str = MASKS, outputs_key: str = "margins"
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """``masks``, ``outputs``, ``rows`` and ``units``, mapped read-only, and the meta data that `write` was given.

    Parameters
    ----------
    masks_key, outputs_key
        Fields of an FFCV file; where it has none of the default names, those of the original library, ``mask`` and
        ``targets``. A file of ours has one of each.

    Raises
    ------
    RequestError
        when it is no such file, or a field is missing.
    CorruptStoreError
        when an FFCV file is damaged.
    """
    try:
        with path.open("rb") as file:
            start = file.read(2)
        if start != b"\x02\x00" and (path.suffix != ".beton" or start == b"PK"):
            return _read_npz(path)
    except _DAMAGE as error:
        raise RequestError(
            f"{str(path)!r} is neither a store nor a file of datamodels.regression.write_dataset: {first_line(error)}"
        ) from None
    return _read_beton(Beton(path), masks_key, outputs_key), {}


def _read_npz(path: Path) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    with zipfile.ZipFile(path) as archive:
        members = {info.filename.removesuffix(".npy"): info for info in archive.infolist()}
        if members[_META].file_size > _META_BYTES or any(info.compress_type for info in members.values()):
            raise ValueError("its members are compressed, or too large")
        meta = json.loads(archive.read(_META))
    if meta["format_version"] > FORMAT_VERSION:
        raise newer_format(str(path), meta["format_version"], FORMAT_VERSION)
    arrays = {name: _map(path, members[name]) for name in _MEMBERS}
    lengths = {array.shape[:1] for array in arrays.values()}
    if len(lengths) != 1 or {arrays["rows"].shape, arrays["units"].shape} != lengths:
        raise ValueError(f"its members have the shapes {[array.shape for array in arrays.values()]}")
    return arrays, meta


def _read_beton(file: Beton, masks_key: str, outputs_key: str) -> dict[str, NDArray[Any]]:
    masks, outputs = (
        file.array(key if key in file.fields else CLASSIC_FIELDS.get(key, key)) for key in (masks_key, outputs_key)
    )
    rows = np.arange(file.n_samples, dtype=np.int64)
    return {"masks": masks, "outputs": outputs, "rows": rows, "units": rows}


def _map(path: Path, info: zipfile.ZipInfo) -> NDArray[Any]:
    with path.open("rb") as file:
        file.seek(info.header_offset + 26)
        name_length, extra_length = struct.unpack("<HH", file.read(4))
        file.seek(info.header_offset + 30 + name_length + extra_length)
        npy_format.read_magic(file)
        shape, _, dtype = npy_format.read_array_header_1_0(file)
        end = info.header_offset + 30 + name_length + extra_length + info.file_size
        if dtype.hasobject or file.tell() + math.prod(shape) * dtype.itemsize != end:
            raise ValueError(f"{info.filename} has another size than its header says")
        if 0 in shape:
            return np.empty(shape, dtype)
        return np.memmap(path, dtype, "r", file.tell(), shape)
