"""The Ray executor and its pool, on a real Ray of two nodes with one CPU each: the executor contract, lost nodes, workers and
drivers, and fits and gradients that are the same as on one machine."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels import fit
from datamodels.attribution import Attribution
from datamodels.design import Design
from datamodels.errors import CampaignError, ConvergenceWarning, MissingClassWarning, RequestError
from datamodels.executors import Ray, executor_named
from datamodels.executors.pool import InProcess, pool_of
from datamodels.regression import path
from datamodels.regression.estimators import DifferenceInMeans, Lasso, LeastSquares, Ridge
from datamodels.regression.parts import solve_statistics, statistics_by_rows
from datamodels.regression.problem import Problem
from datamodels.regression.split_statistics import SplitStatistics
from datamodels.store import Store
from datamodels.training.campaign import train
from tests import tasks
from tests.conftest import plant
from tests.executor_contract import ExecutorContract

pytestmark = [
    pytest.mark.ray,
    pytest.mark.filterwarnings("ignore:Tip. In future versions of Ray:FutureWarning"),
    pytest.mark.filterwarnings("ignore::ResourceWarning"),  # of Ray's sockets and processes
]
ROOT = Path(__file__).parent.parent
NewStore = Callable[..., Store]

NOTED = """
import os, signal, time
from pathlib import Path
def main(index, mask, rng):
    with open(Path(__file__).with_name("ran.txt"), "a") as file:
        file.write(f"{index} {os.getpid()} {os.getppid()}\\n")
    time.sleep(0.05)
    return {"margins": rng.normal(size=4).astype("float32") + mask.sum()}
def kills_its_actor(index, mask, rng):
    if index == 3:
        os.kill(os.getppid(), signal.SIGKILL)
        time.sleep(5)
    return {"margins": rng.normal(size=4).astype("float32") + mask.sum()}
