"""A share of a campaign: blocks of rows run to their end by worker processes of one machine, as in a job of a cluster."""

from __future__ import annotations

import contextlib
import json
import signal
import sys
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from datamodels.executors.base import RowOutcome, Runner
from datamodels.executors.local import LocalExecutor
from datamodels.executors.packed import PackedRunner

_TICK = 0.25
_AFTER_SIGTERM = 120.0  # seconds
_MOMENT = 0.5
_FRUITLESS = 3  # starts of a job without a single row


def run_blocks(
    runner: Runner,
    blocks: Sequence[Sequence[int]],
    *,
    jobs: int | None,
    timeout: float | None,
    threads: int,
    enough: Callable[[], bool],
) -> Iterator[RowOutcome]:
    """Run blocks with a `LocalExecutor` and yield how each row ended, once per row.

    When `enough` says so, blocks that have not begun are given up: their rows end as ``returned``.
    """
    waiting = deque(list(rows) for rows in blocks if rows)
    running: set[int] = set()
    with LocalExecutor(runner, jobs=jobs, timeout=timeout, threads=threads) as workers:
        while waiting or running:
            if enough():
                yield from (RowOutcome(row, "returned") for rows in waiting for row in rows)
                waiting.clear()
            while waiting and workers.free:
                rows = waiting.popleft()
                running.update(rows)
                workers.submit(rows)
            for news in workers.poll(_TICK) if running else ():
                running.discard(news.row)
                if news.ended == "returned":  # its worker was lost to another row of the block
                    waiting.appendleft([news.row])
                else:
                    yield news


def read_news(file: Path, start: int = 0) -> tuple[list[RowOutcome], int]:
    """What a share has written to its file from byte `start` on, and where the next news will begin."""
    try:
        with file.open("rb") as stream:
            stream.seek(start)
            content = stream.read()
    except FileNotFoundError:
        return [], start
    whole = content.rfind(b"\n") + 1
    news = []
    for line in content[:whole].splitlines():
        with contextlib.suppress(ValueError, TypeError):  # cut off when its job was killed
            news.append(RowOutcome(**json.loads(line)))
    return news, start + whole


@dataclass
class Share:
    """What one job does. It can be stopped and started again anywhere: rows that have ended are not run again.

    The process that runs it watches one worker process per ``threads`` CPUs, so it hears signals while they compute.

    Parameters
    ----------
    file
        Where it tells how rows ended, one JSON object a line.
    seconds
        When that much time has passed, rows that have not begun are given back; None to run all.
    path
        Where the driver finds modules; what is missing here is added.
    fruitless
        How often in a row the job was stopped before it completed anything.
    """

    file: Path
    blocks: list[list[int]]
    runner: PackedRunner
    jobs: int
    timeout: float | None
    threads: int
    seconds: float | None = None
    path: tuple[str, ...] = ()
    fruitless: int = 0
    _told: bool = False
    _ended: int = 0
    _left: set[int] = field(default_factory=set)

    def __call__(self) -> None:
        sys.path += [entry for entry in self.path if entry not in sys.path]
        signal.signal(signal.SIGTERM, self._hear)
        before, end = read_news(self.file)
        known = {news.row for news in before}
        blocks = [[row for row in rows if row not in known] for rows in self.blocks]
        self._left = {row for rows in blocks for row in rows}
        begun = time.monotonic()

        def enough() -> bool:
            if self._told:
                self._wait_for_the_end()
            return self.seconds is not None and time.monotonic() - begun > self.seconds

        if self.file.exists() and self.file.stat().st_size > end:
            self._say("")  # ends a line that was cut off
        for news in run_blocks(
            self.runner, blocks, jobs=self.jobs, timeout=self.timeout, threads=self.threads, enough=enough
        ):
            if news.ended == "died":  # by the signal that ends the whole job?
                time.sleep(_MOMENT)
                enough()
            self._say(json.dumps(asdict(news)))
            self._left.discard(news.row)
            self._ended += 1

    def checkpoint(self) -> Any:
        """What to run when the job comes to its turn again, called when it is about to be stopped (submitit's protocol)."""
        from submitit.helpers import DelayedSubmission

        fruitless = 0 if self._ended else self.fruitless + 1
        if fruitless < _FRUITLESS:
            return DelayedSubmission(replace(self, fruitless=fruitless, _told=False, _ended=0, _left=set()))
        text = f"its job was stopped {fruitless} times before it completed a single row: give jobs more time"
        for row in self._left:
            self._say(json.dumps(asdict(RowOutcome(row, "timeout", text=text))))
        return None

    def _say(self, line: str) -> None:
        with self.file.open("a") as stream:
            stream.write(line + "\n")

    def _hear(self, *_: object) -> None:
        self._told = True

    def _wait_for_the_end(self) -> None:
        """SIGTERM comes before SIGKILL, or, when a job is preempted, before it is queued again: who ends by himself is not."""
        time.sleep(_AFTER_SIGTERM)
        raise RuntimeError("this job was told to end by SIGTERM")
