"""Which attribution to believe? One page for all methods on one dataset, against what they cost.

Datamodels (lasso, ridge, difference in means), TRAK from twenty checkpoints, two hybrids of lasso and TRAK (as penalty factors, and as
offset too), products of gradients, TracIn along one training run, nearest neighbours and random scores are judged three ways: LDS on models that none has seen, by the number of models that a datamodel was fitted to; how well
they find 10 % planted wrong labels; and test accuracy after the examples that they find harmful are removed. Costs are
CPU seconds of training and of gradients; a regression takes seconds.

    python examples/compare_methods.py                       # digits of scikit-learn
    python examples/compare_methods.py --data mnist_5k
    python examples/compare_methods.py --quick

Run again with more --models it trains the missing ones. All numbers lie in results.json; the page is index.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from common import (
    PERCEPTRON,
    TINY,
    Setting,
    along_one_run,
    checkpoints,
    fitted,
    options,
    page,
    parts,
    run,
    table,
    timed,
    trak_of,
)  # fmt: skip
from matplotlib import colormaps
from matplotlib.figure import Figure

from datamodels.applications.baselines import nearest_neighbours, random_scores
from datamodels.attribution import Attribution
from datamodels.datasets import Dataset
from datamodels.evaluation.compare import compare_lds
from datamodels.evaluation.mislabels import evaluate_mislabels, mislabel_scores, plant_label_noise
from datamodels.evaluation.removal import removal_curve
from datamodels.evaluation.retraining import RANDOM
from datamodels.experiment import Part, fill
from datamodels.regression.estimators import DifferenceInMeans, Lasso, Ridge
from datamodels.store import Store
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe

if TYPE_CHECKING:
    from datamodels.trak import TRAK

ALPHA, CHECKPOINTS, NOISE = 0.5, 20, 0.1
MODELS, QUICK_MODELS, NOISY_MODELS = (250, 500, 1000, 2000, 3500), (60, 120), 1000
SHARES = (0.05, 0.1, 0.2, 0.3)
SETTINGS = {
    "digits": Setting("digits", Recipe(hidden=(32,), epochs=15, weight_decay=5e-3), 4000),
    "mnist_5k": Setting("mnist_5k:large[2000,500]", PERCEPTRON, 4000),
}
QUICK = Setting("digits[300,100]", TINY, 160)
FREE = ("nearest neighbours", RANDOM)
HYBRIDS = ("hybrid", "hybrid with offset")
GRADIENTS = ("TRAK", "gradient dot product", "gradient cosine")
TITLE = "Which attribution to believe?"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, attribute, judge, draw. Returns the lists of rows ``lds``, ``mislabels`` and ``removal``, and ``costs``."""
    given = options(__doc__, "compare_methods", SETTINGS, QUICK, argv)
    results = {**predictions(given), **wrong_labels(given)}
    (given.out / "results.json").write_text(json.dumps({"command": given.command, **results}, indent=1))
    sizes = sorted({row["models"] for row in results["lds"]})
    found = {(row["method"], row["models"]): row["lds"] for row in results["lds"]}
    by_size = [
        {"LDS by models": name, **{str(size): found[name, size] for size in sizes}}
        for name in dict.fromkeys(name for name, _ in found)
    ]
    draw(given.out / "chart.png", results)
    costs = results["costs"]
    said = (
        f"A network costs {costs['model']:.3f} CPU seconds, {given.checkpoints} checkpoints, their gradients and scores "
        f"{costs['trak']:.1f}, TracIn {costs['tracin']:.1f}. Differences of LDS are to lasso with as many models, with paired "
        "bootstrap intervals."
    )
    result = page(
        given.out / "index.html", TITLE,
        [given.command, said, given.out / "chart.png", by_size, results["lds"], results["mislabels"], results["removal"]],
    )  # fmt: skip
    largest = [row for row in results["lds"] if row["models"] == sizes[-1]]
    print("\n\n".join(table(rows) for rows in (by_size, largest, results["mislabels"], results["removal"])))
    print(f"{said}\npage: {result}")
    return results


