"""FFCV files in a regression: a fit takes one where a store goes, and write_dataset makes one."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

import datamodels as dm
from datamodels.cli import app
from datamodels.errors import RequestError
from datamodels.regression import compute_datamodels, write_dataset
from datamodels.regression.problem import Problem
from tests.beton_files import put, read_all
from tests.conftest import Planted, plant


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Planted]:
    p = plant(300, 20, 4, noise=0.05, seed=1)
    outputs = p.outputs.astype(np.float32)
    return put(tmp_path / "rows.beton", {"mask": p.masks, "targets": outputs, "idx": np.arange(300)}), p


def test_a_fit_takes_a_file_where_a_store_goes(planted: tuple[Path, Planted]) -> None:
    path, p = planted
    for estimator in (dm.Lasso(), dm.Ridge()):
        found = dm.fit(path, estimator)
        expected = dm.fit(masks=p.masks, outputs=p.outputs.astype(np.float32), estimator=estimator)
        np.testing.assert_array_equal(found.weights, expected.weights)
    some_rows = dm.fit(str(path), dm.Ridge(), rows=(0, 200), targets=[2])
    judged = dm.lds(some_rows, path)
    assert judged.n_models == 100
    assert judged.lds > 0.9
    with pytest.raises(RequestError, match="give it where a store goes"):
        dm.fit(masks=path, outputs=path)


def test_targets_that_are_train_examples_are_fitted_out_of_mask(tmp_path: Path) -> None:
    p = plant(300, 8, 8, noise=0.1, seed=2)
    path = put(tmp_path / "x.beton", {"mask": p.masks, "targets": p.outputs})
    found = dm.fit(path, dm.Ridge(), targets_are_train=True)
    expected = dm.fit(masks=p.masks, outputs=p.outputs, estimator=dm.Ridge(), targets_are_train=True)
    np.testing.assert_array_equal(found.weights, expected.weights)
    assert not np.diag(found.weights).any()


def test_fields_of_other_names_are_named_by_the_keys(tmp_path: Path) -> None:
    p = plant(100, 10, 1)
    path = put(tmp_path / "x.beton", {"in": p.masks.astype(np.float32), "loss": p.outputs[:, 0]})
    problem = Problem.build(path, masks_key="in", outputs_key="loss")
    x, y = problem.load()
    np.testing.assert_array_equal(x, p.masks)
    np.testing.assert_array_equal(y, p.outputs)
    with pytest.raises(RequestError, match=r"no field 'mask'; arrays and numbers are in \['in', 'loss'\]"):
        Problem.build(path)


def test_the_commands_take_files_of_both_kinds(planted: tuple[Path, Planted], tmp_path: Path) -> None:
    path, _ = planted
    result = CliRunner().invoke(app, ["fit", str(path), "--rows", "0:200", "--out", str(tmp_path / "a.h5ad")])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "a.h5ad"), str(path), "--json"])
    assert result.exit_code == 0, result.output
    assert '"n_models": 100' in result.output


# -- write_dataset and compute_datamodels -------------------------------------------------------------


@pytest.fixture
def store(tmp_path: Path) -> dm.Store:
    """60 of 80 rows, four runs of each mask, outputs of the train examples in float64."""
    design = dm.Design(n_train=12, alpha=0.5, n_models=80, seed=0, replicates=4)
    schema = {"margins": {"shape": (12,), "dtype": "float64", "of": "train"}}
    made = dm.Store.create(tmp_path / "st", schema=schema, design=design)
    rng = np.random.default_rng(0)
    made.write_rows(np.arange(20, 80), {"margins": design.masks(20, 80) @ rng.normal(size=(12, 12))})
    return made


def gather(store: dm.Store, path: Path, **options: Any) -> int:
    config = {"data_dir": str(store.path), "out_path": str(path), "y_name": "margins"}
    return write_dataset.write_dataset(write_dataset.Config(**config, **options))


def test_write_dataset_writes_an_ffcv_file(store: dm.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gather(store, tmp_path / "x.beton", format="beton") == 60
    note = capsys.readouterr().err
    assert "cannot say which rows are replicates or pairs nor that targets are train examples" in note
    found = read_all(tmp_path / "x.beton")
    assert list(found) == ["mask", "targets", "idx"]
    np.testing.assert_array_equal(found["mask"], store.masks(20, 80))
    np.testing.assert_array_equal(found["targets"], store.array("margins")[20:80].astype(np.float32))
    np.testing.assert_array_equal(found["idx"], np.arange(60))
    assert found["targets"].dtype == np.float32


def test_the_default_format_keeps_replicates_and_train_targets(store: dm.Store, tmp_path: Path) -> None:
    gather(store, tmp_path / "x.beton")
    assert zipfile.is_zipfile(tmp_path / "x.beton")
    problem = Problem.build(tmp_path / "x.beton")
    assert len(np.unique(problem.units)) == 15
    assert problem.train_columns is not None


def test_outputs_beyond_float32_are_refused(tmp_path: Path) -> None:
    schema = {"margins": {"shape": (2,), "dtype": "float64"}}
    store = dm.Store.create(tmp_path / "st", schema=schema, design=dm.Design(n_train=4, alpha=0.5, n_models=3, seed=0))
    store.write_row(1, {"margins": [1e300, 0.0]})
    with pytest.raises(RequestError, match="too large for the float32"):
        gather(store, tmp_path / "x.beton", format="beton")
    assert not (tmp_path / "x.beton").exists()


def test_compute_datamodels_reads_both_formats_alike(planted: tuple[Path, Planted], tmp_path: Path) -> None:
    import torch

    path, p = planted
    spec = {"margins": {"shape": (4,), "dtype": "float32"}, "masks": {"shape": (20,), "dtype": "bool"}}
    store = dm.Store.create(tmp_path / "st", spec=dm.spec.Spec.model_validate({"num_models": 300, "schema": spec}))
    store.write_rows(np.arange(300), {"masks": p.masks, "margins": p.outputs})
    gather(store, tmp_path / "ours")
    weights = []
    for source in (path, tmp_path / "ours"):
        out = tmp_path / f"out-{source.name}"
        compute_datamodels.main(
            [
                "--data.num_train=250",
                "--data.num_val=50",
                "--cfg.k=10",
                f"--data.data_path={source}",
                f"--cfg.out_dir={out}",
            ]
        )
        weights.append(torch.load(out / "datamodels.pt", weights_only=True)["weight"].numpy())
    np.testing.assert_array_equal(*weights)
    assert np.abs(weights[0] - p.weights).max() < 0.1
