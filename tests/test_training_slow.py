"""Stacked training gives models of the same distribution as a plain loop of PyTorch with random streams of its own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import pytest
import scipy.stats
import torch
from numpy.typing import NDArray
from torch import nn

from datamodels import datasets
from datamodels.design import Design
from datamodels.training.ensemble import Engine, TrainRecipe
from datamodels.training.outputs import margins
from datamodels.training.recipes import Recipe

pytestmark = pytest.mark.slow

# The smallest p-value of a family of tests, times their number. The three tests of a comparison
# together fail a correct program less than once in 30,000 times.
RARE = 1e-5
MLP = Recipe(hidden=(32,), epochs=6, label_smoothing=0.05)
CNN = Recipe(architecture="cnn", channels=(4, 8), lr=0.05, epochs=14, schedule="triangular", translate=1)


class Sample(NamedTuple):
    """Margins (models, test examples) of independent models."""

    margins: NDArray[np.float64]

    @property
    def accuracies(self) -> NDArray[np.float64]:
        """In points, (models,)."""
        return 100 * (self.margins > 0).mean(axis=1)


class Comparison(NamedTuple):
    """p-values, corrected for their number, and the difference of mean accuracies with its standard error, in points."""

    means: float
    distributions: float
    accuracy: float
    error: float

    @property
    def same(self) -> bool:
        return min(self.means, self.distributions) > RARE and abs(self.accuracy) < 4.5 * self.error


def compare(a: Sample, b: Sample) -> Comparison:
    """Mean margin of every test example (Welch), the distribution of it over models for every tenth (Kolmogorov and
    Smirnov), and accuracies."""
    means = scipy.stats.ttest_ind(a.margins, b.margins, equal_var=False).pvalue
    shapes = [scipy.stats.ks_2samp(x, y).pvalue for x, y in zip(a.margins.T[::10], b.margins.T[::10], strict=True)]
    error = np.sqrt(sum(s.accuracies.var(ddof=1) / len(s.accuracies) for s in (a, b)))
    difference = a.accuracies.mean() - b.accuracies.mean()
    found = Comparison(len(means) * means.min(), len(shapes) * min(shapes), difference, error)
    print(f"accuracy {a.accuracies.mean():.3f} and {b.accuracies.mean():.3f} points, {found}")
    return found


def stacked(recipe: Recipe, dataset: str, n_models: int, engine: Engine, seed: int) -> Sample:
    task = TrainRecipe(recipe, dataset, engine=engine, stack=20)
    design = Design(n_train=task.n_train, alpha=0.5, n_models=n_models, seed=seed)
    rows = np.arange(n_models)
    return Sample(task(rows, np.stack([design.mask(i) for i in range(n_models)]), design)["margins"])


def he_normal(module: nn.Module, gain: float) -> None:
    assert isinstance(module.weight, nn.Parameter)
    assert isinstance(module.bias, nn.Parameter)
    nn.init.normal_(module.weight, std=(gain / module.weight[0].numel()) ** 0.5)
    nn.init.zeros_(module.bias)


def mlp() -> nn.Module:
    made = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 2))
    he_normal(made[0], 2)
    he_normal(made[2], 1)
    return made


def cnn() -> nn.Module:
    made = nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
        nn.Conv2d(4, 8, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Flatten(), nn.Linear(32, 2),
    )  # fmt: skip
    for at, gain in ((0, 2), (3, 2), (7, 1)):
        he_normal(made[at], gain)
    return made


def moved(x: torch.Tensor) -> torch.Tensor:
    """Each picture shifted by up to a pixel."""
    framed = nn.functional.pad(x, (1, 1, 1, 1))
    height, width = x.shape[2:]
    at = torch.randint(0, 3, (len(x), 2)).tolist()
    return torch.stack([one[:, h : h + height, w : w + width] for one, (h, w) in zip(framed, at, strict=True)])


def one_by_one(recipe: Recipe, dataset: str, n_models: int, seed: int) -> Sample:
    """One model after the other. Nothing but the values of the recipe is shared with the package."""
    data = datasets.load(dataset)
    x, y, x_test = map(torch.from_numpy, (data.train.x, data.train.y, data.test.x))
    design = Design(n_train=len(x), alpha=0.5, n_models=n_models, seed=seed)
    torch.manual_seed(seed)
    loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    out = []
    for i in range(n_models):
        members = torch.from_numpy(np.flatnonzero(design.mask(i)))
        model = cnn() if recipe.architecture == "cnn" else mlp()
        optimiser = torch.optim.SGD(model.parameters(), recipe.lr, momentum=0.9, weight_decay=recipe.weight_decay)
        total, step = recipe.epochs * -(-len(members) // recipe.batch_size), 0
        for _ in range(recipe.epochs):
            for batch in members[torch.randperm(len(members))].split(recipe.batch_size):
                if recipe.schedule == "linear":
                    rate = 1 - step / total
                else:
                    middle = (step + 0.5) / total
                    rate = min(middle / 0.25, (1 - middle) / 0.75)
                optimiser.param_groups[0]["lr"] = recipe.lr * rate
                optimiser.zero_grad()
                loss(model(moved(x[batch]) if recipe.augments else x[batch]), y[batch]).backward()
                optimiser.step()
                step += 1
        with torch.no_grad():
            out.append(model(x_test).numpy())
    return Sample(margins(np.stack(out), data.test.y))


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def mlps() -> Sample:
    return one_by_one(MLP, "digits", 200, seed=101)


@pytest.fixture(scope="module")
def cnns() -> Sample:
    return one_by_one(CNN, "digits:pictures", 100, seed=102)


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_perceptrons_are_distributed_as_from_a_plain_loop(mlps: Sample, engine: Engine) -> None:
    found = stacked(MLP, "digits", 200, engine, seed=7)
    assert mlps.accuracies.mean() > 85
    comparison = compare(found, mlps)
    assert comparison.same
    assert comparison.error < 0.15  # 200 models can tell 0.7 points


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_convolutional_networks_are_distributed_as_from_a_plain_loop(cnns: Sample, engine: Engine) -> None:
    found = stacked(CNN, "digits:pictures", 100, engine, seed=8)
    assert cnns.accuracies.mean() > 75
    assert compare(found, cnns).same


@pytest.mark.parametrize("values", [{"translate": 0}, {"momentum": 0.8}])
def test_convolutional_networks_of_another_recipe_are_told_apart(cnns: Sample, values: dict[str, object]) -> None:
    found = stacked(CNN.with_parameters(values), "digits:pictures", 100, "compiled", seed=8)
    assert not compare(found, cnns).same


@pytest.mark.parametrize(
    "values", [{"epochs": 5}, {"label_smoothing": 0.0}, {"schedule": "constant"}, {"weight_decay": 0.005}]
)
def test_models_of_another_recipe_are_told_apart(mlps: Sample, values: dict[str, object]) -> None:
    """The comparison has the power to see a small mistake in training."""
    assert not compare(stacked(MLP.with_parameters(values), "digits", 200, "compiled", seed=7), mlps).same


def test_two_samples_of_the_plain_loop_are_the_same(mlps: Sample) -> None:
    assert compare(one_by_one(MLP, "digits", 200, seed=103), mlps).same
