"""Outputs by name against plain formulas, their schema, and what a narrow type in the store does to them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from datamodels.design import Design
from datamodels.errors import RequestError, RowError
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.outputs import OUTPUTS, correct, losses, margins, outputs_of, schema_of

DESIGN = Design(n_train=12, alpha=0.5, n_models=4, seed=3)


def test_losses_are_cross_entropy() -> None:
    rng = np.random.default_rng(0)
    logits, y = rng.normal(size=(3, 20, 5)), rng.integers(5, size=20)
    p = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    np.testing.assert_allclose(losses(logits, y), -np.log(p[:, np.arange(20), y]))


def test_losses_hold_at_the_ends() -> None:
    np.testing.assert_allclose(losses([[1e4, -1e4], [-1e4, 1e4]], [0, 0]), [0.0, 2e4])
    np.testing.assert_allclose(losses([[40.0, 0.0]], [0]), np.exp(-40.0))  # 1 - p is below float64's epsilon


def test_correct_is_the_argmax_and_a_tie_is_wrong() -> None:
    rng = np.random.default_rng(1)
    logits, y = rng.normal(size=(3, 40, 4)), rng.integers(4, size=40)
    np.testing.assert_array_equal(correct(logits, y), logits.argmax(axis=-1) == y)
    np.testing.assert_array_equal(correct(logits, y), margins(logits, y) > 0)
    assert correct([[1.0, 1.0, 0.0], [1.0, 0.0, 0.5], [0.0, 1.0, 0.0]], [0, 0, 0]).tolist() == [False, True, False]


def test_outputs_by_name_are_those_of_the_functions() -> None:
    rng = np.random.default_rng(2)
    logits, y = rng.normal(size=(6, 3)).astype(np.float32), rng.integers(3, size=6)
    values = outputs_of(list(OUTPUTS), logits, y)
    assert list(values) == ["margins", "log_odds_margins", "logits", "losses", "correct"]
    np.testing.assert_array_equal(values["logits"], logits)
    np.testing.assert_array_equal(values["margins"], margins(logits, y))
    np.testing.assert_allclose(values["losses"], np.log1p(np.exp(-values["log_odds_margins"])))
    assert values["correct"].dtype == np.bool_


@pytest.mark.parametrize("names", [["margin"], "margins", [], ["margins", "margins"]])
def test_names_that_are_none(names: list[str]) -> None:
    legal = r"out of \['margins', 'log_odds_margins', 'logits', 'losses', 'correct'\]"
    with pytest.raises(RequestError, match=legal):
        outputs_of(names, [[0.0, 1.0]], [0])
    with pytest.raises(RequestError, match=legal):
        schema_of(names, 1, 2)


def test_a_schema_takes_what_the_outputs_are(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    on_train = ["margins", "losses", "correct"]
    schema = schema_of(list(OUTPUTS), 6, 3) | schema_of(on_train, 12, 3, "float64", prefix="train_", of="train")
    assert schema["logits"] == {"shape": (6, 3), "dtype": "float32"}
    assert schema["train_losses"] == {"shape": (12,), "dtype": "float64", "of": "train"}
    assert schema["train_correct"]["dtype"] == "bool"
    store = Store.create(tmp_path / "s", schema=schema, design=DESIGN)
    test = outputs_of(list(OUTPUTS), rng.normal(size=(6, 3)), rng.integers(3, size=6))
    seen = outputs_of(on_train, rng.normal(size=(12, 3)), rng.integers(3, size=12))
    store.write_row(2, test | {f"train_{name}": value for name, value in seen.items()})
    np.testing.assert_array_equal(store.array("train_losses")[2], seen["losses"])
    np.testing.assert_array_equal(store.array("correct")[2], test["correct"])
    np.testing.assert_array_equal(store.array("logits")[2], test["logits"].astype(np.float32))


def test_logits_of_train_examples_are_refused() -> None:
    with pytest.raises(RequestError, match="cannot be recorded of the train examples"):
        schema_of(["logits"], 12, 3, of="train")


def test_float16_rounds_margins_and_refuses_those_it_cannot_hold(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", schema=schema_of(["margins"], 50, 2, "float16"), design=DESIGN)
    usual = np.random.default_rng(4).normal(scale=5.0, size=50)
    store.write_row(0, {"margins": usual})
    stored = np.load(store.path / "margins.npy")
    assert stored.dtype == np.float16
    np.testing.assert_allclose(stored[0], usual, rtol=2.0**-11, atol=2.0**-25)
    large = np.where(np.arange(50) == 7, 1e5, usual)
    before = stored.tobytes()
    with pytest.raises(RowError, match=r"'margins' holds 100000.0, which does not survive the schema's dtype float16"):
        store.write_row(1, {"margins": large})
    assert (store.path / "margins.npy").read_bytes().endswith(before)
    assert store.completed().tolist() == [True, False, False, False]


def test_a_row_that_float16_cannot_hold_fails_alone(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", schema=schema_of(["margins"], 3, 2, "float16"), design=DESIGN)

    def task(index: int) -> dict[str, np.ndarray]:
        top = 1e5 if index == 2 else 65504.0
        return outputs_of(["margins"], [[0.0, top], [1.0, 0.0], [0.0, 0.5]], [1, 0, 0])

    summary = train(store, task, executor="inline")
    assert (summary.failed, summary.done) == ([2], 3)
    assert "does not survive the schema's dtype float16" in store.failure_log(2)
    np.testing.assert_array_equal(store.array("margins")[[0, 1, 3]], [[65504.0, 1.0, -0.5]] * 3)
