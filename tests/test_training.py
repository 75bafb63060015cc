"""Stacked training: both engines against plain PyTorch, against each other, and against each model alone."""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F

from datamodels import Ridge, datasets, fit
from datamodels.datasets import from_arrays
from datamodels.design import Design
from datamodels.errors import RequestError, SweepWarning
from datamodels.store import Store
from datamodels.sweep import Sweep
from datamodels.training import batched
from datamodels.training.batched import BatchedModels, _changed
from datamodels.training.campaign import train
from datamodels.training.chain import CONVOLUTION, Chain
from datamodels.training.compiled import _load
from datamodels.training.ensemble import Engine, TrainRecipe, train_models
from datamodels.training.outputs import margins
from datamodels.training.recipes import Recipe
from datamodels.training.stacks import _batch_norm, stack_of
from datamodels.training.streams import Streams

N = 90
CLOSE = 1e-4
UNEVEN = (45, 17, 64, 33, 5, 49)
CNN = Recipe(architecture="cnn", channels=(3, 4), lr=0.05, epochs=1, batch_size=16)
RESNET = Recipe(architecture="resnet9", channels=(2, 3, 3, 4), lr=0.02, epochs=1, batch_size=16)
MLP = Recipe(hidden=(11,), epochs=1, batch_size=16)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
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


# Recipes


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"architecture": "resnet"}, r"'resnet' is unknown; legal: linear, mlp, cnn, resnet9, or PKG.MODULE:FUNCTION"),
        ({"architecture": ":make"}, "is unknown"),
        ({"architecture": functools.partial(nn.Linear, 3)}, "has no name to be known by; give a function"),
        ({"architecture": "resnet9", "channels": (8, 8)}, r"resnet9 has four widths; channels is \(8, 8\)"),
        ({"architecture": "cnn", "channels": ()}, "at least one entry of channels; use linear or mlp"),
        ({"nesterov": True, "momentum": 0}, "nesterov goes with optimizer 'sgd' and a momentum above 0"),
        ({"nesterov": True, "optimizer": "adamw"}, "nesterov goes with"),
        ({"hidden": (8, 0)}, "greater than or equal to 1"),
        ({"lr": 0}, "greater than 0"),
        ({"lr": float("nan")}, "finite|greater"),
        ({"momentum": 1}, "less than 1"),
        ({"label_smoothing": 1}, "less than 1"),
        ({"peak": 1}, "less than 1"),
        ({"steps": 0}, "greater than or equal to 1"),
        ({"schedule": "exponential"}, "'constant', 'linear', 'triangular', 'cosine' or 'step'"),
        ({"precision": "float16"}, "'float32' or 'bfloat16'"),
        ({"learning_rate": 0.1}, "(?i)unexpected keyword"),
    ],
)
def test_a_wrong_recipe_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Recipe(**values)


@pytest.mark.parametrize("total", [1, 7, 400])
def test_schedules_follow_their_closed_forms(total: int) -> None:
    def rates(schedule: str, **values: Any) -> NDArray[np.float64]:
        found = Recipe().with_parameters({"schedule": schedule, "lr": 0.3, **values}).rates(total)
        assert found.shape == (total,)
        assert (found > 0).all()
        assert (found <= 0.3 * (1 + 1e-12)).all()
        return found

    steps = range(total)
    np.testing.assert_allclose(rates("constant"), 0.3)
    np.testing.assert_allclose(rates("linear"), [0.3 * (total - t) / total for t in steps])
    np.testing.assert_allclose(rates("cosine"), [0.15 * (1 + np.cos(np.pi * t / total)) for t in steps], atol=1e-12)
    drops = [(t >= 0.25 * total) + (t >= 0.5 * total) for t in steps]
    found = rates("step", gamma=0.2, milestones=(0.25, 0.5))
    np.testing.assert_allclose(found, [0.3 * 0.2**drop for drop in drops])


def test_the_triangular_schedule_peaks_where_it_is_told() -> None:
    rates = Recipe(schedule="triangular", lr=2.0, peak=0.2).rates(1000)
    assert int(rates.argmax()) in (199, 200)
    assert rates.max() == pytest.approx(2.0, rel=0.01)
    assert max(rates[0], rates[-1]) < 0.01
    np.testing.assert_allclose(np.diff(rates[:199]), 2.0 / 200)
    np.testing.assert_allclose(np.diff(rates[201:]), -2.0 / 800)


