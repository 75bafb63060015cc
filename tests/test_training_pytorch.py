"""Both engines against modules, losses and optimisers of plain PyTorch, whole runs and their first steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from datamodels.training import batched
from datamodels.training.batched import BatchedModels
from datamodels.training.chain import CONVOLUTION, Chain
from datamodels.training.ensemble import Engine
from datamodels.training.recipes import Recipe
from datamodels.training.stacks import stack_of
from datamodels.training.streams import Streams
from tests.networks import CLOSE, CNN, MLP, RESNET, logits_of, one_thread, problem, row

__all__ = ["one_thread"]  # fixtures


# -- the oracle ---------------------------------------------------------------------------------------


def chain_module(chain: Chain, parameters: NDArray[np.float32]) -> nn.Sequential:
    """The same model out of modules of PyTorch."""
    parts: list[nn.Module] = []
    for layer in chain.layers:
        weights = torch.from_numpy(parameters[layer.at : layer.at + layer.n_weights])
        made: Any
        if layer.kind == CONVOLUTION:
            made = nn.Conv2d(layer.n_in, layer.n_out, 3, padding=1)
            made.weight.data = weights.reshape(layer.n_out, layer.n_in, 3, 3).clone()
            parts += [made, nn.ReLU(), nn.MaxPool2d(2)]
        else:
            made = nn.Linear(layer.n_in, layer.n_out)
            made.weight.data = weights.reshape(layer.n_in, layer.n_out).T.clone()
            parts += [nn.Flatten(), made, *([] if layer is chain.layers[-1] else [nn.ReLU()])]
        begin = layer.at + layer.n_weights
        made.bias.data = torch.from_numpy(parameters[begin : begin + layer.n_out].copy())
    return nn.Sequential(*parts)


class Resnet9(nn.Module):
    """The built-in architecture out of modules of PyTorch, its weights drawn from a row's generator."""

    def __init__(self, widths: tuple[int, ...], channels: int, classes: int, draws: np.random.Generator) -> None:
        super().__init__()
        a, b, c, d = widths
        for name, n_in, n_out in (
            ("prepare", channels, a), ("first", a, b), ("first_a", b, b), ("first_b", b, b),
            ("second", b, c), ("third", c, d), ("third_a", d, d), ("third_b", d, d),
        ):  # fmt: skip
            convolution = nn.Conv2d(n_in, n_out, 3, padding=1, bias=False)
            drawn = draws.standard_normal((n_out, n_in, 3, 3), dtype=np.float32) * np.sqrt(2 / (9 * n_in))
            convolution.weight.data = torch.from_numpy(drawn.astype(np.float32))
            self.add_module(name, nn.Sequential(convolution, nn.BatchNorm2d(n_out), nn.ReLU()))
        self.last = nn.Linear(d, classes, bias=False)
        drawn = draws.standard_normal((d, classes), dtype=np.float32) / np.sqrt(d)
        self.last.weight.data = torch.from_numpy(drawn.astype(np.float32)).T.clone()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        m: dict[str, Any] = dict(self.named_children())
        x = F.max_pool2d(m["first"](m["prepare"](x)), 2)
        x = x + m["first_b"](m["first_a"](x))
        x = F.max_pool2d(m["third"](F.max_pool2d(m["second"](x), 2)), 2)
        x = x + m["third_b"](m["third_a"](x))
        return 0.125 * self.last(x.amax((2, 3)))


