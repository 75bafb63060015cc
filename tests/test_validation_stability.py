"""Stability and separation of clusters: planted ones hold, those of noise dissolve."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from datamodels.applications import subgroups
from datamodels.applications.validation import cluster_stability, validate
from datamodels.applications.validation.stability import best_jaccard, separation
from datamodels.design import Design
from datamodels.regression.fit import fit
from datamodels.store import Store
from tests.test_subgroups import one_thread, problem
from tests.validation_data import of

__all__ = ["one_thread"]  # fixtures


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


def test_models_are_read_for_the_outputs_that_the_datamodels_are_of(tmp_path: Path) -> None:
    data, _ = problem()
    masks, outputs = data.load()
    schema = {"margins": {"shape": (1,), "dtype": "float64"}, "other": {"shape": outputs.shape[1:], "dtype": "float64"}}
    store = Store.create(tmp_path / "s", schema=schema, design=Design.explicit(masks))
    store.write_rows(range(len(masks)), {"margins": outputs[:, :1], "other": outputs})
    groups = subgroups(fit(store, "ridge", outputs_key="other", progress=False), n_clusters=3)
    found = cluster_stability(store, groups, n_refits=3, seed=1, progress=False).to_dict()
    assert found == cluster_stability(data, groups, n_refits=3, seed=1, progress=False).to_dict()
    whole = validate(store, groups, n_refits=3, seed=1, progress=False)
    assert whole.stability is not None
    assert whole.stability.to_dict() == found
