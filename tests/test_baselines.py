"""Scores from elsewhere, baselines, and LDS side by side."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from datamodels import Attribution, Ridge, fit, lds
from datamodels.applications.baselines import Features, last_layer, loss_scores, nearest_neighbours, random_scores
from datamodels.datasets import from_arrays, load
from datamodels.errors import RequestError
from datamodels.evaluation.compare import compare_lds
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.modules import module_of
from datamodels.training.recipes import Recipe
from datamodels.trak.of_recipe import train_checkpoints
from tests.conftest import plant


def test_scores_of_other_packages_become_an_attribution(tmp_path: Path) -> None:
    scores = np.arange(12, dtype=np.float64).reshape(4, 3)
    one = Attribution.from_scores(scores, orientation="train_by_target", method="traker", units="margin")
    other = Attribution.from_scores(torch.tensor(scores.T), orientation="target_by_train", method="captum")
    assert (one.n_train, one.n_targets) == (other.n_train, other.n_targets) == (4, 3)
    np.testing.assert_array_equal(one.weights, scores)
    np.testing.assert_array_equal(other.weights, scores)
    np.testing.assert_array_equal(one.predict(np.eye(4, dtype=bool)), scores)
    assert one.provenance == {"estimator": {"name": "traker"}, "units": "margin"}
    back = Attribution.load(one.save(tmp_path / "a.h5ad"))
    assert back.provenance == one.provenance
    assert "traker" in repr(back)


@pytest.mark.parametrize(
    ("scores", "options", "message"),
    [
        (np.ones((2, 2)), {"orientation": "rows"}, "'rows'; legal: train_by_target, target_by_train"),
        (np.ones((2, 2)), {"method": ""}, "give the name of whose scores"),
        (np.ones(2), {}, r"shape \(2,\); give a finite number per"),
        (np.full((2, 2), np.nan), {}, "hold NaN or inf"),
        (torch.ones(2, 2, requires_grad=True), {}, r"scores.detach\(\).float\(\).cpu\(\)"),
        (np.ones((2, 2)), {"train_columns": [0, 2]}, "train_columns must name one training example per target"),
    ],
)
def test_what_is_no_score_is_refused(scores: object, options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Attribution.from_scores(scores, **{"orientation": "train_by_target", "method": "m", **options})


def test_neighbours_weigh_by_similarity_and_label() -> None:
    rng = np.random.default_rng(0)
    train, targets = rng.normal(size=(30, 2, 3)), rng.normal(size=(7, 2, 3))
    labels, wanted = rng.integers(0, 3, 30), rng.integers(0, 3, 7)
    sign = np.where(labels[:, None] == wanted, 1, -1)
    flat, other = train.reshape(30, 6), targets.reshape(7, 6)
    cosine = nearest_neighbours(train, targets, labels, wanted)
    np.testing.assert_allclose(cosine.weights, sign * np.maximum(1 - cdist(flat, other, "cosine"), 0), atol=1e-6)
    distances = cdist(flat, other)
    h = np.median(np.sort(distances, axis=0)[4])
    euclidean = nearest_neighbours(train, targets, labels, wanted, metric="euclidean", neighbours=5)
    np.testing.assert_allclose(euclidean.weights, sign * np.exp(-0.5 * (distances / h) ** 2), atol=1e-5)
    own = nearest_neighbours(train, train, labels, labels, train_columns=np.arange(30))
    np.testing.assert_array_equal(np.diag(own.weights), 0)
    apart = cdist(flat, flat) + np.diag(np.full(30, np.inf))
    h = np.median(np.sort(apart, axis=0)[4])  # an example is not among its own neighbours
    expected = np.where(labels[:, None] == labels, 1, -1) * np.exp(-0.5 * (apart / h) ** 2)
    own = nearest_neighbours(
        train, train, labels, labels, metric="euclidean", neighbours=5, train_columns=np.arange(30)
    )
    np.testing.assert_allclose(own.weights, expected, atol=1e-5)
    np.testing.assert_array_equal(np.diag(own.weights), 0)
    assert euclidean.provenance["units"] == "similarity, signed by the label"
    assert not cosine.bias.any()


def test_random_and_loss() -> None:
    np.testing.assert_array_equal(random_scores(5, 4, seed=1).weights, random_scores(5, 4, seed=1).weights)
    assert (random_scores(5, 4, seed=1).weights != random_scores(5, 4, seed=2).weights).all()
    a = loss_scores([0.5, 2.0], 3)
    np.testing.assert_array_equal(a.weights, [[-0.5] * 3, [-2.0] * 3])
    with pytest.raises(RequestError, match="one finite loss per training"):
        loss_scores([np.inf], 3)
    with pytest.raises(RequestError, match="give 1 or more of each"):
        random_scores(0, 3)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"metric": "manhattan"}, "legal: cosine, euclidean"),
        ({"metric": "euclidean", "neighbours": 4}, "neighbours is 4; give 1 up to the 3"),
        ({"target_labels": [0]}, "do not go together"),
        ({"train_columns": [0, 9]}, r"give one training example 0\.\.2 for each of the 2 targets"),
        ({"train_columns": [0]}, "for each of the 2 targets"),
        ({"train_columns": [0, 1], "metric": "euclidean", "neighbours": 3}, "give 1 up to the 2 .* besides the target"),
        ({"train_features": np.full((3, 2), np.nan)}, "train_features have shape .* give finite numbers"),
    ],
)
def test_what_is_no_neighbourhood_is_refused(options: dict[str, object], message: str) -> None:
    given = {
        "train_features": np.ones((3, 2)), "target_features": np.ones((2, 2)),
        "train_labels": [0, 1, 0], "target_labels": [0, 1], "neighbours": 1,
    }  # fmt: skip
    with pytest.raises(RequestError, match=message):
        nearest_neighbours(**{**given, **options})


def same_class(features: Features, task: TrainRecipe) -> float:
    """Share of the 5 nearest training examples that are of the test example's class."""
    y, wanted = task.data.train.y, task.data.test.y
    weights = np.abs(nearest_neighbours(*features, y, wanted).weights)
    nearest = np.argsort(-weights, axis=0)[:5]
    return float((y[nearest] == wanted).mean())


