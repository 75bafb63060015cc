"""Leiden, the number of clusters by stability, and subgroups inside AnnData, on planted truths."""

from __future__ import annotations

import importlib
import json
import warnings
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anndata
import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray

from datamodels import Attribution, Ridge, fit
from datamodels.applications.clustering import cluster, embed
from datamodels.applications.refits import agreement, choose_clusters, gaussian_like, half_pairs
from datamodels.applications.subgroups import Subgroups, subgroups, write_to
from datamodels.cli import main as cli_main
from datamodels.cli.validating import data_of, features_of, read_columns, read_features
from datamodels.datasets import from_table
from datamodels.errors import RequestError
from datamodels.regression.problem import Problem
from datamodels.run import Run, RunAttribution, View
from tests.test_applications import grouped


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Many small fits: threads would cost more than they save."""
    import numba
    from threadpoolctl import threadpool_limits

    before = numba.get_num_threads()
    numba.set_num_threads(1)
    with threadpool_limits(1):
        yield
    numba.set_num_threads(before)


def planted(
    n_groups: int = 3, per_group: int = 30, m: int = 300, noise: float = 1.0, seed: int = 0
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    """Masks (m, 60), outputs (m, targets) that are linear in them, and the group of each target. `n_groups` 0: pure noise."""
    rng = np.random.default_rng(seed)
    masks = rng.random((m, 60)) < 0.5
    labels = np.repeat(np.arange(max(n_groups, 1)), per_group)
    centres = rng.normal(size=(max(n_groups, 1), 60)) * (n_groups > 0)
    weights = centres[labels] + 0.5 * rng.normal(size=(len(labels), 60)) * (n_groups > 0)
    outputs = masks @ weights.T + noise * rng.normal(size=(m, len(labels)))
    return masks, outputs, labels


def problem(**options: Any) -> tuple[Any, NDArray[Any]]:
    masks, outputs, labels = planted(**options)
    return Problem.build(masks=masks, outputs=outputs), labels


def test_leiden_finds_planted_groups_and_more_at_a_higher_resolution() -> None:
    a, labels = grouped()
    found = subgroups(a, method="leiden", resolution=0.3, labels=labels, n_components=2)
    assert found.ari > 0.95
    assert found.n_clusters == 3
    assert subgroups(a, method="leiden", resolution=4, n_components=2).n_clusters > 3
    again = subgroups(a, method="leiden", resolution=0.3, n_components=2)
    np.testing.assert_array_equal(found.clusters, again.clusters)


def test_leiden_without_its_packages_says_how_to_get_them(monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.import_module

    def without(name: str) -> Any:
        if name == "leidenalg":
            raise ImportError("no module", name=name)
        return real(name)

    monkeypatch.setattr(importlib, "import_module", without)
    with pytest.raises(RequestError, match=r"needs the package 'leidenalg'.*\[bio\]"):
        cluster(np.random.default_rng(0).normal(size=(30, 2)), "leiden", 1.0)


def test_halves_share_no_model_and_keep_units_together() -> None:
    data, _ = problem(m=40)
    source = replace(data.sources[0], units=np.arange(40) // 2)
    data = replace(data, sources=(source,))
    seen: list[NDArray[Any]] = []

    from datamodels.applications import refits

    real = refits.fit_problem

    def spy(part: Any, *args: Any, **kwargs: Any) -> Attribution:
        seen.append(part.sources[0].rows)
        return real(part, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(refits, "fit_problem", spy)
        pairs = list(half_pairs(data, n_refits=2, n_components=3, progress=False))
    assert len(pairs) == 2
    assert pairs[0].first.shape == (90, 3)
    for first, second in (seen[:2], seen[2:]):
        assert len(first) == len(second) == 20
        assert not set(first) & set(second)
        assert set(first // 2) & set(second // 2) == set()


@pytest.mark.parametrize("k", [4000, 3])
def test_gaussian_draws_have_the_covariance_of_the_values(k: int) -> None:
    rng = np.random.default_rng(0)
    values = rng.normal(size=(k, 4)) @ rng.normal(size=(4, 4))
    made = np.concatenate([gaussian_like(values, rng) for _ in range(max(1, 8000 // k))])
    np.testing.assert_allclose(np.cov(made.T), np.cov(values.T), atol=0.1 * np.abs(np.cov(values.T)).max())


def test_agreement_of_no_clustering_is_zero() -> None:
    one, two = np.zeros(6, np.int64), np.array([0, 0, 0, 1, 1, 1])
    assert agreement(one, one) == 0
    assert agreement(two, 1 - two) == 1


@pytest.mark.parametrize("k", [2, 4])
def test_stability_chooses_the_planted_number(k: int) -> None:
    data, labels = problem(n_groups=k)
    curve = choose_clusters(data, max_clusters=6, n_refits=4, progress=False)
    assert curve.setting == k
    assert curve.ari[curve.chosen] > 0.95
    assert len(curve.table()) == 5
    attribution = fit(
        masks=data.sources[0].masks(0, 300), outputs=data.sources[0].outputs, estimator=Ridge(), progress=False
    )
    found = subgroups(attribution, n_clusters="stability", models=data, max_clusters=6, n_refits=4, labels=labels)
    assert found.n_clusters == k
    assert found.ari > 0.95
    json.dumps(found.to_dict())


def test_stability_chooses_a_resolution_of_leiden() -> None:
    data, _ = problem()
    curve = choose_clusters(
        data, method="leiden", settings=(0.001, 0.3, 3.0), n_refits=3, n_components=3, progress=False
    )
    assert curve.setting == 0.3
    assert curve.n_clusters[1] == 3


def test_outputs_of_noise_have_no_stable_number() -> None:
    data, _ = problem(n_groups=0, per_group=60)
    curve = choose_clusters(data, max_clusters=4, n_refits=3, progress=False)
    assert curve.ari.max() < 0.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clusters": "stability"}, "give models"),
        ({"n_clusters": "many"}, "or 'stability'"),
        ({"n_clusters": 3, "method": "leiden"}, "set resolution"),
        (
            {"n_clusters": 4, "method": "hdbscan"},
            "hdbscan finds the number of clusters by itself: leave n_clusters out",
        ),
        ({"n_clusters": 2.7}, "n_clusters is 2.7; give a whole number"),
        ({"labels": [1.0] * 89 + [np.nan]}, "1 of 90 targets have no label, the first is target 89"),
        (
            {"labels": np.array([None] * 2 + ["a"] * 88, dtype=object)},
            "2 of 90 targets have no label, the first is target 0",
        ),
        ({"labels": np.array([1, "a"] * 45, dtype=object)}, "labels hold int, str; give text or numbers"),
        ({"n_clusters": 3, "resolution": 1.0}, "resolution is of method 'leiden'"),
        ({"method": "leiden", "resolution": -1.0}, "resolution is -1.0"),
        ({"n_clusters": "stability", "method": "hdbscan", "models": "data"}, "hdbscan finds the number"),
    ],
)
def test_bad_requests_say_what_is_legal(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        subgroups(grouped()[0], **options)


def test_too_few_models_cannot_be_split() -> None:
    data, _ = problem(m=6)
    with pytest.raises(RequestError, match="6 independent models"):
        next(half_pairs(data, progress=False))


# -- AnnData ---------------------------------------------------------------------------------------------------------


def cells(n: int = 90) -> anndata.AnnData:
    obs = pd.DataFrame(index=[f"cell_{i}" for i in range(n)])
    return anndata.AnnData(X=np.random.default_rng(0).normal(size=(n, 5)).astype(np.float32), obs=obs)


def named(names: list[str] | None = None) -> Subgroups:
    a, _ = grouped()
    facts = {} if names is None else {"ids": np.array(names)}
    return subgroups(Attribution(a.weights, a.bias, facts), n_clusters=3, n_components=4)


def test_subgroups_round_trip_through_h5ad_and_scanpy_draws_them(tmp_path: Path) -> None:
    data, labels = problem()
    attribution = fit(
        masks=data.sources[0].masks(0, 300), outputs=data.sources[0].outputs, estimator=Ridge(), progress=False
    )
    found = subgroups(attribution, n_clusters="stability", models=data, max_clusters=4, n_refits=3)
    write_to(cells(), found, key="hidden").write_h5ad(tmp_path / "a.h5ad")
    back = anndata.read_h5ad(tmp_path / "a.h5ad")
    assert back.obs["hidden"].dtype == "category"
    np.testing.assert_array_equal(back.obs["hidden"].astype(int), found.clusters)
    np.testing.assert_array_equal(back.obsm["X_hidden"], found.embedding)
    assert back.uns["hidden"]["params"]["method"] == "kmeans"
    assert json.loads(back.uns["hidden"]["provenance"])["estimator"]["name"] == "ridge"
    assert len(back.uns["hidden"]["stability"]["ari"]) == 3
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import matplotlib

        matplotlib.use("Agg")
        import scanpy as sc

        axes = sc.pl.embedding(back, basis="hidden", color="hidden", show=False)
        assert axes.get_title() == "hidden"
        sc.tl.rank_genes_groups(back, "hidden", method="wilcoxon")
    assert set(labels) == {0, 1, 2}


def test_targets_are_found_by_name_and_others_stay_empty() -> None:
    adata = cells(100)
    order = np.random.default_rng(0).permutation(100)[:90]
    found = named([f"cell_{i}" for i in order])
    write_to(adata, found)
    assert adata.obs["datamodels"].isna().sum() == 10
    np.testing.assert_array_equal(adata.obs["datamodels"].to_numpy()[order].astype(int), found.clusters)
    np.testing.assert_array_equal(adata.obsm["X_datamodels"][order], found.embedding)
    assert np.isnan(adata.obsm["X_datamodels"]).any(axis=1).sum() == 10


@pytest.mark.parametrize(
    ("size", "names", "message"),
    [
        (91, None, "91 observations, there are 90 targets"),
        (90, [f"x_{i}" for i in range(90)], "90 of 90 targets are no observations"),
        (90, ["cell_0"] * 90, "once each"),
    ],
)
def test_an_anndata_of_other_observations_is_refused(size: int, names: list[str] | None, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        write_to(cells(size), named(names))
    with pytest.raises(RequestError, match="3 names and 90 targets"):
        write_to(cells(), named(), names=["a", "b", "c"])


def test_the_command_writes_the_annotation(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    grouped()[0].save("a.h5ad")
    cells().write_h5ad("cells.h5ad")
    arguments = ["subgroups", "a.h5ad", "--method", "leiden", "--write-to", "cells.h5ad", "--out", "out.h5ad", "--json"]
    with pytest.raises(SystemExit) as ended:
        cli_main(arguments)
    assert ended.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["out"] == "out.h5ad"
    assert len(anndata.read_h5ad("out.h5ad").obs["datamodels"].cat.categories) == facts["n_clusters"]
    with pytest.raises(SystemExit) as ended:
        cli_main(arguments[:6])
    assert ended.value.code == 2
    assert "--write-to and --out go together" in capsys.readouterr().err


def test_embedding_is_still_where_it_was() -> None:
    from datamodels.applications.subgroups import embed as same

    assert same is embed


def test_missing_features_are_an_error_that_says_where() -> None:
    data, labels = grouped()
    features = np.random.default_rng(0).normal(size=(data.n_targets, 3, 2))
    features[[5, 7, 7], [1, 0, 2], [1, 0, 0]] = np.nan, np.inf, np.nan
    with pytest.raises(
        RequestError,
        match=r"3 values that are NaN or infinite, in 2 of 90 targets \(the first is target 5, feature 1, 1\).* fill them",
    ):
        subgroups(data, labels=labels, features=features)
    with pytest.raises(RequestError, match="features are <U1; give numbers"):
        subgroups(data, labels=labels, features=np.full((data.n_targets, 2), "a"))


# -- rows of files that are the targets ------------------------------------------------------------------------------


def attribution(names: list[str] | None) -> Attribution:
    facts = {} if names is None else {"ids": np.array(names)}
    return Attribution(np.zeros((5, 4)), np.zeros(4), facts)


@pytest.mark.parametrize("form", ["csv", "tsv", "parquet", "h5ad"])
def test_rows_are_found_by_name_with_their_types(form: str, tmp_path: Path) -> None:
    names = ["007", "s1", "s2", "s3", "s4", "s5"]
    frame = pd.DataFrame({"batch": np.arange(6), "who": names, "size": np.arange(6) / 2}).iloc[[4, 2, 0, 5, 1, 3]]
    path = tmp_path / f"known.{form}"
    if form == "h5ad":
        obs = frame.set_index("who").assign(batch=pd.Categorical(frame["batch"]))
        anndata.AnnData(np.arange(12.0).reshape(6, 2)[obs["batch"]], obs, pd.DataFrame(index=["g", "h"])).write_h5ad(
            path
        )
    elif form == "parquet":
        frame.to_parquet(path)
    else:
        frame.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    found = read_columns(path, ["batch", "size"], attribution(["s3", "007", "s5", "s1"]))
    assert found["batch"].tolist() == [3, 0, 5, 1]
    assert isinstance(found["batch"].dtype, pd.CategoricalDtype) == (form == "h5ad")
    x, names_of_features = read_features(path, attribution(["s3", "007", "s5", "s1"]))
    np.testing.assert_array_equal(
        x, [[6, 7], [0, 1], [10, 11], [2, 3]] if form == "h5ad" else [[3, 1.5], [0, 0], [5, 2.5], [1, 0.5]]
    )
    assert names_of_features.tolist() == (["g", "h"] if form == "h5ad" else ["batch", "size"])
    with pytest.raises(RequestError, match=r"lacks 1 of 4 targets \(the first is 'x'; "):
        read_columns(path, None, attribution(["s3", "007", "s5", "x"]))
    with pytest.raises(RequestError, match=r"rows of .* have names, and the attribution does not know .*--by-order"):
        read_columns(path, None, attribution(None))
    with pytest.raises(RequestError, match="has 6 rows; there are 4 targets"):
        read_columns(path, None, attribution(None), by_order=True)


def test_rows_without_names_are_taken_in_their_order(tmp_path: Path) -> None:
    frame = pd.DataFrame({"batch": list("aabb"), "depth": [0.5, 1.5, 2.5, 3.5]})
    frame.to_csv(tmp_path / "a.csv", index=False)
    assert read_columns(tmp_path / "a.csv", ["depth"], attribution(None))["depth"].tolist() == [0.5, 1.5, 2.5, 3.5]
    frame.to_csv(tmp_path / "b.csv")  # a column 0, 1, 2, 3 is an order, and no names
    assert list(read_columns(tmp_path / "b.csv", ["batch"], attribution(None))) == ["batch"]
    anndata.AnnData(np.zeros((4, 1)), frame.set_axis(list("0123"))).write_h5ad(tmp_path / "c.h5ad")
    assert read_columns(tmp_path / "c.h5ad", ["batch"], attribution(None))["batch"].tolist() == list("aabb")
    frame.assign(sample=[8, 3, 5, 4]).to_csv(tmp_path / "d.csv", index=False)
    with pytest.raises(RequestError, match="have names"):
        read_columns(tmp_path / "d.csv", ["batch"], attribution(None))
    assert read_columns(tmp_path / "d.csv", ["batch"], attribution(None), by_order=True)["batch"].tolist() == list(
        "aabb"
    )
    frame.assign(sample=[8, 3, 5, 3]).to_csv(tmp_path / "e.csv", index=False)
    with pytest.raises(RequestError, match="has the sample '3' more than once"):
        read_columns(tmp_path / "e.csv", ["batch"], attribution(["8", "3", "5", "5"]))


def test_the_run_of_a_file_says_what_its_samples_are_called(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = pd.DataFrame({"who": list("wxyz"), "y": list("abab"), "f": np.arange(4.0), "g": [1, np.nan, 3, 4]})
    table.to_csv(tmp_path / "t.csv", index=False)
    data = from_table(tmp_path / "t.csv", "y", ids="who", missing="subset")
    assert data_of(tmp_path / "a.h5ad", None) is None
    parts: dict[str, Any] = {
        "title": "t",
        "created": "now",
        "stores": {"s": "s"},
        "view": View(neighbours="a", embedding="a"),
    }
    parts["attributions"] = {"a": RunAttribution(path="a.h5ad", store="s")}
    Run(dataset=data.name, **parts).save(tmp_path)
    found = data_of(tmp_path / "a.h5ad", None)
    assert found is not None
    assert found.train.ids is not None
    assert found.train.ids.tolist() == list("wxyz")
    rows = Problem.build(masks=np.eye(4), outputs=np.zeros((4, 2)))
    assert features_of(found, rows) == (None, None)
    x, names = features_of(found, replace(rows, train_columns=np.array([3, 1])))
    assert (x.tolist(), names.tolist()) == ([[3.0], [1.0]], ["f"])
    Run(dataset="no.such.module:data", **parts).save(tmp_path)
    assert data_of(tmp_path / "a.h5ad", None) is None
    Run(dataset="table:none.csv?label=y", **parts).save(tmp_path)
    assert data_of(tmp_path / "a.h5ad", None) is None
    assert "without the names and features of the run's samples: cannot read 'none.csv'" in capsys.readouterr().err
