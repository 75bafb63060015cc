"""A campaign: a task run over the incomplete rows of a store. Running it again does what is missing."""

from __future__ import annotations

import heapq
import random
import time
import uuid
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.design import subsets_without_class
from datamodels.errors import MissingClassWarning, RequestError, StoreError, TaskChangedWarning
from datamodels.executors import Executor, MakeExecutor, RowOutcome, executor_named
from datamodels.progress import Progress, duration, note
from datamodels.spec import MASKS, Rows, rows_named
from datamodels.store import Store
from datamodels.training.task import BlockTask, TaskRunner, fingerprint, gpus_wanted, labels_known, load_task

_BLOCK_SECONDS = 0.5
_LARGEST_BLOCK = 256
_LONGEST_BLOCK = 20.0  # seconds
_LONGEST_FAR_BLOCK = 300.0  # where rows are written in blocks, since parts of blocks cost as much as whole ones
_SMALL_BLOCK = 8  # rows; not cut further while their time is unknown
_BACK_OFF = 0.5
_LONGEST_BACK_OFF = 60.0
_HEARTBEAT = 1.0
_BEAT_SHARE = 20  # a heartbeat may take so small a part of the time: stores far away answer slowly
_BEAT_IS_OLD = 10.0
_TICK = 0.25
_LOOKED_AT, _LOOKED_AT_ONCE = 100_000_000, 5_000_000  # entries of masks
_HOPELESS = 20  # a campaign whose first rows all fail is stopped after so many


@dataclass(frozen=True)
class Summary:
    """How a campaign ended.

    Attributes
    ----------
    done
        How many rows it has written.
    there
        How many were complete when their turn came.
    failed
        Rows whose last attempt failed; their logs are in the store's ``failures`` folder.
    pending
        How many rows were asked for and not reached.
    seconds
        How long it took.
    interrupted
        Whether Ctrl-C ended it.
    stopped
        Why it ended early: who asked it to, or that its first rows all failed; else None.
    subsets_without_class
        Rows whose subset lacks a class, where the store or the task knows labels: of the first rows that were to be trained, as many as have
        100 million entries of masks.
    """

    done: int
    there: int
    failed: list[int]
    pending: int
    seconds: float
    interrupted: bool = False
    stopped: str | None = None
    subsets_without_class: list[int] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        """Whether every row is complete, or all that were wanted: it was asked to stop and none failed."""
        return not self.failed and (not self.pending or self.stopped is not None)

    def to_dict(self) -> dict[str, Any]:
        """All of it, `ok`, and rows per second, JSON-ready."""
        rate = self.done / self.seconds if self.seconds > 0 else None
        return {"ok": self.ok, **asdict(self), "rows_per_second": rate}


