"""Executors by name, with their defaults."""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Mapping
from typing import Any, get_type_hints

from pydantic import TypeAdapter, ValidationError

from datamodels.errors import RequestError, first_line
from datamodels.executors.base import Executor, InlineExecutor, MakeExecutor, Runner

_PLACES = {
    "local": "datamodels.executors.local:LocalExecutor",
    "inline": "datamodels.executors.names:_inline",
    "ray": "datamodels.executors.ray:Ray()",
    "slurm": "datamodels.executors.slurm:Slurm()",
}
EXECUTORS = tuple(_PLACES)
"""The names that `executor_named` and ``executor=`` take."""


def executor_named(name: str, settings: Mapping[str, str] | None = None) -> MakeExecutor:
    """The executor of a name.

    Parameters
    ----------
    name
        One of `EXECUTORS`.
    settings
        Settings of a cluster's executor as text, the fields of its class by name; lists and mappings as JSON.

    Raises
    ------
    RequestError
        when there is no such executor, it has no such setting, or its extra is not installed.
    """
    if name not in _PLACES:
        raise RequestError(f"executor {name!r} is unknown; legal: {', '.join(EXECUTORS)}")
    module, _, attribute = _PLACES[name].partition(":")
    found = getattr(importlib.import_module(module), attribute.removesuffix("()"))
    if attribute.endswith("()"):
        return found(**_values(name, found, settings or {}))
    if settings:
        raise RequestError(f"executor {name!r} has no settings; given: {', '.join(settings)}")
    return found


def _values(name: str, kind: type[Any], settings: Mapping[str, str]) -> dict[str, Any]:
    """Settings as the types of the fields of their class."""
    legal = [field.name for field in dataclasses.fields(kind)]
    types = get_type_hints(kind)
    values = {}
    for key, text in settings.items():
        if key not in legal:
            raise RequestError(f"executor {name!r} has no setting {key!r}; legal: {', '.join(legal)}")
        adapter = TypeAdapter(types[key])
        try:
            values[key] = adapter.validate_json(text) if text[:1] in ("[", "{") else adapter.validate_python(text)
        except ValidationError as error:
            raise RequestError(f"{key}={text!r} does not fit executor {name!r}: {first_line(error)}") from None
    return values


def _inline(runner: Runner, *, jobs: int | None, timeout: float | None, threads: int) -> Executor:
    if jobs is not None or timeout is not None or threads != 1:
        raise RequestError("executor 'inline' runs in this process: jobs, timeout and threads have no meaning for it")
    return InlineExecutor(runner)
