"""The checks of subgroups: oracles, planted truths, and noise that must be called noise."""

from __future__ import annotations

import json
import sys
from dataclasses import replace
from functools import partial
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from scipy import sparse, stats

from datamodels import Design, Recipe, Ridge, Store, TrainRecipe, fit, train
from datamodels.applications.subgroups import Subgroups, subgroups
from datamodels.applications.validation import (
    Validation,
    cluster_stability,
    confounding,
    markers,
    permutation_null,
    transfer,
    validate,
)
from datamodels.applications.validation.confounding import cramers_v
from datamodels.applications.validation.permutation import PermutationNull, ShuffledLabels, shared_support
from datamodels.applications.validation.shuffling import exchange
from datamodels.applications.validation.stability import (
    ClusterStability,
    OneCluster,
    Separation,
    Spread,
    best_jaccard,
    separation,
)
from datamodels.applications.validation.transfer import OnePair, Transfer, drop_of
from datamodels.applications.validation.validate import _donors_seen
from datamodels.cli import main as cli_main
from datamodels.datasets import Dataset, from_arrays
from datamodels.errors import RequestError
from datamodels.evaluation.retraining import Estimate
from datamodels.regression.problem import Problem
from datamodels.report.validation_page import figure_of, looks, render, save_report
from tests.test_subgroups import one_thread, planted, problem  # noqa: F401

QUICK: dict[str, Any] = {"executor": "inline", "progress": False}
RECIPE = Recipe(hidden=(8,), epochs=12, lr=0.1)


def modes(n: int = 160, *, labelled: bool = True, seed: int = 0) -> tuple[Dataset, NDArray[Any]]:
    """Class 0 has two hidden modes that need different rules, class 1 lies between; or labels are drawn by lot."""
    rng = np.random.default_rng(seed)
    mode = rng.integers(0, 4, n)
    y = (mode >= 2).astype(np.int64)
    centres = np.zeros((4, 6))
    centres[:, :2] = [[3, 3], [-3, -3], [3, -3], [-3, 3]]
    x = (rng.normal(size=(n, 6)) + centres[mode]).astype(np.float32)
    if not labelled:
        y = rng.integers(0, 2, n)
    half = n // 2
    return from_arrays("modes", x[:half], y[:half], x[half:], y[half:]), mode[:half]


# -- stability -----------------------------------------------------------------------------------------------------------


def of(data: Problem, k: int, components: int = 4) -> Subgroups:
    masks, outputs = data.load()
    return subgroups(
        fit(masks=masks, outputs=outputs, estimator=Ridge(), progress=False), n_clusters=k, n_components=components
    )


def test_planted_clusters_are_stable_and_separate() -> None:
    data, _ = problem()
    found = cluster_stability(data, of(data, 3), n_refits=3, progress=False)
    assert found.ari.low > 0.95
    assert [one.word for one in found.clusters] == ["stable"] * 3
    assert sum(one.size for one in found.clusters) == 90
    assert found.separation.p == 0.01
    json.dumps(found.to_dict())


def test_clusters_of_noise_dissolve() -> None:
    data, _ = problem(n_groups=0, per_group=60)
    found = cluster_stability(data, of(data, 3), n_refits=3, progress=False)
    assert found.ari.high < 0.2
    assert {one.word for one in found.clusters} == {"dissolves"}


def test_a_long_cloud_is_not_separate_and_a_gap_in_it_is() -> None:
    rng = np.random.default_rng(0)
    clouds = [rng.normal(size=(200, 4)) * [5, 1, 1, 1] for _ in range(10)]
    p = [separation(cloud, 2, draws=19, seed=seed).p for seed, cloud in enumerate(clouds)]
    assert sum(one > 0.05 for one in p) >= 8
    clouds[0][:, 0] = 5 * np.sign(clouds[0][:, 0]) + rng.normal(size=200)
    assert separation(clouds[0], 2, draws=39).p == 1 / 40


