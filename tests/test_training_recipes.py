"""Recipes and tasks: their schedules, values, identities and YAML, and what cannot be trained."""

from __future__ import annotations

import functools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from torch import nn

from datamodels.errors import RequestError
from datamodels.training.ensemble import Engine, TrainRecipe, train_models
from datamodels.training.recipes import Recipe
from tests.networks import CNN, MLP, RESNET, all_frozen, logits_of, no_module, one_thread, plain, problem, row

__all__ = ["one_thread"]  # fixtures


# -- recipes ------------------------------------------------------------------------------------------


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
        ({"learning_rate": 0.1}, "Recipe has no 'learning_rate'; legal: architecture, hidden"),
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


def test_a_recipe_takes_other_values_and_refuses_unknown_ones() -> None:
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
    assert Recipe(architecture=plain).to_dict()["architecture"] == "tests.networks:plain"
    assert Recipe(architecture=plain).identity == Recipe(architecture="tests.networks:plain").identity


def test_widths_default_by_architecture() -> None:
    assert Recipe(architecture="cnn").widths == (16, 32)
    assert Recipe(architecture="resnet9").widths == (64, 128, 256, 512)
    assert CNN.widths == (3, 4)


# -- YAML ---------------------------------------------------------------------------------------------


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
def test_a_wrong_task_file_is_refused(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "task.yaml"
    file.write_text(text)
    with pytest.raises(RequestError, match=message):
        TrainRecipe.read(file)


def test_a_task_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RequestError, match=r"cannot read '.*none.yaml': No such file"):
        TrainRecipe.read(tmp_path / "none.yaml")


# -- what cannot be -----------------------------------------------------------------------------------


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
        (Recipe(architecture="tests.networks:nothing"), (7,), {}, "cannot import the architecture"),
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


def test_a_named_architecture_trains_as_its_function() -> None:
    named = Recipe(architecture="tests.networks:plain", epochs=1)
    data = problem()
    given = logits_of(replace(named, architecture=plain), data, [row(0), row(1)])
    np.testing.assert_array_equal(logits_of(named, data, [row(0), row(1)]), given)
