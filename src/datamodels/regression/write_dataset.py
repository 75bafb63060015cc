"""``python -m datamodels.regression.write_dataset --cfg.data_dir DIR --cfg.out_path FILE --cfg.y_name KEY``"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field

from datamodels import options
from datamodels.errors import RequestError
from datamodels.progress import note
from datamodels.regression import beton, dataset_file
from datamodels.store import Store
from datamodels.store.array import RowArray

_CHUNK = 1024


class Config(BaseModel):
    """What is gathered, from where and into which file: the options ``--cfg.NAME``."""

    model_config = ConfigDict(extra="forbid")

    data_dir: Annotated[str, Field(min_length=1, description="folder of the store")]
    out_path: Annotated[str, Field(min_length=1, description="file to write, under any name")]
    y_name: Annotated[str, Field(min_length=1, description="key of the outputs")]
    x_name: Annotated[str, Field(description="key of the masks")] = "masks"
    y_slice: Annotated[int | None, Field(description="index into the first axis of each output")] = None
    completed_name: Annotated[str, Field(description="key that marks completed rows")] = "_completed"
    ignore_completed: Annotated[bool, Field(description="take every row")] = False
    format: Annotated[Literal["npz", "beton"], Field(description="npz, or beton: a file that FFCV reads")] = "npz"


_SECTIONS: dict[str, type[BaseModel]] = {"cfg": Config}


def main(argv: Sequence[str] | None = None) -> None:
    """Gather the completed rows of a store into one file for compute_datamodels."""
    options.command("datamodels.regression.write_dataset", main.__doc__ or "", _SECTIONS, argv, _write)


def _write(_: options.Options, sections: dict[str, Any]) -> str:
    config: Config = sections["cfg"]
    return f"wrote {write_dataset(config)} rows to {config.out_path}"


def write_dataset(config: Config) -> int:
    """Gather the completed rows of a store into one file, as ``python -m datamodels.regression.write_dataset`` does.

    Parameters
    ----------
    config
        What, from where and into which file.

    Returns
    -------
    int
        The number of rows.

    Raises
    ------
    RequestError
        when the store has no completed rows, or no such keys.
    """
    store = Store.open(config.data_dir)
    y = store.array(config.y_name)
    if config.y_slice is not None:
        if y.ndim < 2 or not -y.shape[1] <= config.y_slice < y.shape[1]:
            raise RequestError(f"--cfg.y_slice is {config.y_slice}; {config.y_name!r} has shape {y.shape[1:]} per row")
        y = y[:, config.y_slice]
    rows = np.arange(store.n_models) if config.ignore_completed else np.flatnonzero(_completed(store, config))
    if not len(rows):
        raise RequestError(f"the store {config.data_dir!r} has no completed rows")
    units = store.design.units(rows) if store.design else rows
    n_train = int(np.prod(store.masks(0, 0, key=config.x_name).shape[1:]))
    n_targets = int(np.prod(y.shape[1:], dtype=np.int64))
    of = store.field(config.y_name).of
    masks = ((len(rows), n_train), np.dtype(np.bool_), _masks(store, config.x_name, rows))
    outputs = _chunks(y.reshape(len(y), -1), rows)
    if config.format == "beton":
        _note_what_is_lost(config, len(np.unique(units)) < len(rows), of)
        position = np.arange(len(rows))
        beton.write(
            config.out_path,
            {
                "mask": masks,
                "targets": ((len(rows), n_targets), np.dtype(np.float32), map(_single, outputs)),
                "idx": ((len(rows),), np.dtype(np.int64), _chunks(position, position)),
            },
        )
        return len(rows)
    dataset_file.write(
        Path(config.out_path),
        {
            "masks": masks,
            "outputs": ((len(rows), n_targets), y.dtype, outputs),
            "rows": ((len(rows),), np.dtype(np.int64), iter([rows])),
            "units": ((len(rows),), np.dtype(np.int64), iter([units])),
        },
        {"of": of},
    )
    return len(rows)


def _note_what_is_lost(config: Config, shared_units: bool, of: str | None) -> None:
    """The original's files have three fields, and programs that read them take no more."""
    lost = ["which rows are replicates or pairs"] * shared_units + ["that targets are train examples"] * (of == "train")
    if lost:
        note(f"note: {config.out_path} cannot say {' nor '.join(lost)}; --cfg.format=npz does")


def _single(values: NDArray[Any]) -> NDArray[np.float32]:
    """Outputs as the original wrote them."""
    try:
        with np.errstate(over="raise"):
            return values.astype(np.float32)
    except FloatingPointError:
        raise RequestError(
            "outputs are too large for the float32 of an FFCV file; --cfg.format=npz keeps them"
        ) from None


def _completed(store: Store, config: Config) -> NDArray[np.bool_]:
    if config.completed_name == "_completed":
        return store.completed()
    if not isinstance(store.path, Path):
        raise RequestError(
            f"completed_name {config.completed_name!r} names a file of a local store; {store.path!r} has its own flags"
        )
    flags = RowArray.read(store.path / f"{config.completed_name}.npy")
    flags.check_size(store.n_models)
    return np.asarray(flags.memmap(store.n_models)).astype(np.bool_).reshape(store.n_models)


def _chunks(array: NDArray[Any], rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(rows), _CHUNK):
        yield array[rows[start : start + _CHUNK]]


def _masks(store: Store, key: str, rows: NDArray[np.int64]) -> Iterator[NDArray[Any]]:
    for start in range(0, len(rows), _CHUNK):
        part = rows[start : start + _CHUNK]
        lo, hi = int(part[0]), int(part[-1]) + 1
        block = store.masks(lo, hi, key=key)[part - lo].reshape(len(part), -1)
        if not np.array_equal(block.astype(np.bool_).astype(block.dtype), block):
            raise RequestError(f"the key {key!r} holds something else than 0 and 1, so it holds no masks")
        yield block


if __name__ == "__main__":
    main()
