"""Runs and files that the explorer's tests look at, how they ask its server, and what a page holds."""

from __future__ import annotations

import base64
import importlib
import json
import re
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from fastapi.testclient import TestClient

from datamodels import Attribution, Store, datasets, fit
from datamodels.design import Design
from datamodels.experiment import Fit, Part, run_experiment
from datamodels.explorer import app, gather
from datamodels.explorer.content import Content
from datamodels.explorer.verify import Verifier
from datamodels.regression.calibration import calibrate
from datamodels.regression.estimators import Lasso, Ridge
from datamodels.run import Run, RunAttribution, View
from datamodels.significance.intervals import intervals
from datamodels.significance.knockoffs import select
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe

exporting = importlib.import_module("datamodels.explorer.export")  # the package has a function of this name
DATA = "digits[60,40]"
HOSTILE = "</script><img src=x onerror=alert(1)><!--<script>"
ADDRESS = "http://127.0.0.1"


# -- runs and files -----------------------------------------------------------------------------------


def make_store(path: Path, task: TrainRecipe, **design: Any) -> Store:
    made = Design(n_train=task.n_train, alpha=0.5, kind="bernoulli", **design)
    store = Store.create(path, schema=task.schema, design=made)
    assert train(store, task, executor="inline", progress=False).ok
    return store


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a lasso and a calibrated ridge of the same 40 targets, with intervals and a selection of the lasso."""
    root = tmp_path_factory.mktemp("explored") / "run"
    task = TrainRecipe(Recipe(architecture="linear", epochs=3, lr=0.02), DATA)
    store = make_store(root / "half", task, n_models=160, seed=0)
    make_store(root / "test", task, n_models=40, seed=1, replicates=2)
    lasso = fit(store, Lasso(), progress=False)
    lasso.save(root / "lasso.h5ad")
    calibrate(fit(store, Ridge(), progress=False), root / "test").save(root / "ridge.h5ad")
    intervals(lasso, store, progress=False).save(root / "intervals.h5ad")
    select(store, fdr=0.4, progress=False).save(root / "selection.h5ad")
    Run(
        title="A small run",
        created="2026-01-01T00:00:00+00:00",
        dataset=DATA,
        task="datamodels.training.ensemble:TrainRecipe",
        recipe={"half": task.recipe.changed()},
        stores={"half": "half", "test": "test"},
        attributions={
            "lasso": RunAttribution(path="lasso.h5ad", store="half", test="test"),
            "ridge": RunAttribution(path="ridge.h5ad", store="half"),
        },
        view=View(neighbours="lasso", embedding="ridge"),
    ).save(root)
    return root


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run whose targets are its own 60 training examples, of three kinds."""
    root = tmp_path_factory.mktemp("cells")
    kind = np.arange(60) % 3
    counts = np.random.default_rng(0).normal(size=(60, 80)).astype(np.float32) + 4 * np.eye(80, dtype=np.float32)[kind]
    names = [f"cell{i}" for i in range(60)]
    obs = {
        "type": pd.Categorical([f"t{k % 2}" for k in kind]), "state": kind.astype(str), "depth": counts.sum(1),
        "donor": [f"d{i // 5}" for i in range(60)], "cluster": [f"u{i % 4}" for i in range(60)],
        "date": 20230115 + np.arange(60), "code": 2**60 + np.arange(60),
    }  # fmt: skip
    genes = pd.DataFrame(index=[f"G{j}" for j in range(80)])
    anndata.AnnData(counts, pd.DataFrame(obs, names), genes).write_h5ad(root / "cells.h5ad")
    data = datasets.from_anndata(root / "cells.h5ad", "type", hidden="state", groups="donor")
    task = TrainRecipe(Recipe(architecture="linear", epochs=3, lr=0.02), data, splits=("train",))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            "datamodels.experiment.train", partial(train, executor="inline")
        )  # a worker would load torch first
        run_experiment(
            root / "run", title="cells", parts=[Part("a", task, 0.5, 60, kind="grouped"), Part("b", task, 0.5, 20, seed=1, kind="grouped")],
            fits=[Fit("ridge", Ridge(), "a", "b")], neighbours="ridge", embedding="ridge", progress=False,
        )  # fmt: skip
    return root / "run"


