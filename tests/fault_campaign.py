"""Kill campaigns with SIGKILL at random moments, many times, and count rows that are lost or wrong. Run as a program:
``python -m tests.fault_campaign`` (`make faults`).

Each kill takes a worker, a driver, or a driver with all of its workers. After each, every row that was ever seen complete
must still be complete, and every complete row must hold what an undisturbed run writes. Each store is finished by the runs
that follow the kills. So that a kill costs a fraction of a second, drivers and workers are forked from processes that have
imported everything; otherwise they are those of `datamodels train`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import multiprocessing
import os
import random
import re
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from multiprocessing import forkserver
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels import block_task
from datamodels.design import Design
from datamodels.executors import local  # noqa: F401 (imported before the forks)
from datamodels.store import Store, npy, remote  # noqa: F401
from datamodels.training.campaign import train

SIZE = 1500  # numbers per row
MODELS = 250  # rows per store
_PATIENCE = 60.0  # seconds after which a campaign that nobody kills must have ended


def row(index: int, mask: NDArray[np.bool_], rng: np.random.Generator) -> dict[str, Any]:
    time.sleep(_seconds())
    return {"margins": value(mask, rng)}


@block_task(block_size=10)
def block(indices: NDArray[np.int64], masks: NDArray[np.bool_], rngs: list[np.random.Generator]) -> dict[str, Any]:
    time.sleep(2.5 * _seconds())
    return {"margins": np.stack([value(mask, rng) for mask, rng in zip(masks, rngs, strict=True)])}


def _seconds() -> float:
    """What a row lasts: longer where workers take longer to start, so that kills meet rows."""
    return float(os.environ.get("FAULTS_ROW_SECONDS", "0.002"))


def value(mask: NDArray[np.bool_], rng: np.random.Generator) -> NDArray[np.float32]:
    return rng.normal(size=SIZE).astype(np.float32) + np.float32(mask.sum())


@dataclass
class Counts:
    """What happened. ``kills`` counts moments, ``processes`` what died in them; ``gave_up`` campaigns that ended by themselves
    since their workers were killed while they started. All from ``lost`` on must be 0."""

    where: str
    kills: int = 0
    of_workers: int = 0
    of_drivers: int = 0
    of_both: int = 0
    processes: int = 0
    campaigns: int = 0
    gave_up: int = 0
    stores: int = 0
    rows: int = 0
    seconds: float = 0.0
    lost: int = 0
    wrong: int = 0
    unverified: int = 0
    orphans: int = 0
    unfinished: int = 0
    surprises: list[str] = field(default_factory=list)

    @property
    def ok(self) -> bool:
        return not (self.lost or self.wrong or self.unverified or self.orphans or self.unfinished or self.surprises)


# -- processes ------------------------------------------------------------------------------------------


def in_child(function: Callable[[], Any]) -> Any:
    """What a function returns in a fork of this process, as JSON. This process itself never opens a remote store, whose client
    has threads, since forks of it could not open one then."""
    ours, theirs = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.write(theirs, json.dumps(function()).encode())
            status = 0
        except BaseException:
            traceback.print_exc()
        os._exit(status)
    os.close(theirs)
    with os.fdopen(ours, "rb") as pipe:
        answer = pipe.read()
    os.waitpid(child, 0)
    assert answer, "a look at the store failed; the traceback is above"
    return json.loads(answer)


def children(pid: int) -> list[int]:
    try:
        return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def workers() -> list[int]:
    """The worker processes of all drivers."""
    return [pid for pid in children(forkserver._forkserver._forkserver_pid or 0) if _alive(pid)]


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@contextlib.contextmanager
def nursery() -> Iterator[None]:
    """The process that workers are forked from; they have the environment of this moment."""
    forkserver.set_forkserver_preload(
        ["tests.fault_nursery", "datamodels.training.campaign", "datamodels.store.npy", "datamodels.store.remote", "cloudpickle", "numcodecs",
         "obstore.store"]
    )  # fmt: skip
    forkserver.ensure_running()
    try:
        yield
    finally:
        forkserver._forkserver._stop()  # type: ignore[attr-defined]


@dataclass(frozen=True)
class Place:
    """Where stores are, who does their rows, and how long kills wait for each other at most, in seconds."""

    where: str
    address: Callable[[int], str]
    longest: float
    executor: Any = "local"
    workers: Callable[[], list[int]] = workers


def start(address: str, task: Any, log: Path, executor: Any) -> int:
    """Fork a driver, which writes to `log`."""
    log.touch()
    child = os.fork()
    if child:
        return child
    status = 3
    try:
        said = os.open(log, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        for stream in (1, 2):
            os.dup2(said, stream)
        forkserver._forkserver.ensure_running = lambda: None  # type: ignore[method-assign] # it is the parent's
        real, real_kill = multiprocessing.get_context, os.kill

        def kill(pid: int, how: int) -> None:
            with contextlib.suppress(ProcessLookupError):  # a child of its own would be a zombie until it is waited for
                real_kill(pid, how)

        os.kill = kill
        multiprocessing.get_context = lambda *_: real("forkserver")  # type: ignore[assignment]
        status = 0 if train(address, task, executor=executor, jobs=2, retries=1, progress=False).ok else 1
    except BaseException:
        traceback.print_exc()
    os._exit(status)


# -- the campaign of kills ------------------------------------------------------------------------------


class Round:
    """One store, its campaigns, and what was seen of it."""

    def __init__(self, place: Place, number: int, counts: Counts, log: Path) -> None:
        self.place, self.address, self.counts, self.log = place, place.address(number), counts, log
        self.rng = random.Random(number)
        self.task = block if number % 2 else row
        self.drivers_wanted = 2 if number % 5 == 4 else 1
        self.design = Design(n_train=12, alpha=0.5, n_models=MODELS, seed=number)
        self.expected = np.stack([value(self.design.mask(i), self.design.rng(i)) for i in range(MODELS)])
        self.seen: set[int] = set()
        self.drivers: list[int] = []
        schema = {"margins": {"shape": (SIZE,), "dtype": "float32"}}
        in_child(lambda: Store.create(self.address, schema=schema, design=self.design).n_models)
        counts.stores += 1
        counts.rows += MODELS

    def look(self) -> bool:
        """Count what is lost or wrong. Returns whether all rows are complete."""

        def see() -> list[list[int]]:
            store = Store.open(self.address)
            done = np.flatnonzero(store.completed())
            found = np.asarray(store.array("margins")[done])
            return [done.tolist(), done[(found != self.expected[done]).any(axis=1)].tolist()]

        done, wrong = in_child(see)
        self.counts.lost += len(self.seen - set(done))
        self.counts.wrong += len(wrong)
        self.seen |= set(done)
        return len(done) == MODELS

    def reap(self) -> None:
        for driver in list(self.drivers):
            pid, status = os.waitpid(driver, os.WNOHANG)
            if pid:
                self.drivers.remove(driver)
                said = self.log.read_text() if os.waitstatus_to_exitcode(status) not in (0, 1) else ""
                if "could not start (signal SIGKILL)" in said:
                    self.counts.gave_up += 1
                elif said:
                    self.counts.surprises.append(said[-2000:])
                self.log.write_text("")

    def run(self, kills: int) -> None:
        """Kill until the store is complete or the number of kills is reached."""
        while self.counts.kills < kills:
            self.reap()
            while len(self.drivers) < self.drivers_wanted:
                self._start()
            time.sleep(self.rng.uniform(0.0, self.place.longest))
            self._kill()
            if self.look():
                break
        self._finish()

    def _start(self) -> None:
        self.drivers.append(start(self.address, self.task, self.log, self.place.executor))
        self.counts.campaigns += 1

    def _kill(self) -> None:
        victims, kind = self.place.workers(), self.rng.choice(("workers", "workers", "drivers", "both"))
        if kind == "workers" and not victims:
            kind = "drivers"
        driver = self.rng.choice(self.drivers)
        if kind == "workers":
            pids = [self.rng.choice(victims)]
        else:
            pids = [driver, *victims] if kind == "both" else [driver]
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if driver in pids:
            self.drivers.remove(driver)
            if os.waitstatus_to_exitcode(os.waitpid(driver, 0)[1]) != -signal.SIGKILL:
                return  # it had ended by itself: no kill
        self.counts.kills += 1
        self.counts.processes += len(pids)
        setattr(self.counts, f"of_{kind}", getattr(self.counts, f"of_{kind}") + 1)

    def _finish(self) -> None:
        """Let the job be finished, and look at all of it."""
        for _ in range(3):  # the first may end with rows whose workers were killed twice
            if not self.drivers:
                self._start()
            self._wait_for(lambda: self.reap() or not self.drivers, "unfinished")
            if self.look():
                break
        else:
            self.counts.unfinished += 1
        self._wait_for(lambda: not self.place.workers(), "orphans")

        def verify() -> list[int]:
            found = Store.open(self.address).verify()
            return [*found.bad_rows, *range(MODELS - found.checked)]

        self.counts.unverified += len(in_child(verify))

    def _wait_for(self, condition: Callable[[], bool], counter: str) -> None:
        end = time.monotonic() + _PATIENCE
        while not condition():
            if time.monotonic() > end:
                setattr(self.counts, counter, getattr(self.counts, counter) + 1)
                for pid in [*self.drivers, *self.place.workers()]:
                    os.kill(pid, signal.SIGKILL)
                return
            time.sleep(0.01)


def _campaign(place: Place, kills: int, folder: Path) -> Counts:
    counts, started, number = Counts(place.where), time.monotonic(), 0
    with nursery():
        while counts.kills < kills:
            Round(place, number, counts, folder / f"{place.where}-{number}.log").run(kills)
            number += 1
            print(
                f"{place.where}: {counts.kills} of {kills} kills, {counts.lost} lost, {counts.wrong} wrong",
                file=sys.stderr,
            )
    counts.seconds = time.monotonic() - started
    return counts


def over_local(kills: int, folder: Path) -> Counts:
    """Kills over stores in local folders."""
    return _campaign(Place("local", lambda number: str(folder / f"store-{number}"), 0.3), kills, folder)


def over_s3(kills: int, folder: Path) -> Counts:
    """Kills over stores on object storage: moto's server, whose claims end after a second."""
    from tests.s3 import server

    with server() as s3, _environment({**s3.environment, "DATAMODELS_LEASE": "1"}):
        runs = s3.bucket()
        return _campaign(Place("s3", lambda number: f"{runs}/store-{number}", 1.0), kills, folder)


