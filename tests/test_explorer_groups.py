"""Groups of targets: those that are computed, and those that a column or an annotated file gives."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient

from datamodels import Attribution
from datamodels.applications.subgroups import subgroups, write_to
from datamodels.errors import RequestError
from datamodels.explorer import gather
from datamodels.explorer.content import Content
from tests.explorer_runs import cells, client, column, content, folder, loose

__all__ = ["cells", "client", "content", "folder", "loose"]  # fixtures


# -- groups that are computed -------------------------------------------------------------------------


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


# -- groups that are given ----------------------------------------------------------------------------


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
