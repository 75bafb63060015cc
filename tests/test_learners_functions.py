"""Tasks out of functions: their scores, what they may not return, and rows of one thread."""

from __future__ import annotations

import inspect
import textwrap
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from threadpoolctl import threadpool_info, threadpool_limits

from datamodels.errors import RequestError, RowError
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.learners import function_task
from datamodels.training.outputs import log_odds_margins, margins
from tests.learner_data import DESIGN, X_TEST, Y_TEST, X, Y, cancer, nearest_mean, row


def test_a_function_scores_both_parts() -> None:
    values = row(function_task(nearest_mean, X, Y, X_TEST, Y_TEST, splits=["train", "test"]), 1)
    mask = DESIGN.mask(1)
    for key, x, y in (("margins", X_TEST, Y_TEST), ("train_margins", X, Y)):
        np.testing.assert_array_equal(values[key], margins(nearest_mean(X[mask], Y[mask], x, DESIGN.rng(1)), y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_go_in_and_come_out(dtype: torch.dtype) -> None:
    def linear(x: Any, y: Any, x_eval: Any, rng: np.random.Generator) -> Any:
        assert isinstance(x, torch.Tensor)
        weights = torch.as_tensor(rng.normal(size=(x.shape[1], 2)), dtype=dtype).requires_grad_()
        return x_eval.to(dtype) @ weights

    given = (torch.as_tensor(X), torch.as_tensor(Y), torch.as_tensor(X_TEST), torch.as_tensor(Y_TEST))
    task = function_task(linear, *given, outputs=["log_odds_margins"], splits=["test", "train"])
    weights = torch.as_tensor(DESIGN.rng(0).normal(size=(X.shape[1], 2)), dtype=dtype)
    expected = (given[2].to(dtype) @ weights).float().numpy()
    np.testing.assert_allclose(row(task, 0)["log_odds_margins"], log_odds_margins(expected, Y_TEST), rtol=1e-5)
    assert len(task.fingerprint) == 16


def test_the_example_of_the_docstring_trains_a_network(tmp_path: Path) -> None:
    doc = inspect.getdoc(function_task)
    text = doc[doc.index("    import torch\n") :].split("\n\nParameters\n", 1)[0]
    names: dict[str, Any] = {"function_task": function_task, "y_train": Y, "y_test": Y_TEST}
    names |= {"x_train": X.astype(np.float32), "x_test": X_TEST.astype(np.float32)}
    exec(textwrap.dedent(text), names)  # noqa: S102
    task = names["task"]
    store = Store.create(tmp_path / "s", schema=task.schema, design=DESIGN)
    assert train(store, task, executor="inline").done == 6
    assert (store.array("margins") > 0).mean() > 0.9
    np.testing.assert_array_equal(row(task, 2)["margins"].astype(np.float32), store.array("margins")[2])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x, y, x_eval, rng: x_eval[:5, :2], RowError, r"returned \(5, 2\) for 40 examples"),
        (lambda x, y, x_eval, rng: x_eval[:, 0], RowError, r"returned \(40,\) for 40 examples"),
        (lambda x, y, x_eval, rng: x_eval[:, :2] * np.nan, RowError, "hold NaN or inf"),
        (lambda x, y, x_eval, rng: x_eval[:, :1], RequestError, "there must be at least two"),
    ],
)
def test_what_a_function_may_not_return_is_refused(function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        row(function_task(function, X, Y, X_TEST, Y_TEST), 0)


@pytest.mark.parametrize("y", [Y / 2, Y.astype(str), Y - 1, Y[:, None], []])
def test_labels_of_a_function_are_numbers_of_classes(y: Any) -> None:
    with pytest.raises(RequestError, match=r"^y is .*give \(k,\) integers 0..classes-1"):
        function_task(nearest_mean, X, y, X_TEST, Y_TEST)


def threads_now() -> dict[str, int]:
    """Threads of BLAS, OpenMP and torch that this process may use."""
    return {"torch": torch.get_num_threads(), **{lib["filepath"]: lib["num_threads"] for lib in threadpool_info()}}


@pytest.mark.parametrize("stop", [None, ValueError, KeyboardInterrupt])
def test_rows_in_this_process_have_one_thread_and_leave_the_others_as_they_were(
    tmp_path: Path, stop: type[BaseException] | None
) -> None:
    X, Y, X_TEST, Y_TEST = cancer()
    seen: list[dict[str, int]] = []

    def learn(x: Any, y: Any, x_eval: Any, rng: np.random.Generator) -> Any:
        seen.append(threads_now())
        if stop is not None:
            raise stop
        return np.zeros((len(x_eval), 2))

    task = function_task(learn, X, Y, X_TEST, Y_TEST)
    store = Store.create(tmp_path / "st", schema=task.schema, design=DESIGN)
    in_torch = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threadpool_limits(2):
            before = threads_now()
            with pytest.raises(KeyboardInterrupt) if stop is KeyboardInterrupt else nullcontext():
                train(store, task, executor="inline", retries=0, progress=False)
            assert threads_now() == before
            assert set(before.values()) == {2}
    finally:
        torch.set_num_threads(in_torch)
    assert seen
    for now in seen:
        assert set(now) >= set(before)
        assert set(now.values()) == {1}
