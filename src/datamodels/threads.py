"""Work on many targets or blocks at once, in threads: compiled kernels release the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from numba import get_num_threads

Item = TypeVar("Item")
Result = TypeVar("Result")


def n_threads() -> int:
    """Threads to use: those of numba (``NUMBA_NUM_THREADS`` or ``numba.set_num_threads``)."""
    return int(get_num_threads())


def spread(
    function: Callable[[Item], Result], items: Iterable[Item], progress: Callable[[int], None] | None = None
) -> list[Result]:
    """``[function(item) for item in items]``, in as many threads as `n_threads` says.

    An error or Ctrl-C ends it: items that have not begun are dropped.
    """
    items = list(items)
    count = min(n_threads(), len(items))
    if count <= 1:
        return [_told(function(item), progress) for item in items]
    with ThreadPoolExecutor(count) as pool:
        futures = [pool.submit(function, item) for item in items]
        try:
            return [_told(future.result(), progress) for future in futures]
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise


def _told(result: Result, progress: Callable[[int], None] | None) -> Result:
    if progress:
        progress(1)
    return result


def ahead(items: Iterable[Item]) -> Iterator[Item]:
    """The same items, the next of them made in a thread while the caller works on the last."""
    iterator = iter(items)
    end = object()
    with ThreadPoolExecutor(1) as pool:
        coming = pool.submit(next, iterator, end)
        while (item := coming.result()) is not end:
            coming = pool.submit(next, iterator, end)
            yield item  # type: ignore[misc]
