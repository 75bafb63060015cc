"""Counterfactual retraining, removal curves and brittleness: real trainings against planted truths and plain loops."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy import stats

from datamodels import Attribution, Design, Ridge, Store, fit, train
from datamodels.applications.baselines import random_scores
from datamodels.datasets import from_arrays
from datamodels.errors import CampaignError, RequestError
from datamodels.evaluation.brittleness import _Search, brittleness, data_support
from datamodels.evaluation.counterfactual import counterfactual
from datamodels.evaluation.mislabels import plant_label_noise
from datamodels.evaluation.removal import removal_curve
from datamodels.evaluation.retraining import Estimate, retrain, size_of
from datamodels.regression.calibration import calibrate, output_key, removal
from datamodels.training.ensemble import TrainRecipe, train_models
from datamodels.training.outputs import margins
from datamodels.training.recipes import Recipe
from datamodels.training.streams import Streams

QUIET: dict[str, Any] = {"executor": "inline", "progress": False}
RECIPE = Recipe(architecture="linear", epochs=8, lr=0.05)


@pytest.fixture(scope="module")
def problem(tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainRecipe, Attribution]:
    """160 train examples, 15 % with a wrong label, and ridge datamodels of 80 test margins."""
    rng = np.random.default_rng(0)
    y = rng.integers(0, 2, 400)
    x = (rng.normal(size=(400, 5)) + np.outer(2 * y - 1, [1, 0.5, 0, 0, 0])).astype(np.float32)
    noisy, _ = plant_label_noise(y[:160], 0.15, seed=1)
    task = TrainRecipe(RECIPE, from_arrays("small", x[:160], noisy, x[160:240], y[160:240]))
    store = Store.create(
        tmp_path_factory.mktemp("small") / "s", schema=task.schema, design=Design(n_train=160, alpha=0.5, n_models=500)
    )
    assert train(store, task, **QUIET).ok
    return task, fit(store, Ridge(), progress=False)


def with_nan(attribution: Attribution) -> Attribution:
    weights = attribution.weights.copy()
    weights[3, 0] = np.nan
    return replace(attribution, weights=weights)


def test_retrained_models_are_those_of_a_plain_loop(problem: Any, tmp_path: Path) -> None:
    task, _ = problem
    masks = np.random.default_rng(0).random((5, 160)) < 0.7
    found = retrain(task, masks, outputs=("margins", "correct"), folder=tmp_path / "a", seed=4, **QUIET)
    design, data = Design.explicit(masks, seed=4), task.data
    rows = [Streams.of(design, i, masks[i]) for i in range(5)]
    logits = train_models(task.recipe, data.train.x, data.train.y, rows, n_classes=2).logits(data.test.x)
    np.testing.assert_allclose(found["margins"], margins(logits, data.test.y), atol=1e-5)
    np.testing.assert_array_equal(found["correct"], found["margins"] > 0)
    done = np.load(tmp_path / "a" / "_completed.npy", mmap_mode="r+")
    done[[1, 3]] = False
    done.flush()
    again = retrain(task, masks, outputs=("margins", "correct"), folder=tmp_path / "a", seed=4, **QUIET)
    np.testing.assert_array_equal(again["margins"], found["margins"])
    with pytest.raises(RequestError, match="another design"):
        retrain(task, ~masks, outputs=("margins", "correct"), folder=tmp_path / "a", seed=4, **QUIET)


def test_worker_processes_train_the_same_models(problem: Any, tmp_path: Path) -> None:
    task, _ = problem
    masks = np.random.default_rng(1).random((6, 160)) < 0.7
    here = retrain(task, masks, outputs=("losses",), folder=tmp_path / "a", **QUIET)
    there = retrain(task, masks, outputs=("losses",), folder=tmp_path / "b", jobs=2, progress=False)
    np.testing.assert_array_equal(here["losses"], there["losses"])


def test_models_that_fail_are_an_error(problem: Any, tmp_path: Path) -> None:
    task, _ = problem
    masks = np.zeros((2, 160), dtype=bool)
    with (
        pytest.warns(UserWarning, match="lack a class"),
        pytest.raises(CampaignError, match=r"2 of 2 models failed; their logs"),
    ):
        retrain(task, masks, outputs=("margins",), folder=tmp_path / "a", **QUIET)


def test_removing_what_a_datamodel_names_does_what_it_predicts(problem: Any, tmp_path: Path) -> None:
    task, attribution = problem
    targets = np.arange(80)
    found = counterfactual(
        task, {"ridge": attribution, "chance": random_scores(160, 80)}, targets=targets, k=16, folder=tmp_path, **QUIET
    )
    assert found.methods == ["ridge", "chance"]
    assert [change.target for change in found.of("ridge")] == targets.tolist()
    beyond = np.array([change.beyond_random.value for change in found.of("ridge")])
    assert beyond.mean() < -0.3
    assert (beyond < 0).mean() > 0.8
    assert np.mean([change.beyond_random.high < 0 for change in found.of("ridge")]) > 0.7
    assert all(change.predicted < 0 for change in found.of("ridge"))
    agreement = found.agreement("ridge")
    assert agreement.low > 0
    assert agreement.pearson > 0.3
    assert 0.5 < agreement.slope < 1.2  # datamodels predict in units of the margin
    assert abs(found.agreement("chance").spearman) < 0.3
    assert abs(np.mean([change.beyond_random.value for change in found.of("chance")])) < 0.15

    store = Store.open(tmp_path)
    masks, outputs = store.masks(), np.asarray(store.array("margins"), dtype=np.float64)
    assert (~masks).sum(axis=1).tolist() == [0] * 5 + [16] * (len(masks) - 5)
    assert len(np.unique(masks[5:10], axis=0)) == 5  # another random draw for each run
    change, rows = found.of("ridge")[12], slice(5 * (2 + 12), 5 * (3 + 12))
    strongest = np.argsort(-attribution.weights[:, 12])[:16]
    np.testing.assert_array_equal(np.flatnonzero(~masks[rows.start]), np.sort(strongest))
    step = attribution.predict(masks[rows.start])[12] - attribution.predict(masks[0])[12]
    assert change.predicted == pytest.approx(step, abs=1e-4)
    assert change.actual.value == pytest.approx(outputs[rows, 12].mean() - outputs[:5, 12].mean())
    test = stats.ttest_ind(outputs[rows, 12], outputs[:5, 12], equal_var=False).confidence_interval(0.95)
    assert change.actual[1:] == pytest.approx((test.low, test.high))
    assert len(found.table()) == 160
    assert found.to_dict()["output"] == "margins"
    with pytest.raises(RequestError, match="method 'lasso' is unknown; legal: ridge, chance"):
        found.of("lasso")


def test_changes_of_the_mean_over_targets_in_both_directions(problem: Any, tmp_path: Path) -> None:
    task, attribution = problem
    base = np.arange(160) < 120
    options = {"folder": tmp_path / "add", "k": 12, "mode": "add", "base": base, **QUIET}
    added = counterfactual(task, attribution, **options)
    (change,) = added.changes
    assert (change.method, change.target, change.k) == ("attribution", None, 12)
    assert change.predicted > 0
    assert change.beyond_random.value > 0
    masks = Store.open(tmp_path / "add").masks()
    assert (masks[5:].sum(axis=1) == 132).all()
    assert masks[:, :120].all()
    harmful = counterfactual(task, attribution, share=0.15, which="harmful", folder=tmp_path / "harmful", **QUIET)
    assert harmful.changes[0].k == 24
    assert harmful.changes[0].predicted > 0
    assert harmful.changes[0].beyond_random.low > 0
    with pytest.raises(RequestError, match="needs 3 or more"):
        harmful.agreement("attribution")


def test_outputs_and_targets_are_those_of_the_attribution(problem: Any, tmp_path: Path) -> None:
    task, attribution = problem
    part = attribution[[7, 3]]
    found = counterfactual(task, part, targets=[1], k=5, replicates=2, folder=tmp_path / "a", **QUIET)
    outputs = np.asarray(Store.open(tmp_path / "a").array("margins"), dtype=np.float64)
    assert found.changes[0].base == pytest.approx(outputs[:2, 3].mean())
    own = Attribution(np.eye(160), np.zeros(160), train_columns=np.arange(160))
    assert (output_key(part), output_key(own)) == ("margins", "train_margins")
    found = counterfactual(task, own, targets=[4, 9], k=1, replicates=2, folder=tmp_path / "b", **QUIET)
    store = Store.open(tmp_path / "b")
    assert np.flatnonzero(~store.masks(4, 5)[0]).tolist() == [4]
    assert found.changes[1].base == pytest.approx(
        float(np.asarray(store.array("train_margins"))[:2, 9].mean()), abs=1e-6
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({}, "give k, a number of examples, or share"),
        ({"k": 160}, "k is 160; there are 160 examples to remove: choose 1 up to 159"),
        ({"share": 0.001}, "share 0.001 is 0 examples"),
        ({"k": 3, "mode": "add"}, "there are 0 examples to add"),
        ({"k": 3, "targets": [80]}, r"columns 0\.\.79"),
        ({"k": 3, "targets": "some"}, r"columns 0\.\.79"),
        ({"k": 3, "targets": np.ones(80, dtype=bool)}, r"np.flatnonzero\(mask\)"),
        ({"k": 2.5}, "k is 2.5; give a whole number"),
        ({"k": True}, "k is True; give a whole number"),
        ({"share": 1.5}, "share is 1.5; give a number above 0"),
        ({"share": np.nan}, "share is nan; give a number above 0"),
        ({"k": 3, "mode": "swap"}, "legal: remove, add"),
        ({"k": 3, "replicates": 1}, "replicates is 1; give 2 or more"),
        ({"k": 3, "confidence": 1}, "between 0 and 1"),
        ({"k": 3, "base": np.ones(160)}, "give a bool array"),
    ],
)
def test_a_wrong_change_is_refused(problem: Any, tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        counterfactual(*problem, folder=tmp_path / "none", **options)
    assert not (tmp_path / "none").exists()


def test_methods_that_do_not_go_together_are_refused(problem: Any, tmp_path: Path) -> None:
    task, attribution = problem
    for methods, message in (
        ({"random": attribution}, "call none of them 'random'"),
        ({"a": attribution, "b": attribution[:3]}, "the task has 160"),
        ({"a": attribution[:3], "b": attribution[1:4]}, "are of other targets"),
        (
            {"a": replace(attribution, target_facts={"target": np.arange(80) - 1})},
            "'target'. of the attribution 'a' .* from 0",
        ),
        ({"a": attribution, "b": with_nan(attribution)}, "attribution 'b' has scores that are NaN"),
    ):
        with pytest.raises(RequestError, match=message):
            counterfactual(task, methods, k=3, folder=tmp_path, **QUIET)


@pytest.mark.parametrize("runs", [1, 2])
def test_calibrated_predictions_come_with_intervals(problem: Any, tmp_path: Path, runs: int) -> None:
    """Those of `removal`, with the noise of the measured means where the calibration knows it."""
    task, attribution = problem
    masks = Design(n_train=160, alpha=0.5, n_models=40, replicates=runs, seed=5).masks()
    outputs = attribution.predict(masks) + 0.5 * np.random.default_rng(0).normal(size=(40, 80))
    scores = replace(attribution, provenance={"sources": []})
    found = calibrate(scores, masks=masks, outputs=outputs)
    options: dict[str, Any] = {"k": 6, "replicates": 2, "confidence": 0.8, **QUIET}
    methods = {"calibrated": found, "plain": attribution}
    done = counterfactual(task, methods, targets=[4, 9], folder=tmp_path / "a", **options)
    for row in done.table()[:2]:
        members = np.argsort(-found.weights[:, row["target"]], kind="stable")[:6]
        expected = removal(found, members, confidence=0.8, runs=2 if runs == 2 else None)
        named = (row["predicted"], row["predicted_low"], row["predicted_high"])
        assert named == pytest.approx([float(one[row["target"]]) for one in expected], rel=1e-5)
        assert row["predicted_low"] < row["predicted"] < row["predicted_high"]
    assert {row["predicted_low"] for row in done.table()[2:]} == {None}
    base = np.arange(160) < 120
    added = counterfactual(task, found, targets=[4], mode="add", base=base, folder=tmp_path / "b", **options).changes[0]
    assert added.predicted_low is not None
    assert added.predicted_low < added.predicted
    assert added.predicted > 0
    if runs == 1:  # the mean over targets has none: its targets share their models
        assert counterfactual(task, found, folder=tmp_path / "c", **options).changes[0].predicted_high is None


def test_ties_are_broken_at_random_but_the_same_again(problem: Any, tmp_path: Path) -> None:
    task, _ = problem
    none = Attribution(np.zeros((160, 80)), np.zeros(80))
    drawn = []
    for seed in (0, 0, 1):
        folder = tmp_path / str(len(drawn))
        found = counterfactual(task, none, k=8, seed=seed, replicates=2, folder=folder, **QUIET)
        assert found.changes[0].predicted == 0
        drawn.append(np.flatnonzero(~Store.open(folder).masks()[4]).tolist())
    assert drawn[0] == drawn[1] != drawn[2]
    assert drawn[0] != list(range(8))


def test_estimates_hold_the_truth_as_often_as_they_say() -> None:
    rng = np.random.default_rng(0)
    held = np.zeros(2)
    for _ in range(500):
        a, b = rng.normal(1, 2, 5), rng.normal(0.5, 0.5, 8)
        difference, mean = Estimate.difference(a, b, 0.9), Estimate.mean(a, 0.9)
        held += [difference.low < 0.5 < difference.high, mean.low < 1 < mean.high]
    assert (np.abs(held / 500 - 0.9) < 0.04).all()
    assert Estimate.difference(np.ones(3), np.zeros(3), 0.95) == (1, 1, 1)
    assert Estimate.mean(np.ones(3), 0.95) == (1, 1, 1)
    assert size_of(None, 0.5, 10, "add") == 5


def test_removing_harmful_examples_beats_random_removal(tmp_path: Path) -> None:
    """Three in ten labels are wrong, and a score that knows them is given."""
    rng = np.random.default_rng(3)
    y = rng.integers(0, 2, 600)
    x = (rng.normal(size=(600, 8)) + 0.9 * (2 * y - 1)[:, None] * (np.arange(8) < 3)).astype(np.float32)
    noisy, flipped = plant_label_noise(y[:150], 0.3, seed=1)
    task = TrainRecipe(RECIPE, from_arrays("noisy", x[:150], noisy, x[150:], y[150:]))
    found = removal_curve(
        task, {"oracle": ~flipped, "wrong way": flipped}, shares=(0.1, 0.3), replicates=6, folder=tmp_path, **QUIET
    )
    assert found.at("oracle", 0.3).removed == 45
    assert found.at("oracle", 0.3).beyond_random.low > 0.02
    assert found.at("oracle", 0.3).beyond_base.low > 0.02
    assert found.at("oracle", 0.3).accuracy.value > found.at("oracle", 0.1).accuracy.value
    assert found.at("wrong way", 0.3).beyond_random.high < 0
    assert found.at("random", 0.1).beyond_random is None
    store = Store.open(tmp_path)
    accuracy = np.asarray(store.array("correct")).mean(axis=1)
    assert found.base.value == pytest.approx(accuracy[:6].mean())
    np.testing.assert_array_equal(store.masks(30, 31)[0], ~flipped)
    assert found.at("oracle", 0.3).accuracy.value == pytest.approx(accuracy[30:36].mean())
    assert [row["method"] for row in found.table()] == ["random", "oracle", "wrong way"] * 2
    assert found.to_dict()["base"] == found.base.value
    with pytest.raises(RequestError, match="there is no point"):
        found.at("oracle", 0.2)
    with pytest.raises(RequestError, match="one finite score per training example"):
        removal_curve(task, np.ones(3), folder=tmp_path / "none")


def test_highest_scores_go_first_when_asked(problem: Any, tmp_path: Path) -> None:
    task, attribution = problem
    scores = attribution.weights.mean(axis=1)
    found = removal_curve(
        task, scores, shares=(0.2,), remove="highest", replicates=2, base=np.arange(160) >= 10, folder=tmp_path, **QUIET
    )
    assert found.points[1].method == "scores"
    removed = np.flatnonzero(~Store.open(tmp_path).masks()[4])
    assert set(removed) == {*range(10), *(10 + np.argsort(-scores[10:])[:30])}


def test_data_support_is_the_smallest_prefix() -> None:
    weights = np.array([[3.0, -1, 1], [1, -2, 1], [2, 0, 1], [-5, 0, 1]])
    a = Attribution(weights, np.array([5.0, 9, -5]))
    assert a.predict(np.ones(4, bool)).tolist() == [6, 6, -1]
    assert data_support(a).tolist() == [-1, -1, 0]
    assert data_support(a, margins=[4.5, 0.0, 4.0]).tolist() == [2, -1, -1]
    assert data_support(a, margins=[2.9, 0.0, 3.9]).tolist() == [1, -1, 4]
    assert data_support(a, margins=[2.9, 0.0, 2.5], base=np.array([False, True, True, True])).tolist() == [2, -1, 3]
    with pytest.raises(RequestError, match="there are 3 targets"):
        data_support(a, margins=[1.0])
    with pytest.raises(RequestError, match="give a bool array"):
        data_support(a, base=np.ones(4))
    with pytest.raises(RequestError, match="every bias of the attribution is 0"):
        data_support(Attribution(weights, np.zeros(3)))
    with pytest.raises(RequestError, match="one finite margin for each"):
        data_support(a, margins=[1.0, np.nan, 2.0])
    with pytest.raises(RequestError, match="NaN or infinite"):
        data_support(with_nan(a), margins=np.ones(3))


@pytest.mark.parametrize("truth", [1, 2, 3, 17, 40, 64, 65])
@pytest.mark.parametrize("guess", [1, 10, 40, 64])
def test_the_search_ends_at_the_true_size(truth: int, guess: int) -> None:
    search, steps = _Search(64, guess), 0
    while not search.ended:
        search.take(np.array([-1.0 if search.size >= truth else 1.0] * 3), 0.0)
        steps += 1
    assert (search.flips, search.holds) == ((truth, truth - 1) if truth <= 64 else (None, 64))
    assert steps <= 14


def test_found_removals_flip_and_smaller_ones_do_not(problem: Any, tmp_path: Path) -> None:
    task, attribution = problem
    targets = np.arange(0, 80, 5)
    options = {"largest": 60, "replicates": 4, "folder": tmp_path, **QUIET}
    found = brittleness(task, attribution, targets, **options)
    already, flipped = found.verified == 0, found.verified > 0
    np.testing.assert_array_equal(already, found.base_margins < 0)
    assert flipped.sum() >= 4
    assert (found.margins[flipped] < 0).all()
    assert (found.wrong[flipped] > 0).all()
    assert (found.holds[flipped] < found.verified[flipped]).all()
    assert (found.verified <= 60).all()
    for i in np.flatnonzero(flipped)[:2]:
        order = np.argsort(-attribution.weights[:, targets[i]], kind="stable")
        masks = np.ones((8, 160), dtype=bool)
        masks[:, order[: found.verified[i]]] = False
        fresh = retrain(task, masks, outputs=("margins",), folder=tmp_path / f"check-{i}", seed=99, **QUIET)["margins"]
        assert fresh[:, targets[i]].mean() < found.base_margins[i] / 2
    both = flipped & (found.estimated > 0)
    assert stats.spearmanr(found.estimated[both], found.verified[both])[0] > 0.6
    again = brittleness(task, attribution, targets, **options)
    assert again.to_dict() == found.to_dict()
    assert len(found.table()) == len(targets)


def test_a_wrong_search_is_refused(problem: Any, tmp_path: Path) -> None:
    task, attribution = problem
    for options, message in (
        ({"targets": [80]}, r"give columns 0\.\.79"),
        ({"targets": []}, "give columns"),
        ({"targets": "all"}, r"give columns 0\.\.79"),
        ({"targets": [0.7]}, r"give columns 0\.\.79"),
        ({"targets": np.ones(80, dtype=bool)}, r"np.flatnonzero\(mask\)"),
        ({"targets": [1], "largest": 160}, "give 1 up to 159"),
        ({"targets": [1], "base": [1, 0]}, r"give a bool array \(160,\)"),
        ({"targets": [1], "replicates": 1}, "give 2 or more"),
    ):
        with pytest.raises(RequestError, match=message):
            brittleness(task, attribution, folder=tmp_path, **options)
    short = Attribution(np.ones((5, 2)), np.ones(2))
    with pytest.raises(RequestError, match="the task's 160 examples"):
        brittleness(task, short, [0], folder=tmp_path)
    with pytest.raises(RequestError, match="NaN or infinite"):
        brittleness(task, with_nan(attribution), [1], folder=tmp_path)
    below = replace(attribution, target_facts={"target": np.arange(80) - 1})
    with pytest.raises(RequestError, match="whole numbers from 0"):
        brittleness(task, below, [0], folder=tmp_path)
    losses = Attribution(
        attribution.weights, attribution.bias, provenance={"sources": [{"outputs_key": "losses"}]}
    )  # fmt: skip
    with pytest.raises(RequestError, match="of 'losses'; a flip is seen in margins"):
        brittleness(task, losses, [0], folder=tmp_path)
