"""Wrong labels: scores against definitions and planted noise, AUC and precision against brute force."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from datamodels import Attribution, Design, DifferenceInMeans, Ridge, Store, fit, train
from datamodels.datasets import from_arrays
from datamodels.errors import RequestError
from datamodels.evaluation.mislabels import (
    evaluate_mislabels,
    mislabel_scores,
    out_of_mask_margins,
    plant_label_noise,
)
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe


@pytest.fixture(scope="module")
def noisy(tmp_path_factory: pytest.TempPathFactory) -> tuple[Store, NDArray[np.bool_]]:
    """A store of 250 models on three classes, 10 % of the train labels wrong."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 3, 400)
    x = (3 * np.eye(6)[y] + rng.normal(size=(400, 6))).astype(np.float32)
    labels, flipped = plant_label_noise(y[:200], 0.1, seed=1)
    data = from_arrays("noisy", x[:200], labels, x[200:], y[200:])
    recipe = Recipe(architecture="mlp", hidden=(16,), epochs=6, lr=0.05)
    task = TrainRecipe(recipe, data, splits=("test", "train"))
    design = Design(n_train=200, alpha=0.5, n_models=250)
    store = Store.create(tmp_path_factory.mktemp("noisy") / "s", schema=task.schema, design=design)
    assert train(store, task, executor="inline", progress=False).ok
    return store, flipped


def test_planted_wrong_labels_are_found_by_every_score(noisy: tuple[Store, NDArray[np.bool_]]) -> None:
    store, flipped = noisy
    memorised = fit(store, DifferenceInMeans(), outputs_key="train_margins", progress=False)
    influence = fit(store, Ridge(), progress=False)
    found = {
        "out_of_mask": mislabel_scores(store),
        "self_influence": mislabel_scores(memorised),
        "influence": mislabel_scores(influence),
        "influence on train": mislabel_scores(memorised, "influence"),
    }
    for name, scores in found.items():
        result = evaluate_mislabels(scores, flipped, k=10)
        assert result.n_mislabelled == 20
        assert result.auc_ci[0] > 0.6, name
    assert evaluate_mislabels(found["out_of_mask"], flipped).auc > 0.95
    assert evaluate_mislabels(found["out_of_mask"], flipped).precision >= 0.8
    chance = evaluate_mislabels(np.random.default_rng(0).normal(size=200), flipped)
    assert chance.auc_ci[0] < 0.5 < chance.auc_ci[1]


def test_out_of_mask_margins_are_means_over_models_that_did_not_see(noisy: tuple[Store, NDArray[np.bool_]]) -> None:
    store, _ = noisy
    masks, margins = store.masks(), np.asarray(store.array("train_margins"), dtype=np.float64)
    expected = np.array([margins[~masks[:, j], j].mean() for j in range(200)])
    np.testing.assert_allclose(out_of_mask_margins(store), expected, atol=1e-9)
    np.testing.assert_allclose(mislabel_scores(store.path, "out_of_mask"), -expected, atol=1e-9)
    np.testing.assert_allclose(out_of_mask_margins(masks=masks, outputs=margins), expected, atol=1e-9)
    some = out_of_mask_margins(store, rows=(0, 50))
    np.testing.assert_allclose(some[3], margins[:50][~masks[:50, 3], 3].mean(), atol=1e-9)


def test_weights_that_are_not_finite_are_refused() -> None:
    broken = Attribution(np.array([[1.0, np.nan], [0, 1]]), np.zeros(2), train_columns=np.arange(2))
    for method in ("self_influence", "influence", None):
        with pytest.raises(RequestError, match="NaN or infinite"):
            mislabel_scores(broken, method)


def test_weights_are_read_as_said(tmp_path: Path) -> None:
    weights = np.random.default_rng(0).normal(size=(4, 4))
    a = Attribution(weights, np.zeros(4), train_columns=np.array([2, 0, 1, 3]))
    own = weights[[2, 0, 1, 3], range(4)]
    np.testing.assert_allclose(mislabel_scores(a), own[[1, 2, 0, 3]], atol=1e-6)
    expected = [-(weights[j].sum() - own[[2, 0, 1, 3].index(j)]) / 3 for j in range(4)]
    np.testing.assert_allclose(mislabel_scores(a, "influence"), expected, atol=1e-6)
    test = Attribution(weights, np.zeros(4))
    np.testing.assert_allclose(mislabel_scores(test), -weights.mean(axis=1), atol=1e-6)
    np.testing.assert_array_equal(mislabel_scores(test.save(tmp_path / "a.h5ad")), mislabel_scores(test))


