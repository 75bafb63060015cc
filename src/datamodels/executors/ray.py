"""Ray: an actor per worker runs blocks of rows on any node of a cluster; fits and gradients are mapped over its tasks."""

from __future__ import annotations

import contextlib
import sys
import time
import warnings
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

from datamodels.errors import CampaignError, RequestError, first_line
from datamodels.executors.base import Executor, RowOutcome, Runner, standard_output_to_error
from datamodels.executors.local import LocalExecutor
from datamodels.executors.packed import PackedRunner
from datamodels.executors.pool import Pool
from datamodels.executors.ray_session import connected, no_place, places, reason
from datamodels.memory import bytes_of

Item = TypeVar("Item")
Result = TypeVar("Result")

_TICK = 0.25
_LOOK = 5.0  # seconds between looks at what the cluster has
_STARTS = 6  # of workers, that fail one after the other
_AHEAD = 2  # items of a pool per slot that are asked for before the first is taken


@dataclass(frozen=True, kw_only=True)
class Ray:
    """Settings of the Ray executor, ``train(store, task, executor=Ray(address="auto", gpus=0.25))``.

    Stores and files that work is about must be readable by all nodes: in a shared folder, or at an address.

    Parameters
    ----------
    address
        ``"HOST:PORT"`` or ``"auto"`` on a node of the cluster, ``"ray://HOST:PORT"`` from elsewhere; by default
        ``RAY_ADDRESS`` of the environment, or else a Ray of its own on this machine. A process that called ``ray.init``
        stays where it is connected.
    workers
        How many at the same time, unless `train` says it (``jobs``); by default as many as the cluster has place for at
        each moment. A number is also what an autoscaler hears: workers without a place wait for one, the others do their
        part.
    cpus
        Of a worker; by default as many as it has threads.
    gpus
        Of a worker; a fraction lets several share one.
    memory
        Of a worker, as ``"8GB"``; by default Ray does not count it.
    runtime_env
        As of ``ray.init``: ``{"env_vars": {...}}`` for credentials, ``{"pip": [...]}``, ``{"working_dir": "."}``.
    losses
        How often a row may lose its worker (its node dies, memory runs out) before it counts as died. Rows without a
        worker go to another.
    patience
        Seconds without any worker after which work is given up.

    Raises
    ------
    RequestError
        when a value is out of range.
    """

    address: str | None = None
    workers: int | None = None
    cpus: int | None = None
    gpus: float = 0.0
    memory: str | None = None
    runtime_env: dict[str, Any] | None = None
    losses: int = 3
    patience: float = 600.0

    def __post_init__(self) -> None:
        for name in ("workers", "cpus", "patience"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise RequestError(f"{name} is {value}; give more than 0")
        for name in ("gpus", "losses"):
            if getattr(self, name) < 0:
                raise RequestError(f"{name} is {getattr(self, name)}; give 0 or more")
        if self.memory is not None:
            bytes_of(self.memory)

    def __call__(
        self, runner: Runner, *, jobs: int | None = None, timeout: float | None = None, threads: int = 1
    ) -> RayExecutor:
        return RayExecutor(runner, self, jobs=jobs, timeout=timeout, threads=threads)

    def pool(self) -> RayPool:
        """What fits spread over: the workers of the cluster."""
        return RayPool(self)

    def need(self, threads: int) -> dict[str, float]:
        """What a worker of so many `threads` needs, by Ray's names of resources."""
        need: dict[str, float] = {"CPU": self.cpus or threads}
        if self.gpus:
            need["GPU"] = self.gpus
        if self.memory is not None:
            need["memory"] = bytes_of(self.memory)
        return need


def _options(need: Mapping[str, float]) -> dict[str, Any]:
    """The same as options of Ray's actors and tasks; spread over nodes, for their memory and disks."""
    options = {"num_cpus": need["CPU"], "num_gpus": need.get("GPU", 0), "scheduling_strategy": "SPREAD"}
    return options | ({"memory": int(need["memory"])} if "memory" in need else {})


class _Worker:
    """The actor: runs blocks in a process of its own, which it replaces when a row hangs or kills it.

    So rows end as they do on one machine, and an actor is lost only with its node, or for memory.
    """

    def __init__(self, parcel: PackedRunner, timeout: float | None, threads: int, path: Sequence[str]) -> None:
        sys.path[:] = [*path, *(entry for entry in sys.path if entry not in path)]
        sys.modules["__main__"].__file__ = None  # Ray's own program, which processes would load
        self._process = LocalExecutor(parcel, jobs=1, timeout=timeout, threads=threads)
        self._process.__enter__()

    def ready(self) -> None:
        """Answers as soon as the actor is there."""

    def run(self, rows: Sequence[int]) -> list[RowOutcome]:
        self._process.submit(rows)
        ended: list[RowOutcome] = []
        while len(ended) < len(rows):
            ended += self._process.poll(_TICK)
        return ended


@dataclass(eq=False)
class _Slot:
    """An actor, what it is to answer next (that it is there, or how its rows ended), and these rows."""

    actor: Any
    answer: Any
    rows: list[int] = field(default_factory=list)
    ready: bool = False


class RayExecutor(Executor):
    """Actors of a Ray cluster, see `Ray`."""

    def __init__(
        self,
        runner: Runner,
        settings: Ray,
        *,
        jobs: int | None = None,
        timeout: float | None = None,
        threads: int = 1,
    ) -> None:
        LocalExecutor(runner, jobs=jobs, timeout=timeout, threads=threads)  # what it refuses, actors would
        self._runner = runner
        self._settings = settings
        self._wanted = jobs or settings.workers
        self._need = settings.need(threads)
        self._timeout = timeout
        self._threads = threads
        self._stack = contextlib.ExitStack()
        self._parcel: Any = None
        self._slots: list[_Slot] = []
        self._waiting: deque[list[int]] = deque()
        self._outcomes: list[RowOutcome] = []
        self._losses: Counter[int] = Counter()
        self._failed_starts = 0
        self._next_look = 0.0
        self._served = 0.0

    def __enter__(self) -> RayExecutor:
        import cloudpickle

        try:
            content = cloudpickle.dumps(self._runner)
        except Exception as error:
            raise RequestError(
                f"the task cannot be sent to a cluster ({first_line(error)}): name it as 'PKG.MODULE:FUNCTION'"
            ) from None
        with contextlib.ExitStack() as stack:
            stack.enter_context(connected(self._settings.address, self._settings.runtime_env))
            import ray

            if self._wanted is None and not places(self._need):
                raise RequestError(f"{no_place(self._need)}; give jobs where nodes will join")
            self._parcel = ray.put(PackedRunner(content, self._runner.place, self._runner.whole_blocks))
            self._served = time.monotonic()
            self._look()
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        for slot in self._slots:
            _kill(slot.actor)
        self._slots = []
        self._stack.close()

    @property
    def free(self) -> int:
        busy = sum(bool(slot.rows) for slot in self._slots)
        return max(0, self.slots - busy - len(self._waiting))

    def submit(self, rows: Sequence[int]) -> None:
        """Rows that have lost a worker go alone: one of them may be what it was lost for."""
        self._waiting += [[row] for row in rows if self._losses[row]]
        others = [row for row in rows if not self._losses[row]]
        if others:
            self._waiting.append(others)
        self._hand_out()

    def poll(self, seconds: float) -> list[RowOutcome]:
        import ray

        if time.monotonic() >= self._next_look:
            self._look()
        asked = {slot.answer: slot for slot in self._slots if slot.answer is not None}
        if not asked:
            time.sleep(seconds)
        elif ray.wait(list(asked), timeout=seconds)[0]:
            for answer in ray.wait(list(asked), num_returns=len(asked), timeout=0)[0]:
                self._take(asked[answer])
        self._hand_out()
        self._check_patience()
        outcomes, self._outcomes = self._outcomes, []
        return outcomes

    def _look(self) -> None:
        """Have as many actors as are wanted, or as the cluster has place for now."""
        self._next_look = time.monotonic() + _LOOK
        self.slots = self._wanted or max(1, places(self._need))
        self._slots += [self._start() for _ in range(self.slots - len(self._slots))]

    def _start(self) -> _Slot:
        import ray

        kind: Any = ray.remote(_Worker)
        actor = kind.options(**_options(self._need)).remote(
            self._parcel, self._timeout, self._threads, [entry for entry in sys.path if entry]
        )
        return _Slot(actor, actor.ready.remote())

    def _hand_out(self) -> None:
        """Give blocks to actors that have none. Those without a place yet get none: they may wait for long."""
        for slot in self._slots:
            if slot.ready and not slot.rows and self._waiting:
                slot.rows = self._waiting.popleft()
                slot.answer = slot.actor.run.remote(slot.rows)

    def _take(self, slot: _Slot) -> None:
        import ray

        try:
            news = ray.get(slot.answer)
        except ray.exceptions.RayTaskError as error:
            cause = error.cause
            raise RequestError(f"a worker on the Ray cluster failed: {first_line(cause or error)}") from None
        except ray.exceptions.RayError as error:
            self._lose(slot, error)
            return
        if slot.ready:
            self._outcomes += news
        slot.ready, slot.answer, slot.rows = True, None, []
        self._failed_starts = 0

    def _lose(self, slot: _Slot, error: Exception) -> None:
        """Its rows go back, but for those that have lost too many workers."""
        _kill(slot.actor)
        self._slots.remove(slot)
        self._next_look = 0.0
        if not slot.ready:
            self._failed_starts += 1
            if getattr(error, "actor_init_failed", False) or self._failed_starts >= _STARTS:
                raise RequestError(f"a worker could not start on the Ray cluster: {_last_line(error)}")
        for row in slot.rows:
            self._losses[row] += 1
            count = self._losses[row]
            if count <= self._settings.losses:
                self._outcomes.append(RowOutcome(row, "returned"))
            else:
                text = f"{count} workers were lost while they ran this row, the last one because {reason(error)}"
                self._outcomes.append(RowOutcome(row, "died", text=text))

    def _check_patience(self) -> None:
        now = time.monotonic()
        if any(slot.ready for slot in self._slots):
            self._served = now
        elif now - self._served > self._settings.patience:
            raise CampaignError(f"no worker for {self._settings.patience:g} seconds: {no_place(self._need)}")


def _kill(actor: Any) -> None:
    import ray

    with contextlib.suppress(Exception):  # it, or Ray, is gone
        ray.kill(actor)


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()


class RayPool(Pool):
    """Tasks of a Ray cluster, each on as many CPUs, GPUs and memory as `Ray` says; those of a lost node run again."""

    shared = True

    def __init__(self, settings: Ray) -> None:
        self._settings = settings
        self._need = settings.need(1)
        self._stack = contextlib.ExitStack()

    def __enter__(self) -> RayPool:
        with contextlib.ExitStack() as stack:
            stack.enter_context(connected(self._settings.address, self._settings.runtime_env))
            self.slots = self._settings.workers or places(self._need)
            if not self.slots:
                raise RequestError(f"{no_place(self._need)}; give workers where nodes will join")
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stack.close()

    def map(self, function: Callable[[Item], Result], items: Sequence[Item]) -> Iterator[Result]:
        import ray

        call = ray.remote(_call).options(**_options(self._need), max_retries=self._settings.losses)
        held = ray.put(function)
        running: deque[Any] = deque()
        try:
            for item in items:
                running.append(call.remote(held, item, int(self._need["CPU"])))
                if len(running) >= _AHEAD * self.slots:
                    yield _result(running.popleft())
            while running:
                yield _result(running.popleft())
        finally:
            for answer in running:
                ray.cancel(answer, force=True)


def _call(function: Callable[[Any], Any], item: Any, threads: int) -> tuple[Any, list[tuple[Any, Any]]]:
    """What a task does: an item, and what it warned of."""
    from numba import config, set_num_threads
    from threadpoolctl import threadpool_limits

    set_num_threads(min(threads, config.NUMBA_NUM_THREADS))  # type: ignore[attr-defined]
    if "torch" in sys.modules:
        sys.modules["torch"].set_num_threads(threads)
    with standard_output_to_error(), threadpool_limits(threads), warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        return function(item), [(one.message, one.category) for one in said]


def _result(answer: Any) -> Any:
    import ray

    try:
        result, said = ray.get(answer)
    except ray.exceptions.RayTaskError as error:
        raise (error.cause or error) from None
    except ray.exceptions.RayError as error:
        raise CampaignError(f"the Ray cluster lost a part of the work again and again: {reason(error)}") from None
    for message, category in said:
        warnings.warn(message, category, stacklevel=4)
    return result
