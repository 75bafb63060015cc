"""Stacked training: models per second and core, against plain PyTorch, against `vmap`, against one process per model, and against
the floor of the matrix products.

``make bench-training`` prints the tables of RESULTS.md; ``--part`` runs one of them. All on one core; ways are measured in
turn, several times, and medians reported.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import numba
import numpy as np
import torch
from threadpoolctl import threadpool_limits

from datamodels.datasets import load
from datamodels.design import Design
from datamodels.training.chain import CONVOLUTION, Chain
from datamodels.training.ensemble import train_models
from datamodels.training.recipes import Recipe
from datamodels.training.streams import Streams
from torch_models import loop, vmapped

DIGITS = Recipe(hidden=(32,), epochs=15, batch_size=32, weight_decay=5e-3)
MNIST = Recipe(hidden=(64,), epochs=12, batch_size=32)
CASES = {
    # name: recipe, dataset, models of ours and of the stacked ways, of the loop
    "linear 784-2": (Recipe(architecture="linear", epochs=4), "mnist_5k:large", 16, 2),
    "MLP 64-32-2, digits": (DIGITS, "digits", 64, 3),
    "MLP 784-64-2, batch 16": (replace(MNIST, batch_size=16), "mnist_5k:large", 8, 2),
    "MLP 784-64-2, batch 32": (MNIST, "mnist_5k:large", 8, 2),
    "MLP 784-64-2, batch 64": (replace(MNIST, batch_size=64), "mnist_5k:large", 8, 2),
    "CNN 8-16, 28 x 28": (Recipe(architecture="cnn", channels=(8, 16), steps=60, lr=0.02), "mnist_5k:large", 8, 2),
    "CNN 16-32, 28 x 28": (Recipe(architecture="cnn", steps=60, lr=0.02), "mnist_5k:large", 4, 2),
    "resnet9 16-32-64-64, 28 x 28": (
        Recipe(architecture="resnet9", channels=(16, 32, 64, 64), steps=8, lr=0.02), "mnist_5k:large", 4, 1,
    ),
}  # fmt: skip


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def worked(work: Callable[[], object]) -> float:
    """Seconds of the core, which other work on the machine does not lengthen by taking turns."""
    started = time.process_time()
    work()
    return time.process_time() - started


def gemm_rate() -> float:
    """Floating point operations per second of one core in a large float32 product, the better of torch and NumPy."""
    a = np.random.default_rng(0).random((1024, 1024), dtype=np.float32)
    b = torch.from_numpy(a)
    return max(2 * len(a) ** 3 / worked(work) for work in (lambda: a @ a, lambda: b @ b) for _ in range(5))


def operations(recipe: Recipe, shape: tuple[int, ...], n_classes: int, subset: int) -> float | None:
    """Floating point operations of the products in the training of one model: forward, weights, and inputs of all layers but
    the first. None for architectures that are no chain."""
    if recipe.architecture == "resnet9":
        return None
    per_example = 0
    for k, layer in enumerate(Chain.of(recipe, shape, n_classes).layers):
        pixels = layer.height * layer.width if layer.kind == CONVOLUTION else 1
        per_example += 2 * layer.n_weights * pixels * (2 if k == 0 else 3)
    steps, per_epoch = recipe.total_steps(subset), recipe.steps_per_epoch(subset)
    return per_example * subset * steps / per_epoch


@dataclass(frozen=True)
class Case:
    """One architecture, and the core seconds per model of each way to train it."""

    recipe: Recipe
    dataset: str
    many: int
    few: int

    @property
    def ways(self) -> dict[str, Callable[[Recipe], float]]:
        out: dict[str, Callable[[Recipe], float]] = {"torch": partial(self.ours, "torch"), "loop": self.loop}
        if self.recipe.architecture != "resnet9":
            out |= {"compiled": partial(self.ours, "compiled"), "vmap": self.vmap}
        return out

    @property
    def design(self) -> Design:
        return Design(n_train=len(load(self.dataset).train), alpha=0.5, n_models=64)

    @property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:
        train = load(self.dataset).train
        return torch.from_numpy(train.x), torch.from_numpy(train.y)

    def ours(self, engine: str, recipe: Recipe) -> float:
        train, design = load(self.dataset).train, self.design
        rows = [Streams.of(design, k, design.mask(k)) for k in range(self.many)]
        return worked(lambda: train_models(recipe, train.x, train.y, rows, n_classes=2, engine=engine)) / self.many

    def loop(self, recipe: Recipe) -> float:
        masks = torch.from_numpy(self.design.masks(0, self.few))
        return worked(lambda: [loop(recipe, *self.tensors, mask, 2) for mask in masks]) / self.few

    def vmap(self, recipe: Recipe) -> float:
        masks = torch.from_numpy(self.design.masks(0, self.many))
        return worked(lambda: vmapped(recipe, *self.tensors, masks, 2)) / self.many


def engines(repeats: int) -> None:
    """Models per second and core, four ways."""
    rate = gemm_rate()
    print(f"one core multiplies at {rate / 1e9:.0f} GFLOP/s; core seconds per model, median of {repeats}")
    print("| | ours | way | stacked torch | vmap | loop | ours vs loop | models/s | share of GEMM floor |")
    print("|---|---|---|---|---|---|---|---|---|")
    for name, values in CASES.items():
        case = Case(*values)
        found: dict[str, list[float]] = {way: [] for way in case.ways}
        for way in case.ways.values():  # warm: compiled, and the size of stacks chosen
            way(replace(case.recipe, steps=2))
        case.ways["torch"](case.recipe)
        for _ in range(repeats):
            for way, measure in case.ways.items():
                found[way].append(measure(case.recipe))
        took = {way: statistics.median(values) for way, values in found.items()}
        best = "compiled" if "compiled" in took else "torch"
        train = load(case.dataset).train
        work = operations(case.recipe, train.x.shape[1:], 2, len(train) // 2)
        share = "" if work is None else f"{work / rate / took[best]:.0%}"
        vmap = f"{took['vmap'] * 1e3:.1f} ms" if "vmap" in took else "no (batch norm)"
        print(
            f"| {name} | {took[best] * 1e3:.2f} ms | {best} | {took['torch'] * 1e3:.1f} ms | {vmap} | {took['loop'] * 1e3:.1f} ms "
            f"| {took['loop'] / took[best]:.1f}x | {1 / took[best]:.1f} | {share} |",
            flush=True,
        )


def processes(models: int = 4) -> None:
    """One process per model through the classic worker, against ours, digits MLP."""
    data = load("digits")
    design = Design(n_train=len(data.train), alpha=0.5, n_models=200)
    rows = [Streams.of(design, k, design.mask(k)) for k in range(200)]
    train_models(replace(DIGITS, steps=1), data.train.x, data.train.y, rows[:1], n_classes=2)
    ours = timed(lambda: train_models(DIGITS, data.train.x, data.train.y, rows, n_classes=2)) / 200
    here = Path(__file__).parent
    environment = {**os.environ, "PYTHONPATH": str(here), "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
    with tempfile.TemporaryDirectory() as folder:
        spec = {"num_models": models, "schema": {
            "masks": {"shape": [len(data.train)], "dtype": "bool"},
            "margins": {"shape": [len(data.test)], "dtype": "float32"},
        }}  # fmt: skip
        from datamodels.spec import Spec
        from datamodels.store import Store

        store = Store.create(Path(folder) / "store", spec=Spec.model_validate(spec))
        command = [sys.executable, "-m", "datamodels.training.worker", "--worker.main_import=torch_models",
                   f"--worker.logdir={store.path}"]  # fmt: skip
        took = [
            timed(lambda k=k: subprocess.run([*command, f"--worker.index={k}"], check=True, env=environment))
            for k in range(models)
        ]
        assert Store.open(store.path).completed().all()
    each = statistics.median(took)
    print(f"one process per model {each:.2f} s, ours {ours * 1e3:.2f} ms: {each / ours:.0f}x")


def accuracy(models: int = 200) -> None:
    """Mean test accuracy of a recipe, ours against the loop, each with random streams of its own on the same subsets."""
    data = load("digits")
    design = Design(n_train=len(data.train), alpha=0.5, n_models=models)
    rows = [Streams.of(design, k, design.mask(k)) for k in range(models)]
    logits = train_models(DIGITS, data.train.x, data.train.y, rows, n_classes=2).logits(data.test.x)
    ours = (logits.argmax(-1) == data.test.y).mean(axis=1)
    x, y, test = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y), torch.from_numpy(data.test.x)
    torch.manual_seed(0)
    theirs = []
    for mask in torch.from_numpy(design.masks()):
        net = loop(DIGITS, x, y, mask, 2)
        with torch.no_grad():
            theirs.append(float((net(test).argmax(-1).numpy() == data.test.y).mean()))
    error = np.hypot(ours.std() / models**0.5, np.std(theirs) / models**0.5)
    print(
        f"accuracy over {models} models: ours {ours.mean():.4f}, loop {np.mean(theirs):.4f}, difference "
        f"{100 * (ours.mean() - np.mean(theirs)):+.2f} points (standard error {100 * error:.2f})"
    )


def main() -> None:
    parts = {"engines": engines, "processes": processes, "accuracy": accuracy}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=parts)
    parser.add_argument("--repeats", type=int, default=5)
    options = parser.parse_args()
    torch.set_num_threads(1)
    numba.set_num_threads(1)
    with threadpool_limits(1):
        for name, part in parts.items():
            if options.part in (None, name):
                part(options.repeats) if part is engines else part()


if __name__ == "__main__":
    main()
