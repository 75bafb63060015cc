"""The explorer's Python side: every answer against arrays computed directly, and what must be refused."""

from __future__ import annotations

import base64
import importlib
import importlib.util
import io
import json
import os
import pickle
import re
import shutil
import time
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
import yaml
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image
from scipy import stats

from datamodels import Attribution, Store, datasets, fit, lds
from datamodels.applications.clustering import embed
from datamodels.applications.neighbours import overlap
from datamodels.applications.subgroups import subgroups, write_to
from datamodels.cli import main
from datamodels.datasets import Split, from_arrays
from datamodels.design import Design
from datamodels.errors import NewerFormatError, RequestError
from datamodels.evaluation.mislabels import mislabel_scores
from datamodels.evaluation.retraining import retrain
from datamodels.experiment import Fit, Part, run_experiment
from datamodels.explorer import app, export, gather, report_attribution, report_run
from datamodels.explorer import measures as measured
from datamodels.explorer.cache import Cache
from datamodels.explorer.content import Content
from datamodels.explorer.dataset_facts import identity
from datamodels.explorer.examples import Examples
from datamodels.explorer.export import bundle, data_of, page, sprites
from datamodels.explorer.guard import LARGEST_BODY
from datamodels.explorer.verify import Busy, Verifier
from datamodels.explorer.weights import WeightsFile, strongest
from datamodels.regression.calibration import calibrate, removal
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
    run_experiment(
        root / "run", title="cells", parts=[Part("a", task, 0.5, 60, kind="grouped"), Part("b", task, 0.5, 20, seed=1, kind="grouped")],
        fits=[Fit("ridge", Ridge(), "a", "b")], neighbours="ridge", embedding="ridge", jobs=1, progress=False,
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


# -- files that no run.json describes -------------------------------------------------------------------


def test_files_and_a_recipe_are_shown_as_a_run(loose: Path) -> None:
    found = gather([loose / "a.h5ad", loose / "b.h5ad"], recipe=loose / "recipe.yaml", progress=False)
    assert [shown.name for shown in found.attributions] == ["ridge", "lasso"]
    assert found.labels["targets"] == "state"
    assert {"state", "class", "group", "depth"} <= {one.name for one in found.columns["targets"]}
    assert found.details("targets", 7)["id"] == "cell7"
    assert found.n_models == 40
    for shown, name in zip(found.attributions, "ab", strict=True):
        assert shown.lds is not None
        np.testing.assert_allclose(shown.lds["per_target"], lds(loose / f"{name}.h5ad", loose / "st").per_target)
    assert found.outputs is not None
    unseen = ~Store.open(loose / "st").masks()
    np.testing.assert_array_equal(found.outputs["runs"], unseen.sum(axis=0))
    assert found.task.prepare == TrainRecipe.read(loose / "recipe.yaml").prepare
    meta = found.meta()
    assert meta["can_verify"]
    assert (
        meta["command"] == f"datamodels explore {loose / 'a.h5ad'} {loose / 'b.h5ad'} --recipe {loose / 'recipe.yaml'}"
    )
    assert any(one["name"] == "rank correlation, ridge / lasso" for one in meta["targets"]["columns"])
    again = gather([loose / "a.h5ad", loose / "b.h5ad"], recipe=loose / "recipe.yaml", progress=False)
    assert again.cache.made == []
    assert again.version == found.version
    verifier = Verifier(found, executor="inline")
    assert wait(verifier, verifier.start("ridge", [0, 1, 2, 3, 4], add=False, runs=4))["state"] == "done"


def test_without_a_recipe_a_file_has_what_its_store_knows(loose: Path) -> None:
    found = gather(loose / "a.h5ad", cache=loose / "kept", progress=False)
    assert found.labels["targets"] is None
    assert found.details("targets", 7)["id"] == "cell7"
    assert found.attributions[0].lds is not None
    assert not found.meta()["can_verify"]
    groups = next(one for one in found.columns["train"] if one.name == found.together)
    assert groups.values.tolist() == list(Store.open(loose / "st").design.groups or ())


def test_a_store_is_found_beside_its_file_and_no_other_one_is_taken(loose: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    moved.mkdir()
    import h5py

    for name in ("a.h5ad", "st"):
        (shutil.copytree if (loose / name).is_dir() else shutil.copy)(loose / name, moved / name)
    with h5py.File(moved / "a.h5ad", "r+") as file:
        text = file["uns/datamodels/provenance"].asstr()[()].replace(str(loose), "/gone")
        del file["uns/datamodels/provenance"]
        file["uns/datamodels/provenance"] = text
    assert gather(moved / "a.h5ad", progress=False).run.stores == {"st": "st"}
    shutil.rmtree(moved / "st")
    design = Design(n_train=60, alpha=0.5, n_models=3, seed=9)
    Store.create(
        moved / "st", schema={"train_margins": {"shape": [60], "dtype": "float32", "of": "train"}}, design=design
    )
    found = gather(moved / "a.h5ad", progress=False)
    assert found.run.stores == {}
    assert found.attributions[0].lds is None
    assert "group" not in {one.name for one in found.columns["train"]}


def test_a_store_of_other_models_judges(cells: Path, tmp_path: Path) -> None:
    shutil.copy(cells / "ridge.h5ad", tmp_path / "r.h5ad")
    expected = lds(cells / "ridge.h5ad", cells / "b").lds
    for how in (
        {"stores": [cells / "b"]},
        {"test": cells / "b"},
        {"stores": {"fit": cells / "a"}, "test": cells / "b"},
    ):
        found = gather(tmp_path / "r.h5ad", progress=False, **how)  # type: ignore[arg-type]
        assert found.attributions[0].lds is not None
        assert found.attributions[0].lds["value"] == pytest.approx(expected)
        assert found.outputs is not None
        assert found.store is not None
        assert found.store.n_models == 60
    none_left = gather(tmp_path / "r.h5ad", progress=False)
    assert "fit on fewer rows" in dict(none_left.facts)["LDS of ridge"]


def test_scores_of_gradients_are_judged_on_the_outputs_of_their_targets(loose: Path, tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(60, 60))
    scores = Attribution(
        weights, np.zeros(60), train_columns=np.arange(60), provenance={"sources": [], "n_checkpoints": 2}
    )
    path = scores.save(tmp_path / "t.h5ad")
    found = gather(path, stores=[loose / "st"], progress=False)
    assert found.attributions[0].lds is not None
    expected = lds(path, loose / "st", outputs_key="train_margins")
    assert found.attributions[0].lds["value"] == pytest.approx(expected.lds)
    assert not found.attributions[0].about()["from_models"]
    results = report_attribution(path, [loose / "st"], progress=False)
    assert results["attributions"]["t"]["lds"] == pytest.approx(expected.lds)


def test_a_store_is_not_taken_for_a_run(loose: Path, tmp_path: Path) -> None:
    shutil.copytree(loose / "st", tmp_path / "st")
    with pytest.raises(
        RequestError, match=r"st' is a store \(60 models\), not a run; explore an attribution fitted on it: .*a\.h5ad"
    ):
        gather(loose / "st")
    with pytest.raises(RequestError, match=r"not a run; fit it \(datamodels fit"):
        report_run(tmp_path / "st")
    with pytest.raises(RequestError, match="there is no run"):
        gather(tmp_path)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["explore", "a.h5ad", "--export", "x.txt"], "--export is 'x.txt'; it must end in .html"),
        (["report", "a.h5ad", "--out", "x.htm"], "--out is 'x.htm'; it must end in .html"),
        (["explore", "a.h5ad", "--store", "nowhere", "--export", "x.html"], "there is no store at 'nowhere'"),
        (["explore", "a.h5ad", "--recipe", "nowhere.yaml", "--export", "x.html"], "cannot read 'nowhere.yaml'"),
        (["explore", "a.h5ad", "a.h5ad", "--export", "x.html"], "two attributions are called 'a'"),
        (["explore", "a.h5ad", "st", "--export", "x.html"], "'st' is a folder: give one run"),
        (["explore", "run", "--recipe", "recipe.yaml", "--export", "x.html"], "recipe goes with attribution files"),
        (["report", "run", "--test", "st"], "--test goes with attribution files"),
        (["report", "run", "run"], "2 things were given"),
        (["report", "a.h5ad", "--store", "st", "--groups", "depth", "--clusters", "3"], "leave it out where a column"),
        (["run", ".", "--attribution", "a.h5ad"], "give NAME=PATH"),
        (["run", "run", "--attribution", "a=a.h5ad"], "is there already"),
        (["run", "st", "--attribution", "a=a.h5ad"], "lies outside of the run's folder 'st'"),
        (["run", ".", "--attribution", "a=a.h5ad", "--embedding", "b"], "embedding is 'b'; legal: a"),
        (["run", ".", "--attribution", "a=a.h5ad", "--attribution", "a=b.h5ad"], "names 'a' twice"),
    ],
)
def test_wrong_requests_are_refused(
    loose: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    monkeypatch.chdir(loose)
    (loose / "run").mkdir(exist_ok=True)
    save_run(loose / "run")
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err
    assert not [*loose.glob("x.*"), *loose.glob("run.json")]


def test_the_command_run_writes_what_explore_and_report_take(
    loose: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a.h5ad", "b.h5ad", "st"):
        (shutil.copytree if (loose / name).is_dir() else shutil.copy)(loose / name, tmp_path / name)
    monkeypatch.chdir(tmp_path.parent)
    given = ["--attribution", f"ridge={tmp_path / 'a.h5ad'}", "--attribution", f"lasso={tmp_path / 'b.h5ad'}"]
    given += [
        "--store",
        f"cells={tmp_path / 'st'}",
        "--recipe",
        str(loose / "recipe.yaml"),
        "--title",
        "Cells",
        "--embedding",
        "lasso",
    ]
    with pytest.raises(SystemExit) as ended:
        main(["run", str(tmp_path), *given, "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said["attributions"]["lasso"] == {"path": "b.h5ad", "store": "cells", "test": "cells"}
    assert (said["stores"], said["view"]) == ({"cells": "st"}, {"neighbours": "ridge", "embedding": "lasso"})
    assert said["recipe"]["cells"]["prepare"]["select"] == 30
    assert Run.load(tmp_path).title == "Cells"
    results = report_run(tmp_path, progress=False)
    assert results["curve"] is None
    shown = gather(tmp_path, progress=False)
    for name, file in (("ridge", "a"), ("lasso", "b")):
        score = lds(loose / f"{file}.h5ad", loose / "st")
        assert score.n_models == 20
        assert results["attributions"][name]["lds"] == pytest.approx(score.lds)
        found = shown.attribution(name).lds
        assert found is not None
        assert found["value"] == pytest.approx(score.lds)
    assert shown.task.prepare is not None
    fit(Store.open(tmp_path / "st"), Ridge(), outputs_key="train_margins", progress=False).save(tmp_path / "a.h5ad")
    with pytest.raises(RequestError, match="'ridge' cannot be judged on the store 'cells': 0 rows are left"):
        report_run(tmp_path, progress=False)
    assert "0 rows are left" in dict(gather(tmp_path, progress=False).facts)["LDS of ridge"]


# -- groups that are given ------------------------------------------------------------------------------


def test_clusters_of_an_annotated_file_are_the_subgroups(loose: Path, cells: Path, tmp_path: Path) -> None:
    found = subgroups(Attribution.load(loose / "a.h5ad"), n_clusters=4)
    order = np.random.default_rng(0).permutation(60)
    data = write_to(anndata.read_h5ad(cells.parent / "cells.h5ad"), found)[order]
    data.write_h5ad(tmp_path / "annotated.h5ad")
    how = {"recipe": loose / "recipe.yaml", "cache": tmp_path / "kept", "progress": False}
    shown = gather(loose / "a.h5ad", annotated=tmp_path / "annotated.h5ad", **how)  # type: ignore[arg-type]
    assert shown.groups is not None
    assert shown.subgroups is not None
    assert shown.subgroups["clusters"] == found.clusters.tolist()
    assert shown.groups["given"] == "datamodels, in annotated.h5ad"
    assert [(row["cluster"], row["size"]) for row in shown.groups["rows"]] == [
        (str(k), int((found.clusters == k).sum())) for k in range(4)
    ]
    assert {row["stability"] for row in shown.groups["rows"]} == {None}
    column_ = next(one for one in shown.columns["targets"] if one.name == shown.groups["column"])
    assert column_.texts() == found.clusters.astype(str).tolist()
    assert "cluster" in {one.name for one in shown.columns["targets"]}  # that of the data
    assert shown.meta()["default"]["colour"] == "datamodels"
    state = [f"{i % 3}" for i in range(60)]
    from sklearn.metrics import adjusted_rand_score

    assert shown.groups["ari"] == pytest.approx(adjusted_rand_score(state, found.clusters))
    other = gather(loose / "a.h5ad", annotated=tmp_path / "annotated.h5ad", group_by="donor", **how)  # type: ignore[arg-type]
    assert other.groups is not None
    assert other.groups["n_clusters"] == 12
    data[5:].copy().write_h5ad(tmp_path / "fewer.h5ad")
    with pytest.raises(RequestError, match="lacks 5 of 60 targets"):
        gather(loose / "a.h5ad", annotated=tmp_path / "fewer.h5ad", **how)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="has no clusters of"):
        gather(loose / "a.h5ad", annotated=cells.parent / "cells.h5ad", **how)  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="not a readable"):
        gather(loose / "a.h5ad", annotated=loose / "recipe.yaml", **how)  # type: ignore[arg-type]


def test_a_column_of_targets_is_the_subgroups(loose: Path, tmp_path: Path) -> None:
    data = Attribution(np.random.default_rng(0).normal(size=(20, 36)), np.zeros(36)).to_anndata()
    data.obs["leiden"] = pd.Categorical([None if i == 0 else f"c{i % 3}" for i in range(36)])
    data.obs["number"] = 10 - np.arange(36) % 4
    data.obs["depth"] = np.linspace(0, 1, 36)
    data.write_h5ad(tmp_path / "a.h5ad")
    by_text = gather(tmp_path / "a.h5ad", group_by="leiden", progress=False)
    assert by_text.groups is not None
    assert [(row["cluster"], row["size"]) for row in by_text.groups["rows"]] == [("c0", 11), ("c1", 12), ("c2", 12)]
    assert by_text.groups["given"] == "leiden, given in the file"
    by_number = gather(tmp_path / "a.h5ad", group_by="number", progress=False)
    assert by_number.groups is not None
    assert [row["cluster"] for row in by_number.groups["rows"]] == ["7", "8", "9", "10"]
    assert by_number.groups["rows"][0]["size"] == 9
    for name, message in (
        ("depth", "has numbers, not groups; legal: leiden, number"),
        ("none", "is none of the targets'"),
    ):
        with pytest.raises(RequestError, match=message):
            gather(tmp_path / "a.h5ad", group_by=name, progress=False)
    data.obs_names = [f"c{i}" for i in range(36)]
    data[:30].write_h5ad(tmp_path / "short.h5ad")
    Attribution(np.eye(36, 36), np.zeros(36)).save(tmp_path / "nameless.h5ad")
    with pytest.raises(RequestError, match="30 observations; there are 36 targets"):
        gather(tmp_path / "nameless.h5ad", annotated=tmp_path / "short.h5ad", group_by="leiden", progress=False)


# -- what is shown is what the package computes ---------------------------------------------------------


def test_meta_says_what_there_is(client: TestClient, content: Content) -> None:
    meta = client.get("/api/meta").json()
    assert (meta["n_targets"], meta["n_train"], meta["title"]) == (40, 60, "A small run")
    assert [a["name"] for a in meta["attributions"]] == ["lasso", "ridge"]
    assert [a["calibrated"] for a in meta["attributions"]] == [False, True]
    assert meta["default"] == {"attribution": "lasso", "map": "PCA, ridge", "colour": "digit"}
    assert meta["targets"]["kind"] == meta["train"]["kind"] == "images"
    assert meta["can_verify"] is True
    assert meta["output_name"] == "margin"
    for side, size in (("targets", 40), ("train", 60)):
        assert sum(meta["sprites"][side]["pages"]) == size
        names = [about["name"] for about in meta[side]["columns"]]
        assert len(set(names)) == len(names)
        assert all(len(c.values) == size for c in content.columns[side])  # type: ignore[index]


def test_columns_of_targets(client: TestClient, folder: Path) -> None:
    data, store = datasets.load(DATA), Store.open(folder / "half")
    outputs = np.asarray(store.array("margins"))
    lasso, ridge = (Attribution.load(folder / f"{name}.h5ad") for name in ("lasso", "ridge"))
    np.testing.assert_array_equal(column(client, "targets", "class"), data.test.y)
    np.testing.assert_array_equal(column(client, "targets", "digit"), data.test.hidden)
    np.testing.assert_allclose(column(client, "targets", "mean output"), outputs.mean(axis=0), rtol=1e-5)
    np.testing.assert_allclose(column(client, "targets", "sd of output"), outputs.std(axis=0, ddof=1), rtol=1e-5)
    np.testing.assert_allclose(column(client, "targets", "prediction"), (outputs > 0).mean(axis=0), rtol=1e-6)
    score = lds(lasso, folder / "test")
    np.testing.assert_allclose(column(client, "targets", "LDS, lasso"), score.per_target, rtol=1e-6)
    shown = client.get("/api/meta").json()["attributions"][0]["lds"]
    np.testing.assert_allclose([shown["value"], shown["low"], shown["high"]], [score.lds, *score.lds_ci])
    assert shown["ceiling"] == pytest.approx(score.lds_ceiling)
    np.testing.assert_allclose(
        column(client, "targets", "R² on held-out models, lasso"), lasso.target_facts["val_r2"], rtol=1e-6
    )
    np.testing.assert_array_equal(column(client, "targets", "nonzero weights, lasso"), (lasso.weights != 0).sum(axis=0))
    np.testing.assert_allclose(
        column(client, "targets", "shared top 10, lasso / ridge"), overlap(lasso, ridge).astype(np.float32)
    )


def test_agreement_is_that_of_the_whole_vectors(client: TestClient, folder: Path) -> None:
    from scipy.stats import spearmanr

    lasso, ridge = (Attribution.load(folder / f"{name}.h5ad").weights for name in ("lasso", "ridge"))
    found = column(client, "targets", "rank correlation, lasso / ridge")
    shared, cosine = np.frombuffer(ask(client, "agreement/0/1"), np.float32).reshape(2, 40)
    varies = np.flatnonzero(lasso.any(axis=0))
    for k in varies:
        assert found[k] == pytest.approx(spearmanr(lasso[:, k], ridge[:, k]).statistic, abs=1e-6)
        a, b = lasso[:, k], ridge[:, k]
        assert cosine[k] == pytest.approx(a @ b / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-5)
        top = [set(np.argsort(-np.abs(w), kind="stable")[: min(20, (w != 0).sum())]) for w in (a, b)]
        assert shared[k] == pytest.approx(len(top[0] & top[1]) / max(map(len, top)))


def test_columns_of_training_examples(client: TestClient, folder: Path) -> None:
    for name in ("lasso", "ridge"):
        attribution = Attribution.load(folder / f"{name}.h5ad")
        w = attribution.weights
        np.testing.assert_allclose(
            column(client, "train", f"mislabel score, {name}"), mislabel_scores(attribution), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            column(client, "train", f"helps, {name}"), np.maximum(w, 0).sum(1), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_allclose(
            column(client, "train", f"harms, {name}"), np.minimum(w, 0).sum(1), rtol=1e-4, atol=1e-6
        )
        np.testing.assert_array_equal(column(client, "train", f"targets, {name}"), (w != 0).sum(1))


def test_self_influence_and_mislabel_scores_of_train_targets(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    attribution = Attribution(weights, np.zeros(8), train_columns=np.arange(8))
    attribution.save(tmp_path / "own.h5ad")
    content = gather(tmp_path / "own.h5ad", progress=False)
    columns = {c.name: c.values for c in content.columns["train"]}
    np.testing.assert_allclose(columns["self-influence, own"], np.diag(weights), rtol=1e-6)
    score = next(values for name, values in columns.items() if name.startswith("mislabel"))
    np.testing.assert_allclose(score, mislabel_scores(attribution), rtol=1e-6)
    assert content.meta()["targets"]["train_columns"] is True


def test_scores_of_a_recipe_show_its_dataset_and_say_what_they_are_from(tmp_path: Path) -> None:
    from datamodels.trak.of_recipe import trak_of_recipe

    task = TrainRecipe(Recipe(architecture="linear", epochs=2, lr=0.02), DATA)
    found = trak_of_recipe(task, tmp_path / "trak", checkpoints=2, dim=64, progress=False).attribution
    content = gather(found.save(tmp_path / "scores.h5ad"), progress=False)
    assert dict(content.facts)["dataset"] == DATA
    assert any(text.endswith(" from 2 networks") for name, text in content.facts if name.startswith("attribution"))
    assert not any("0 models" in text for _, text in content.facts)
    meta = content.meta()
    assert meta["targets"]["kind"] == meta["train"]["kind"] == "images"
    assert content.labels["targets"] == "digit"
    assert content.examples["targets"].picture(3)
    suspicious = next(c.values for c in content.columns["train"] if c.name.startswith("mislabel"))
    np.testing.assert_allclose(suspicious, mislabel_scores(found), rtol=1e-5)
    coded = replace(found, provenance={"networks": {"task": {"dataset": "some.module:data"}}})
    facts = dict(gather(coded.save(tmp_path / "coded.h5ad"), progress=False).facts)
    assert "unless you say --trust" in facts["dataset"]
    assert "models" not in facts["attribution coded"]


def test_maps_are_the_embedding(client: TestClient, folder: Path) -> None:
    maps = client.get("/api/meta").json()["maps"]
    for number, about in enumerate(maps):
        if about["method"] == "PCA":
            found = np.frombuffer(ask(client, f"map/{number}"), np.float32).reshape(40, 2)
            expected = embed(Attribution.load(folder / f"{about['attribution']}.h5ad"))[:, :2]
            np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.skipif(importlib.util.find_spec("umap") is None, reason="umap-learn is not installed")
def test_umap_is_offered_and_kept(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    number = next(k for k, about in enumerate(content.maps()) if about["method"] == "UMAP")
    monkeypatch.setattr(measured, "umap", lambda rows: np.ones((len(rows), 2), np.float32))
    assert not content.is_ready(number)
    np.testing.assert_array_equal(content.map(number), np.ones((40, 2)))
    monkeypatch.setattr(measured, "umap", lambda rows: pytest.fail("computed twice"))
    assert content.is_ready(number)
    assert content.map(number).shape == (40, 2)


def test_a_file_has_the_umap_of_the_subgroups_when_it_is_asked_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    weights = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    Attribution(weights, np.zeros(12)).save(tmp_path / "a.h5ad")
    calls: list[int] = []

    def drawn(rows: NDArray[Any]) -> NDArray[np.float32]:
        calls.append(len(rows))
        return np.ones((len(rows), 2), np.float32)

    def maps(**how: bool) -> list[str]:
        page = export(gather(tmp_path / "a.h5ad", progress=False), tmp_path / "a.html", **how).read_text()
        return list(data_in(page)["maps"])

    monkeypatch.setattr(measured, "umap", drawn)
    monkeypatch.setattr(measured, "has_umap", lambda: False)
    assert maps() == ["PCA, a"]
    with pytest.raises(RequestError, match="umap-learn is not installed"):
        maps(umap=True)
    monkeypatch.setattr(measured, "has_umap", lambda: True)
    assert maps() == ["PCA, a"]
    assert calls == []
    assert maps(umap=True) == maps() == ["PCA, a", "UMAP, a"]
    assert calls == [12]
    with pytest.raises(SystemExit):
        main(["explore", str(tmp_path / "a.h5ad"), "--umap"])


@pytest.mark.parametrize("sparse", [True, False])
def test_randomised_components_are_the_exact_ones(
    tmp_path: Path, sparse: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    rng = np.random.default_rng(0)
    weights = (rng.normal(size=(90, 12)) * 2.0 ** -np.arange(12)) @ rng.normal(size=(12, 150))
    if sparse:
        weights *= rng.random(weights.shape) < 0.3
    Attribution(weights.T.astype(np.float32), np.zeros(90)).save(tmp_path / "a.h5ad")
    file = WeightsFile(tmp_path / "a.h5ad")
    assert file.dense is not sparse
    monkeypatch.setattr("datamodels.explorer.weights._BLOCK_BYTES", 4 * 150 * 20)  # several blocks
    norm = measured.sums(file, lambda done: None)["norm"]
    found, exact = measured.randomised_pca(file, norm, lambda done: None), embed(weights)
    np.testing.assert_allclose(found[:, :3], exact[:, :3], atol=2e-3)


@pytest.mark.parametrize("name", ["lasso", "ridge"])
def test_weights_of_both_sides(client: TestClient, folder: Path, name: str) -> None:
    weights = Attribution.load(folder / f"{name}.h5ad").weights
    number = ["lasso", "ridge"].index(name)
    for side, index in (("targets", 0), ("targets", 39), ("train", 0), ("train", 59)):
        body = ask(client, f"weights/{number}/{side}/{index}")
        count = np.frombuffer(body, np.int32, 1)[0]
        indices, values = np.frombuffer(body, np.int32, count, 4), np.frombuffer(body, np.float32, count, 4 + 4 * count)
        assert len(body) == 4 + 8 * count
        row = weights[:, index] if side == "targets" else weights[index]
        expected = np.zeros_like(row)
        expected[indices] = values
        np.testing.assert_array_equal(expected, row)
        assert (np.diff(np.abs(values)) <= 0).all()


def test_strongest_cuts_long_rows() -> None:
    row = (np.arange(5, dtype=np.int32), np.array([1, -3, 2, 3, -1], np.float32))
    assert strongest(row, 3)[0].tolist() == [1, 3, 2]
    many = np.random.default_rng(0).integers(-9, 10, 500).astype(np.float32)
    whole = strongest((np.arange(500), many))
    for k in (1, 7, 499, 500, 900):
        for cut, all_of in zip(strongest((np.arange(500), many), k), whole, strict=True):
            np.testing.assert_array_equal(cut, all_of[:k])


def test_the_page_of_a_target(client: TestClient, folder: Path) -> None:
    outputs = np.asarray(Store.open(folder / "half").array("margins"))[:, 7].astype(np.float64)
    found = client.get("/api/details/targets/7").json()
    counts, _ = np.histogram(outputs, 30)
    assert sum(found["outputs"]["counts"]) == len(outputs)
    assert np.abs(np.array(found["outputs"]["counts"]) - counts).sum() <= 2  # values on an edge
    assert found["outputs"]["low"] == pytest.approx(outputs.min())
    lasso = Attribution.load(folder / "lasso.h5ad")
    fitted = found["fit"]["lasso"]
    assert fitted["lam"] == pytest.approx(lasso.target_facts["lam"][7])
    path = found["path"]["lasso"]
    assert path["lam"][path["chosen"]] == pytest.approx(fitted["lam"])
    assert len(path["lam"]) == len(path["error"]) == len(path["n_nonzero"])
    embedding = embed(Attribution.load(folder / "ridge.h5ad"))
    unit = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    order = [i for i in np.argsort(-(unit @ unit[7])) if i != 7]
    assert [near["index"] for near in found["nearest"]] == order[:12]
    assert found["nearest"][0]["similarity"] == pytest.approx(unit[order[0]] @ unit[7])


def test_intervals_and_selections_lie_beside_their_attribution(client: TestClient, folder: Path) -> None:
    from datamodels.significance.intervals import Intervals
    from datamodels.significance.knockoffs import Selection

    known, chosen = Intervals.load(folder / "intervals.h5ad"), Selection.load(folder / "selection.h5ad")
    for target in range(0, 40, 7):
        found = client.get(f"/api/details/targets/{target}").json().get("intervals", {})
        assert set(found) <= {"lasso"}
        if found:
            given = found["lasso"]
            np.testing.assert_allclose(np.array(given["low"], float), known.low[given["indices"], target], rtol=1e-6)
            np.testing.assert_allclose(np.array(given["high"], float), known.high[given["indices"], target], rtol=1e-6)
            assert given["selected"] == chosen.selected[given["indices"], target].tolist()


def test_the_page_of_a_training_example_names_its_copies(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    x = rng.normal(size=(30, 6))
    x[17] = x[4]
    datasets.register("with_a_copy", lambda: from_arrays("with_a_copy", x, np.arange(30) % 2, x[:5], np.arange(5) % 2))
    Attribution(rng.normal(size=(30, 5)), np.zeros(5)).save(tmp_path / "a.h5ad")
    save_run(tmp_path, dataset="with_a_copy")
    content = gather(tmp_path, progress=False)
    assert content.details("train", 4)["duplicates"] == [{"index": 17, "distance": 0.0}]
    assert "duplicates" not in content.details("train", 5)
    row = content.details("targets", 2)["row"]
    assert len(row) == 6
    assert {name: value for name, value, _ in row}["feature 3"] == pytest.approx(x[2, 3])
    assert len(content.examples["train"].snippets()["texts"]) == 30


def save_run(folder: Path, **more: Any) -> None:
    """A run of one attribution, ``a.h5ad``, without a store."""
    Run(
        title="one", created="2026-01-01T00:00:00+00:00", stores={"s": "s"},
        attributions={"a": RunAttribution(path="a.h5ad", store="s")}, view=View(neighbours="a", embedding="a"), **more,
    ).save(folder)  # fmt: skip


def test_pictures_are_the_tiles_of_a_sheet(client: TestClient, content: Content) -> None:
    sheet = np.asarray(Image.open(io.BytesIO(ask(client, "sprite/train/0.png"))))
    images = datasets.load(DATA).train.images
    assert images is not None
    per_row = content.meta()["sprites"]["train"]["per_row"]
    for i in (0, 31, 32, 59):
        top, left = 8 * (i // per_row), 8 * (i % per_row)
        np.testing.assert_array_equal(sheet[top : top + 8, left : left + 8], images[i])


def test_groups_describe_the_clusters(client: TestClient) -> None:
    groups = client.get("/api/groups").json()
    clusters, digits = column(client, "targets", "cluster"), column(client, "targets", "digit")
    assert groups["n_clusters"] == len(np.unique(clusters)) == len(np.unique(digits))
    for row in groups["rows"]:
        members = np.flatnonzero(clusters == row["cluster"])
        assert row["size"] == len(members) == sum(count for _, count in row["composition"])
        assert {str(digit) for digit in digits[members]} == {name for name, _ in row["composition"]}
        assert set(row["representatives"]) <= set(members.tolist())
        assert 0 <= row["stability"] <= 1
    assert "Rand" in groups["statements"][0]
    assert groups["column"] == "cluster"


def test_clusters_are_not_taken_for_a_column_of_the_data(cells: Path) -> None:
    content = gather(cells, progress=False)
    assert content.groups is not None
    assert content.subgroups is not None
    assert content.groups["column"] == "cluster (computed)"
    columns = {one.name: one for one in content.columns["targets"]}
    assert columns["cluster"].texts() == [f"u{i % 4}" for i in range(60)]
    assert columns["cluster (computed)"].values.tolist() == content.subgroups["clusters"]


def test_names_of_examples_are_no_labels(tmp_path: Path) -> None:
    def gathered(**obs: Any) -> Content:
        data = Attribution(np.random.default_rng(0).normal(size=(20, 36)), np.zeros(36)).to_anndata()
        for name, values in obs.items():
            data.obs[name] = values
        path = tmp_path / f"{'_'.join(obs)}.h5ad"
        data.write_h5ad(path)
        return gather(path, progress=False)

    names = [f"s{i}" for i in range(36)]
    for obs in ({"barcode": names}, {"ids": names}, {"well": [f"w{i % 13}" for i in range(36)]}):
        found = gathered(**obs)
        assert found.labels["targets"] is None
        assert found.groups is not None
        assert (found.groups["n_clusters"], found.groups["label"]) == (10, None)
    found = gathered(barcode=names, well=[f"w{i % 12}" for i in range(36)])
    assert found.labels["targets"] == "well"
    assert found.groups is not None
    assert found.groups["n_clusters"] == 12


# -- what if --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("add", [False, True])
def test_whatif_is_the_difference_of_two_predictions(client: TestClient, folder: Path, add: bool) -> None:
    lasso = Attribution.load(folder / "lasso.h5ad")
    examples = [3, 17, 40, 41]
    body = post(client, "whatif", {"attribution": "lasso", "examples": examples, "add": add}).content
    predicted, low, high = np.frombuffer(body, np.float32).reshape(3, 40)
    masks = np.ones((2, 60), bool)
    masks[1, examples] = False
    full, without = lasso.predict(masks)
    np.testing.assert_allclose(predicted, (full - without) if add else (without - full), atol=1e-5)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_whatif_of_a_calibrated_attribution_has_its_intervals(client: TestClient, folder: Path) -> None:
    ridge = Attribution.load(folder / "ridge.h5ad")
    body = post(client, "whatif", {"attribution": "ridge", "examples": [5, 6, 7], "add": False}).content
    expected = removal(ridge, np.array([5, 6, 7]))
    np.testing.assert_allclose(np.frombuffer(body, np.float32).reshape(3, 40), np.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"examples": [60]},
        {"examples": [-1]},
        {"examples": [3, 3]},
        {"examples": [1.5]},
        {"examples": ["1"]},
        {"attribution": "none"},
        {"attribution": 0},
        {"add": "yes"},
        {"more": 1},
    ],
)
def test_wrong_questions_are_refused(client: TestClient, change: dict[str, Any]) -> None:
    answer = post(client, "whatif", {"attribution": "lasso", "examples": [1], "add": False, **change})
    assert 400 <= answer.status_code < 500
    assert "detail" in answer.json()


# -- verification ---------------------------------------------------------------------------------------


def wait(verifier: Verifier, name: str) -> dict[str, Any]:
    end = time.monotonic() + 60
    while (state := verifier.state(name))["state"] == "running":
        assert time.monotonic() < end
        time.sleep(0.02)
    return state


def test_verification_retrains_and_compares(content: Content, tmp_path: Path) -> None:
    verifier = Verifier(content, executor="inline")
    with TestClient(app(content, verifier=verifier), base_url=ADDRESS) as client:
        question = {"attribution": "lasso", "examples": [9, 1, 5], "add": False, "runs": 3}
        name = post(client, "verify", question).json()["id"]
        wait(verifier, name)
        state = client.get(f"/api/verification/{name}").json()
        assert (state["state"], state["done"], state["total"]) == ("done", 6, 6)
        result = state["result"]
        masks = np.ones((3, 60), bool)
        full = retrain(
            content.task, masks, outputs=("margins",), folder=tmp_path / "a", executor="inline", progress=False
        )
        masks[:, [1, 5, 9]] = False
        less = retrain(
            content.task, masks, outputs=("margins",), folder=tmp_path / "b", seed=1, executor="inline", progress=False
        )
        actual = less["margins"].mean(axis=0) - full["margins"].mean(axis=0)
        np.testing.assert_allclose(result["actual"], actual, atol=1e-5)
        predicted = content.whatif(content.attribution("lasso"), [1, 5, 9], add=False)[0]
        np.testing.assert_allclose(result["predicted"], predicted)
        assert all(a <= b <= c for a, b, c in zip(result["low"], result["actual"], result["high"], strict=True))
        assert set(result["agreement"]) == {"pearson", "spearman", "low", "high", "slope"}
        # The same question in another order is answered already, also after a restart.
        again = Verifier(content, executor="inline")
        assert again.start("lasso", [1, 5, 9], add=False, runs=3) == name
        assert again.state(name)["state"] == "done"
        added = wait(verifier, verifier.start("lasso", [1, 5, 9], add=True, runs=3))["result"]
        np.testing.assert_allclose(added["actual"], -actual, atol=1e-5)


@pytest.mark.parametrize("add", [False, True])
def test_targets_that_are_training_examples_are_judged_on_models_that_did_not_see_them(cells: Path, add: bool) -> None:
    content = gather(cells, progress=False)
    shown, examples, runs = content.attribution("ridge"), [3, 4, 11, 40], 9
    verifier = Verifier(content, executor="inline")
    name = verifier.start("ridge", examples, add=add, runs=runs)
    result = wait(verifier, name)["result"]
    more, less = (Store.open(path) for path in verifier._stores(name, runs))
    outputs = [np.asarray(store.array("train_margins"), np.float64) for store in (more, less)]
    rest = np.setdiff1d(np.arange(60), examples)
    assert more.masks()[:, examples].all()
    assert not less.masks()[:, examples].any()
    np.testing.assert_array_equal(more.masks()[:, rest], less.masks()[:, rest])
    assert len(np.unique(more.masks(), axis=0)) > runs / 2
    assert 0.4 < less.masks()[:, rest].mean() < 0.6
    unseen = ~more.masks()
    judged = [t for t in range(60) if unseen[:, t].sum() >= 2]
    assert result["targets"] == judged
    assert not set(judged) & set(examples)
    assert (result["chosen"], result["seen"]) == (4, 56 - len(judged))
    change = (outputs[0] - outputs[1]) * (1 if add else -1)
    pairs = {t: change[unseen[:, t], t] for t in judged}
    np.testing.assert_allclose(result["actual"], [pairs[t].mean() for t in judged], rtol=1e-6)
    wide = [stats.t.ppf(0.975, len(one) - 1) * one.std(ddof=1) / np.sqrt(len(one)) for one in pairs.values()]
    np.testing.assert_allclose(np.array(result["high"]) - result["actual"], wide, rtol=1e-6)
    np.testing.assert_allclose(result["predicted"], content.whatif(shown, examples, add=add)[0][judged])


def test_a_verification_that_could_judge_no_target_is_refused(cells: Path, tmp_path: Path) -> None:
    content = gather(cells, progress=False)
    with pytest.raises(RequestError, match="subset is empty"):
        Verifier(content).start("ridge", list(range(1, 60)), add=False, runs=2)
    all_but_one = Design(n_train=60, n_models=60, kind="leave_one_out")
    schema = {"train_margins": {"shape": [60], "dtype": "float32"}}
    store = Store.create(tmp_path / "s", schema=schema, design=all_but_one)
    with pytest.raises(RequestError, match="no target has"):
        Verifier(replace(content, store=store)).start("ridge", [1], add=False, runs=2)
    with pytest.raises(RequestError, match="not at hand"):
        Verifier(replace(content, store=None)).start("ridge", [1], add=False, runs=2)


def test_one_verification_at_a_time_and_failures_say_why(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate = threading.Event()

    def held(*args: Any, **kwargs: Any) -> Any:
        gate.wait(20)
        raise RuntimeError("no more disk")

    monkeypatch.setattr("datamodels.evaluation.retraining.retrain", held)
    verifier = Verifier(content, executor="inline")
    with TestClient(app(content, verifier=verifier), base_url=ADDRESS) as client:
        name = verifier.start("lasso", [2], add=False, runs=2)
        assert client.get(f"/api/verification/{name}").json()["state"] == "running"
        assert verifier.start("lasso", [2], add=False, runs=2) == name
        with pytest.raises(Busy):
            verifier.start("lasso", [3], add=False, runs=2)
        assert post(client, "verify", {"attribution": "lasso", "examples": [3], "runs": 2}).status_code == 409
        gate.set()
        state = wait(verifier, name)
        assert state["state"] == "failed"
        assert "no more disk" in state["message"]
        assert "no more disk" in Verifier(content).state(name)["message"]
    for wrong in ("..", "nothing", "base", "%2e%2e"):
        assert client.get(f"/api/verification/{wrong}").status_code == 404
    assert post(client, "verify", {"attribution": "lasso", "examples": [3], "runs": 1}).status_code == 400
    assert post(client, "verify", {"attribution": "lasso", "examples": [], "runs": 2}).status_code == 400


def test_closing_stops_a_verification_which_goes_on_later(folder: Path, tmp_path: Path) -> None:
    content = gather(folder, cache=tmp_path / "cache", progress=False)
    slow = replace(content.task, recipe=content.task.recipe.with_parameters({"epochs": 300}))
    verifier = Verifier(replace(content, task=slow), executor="inline")
    name = verifier.start("lasso", [2], add=False, runs=1000)
    end = time.monotonic() + 30
    while verifier.state(name)["done"] < 1:
        assert time.monotonic() < end
        time.sleep(0.02)
    verifier.close()
    state = verifier.state(name)
    assert state["state"] == "failed"
    assert "start it again" in state["message"]
    assert 0 < state["done"] < state["total"]


# -- safety ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "host", ["evil.example", "127.0.0.1:81", "localhost:8080", "127.0.0.1.evil.example", "", "[::1]"]
)
def test_other_hosts_are_refused(client: TestClient, host: str) -> None:
    answer = client.get("/api/meta", headers={"host": host})
    assert answer.status_code == 400
    assert client.get("/api/meta", headers={"host": "localhost"}).status_code == 200


@pytest.mark.parametrize("origin", ["http://evil.example", "null", "https://127.0.0.1", "http://127.0.0.1:99", None])
def test_other_origins_cannot_post(client: TestClient, origin: str | None) -> None:
    headers = {} if origin is None else {"origin": origin}
    answer = client.post("/api/whatif", json={"attribution": "lasso", "examples": [1], "add": False}, headers=headers)
    assert answer.status_code == 403


def test_bodies_are_json_and_small(client: TestClient) -> None:
    form = client.post("/api/whatif", content="a=1", headers={"origin": ADDRESS, "content-type": "text/plain"})
    assert form.status_code == 415
    large = client.post(
        "/api/whatif",
        content=b"x" * (LARGEST_BODY + 1),
        headers={"origin": ADDRESS, "content-type": "application/json"},
    )
    assert large.status_code == 413

    def pieces() -> Iterator[bytes]:
        yield b"{}"

    unknown = client.post(
        "/api/whatif", content=pieces(), headers={"origin": ADDRESS, "content-type": "application/json"}
    )
    assert unknown.status_code == 411


@pytest.mark.parametrize(
    "path",
    [
        "/static/../content.py", "/static/..%2fcontent.py", "/static/%2e%2e/content.py", "/static/%2e%2e%2f%2e%2e%2frun.py",
        "/static//etc/passwd", "/static/content.py", "/../run.json", "/docs", "/openapi.json", "/api/none",
        "/api/column/other/0", "/api/column/targets/999", "/api/column/targets/-1", "/api/map/99", "/api/map/-1",
        "/api/weights/2/targets/0", "/api/weights/0/targets/40", "/api/weights/0/train/60", "/api/details/train/60",
        "/api/details/targets/-1", "/api/sprite/targets/1.png", "/api/sprite/other/0.png", "/api/agreement/0/2",
    ],
)  # fmt: skip
def test_what_is_not_there_is_404(client: TestClient, path: str) -> None:
    assert client.get(path).status_code == 404


def test_answers_carry_security_headers(client: TestClient) -> None:
    for answer in (client.get("/api/meta"), client.get("/api/none"), client.get("/", headers={"host": "evil"})):
        policy = answer.headers["content-security-policy"]
        assert "connect-src 'self'" in policy
        assert "http" not in policy
        assert "*" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_ranges_etags_and_packing(client: TestClient) -> None:
    whole = client.get("/api/map/0")
    assert whole.headers["accept-ranges"] == "bytes"
    for asked, part in (
        ("bytes=8-15", whole.content[8:16]),
        ("bytes=-12", whole.content[-12:]),
        ("bytes=300-", whole.content[300:]),
    ):
        found = client.get("/api/map/0", headers={"range": asked})
        assert (found.status_code, found.content) == (206, part)
        assert found.headers["content-range"].endswith(f"/{len(whole.content)}")
    assert client.get("/api/map/0", headers={"range": "bytes=99999-"}).status_code == 416
    assert client.get("/api/map/0", headers={"range": "rows=1-2"}).content == whole.content
    etag = whole.headers["etag"]
    assert client.get("/api/map/0", headers={"if-none-match": etag}).status_code == 304
    assert client.get("/api/map/0", headers={"range": "bytes=0-3", "if-range": '"old"'}).status_code == 200
    assert client.get("/api/column/targets/0").headers["etag"] != etag
    packed = client.get("/api/meta", headers={"accept-encoding": "gzip"})
    assert packed.headers["content-encoding"] == "gzip"
    assert packed.json() == client.get("/api/meta", headers={"accept-encoding": "identity"}).json()


def test_no_request_makes_the_server_fail(content: Content) -> None:
    with TestClient(app(content), base_url=ADDRESS, raise_server_exceptions=False) as client:
        whole = client.get("/api/map/0").content
        for asked in ("9" * 5000 + "-", "0-" + "9" * 5000, "-" + "9" * 5000):
            found = client.get("/api/map/0", headers={"range": f"bytes={asked}"})
            assert (found.status_code, found.content) == (200, whole)
        headers = {"origin": ADDRESS, "content-type": "application/json"}
        for body in ('{"attribution": "lasso", "examples": [NaN]}', '{"attribution": NaN}', "[" * 100_000, "NaN"):
            answer = client.post("/api/whatif", content=body, headers=headers)
            assert answer.status_code in (400, 422)
            assert isinstance(answer.json()["detail"], str)


@pytest.mark.parametrize("length", ["9" * 5000, "\u00b2", "-1", "1e3"])
def test_lengths_that_are_no_numbers_are_refused(client: TestClient, length: str) -> None:
    headers = {"origin": ADDRESS, "content-type": "application/json", "content-length": length.encode("latin-1")}
    assert client.post("/api/whatif", content=b"{}", headers=headers).status_code == 411  # type: ignore[arg-type]


def test_errors_carry_security_headers_too(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Content, "meta", lambda self: {}["nothing"])
    with TestClient(app(content), base_url=ADDRESS, raise_server_exceptions=False) as client:
        answer = client.get("/api/meta")
    assert answer.status_code == 500
    assert "connect-src 'self'" in answer.headers["content-security-policy"]
    assert answer.headers["x-content-type-options"] == "nosniff"


class Bomb:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("exploded"),)


def test_nothing_in_a_file_is_executed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import h5py

    monkeypatch.chdir(tmp_path)
    Attribution(np.eye(6, 4), np.zeros(4), {"good": np.arange(4)}).save(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        bomb = np.void(pickle.dumps(Bomb()))
        file["obs"].create_dataset("bomb", data=np.array([bomb] * 4))
        file["uns/datamodels"].create_dataset("arrays/bomb", data=bomb)
    content = gather(tmp_path / "a.h5ad", progress=False)
    names = [about["name"] for about in content.meta()["targets"]["columns"]]
    assert "good" in names
    assert "bomb" not in names
    assert not (tmp_path / "exploded").exists()
    cached = content.cache.folder / next(name for name in content.cache.made if name.startswith("sums"))
    np.savez(cached, norm=np.array([Bomb()], dtype=object), allow_pickle=True)
    assert gather(tmp_path / "a.h5ad", progress=False).cache.made == [cached.name]
    assert not (tmp_path / "exploded").exists()


def test_code_that_a_run_names_is_not_called_unless_trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "planted.py").write_text(
        "import pathlib\npathlib.Path('imported').touch()\ndef data(): raise SystemExit\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    Attribution(np.eye(6, 4), np.zeros(4)).save(tmp_path / "a.h5ad")
    for dataset in ("planted:data", "planted:data[5,5]"):
        save_run(tmp_path, dataset=dataset)
        assert any("--trust" in text for _, text in gather(tmp_path, progress=False).facts)
    assert not (tmp_path / "imported").exists()
    with pytest.raises(SystemExit):
        gather(tmp_path, trust=True, progress=False)
    assert (tmp_path / "imported").exists()


def test_any_obs_column_of_a_file_is_a_column(tmp_path: Path) -> None:
    import pandas as pd

    data = Attribution(np.eye(6, 4), np.zeros(4)).to_anndata()
    data.obs["kind"] = pd.Categorical(["b", None, "a", "b"])
    data.obs["name"] = ["w", "x", "y", "z"]
    data.obs["count"] = pd.array([1, None, 3, 4], dtype="Int64")
    data.obs["fine"] = [True, False, True, True]
    data.var["depth"] = np.arange(6.0)
    data.obs_names = [f"cell {i}" for i in range(4)]
    data.write_h5ad(tmp_path / "a.h5ad")
    content = gather(tmp_path / "a.h5ad", progress=False)
    columns = {column.name: column for column in content.columns["targets"]}
    assert columns["kind"].texts() == ["b", "", "a", "b"]
    assert columns["kind"].categories == ("a", "b")
    assert columns["name"].texts() == ["w", "x", "y", "z"]
    np.testing.assert_array_equal(columns["count"].values, np.array([1, np.nan, 3, 4], np.float32))
    assert columns["fine"].texts() == ["yes", "no", "yes", "yes"]
    assert content.details("targets", 2)["id"] == "cell 2"
    assert {column.name for column in content.columns["train"]} >= {"depth"}


def test_numbers_are_shown_and_saved_as_they_are(cells: Path) -> None:
    import pyarrow.parquet as parquet

    with TestClient(app(gather(cells, progress=False)), base_url=ADDRESS) as client:
        columns = client.get("/api/meta").json()["targets"]["columns"]
        numbers = {one["name"]: (k, one.get("wide", False)) for k, one in enumerate(columns)}
        assert numbers["date"][1]
        assert not numbers["depth"][1]
        assert not numbers["mean output"][1]
        dates = np.frombuffer(ask(client, f"column/targets/{numbers['date'][0]}"), np.float64)
        assert dates.tolist() == (20230115 + np.arange(60)).tolist()
        table = parquet.read_table(io.BytesIO(ask(client, "table/targets.parquet")))
    assert str(table.schema.field("date").type) == "int64"
    assert str(table.schema.field("depth").type) == "float"
    assert table.column("date").to_pylist() == dates.tolist()
    assert table.column("code").to_pylist() == [str(2**60 + i) for i in range(60)]
    shown = data_in((cells / "index.html").read_text())
    np.testing.assert_array_equal(decoded(shown["columns"]["targets"]["date"], np.float64), dates)


def test_floats_of_a_file_keep_their_figures(tmp_path: Path) -> None:
    data = Attribution(np.eye(6, 4), np.zeros(4)).to_anndata()
    data.obs["share"] = [0.1, 0.2, np.nan, 1 / 3]
    data.obs["half"] = [0.5, 0.25, np.nan, 1.0]
    data.write_h5ad(tmp_path / "a.h5ad")
    columns = {one.name: one for one in gather(tmp_path / "a.h5ad", progress=False).columns["targets"]}
    assert columns["share"].packed.tolist()[:2] == [0.1, 0.2]
    assert columns["half"].packed.dtype == np.float32


def test_other_files_are_refused(tmp_path: Path, folder: Path) -> None:
    import h5py

    with pytest.raises(RequestError, match="no file"):
        gather(tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("hello")
    with pytest.raises(RequestError, match="not a readable attribution"):
        gather(tmp_path / "text.h5ad")
    with pytest.raises(RequestError, match="is no attribution"):
        gather(folder / "intervals.h5ad")
    shutil.copy(folder / "lasso.h5ad", tmp_path / "newer.h5ad")
    with h5py.File(tmp_path / "newer.h5ad", "r+") as file:
        file["uns/datamodels/format_version"][()] = 99
    with pytest.raises(NewerFormatError, match="99"):
        gather(tmp_path / "newer.h5ad")


# -- the cache ------------------------------------------------------------------------------------------


def test_a_second_opening_computes_nothing(folder: Path, content: Content, tmp_path: Path) -> None:
    again = gather(folder, progress=False)
    assert again.cache.made == []
    assert again.version == content.version
    assert again.meta() == content.meta()
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    assert gather(copy, progress=False).cache.made == []
    before = {path.name for path in (copy / ".explorer").iterdir()}
    lasso = Attribution.load(copy / "lasso.h5ad")
    replace(lasso, weights=lasso.weights * 2).save(copy / "lasso.h5ad")
    changed = gather(copy, progress=False)
    assert any(name.startswith("sums") for name in changed.cache.made)
    assert not any(name.startswith("outputs") for name in changed.cache.made)
    assert changed.version != content.version
    gone = before - {path.name for path in (copy / ".explorer").iterdir()}
    assert any(name.startswith("sums") for name in gone)


def test_files_of_one_name_and_size_are_told_apart(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    weights = {name: rng.normal(size=(50, 20)).astype(np.float32) for name in ("lasso", "trak")}
    for name, values in weights.items():
        (tmp_path / name).mkdir()
        Attribution(values, np.zeros(20)).save(tmp_path / name / "fit.h5ad")
        os.utime(tmp_path / name / "fit.h5ad", (1.7e9, 1.7e9))
    Run(
        title="two", created="2026-01-01T00:00:00+00:00", stores={"s": "s"}, view=View(neighbours="lasso", embedding="lasso"),
        attributions={name: RunAttribution(path=f"{name}/fit.h5ad", store="s") for name in weights},
    ).save(tmp_path)  # fmt: skip
    content = gather(tmp_path, progress=False)
    for name, values in weights.items():
        found = content.whatif(content.attribution(name), [0, 1], add=True)[0]
        np.testing.assert_allclose(found, values[:2].sum(axis=0), atol=1e-5)
    before = content.attribution("trak").file.identity
    Attribution(np.roll(weights["trak"], 1), np.zeros(20)).save(tmp_path / "trak" / "fit.h5ad")
    os.utime(tmp_path / "trak" / "fit.h5ad", (1.7e9, 1.7e9))
    after = gather(tmp_path, progress=False).attribution("trak").file.identity
    assert after[:3] == before[:3]
    assert after != before


def test_a_dataset_changes_with_its_table(tmp_path: Path) -> None:
    (tmp_path / "c.bed").write_bytes(b"x")
    table = tmp_path / "a table.csv"
    table.write_text("iid,y\n1,a\n")
    name = datasets.name_of({"kind": "plink", "path": str(tmp_path / "c"), "label": "y", "table": str(table)})
    before = identity(name)
    assert identity(name) == before
    table.write_text("iid,y\n1,b\n")
    assert identity(name) != before


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weights_that_are_not_finite_are_refused_by_name(tmp_path: Path, bad: float, sparse: bool) -> None:
    import h5py

    weights = np.random.default_rng(0).normal(size=(30, 20)) * (np.arange(20) % 4 == 0 if sparse else 1)
    Attribution(weights, np.zeros(20)).save(tmp_path / "a.h5ad")
    with h5py.File(tmp_path / "a.h5ad", "r+") as file:
        if sparse:
            file["X/data"][31] = bad
        else:
            file["X"][4, 5] = bad
    with pytest.raises(RequestError, match=r"a\.h5ad' has weights that are NaN or infinite, first of target 4"):
        gather(tmp_path / "a.h5ad", progress=False)


def test_an_error_of_computing_is_not_taken_for_a_damaged_file(tmp_path: Path) -> None:
    cache = Cache(tmp_path)
    calls: list[int] = []

    def fails() -> Any:
        calls.append(1)
        raise ValueError("singular")

    for ask_ in (cache.arrays, cache.json):
        with pytest.raises(ValueError, match="singular"):
            ask_("kind", [1], fails)
    assert len(calls) == 2
    cache.json("kind", [1], lambda: 5)
    cache.path("kind", "json", 1).write_text("{")
    assert cache.json("kind", [1], lambda: 6) == 6
    cache.arrays("kind", [1], lambda: {"a": np.ones(2)})
    cache.path("kind", "npz", 1).write_bytes(b"")
    assert cache.arrays("kind", [1], lambda: {"a": np.zeros(2)})["a"].tolist() == [0, 0]


@pytest.mark.parametrize("shared", [True, False])
def test_files_of_one_folder_keep_what_is_computed_of_each(tmp_path: Path, shared: bool) -> None:
    how = {"cache": tmp_path / "kept"} if shared else {}
    for name in "ab":
        weights = np.random.default_rng(ord(name)).normal(size=(30, 20))
        Attribution(weights, np.zeros(20)).save(tmp_path / f"{name}.h5ad")
        assert gather(tmp_path / f"{name}.h5ad", progress=False, **how).cache.made
    for name in "ab":
        assert gather(tmp_path / f"{name}.h5ad", progress=False, **how).cache.made == []


def test_the_cache_can_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    Attribution(np.eye(6, 4), np.zeros(4)).save(tmp_path / "a.h5ad")
    gather(tmp_path / "a.h5ad", cache=tmp_path / "kept", progress=False)
    assert (tmp_path / "kept").is_dir()
    assert not (tmp_path / ".explorer").exists()


# -- the export -----------------------------------------------------------------------------------------


def decoded(text: str, kind: Any) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind)


def data_in(text: str) -> dict[str, Any]:
    found = re.findall(r'<script type="application/json" id="datamodels-data">(.*?)</script>', text, flags=re.DOTALL)
    assert len(found) == 1
    return json.loads(found[0])


STATIC = {
    "index.html": '<!doctype html>\n<html><head>\n<title>x</title>\n<link rel="stylesheet" href="static/style.css">\n</head>'
    '<body>\n<script src="static/plotly.js"></script>\n<script type="module" src="static/app.js"></script>\n</body></html>',
    "style.css": "body { color: red }",
    "app.js": 'import { one } from "./one.js";\nexport const x = one();',
    "one.js": "export function one() {\n  return 1;\n}",
}


@pytest.fixture
def static(tmp_path: Path) -> Path:
    folder = tmp_path / "static"
    folder.mkdir()
    for name, text in STATIC.items():
        (folder / name).write_text(text)
    return folder


def test_an_export_holds_the_same_arrays(content: Content, folder: Path, static: Path) -> None:
    text = page(content, static)
    data = data_in(text)
    lasso = Attribution.load(folder / "lasso.h5ad").weights
    packed = data["weights"]["lasso"]
    starts, indices = decoded(packed["indptr"], np.int32), decoded(packed["indices"], np.int32)
    values = decoded(packed["values"], np.float32)
    whole = np.zeros_like(lasso)
    for k in range(40):
        part = slice(starts[k], starts[k + 1])
        whole[indices[part], k] = values[part]
    np.testing.assert_array_equal(whole, lasso)
    for side in ("targets", "train"):
        for column in content.columns[side]:  # type: ignore[index]
            found = decoded(data["columns"][side][column.name], column.packed.dtype)
            np.testing.assert_array_equal(found, column.values)
    np.testing.assert_array_equal(decoded(data["maps"]["PCA, ridge"], np.float32).reshape(40, 2), content.map(0))
    assert len(data["details"]["targets"]) == 40
    assert data["details"]["targets"][3]["outputs"]["runs"] == 160
    assert data["meta"]["can_verify"] is False
    assert data["sprites"]["targets"][0].startswith("data:image/png;base64,")
    assert "connect-src 'none'" in text
    own = re.sub(r"<script.*?</script>", "", text, flags=re.DOTALL)
    assert "static/" not in own
    assert "http:" not in own
    assert "https:" not in own


def test_dense_attributions_are_cut_in_an_export(tmp_path: Path, static: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(150, 5)).astype(np.float32)
    Attribution(weights, np.zeros(5)).save(tmp_path / "a.h5ad")
    data = data_in(page(gather(tmp_path / "a.h5ad", progress=False), static))
    (about,) = data["meta"]["attributions"]
    assert about["cut"] == 100
    packed = data["weights"][about["name"]]
    assert decoded(packed["indptr"], np.int32).tolist() == list(range(0, 501, 100))
    first = set(decoded(packed["indices"], np.int32)[:100].tolist())
    assert first == set(np.argsort(-np.abs(weights[:, 0]))[:100].tolist())
    np.testing.assert_allclose(decoded(packed["size"], np.float32), np.abs(weights).sum(axis=1), rtol=1e-5)


@pytest.mark.parametrize(("room", "steps"), [(2 * 750, 32767), (750, 127), (749, None)])
def test_all_weights_of_a_dense_attribution_are_there_rounded_where_they_fit(
    tmp_path: Path, static: Path, monkeypatch: pytest.MonkeyPatch, room: int, steps: int | None
) -> None:
    monkeypatch.setattr(exporting, "_ROUNDED", room)
    weights = np.random.default_rng(0).normal(size=(150, 5)).astype(np.float32)
    weights[:, 3] = 0
    Attribution(weights, np.zeros(5)).save(tmp_path / "a.h5ad")
    data = data_in(page(gather(tmp_path / "a.h5ad", progress=False), static))
    (about,) = data["meta"]["attributions"]
    packed = data["weights"][about["name"]]
    assert about["steps"] == steps
    assert ("rounded" in packed) is (steps is not None)
    if steps is not None:
        whole = decoded(packed["rounded"], np.int16 if steps > 127 else np.int8).reshape(150, 5)
        found = whole * decoded(packed["units"], np.float32)
        assert (np.abs(found - weights) <= 0.5001 * np.abs(weights).max(axis=0) / steps).all()


def test_the_room_for_rounded_weights_is_shared(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    content = dense_run(tmp_path, 150, 5)
    for room, steps in ((3000, [32767, 32767]), (2999, [127, 127]), (1499, [127, None]), (749, [None, None])):
        monkeypatch.setattr(exporting, "_ROUNDED", room)
        assert [about["steps"] for about in data_of(content)["meta"]["attributions"]] == steps


def test_an_export_compares_as_the_server_does(tmp_path: Path) -> None:
    content = dense_run(tmp_path, 150, 5)
    data, expected = data_of(content), content.agreement(*content.attributions)
    assert list(data["agreement"]) == ["0/1"]
    found = decoded(data["agreement"]["0/1"], np.float32).reshape(2, 5)
    np.testing.assert_array_equal(found, [expected["overlap"], expected["cosine"]])


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


def test_hostile_labels_are_data(tmp_path: Path, static: Path) -> None:
    names = np.array([HOSTILE, "plain", "<!--", "</SCRIPT>"] * 2)
    attribution = Attribution(
        np.random.default_rng(0).normal(size=(6, 8)),
        np.zeros(8),
        {HOSTILE.replace("/", ""): names, "id": names, "text": names},
        provenance={"estimator": {"name": HOSTILE}},
    )
    attribution.save(tmp_path / "a.h5ad")
    content = gather(tmp_path / "a.h5ad", progress=False)
    text = page(replace(content, title=HOSTILE), static)
    assert tags_of(text) == tags_of(page(gather_plain(tmp_path), static))
    data = data_in(text)
    assert data["meta"]["title"] == HOSTILE
    assert data["meta"]["attributions"][0]["name"] == HOSTILE
    column = next(c for c in data["meta"]["targets"]["columns"] if "img" in c["name"])
    codes = decoded(data["columns"]["targets"][column["name"]], np.int32)
    assert [column["categories"][code] for code in codes] == names.tolist()
    assert data["names"]["targets"]["ids"] == names.tolist()
    assert data["details"]["targets"][0]["text"] == HOSTILE
    with TestClient(app(content), base_url=ADDRESS) as client:
        answer = client.get("/api/meta")
        assert answer.headers["content-type"] == "application/json"
        assert answer.json()["attributions"][0]["name"] == HOSTILE


def gather_plain(folder: Path) -> Content:
    Attribution(np.eye(6, 8), np.zeros(8)).save(folder / "plain.h5ad")
    return gather(folder / "plain.h5ad", cache=folder / "plain", progress=False)


def tags_of(text: str) -> list[str]:
    """The elements that a browser makes of a page."""
    found: list[str] = []
    parser = HTMLParser()
    parser.handle_starttag = lambda tag, attributes: found.append(tag)  # type: ignore[method-assign]
    parser.feed(text)
    return found


def test_modules_become_one_script_in_the_order_of_their_imports() -> None:
    modules = {
        "app.js": 'import { a, b } from "./b.js";\nimport {c} from "./c.js"\nexport async function start() {\n  return a + b + c;\n}\nstart();',
        "b.js": "import { c } from './c.js';\nexport const a = c, x = 1;\nexport class b {}\n// export in a comment",
        "c.js": "export let c = 2;\nfunction own() {}",
        "unused.js": "export const never = 1;",
    }
    made = bundle(modules)
    assert made.index("let c = 2") < made.index("const a = c") < made.index("async function start")
    assert not re.search(r"^(import|export)\b", made, flags=re.MULTILINE)
    assert "never" not in made
    assert "// export in a comment" in made


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ({"app.js": "export default 1;"}, "cannot inline"),
        ({"app.js": 'import * as a from "./b.js";', "b.js": ""}, "cannot inline"),
        ({"app.js": 'import "./b.js";', "b.js": ""}, "cannot inline"),
        ({"app.js": 'import { a as b } from "./b.js";', "b.js": "export const a = 1;"}, "does not export"),
        ({"app.js": 'import { a } from "./b.js";', "b.js": "const a = 1;"}, "does not export"),
        ({"app.js": 'import { a } from "./b.js";'}, "not there"),
        ({"app.js": 'import { a } from "https://x.example/b.js";'}, "cannot inline"),
        ({"app.js": 'import { a } from "./b.js";\nconst z = 1;', "b.js": "export const a = 1;\nconst z = 2;"}, "both declare z"),
        ({"app.js": "const { a } = {};"}, "taken apart"),
        (
            {"app.js": 'import { a } from "./b.js";\nexport const c = 1;', "b.js": 'import { c } from "./app.js";\nexport const a = 1;'},
            "in a circle",
        ),
        ({}, "not there"),
    ],
)  # fmt: skip
def test_other_forms_of_modules_are_refused(modules: dict[str, str], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        bundle(modules)


@pytest.mark.parametrize(
    ("name", "text"), [("app.js", "const a = '</script>';"), ("style.css", "a::after { content: '</style>' }")]
)
def test_a_script_that_would_end_early_is_refused(content: Content, static: Path, name: str, text: str) -> None:
    (static / name).write_text(text)
    with pytest.raises(RequestError, match="end it early"):
        page(content, static)


# -- tables ---------------------------------------------------------------------------------------------


def test_parquet_tables(client: TestClient, content: Content) -> None:
    import pyarrow.parquet as parquet

    for side in ("targets", "train"):
        table = parquet.read_table(io.BytesIO(ask(client, f"table/{side}.parquet"))).to_pydict()
        assert set(table) == {"index", "id", *(column.name for column in content.columns[side])}  # type: ignore[index]
        assert table["class"] == content.columns[side][1].texts()  # type: ignore[index]
    atlas = parquet.read_table(io.BytesIO(ask(client, "atlas.parquet"))).to_pydict()
    np.testing.assert_array_equal(np.array([atlas["x"], atlas["y"]]).T, content.map(0))
    assert atlas["image"][0]["bytes"].startswith(b"\x89PNG")
    embedding = content.attribution("ridge").embedding
    apart = np.linalg.norm(embedding - embedding[5], axis=1)
    near = atlas["neighbors"][5]
    np.testing.assert_allclose(near["distances"], np.sort(apart)[1:16])
    assert 5 not in near["ids"]


# -- the command ----------------------------------------------------------------------------------------


def test_many_colour_pictures_stay_small_in_an_export() -> None:
    rng = np.random.default_rng(0)
    pictures = rng.integers(0, 256, (10_000, 7, 7, 3), dtype=np.uint8).repeat(4, 1).repeat(4, 2)
    split = Split(np.zeros((10_000, 1), np.float32), np.zeros(10_000, np.int64), None, pictures)
    looks = {"kind": "images", "picture": [28, 28], "n_features": 1}
    content = Namespace(examples={"train": Examples(np.arange(10_000), looks, lambda: split)})
    about, urls = sprites(content, "train")  # type: ignore[arg-type, misc]
    assert sum(map(len, urls)) < 7e6  # of noise, which packs worst
    assert sum(about["pages"]) == 10_000
    whole = np.asarray(Image.open(io.BytesIO(base64.b64decode(urls[9].partition(",")[2]))))
    width, height = about["tile"]
    for i in (0, 33, 700):
        top, left = height * (i // 32), width * (i % 32)
        tile = whole[top : top + height, left : left + width].astype(float)
        assert np.abs(tile.mean((0, 1)) - pictures[9 * 1024 + i].mean((0, 1))).max() < 6


# -- a report -------------------------------------------------------------------------------------------


def test_a_report_judges_as_the_package_does(folder: Path, tmp_path: Path) -> None:
    copy = tmp_path / "run"
    shutil.copytree(folder, copy)
    results = report_run(copy, progress=False)
    score = lds(copy / "lasso.h5ad", copy / "test")
    assert results["attributions"] == {"lasso": score.to_dict()}
    assert json.loads((copy / "results.json").read_text()) == results
    meta = data_in((copy / "index.html").read_text())["meta"]
    assert meta["attributions"][0]["lds"] == pytest.approx(
        {
            "value": score.lds, "low": score.lds_ci[0], "high": score.lds_ci[1], "ceiling": score.lds_ceiling,
            "pearson": score.pearson, "r2": score.r2, "models": 40,
        }
    )  # fmt: skip
    assert meta["n_models"] == 200
    assert meta["curve"]["sizes"] == [point["models"] for point in results["curve"]["points"]]
    again = gather(copy, progress=False).meta()  # what is served later says the same
    assert again["curve"] == meta["curve"]
    assert again["groups"] == meta["groups"]
    assert again["attributions"][0]["lds"] == meta["attributions"][0]["lds"]


def test_scores_of_blocks_are_those_of_all_targets(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = WeightsFile(folder / "lasso.h5ad")
    monkeypatch.setattr(WeightsFile, "blocks", lambda self: [(0, 7), (7, 40)])
    found, score = (
        measured.lds_of(file, folder / "test", lambda done: None),
        lds(folder / "lasso.h5ad", folder / "test"),
    )
    for name, value in (
        ("value", score.lds),
        ("pearson", score.pearson),
        ("r2", score.r2),
        ("ceiling", score.lds_ceiling),
    ):
        assert found[name] == pytest.approx(value, abs=0.02 if name == "ceiling" else 1e-6)
    assert found["models"] == score.n_models


def test_a_report_of_a_file_scores_it_on_stores(folder: Path, tmp_path: Path) -> None:
    shutil.copy(folder / "lasso.h5ad", tmp_path / "a.h5ad")
    results = report_attribution(tmp_path / "a.h5ad", [folder / "test"], n_clusters=3)
    assert Path(results["page"]) == tmp_path / "a.html"
    assert results["attributions"]["lasso"]["lds"] == lds(folder / "lasso.h5ad", folder / "test").lds
    assert len(set(results["subgroups"]["clusters"])) == 3
    meta = data_in((tmp_path / "a.html").read_text())["meta"]
    assert meta["attributions"][0]["lds"]["value"] == results["attributions"]["lasso"]["lds"]
    assert meta["n_models"] == 160
    assert report_attribution(tmp_path / "a.h5ad")["attributions"] == {}


def test_a_run_whose_targets_are_its_training_cells(cells: Path) -> None:
    """All obs columns colour and may confound, ids are found, and a row is the genes that stand out most."""
    counts = anndata.read_h5ad(cells.parent / "cells.h5ad").X
    found = data_in((cells / "index.html").read_text())
    targets = found["meta"]["targets"]
    assert (targets["kind"], targets["label"], targets["train_columns"]) == ("rows", "state", True)
    assert {"state", "class", "group", "depth"} <= {column["name"] for column in targets["columns"]}
    assert found["names"]["targets"]["ids"] == found["names"]["train"]["ids"] == [f"cell{i}" for i in range(60)]
    z = (counts - counts.mean(0)) / counts.std(0)
    row = found["details"]["targets"][7]["row"]
    assert [name for name, _, _ in row] == [f"G{j}" for j in np.argsort(-np.abs(z[7]), kind="stable")[:8]]
    assert [item[2] for item in row] == pytest.approx(sorted(z[7], key=abs, reverse=True)[:8], rel=1e-3)
    assert found["names"]["targets"]["texts"][7].split(", ")[0] in (row[0][0], f"low {row[0][0]}")
    assert found["groups"]["label"] == "state"
    assert found["groups"]["n_clusters"] == 3


def test_outputs_of_training_examples_are_of_models_that_did_not_see_them(cells: Path) -> None:
    store, content = Store.open(cells / "a"), gather(cells, progress=False)
    outputs = np.where(store.masks(), np.nan, np.asarray(store.array("train_margins"), np.float64))
    columns = {one.name: one for one in content.columns["targets"]}
    for name, expected in (
        ("mean output", np.nanmean(outputs, axis=0)),
        ("sd of output", np.nanstd(outputs, axis=0, ddof=1)),
        ("prediction", np.nanmean(np.where(np.isnan(outputs), np.nan, outputs > 0), axis=0)),
    ):
        np.testing.assert_allclose(columns[name].values, expected, rtol=1e-5)
        assert "the models that did not see it" in columns[name].description
    shown = content.details("targets", 7)["outputs"]
    mine = outputs[~np.isnan(outputs[:, 7]), 7]
    assert shown["runs"] == sum(shown["counts"]) == len(mine) < 60
    assert (shown["low"], shown["high"]) == pytest.approx((mine.min(), mine.max()))


def test_outputs_of_several_blocks_of_models(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_ROWS", 7)
    store, t = Store.open(folder / "half"), np.array([3, 0, 39])
    own = np.array([5, 59, 5])
    found = measured.outputs_of(store, "margins", t, lambda done: None, train_columns=own)
    outputs = np.where(store.masks()[:, own], np.nan, np.asarray(store.array("margins"), np.float64)[:, t])
    np.testing.assert_allclose(found["mean"], np.nanmean(outputs, axis=0))
    np.testing.assert_allclose(found["sd"], np.nanstd(outputs, axis=0, ddof=1))
    np.testing.assert_array_equal(found["runs"], (~np.isnan(outputs)).sum(axis=0))


def test_the_command_exports(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "page.html"
    with pytest.raises(SystemExit) as ended:
        main(["explore", str(folder), "--export", str(out), "--json"])
    assert ended.value.code == 0
    said = json.loads(capsys.readouterr().out)
    assert said == {"page": str(out), "bytes": out.stat().st_size}
    assert out.stat().st_size < 15e6
    assert data_in(out.read_text())["meta"]["title"] == "A small run"


def test_the_shipped_page_can_be_served_and_exported(client: TestClient, content: Content, tmp_path: Path) -> None:
    assert client.get("/").headers["content-type"].startswith("text/html")
    for name in ("app.js", "style.css", "plotly.js"):
        assert client.get(f"/static/{name}").status_code == 200
    assert export(content, tmp_path / "x.html").read_text().startswith("<!doctype html>")
    with pytest.raises(RequestError, match="cannot write"):
        export(content, tmp_path)
