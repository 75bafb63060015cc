"""Is the permutation null valid? p-values of datasets whose labels are shuffled must be uniform.

Run with ``python benchmarks/permutation.py [--datasets 100] [--pool 400] [--models 60]``; some minutes. One pool of shuffles serves
all datasets (they have the same features and class counts, so their nulls are one, see docs/validation.md). Then the same with
labels that can be learnt, for power. Exit status 1 when p-values are not uniform.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from datamodels import Recipe, TrainRecipe
from datamodels.applications.validation import PermutationNull, permutation_null
from datamodels.datasets import Dataset, from_arrays

RECIPES = {
    "linear": Recipe(architecture="linear", epochs=12, lr=0.05),
    "mlp, 16 hidden": Recipe(hidden=(16,), epochs=12, lr=0.05),
}
ENOUGH, LEAST_P = 0.89, 0.001


def dataset(effect: float, seed: int = 0, n_train: int = 200, n_test: int = 100) -> Dataset:
    """Two classes of two hidden modes each; `effect` moves the classes apart. With 0 the label knows nothing of x."""
    rng = np.random.default_rng(seed)
    n = n_train + n_test
    y, mode = rng.integers(0, 2, n), rng.integers(0, 2, n)
    x = rng.normal(size=(n, 10))
    x[:, 0] += effect * (2 * y - 1)
    x[:, 1] += 2 * (2 * mode - 1)
    return from_arrays(
        "modes", x[:n_train].astype(np.float32), y[:n_train], x[n_train:].astype(np.float32), y[n_train:]
    )


def relabelled(data: Dataset, seed: int) -> Dataset:
    rng = np.random.default_rng([seed, 1])
    train, test = (replace(split, y=rng.permutation(split.y)) for split in (data.train, data.test))
    return replace(data, train=train, test=test)


def p_values(
    recipe: Recipe, data: Dataset, datasets: Sequence[Dataset], *, pool: int, models: int, folder: Path
) -> NDArray[np.float64]:
    """One p per dataset, against one shared null."""
    how = {"models": models, "executor": "inline", "progress": False}
    shared: PermutationNull = permutation_null(TrainRecipe(recipe, data), folder=folder / "pool", shuffles=pool, **how)
    return np.array(
        [
            permutation_null(TrainRecipe(recipe, one), folder=folder / str(i), shared=shared, **how).p
            for i, one in enumerate(datasets)
        ]
    )


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--datasets", type=int, default=100)
    parser.add_argument("--pool", type=int, default=400)
    parser.add_argument("--models", type=int, default=60)
    options = parser.parse_args()
    bad = False
    for name, recipe in RECIPES.items():
        started = time.perf_counter()
        sizes = {"pool": options.pool, "models": options.models}
        data = dataset(2.0)
        shuffles = [relabelled(data, seed) for seed in range(options.datasets)]
        with tempfile.TemporaryDirectory() as folder:
            p = p_values(recipe, data, shuffles, folder=Path(folder), **sizes)
        above, ks = float((p > 0.05).mean()), float(stats.kstest(p, "uniform").pvalue)
        valid = above >= ENOUGH and ks > LEAST_P
        bad |= not valid
        print(
            f"{name}: {options.datasets} datasets with shuffled labels: {above:.0%} of p above .05, KS p = {ks:.3f}",
            end="",
        )
        print(f" ({'valid' if valid else 'NOT VALID'}, {time.perf_counter() - started:.0f} s)", flush=True)
        for effect in (0.25, 0.5, 1.0):
            found = []
            for seed in range(5):
                data = dataset(effect, seed)
                with tempfile.TemporaryDirectory() as folder:
                    found += p_values(
                        recipe, data, [data], folder=Path(folder), pool=99, models=options.models
                    ).tolist()
            print(f"    classes {2 * effect:g} sd apart: p = {', '.join(f'{one:.2f}' for one in found)}", flush=True)
    return int(bad)


if __name__ == "__main__":
    sys.exit(main())
