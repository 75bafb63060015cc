"""The examples of genotypes and of tumours at their quick sizes."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from bed_reader import to_bed
from PIL import Image

from datamodels import Attribution, Store
from datamodels.datasets import from_plink, load
from datamodels.errors import RequestError
from datamodels.run import Run
from tests.conftest import few, script

pytestmark = pytest.mark.slow

QUESTIONS = {
    "Clusters come back", "Clusters are separate", "Datamodels depend on the labels", "Clusters are more than the classes",
    "Clusters are no known confounder", "What is learnt from one subgroup misses another",
}  # fmt: skip


def check_run(out: Path, results: dict[str, Any], reports: list[str]) -> Run:
    """The numbers as JSON, one page with one picture, the checks, and a run whose parts are all there."""
    assert json.loads((out / "results.json").read_text()) == json.loads(json.dumps(results))
    text = (out / "index.html").read_text()
    assert text.count("data:image/png;base64,") == text.count("<img") == 1
    assert "src=http" not in text
    for question in QUESTIONS:
        assert question in text
        assert all(question in (out / report).read_text() for report in reports)
    with Image.open(out / "maps.png") as picture:
        assert picture.width > 1000
    found = Run.load(out)
    assert found.dataset is not None
    n_train = len(load(found.dataset).train)
    for one in found.attributions.values():
        attribution = Attribution.load(out / one.path)
        assert attribution.n_train == n_train
        assert attribution.train_columns is not None
        assert one.test is not None
        assert Store.open(out / found.stores[one.test]).completed().all()
    return found


@few
@script("genetics")
def test_populations_are_compared_with_pca_of_simulated_genotypes(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = example.main(["--quick", "--out", str(tmp_path)])
    assert (results["people"], results["variants"], results["seeds"]) == (108, 300, 2)
    assert results["accuracy"] > 0.6
    found = check_run(tmp_path, results, ["validation.html"])
    assert set(found.attributions) == {"seed0", "seed1"}
    rows = {row["score"]: row for row in results["scores"]}
    assert set(rows) == {f"{name} ({how})" for name in ("ARI", "NMI") for how in ("Leiden", "k-means, 9")} | {
        "5-NN accuracy"
    }
    assert rows["ARI (k-means, 9)"]["better"] == "PCA of genotypes"  # with so few models, and so clear populations
    assert rows["ARI (Leiden)"]["labels alone"] == pytest.approx(0.382, abs=1e-3)
    assert results["validation"]["Datamodels depend on the labels"] == "not tested"
    said = capsys.readouterr().out
    assert "PCA of genotypes" in said.partition("Which map shows the populations better")[2].partition("\n")[0]
    assert "Labels were not shuffled" in said
    data = load(found.dataset)
    assert data.hidden_name == "population"
    assert data.train.has_missing


@few
@script("genetics")
def test_genotypes_of_ones_own_come_as_plink_files(example: ModuleType, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    village = np.repeat(np.arange(4), 15)
    counts = rng.binomial(2, rng.uniform(0.1, 0.9, (4, 160))[village]).astype(np.float32)
    counts[rng.random(counts.shape) < 0.02] = np.nan
    names = [f"s{i}" for i in range(60)]
    to_bed(tmp_path / "cohort.bed", counts, properties={"iid": names}, num_threads=1)
    frame = pd.DataFrame({"who": names, "region": np.array(["n", "s"])[village // 2], "village": village})
    frame.loc[0, "region"] = None
    frame.sample(frac=1, random_state=0).to_csv(tmp_path / "people.csv", index=False)
    given = [
        "--quick",
        "--plink",
        str(tmp_path / "cohort"),
        "--label",
        "region",
        "--table",
        str(tmp_path / "people.csv"),
    ]
    given += ["--sample", "who", "--models", "48"]
    results = example.main([*given, "--hidden", "village", "--out", str(tmp_path / "a")])
    assert results["people"] == 59
    assert {row["score"].partition(" ")[0] for row in results["scores"]} == {"ARI", "NMI", "5-NN"}
    assert load(check_run(tmp_path / "a", results, ["validation.html"]).dataset).class_names == ("n", "s")
    with pytest.raises(RequestError, match="no column 'area'"):
        example.main([*given, "--label", "area", "--out", str(tmp_path / "b")])


@script("genetics")
def test_a_genind_becomes_a_plink_fileset(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    counts = np.array([[0, 1, 2, 0], [2, 1, 0, 0], [np.nan, np.nan, 1, 0]], np.float32)
    info = pd.DataFrame({"Population": ["Basque", "Maya"], "Region": ["EUROPE", "CENTRAL_AMERICA"]})
    tab = SimpleNamespace(to_pandas=lambda: pd.DataFrame(counts, columns=["l1.7", "l1.9", "l2.1", "l2.3"]))
    genind = SimpleNamespace(tab=tab, pop=pd.Categorical(["2", "1", "2"]), other={"popInfo": info})
    monkeypatch.setitem(sys.modules, "rdata", SimpleNamespace(read_rda=lambda _: {"eHGDP": genind}))
    file = tmp_path / "eHGDP.rda"
    with pytest.raises(RequestError, match="apt-get install r-cran-adegenet"):
        example.write_ehgdp(file, tmp_path / "a")
    file.touch()
    example.write_ehgdp(file, tmp_path / "a")
    data = from_plink(
        tmp_path / "a", "region", table=tmp_path / "a.csv", sample="sample", hidden="population", missing="subset"
    )
    np.testing.assert_array_equal(data.train.x, counts[:, :3])  # nobody has the last
    assert data.feature_names == ("l1.7", "l1.9", "l2.1")
    assert data.class_names == ("Central America", "Europe")
    assert data.hidden_names == ("Basque", "Maya")
    np.testing.assert_array_equal(data.train.hidden, [1, 0, 1])
    np.testing.assert_allclose(data.train.obs["missing genotypes"], [0, 0, 2 / 3])


@few
@script("breast_cancer")
def test_two_learners_are_asked_for_subgroups_of_tumours(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["--quick", "--out", str(tmp_path)]
    results = example.main(options)
    assert (results["tumours"], results["malignant"]) == (200, results["malignant"])
    found = check_run(tmp_path, results, ["validation_perceptrons.html", "validation_trees.html"])
    assert set(found.attributions) == {"perceptrons", "trees"}
    malignant = np.flatnonzero(load(found.dataset).train.y == 1)
    assert 40 < len(malignant) == results["malignant"] < 110
    for name in found.attributions:
        np.testing.assert_array_equal(Attribution.load(tmp_path / f"{name}.h5ad").train_columns, malignant)
    assert [row["clusters"] for row in results["agreement"]] == [2, 3]
    assert all(-0.1 < row["ARI between the learners"] < 1 for row in results["agreement"])
    checks = results["validation"]
    assert checks["perceptrons"]["Datamodels depend on the labels"] == "holds"
    assert checks["trees"]["Datamodels depend on the labels"] == "not tested"
    assert checks["perceptrons"]["Clusters are no known confounder"] == "does not hold"  # but the size of the tumour
    said = capsys.readouterr().out
    assert "Do not report these subgroups as they are" in said
    assert results["words"] in said


@pytest.mark.parametrize(
    ("example", "given"), [("genetics", "--seeds 1"), ("breast_cancer", "--models 9")], indirect=["example"]
)
def test_too_little_is_refused(example: ModuleType, given: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(["--quick", *given.split()])
    assert "give 48 or more" in capsys.readouterr().err
