"""Files that no run.json describes are shown as a run; other files are refused, and nothing in a file is executed."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datamodels import Attribution, Store, fit, lds
from datamodels.cli import main
from datamodels.design import Design
from datamodels.errors import NewerFormatError, RequestError
from datamodels.explorer import gather, report_attribution, report_run
from datamodels.explorer.verify import Verifier
from datamodels.regression.estimators import Ridge
from datamodels.run import Run
from datamodels.training.ensemble import TrainRecipe
from tests.explorer_runs import cells, folder, loose, save_run, wait

__all__ = ["cells", "folder", "loose"]  # fixtures


# -- files as a run -----------------------------------------------------------------------------------


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


# -- columns ------------------------------------------------------------------------------------------


def test_any_obs_column_of_a_file_is_a_column(tmp_path: Path) -> None:

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


def test_floats_of_a_file_keep_their_figures(tmp_path: Path) -> None:
    data = Attribution(np.eye(6, 4), np.zeros(4)).to_anndata()
    data.obs["share"] = [0.1, 0.2, np.nan, 1 / 3]
    data.obs["half"] = [0.5, 0.25, np.nan, 1.0]
    data.write_h5ad(tmp_path / "a.h5ad")
    columns = {one.name: one for one in gather(tmp_path / "a.h5ad", progress=False).columns["targets"]}
    assert columns["share"].packed.tolist()[:2] == [0.1, 0.2]
    assert columns["half"].packed.dtype == np.float32


# -- what is refused ----------------------------------------------------------------------------------


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
def test_wrong_arguments_of_commands_are_refused_and_nothing_is_written(
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


def test_files_that_are_no_attribution_or_newer_are_refused(tmp_path: Path, folder: Path) -> None:
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


# -- what is not executed -----------------------------------------------------------------------------


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