def test_jaccard_is_of_the_best_cluster_and_noise_is_none() -> None:
    members = np.array([1, 1, 1, 0, 0, 0], dtype=bool)
    assert best_jaccard(members, np.array([5, 5, 7, 7, 7, 7])) == pytest.approx(2 / 3)
    assert best_jaccard(members, np.array([-1, -1, -1, 2, 2, 2])) == 0


# -- shuffled labels -----------------------------------------------------------------------------------------------------


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


def cells(*, groups: int = 12, each: int = 8, spread: float = 3.0, effect: float = 0.0, seed: int = 0) -> Dataset:
    """Cells of donors who differ from each other; a donor's label moves its cells by `effect` and is drawn by lot."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(groups), each)
    y = rng.permutation(np.arange(groups) % 2)[donor]
    x = spread * rng.normal(size=(groups, 6))[donor] + rng.normal(size=(len(donor), 6))
    x[:, 0] += effect * (y - 0.5)
    data = from_arrays("cells", x, y)
    return replace(data, train=replace(data.train, groups=donor))


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


@pytest.mark.parametrize(
    ("observed", "null", "which"), [(np.nan, [0.1], "labels as they are"), (0.1, [0.2, np.inf], "shuffle 2")]
)
def test_a_statistic_that_is_not_finite_has_no_p(observed: float, null: list[float], which: str) -> None:
    with pytest.raises(
        RequestError, match=f"statistics are NaN or infinite .the first is of (the )?{which}.*learning rate"
    ):
        PermutationNull(observed, np.array(null), 300, "")


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


# -- confounders ---------------------------------------------------------------------------------------------------------


def test_effects_equal_scipy_and_statsmodels_definitions() -> None:
    rng = np.random.default_rng(0)
    clusters = rng.integers(0, 3, 300)
    batch = np.where(rng.random(300) < 0.6, clusters, rng.integers(0, 3, 300))
    size = clusters + rng.normal(size=300)
    found = {one.column: one for one in confounding(clusters, {"batch": batch, "size": size}).columns}
    table = pd.crosstab(clusters, batch).to_numpy()
    chi2 = stats.chi2_contingency(table, correction=False)
    assert found["batch"].p == pytest.approx(chi2.pvalue)
    phi = max(0, chi2.statistic / 300 - 4 / 299)
    assert found["batch"].effect == pytest.approx(np.sqrt(phi / (3 - 4 / 299 - 1)))
    groups = [size[clusters == k] for k in range(3)]
    assert found["size"].p == pytest.approx(stats.kruskal(*groups).pvalue)
    f = stats.f_oneway(*groups).statistic
    assert found["size"].effect == pytest.approx(2 * f / (2 * f + 297))
    assert cramers_v(np.diag([50, 50, 50])) == pytest.approx(1, abs=0.01)


def test_a_planted_confounder_is_named_and_others_are_not() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat([0, 1, -1], 60)
    frame = pd.DataFrame(
        {
            "batch": pd.Categorical(np.where(clusters == 1, "b", "a")),
            "donor": rng.choice(list("abcdef"), 180),
            "depth": rng.normal(size=180) + 2 * clusters,
            "noise": np.where(rng.random(180) < 0.1, np.nan, rng.normal(size=180)),
            "constant": 1,
        }
    )
    found = confounding(clusters, frame)
    assert {one.column for one in found.named()} == {"batch", "depth"}
    batch = next(one for one in found.columns if one.column == "batch")
    assert batch.effect > 0.95
    assert batch.n == 120
    assert "batch: strong association (Cramér's V = " in batch.words()
    assert next(one for one in found.columns if one.column == "noise").n < 120
    json.dumps(found.to_dict())


def test_sparse_tables_are_permuted_and_their_p_is_uniform_enough() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat([0, 1], 15)
    p = [confounding(clusters, {"donor": rng.choice(list("abcdefgh"), 30)}).columns[0].p for _ in range(20)]
    assert np.mean(np.array(p) <= 0.05) <= 0.25
    assert np.mean(p) > 0.3


def test_whole_numbers_are_tested_as_codes_and_as_amounts() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat([0, 1], 200)
    donor = np.repeat([1, 4, 5, 8, 9, 12, 13, 16, 17, 20, 2, 3, 6, 7, 10, 11, 14, 15, 18, 19], 20)  # means are equal
    age = rng.integers(20, 80, 400) + 10 * clusters
    lacking = np.where(np.arange(400) % 50 == 0, None, donor)
    columns = {
        "donor": donor,
        "donor with gaps": lacking,
        "donor as float": lacking.astype(float),
        "donor Int64": pd.array([pd.NA if one is None else one for one in lacking], dtype="Int64"),
        "age": age,
        "noise": rng.permutation(age),
        "depth": rng.permutation(400),
        "day": pd.Timestamp("2024-01-01") + pd.to_timedelta(donor, "D"),
    }
    found = {one.column: one for one in confounding(clusters, columns).columns}
    for name in ("donor", "donor with gaps", "donor as float", "donor Int64", "day"):
        assert (found[name].kind, found[name].tests, found[name].size) == ("categories", 2, "strong"), name
        assert found[name].confounds()
    assert found["donor with gaps"].n == found["donor Int64"].n == 392
    (named,) = confounding(clusters, {"donor": donor.astype(str)}).columns
    assert found["donor"].effect == named.effect
    assert found["donor"].p == pytest.approx(2 * named.p)
    assert (found["age"].kind, found["age"].tests) == ("numbers", 2)
    assert found["age"].p == pytest.approx(2 * stats.kruskal(age[:200], age[200:]).pvalue)
    assert found["age"].confounds()
    assert "the numbers taken for amounts" in found["age"].words()
    assert not found["noise"].confounds()
    assert (found["depth"].kind, found["depth"].tests) == ("numbers", 1)


def test_categories_of_numbers_are_categories_and_nullable_numbers_are_numbers() -> None:
    rng = np.random.default_rng(0)
    clusters = np.repeat([0, 1], 50)
    depth = rng.normal(size=100) + 3 * clusters
    gaps = [None if k == 7 else value for k, value in enumerate(depth)]
    columns = {
        "category": pd.Series(np.arange(100) % 25).astype("category"),
        "float category": pd.Series(depth).round(0).astype("category"),
        "Float64": pd.array(gaps, dtype="Float64"),
        "objects": np.array(gaps, dtype=object),
        "flag": pd.array([None, *[True, False] * 49, True], dtype="boolean"),
    }
    found = {one.column: one for one in confounding(clusters, columns).columns}
    kinds = {name: one.kind for name, one in found.items()}
    assert kinds == {
        "category": "categories", "float category": "categories", "Float64": "numbers", "objects": "numbers", "flag": "categories",
    }  # fmt: skip
    assert all(one.tests == 1 for one in found.values())
    assert found["Float64"].effect == found["objects"].effect > 0.5
    assert (found["Float64"].n, found["flag"].n) == (99, 99)


@pytest.mark.parametrize(
    ("clusters", "columns", "message"),
    [
        (["a", "b"], {"a": [1, 2]}, r"clusters have shape \(2,\) and dtype <U1; give whole numbers, .* np.unique"),
        (
            [0, 1, 1, 0],
            {"mixed": np.array([1, "a", 2, "b"], dtype=object)},
            "column 'mixed' holds int, str; give text, numbers",
        ),
        ([0, 0, -1], {"a": [1, 2, 3]}, "two clusters or more"),
        ([0, 1], {"a": [1]}, r"column 'a' has shape \(1,\)"),
        ([0, 1], {}, "columns are empty"),
        ([0, 1], {"size": [np.inf, 1.0]}, "column 'size' holds inf 1 times, .* or NaN for values to leave out"),
    ],
)
def test_bad_columns_are_refused(clusters: list[int], columns: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        confounding(clusters, columns)


# -- markers -------------------------------------------------------------------------------------------------------------


def test_markers_equal_scipy() -> None:
    rng = np.random.default_rng(0)
    clusters = rng.integers(-1, 3, 120)
    x = rng.poisson(1.0, size=(120, 9)).astype(float)  # many ties
    x[clusters == 1, 4] += 2
    x[:, 8] = 3
    found = markers(x, clusters, [f"g{i}" for i in range(9)])
    for k, number in enumerate(found.clusters):
        inside, outside = x[clusters == number], x[clusters != number]
        expected = stats.mannwhitneyu(inside[:, :8], outside[:, :8], method="asymptotic", axis=0)
        np.testing.assert_allclose(found.p[k, :8], expected.pvalue, rtol=1e-10)
        np.testing.assert_allclose(found.auc[k, :8], expected.statistic / (len(inside) * len(outside)))
        np.testing.assert_allclose(found.q[k], stats.false_discovery_control(found.p[k]))
    assert (found.auc[:, 8] == 0.5).all()
    assert (found.p[:, 8] == 1).all()
    assert found.of(1, fdr=0.01)[0]["feature"] == "g4"
    same = markers(sparse.csr_matrix(x), clusters)
    np.testing.assert_array_equal(same.p, found.p)


def test_markers_within_a_class_are_not_those_of_the_class() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 100)
    clusters = np.repeat([0, 1, 2, 3], 50)
    x = rng.normal(size=(200, 2))
    x[:, 0] += 5 * labels
    x[:, 1] += 5 * (clusters % 2)
    assert {row["feature"] for row in markers(x, clusters, ["class", "mode"]).of(0)} == {"class", "mode"}
    assert [row["feature"] for row in markers(x, clusters, ["class", "mode"], labels=labels).of(0)] == ["mode"]
    with pytest.raises(RequestError, match="all of its class"):
        markers(x, labels, labels=labels)
    with pytest.raises(RequestError, match=r"cluster 0 is all of the targets, .* markers need a second cluster"):
        markers(x, np.zeros(200, dtype=int))
    with pytest.raises(RequestError, match="there is no cluster 9"):
        markers(x, clusters).of(9)


@pytest.mark.parametrize(
    ("x", "clusters", "labels", "message"),
    [
        (np.zeros((4, 1)), list("aabb"), None, "clusters have .* give whole numbers"),
        (np.zeros((4, 1)), [-1] * 4, None, "all targets are noise"),
        (np.zeros((4, 1)), [0, 0, 1, 1], ["a", "a", None, "a"], "1 of 4 targets have no label, the first is target 2"),
        (np.zeros((4, 1)), [0, 0, 1, 1], np.array(["a", 1, 2, 3], dtype=object), "labels hold int, str"),
        (np.array([["a"], [1], [2], [3]], dtype=object), [0, 0, 1, 1], None, "x holds what is no number"),
        (np.array([[np.nan], [1], [2], [3]]), [0, 0, 1, 1], None, "x holds NaN"),
    ],
)
def test_markers_of_what_cannot_be_ranked_are_refused(x: Any, clusters: Any, labels: Any, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        markers(x, clusters, labels=labels)


# -- transfer ------------------------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(
    ("clusters", "message"),
    [([0, 1], "cluster number of each training example"), ("ones", "no class has two subgroups")],
)
def test_clusters_that_cannot_be_transferred_are_refused(clusters: Any, message: str, tmp_path: Path) -> None:
    data, mode = modes()
    given = np.ones_like(mode) if clusters == "ones" else clusters
    with pytest.raises(RequestError, match=message):
        transfer(TrainRecipe(RECIPE, data), given, folder=tmp_path, **QUICK)


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


# -- all of it -----------------------------------------------------------------------------------------------------------


def whole(tmp_path: Path, *, labelled: bool, **options: Any) -> tuple[Validation, NDArray[Any]]:
    data, mode = modes(160 if labelled else 100, labelled=labelled)
    task = TrainRecipe(RECIPE, data, splits=("train",))
    design = Design(n_train=task.n_train, alpha=0.5, n_models=240)
    store = Store.create(tmp_path / "runs", schema=task.schema, design=design)
    assert train(store, task, **QUICK).ok
    rows = Problem.build(store, outputs_key="train_margins")
    attribution = fit(store, Ridge(), outputs_key="train_margins", progress=False)
    groups = subgroups(attribution, n_clusters=4 if labelled else 3, n_components=4)
    options = {"columns": {"mode": mode.astype(str)}, **options} if labelled else options
    found = validate(
        rows, groups, task=task, folder=tmp_path / "check", n_refits=2, shuffles=19, null_models=20, replicates=4,
        x=data.train.flat, **options, **QUICK,
    )  # fmt: skip
    return found, mode


def test_planted_subgroups_hold_and_what_they_are_is_named(tmp_path: Path) -> None:
    from sklearn.metrics import adjusted_rand_score

    found, mode = whole(tmp_path, labelled=True)
    assert adjusted_rand_score(mode, found.groups.clusters) > 0.9
    words = {one.question: one.word for one in found.verdicts()}
    assert words.pop("Clusters are no known confounder") == "does not hold"
    assert set(words.values()) == {"holds"}
    assert "mode: strong association (Cramér's V = 0.9" in found.report()
    free = replace(found, confounders=None)
    assert free.holds
    assert (
        free.summary()
        == "The subgroups passed every check that was made. Not tested: Clusters are no known confounder."
    )
    page = save_report(found, tmp_path / "page.html").read_text()
    assert "does not hold" in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    json.dumps(found.to_dict())


def test_labels_drawn_by_lot_do_not_pass(tmp_path: Path) -> None:
    found, _ = whole(tmp_path, labelled=False)
    assert found.null is not None
    assert found.null.p > 0.05
    assert not found.holds
    assert "Do not report these subgroups" in found.summary()
    assert "Datamodels of shuffled labels agree as well as these do" in found.report()


def test_without_the_recipe_the_report_says_what_was_not_tested() -> None:
    data, labels = problem()
    found = validate(data, of(data, 3), labels=labels, n_refits=3, progress=False)
    assert not found.holds
    text = found.report()
    assert "too little was tested" in text or "the labels again" in text
    assert "Datamodels depend on the labels: NOT TESTED" in text
    assert "the clusters are the labels again, nothing hidden" in text
    assert "not tested" in render(found)
    with pytest.raises(RequestError, match="task and folder go together"):
        validate(data, of(data, 3), task=TrainRecipe(RECIPE, modes()[0]))
    with pytest.raises(RequestError, match="labels have shape"):
        validate(data, of(data, 3), labels=[1])


def test_too_few_donors_are_said_and_the_rest_is_tested(tmp_path: Path) -> None:
    data = cells(groups=4, each=15)
    rows, _ = problem(
        n_groups=3, per_group=20, m=80
    )  # other models of as many targets: what they are does not matter here
    task = TrainRecipe(RECIPE, data, splits=("train",))
    rows = replace(rows, train_columns=np.arange(60))
    groups = Subgroups(np.repeat([0, 1, 2], 20), np.random.default_rng(0).normal(size=(60, 4)), "kmeans")
    how: dict[str, Any] = {"task": task, "folder": tmp_path, "n_refits": 2, "replicates": 2, **QUICK}
    found = validate(rows, groups, **how)
    assert found.null is None
    assert not found.holds
    assert "NOT TESTED. The dataset's donors leave too little to shuffle" in found.report()
    assert "and there are 6 ways to" in found.report()
    assert found.donors_seen == 60
    assert "Donors were not kept together: 60 of 60 targets" in found.report()
    assert "Donors were not kept together" in render(found)
    assert "cannot be tested: fewer than 2 donors in" in found.report()
    with pytest.raises(RequestError, match="there are 6 ways to"):
        validate(rows, groups, donors=data.train.groups, **how)


@pytest.mark.parametrize("kind", ["grouped", "fixed_size"])
def test_models_that_saw_the_donors_of_targets_are_counted(kind: Any) -> None:
    data = cells(groups=12, each=5)
    task = TrainRecipe(RECIPE, data, splits=("train",))
    extra = {"groups": data.train.groups} if kind == "grouped" else {}
    masks = Design(n_train=60, alpha=0.5, n_models=40, kind=kind, **extra).masks()
    rows = replace(Problem.build(masks=masks, outputs=np.zeros((40, 60))), train_columns=np.arange(60))
    expected = 0 if kind == "grouped" else 60
    assert _donors_seen(rows, task, None, None) == expected
    assert _donors_seen(rows, task, False, None) is None
    lone = np.arange(60)
    assert _donors_seen(rows, task, lone, None) == 0
    both = replace(task, dataset=replace(data, test=data.train.take([0, 59])))
    tested = Problem.build(masks=masks, outputs=np.zeros((40, 2)))
    assert _donors_seen(tested, both, None, None) == 2
    assert _donors_seen(tested, both, None, np.array([0, 99])) == 1


def test_the_command_reports_and_writes_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The results come before the page, and are there when it fails."""

    def broken(*_: Any, **__: Any) -> Any:
        raise RequestError("no page")

    monkeypatch.chdir(tmp_path)
    masks, outputs, labels = planted()
    design = Design.explicit(masks)
    store = Store.create("s", schema={"margins": {"shape": (outputs.shape[1],), "dtype": "float32"}}, design=design)
    store.write_rows(list(range(len(masks))), {"margins": list(outputs.astype(np.float32))})
    fit(store, Ridge(), progress=False).save("a.h5ad")
    pd.DataFrame({"batch": labels, "name": [f"t{i}" for i in range(len(labels))]}).to_csv("known.csv", index=False)
    arguments = [
        "validate",
        "a.h5ad",
        "--clusters",
        "3",
        "--columns",
        "known.csv",
        "--by-order",
        "--refits",
        "3",
        "--out",
        "page.html",
    ]
    with pytest.raises(SystemExit) as ended:
        cli_main([*arguments, "--json"])
    assert ended.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["n_clusters"] == 3
    assert [row["column"] for row in facts["confounders"]["columns"]] == ["batch"]
    assert Path("page.html").is_file()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("datamodels.report.validation_page.save_report", broken)
        with pytest.raises(SystemExit) as ended:
            cli_main([*arguments, "--json"])
    assert ended.value.code == 2
    found = capsys.readouterr()
    assert json.loads(found.out) == facts
    assert "no page" in found.err
    for extra, message in (
        (["--column", "donor"], "has no column 'donor'"),
        (["--clusters", "few"], "give a number, or 'stability'"),
        (["--out", "page.txt"], "must end in .html"),
        (["--alpha", "0.5"], "give --recipe and --folder"),
        (["--features", "known.npy"], "x has shape (3, 2); give one row per target, (90, features)"),
    ):
        np.save("known.npy", np.zeros((3, 2)))
        with pytest.raises(SystemExit) as ended:
            cli_main([*arguments, *extra])
        assert ended.value.code == 2
        assert message in capsys.readouterr().err