def test_the_last_layer_of_a_trained_network_knows_classes(tmp_path: Path) -> None:
    task = TrainRecipe(Recipe(hidden=(32,), epochs=40), load("digits[300,100]"))
    (file,) = train_checkpoints(tmp_path, task, 1, alpha=1.0).files
    found = last_layer(task, file)
    assert (found.train.shape, found.test.shape) == ((300, 32), (100, 32))
    state = torch.load(file, weights_only=True)["state_dict"]
    module = module_of(task.recipe, task.data.train.x.shape[1:], task.data.n_classes)
    untrained = last_layer(task, {name: values.clone() for name, values in module.state_dict().items()})
    module.load_state_dict(state)
    with torch.no_grad():
        logits = module(torch.from_numpy(task.data.test.x)).numpy()
    *_, (weight, bias) = zip(list(state.values())[:-1], list(state.values())[1:], strict=True)
    np.testing.assert_allclose(found.test @ weight.numpy().T + bias.numpy(), logits, atol=1e-4)
    rng = np.random.default_rng(0)
    random = Features(*(rng.normal(size=part.shape).astype(np.float32) for part in found))
    assert same_class(found, task) > 0.8
    assert same_class(found, task) > same_class(untrained, task) + 0.02
    assert same_class(found, task) > same_class(random, task) + 0.3
    wider = replace(task, recipe=Recipe(hidden=(16,), epochs=40))
    with pytest.raises(RequestError, match="does not hold a network of this recipe"):
        last_layer(wider, file)


