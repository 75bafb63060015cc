"""Modules and state dicts of trained models: their logits are those of the engines."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from datamodels.errors import RequestError
from datamodels.training.ensemble import train_models
from datamodels.training.modules import module_of, state_dicts
from datamodels.training.recipes import Recipe
from datamodels.training.streams import Streams

FLAT, PICTURES = (12,), (2, 9, 8)


def custom(shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """Batch norm, and parameters that are not trained."""
    frozen = nn.Linear(shape[0], 5).requires_grad_(False)
    return nn.Sequential(frozen, nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, n_classes))


@pytest.mark.parametrize("engine", ["compiled", "torch"])
@pytest.mark.parametrize(
    ("recipe", "shape"),
    [
        (Recipe(architecture="linear"), FLAT),
        (Recipe(hidden=(7, 5)), FLAT),
        (Recipe(hidden=(7,), standardise=True), FLAT),
        (Recipe(hidden=(7,)), PICTURES),
        (Recipe(architecture="linear", flip_average=True), PICTURES),
        (Recipe(architecture="cnn", channels=(3, 4)), PICTURES),
        (Recipe(architecture="cnn", channels=(3,), standardise=True, flip_average=True), PICTURES),
        (Recipe(architecture="resnet9", channels=(3, 4, 5, 6), standardise=True), PICTURES),
        (Recipe(architecture=custom), FLAT),
    ],
    ids=[
        "linear",
        "mlp",
        "standardised",
        "mlp of pictures",
        "flip average",
        "cnn",
        "cnn with all",
        "resnet9",
        "module",
    ],
)
def test_logits_of_the_module_are_those_of_the_models(recipe: Recipe, shape: tuple[int, ...], engine: str) -> None:
    if engine == "compiled" and recipe.architecture in ("resnet9", custom):
        pytest.skip("not an architecture of this engine")
    rng = np.random.default_rng(0)
    x, y = rng.normal(1, 2, (40, *shape)).astype(np.float32), rng.integers(0, 3, 40)
    recipe = recipe.with_parameters({"epochs": 2, "batch_size": 8, "lr": 0.02})
    rows = [Streams.seeded(rng.random(40) < 0.5, 0, k) for k in range(3)]
    models = train_models(recipe, x, y, rows, n_classes=3, engine=engine)  # type: ignore[arg-type]
    states, module = state_dicts(models, recipe, shape, 3), module_of(recipe, shape, 3)
    expected = models.logits(x)
    assert len(states) == len(expected) == 3
    assert np.ptp(expected, axis=0).min() > 1e-4  # three different models
    for state, logits in zip(states, expected, strict=True):
        module.load_state_dict(state)
        with torch.no_grad():
            np.testing.assert_allclose(module(torch.from_numpy(x)).numpy(), logits, atol=1e-5)


def test_every_parameter_is_one_of_the_models() -> None:
    recipe = Recipe(hidden=(7,), standardise=True)
    rows = [Streams.seeded(np.ones(20, np.bool_), 0, 0)]
    x = np.random.default_rng(0).normal(size=(20, 12)).astype(np.float32)
    models = train_models(recipe, x, np.arange(20) % 2, rows, n_classes=2)
    (state,) = state_dicts(models, recipe, FLAT, 2)
    assert {name: tuple(value.shape) for name, value in state.items()} == {
        "mean": (1, 1), "deviation": (1, 1), "net.1.weight": (7, 12), "net.1.bias": (7,), "net.3.weight": (2, 7),
        "net.3.bias": (2,),
    }  # fmt: skip
    assert state["mean"].item() == pytest.approx(x.mean(), abs=1e-6)
    assert not module_of(recipe, FLAT, 2).training


def test_inputs_that_are_no_pictures_are_refused() -> None:
    with pytest.raises(RequestError, match="resnet9 needs pictures"):
        module_of(Recipe(architecture="resnet9"), FLAT, 2)
