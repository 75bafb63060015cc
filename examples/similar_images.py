"""The training images that help and harm a prediction most, and copies of test images in the training set.

Networks learn ten classes, each on its own half of the training set. For a dozen test images similar.png shows
the training images with the largest weights of either sign in the lasso datamodel. Test images that lean on one training image
alone may have a copy there: leaks.csv lists such pairs with their distance in pixels, 1 being the usual distance to the
nearest training image and 0 that of a copy.

    python examples/similar_images.py                       # Fashion-MNIST
    python examples/similar_images.py --data cifar10        # on a GPU
    python examples/similar_images.py --quick

Run again with more --models it trains the missing ones, fits again and draws again. The page is index.html.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from common import PERCEPTRON, RESNET, TINY, Setting, options, parts, run, said
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle

from datamodels.applications.duplicates import Leak, leaks
from datamodels.applications.neighbours import neighbours
from datamodels.attribution import Attribution
from datamodels.datasets import Dataset, Split
from datamodels.experiment import Fit, run_experiment
from datamodels.regression.estimators import Lasso

ALPHA = 0.5
_LONG = PERCEPTRON.with_parameters({"epochs": 10, "batch_size": 100})
SETTINGS = {
    "fashion_mnist": Setting("fashion_mnist[5000,500]", _LONG, 5000),
    "cifar10": Setting("cifar10[25000,2000]", RESNET, 20000),
    "mnist_5k": Setting("mnist_5k", _LONG, 4000),
}
QUICK = Setting("mnist_5k[600,200]", TINY, 160)
SHOWN, BESIDE = 12, 6
FRAMES = {True: "tab:blue", False: "tab:red"}


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, fit, judge, draw. Returns what `run_experiment` does, with ``leaks`` and the files ``picture`` and ``table``."""
    given = options(__doc__, "similar_images", SETTINGS, QUICK, argv)
    data = given.task.data
    results = run_experiment(
        given.out, title="Which training images make the network say so?",
        parts=parts("half", given.task, ALPHA, given.models), fits=[Fit("lasso", Lasso(), "half", "half_test")],
        neighbours="lasso", embedding="lasso", commands=[given.command], jobs=given.jobs,
    )  # fmt: skip
    attribution = Attribution.load(given.out / "lasso.h5ad")
    found = leaks(attribution, data.train, data.test)
    picture = draw(given.out / "similar.png", data, attribution)
    table = write(given.out / "leaks.csv", data, found)
    print(f"lasso on {given.models:,} networks: {said(results['attributions']['lasso'])}")
    print("test image, training image, weight, its share of the target's weights, distance:")
    for leak in found[:SHOWN]:
        target, train = classes(data, leak)
        numbers = f"{leak.weight:+.2f}, {leak.share:.0%}, {leak.distance:.2f}{' (a copy)' if leak.exact else ''}"
        print(f"  {leak.target} ({target}) <- {leak.train} ({train}): {numbers}")
    print(f"pictures: {picture}\npairs: {table}\npage: {results['page']}")
    return {**results, "leaks": found, "picture": picture, "table": table}


def draw(path: Path, data: Dataset, attribution: Attribution) -> Path:
    """One row per target: itself, the most helpful and the most harmful training images, with weights."""
    places = [np.flatnonzero(data.test.y == label) for label in range(data.n_classes)]
    targets = [int(own[turn]) for turn in range(SHOWN) for own in places if turn < len(own)][:SHOWN]
    figure = Figure(figsize=(1 + 2 * BESIDE, 1.25 * len(targets)), layout="constrained")
    axes = figure.add_subplot()
    for row, target in enumerate(targets):
        label = int(data.test.y[target])
        _show(axes, data.test, target, (row, 0), data.class_names[label], "black")
        near = neighbours(attribution, target, BESIDE)
        for start, top in ((1.3, near.helpful), (1.6 + BESIDE, near.harmful)):
            for column, (i, weight) in enumerate(zip(top.indices, top.weights, strict=True)):
                same = bool(data.train.y[i] == label)
                _show(axes, data.train, int(i), (row, start + column), f"{weight:+.2f}", FRAMES[same])
    for start, text in ((0, "target"), (1.3, "most helpful"), (1.6 + BESIDE, "most harmful")):
        axes.text(start, -0.12, text, fontsize=12)
    axes.text(1.6 + 2 * BESIDE, -0.12, "blue: the target's class, red: another", fontsize=9, ha="right")
    axes.set(xlim=(-0.1, 1.7 + 2 * BESIDE), ylim=(1.25 * len(targets), -0.4), aspect="equal")
    axes.set_axis_off()
    figure.savefig(path, dpi=110)
    return path


def _show(axes: Axes, split: Split, i: int, place: tuple[int, float], text: str, colour: str) -> None:
    """A picture of one unit in the given row and column, framed, with a line of text below."""
    top, left = 1.25 * place[0], place[1]
    picture, extent = np.asarray(split.images)[i], (left, left + 0.94, top + 0.94, top)
    axes.imshow(picture, cmap="gray", vmin=0, vmax=255, interpolation="nearest", extent=extent)
    axes.add_patch(Rectangle((left, top), 0.94, 0.94, fill=False, edgecolor=colour, linewidth=2))
    axes.text(left + 0.47, top + 0.97, text, fontsize=8, ha="center", va="top")


def classes(data: Dataset, leak: Leak) -> tuple[str, str]:
    """Of the test image and of the training image."""
    return data.class_names[data.test.y[leak.target]], data.class_names[data.train.y[leak.train]]


def write(path: Path, data: Dataset, found: Sequence[Leak]) -> Path:
    """The pairs as CSV, with the classes of both images."""
    with path.open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow([*Leak._fields, "exact", "target_class", "train_class"])
        for leak in found:
            table.writerow([*leak, leak.exact, *classes(data, leak)])
    return path


if __name__ == "__main__":
    run(main)