def test_steps_replace_epochs() -> None:
    recipe = Recipe(epochs=3, batch_size=20)
    assert [recipe.steps_per_epoch(size) for size in (1, 20, 21, 90)] == [1, 1, 2, 5]
    assert [recipe.total_steps(size) for size in (1, 20, 21, 90)] == [3, 3, 6, 15]
    assert [replace(recipe, drop_last=True).seen_per_epoch(size) for size in (1, 20, 39, 90)] == [1, 20, 20, 80]
    assert [replace(recipe, drop_last=True).total_steps(size) for size in (1, 20, 39, 90)] == [3, 3, 3, 12]
    assert replace(recipe, steps=7).total_steps(90) == 7
    data = problem()
    engines: tuple[Engine, ...] = ("compiled", "torch")
    for engine in engines:
        whole = logits_of(replace(MLP, epochs=2, schedule="constant"), data, [row(0, 40)], engine)
        counted = logits_of(replace(MLP, steps=6, schedule="constant"), data, [row(0, 40)], engine)
        np.testing.assert_array_equal(whole, counted)


def test_a_recipe_with_other_values() -> None:
    recipe = Recipe()
    assert recipe.with_parameters({}) == recipe
    assert recipe.with_parameters({"lr": 0.5, "hidden": [8, 8]}) == Recipe(lr=0.5, hidden=(8, 8))
    assert recipe == Recipe()
    with pytest.raises(RequestError, match=r"a recipe has no 'rate'; legal: architecture, hidden, "):
        recipe.with_parameters({"rate": 1})
    with pytest.raises(RequestError, match=r"the recipe cannot take \{'lr': -1\}"):
        recipe.with_parameters({"lr": -1})


def test_a_recipe_goes_through_json_and_is_known_by_its_values() -> None:
    recipe = Recipe(architecture="cnn", channels=(4, 8), steps=5)
    assert Recipe(**recipe.to_dict()) == recipe
    assert Recipe(**recipe.to_dict()).identity == recipe.identity
    assert len({r.identity for r in (recipe, Recipe(), Recipe(lr=0.2), Recipe(flip=True), Recipe(hidden=(65,)))}) == 5
    assert Recipe(architecture=plain).to_dict()["architecture"] == "tests.test_training:plain"
    assert Recipe(architecture=plain).identity == Recipe(architecture="tests.test_training:plain").identity


def test_default_widths() -> None:
    assert Recipe(architecture="cnn").widths == (16, 32)
    assert Recipe(architecture="resnet9").widths == (64, 128, 256, 512)
    assert CNN.widths == (3, 4)


# YAML


def test_a_task_is_read_from_yaml(tmp_path: Path) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(
        "dataset: digits[100,20]\nrecipe: {architecture: mlp, hidden: [8], lr: 5e-2}\noutputs: [margins, correct]\n"
        "splits: train\ndtype: float16\nstack: 4\nblock_size: 10\n"
    )
    task = TrainRecipe.read(file)
    assert task == TrainRecipe(
        Recipe(hidden=(8,), lr=0.05), "digits[100,20]", outputs=("margins", "correct"), splits=("train",), dtype="float16",
        stack=4, block_size=10,
    )  # fmt: skip
    import yaml

    file.write_text(yaml.safe_dump(task.to_dict()))
    assert TrainRecipe.read(file) == task
    assert TrainRecipe.read(file).fingerprint == task.fingerprint
    assert {**task.schema["train_margins"]} == {"shape": (100,), "dtype": "float16", "of": "train"}
    assert task.schema["train_correct"]["dtype"] == "bool"


GIVEN = "dataset: digits\nrecipe: {}\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("dataset: digits\n", "has no 'recipe'; legal: recipe, dataset, outputs, .* of which recipe and dataset are"),
        ("recipe: {}\n", "has no 'dataset'"),
        (GIVEN + "ouputs: [margins]\n", "has 'ouputs'; legal: recipe, dataset, outputs"),
        ("- a\n- b\n", "holds list; it must be a mapping"),
        ("", "holds NoneType"),
        ("a: [\n", "is not YAML"),
        ("dataset: digits\nrecipe: mlp\n", "recipe in .* must be a mapping, like {architecture: mlp"),
        ("dataset: digits\nrecipe: {rate: 1}\n", "a recipe has no 'rate'"),
        ("dataset: digits\nrecipe: {lr: fast}\n", "the recipe cannot take {'lr': 'fast'}"),
        ("dataset: 5\nrecipe: {}\n", "dataset is 5; give a Dataset, or its name"),
        (GIVEN + "outputs: margin\n", r"outputs are \('margin',\); give a list of names"),
        (GIVEN + "outputs:\n", r"outputs are \('None',\)"),
        (GIVEN + "splits: [validation]\n", r"splits are \('validation',\); legal: test, train, or both"),
        (GIVEN + "splits: []\n", r"splits are \(\)"),
        (GIVEN + "dtype: int8\n", "dtype is 'int8'; legal: float16, float32, float64"),
        (GIVEN + "engine: fast\n", "engine is 'fast'; legal: auto, compiled, torch"),
        (GIVEN + "stack: 0\n", "stack is 0; give 1 or more"),
        (GIVEN + "block_size: many\n", "block_size is 'many'; give 1 or more"),
    ],
)
def test_a_wrong_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(text)
    with pytest.raises(RequestError, match=message):
        TrainRecipe.read(file)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read '.*none.yaml': No such file"):
        TrainRecipe.read(tmp_path / "none.yaml")