def train(
    store: Store | str | Path,
    task: str | Callable[..., dict[str, Any]],
    *,
    executor: str | MakeExecutor = "local",
    jobs: int | None = None,
    timeout: float | None = None,
    retries: int = 0,
    threads: int = 1,
    progress: bool = True,
    rows: Rows = None,
) -> Summary:
    """Run a task over the rows of a store that are not complete.

    Parameters
    ----------
    store
        A store, its folder or its address.
    task
        A function ``index -> {key: array}``, a `block_task`, a `TrainRecipe`, or ``"PKG.MODULE:FUNCTION"``. It may also
        name ``mask`` (the row's subset, bool (n_train,)), ``rng`` (a numpy Generator of that row),
        ``logdir`` (a folder of that row) and ``design``.
    executor
        ``local``: worker processes on this machine. ``inline``: this process, for debugging. ``ray``, ``slurm``: a
        cluster, with its defaults; `datamodels.executors.Ray` and `datamodels.executors.Slurm` take its settings.
    jobs
        Worker processes; by default one per CPU, or one per GPU for tasks that train on them (of a cluster: what the executor
        says). More than there are GPUs share them evenly.
    timeout
        Seconds per row; a block of a block task may take as many times that as it has rows. The worker is then
        replaced and the row (the block) fails.
    retries
        How often a failed row is tried again, with growing pauses.
    threads
        Threads of torch and BLAS per worker.
    progress
        Whether to show done, failed, rate and time left on standard error. That rows failed is said there in any case.
    rows
        Only these rows: ``(start, stop)``, a slice, indices, or a bool mask; by default all.

    Returns
    -------
    Summary
        Failed rows do not raise; look at ``ok``.

    Raises
    ------
    RequestError
        when the task cannot be imported or called, or the options are wrong.
    KeyboardInterrupt
        on Ctrl-C, after workers ended. Completed rows are kept.
    """
    if not isinstance(store, Store):
        store = Store.open(store)
    if retries < 0:
        raise RequestError(f"retries is {retries}; give 0 or more")
    wanted = rows_named(rows, store.n_models)
    function = load_task(task)
    runner = TaskRunner(store.address, task, isinstance(function, BlockTask), gpus_wanted(function))
    runner.prepare()
    make = executor_named(executor) if isinstance(executor, str) else executor
    where = make(runner, jobs=jobs, timeout=timeout, threads=threads)
    size = function.block_size if isinstance(function, BlockTask) else store.block_rows
    return _Campaign(
        store, where, fingerprint(function), size, retries, progress, wanted, _labels(store, function)
    ).run()


def _labels(store: Store, function: Any) -> NDArray[Any] | None:
    """Of the training examples, (n_train,), as the store knows them, or else the task."""
    labels = store.labels()
    if labels is not None:
        return labels
    if store.design is not None:
        return labels_known(function, store.design.n_train)
    return labels_known(function, store.array(MASKS).shape[1]) if MASKS in store.keys else None


