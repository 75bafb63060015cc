"""Jobs of SLURM that are followed: their news, row by row, and what becomes of them.

Each submission has a folder of its own, ``<store>/slurm/<name>``: ``submission.json`` (what runs where), ``task.pkl``, what
submitit needs, the logs of its jobs, and ``<i>.jsonl``, in which job i tells how its rows ended.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodels.errors import first_line
from datamodels.executors import slurm_queue
from datamodels.executors.base import RowOutcome
from datamodels.executors.share import read_news
from datamodels.executors.slurm_queue import FORGOTTEN, JobState, NoAnswerError
from datamodels.files import replacing
from datamodels.progress import note
from datamodels.store import Store

JOB_NAME = "datamodels-"  # and the name of the submission's folder
_RECORD = "submission.json"
_SUBMITTING = 60.0  # seconds in which a driver gets from its record to its jobs
_READ_EVERY = 0.5
_LOOK_EVERY = (1.0, 30.0)
_SETTLE = 2.0  # seconds after which an end is an end
_SETTLE_LONG = 15.0  # when the job may be queued again, or its last words are on their way through the file system
_OFTEN_SAID = frozenset(("", "None", "Priority", "Resources", "JobArrayTaskLimit", "BeginTime", "Dependency", "Prolog"))
_LOG_LINES = 15


@dataclass(eq=False)
class Job:
    """A job, or a job of an array."""

    key: str
    news: Path
    log: Path
    rows: set[int]  # that it has not told of
    offset: int = 0
    began: bool = False
    over_since: float | None = None

    def read(self) -> list[RowOutcome]:
        news, self.offset = read_news(self.news, self.offset)
        news = [one for one in news if one.row in self.rows]
        self.rows.difference_update(one.row for one in news)
        self.began |= bool(news)
        return news

    def last_words(self, state: JobState) -> str:
        """The end of its log, what became of it, and where the log is."""
        how = f"SLURM job {self.key} ended as {state.name} before this row was complete"
        try:
            lines = self.log.read_text(errors="replace").strip().splitlines()
        except OSError:
            return f"{how}; it left no log at {self.log}: do all nodes share that folder?"
        return "\n".join([*lines[-_LOG_LINES:], f"{how}; log: {self.log}"])


def jobs_of(folder: Path, number: str, shares: list[list[list[int]]]) -> list[Job]:
    """The jobs of a submission: SLURM's number of it, and blocks of rows by job."""
    keys = [number] if len(shares) == 1 else [f"{number}_{i}" for i in range(len(shares))]
    return [
        Job(key, folder / f"{i}.jsonl", folder / f"{key}_0_log.err", {row for rows in share for row in rows})
        for i, (key, share) in enumerate(zip(keys, shares, strict=True))
    ]


def write_record(folder: Path, record: dict[str, Any]) -> None:
    """What a submission is: ``place`` of the store, ``job`` (its number, None before it has one), ``made``, ``shares``, and
    whether it ``ended``."""
    with replacing(folder / _RECORD) as temporary:
        temporary.write_text(json.dumps(record))