# Both engines against modules, losses and optimisers of PyTorch


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


# The first steps of a run


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
    named = {"with_dropout": f"{__name__}:with_dropout"}.get(architecture, architecture)
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


def test_first_weights_are_he_normal_with_zero_biases() -> None:
    chain = Chain.of(Recipe(architecture="cnn", channels=(24, 40)), (20, 8, 8), 50)
    module = chain_module(chain, chain.first(np.random.default_rng(0)))
    layers: list[Any] = [layer for layer in module if isinstance(layer, (nn.Conv2d, nn.Linear))]
    for layer, expected in zip(layers, (2 / 180, 2 / 216, 1 / 160), strict=True):
        values = layer.weight.detach().numpy()
        assert values.var() == pytest.approx(expected, rel=0.1)
        assert abs(values.mean()) < 6 * np.sqrt(expected / values.size)
        assert not layer.bias.detach().numpy().any()


# One model, many models


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


@pytest.mark.parametrize(
    "recipe",
    [
        MLP,
        CNN,
        RESNET,
        replace(MLP, optimizer="adamw", lr=0.01),
        replace(CNN, flip=True, translate=1, cutout=3, label_smoothing=0.1, flip_average=True, standardise=True),
        replace(CNN, flip=True, drop_last=True, epochs=2),
        replace(RESNET, flip=True, translate=1, optimizer="adamw", lr=0.002),
        *(Recipe(architecture=factory, lr=0.05, epochs=2, batch_size=16) for factory in FACTORIES),
    ],
    ids=lambda recipe: f"{getattr(recipe.architecture, '__name__', recipe.architecture)}-{recipe.optimizer}",
)
def test_a_stack_with_subsets_of_unequal_sizes_equals_each_row_alone(recipe: Recipe) -> None:
    data = problem()
    sizes = [UNEVEN[i % len(UNEVEN)] for i in range(16)]
    together = logits_of(recipe, data, [row(i, size) for i, size in enumerate(sizes)])
    assert np.isfinite(together).all()
    for i in range(6):
        alone = logits_of(recipe, data, [row(i, sizes[i])], stack=1)
        np.testing.assert_allclose(together[i], alone[0], atol=CLOSE, rtol=0)
    assert abs(together[0] - together[6]).max() > 10 * CLOSE  # of the same size, but not the same model


@pytest.mark.parametrize("recipe", [RESNET, CNN, MLP], ids=lambda recipe: recipe.architecture)
def test_no_model_sees_another(recipe: Recipe) -> None:
    data = problem()
    before = logits_of(recipe, data, [row(i) for i in range(4)])
    others = [row(0), row(1, 71), row(2), row(3)]
    after = logits_of(recipe, data, others)
    np.testing.assert_array_equal(abs(before - after).max(axis=(1, 2)) > CLOSE, [False, True, False, False])


@pytest.mark.parametrize(
    "recipe",
    [
        replace(MLP, hidden=(13, 7), epochs=3),
        replace(CNN, epochs=2, flip=True, translate=1),
        replace(MLP, optimizer="adamw", lr=0.01),
    ],
    ids=["mlp", "cnn", "adamw"],
)
def test_the_compiled_engine_is_the_same_to_the_bit_in_any_block(recipe: Recipe) -> None:
    data = problem()
    sizes = (*UNEVEN, 1, N)
    together = logits_of(recipe, data, [row(i, size) for i, size in enumerate(sizes)], "compiled")
    backwards = logits_of(recipe, data, [row(i, sizes[i]) for i in reversed(range(len(sizes)))], "compiled")
    np.testing.assert_array_equal(together, backwards[::-1])
    for i, size in enumerate(sizes):
        np.testing.assert_array_equal(together[i], logits_of(recipe, data, [row(i, size)], "compiled")[0])


def test_models_do_not_depend_on_the_state_of_torch_and_leave_it_alone() -> None:
    data, found = problem(), []
    for seed in (1, 2):
        torch.manual_seed(seed)
        state = torch.get_rng_state()
        recipe = Recipe(architecture=with_dropout, epochs=1)
        found.append(logits_of(recipe, data, [row(0), row(1)], stack=None))
        assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(found[0], found[1])


