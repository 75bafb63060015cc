"""Datasets with modes that need rules of their own, and donors whose cells are alike: what the checks of subgroups are tried on."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels import Recipe, Ridge, fit
from datamodels.applications.subgroups import Subgroups, subgroups
from datamodels.datasets import Dataset, from_arrays
from datamodels.regression.problem import Problem

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


def cells(*, groups: int = 12, each: int = 8, spread: float = 3.0, effect: float = 0.0, seed: int = 0) -> Dataset:
    """Cells of donors who differ from each other; a donor's label moves its cells by `effect` and is drawn by lot."""
    rng = np.random.default_rng(seed)
    donor = np.repeat(np.arange(groups), each)
    y = rng.permutation(np.arange(groups) % 2)[donor]
    x = spread * rng.normal(size=(groups, 6))[donor] + rng.normal(size=(len(donor), 6))
    x[:, 0] += effect * (y - 0.5)
    data = from_arrays("cells", x, y)
    return replace(data, train=replace(data.train, groups=donor))


def of(data: Problem, k: int, components: int = 4) -> Subgroups:
    masks, outputs = data.load()
    return subgroups(
        fit(masks=masks, outputs=outputs, estimator=Ridge(), progress=False), n_clusters=k, n_components=components
    )
