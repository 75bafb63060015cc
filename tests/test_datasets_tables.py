"""Genotypes and tables as datasets, and the names that say a file, its columns and its options."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bed_reader
import numpy as np
import pandas as pd
import pytest
import yaml

from datamodels import datasets
from datamodels.datasets import from_plink, from_table, load
from datamodels.errors import RequestError
from datamodels.training.ensemble import TrainRecipe
from tests.biomedical_data import DOSAGES, bed

__all__ = ["bed"]  # fixtures


# -- genotypes ----------------------------------------------------------------------------------------


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


# -- tables -------------------------------------------------------------------------------------------


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


# -- names --------------------------------------------------------------------------------------------


def test_names_say_files_columns_and_options(tmp_path: Path) -> None:
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