class _Campaign:
    """The state of one run of `train`."""

    def __init__(
        self, store: Store, executor: Executor, task: str, block_size: int | None, retries: int, progress: bool,
        wanted: NDArray[np.bool_], labels: NDArray[Any] | None,
    ) -> None:  # fmt: skip
        self.store = store
        self.labels = labels
        self.task = task
        self.executor = executor
        self.block_size = block_size
        self.retries = retries
        self.show = progress
        self.name = uuid.uuid4().hex[:12]
        done = store.completed()
        self.known_done = done
        self.wanted = wanted
        self.ready: deque[list[int]] = deque(self._first_blocks(np.flatnonzero(~done & wanted).tolist()))
        self.delayed: list[tuple[float, int]] = []
        self.attempts: dict[int, int] = {}
        self.failed: dict[int, RowOutcome] = {}
        self.running: set[int] = set()
        self.done = self.there = 0
        self.hopeless = False
        self.stopped: str | None = None
        self.seconds_per_row: float | None = None
        self.next_beat = 0.0
        self.unseen = False
        self.bar = Progress("training", int(wanted.sum()), show=progress, done=int((done & wanted).sum()))

    def _first_blocks(self, rows: list[int]) -> list[list[int]]:
        """Block tasks, and stores that are written in blocks, keep to a fixed grid, so that an interrupted campaign repeats
        the same blocks."""
        if self.block_size is None:
            return [[row] for row in rows]
        blocks: dict[int, list[int]] = {}
        for row in rows:
            blocks.setdefault(row // self.block_size, []).append(row)
        return list(blocks.values())

    def run(self) -> Summary:
        lacking = self._subsets_without_class()
        if lacking:
            warnings.warn(
                f"{len(lacking)} training subsets lack a class (the first is that of row {lacking[0]}); "
                "their models cannot learn it: raise alpha or use a stratified design",
                MissingClassWarning,
                stacklevel=3,
            )
        self._warn_of_another_task()
        if self.ready:
            try:
                with self.bar, self.executor:
                    self._beat(running=True)
                    self._keep_apart()
                    self._loop()
            except BaseException as error:
                interrupted = isinstance(error, KeyboardInterrupt)
                summary = self._summary(interrupted, lacking)
                self._beat(running=False)
                if interrupted or self.done:
                    self._report(summary)
                raise
            summary = self._summary(False, lacking)
            self._beat(running=False)
            self._report(summary)
        else:
            summary = self._summary(False, lacking)
        return summary

    def _loop(self) -> None:
        while self.ready or self.delayed or self.running:
            now = time.monotonic()
            while self.delayed and self.delayed[0][0] <= now:
                self.ready.append([heapq.heappop(self.delayed)[1]])
            while self.executor.free and self.ready:
                rows = self._next_block()
                elsewhere = [row for row in rows if self.known_done[row]]
                rows = [row for row in rows if not self.known_done[row]]
                self.there += len(elsewhere)
                self.bar.advance(len(elsewhere))
                if rows:
                    self.running.update(rows)
                    self.executor.submit(rows)
            if not self.running:
                if not self.ready and self.delayed:
                    time.sleep(max(0.0, min(_TICK, self.delayed[0][0] - now)))
                    self._beat(running=True)
                if self.stopped is not None:
                    return
                continue
            if len(self.failed) >= _HOPELESS and not self.done:
                self.hopeless = True
                self.stopped = f"stopped, since the first {len(self.failed)} rows all failed"
                return
            if self.stopped is not None:
                return
            finished, failed = self.done + self.there, len(self.failed)
            for outcome in self.executor.poll(_TICK):
                self._take(outcome)
            self.bar.advance(self.done + self.there - finished, len(self.failed) - failed)
            self._beat(running=True)

    def _warn_of_another_task(self) -> None:
        beats = (beat for beat in self.store.campaigns() if beat.get("done", 1))  # who wrote nothing left no rows
        others = [beat for beat in beats if beat.get("task", self.task) != self.task]
        if others and self.known_done.any():
            warnings.warn(
                f"this store has rows of another task ({others[-1]['task'].split('#')[0]}, or another version of it); "
                "rows of different tasks do not belong into one fit: make a new store if that was not meant",
                TaskChangedWarning,
                stacklevel=4,
            )

    def _keep_apart(self) -> None:
        """Start somewhere else when another campaign is at this store, so that work is shared."""
        others = [beat for beat in self.store.campaigns() if beat.get("name") != self.name]
        if any(beat.get("running") and abs(time.time() - beat.get("updated", 0)) < _BEAT_IS_OLD for beat in others):
            self.ready.rotate(random.randrange(len(self.ready)))

    def _next_block(self) -> list[int]:
        """A block of the grid, or as many rows as are worth one message.

        A block of a block task is cut where it would take long, since its rows are done or lost together; the first one,
        of which nothing is known, to a tenth; and where other workers would idle.
        """
        rows = self.ready.popleft()
        if self.block_size is not None:
            left = len(rows) + sum(map(len, self.ready))
            most = max(_SMALL_BLOCK, -(-left // self.executor.slots))
            if self.seconds_per_row is None:
                most = min(most, max(_SMALL_BLOCK, self.block_size // 10))
            else:
                longest = _LONGEST_BLOCK if self.store.block_rows is None else _LONGEST_FAR_BLOCK
                most = min(most, max(1, int(longest / max(self.seconds_per_row, 1e-6))))
            if most < len(rows):
                self.ready.appendleft(rows[most:])
                rows = rows[:most]
        if self.block_size is None and self.seconds_per_row is not None:
            wanted = int(_BLOCK_SECONDS / max(self.seconds_per_row, 1e-6))
            fair = len(self.ready) // (2 * self.executor.slots)
            for _ in range(min(wanted, fair, _LARGEST_BLOCK) - 1):
                rows += self.ready.popleft()
        return rows

    def _take(self, outcome: RowOutcome) -> None:
        row = outcome.row
        self.running.discard(row)
        if outcome.ended == "returned":
            self.ready.appendleft([row])
        elif outcome.ok:
            self.failed.pop(row, None)
            self.done += outcome.ended == "done"
            self.there += outcome.ended == "there"
            if outcome.ended == "done":
                known = self.seconds_per_row
                self.seconds_per_row = outcome.seconds if known is None else 0.8 * known + 0.2 * outcome.seconds
        elif (
            outcome.ended != "failed" and self.store.completed_rows([row])[0]
        ):  # its worker was lost between row and word of it
            self.failed.pop(row, None)
            self.there += 1
        else:
            self._take_failure(outcome)

    def _take_failure(self, outcome: RowOutcome) -> None:
        row, tried = outcome.row, self.attempts.get(outcome.row, 0) + 1
        self.attempts[row] = tried
        if tried <= self.retries:
            pause = min(_BACK_OFF * 2 ** (tried - 1), _LONGEST_BACK_OFF)
            heapq.heappush(self.delayed, (time.monotonic() + pause, row))
            return
        try:
            log = self.store.record_failure(row, f"row {row}, attempt {tried}: {outcome.ended}\n{outcome.text}\n")
        except StoreError as error:
            log = f"none, {error}"
        if not self.failed and self.show:
            cause = (outcome.text.strip().splitlines() or [outcome.ended])[-1]
            note(f"row {row} failed: {cause} (log: {log})")
        self.failed[row] = outcome

    def _beat(self, *, running: bool) -> None:
        now = time.monotonic()
        if running and now < self.next_beat:
            return
        self.known_done = self.store.completed()
        self.stopped = self.store.asked_to_stop(self.name)
        self.next_beat = now + max(_HEARTBEAT, _BEAT_SHARE * (time.monotonic() - now))
        rate = self.bar.rate or 0.0
        beat = {
            "name": self.name,
            "updated": time.time(),
            "rows_per_second": rate,
            "running": running,
            "done": self.done,
        }
        try:
            self.store.heartbeat(self.name, {**beat, "task": self.task})
        except StoreError as error:  # rows have their room; what a full disk has no room for is not worth ending for
            if self.show and not self.unseen:
                note(f"{error}; the campaign goes on, but `datamodels status` does not see it")
            self.unseen = True

    def _subsets_without_class(self) -> list[int]:
        """Those of the first rows that are to be trained whose subset has no example of some class, when the store or the task
        knows the labels. As many rows as a moment allows, since masks are drawn for it."""
        labels, design = self.labels, self.store.design
        if labels is None or (design is None and MASKS not in self.store.keys):
            return []
        rows = np.flatnonzero(self.wanted & ~self.known_done)[: max(1, _LOOKED_AT // len(labels))]
        found: list[int] = []
        for part in np.array_split(rows, max(1, len(rows) * len(labels) // _LOOKED_AT_ONCE)):
            masks = np.asarray(self.store.array(MASKS)[part]) if design is None else design.masks_of(part)
            found += part[subsets_without_class(masks, labels)].tolist()
        return found

    def _summary(self, interrupted: bool, lacking: list[int]) -> Summary:
        missing = int((~self.store.completed() & self.wanted).sum())
        return Summary(
            done=self.done,
            there=self.there,
            failed=sorted(self.failed),
            pending=max(0, missing - len(self.failed)),
            seconds=self.bar.seconds,
            interrupted=interrupted,
            stopped=self.stopped,
            subsets_without_class=lacking,
        )

    def _report(self, summary: Summary) -> None:
        if not (self.show or summary.failed):
            return
        text = f"trained {summary.done} rows in {duration(summary.seconds)}"
        if summary.failed:
            logs = self.store.failures().get(summary.failed[0], "nowhere: the store refuses")
            text += f", {len(summary.failed)} failed (log of the first: {logs})"
        if self.hopeless:
            text += f"; {summary.stopped}"
        elif summary.stopped:
            text += f"; asked to stop ({summary.stopped}), {summary.pending} not reached"
        if summary.interrupted:
            text += f", {summary.pending} not reached; run it again to go on"
        note(text)
