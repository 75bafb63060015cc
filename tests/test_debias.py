"""D3M on a planted spurious feature, and its parts against their definitions."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datamodels import Attribution, Design, Ridge, Store, fit, train
from datamodels.applications.debias import (
    balanced_mask,
    d3m,
    debias,
    group_accuracies,
    group_alignment,
    pseudo_groups,
    worst_group_accuracy,
)
from datamodels.datasets import Dataset, from_arrays
from datamodels.errors import RequestError
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe

CHOICE = 300


def spurious(n: int = 300, n_test: int = 700, agree: float = 0.95) -> tuple[Dataset, NDArray[Any], NDArray[Any]]:
    """A noisy core feature and a clear spurious one, which agrees with the label in 95 % of the train examples and in half of the
    test examples; with groups 2 * label + spurious."""
    rng = np.random.default_rng(0)

    def draw(k: int, share: float) -> tuple[NDArray[np.float32], NDArray[np.int64], NDArray[np.int64]]:
        y = rng.integers(0, 2, k)
        side = np.where(rng.random(k) < share, y, 1 - y)
        x = rng.normal(size=(k, 6))
        x[:, 0] += 2 * y - 1
        x[:, 1] = (2 * side - 1) + 0.3 * x[:, 1]
        return x.astype(np.float32), y, 2 * y + side

    (x, y, groups), (x_test, y_test, test_groups) = draw(n, agree), draw(n_test, 0.5)
    return from_arrays("spurious", x, y, x_test, y_test), groups, test_groups


@pytest.fixture(scope="module")
def planted(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRecipe, Attribution, NDArray[Any], NDArray[Any]]:
    data, groups, test_groups = spurious()
    task = TrainRecipe(Recipe(architecture="linear", epochs=10, lr=0.05), data)
    design = Design(n_train=task.n_train, alpha=0.5, n_models=400)
    store = Store.create(tmp_path_factory.mktemp("spurious") / "s", schema=task.schema, design=design)
    assert train(store, task, executor="inline", progress=False).ok
    return task, fit(store, Ridge(), targets=np.arange(CHOICE), progress=False), groups, test_groups


def test_removal_by_alignment_mends_the_worst_group(planted: Any, tmp_path: Path) -> None:
    task, attribution, groups, test_groups = planted
    options = {
        "train_groups": groups,
        "k": 100,
        "auto": True,
        "folder": tmp_path,
        "executor": "inline",
        "progress": False,
    }
    found = debias(task, attribution, test_groups, **options)
    assert list(found.outcomes) == [
        "all",
        "d3m",
        "random",
        "auto_d3m",
        "random_auto",
        "class_balanced",
        "group_balanced",
    ]
    for name in ("d3m", "auto_d3m"):
        one = found.outcomes[name]
        assert one.n_train == 200
        assert one.beyond_all.low > 0.2
        assert one.beyond_random.low > 0.1
        removed = np.bincount(groups[~found.keep[name]], minlength=4)
        assert removed[1] + removed[2] <= 2  # only examples that the spurious feature agrees with
    assert found.outcomes["group_balanced"].beyond_all.low > 0.2
    assert abs(found.outcomes["random"].beyond_all.value) < 0.15
    assert found.outcomes["group_balanced"].n_train == 4 * np.bincount(groups).min()
    assert found.group_losses[[1, 2]].min() > found.group_losses[[0, 3]].max()
    again = debias(task, attribution, test_groups, **options)
    assert again.to_dict() == found.to_dict()
    right = np.asarray(Store.open(tmp_path / "all").array("correct"))[:, CHOICE:]
    worst = [min(row[test_groups[CHOICE:] == g].mean() for g in range(4)) for row in right]
    assert found.outcomes["all"].worst.value == pytest.approx(np.mean(worst))
    assert found.table()[0]["beyond_all"] is None
    with pytest.raises(RequestError, match="another design"):
        debias(task, attribution, test_groups, **{**options, "k": 50})


def test_splits_that_overlap_or_lack_a_group_are_refused(planted: Any, tmp_path: Path) -> None:
    task, attribution, _, groups = planted
    bare = Attribution(attribution.weights, attribution.bias)
    lone = np.zeros(700)
    lone[0] = 1
    for a, given, options, message in (
        (
            attribution,
            groups,
            {"report": [5, 400]},
            r"1 test examples are in the choice and in the report .*first is 5",
        ),
        (attribution, groups, {"report": []}, "0 of the 700 test examples are left"),
        (attribution, groups, {"report": [400, 401, 400]}, "1 entries of report come twice"),
        (attribution, groups, {"report": np.ones(700, dtype=bool)}, r"np.flatnonzero\(mask\)"),
        (replace(attribution, target_facts={"target": np.arange(CHOICE) - 1}), groups, {}, "whole numbers from 0"),
        (attribution, lone, {}, "1 groups of the choice split have no example"),
        (attribution, groups[:5], {}, r"shape \(5,\); give one for each of the 700"),
        (bare, groups, {}, "must say which test examples"),
        (attribution, groups, {"replicates": 1}, "give 2 or more"),
        (attribution, groups, {"train_groups": [1]}, "train_groups have shape"),
    ):
        with pytest.raises(RequestError, match=message):
            debias(task, a, given, folder=tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_alignment_is_the_gradient_of_a_smooth_maximum() -> None:
    """A small step along an example's weights lowers log-sum-exp of group losses by its alignment, when losses fall as
    margins rise."""
    rng = np.random.default_rng(0)
    weights, groups, losses = rng.normal(size=(7, 12)), np.repeat([3, 5, 9], [2, 4, 6]), rng.random(12)
    a = Attribution(weights, np.zeros(12))

    def smooth(values: NDArray[Any], beta: float) -> float:
        means = np.array([values[groups == g].mean() for g in (3, 5, 9)])
        return float(np.log(np.exp(beta * means).sum()) / beta)

    for beta in (0.5, 4.0):
        found = group_alignment(a, groups, losses, beta=beta)
        steps = [(smooth(losses, beta) - smooth(losses - 1e-6 * w, beta)) / 1e-6 for w in weights]
        np.testing.assert_allclose(found, steps, atol=1e-4)
    even = [np.mean([w[groups == g].mean() for g in (3, 5, 9)]) for w in weights]
    np.testing.assert_allclose(group_alignment(a, groups, losses, beta=0), even, atol=1e-6)
    np.testing.assert_allclose(group_alignment(a, [0] * 12, losses), weights.mean(axis=1), atol=1e-6)
    worst = weights[:, groups == 5].mean(axis=1)
    np.testing.assert_allclose(group_alignment(a, groups, (groups == 5) * 900.0), worst, atol=1e-6)


def test_selection_drops_the_negative_or_the_lowest() -> None:
    a = Attribution(np.array([[1.0], [-2.0], [0.0], [-1.0]]), np.zeros(1))
    assert d3m(a, [0], [1.0]).keep.tolist() == [True, False, True, False]
    assert d3m(a, [0], [1.0], k=1).keep.tolist() == [True, False, True, True]
    assert d3m(a, [0], [1.0], k=0).keep.all()
    np.testing.assert_array_equal(d3m(a, [0], [1.0]).alignment, [1, -2, 0, -1])
    with pytest.raises(RequestError, match="k is 4; give 0 up to 3"):
        d3m(a, [0], [1.0], k=4)
    with pytest.raises(RequestError, match=r"k is 2.5; give 0 up to 3 .* a whole number"):
        d3m(a, [0], [1.0], k=2.5)  # type: ignore[arg-type]
    assert d3m(a, [0], [1.0], k=np.int64(2)).keep.sum() == 2  # type: ignore[arg-type]
    broken = Attribution(np.array([[1.0, np.nan]]), np.zeros(2))
    for refused in (lambda: d3m(broken, [0, 1], [1.0, 1.0]), lambda: pseudo_groups(broken, [0, 0])):
        with pytest.raises(RequestError, match="NaN or infinite"):
            refused()
    with pytest.raises(RequestError, match="every training example has a negative"):
        d3m(Attribution(-np.ones((2, 1)), np.zeros(1)), [0], [1.0])
    with pytest.raises(RequestError, match="one finite loss"):
        d3m(a, [0], [np.nan])


def test_pseudo_groups_are_the_planted_halves_of_each_class() -> None:
    rng = np.random.default_rng(1)
    labels, side = np.repeat(["a", "b"], 60), np.tile(np.arange(60) < 20, 2)
    directions = rng.normal(size=(4, 40))
    columns = directions[2 * (labels == "b") + side] + 0.3 * rng.normal(size=(120, 40))
    found = pseudo_groups(Attribution((columns * rng.uniform(0.1, 10, (120, 1))).T, np.zeros(120)), labels)
    np.testing.assert_array_equal(found, 2 * (labels == "b") + side)  # side 1 is the smaller
    flat = Attribution(np.ones((5, 6)), np.zeros(6))
    assert pseudo_groups(flat, [0, 0, 0, 1, 1, 2]).tolist() == [0, 0, 0, 2, 2, 4]
    two = Attribution(np.array([[1.0, -1.0]]), np.zeros(2))
    assert sorted(pseudo_groups(two, [0, 0]).tolist()) == [0, 1]


def test_worst_group() -> None:
    margins = np.array([[1.0, -1, 2, 3], [1, 1, -1, 0]])
    groups = ["a", "a", "b", "b"]
    np.testing.assert_array_equal(group_accuracies(margins, groups), [[0.5, 1], [1, 0]])
    np.testing.assert_array_equal(worst_group_accuracy(margins, groups), [0.5, 0])
    assert worst_group_accuracy(margins[0] > 0, groups) == 0.5
    with pytest.raises(RequestError, match="give one for each of the 4"):
        worst_group_accuracy(margins, [0, 1])


def test_balanced_masks_have_as_many_of_each() -> None:
    groups = np.repeat([4, 7, 9], [10, 3, 5])
    mask = balanced_mask(groups, seed=1)
    assert np.bincount(groups[mask]).tolist()[4:] == [3, 0, 0, 3, 0, 3]
    assert (mask != balanced_mask(groups, seed=2)).any()
    with pytest.raises(RequestError, match="groups have shape"):
        balanced_mask([])
