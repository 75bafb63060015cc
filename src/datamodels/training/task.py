"""Tasks: what one row costs. A task is ``index -> {key: array}``; a block task does many rows at once."""

from __future__ import annotations

import functools
import hashlib
import importlib
import inspect
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.devices import VISIBLE
from datamodels.errors import RequestError, RowError, first_line
from datamodels.executors.base import RowOutcome, standard_output_to_error, trace_of
from datamodels.store import Store

Function = Callable[..., dict[str, Any]]
_WRITE_EVERY = 0.2
_WRITE_BLOCK_EVERY = 300.0
_WRITE_ROWS = 64


@dataclass(frozen=True)
class BlockTask:
    """A function of many rows, see `block_task`."""

    function: Function
    block_size: int

    def __call__(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        return self.function(*args, **kwargs)


def block_task(function: Function | None = None, *, block_size: int = 100) -> Any:
    """Mark a function as a block task, as a decorator or as a call.

    The function takes ``indices`` and, when it names them, ``masks`` (k, n_train), ``rngs`` (one
    generator per row), ``params`` (one dict of training parameters per row, from a `Sweep`; without one a default
    holds), ``design``
    and ``logdir``; it returns ``{key: array (k, ...)}``. For a row to be the same in any block, draw what
    is random from the row's own generators.

    Parameters
    ----------
    function
        The function, where it is marked by a call; without it a decorator comes back.
    block_size
        Rows per call at most.

    Raises
    ------
    RequestError
        when `block_size` is below 1.
    """
    if function is None:
        return functools.partial(block_task, block_size=block_size)
    if block_size < 1:
        raise RequestError(f"block_size is {block_size}; give 1 or more")
    return BlockTask(function, block_size)


def load_task(task: str | Function) -> Function:
    """The callable that ``"PKG.MODULE:FUNCTION"`` names; other callables are returned as they are, or as the
    `BlockTask` in their attribute ``block_task``.

    Raises
    ------
    RequestError
        when the module cannot be imported or has no such function.
    """
    if not isinstance(task, str):
        if not callable(task):
            raise RequestError(f"a task is a function or 'PKG.MODULE:FUNCTION', not {task!r}")
        whole = getattr(task, "block_task", None)
        return whole if isinstance(whole, BlockTask) else task
    module_name, colon, name = task.partition(":")
    if module_name.endswith(".py"):
        raise RequestError(
            f"task {task!r}: leave out '.py', write {module_name[:-3].replace('/', '.')}:{name or 'FUNCTION'}"
        )
    if not colon or not module_name or not name:
        raise RequestError(f"task {task!r} must be PKG.MODULE:FUNCTION")
    try:
        with standard_output_to_error():  # what a module prints is no result
            module = importlib.import_module(module_name)
    except Exception as error:
        raise RequestError(f"cannot import {module_name!r} for the task {task!r}: {first_line(error)}") from error
    found = getattr(module, name, None)
    if not callable(found):
        raise RequestError(f"module {module_name!r} has no function {name!r}")
    return found


def fingerprint(function: Function) -> str:
    """Name and source of a task, ``NAME#HASH``: another one means that rows come from other code.

    Only the function itself is looked at, not what it calls. An object that is called, which has no
    source of its own, can say what it depends on in an attribute ``fingerprint``, a string used as HASH.
    """
    inner = function.function if isinstance(function, BlockTask) else function
    name = f"{getattr(inner, '__module__', '?')}:{getattr(inner, '__qualname__', type(inner).__name__)}"
    own = getattr(inner, "fingerprint", None)
    if isinstance(own, str):
        return f"{name}#{own}"
    try:
        source = inspect.getsource(inner)
    except (OSError, TypeError):
        source = ""
    return f"{name}#{hashlib.sha256(source.encode()).hexdigest()[:16]}"


def gpus_wanted(function: Function) -> tuple[str, ...]:
    """The GPUs of this machine that a task asks for in an attribute ``gpus``, as `datamodels.devices.gpus_of`; most ask for none.

    Raises
    ------
    RequestError
        when the attribute is something else.
    """
    said = _said_by(function, "gpus")
    if said is None:
        return ()
    if not isinstance(said, list | tuple) or not all(isinstance(one, str | int) for one in said):
        raise RequestError(
            f"the task's attribute gpus is {said!r}; give values of {VISIBLE}, one per worker: ('0', '1')"
        )
    return tuple(str(one) for one in said)


def labels_known(function: Function, n_train: int) -> NDArray[np.integer] | None:
    """Labels of the training examples, integers (n_train,), that a task has in an attribute ``labels``; None when it has none."""
    said = _said_by(function, "labels")
    return said if isinstance(said, np.ndarray) and said.shape == (n_train,) and said.dtype.kind in "iu" else None


def _said_by(function: Function, name: str) -> Any:
    return getattr(function.function if isinstance(function, BlockTask) else function, name, None)


_ROW_NAMES = ("index", "mask", "rng", "params", "logdir", "design")
_NEED_DESIGN = ("mask", "masks", "design")
_BLOCK_NAMES = ("indices", "masks", "rngs", "params", "logdir", "design")


def arguments_of(function: Function) -> tuple[bool, tuple[str, ...]]:
    """Whether the index goes first by position, and which arguments go by name.

    Raises
    ------
    RequestError
        when the function needs an argument that nobody can give.
    """
    known = _BLOCK_NAMES if isinstance(function, BlockTask) else _ROW_NAMES
    inner = function.function if isinstance(function, BlockTask) else function
    try:
        parameters = list(inspect.signature(inner).parameters.values())
    except (TypeError, ValueError):
        return True, ()
    named = [p.name for p in parameters if p.name in known and p.kind is not p.POSITIONAL_ONLY]
    if any(p.kind is p.VAR_KEYWORD for p in parameters):
        named += [name for name in (known[0], "logdir") if name not in named]
    by_position = [
        p for p in parameters if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name not in known
    ]
    first = known[0] not in named and bool(by_position)
    unknown = [p.name for p in by_position[1 if first else 0 :] if p.default is p.empty]
    unknown += [p.name for p in parameters if p.kind is p.KEYWORD_ONLY and p.default is p.empty and p.name not in known]
    if unknown:
        raise RequestError(f"the task needs {unknown}, which nobody gives; it may name {', '.join(known)}")
    return first, tuple(named)


@dataclass
class TaskRunner:
    """Runs rows of a store with a task and writes them; what an executor carries to its workers.

    ``place`` is the store's address, ``gpus`` are those that the task asks for. The ``logdir`` of tasks is in the store's folder; of a remote store, in a folder for
    temporary files of the worker's machine.
    """

    place: str
    task: str | Function
    whole_blocks: bool = False
    gpus: tuple[str, ...] = ()
    _store: Store | None = field(default=None, repr=False)
    _function: Any = field(default=None, repr=False)
    _first: bool = field(default=False, repr=False)
    _names: tuple[str, ...] = field(default=(), repr=False)

    def __getstate__(self) -> dict[str, Any]:
        return {"place": self.place, "task": self.task, "whole_blocks": self.whole_blocks}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__init__(**state)  # type: ignore[misc]

    def prepare(self) -> None:
        """Load the task and open the store, once.

        Raises
        ------
        RequestError
            when the task cannot be imported, or needs what the store cannot give.
        """
        if self._store is None:
            self._function = load_task(self.task)
            store = Store.open(self.place)
            self._first, self._names = arguments_of(self._function)
            wanted = [name for name in self._names if name in _NEED_DESIGN]
            if wanted and store.design is None:
                raise RequestError(
                    f"the task names {wanted[0]!r}, which needs a store with a design "
                    "(make the store with --n-train and --alpha, or design=Design(...))"
                )
            if "params" in self._names and store.sweep is None:
                if not _has_default(self._function, "params"):
                    raise RequestError(
                        "the task names 'params', which needs a store with a sweep "
                        "(make the store with --sweep, or sweep=Sweep(...))"
                    )
                self._names = tuple(name for name in self._names if name != "params")
            self._store = store

    def __call__(self, rows: Sequence[int]) -> Iterator[RowOutcome]:
        self.prepare()
        assert self._store is not None
        store = self._store
        done = dict(zip(rows, store.completed_rows(rows).tolist(), strict=True))
        yield from (RowOutcome(row, "there") for row in rows if done[row])
        missing = [row for row in rows if not done[row]]
        if missing:
            yield from (self._run_block(store, missing) if self.whole_blocks else self._run_rows(store, missing))

    def _run_rows(self, store: Store, rows: Sequence[int]) -> Iterator[RowOutcome]:
        """One row after the other; results are written a few at a time, or as many as the store has in a block."""
        most, every = (
            (_WRITE_ROWS, _WRITE_EVERY) if store.block_rows is None else (store.block_rows, _WRITE_BLOCK_EVERY)
        )
        waiting: list[tuple[int, dict[str, Any], float]] = []
        written = time.monotonic()
        for row in rows:
            yield RowOutcome(row, "started")
            started = time.monotonic()
            try:
                values = self._call(store, row)
            except (Exception, SystemExit) as error:
                yield RowOutcome(row, "failed", time.monotonic() - started, trace_of(error))
                continue
            waiting.append((row, values, time.monotonic() - started))
            if len(waiting) >= most or time.monotonic() - written >= every:
                yield from _write(store, waiting)
                waiting, written = [], time.monotonic()
        yield from _write(store, waiting)

    def _run_block(self, store: Store, rows: Sequence[int]) -> Iterator[RowOutcome]:
        started = time.monotonic()
        try:
            try:
                values = self._call(store, rows)
            except Exception:
                if len(rows) == 1:
                    raise
                for row in rows:  # one row may be to blame: by themselves the others succeed
                    yield from self._run_block(store, [row])
                return
            _check_lengths(values, len(rows))
            table = [(row, {key: value[i] for key, value in values.items()}) for i, row in enumerate(rows)]
        except (Exception, SystemExit) as error:
            seconds = (time.monotonic() - started) / len(rows)
            yield from (RowOutcome(row, "failed", seconds, trace_of(error)) for row in rows)
            return
        seconds = (time.monotonic() - started) / len(rows)
        yield from _write(store, [(row, one, seconds) for row, one in table])

    def _call(self, store: Store, rows: int | Sequence[int]) -> dict[str, Any]:
        values = {name: self._argument(store, name, rows) for name in self._names}
        positional = [np.asarray(rows) if self.whole_blocks else rows] if self._first else []
        result = self._function(*positional, **values)
        if not isinstance(result, Mapping):
            raise RowError(f"the task returned {type(result).__name__}; it must return a dict {{key: array}}")
        return dict(result)

    def _argument(self, store: Store, name: str, rows: Any) -> Any:
        if name == "index":
            return rows
        if name == "indices":
            return np.asarray(rows)
        if name == "logdir":
            local = store.path if isinstance(store.path, Path) else Path(tempfile.gettempdir()) / "datamodels"
            folder = local / "workers" / str(rows if not self.whole_blocks else f"block-{rows[0]}")
            folder.mkdir(parents=True, exist_ok=True)
            return str(folder)
        if name == "rng":
            return store.rng(rows)
        if name == "rngs":
            return [store.rng(int(row)) for row in rows]
        if name == "params":
            assert store.sweep is not None
            return [store.sweep.at(int(row)) for row in rows] if self.whole_blocks else store.sweep.at(rows)
        assert store.design is not None
        if name == "design":
            return store.design
        if name == "mask":
            return store.design.mask(rows)
        return np.stack([store.design.mask(int(row)) for row in rows])


def _has_default(function: Function, name: str) -> bool:
    inner = function.function if isinstance(function, BlockTask) else function
    return inspect.signature(inner).parameters[name].default is not inspect.Parameter.empty


def _check_lengths(values: dict[str, Any], count: int) -> None:
    for key, value in values.items():
        if len(value) != count:
            raise RowError(f"the block task returned {len(value)} rows of {key!r} for {count} indices")


def _write(store: Store, rows: list[tuple[int, dict[str, Any], float]]) -> Iterator[RowOutcome]:
    """Write rows together; when one does not fit the schema, one by one, so that only that one fails."""
    if not rows:
        return
    try:
        keys = list(rows[0][1])
        if any(list(values) != keys for _, values, _ in rows):
            raise RowError("rows have different keys")
        table = {key: [values[key] for _, values, _ in rows] for key in keys}
        written = set(store.write_rows([row for row, _, _ in rows], table))
    except Exception as error:
        if len(rows) == 1:
            yield RowOutcome(rows[0][0], "failed", rows[0][2], trace_of(error))
            return
        for one in rows:
            yield from _write(store, [one])
        return
    for row, _, seconds in rows:
        yield RowOutcome(row, "done" if row in written else "there", seconds)


def make_importable(folder: str | Path) -> None:
    """Let modules of a folder be imported, as a script started there could."""
    text = str(folder)
    if text not in sys.path:
        sys.path.insert(0, text)