def over_ray(kills: int, folder: Path) -> Counts:
    """Kills over a Ray of two nodes with one CPU each. A worker that is killed is an actor or its process; now and then it is
    all of the second node, which comes back."""
    from datamodels.executors import Ray

    slow = {"FAULTS_ROW_SECONDS": "0.04"}
    ray, printed = str(Path(sys.executable).with_name("ray")), folder / "ray.out"
    log = printed.open("w")
    nodes: list[subprocess.Popen[bytes]] = []

    def add(*options: str) -> None:
        command = [ray, "start", *options, "--num-cpus=1", "--block", "--disable-usage-stats"]
        nodes.append(subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True))

    def found() -> list[int]:
        if nodes[-1].poll() is not None:
            add(f"--address={address}")
        kinds = {pid: _command(pid) for node in nodes for pid in descendants(node.pid)}
        some = [pid for pid, said in kinds.items() if said.startswith("ray::_") or "spawn_main" in said]
        return [*some, *(pid for pid in descendants(nodes[-1].pid) if "/raylet" in kinds.get(pid, ""))] if some else []

    try:
        # Sockets have short names, and a token would be one of the user's home.
        with tempfile.TemporaryDirectory(prefix="ray-") as short, _environment({"RAY_AUTH_MODE": "disabled", **slow}):
            add("--head", "--port=0", "--include-dashboard=false", f"--temp-dir={short}")
            _wait(lambda: "--address='" in printed.read_text())
            address = re.findall(r"--address='([^']+)'", printed.read_text())[0]
            add(f"--address={address}")
            executor = Ray(address=address, losses=20)
            return _campaign(
                Place("ray", lambda i: str(folder / f"ray-store-{i}"), 3.0, executor, found), kills, folder
            )
    finally:
        for pid in [pid for node in nodes for pid in (*descendants(node.pid), node.pid)]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for node in nodes:
            node.wait()
        log.close()


