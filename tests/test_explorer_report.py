"""A report judges as the package does, and its page says the same."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import anndata
import numpy as np
import pytest

from datamodels import lds
from datamodels.explorer import gather, report_attribution, report_run
from datamodels.explorer import measures as measured
from datamodels.explorer.weights import WeightsFile
from tests.explorer_runs import cells, data_in, folder

__all__ = ["cells", "folder"]  # fixtures


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


def test_a_run_of_training_cells_shows_their_columns_ids_and_outstanding_genes(cells: Path) -> None:
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