def test_frozen_parameters_stay_as_they_are() -> None:
    x, y = problem()
    stack = stack_of(Recipe(architecture=half_frozen), x.shape[1:], 2)
    recipe = Recipe(architecture=half_frozen, epochs=1)
    models = BatchedModels.train(recipe, stack, x, y, [row(0), row(1)], n_classes=2, size=2)
    parameters, buffers = models.parts[0]
    assert set(buffers) == {"1.weight", "1.bias"}
    first, fixed = stack.first([row(0), row(1)], torch.device("cpu"))
    assert all(torch.equal(buffers[name], fixed[name]) for name in buffers)
    assert not any(torch.equal(parameters[name], first[name]) for name in parameters)


# Batch norm


@pytest.mark.parametrize("missing", [0, 3])
def test_batch_norm_is_that_of_pytorch_for_each_model(missing: int) -> None:
    """Outputs, gradients and running moments; in a partial batch only the examples that are there count."""
    generator = torch.Generator().manual_seed(0)
    k, count, channels = 3, 7, 4
    mean, variance = torch.zeros(k, channels), torch.ones(k, channels)
    norms = [nn.BatchNorm2d(channels, affine=False) for _ in range(k)]
    weights = torch.ones(k, count)
    weights[1, count - missing :] = 0
    for _ in range(3):
        x = 2 * torch.randn(k, count, channels, 3, 2, generator=generator) + 1
        toward = torch.randn(x.shape, generator=generator) * weights[:, :, None, None, None]
        x.requires_grad_()
        found = _batch_norm(x, mean, variance, weights)
        (gradient,) = torch.autograd.grad((found * toward).sum(), x)
        for i, norm in enumerate(norms):
            there = weights[i] > 0
            one = x[i, there].detach().requires_grad_()
            expected = norm(one)
            torch.testing.assert_close(found[i, there], expected, atol=1e-5, rtol=1e-5)
            (wanted,) = torch.autograd.grad((expected * toward[i, there]).sum(), one)
            torch.testing.assert_close(gradient[i, there], wanted, atol=1e-5, rtol=1e-4)
            torch.testing.assert_close(mean[i], norm.running_mean, atol=1e-6, rtol=1e-5)
            torch.testing.assert_close(variance[i], norm.running_var, atol=1e-6, rtol=1e-5)
    judged = _batch_norm(x.detach(), mean, variance, None)
    for i, norm in enumerate(norms):
        torch.testing.assert_close(judged[i], norm.eval()(x[i].detach()), atol=1e-5, rtol=1e-5)


def test_running_moments_rest_when_a_model_is_through() -> None:
    x, mean, variance = torch.randn(2, 4, 3, 2, 2), torch.ones(2, 3), torch.full((2, 3), 2.0)
    _batch_norm(x, mean, variance, torch.tensor([[1.0] * 4, [0.0] * 4]))
    assert (mean[0] != 1).all()
    assert (variance[0] != 2).all()
    assert (mean[1] == 1).all()
    assert (variance[1] == 2).all()


# Changes of pictures


def changed_by_hand(picture: NDArray[np.float32], change: NDArray[np.int16], cutout: int) -> NDArray[np.float32]:
    """Mirror, then shift, then blank."""
    flip, down, right, cut_row, cut_column = map(int, change)
    height, width = picture.shape[1:]
    mirrored = picture[:, :, ::-1] if flip else picture
    out = np.zeros_like(picture)
    for h in range(height):
        for w in range(width):
            if 0 <= h - down < height and 0 <= w - right < width:
                out[:, h, w] = mirrored[:, h - down, w - right]
    if cutout:
        top, left = cut_row - cutout // 2, cut_column - cutout // 2
        out[:, max(top, 0) : max(top + cutout, 0), max(left, 0) : max(left + cutout, 0)] = 0
    return out


@pytest.mark.parametrize(
    ("flip", "translate", "cutout"), [(True, 0, 0), (False, 2, 0), (False, 0, 3), (False, 0, 4), (True, 3, 2)]
)
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 7)])
def test_pictures_change_as_by_hand(flip: bool, translate: int, cutout: int, shape: tuple[int, int, int]) -> None:
    x, _ = problem(shape)
    recipe = Recipe(flip=flip, translate=translate, cutout=cutout)
    streams = row(0)
    changes = np.concatenate([streams.changes(recipe, *shape[1:]) for _ in range(3)])
    chosen = np.resize(streams.members, len(changes))
    expected = np.stack([changed_by_hand(x[i], change, cutout) for i, change in zip(chosen, changes, strict=True)])
    assert (expected != x[chosen]).any()
    found = np.empty((len(chosen), x[0].size), dtype=np.float32)
    for i, change, out in zip(chosen, changes, found, strict=True):
        _load(x.reshape(len(x), -1), shape, i, change, cutout, out)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    stacked = _changed(torch.from_numpy(x[chosen]), torch.from_numpy(changes).long(), cutout)
    np.testing.assert_array_equal(stacked.numpy(), expected)


