"""A store that is also a grid search.

A few hundred logistic regressions on handwritten digits, each on its own half of the training set and
with one of six settings. From one store: the accuracy of every setting, and datamodels that say how
much each training example *and* each setting shifts the margin of each test digit.

    python examples/sweep.py --out runs/sweep
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import datamodels as dm
from datamodels.datasets import load
from datamodels.evaluation.lds import LDS
from datamodels.sweep import Sweep

SWEEP = Sweep({"C": [0.01, 0.1, 1.0], "pixels": ["grey", "binary"]})


def task(index: int, mask: NDArray[np.bool_], params: dict[str, Any]) -> dict[str, Any]:
    """The margins of all test digits, for a model trained on one subset with one setting."""
    from sklearn.linear_model import LogisticRegression

    digits = load("digits")
    train, test = (x > 0.5 if params["pixels"] == "binary" else x for x in (digits.train.x, digits.test.x))
    chosen = np.flatnonzero(mask)
    model = LogisticRegression(C=params["C"], max_iter=1000).fit(train[chosen], digits.train.y[chosen])
    return {"margins": model.decision_function(test) * (2 * digits.test.y - 1)}


def main(argv: Sequence[str] | None = None) -> dict[str, LDS]:
    """Train, print both tables, and return the held-out scores without and with the settings."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="200 training digits, 240 models")
    parser.add_argument("--out", type=Path, help="folder of the store (runs/sweep, runs/sweep-quick)")
    options = parser.parse_args(argv)
    folder = options.out or Path("runs") / ("sweep-quick" if options.quick else "sweep")
    n_train, n_models = (200, 240) if options.quick else (1300, 600)
    design = dm.Design(n_train=n_train, alpha=0.5, n_models=n_models, seed=0)
    schema = {"margins": {"shape": (len(load("digits").test),), "dtype": "float32"}}
    store = dm.Store.open_or_create(folder, schema=schema, design=design, sweep=SWEEP)
    dm.train(store, task)

    margins = np.asarray(store.array("margins"))
    for i in range(SWEEP.size or 0):
        print(f"{SWEEP.at(i)}: accuracy {(margins[i :: SWEEP.size] > 0).mean():.3f}")

    # One 0/1 column per level but the first, beside the masks; only examples are penalised.
    levels = {
        (name, level): store.parameters()[name] == level for name, of in SWEEP.parameters.items() for level in of[1:]
    }
    masks = store.masks()
    features = np.column_stack([masks, *levels.values()])
    penalty = np.repeat([1.0, 0.0], [n_train, len(levels)])
    cut = 3 * n_models // 4
    scores = {}
    for name, x, factors in (("masks", masks, None), ("masks and settings", features, penalty)):
        fitted = dm.fit(masks=x[:cut], outputs=margins[:cut], penalty_factors=factors)
        scores[name] = dm.lds(fitted, masks=x[cut:], outputs=margins[cut:])
        print(f"{name}: held-out R² {scores[name].r2:.3f}, LDS {scores[name].lds:.3f}")
    examples, settings = np.split(fitted.weights, [n_train])
    print(
        f"one training example shifts a margin by {np.abs(examples).mean():.4f} on average, at most {np.abs(examples).max():.2f}"
    )
    for (name, level), shift in zip(levels, settings, strict=True):
        print(
            f"{name}={level}: shifts margins by {shift.min():+.2f} to {shift.max():+.2f}, on average {shift.mean():+.2f}"
        )
    return scores


if __name__ == "__main__":
    main()