def oracle(
    recipe: Recipe,
    data: tuple[NDArray[np.float32], NDArray[np.int64]],
    streams: Streams,
    classes: int,
    stop: int | None = None,
) -> NDArray[np.float32]:
    """Logits (k, classes) of one model, trained as PyTorch's own tutorials do; by its first `stop` steps."""
    x, y = map(torch.from_numpy, data)
    module: nn.Module
    if recipe.architecture == "resnet9":
        module = Resnet9(recipe.widths, x.shape[1], classes, streams.init)
    else:
        chain = Chain.of(recipe, tuple(x.shape[1:]), classes)
        module = chain_module(chain, chain.first(streams.init))
    shared: dict[str, Any] = {"lr": recipe.lr, "weight_decay": recipe.weight_decay}
    optimiser: torch.optim.Optimizer
    if recipe.optimizer == "adamw":
        optimiser = torch.optim.AdamW(module.parameters(), betas=recipe.betas, eps=recipe.eps, **shared)
    else:
        optimiser = torch.optim.SGD(
            module.parameters(), momentum=recipe.momentum, nesterov=recipe.nesterov, **shared
        )  # fmt: skip
    loss = nn.CrossEntropyLoss(label_smoothing=recipe.label_smoothing)
    total = recipe.total_steps(len(streams.members))
    rates = iter(recipe.rates(total)[:stop])
    for _ in range(recipe.epochs):
        batches = list(torch.from_numpy(streams.epoch()).split(recipe.batch_size))
        if recipe.drop_last and len(batches) > 1 and len(batches[-1]) < recipe.batch_size:
            batches.pop()
        for batch in batches:
            rate = next(rates, None)
            if rate is None:
                assert stop is not None
                break
            optimiser.param_groups[0]["lr"] = float(rate)
            optimiser.zero_grad()
            loss(module(x[batch]), y[batch]).backward()
            optimiser.step()
    assert next(rates, None) is None
    module.eval()
    with torch.no_grad():
        return module(x).numpy()


CASES: dict[str, tuple[Recipe, tuple[int, ...], int]] = {
    "linear": (replace(MLP, architecture="linear"), (7,), 2),
    "linear, 5 classes": (replace(MLP, architecture="linear", label_smoothing=0.2), (7,), 5),
    "mlp": (MLP, (7,), 2),
    "mlp without a hidden layer": (replace(MLP, hidden=()), (7,), 3),
    "mlp of pictures, 2 layers": (replace(MLP, hidden=(9, 6)), (2, 5, 4), 5),
    "nesterov": (replace(MLP, nesterov=True, momentum=0.8, epochs=2), (7,), 2),
    "no momentum": (replace(MLP, momentum=0, schedule="constant"), (7,), 2),
    "label smoothing": (replace(MLP, label_smoothing=0.3), (7,), 5),
    "weight decay": (replace(MLP, weight_decay=0.1, epochs=2, schedule="triangular"), (7,), 2),
    "adamw": (replace(MLP, optimizer="adamw", lr=0.01, weight_decay=0.1, epochs=2), (7,), 5),
    "adamw, other betas": (replace(MLP, optimizer="adamw", lr=0.01, betas=(0.8, 0.9), eps=1e-5), (7,), 2),
    "batches of one": (replace(MLP, batch_size=1, lr=0.01), (7,), 2),
    "batch larger than the subset": (replace(MLP, batch_size=200, epochs=3), (7,), 2),
    "batch of all": (replace(MLP, batch_size=45, epochs=3, schedule="step"), (7,), 2),
    "drop last": (replace(MLP, drop_last=True, epochs=3), (7,), 2),
    "drop last, batch larger than the subset": (replace(MLP, drop_last=True, batch_size=40, epochs=3), (7,), 2),
    "cnn": (CNN, (2, 8, 8), 2),
    "cnn of odd pictures": (replace(CNN, epochs=2, schedule="cosine"), (1, 9, 7), 5),
    "cnn with one layer": (replace(CNN, channels=(5,), nesterov=True), (3, 2, 3), 2),
    "cnn, adamw": (replace(CNN, optimizer="adamw", lr=0.005, label_smoothing=0.1), (3, 6, 7), 3),
}


# -- whole runs ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["compiled", "torch"])
@pytest.mark.parametrize("case", CASES)
def test_an_engine_trains_as_plain_pytorch_does(case: str, engine: Engine) -> None:
    recipe, shape, classes = CASES[case]
    data = problem(shape, classes)
    sizes = (45, 33)
    found = logits_of(recipe, data, [row(i, size) for i, size in enumerate(sizes)], engine, classes=classes)
    untrained = logits_of(replace(recipe, lr=1e-9), data, [row(0)], engine, classes=classes)
    assert abs(found[0] - untrained[0]).max() > 0.01
    for i, size in enumerate(sizes):
        np.testing.assert_allclose(found[i], oracle(recipe, data, row(i, size), classes), atol=CLOSE, rtol=0)


@pytest.mark.parametrize("shape", [(2, 8, 8), (1, 11, 9)])
def test_resnet9_trains_as_plain_pytorch_does(shape: tuple[int, ...]) -> None:
    """Judged in evaluation, so the running moments of batch norm count too."""
    data = problem(shape, 3)
    found = logits_of(RESNET, data, [row(i, size) for i, size in enumerate((45, 34, 64))], classes=3)
    for i, size in enumerate((45, 34, 64)):
        np.testing.assert_allclose(found[i], oracle(RESNET, data, row(i, size), 3), atol=CLOSE, rtol=0)


