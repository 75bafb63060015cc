"""Batches as loaders give them: tuples, lists or dicts of tensors whose first axis is the examples."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import (
    BatchSampler,
    DataLoader,
    RandomSampler,
    SequentialSampler,
    SubsetRandomSampler,
    WeightedRandomSampler,
)

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
    """Examples start..stop-1 of a batch; values without an axis are of all of them."""

    def some(value: Any) -> Any:
        per_example = value.ndim > 0 if isinstance(value, Tensor) else isinstance(value, list | tuple)
        return value[start:stop] if per_example else value

    if isinstance(batch, Mapping):
        return {key: some(value) for key, value in batch.items()}
    return tuple(some(value) for value in batch)


def raw(value: Tensor) -> memoryview:
    """The bytes of a tensor's values."""
    return value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data


def count(loader: Iterable[Batch]) -> int:
    """Examples that a loader gives in a pass: the length of a DataLoader's dataset, or counted in a pass.

    Raises
    ------
    RequestError
        for a loader that shuffles, drops examples, can be read only once, or is empty.
    """
    n = _known_count(loader)
    return _at_least_one(sum(size(batch) for batch in loader) if n is None else n)


def identity(loader: Iterable[Batch]) -> tuple[int, str]:
    """Examples of a pass, and a hash of their tensors, however they are cut into batches. Raises as `count` does."""
    _known_count(loader)
    n = 0
    hashes: dict[Any, Any] = {}
    kinds: dict[Any, str] = {}
    for batch in loader:
        n += size(batch)
        given = on(batch, torch.device("cpu"))
        for key, value in given.items() if isinstance(given, dict) else enumerate(given):
            if not isinstance(value, Tensor) or value.ndim == 0:
                continue
            one, kind = hashes.setdefault(key, hashlib.sha256()), f"{value.dtype} {tuple(value.shape[1:])}\n"
            if kinds.get(key) != kind:
                one.update(kind.encode())
                kinds[key] = kind
            one.update(raw(value))
    whole = "\n".join(f"{key} {one.hexdigest()}" for key, one in hashes.items())
    return _at_least_one(n), hashlib.sha256(whole.encode()).hexdigest()[:16]


def _known_count(loader: Iterable[Batch]) -> int | None:
    """Examples of a loader that says so; a RequestError for one whose passes cannot be the same."""
    if iter(loader) is loader:
        raise RequestError(
            "the loader can be read only once, and every checkpoint needs a pass; give a list of batches or a DataLoader"
        )
    if isinstance(loader, DataLoader):
        batched = loader.batch_sampler if isinstance(loader.batch_sampler, BatchSampler) else None
        sampler = batched.sampler if batched else loader.sampler
        if isinstance(sampler, RandomSampler | SubsetRandomSampler | WeightedRandomSampler):
            raise RequestError(
                f"the loader shuffles ({type(sampler).__name__}), so rows would belong to other examples; make it with "
                "shuffle=False, of a torch.utils.data.Subset for some of the examples"
            )
        if loader.drop_last or (batched and batched.drop_last):
            raise RequestError("the loader drops the last examples; make it with drop_last=False")
        if type(batched) is BatchSampler and isinstance(sampler, SequentialSampler):
            return len(sampler)
    return None


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
