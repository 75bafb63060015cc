"""Biomedical data: cells, genotypes and tables as datasets; features prepared inside each subset; donors in or out together."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import bed_reader
import numpy as np
import pandas as pd
import pytest
import yaml
from anndata import AnnData
from bed_reader import to_bed
from numpy.typing import NDArray
from scipy import sparse
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from typer.testing import CliRunner

from datamodels import Ridge, datasets, fit
from datamodels.cli import app
from datamodels.datasets import Dataset, from_anndata, from_arrays, from_plink, from_table, load
from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.learners import estimator_task
from datamodels.training.preparation import Preparation
from datamodels.training.recipes import Recipe

_scanpy = importlib.util.find_spec("scanpy")
assert _scanpy is not None
assert _scanpy.origin is not None
PBMC = Path(_scanpy.origin).parent / "datasets" / "10x_pbmc68k_reduced.h5ad"
RNG = np.random.default_rng
LINEAR = Recipe(architecture="linear", epochs=6, lr=0.05)


def cells(n: int = 12, p: int = 5) -> AnnData:
    """Counts, and facts of several kinds."""
    counts = RNG(0).poisson(1.0, (n, p)).astype(np.float32)
    counts[3] = 0
    obs = pd.DataFrame(
        {
            "type": pd.Categorical(["T", "B"] * (n // 2), categories=["T", "B"]),
            "state": np.arange(n) % 3,
            "donor": [f"d{i // 3}" for i in range(n)],
            "depth": counts.sum(axis=1),
            "doublet": np.arange(n) % 5 == 0,
            "note": ["x", None] * (n // 2),
            "odd": [("a", 1)] * n,
        },
        index=[f"cell{i}" for i in range(n)],
    )
    var = pd.DataFrame(index=[f"gene{j}" for j in range(p)])
    data = AnnData(sparse.csr_matrix(counts), obs, var, obsm={"X_pca": counts[:, :2] - 1}, layers={"half": counts / 2})
    data.raw = AnnData(sparse.csr_matrix(np.hstack([counts, counts])), obs)
    return data


# -- datasets without a test split ----------------------------------------------------------------


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
    data = from_arrays("d", RNG(0).normal(size=(20, 3)), [0, 1] * 10)
    with pytest.raises(RequestError, match=r"d has no test examples: give splits \('train',\)"):
        _ = TrainRecipe(LINEAR, data).schema
    schema = TrainRecipe(LINEAR, data, splits=("train",)).schema
    assert schema == {"train_margins": {"shape": (20,), "dtype": "float32", "of": "train"}}
    with pytest.raises(RequestError, match="go together"):
        from_arrays("d", np.zeros((2, 1)), [0, 1], x_test=np.zeros((2, 1)))


# -- AnnData --------------------------------------------------------------------------------------


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


def test_real_cells_of_an_old_format() -> None:
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


# -- genotypes ------------------------------------------------------------------------------------

DOSAGES = np.array([[0, 1, 2, np.nan], [1, 1, np.nan, np.nan], [2, 0, 0, np.nan], [2, 2, 1, np.nan]], np.float32)


@pytest.fixture
def bed(tmp_path: Path) -> Path:
    """Four samples of two families, four variants, the last never called."""
    properties = {
        "fid": ["f1", "f1", "f2", "f2"],
        "iid": ["001", "002", "003", "004"],
        "sex": [1, 2, 1, 2],
        "pheno": ["1", "2", "1", "-9"],
        "chromosome": ["1", "1", "2", "X"],
        "sid": ["rs1", ".", "rs3", "rs4"],
        "bp_position": [10, 20, 30, 40],
    }
    to_bed(tmp_path / "g.bed", DOSAGES, properties=properties)
    return tmp_path / "g.bed"


def test_genotypes_come_back(bed: Path) -> None:
    data = from_plink(bed.with_suffix(""), groups="fid", unlabelled="drop")
    np.testing.assert_allclose(data.train.x, [[0, 1, 2, 0], [1, 1, 1, 0], [2, 0, 0, 0]])  # 2p over all four samples
    assert (data.class_names, data.train.y.tolist()) == (("1", "2"), [0, 1, 0])
    assert (data.train.ids.tolist(), data.train.groups.tolist()) == (["001", "002", "003"], ["f1", "f1", "f2"])
    assert data.feature_names == ("rs1", "1:20", "rs3", "rs4")
    assert data.train.obs["sex"].tolist() == [1, 2, 1]
    kept = from_plink(bed, "sex", missing="subset")
    np.testing.assert_array_equal(kept.train.x, DOSAGES)
    with pytest.raises(RequestError, match=r"5 missing values.*missing='subset' and Preparation"):
        from_plink(bed, "sex", missing="refuse")
    with pytest.raises(RequestError, match="1 of 4 samples have no 'pheno', the first is '004'"):
        from_plink(bed)


@pytest.mark.parametrize("name", ["some_missing", "toydata.5chrom", "small"])
def test_files_that_come_with_bed_reader_are_read_as_their_bytes_say(name: str) -> None:
    """PLINK's format: two bits per genotype, variant after variant; 00 is two copies of allele 1, 10 one, 11 none, 01 not called."""
    files = Path(bed_reader.__file__).parent / "tests" / "data"
    if not (files / f"{name}.bed").is_file():
        pytest.skip("this bed-reader comes without its sample files")
    fam, bim = (pd.read_csv(files / f"{name}.{end}", sep=r"\s+", header=None, dtype=str) for end in ("fam", "bim"))
    raw = np.frombuffer((files / f"{name}.bed").read_bytes(), np.uint8)
    assert raw[:3].tolist() == [0x6C, 0x1B, 1]
    bits = raw[3:].reshape(len(bim), -1)[:, :, None] >> np.arange(0, 8, 2) & 3
    copies = np.array([2, np.nan, 1, 0], np.float32)[bits.reshape(len(bim), -1)[:, : len(fam)]].T
    data = from_plink(files / name, {iid: k % 2 for k, iid in enumerate(fam[1])}, missing="subset")
    np.testing.assert_array_equal(data.train.x, copies)
    assert data.train.ids is not None
    assert data.train.ids.tolist() == fam[1].tolist()
    assert data.feature_names is not None
    assert data.feature_names[0] == bim[1][0]
    if name == "toydata.5chrom":
        with pytest.raises(RequestError, match=r"'pheno', holds numbers like .*cut it into classes"):
            from_plink(files / name)


