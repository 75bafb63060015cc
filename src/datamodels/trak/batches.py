"""Batches as loaders give them: tuples, lists or dicts of tensors whose first axis is the examples."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, SequentialSampler

from datamodels.errors import RequestError

Batch = Any


def on(batch: Batch, device: torch.device) -> Batch:
    """The batch as tensors on a device: a tuple for a sequence, a dict for a mapping; arrays become tensors."""
    if isinstance(batch, Mapping):
        return {key: _tensor(value, device) for key, value in batch.items()}
    if isinstance(batch, tuple | list):
        return tuple(_tensor(value, device) for value in batch)
    return (_tensor(batch, device),)


def _tensor(value: Any, device: torch.device) -> Any:
    if isinstance(value, np.ndarray):
        value = torch.from_numpy(value)
    return value.to(device) if isinstance(value, Tensor) else value


def size(batch: Batch) -> int:
    """Examples of a batch: the length of the first axis, the same for all of its tensors.

    Raises
    ------
    RequestError
        when there is no tensor, or when lengths differ.
    """
    values = list(batch.values()) if isinstance(batch, Mapping) else batch
    values = values if isinstance(values, tuple | list) else [values]
    lengths = {len(value) for value in values if isinstance(value, Tensor | np.ndarray) and value.ndim}
    if len(lengths) != 1:
        raise RequestError(
            f"a batch has tensors of {sorted(lengths) or 'no'} examples; a loader must give tuples, lists or dicts of "
            "tensors with one first axis, the examples"
        )
    return lengths.pop()


def rows_of(batch: Batch, start: int, stop: int) -> Batch:
    """Examples start..stop-1 of a batch of tensors."""
    if isinstance(batch, Mapping):
        return {key: value[start:stop] for key, value in batch.items()}
    return tuple(value[start:stop] for value in batch)


def count(loader: Iterable[Batch]) -> int:
    """Examples that a loader gives in a pass: the length of a DataLoader's dataset, or counted in a pass.

    Raises
    ------
    RequestError
        for a loader that shuffles, drops examples, can be read only once, or is empty.
    """
    if iter(loader) is loader:
        raise RequestError(
            "the loader can be read only once, and every checkpoint needs a pass; give a list of batches or a DataLoader"
        )
    if isinstance(loader, DataLoader):
        batched = loader.batch_sampler if isinstance(loader.batch_sampler, BatchSampler) else None
        sampler = batched.sampler if batched else loader.sampler
        if isinstance(sampler, RandomSampler):
            raise RequestError(
                "the loader shuffles, so rows would belong to other examples; make it with shuffle=False"
            )
        if loader.drop_last or (batched and batched.drop_last):
            raise RequestError("the loader drops the last examples; make it with drop_last=False")
        if type(batched) is BatchSampler and isinstance(sampler, SequentialSampler):
            return _at_least_one(len(sampler))
    return _at_least_one(sum(size(batch) for batch in loader))


def _at_least_one(n: int) -> int:
    if n == 0:
        raise RequestError("the loader has no examples")
    return n


def walk(loader: Iterable[Batch], n: int) -> Iterator[tuple[int, int, Batch]]:
    """(first row, row after the last, batch) of each batch.

    Raises
    ------
    RequestError
        when the pass does not have n examples.
    """
    start = 0
    for batch in loader:
        stop = start + size(batch)
        if stop > n:
            raise RequestError(_other_size(n, f"more than {n}"))
        yield start, stop, batch
        start = stop
    if start != n:
        raise RequestError(_other_size(n, str(start)))


def _other_size(n: int, found: str) -> str:
    return (
        f"the loader gave {n} examples before and {found} in this pass; every pass must give the same examples in the "
        "same order"
    )
