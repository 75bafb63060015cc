"""What the tests of training train: a small problem, rows, recipes, and networks as users write them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn

from datamodels.training.ensemble import Engine, train_models
from datamodels.training.recipes import Recipe
from datamodels.training.streams import Streams

N = 90
CLOSE = 1e-4
UNEVEN = (45, 17, 64, 33, 5, 49)
CNN = Recipe(architecture="cnn", channels=(3, 4), lr=0.05, epochs=1, batch_size=16)
RESNET = Recipe(architecture="resnet9", channels=(2, 3, 3, 4), lr=0.02, epochs=1, batch_size=16)
MLP = Recipe(hidden=(11,), epochs=1, batch_size=16)


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


def problem(
    shape: tuple[int, ...] = (2, 8, 8), classes: int = 2, n: int = N
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """x (n, *shape) in [0, 1], and labels that are learnable."""
    rng = np.random.default_rng(classes)
    x = rng.random((n, *shape), dtype=np.float32)
    return x, (x.reshape(n, -1) @ rng.normal(size=(x[0].size, classes))).argmax(1)


def row(i: int, size: int = 45, n: int = N) -> Streams:
    """Row i with its first state, whenever it is called."""
    return Streams.seeded(np.random.default_rng(i).permutation(n) < size, 0, i)


def logits_of(
    recipe: Recipe,
    data: tuple[NDArray[np.float32], NDArray[np.int64]],
    rows: Sequence[Streams],
    engine: Engine = "torch",
    stack: int | None = 16,
    classes: int = 2,
    stop: int | None = None,
) -> NDArray[np.float32]:
    models = train_models(recipe, *data, rows, n_classes=classes, engine=engine, stack=stack, stop=stop)
    return models.logits(data[0])


def plain(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    size = int(np.prod(shape))
    return nn.Sequential(nn.Flatten(), nn.Linear(size, 6), nn.LayerNorm(6), nn.ReLU(), nn.Linear(6, classes))


def with_batch_norm(shape: tuple[int, ...], classes: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(shape[0], 3, 3), nn.BatchNorm2d(3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(12, classes),
    )  # fmt: skip


def without_running_moments(shape: tuple[int, ...], classes: int) -> nn.Module:
    made = with_batch_norm(shape, classes)
    made[1] = nn.BatchNorm2d(3, track_running_stats=False)
    return made


def with_dropout(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 8), nn.Dropout(0.4), nn.Linear(8, classes))


def with_random_slopes(shape: tuple[int, ...], classes: int) -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(int(np.prod(shape)), 8), nn.RReLU(), nn.Linear(8, classes))


def half_frozen(shape: tuple[int, ...], classes: int) -> nn.Module:
    made = plain(shape, classes)
    made[1].requires_grad_(False)
    return made


def all_frozen(shape: tuple[int, ...], classes: int) -> nn.Module:
    return plain(shape, classes).requires_grad_(False)


class Unused(nn.Module):
    def __init__(self, shape: tuple[int, ...], classes: int) -> None:
        super().__init__()
        self.used, self.unused = nn.Linear(int(np.prod(shape)), classes), nn.Linear(3, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.used(x.flatten(1))


def no_module(shape: tuple[int, ...], classes: int) -> str:
    return "a network"


FACTORIES = (
    plain, with_batch_norm, without_running_moments, with_dropout, with_random_slopes, half_frozen, Unused,
)  # fmt: skip