@pytest.fixture(scope="module")
def loose(cells: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What init, train and fit leave: a recipe, a store of whole donors, and two fits on 40 of its 60 models; no run.json."""
    root = tmp_path_factory.mktemp("loose")
    given = {
        "dataset": {"kind": "anndata", "path": str(cells.parent / "cells.h5ad"), "label": "type", "hidden": "state", "groups": "donor"},
        "recipe": {"architecture": "linear", "epochs": 3, "lr": 0.02}, "splits": ["train"], "prepare": {"select": 30, "scale": True},
    }  # fmt: skip
    (root / "recipe.yaml").write_text(yaml.safe_dump(given))
    task = TrainRecipe.read(root / "recipe.yaml")
    design = Design(n_train=60, alpha=0.5, n_models=60, kind="grouped", groups=task.data.train.groups)  # type: ignore[arg-type]
    store = Store.create(root / "st", schema=task.schema, design=design, ids=task.data.ids)
    assert train(store, task, executor="inline", progress=False).ok
    for name, estimator in (("a", Ridge()), ("b", Lasso())):
        fit(store, estimator, outputs_key="train_margins", rows=(0, 40), progress=False).save(root / f"{name}.h5ad")
    return root


def save_run(folder: Path, **more: Any) -> None:
    """A run of one attribution, ``a.h5ad``, without a store."""
    Run(
        title="one", created="2026-01-01T00:00:00+00:00", stores={"s": "s"},
        attributions={"a": RunAttribution(path="a.h5ad", store="s")}, view=View(neighbours="a", embedding="a"), **more,
    ).save(folder)  # fmt: skip


def dense_run(folder: Path, n_train: int, n_targets: int) -> Content:
    """A run of two dense attributions that are alike, the second calibrated."""
    rng = np.random.default_rng(0)
    base = rng.normal(size=(n_train, n_targets))
    facts = {
        "slope": 0.5 + rng.random(n_targets), "slope_se": 0.1 * rng.random(n_targets), "effect_sd": rng.random(n_targets),
        "noise_sd": rng.random(n_targets), "calibration_df": 5 + np.arange(n_targets) % 9.0,
    }  # fmt: skip
    Attribution(base, np.zeros(n_targets)).save(folder / "a.h5ad")
    Attribution(base + 1.5 * rng.normal(size=base.shape), np.zeros(n_targets), facts).save(folder / "b.h5ad")
    Run(
        title="two", created="2026-01-01T00:00:00+00:00", stores={"s": "s"}, view=View(neighbours="a", embedding="a"),
        attributions={name: RunAttribution(path=f"{name}.h5ad", store="s") for name in "ab"},
    ).save(folder)  # fmt: skip
    return gather(folder, progress=False)


# -- the server ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def content(folder: Path) -> Content:
    return gather(folder, progress=False)


@pytest.fixture(scope="module")
def client(content: Content) -> Iterator[TestClient]:
    with TestClient(app(content), base_url=ADDRESS) as made:
        yield made


def ask(client: TestClient, path: str) -> bytes:
    answer = client.get(f"/api/{path}")
    assert answer.status_code == 200, answer.text
    return answer.content


def post(client: TestClient, path: str, body: Any, **headers: str) -> Any:
    return client.post(f"/api/{path}", json=body, headers={"origin": ADDRESS, **headers})


def column(client: TestClient, side: str, name: str) -> np.ndarray:
    columns = client.get("/api/meta").json()[side]["columns"]
    number = next(k for k, about in enumerate(columns) if about["name"] == name)
    kind = np.int32 if columns[number]["kind"] == "category" else np.float32
    return np.frombuffer(ask(client, f"column/{side}/{number}"), kind)


def wait(verifier: Verifier, name: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while (state := verifier.state(name))["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.02)
    return state


# -- a page -------------------------------------------------------------------------------------------


def decoded(text: str, kind: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def data_in(text: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="datamodels-data">(.*?)</script>', text, flags=re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])
