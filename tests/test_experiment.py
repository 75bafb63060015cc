"""An experiment whose targets are its training samples: which outputs, which subsets, and the names of samples."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest

from datamodels import Attribution, Recipe, Ridge, Store, TrainRecipe
from datamodels.applications.subgroups import subgroups, with_ids, write_to
from datamodels.datasets import Dataset, from_arrays
from datamodels.errors import RequestError
from datamodels.experiment import Fit, Part, PartedGroupsWarning, fill, run_experiment

RECIPE = Recipe(architecture="linear", epochs=2, lr=0.05)


def samples(n: int = 40, n_test: int = 0, *, groups: bool = True) -> Dataset:
    """Samples with names and donors, a quarter of them of class 1."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(n + n_test, 5)).astype(np.float32)
    y = (np.arange(n + n_test) % 4 == 0).astype(np.int64)
    x[:, 0] += 3 * y
    tests = {"x_test": x[n:], "y_test": y[n:]} if n_test else {}
    data = from_arrays("samples", x[:n], y[:n], **tests)
    names = np.array([f"s{i}" for i in range(n + n_test)])
    train = replace(data.train, ids=names[:n], groups=np.arange(n) % 10 if groups else None)
    return replace(data, train=train, test=replace(data.test, ids=names[n:]) if n_test else data.test)


def test_a_part_keeps_groups_together_or_draws_the_same_share_of_each_class(tmp_path: Path) -> None:
    data = samples()
    task = TrainRecipe(RECIPE, data, splits=("train",))
    how: dict[str, Any] = {"jobs": 1, "progress": False}
    masks = fill(tmp_path / "g", Part("g", task, 0.5, 6, kind="grouped"), **how)[0].masks()
    groups = data.train.groups
    assert groups is not None
    assert all(len(np.unique(mask[groups == one])) == 1 for mask in masks for one in range(10))
    store, _ = fill(tmp_path / "s", Part("s", task, 0.5, 6, kind="stratified"), **how)
    assert (store.masks()[:, data.train.y == 1].sum(axis=1) == 5).all()
    assert (store.masks()[:, data.train.y == 0].sum(axis=1) == 15).all()
    assert fill(tmp_path / "s", Part("s", task, 0.5, 8, kind="stratified"), **how)[1] == 2
    site = np.repeat(["a", "b"], 20)
    masks = Part("t", task, 0.25, 6, kind="stratified", strata=site).design.masks()
    assert (masks[:, :20].sum(axis=1) == 5).all()
    lone = replace(task, dataset=replace(data, train=replace(data.train, groups=None)))
    with pytest.raises(RequestError, match=r"part 'g' is grouped and the dataset samples has no groups"):
        _ = Part("g", lone, 0.5, 6, kind="grouped").design


def test_parts_that_take_donors_apart_are_warned_of(tmp_path: Path) -> None:
    data = samples()
    task = TrainRecipe(RECIPE, data, splits=("train",))
    how: dict[str, Any] = {"title": "t", "neighbours": "r", "embedding": "r", "jobs": 1, "progress": False}
    how["fits"] = [Fit("r", Ridge(), "a")]
    parts = [Part("a", task, 0.5, 40, kind="grouped"), Part("b", task, 0.5, 20, seed=1)]
    with pytest.warns(
        PartedGroupsWarning,
        match=r"samples has groups .* subsets of b take them apart: .*kind='grouped'\) \(init: --kind",
    ):
        run_experiment(tmp_path / "x", parts=parts, **how)
    run_experiment(tmp_path / "x", parts=parts[:1], **how)
    lone = replace(task, dataset=replace(data, train=replace(data.train, groups=None)))
    run_experiment(tmp_path / "y", parts=[Part("a", lone, 0.5, 40)], **how)


