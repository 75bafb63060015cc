"""Neighbours, subgroups, and model outputs, on planted truths."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from sklearn.decomposition import PCA

from datamodels import Attribution
from datamodels.applications import embed, neighbours, subgroups
from datamodels.errors import RequestError
from datamodels.training.outputs import log_odds_margins, margins, margins_from_proba


def grouped(n_groups: int = 3, per_group: int = 30, noise: float = 0.3) -> tuple[Attribution, np.ndarray]:
    """Targets of one group rest on the same training examples, whatever the scale of their weights."""
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(n_groups, 50))
    labels = np.repeat(np.arange(n_groups), per_group)
    vectors = centres[labels] + noise * rng.normal(size=(len(labels), 50))
    return Attribution((vectors * rng.uniform(0.1, 10, (len(labels), 1))).T, np.zeros(len(labels))), labels


def test_neighbours_are_the_strongest_of_either_sign() -> None:
    weights = np.array([[0.5], [-0.1], [2.0], [0.0], [-3.0]])
    found = neighbours(Attribution(weights, np.zeros(1)), 0, k=1)
    assert found.helpful.indices.tolist() == [2]
    assert found.harmful.indices.tolist() == [4]
    assert neighbours(Attribution(weights, np.zeros(1)), 0).to_dict() == {
        "target": 0,
        "helpful": [{"train": 2, "weight": 2.0}, {"train": 0, "weight": 0.5}],
        "harmful": [{"train": 4, "weight": -3.0}, {"train": 1, "weight": pytest.approx(-0.1)}],
    }


def test_neighbours_bear_the_names_of_their_examples() -> None:
    weights = np.array([[0.5, 0.0], [-0.1, 1.0], [2.0, -1.0]])
    named = Attribution(
        weights,
        np.zeros(2),
        train_facts={"ids": np.array(["ann", "bob", "cy"])},
        target_facts={"ids": np.array(["x", "7"])},
    )
    found = neighbours(named, "x", k=2)
    assert (found.target, found.id) == (0, "x")
    assert found.helpful.ids is not None
    assert found.helpful.ids.tolist() == ["cy", "ann"]
    assert found.to_dict()["harmful"] == [{"train": 1, "id": "bob", "weight": pytest.approx(-0.1)}]
    assert named.top("7", 1).ids == ["bob"]
    assert named.top(1, 1).indices == [1]
    for name, message in (
        ("y", "no targets are named 'y'; names look like 'x'"),
        (7, r"target 7 is outside of 0\.\.1"),
        (1.5, "target is 1.5; give a number"),
    ):
        with pytest.raises(RequestError, match=message):
            named.top(name)  # type: ignore[arg-type]
    twice = replace(named, target_facts={"ids": np.array(["x", "x"])})
    with pytest.raises(RequestError, match="2 targets are named 'x'"):
        twice.top("x")
    with pytest.raises(RequestError, match=r"'x' is a name, and these targets have none: give a number in 0\.\.1"):
        Attribution(weights, np.zeros(2)).top("x")


def test_embedding_is_pca_of_unit_vectors_and_ignores_their_length() -> None:
    a, _ = grouped()
    unit = (a.weights / np.linalg.norm(a.weights, axis=0)).T
    expected = PCA(4, svd_solver="full").fit_transform(unit.astype(np.float64))
    np.testing.assert_allclose(np.abs(embed(a, 4)), np.abs(expected), atol=1e-6)
    scaled = Attribution(a.weights * np.linspace(1, 9, 90), a.bias)
    np.testing.assert_allclose(embed(scaled, 4), embed(a, 4), atol=1e-5)
    np.testing.assert_array_equal(embed(a.weights.T, 4), embed(a, 4))


def test_targets_without_weights_stay_finite() -> None:
    a, _ = grouped()
    a.weights[:, :2] = 0
    assert np.isfinite(embed(a)).all()


@pytest.mark.parametrize("method", ["kmeans", "hdbscan"])
def test_planted_groups_are_found_and_beat_features_that_know_nothing(method: str) -> None:
    a, labels = grouped()
    features = np.random.default_rng(1).normal(size=(90, 6))
    found = subgroups(a, method=method, labels=labels, features=features, n_components=2)
    assert found.ari > 0.95
    assert found.nmi > 0.95
    assert found.n_clusters == 3
    assert abs(found.ari_baseline) < 0.2
    table = found.table(labels)
    assert sum(row["size"] for row in table) == 90
    assert all(row["share"] > 0.95 for row in table if row["cluster"] >= 0)


def test_labels_do_not_shape_the_clusters() -> None:
    a, labels = grouped()
    shuffled = np.random.default_rng(0).permutation(labels)
    np.testing.assert_array_equal(subgroups(a, labels=labels).clusters, subgroups(a, labels=shuffled).clusters)
    assert subgroups(a, n_clusters=3).ari is None


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "needs a number of clusters"),
        ({"n_clusters": 91}, "between 1 and the 90"),
        ({"n_clusters": 3, "method": "magic"}, "legal: kmeans, hdbscan"),
        ({"labels": [1, 2]}, "there are 90 targets"),
        ({"labels": [1] * 90, "features": np.ones((3, 3))}, "features have 3 rows"),
        ({"n_clusters": 2, "features": np.ones((90, 3))}, "give labels too"),
        ({"n_clusters": 2, "n_components": 0}, "n_components is 0"),
    ],
)
def test_bad_requests_say_what_is_legal(options: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        subgroups(grouped()[0], **options)


def test_datamodels_that_do_not_differ_have_no_subgroups() -> None:
    nothing = Attribution(np.zeros((5, 8)), np.zeros(8))
    assert not embed(nothing).any()
    with pytest.raises(RequestError, match="only 1 targets differ"):
        subgroups(nothing, n_clusters=2)
    with pytest.raises(RequestError, match="at least 5 targets"):
        subgroups(nothing[:3], method="hdbscan")


def test_margins_are_correct_minus_best_other() -> None:
    logits = np.array([[1.0, 4.0, 2.0], [3.0, 1.0, 2.5]])
    np.testing.assert_array_equal(margins(logits, [1, 2]), [2.0, -0.5])
    np.testing.assert_array_equal(margins(np.stack([logits, logits + 5]), [1, 2]), [[2.0, -0.5]] * 2)


def test_log_odds_margins_are_log_odds() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 5)) * 3
    y = np.arange(20) % 5
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    chosen = p[np.arange(20), y]
    np.testing.assert_allclose(log_odds_margins(logits, y), np.log(chosen / (1 - chosen)))
    np.testing.assert_allclose(log_odds_margins(logits[:, :2], y % 2), margins(logits[:, :2], y % 2))
    assert np.isfinite(log_odds_margins([[1e4, -1e4, 0.0]], [0])).all()


def test_margins_from_probabilities_are_clipped_at_a_stated_bound() -> None:
    logits = np.random.default_rng(0).normal(size=(20, 3))
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    np.testing.assert_allclose(margins_from_proba(p, np.zeros(20, int)), margins(logits, np.zeros(20, int)))
    np.testing.assert_allclose(margins_from_proba([[1.0, 0.0]], [0], eps=1e-3), -np.log(1e-3))


@pytest.mark.parametrize(
    ("labels", "message"), [([0], "must be"), ([0, 3], r"0\.\.3; there are 3"), ([0.0, 1.0], "integers")]
)
def test_labels_that_do_not_fit_are_refused(labels: list[float], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        margins(np.zeros((2, 3)), np.array(labels))
