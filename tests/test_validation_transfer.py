"""Transfer between subgroups: what models see, whole donors held out, and intervals that hold for other members."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from datamodels import Recipe, Store, TrainRecipe
from datamodels.applications.validation import transfer
from datamodels.applications.validation.transfer import drop_of
from datamodels.datasets import Dataset, from_arrays
from datamodels.errors import RequestError
from datamodels.evaluation.retraining import Estimate
from tests.test_subgroups import one_thread
from tests.validation_data import QUICK, RECIPE, modes

__all__ = ["one_thread"]  # fixtures


# -- what carries over --------------------------------------------------------------------------------


def test_two_modes_do_not_carry_over_and_random_halves_do(tmp_path: Path) -> None:
    data, mode = modes(240)
    task = TrainRecipe(RECIPE, data)
    found = transfer(task, np.where(mode >= 2, 2, mode), folder=tmp_path / "a", replicates=6, **QUICK)
    assert {(pair.label, pair.source, pair.to) for pair in found.pairs} == {(0, 0, 1), (0, 1, 0)}
    assert len(found.dropping) == 2
    assert all(pair.drop.value > 0.3 for pair in found.pairs)
    random = np.random.default_rng(5).integers(0, 2, len(mode))
    even = transfer(task, random, folder=tmp_path / "b", pairs=[(0, 1)], replicates=6, **QUICK)
    assert not even.dropping
    assert all(pair.drop.value < 0.2 for pair in even.pairs)
    json.dumps(found.to_dict())


def test_models_for_transfer_see_what_they_should(tmp_path: Path) -> None:
    data, mode = modes(240)
    y = data.train.y
    transfer(TrainRecipe(RECIPE, data), mode, folder=tmp_path, pairs=[(0, 1)], replicates=2, **QUICK)
    masks = Store.open(tmp_path).masks()
    for one, mixed in zip(masks[::2], masks[1::2], strict=True):
        assert one[y == 1].all()
        assert mixed[y == 1].all()
        assert not one[mode == 1].any()
        assert one[y == 0].sum() == mixed[y == 0].sum()
        assert mixed[mode == 1].any()
        assert (~mixed[mode == 1]).sum() >= (mode == 1).sum() // 2


@pytest.mark.parametrize(
    ("clusters", "message"),
    [([0, 1], "cluster number of each training example"), ("ones", "no class has two subgroups")],
)
def test_clusters_that_cannot_be_transferred_are_refused(clusters: Any, message: str, tmp_path: Path) -> None:
    data, mode = modes()
    given = np.ones_like(mode) if clusters == "ones" else clusters
    with pytest.raises(RequestError, match=message):
        transfer(TrainRecipe(RECIPE, data), given, folder=tmp_path, **QUICK)


# -- donors -------------------------------------------------------------------------------------------


def donated(donors: int, each: int, *, rules: bool, seed: int) -> tuple[Dataset, NDArray[np.int64]]:
    """Both classes of donors who differ from each other, and clusters that follow donors: by lot, or those of another rule."""
    rng = np.random.default_rng([seed, 11])
    donor = np.repeat(np.arange(donors), each)
    y, clusters = np.arange(len(donor)) % 2, donor % 2
    x = rng.normal(size=(len(y), 8)) + (1 if rules else 2) * rng.normal(size=(donors, 8))[donor]
    if rules:
        x[:, :2] = rng.normal(size=(len(y), 2))
        x[np.arange(len(y)), clusters] += 2 * (2 * y - 1)
    else:
        x[:, 0] += y
    data = from_arrays("donated", x, y)
    return replace(data, train=replace(data.train, groups=donor)), clusters


def test_clusters_that_follow_donors_by_lot_carry_over(tmp_path: Path) -> None:
    """The null: one population of donors, halved by lot. Models that know the donors that they are judged on lose nothing of it."""
    sure, drops = {False: 0, None: 0}, {False: [], None: []}  # type: dict[Any, int], dict[Any, list[float]]
    for seed in range(6):
        data, clusters = donated(12, 20, rules=False, seed=seed)
        task = TrainRecipe(Recipe(hidden=(16,), epochs=30, lr=0.1), data)
        for groups in (False, None):
            found = transfer(task, clusters, folder=tmp_path / f"{seed}{groups}", groups=groups, replicates=6, **QUICK)
            sure[groups] += bool(found.dropping)
            drops[groups] += [pair.drop.value for pair in found.pairs]
    assert sure[False] >= 3
    assert np.mean(drops[False]) > 0.1
    assert sure[None] == 0
    assert abs(np.mean(drops[None])) < 0.03


def test_subgroups_of_donors_with_rules_of_their_own_are_told(tmp_path: Path) -> None:
    data, clusters = donated(24, 20, rules=True, seed=0)
    task = TrainRecipe(Recipe(hidden=(16,), epochs=20, lr=0.05), data)
    found = transfer(task, clusters, folder=tmp_path, replicates=6, **QUICK)
    assert len(found.pairs) == 4
    assert len(found.dropping) >= 3
    assert not found.lone


def test_donors_are_held_out_whole_and_as_many_are_seen(tmp_path: Path) -> None:
    data, mode = modes(400)
    y, rng = data.train.y, np.random.default_rng(5)
    donor = rng.integers(0, 9, len(y))
    donor[(mode == 1) & (donor > 4)] = 8  # the two modes share some donors
    task = TrainRecipe(RECIPE, replace(data, train=replace(data.train, groups=donor)))
    found = transfer(task, mode, folder=tmp_path, pairs=[(0, 1)], replicates=6, **QUICK)
    masks = Store.open(tmp_path).masks()
    kept = [np.unique(donor[mask]) for mask in masks]
    judged = np.unique(donor[mode == 1])
    for one, mixed, seen in zip(masks[::2], masks[1::2], kept[::2], strict=True):
        assert (one[y == 1] == mixed[y == 1]).all()
        out = np.setdiff1d(judged, seen)
        assert len(judged) // 2 <= len(out) <= -(-len(judged) // 2)
        assert not one[np.isin(donor, out)].any()
        assert not mixed[np.isin(donor, out)].any()
        assert not one[mode == 1].any()
        counts = [np.sort(np.unique(donor[mask & (y == 0)], return_counts=True)[1]) for mask in (one, mixed)]
        np.testing.assert_array_equal(*counts)
    first, second = (set(judged) - set(kept[2 * i]) for i in (0, 1))
    assert first | second == set(judged)
    assert found.pairs[0].size == pytest.approx(masks[:, y == 0].sum(axis=1).mean())


def test_subgroups_of_one_donor_cannot_be_tested(tmp_path: Path) -> None:
    data, mode = modes(240)
    donor = np.arange(len(mode)) % 6
    donor[mode == 1] = 7
    task = TrainRecipe(RECIPE, data)
    with pytest.raises(
        RequestError, match="cannot be tested: fewer than 2 donors in cluster 1 of class '0', so a drop there"
    ):
        transfer(task, np.where(mode >= 2, 2, mode), folder=tmp_path / "a", groups=donor, **QUICK)
    found = transfer(task, mode, folder=tmp_path / "b", groups=donor, replicates=2, **QUICK)
    assert found.lone == ((0, 1),)
    assert {pair.label for pair in found.pairs} == {1}
    assert found.to_dict()["lone"] == [{"class": "0", "cluster": 1}]
    with pytest.raises(RequestError, match="groups has shape"):
        transfer(task, mode, folder=tmp_path / "c", groups=[1, 2], **QUICK)


# -- intervals ----------------------------------------------------------------------------------------


def test_replicates_that_agree_are_sure_only_where_enough_examples_say_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All replicates give the same drop: Student's interval over them has no width."""
    data, mode = modes(240)
    clusters = np.where(mode >= 2, 2, mode)
    clusters[np.flatnonzero(clusters == 1)[8:]] = -1
    shares = iter([0.75, 0.0])

    def runs(task: TrainRecipe, masks: NDArray[np.bool_], **options: Any) -> dict[str, NDArray[Any]]:
        correct = np.ones(masks.shape)
        correct[::2] = next(shares)  # models that saw the one subgroup
        return {"correct": correct, "margins": correct}

    monkeypatch.setattr(sys.modules[transfer.__module__], "retrain", runs)
    how: dict[str, Any] = {"folder": tmp_path, "pairs": [(0, 1)], "replicates": 5, **QUICK}
    found = transfer(TrainRecipe(RECIPE, data), clusters, **how)
    assert found.pairs[0].drop.value == 0.25
    assert found.pairs[0].drop.low < 0
    assert not found.dropping
    (pair,) = transfer(TrainRecipe(RECIPE, data), clusters, **how).dropping
    assert pair.drop.value == pair.drop.high == 1
    assert 0.4 < pair.drop.low < 0.7