def test_first_weights_are_he_normal_with_zero_biases() -> None:
    chain = Chain.of(Recipe(architecture="cnn", channels=(24, 40)), (20, 8, 8), 50)
    module = chain_module(chain, chain.first(np.random.default_rng(0)))
    layers: list[Any] = [layer for layer in module if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer, expected in zip(layers, (2 / 180, 2 / 216, 1 / 160), strict=True):
        values = layer.weight.detach().numpy()
        assert values.var() == pytest.approx(expected, rel=0.1)
        assert abs(values.mean()) < 6 * np.sqrt(expected / values.size)
        assert not layer.bias.detach().numpy().any()


# -- the first steps of a run -------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["compiled", "torch"])
@pytest.mark.parametrize("case", ["mlp", "weight decay", "drop last", "batches of one", "cnn, adamw"])
@pytest.mark.parametrize("stop", [1, 3, 5])
def test_a_run_that_stops_is_the_beginning_of_the_whole_run(case: str, stop: int, engine: Engine) -> None:
    recipe, shape, classes = CASES[case]
    recipe, data, sizes = replace(recipe, epochs=2), problem(shape, classes), (45, 33, 17)
    rows = [row(i, size) for i, size in enumerate(sizes)]
    found = logits_of(recipe, data, rows, engine, classes=classes, stop=stop)
    for i, size in enumerate(sizes):
        expected = oracle(recipe, data, row(i, size), classes, stop)
        np.testing.assert_allclose(found[i], expected, atol=CLOSE, rtol=0)


@pytest.mark.parametrize("engine", ["compiled", "torch"])
@pytest.mark.parametrize(
    "recipe", [MLP, replace(CNN, flip=True, translate=1), replace(MLP, optimizer="adamw", lr=0.01)]
)
def test_a_beginning_is_the_same_to_the_bit(recipe: Recipe, engine: Engine) -> None:
    """At a constant rate the first k steps are a run of k steps; all steps, or more, are the whole run."""
    recipe, data = replace(recipe, epochs=3, schedule="constant"), problem()

    def logits(recipe: Recipe, stop: int | None = None) -> NDArray[np.float32]:
        return logits_of(recipe, data, [row(0), row(1, 33)], engine, stop=stop)

    assert recipe.total_steps(45) == recipe.total_steps(33) == 9
    for stop in (1, 4, 6):
        np.testing.assert_array_equal(logits(recipe, stop), logits(replace(recipe, steps=stop)))
    whole = logits(replace(recipe, schedule="linear"))
    assert not np.array_equal(logits(replace(recipe, schedule="linear"), 8), whole)
    for stop in (9, 10):
        np.testing.assert_array_equal(logits(replace(recipe, schedule="linear"), stop), whole)


@pytest.mark.parametrize("architecture", ["mlp", "resnet9", "with_dropout"])
def test_beginnings_in_stacked_tensors_lie_on_the_run(architecture: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Parameters after every step of the whole run, to the bit, with rows of unequal sizes."""
    named = {"with_dropout": "tests.networks:with_dropout"}.get(architecture, architecture)
    recipe, data = replace(RESNET, architecture=named, epochs=2), problem()
    shape, sizes = data[0].shape[1:], (45, 17) if architecture != "with_dropout" else (45,)

    def states(stop: int | None) -> dict[str, torch.Tensor]:
        rows = [row(i, size) for i, size in enumerate(sizes)]
        models = BatchedModels.train(recipe, stack_of(recipe, shape, 2), *data, rows, n_classes=2, size=2, stop=stop)
        return models.parts[0][0]

    along: list[dict[str, torch.Tensor]] = []
    step = batched._Optimiser.step

    def recorded(self: Any, gradients: Sequence[torch.Tensor], rates: torch.Tensor) -> None:
        step(self, gradients, rates)
        along.append({name: value.detach().clone() for name, value in self._parameters.items()})

    with monkeypatch.context() as patch:
        patch.setattr(batched._Optimiser, "step", recorded)
        states(None)
    assert len(along) == recipe.total_steps(45) == 6
    for stop, expected in enumerate(along, 1):
        for name, value in states(stop).items():
            assert torch.equal(value, expected[name])
