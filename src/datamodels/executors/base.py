"""The contract of an executor: run blocks of rows somewhere, report how each row ended."""

from __future__ import annotations

import contextlib
import os
import sys
import traceback
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

Ended = Literal["started", "done", "there", "failed", "timeout", "died", "returned"]


@dataclass(frozen=True)
class RowOutcome:
    """News of one row.

    Attributes
    ----------
    row
        Its index.
    ended
        ``started``: it runs from now on. ``done``: written. ``there``: it was complete already.
        ``returned``: not run, because its worker was lost to another row. ``failed``, ``timeout`` and
        ``died``: not written.
    seconds
        How long it ran.
    text
        Why it was not written: a traceback, or a sentence.
    """

    row: int
    ended: Ended
    seconds: float = 0.0
    text: str = ""

    @property
    def ok(self) -> bool:
        """Whether the row is complete."""
        return self.ended in ("done", "there")


class Runner(Protocol):
    """What an executor carries to its workers: runs rows one after the other or together.

    It is pickled, may be called many times in one process, and raises nothing but interrupts. Before
    each row it yields ``started``, unless the block is one indivisible step.
    """

    #: What the rows are written to: an address that all workers can reach.
    place: str

    #: Whether a block is one indivisible step; its time limit then counts for the whole block.
    whole_blocks: bool

    #: The GPUs of this machine that rows use, one per worker, as `datamodels.devices.gpus_of` names them; none for a CPU.
    gpus: tuple[str, ...]

    def prepare(self) -> None:
        """Load whatever rows need; called once per worker, and outside of any time limit."""

    def __call__(self, rows: Sequence[int]) -> Iterator[RowOutcome]: ...


class Executor(ABC):
    """Runs blocks of rows. Used as a context manager; leaving it ends all workers."""

    #: How many blocks may run at the same time.
    slots: int = 1

    @abstractmethod
    def __enter__(self) -> Executor: ...

    @abstractmethod
    def __exit__(self, *exc: object) -> None: ...

    @abstractmethod
    def submit(self, rows: Sequence[int]) -> None:
        """Give a block of `rows` to a free slot; call it only when `free` is above 0."""

    @property
    @abstractmethod
    def free(self) -> int:
        """How many blocks can be submitted now."""

    @abstractmethod
    def poll(self, seconds: float) -> list[RowOutcome]:
        """How rows ended since the last call, after at most `seconds` seconds. Every submitted row ends
        exactly once, also when its worker died or was stopped for taking too long."""


class MakeExecutor(Protocol):
    """An executor that is still to be given its work: a class of executors, or the settings of one."""

    def __call__(self, runner: Runner, *, jobs: int | None, timeout: float | None, threads: int) -> Executor: ...


class InlineExecutor(Executor):
    """Runs rows in this process, for debugging: breakpoints work, and no time limit does.

    As in a worker process, BLAS, OpenMP and torch have one thread each while rows run; libraries that a row is the first
    to load have it from the next block on.
    """

    def __init__(self, runner: Runner) -> None:
        self._runner = runner
        self._waiting: list[Sequence[int]] = []

    def __enter__(self) -> InlineExecutor:
        return self

    def __exit__(self, *exc: object) -> None:
        self._waiting.clear()

    def submit(self, rows: Sequence[int]) -> None:
        self._waiting.append(rows)

    @property
    def free(self) -> int:
        return 1 - len(self._waiting)

    def poll(self, seconds: float) -> list[RowOutcome]:
        blocks, self._waiting = self._waiting, []
        if not blocks:
            return []
        with standard_output_to_error(), _one_thread():
            return self._run(blocks)

    def _run(self, blocks: list[Sequence[int]]) -> list[RowOutcome]:
        return [news for rows in blocks for news in self._runner(rows) if news.ended != "started"]


@contextlib.contextmanager
def standard_output_to_error() -> Iterator[None]:
    """Standard output is for results: what tasks and their child processes print goes to standard error."""
    sys.stdout.flush()
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        with contextlib.redirect_stdout(sys.stderr):
            yield
    finally:
        os.dup2(kept, 1)
        os.close(kept)


@contextlib.contextmanager
def _one_thread() -> Iterator[None]:
    """Keep what numerical libraries are loaded to one thread each: for small models more only wait for each other."""
    from threadpoolctl import threadpool_limits

    torch = sys.modules.get("torch")
    before = torch.get_num_threads() if torch else 0
    with threadpool_limits(1):
        if torch:
            torch.set_num_threads(1)
        try:
            yield
        finally:
            if torch:
                torch.set_num_threads(before)


def trace_of(error: BaseException) -> str:
    """The traceback of an error as text."""
    return "".join(traceback.format_exception(error))


def thread_limits(threads: int) -> dict[str, str]:
    """Environment that keeps numerical libraries to a number of threads."""
    names = (
        "OMP_NUM_THREADS",
        "OPENBLAS_NUM_THREADS",
        "MKL_NUM_THREADS",
        "NUMEXPR_NUM_THREADS",
        "NUMBA_NUM_THREADS",
    )
    return {name: str(threads) for name in names}


def usable_cpus() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def usual_jobs(gpus: Sequence[str]) -> int:
    """Worker processes on this machine when nobody says how many: one per GPU that they use, or one per CPU."""
    return len(gpus) or usable_cpus()
