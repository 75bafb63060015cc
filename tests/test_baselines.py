"""Scores from elsewhere, baselines, and LDS side by side."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.spatial.distance import cdist

from datamodels import Attribution, Ridge, fit, lds
from datamodels.applications.baselines import loss_scores, nearest_neighbours, random_scores
from datamodels.errors import RequestError
from datamodels.evaluation.compare import compare_lds
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