"""


@pytest.fixture(scope="session")
def cluster() -> Iterator[Any]:
    """Two nodes, and this process connected to them."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    soon = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 500, "health_check_failure_threshold": 3}
    running = Cluster(
        initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False, "_system_config": soon}
    )
    running.add_node(num_cpus=1)
    ray.init(address=running.address, logging_level="warning")
    yield running
    ray.shutdown()
    running.shutdown()


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of a task that notes its rows in ``ran.txt``."""
    (tmp_path / "noted.py").write_text(NOTED)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path


def notes(folder: Path) -> list[list[int]]:
    """(row, process, its actor) of each run of a row."""
    file = folder / "ran.txt"
    return [[int(word) for word in line.split()] for line in file.read_text().splitlines()] if file.exists() else []


def check(store: Store) -> None:
    """No row is lost, and none is wrong."""
    expected = [tasks.good(i, store.design.mask(i), store.design.rng(i))["margins"] for i in range(store.n_models)]
    np.testing.assert_array_equal(store.array("margins"), np.array(expected, dtype=np.float32))
    assert store.completed().all()
    assert store.verify().ok


def wait_for(condition: Callable[[], Any], seconds: float = 40.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not happen in time"
        time.sleep(0.05)


def alive(pid: int) -> bool:
    try:
        return "zombie" not in Path(f"/proc/{pid}/status").read_text()
    except OSError:
        return False


@pytest.mark.usefixtures("cluster")
class TestRayExecutor(ExecutorContract):
    executor = "ray"
    options = {"jobs": 1}  # noqa: RUF012

    def test_what_tasks_print_is_kept_from_standard_output(
        self, new_store: NewStore, capfd: pytest.CaptureFixture[str]
    ) -> None:
        """Ray brings it from other machines a little later."""
        out, err = "", ""

        def heard() -> bool:
            nonlocal out, err
            out, err = (a + b for a, b in zip((out, err), capfd.readouterr(), strict=True))
            return "hello" in err

        assert self.train(new_store(2), lambda index: print("hello") or tasks.good_values()).ok
        wait_for(heard)
        assert out == ""


def test_the_two_nodes_share_the_rows_of_a_campaign(cluster: Any, new_store: NewStore, folder: Path) -> None:
    store = new_store(60)
    assert train(store, "noted:main", executor=Ray(address=cluster.address)).done == 60
    check(store)
    actors = Counter(actor for _, _, actor in notes(folder))
    assert len(actors) == 2
    assert min(actors.values()) > 5


def test_a_row_that_takes_too_long_is_stopped_and_one_that_dies_is_named(cluster: Any, new_store: NewStore) -> None:
    late, dead = new_store(8, "late"), new_store(8, "dead")
    assert train(late, tasks.hangs_on_three, executor="ray", timeout=3.0).failed == [3]
    assert "longer than the limit of 3 seconds" in late.failure_log(3)
    assert train(dead, tasks.dies_on_three, executor="ray").failed == [3]
    assert "signal SIGKILL" in dead.failure_log(3)


def test_a_node_is_killed_and_another_joins(cluster: Any, new_store: NewStore, folder: Path) -> None:
    """Rows of the dead node are run again by the others; the node that joins gets work."""
    store = new_store(300)

    ended: list[Any] = []
    campaign = threading.Thread(target=lambda: ended.append(train(store, "noted:main", executor=Ray())))
    campaign.start()
    wait_for(lambda: len({actor for _, _, actor in notes(folder)}) == 2 and len(notes(folder)) > 30)
    cluster.remove_node(next(iter(cluster.worker_nodes)), allow_graceful=False)
    cluster.add_node(num_cpus=1)
    campaign.join()
    assert ended[0].ok
    assert ended[0].done + ended[0].there == 300
    check(store)
    ran = notes(folder)
    assert max(Counter(row for row, _, _ in ran).values()) <= 2
    assert len({actor for _, _, actor in ran}) == 3
    assert len(ran) < 300 + 20


def test_a_worker_that_is_lost_with_a_row_again_and_again(cluster: Any, new_store: NewStore, folder: Path) -> None:
    store = new_store(12)
    summary = train(store, "noted:kills_its_actor", executor=Ray(losses=1), jobs=1)
    assert summary.failed == [3]
    assert summary.done + summary.there == 11
    lost = "died\n2 workers were lost while they ran this row, the last one because its worker process has died\n"
    assert lost in store.failure_log(3)


def driver(cluster: Any, store: Store, folder: Path) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-m",
        "datamodels",
        "train",
        str(store.path),
        "--task",
        "noted:main",
        "--executor",
        "ray",
    ]
    return subprocess.Popen(
        [*command, "--executor-option", f"address={cluster.address}"],
        cwd=folder, stderr=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_a_driver_is_killed_or_interrupted_and_run_again(
    cluster: Any, new_store: NewStore, folder: Path, how: signal.Signals
) -> None:
    store = new_store(150)
    first = driver(cluster, store, folder)
    wait_for(lambda: store.completed().sum() > 20)
    os.killpg(first.pid, how)
    _, said = first.communicate(timeout=30)
    if how == signal.SIGINT:
        assert "Traceback" not in said
        assert "run it again to go on" in said
    workers = {pid for _, *both in notes(folder) for pid in both}
    wait_for(lambda: not any(alive(pid) for pid in workers))
    assert store.verify().ok
    assert train(store, "noted:main", executor="ray").ok
    check(store)
    assert max(Counter(row for row, _, _ in notes(folder)).values()) <= 2


def test_a_ray_of_its_own_says_nothing_on_standard_output(new_store: NewStore) -> None:
    store = new_store(6)
    command = [sys.executable, "-m", "datamodels", "train", str(store.path), "--task", "tests.tasks:prints", "--json"]
    result = subprocess.run([*command, "--executor", "ray", "--jobs", "1"], cwd=ROOT, capture_output=True, text=True)
    assert json.loads(result.stdout)["done"] == 6
    assert "Traceback" not in result.stderr


def test_requests_that_cannot_be_met_are_refused_at_once(
    cluster: Any, new_store: NewStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(2)
    cases = [
        (Ray(gpus=0.5), "a worker needs 1 CPU, 0.5 GPU, and no node"),
        (Ray(cpus=8), "a worker needs 8 CPU"),
        (Ray(address="10.0.0.1:1"), "this process is connected to Ray at"),
        (Ray(runtime_env={"env_vars": {}, "pip": []}), "give runtime_env to ray.init"),
    ]
    for settings, message in cases:
        with pytest.raises(RequestError, match=message):
            train(store, tasks.good, executor=settings)
        with pytest.raises(RequestError, match=message):
            pool_of(settings).__enter__()
    for options, message in (({"gpus": -1}, "gpus is -1"), ({"workers": 0}, "workers is 0"), ({"memory": "7"}, "unit")):
        with pytest.raises(RequestError, match=message):
            Ray(**options)
    with pytest.raises(RequestError, match="no setting 'gpu'; legal: address, workers, cpus, gpus"):
        executor_named("ray", {"gpu": "1"})
    with pytest.raises(CampaignError, match="no worker for 1 seconds: a worker needs 1 CPU, 1 GPU"):
        train(store, tasks.good, executor=Ray(gpus=1, patience=1), jobs=2)
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RequestError, match=r"pip install 'datamodels-kit\[ray\]'"):
        train(store, tasks.good, executor="ray")


def test_an_address_where_nothing_answers(new_store: NewStore) -> None:
    """In a process of its own: this one is connected."""
    store = new_store(2)
    for address, message in (("127.0.0.1:9", "nothing answers at the Ray address"), ("somewhere", "give 'HOST:PORT'")):
        command = [sys.executable, "-m", "datamodels", "train", str(store.path), "--task", "tests.tasks:good"]
        options = ["--executor", "ray", "--executor-option", f"address={address}"]
        result = subprocess.run([*command, *options], cwd=ROOT, capture_output=True, text=True, timeout=30)
        assert result.returncode == 2
        assert message in result.stderr
        assert "Traceback" not in result.stderr


# -- fits and gradients -------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """600 rows of 70 training examples, with 150 targets and the outputs of the training examples."""
    n, m = 70, 600
    design = Design(n_train=n, alpha=0.5, n_models=m, seed=1)
    store = Store.create(
        tmp_path_factory.mktemp("trained") / "store",
        schema={
            "margins": {"shape": (150,), "dtype": "float32"},
            "own": {"shape": (n,), "dtype": "float32", "of": "train"},
        },
        design=design,
    )
    rng = np.random.default_rng(0)
    masks = design.masks(0, m)
    weights = [rng.normal(size=(n, t)) * (rng.random((n, t)) < 0.1) for t in (150, n)]
    margins, own = (masks @ w + 3.0 + 0.5 * rng.normal(size=(m, w.shape[1])) for w in weights)
    store.write_rows(range(m), {"margins": margins, "own": own})
    return store


def test_sums_over_ranges_of_rows_are_those_of_one_pass(cluster: Any, trained: Store) -> None:
    problem = Problem.build(trained)
    splits = Lasso(folds=3).splits(problem.units)
    here = SplitStatistics.of(problem, splits)
    told: list[int] = []
    with pool_of(Ray(workers=3)) as pool:
        there = statistics_by_rows(problem, splits, pool, told.append)
    assert told == [200, 200, 200]
    np.testing.assert_array_equal(there.counts, here.counts)
    for one, other in zip(here.parts, there.parts, strict=True):
        assert one.count == other.count
        for name in ("sum_x", "shift", "gram"):
            np.testing.assert_array_equal(getattr(other, name), getattr(one, name))
        for name in ("sum_y", "yty", "xty"):
            np.testing.assert_allclose(getattr(other, name), getattr(one, name), rtol=1e-12, atol=1e-9)


@pytest.mark.parametrize(
    ("estimator", "key"),
    [
        (Lasso(n_lambdas=30), "margins"),
        (Ridge(), "margins"),
        (LeastSquares(), "margins"),
        (DifferenceInMeans(), "margins"),
        (Lasso(n_lambdas=20), "own"),
        (Ridge(), "own"),
    ],
    ids=["lasso", "ridge", "ols", "difference", "lasso out of mask", "ridge out of mask"],
)
def test_fits_are_the_same_as_here(cluster: Any, trained: Store, estimator: Any, key: str) -> None:
    here = fit(trained, estimator, outputs_key=key, progress=False)
    there = fit(trained, estimator, outputs_key=key, progress=False, executor="ray")
    near = 1e-3 if "residual" in here.target_facts else 1e-5  # solved to a residual, which is stated
    np.testing.assert_allclose(there.weights, here.weights, atol=near)
    np.testing.assert_allclose(there.bias, here.bias, atol=near)
    assert there.target_facts.keys() == here.target_facts.keys()
    if "lam" in here.target_facts:
        np.testing.assert_allclose(there.target_facts["lam"], here.target_facts["lam"], rtol=1e-6)
    if "gap" in here.target_facts:
        assert there.target_facts["gap"].max() < 1e-8


def test_a_prior_penalties_and_warnings_go_with_their_targets(cluster: Any) -> None:
    planted = plant(300, 40, 70, noise=0.5)
    rng = np.random.default_rng(1)
    rough = planted.weights + 0.5 * rng.normal(size=(40, 70))
    prior = Attribution.from_scores(rough, orientation="train_by_target", method="truth and noise")
    factors = rng.uniform(0.5, 2.0, (40, 70))
    given: dict[str, Any] = {"masks": planted.masks, "outputs": planted.outputs, "penalty_factors": factors}
    lasso = Lasso(n_lambdas=20, prior=prior)
    here = fit(estimator=lasso, progress=False, **given)
    there = fit(estimator=lasso, progress=False, executor=Ray(workers=2), **given)
    np.testing.assert_allclose(there.weights, here.weights, atol=1e-5)
    for name in ("prior_exponent", "prior_floor", "target"):
        np.testing.assert_array_equal(there.target_facts[name], here.target_facts[name])


class ThreeAtOnce(InProcess):
    slots = 3


def test_blocks_of_targets_warn_once_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """And are the same to the bit, where they are whole batches."""
    planted = plant(300, 40, 150, noise=0.5)
    problem = Problem.build(masks=planted.masks, outputs=planted.outputs)
    lasso = Lasso(n_lambdas=10)
    data = SplitStatistics.of(problem, lasso.splits(problem.units))
    here, told = lasso.solve(data), []
    there = solve_statistics(data, lasso, None, ThreeAtOnce(), told.append)
    assert told == [64, 64, 22]
    np.testing.assert_array_equal(there.weights, here.weights)
    np.testing.assert_array_equal(there.bias, here.bias)
    monkeypatch.setattr(path, "_MAX_SWEEPS", 1)
    monkeypatch.setattr(path, "_FINISH_ROUNDS", 0)
    with pytest.warns(ConvergenceWarning, match="of 150 targets missed the tolerance") as said:
        solve_statistics(data, lasso, None, ThreeAtOnce(), told.append)
    assert len(said) == 1


def test_warnings_of_a_worker_are_heard_and_its_output_is_not_a_result(
    cluster: Any, capfd: pytest.CaptureFixture[str]
) -> None:
    def one(item: int) -> int:
        print("said by a worker")
        warnings.warn(f"item {item}", MissingClassWarning, stacklevel=1)
        return item * item

    with pool_of("ray") as pool, pytest.warns(MissingClassWarning, match="item"):
        assert list(pool.map(one, range(9))) == [i * i for i in range(9)]
    assert "said" not in capfd.readouterr().out


def test_an_error_of_a_part_is_the_error_of_the_whole(cluster: Any) -> None:
    planted = plant(300, 20, 5)
    outputs = planted.outputs.copy()
    outputs[290, 2] = np.nan
    with pytest.raises(RequestError, match="the output of row 290, target 2 is nan"):
        fit(masks=planted.masks, outputs=outputs, progress=False, executor="ray")
    with pytest.raises(RequestError, match="executor 'slurm' trains models and does nothing else"):
        fit(masks=planted.masks, outputs=planted.outputs, executor="slurm")


def test_gradients_by_ranges_are_the_same_as_here(cluster: Any, tmp_path: Path) -> None:
    import torch
    from torch import nn

    from datamodels.trak import TRAK

    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(101, 6, generator=generator), torch.randint(0, 3, (101,), generator=generator)
    batches = [(x[i : i + 16], y[i : i + 16]) for i in range(0, 101, 16)]
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    states = []
    for seed in range(3):
        torch.manual_seed(seed)
        states.append(nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).state_dict())
    here, there = (TRAK(model, dim=32, out=tmp_path / name) for name in ("here", "there"))
    here.featurize(batches, states)
    there.featurize(batches, states, rows=(0, 20))
    there.featurize(batches, states, executor="ray")
    for name in ("features.npy", "weights.npy", "done.npy"):
        for c in range(3):
            one, other = (np.load(tmp_path / place / f"checkpoint_{c:03d}" / name) for place in ("here", "there"))
            np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(here.score(batches[:2]).weights, there.score(batches[:2]).weights)
    with pytest.raises(RequestError, match="give out="):
        TRAK(model, dim=32).featurize(batches, states, executor="ray")
