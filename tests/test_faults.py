"""Faults, for real: kills, full, read-only and failing disks, damaged files, lost power, clocks that jump, networks that fail.

After each: nothing that was complete is lost, nothing wrong is marked complete, the message says what happened, and the next
run finishes the job. The long version of the kills is `tests.fault_campaign` (`make faults`).
"""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.cli import main as command
from datamodels.design import Design
from datamodels.errors import DatamodelsError, StoreError
from datamodels.store import Store, array
from datamodels.store import npy as npy_module
from datamodels.store.remote import RemoteStore
from datamodels.training.campaign import train
from tests import tasks
from tests.fault_campaign import children
from tests.s3 import S3, Faults, proxy
from tests.test_campaign import ROOT, start, wait_for

pytestmark = [
    pytest.mark.faults,
    pytest.mark.filterwarnings(
        "ignore::datamodels.errors.TaskChangedWarning"
    ),  # tasks that differ in their speed alone
]
NewStore = Callable[..., Store]
SCHEMA = {"margins": {"shape": (4,), "dtype": "float32"}}


def right(store: Store, rows: Any) -> np.ndarray:
    """What `tasks.good` writes into rows."""
    design = store.design
    return np.array([tasks.good(i, design.mask(i), design.rng(i))["margins"] for i in map(int, rows)], np.float32)


def holds(store: Store) -> np.ndarray:
    """The complete rows, after a look at each."""
    done = np.flatnonzero(store.completed())
    np.testing.assert_array_equal(np.asarray(store.array("margins")[done]), right(store, done).reshape(-1, 4))
    return done


def is_finished(store: Store) -> None:
    assert len(holds(store)) == store.n_models
    assert store.verify().ok


def said_by(driver: subprocess.Popen[str], status: int) -> str:
    said = driver.communicate(timeout=60)[1]
    assert driver.returncode == status, said
    assert "Traceback" not in said
    return said


# -- kills ----------------------------------------------------------------------------------------------


def test_kills_at_random_moments_lose_and_forge_nothing() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "tests.fault_campaign", "--local", "20", "--s3", "4", "--ray", "0", "--slurm", "0", "--json"],
        capture_output=True, text=True, cwd=ROOT,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    counts = json.loads(result.stdout)
    for where, kills in (("local", 20), ("s3", 4)):
        assert counts[where]["kills"] >= kills
        for nothing in ("lost", "wrong", "unverified", "orphans", "unfinished"):
            assert counts[where][nothing] == 0, nothing


