"""The permutation test of labels: what is shuffled, that its p-values are uniform under the null, and that it has power."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy import stats

from datamodels import Design, Recipe, TrainRecipe
from datamodels.applications.validation import permutation_null
from datamodels.applications.validation.permutation import PermutationNull, ShuffledLabels, shared_support
from datamodels.applications.validation.shuffling import exchange
from datamodels.datasets import Dataset, from_arrays
from datamodels.errors import RequestError
from tests.test_subgroups import one_thread
from tests.validation_data import QUICK, RECIPE, cells, modes

__all__ = ["one_thread"]  # fixtures


# -- the statistic and its null -----------------------------------------------------------------------


def test_shared_support_is_the_mean_cosine_of_pairs_weighted_by_class() -> None:
    rng = np.random.default_rng(0)
    weights, labels = rng.normal(size=(7, 5)), np.array([0, 0, 1, 1, 1])
    unit = weights / np.linalg.norm(weights, axis=0)
    shares = np.array([1 / 4, 1 / 4, 1 / 6, 1 / 6, 1 / 6])
    cosines, pairs = unit.T @ unit, np.outer(shares, shares)
    off = ~np.eye(5, dtype=bool)
    assert shared_support(weights, labels) == pytest.approx((cosines * pairs)[off].sum() / pairs[off].sum())


def test_shuffles_keep_strata_and_change_labels_alone() -> None:
    data, _ = modes()
    strata = np.arange(80) % 4
    task = TrainRecipe(RECIPE, data, splits=("train",))
    design = Design(n_train=80, alpha=0.5, n_models=20)
    job = ShuffledLabels(task, design, 0, exchange(data, "train", within=strata))
    assert job.dataset(0) is data
    one, other = job.dataset(1), job.dataset(2)
    assert (one.train.y != other.train.y).any()
    assert one.train.x is data.train.x
    for stratum in range(4):
        members = strata == stratum
        assert one.train.y[members].sum() == data.train.y[members].sum()
    plain = TrainRecipe(RECIPE, one, splits=("train",))
    rows = np.array([3, 4])
    masks = np.stack([design.mask(3), design.mask(4)])
    mixed = job(np.array([19, 20 + 3, 20 + 4]))["train_margins"]
    np.testing.assert_array_equal(mixed[1:], plain(rows, masks, design)["train_margins"])


@pytest.mark.parametrize("split", ["test", "train"])
def test_learnable_labels_are_told_from_shuffled_ones(split: str, tmp_path: Path) -> None:
    data, _ = modes(100)
    task = TrainRecipe(RECIPE, data, splits=(split,))
    found = permutation_null(task, folder=tmp_path / "s", shuffles=19, models=24, **QUICK)
    assert found.p == 0.05
    assert "does not show that subgroups exist" in found.words()
    again = permutation_null(task, folder=tmp_path / "s", shuffles=19, models=24, **QUICK)
    np.testing.assert_array_equal(again.null, found.null)
    assert again.observed == found.observed


def test_p_values_of_shuffled_labels_are_uniform_under_one_shared_null(tmp_path: Path) -> None:
    """A small version of benchmarks/permutation.py."""
    data, _ = modes(100)
    how = {"models": 20, "folder": tmp_path / "pool", **QUICK}
    recipe = Recipe(architecture="linear", epochs=6, lr=0.05)
    pool = permutation_null(TrainRecipe(recipe, data), shuffles=60, **how)
    p = []
    for seed in range(20):
        rng = np.random.default_rng([seed, 7])
        parts = [replace(split, y=rng.permutation(split.y)) for split in (data.train, data.test)]
        task = TrainRecipe(recipe, replace(data, train=parts[0], test=parts[1]))
        p.append(permutation_null(task, shared=pool, **{**how, "folder": tmp_path / str(seed)}).p)
    assert np.mean(np.array(p) > 0.05) >= 0.8
    assert stats.kstest(p, "uniform").pvalue > 0.001


def test_a_shared_null_of_other_data_is_refused(tmp_path: Path) -> None:
    data, _ = modes()
    pool = permutation_null(TrainRecipe(RECIPE, data), folder=tmp_path / "a", shuffles=19, models=20, **QUICK)
    other = replace(data, train=replace(data.train, y=1 - data.train.y))
    for task in (TrainRecipe(RECIPE, other), TrainRecipe(Recipe(hidden=(9,)), data)):
        with pytest.raises(RequestError, match="shared null is of other"):
            permutation_null(task, folder=tmp_path / "b", shared=pool, models=20, **QUICK)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shuffles": 9}, "19 shuffles or more"),
        ({"models": 5}, "20 models or more"),
        ({"within": [1, 2]}, "one value per example"),
        ({"within": "labels"}, "no label can be shuffled"),
        ({"groups": "labels"}, "give groups_test, .* or groups=False where examples"),
        ({"design": Design(n_train=3, alpha=0.5)}, "3 training examples"),
    ],
)
def test_bad_requests_of_the_null_say_what_is_legal(options: dict[str, Any], message: str, tmp_path: Path) -> None:
    data, _ = modes()
    given = {name: data.train.y if value == "labels" else value for name, value in options.items()}
    with pytest.raises(RequestError, match=message):
        permutation_null(TrainRecipe(RECIPE, data), folder=tmp_path / "s", **given, **QUICK)


@pytest.mark.parametrize(
    ("observed", "null", "which"), [(np.nan, [0.1], "labels as they are"), (0.1, [0.2, np.inf], "shuffle 2")]
)
def test_a_statistic_that_is_not_finite_has_no_p(observed: float, null: list[float], which: str) -> None:
    with pytest.raises(
        RequestError, match=f"statistics are NaN or infinite .the first is of (the )?{which}.*learning rate"
    ):
        PermutationNull(observed, np.array(null), 300, "")


# -- donors -------------------------------------------------------------------------------------------


def halved(data: Dataset) -> Dataset:
    """Every second cell is a test example."""
    cells = np.arange(len(data.train))
    return replace(data, train=data.train.take(cells[::2]), test=data.train.take(cells[1::2]))


def test_labels_of_donors_are_shuffled_over_donors_and_labels_within_donors_within_them() -> None:
    data, rng = cells(), np.random.default_rng(0)
    donor, y = data.train.groups, data.train.y
    assert donor is not None
    whole = exchange(data, "train")
    assert whole.words == "whole groups (12)"
    found = whole.shuffled(y, rng)
    assert (found != y).any()
    assert all(len(np.unique(found[donor == one])) == 1 for one in range(12))
    assert found.sum() == y.sum()
    site = (donor % 2).astype(str)
    found = exchange(data, "train", within=site).shuffled(y, rng)
    assert all(found[site == one].sum() == y[site == one].sum() for one in "01")
    mixed = replace(data, train=replace(data.train, y=rng.permutation(y)))
    inside = exchange(mixed, "train")
    assert inside.words.startswith("examples within their groups (12 of 12")
    found = inside.shuffled(mixed.train.y, rng)
    assert (found != mixed.train.y).any()
    assert all(found[donor == one].sum() == mixed.train.y[donor == one].sum() for one in range(12))
    assert exchange(data, "train", groups=False).words == "examples"
    with pytest.raises(RequestError, match="lies in several strata"):
        exchange(data, "train", within=np.arange(len(y)) % 2)
    with pytest.raises(RequestError, match=r"whole groups, and there are 6 ways to, so that p cannot reach .05"):
        exchange(cells(groups=4), "train")
    with pytest.raises(RequestError, match="no label can be shuffled"):
        exchange(data, "train", within=donor)


def test_groups_of_one_label_exchange_it_beside_mixed_ones() -> None:
    sizes = np.array([9, 12, 40, 3, 2, 1, 1, 5, 6])
    donor = np.repeat(np.arange(9), sizes)
    y = np.array([0, 1, 0, 1, 0, 1, 0, 1, 0])[donor]
    y[donor == 8] = [0, 0, 0, 0, 1, 1]
    data = from_arrays("mixed", np.zeros((len(y), 1)), y)
    data = replace(data, train=replace(data.train, groups=donor))
    how, rng = exchange(data, "train"), np.random.default_rng(0)
    assert how.words == (
        "examples within their groups (1 of 9 groups have several labels) and over whole groups of similar size (the other 8)"
    )
    seen = set()
    for _ in range(60):
        found = how.shuffled(y, rng)
        whole = np.array([found[donor == one][0] for one in range(8)])
        assert (found[donor < 8] == whole[donor[donor < 8]]).all()
        assert found[donor == 8].sum() == 2
        assert (whole[:3].sum(), whole[3:5].sum(), whole[5:7].sum(), whole[7]) == (1, 1, 1, 1)
        seen.add((tuple(whole), tuple(found[donor == 8])))
        moved = replace(data, train=replace(data.train, y=found))
        assert exchange(moved, "train") == how
    assert len({whole for whole, _ in seen}) == 12
    assert len({inside for _, inside in seen}) == 15


def test_the_shuffle_of_mostly_pure_donors_keeps_its_level_and_has_power() -> None:
    """The statistic is a difference of means; 14 of 16 donors have one label, drawn by lot."""

    def p_value(seed: int, effect: float) -> float:
        rng = np.random.default_rng([seed, 3])
        donor = np.repeat(np.arange(16), rng.integers(8, 20, 16))
        y = (rng.permutation(16) % 2)[donor]
        y[donor < 2] = rng.integers(0, 2, (donor < 2).sum())
        x = 2 * rng.normal(size=16)[donor] + rng.normal(size=len(y)) + effect * y * (donor >= 2)
        data = from_arrays("d", x[:, None], y)
        how = exchange(replace(data, train=replace(data.train, groups=donor)), "train")

        def statistic(labels: NDArray[Any]) -> float:
            return abs(float(x[labels == 1].mean() - x[labels == 0].mean()))

        null = np.array([statistic(how.shuffled(y, rng)) for _ in range(39)])
        return float((1 + (null >= statistic(y)).sum()) / 40)

    level = np.array([p_value(seed, 0) for seed in range(80)])
    assert np.mean(level <= 0.05) <= 0.1
    assert stats.kstest(level, "uniform").pvalue > 0.01
    assert np.mean([p_value(seed, 4) <= 0.05 for seed in range(20)]) >= 0.8


def test_a_donor_of_both_splits_keeps_one_label() -> None:
    data = cells(groups=20)
    donor = data.train.groups
    assert donor is not None
    parts = np.flatnonzero((donor < 12) & (np.arange(len(donor)) % 2 == 0)), np.flatnonzero(donor >= 8)
    data = replace(data, train=data.train.take(parts[0]), test=data.train.take(parts[1]))
    how, rng = exchange(data, "test"), np.random.default_rng(1)
    y, side = np.concatenate([data.train.y, data.test.y]), np.repeat([0, 1], [len(part) for part in parts])
    names = donor[np.concatenate(parts)]
    for _ in range(5):
        found = how.shuffled(y, rng)
        assert all(len(np.unique(found[names == one])) == 1 for one in range(20))
        assert all(found[side == one].sum() == y[side == one].sum() for one in (0, 1))


def test_cells_of_donors_reject_falsely_and_donors_do_not(tmp_path: Path) -> None:
    """Labels are drawn by lot for each donor: a valid test rejects in one case of twenty."""
    recipe = Recipe(architecture="linear", epochs=3, lr=0.05)
    p: dict[str, list[float]] = {"cells": [], "donors": []}
    pools: dict[str, Any] = {}
    base = cells(each=12)
    for seed in range(6):
        y = np.random.default_rng([seed, 5]).permutation(12) % 2
        task = TrainRecipe(recipe, halved(replace(base, train=replace(base.train, y=y[base.train.groups]))))
        for name, groups in (("cells", False), ("donors", None)):
            how: dict[str, Any] = {"groups": groups, "models": 20, "shuffles": 19, **QUICK}
            if name not in pools:
                pools[name] = permutation_null(task, folder=tmp_path / name, **how)
            where = tmp_path / f"{name}_{seed}"
            p[name].append(permutation_null(task, folder=where, shared=pools[name], **how).p)
    assert np.mean(np.array(p["cells"]) <= 0.05) > 0.8
    assert np.mean(np.array(p["donors"]) <= 0.05) < 0.3
    assert "shuffles over whole groups (12)" in pools["donors"].words()
    task = TrainRecipe(recipe, halved(cells(spread=0.5, effect=6)))
    strong = permutation_null(task, folder=tmp_path / "strong", shuffles=19, models=20, **QUICK)
    assert strong.p <= 0.05
