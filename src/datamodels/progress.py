"""Progress of long work: a bar with rate and time left on a terminal, plain lines elsewhere.

Everything goes to standard error, so that standard output stays clean for machines.
"""

from __future__ import annotations

import sys
import time
from types import TracebackType
from typing import Any

_FIRST_LINE_AFTER = 2.0
_LINE_EVERY = 10.0


def duration(seconds: float | None) -> str:
    """Seconds as ``42s``, ``3m 05s`` or ``2h 10m``."""
    if seconds is None or seconds != seconds or seconds == float("inf"):
        return "?"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


class Progress:
    """Counts finished and failed items of a known total.

    Used as a context manager; `advance` may be called often, it draws rarely.
    """

    def __init__(self, title: str, total: int, unit: str = "rows", *, show: bool = True, done: int = 0) -> None:
        self.title = title
        self.total = total
        self.unit = unit
        self.show = show
        self.done = done
        self.failed = 0
        self._before = done
        self._started = time.monotonic()
        self._next_line = self._started + _FIRST_LINE_AFTER
        self._bar: Any = None
        self._task: Any = None
        self._printed = 0  # how many items had ended at the last line

    def __enter__(self) -> Progress:
        self._started = time.monotonic()
        self._next_line = self._started + _FIRST_LINE_AFTER
        if self.show and sys.stderr.isatty():
            self._open_bar()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._draw()
            self._bar.stop()
        elif self._printed and self._printed != self.done + self.failed:
            self._line()

    def advance(self, done: int = 1, failed: int = 0) -> None:
        """Count items that ended since the last call."""
        self.done += done
        self.failed += failed
        if not self.show:
            return
        if self._bar is not None:
            self._draw()
        elif time.monotonic() >= self._next_line:
            self._line()
            self._next_line = time.monotonic() + _LINE_EVERY

    @property
    def seconds(self) -> float:
        return time.monotonic() - self._started

    @property
    def rate(self) -> float | None:
        """Items finished per second since the start, None before the first."""
        finished = self.done - self._before
        return finished / self.seconds if finished and self.seconds > 0 else None

    @property
    def seconds_left(self) -> float | None:
        return (self.total - self.done - self.failed) / self.rate if self.rate else None

    def _text(self) -> str:
        rate = f"{self.rate:.3g} {self.unit}/s" if self.rate else f"- {self.unit}/s"
        failed = f", {self.failed} failed" if self.failed else ""
        return f"{self.done}/{self.total}{failed}, {rate}, {duration(self.seconds_left)} left"

    def _line(self) -> None:
        self._printed = self.done + self.failed
        print(f"{self.title}: {self._text()}", file=sys.stderr, flush=True)

    def _open_bar(self) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, TextColumn
        from rich.progress import Progress as RichProgress

        self._bar = RichProgress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.fields[text]}"),
            console=Console(stderr=True),
        )
        self._bar.start()
        self._task = self._bar.add_task(self.title, total=self.total, completed=self.done, text="")

    def _draw(self) -> None:
        self._bar.update(self._task, completed=self.done + self.failed, text=self._text())


def note(message: str) -> None:
    """One line to a person, on standard error."""
    print(message, file=sys.stderr, flush=True)
