"""Campaigns: the executor contract, faults of workers, interrupts, and two drivers on one store."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.design import Design
from datamodels.errors import MissingClassWarning, RequestError, TaskChangedWarning
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.task import labels_known
from tests import tasks
from tests.executor_contract import ExecutorContract

ROOT = Path(__file__).parent.parent
NewStore = Callable[..., Store]


class TestInlineExecutor(ExecutorContract):
    executor = "inline"


class TestLocalExecutor(ExecutorContract):
    executor = "local"
    options = {"jobs": 2}  # noqa: RUF012


def arrays_of(store: Store) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in sorted(store.path.glob("*.npy"))}


def test_stores_are_equal_to_the_byte_whatever_the_way(new_store: NewStore) -> None:
    """One worker, two, blocks, or an interrupted run that went on: the same files."""
    stores = [new_store(60, f"s{i}") for i in range(4)]
    train(stores[0], tasks.good, executor="inline")
    train(stores[1], tasks.good, jobs=2)
    train(stores[2], tasks.good_blocks, jobs=2)
    for row in (59, 0, 31):
        stores[3].write_row(row, tasks.good(row, stores[3].design.mask(row), stores[3].design.rng(row)))
    train(stores[3], tasks.good, jobs=1)
    first = arrays_of(stores[0])
    assert set(first) == {"margins.npy", "masks.npy", "_completed.npy", "_checksum.npy"}
    for other in stores[1:]:
        assert arrays_of(other) == first


def test_a_row_that_takes_too_long_is_stopped(new_store: NewStore) -> None:
    store = new_store(12)
    summary = train(store, tasks.hangs_on_three, jobs=2, timeout=1.0)
    assert summary.failed == [3]
    assert summary.done == 11
    assert summary.seconds < 30
    assert "longer than the limit of 1 seconds" in store.failure_log(3)


def test_a_worker_that_dies_is_replaced_and_only_its_row_fails(new_store: NewStore) -> None:
    store = new_store(12)
    summary = train(store, tasks.dies_on_three, jobs=1)
    assert summary.failed == [3]
    assert summary.done == 11
    assert "signal SIGKILL" in store.failure_log(3)


def test_a_row_that_was_written_before_its_worker_died_is_no_failure(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(12)
    monkeypatch.setenv("STORE", str(store.path))
    summary = train(store, tasks.dies_once_three_is_written, jobs=1)
    assert (summary.ok, summary.failed, summary.done, summary.there) == (True, [], 11, 1)
    assert store.failures() == {}


def test_a_campaign_whose_first_rows_all_fail_is_stopped(
    new_store: NewStore, capsys: pytest.CaptureFixture[str]
) -> None:
    """That rows failed is said without progress, too."""
    store = new_store(200)
    summary = train(store, tasks.forgets_to_return, jobs=2, progress=False)
    assert 20 <= len(summary.failed) < 200
    assert summary.stopped == f"stopped, since the first {len(summary.failed)} rows all failed"
    (said,) = capsys.readouterr().err.splitlines()
    assert said.startswith("trained 0 rows in ")
    assert said.endswith(f".log); {summary.stopped}")
    assert summary.pending == 200 - len(summary.failed)
    assert not summary.ok


@pytest.mark.parametrize("labels", [[[1, 2], [3]], [1, None] * 3, np.linspace(0, 1, 6), np.arange(5)])
def test_labels_of_a_task_that_are_none_are_passed_over(labels: Any) -> None:
    def task(index: int) -> None: ...

    task.labels = labels  # type: ignore[attr-defined]
    assert labels_known(task, 6) is None
    task.labels = np.arange(6) % 2  # type: ignore[attr-defined]
    np.testing.assert_array_equal(labels_known(task, 6), [0, 1] * 3)


def test_another_version_of_the_task_is_noticed(new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(4)
    for version, scale in enumerate((1, 1, 2)):
        file = tmp_path / f"versions{version}.py"
        file.write_text(f"def main(index): return {{'margins': [{scale}] * 4}}\n")
        import importlib.util

        spec = importlib.util.spec_from_file_location("versions", file)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        if scale == 2:
            with pytest.warns(TaskChangedWarning, match="versions:main"):
                train(store, module.main, executor="inline")
        else:
            train(store, module.main, executor="inline")


def test_workers_are_reused_between_rows(new_store: NewStore) -> None:
    store = new_store(60)
    train(store, tasks.process_id, jobs=2)
    ids = set(np.asarray(store.array("margins"))[:, 0].astype(int).tolist())
    assert 1 <= len(ids) <= 2
    assert os.getpid() not in ids


def test_workers_use_the_threads_they_are_told(new_store: NewStore) -> None:
    before = os.environ.get("OMP_NUM_THREADS")
    one, three = new_store(2, "one"), new_store(2, "three")
    train(one, tasks.thread_settings, jobs=1)
    train(three, tasks.thread_settings, jobs=1, threads=3)
    np.testing.assert_array_equal(one.array("margins")[:, :2], 1)
    np.testing.assert_array_equal(three.array("margins")[:, :2], 3)
    assert os.environ.get("OMP_NUM_THREADS") == before


def test_subsets_that_lack_a_class_are_reported(tmp_path: Path) -> None:
    design = Design(n_train=6, alpha=0.34, n_models=40, seed=0)
    store = Store.create(
        tmp_path / "s",
        schema={"margins": {"shape": (4,), "dtype": "float32"}},
        design=design,
        labels=[0, 0, 0, 1, 1, 1],
    )
    lacking = [i for i in range(40) if len({int(j >= 3) for j in np.flatnonzero(design.mask(i))}) < 2]
    assert lacking
    with pytest.warns(MissingClassWarning, match=f"{len(lacking)} training subsets lack a class"):
        summary = train(store, tasks.good, executor="inline")
    assert summary.subsets_without_class == lacking


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"jobs": 0}, "jobs is 0"),
        ({"timeout": 0.0}, "timeout is 0"),
        ({"threads": 0}, "threads is 0"),
        ({"executor": "inline", "jobs": 2}, "no meaning"),
        ({"retries": -1}, "retries is -1"),
        ({"executor": "cloud"}, "'cloud' is unknown; legal: local, inline"),
    ],
)
def test_bad_options_say_what_is_legal(new_store: NewStore, options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        train(new_store(2), tasks.good, **options)


def start(store: Store, task: str, tmp_path: Path, jobs: int = 2) -> subprocess.Popen[str]:
    environment = {**os.environ, "PID_FOLDER": str(tmp_path / "pids")}
    (tmp_path / "pids").mkdir(exist_ok=True)
    command = [sys.executable, "-m", "datamodels", "train", str(store.path), "--task", task, "--jobs", str(jobs)]
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stderr=subprocess.PIPE, text=True, start_new_session=True
    )


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.02)


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


def test_ctrl_c_ends_cleanly_and_the_next_run_goes_on(new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(1500)
    driver = start(store, "tests.tasks:slow_good", tmp_path)
    wait_for(lambda: bool(store.completed().any()))
    os.killpg(driver.pid, signal.SIGINT)  # as a terminal does: to the driver and to its workers
    _, said = driver.communicate(timeout=20)
    assert driver.returncode == 1
    assert "Traceback" not in said
    assert "run it again to go on" in said
    done = int(store.completed().sum())
    assert 0 < done < 1500
    assert store.verify().ok
    assert not store.status().rows_per_second
    again = start(store, "tests.tasks:slow_good", tmp_path)
    again.communicate(timeout=60)
    assert again.returncode == 0
    whole = new_store(1500, "uninterrupted")
    train(whole, tasks.good, executor="inline")
    assert arrays_of(store) == arrays_of(whole)


def test_workers_end_when_their_driver_is_killed(new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(100)
    driver = start(store, "tests.tasks:sleeps", tmp_path)
    pids = tmp_path / "pids"
    wait_for(lambda: len(list(pids.iterdir())) == 2)
    driver.kill()
    driver.communicate()
    workers = [int(file.name) for file in pids.iterdir()]
    wait_for(lambda: not any(alive(pid) for pid in workers), seconds=5)
    assert store.verify().ok


def test_two_drivers_on_one_store_end_with_a_correct_store(new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(300)
    drivers = [start(store, "tests.tasks:slow_good", tmp_path) for _ in range(2)]
    for driver in drivers:
        driver.communicate(timeout=60)
        assert driver.returncode == 0
    whole = new_store(300, "one")
    train(whole, tasks.good, executor="inline")
    assert arrays_of(store) == arrays_of(whole)


def test_a_running_campaign_shows_in_the_status(new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(300)
    driver = start(store, "tests.tasks:slow_good", tmp_path)
    wait_for(lambda: bool(store.status().rows_per_second) and store.status().completed > 0)
    assert store.status().seconds_left > 0
    driver.communicate(timeout=60)
    status = store.status()
    assert status.completed == 300
    assert status.rows_per_second is None


def test_a_script_without_a_main_guard_is_told_so(new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(4)
    script = tmp_path / "script.py"
    script.write_text(
        f"import datamodels as dm, numpy as np\ndm.train({str(store.path)!r}, lambda index: {{'margins': np.zeros(4)}}, jobs=1)"
    )
    result = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=60)
    assert result.returncode != 0
    assert "__main__" in result.stderr
    assert result.stderr.count("Traceback") <= 3  # of the script itself, and of its two workers at most


def test_progress_in_plain_lines(new_store: NewStore, capsys: pytest.CaptureFixture[str]) -> None:
    from datamodels.progress import Progress, duration

    train(new_store(3), tasks.fails_on_three, executor="inline")
    said = capsys.readouterr()
    assert said.out == ""
    assert "trained 3 rows" in said.err
    bar = Progress("fitting", 100, "targets")
    with bar:
        bar._started -= 10
        bar._next_line = 0
        bar.advance(20, failed=5)
    first = capsys.readouterr().err.splitlines()[0]
    assert first == "fitting: 20/100, 5 failed, 2 targets/s, 38s left"
    assert [duration(x) for x in (5, 65, 3700, None)] == ["5s", "1m 05s", "1h 01m", "?"]


def test_a_task_that_only_workers_cannot_import_fails_its_rows(
    new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "half_broken.py").write_text(
        "import multiprocessing\nif multiprocessing.parent_process(): raise RuntimeError('no GPU here')\n"
        "def main(index): return {'margins': [0] * 4}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    store = new_store(6)
    summary = train(store, "half_broken:main", jobs=2)
    assert summary.failed == list(range(6))
    assert "no GPU here" in store.failure_log(0)


def test_the_time_limit_does_not_count_imports(
    new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "slow_import.py").write_text(
        "import multiprocessing, time\nif multiprocessing.parent_process(): time.sleep(1.2)\n"
        "def main(index): return {'margins': [0] * 4}\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    assert train(new_store(4), "slow_import:main", jobs=1, timeout=0.8).ok


def test_a_dead_worker_is_noticed_though_its_child_lives(new_store: NewStore) -> None:
    store = new_store(5)
    summary = train(store, tasks.forks_and_dies, jobs=1)
    assert summary.failed == [0]
    assert summary.done == 4
    assert summary.seconds < 5


def test_a_task_that_cannot_travel_is_refused(new_store: NewStore) -> None:
    import threading

    lock = threading.Lock()
    with pytest.raises(RequestError, match="cannot be sent to worker processes"):
        train(new_store(2), lambda index: lock, jobs=1)


def test_a_script_from_standard_input_works(new_store: NewStore) -> None:
    store = new_store(4)
    program = (
        "import datamodels as dm\n"
        "def main(index): return {'margins': [index] * 4}\n"
        f"if __name__ == '__main__': assert dm.train({str(store.path)!r}, main, jobs=1).ok\n"
    )
    subprocess.run([sys.executable, "-"], input=program, text=True, check=True, timeout=60)
    assert store.completed().all()


def test_json_of_train_is_one_object_whatever_tasks_print(new_store: NewStore) -> None:
    import json

    for executor in ("local", "inline"):
        store = new_store(3, executor)
        command = [sys.executable, "-m", "datamodels", "train", str(store.path), "--task", "tests.tasks:prints"]
        result = subprocess.run([*command, "--executor", executor, "--json"], cwd=ROOT, capture_output=True, text=True)
        assert json.loads(result.stdout)["done"] == 3
        assert result.stderr.count("hello from a child") == 3
        assert result.stderr.count("hello from Python") == 3


def test_two_drivers_share_the_work(new_store: NewStore, tmp_path: Path) -> None:
    store = new_store(300)
    driver = start(store, "tests.tasks:slow_good", tmp_path, jobs=1)
    wait_for(lambda: bool(store.completed().any()))
    summary = train(store, tasks.slow_good, jobs=1)
    driver.communicate(timeout=60)
    assert 0 < summary.done < 290
    assert store.completed().all()
