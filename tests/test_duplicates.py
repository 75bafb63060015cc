"""Leaks between splits: planted copies are what is found first, in weights that are known and in networks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from datamodels import Attribution, Ridge, fit
from datamodels.applications.duplicates import Leak, leaks
from datamodels.applications.neighbours import overlap
from datamodels.datasets import Dataset, Split, load
from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe


class Planted(NamedTuple):
    """Attribution and splits in which test example ``pairs[i, 0]`` has a copy at training example ``pairs[i, 1]``."""

    attribution: Attribution
    train: Split
    test: Split
    pairs: NDArray[np.int64]


def planted(noise: float = 0.2) -> Planted:
    """60 targets with ten small weights each; three of them have a copy, the third under another label, and a fourth a
    copy with noise."""
    rng = np.random.default_rng(0)
    x, points = rng.random((200, 30)).astype(np.float32), rng.random((60, 30)).astype(np.float32)
    pairs = np.array([[5, 70], [33, 2], [8, 140], [20, 199]])
    x[pairs[:, 1]] = points[pairs[:, 0]]
    x[199] += noise * rng.random(30).astype(np.float32)
    weights = np.zeros((200, 60))
    for target in range(60):
        weights[rng.choice(200, 10, replace=False), target] = 0.1 * rng.normal(size=10)
    weights[pairs[:, 1], pairs[:, 0]] = 1.0, 1.5, -2.0, 1.2
    train, test = (Split(part, np.zeros(len(part), np.int64)) for part in (x, points))
    return Planted(Attribution(weights, np.zeros(60)), train, test, pairs)


def pairs_of(found: tuple[Leak, ...]) -> set[tuple[int, int]]:
    return {(leak.target, leak.train) for leak in found}


def test_planted_copies_are_found_by_weight_and_told_by_distance() -> None:
    p = planted()
    found = leaks(p.attribution, p.train, p.test, k=4)
    assert pairs_of(found) == set(map(tuple, p.pairs.tolist()))
    assert [leak.exact for leak in found] == [True, True, True, False]
    assert 0 < found[3].distance < 0.5
    assert [leak.weight for leak in found if leak.target == 8] == [-2.0]
    wider = leaks(p.attribution, p.train, p.test, k=15)
    assert set(wider[:4]) == set(found)
    assert min(leak.distance for leak in wider[4:]) > 0.9


def test_numbers_are_what_they_say() -> None:
    p = planted()
    sizes = np.abs(p.attribution.weights)
    every = np.linalg.norm(p.test.x[:, None] - p.train.x[None], axis=2)
    nearest = every.min(axis=1)
    for leak in leaks(p.attribution, p.train, p.test):
        assert leak.weight == p.attribution.weights[leak.train, leak.target]
        assert abs(leak.weight) == sizes[:, leak.target].max()
        whole = max(sizes[:, leak.target].sum(), np.median(sizes.sum(axis=0)))
        assert leak.share == pytest.approx(abs(leak.weight) / whole)
        assert leak.distance == pytest.approx(
            every[leak.target, leak.train] / np.median(nearest[nearest > 0]), rel=1e-5
        )


def test_a_target_with_one_tiny_weight_does_not_stand_out() -> None:
    p = planted()
    weights = p.attribution.weights.copy()
    weights[:, 40:50] = 0
    weights[0, 40:50] = 1e-3
    found = leaks(Attribution(weights, np.zeros(60)), p.train, p.test, k=4)
    assert pairs_of(found) == set(map(tuple, p.pairs.tolist()))


def test_targets_are_named_as_in_their_split() -> None:
    p = planted()
    some = np.array([33, 8, 0, 20])
    part = replace(p.attribution.select(some), target_facts={"target": some})
    assert pairs_of(leaks(part, p.train, p.test, k=3)) == {(33, 2), (8, 140), (20, 199)}


def test_splits_that_are_all_copies_and_weights_that_are_all_0() -> None:
    p = planted()
    same = p.train.take(np.arange(60))
    copies = Attribution(np.eye(200)[:, :60], np.zeros(60))
    assert [leak.exact for leak in leaks(copies, p.train, same, k=60)] == [True] * 60
    assert leaks(Attribution(np.zeros((200, 60)), np.zeros(60)), p.train, p.test) == ()


def test_requests_that_do_not_fit_are_refused() -> None:
    p = planted()
    with pytest.raises(RequestError, match="k is 0"):
        leaks(p.attribution, p.train, p.test, k=0)
    with pytest.raises(RequestError, match="the splits have 200 train and 30 test examples"):
        leaks(p.attribution, p.train, p.test.take(np.arange(30)))
    with pytest.raises(RequestError, match="of 200 train examples"):
        leaks(p.attribution, p.test, p.test)


def test_copies_among_the_digits_that_networks_learn_are_found_first(tmp_path: Path) -> None:
    """Copies, three exact and three noisy, of test digits that look like another class."""
    data = load("mnist_5k[300,120]")
    every = np.linalg.norm(data.test.flat[:, None] - data.train.flat[None], axis=2)
    targets = np.flatnonzero(data.train.y[every.argmin(axis=1)] != data.test.y)[:6]
    rng = np.random.default_rng(0)
    places = rng.choice(300, 6, replace=False)
    x, y = data.train.x.copy(), data.train.y.copy()
    x[places], y[places] = data.test.x[targets], data.test.y[targets]
    x[places[3:]] = np.clip(x[places[3:]] + 0.1 * rng.normal(size=(3, 1, 28, 28)), 0, 1)
    mixed = Dataset("planted", Split(x, y), data.test, data.class_names)
    task = TrainRecipe(Recipe(hidden=(32,), epochs=10, lr=0.05), mixed)
    design = Design(n_train=300, alpha=0.5, n_models=400, seed=0)
    store = Store.create(tmp_path / "store", schema=task.schema, design=design)
    assert train(store, task, executor="inline", progress=False).ok
    found = leaks(fit(store, Ridge(), progress=False), mixed.train, mixed.test, k=24)
    assert pairs_of(found[:6]) == set(zip(targets.tolist(), places.tolist(), strict=True))
    assert {leak.train for leak in found if leak.exact} == set(places[:3].tolist())
    assert found[5].distance < 0.5 < found[6].distance
    assert all(leak.weight > 0 for leak in found[:6])


def test_overlap_is_the_jaccard_index_of_the_most_helpful() -> None:
    first = np.array([[3.0, 0, 1, -1], [2, 0, 0, -2], [1, 0, 0, 3], [-5, -1, 2, 0]])
    second = np.array([[3.0, 0, 0, 1], [0, 0, 1, 0], [4, -1, 0, 2], [5, 0, 0, -1]])
    a, b = (Attribution(weights, np.zeros(4)) for weights in (first, second))
    np.testing.assert_allclose(overlap(a, b, k=2), [0.0, np.nan, 0.0, 0.5])
    np.testing.assert_allclose(overlap(a, b, k=3), [0.5, np.nan, 0.0, 0.5])
    np.testing.assert_allclose(overlap(a, a), [1, np.nan, 1, 1])
    with pytest.raises(RequestError, match="must be of the same"):
        overlap(a, b[:2])
