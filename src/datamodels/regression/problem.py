"""The rows of a regression: masks and outputs from stores or arrays, streamed, never loaded whole."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterator, Sequence
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
_DENSE = 8  # rows are read with those between them up to this many times their number


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
            packed = np.packbits(_read_masks(self, self.rows[start : start + size]), axis=1)
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


@dataclass(frozen=True, eq=False)
class Problem:
    """Masks X (m, n_train) and outputs Y (m, n_targets) of all rows, read in chunks.

    ``train_columns`` (n_targets,) names the training example that each target is, or is None.
    """

    sources: tuple[Source, ...]
    targets: NDArray[np.int64]
    train_columns: NDArray[np.int64] | None = None

    @classmethod
    def build(
        cls,
        source: Store | str | Path | Sequence[Store | str | Path] | None = None,
        *,
        masks: NDArray[Any] | str | Path | None = None,
        outputs: NDArray[Any] | str | Path | None = None,
        masks_key: str = MASKS,
        outputs_key: str = OUTPUTS,
        rows: Rows = None,
        targets: Any = None,
        targets_are_train: bool | None = None,
    ) -> Problem:
        """From stores (objects or folders) and files of `write_dataset` or FFCV, or from arrays or ``.npy`` files.

        Raises
        ------
        RequestError
            when shapes do not fit each other or nothing is left to read.
        """
        arrays = masks is not None or outputs is not None
        if arrays == (source is not None) or (arrays and (masks is None or outputs is None)):
            raise RequestError("give stores, or both masks and outputs")
        if masks is not None and outputs is not None:
            name = str(masks) if isinstance(masks, str | Path) else None
            found = [Source.from_arrays(load_array(masks), load_array(outputs), name)]
            of_train = False
        else:
            items = [source] if isinstance(source, Store | str | Path) else list(source or [])
            found, of_train = [], False
            for item in items:
                if not isinstance(item, Store) and Path(item).is_file():
                    part, trained = Source.from_file(Path(item), masks_key, outputs_key)
                else:
                    store = item if isinstance(item, Store) else Store.open(item)
                    part = Source.from_store(store, masks_key, outputs_key)
                    trained = store.field(outputs_key).of == "train"
                    _warn_sweep(store)
                found.append(part)
                of_train = of_train or trained
        return cls.assemble(
            [part.restrict(rows) for part in found],
            targets,
            of_train if targets_are_train is None else targets_are_train,
        )

    @classmethod
    def assemble(cls, sources: list[Source], targets: Any, of_train: bool) -> Problem:
        """From sources that were made already; see `build`."""
        if not sources:
            raise RequestError("no store was given")
        first = sources[0]
        for part in sources[1:]:
            if part.n_train != first.n_train or part.outputs.shape[1:] != first.outputs.shape[1:]:
                raise RequestError(
                    f"the stores do not go together: {first.n_train} train examples and outputs {first.outputs.shape[1:]}, "
                    f"against {part.n_train} and {part.outputs.shape[1:]}"
                )
        identities = [part.identity for part in sources]
        if len(set(identities)) != len(identities):
            raise RequestError(
                "the same rows were given twice: two of the stores have the same design (merge them instead)"
            )
        if not sum(len(part.rows) for part in sources):
            raise RequestError("there are no completed rows to read; train some first, or look at the rows you named")
        total = int(np.prod(first.outputs.shape[1:], dtype=np.int64))
        index = np.arange(total)
        if targets is not None:
            try:
                index = np.atleast_1d(index[slice(*targets) if isinstance(targets, tuple) else targets])
            except IndexError:
                raise RequestError(f"targets {targets!r} are outside of 0..{total - 1}") from None
        if not len(index):
            raise RequestError(
                f"no target is left: the outputs have targets 0..{total - 1}, and none of them was chosen"
            )
        columns = None
        if of_train:
            if total % first.n_train:
                raise RequestError(
                    f"targets are train examples, but there are {total} targets and {first.n_train} train examples"
                )
            columns = index % first.n_train
        return cls(tuple(sources), index, columns)

    @property
    def n_train(self) -> int:
        return self.sources[0].n_train

    @property
    def train_ids(self) -> NDArray[np.str_] | None:
        """Names of the training examples, (n_train,), where the first source has them."""
        return self.sources[0].train_ids

    @property
    def target_ids(self) -> NDArray[np.str_] | None:
        """Names of the examples that the targets are, (n_targets,), where the first source has them."""
        if self.train_columns is not None:
            return None if self.train_ids is None else self.train_ids[self.train_columns]
        names = self.sources[0].output_ids
        return None if names is None else names[self.targets]

    @property
    def n_targets(self) -> int:
        return len(self.targets)

    @property
    def n_rows(self) -> int:
        return sum(len(source.rows) for source in self.sources)

    @property
    def units(self) -> NDArray[np.int64]:
        """Design unit of every row, (m,), numbered over all sources."""
        return _numbered([source.units for source in self.sources])

    @property
    def mask_numbers(self) -> NDArray[np.int64]:
        """Mask number of every row, (m,), numbered over all sources; replicates share one."""
        return _numbered([source.mask_numbers for source in self.sources])

    def take(self, positions: NDArray[Any]) -> Problem:
        """The problem of some rows: ascending positions or a bool mask over all rows."""
        keep = np.zeros(self.n_rows, dtype=np.bool_)
        keep[positions] = True
        edges = np.cumsum([0, *(len(source.rows) for source in self.sources)])
        parts = [source.take(keep[a:b]) for source, a, b in zip(self.sources, edges[:-1], edges[1:], strict=True)]
        return replace(self, sources=tuple(parts))

    def chunks(self, chunk_rows: int | None = None) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
        """X (k, n_train) bool and Y (k, n_targets) float64, a bounded number of rows at a time.

        Raises
        ------
        RequestError
            when masks hold something else than 0 and 1, or outputs hold NaN or inf.
        """
        products = 8 * self.n_train * self.n_targets  # are read and written once per chunk: it may take half as much
        room = max(CHUNK_BYTES, products // 2)
        size = chunk_rows or max(64, min(8192, room // max(1, self.n_train * 4 + self.n_targets * 8)))
        for source in self.sources:
            for start in range(0, len(source.rows), size):
                rows = source.rows[start : start + size]
                yield _read_masks(source, rows), self._read_outputs(source, rows)

    def load_outputs(self) -> NDArray[np.float64]:
        """Y of all rows (m, n_targets) float64, without reading masks."""
        step = max(64, CHUNK_BYTES // max(1, self.n_targets * 8))
        parts = [
            self._read_outputs(source, source.rows[start : start + step])
            for source in self.sources
            for start in range(0, len(source.rows), step)
        ]
        return np.concatenate(parts)

    def load(self) -> tuple[NDArray[np.bool_], NDArray[np.float64]]:
        """All rows at once; for problems that are known to be small."""
        parts = list(self.chunks())
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])

    def _read_outputs(self, source: Source, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        flat = source.outputs.reshape(len(source.outputs), -1)
        lo, hi = int(rows[0]), int(rows[-1]) + 1
        block = flat[lo:hi][rows - lo] if hi - lo <= _DENSE * len(rows) else flat[rows]
        if len(self.targets) != flat.shape[1]:
            block = block[:, self.targets]
        out = np.asarray(block, dtype=np.float64)
        if not np.isfinite(out).all():
            row, target = np.argwhere(~np.isfinite(out))[0]
            raise RequestError(
                f"the output of row {rows[row]}, target {self.targets[target]} is {out[row, target]}; regression needs "
                "finite outputs: leave such rows or targets out with rows or targets"
            )
        return out

    def rows_used(self) -> list[dict[str, Any]]:
        """Per source what a result records of its rows: their numbers and a hash of each mask."""
        return [
            {**part.description, "identity": part.identity, "rows": part.rows, "mask_hashes": part.mask_hashes()}
            for part in self.sources
        ]


def unseen_by_too_few(column: int, holding: int, rows: int) -> RequestError:
    """The error for a target that nearly every model saw."""
    return RequestError(
        f"train example {column} is in {holding} of {rows} subsets: too few models did not see it; train models on "
        "smaller subsets"
    )


def _numbered(parts: Sequence[NDArray[np.int64]]) -> NDArray[np.int64]:
    """Labels of several parts as numbers from 0 that no two parts share."""
    out, offset = [], 0
    for part in parts:
        codes = np.unique(part, return_inverse=True)[1].astype(np.int64)
        out.append(codes + offset)
        offset += int(codes.max(initial=-1)) + 1
    return np.concatenate(out)


def _read_masks(source: Source, rows: NDArray[np.int64]) -> NDArray[np.bool_]:
    lo, hi = int(rows[0]), int(rows[-1]) + 1
    if hi - lo <= _DENSE * len(rows):
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


def _warn_sweep(store: Store) -> None:
    if store.sweep is not None and store.sweep.size != 1:
        warnings.warn(
            f"the rows of {str(store.path)!r} were trained with different {', '.join(store.sweep.parameters)}, and are taken "
            "together: differences between settings count as noise; to fit them as well, see store.parameters() and "
            "penalty_factors",
            SweepWarning,
            stacklevel=4,
        )