def test_changes_are_drawn_evenly_and_only_when_asked() -> None:
    streams = Streams.seeded(np.ones(3000, dtype=bool), 0, 0)
    changes = streams.changes(Recipe(flip=True, translate=2, cutout=3), 4, 6)
    for column, (least, most) in enumerate([(0, 1), (-2, 2), (-2, 2), (0, 3), (0, 5)]):
        values, counts = np.unique(changes[:, column], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(least, most + 1))
        expected = 3000 / len(values)
        assert abs(counts - expected).max() < 6 * np.sqrt(expected)
    assert not streams.changes(Recipe(), 4, 6).any()


@pytest.mark.parametrize("architecture", ["cnn", "mlp", "linear"])
def test_engines_agree_on_changed_pictures(architecture: str) -> None:
    recipe = replace(
        CNN, architecture=architecture, hidden=(9,), epochs=2, flip=True, translate=2, cutout=3, standardise=True,
        flip_average=True,
    )  # fmt: skip
    data = problem((3, 7, 6), 3)
    both = [
        logits_of(recipe, data, [row(i, size) for i, size in enumerate(UNEVEN)], engine, classes=3)
        for engine in ("compiled", "torch")
    ]
    np.testing.assert_allclose(both[0], both[1], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_flip_average_is_the_mean_over_a_picture_and_its_mirror_image(engine: Engine) -> None:
    x, y = problem()
    one, two = (
        train_models(replace(CNN, flip_average=on), x, y, [row(0), row(1)], n_classes=2, engine=engine, stack=2)
        for on in (False, True)
    )
    by_hand = (one.logits(x) + one.logits(x[..., ::-1].copy())) / 2
    np.testing.assert_allclose(two.logits(x), by_hand, atol=1e-6)
    np.testing.assert_allclose(two.logits(x), two.logits(x[..., ::-1].copy()), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 6, 5), (11,)])
def test_standardise_takes_moments_of_all_training_examples(shape: tuple[int, ...]) -> None:
    x, y = problem(shape)
    x = 5 * x + np.arange(shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    if len(shape) == 3:
        x[:, 1] = 4.0  # a channel without deviation
        by_hand = np.stack([(c - c.mean()) / (c.std() or 1) for c in np.moveaxis(x.astype(float), 1, 0)], axis=1)
    else:
        by_hand = (x.astype(float) - x.mean(dtype=float)) / x.std(dtype=float)
    recipe = replace(MLP, standardise=True)
    models = train_models(recipe, x, y, [row(0)], n_classes=2)
    plainly = train_models(replace(MLP), by_hand.astype(np.float32), y, [row(0)], n_classes=2)
    np.testing.assert_allclose(models.logits(x[:7]), plainly.logits(by_hand[:7].astype(np.float32)), atol=CLOSE)


# Precision and calibration


@pytest.mark.parametrize(
    "recipe", [MLP, CNN, RESNET, replace(MLP, architecture=plain)], ids=["mlp", "cnn", "resnet9", "module"]
)
def test_bfloat16_comes_near_float32(recipe: Recipe) -> None:
    data = problem((1, 8, 8), n=300)
    recipe = replace(recipe, epochs=6, lr=0.02)
    rows = [[row(i, 200, 300) for i in range(4)] for _ in range(2)]
    exact, mixed = (
        logits_of(recipe.with_parameters({"precision": precision}), data, some)
        for precision, some in zip(("float32", "bfloat16"), rows, strict=True)
    )
    assert mixed.dtype == np.float32
    assert np.isfinite(mixed).all()
    assert abs(mixed - exact).max() > 0
    accuracies = [(logits.argmax(-1) == data[1]).mean() for logits in (exact, mixed)]
    assert accuracies[0] > 0.55
    assert abs(accuracies[0] - accuracies[1]) < 0.1


def sizes_tried(monkeypatch: pytest.MonkeyPatch, room: int, most: int) -> int:
    monkeypatch.setattr(batched, "available", lambda: room)
    monkeypatch.setattr(batched, "_known_sizes", {})
    x, y = problem()
    targets = F.one_hot(torch.from_numpy(y), 2).float()
    recipe = replace(CNN, flip=True)
    stack = stack_of(recipe, x.shape[1:], 2)
    return batched._stack_size(recipe, stack, torch.from_numpy(x), targets, row(0), most, torch.device("cpu"))


def test_calibration_keeps_to_the_memory_and_to_the_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "_WORTH", 1e9)  # as if any larger stack were worth it
    assert sizes_tried(monkeypatch, 1000, 100) == 1
    assert sizes_tried(monkeypatch, 1 << 40, 3) == 3
    assert sizes_tried(monkeypatch, 1 << 40, 1000) == 128
    some = sizes_tried(monkeypatch, 2_000_000, 1000)
    assert 1 < some < 128
    # Twelve pictures of 2 x 8 x 8 and what they become take at least this much per model.
    assert some * 16 * 2 * 64 * 4 < 1_000_000


