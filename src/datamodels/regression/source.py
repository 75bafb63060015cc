"""Rows of one store or file: where they are, which models they are, how they are read."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError, SweepWarning, first_line
from datamodels.regression import dataset_file
from datamodels.regression.travel import ArrayMasks, Carried, StoreMasks
from datamodels.spec import MASKS, Rows, rows_named
from datamodels.store import Store

OUTPUTS = "margins"
CHUNK_BYTES = 64 << 20
DENSE_ROWS = 8  # rows are read with those between them up to this many times their number


@dataclass(frozen=True, eq=False)
class Source:
    """Rows from one place.

    Attributes
    ----------
    identity
        What row numbers refer to: rows of equal identity and number are the same model.
    masks
        (start, stop) -> 0/1 array (stop - start, n_train).
    outputs
        (n_models, ...) array, usually memory-mapped.
    rows
        (k,) the rows that take part, ascending.
    units, mask_numbers
        (k,) design unit and mask number of each of them: rows of one mask number are replicates.
    train_ids, output_ids
        (n_train,) names of the training examples, and of the examples that a row's outputs are of, where they are known.
    """

    identity: str
    masks: Callable[[int, int], NDArray[Any]]
    outputs: NDArray[Any]
    rows: NDArray[np.int64]
    units: NDArray[np.int64]
    mask_numbers: NDArray[np.int64]
    n_train: int
    description: dict[str, Any]
    train_ids: NDArray[np.str_] | None = None
    output_ids: NDArray[np.str_] | None = None

    def __post_init__(self) -> None:
        if self.outputs.dtype.kind not in "biuf":
            raise RequestError(f"outputs have dtype {self.outputs.dtype}; they must be real numbers")

    def __getstate__(self) -> dict[str, Any]:
        """For other processes; what lies in files and stores they read there."""
        return {**self.__dict__, "outputs": Carried(self.outputs)}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state, outputs=state["outputs"].array)

    @classmethod
    def from_store(cls, store: Store, masks_key: str = MASKS, outputs_key: str = OUTPUTS) -> Source:
        """The completed rows of a store."""
        store.field(outputs_key)
        rows = np.flatnonzero(store.completed()).astype(np.int64)
        n_train = store.masks(0, 0, key=masks_key).shape[1:]
        if len(n_train) != 1:
            raise RequestError(
                f"the key {masks_key!r} has shape {n_train} per row; masks are one entry per train example"
            )
        return cls(
            identity=store.identity,
            masks=StoreMasks(store, masks_key),
            outputs=store.array(outputs_key),
            rows=rows,
            units=store.design.units(rows) if store.design else rows,
            mask_numbers=rows // store.design.replicates if store.design else rows,
            n_train=n_train[0],
            description={
                "path": str(store.path),
                "masks_key": masks_key,
                "outputs_key": outputs_key,
                "design": store.design.to_dict() if store.design else None,
                "fingerprint": store.fingerprint(),
            },
            train_ids=store.ids("train"),
            output_ids=_output_ids(store, outputs_key),
        )

    @classmethod
    def from_arrays(cls, masks: NDArray[Any], outputs: NDArray[Any], name: str | None = None) -> Source:
        """All rows of two arrays, masks (m, n_train) and outputs (m, ...)."""
        if masks.ndim != 2 or outputs.ndim < 1 or len(masks) != len(outputs):
            raise RequestError(
                f"masks have shape {masks.shape} and outputs {outputs.shape}; they must be (m, n_train) and (m, ...)"
            )
        if masks.dtype.kind not in "biuf":
            raise RequestError(f"masks have dtype {masks.dtype}; they must be numbers")
        rows = np.arange(len(masks), dtype=np.int64)
        return cls(
            identity=f"arrays:{_array_identity(masks)}",
            masks=ArrayMasks(Carried(masks)),
            outputs=outputs,
            rows=rows,
            units=rows,
            mask_numbers=rows,
            n_train=masks.shape[1],
            description={"path": name},
        )

    @classmethod
    def from_file(cls, path: Path, masks_key: str = MASKS, outputs_key: str = OUTPUTS) -> tuple[Source, bool]:
        """All rows of a dataset file or an FFCV file, and whether its targets are train examples."""
        arrays, meta = dataset_file.read(path, masks_key, outputs_key)
        source = cls.from_arrays(arrays["masks"], arrays["outputs"], str(path))
        description = {**source.description, "masks_key": masks_key, "outputs_key": outputs_key}
        return replace(source, units=np.array(arrays["units"]), description=description), meta.get("of") == "train"

    def restrict(self, rows: Rows) -> Source:
        """The rows that are also in `rows`: a slice, (start, stop), indices, or a bool mask."""
        if rows is None:
            return self
        keep = rows_named(rows, len(self.outputs))
        return self.take(keep[self.rows])

    def mask_hashes(self) -> NDArray[np.uint64]:
        """A hash of the mask of every row, (k,): knows the same models again in a copy of the files."""
        out = np.empty(len(self.rows), dtype=np.uint64)
        size = max(64, CHUNK_BYTES // max(1, self.n_train))
        for start in range(0, len(self.rows), size):
            packed = np.packbits(read_masks(self, self.rows[start : start + size]), axis=1)
            for i, row in enumerate(packed, start):
                out[i] = int.from_bytes(hashlib.blake2b(row.tobytes(), digest_size=8).digest(), "little")
        return out

    def take(self, positions: NDArray[Any]) -> Source:
        names = ("rows", "units", "mask_numbers")
        return replace(self, **{name: getattr(self, name)[positions] for name in names})


def _output_ids(store: Store, outputs_key: str) -> NDArray[np.str_] | None:
    """Names of the test examples, when a row has one output of each."""
    field, names = store.field(outputs_key), store.ids("test")
    return names if names is not None and field.of is None and field.shape == names.shape else None


def _array_identity(masks: NDArray[Any]) -> str:
    """A hash of the first masks: cheap for files of any size, the same for files that grew, and for
    any outputs of the same models. Rows are known by their position, so keep them in their order."""
    first = np.ascontiguousarray(masks[:16]) != 0
    return hashlib.sha256(f"{masks.shape[1]}:".encode() + np.packbits(first).tobytes()).hexdigest()


def numbered(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Labels of several parts as numbers from 0 that no two parts share."""
    out, offset = [], 0
    for part in parts:
        codes = np.unique(part, return_inverse=True)[1].astype(np.int64)
        out.append(codes + offset)
        offset += int(codes.max(initial=-1)) + 1
    return np.concatenate(out)