def test_genotypes_take_labels_from_tables_and_mappings(bed: Path, tmp_path: Path) -> None:
    table = pd.DataFrame({"id": ["004", "002", "001", "009"], "ancestry": ["X", "Y", "X", "Y"], "sex": [7, 7, 7, 7]})
    table.to_csv(tmp_path / "s.tsv", sep="\t", index=False)
    data = from_plink(bed, "ancestry", table=tmp_path / "s.tsv", sample="id", unlabelled="drop", hidden="fid")
    assert (data.train.ids.tolist(), data.train.y.tolist()) == (["001", "002", "004"], [0, 1, 0])
    assert data.train.obs["sex"].tolist() == [7, 7, 7]
    np.testing.assert_array_equal(load(data.name).train.x, data.train.x)
    mapped = from_plink(bed, {"001": "a", "003": "b"}, unlabelled="drop")
    assert (mapped.train.ids.tolist(), mapped.class_names) == (["001", "003"], ("a", "b"))
    with pytest.raises(RequestError, match=r"no sample of the \.fam, like '001', is in column 'id'"):
        from_plink(bed, "ancestry", table=table.assign(id=["1", "2", "3", "4"]), sample="id")
    with pytest.raises(RequestError, match="the table has the sample '002' twice"):
        from_plink(bed, "ancestry", table=table.assign(id=["002", "002", "3", "4"]), sample="id")