def over_slurm(kills: int, folder: Path) -> Counts:
    """Kills over a SLURM of one node: processes of jobs, drivers, or both."""
    from datamodels.executors import Slurm
    from tests.slurm_cluster import cluster

    marker = f"SLURM_CONF={folder}/slurm/slurm.conf".encode()

    def found() -> list[int]:
        running = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                values = (process / "environ").read_bytes().split(b"\0")
                if marker in values and any(value.startswith(b"SLURM_JOB_ID=") for value in values):
                    running.append(int(process.name))
        return [pid for pid in running if "python" in _command(pid)]

    with cluster(folder / "slurm") as environment, _environment({**environment, "FAULTS_ROW_SECONDS": "0.04"}):
        executor = Slurm(time=5, warning=10, rows_per_job=50)
        return _campaign(
            Place("slurm", lambda i: str(folder / f"slurm-store-{i}"), 4.0, executor, found), kills, folder
        )


def descendants(pid: int) -> list[int]:
    return [one for child in children(pid) for one in (child, *descendants(child))]


def _command(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
    except OSError:
        return ""


def _wait(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + _PATIENCE
    while not condition():
        assert time.monotonic() < end, "it did not start in time"
        time.sleep(0.1)


@contextlib.contextmanager
def _environment(values: dict[str, str]) -> Iterator[None]:
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, old in before.items():
            os.environ.pop(name) if old is None else os.environ.__setitem__(name, old)


def table(results: list[Counts]) -> str:
    names = ["where", "kills", "of_workers", "of_drivers", "of_both", "processes", "campaigns", "gave_up", "stores", "rows", "lost",
             "wrong", "unverified", "orphans", "unfinished", "seconds"]  # fmt: skip
    lines = [[name.replace("_", " ") for name in names]]
    lines += [[f"{getattr(r, name):.0f}" if name != "where" else r.where for name in names] for r in results]
    return "\n".join("| " + " | ".join(line) + " |" for line in [lines[0], ["---"] * len(names), *lines[1:]])


_PLACES = {"local": over_local, "s3": over_s3, "ray": over_ray, "slurm": over_slurm}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, kills in (("local", 1000), ("s3", 100), ("ray", 100), ("slurm", 100)):
        parser.add_argument(f"--{name}", type=int, default=kills, metavar="KILLS", help=f"{kills} unless told")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="faults-") as folder:
        results = []
        for name, over in _PLACES.items():
            if kills := getattr(given, name):
                results.append(over(kills, Path(folder)))
    print(json.dumps({r.where: asdict(r) for r in results}) if given.json else table(results))
    for result in results:
        for surprise in result.surprises:
            print(surprise, file=sys.stderr)
    sys.exit(0 if all(result.ok for result in results) else 1)


if __name__ == "__main__":
    main()
