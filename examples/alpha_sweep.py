"""Which subset fraction? Six of them at equal cost.

A model on a larger subset costs more, so that the same time buys fewer: models of each alpha number budget / (alpha x epochs).
Against alpha, alpha_sweep.png shows how well lasso datamodels predict models of the same alpha (LDS, with its interval and
the ceiling that noise sets), how many weights they need, how far their ten most helpful examples are those of the
next alpha (Jaccard index), how accurate the networks are, and how well clusters of ridge datamodels find the hidden classes.
The same numbers lie in alpha_sweep.md and alpha_sweep.json; index.html is the page of all fits.

    python examples/alpha_sweep.py                         # digits of scikit-learn
    python examples/alpha_sweep.py --data fashion_mnist
    python examples/alpha_sweep.py --quick

--models counts those at alpha 0.5. Run again with more it trains the missing ones, fits again and draws again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from common import PERCEPTRON, Setting, options, parts, run
from matplotlib.figure import Figure

from datamodels.applications.neighbours import overlap
from datamodels.applications.subgroups import subgroups
from datamodels.attribution import Attribution
from datamodels.experiment import Fit, run_experiment
from datamodels.regression.estimators import Lasso, Ridge
from datamodels.store import Store
from datamodels.training.recipes import Recipe

ALPHAS, QUICK_ALPHAS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75), (0.1, 0.5)
SETTINGS = {
    "digits": Setting("digits", Recipe(hidden=(32,), epochs=15, weight_decay=5e-3), 1000),
    "mnist_5k": Setting("mnist_5k:large", PERCEPTRON, 1000),
    "fashion_mnist": Setting("fashion_mnist:tops[10000,2000]", PERCEPTRON, 1000),
}
QUICK = Setting("digits[300,100]", Recipe(hidden=(16,), epochs=10), 64)
COLUMNS = {  # name in the table, and digits after the point
    "alpha": ("alpha", 2), "epochs": ("epochs", 0), "seen": ("examples seen per model", 0), "models": ("models", 0),
    "lds": ("LDS of lasso", 3), "lds_low": ("from", 3), "lds_high": ("to", 3), "lds_ceiling": ("ceiling", 3),
    "nonzero": ("nonzero weights (median)", 0), "overlap": ("overlap with next alpha", 3), "accuracy": ("accuracy", 3),
    "nmi": ("NMI of ridge clusters", 3),
}  # fmt: skip
TITLE = "Which subset fraction?"


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Train, fit, judge, draw. Returns one row per alpha, with the names of `COLUMNS`."""
    given = options(__doc__, "alpha_sweep", SETTINGS, QUICK, argv)
    data, recipe = given.task.data, given.setting.recipe
    rows: list[dict[str, Any]] = []
    stores, fits = [], []
    budget = given.models * 0.5 * len(data.train) * recipe.epochs
    for alpha in QUICK_ALPHAS if given.quick else ALPHAS:
        epochs = round(recipe.epochs * (0.5 / alpha) ** (1 / 3))  # fewer steps per epoch: some more of them
        seen = round(alpha * len(data.train)) * epochs
        models = round(budget / seen)
        task = replace(given.task, recipe=recipe.with_parameters({"epochs": epochs}))
        stores += parts(f"alpha_{alpha}", task, alpha, models, seed=10 * len(rows))
        for name, estimator in (("lasso", Lasso()), ("ridge", Ridge())):
            fits.append(Fit(f"{name}_{alpha}", estimator, f"alpha_{alpha}", f"alpha_{alpha}_test"))
        rows.append({"alpha": alpha, "epochs": epochs, "seen": seen, "models": models})
        print(f"alpha {alpha}: {models:,} models that see {seen:,} examples each")
    results = run_experiment(
        given.out, title=TITLE, parts=stores, fits=fits, neighbours="lasso_0.5", embedding="ridge_0.1",
        commands=[given.command], jobs=given.jobs,
    )  # fmt: skip
    for i, row in enumerate(rows):
        lasso, ridge = (Attribution.load(given.out / f"{name}_{row['alpha']}.h5ad") for name in ("lasso", "ridge"))
        score = results["attributions"][f"lasso_{row['alpha']}"]
        row |= {"lds": score["lds"], "lds_low": score["lds_ci"][0], "lds_high": score["lds_ci"][1]}
        row |= {"lds_ceiling": score["lds_ceiling"], "nonzero": float(np.median(lasso.target_facts["n_nonzero"]))}
        row["overlap"] = None
        if i + 1 < len(rows):
            shared = overlap(lasso, Attribution.load(given.out / f"lasso_{rows[i + 1]['alpha']}.h5ad"))
            row["overlap"] = None if np.isnan(shared).all() else float(np.nanmean(shared))
        row["accuracy"] = float((Store.open(given.out / f"alpha_{row['alpha']}").array("margins")[:] > 0).mean())
        row["nmi"] = subgroups(ridge, labels=data.test.hidden).nmi
    draw(given.out / "alpha_sweep.png", rows)
    (given.out / "alpha_sweep.json").write_text(json.dumps(rows, indent=1))
    (given.out / "alpha_sweep.md").write_text(f"# {TITLE}\n\n{table(rows)}\n\n![Against alpha](alpha_sweep.png)\n")
    print(f"{table(rows)}\npicture: {given.out / 'alpha_sweep.png'}\npage: {results['page']}")
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows as a table in Markdown."""
    form = [(key, f".{digits}f") for key, (_, digits) in COLUMNS.items()]
    lines = [["" if row[key] is None else format(row[key], how) for key, how in form] for row in rows]
    head = [name for name, _ in COLUMNS.values()]
    return "\n".join(f"| {' | '.join(line)} |" for line in [head, ["---"] * len(head), *lines])


def draw(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Four panels against alpha."""
    figure = Figure(figsize=(9, 6), layout="constrained")
    values = {key: np.array([row[key] for row in rows], dtype=float) for key in COLUMNS}
    panels = figure.subplots(2, 2, sharex=True).ravel()
    panels[0].fill_between(values["alpha"], values["lds_low"], values["lds_high"], alpha=0.2, linewidth=0)
    shown = (("lds", "lds_ceiling"), ("nonzero",), ("overlap",), ("accuracy", "nmi"))
    for axes, keys in zip(panels, shown, strict=True):
        for key in keys:
            axes.plot(values["alpha"], values[key], "o--" if key == "lds_ceiling" else "o-", label=COLUMNS[key][0])
        axes.axhline(0, color="lightgrey", linewidth=0.8, zorder=0)
        axes.legend(frameon=False)
    for axes in panels[2:]:
        axes.set(xlabel="alpha", xscale="log", xticks=values["alpha"], xticklabels=[str(row["alpha"]) for row in rows])
        axes.minorticks_off()
    figure.savefig(path, dpi=150)


if __name__ == "__main__":
    run(main)