def test_broken_genotypes_are_refused(bed: Path) -> None:
    content = bed.read_bytes()
    bed.write_bytes(b"\0" + content[1:])
    with pytest.raises(RequestError, match=r"cannot read .* as a PLINK file"):
        from_plink(bed, "sex")
    bed.with_suffix(".bim").unlink()
    with pytest.raises(RequestError, match=r"there is no file .*g\.bim"):
        from_plink(bed, "sex")


# -- tables ---------------------------------------------------------------------------------------


def table() -> pd.DataFrame:
    return pd.DataFrame(
        {
            "patient": ["007", "008", "009", "010"],
            "outcome": ["ill", "well", "ill", "well"],
            "age": [50, 61, 48, 70],
            "stage": ["II", "I", None, "II"],
            "smoker": [True, False, False, True],
            "site": [1, 1, 2, 2],
            "marker": [0.5, np.nan, 1.5, 4.0],
            "subtype": ["p", "q", "p", "q"],
        }
    )


@pytest.mark.parametrize("form", ["frame", "csv", "tsv.gz", "parquet"])
def test_tables_in_every_form_are_the_same(form: str, tmp_path: Path) -> None:
    frame, path = table(), tmp_path / f"t.{form}"
    if form == "parquet":
        frame.to_parquet(path)
    elif form != "frame":
        frame.to_csv(path, sep="," if form == "csv" else "\t", index=False)
    options: dict[str, Any] = {
        "ids": "patient",
        "hidden": "subtype",
        "groups": "site",
        "obs": ["age"],
        "missing": "mean",
    }
    data = from_table(frame if form == "frame" else path, "outcome", **options)
    assert data.feature_names == ("stage=I", "stage=II", "smoker", "marker")
    np.testing.assert_array_equal(data.train.x, [[0, 1, 1, 0.5], [1, 0, 0, 2], [0, 0, 0, 1.5], [0, 1, 1, 4]])
    assert (data.class_names, data.train.y.tolist()) == (("ill", "well"), [0, 1, 0, 1])
    assert (data.hidden_names, data.train.hidden.tolist()) == (("p", "q"), [0, 1, 0, 1])
    assert (data.train.ids.tolist(), data.train.groups.tolist()) == (["007", "008", "009", "010"], [1, 1, 2, 2])
    assert data.train.obs["age"].tolist() == [50, 61, 48, 70]
    if form != "frame":
        np.testing.assert_array_equal(load(data.name).train.x, data.train.x)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "1 missing values, the first in example 1, feature 'marker'"),
        ({"features": ["age", "outcome"]}, "column 'outcome' is named among features and otherwise"),
        ({"features": []}, "no column left for features"),
        ({"features": ["weight"]}, "the table has no column 'weight'"),
        ({"missing": "zero"}, "legal: refuse, mean, subset"),
    ],
)
def test_tables_say_what_does_not_fit(options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        from_table(table(), "outcome", **options)


def test_columns_that_are_no_features_are_refused(tmp_path: Path) -> None:
    many = pd.DataFrame({"y": [0, 1] * 60, "name": [f"s{i}" for i in range(120)]})
    with pytest.raises(RequestError, match=r"120 different texts.*give ids='name'"):
        from_table(many, "y")
    dates = pd.DataFrame({"y": [0, 1], "when": pd.to_datetime(["2020-01-01", "2021-01-01"])})
    with pytest.raises(RequestError, match="column 'when' holds neither numbers nor text"):
        from_table(dates, "y")
    (tmp_path / "t.pkl").write_bytes(b"")
    with pytest.raises(RequestError, match=r"legal: \.csv, \.tsv"):
        from_table(tmp_path / "t.pkl", "y")
    with pytest.raises(RequestError, match="cannot read"):
        from_table(tmp_path / "t.csv", "y")
    endless = pd.DataFrame({"y": [0, 1], "a": [0.0, np.inf]})
    with pytest.raises(RequestError, match="infinite value, in example 1"):
        from_table(endless, "y", missing="mean")


# -- names ----------------------------------------------------------------------------------------


def test_names_say_files(tmp_path: Path) -> None:
    table().rename(columns={"age": "age, & sex"}).to_csv(tmp_path / "t.csv", index=False)
    path = str(tmp_path / "t.csv")
    mapping = {
        "kind": "table",
        "path": path,
        "label": "outcome",
        "features": ["age, & sex", "smoker"],
        "groups": "site",
    }
    name = datasets.name_of(mapping)
    assert name == f"table:{path}?label=outcome&groups=site&features=age%2C %26 sex,smoker"
    assert load(name).feature_names == ("age, & sex", "smoker")
    assert load(f"{name}[3,0,first]").train.y.tolist() == [0, 1, 0]
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump({"dataset": mapping, "recipe": {"architecture": "linear"}, "splits": "train"}))
    task = TrainRecipe.read(file)
    assert (task.dataset, task.n_train) == (name, 4)
    before = task.fingerprint
    table().rename(columns={"age": "age, & sex"}).assign(smoker=False).to_csv(path, index=False)
    load.cache_clear()
    assert task.fingerprint != before  # of what the file holds, wherever it lies
    for change, message in (
        ({"kind": "csv"}, "a kind .anndata, plink, table. and a path; got kind 'csv'"),
        ({"path": None}, "and a path"),
        ({"colour": "red"}, "no option 'colour'; legal: label, ids"),
        ({"features": "smoker"}, "option 'features' .* give a list of columns"),
        ({"label": ["outcome"]}, "option 'label' .* give text"),
        ({"path": "a?b"}, "has a '\\?'"),
    ):
        with pytest.raises(RequestError, match=message):
            datasets.name_of({**mapping, **change})
    with pytest.raises(RequestError, match=r"says no label; write table:t\.csv\?label=COLUMN"):
        load("table:t.csv")
    with pytest.raises(RequestError, match="no option 'colour'"):
        load("table:t.csv?label=y&colour=red")
    with pytest.raises(RequestError, match=r"option 'backed' .* true or false"):
        datasets.name_of({"kind": "anndata", "path": "c.h5ad", "label": "y", "backed": "yes"})


