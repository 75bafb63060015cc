"""The result type and its files."""

from __future__ import annotations

import json
from pathlib import Path

import anndata
import numpy as np
import pytest
import torch

from datamodels import Attribution, Lasso, Ridge, fit
from datamodels.errors import NewerFormatError, RequestError
from tests.conftest import plant


def example(sparse: bool = False) -> Attribution:
    rng = np.random.default_rng(0)
    weights = rng.normal(size=(9, 5)).astype(np.float32)
    if sparse:
        weights[rng.random(weights.shape) < 0.9] = 0
    return Attribution(
        weights=weights,
        bias=rng.normal(size=5),
        target_facts={"lam": rng.random(5), "name": np.array(["a", "b", "<b>", "d", "é"]), "path": rng.random((5, 3))},
        train_facts={"label": np.arange(9)},
        train_columns=np.array([0, 3, 4, 8, 1]),
        provenance={
            "estimator": {"name": "test", "folds": None, "eps": 0.1, "on": True},
            "sources": [{"identity": "x", "rows": np.array([1, 5, 7])}, {"identity": "y", "rows": np.array([2])}],
        },
    )


def assert_equal(a: Attribution, b: Attribution) -> None:
    np.testing.assert_array_equal(a.weights, b.weights)
    np.testing.assert_array_equal(a.bias, b.bias)
    assert a.weights.dtype == b.weights.dtype == np.float32
    assert a.bias.dtype == b.bias.dtype == np.float64
    for mine, theirs in ((a.target_facts, b.target_facts), (a.train_facts, b.train_facts)):
        assert set(mine) == set(theirs)
        for key in mine:
            np.testing.assert_array_equal(mine[key], theirs[key])
    if a.train_columns is None:
        assert b.train_columns is None
    else:
        np.testing.assert_array_equal(a.train_columns, b.train_columns)


@pytest.mark.parametrize("sparse", [False, True])
def test_files_round_trip_exactly(tmp_path: Path, sparse: bool) -> None:
    a = example(sparse)
    again = Attribution.load(a.save(tmp_path / "deep" / "a.h5ad"))
    assert_equal(a, again)
    assert again.provenance["estimator"] == {"name": "test", "folds": None, "eps": 0.1, "on": True}
    assert [source["rows"].tolist() for source in again.provenance["sources"]] == [[1, 5, 7], [2]]
    assert_equal(again, Attribution.load(again.save(tmp_path / "a.h5ad")))
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.h5ad", "deep"]


def test_anndata_tools_open_the_file(tmp_path: Path) -> None:
    a = example()
    data = anndata.read_h5ad(a.save(tmp_path / "a.h5ad"))
    assert data.shape == (5, 9)
    np.testing.assert_array_equal(np.asarray(data.X), a.weights.T)
    np.testing.assert_array_equal(data.obs["bias"], a.bias)
    assert data.obs["bias"].dtype == np.float64
    np.testing.assert_array_equal(data.obs["lam"], a.target_facts["lam"])
    assert data.uns["datamodels"]["format_version"] == 1


def test_the_smaller_of_dense_and_sparse_is_written(tmp_path: Path) -> None:
    p = plant(400, 100, 40, noise=0.1)
    lasso = fit(masks=p.masks, outputs=p.outputs, estimator=Lasso(eps=0.2), progress=False)
    ridge = fit(masks=p.masks, outputs=p.outputs, estimator=Ridge(), progress=False)
    from scipy import sparse

    assert sparse.issparse(lasso.to_anndata().X)
    assert not sparse.issparse(ridge.to_anndata().X)
    for a in (lasso, ridge):
        assert_equal(a, Attribution.load(a.save(tmp_path / "a.h5ad")))


def test_fits_carry_the_promised_columns(tmp_path: Path) -> None:
    p = plant(100, 10, 3, noise=0.1)
    data = anndata.read_h5ad(fit(masks=p.masks, outputs=p.outputs, progress=False).save(tmp_path / "a.h5ad"))
    assert {"bias", "lam", "n_nonzero", "gap", "val_r2"} <= set(data.obs)
    assert {"estimator", "sources", "versions"} <= set(json.loads(data.uns["datamodels"]["provenance"]))


