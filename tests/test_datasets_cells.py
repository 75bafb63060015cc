"""Cells as datasets: AnnData in every form, labels, counts and missing values, and datasets without a test split."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from datamodels.datasets import from_anndata, from_arrays, from_table, load
from datamodels.errors import RequestError
from datamodels.training.ensemble import TrainRecipe
from tests.biomedical_data import LINEAR, cells

_scanpy = importlib.util.find_spec("scanpy")
assert _scanpy is not None
assert _scanpy.origin is not None
PBMC = Path(_scanpy.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"


# -- datasets without a test split --------------------------------------------------------------------


def test_a_dataset_without_a_test_split_carries_its_columns() -> None:
    data = from_arrays("d", np.arange(12.0).reshape(6, 2), list("abcabc"), hidden_train=[0, 1, 2, 3, 4, 5])
    train = replace(
        data.train, ids=np.array(list("uvwxyz")), groups=np.array([0, 0, 1, 1, 2, 2]), obs={"size": np.arange(6) * 0.5}
    )
    data = replace(data, train=train, feature_names=("f", "g"))
    assert len(data.test) == 0
    part = data.train.take([4, 1])
    assert (part.ids.tolist(), part.groups.tolist(), part.obs["size"].tolist()) == (["y", "v"], [2, 0], [2.0, 0.5])
    coarse = data.coarse({"p": ["a"], "q": ["c"]}, hidden_name="letter")
    assert (coarse.train.ids.tolist(), coarse.train.groups.tolist()) == (["u", "w", "x", "z"], [0, 1, 1, 2])
    assert (coarse.feature_names, coarse.hidden_names) == (("f", "g"), ("a", "b", "c"))
    few = data.subset(n_train=3)
    assert (few.name, few.train.ids.tolist(), few.feature_names) == ("d[3,0,first]", ["u", "v", "w"], ("f", "g"))
    with pytest.raises(RequestError, match="n_test is 2; d has no test examples"):
        data.subset(n_train=3, n_test=2)
    for change, message in (
        ({"ids": np.arange(6)}, r"ids must be an array \(k,\) of text; got int64"),
        ({"groups": np.zeros(6)}, "groups must be .* integers or text; got float64"),
        ({"groups": np.arange(5)}, "groups has 5 examples, y has 6"),
        ({"obs": {"odd": np.array([None] * 6)}}, r"obs\['odd'\] must be .* numbers or text"),
    ):
        with pytest.raises(RequestError, match=message):
            replace(data.train, **change)
    with pytest.raises(RequestError, match="3 feature_names for features of shape"):
        replace(data, feature_names=("f", "g", "h"))


def test_a_dataset_without_a_test_split_has_its_train_examples_for_targets() -> None:
    data = from_arrays("d", np.random.default_rng(0).normal(size=(20, 3)), [0, 1] * 10)
    with pytest.raises(RequestError, match=r"d has no test examples: give splits \('train',\)"):
        _ = TrainRecipe(LINEAR, data).schema
    schema = TrainRecipe(LINEAR, data, splits=("train",)).schema
    assert schema == {"train_margins": {"shape": (20,), "dtype": "float32", "of": "train"}}
    with pytest.raises(RequestError, match="go together"):
        from_arrays("d", np.zeros((2, 1)), [0, 1], x_test=np.zeros((2, 1)))


# -- AnnData ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["object", "file", "backed", "view"])
def test_cells_in_every_form_are_the_same(form: str, tmp_path: Path) -> None:
    made = cells()
    del made.obs["odd"]
    counts = made.X.toarray()
    made.write_h5ad(tmp_path / "c.h5ad")
    options: dict[str, Any] = {"label": "type", "hidden": "state", "groups": "donor", "backed": form == "backed"}
    source = {"object": made, "view": made[:, :]}.get(form, tmp_path / "c.h5ad")
    data = from_anndata(source, **options)
    np.testing.assert_array_equal(data.train.x, counts)
    assert data.train.x.dtype == np.float32
    assert (data.class_names, data.hidden_name, data.hidden_names) == (("B", "T"), "state", ("0", "1", "2"))
    np.testing.assert_array_equal(data.train.y, [1, 0] * 6)
    np.testing.assert_array_equal(data.train.hidden, np.arange(12) % 3)
    assert (data.train.ids[:2].tolist(), data.feature_names) == (
        ["cell0", "cell1"],
        tuple(f"gene{j}" for j in range(5)),
    )
    assert data.train.groups.tolist() == [f"d{i // 3}" for i in range(12)]
    assert set(data.train.obs) == {"depth", "doublet", "note"}
    np.testing.assert_array_equal(data.train.obs["note"], ["x", ""] * 6)
    assert len(data.test) == 0
    raw = from_anndata(source, **options, raw=True)
    np.testing.assert_array_equal(raw.train.x, np.hstack([counts, counts]))
    np.testing.assert_array_equal(from_anndata(source, **options, layer="half").train.x, counts / 2)
    pca = from_anndata(source, **options, obsm="X_pca")
    np.testing.assert_array_equal(pca.train.x, counts[:, :2] - 1)
    assert pca.feature_names == ("X_pca_0", "X_pca_1")


def test_normalised_counts_depend_on_one_cell_each() -> None:
    made = cells()
    counts = made.X.toarray()
    x = from_anndata(made, "type", normalise="log1p_cp10k").train.x
    expected = np.log1p(1e4 * counts / np.maximum(counts.sum(axis=1, keepdims=True), 1))
    np.testing.assert_allclose(x, expected, rtol=1e-6)
    assert (x[3] == 0).all()
    np.testing.assert_array_equal(from_anndata(made[:5], "type", normalise="log1p_cp10k").train.x, x[:5])


def test_cells_without_a_label_are_refused_or_dropped() -> None:
    made = cells()
    made.obs["type"] = made.obs["type"].where(np.arange(12) != 4)
    with pytest.raises(RequestError, match=r"1 of 12 samples have no 'type', the first is 'cell4'; .*drop"):
        from_anndata(made, "type")
    data = from_anndata(made, "type", groups="donor", unlabelled="drop")
    assert len(data.train) == len(data.train.groups) == 11
    assert "cell4" not in data.train.ids
    np.testing.assert_array_equal(data.train.x, made.X.toarray()[np.arange(12) != 4])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"label": "kind"}, "obs has no column 'kind'; it has type, state"),
        ({"label": "depth", "obs": ["odd"]}, "column 'odd', holds neither numbers nor text"),
        ({"label": "odd"}, "column 'odd', holds tuple; classes are text"),
        ({"label": "type", "layer": "counts"}, "no layer 'counts'; it has half"),
        ({"label": "type", "obsm": "X_umap"}, "no obsm 'X_umap'; it has X_pca"),
        ({"label": "type", "obsm": "X_pca", "raw": True}, "give one of them at most"),
        (
            {"label": "type", "obsm": "X_pca", "normalise": "log1p_cp10k"},
            "log1p_cp10k is for counts; the least value is -1",
        ),
        ({"label": "type", "normalise": "log"}, "legal: none, log1p_cp10k"),
        ({"label": "type", "hidden": "note"}, "sample 'cell1' has no 'note'"),
        ({"label": "type", "unlabelled": "keep"}, "legal: refuse, drop"),
    ],
)
def test_cells_say_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        from_anndata(cells(), **options)


def test_missing_values_of_cells_are_refused_filled_or_left(tmp_path: Path) -> None:
    made = cells()
    x = made.X.toarray()
    x[2, 1] = np.nan
    made.X = x
    del made.obs["odd"]
    with pytest.raises(
        RequestError, match=r"1 missing values, the first in example 2, feature 'gene1'; give missing='mean'"
    ):
        from_anndata(made, "type")
    filled = from_anndata(made, "type", missing="mean").train.x
    assert filled[2, 1] == pytest.approx(np.nanmean(x[:, 1]))
    assert np.isnan(from_anndata(made, "type", missing="subset").train.x).sum() == 1
    with pytest.raises(RequestError, match="log1p_cp10k needs all counts of a cell"):
        from_anndata(made, "type", missing="mean", normalise="log1p_cp10k")
    made.write_h5ad(tmp_path / "c.h5ad")
    named = from_anndata(tmp_path / "c.h5ad", "type", missing="mean")
    assert "missing=mean" in named.name
    np.testing.assert_array_equal(load(named.name).train.x, filled)


@pytest.mark.filterwarnings("ignore:Observation names are not unique")
def test_samples_without_features_or_of_one_name_are_refused() -> None:
    made = cells()
    with pytest.raises(RequestError, match=r"there are no features, .* shape \(12, 0\)"):
        from_anndata(made[:, :0].copy(), "type")
    made.obs_names = ["a", "b", *["c"] * 10]
    with pytest.raises(RequestError, match=r"10 samples are called 'c'; .*obs_names_make_unique"):
        from_anndata(made, "type")
    table = pd.DataFrame({"who": list("abca"), "y": list("xyxy"), "f": np.arange(4.0)})
    with pytest.raises(RequestError, match="2 samples are called 'a'"):
        from_table(table, "y", ids="who")


def test_what_is_no_anndata_is_refused(tmp_path: Path) -> None:
    (tmp_path / "c.h5ad").write_text("no")
    with pytest.raises(RequestError, match=r"cannot read .*c\.h5ad' as an AnnData file"):
        from_anndata(tmp_path / "c.h5ad", "type")
    with pytest.raises(RequestError, match=r"there is no file 'none\.h5ad'"):
        from_anndata("none.h5ad", "type")
    with pytest.raises(RequestError, match="got list; needed is an AnnData"):
        from_anndata([1], "type")  # type: ignore[arg-type]
    made = cells()
    made.obs["score"] = np.linspace(0, 1, 12)
    with pytest.raises(RequestError, match=r"holds numbers like 0\.09.*cut it into classes"):
        from_anndata(made, "score")
    made.obs["one"] = "T"
    with pytest.raises(RequestError, match="all samples have the 'one' 'T'"):
        from_anndata(made, "one")


def test_real_cells_of_an_old_format_read_back() -> None:
    data = from_anndata(PBMC, "bulk_labels", hidden="louvain")
    assert (data.train.x.shape, data.n_classes, len(data.hidden_names or ())) == ((700, 765), 10, 11)
    assert data.train.obs["n_counts"].dtype == np.float32
    assert set(data.train.obs["phase"]) == {"G1", "S", "G2M"}
    assert (data.train.ids[0], data.feature_names[0]) == ("AAAGCCTGGCTAAC-1", "HES4")
    coarse = data.coarse({"T": [name for name in data.class_names if "T" in name], "rest": ["CD19+ B", "Dendritic"]})
    assert coarse.train.obs["n_counts"].shape == coarse.train.y.shape
    named = load(data.name)
    np.testing.assert_array_equal(named.train.x, data.train.x)
    assert named.name == data.name
