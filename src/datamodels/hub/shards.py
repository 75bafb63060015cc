"""Rows as Parquet shards, byte for byte, with a column per key; and which rows a shard has."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, RequestError, first_line
from datamodels.spec import KeySpec, Spec
from datamodels.store.array import runs

ROW, CHECKSUM = "row", "checksum"
_BYTES = 64 << 20
_ROWS = 10_000


@dataclass(frozen=True)
class Shard:
    """A file of rows: its path, the rows (k,) in ascending order, and their checksums (k,)."""

    path: str
    rows: NDArray[np.int64]
    checksums: NDArray[np.uint32]

    @classmethod
    def of(cls, store: str, rows: NDArray[np.int64], checksums: NDArray[np.uint32]) -> Shard:
        """Named by its first row, its last row, and a hash of rows and checksums."""
        content = hashlib.sha256(rows.astype("<i8").tobytes() + checksums.astype("<u4").tobytes()).hexdigest()[:16]
        return cls(f"data/{store}/rows-{rows[0]:08d}-{rows[-1]:08d}-{content}.parquet", rows, checksums)

    def to_dict(self) -> dict[str, Any]:
        """For JSON: rows as ranges [start, stop), checksums as hexadecimal digits, eight per row."""
        ranges = [[int(self.rows[a]), int(self.rows[b - 1]) + 1] for a, b in runs(self.rows)]
        return {"rows": ranges, "checksums": self.checksums.astype(">u4").tobytes().hex()}

    @classmethod
    def from_dict(cls, path: str, data: Any) -> Shard:
        """The inverse of `to_dict`; a ValueError, KeyError or TypeError when it is none."""
        sums = np.frombuffer(bytes.fromhex(data["checksums"]), dtype=">u4").astype(np.uint32)
        ranges = [(int(start), int(stop)) for start, stop in data["rows"]]
        if not ranges or any(a >= b for a, b in ranges) or sum(b - a for a, b in ranges) != len(sums):
            raise ValueError("its rows and checksums do not go together")
        rows = np.concatenate([np.arange(a, b, dtype=np.int64) for a, b in ranges])
        if rows[0] < 0 or (np.diff(rows) < 1).any():
            raise ValueError("its rows do not ascend")
        return cls(path, rows, sums)


def rows_per_shard(spec: Spec) -> int:
    """How many rows make a shard of at most 64 MB before compression, and at most 10,000."""
    return max(1, min(_ROWS, _BYTES // max(1, sum(field.row_bytes for field in spec.fields.values()))))


def check_keys(spec: Spec) -> None:
    """Refuse keys that Parquet or the names of our columns have no room for."""
    for key, field in spec.fields.items():
        if key in (ROW, CHECKSUM):
            raise RequestError(f"the key {key!r} is also the name of a column that every shard has; rename the key")
        if _parts(field)[0].itemsize > 8:
            raise RequestError(
                f"the key {key!r} is {field.dtype}, which Parquet does not have; use float64 or complex128"
            )


def write_shard(path: Path, spec: Spec, shard: Shard, values: dict[str, NDArray[Any]]) -> None:
    """Write the rows of a shard: `row`, one column per key, `checksum`. `values` is key -> (k, *shape)."""
    import pyarrow as pa
    from pyarrow import parquet

    columns = {
        ROW: pa.array(shard.rows),
        **{key: _column(field, values[key]) for key, field in spec.fields.items()},
        CHECKSUM: pa.array(shard.checksums),
    }
    # A dictionary would take NaNs of different bits for one value.
    parquet.write_table(pa.table(columns), path, compression="zstd", use_dictionary=False)


def read_shard(path: Path, spec: Spec, shard: Shard) -> dict[str, NDArray[Any]]:
    """The values of the rows of a shard, key -> (k, *shape).

    Raises
    ------
    CorruptStoreError
        when the file is no such shard. Whether the values are right, the checksums of the rows say.
    """
    import pyarrow as pa
    from pyarrow import parquet

    try:
        table = parquet.read_table(path)
        expected = [ROW, *spec.fields, CHECKSUM]
        if table.column_names != expected:
            raise ValueError(f"it has the columns {table.column_names}, not {expected}")
        if not np.array_equal(table.column(ROW).to_numpy(), shard.rows):
            raise ValueError("its rows are not those that the index says")
        return {key: _values(key, field, table.column(key), len(shard.rows)) for key, field in spec.fields.items()}
    except (pa.ArrowException, ValueError, OSError) as error:
        raise CorruptStoreError(f"the shard {shard.path} is damaged: {first_line(error)}") from None


def _parts(field: KeySpec) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """The type and shape in Arrow, which has no complex numbers: they are pairs."""
    if field.numpy_dtype.kind != "c":
        return field.numpy_dtype, field.shape
    return np.dtype(f"f{field.numpy_dtype.itemsize // 2}"), (*field.shape, 2)


def _column(field: KeySpec, values: NDArray[Any]) -> Any:
    """(k, *shape) as lists of lists, of fixed size where it is not 0."""
    import pyarrow as pa

    dtype, shape = _parts(field)
    column = pa.array(np.ascontiguousarray(values).reshape(-1).view(dtype))
    for depth in reversed(range(len(shape))):
        if shape[depth]:
            column = pa.FixedSizeListArray.from_arrays(column, shape[depth])
        else:
            column = pa.ListArray.from_arrays(
                pa.array(np.zeros(len(values) * prod(shape[:depth]) + 1, np.int32)), column
            )
    return column


def _values(key: str, field: KeySpec, column: Any, count: int) -> NDArray[Any]:
    """The inverse of `_column`."""
    import pyarrow as pa

    dtype, shape = _parts(field)
    flat = column.combine_chunks()
    while pa.types.is_nested(flat.type):
        flat = flat.flatten()
    if flat.type != pa.from_numpy_dtype(dtype) or flat.null_count or len(flat) != count * prod(shape):
        raise ValueError(
            f"the column {key!r} holds {len(flat)} of {flat.type}; the schema says {field.dtype} {field.shape}"
        )
    return flat.to_numpy(zero_copy_only=False).view(field.numpy_dtype).reshape(count, *field.shape)
