"""What the explorer shows is what the package computes: columns, maps, weights and the page of one example."""

from __future__ import annotations

import importlib.util
import io
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from PIL import Image

from datamodels import Attribution, Store, datasets, lds
from datamodels.applications.clustering import embed
from datamodels.applications.neighbours import overlap
from datamodels.cli import main
from datamodels.datasets import from_arrays
from datamodels.errors import RequestError
from datamodels.evaluation.mislabels import mislabel_scores
from datamodels.explorer import app, export, gather
from datamodels.explorer import measures as measured
from datamodels.explorer.content import Content
from datamodels.explorer.weights import WeightsFile, strongest
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe
from tests.explorer_runs import ADDRESS, DATA, ask, cells, client, column, content, data_in, decoded, folder, save_run

__all__ = ["cells", "client", "content", "folder"]  # fixtures


# -- columns ------------------------------------------------------------------------------------------


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


def test_columns_of_targets_are_what_the_package_computes(client: TestClient, folder: Path) -> None:
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


def test_columns_of_training_examples_are_what_the_package_computes(client: TestClient, folder: Path) -> None:
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


def test_train_targets_have_self_influence_and_mislabel_scores(tmp_path: Path) -> None:
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


def test_outputs_of_several_blocks_of_models_are_those_of_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measured, "_ROWS", 7)
    store, t = Store.open(folder / "half"), np.array([3, 0, 39])
    own = np.array([5, 59, 5])
    found = measured.outputs_of(store, "margins", t, lambda done: None, train_columns=own)
    outputs = np.where(store.masks()[:, own], np.nan, np.asarray(store.array("margins"), np.float64)[:, t])
    np.testing.assert_allclose(found["mean"], np.nanmean(outputs, axis=0))
    np.testing.assert_allclose(found["sd"], np.nanstd(outputs, axis=0, ddof=1))
    np.testing.assert_array_equal(found["runs"], (~np.isnan(outputs)).sum(axis=0))


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


def test_parquet_tables_hold_what_is_shown(client: TestClient, content: Content) -> None:
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


# -- maps ---------------------------------------------------------------------------------------------


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


# -- one example --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["lasso", "ridge"])
def test_weights_of_both_sides_come_whole_and_strongest_first(client: TestClient, folder: Path, name: str) -> None:
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


def test_the_page_of_a_target_has_its_outputs_fit_path_and_nearest(client: TestClient, folder: Path) -> None:
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


def test_pictures_are_the_tiles_of_a_sheet(client: TestClient, content: Content) -> None:
    sheet = np.asarray(Image.open(io.BytesIO(ask(client, "sprite/train/0.png"))))
    images = datasets.load(DATA).train.images
    assert images is not None
    per_row = content.meta()["sprites"]["train"]["per_row"]
    for i in (0, 31, 32, 59):
        top, left = 8 * (i // per_row), 8 * (i % per_row)
        np.testing.assert_array_equal(sheet[top : top + 8, left : left + 8], images[i])
