"""Faults of disks, for real: full, read-only and failing ones, and damaged files.

After each: nothing that was complete is lost, nothing wrong is marked complete, the message says what happened, and the next
run finishes the job.
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
import subprocess
import sys
import textwrap
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
from datamodels.training.campaign import train
from tests import tasks
from tests.fault_checks import FAULTS, SCHEMA, NewStore, holds, is_finished, said_by
from tests.test_campaign import ROOT, start, wait_for

pytestmark = FAULTS


# -- disks --------------------------------------------------------------------------------------------


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


# -- damage -------------------------------------------------------------------------------------------


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
    assert len(names) == 7
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
    # Remote stores do not keep the masks that their design says.
    local, remote = ("margins.npy", "masks.npy", "_checksum.npy"), ("margins/c/0/0", "_rows/c/0")
    for name in local if kind == "local" else remote:
        assert "mended" in seen[name], seen
    assert seen["_design_masks.npy"] == {"refused"}
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