def predictions(given: Any) -> dict[str, Any]:
    """LDS of all methods on unseen models, by models that were fitted."""
    from datamodels.trak import score_split

    task, out = given.task, given.out
    store, judges = (
        fill(out / part.name, part, jobs=given.jobs)[0] for part in parts("half", task, ALPHA, given.models)
    )
    given.checkpoints = 5 if given.quick else CHECKPOINTS
    files, per_model = checkpoints(out / "checkpoints", task, given.checkpoints)
    trak, gradients = trak_of(out / "trak", task, files)
    tracin, spent = tracin_of(out, task)
    prior, scores = timed(out / "trak" / "scores.json", lambda: score_split(trak, task.data.test))
    fixed = {"TRAK": prior, **products(trak, tracin, task.data), **free(task.data)}
    costs = {"model": per_model, "trak": given.checkpoints * per_model + gradients + scores, "tracin": spent}
    rows = []
    for size in [size for size in (QUICK_MODELS if given.quick else MODELS) if size <= store.n_models]:
        methods = datamodels_of(out / f"fits_{size}", store, prior, size)
        for row in compare_lds({**methods, **fixed}, judges, reference="lasso").table():
            name = row["method"]
            seconds = size * per_model * (name in methods) + costs["trak"] * (name in (*GRADIENTS, *HYBRIDS))
            seconds += costs["tracin"] * (name == "TracIn")
            rows.append({"method": name, "models": size, "cpu seconds": seconds, **row})
    return {"lds": rows, "costs": costs}


def wrong_labels(given: Any) -> dict[str, Any]:
    """How well each method finds planted wrong labels, and test accuracy after the most harmful examples are removed.

    Half of the test split, with right labels, are the targets; the other half is what accuracies are of.
    """
    from datamodels.trak import score_split

    out, data, recipe = given.out / "wrong_labels", given.task.data, given.setting.recipe
    labels, wrong = plant_label_noise(data.train.y, NOISE, seed=0, n_classes=data.n_classes)
    choice, report = np.arange(0, len(data.test), 2), np.arange(1, len(data.test), 2)
    train, name = replace(data.train, y=labels), f"{data.name}+wrong labels"
    noisy = Dataset(name, train, data.test.take(choice), data.class_names)
    task = TrainRecipe(recipe, noisy, splits=("test", "train"))
    judged = TrainRecipe(recipe, Dataset(f"{name}, judged", train, data.test.take(report), data.class_names))
    models = QUICK_MODELS[-1] if given.quick else min(NOISY_MODELS, given.models)
    store, _ = fill(out / "half", Part("half", task, ALPHA, models, seed=7), jobs=given.jobs)
    files, _ = checkpoints(out / "checkpoints", task, given.checkpoints)
    trak, _ = trak_of(out / "trak", task, files)
    prior = score_split(trak, noisy.test)
    tracin, _ = tracin_of(out, task)
    own = {**products(trak, tracin, noisy), **free(noisy)}
    methods = {**datamodels_of(out / "fits", store, prior, models), "TRAK": prior, **own}
    suspicion = {name: mislabel_scores(one, "influence") for name, one in methods.items()}
    memory = fitted(out / "fits" / "memory.h5ad", store, DifferenceInMeans(), outputs_key="train_margins")
    suspicion["TRAK, on itself"] = trak.self_influence()
    suspicion["TracIn, on itself"] = tracin[0].self_influence("dot", learning_rates=tracin[1])
    suspicion["memorisation"] = mislabel_scores(memory, "self_influence")
    suspicion["margin when not seen"] = mislabel_scores(store, "out_of_mask")
    rows = []
    for name, scores in suspicion.items():
        score = evaluate_mislabels(scores, wrong)
        low, high = score.auc_ci
        rows.append({"method": name, "auc": score.auc, "auc_low": low, "auc_high": high, "precision": score.precision})
    curve = removal_curve(
        judged, {name: -scores for name, scores in suspicion.items() if name != RANDOM},
        shares=SHARES[1:2] if given.quick else SHARES, replicates=3 if given.quick else 10,
        folder=out / "removal", progress=not given.quick, **given.how,
    )  # fmt: skip
    return {"mislabels": sorted(rows, key=lambda row: -row["auc"]), "removal": curve.table(), "base": curve.base.value}


