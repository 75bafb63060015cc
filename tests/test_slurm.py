"""The SLURM executor, the generated job file, and arrays of classic workers, on a real SLURM of one node."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.errors import RequestError
from datamodels.executors import Slurm, executor_named, slurm_queue
from datamodels.store import Store
from datamodels.training.campaign import Summary, train
from tests import slurm_cluster, tasks
from tests.executor_contract import ExecutorContract

NewStore = Callable[..., Store]

NOTED = """
import os, time
def main(index, mask, rng):
    with open("ran.txt", "a") as file:
        file.write(f"{index} {os.environ.get('SLURM_RESTART_COUNT', 0)}\\n")
    if "SLURM_RESTART_COUNT" not in os.environ:
        time.sleep(float(os.environ.get("ROW_SECONDS", 0)))
    return {"margins": rng.normal(size=4).astype("float32") + mask.sum()}
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    lacking = slurm_cluster.missing()
    if lacking:
        pytest.skip(f"needs {', '.join(lacking)}")
    with pytest.MonkeyPatch.context() as patch, slurm_cluster.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        for name, value in environment.items():
            patch.setenv(name, value)
        yield


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which drivers and jobs run, with a task that notes its rows in ``ran.txt``."""
    (tmp_path / "noted.py").write_text(NOTED)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def check(store: Store) -> None:
    """No row is lost, and none is wrong."""
    expected = [tasks.good(i, store.design.mask(i), store.design.rng(i))["margins"] for i in range(store.n_models)]
    np.testing.assert_array_equal(store.array("margins"), np.array(expected, dtype=np.float32))
    assert store.completed().all()
    assert store.verify().ok


def times_run(folder: Path) -> Counter[int]:
    return Counter(int(line.split()[0]) for line in (folder / "ran.txt").read_text().splitlines())


def wait_for(condition: Callable[[], Any], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


class Driver:
    """``datamodels train`` with SLURM, in a process of its own."""

    def __init__(self, store: Store, *options: str, row_seconds: float, rows: str = ":") -> None:
        self.log = store.path.parent / f"driver-{time.monotonic_ns()}.log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "datamodels", "train", str(store.path), "--task", "noted:main", "--executor", "slurm", "--rows", rows,
                 *(word for option in options for word in ("--executor-option", option))],
                env={**os.environ, "ROW_SECONDS": str(row_seconds)}, stderr=log, stdout=log, start_new_session=True,
            )  # fmt: skip

    @property
    def said(self) -> str:
        return self.log.read_text()

    def ends(self, status: int) -> str:
        assert self.process.wait(90) == status, self.said
        return self.said


def job_numbers() -> list[str]:
    text = subprocess.run(["squeue", "--noheader", "--format=%F"], capture_output=True, text=True, check=True).stdout
    return sorted(set(text.split()))


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
class TestSlurmExecutor(ExecutorContract):
    executor = "slurm"
    # Ten jobs that differ by what happens in a worker process, which is that of LocalExecutor; one of them is below.
    test_results_of_the_wrong_form_are_said = None
    test_a_failed_row_is_logged_and_the_others_are_done = None

    def test_a_row_that_fails_brings_its_traceback(self, new_store: NewStore) -> None:
        store = new_store(10)
        summary = self.train(store, tasks.fails_on_three)
        assert (summary.done, summary.failed) == (9, [3])
        assert "ZeroDivisionError: three is not allowed" in store.failure_log(3)

    def test_what_tasks_print_is_kept_from_standard_output(
        self, new_store: NewStore, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """It is in the log of the job."""
        store = new_store(2)
        assert self.train(store, lambda index: print("hello") or tasks.good_values()).ok
        assert "hello" not in "".join(capfd.readouterr())
        assert sum("hello" in log.read_text() for log in store.path.glob("slurm/*/*.err")) == 1


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
class TestCampaigns:
    def train(self, store: Store, **settings: Any) -> Summary:
        return train(store, "noted:main", executor=Slurm(**settings))

    def test_rows_are_shared_by_the_jobs_of_one_array(self, new_store: NewStore, folder: Path) -> None:
        """No more of them than an array may have, which is 6 here."""
        store = new_store(60)
        assert self.train(store, rows_per_job=3).done == 60
        check(store)
        record = json.loads(next(store.path.glob("slurm/*/submission.json")).read_text())
        assert [sum(map(len, share)) for share in record["shares"]] == [10] * 6
        assert record["ended"]
        assert set(times_run(folder).values()) == {1}

    def test_jobs_last_as_long_as_they_are_meant_to(self, new_store: NewStore, folder: Path) -> None:
        """A first job measures rows, and what is known of them the next run uses at once."""
        store = new_store(70)
        assert self.train(store).done == 70
        store.extend(200)
        assert self.train(store, seconds_per_job=1000.0).done == 200
        check(store)
        sizes = [
            [sum(map(len, share)) for share in json.loads(file.read_text())["shares"]]
            for file in sorted(store.path.glob("slurm/*/submission.json"))
        ]
        assert sizes == [[64], [6], [200]]  # rows of no time: a minute has place for all of them

    def test_a_job_that_is_out_of_time_does_the_rest_when_it_is_queued_again(
        self, new_store: NewStore, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The notice is given 30 seconds after the job begins, or up to 30 later, since SLURM looks twice a minute:
        late enough for a row of a slow machine, and long before the last row of 120."""
        store = new_store(120)
        monkeypatch.setenv("ROW_SECONDS", "1")
        summary = self.train(store, rows_per_job=120, time=2, warning=90)
        assert summary.ok
        check(store)
        restarts = [line.split()[1] for line in (folder / "ran.txt").read_text().splitlines()]
        assert set(restarts) == {"0", "1"}
        assert sum(times_run(folder).values()) <= 121  # the row that was running began again
        assert "were stopped and are queued again" in capsys.readouterr().err

    def test_rows_of_cancelled_jobs_are_named_and_the_next_run_does_them(
        self, new_store: NewStore, folder: Path
    ) -> None:
        """One job runs, and five wait for its CPUs."""
        store = new_store(60)
        driver = Driver(store, "rows_per_job=10", "cpus=4", row_seconds=0.5)
        wait_for(lambda: store.completed().any())
        subprocess.run(["scancel", *job_numbers()], check=True)
        driver.ends(1)
        missing = np.flatnonzero(~store.completed())
        assert 50 <= len(missing) < 60
        assert sorted(store.failures()) == missing.tolist()
        log = store.failure_log(missing[0])
        assert "died" in log
        assert "ended as CANCELLED before this row was complete; log: " in log
        assert "_0_0_log.err" in log
        assert "it left no log at" in store.failure_log(59)
        assert store.verify().ok
        Driver(store, "rows_per_job=60", row_seconds=0).ends(0)
        check(store)
        assert store.failures() == {}

    def test_the_next_run_follows_the_jobs_of_one_that_was_interrupted(self, new_store: NewStore, folder: Path) -> None:
        store = new_store(40)
        first = Driver(store, "rows_per_job=10", row_seconds=0.4)
        wait_for(lambda: store.completed().any())
        os.killpg(first.process.pid, signal.SIGINT)
        assert "SLURM jobs go on; the next run follows them" in first.ends(1)
        self.finish_following(store, folder)

    @pytest.mark.parametrize("noted", [True, False])
    def test_the_next_run_follows_the_jobs_of_one_that_was_killed(
        self, new_store: NewStore, folder: Path, noted: bool
    ) -> None:
        """Also when it was killed before it had noted the number of its jobs."""
        store = new_store(40)
        first = Driver(store, "rows_per_job=10", row_seconds=0.4)
        wait_for(lambda: store.completed().any())
        os.killpg(first.process.pid, signal.SIGKILL)
        first.ends(-signal.SIGKILL)
        record = next(store.path.glob("slurm/*/submission.json"))
        if not noted:
            record.write_text(json.dumps({**json.loads(record.read_text()), "job": None}))
        self.finish_following(store, folder)

    def finish_following(self, store: Store, folder: Path) -> None:
        assert not store.completed().all()
        assert "of an earlier run is still there" in Driver(store, "rows_per_job=10", row_seconds=0.4).ends(0)
        check(store)
        assert set(times_run(folder).values()) == {1}

    def test_ctrl_c_cancels_jobs_when_it_is_meant_to(self, new_store: NewStore, folder: Path) -> None:
        store = new_store(400)
        driver = Driver(store, "rows_per_job=100", "cancel_on_interrupt=true", row_seconds=0.2)
        wait_for(lambda: store.completed().any())
        os.killpg(driver.process.pid, signal.SIGINT)
        assert "cancelled the SLURM jobs" in driver.ends(1)
        wait_for(lambda: not job_numbers())
        assert not store.completed().all()
        assert store.verify().ok

    def test_two_drivers_follow_the_same_jobs(self, new_store: NewStore, folder: Path) -> None:
        store = new_store(40)
        first = Driver(store, "rows_per_job=10", row_seconds=0.4)
        wait_for(lambda: store.completed().any())
        second = Driver(store, "rows_per_job=10", row_seconds=0.4)
        first.ends(0)
        assert "of an earlier run is still there" in second.ends(0)
        check(store)
        assert set(times_run(folder).values()) == {1}

    def test_a_driver_that_ends_leaves_the_jobs_of_others(self, new_store: NewStore, folder: Path) -> None:
        store = new_store(40)
        first = Driver(store, "rows_per_job=10", row_seconds=0.4)
        wait_for(lambda: store.completed().any())
        done = int(np.flatnonzero(store.completed())[0])
        second = Driver(store, "rows_per_job=10", row_seconds=0.4, rows=f"{done}:{done + 2}")
        assert "cancelled" not in second.ends(0)
        first.ends(0)
        check(store)
        assert set(times_run(folder).values()) == {1}

    def test_a_node_that_goes_down_is_named_and_its_job_done_when_it_is_back(
        self, new_store: NewStore, folder: Path
    ) -> None:
        store = new_store(60)
        node = subprocess.run(["sinfo", "-h", "-o", "%N"], capture_output=True, text=True, check=True).stdout.strip()
        driver = Driver(store, "rows_per_job=60", row_seconds=0.2)
        wait_for(lambda: store.completed().any())
        subprocess.run(["scontrol", "update", f"nodename={node}", "state=down", "reason=test"], check=True)
        try:
            wait_for(lambda: "waits: " in driver.said)
        finally:
            subprocess.run(["scontrol", "update", f"nodename={node}", "state=resume"], check=True)
        said = driver.ends(0)
        assert "were stopped and are queued again" in said
        check(store)

    def test_a_job_that_gives_way_to_an_urgent_one_does_the_rest_later(self, new_store: NewStore, folder: Path) -> None:
        store = new_store(60)
        driver = Driver(store, "rows_per_job=60", "cpus=4", row_seconds=0.5)
        wait_for(lambda: store.completed().any())
        subprocess.run(["sbatch", "--partition=urgent", "--cpus-per-task=4", "--wrap=true"], check=True)
        assert "were stopped and are queued again" in driver.ends(0)
        check(store)
        assert {line.split()[1] for line in (folder / "ran.txt").read_text().splitlines()} == {"0", "1"}

    def test_jobs_that_cannot_begin_say_where_to_look(self, new_store: NewStore, folder: Path) -> None:
        store = new_store(3)
        assert self.train(store, setup="echo no such module >&2; exit 3").failed == [0, 1, 2]
        log = store.failure_log(0)
        assert "ended as FAILED" in log
        assert "no such module" in log

    def test_nothing_is_known_of_a_job_that_never_was(self) -> None:
        assert slurm_queue.states(["99999", "99998_1"]) == {}
        assert slurm_queue.job_named("nobody") is None

    def test_what_sbatch_says_is_passed_on(self, new_store: NewStore, folder: Path) -> None:
        with pytest.raises(RequestError, match=r"sbatch refused the jobs: .*invalid partition"):
            self.train(new_store(3), partition="nowhere")


