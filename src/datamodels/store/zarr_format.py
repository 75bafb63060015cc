"""How a remote store lies in Zarr v3: the metadata of its arrays, and the bytes of a chunk."""

from __future__ import annotations

import json
import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, RequestError, first_line
from datamodels.spec import MASKS
from datamodels.store.meta import Meta

ROWS = "_rows"
ROOT = "zarr.json"
ATTRIBUTE = "datamodels"
BLOCKS_PER_STATE = 16
REMEDY = "`datamodels verify --forget` has its rows trained again"
_DRAWN, _BLOCK, _EXTENDED = "drawn", "block_rows", "extension"  # of the record
_BLOCK_BYTES = 8 << 20
_TAKEN = (ROWS, ROOT, "campaigns", "failures")  # names that keys cannot have
_LARGEST_BLOCK = 100  # rows
_ZSTD_LEVEL = 1


def decoded(data: bytes, shape: tuple[int, ...], dtype: np.dtype[Any], name: str) -> NDArray[Any]:
    size = math.prod(shape) * dtype.itemsize
    try:
        raw = _zstd().decode(data) if packs(dtype) else data
    except (RuntimeError, ValueError, MemoryError) as error:  # memory: a damaged chunk may claim any size
        raise CorruptStoreError(f"{name} is damaged: {first_line(error)}; {REMEDY}") from None
    if len(raw) != size:
        raise CorruptStoreError(f"{name} holds {len(raw)} bytes and not {size}: it is damaged; {REMEDY}")
    return np.frombuffer(raw, dtype.newbyteorder("<")).astype(dtype).reshape(shape)


def packs(dtype: np.dtype[Any]) -> bool:
    """Whether chunks are compressed: bools and integers are; noise in floats does not shrink."""
    return dtype.kind in "bui"


def _zstd() -> Any:
    from numcodecs import Zstd

    return Zstd(level=_ZSTD_LEVEL)


def block_rows(meta: Meta) -> int:
    stored = [field for key, field in meta.spec.fields.items() if key not in drawn(meta)]
    largest = max((field.numpy_dtype.itemsize * math.prod(field.shape) for field in stored), default=1)
    return max(1, min(_LARGEST_BLOCK, _BLOCK_BYTES // max(1, largest)))


def drawing(meta: Meta) -> Meta:
    """The same, for a store that is being made: its record says which keys are not stored, since the design draws them again."""
    keys = [key for key in (MASKS,) if meta.design is not None and key in meta.spec.fields]
    return replace(meta, record={**meta.record, _DRAWN: keys})


def drawn(meta: Meta) -> set[str]:
    """Keys that are not stored, since the design draws them again."""
    keys = meta.record.get(_DRAWN, ())
    return set(map(str, keys)) if isinstance(keys, list | tuple) else {str(keys)}


def neutral(meta: Meta) -> Meta:
    """What a copy of another kind says of itself: nothing of how a remote store lies."""
    return replace(
        meta, record={key: value for key, value in meta.record.items() if key not in (_DRAWN, _BLOCK, _EXTENDED)}
    )


def extended(meta: Meta, rows: int) -> Meta:
    """The same with more models, and unlike what anybody else writes who extends at this moment."""
    more = meta.with_models(rows)
    return replace(more, record={**more.record, _EXTENDED: uuid.uuid4().hex})


def arrays(meta: Meta, block: int) -> dict[str, bytes]:
    """The Zarr metadata of every array, name -> JSON."""
    spec = meta.spec
    taken = [key for key in spec.fields if key in _TAKEN or key.endswith(".npy")]
    if taken:
        raise RequestError(f"a remote store needs the name {taken[0]!r} for itself; give the key another")
    fields = {
        key: (field.numpy_dtype, field.shape, block) for key, field in spec.fields.items() if key not in drawn(meta)
    }
    fields[ROWS] = (np.dtype(np.uint64), (), block * BLOCKS_PER_STATE)
    return {name: _array(dtype, (spec.num_models, *shape), rows) for name, (dtype, shape, rows) in fields.items()}


def _array(dtype: np.dtype[Any], shape: Sequence[int], rows: int) -> bytes:
    codecs: list[Mapping[str, Any]] = [
        {"name": "bytes", **({"configuration": {"endian": "little"}} if dtype.itemsize > 1 else {})}
    ]
    if packs(dtype) and dtype != np.uint64:
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


def root(meta: Meta, block: int) -> bytes:
    record = {**meta.to_dict(), _BLOCK: block}
    return json.dumps({"zarr_format": 3, "node_type": "group", "attributes": {ATTRIBUTE: record}}, indent=1).encode()


def encoded(chunk: NDArray[Any]) -> bytes | memoryview:
    """The bytes of a chunk."""
    raw = np.ascontiguousarray(chunk, chunk.dtype.newbyteorder("<")).reshape(-1).view(np.uint8)
    return _zstd().encode(raw) if packs(chunk.dtype) else raw.data