def datamodels_of(folder: Path, store: Store, prior: Attribution, models: int) -> dict[str, Attribution]:
    """The datamodels of the first models of a store."""
    estimators = {
        "lasso": Lasso(), "ridge": Ridge(), "difference in means": DifferenceInMeans(),
        HYBRIDS[0]: Lasso(prior=prior), HYBRIDS[1]: Lasso(prior=prior, offset=prior),
    }  # fmt: skip
    return {name: fitted(folder / f"{name}.h5ad", store, how, models) for name, how in estimators.items()}


def tracin_of(out: Path, task: TrainRecipe) -> tuple[tuple[TRAK, list[float]], float]:
    """Gradients along one training run with the learning rates there, and the CPU seconds of both."""
    files, rates, training = along_one_run(out / "run", task)
    trak, gradients = trak_of(out / "run" / "trak", task, files)
    return (trak, rates), training + gradients


def products(trak: TRAK, tracin: tuple[TRAK, list[float]], data: Dataset) -> dict[str, Attribution]:
    """Products of gradients, from the checkpoints of TRAK and from those along one run."""
    from datamodels.trak import score_split

    return {
        GRADIENTS[1]: score_split(trak, data.test, kind="dot"),
        GRADIENTS[2]: score_split(trak, data.test, kind="cosine"),
        "TracIn": score_split(tracin[0], data.test, kind="dot", learning_rates=tracin[1]),
    }


def free(data: Dataset) -> dict[str, Attribution]:
    """What costs no training."""
    near = nearest_neighbours(data.train.x, data.test.x, data.train.y, data.test.y, metric="euclidean")
    return dict(zip(FREE, (near, random_scores(len(data.train), len(data.test))), strict=True))


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """LDS against cost, AUC of wrong labels, and removal curves."""
    every = dict.fromkeys(row["method"] for name in ("lds", "mislabels", "removal") for row in results[name])
    colours = dict(zip(every, colormaps["tab20"].colors, strict=False)) | {RANDOM: "black"}
    figure = Figure(figsize=(17, 5.6), layout="constrained")
    costs, found, removed = figure.subplots(1, 3)
    for name in dict.fromkeys(row["method"] for row in results["lds"]):
        rows = sorted((row for row in results["lds"] if row["method"] == name), key=lambda row: row["models"])
        y = np.array([row["lds"] for row in rows])
        if name in FREE:
            costs.axhline(y[-1], color=colours[name], linestyle="--" if name == RANDOM else ":", label=name)
            continue
        rows = rows[-1:] if rows[0]["cpu seconds"] == rows[-1]["cpu seconds"] else rows
        x, y = [row["cpu seconds"] for row in rows], y[-len(rows) :]
        error = [y - [row["lds_low"] for row in rows], [row["lds_high"] for row in rows] - y]
        costs.errorbar(x, y, error, marker="o" if len(rows) > 1 else "D", capsize=2, label=name, color=colours[name])
    costs.set(xscale="log", xlabel="CPU seconds of training and gradients", ylabel="LDS on unseen models")
    rows = results["mislabels"][::-1]
    auc = np.array([row["auc"] for row in rows])
    error = np.abs([[row["auc_low"], row["auc_high"]] for row in rows] - auc[:, None]).T
    found.barh([row["method"] for row in rows], auc, xerr=error, color=[colours[row["method"]] for row in rows])
    found.set(xlim=(0.4, 1), xlabel="AUC of planted wrong labels")
    for name in dict.fromkeys(row["method"] for row in results["removal"]):
        rows = [row for row in results["removal"] if row["method"] == name]
        x, y = [0, *(row["share"] for row in rows)], [results["base"], *(row["accuracy"] for row in rows)]
        error = np.abs(
            np.array([[results["base"]] * 2, *([row["accuracy_low"], row["accuracy_high"]] for row in rows)]).T - y
        )
        style = {"linestyle": "--"} if name == RANDOM else {"marker": "o", "markersize": 3}
        removed.errorbar(x, y, error, capsize=2, label=name, linewidth=1, elinewidth=0.6, color=colours[name], **style)
    removed.set(xlabel="share removed, most harmful first", ylabel="test accuracy")
    handles = {
        label: handle
        for axes in (costs, removed)
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
    }
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=8, frameon=False, fontsize=8)
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    run(main)
