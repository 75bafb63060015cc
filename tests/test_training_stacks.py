"""Many models at once are each the model alone: subsets of unequal sizes, batch norm, precision and the size of a stack."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional as F

from datamodels.training import batched
from datamodels.training.batched import BatchedModels
from datamodels.training.recipes import Recipe
from datamodels.training.stacks import _batch_norm, stack_of
from tests.networks import (
    CLOSE,
    CNN,
    FACTORIES,
    MLP,
    RESNET,
    UNEVEN,
    N,
    half_frozen,
    logits_of,
    one_thread,
    plain,
    problem,
    row,
    with_dropout,
)

__all__ = ["one_thread"]  # fixtures


# -- one model, many models ---------------------------------------------------------------------------


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


def test_the_compiled_engine_needs_no_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is a GPU it still trains on the CPU when it is asked for."""
    expected = logits_of(MLP, problem(), [row(0)], "compiled")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    np.testing.assert_array_equal(logits_of(MLP, problem(), [row(0)], "compiled"), expected)


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


# -- batch norm ---------------------------------------------------------------------------------------


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


# -- precision and calibration ------------------------------------------------------------------------


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
