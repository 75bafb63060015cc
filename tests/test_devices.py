"""GPUs, as far as a machine without one can tell: which there are, and which of them each worker process sees."""

from __future__ import annotations

import os
from collections.abc import Callable
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from datamodels import devices
from datamodels.devices import VISIBLE, device_named, gpus_of
from datamodels.errors import RequestError
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.learners import hf_task
from datamodels.training.recipes import Recipe
from datamodels.training.task import gpus_wanted

NewStore = Callable[..., Store]


@pytest.fixture
def two_gpus(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A machine with a driver and two GPUs, as far as one asks."""
    monkeypatch.setattr(devices, "_SIGNS", (str(tmp_path),))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.delenv(VISIBLE, raising=False)


def test_without_a_driver_torch_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(devices, "_SIGNS", ("/dev/no such thing",))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: pytest.fail("asked"))
    assert device_named("auto") == "cpu"
    assert gpus_of("auto") == ()


@pytest.mark.usefixtures("two_gpus")
def test_every_gpu_has_a_worker_and_one_that_is_named_has_one(monkeypatch: pytest.MonkeyPatch) -> None:
    assert device_named("auto") == "cuda"
    assert gpus_of("auto") == gpus_of("cuda") == ("0", "1")
    assert gpus_of("cuda:1") == ("0,1",)  # the number stays what it is
    assert gpus_of("cpu") == ()
    monkeypatch.setenv(VISIBLE, "3,GPU-8932f937")
    assert gpus_of("auto") == ("3", "GPU-8932f937")
    assert gpus_of("cuda:0") == ("3,GPU-8932f937",)
    monkeypatch.setenv(VISIBLE, "1, ")
    assert gpus_of("auto") == ("1",)
    monkeypatch.delenv(VISIBLE)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    assert gpus_of("cuda:1") == ()


@pytest.mark.usefixtures("two_gpus")
def test_tasks_ask_for_the_gpus_that_they_train_on() -> None:
    recipe = Recipe()
    assert TrainRecipe(recipe, "digits").gpus == ("0", "1")
    assert TrainRecipe(recipe, "digits", device="cpu").gpus == ()
    assert TrainRecipe(recipe, "digits", engine="compiled").gpus == ()
    x, y = {"input_ids": np.ones((4, 3), dtype=np.int64)}, np.array([0, 1, 0, 1])
    how: dict[str, Any] = {"epochs": 1, "batch_size": 2, "lr": 1e-3}
    assert hf_task(lambda: None, x, y, x, y, **how).gpus == ("0", "1")
    assert hf_task(lambda: None, x, y, x, y, **how, device="cpu").gpus == ()


class SeesOneGpu:
    """Writes which GPU its worker sees, and dies once where it is told to."""

    gpus: Any = ("4", "7")

    def __call__(self, index: int) -> dict[str, Any]:
        told = Path(os.environ["DIES_AT_THREE"])
        if index == 3 and told.exists():
            told.unlink()
            os._exit(1)
        return {"margins": np.full(4, int(os.environ[VISIBLE]))}


@pytest.mark.parametrize(("jobs", "workers"), [(None, 2), (1, 1), (3, 3)])
def test_workers_are_as_many_as_gpus_and_each_sees_one(
    new_store: NewStore, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, jobs: int | None, workers: int
) -> None:
    """Also the one that takes the place of one that died."""
    from datamodels.executors import local

    monkeypatch.setattr("datamodels.executors.base.usable_cpus", lambda: 16)
    monkeypatch.setenv("DIES_AT_THREE", str(tmp_path / "told"))
    monkeypatch.delenv(VISIBLE, raising=False)
    (tmp_path / "told").touch()
    seen: list[tuple[int, str]] = []  # number of each worker that was started, and its GPU
    numbers: list[int] = []
    start, begin = local.LocalExecutor._start, BaseProcess.start

    def numbered(self: local.LocalExecutor, number: int) -> Any:
        numbers.append(number)
        return start(self, number)

    def noted(self: BaseProcess) -> None:
        seen.append((numbers[-1], os.environ[VISIBLE]))
        begin(self)

    monkeypatch.setattr(local.LocalExecutor, "_start", numbered)
    monkeypatch.setattr(BaseProcess, "start", noted)
    store = new_store(40)
    assert train(store, SeesOneGpu(), jobs=jobs, retries=1, progress=False).ok
    expected = [(0, "4"), (1, "7"), (2, "4")][:workers]
    assert seen[:workers] == expected
    (again,) = seen[workers:]
    assert again in expected
    assert set(np.unique(store.array("margins"))) <= {float(gpu) for _, gpu in expected}
    assert VISIBLE not in os.environ


@pytest.mark.parametrize("gpus", [2, "0", np.array([0, 1]), [0.5]])
def test_gpus_that_are_no_names_are_refused(new_store: NewStore, gpus: Any) -> None:
    task = SeesOneGpu()
    task.gpus = gpus
    with pytest.raises(
        RequestError, match=r"attribute gpus is .*; give values of CUDA_VISIBLE_DEVICES, one per worker: \('0', '1'\)"
    ):
        train(new_store(2), task, progress=False)
    assert gpus_wanted(lambda index: None) == ()