def test_the_command_knows_names_and_features_of_the_recipe(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Columns in another order than the targets; markers of the dataset's features."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("datamodels.applications.validation.validate", partial(validate, executor="inline"))
    data, mode = modes(120)
    names, genes = [f"s{i}" for i in range(60)], [f"$G{j}" for j in range(6)]
    table = pd.DataFrame(data.train.x, columns=genes).assign(sample=names, kind=data.train.y.astype(str))
    table.to_csv("samples.csv", index=False)
    Path("recipe.yaml").write_text(
        "dataset: {kind: table, path: samples.csv, label: kind, ids: sample}\nsplits: [train]\n"
        "recipe: {hidden: [8], epochs: 12, lr: 0.1}\n"
    )
    task = TrainRecipe.read("recipe.yaml")
    store = Store.create("s", schema=task.schema, design=Design(n_train=60, alpha=0.5, n_models=200))
    assert train(store, task, **QUICK).ok
    fit(store, Ridge(), outputs_key="train_margins", progress=False).save("a.h5ad")
    order = np.random.default_rng(0).permutation(60)
    known = pd.DataFrame({"mode $x$": [f"m{k}" for k in mode], "name": names}).iloc[order]
    known.to_csv("known.csv", index=False)
    plain = "validate a.h5ad --clusters 4 --components 4 --refits 2 --columns known.csv"
    more = "--recipe recipe.yaml --folder check --shuffles 19 --models 20 --replicates 2 --alpha 0.4 --kind stratified --json"
    with pytest.raises(SystemExit) as ended:
        cli_main(f"{plain} {more} --out page.html".split())
    assert ended.value.code == 0
    facts = json.loads(capsys.readouterr().out)
    (row,) = facts["confounders"]["columns"]
    assert row["column"] == "mode $x$"
    assert row["effect"] > 0.9
    strongest = {one["feature"] for cluster in facts["markers"]["clusters"] for one in cluster["top"][:1]}
    assert strongest <= {"$G0", "$G1"}
    assert "$G0" in Path("page.html").read_text()
    assert Store.open("check/shuffles").n_models == 20 * 20

    with pytest.raises(SystemExit) as ended:
        cli_main(plain.split())
    assert ended.value.code == 2
    assert "have names, and the attribution does not know those of its targets" in capsys.readouterr().err


def test_names_with_dollars_are_drawn_as_they_are() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    named = many(4, 2)
    assert named.transfer is not None
    clusters = named.groups.clusters
    columns = {"cost_$\\foo$": np.arange(len(clusters)) * 0.5, "a$b_c$d": np.arange(len(clusters)) % 3}
    for count in (4, 20):
        one = many(count, 2)
        assert one.transfer is not None
        one = replace(one, transfer=replace(one.transfer, class_names=("$\\foo$", "$x_1$")))
        if count == 4:
            one = replace(one, confounders=confounding(clusters, columns))
        figure = figure_of(one)
        FigureCanvasAgg(figure).draw()
        texts = {tick.get_text() for axes in figure.axes for tick in axes.get_yticklabels()}
        assert any("$\\foo$" in text for text in texts)
        assert all(
            not tick.get_parse_math()
            for axes in figure.axes
            for tick in axes.get_yticklabels()
            if "$" in tick.get_text()
        )


def many(n_clusters: int, n_classes: int) -> Validation:
    """A validation of many clusters, made up."""
    clusters = np.r_[np.repeat(np.arange(n_clusters), 10), -1, -1]
    groups = Subgroups(clusters, np.random.default_rng(0).normal(size=(len(clusters), 2)), "hdbscan")
    spread = Spread(0.8, 0.7, 0.9)
    stable = ClusterStability(
        spread,
        tuple(OneCluster(k, 10, spread) for k in range(n_clusters)),
        Separation(0.9, 0.5, 0.01),
        20,
        0.95,
        np.zeros(20),
    )
    pairs = [(a % n_classes, a, b) for a, b in permutations(range(n_clusters), 2) if a % n_classes == b % n_classes]
    drops = tuple(OnePair(*pair, 5, Estimate(0.3, 0.1, 0.4), Estimate(1, 0, 2)) for pair in pairs)
    return Validation(groups, stable, transfer=Transfer(drops, 10, 0.95, ("T cell", "monocyte")[:n_classes]))


@pytest.mark.parametrize(("n_clusters", "n_classes"), [(4, 2), (30, 1), (30, 2), (60, 2)])
def test_figures_of_many_clusters_can_be_read(n_clusters: int, n_classes: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    validation = many(n_clusters, n_classes)
    found = looks(validation.groups.clusters)
    assert len(set(found.values())) == min(n_clusters, 30) + 1
    figure = figure_of(validation)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["embedding", "clusters in refits (ARI 0.80)", "transfer between subgroups"]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [tick.get_window_extent(canvas.get_renderer()) for tick in axis.get_ticklabels() if tick.get_text()]
            assert not any(one.overlaps(other) for one, other in pairwise(boxes)), (axes.get_title(), axis)
    assert bool(figure.axes[2].images) == (n_clusters > 4)
    assert (figure.axes[0].get_legend() is None) == (n_clusters > 30)
    if n_clusters == 30:
        box, inside = figure.axes[0].get_legend().get_window_extent(), figure.bbox
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1
        assert inside.y0 <= box.y0 <= box.y1 <= inside.y1