def read_masks(source: Source, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    lo, hi = int(rows[0]), int(rows[-1]) + 1
    if hi - lo <= DENSE_ROWS * len(rows):
        block = np.asarray(source.masks(lo, hi))[rows - lo]
    else:
        block = np.concatenate([np.asarray(source.masks(int(row), int(row) + 1)) for row in rows])
    if block.dtype == np.bool_:
        return block
    out = block != 0
    if not np.array_equal(out.astype(block.dtype), block):
        bad = block[out.astype(block.dtype) != block][0]
        raise RequestError(f"masks hold {bad}; a mask holds 0 and 1 only")
    return out


def load_array(value: NDArray[Any] | str | Path) -> NDArray[Any]:
    """An array, or a ``.npy`` file mapped into memory."""
    if not isinstance(value, str | Path):
        return np.asarray(value)
    if Path(value).suffix == ".beton":
        raise RequestError(
            f"{str(value)!r} holds masks and outputs in one file: give it where a store goes, fit({str(value)!r})"
        )
    try:
        return np.load(value, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {str(value)!r} as a .npy array: {first_line(error)}") from None


def warn_sweep(store: Store) -> None:
    if store.sweep is not None and store.sweep.size != 1:
        warnings.warn(
            f"the rows of {str(store.path)!r} were trained with different {', '.join(store.sweep.parameters)}, and are taken "
            "together: differences between settings count as noise; to fit them as well, see store.parameters() and "
            "penalty_factors",
            SweepWarning,
            stacklevel=4,
        )