# -- preparation ----------------------------------------------------------------------------------


def noisy(
    n: int = 60, p: int = 30, classes: int = 3, gaps: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = RNG(1)
    y = np.arange(n) % classes
    x = rng.normal(size=(n, p)) * rng.uniform(0.1, 5, p) + rng.normal(size=(classes, p))[y] + 50 * rng.normal(size=p)
    x[rng.random((n, p)) < gaps] = np.nan
    return x.astype(np.float32), y


@pytest.mark.parametrize("gaps", [0.0, 0.2])
def test_a_preparation_is_scikit_learns_pipeline_fitted_to_the_subset(gaps: float) -> None:
    x, y = noisy(gaps=gaps)
    x[:, 7] = 3.0
    for seed in range(5):
        members = np.flatnonzero(RNG(seed).random(60) < 0.5)
        select = SelectKBest(f_classif, k=8)
        pipeline = make_pipeline(SimpleImputer(), select, StandardScaler())
        with pytest.warns(UserWarning, match="constant"), np.errstate(invalid="ignore", divide="ignore"):
            pipeline.fit(x[members].astype(np.float64), y[members])
        ours = Preparation(select=8, by="f_score", scale=True, impute=True).fit(x, y, members)
        np.testing.assert_array_equal(ours.chosen, select.get_support(indices=True))
        np.testing.assert_allclose(ours(x), pipeline.transform(x.astype(np.float64)), rtol=1e-3, atol=1e-4)


def test_a_preparation_ranks_by_variance_and_leaves_constants() -> None:
    x, y = noisy()
    x[:, 4] = 1e6
    members = np.arange(0, 60, 2)
    variance = x[members].var(axis=0, dtype=np.float64)
    chosen = Preparation(select=5).fit(x, y, members).chosen
    np.testing.assert_array_equal(chosen, np.sort(np.argsort(variance)[-5:]))
    scaled = Preparation(scale=True).fit(x, y, members)(x)
    assert (scaled[:, 4] == 0).all()
    others = np.delete(scaled[members], 4, axis=1)
    np.testing.assert_allclose(others.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(others.std(axis=0), 1, rtol=1e-4)
    one = np.flatnonzero(y == 1)[:9]
    by_f = Preparation(select=5, by="f_score").fit(x, y, one).chosen
    np.testing.assert_array_equal(by_f, Preparation(select=5).fit(x, y, one).chosen)
    assert Preparation().fit(x, y, members)(x) is x


def test_missing_genotypes_are_twice_the_frequency_in_the_subset(bed: Path) -> None:
    data = from_plink(bed, "sex", missing="subset")
    prepared = Preparation(impute=True).fit(data.train.x, data.train.y, np.array([0, 3]))
    np.testing.assert_array_equal(prepared(data.train.x), [[0, 1, 2, 0], [1, 1, 1.5, 0], [2, 0, 0, 0], [2, 2, 1, 0]])
    with pytest.raises(RequestError, match=r"missing values \(NaN\): give prepare=Preparation\(impute=True\)"):
        _ = TrainRecipe(LINEAR, data, splits=("train",)).schema
    task = TrainRecipe(LINEAR, data, splits=("train",), prepare=Preparation(impute=True))
    design = Design(n_train=4, alpha=0.5, n_models=3)
    assert np.isfinite(task(np.arange(3), design.masks(), design)["train_margins"]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"select": 0}, "select is 0"),
        ({"select": True}, "select is True"),
        ({"by": "mean"}, "legal: variance, f_score"),
        ({"scale": 1}, "scale is 1; give true or false"),
        ({"center": True}, "no 'center'; legal: select, by"),
    ],
)
def test_a_preparation_says_what_does_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Preparation.of(values)


