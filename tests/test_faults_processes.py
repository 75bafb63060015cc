"""Faults of processes, clocks and networks, for real: kills, clocks that jump, connections that fail.

After each: nothing that was complete is lost, nothing wrong is marked complete, the message says what happened, and the next
run finishes the job. The long version of the kills is `tests.fault_campaign` (`make faults`).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.design import Design
from datamodels.store import Store
from datamodels.store.remote import RemoteStore
from datamodels.training.campaign import train
from tests import tasks
from tests.fault_campaign import children
from tests.fault_checks import FAULTS, SCHEMA, NewStore, holds, is_finished, right, said_by
from tests.s3 import S3, Faults, proxy
from tests.test_campaign import ROOT, start, wait_for

pytestmark = FAULTS


# -- kills --------------------------------------------------------------------------------------------


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


# -- clocks -------------------------------------------------------------------------------------------

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


# -- networks -----------------------------------------------------------------------------------------


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
