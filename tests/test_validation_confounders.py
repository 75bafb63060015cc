"""Confounders and markers of clusters: statistics as SciPy defines them, planted ones named and no others."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pandas as pd
import pytest
from scipy import sparse, stats

from datamodels.applications.validation import confounding, markers
from datamodels.applications.validation.confounding import cramers_v
from datamodels.errors import RequestError
from tests.test_subgroups import one_thread

__all__ = ["one_thread"]  # fixtures


# -- confounders --------------------------------------------------------------------------------------


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


# -- markers ------------------------------------------------------------------------------------------


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
