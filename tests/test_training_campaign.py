"""Recipes in a campaign: rows are models trained by themselves, in every executor, sweep, type and dataset."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datamodels import Ridge, datasets, fit
from datamodels.datasets import from_arrays
from datamodels.design import Design
from datamodels.errors import MissingClassWarning, RequestError, SweepWarning
from datamodels.store import Store
from datamodels.sweep import Sweep
from datamodels.training.campaign import train
from datamodels.training.ensemble import Engine, TrainRecipe, train_models
from datamodels.training.outputs import margins
from datamodels.training.recipes import Recipe
from datamodels.training.streams import Streams
from tests.networks import MLP, one_thread, problem

__all__ = ["one_thread"]  # fixtures
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
    with pytest.warns(MissingClassWarning, match="row 2"):  # the task says what the labels are
        summary = train(store, task, executor="inline", progress=False)
    assert summary.failed == [2, 5]
    assert summary.subsets_without_class == [2]
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