def test_predictions_are_masks_times_weights_plus_bias() -> None:
    a = example()
    masks = np.random.default_rng(1).random((6, 9)) < 0.5
    np.testing.assert_allclose(a.predict(masks), masks.astype(float) @ a.weights.astype(float) + a.bias, rtol=1e-5)
    np.testing.assert_allclose(a.predict(masks[0]), a.predict(masks)[0], rtol=1e-5)
    with pytest.raises(RequestError, match="n_train = 9"):
        a.predict(masks[:, :8])


def test_top_ranks_by_sign() -> None:
    weights = np.array([[3.0], [-5.0], [0.0], [1.0], [-2.0]])
    a = Attribution(weights, np.zeros(1))
    assert a.top(0).indices.tolist() == [0, 3]
    assert a.top(0, 1).weights.tolist() == [3.0]
    assert a.top(0, sign="negative").indices.tolist() == [1, 4]
    assert a.top(0, sign="absolute").indices.tolist() == [1, 0, 4, 3]
    assert a.top(0, 0).indices.tolist() == []
    for target in (1, -1):
        with pytest.raises(RequestError, match=r"outside of 0\.\.0"):
            a.top(target)
    with pytest.raises(RequestError, match="legal: positive, negative, absolute"):
        a.top(0, sign="up")


@pytest.mark.parametrize("targets", [slice(1, 3), [4, 0], np.array([True, False, True, False, False]), 2])
def test_slices_keep_what_belongs_to_a_target(targets: object, tmp_path: Path) -> None:
    a = example()
    index = np.atleast_1d(np.arange(5)[targets])
    part = a[targets]
    np.testing.assert_array_equal(part.weights, a.weights[:, index])
    np.testing.assert_array_equal(part.target_facts["path"], a.target_facts["path"][index])
    np.testing.assert_array_equal(part.train_columns, a.train_columns[index])
    assert_equal(part, Attribution.load(part.save(tmp_path / "part.h5ad")))


def test_the_classic_layout_goes_out_and_comes_in(tmp_path: Path) -> None:
    a = example()
    path = a.export_pt(tmp_path / "datamodels.pt")
    content = torch.load(path, weights_only=True)
    assert content["weight"].dtype == torch.float32
    assert content["weight"].shape == (9, 5)
    np.testing.assert_array_equal(content["lam"], a.target_facts["lam"].astype(np.float32))
    again = Attribution.import_pt(path)
    np.testing.assert_array_equal(again.weights, a.weights)
    np.testing.assert_allclose(again.bias, a.bias, rtol=1e-6)


class Payload:
    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (Path("executed"),))


def test_files_that_execute_code_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(Payload(), tmp_path / "evil.pt")
    with pytest.raises(RequestError, match="not in the classic layout"):
        Attribution.import_pt(tmp_path / "evil.pt")
    assert not (tmp_path / "executed").exists()


def test_files_of_other_kinds_are_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="there is no file"):
        Attribution.load(tmp_path / "none.h5ad")
    (tmp_path / "text.h5ad").write_text("hello")
    with pytest.raises(RequestError, match="not a readable"):
        Attribution.load(tmp_path / "text.h5ad")
    anndata.AnnData(np.zeros((2, 2))).write_h5ad(tmp_path / "other.h5ad")
    with pytest.raises(RequestError, match="is no attribution: give a file"):
        Attribution.load(tmp_path / "other.h5ad")
    data = example().to_anndata()
    data.uns["datamodels"]["format_version"] = 3
    data.write_h5ad(tmp_path / "new.h5ad")
    with pytest.raises(NewerFormatError, match=r"version 3.*up to version 1"):
        Attribution.load(tmp_path / "new.h5ad")
    with pytest.raises(RequestError, match=r"must end in \.h5ad"):
        example().save(tmp_path / "a.pkl")


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"bias": np.zeros(3)}, "they must be"),
        ({"weights": np.zeros(3)}, "they must be"),
        ({"target_facts": {"lam": np.zeros(4)}}, "first axis must be 2"),
        ({"train_facts": {"y": np.zeros(4)}}, "first axis must be 3"),
        ({"target_facts": {"bias": np.zeros(2)}}, "'bias', which the file needs for itself"),
        ({"train_columns": np.array([0, 3])}, "one training example per target"),
    ],
)
def test_parts_must_fit_each_other(more: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Attribution(**{"weights": np.zeros((3, 2)), "bias": np.zeros(2), **more})