def test_calibration_stops_when_a_larger_stack_is_not_worth_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "_WORTH", 0.0)
    assert sizes_tried(monkeypatch, 1 << 40, 1000) == 1


def test_calibration_is_once_for_all_rates_of_a_sweep(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batched, "_known_sizes", {})
    data = problem()
    for recipe, known in ((CNN, 1), (replace(CNN, lr=0.01, weight_decay=0.1), 1), (replace(CNN, channels=(4, 4)), 2)):
        logits_of(recipe, data, [row(0)], stack=None)
        assert len(batched._known_sizes) == known


def test_calibration_changes_no_model() -> None:
    data = problem()
    np.testing.assert_allclose(
        logits_of(RESNET, data, [row(0), row(1)], stack=None), logits_of(RESNET, data, [row(0), row(1)]), atol=CLOSE
    )


# What cannot be


@pytest.mark.parametrize(
    ("recipe", "shape", "options", "message"),
    [
        (Recipe(flip=True), (7,), {}, r"flip, translate, cutout and flip_average are for pictures .* x is \(90, 7\)"),
        (Recipe(flip_average=True), (7,), {}, "are for pictures"),
        (CNN, (7,), {}, r"cnn needs pictures \(channels, height, width\); the inputs have shape \(7,\)"),
        (CNN, (7,), {"engine": "torch"}, "cnn needs pictures"),
        (RESNET, (7,), {}, "resnet9 needs pictures"),
        (CNN, (1, 3, 8), {}, "a cnn with 2 poolings needs larger pictures than 3 x 8; give fewer channels"),
        (RESNET, (1, 7, 8), {}, "resnet9 halves pictures three times; 7 x 8 is too small, 8 x 8 the least"),
        (RESNET, (2, 8, 8), {"engine": "compiled"}, "the compiled engine trains linear, mlp, cnn in float32 on a CPU"),
        (Recipe(precision="bfloat16"), (7,), {"engine": "compiled"}, "precision 'bfloat16'.*: use engine='torch'"),
        (MLP, (7,), {"engine": "compiled", "device": "cuda"}, "the device is 'cuda'"),
        (MLP, (7,), {"engine": "jax"}, "engine is 'jax'; legal: auto, compiled, torch"),
        (MLP, (7,), {"stack": 0}, "stack is 0; give 1 or more models"),
        (MLP, (7,), {"stop": 0}, "stop is 0; give 1 or more steps, or None for the whole schedule"),
        (Recipe(architecture="tests.nothing:make"), (7,), {}, "cannot import the architecture 'tests.nothing:make'"),
        (Recipe(architecture="tests.test_training:nothing"), (7,), {}, "cannot import the architecture"),
        (Recipe(architecture=no_module), (7,), {}, "the architecture returned str; it must return a torch.nn.Module"),
        (Recipe(architecture=all_frozen), (7,), {}, "has no parameters to train; leave some with requires_grad"),
    ],
)
def test_what_cannot_be_trained_is_refused(
    recipe: Recipe, shape: tuple[int, ...], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(RequestError, match=message):
        train_models(recipe, *problem(shape), [row(0)], n_classes=2, **options)


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_a_model_without_examples_is_refused(engine: Engine) -> None:
    with pytest.raises(RequestError, match="model 1 of 2 has no training examples; choose a larger alpha"):
        logits_of(MLP, problem(), [row(0), row(1, 0)], engine)


def test_the_compiled_engine_needs_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU it still trains on the CPU when it is asked for."""
    expected = logits_of(MLP, problem(), [row(0)], "compiled")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    np.testing.assert_array_equal(logits_of(MLP, problem(), [row(0)], "compiled"), expected)


def test_an_architecture_can_be_named() -> None:
    named = Recipe(architecture="tests.test_training:plain", epochs=1)
    data = problem()
    given = logits_of(replace(named, architecture=plain), data, [row(0), row(1)])
    np.testing.assert_array_equal(logits_of(named, data, [row(0), row(1)]), given)


# In a campaign

TASK = TrainRecipe(Recipe(hidden=(8,), epochs=2), "digits[200,40]", block_size=3)
DESIGN = Design(n_train=200, alpha=0.5, n_models=7, seed=4)


def store_of(path: Path, task: TrainRecipe, **options: Any) -> Store:
    return Store.create(path, schema=task.schema, design=options.pop("design", DESIGN), **options)


def direct(recipe: Recipe, index: int) -> NDArray[np.float32]:
    """Logits on the test examples of the model of row `index`, trained by itself."""
    data = datasets.load("digits[200,40]")
    streams = Streams.of(DESIGN, index, DESIGN.mask(index))
    return train_models(recipe, data.train.x, data.train.y, [streams], n_classes=2).logits(data.test.x)[0]


def test_rows_of_a_campaign_are_models_trained_by_themselves(tmp_path: Path) -> None:
    y = datasets.load("digits[200,40]").test.y
    expected = np.stack([margins(direct(TASK.recipe, i), y) for i in range(7)]).astype(np.float32)
    inline, local = store_of(tmp_path / "inline", TASK), store_of(tmp_path / "local", TASK)
    assert train(inline, TASK.block_task, executor="inline").done == 7
    assert train(local, TASK.block_task, jobs=2).done == 7
    np.testing.assert_array_equal(inline.array("margins"), expected)
    np.testing.assert_array_equal(local.array("margins"), expected)
    again = TASK(np.array([5]), DESIGN.mask(5)[None], DESIGN)
    np.testing.assert_array_equal(again["margins"][0].astype(np.float32), expected[5])


def test_rows_with_a_sweep_are_the_recipe_with_their_parameters(tmp_path: Path) -> None:
    sweep = Sweep({"lr": [0.05, 0.2], "hidden": [[8], [16]]})
    store = store_of(tmp_path / "s", TASK, sweep=sweep)
    assert train(store, TASK.block_task, executor="inline").done == 7
    y = datasets.load("digits[200,40]").test.y
    settings = [(0.05, 8), (0.05, 16), (0.2, 8), (0.2, 16)]
    for i in range(7):
        lr, hidden = settings[i % 4]
        assert store.array("param_lr")[i] == lr
        expected = margins(direct(Recipe(hidden=(hidden,), epochs=2, lr=lr), i), y).astype(np.float32)
        np.testing.assert_array_equal(store.array("margins")[i], expected)


def test_a_sweep_over_what_no_recipe_has_fails_its_rows(tmp_path: Path) -> None:
    store = store_of(tmp_path / "s", TASK, sweep=Sweep({"depth": [1, 2]}))
    summary = train(store, TASK.block_task, executor="inline")
    assert summary.failed == list(range(7))
    assert "a recipe has no 'depth'; legal: architecture" in store.failure_log(0)


def test_outputs_have_their_names_and_shapes(tmp_path: Path) -> None:
    names = ("margins", "log_odds_margins", "losses", "correct")
    task = replace(TASK, outputs=names, splits=("test", "train"))
    store = store_of(tmp_path / "both", task)
    assert set(task.schema) == {*names, *(f"train_{name}" for name in names)}
    assert train(store, task.block_task, executor="inline").done == 7
    raw = replace(TASK, outputs=("logits", "margins"))
    plain_store = store_of(tmp_path / "logits", raw)
    train(plain_store, raw.block_task, executor="inline")
    logits = np.asarray(plain_store.array("logits"))
    assert logits.shape == (7, 40, 2)
    y = datasets.load("digits[200,40]").test.y
    found = np.asarray(store.array("margins"))
    np.testing.assert_allclose(found, margins(logits, y), atol=1e-6)
    np.testing.assert_array_equal(found, plain_store.array("margins"))
    np.testing.assert_array_equal(store.array("correct"), found > 0)
    np.testing.assert_allclose(store.array("losses"), np.logaddexp(0, -found.astype(float)), atol=1e-6)
    assert store.array("train_margins").shape == (7, 200)
    # On the examples that they saw, models are better.
    seen = np.stack([DESIGN.mask(i) for i in range(7)])
    on_train = np.asarray(store.array("train_losses"))
    assert on_train[seen].mean() < on_train[~seen].mean()


def test_train_logits_are_refused() -> None:
    with pytest.raises(RequestError, match="cannot be recorded of the train examples"):
        replace(TASK, outputs=("logits",), splits=("train",)).schema  # noqa: B018


def test_a_value_beyond_float16_fails_its_row(tmp_path: Path) -> None:
    whole = datasets.load("digits[200,40]")
    for scale, fits in ((1.0, True), (1e7, False)):
        data = from_arrays("d", whole.train.x, whole.train.y, whole.test.x * np.float32(scale), whole.test.y)
        task = replace(TASK, dataset=data, dtype="float16")
        store = store_of(tmp_path / f"{fits}", task, design=Design(n_train=200, alpha=0.5, n_models=2))
        assert store.array("margins").dtype == np.float16
        summary = train(store, task.block_task, executor="inline")
        assert summary.done == (2 if fits else 0)
        if not fits:
            assert "float16" in store.failure_log(0)


def test_a_design_of_another_dataset_is_refused() -> None:
    with pytest.raises(RequestError, match=re.escape("the design has 50 training examples, digits[200,40] has 200")):
        TASK(np.array([0]), np.ones((1, 50), dtype=bool), Design(n_train=50, alpha=0.5, n_models=1))


def test_a_task_is_known_by_what_its_outputs_depend_on() -> None:
    others = [
        TASK, replace(TASK, dataset="digits[200,41]"), replace(TASK, recipe=Recipe()), replace(TASK, outputs=("losses",)),
        replace(TASK, splits=("train",)),
    ]  # fmt: skip
    assert len({task.fingerprint for task in others}) == 5
    assert replace(TASK, engine="torch", block_size=9, stack=2).fingerprint == TASK.fingerprint


def test_a_dataset_that_is_given_itself_is_known_by_its_content() -> None:
    rng = np.random.default_rng(0)
    x, y = rng.random((20, 3)), np.arange(20) % 2
    data = [from_arrays("mine", x + shift, y, x[:5], y[:5]) for shift in (0, 0, 1)]
    data.append(from_arrays("mine", x, y[::-1], x[:5], y[:5]))
    prints = [TrainRecipe(MLP, one).fingerprint for one in data]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


def test_a_task_with_another_dataset_trains_on_that_one() -> None:
    task = TrainRecipe(MLP, "digits[60,20]")
    assert task.n_train == 60
    assert replace(task, dataset="digits[90,20]").n_train == 90


def test_engines_agree_after_many_epochs_on_real_data() -> None:
    data = datasets.load("digits:pictures[300,50]")
    recipe = Recipe(architecture="cnn", channels=(8, 8), epochs=10)
    design = Design(n_train=300, alpha=0.5, n_models=4)
    found = []
    engines: tuple[Engine, ...] = ("compiled", "torch")
    for engine in engines:
        rows = [Streams.of(design, i, design.mask(i)) for i in range(4)]
        models = train_models(recipe, data.train.x, data.train.y, rows, n_classes=2, engine=engine, stack=4)
        found.append(models.logits(data.test.x))
    np.testing.assert_allclose(found[0], found[1], atol=0.001)
    assert (found[0].argmax(-1) == data.test.y).mean() > 0.7


def test_one_bad_row_fails_alone(tmp_path: Path) -> None:
    """Empty subsets and diverged models fail, and the rest of their blocks does not."""
    x, y = problem()
    masks = np.random.default_rng(0).random((6, len(y))) < 0.5
    masks[2] = False
    task = TrainRecipe(
        Recipe(hidden=(4,), epochs=2), from_arrays("tiny", x, y, x[:20], y[:20]), outputs=("correct",)
    )  # fmt: skip
    sweep = Sweep({"lr": [0.05, 0.06, 0.07, 0.08, 0.09, 1e30]})
    store = Store.create(tmp_path / "s", schema=task.schema, design=Design.explicit(masks), sweep=sweep)
    summary = train(store, task, executor="inline", progress=False)
    assert summary.failed == [2, 5]
    assert store.completed().tolist() == [True, True, False, True, True, False]
    assert "no training examples" in store.failure_log(2)
    assert "diverged" in store.failure_log(5)


def test_rows_of_one_seed_begin_alike(tmp_path: Path) -> None:
    """With a seed in the sweep, rows of one seed and one subset are the same model."""
    x, y = problem()
    masks = np.repeat(np.random.default_rng(0).random((1, len(y))) < 0.5, 4, axis=0)
    task = TrainRecipe(Recipe(hidden=(4,), epochs=1), from_arrays("tiny", x, y, x[:20], y[:20]))
    store = Store.create(
        tmp_path / "s", schema=task.schema, design=Design.explicit(masks), sweep=Sweep({"seed": [3, 4]})
    )
    assert train(store, task, executor="inline", progress=False).ok
    margins = store.array("margins")
    np.testing.assert_array_equal(margins[0], margins[2])
    np.testing.assert_array_equal(margins[1], margins[3])
    assert abs(margins[0] - margins[1]).max() > 0.01


def test_fits_warn_of_settings_that_differ(tmp_path: Path) -> None:
    x, y = problem()
    task = TrainRecipe(Recipe(hidden=(4,), epochs=1), from_arrays("tiny", x, y, x[:5], y[:5]))
    design = Design(n_train=len(y), alpha=0.5, n_models=60)
    store = Store.create(tmp_path / "s", schema=task.schema, design=design, sweep=Sweep({"lr": [0.05, 0.5]}))
    assert train(store, task, executor="inline", progress=False).ok
    with pytest.warns(SweepWarning, match="trained with different lr, and are taken together"):
        fit(store, Ridge(), progress=False)
