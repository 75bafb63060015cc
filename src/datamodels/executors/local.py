"""Worker processes on this machine: spawned once, reused between rows, replaced when they hang or die.

Workers hear of their driver's death by the end of a pipe, so none outlives it.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any

from datamodels.devices import VISIBLE
from datamodels.errors import RequestError, first_line
from datamodels.executors.base import Executor, RowOutcome, Runner, thread_limits, trace_of, usual_jobs

_END_GRACE = 2.0


@dataclass(eq=False)
class _Worker:
    process: Any
    pipe: Connection
    alive: Connection
    number: int
    pending: list[int] = field(default_factory=list)
    running: int | None = None
    since: float = 0.0
    ready: bool = False

    def end(self, how: int = signal.SIGTERM) -> None:
        if self.process.is_alive():
            os.kill(self.process.pid, how)
            self.process.join(_END_GRACE)
        if self.process.is_alive():
            self.process.kill()
            self.process.join()
        self.pipe.close()
        self.alive.close()
        self.process.close()


class LocalExecutor(Executor):
    """Worker processes on this machine.

    Parameters
    ----------
    runner
        What each worker runs.
    jobs
        Number of worker processes; by default one per GPU of the runner, or one per CPU when it has none.
    timeout
        Seconds that one row may take, None for no limit; for block tasks a block may take as many times that as it has
        rows. The worker is then replaced.
    threads
        Threads of torch and BLAS in each worker.
    """

    def __init__(
        self, runner: Runner, *, jobs: int | None = None, timeout: float | None = None, threads: int = 1
    ) -> None:
        if jobs is not None and jobs < 1:
            raise RequestError(f"jobs is {jobs}; give 1 or more (executor='inline' runs in this process)")
        if threads < 1:
            raise RequestError(f"threads is {threads}; give 1 or more")
        if timeout is not None and timeout <= 0:
            raise RequestError(f"timeout is {timeout}; give seconds above 0")
        self.slots = jobs or usual_jobs(runner.gpus)
        self._runner = runner
        self._payload = b""
        self._timeout = timeout
        self._threads = threads
        self._workers: list[_Worker] = []
        self._outcomes: list[RowOutcome] = []
        self._deaths_at_start = 0
        self._any_ready = False

    def __enter__(self) -> LocalExecutor:
        import cloudpickle

        try:
            self._payload = cloudpickle.dumps(self._runner)
        except Exception as error:
            raise RequestError(
                f"the task cannot be sent to worker processes ({first_line(error)}): name it as 'PKG.MODULE:FUNCTION', "
                "or use executor='inline'"
            ) from None
        self._workers = [self._start(number) for number in range(self.slots)]
        for worker in self._workers:
            self._feed(worker)
        return self

    def __exit__(self, *exc: object) -> None:
        for worker in self._workers:
            worker.alive.close()  # they end by themselves as soon as they are free
            if worker.pending and worker.process.is_alive():
                worker.process.terminate()
        for worker in self._workers:
            worker.end()
        self._workers = []

    def _start(self, number: int) -> _Worker:
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        watched, held = context.Pipe(duplex=False)
        environment = thread_limits(self._threads)
        if self._runner.gpus:
            environment[VISIBLE] = self._runner.gpus[number % len(self._runner.gpus)]
        before = {name: os.environ.get(name) for name in environment}
        os.environ.update(environment)
        try:
            process = context.Process(target=_work, args=(theirs, watched, self._threads), name="datamodels-worker")
            with _importable_main(), _deaf_to_interrupts():
                process.start()
        finally:
            for name, value in before.items():
                if value is None:
                    del os.environ[name]
                else:
                    os.environ[name] = value
        theirs.close()
        watched.close()
        return _Worker(process, ours, held, number, since=time.monotonic())

    def _feed(self, worker: _Worker) -> None:
        """Send the task. It may be larger than a pipe holds, so it goes to a process that can read it, or has died."""
        with contextlib.suppress(OSError):  # it died; `poll` finds out and reports
            worker.pipe.send_bytes(self._payload)

    def _renew(self, worker: _Worker) -> None:
        """Put another process in the place of a worker."""
        fresh = self._start(worker.number)
        self._workers[self._workers.index(worker)] = fresh
        self._feed(fresh)

    @property
    def free(self) -> int:
        return sum(not worker.pending for worker in self._workers)

    def submit(self, rows: Sequence[int]) -> None:
        worker = next(worker for worker in self._workers if not worker.pending)
        worker.pending = list(rows)
        worker.since = time.monotonic()
        with contextlib.suppress(OSError):  # it died; `poll` finds out and reports
            worker.pipe.send(list(rows))

    def poll(self, seconds: float) -> list[RowOutcome]:
        wait([worker.pipe for worker in self._workers], timeout=self._patience(seconds))
        for worker in list(self._workers):
            self._receive(worker)
        now = time.monotonic()
        if self._timeout is not None:
            for worker in [w for w in self._workers if w.ready and w.pending and now > self._deadline(w)]:
                self._stop_late(worker)
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _patience(self, seconds: float) -> float:
        if self._timeout is None:
            return seconds
        now = time.monotonic()
        left = [self._deadline(w) - now for w in self._workers if w.ready and w.pending]
        return max(0.0, min([seconds, *left]))

    def _deadline(self, worker: _Worker) -> float:
        """When what a worker runs is late."""
        assert self._timeout is not None
        return worker.since + self._timeout * (len(worker.pending) if self._runner.whole_blocks else 1)

    def _receive(self, worker: _Worker) -> None:
        try:
            while worker.pipe.poll():
                message = worker.pipe.recv()
                worker.since = time.monotonic()
                if message is None:
                    worker.ready = self._any_ready = True
                    continue
                if message.ended == "started":
                    worker.running = message.row
                    continue
                worker.pending.remove(message.row)
                self._outcomes.append(message)
        except (EOFError, OSError):
            self._replace_dead(worker)
        else:  # a forked child of a dead worker may hold its pipe open, so that no end of it is heard
            if not worker.process.is_alive() and not worker.pipe.poll():
                self._replace_dead(worker)

    def _replace_dead(self, worker: _Worker) -> None:
        if worker.process.is_alive():
            worker.process.join(_END_GRACE)
        code = worker.process.exitcode
        cause = f"signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"exit status {code}"
        text = f"the worker process ended with {cause} while it ran this row"
        if not worker.ready:
            self._deaths_at_start += 1
            killed = code is not None and code < 0
            text = f"a worker process could not start ({cause})"
            if not killed:
                text += "; in a script, call train under `if __name__ == '__main__':`"
            if self._deaths_at_start > 2 * self.slots or not (self._any_ready or killed):
                raise RequestError(text)
        else:
            self._deaths_at_start = 0
        self._give_up(worker, "died", text)
        self._renew(worker)
        worker.end()

    def _stop_late(self, worker: _Worker) -> None:
        text = f"took longer than the limit of {self._timeout:g} seconds and was stopped"
        if self._runner.whole_blocks and len(worker.pending) > 1:
            text = f"its block of {len(worker.pending)} rows took longer than {self._timeout:g} seconds each and was stopped"
        self._give_up(worker, "timeout", text)
        worker.end(signal.SIGKILL)
        self._renew(worker)

    def _give_up(self, worker: _Worker, ended: Any, text: str) -> None:
        """The row that was running is to blame; the rest of its block goes back unharmed."""
        for row in worker.pending:
            blamed = worker.ready and (self._runner.whole_blocks or row == worker.running)
            self._outcomes.append(RowOutcome(row, ended if blamed else "returned", text=text))
        worker.pending = []


@contextlib.contextmanager
def _deaf_to_interrupts() -> Iterator[None]:
    """Processes that are started meanwhile inherit this, so that Ctrl-C does not meet one that is still on its way."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: Connection, alive: Connection, threads: int) -> None:
    """The life of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is the driver's to hear
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})
    os.dup2(2, 1)  # standard output is for results; what tasks print goes to standard error
    threading.Thread(target=_end_with_driver, args=(alive,), daemon=True).start()
    import cloudpickle

    runner: Runner | None = None
    broken = ""
    try:
        runner = cloudpickle.loads(pipe.recv_bytes())
        runner.prepare()
    except (Exception, SystemExit) as error:
        broken = f"the task could not be loaded in a worker process:\n{trace_of(error)}"
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    try:
        pipe.send(None)
        while True:
            rows = pipe.recv()
            if broken or runner is None:
                for row in rows:
                    pipe.send(RowOutcome(row, "failed", text=broken))
            else:
                _run_block(runner, rows, pipe)
    except (EOFError, OSError):
        os._exit(0)


def _run_block(runner: Runner, rows: Sequence[int], pipe: Connection) -> None:
    """Run a block and send its news; an error of the runner itself fails the rows that are left."""
    left = set(rows)
    news = runner(rows)
    while True:
        try:
            outcome = next(news)
        except StopIteration:
            return
        except Exception as error:
            for row in sorted(left):
                pipe.send(RowOutcome(row, "failed", text=trace_of(error)))
            return
        if outcome.ended != "started":
            left.discard(outcome.row)
        pipe.send(outcome)


@contextlib.contextmanager
def _importable_main() -> Iterator[None]:
    """Hide the file of a main module that is no file (a script from standard input), since workers
    would try to run it; its functions travel by value anyway."""
    main = sys.modules["__main__"]
    file = getattr(main, "__file__", None)
    if file is None or os.path.exists(file):
        yield
        return
    main.__file__ = None
    try:
        yield
    finally:
        main.__file__ = file


def _end_with_driver(alive: Connection) -> None:
    """Wait until the driver's end of the pipe is closed, by the driver or by its death."""
    with contextlib.suppress(EOFError, OSError):
        alive.recv()
    os._exit(0)
