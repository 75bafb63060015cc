"""Pools: a function of many items, computed here or by a cluster. Fits and gradients take one; rows have executors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Protocol, TypeVar, runtime_checkable

from datamodels.errors import RequestError
from datamodels.executors.names import executor_named

Item = TypeVar("Item")
Result = TypeVar("Result")


class Pool(ABC):
    """Calls a function of items. Used as a context manager; leaving it gives up what still runs.

    Attributes
    ----------
    slots
        How many items run at the same time. Of a pool with one slot callers ask the whole as one item.
    shared
        What functions and items name must be readable by other machines.
    """

    slots: int = 1
    shared: bool = False

    @abstractmethod
    def __enter__(self) -> Pool: ...

    @abstractmethod
    def __exit__(self, *exc: object) -> None: ...

    @abstractmethod
    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        """``function(item)`` of each item, in their order. The function travels once; arrays in it may be read-only.

        Raises
        ------
        Exception
            the error of the first item that has one.
        """


@runtime_checkable
class MakePool(Protocol):
    """Settings of an executor that fits can use too."""

    def pool(self) -> Pool: ...


class InProcess(Pool):
    """One item after the other in this process, whose threads share the work within an item."""

    def __enter__(self) -> InProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        pass

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        return map(function, items)


def pool_of(executor: str | MakePool) -> Pool:
    """The pool of an executor: its settings, or its name for its defaults; ``local`` and ``inline`` are this process.

    Raises
    ------
    RequestError
        when the executor runs rows of a store and nothing else.
    """
    if executor in ("local", "inline"):
        return InProcess()
    settings = executor_named(executor) if isinstance(executor, str) else executor
    if not isinstance(settings, MakePool):
        raise RequestError(
            f"executor {executor!r} trains models and does nothing else; here 'local' and 'ray' are legal"
        )
    return settings.pool()