def test_mirror_images_count_half_each() -> None:
    x = np.random.default_rng(0).normal(size=(6, 1, 8, 8)).astype(np.float32)
    data = from_arrays("pictures", x, np.arange(6) % 2, x, np.arange(6) % 2)
    task = TrainRecipe(Recipe(architecture="cnn", channels=(2,), hidden=(4,), flip_average=True), data)
    module = module_of(task.recipe, (1, 8, 8), 2)
    state = module.state_dict()
    with torch.no_grad():
        logits = module(torch.from_numpy(x)).numpy()
    weight, bias = list(state.values())[-2:]
    np.testing.assert_allclose(last_layer(task, state).test @ weight.numpy().T + bias.numpy(), logits, atol=1e-5)


def test_side_by_side_is_each_score_alone_and_differences_are_paired() -> None:
    p = plant(500, 30, 12, noise=1.5)
    arrays = {"masks": p.masks, "outputs": p.outputs}
    few = fit(**arrays, estimator=Ridge(), rows=(0, 100), progress=False)
    many = fit(**arrays, estimator=Ridge(), rows=(0, 300), progress=False)
    chance = random_scores(30, 12)
    found = compare_lds({"few": few, "many": many, "random": chance}, **arrays, reference="few", seed=3)
    for name, one in (("few", few), ("many", many)):
        alone = lds(one, **arrays, rows=(300, 500), seed=3)
        assert found.scores[name].lds == alone.lds
        np.testing.assert_array_equal(found.scores[name].bootstrap, alone.bootstrap)
    gain = found.differences["many"]
    assert gain.value == pytest.approx(found.scores["many"].lds - found.scores["few"].lds)
    assert gain.clear
    assert gain.low > 0
    apart = np.quantile(found.scores["many"].bootstrap, [0.025, 0.975])
    assert gain.high - gain.low < apart[1] - apart[0]  # what both share has cancelled
    assert found.differences["random"].high < 0
    assert [row["method"] for row in found.table()] == ["many", "few", "random"]
    assert found.table()[1]["difference"] is None
    assert found.to_dict()["n_models"] == 200
    same = compare_lds({"a": many, "b": many}, **arrays)
    assert same.differences["b"] == (0, 0, 0)
    assert not same.differences["b"].clear


def test_comparisons_that_are_not_fair_are_refused() -> None:
    p = plant(100, 8, 4, noise=0.5)
    arrays = {"masks": p.masks, "outputs": p.outputs}
    a = fit(**arrays, estimator=Ridge(), rows=(0, 60), progress=False)
    silent = Attribution.from_scores(p.weights, orientation="train_by_target", method="other")
    with pytest.raises(RequestError, match="'b' does not say which models it has used: name the rows"):
        compare_lds({"a": a, "b": silent}, **arrays)
    assert compare_lds({"a": a, "b": silent}, **arrays, rows=(60, 100)).differences["b"].value > -0.05
    with pytest.raises(RequestError, match="were used by the fit"):
        compare_lds({"a": a, "b": silent}, **arrays, rows=(50, 100))
    with pytest.raises(RequestError, match="'a' and 'b' are not of the same targets"):
        compare_lds({"a": a[:2], "b": a[2:]}, **arrays)
    with pytest.raises(RequestError, match="'b' has 2 targets and does not say which of the 4"):
        compare_lds({"a": a[:2], "b": random_scores(8, 2)}, **arrays)
    with pytest.raises(RequestError, match="give both the same train_columns"):
        compare_lds(
            {"a": a, "b": nearest_neighbours(np.eye(8), np.eye(8)[:4], [0] * 8, [0] * 4, train_columns=range(4))},
            **arrays,
        )
    with pytest.raises(RequestError, match="reference 'c' is unknown; legal: a"):
        compare_lds({"a": a}, **arrays, reference="c")
    with pytest.raises(RequestError, match="there is no attribution"):
        compare_lds({}, **arrays)
    with pytest.raises(RequestError, match="0 rows are left"):
        compare_lds({"a": fit(**arrays, estimator=Ridge(), progress=False)}, **arrays)