def test_killed_workers_fail_their_rows_and_the_next_run_trains_them(new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(400)
    driver = start(store, "tests.tasks:slow_good", tmp_path)
    for share in (0.05, 0.2, 0.4):
        wait_for(lambda share=share: store.completed().mean() > share)
        python = [pid for pid in children(driver.pid) if b"spawn_main" in Path(f"/proc/{pid}/cmdline").read_bytes()]
        os.kill(random.choice(python), signal.SIGKILL)
    assert "failed (log of the first: " in said_by(driver, 1)
    failed = [row for row in store.failures() if not store.completed()[row]]
    assert 1 <= len(failed) <= 3
    assert "the worker process ended with signal SIGKILL while it ran this row" in store.failure_log(failed[0])
    assert len(holds(store)) == 400 - len(failed)
    assert train(store, tasks.good, executor="inline", progress=False).done == len(failed)
    is_finished(store)
    assert store.failures() == {}


def test_two_drivers_write_each_row_once_and_one_goes_on_when_the_other_is_killed(
    new_store: NewStore, tmp_path: Path
) -> None:
    store = new_store(300)
    program = [
        sys.executable,
        "-m",
        "datamodels",
        "train",
        str(store.path),
        "--task",
        "tests.tasks:slow_good",
        "--json",
    ]
    drivers = [subprocess.Popen([*program, "--jobs", "1"], cwd=ROOT, stdout=subprocess.PIPE) for _ in range(2)]
    counts = [json.loads(driver.communicate(timeout=60)[0]) for driver in drivers]
    assert sum(one["done"] for one in counts) == 300
    assert all(one["ok"] for one in counts)
    is_finished(store)
    other = new_store(300, "other")
    killed, stays = (
        start(other, "tests.tasks:slow_good", tmp_path, 1),
        start(other, "tests.tasks:slow_good", tmp_path, 1),
    )
    wait_for(lambda: other.completed().sum() > 20)
    killed.kill()
    killed.communicate()
    said_by(stays, 0)
    is_finished(other)


# -- disks ----------------------------------------------------------------------------------------------


def test_a_limit_on_file_size_fails_the_rows_behind_it(new_store: NewStore) -> None:
    """As a disk that is full behind a point: files are allocated, so it takes a limit that comes later."""
    store = new_store(600)
    limited = textwrap.dedent(
        """
        import resource, sys
        from datamodels.cli import main
        if __name__ == "__main__":
            resource.setrlimit(resource.RLIMIT_FSIZE, (8192, resource.RLIM_INFINITY))
            main(sys.argv[1:])
        """
    )
    order = ["train", str(store.path), "--task", "tests.tasks:good", "--jobs", "1"]
    result = subprocess.run([sys.executable, "-c", limited, *order], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 1
    assert "Traceback" not in result.stderr
    assert "File too large; the rows of this write stay incomplete" in result.stderr
    fit = (8192 - store._arrays["margins"].offset) // 16
    np.testing.assert_array_equal(holds(store), np.arange(fit))
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY
    assert train(store, tasks.good, executor="inline", progress=False).done == 600 - fit
    is_finished(store)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"cannot mount a tmpfs here: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path) -> Path:
    file = disk / "ballast"
    with file.open("wb", buffering=0) as ballast, contextlib.suppress(OSError):
        while True:
            ballast.write(bytes(512))
    return file


def test_a_full_disk_stops_no_rows_that_have_their_room(disk: Path, capsys: pytest.CaptureFixture[str]) -> None:
    design = Design(n_train=12, alpha=0.5, n_models=60, seed=3)
    store = Store.create(disk / "store", schema=SCHEMA, design=design)
    ballast = fill(disk)
    with pytest.raises(StoreError, match=r"No space left on device; nothing was left behind"):
        Store.create(disk / "another", schema=SCHEMA, design=design)
    with pytest.raises(StoreError, match=r"cannot extend .* No space left on device.*it still has 60 models"):
        store.extend(50_000)
    summary = train(store, tasks.fails_on_three, executor="inline")
    assert summary.failed == [3]
    assert summary.done == 59
    said = capsys.readouterr().err
    assert "No space left on device" in said
    assert "the campaign goes on, but `datamodels status` does not see it" in said
    assert said.count("the campaign goes on") == 1
    assert "row 3 failed: ZeroDivisionError: three is not allowed (log: none, cannot write" in said
    assert store.verify().ok
    ballast.unlink()
    store.forget(np.arange(60))
    train(store, tasks.good, executor="inline", progress=False)
    is_finished(store)
    store.extend(10)
    train(store, tasks.good, executor="inline", progress=False)
    is_finished(Store.open(store.path))


def test_a_disk_that_becomes_read_only_fails_what_is_left(disk: Path, tmp_path: Path) -> None:
    store = Store.create(disk / "store", schema=SCHEMA, design=Design(n_train=12, alpha=0.5, n_models=500, seed=3))
    driver = start(store, "tests.tasks:slow_good", tmp_path, jobs=1)
    wait_for(lambda: store.completed().any())
    wait_for(  # it is refused while a file is open for writing
        lambda: subprocess.run(["mount", "-o", "remount,ro", str(disk)], capture_output=True).returncode == 0
    )
    before = holds(store)
    assert "Read-only file system" in said_by(driver, 1)
    np.testing.assert_array_equal(holds(store), before)
    assert 0 < len(before) < 500
    subprocess.run(["mount", "-o", "remount,rw", str(disk)], check=True)
    assert train(store, tasks.good, executor="inline", progress=False).done == 500 - len(before)
    is_finished(store)


class Failing:
    """Stands in for what writes or flushes: calls number `first` up to `last` end with an error of the device."""

    def __init__(self, real: Callable[..., None], count: Iterator[int], first: int, last: int) -> None:
        self.real, self.count, self.first, self.last = real, count, first, last
        self.failed = False

    def __call__(self, *given: Any) -> None:
        if self.first <= next(self.count) <= self.last:
            self.failed = True
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        self.real(*given)


@pytest.mark.parametrize("lasting", [False, True], ids=["one call", "all from one on"])
def test_any_write_or_flush_may_fail(new_store: NewStore, monkeypatch: pytest.MonkeyPatch, lasting: bool) -> None:
    for first in itertools.count():
        store = new_store(3, f"store-{first}")
        count, failed = itertools.count(), False
        with monkeypatch.context() as patch:
            for name in ("pwrite", "flush"):
                failing = Failing(getattr(array, name), count, first, 10**9 if lasting else first)
                for module in (array, npy_module):
                    patch.setattr(module, name, failing)
            summary = train(store, tasks.good, executor="inline", progress=False)
            failed = next(count) > first
        done = holds(store)
        assert store.verify().ok
        if lasting and failed and len(done) < 3:
            assert not summary.ok
            assert "Input/output error; the rows of this write stay incomplete" in store.failure_log(summary.failed[0])
        assert train(store, tasks.good, executor="inline", progress=False).ok
        is_finished(store)
        if not failed:
            assert first > 10
            return


def test_a_disk_that_cannot_be_read_is_an_error_and_ends_no_process(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(3)
    real = Path.open

    class Unreadable:
        def __init__(self, file: Any) -> None:
            self.file = file

        def __enter__(self) -> Unreadable:
            return self

        def __exit__(self, *_: object) -> None:
            self.file.close()

        def seek(self, *_: object) -> None: ...

        def read(self, *_: object) -> bytes:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(
        Path, "open", lambda path, *a: Unreadable(real(path, *a)) if path.stem == "_completed" else real(path, *a)
    )
    with pytest.raises(StoreError, match=r"cannot read .*_completed\.npy': Input/output error"):
        store.status()
    monkeypatch.undo()
    os.truncate(store.path / "_completed.npy", 129)
    with pytest.raises(StoreError, match=r"_completed\.npy is truncated: 129 bytes, 3 rows need 131"):
        store.status()


# -- damage ---------------------------------------------------------------------------------------------


def whole_store(place: str | Path) -> Store:
    masks = np.stack([Design(n_train=12, alpha=0.5, n_models=20, seed=3).mask(i) for i in range(20)])
    store = Store.create(place, schema=SCHEMA, design=Design.explicit(masks, seed=3), labels=np.arange(12) % 2)
    assert train(store, tasks.good, executor="inline", progress=False).done == 20
    return store


def is_mended(place: str, name: str) -> str:
    """Damage is refused by an error, whose text this returns, or found by a verification; then the next run makes the store
    whole."""
    try:
        store = Store.open(place)
        bad = store.verify().bad_rows
        store.forget(bad)
        assert train(store, tasks.good, executor="inline", progress=False).ok
    except DatamodelsError as error:
        return str(error)
    is_finished(store)
    return "mended" if bad else "harmless"


def flipped(data: bytes, rng: random.Random) -> bytes:
    at = rng.randrange(len(data))
    return data[:at] + bytes([data[at] ^ (1 << rng.randrange(8))]) + data[at + 1 :]


@pytest.mark.filterwarnings("ignore::datamodels.errors.MissingClassWarning")
@pytest.mark.parametrize("kind", ["local", "file"])
def test_damage_to_any_file_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    monkeypatch.setenv("DATAMODELS_LEASE", "0.2")  # a damaged state may look like a claim
    whole = tmp_path / "whole"
    whole_store(whole if kind == "local" else whole.as_uri())
    shutil.rmtree(whole / "campaigns")
    names = sorted(str(file.relative_to(whole)) for file in whole.rglob("*") if file.is_file() and file.name != ".lock")
    assert len(names) == (7 if kind == "local" else 9)
    seen: dict[str, set[str]] = {}
    for name in names:
        data, rng = (whole / name).read_bytes(), random.Random(name)
        flips = 25 if kind == "local" else 10
        used = 160 if name == "_rows/c/0" else len(data)  # of its chunk of many rows
        damages = [
            *(flipped(data[:used], rng) + data[used:] for _ in range(flips)),
            data[: len(data) // 2],
            data[:-1],
            b"",
            None,
        ]
        for number, damaged in enumerate(damages):
            place = tmp_path / "damaged"
            shutil.copytree(whole, place)
            if damaged is None:
                (place / name).unlink()
            else:
                (place / name).write_bytes(damaged)
            outcome = is_mended(str(place) if kind == "local" else place.as_uri(), name)
            if outcome not in ("mended", "harmless"):
                assert Path(name).name in outcome or "there is no store" in outcome
                outcome = "refused"
            seen.setdefault(name, set()).add(outcome)
            if number == flips and "_labels" not in name:  # half of it
                assert outcome in ("refused", "mended"), name
            shutil.rmtree(place)
    data_files = (
        ("margins.npy", "masks.npy", "_checksum.npy")
        if kind == "local"
        else ("margins/c/0/0", "masks/c/0/0", "_rows/c/0")
    )
    for name in data_files:
        assert "mended" in seen[name], seen
    assert "refused" in seen["store.json" if kind == "local" else "zarr.json"]


def test_verify_forget_train_is_what_the_messages_say(new_store: NewStore, capsys: pytest.CaptureFixture[str]) -> None:
    store = new_store(30)
    train(store, tasks.good, executor="inline", progress=False)
    with (store.path / "margins.npy").open("r+b") as file:
        for row in (4, 17):
            file.seek(store._arrays["margins"].offset + 16 * row)
            file.write(b"\x55\x55")

    def status_of(*arguments: str) -> tuple[int, dict[str, Any]]:
        with pytest.raises(SystemExit) as ended:
            command([*arguments, "--json"])
        return int(ended.value.code or 0), json.loads(capsys.readouterr().out)

    status, found = status_of("verify", str(store.path))
    assert (status, found["bad_rows"]) == (1, [4, 17])
    status_of("verify", str(store.path), "--forget")
    assert np.flatnonzero(~store.completed()).tolist() == [4, 17]
    status, found = status_of("train", str(store.path), "--task", "tests.tasks:good", "--executor", "inline")
    assert (status, found["done"]) == (0, 2)
    assert status_of("verify", str(store.path))[0] == 0
    is_finished(store)


# -- clocks ---------------------------------------------------------------------------------------------

_real_time = time.time


def jumping() -> float:
    """A clock that is years before or after the right time at every look."""
    return _real_time() + random.choice((-1, 1)) * random.uniform(0, 3e8)


def good_in_a_process_whose_clock_jumps(index: int, mask: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    time.time = jumping
    return tasks.slow_good(index, mask, rng)


def test_campaigns_do_not_mind_clocks_that_jump(
    new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(time, "time", jumping)
    remote = Store.create((tmp_path / "remote").as_uri(), schema=SCHEMA, design=new_store(60, "x").design)
    for store in (new_store(60), remote):
        summary = train(store, good_in_a_process_whose_clock_jumps, jobs=2, timeout=10, retries=1, progress=False)
        assert summary.ok
        assert summary.seconds < 15
        is_finished(store)
        assert store.status().completed == 60
    assert train(new_store(3, "retried"), tasks.fails_until_told, executor="inline", retries=2, progress=False).ok


def test_claims_end_by_no_clock_that_jumps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATAMODELS_LEASE", "0.4")
    store = Store.create(
        f"memory://{uuid.uuid4().hex}", schema=SCHEMA, design=Design(n_train=12, alpha=0.5, n_models=20, seed=3)
    )
    assert isinstance(store, RemoteStore)
    store.write_row(0, {"margins": right(store, [0])[0]})
    data, tag = store._objects.read("_rows/c/0")
    state = np.frombuffer(data, "<u8").copy()
    state[1:5] = np.uint64(1) << np.uint64(32) | np.uint64(77)  # as a writer that died leaves it
    store._objects.replace("_rows/c/0", state.tobytes(), tag)
    monkeypatch.setattr(time, "time", jumping)
    started = time.monotonic()
    assert train(store, tasks.good, executor="inline", progress=False).ok
    assert 0.3 < time.monotonic() - started < 5
    is_finished(store)


def test_a_beat_from_the_future_is_no_running_campaign(new_store: NewStore) -> None:
    store = new_store(3)
    store.heartbeat("before", {"updated": time.time() + 7200, "rows_per_second": 5.0, "running": True})
    assert store.status().rows_per_second is None
    store.heartbeat("now", {"updated": time.time() + 5, "rows_per_second": 5.0, "running": True})
    assert store.status().rows_per_second == 5.0


# -- networks -------------------------------------------------------------------------------------------


def test_drivers_on_object_storage_are_killed_while_the_network_fails(
    s3: S3, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    address = f"{s3.bucket()}/run"
    store = Store.create(address, schema=SCHEMA, design=Design(n_train=12, alpha=0.5, n_models=300, seed=3))
    faults = Faults(refused=0.04, lost_before=0.04, lost_after=0.04, cut=0.04, slow=0.04)
    rng, seen = random.Random(5), np.empty(0, np.int64)
    with proxy(s3, faults) as worse, monkeypatch.context() as environment:
        environment.setenv("AWS_ENDPOINT_URL", worse.url)
        environment.setenv("DATAMODELS_LEASE", "1")
        for _ in range(2):
            driver = start(store, "tests.tasks:slow_good", tmp_path)
            before = store.completed().sum()
            wait_for(lambda before=before: store.completed().sum() > before)
            time.sleep(rng.uniform(0, 0.5))
            driver.kill()
            driver.communicate()
            done = holds(store)
            assert set(seen) <= set(done)
            seen = done
        assert 0 < len(seen) < 300
        said_by(start(store, "tests.tasks:slow_good", tmp_path), 0)
        assert min(faults.counts.get(name, 0) for name in ("refused", "lost_before", "lost_after", "cut")) > 0
        through = Store.open(address)  # a reader meets the faults too
        np.testing.assert_array_equal(np.asarray(through.array("margins")), right(store, range(300)))
    is_finished(store)


# -- lost power -----------------------------------------------------------------------------------------

Event = tuple[Any, ...]


@contextlib.contextmanager
def recorded(events: list[Event], patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Note every write, growth, flush and replacement of files of stores, in their order."""
    real_write, real_flush, real_reserve, real_meta = array.pwrite, array.flush, array.reserve, npy_module._write_meta

    def name(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def write(fd: int, data: bytes, position: int) -> None:
        events.append(("write", name(fd), position, bytes(data)))
        real_write(fd, data, position)

    def reserve(fd: int, size: int) -> None:
        events.append(("write", name(fd), os.fstat(fd).st_size, bytes(max(0, size - os.fstat(fd).st_size))))
        real_reserve(fd, size)

    def flush(fd: int) -> None:
        events.append(("flush", name(fd)))
        real_flush(fd)

    def meta(path: Path, content: Any) -> None:
        real_meta(path, content)
        events.append(("replace", "store.json", (path / "store.json").read_bytes()))

    with patch.context() as inner:
        for what, spy in (("pwrite", write), ("flush", flush), ("reserve", reserve)):
            inner.setattr(array, what, spy)
            if hasattr(npy_module, what):
                inner.setattr(npy_module, what, spy)
        inner.setattr(npy_module, "_write_meta", meta)
        yield


def images(before: dict[str, bytes], events: list[Event]) -> Iterator[tuple[int, dict[str, bytes]]]:
    """What a disk may hold when power is lost after each event: all that was flushed, and of the rest any part in any order,
    also half of a write."""
    durable = {name: bytearray(data) for name, data in before.items()}
    pending: list[Event] = []
    seen: set[int] = set()
    for number, event in enumerate([("start",), *events]):
        if event[0] == "write":
            half = len(event[3]) // 2
            parts = [(event[2], event[3][:half]), (event[2] + half, event[3][half:])]
            pending += [(event[1], *part) for part in parts if part[1]]
        elif event[0] == "flush":
            for one in [one for one in pending if one[0] == event[1]]:
                _apply(durable, one)
            pending = [one for one in pending if one[0] != event[1]]
        elif event[0] == "replace":
            durable[event[1]] = bytearray(event[2])
        for kept in itertools.product((False, True), repeat=len(pending)):
            image = {name: bytearray(data) for name, data in durable.items()}
            for one in itertools.compress(pending, kept):
                _apply(image, one)
            found = {name: bytes(data) for name, data in image.items()}
            key = hash((number, tuple(found.values())))
            if key not in seen:
                seen.add(key)
                yield number, found


def _apply(files: dict[str, bytearray], write: tuple[str, int, bytes]) -> None:
    name, position, data = write
    files[name].extend(bytes(max(0, position + len(data) - len(files[name]))))
    files[name][position : position + len(data)] = data


def shifted(index: int, mask: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    return {"margins": tasks.good(index, mask, rng)["margins"] + 100}


def history(store: Store, patch: pytest.MonkeyPatch) -> tuple[list[Event], list[tuple[int, set[int]]]]:
    """What a store lives through, and after which event which rows must stay complete (during what follows, too)."""
    events: list[Event] = []
    safe: list[tuple[int, set[int]]] = []
    with recorded(events, patch):
        train(store, tasks.good_blocks, executor="inline", progress=False, rows=slice(0, 10))
        safe.append((len(events), {0, 1, *range(5, 10)}))
        store.write_rows([2, 3, 4], {"margins": right(store, [2, 3, 4]) + 100}, overwrite=True)
        safe.append((len(events), set(range(8))))
        store.forget([8, 9])
        safe.append((len(events), set(range(8))))
        store.extend(4)
        safe.append((len(events), set(range(8))))
        train(store, tasks.good, executor="inline", progress=False)
        safe.append((len(events), set(range(store.n_models))))
    return events, safe


def problems(
    before: dict[str, bytes], events: list[Event], safe: list[tuple[int, set[int]]], folder: Path
) -> list[str]:
    """What is wrong with any image: a complete row with other bytes, or a row that is lost; and how many images there were."""
    found, count = [], 0
    for number, image in images(before, events):
        count += 1
        for name, data in image.items():
            (folder / name).write_bytes(data)
        store = Store.open(folder)
        done = np.flatnonzero(store.completed())
        values, good = np.asarray(store.array("margins")[done]), right(store, done).reshape(-1, 4)
        new = np.isin(done, [2, 3, 4])
        wrong = ~((values == good).all(axis=1) | (new & (values == good + 100).all(axis=1)))
        must = next((rows for after, rows in reversed(safe) if after <= number), set())
        if wrong.any() or not store.verify().ok:
            found.append(f"after event {number}: row {done[wrong]} is wrong")
        if must - set(done.tolist()):
            found.append(f"after event {number}: rows {must - set(done.tolist())} are lost")
    assert count > 100
    return found


def test_lost_power_at_any_moment_shows_no_wrong_row(
    new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(12)
    before = {file.name: file.read_bytes() for file in store.path.iterdir() if file.is_file()}
    events, safe = history(store, monkeypatch)
    (tmp_path / "image").mkdir()
    assert problems(before, events, safe, tmp_path / "image") == []
    assert Store.open(store.path).n_models == 16
    # That this would be seen: without the flushes of data, a mark may be on disk before what it marks.
    careless = [event for event in events if event != ("flush", "margins.npy")][: safe[0][0]]
    assert any("is wrong" in one for one in problems(before, careless, [], tmp_path / "image"))
