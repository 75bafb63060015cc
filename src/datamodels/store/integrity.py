"""Whether rows hold what was written, and whether two stores hold the same."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, RequestError
from datamodels.spec import MASKS
from datamodels.store.plan import is_floating, row_checksum

if TYPE_CHECKING:
    from datamodels.store.base import Store

_COPY_BYTES = 32 << 20


def good_rows(store: Store, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], dict[str, NDArray[Any]]]:
    """Those of some complete rows that hold what was written, and their values."""
    sums = store.checksums()
    try:
        values = {key: np.asarray(store.array(key)[rows]) for key in store.keys}
    except CorruptStoreError:  # some of them cannot be read
        good = rows[np.array([is_good_now(store, row) for row in rows.tolist()], dtype=np.bool_)]
        return good, {key: np.asarray(store.array(key)[good]) for key in store.keys}
    fine = np.array(
        [
            is_good(store, row, {k: value[i] for k, value in values.items()}, sums)
            for i, row in enumerate(rows.tolist())
        ],
        dtype=np.bool_,
    )
    late = np.array([is_good_now(store, row) for row in rows[~fine].tolist()], dtype=np.bool_)
    if not late.any():
        return rows[fine], values if fine.all() else {key: value[fine] for key, value in values.items()}
    fine[~fine] = late
    return rows[fine], {key: np.asarray(store.array(key)[rows[fine]]) for key in store.keys}


def is_good_now(store: Store, row: int) -> bool:
    """Look again, since the row may be written at this moment; a row that is not marked is no bad row."""
    for _ in range(3):
        if not store.completed()[row]:
            return True
        try:
            values = {key: np.array(store.array(key)[row]) for key in store.keys}
        except CorruptStoreError:
            continue
        if is_good(store, row, values, store.checksums()):
            return True
    return False


def is_good(store: Store, row: int, values: Mapping[str, Any], sums: NDArray[np.uint32] | None) -> bool:
    if sums is not None and row_checksum(row, values) != int(sums[row]):
        return False
    if store.sweep is not None:
        drawn = store.sweep.keys_of([row])
        if any(values[key] != value[0] for key, value in drawn.items()):
            return False
    if store.design is None or MASKS not in store.stored:  # without, or drawn for this very look
        return True
    return bool(np.array_equal(values[MASKS], store.design.mask(row)))


def check_same_models(store: Store, other: Store) -> None:
    """That row i of another store is the same model as here."""
    if store.sweep != other.sweep:
        raise RequestError(
            f"{str(other.path)!r} has another sweep than {str(store.path)!r}: row i has other training parameters"
        )
    if store.spec.fields != other.spec.fields:
        raise RequestError(f"{str(other.path)!r} has another schema than {str(store.path)!r}")
    mine, theirs = store.design, other.design
    if (mine is None) != (theirs is None) or (mine and theirs and mine.identity != theirs.identity):
        raise RequestError(
            f"{str(other.path)!r} has another design than {str(store.path)!r}: row i is not the same model. "
            "Stores of other seeds are fitted together instead: datamodels fit STORE STORE"
        )


def parts(store: Store, rows: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Ascending rows in parts of moderate size, which do not share a block of this store."""
    size = sum(field.numpy_dtype.itemsize * math.prod(field.shape) for field in store.spec.fields.values())
    block = store.block_rows or 1
    step = block * max(1, _COPY_BYTES // max(1, size * block))
    numbers = rows // step
    for number in np.unique(numbers):
        yield rows[numbers == number]


def differing(store: Store, other: Store, rows: NDArray[np.int64]) -> list[int]:
    """Those of some rows, complete in both, whose content is not the same."""
    mine, theirs = store.checksums(), other.checksums()
    if mine is not None and theirs is not None:
        return rows[mine[rows] != theirs[rows]].tolist()
    return [
        row
        for row in rows.tolist()
        if not all(
            np.array_equal(store.array(k)[row], other.array(k)[row], equal_nan=is_floating(store.field(k)))
            for k in store.keys
        )
    ]
