"""Executors by name, with their defaults."""

from __future__ import annotations

import importlib

from datamodels.errors import RequestError
from datamodels.executors.base import Executor, InlineExecutor, MakeExecutor, Runner

_PLACES = {
    "local": "datamodels.executors.local:LocalExecutor",
    "inline": "datamodels.executors.names:_inline",
    "ray": "datamodels.executors.ray:Ray()",
    "slurm": "datamodels.executors.slurm:Slurm()",
}
EXECUTORS = tuple(_PLACES)


def executor_named(name: str) -> MakeExecutor:
    """The executor of a name, one of `EXECUTORS`.

    Raises
    ------
    RequestError
        when there is no such executor, or its extra is not installed.
    """
    if name not in _PLACES:
        raise RequestError(f"executor {name!r} is unknown; legal: {', '.join(EXECUTORS)}")
    module, _, attribute = _PLACES[name].partition(":")
    found = getattr(importlib.import_module(module), attribute.removesuffix("()"))
    return found() if attribute.endswith("()") else found


def _inline(runner: Runner, *, jobs: int | None, timeout: float | None, threads: int) -> Executor:
    if jobs is not None or timeout is not None or threads != 1:
        raise RequestError("executor 'inline' runs in this process: jobs, timeout and threads have no meaning for it")
    return InlineExecutor(runner)