def test_a_fit_says_which_outputs_and_targets_and_knows_their_names(tmp_path: Path) -> None:
    data = samples(n_test=6, groups=False)
    task = TrainRecipe(RECIPE, data, outputs=("margins", "losses"), splits=("train", "test"))
    parts = [Part("a", task, 0.5, 60), Part("b", task, 0.5, 20, seed=1)]
    chosen = np.arange(3, 40, 2)
    how: dict[str, Any] = {"title": "t", "parts": parts, "neighbours": "ridge", "embedding": "ridge", "jobs": 1}

    def run(**options: Any) -> Attribution:
        fits = [Fit("ridge", Ridge(), "a", "b", **options), Fit("plain", Ridge(), "a", "b")]
        results = run_experiment(tmp_path, fits=fits, progress=False, **how)
        assert set(results["attributions"]) == {"ridge", "plain"}
        return Attribution.load(tmp_path / "ridge.h5ad")

    found = run(outputs_key="train_losses", targets=chosen)
    assert found.provenance["sources"][0]["outputs_key"] == "train_losses"
    assert found.train_columns is not None
    np.testing.assert_array_equal(found.train_columns, chosen)
    np.testing.assert_array_equal(found.target_facts["ids"], data.train.ids[chosen])  # type: ignore[index]
    np.testing.assert_array_equal(found.train_facts["ids"], data.train.ids)
    plain = Attribution.load(tmp_path / "plain.h5ad")
    assert plain.train_columns is None
    np.testing.assert_array_equal(plain.target_facts["ids"], data.test.ids)
    written = (tmp_path / "ridge.h5ad").stat().st_mtime_ns
    run(outputs_key="train_losses", targets=chosen)
    assert (tmp_path / "ridge.h5ad").stat().st_mtime_ns == written
    assert run(outputs_key="train_losses", targets=slice(0, 5)).n_targets == 5
    assert run(outputs_key="train_margins").provenance["sources"][0]["outputs_key"] == "train_margins"
    page = (tmp_path / "index.html").read_text()
    assert '"s39"' in page
    with pytest.raises(RequestError, match=r"fit 'ridge' asks for 'logits'; the store 'a' has .*train_margins"):
        run(outputs_key="logits")
    assert Store.open(tmp_path / "a").completed().all()


def test_annotations_follow_the_names_of_samples_and_not_their_order(tmp_path: Path) -> None:
    data = samples(groups=False)
    task = TrainRecipe(RECIPE, data, splits=("train",))
    run_experiment(
        tmp_path, title="t", parts=[Part("a", task, 0.5, 60)], fits=[Fit("ridge", Ridge(), "a")], neighbours="ridge",
        embedding="ridge", jobs=1, progress=False,
    )  # fmt: skip
    groups = subgroups(Attribution.load(tmp_path / "ridge.h5ad"), n_clusters=2, n_components=3)
    order = np.random.default_rng(1).permutation(40)
    cells = anndata.AnnData(data.train.x[order], obs=pd.DataFrame(index=[f"s{i}" for i in order]))
    write_to(cells, groups)
    np.testing.assert_array_equal(cells.obs["datamodels"].astype(int), groups.clusters[order])
    other = anndata.AnnData(data.train.x, obs=pd.DataFrame(index=[f"t{i}" for i in range(40)]))
    with pytest.raises(
        RequestError, match=r"40 of 40 targets are no observations of this AnnData \(the first is 's0'\)"
    ):
        write_to(other, groups)


def test_names_are_those_of_the_data_that_the_models_saw() -> None:
    data = samples(n_test=6)
    scores = Attribution.from_scores(np.zeros((40, 2)), orientation="train_by_target", method="m")
    found = with_ids(replace(scores, target_facts={"target": np.array([5, 1])}), data)
    assert found.target_facts["ids"].tolist() == ["s45", "s41"]
    assert "ids" not in with_ids(scores, data, "logits").target_facts
    assert not with_ids(scores, from_arrays("plain", data.train.x, data.train.y)).target_facts
    with pytest.raises(RequestError, match="targets up to 9, samples 6 test examples"):
        with_ids(replace(scores, target_facts={"target": np.array([9, 1])}), data)
    with pytest.raises(RequestError, match="30 training examples, the attribution 40"):
        with_ids(scores, samples(30))