def test_a_recipe_says_when_its_preparation_makes_no_sense() -> None:
    x, y = noisy()
    data = from_arrays("d", x, y)
    with pytest.raises(RequestError, match="select is 31; the examples have 30 features"):
        _ = TrainRecipe(LINEAR, data, splits=("train",), prepare=Preparation(select=31)).schema
    with pytest.raises(RequestError, match=r"x is .*: of pictures"):
        _ = TrainRecipe(LINEAR, "digits:pictures", prepare=Preparation(scale=True)).schema
    with pytest.raises(RequestError, match=r"let Preparation\(scale=True\) do it by each subset"):
        TrainRecipe(replace(LINEAR, standardise=True), data, prepare=Preparation())
    with pytest.raises(RequestError, match="prepare is 'scale'"):
        TrainRecipe(LINEAR, data, prepare="scale")  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_a_prepared_row_is_the_model_of_its_prepared_features(engine: Any) -> None:
    """The oracle: prepare by hand with scikit-learn, and train that row alone on it."""
    x, y = noisy(classes=2)
    both = from_arrays("d", x[:40], y[:40], x[40:], y[40:])
    recipe, preparation = Recipe(hidden=(5,), epochs=3, lr=0.02), Preparation(select=6, by="f_score", scale=True)
    task = TrainRecipe(recipe, both, splits=("test", "train"), engine=engine, prepare=preparation)
    design = Design(n_train=40, alpha=0.5, n_models=4)
    out = task(np.arange(4), design.masks(), design)
    for row in range(4):
        members = np.flatnonzero(design.mask(row))
        pipeline = make_pipeline(SelectKBest(f_classif, k=6), StandardScaler()).fit(x[members], y[members])
        made = from_arrays("d", pipeline.transform(x[:40]), y[:40], pipeline.transform(x[40:]), y[40:])
        plain = TrainRecipe(recipe, made, splits=("test", "train"), engine=engine)
        expected = plain(np.array([row]), design.masks(row, row + 1), design)
        alone = task(np.array([row]), design.masks(row, row + 1), design)
        for key in ("margins", "train_margins"):
            np.testing.assert_allclose(out[key][row], expected[key][0], atol=1e-3)
            if engine == "compiled":
                np.testing.assert_array_equal(out[key][row], alone[key][0])


