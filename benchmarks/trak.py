"""TRAK against `traker` (CPU projector) and `dattri`: examples per second, peak memory, LDS at equal checkpoints, and LDS by ridge.

``python benchmarks/trak.py`` prints the tables of RESULTS.md; ``--part`` runs one of them, ``--threads`` sets torch's
threads. Every measurement of speed is a process of its own, so that its peak memory is its own; the first batch is not
timed. Packages that are not installed are named and left out.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import io
import json
import logging
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy.stats import spearmanr
from torch import nn

from datamodels.datasets import Dataset, from_arrays, load
from datamodels.design import Design
from datamodels.evaluation.counterfactual import counterfactual
from datamodels.evaluation.lds import lds as measure_lds
from datamodels.regression.calibration import calibrate, removal
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe
from datamodels.trak import TRAK, score_split, train_checkpoints, trak_of, trak_of_recipe
from torch_models import loop, module

# The folder of this file would hide the module of traker, which has the name of this file.
sys.path[:] = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent]

DIM = 2048
DIGITS = Recipe(hidden=(32,), epochs=15, batch_size=32, weight_decay=5e-3)


class Basic(nn.Module):
    """A block of ResNet-18."""

    def __init__(self, n_in: int, n_out: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(n_in, n_out, 3, stride, 1, bias=False), nn.BatchNorm2d(n_out)
        self.conv2, self.bn2 = nn.Conv2d(n_out, n_out, 3, 1, 1, bias=False), nn.BatchNorm2d(n_out)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1:
            self.shortcut = nn.Sequential(nn.Conv2d(n_in, n_out, 1, stride, bias=False), nn.BatchNorm2d(n_out))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.bn2(self.conv2(self.bn1(self.conv1(x)).relu()))
        return (y + self.shortcut(x)).relu()


def resnet18(*stem: nn.Module) -> nn.Module:
    blocks = [
        Basic(n_in, n_out, stride)
        for n_in, n_out, first in ((64, 64, 1), (64, 128, 2), (128, 256, 2), (256, 512, 2))
        for n_in, stride in ((n_in, first), (n_out, 1))
    ]
    return nn.Sequential(
        *stem, nn.BatchNorm2d(64), nn.ReLU(), *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 1000)
    )


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads, self.mixed, self.out = heads, nn.Linear(width, 3 * width), nn.Linear(width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        q, k, v = self.mixed(x).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        weights = (q @ k.transpose(2, 3) / q.shape[-1] ** 0.5).softmax(3)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class Transformer(nn.Module):
    """Two layers of width 128 over 32 tokens."""

    def __init__(self, width: int = 128, length: int = 32) -> None:
        super().__init__()
        self.tokens, self.positions = nn.Embedding(1000, width), nn.Embedding(length, width)
        self.attention = nn.ModuleList(Attention(width, 4) for _ in range(2))
        self.inner = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.GELU(), nn.Linear(4 * width, width))
            for _ in range(2)
        )
        self.head = nn.Linear(width, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.tokens(x) + self.positions(torch.arange(x.shape[1], device=x.device)[None])
        for attention, inner in zip(self.attention, self.inner, strict=True):
            y = y + attention(y)
            y = y + inner(y)
        return self.head(y.mean(dim=1))


def cnn() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(32, 64, 3, padding=1), nn.ReLU(),
        nn.MaxPool2d(2), nn.Flatten(), nn.Linear(3136, 128), nn.ReLU(), nn.Linear(128, 10),
    )  # fmt: skip


def pictures(*shape: int) -> Callable[[int], torch.Tensor]:
    return lambda n: torch.randn(n, *shape)


CASES: dict[str, tuple[Callable[[], nn.Module], Callable[[int], torch.Tensor]]] = {
    # name: model, inputs of n examples
    "CNN, 28 x 28": (cnn, pictures(1, 28, 28)),
    "ResNet-9, 32 x 32": (
        lambda: module(Recipe(architecture="resnet9", channels=(64, 128, 256, 256)), (3, 32, 32), 10),
        pictures(3, 32, 32),
    ),
    "ResNet-18, 32 x 32": (
        lambda: resnet18(nn.Conv2d(3, 64, 7, 2, 3, bias=False), nn.MaxPool2d(3, 2, 1)), pictures(3, 32, 32),
    ),
    "ResNet-18 without stride in the stem, 32 x 32": (
        lambda: resnet18(nn.Conv2d(3, 64, 3, 1, 1, bias=False)), pictures(3, 32, 32),
    ),
    "transformer, 32 tokens": (Transformer, lambda n: torch.randint(0, 1000, (n, 32))),
}  # fmt: skip

Batches = list[tuple[torch.Tensor, torch.Tensor]]
State = dict[str, torch.Tensor]


class Clock:
    """Seconds of wall clock, and of all threads of this process, since it was made."""

    def __init__(self) -> None:
        self._wall, self._cpu = time.perf_counter(), time.process_time()

    def read(self) -> tuple[float, float]:
        return time.perf_counter() - self._wall, time.process_time() - self._cpu


def time_ours(model: nn.Module, batches: Batches) -> tuple[float, float]:
    state = model.state_dict()
    trak = TRAK(model, dim=DIM)
    trak.featurize(batches[:1], [state])
    with tempfile.TemporaryDirectory() as folder:
        trak.out = Path(folder)
        clock = Clock()
        trak.featurize(batches[1:], [state])
        return clock.read()


def traker_of(model: nn.Module, n: int, folder: str, **options: Any) -> Any:
    from trak.projectors import BasicProjector, ProjectionType

    from trak import TRAKer

    size = sum(p.numel() for p in model.parameters())
    projector = BasicProjector(size, DIM, 0, ProjectionType.rademacher, torch.device("cpu"))
    return TRAKer(
        model.eval(), "image_classification", n, save_dir=folder, device="cpu", projector=projector, proj_dim=DIM,
        use_half_precision=False, logging_level=logging.ERROR, **options,
    )  # fmt: skip


def traker(model: nn.Module, states: list[State], train: Batches, targets: Batches, added: list[float]) -> np.ndarray:
    n, t = (sum(len(y) for _, y in one) for one in (train, targets))
    with tempfile.TemporaryDirectory() as folder:
        # One ridge serves all checkpoints: the mean of ours. Features there are √dim times as long, over √parameters.
        scale = DIM / sum(p.numel() for p in model.parameters())
        one = traker_of(model, n, folder, lambda_reg=scale * float(np.mean(added)))
        for c, state in enumerate(states):
            one.load_checkpoint(state, model_id=c)
            for batch in train:
                one.featurize(batch=batch, num_samples=len(batch[1]))
        one.finalize_features()
        for c, state in enumerate(states):
            one.start_scoring_checkpoint("targets", state, model_id=c, num_targets=t)
            for batch in targets:
                one.score(batch=batch, num_samples=len(batch[1]))
        return np.array(one.finalize_scores("targets"))


def time_traker(model: nn.Module, batches: Batches) -> tuple[float, float]:
    n = sum(len(y) for _, y in batches)
    with tempfile.TemporaryDirectory() as folder:
        one = traker_of(model, n, folder)
        one.load_checkpoint(model.state_dict(), model_id=0)
        one.featurize(batch=batches[0], num_samples=len(batches[0][1]))
        clock = Clock()
        for batch in batches[1:]:
            one.featurize(batch=batch, num_samples=len(batch[1]))
        return clock.read()


def time_dattri(model: nn.Module, batches: Batches) -> tuple[float, float]:
    from dattri.algorithm.trak import TRAKAttributor
    from dattri.task import AttributionTask

    def loss(params: State, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        logits = torch.func.functional_call(model, params, pair[0][None])
        return nn.functional.cross_entropy(logits, pair[1][None])

    def margin(params: State, pair: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        p = torch.exp(-loss(params, pair))
        return torch.log(p / (1 - p))

    task = AttributionTask(loss_func=margin, model=model.eval(), checkpoints=model.state_dict())
    one = TRAKAttributor(
        task=task, correct_probability_func=lambda params, pair: torch.exp(-loss(params, pair)), device="cpu",
        projector_kwargs={"proj_dim": DIM, "device": "cpu", "proj_max_batch_size": len(batches[0][1])},
    )  # fmt: skip
    data = [(x, y) for xs, ys in batches[1:] for x, y in zip(xs, ys, strict=True)]
    clock = Clock()
    one.cache(torch.utils.data.DataLoader(data, batch_size=len(batches[0][1])))
    return clock.read()


WAYS = {"ours": (time_ours, ""), "traker": (time_traker, "trak"), "dattri": (time_dattri, "dattri")}


def measure(case: str, way: str, batch: int, count: int, threads: int) -> None:
    """One measurement, printed as JSON: seconds and CPU seconds per example, and peak memory in GiB."""
    torch.set_num_threads(threads)
    torch.manual_seed(0)
    make, draw = CASES[case]
    model = make().eval()
    batches = [(draw(batch), torch.randint(0, 10, (batch,))) for _ in range(1 + count)]
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        wall, cpu = WAYS[way][0](model, batches)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    size = sum(p.numel() for p in model.parameters())
    n = batch * count
    print(json.dumps({"seconds": wall / n, "cpu": cpu / n, "peak": peak, "parameters": size}))


def speed(batch: int, threads: int, only: list[str], cases: list[str]) -> None:
    print(f"projection {DIM}, batch {batch}, {threads} threads")
    print("| model | parameters | way | ms per example | CPU ms | against ours | peak GiB |")
    print("|---|---|---|---|---|---|---|")
    for case in cases or CASES:
        own = None
        for way, (_, needs) in WAYS.items():
            if only and way not in only:
                continue
            if needs and importlib.util.find_spec(needs) is None:
                print(f"| {case} | | {way} | not installed | | | |")
                continue
            count = 8 if way == "ours" else 1
            arguments = ["--measure", case, way, str(batch), str(count), str(threads)]
            done = subprocess.run([sys.executable, __file__, *arguments], capture_output=True, text=True)
            if done.returncode:
                print(f"| {case} | | {way} | failed: {done.stderr.strip().splitlines()[-1][:80]} | | | |")
                continue
            found = json.loads(done.stdout)
            own = own or found["seconds"]
            print(
                f"| {case} | {found['parameters'] / 1e6:.2f}M | {way} | {1e3 * found['seconds']:.3g} | {1e3 * found['cpu']:.3g} | "
                f"{found['seconds'] / own:.0f}x | {found['peak']:.2f} |", flush=True,
            )  # fmt: skip


def lds(n_checkpoints: int, n_models: int) -> None:
    """Digits, perceptrons 64-32-2: LDS on models of random halves, of ours and of traker at the same checkpoints."""
    recipe, data = DIGITS, load("digits")
    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    a, b = torch.from_numpy(data.test.x), torch.from_numpy(data.test.y)
    masks = Design(n_train=len(x), alpha=0.5, n_models=n_checkpoints + n_models).masks()
    nets = [loop(recipe, x, y, torch.from_numpy(mask), 2) for mask in masks]
    with torch.no_grad():
        logits = np.stack([net(a).numpy() for net in nets[n_checkpoints:]])
    truth = (logits[..., 1] - logits[..., 0]) * (2 * data.test.y - 1)
    # Copies: traker loads every checkpoint into its model, which is the first one.
    states = [{k: v.clone() for k, v in net.state_dict().items()} for net in nets[:n_checkpoints]]
    train, targets = ([(u[i : i + 64], v[i : i + 64]) for i in range(0, len(v), 64)] for u, v in ((x, y), (a, b)))
    found, added = {}, {}
    for name in ("sjlt", "rademacher", "none"):
        trak = TRAK(nets[0], projection=name, dim=DIM)
        trak.featurize(train, states)
        attribution = trak.score(targets)
        found[f"ours, {name}"] = attribution.weights
        added[name] = attribution.provenance["estimator"]["lambdas"]
    if importlib.util.find_spec("trak") is not None:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            found["traker"] = traker(nets[0], states, train, targets, added["rademacher"])
    held = masks[n_checkpoints:].astype(np.float32)
    scores = {
        name: np.array([spearmanr(held @ w[:, k], truth[:, k]).statistic for k in range(len(b))])
        for name, w in found.items()
    }
    print(f"digits, {n_checkpoints} checkpoints, LDS over {n_models} models and {len(b)} targets, dimension {DIM}")
    for name, one in scores.items():
        print(f"| {name} | {one.mean():.3f} |")
    if "traker" in scores:
        difference = scores["ours, sjlt"] - scores["traker"]
        rng = np.random.default_rng(0)
        means = [difference[rng.integers(0, len(b), len(b))].mean() for _ in range(2000)]
        low, high = np.quantile(means, [0.025, 0.975])
        print(f"ours minus traker {difference.mean():+.4f}, 95 % interval over targets [{low:+.4f}, {high:+.4f}]")


def by_ridge(n_checkpoints: int, n_models: int) -> None:
    """LDS of sparse JL over ridges, in mean squared gradients, on models of random subsets that ran twice each."""
    width = Recipe(hidden=(64,), lr=0.05, weight_decay=1e-3)
    settings = {
        "digits": ("digits", DIGITS, 0.5),
        "digits, a fifth of them": ("digits", DIGITS, 0.2),
        "600 digits, no weight decay": ("digits[600,200]", Recipe(hidden=(32,), epochs=30), 0.5),
        "MNIST, two classes": ("mnist_5k:large[2000,300]", width, 0.5),
        "MNIST, ten classes": ("mnist_5k[2000,300]", width, 0.5),
        "MNIST, two classes, linear": (
            "mnist_5k:large[2000,300]",
            Recipe(architecture="linear", lr=0.02, weight_decay=1e-2),
            0.5,
        ),
        "breast cancer": (tumours(), Recipe(hidden=(32,), epochs=30, lr=0.05, weight_decay=1e-3), 0.5),
    }
    ridges = (0.001, 0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 100.0)
    print(f"| LDS | dim | {' | '.join(f'{ridge:g}' for ridge in ridges)} |\n|---|---|{'---|' * len(ridges)}")
    for name, (dataset, recipe, alpha) in settings.items():
        with tempfile.TemporaryDirectory() as folder:
            task, out = TrainRecipe(recipe, dataset), Path(folder)
            design = Design(n_train=task.n_train, alpha=alpha, n_models=n_models, replicates=2, seed=1)
            store = Store.create(out / "store", schema=task.schema, design=design)
            train(store, task, executor="inline", progress=False)
            files = train_checkpoints(out / "nets", task, n_checkpoints, alpha=alpha, progress=False).files
            for dim in (512, DIM):
                trak = trak_of(task, out / str(dim), files, projection="sjlt", dim=dim, progress=False)
                cells = []
                for ridge in ridges:
                    trak.ridge = ridge
                    found = score_split(trak, task.data.test, progress=False)
                    cells.append(f"{measure_lds(found, store).lds:.3f}")
                print(f"| {name} | {dim} | {' | '.join(cells)} |", flush=True)


def coverage(n_checkpoints: int) -> None:
    """Share of removals whose measured change lies in the interval of 95 % that calibrated scores predict, the measured change in
    units of what was predicted, and their correlation."""
    task, n_calibrated = TrainRecipe(DIGITS, "digits[500,60]"), 60
    print("| removed from | runs | top 5 | top 20 | top 50 |\n|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder)
        run = trak_of_recipe(task, out / "trak", checkpoints=n_checkpoints, projection="sjlt", progress=False)
        design = Design(n_train=task.n_train, alpha=0.5, n_models=n_calibrated, replicates=2, seed=1)
        store = Store.create(out / "store", schema=task.schema, design=design)
        train(store, task, executor="inline", progress=False)
        calibrated = calibrate(run.attribution, store)
        half = Design(n_train=task.n_train, alpha=0.5, seed=2).mask(0)
        rng = np.random.default_rng(0)
        for name, base in (("a half", half), ("all", np.ones(task.n_train, dtype=bool))):
            for runs in (8, 32):
                cells = []
                for k in (5, 20, 50):
                    at = out / f"{name} {runs} {k}"
                    found = counterfactual(
                        task, calibrated, targets=range(60), k=k, replicates=runs, base=base, folder=at, executor="inline",
                        progress=False,
                    )  # fmt: skip
                    changes = found.of("attribution")
                    predicted, actual = np.array([(one.predicted, one.actual.value) for one in changes]).T
                    slope = predicted @ actual / (predicted @ predicted)
                    inside = np.mean([one.predicted_low < one.actual.value < one.predicted_high for one in changes])
                    cells.append(f"{inside:.0%}, x{slope:.1f}, r {np.corrcoef(predicted, actual)[0, 1]:.2f}")
                print(f"| {name} | {runs} | {' | '.join(cells)} |", flush=True)
            cells = []
            for k in (5, 20, 50):
                sets = [rng.choice(np.flatnonzero(base), k, replace=False) for _ in range(20)]
                masks = np.array([base, *(base & ~np.isin(np.arange(task.n_train), one) for one in sets)])
                design = Design.explicit(np.repeat(masks, 8, axis=0))
                store = Store.create(out / f"{name} random {k}", schema=task.schema, design=design)
                train(store, task, executor="inline", progress=False)
                means = np.asarray(store.array("margins"), dtype=np.float64).reshape(len(masks), 8, -1).mean(axis=1)
                intervals = [removal(calibrated, one, runs=8) for one in sets]
                inside = np.mean([
                    (one.low < change) & (change < one.high)
                    for one, change in zip(intervals, means[1:] - means[0], strict=True)
                ])  # fmt: skip
                cells.append(f"{inside:.0%}")
            print(f"| {name}, 20 random sets of each size | 8 | {' | '.join(cells)} |", flush=True)


def tumours() -> Dataset:
    from sklearn.datasets import load_breast_cancer

    x, y = load_breast_cancer(return_X_y=True)
    x, order = ((x - x.mean(axis=0)) / x.std(axis=0)).astype(np.float32), np.random.default_rng(0).permutation(len(x))
    return from_arrays("tumours", x[order[:400]], y[order[:400]], x[order[400:]], y[order[400:]])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=["speed", "lds", "ridge", "intervals"])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--ways", nargs="*", default=[], choices=list(WAYS))
    parser.add_argument("--cases", nargs="*", default=[], choices=list(CASES))
    parser.add_argument("--checkpoints", type=int, default=20)
    parser.add_argument("--models", type=int, default=200)
    parser.add_argument("--measure", nargs=5, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        case, way, batch, count, threads = given.measure
        measure(case, way, int(batch), int(count), int(threads))
        return
    if given.part in (None, "speed"):
        speed(given.batch, given.threads, given.ways, given.cases)
    if given.part in (None, "lds"):
        lds(given.checkpoints, given.models)
    if given.part in (None, "ridge"):
        by_ridge(given.checkpoints, 2 * given.models)
    if given.part in (None, "intervals"):
        coverage(given.checkpoints // 2)


if __name__ == "__main__":
    main()
