"""The rows of a regression: masks and outputs from stores or arrays, streamed, never loaded whole."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.regression.source import (
    CHUNK_BYTES,
    DENSE_ROWS,
    OUTPUTS,
    Source,
    load_array,
    numbered,
    read_masks,
    warn_sweep,
)
from datamodels.spec import MASKS, Rows
from datamodels.store import Store


@dataclass(frozen=True, eq=False)
class Problem:
    """Masks X (m, n_train) and outputs Y (m, n_targets) of all rows, read in chunks. Made by `build`.

    Attributes
    ----------
    sources
        Where the rows are.
    targets
        (n_targets,) positions among the outputs of a row.
    train_columns
        (n_targets,) the training example that each target is, or None.
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

        Parameters are those of `datamodels.fit`.

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
                    warn_sweep(store)
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
        """Number of training examples."""
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
        """Number of targets."""
        return len(self.targets)

    @property
    def n_rows(self) -> int:
        """Number of rows of all sources, m."""
        return sum(len(source.rows) for source in self.sources)

    @property
    def units(self) -> NDArray[np.int64]:
        """Design unit of every row, (m,), numbered over all sources."""
        return numbered([source.units for source in self.sources])

    @property
    def mask_numbers(self) -> NDArray[np.int64]:
        """Mask number of every row, (m,), numbered over all sources; replicates share one."""
        return numbered([source.mask_numbers for source in self.sources])

    def take(self, positions: NDArray[Any]) -> Problem:
        """The problem of some rows: ascending `positions` (k,), or a bool mask (m,)."""
        keep = np.zeros(self.n_rows, dtype=np.bool_)
        keep[positions] = True
        edges = np.cumsum([0, *(len(source.rows) for source in self.sources)])
        parts = [source.take(keep[a:b]) for source, a, b in zip(self.sources, edges[:-1], edges[1:], strict=True)]
        return replace(self, sources=tuple(parts))

    def chunks(self, chunk_rows: int | None = None) -> Iterator[tuple[NDArray[np.bool_], NDArray[np.float64]]]:
        """X (k, n_train) bool and Y (k, n_targets) float64, at most `chunk_rows` rows at a time; by default as many as 64 MB hold.

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
                yield read_masks(source, rows), self._read_outputs(source, rows)

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
        """X (m, n_train) and Y (m, n_targets) at once; for problems that are known to be small."""
        parts = list(self.chunks())
        return np.concatenate([x for x, _ in parts]), np.concatenate([y for _, y in parts])

    def _read_outputs(self, source: Source, rows: NDArray[np.int64]) -> NDArray[np.float64]:
        flat = source.outputs.reshape(len(source.outputs), -1)
        lo, hi = int(rows[0]), int(rows[-1]) + 1
        block = flat[lo:hi][rows - lo] if hi - lo <= DENSE_ROWS * len(rows) else flat[rows]
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
