"""A runner that travels to other machines."""

from __future__ import annotations

import signal
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from datamodels.executors.base import RowOutcome


@dataclass
class PackedRunner:
    """A runner as bytes, or in a file of them, which only worker processes unpack."""

    content: bytes | Path
    place: str
    whole_blocks: bool
    gpus: tuple[str, ...] = ()  # of another machine, whose scheduler gives them to its workers
    _runner: Any = field(default=None, repr=False)

    def prepare(self) -> None:
        import cloudpickle

        if self._runner is None:
            # SLURM's notice of a time limit reaches all processes of a job; it is for the one that watches this one.
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)
            content = self.content.read_bytes() if isinstance(self.content, Path) else self.content
            self._runner = cloudpickle.loads(content)
            self._runner.prepare()

    def __call__(self, rows: Sequence[int]) -> Iterator[RowOutcome]:
        self.prepare()
        return self._runner(rows)