def test_the_interval_of_a_drop_is_the_score_interval_or_that_of_runs() -> None:
    accuracies = np.repeat([[0.5, 0.9]], 4, axis=0)
    wilson = [stats.binomtest(k, 20).proportion_ci(method="wilson") for k in (10, 18)]
    drop = drop_of(accuracies, 20, 0.95)
    assert drop.low == pytest.approx(0.4 - np.hypot(0.9 - wilson[1].low, wilson[0].high - 0.5))
    assert drop.high == pytest.approx(0.4 + np.hypot(wilson[1].high - 0.9, 0.5 - wilson[0].low))
    accuracies[:, 0] += [-0.3, 0.3, -0.3, 0.3]
    assert drop_of(accuracies, 20_000, 0.95) == pytest.approx(Estimate.mean(accuracies[:, 1] - accuracies[:, 0], 0.95))


def test_intervals_over_donors_are_as_wide_as_donors_differ() -> None:
    """Score intervals of as many examples as would spread as the donors do, less the few donors; and Student's over donors."""
    accuracies, rng = np.repeat([[0.5, 0.9]], 4, axis=0), np.random.default_rng(0)
    alike = np.repeat([[0.5, 0.9]], 6, axis=0)
    few = (stats.norm.ppf(0.975) / stats.t.ppf(0.975, 5)) ** 2
    same = drop_of(accuracies, 200, 0.95, alike)
    assert same == pytest.approx(drop_of(accuracies, 200 * few, 0.95))  # type: ignore[arg-type]
    assert same.low < drop_of(accuracies, 200, 0.95).low
    assert drop_of(np.repeat([[0.0, 1.0]], 4, axis=0), 200, 0.975, np.repeat([[0.0, 1.0]], 2, axis=0)).low < 0
    differing = np.array([[0.0, 1.0], [1.0, 1.0]] * 3) * [1, 0.9]
    wide = drop_of(accuracies, 200, 0.95, differing)
    student = Estimate.mean(differing[:, 1] - differing[:, 0], 0.95)
    assert wide.low <= 0.4 - (student.high - student.value) + 1e-12
    covered, without = [], []
    for _ in range(200):  # 8 donors whose accuracies scatter, 20 examples each, all held out in every replicate
        truth = np.clip(rng.normal([0.6, 0.8], 0.15, (8, 2)), 0, 1)
        right = rng.binomial(20, truth) / 20
        runs = np.repeat(right.mean(axis=0)[None], 4, axis=0)
        expected = 0.2
        for kept, one in ((covered, drop_of(runs, 160, 0.95, right)), (without, drop_of(runs, 160, 0.95))):
            kept.append(one.low <= expected <= one.high)
    assert np.mean(covered) > 0.93
    assert np.mean(without) < np.mean(covered)


def test_intervals_of_drops_hold_for_other_members_of_the_subgroup() -> None:
    """Members are a sample of their subgroup; runs of one kind answer alike."""
    rng, truth = np.random.default_rng(0), np.array([0.5, 0.9])
    covered, by_runs = [], []
    for _ in range(300):
        right = rng.random((2, 20)) < truth[:, None]  # answers of the models that see one subgroup, and random members
        halves = np.array([rng.permutation(20)[:10] for _ in range(10)])
        runs = right[:, halves].mean(axis=2).T
        drop, student = drop_of(runs, 20, 0.95), Estimate.mean(runs[:, 1] - runs[:, 0], 0.95)
        covered.append(drop.low <= 0.4 <= drop.high)
        by_runs.append(student.low <= 0.4 <= student.high)
    assert np.mean(covered) > 0.93
    assert np.mean(by_runs) < 0.8