def test_the_fingerprint_knows_the_preparation(tmp_path: Path) -> None:
    data = from_arrays("d", *noisy())
    plain = TrainRecipe(LINEAR, data, splits=("train",))
    tasks = [
        replace(plain, prepare=Preparation(**kw))
        for kw in ({}, {"scale": True}, {"select": 3}, {"select": 3, "by": "f_score"})
    ]
    assert len({task.fingerprint for task in [plain, *tasks]}) == 5
    digits = TrainRecipe(LINEAR, "digits", prepare=Preparation(select=9, scale=True))
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(digits.to_dict()))))
    assert TrainRecipe.read(file) == digits
    assert TrainRecipe.read(file).fingerprint == digits.fingerprint


def test_selection_outside_of_subsets_leaks_and_inside_does_not() -> None:
    """Noise and random labels: nobody can do better than chance on examples that a model did not see."""
    n, p, keep = 60, 3000, 20
    rng = RNG(3)
    x, y = rng.normal(size=(n, p)).astype(np.float32), rng.permutation(np.arange(n) % 2)
    design = Design(n_train=n, alpha=0.5, n_models=60, kind="stratified", strata=tuple(y.tolist()))
    masks = design.masks()

    def unseen_accuracy(data: Dataset, prepare: Preparation | None) -> float:
        task = TrainRecipe(LINEAR, data, outputs=("correct",), splits=("train",), prepare=prepare)
        return float(task(np.arange(60), masks, design)["train_correct"][~masks].mean())

    inside = unseen_accuracy(from_arrays("d", x, y), Preparation(select=keep, by="f_score", scale=True))
    outside = unseen_accuracy(from_arrays("d", SelectKBest(f_classif, k=keep).fit_transform(x, y), y), None)
    assert abs(inside - 0.5) < 0.1
    assert outside > 0.65


# -- other learners -------------------------------------------------------------------------------


def test_boosted_trees_and_pipelines_are_judged_out_of_mask() -> None:
    x, y = noisy(classes=2)
    labels = np.array(["ill", "well"])[y]
    x[::7, 3] = np.nan  # which these trees take

    def trees() -> HistGradientBoostingClassifier:
        return HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5)

    def pipeline() -> Any:
        return make_pipeline(SimpleImputer(), SelectKBest(k=10), StandardScaler(), LogisticRegression())

    design = Design(n_train=60, alpha=0.5, n_models=5)
    for make in (trees, pipeline):
        task = estimator_task(make, x, labels, outputs=("margins", "correct"), splits=("train",))
        assert task.schema["train_margins"] == {"shape": (60,), "dtype": "float32", "of": "train"}
        rows = [task(design.mask(i), design.rng(i)) for i in range(5)]
        unseen = np.concatenate([row["train_correct"][~design.mask(i)] for i, row in enumerate(rows)])
        assert unseen.mean() > 0.7
        seen = design.mask(0)
        other = np.where(
            seen[:, None], x, -x
        )  # of examples outside of the subset neither fit nor scaling knows anything
        again = estimator_task(make, other, labels, splits=("train",))(seen, design.rng(0))
        np.testing.assert_array_equal(again["train_margins"][seen], rows[0]["train_margins"][seen])
    with pytest.raises(RequestError, match=r"no test examples; give them, or splits=\('train',\)"):
        estimator_task(trees, x, labels)
    with pytest.raises(RequestError, match="go together"):
        estimator_task(trees, x, labels, x)


# -- donors ---------------------------------------------------------------------------------------


def donors(tmp_path: Path, n_models: int = 400) -> tuple[Store, NDArray[np.float64], NDArray[np.int64]]:
    """A store of 16 donors with 3 samples each: margins of the samples are linear in which donors a model saw."""
    groups = np.repeat(np.arange(16), 3)
    design = Design(n_train=48, alpha=0.5, n_models=n_models, kind="grouped", groups=tuple(groups.tolist()))
    store = Store.create(
        tmp_path / "s", schema={"train_margins": {"shape": (48,), "dtype": "float64", "of": "train"}}, design=design
    )
    weights = RNG(0).normal(size=(16, 48))
    outputs = design.masks()[:, ::3] @ weights + 0.1 * RNG(1).normal(size=(n_models, 48))
    store.write_rows(np.arange(n_models), {"train_margins": outputs})
    return store, weights, groups


