"""Imported by the process that workers are forked from in `tests.fault_campaign`: a driver that is killed while it asks for a
worker must not take that process with it."""

from __future__ import annotations

import errno
import multiprocessing.forkserver  # noqa: F401 (it imports what is changed here)
from multiprocessing import reduction
from typing import Any

_receive = reduction.recvfds  # type: ignore[attr-defined]


def _receive_or_hang_up(*given: Any) -> Any:
    try:
        return _receive(*given)
    except EOFError:
        raise OSError(errno.ECONNABORTED, "the driver was killed") from None


reduction.recvfds = _receive_or_hang_up  # type: ignore[attr-defined]
