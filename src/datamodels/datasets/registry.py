"""Datasets by name, as ``run.json`` keeps them."""

from __future__ import annotations

import functools
import importlib
import re
from collections.abc import Callable

from datamodels.datasets.base import Dataset
from datamodels.errors import RequestError, first_line

_LOADERS: dict[str, Callable[[], Dataset]] = {}
_SIZES = re.compile(r"(.+)\[(\d+),(\d+)(?:,(first|seed=\d+))?\]")


def register(name: str, loader: Callable[[], Dataset]) -> None:
    """Make a loader known under a name, for ``run.json``."""
    if not name or set(name) & set("[]"):
        raise RequestError(f"a dataset cannot be named {name!r}; give a name without brackets, which say sizes")
    _LOADERS[name] = loader
    load.cache_clear()


def names() -> list[str]:
    """The registered names."""
    return list(_LOADERS)


@functools.lru_cache(maxsize=4)
def load(name: str) -> Dataset:
    """The dataset of a name; the last four are kept in memory.

    A dataset of your own is named ``PKG.MODULE:FUNCTION``, a function without arguments that returns a `Dataset`, or by what it
    is registered as. ``name[n_train,n_test]`` is `Dataset.subset` of it with seed 0, ``name[n_train,n_test,seed=s]`` with
    another seed, ``name[n_train,n_test,first]`` the first examples.
    """
    return _load(name)


def _load(name: str) -> Dataset:
    if name in _LOADERS:
        return _LOADERS[name]()
    sized = _SIZES.fullmatch(name)
    module, colon, function = name.partition(":")
    if sized is None and colon and module not in _LOADERS:
        return _import(module, function)
    if sized is None:
        raise RequestError(
            f"dataset {name!r} is unknown; legal: {', '.join(_LOADERS)}, each also with sizes, as in 'digits[1000,300]', and "
            "PKG.MODULE:FUNCTION for one of your own"
        )
    whole, n_train, n_test, how = sized.groups()
    seed = None if how == "first" else int(how.removeprefix("seed=")) if how else 0
    return _load(whole).subset(int(n_train), int(n_test), seed)


def _import(module: str, function: str) -> Dataset:
    try:
        made = getattr(importlib.import_module(module), function)()
    except (ImportError, AttributeError) as error:
        raise RequestError(f"cannot import the dataset '{module}:{function}': {first_line(error)}") from None
    if not isinstance(made, Dataset):
        raise RequestError(
            f"the dataset '{module}:{function}' returned {type(made).__name__}; it must return a Dataset"
        )
    return made