def test_a_sample_is_fitted_on_models_without_its_donor_and_donors_share_weights(tmp_path: Path) -> None:
    store, _, groups = donors(tmp_path)
    masks = store.masks(0, store.n_models)
    np.testing.assert_array_equal(masks[:, groups == 4].sum(axis=1) % 3, 0)
    found = fit(store, outputs_key="train_margins", estimator=Ridge(selection="gcv"), progress=False)
    by_donor = found.weights.reshape(16, 3, 48)
    np.testing.assert_allclose(by_donor, by_donor[:, :1].repeat(3, axis=1), atol=1e-5)
    own = by_donor[groups, :, np.arange(48)]
    np.testing.assert_allclose(own, 0, atol=1e-6)
    # The oracle: ridge on donors among the rows without the target's donor, with a third of the penalty.
    target = 13
    rows = ~masks[:, target]
    x, y = masks[rows][:, ::3].astype(float), store.array("train_margins")[rows, target]
    x = np.delete(x, groups[target], axis=1)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    penalty = found.target_facts["lam"][target] / 3
    solved = np.linalg.solve(z.T @ z / len(z) + penalty * np.eye(15), z.T @ (y - y.mean()) / len(z)) / x.std(axis=0)
    sums = np.delete(by_donor.sum(axis=1), groups[target], axis=0)[:, target]
    np.testing.assert_allclose(sums, solved, atol=2e-3)


def test_the_sum_over_a_donor_is_the_effect_of_the_donor(tmp_path: Path) -> None:
    store, weights, groups = donors(tmp_path)
    found = fit(store, outputs_key="train_margins", estimator=Ridge(), progress=False)
    sums = found.weights.reshape(16, 3, 48).sum(axis=1)
    others = groups[None, :] != np.arange(16)[:, None]
    # Every model has 8 donors, so what all others have in common is part of the bias.
    expected = weights - (weights * others).sum(axis=0) / 15
    np.testing.assert_allclose(sums[others], expected[others], atol=0.1)


@pytest.mark.filterwarnings("ignore::datamodels.errors.FewSubsetsWarning")
def test_init_takes_the_groups_of_the_dataset(tmp_path: Path) -> None:
    made = cells()
    del made.obs["odd"]
    made.write_h5ad(tmp_path / "c.h5ad")
    source = {"kind": "anndata", "path": str(tmp_path / "c.h5ad"), "label": "type", "groups": "donor"}
    recipe = tmp_path / "r.yaml"
    text = {"dataset": source, "splits": ["train"], "recipe": {"architecture": "linear"}, "prepare": {"select": 2}}
    recipe.write_text(yaml.safe_dump(text))

    def init(name: str, *more: str) -> Any:
        given = ["init", str(tmp_path / name), "--recipe", str(recipe), "--models", "6", "--alpha", "0.5", *more]
        return CliRunner().invoke(app, given)

    assert "--kind grouped keeps together" in init("plain").output
    result = init("donors", "--kind", "grouped")
    assert result.exit_code == 0, result.output
    assert "--kind" not in result.output
    store = Store.open(tmp_path / "donors")
    assert store.design is not None
    masks = store.design.masks()
    assert (masks.reshape(6, 4, 3).sum(axis=(1, 2)) == 6).all()
    assert (masks.reshape(6, 4, 3).std(axis=2) == 0).all()
    file = tmp_path / "groups.txt"
    file.write_text("\n".join(["a"] * 6 + ["b"] * 6) + "\n")
    init("own", "--kind", "grouped", "--groups", str(file))
    assert Store.open(tmp_path / "own").design.groups == (0,) * 6 + (1,) * 6
    train(store, TrainRecipe.read(recipe), executor="inline", progress=False)
    assert store.completed().all()
