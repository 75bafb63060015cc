"""What every executor must do, whatever its workers are. An executor's test class subclasses it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.errors import RequestError, TaskChangedWarning
from datamodels.store import Store
from datamodels.training.campaign import Summary, train
from tests import tasks

NewStore = Callable[..., Store]


class ExecutorContract:
    """Subclasses name their executor and its options."""

    executor: str
    options: dict[str, Any] = {}  # noqa: RUF012

    def train(self, store: Store, task: Any, **more: Any) -> Summary:
        return train(store, task, executor=self.executor, **{**self.options, **more})

    def test_every_row_is_what_a_loop_writes(self, new_store: NewStore) -> None:
        store = new_store(30)
        summary = self.train(store, tasks.good)
        assert summary.ok
        assert summary.done == 30
        expected = [tasks.good(i, store.design.mask(i), store.design.rng(i))["margins"] for i in range(30)]
        np.testing.assert_array_equal(store.array("margins"), np.array(expected, dtype=np.float32))
        assert store.verify().ok

    def test_blocks_write_the_same_rows(self, new_store: NewStore) -> None:
        rows, blocks = new_store(30, "rows"), new_store(30, "blocks")
        self.train(rows, tasks.good)
        assert self.train(blocks, tasks.good_blocks).ok
        np.testing.assert_array_equal(rows.array("margins"), blocks.array("margins"))

    def test_a_task_can_be_named(self, new_store: NewStore) -> None:
        assert self.train(new_store(6), "tests.tasks:good").ok

    def test_a_task_can_be_a_closure(self, new_store: NewStore) -> None:
        scale = 3.0
        store = new_store(5)
        assert self.train(store, lambda index: {"margins": np.full(4, scale * index)}).ok
        np.testing.assert_array_equal(store.array("margins")[:, 0], 3.0 * np.arange(5))

    def test_a_second_run_does_what_is_missing(self, new_store: NewStore) -> None:
        store = new_store(20)
        store.write_row(4, {"margins": np.full(4, -7.0)})
        summary = self.train(store, tasks.good)
        assert summary.done == 19
        np.testing.assert_array_equal(store.array("margins")[4], -7.0)
        assert self.train(store, tasks.good).done == 0

    @pytest.mark.parametrize(
        ("task", "message"),
        [
            (tasks.fails_on_three, "ZeroDivisionError: three is not allowed"),
            (tasks.exits_on_three, "SystemExit"),
            (tasks.wrong_shape_on_three, r"'margins' has shape \(5,\)"),
            (tasks.bad_value_on_three, "NaN or inf"),
        ],
    )
    def test_a_failed_row_is_logged_and_the_others_are_done(self, new_store: NewStore, task: Any, message: str) -> None:
        store = new_store(10)
        summary = self.train(store, task)
        assert not summary.ok
        assert summary.failed == [3]
        assert summary.done == 9
        assert np.flatnonzero(~store.completed()).tolist() == [3]
        import re

        assert re.search(message, store.failure_log(3))
        with pytest.warns(TaskChangedWarning, match="rows of another task"):
            assert self.train(store, tasks.good).ok
        assert store.failures() == {}

    def test_failures_are_tried_again(self, new_store: NewStore) -> None:
        assert self.train(new_store(2, "a"), tasks.fails_until_told, retries=1).failed == [0, 1]
        assert self.train(new_store(2, "b"), tasks.fails_until_told, retries=2).ok

    @pytest.mark.parametrize(
        ("task", "message"),
        [
            (tasks.needs_more, r"needs \['learning_rate'\]"),
            ("tests.tasks:nothing", "no function 'nothing'"),
            ("tests.nowhere:main", "cannot import"),
            ("tests.tasks", "PKG.MODULE:FUNCTION"),
            (3, "a task is a function"),
        ],
    )
    def test_a_task_that_cannot_run_is_refused_at_once(self, new_store: NewStore, task: Any, message: str) -> None:
        store = new_store(4)
        with pytest.raises(RequestError, match=message):
            self.train(store, task)
        assert not store.completed().any()

    @pytest.mark.parametrize(
        ("task", "message"),
        [
            (tasks.forgets_to_return, "the task returned NoneType; it must return a dict"),
            (tasks.returns_too_few, "returned 1 rows of 'margins' for 4 indices"),
        ],
    )
    def test_results_of_the_wrong_form_are_said(self, new_store: NewStore, task: Any, message: str) -> None:
        store = new_store(4)
        assert self.train(store, task).failed == [0, 1, 2, 3]
        assert message in store.failure_log(0)

    def test_what_tasks_print_is_kept_from_standard_output(
        self, new_store: NewStore, capfd: pytest.CaptureFixture[str]
    ) -> None:
        assert self.train(new_store(2), lambda index: print("hello") or tasks.good_values()).ok
        said = capfd.readouterr()
        assert "hello" in said.err
        assert "hello" not in said.out

    def test_rows_have_a_generator_without_a_design_too(self, tmp_path: Path) -> None:
        from datamodels.spec import Spec

        spec = Spec.model_validate({"num_models": 3, "schema": {"margins": {"shape": [4], "dtype": "float64"}}})
        store = Store.create(tmp_path / "bare", spec=spec)
        assert self.train(store, tasks.wants_rng).ok
        np.testing.assert_array_equal(store.array("margins"), [store.rng(i).normal(size=4) for i in range(3)])
        assert len(np.unique(store.array("margins"))) == 12
        with pytest.raises(RequestError, match="'mask', which needs a store with a design"):
            self.train(store, tasks.good)
