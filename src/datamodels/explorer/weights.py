"""Weights of an attribution file, read piece by piece: by target from the ``.h5ad``, by training example from a copy."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import FORMAT_VERSION, Attribution, provenance_from
from datamodels.errors import RequestError, first_line, newer_format
from datamodels.explorer.cache import Cache, file_identity

Row = tuple[NDArray[np.int32], NDArray[np.float32]]
_BLOCK_BYTES = 1 << 28
_UNS = "datamodels"


class WeightsFile:
    """An attribution's ``.h5ad``: facts at once, weights by blocks of targets. Only numbers and text are read of it.

    Parameters
    ----------
    name
        What the file is called among others, its path in a run; by default its own name.

    Attributes
    ----------
    n_targets, n_train, dense
        Of the weights.
    target_facts, train_facts, train_columns, bias, provenance
        As in `Attribution`.
    target_names, train_names
        Names of rows and columns, None where they are those that `Attribution.save` gives.
    identity
        What computed things depend on, see `file_identity`.

    Raises
    ------
    RequestError
        when the file is missing, damaged or no attribution.
    """

    def __init__(self, path: str | Path, name: str | None = None) -> None:
        import h5py

        self.path = Path(path)
        if not self.path.is_file():
            raise RequestError(f"there is no file {str(path)!r}")
        self._lock = threading.Lock()
        try:
            self._file = h5py.File(self.path, "r")
            self._read()
        except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
            if isinstance(error, RequestError):
                raise
            raise RequestError(f"{str(path)!r} is not a readable attribution: {first_line(error)}") from None
        self.identity = file_identity(self.path, name or self.path.name)

    def _read(self) -> None:
        file = self._file
        if _UNS not in file.get("uns", {}):
            raise RequestError(
                f"{str(self.path)!r} is no attribution: give a file that `datamodels fit` wrote (it has uns[{_UNS!r}])"
            )
        own = file["uns"][_UNS]
        version = int(own["format_version"][()])
        if version > FORMAT_VERSION:
            raise newer_format(str(self.path), version, FORMAT_VERSION)
        arrays = {name: item[()] for name, item in own.get("arrays", {}).items()}
        self.provenance: Mapping[str, Any] = provenance_from(own["provenance"].asstr()[()], arrays)
        self._matrix = file["X"]
        self.dense = hasattr(self._matrix, "dtype")
        if not self.dense and self._matrix.attrs.get("encoding-type") != "csr_matrix":
            raise RequestError(f"X of {str(self.path)!r} must be dense or in CSR; write it again with X.tocsr()")
        shape = self._matrix.shape if self.dense else self._matrix.attrs["shape"]
        self.n_targets, self.n_train = (int(size) for size in shape)
        self._starts = None if self.dense else self._matrix["indptr"][()].astype(np.int64)
        obs, self.target_names = _frame(file["obs"], "target")
        self.train_facts, self.train_names = _frame(file["var"], "train")
        self.bias = obs.pop("bias").astype(np.float64)
        columns = obs.pop("train_column", None)
        self.train_columns = None if columns is None else columns.astype(np.int64)
        self.target_facts = {**obs, **_arrays(file.get("obsm", {}), self.n_targets)}
        self.train_facts.update(_arrays(file.get("varm", {}), self.n_train))
        if len(self.bias) != self.n_targets:
            raise RequestError(f"{str(self.path)!r} is damaged: bias has {len(self.bias)} entries for {shape} weights")

    @property
    def targets(self) -> NDArray[np.int64]:
        """Which outputs the targets are."""
        return np.asarray(self.target_facts.get("target", np.arange(self.n_targets)), dtype=np.int64)

    def row(self, target: int) -> Row:
        """Nonzero weights of a target: training examples and weights, in ascending order of examples."""
        with self._lock:
            if self._starts is None:
                values = np.asarray(self._matrix[target], dtype=np.float32)
            else:
                part = slice(int(self._starts[target]), int(self._starts[target + 1]))
                indices, stored = self._matrix["indices"][part], self._matrix["data"][part]
        if self._starts is None:
            indices = np.flatnonzero(values)
            return indices.astype(np.int32), values[indices]
        order = np.argsort(indices)
        return indices[order].astype(np.int32), stored[order].astype(np.float32)

    def block(self, start: int, stop: int) -> Any:
        """Weights of targets start..stop-1, (stop - start, n_train) float32: an array, or a `scipy.sparse.csr_array`."""
        from scipy import sparse

        with self._lock:
            if self._starts is None:
                return np.asarray(self._matrix[start:stop], dtype=np.float32)
            part = slice(int(self._starts[start]), int(self._starts[stop]))
            indices, values = self._matrix["indices"][part], self._matrix["data"][part].astype(np.float32)
        starts = self._starts[start : stop + 1] - self._starts[start]
        return sparse.csr_array((values, indices, starts), shape=(stop - start, self.n_train))

    def blocks(self) -> list[tuple[int, int]]:
        """Starts and stops of blocks that are small in memory, even as arrays."""
        size = max(1, _BLOCK_BYTES // (4 * self.n_train + 1))
        return [(start, min(start + size, self.n_targets)) for start in range(0, self.n_targets, size)]

    def check(self, block: Any, start: int) -> None:
        """Raise RequestError when a weight of a block, whose first target is `start`, is NaN or infinite."""
        good = np.isfinite(block if self.dense else block.data)
        if not good.all():
            row = (
                int(good.argmin()) // self.n_train
                if self.dense
                else np.searchsorted(block.indptr, good.argmin(), "right") - 1
            )
            raise RequestError(
                f"{str(self.path)!r} has weights that are NaN or infinite, first of target {start + row}: they cannot be shown"
            )

    def part(self, start: int, stop: int) -> Attribution:
        """The attribution of targets start..stop-1, in memory."""
        block = self.block(start, stop)
        rows = block if self.dense else block.toarray()
        return Attribution(
            rows.T,
            self.bias[start:stop],
            target_facts={"target": self.targets[start:stop]},
            train_columns=None if self.train_columns is None else self.train_columns[start:stop],
            provenance=self.provenance,
        )


def read_observations(path: str | Path) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None, list[str]]:
    """Of an AnnData file its columns of obs, the names of its observations unless they are their numbers, and the names under which
    `datamodels.applications.subgroups.write_to` has put clusters. Only numbers and text are read.

    Raises
    ------
    RequestError
        when it is missing or no such file.
    """
    import h5py

    if not Path(path).is_file():
        raise RequestError(f"there is no file {str(path)!r}")
    try:
        with h5py.File(path, "r") as file:
            columns, names = _frame(file["obs"], "target")
            written = [
                name
                for name, item in file.get("uns", {}).items()
                if hasattr(item, "items") and "params" in item and "n_clusters" in item
            ]
    except (OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        raise RequestError(f"{str(path)!r} is not a readable .h5ad file: {first_line(error)}") from None
    if names is not None and np.array_equal(names.astype(str), np.arange(len(names)).astype(str)):
        names = None
    return columns, names, written


class TrainMajor:
    """The same weights by training example, memory-mapped.

    Dense: an array (n_train, n_targets). Sparse: compressed rows, one per training example.
    """

    def __init__(self, file: WeightsFile, cache: Cache, progress: Callable[[int], None]) -> None:
        self.n_targets = file.n_targets
        if file.dense:
            path = cache.path("weights", "npy", file.identity)
            self._array = np.load(cache.file(path, lambda to: _transpose(file, to, progress)), mmap_mode="r")
            return
        names = ("weights_starts", "weights_targets", "weights_values")
        paths = [cache.path(name, "npy", file.identity) for name in names]
        if not all(path.exists() for path in paths):
            whole = file.block(0, file.n_targets).tocsc()
            for path, part in zip(paths, (whole.indptr.astype(np.int64), whole.indices, whole.data), strict=True):
                cache.file(path, partial(np.save, arr=part))
            progress(file.n_targets)
        self._array = None
        self._starts = np.load(paths[0], allow_pickle=False)
        self._targets, self._values = (np.load(path, mmap_mode="r") for path in paths[1:])

    def row(self, example: int) -> Row:
        """Nonzero weights of a training example: targets and weights."""
        if self._array is not None:
            values = np.array(self._array[example])
            targets = np.flatnonzero(values)
            return targets.astype(np.int32), values[targets]
        part = slice(self._starts[example], self._starts[example + 1])
        return np.array(self._targets[part], dtype=np.int32), np.array(self._values[part])

    def sum(self, examples: NDArray[np.int64]) -> NDArray[np.float64]:
        """Sum of the weights of some training examples, (n_targets,)."""
        total = np.zeros(self.n_targets)
        if self._array is not None:
            ordered = np.sort(examples)
            size = max(1, _BLOCK_BYTES // (16 * self.n_targets + 1))
            for start in range(0, len(ordered), size):
                total += self._array[ordered[start : start + size]].sum(axis=0, dtype=np.float64)
            return total
        parts = [slice(self._starts[j], self._starts[j + 1]) for j in examples]
        if parts:
            targets = np.concatenate([self._targets[part] for part in parts])
            values = np.concatenate([self._values[part] for part in parts])
            total += np.bincount(targets, weights=values, minlength=self.n_targets)
        return total


def strongest(row: Row, k: int | None = None) -> Row:
    """The k entries of largest |weight|, or all, strongest first; ties in the order of their numbers."""
    indices, values = row
    sizes = np.abs(values)
    if k is not None and k < len(sizes):  # sort those alone that can be among them
        able = np.flatnonzero(sizes >= np.partition(sizes, len(sizes) - k)[len(sizes) - k])
        indices, values, sizes = indices[able], values[able], sizes[able]
    order = np.argsort(-sizes, kind="stable")[:k]
    return indices[order], values[order]


def _transpose(file: WeightsFile, path: Path, progress: Callable[[int], None]) -> None:
    shape = (file.n_train, file.n_targets)
    out = np.lib.format.open_memmap(path, mode="w+", dtype=np.float32, shape=shape)
    for start, stop in file.blocks():
        out[:, start:stop] = file.block(start, stop).T
        progress(stop - start)
    out.flush()


def _frame(group: Any, default: str) -> tuple[dict[str, NDArray[Any]], NDArray[Any] | None]:
    """Columns of a data frame in AnnData's format, and its index unless that is ``<default>_<i>``."""
    index_name = group.attrs.get("_index", "_index")
    names = _column(group[index_name])
    columns = {name: found for name in group if name != index_name and (found := _column(group[name])) is not None}
    columns = {name: column for name, column in columns.items() if names is None or len(column) == len(names)}
    given = names is not None and not all(str(name) == f"{default}_{i}" for i, name in enumerate(names))
    return columns, names if given else None


def _column(item: Any) -> NDArray[Any] | None:
    """A column as numbers, truth values or text; None when it is of another kind."""
    kind = item.attrs.get("encoding-type", "array")
    if kind == "categorical":
        codes, categories = item["codes"][()], _column(item["categories"])
        if categories is None:
            return None
        return np.append(categories.astype(str), "")[codes]
    if kind in ("nullable-integer", "nullable-boolean"):
        values = item["values"][()].astype(np.float64)
        return np.where(item["mask"][()], np.nan, values)
    if not hasattr(item, "dtype"):
        return None
    if item.dtype.kind in "biuf" and item.ndim == 1:
        return np.asarray(item[()])
    text = item.dtype.kind == "S" or (item.dtype.metadata is not None and item.dtype.metadata.get("vlen") is str)
    return np.array(item.asstr()[()], dtype=str) if text and item.ndim == 1 else None


def _arrays(group: Any, size: int) -> dict[str, NDArray[Any]]:
    """Numbers (size, k) by name."""
    plain = {name: item for name, item in group.items() if hasattr(item, "dtype") and item.dtype.kind in "biuf"}
    return {name: item[()] for name, item in plain.items() if item.ndim > 1 and item.shape[0] == size}
