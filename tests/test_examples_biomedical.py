"""The example of single cells at its quick size: what it compares, what it writes, and that scanpy's tools find it."""

from __future__ import annotations

import json
import re
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType

import anndata
import numpy as np
import pytest

from datamodels.applications.subgroups import embed
from datamodels.attribution import Attribution
from datamodels.datasets import load
from datamodels.errors import RequestError
from datamodels.run import Run
from datamodels.store import Store
from tests.conftest import few, script

pytestmark = pytest.mark.slow

pytest.importorskip("leidenalg")


@few
@pytest.mark.skipif(find_spec("scanpy") is None, reason="the cells come with scanpy")
@script("single_cell")
def test_ten_types_are_looked_for_and_results_go_back_into_the_cells(
    example: ModuleType, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = example.main(["--quick", "--out", str(tmp_path)])
    cells = anndata.read_h5ad(tmp_path / "annotated.h5ad")
    assert set(cells.obs["type"][cells.obs["lineage"] == "myeloid"]) == set(example.MYELOID)
    assert len(cells) == results["cells"] == sum(row["cells"] for row in results["types"])
    for name in ("run_0", "run_1"):
        assert Store.open(tmp_path / name).completed().all()
    first = Attribution.load(tmp_path / "run_0.h5ad")
    np.testing.assert_array_equal(first.train_columns, np.arange(len(cells)))
    np.testing.assert_allclose(cells.obsm["X_datamodels"], embed(first, 10), atol=1e-6)
    assert cells.obs["datamodels"].nunique() == len(results["markers"]) > 2
    scores = results["scores"]
    assert set(scores) == {"datamodels", *example.baselines(load(Run.load(tmp_path).dataset), cells)}
    assert len(scores["datamodels"]) == 2
    types = np.unique(cells.obs["type"].to_numpy().astype(str), return_inverse=True)[1]
    assert scores["datamodels"][0]["5-NN"] == example.recalled(embed(first, 10), types).mean() > 0.4
    assert min(row["NMI kmeans"] for rows in scores.values() for row in rows) > 0.4
    run = Run.load(tmp_path)
    assert {"n_counts", "percent_mito", "phase"} < set(load(run.dataset).train.obs)
    assert run.attributions["run_1"].test == "test"
    text = (tmp_path / "index.html").read_text()
    assert text.count("data:image/png;base64,") == 1
    assert text.count("<table>") == 5
    assert (tmp_path / "validation.html").exists()
    kept = json.loads((tmp_path / "results.json").read_text())
    assert {name: kept[name] for name in results} == json.loads(json.dumps(results))
    assert {row["question"] for row in kept["validation"]["verdicts"]} >= {"Clusters come back"}
    assert re.search(r"Clusters are no known confounder: (DOES NOT HOLD|HOLDS)", capsys.readouterr().out)


@script("single_cell")
def test_five_nearest_vote_and_ties_go_to_the_nearer(example: ModuleType) -> None:
    at = np.array([0, 1, 2, 3, 4.5, 6, 100, 101, 102, 103, 104, 105], dtype=float)[:, None]
    types = np.repeat([0, 1], 6)
    assert example.recalled(at, types).all()
    types[1] = 1  # one stranger among five does not win, and is outvoted itself
    np.testing.assert_array_equal(np.flatnonzero(~example.recalled(at, types)), [1])
    tie = np.array([0.0, 1, 2.1, 3.3, 4.6, 6])[:, None]  # of cell 0: types 1 1 2 2 3 from near to far
    assert example.recalled(tie, np.array([1, 1, 1, 2, 2, 3]))[0]
    assert example.recalled(tie, np.array([2, 2, 2, 1, 1, 3]))[0]


@script("single_cell")
def test_each_baseline_is_compared_cell_by_cell(example: ModuleType) -> None:
    rng = np.random.default_rng(0)
    types = np.arange(90) % 3
    good = [np.eye(3)[types] * 10 + rng.normal(size=(90, 3)) for _ in range(3)]
    found = example.compared(good, {"noise": rng.normal(size=(90, 3))}, types)
    (row,) = found["differences"]
    gain, low = map(float, re.findall(r"-?[0-9.]+", row["5-NN, over cells"])[:2])
    assert gain == pytest.approx(1 - found["hits"]["noise"].mean(), abs=1e-3)
    assert 0.4 < low < gain
    assert "Against noise, datamodels are higher in 5-NN, NMI kmeans" in example.verdict(found["scores"])
    same = {"datamodels": found["scores"]["noise"], "noise": found["scores"]["noise"]}
    assert example.verdict(same) == f"Against noise, datamodels are not told apart in {', '.join(example.MEASURES)}."


@script("single_cell")
def test_cells_that_are_not_there_are_named(
    example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(example, "find_spec", lambda _: None)
    with pytest.raises(RequestError, match="come with the package scanpy"):
        example.main(["--quick", "--out", str(tmp_path)])


@script("single_cell")
def test_one_run_has_no_interval(example: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        example.main(["--quick", "--seeds", "1"])
    assert "give 48 or more, and 2 or more" in capsys.readouterr().err
