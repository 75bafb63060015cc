"""Datasets by name, as ``run.json`` keeps them."""

from __future__ import annotations

import functools
import importlib
import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any
from urllib.parse import unquote

from datamodels.datasets.base import Dataset
from datamodels.datasets.cells import from_anndata
from datamodels.datasets.genotypes import from_plink
from datamodels.datasets.samples import spell
from datamodels.datasets.tables import from_table
from datamodels.errors import RequestError, first_line

_LOADERS: dict[str, Callable[[], Dataset]] = {}
_READERS: dict[str, Callable[..., Dataset]] = {"anndata": from_anndata, "plink": from_plink, "table": from_table}
_LISTS = ("obs", "features")
_SIZES = re.compile(r"(.+)\[(\d+),(\d+)(?:,(first|seed=\d+))?\]")


def register(name: str, loader: Callable[[], Dataset]) -> None:
    """Make a loader known under a name, for `load` and ``run.json``.

    Parameters
    ----------
    name
        Without brackets, which say sizes.
    loader
        A function without arguments that returns a `Dataset`.

    Raises
    ------
    RequestError
        when the name cannot be one.
    """
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
    is registered as. A file is named ``anndata:PATH?label=COLUMN``, ``plink:PATH``, or ``table:PATH?label=COLUMN``; more options of
    `from_anndata`, `from_plink` and `from_table` follow as ``&option=value``, lists as ``a,b``. ``name[n_train,n_test]`` is
    `Dataset.subset` of it with seed 0, ``name[n_train,n_test,seed=s]`` with another seed, ``name[n_train,n_test,first]`` the first
    examples.

    Parameters
    ----------
    name
        One of `names`, or as above.

    Raises
    ------
    RequestError
        when there is no such dataset, or it cannot be read.
    """
    return _load(name)


def _load(name: str) -> Dataset:
    if name in _LOADERS:
        return _LOADERS[name]()
    sized = _SIZES.fullmatch(name)
    module, colon, function = name.partition(":")
    if sized is None and colon and module in _READERS:
        return _read(module, function)
    if sized is None and colon and module not in _LOADERS:
        return _import(module, function)
    if sized is None:
        raise RequestError(
            f"dataset {name!r} is unknown; legal: {', '.join(_LOADERS)}, each also with sizes, as in 'digits[1000,300]', "
            f"PKG.MODULE:FUNCTION for one of your own, and files as {', '.join(f'{kind}:PATH?label=COLUMN' for kind in _READERS)}"
        )
    whole, n_train, n_test, how = sized.groups()
    seed = None if how == "first" else int(how.removeprefix("seed=")) if how else 0
    return _load(whole).subset(n_train=int(n_train), n_test=int(n_test), seed=seed)


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


def name_of(source: Mapping[str, Any]) -> str:
    """The name, for `load`, of a file that a mapping describes.

    Parameters
    ----------
    source
        ``kind`` (anndata, plink or table), ``path``, and options of `from_anndata`, `from_plink` or `from_table`.

    Raises
    ------
    RequestError
        when a part is missing or unknown.
    """
    options = dict(source)
    kind, path = options.pop("kind", None), options.pop("path", None)
    if kind not in _READERS or not isinstance(path, str):
        raise RequestError(
            f"a dataset that is a mapping has a kind ({', '.join(_READERS)}) and a path; got kind {kind!r}, path {path!r}"
        )
    _check(kind, options)
    for name, value in options.items():
        switch = isinstance(_options(kind)[name].default, bool)
        fits = isinstance(value, bool) if switch else isinstance(value, list if name in _LISTS else str)
        if not fits:
            wanted = "true or false" if switch else "a list of columns" if name in _LISTS else "text"
            raise RequestError(f"option {name!r} of the dataset is {value!r}; give {wanted}")
    return spell(kind, path, {name: options[name] for name in _options(kind) if name in options})


def is_file(name: str) -> bool:
    """Whether a name says a file to read, whose content can change under it.

    Parameters
    ----------
    name
        As `load` takes it.
    """
    return name.partition(":")[0] in _READERS


def _read(kind: str, rest: str) -> Dataset:
    path, _, query = rest.partition("?")
    options: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        name, _, value = part.partition("=")
        _check(kind, {name: value})
        if isinstance(_options(kind)[name].default, bool):
            options[name] = value == "true"
        elif name in _LISTS:
            options[name] = [unquote(text) for text in value.split(",")]
        else:
            options[name] = unquote(value)
    if "label" not in options and _options(kind)["label"].default is inspect.Parameter.empty:
        raise RequestError(f"the dataset '{kind}:{rest}' says no label; write {kind}:{path}?label=COLUMN")
    return _READERS[kind](path, **options)


def _options(kind: str) -> Mapping[str, inspect.Parameter]:
    parameters = inspect.signature(_READERS[kind]).parameters
    return {name: value for name, value in parameters.items() if name not in ("source", "name")}


def _check(kind: str, options: Mapping[str, Any]) -> None:
    for name in options:
        if name not in _options(kind):
            raise RequestError(f"a dataset of kind {kind!r} has no option {name!r}; legal: {', '.join(_options(kind))}")
