"""Fits from stores: several as one, targets that are training examples, provenance."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamodels import DifferenceInMeans, Lasso, LeastSquares, Ridge, Store, fit, lds
from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.spec import Spec


def filled(path: Path, n_models: int, seed: int, *, of: str | None = None, n_train: int = 12, t: int = 3) -> Store:
    """A store whose outputs are linear in the masks; with ``of="train"``, target j also jumps by 5 when
    example j itself is in."""
    t = n_train if of == "train" else t
    design = Design(n_train=n_train, alpha=0.5, n_models=n_models, seed=seed, kind="bernoulli")
    store = Store.create(path, schema={"margins": {"shape": (t,), "dtype": "float64", "of": of}}, design=design)
    weights = np.random.default_rng(99).normal(size=(n_train, t))
    if of == "train":
        np.fill_diagonal(weights, 5.0)
    noise = np.random.default_rng(seed).normal(size=(n_models, t))
    store.write_rows(np.arange(n_models), {"margins": design.masks() @ weights + 0.1 * noise})
    return store


@pytest.mark.parametrize("estimator", [Lasso(), Ridge(), LeastSquares(), DifferenceInMeans()])
def test_several_stores_are_fitted_as_one(tmp_path: Path, estimator: object) -> None:
    a, b = filled(tmp_path / "a", 80, 1), filled(tmp_path / "b", 70, 2)
    together = fit([a, b], estimator, progress=False)
    masks = np.concatenate([a.masks(), b.masks()])
    outputs = np.concatenate([a.array("margins"), b.array("margins")])
    np.testing.assert_array_equal(
        together.weights, fit(masks=masks, outputs=outputs, estimator=estimator, progress=False).weights
    )
    assert [len(source["rows"]) for source in together.provenance["sources"]] == [80, 70]


def test_only_completed_rows_take_part(tmp_path: Path) -> None:
    whole = filled(tmp_path / "a", 80, 1)
    part = Store.create(tmp_path / "b", spec=whole.spec, design=whole.design)
    rows = np.arange(0, 80, 2)
    part.write_rows(rows, {"margins": whole.array("margins")[rows]})
    a, b = fit(part, LeastSquares(), progress=False), fit(whole, LeastSquares(), rows=rows, progress=False)
    np.testing.assert_array_equal(a.weights, b.weights)


def test_the_same_rows_twice_are_refused(tmp_path: Path) -> None:
    a = filled(tmp_path / "a", 20, 1)
    with pytest.raises(RequestError, match="given twice"):
        fit([a, a], progress=False)
    with pytest.raises(RequestError, match="do not go together"):
        fit([a, filled(tmp_path / "b", 20, 2, n_train=13)], progress=False)


@pytest.mark.parametrize("estimator", [Lasso(), Ridge(), LeastSquares()])
def test_targets_that_are_train_examples_are_fitted_without_their_own_models(tmp_path: Path, estimator: object) -> None:
    store = filled(tmp_path / "a", 150, 1, of="train")
    a = fit(store, estimator, targets=slice(3, 7), progress=False)
    assert a.train_columns.tolist() == [3, 4, 5, 6]
    masks, outputs = store.masks(), np.asarray(store.array("margins"))
    for position, j in enumerate(range(3, 7)):
        rows = ~masks[:, j]
        with pytest.warns(UserWarning, match=f"the first is {j}"):
            alone = fit(masks=masks[rows], outputs=outputs[rows][:, [j]], estimator=estimator, progress=False)
        np.testing.assert_allclose(a.weights[:, position], alone.weights[:, 0], atol=1e-6)
        assert a.bias[position] == pytest.approx(alone.bias[0], abs=1e-6)
        assert a.weights[j, position] == 0


def test_difference_in_means_keeps_memorisation(tmp_path: Path) -> None:
    a = fit(filled(tmp_path / "a", 400, 1, of="train"), DifferenceInMeans(), progress=False)
    np.testing.assert_allclose(np.diagonal(a.weights), 5.0, atol=1.0)
    assert a.train_columns is not None


def test_bare_arrays_can_be_said_to_be_train_examples(tmp_path: Path) -> None:
    store = filled(tmp_path / "a", 150, 1, of="train")
    bare = fit(masks=store.masks(), outputs=store.array("margins"), targets_are_train=True, progress=False)
    np.testing.assert_array_equal(bare.weights, fit(store, progress=False).weights)
    assert not np.diagonal(bare.weights).any()
    with pytest.raises(RequestError, match="3 targets and 12 train examples"):
        fit(filled(tmp_path / "b", 20, 1), targets_are_train=True, progress=False)


def test_train_targets_are_judged_on_models_that_did_not_see_them(tmp_path: Path) -> None:
    store = filled(tmp_path / "a", 300, 1, of="train")
    a = fit(store, rows=(0, 200), progress=False)
    score = lds(a, store)
    from scipy.stats import spearmanr

    masks, outputs = store.masks()[200:], np.asarray(store.array("margins"))[200:]
    for j in range(12):
        rows = ~masks[:, j]
        expected = spearmanr(a.predict(masks[rows])[:, j], outputs[rows, j])[0]
        assert score.per_target[j] == pytest.approx(expected, abs=1e-12)


def test_a_twin_of_the_target_is_said_to_be_constant(tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((100, 6)) < 0.5
    masks[:, 1] = masks[:, 0]
    outputs = np.random.default_rng(1).normal(size=(100, 6))
    with pytest.warns(UserWarning, match="2 targets .the first is train example 0"):
        a = fit(masks=masks, outputs=outputs, targets_are_train=True, progress=False)
    assert a.weights[1, 0] == a.weights[0, 1] == 0


def test_an_example_that_every_model_saw_cannot_be_judged() -> None:
    masks = np.random.default_rng(0).random((30, 3)) < 0.5
    masks[:, 1] = True
    with pytest.raises(RequestError, match="train example 1 is in 30 of 30 subsets"):
        fit(masks=masks, outputs=np.ones((30, 3)), targets_are_train=True, progress=False)


def test_provenance_names_rows_design_estimator_and_store(tmp_path: Path) -> None:
    store = filled(tmp_path / "a", 40, 6)
    a = fit(store, Lasso(n_lambdas=7), rows=(5, 25), progress=False)
    (source,) = a.provenance["sources"]
    assert source["rows"].tolist() == list(range(5, 25))
    assert source["design"]["seed"] == 6
    assert source["fingerprint"] == store.fingerprint()
    assert a.provenance["estimator"]["name"] == "lasso"
    assert a.provenance["estimator"]["n_lambdas"] == 7
    assert "numpy" in a.provenance["versions"]


def test_keys_can_be_chosen(tmp_path: Path) -> None:
    spec = Spec.model_validate(
        {
            "num_models": 30,
            "schema": {"who": {"shape": [6], "dtype": "uint8"}, "what": {"shape": [2], "dtype": "float32"}},
        }
    )
    store = Store.create(tmp_path / "s", spec=spec)
    rng = np.random.default_rng(0)
    store.write_rows(np.arange(30), {"who": rng.random((30, 6)) < 0.5, "what": rng.normal(size=(30, 2))})
    a = fit(store, LeastSquares(), masks_key="who", outputs_key="what", progress=False)
    assert a.weights.shape == (6, 2)
    with pytest.raises(RequestError, match=r"no key 'margins'; it has \['who', 'what'\]"):
        fit(store, progress=False)


def test_files_larger_than_what_is_read_at_once_are_streamed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from datamodels.regression import problem

    store = filled(tmp_path / "a", 700, 1)
    np.save(tmp_path / "x.npy", store.masks())
    np.save(tmp_path / "y.npy", np.asarray(store.array("margins"), dtype=np.float16))
    whole = fit(masks=tmp_path / "x.npy", outputs=tmp_path / "y.npy", progress=False)
    monkeypatch.setattr(problem, "CHUNK_BYTES", 1)
    sizes = [len(x) for x, _ in problem.Problem.build(masks=tmp_path / "x.npy", outputs=tmp_path / "y.npy").chunks()]
    assert max(sizes) == 64
    pieces = fit(masks=tmp_path / "x.npy", outputs=tmp_path / "y.npy", progress=False)
    np.testing.assert_allclose(pieces.weights, whole.weights, atol=1e-6)
    with pytest.raises(RequestError, match=r"cannot read .*nothing\.npy"):
        fit(masks=tmp_path / "nothing.npy", outputs=tmp_path / "y.npy", progress=False)