@pytest.mark.slurm
@pytest.mark.usefixtures("cluster")
class TestJobFiles:
    def test_a_generated_file_does_its_shares_and_what_is_missing(self, new_store: NewStore, folder: Path) -> None:
        store = new_store(30)
        store.write_row(4, tasks.good(4, store.design.mask(4), store.design.rng(4)))
        command = ["sbatch", "STORE", "--task", "noted:main", "--shares", "3", "--out", "job.sh", "--time", "2"]
        command[1] = str(store.path)
        subprocess.run([sys.executable, "-m", "datamodels", *command], check=True, capture_output=True)
        for _ in range(2):
            subprocess.run(["sbatch", "job.sh"], check=True, capture_output=True)
            wait_for(lambda: not job_numbers())
        check(store)
        assert times_run(folder) == Counter({row: 1 for row in range(30) if row != 4})

    def test_a_generated_file_goes_on_when_it_is_out_of_time(
        self, new_store: NewStore, folder: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        store = new_store(100)
        monkeypatch.setenv("ROW_SECONDS", "0.5")
        command = ["sbatch", str(store.path), "--task", "noted:main", "--shares", "2", "--out", "job.sh"]
        subprocess.run([sys.executable, "-m", "datamodels", *command], check=True, capture_output=True)
        subprocess.run(["sbatch", "job.sh"], check=True, capture_output=True)
        wait_for(lambda: store.completed().sum() > 1)
        subprocess.run(["scancel", "--batch", "--signal=USR2", *job_numbers()], check=True)
        wait_for(lambda: not job_numbers(), seconds=90)
        check(store)
        assert {line.split()[1] for line in (folder / "ran.txt").read_text().splitlines()} == {"0", "1"}

    def test_an_array_of_classic_workers_fills_a_store(self, new_store: NewStore, folder: Path) -> None:
        store = new_store(6)
        (folder / "classic.py").write_text(
            "import numpy as np\ndef main(index, logdir):\n    return {'margins': np.full(4, index)}\n"
        )
        (folder / "job.sh").write_text(
            f"#!/bin/bash\n#SBATCH --array=0-5 --time=2\n{sys.executable} -m datamodels.training.worker "
            f"--worker.index=$SLURM_ARRAY_TASK_ID --worker.main_import=classic --worker.logdir={store.path}\n"
        )
        subprocess.run(["sbatch", "job.sh"], check=True, capture_output=True)
        wait_for(lambda: not job_numbers())
        np.testing.assert_array_equal(store.array("margins")[:, 0], np.arange(6))
        assert store.completed().all()
        assert store.verify().ok


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"partitoin": "gpu"}, "executor 'slurm' has no setting 'partitoin'; legal: partition, time, memory"),
        ({"cpus": "many"}, "cpus='many' does not fit executor 'slurm'"),
        ({"gpus": "0"}, "gpus is 0; give more than 0"),
        ({"time": "soon"}, "time is 'soon'; give minutes"),
        ({"time": "0"}, "time is '0'; give minutes"),
        ({"time": "1"}, "jobs would be stopped as they begin"),
        ({"sbatch": "-C a100"}, "sbatch has '-C'; give parameters as --NAME=VALUE"),
    ],
)
def test_settings_that_are_wrong_say_what_is_legal(settings: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        executor_named("slurm", settings)


def test_settings_are_read_from_text() -> None:
    given = {"time": "1-02:00:30", "cpus": "4", "seconds_per_row": "2", "sbatch": "--constraint=a100 --exclusive"}
    settings = executor_named("slurm", given)
    assert settings == Slurm(time="1-02:00:30", cpus=4, seconds_per_row=2.0, sbatch="--constraint=a100 --exclusive")
    assert settings.minutes == 26 * 60 + 1
    assert settings.further == {"constraint": "a100", "exclusive": True}
    with pytest.raises(RequestError, match="executor 'local' has no settings; given: cpus"):
        executor_named("local", {"cpus": "4"})


def test_a_machine_without_slurm_is_told_so(new_store: NewStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(RequestError, match="needs the command sbatch, which is not on this machine"):
        train(new_store(2), tasks.good, executor="slurm")
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(RequestError, match=r"needs submitit: pip install 'datamodels-kit\[slurm\]'"):
        train(new_store(2, "b"), tasks.good, executor="slurm")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["train", "STORE", "--task", "tests.tasks:good", "--executor-option", "cpus"], "give KEY=VALUE"),
        (
            ["train", "STORE", "--task", "tests.tasks:good", "--executor-option=a=1", "--executor-option=a=2"],
            "'a' twice",
        ),
        (["train", "STORE", "--task", "tests.tasks:good", "--executor-option=a=1"], "executor 'local' has no settings"),
        (["share", "STORE", "3/3", "--task", "tests.tasks:good"], "give I/N with I from 0 to N - 1"),
        (["sbatch", "STORE", "--task", "tests.tasks:good", "--shares=0", "--out=job.sh"], "--shares is 0"),
        (["sbatch", "STORE", "--out=job.sh"], "give --task or --recipe"),
        (["sbatch", "STORE", "--task", "tests.tasks:good", "--out=job.sh", "--time=x"], "time is 'x'"),
    ],
)
def test_bad_commands_are_one_line(
    new_store: NewStore, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    from datamodels.cli import main

    store = str(new_store(4).path)
    with pytest.raises(SystemExit) as ended:
        main([store if word == "STORE" else word for word in arguments])
    assert ended.value.code == 2
    said = capsys.readouterr().err.strip()
    assert message in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("task", ["tests.tasks:good", "tests.tasks:good_blocks"])
def test_shares_are_all_rows_once(new_store: NewStore, task: str) -> None:
    from datamodels.training.share import train_share

    store = new_store(30)
    done = [train_share(store, task, index, 4, jobs=1).done for index in range(4)]
    assert sum(done) == 30
    assert min(done) >= 2
    check(store)
    assert train_share(store, task, 0, 4, jobs=1).done == 0


def test_a_share_names_the_rows_that_failed(new_store: NewStore) -> None:
    from datamodels.training.share import train_share

    store = new_store(8)
    assert train_share(store, tasks.fails_on_three, 0, 2, jobs=1).ok
    summary = train_share(store, tasks.fails_on_three, 1, 2, jobs=1)
    assert summary.failed == [3]
    assert "three is not allowed" in store.failure_log(3)