class Followed:
    """The jobs that write to one store, whoever submitted them.

    Attributes
    ----------
    wanted
        The rows whose end is waited for, and the job that each is in.
    seconds
        Seconds that a row takes; None when no row was seen.
    """

    def __init__(self, base: Path, place: str) -> None:
        self.wanted: dict[int, Job] = {}
        self.seconds: float | None = None
        self._base = base
        self._place = place
        self._live: dict[Path, list[Job]] = {}
        self._seen: set[Path] = set()
        self._outcomes: list[RowOutcome] = []
        self._since = self._next_read = self._next_look = 0.0
        self._said: set[str] = set()

    def numbers(self) -> list[str]:
        """The numbers of the jobs that are still there."""
        return sorted({job.key.partition("_")[0] for jobs in self._live.values() for job in jobs}, key=int)

    def add(self, folder: Path, jobs: list[Job]) -> None:
        """Follow jobs of a submission just made, and wait for their rows."""
        self._follow(folder, jobs)
        self.wanted |= {row: job for job in jobs for row in job.rows}

    def want(self, rows: Sequence[int]) -> set[int]:
        """Wait for those of some rows that are in jobs already; gives these rows."""
        owners = {row: job for jobs in self._live.values() for job in jobs for row in job.rows}
        found = {row: owners[row] for row in rows if row in owners}
        self.wanted |= found
        return set(found)

    def find(self) -> None:
        """Follow the jobs of other runs that are still there, and learn from them how long a row takes.

        Raises
        ------
        NoAnswerError
            when SLURM does not answer.
        """
        for file in sorted(self._base.glob(f"*/{_RECORD}"), reverse=True):
            folder = file.parent
            if folder in self._seen:
                continue
            try:
                record = json.loads(file.read_text())
                ours = record["place"] == self._place and {"ended", "job", "made", "shares"} <= record.keys()
            except (OSError, ValueError, TypeError, KeyError) as error:
                note(f"{file} is damaged ({first_line(error)}): jobs of that submission are not followed")
                self._seen.add(folder)
                continue
            if not ours or record["ended"]:
                if ours and record["job"] and self.seconds is None:
                    for job in jobs_of(folder, record["job"], record["shares"]):
                        self._measure(job.read())
                self._seen.add(folder)
                continue
            number = record["job"] or slurm_queue.job_named(JOB_NAME + folder.name)
            if number is None and time.time() - record["made"] < _SUBMITTING:
                continue
            live = self._living(jobs_of(folder, number, record["shares"])) if number else []
            write_record(folder, {**record, "job": number, "ended": not live})
            self._seen.add(folder)
            if live:
                self._follow(folder, live)
                rows = sum(len(job.rows) for job in live)
                note(f"SLURM job {number} of an earlier run is still there: following {rows} rows of it; {folder}")

    def _living(self, jobs: list[Job]) -> list[Job]:
        for job in jobs:
            self._measure(job.read())
        states = slurm_queue.states(job.key for job in jobs if job.rows)
        return [job for job in jobs if job.rows and job.key in states and states[job.key].live]

    def _follow(self, folder: Path, jobs: list[Job]) -> None:
        self._seen.add(folder)
        self._live[folder] = jobs
        self._since = time.monotonic()
        self._next_look = 0.0

    def news(self) -> list[RowOutcome]:
        """How wanted rows have ended since the last call; asks files and SLURM when it is time to."""
        now = time.monotonic()
        if now >= self._next_read:
            self._next_read = now + _READ_EVERY
            for folder, jobs in self._live.items():
                sizes = {
                    entry.name: entry.stat().st_size for entry in os.scandir(folder) if entry.name.endswith(".jsonl")
                }
                for job in jobs:
                    if sizes.get(job.news.name, 0) > job.offset:
                        self._take(job, job.read())
        if now >= self._next_look:  # less often the longer they last
            least, most = _LOOK_EVERY
            self._next_look = now + min(most, max(least, (now - self._since) / 20))
            self._look()
        for folder in list(self._live):
            self._drop_ended(folder)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _take(self, job: Job, news: list[RowOutcome]) -> None:
        self._measure(news)
        for one in news:
            if self.wanted.get(one.row) is job:
                del self.wanted[one.row]
                self._outcomes.append(one)

    def _measure(self, news: list[RowOutcome]) -> None:
        seconds = [one.seconds for one in news if one.ended == "done"]
        if seconds:
            mean = max(sum(seconds) / len(seconds), 1e-6)
            self.seconds = mean if self.seconds is None else 0.8 * self.seconds + 0.2 * mean

    def _drop_ended(self, folder: Path) -> None:
        left = self._live[folder] = [job for job in self._live[folder] if job.rows]
        if not left:
            del self._live[folder]
            record = json.loads((folder / _RECORD).read_text())
            write_record(folder, {**record, "ended": True})

    def _look(self) -> None:
        jobs = [job for jobs in self._live.values() for job in jobs]
        try:
            states = slurm_queue.states(job.key for job in jobs)
        except NoAnswerError as error:
            self._say_once(f"{error}; waiting for it")
            return
        again = []
        for job in jobs:
            state = states.get(job.key, JobState(FORGOTTEN))
            if not state.live:
                self._settle(job, state)
                continue
            job.over_since = None
            if state.name == "PENDING":
                again += [job.key] if job.began else []
                job.began = False
                if state.reason not in _OFTEN_SAID:
                    self._say_once(f"SLURM job {job.key.partition('_')[0]} waits: {state.reason}")
            elif state.name == "RUNNING":
                job.began = True
        if again:
            note(f"SLURM jobs were stopped and are queued again: {' '.join(again[:5])}{' ...' if again[5:] else ''}")

    def _settle(self, job: Job, state: JobState) -> None:
        """Tell how the rows of a job that is over ended, unless it may yet be queued again or its file yet grow."""
        now = time.monotonic()
        job.over_since = job.over_since or now
        may_change = state.name in (FORGOTTEN, "COMPLETED", "NODE_FAIL", "BOOT_FAIL", "PREEMPTED")
        if now - job.over_since < (_SETTLE_LONG if may_change else _SETTLE):
            self._next_look = min(self._next_look, now + _LOOK_EVERY[0])
            return
        self._take(job, job.read())
        done = Store.open(self._place).completed()
        text = job.last_words(state)
        for row in job.rows:
            self._take(job, [RowOutcome(row, "there") if done[row] else RowOutcome(row, "died", text=text)])
        job.rows.clear()

    def _say_once(self, text: str) -> None:
        if text not in self._said:
            self._said.add(text)
            note(text)