def test_scores_that_cannot_be_had_are_refused(noisy: tuple[Store, NDArray[np.bool_]]) -> None:
    store, _ = noisy
    a = Attribution(np.ones((3, 2)), np.zeros(2))
    zero = Attribution(np.ones((2, 2)) - np.eye(2), np.zeros(2), train_columns=np.arange(2))
    for source, method, message in (
        (a, "self_influence", "not all training examples"),
        (zero, "self_influence", "fitted out of mask"),
        (a, "out_of_mask", "needs a store"),
        (store, "influence", "needs an attribution"),
        (a, "magic", "legal: self_influence, influence, out_of_mask"),
    ):
        with pytest.raises(RequestError, match=message):
            mislabel_scores(source, method)
    with pytest.raises(RequestError, match="200 train examples; give one output"):
        out_of_mask_margins(masks=np.eye(200, dtype=bool), outputs=np.ones((200, 400)))
    masks = np.array([[True, False], [True, True]])
    with pytest.raises(RequestError, match="train example 0 is in all 2 subsets"):
        out_of_mask_margins(masks=masks, outputs=np.ones((2, 2)))


def test_auc_and_its_interval() -> None:
    rng = np.random.default_rng(0)
    truth = rng.random(300) < 0.2
    scores = np.round(rng.normal(size=300) + truth, 1)  # with ties
    found = evaluate_mislabels(scores, truth)
    assert found.auc == pytest.approx(roc_auc_score(truth, scores), abs=1e-12)
    draws = []
    for _ in range(600):
        rows = np.concatenate(
            [rng.choice(np.flatnonzero(truth == side), (truth == side).sum()) for side in (True, False)]
        )
        draws.append(roc_auc_score(truth[rows], scores[rows]))
    np.testing.assert_allclose(found.auc_ci, np.quantile(draws, [0.025, 0.975]), atol=0.012)
    assert evaluate_mislabels(truth.astype(float), truth).auc_ci == (1, 1)


def test_intervals_hold_the_true_auc_as_often_as_they_say() -> None:
    from scipy.stats import norm

    rng = np.random.default_rng(1)
    truth = np.arange(120) < 30
    held = 0
    for _ in range(400):
        low, high = evaluate_mislabels(rng.normal(size=120) + 1.5 * truth, truth).auc_ci
        held += low < norm.cdf(1.5 / np.sqrt(2)) < high
    assert 0.92 <= held / 400 <= 0.98


def test_precision_shares_ties_at_the_limit() -> None:
    truth = np.array([True, True, False, True, False, False])
    found = evaluate_mislabels([5, 4, 4, 4, 1, 0], truth, k=[1, 2, 6])
    assert found.precision == pytest.approx((1 + 2 * 2 / 3) / 3)
    assert found.precision_at == {1: 1.0, 2: pytest.approx((1 + 2 / 3) / 2), 6: 0.5}
    assert found.to_dict()["precision_at"]["1"] == 1.0


@pytest.mark.parametrize(
    ("scores", "truth", "options", "message"),
    [
        ([1, 2, 3], np.array([True, False]), {}, "give finite scores"),
        ([1, 2, np.nan], np.array([True, False, True]), {}, "give finite scores"),
        ([1, 2, 3], np.array([1, 0, 1]), {}, "bool"),
        ([1, 2, 3], np.array([True, False, False]), {}, "1 of 3 labels are wrong"),
        ([1, 2, 3, 4], np.array([True, True, False, False]), {"k": 5}, "give 1..4"),
    ],
)
def test_what_cannot_be_judged_is_refused(scores: object, truth: object, options: object, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        evaluate_mislabels(scores, truth, **options)


def test_planted_noise_is_exact_and_uniform_over_other_classes() -> None:
    y = np.repeat(np.arange(4), 1000)
    noisy, flipped = plant_label_noise(y, 0.3, seed=2)
    assert flipped.sum() == 1200
    np.testing.assert_array_equal(noisy != y, flipped)
    counts = np.zeros((4, 4))
    np.add.at(counts, (y[flipped], noisy[flipped]), 1)
    assert np.abs(counts[~np.eye(4, dtype=bool)] - 100).max() < 45
    np.testing.assert_array_equal(plant_label_noise(y, 0.3, seed=2)[0], noisy)
    assert not plant_label_noise(y, 0)[1].any()
    assert plant_label_noise([0, 0], 1, n_classes=2)[0].tolist() == [1, 1]
    with pytest.raises(RequestError, match="2 classes or more"):
        plant_label_noise([0, 0], 0.5)
    with pytest.raises(RequestError, match="give integers from 0"):
        plant_label_noise([0.5], 0.5)


def test_self_influence_beside_the_weights_is_preferred_where_targets_are_others() -> None:
    rng = np.random.default_rng(0)
    told, weights = rng.random(5), rng.normal(size=(5, 3)).astype(np.float32)
    scores = Attribution(weights, np.zeros(3), train_facts={"self_influence": told})
    np.testing.assert_array_equal(mislabel_scores(scores), told)
    np.testing.assert_allclose(mislabel_scores(scores, "influence"), -weights.mean(axis=1), atol=1e-6)
    square = rng.normal(size=(5, 5)).astype(np.float32)
    own = Attribution(square, np.zeros(5), train_facts={"self_influence": told}, train_columns=np.arange(5))
    np.testing.assert_allclose(mislabel_scores(own), np.diag(square), atol=1e-6)
    broken = Attribution(weights, np.zeros(3), train_facts={"self_influence": np.where(told > 0.5, np.nan, told)})
    with pytest.raises(RequestError, match=r"'self_influence'.* holds NaN"):
        mislabel_scores(broken)
