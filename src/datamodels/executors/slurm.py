"""SLURM: rows go into array jobs that are followed, queued again when stopped, and found again by the next run."""

from __future__ import annotations

import math
import os
import re
import shlex
import shutil
import sys
import time
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodels.errors import CampaignError, RequestError, WriteError, first_line
from datamodels.executors import slurm_queue
from datamodels.executors.base import Executor, RowOutcome, Runner
from datamodels.executors.packed import PackedRunner
from datamodels.executors.share import Share
from datamodels.executors.slurm_follow import JOB_NAME, Followed, jobs_of, write_record
from datamodels.progress import note
from datamodels.store import Store

_PROBE_BLOCKS = 64
_PROBE_SECONDS = 30.0
_SHORTEST_JOB = 60.0  # seconds; shorter ones are more waiting than work
_ALL_BLOCKS = 1_000_000
_TIME_OUTS = 1_000_000  # a job that gets nowhere stops by itself
_GATHER = 1.0  # seconds between submissions
_TRY_AGAIN = 30.0
_GIVE_UP = 600.0  # seconds without an answer, when no job is left to wait for


@dataclass(frozen=True, kw_only=True)
class Slurm:
    """Settings of the SLURM executor, ``train(store, task, executor=Slurm(partition="gpu", time="02:00:00"))``.

    Parameters
    ----------
    partition, account, qos
        As of ``sbatch``; by default the site's.
    time
        Time limit of a job, minutes or ``"[D-]HH:MM:SS"``. What a job has not done by then it does when its turn comes
        again.
    memory
        Per job, as ``"8GB"``.
    cpus
        CPUs of a job, by default as many as a worker has threads; each further `threads` of them run one more worker.
    gpus
        GPUs of a job.
    parallel
        How many jobs may run at the same time, unless `train` says it (``jobs``).
    rows_per_job
        Rows of one job; by default as many as take ``seconds_per_job``, and fewer where jobs would be left idle.
    seconds_per_row
        Seconds that a row takes; by default what the rows so far have taken. When nothing is known, a first small job
        finds out.
    seconds_per_job
        How long a job is meant to take.
    warning
        Seconds before the time limit at which a job is stopped and queued again; rows that run then start again.
    setup
        Shell commands that a job begins with, ``"module load cuda"``.
    sbatch
        Further parameters of ``sbatch``, ``"--constraint=a100 --exclusive"``.
    folder
        Where submissions and logs are kept, on a file system that all nodes share: ``<store>/slurm``. A remote store
        needs one.
    cancel_on_interrupt
        Whether Ctrl-C cancels the jobs. By default they go on, and the next run follows them.

    Raises
    ------
    RequestError
        when a value is out of range, or a text is none that SLURM takes.
    """

    partition: str | None = None
    time: int | str = 60
    memory: str | None = None
    cpus: int | None = None
    gpus: int | None = None
    account: str | None = None
    qos: str | None = None
    parallel: int = 256
    rows_per_job: int | None = None
    seconds_per_row: float | None = None
    seconds_per_job: float = 600.0
    warning: int = 90
    setup: str = ""
    sbatch: str = ""
    folder: str | None = None
    cancel_on_interrupt: bool = False

    def __post_init__(self) -> None:
        for name in ("cpus", "gpus", "parallel", "rows_per_job", "seconds_per_row", "seconds_per_job", "warning"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise RequestError(f"{name} is {value}; give more than 0")
        if self.warning >= 60 * self.minutes:
            raise RequestError(
                f"warning is {self.warning} seconds and time {self.time!r}: jobs would be stopped as they begin; "
                "give more time, or a shorter warning"
            )
        _ = self.further

    @property
    def minutes(self) -> int:
        """The time limit in minutes.

        Raises
        ------
        RequestError
            when `time` is none.
        """
        parts = re.fullmatch(r"(?:(?:(\d+)-)?(\d+):(\d\d):(\d\d)|(\d+))", str(self.time))
        if parts is None or not any(map(int, filter(None, parts.groups()))):
            raise RequestError(f"time is {self.time!r}; give minutes, or '[D-]HH:MM:SS'")
        days, hours, minutes, seconds, only = (int(part or 0) for part in parts.groups())
        return only or math.ceil((86400 * days + 3600 * hours + 60 * minutes + seconds) / 60)

    @property
    def further(self) -> dict[str, str | bool]:
        """`sbatch` by name.

        Raises
        ------
        RequestError
            when a word of it is no parameter.
        """
        found: dict[str, str | bool] = {}
        for word in shlex.split(self.sbatch):
            name, equals, value = word.partition("=")
            if not re.fullmatch(r"--[a-z][a-z-]+", name):
                raise RequestError(f"sbatch has {word!r}; give parameters as --NAME=VALUE or --NAME")
            found[name[2:]] = value if equals else True
        return found

    def __call__(
        self, runner: Runner, *, jobs: int | None = None, timeout: float | None = None, threads: int = 1
    ) -> SlurmExecutor:
        return SlurmExecutor(runner, self, jobs=jobs, timeout=timeout, threads=threads)


class SlurmExecutor(Executor):
    """Array jobs of a SLURM cluster, see `Slurm`. Needs submitit, and the commands of SLURM where it is used."""

    def __init__(
        self,
        runner: Runner,
        settings: Slurm,
        *,
        jobs: int | None = None,
        timeout: float | None = None,
        threads: int = 1,
    ) -> None:
        if jobs is not None and jobs < 1:
            raise RequestError(f"jobs is {jobs}; give 1 or more")
        if threads < 1:
            raise RequestError(f"threads is {threads}; give 1 or more")
        if timeout is not None and timeout <= 0:
            raise RequestError(f"timeout is {timeout}; give seconds above 0")
        _check_installed()
        self._runner = runner
        self._settings = settings
        self._parallel = jobs or settings.parallel
        self._cpus = settings.cpus or threads
        self._workers = max(1, self._cpus // threads)
        self._timeout = timeout
        self._threads = threads
        self.slots = self._parallel * self._workers
        self._folder = _folder_of(runner.place, settings.folder)
        self._followed = Followed(self._folder, runner.place)
        self._payload = b""
        self._largest_array = 0
        self._store: Store | None = None
        self._waiting: list[list[int]] = []
        self._there: list[RowOutcome] = []
        self._own: set[str] = set()  # numbers of jobs that this driver submitted
        self._refused_since: float | None = None
        self._next_submission = 0.0

    def __enter__(self) -> SlurmExecutor:
        import cloudpickle

        try:
            self._payload = cloudpickle.dumps(self._runner)
        except Exception as error:
            raise RequestError(
                f"the task cannot be sent to a cluster ({first_line(error)}): name it as 'PKG.MODULE:FUNCTION'"
            ) from None
        self._store = Store.open(self._runner.place)
        self._largest_array = slurm_queue.largest_array()
        self._followed.find()
        return self

    def __exit__(self, kind: object = None, *exc: object) -> None:
        left = self._followed.numbers()
        if kind is None or (self._settings.cancel_on_interrupt and kind is KeyboardInterrupt):
            ours = [number for number in left if number in self._own]  # others may have a driver of their own
            if ours:
                slurm_queue.cancel(ours)
                note(f"cancelled the SLURM jobs {' '.join(ours)}")
            left = [number for number in left if number not in self._own]
        if left:
            note(f"SLURM jobs go on; the next run follows them, `scancel {' '.join(left)}` ends them")

    @property
    def free(self) -> int:
        if self._settings.rows_per_job or self._seconds:
            return _ALL_BLOCKS
        return 0 if self._followed.wanted else max(0, _PROBE_BLOCKS - len(self._waiting))

    @property
    def _seconds(self) -> float | None:
        """Seconds per row, when they are known."""
        return self._settings.seconds_per_row or self._followed.seconds

    def submit(self, rows: Sequence[int]) -> None:
        self._waiting.append(list(rows))

    def poll(self, seconds: float) -> list[RowOutcome]:
        if self._waiting and time.monotonic() >= self._next_submission:
            self._submit_waiting()
        there, self._there = self._there, []
        outcomes = there + self._followed.news()
        if not outcomes:
            time.sleep(seconds)
        return outcomes

    def _submit_waiting(self) -> None:
        """Put what waits into jobs, but for rows that are complete or in jobs already."""
        assert self._store is not None
        self._next_submission = time.monotonic() + _GATHER
        try:
            self._followed.find()
            done = self._store.completed()
            self._there += [RowOutcome(row, "there") for rows in self._waiting for row in rows if done[row]]
            elsewhere = self._followed.want([row for rows in self._waiting for row in rows if not done[row]])
            blocks = [[row for row in rows if not done[row] and row not in elsewhere] for rows in self._waiting]
            self._waiting = [rows for rows in blocks if rows]
            if self._waiting:
                self._submit_shares(self._shares(self._waiting))
                self._waiting = []
            self._refused_since = None
        except CampaignError as error:
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            patient = bool(self._own) and now - self._refused_since < _GIVE_UP
            if not patient and not self._followed.numbers():
                raise
            note(f"{error}; trying again")
            self._next_submission = now + _TRY_AGAIN

    def _shares(self, blocks: list[list[int]]) -> list[list[list[int]]]:
        """Blocks by job: as many as a job is meant to take, and no more jobs than an array may have."""
        total = sum(map(len, blocks))
        if self._settings.rows_per_job:
            size = self._settings.rows_per_job
        elif self._seconds:
            rate = self._workers / self._seconds
            longest, shortest = rate * self._settings.seconds_per_job, rate * _SHORTEST_JOB
            size = math.ceil(min(longest, max(shortest, total / self._parallel)))
        else:
            size = total
        size = max(size, math.ceil(total / self._largest_array))
        shares: list[list[list[int]]] = []
        room = 0
        for rows in blocks:
            if room <= 0 and len(shares) < self._largest_array:
                shares.append([])
                room = size
            shares[-1].append(rows)
            room -= len(rows)
        return shares

    def _submit_shares(self, shares: list[list[list[int]]]) -> None:
        import submitit

        name = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        folder = self._folder / name
        record = {"place": self._runner.place, "job": None, "made": time.time(), "ended": False, "shares": shares}
        try:
            folder.mkdir(parents=True)
            (folder / "task.pkl").write_bytes(self._payload)
            write_record(folder, record)  # before there are jobs, so that none is ever unknown
        except OSError as error:
            raise WriteError(f"cannot write the files of a submission to {folder}: {first_line(error)}") from None
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=_TIME_OUTS)
        executor.update_parameters(**self._parameters(name))
        probe = not (self._settings.rows_per_job or self._seconds)
        work = [self._share(folder, i, blocks, probe) for i, blocks in enumerate(shares)]
        try:
            number = executor.submit_array(work)[0].job_id.partition("_")[0]
        except (RuntimeError, OSError) as error:
            write_record(folder, {**record, "ended": True})
            said = " ".join(line for line in str(error).splitlines() if line.strip())
            kind = CampaignError if self._own else RequestError
            raise kind(f"sbatch refused the jobs: {said}") from None
        write_record(folder, {**record, "job": number})
        self._own.add(number)
        self._followed.add(folder, jobs_of(folder, number, shares))
        rows = sum(len(blocks) for share in shares for blocks in share)
        many = "1 job" if len(shares) == 1 else f"{len(shares)} jobs"
        note(f"SLURM job {number}: {rows} rows in {many}{', to see how long a row takes' if probe else ''}; {folder}")

    def _share(self, folder: Path, i: int, blocks: list[list[int]], probe: bool) -> Share:
        return Share(
            file=folder / f"{i}.jsonl",
            blocks=blocks,
            runner=PackedRunner(folder / "task.pkl", self._runner.place, self._runner.whole_blocks),
            jobs=self._workers,
            timeout=self._timeout,
            threads=self._threads,
            seconds=_PROBE_SECONDS if probe else None,
            path=tuple(entry or os.getcwd() for entry in sys.path),
        )

    def _parameters(self, name: str) -> dict[str, Any]:
        settings = self._settings
        given = {
            "partition": settings.partition,
            "account": settings.account,
            "qos": settings.qos,
            "mem": settings.memory,
            "gpus_per_node": settings.gpus,
            "setup": [settings.setup] if settings.setup else None,
        }
        return {
            **{key: value for key, value in given.items() if value is not None},
            "job_name": JOB_NAME + name,
            "time": settings.minutes,
            "cpus_per_task": self._cpus,
            "srun_args": [f"--cpus-per-task={self._cpus}"],  # which srun does not take from sbatch by itself
            "signal_delay_s": settings.warning,
            "array_parallelism": self._parallel,
            "additional_parameters": {"requeue": True, **settings.further},
        }


def _check_installed() -> None:
    try:
        import submitit  # noqa: F401
    except ImportError:
        raise RequestError("executor 'slurm' needs submitit: pip install 'datamodels-kit[slurm]'") from None
    lacking = [name for name in ("sbatch", "srun", "squeue", "scontrol") if shutil.which(name) is None]
    if lacking:
        raise RequestError(
            f"executor 'slurm' needs the command {lacking[0]}, which is not on this machine: run it on a login node of "
            "the cluster, or use executor 'local'"
        )


def _folder_of(place: str, folder: str | None) -> Path:
    if folder is not None:
        return Path(folder).expanduser().resolve()
    if "://" in place:
        raise RequestError(f"the store {place!r} is no folder: give folder, a folder for logs that all nodes share")
    return Path(place) / "slurm"
