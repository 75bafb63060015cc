"""What every store backend must do. A backend's test class subclasses `StoreContract`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.design import Design
from datamodels.errors import RequestError, RowError, StoreError
from datamodels.store import Store
from tests.conftest import row_values

SCHEMA = {
    "margins": {"shape": (4,), "dtype": "float32"},
    "loss": {"shape": (), "dtype": "float64", "allow_nonfinite": True},
    "table": {"shape": (2, 3), "dtype": "uint8"},
}
DESIGN = Design(n_train=12, alpha=0.5, n_models=10, seed=3)


def values(row: int) -> dict[str, Any]:
    return {"margins": row_values(row), "loss": np.nan if row % 2 else float(row), "table": np.full((2, 3), row % 256)}


class StoreContract:
    """Subclasses say where a store of a name lies."""

    def location(self, tmp_path: Path, name: str) -> str | Path:
        raise NotImplementedError

    @pytest.fixture
    def place(self, tmp_path: Path) -> str | Path:
        return self.location(tmp_path, "store")

    @pytest.fixture
    def store(self, place: str | Path) -> Store:
        return Store.create(place, schema=SCHEMA, design=DESIGN)

    def test_create_refuses_what_exists_and_changes_nothing(self, store: Store, place: str | Path) -> None:
        store.write_row(2, values(2))
        with pytest.raises(StoreError, match="a store exists"):
            Store.create(place, schema=SCHEMA, design=DESIGN)
        assert Store.open(place).completed()[2]

    def test_open_refuses_what_does_not_exist_and_makes_nothing(self, place: str | Path) -> None:
        with pytest.raises(StoreError, match="there is no store"):
            Store.open(place)
        with pytest.raises(StoreError, match="there is no store"):
            Store.open(place)

    def test_open_or_create_serves_scripts_that_run_again(self, place: str | Path) -> None:
        first = Store.open_or_create(place, schema=SCHEMA, design=DESIGN)
        first.write_row(2, values(2))
        assert Store.open_or_create(place, schema=SCHEMA, design=DESIGN).completed()[2]
        for schema, design, what in (
            ({"margins": SCHEMA["margins"]}, DESIGN, "schema"),
            (SCHEMA, Design(n_train=12, alpha=0.5, n_models=10, seed=4), "design"),
            (SCHEMA, DESIGN.with_models(11), "number of models"),
        ):
            with pytest.raises(RequestError, match=f"another {what}"):
                Store.open_or_create(place, schema=schema, design=design)

    def test_rows_round_trip(self, store: Store, place: str | Path) -> None:
        assert store.write_row(7, values(7))
        assert store.write_rows([3, 1], {key: [values(3)[key], values(1)[key]] for key in SCHEMA}) == [1, 3]
        again = Store.open(place)
        assert np.flatnonzero(again.completed()).tolist() == [1, 3, 7]
        assert again.spec == store.spec
        assert again.design == DESIGN
        for row in (1, 3, 7):
            for key, value in values(row).items():
                np.testing.assert_array_equal(again.array(key)[row], value)
            np.testing.assert_array_equal(again.masks()[row], DESIGN.mask(row))
        assert again.verify().ok
        assert again.verify().checked == 3

    def test_a_complete_row_is_left_alone_unless_told(self, store: Store) -> None:
        store.write_row(0, values(0))
        assert not store.write_row(0, values(1))
        np.testing.assert_array_equal(store.array("margins")[0], row_values(0))
        assert store.write_row(0, values(1), overwrite=True)
        np.testing.assert_array_equal(store.array("margins")[0], row_values(1))
        assert store.verify().ok

    def test_a_bad_row_leaves_nothing_behind(self, store: Store) -> None:
        bad = {**values(4), "table": np.full((2, 3), 300)}
        with pytest.raises(RowError, match="'table' holds 300"):
            store.write_row(4, bad)
        with pytest.raises(RowError, match="missing"):
            store.write_rows([4, 5], {"loss": [1.0, 2.0]})
        assert not store.completed().any()

    def test_masks_of_the_task_must_be_those_of_the_design(self, store: Store) -> None:
        assert store.write_row(1, {**values(1), "masks": DESIGN.mask(1)})
        with pytest.raises(RowError, match="not those of the store's design"):
            store.write_row(2, {**values(2), "masks": ~DESIGN.mask(2)})

    @pytest.mark.parametrize("rows", [[10], [-1], [0, 0]])
    def test_rows_that_do_not_exist_or_repeat_are_refused(self, store: Store, rows: list[int]) -> None:
        with pytest.raises(RequestError, match=r"outside|distinct"):
            store.write_rows(rows, {key: [values(0)[key]] * len(rows) for key in SCHEMA})

    def test_rows_that_are_forgotten_are_written_again(self, store: Store, place: str | Path) -> None:
        store.write_rows([1, 2, 3], {key: [values(row)[key] for row in (1, 2, 3)] for key in SCHEMA})
        store.forget([2, 2, 5])
        assert np.flatnonzero(Store.open(place).completed()).tolist() == [1, 3]
        assert store.write_row(2, values(7))
        np.testing.assert_array_equal(store.array("margins")[1:4], [row_values(row) for row in (1, 7, 3)])
        assert store.verify().ok
        with pytest.raises(RequestError, match="outside"):
            store.forget([10])

    def test_extend_adds_rows_in_place(self, store: Store, place: str | Path) -> None:
        for row in range(10):
            store.write_row(row, values(row))
        before = store.fingerprint()
        store.extend(95)
        assert store.n_models == 105
        assert store.identity == Store.open(place).identity
        again = Store.open(place)
        assert again.n_models == 105
        assert again.completed().sum() == 10
        assert again.write_row(104, values(104))
        np.testing.assert_array_equal(again.array("margins")[9], row_values(9))
        np.testing.assert_array_equal(again.masks(104, 105)[0], again.design.mask(104))
        assert again.verify().ok
        assert again.fingerprint() != before

    def test_writers_go_on_while_the_store_grows(self, store: Store, place: str | Path) -> None:
        other = Store.open(place)
        store.extend(5)
        other.write_row(3, values(3))
        store.write_row(14, values(14))
        assert np.flatnonzero(Store.open(place).completed()).tolist() == [3, 14]
        assert store.verify().ok

    def test_status_counts(self, store: Store) -> None:
        store.write_row(0, values(0))
        store.record_failure(5, "it failed")
        store.record_failure(6, "it failed too")
        assert sorted(store.failures()) == [5, 6]
        store.write_row(6, values(6))
        store.record_failure(0, "a latecomer's")
        assert list(store.failures()) == [5]
        status = store.status()
        assert (status.models, status.completed, status.failed, status.pending) == (10, 2, 1, 7)
        assert status.failed_rows == [5]
        assert status.rows_per_second is None
        assert store.failure_log(5) == "it failed"

    def test_a_campaign_is_asked_to_stop_by_name(self, store: Store) -> None:
        assert store.asked_to_stop("a") is None
        store.ask_to_stop("a", "it is enough")
        assert store.asked_to_stop("a") == "it is enough"
        assert store.asked_to_stop("b") is None
        assert store.campaigns() == []

    def test_status_adds_up_the_rates_of_running_campaigns(self, store: Store) -> None:
        import time

        store.heartbeat("a", {"updated": time.time(), "rows_per_second": 1.5, "running": True})
        store.heartbeat("b", {"updated": time.time(), "rows_per_second": 0.5, "running": True})
        store.heartbeat("over", {"updated": time.time(), "rows_per_second": 9.0, "running": False})
        store.heartbeat("dead", {"updated": time.time() - 3600, "rows_per_second": 9.0, "running": True})
        assert store.status().rows_per_second == 2.0
        assert store.status().seconds_left == 5.0

    def test_merge_copies_what_is_missing(self, store: Store, tmp_path: Path) -> None:
        other = Store.create(self.location(tmp_path, "other"), schema=SCHEMA, design=DESIGN)
        for row in (1, 2, 3):
            other.write_row(row, values(row))
        store.write_row(1, values(1))
        store.write_row(2, values(99))
        result = store.merge(other)
        assert (result.copied, result.already_there, result.conflicting) == ([3], [1, 2], [2])
        np.testing.assert_array_equal(store.array("margins")[2], row_values(99))
        assert store.verify().ok
        assert store.merge(other).copied == []

    def test_merge_refuses_another_design(self, store: Store, tmp_path: Path) -> None:
        seed = Design(n_train=12, alpha=0.5, n_models=10, seed=4)
        with pytest.raises(RequestError, match="another design"):
            store.merge(Store.create(self.location(tmp_path, "seed"), schema=SCHEMA, design=seed))
        small = {"margins": SCHEMA["margins"]}
        other = Store.create(self.location(tmp_path, "schema"), schema=small, design=DESIGN)
        with pytest.raises(RequestError, match="another schema"):
            store.merge(other)

    def test_copies_travel_both_ways(self, store: Store, tmp_path: Path) -> None:
        store.write_rows([1, 4], {key: [values(row)[key] for row in (1, 4)] for key in SCHEMA})
        there = tmp_path / "copy"
        assert store.copy_to(there, progress=False).copied == [1, 4]
        copy = Store.open(there)
        assert copy.identity == store.identity
        assert copy.fingerprint() == store.fingerprint()
        assert store.copy_to(there, progress=False).copied == []
        copy.extend(2)
        for row in (3, 11):
            copy.write_row(row, values(row))
        store.write_row(5, values(5))
        copy.write_row(5, values(6))
        back = copy.copy_to(str(store.path), progress=False)
        assert (back.copied, back.already_there, back.conflicting) == ([3, 11], [1, 4, 5], [5])
        store = Store.open(store.path)
        np.testing.assert_array_equal(store.array("margins")[11], row_values(11))
        np.testing.assert_array_equal(store.array("margins")[5], row_values(5))
        assert store.verify().ok
        other = Store.create(
            self.location(tmp_path, "other"), schema=SCHEMA, design=Design(n_train=12, alpha=0.5, n_models=20, seed=9)
        )
        with pytest.raises(RequestError, match="another design"):
            other.copy_to(there, progress=False)
        assert Store.open(there).n_models == 12

    def test_a_copy_without_a_design_goes_on_as_the_original_would(self, tmp_path: Path) -> None:
        from datamodels.spec import Spec

        spec = Spec.model_validate({"num_models": 3, "schema": {"y": {"shape": [], "dtype": "float32"}}})
        first = Store.create(self.location(tmp_path, "first"), spec=spec)
        first.copy_to(tmp_path / "second", progress=False)
        assert Store.open(tmp_path / "second").rng(1).integers(1 << 60) == first.rng(1).integers(1 << 60)

    def test_merge_needs_room(self, store: Store, tmp_path: Path) -> None:
        other = Store.create(self.location(tmp_path, "long"), schema=SCHEMA, design=DESIGN.with_models(20))
        other.write_row(15, values(15))
        with pytest.raises(RequestError, match="extend it first by 6"):
            store.merge(other)
        store.extend(6)
        assert store.merge(other).copied == [15]

    def test_masks_are_regenerated_when_the_schema_has_none(self, tmp_path: Path) -> None:
        from datamodels.spec import Spec

        spec = Spec.model_validate({"num_models": 10, "schema": {"y": {"shape": [], "dtype": "float32"}}})
        store = Store.create(self.location(tmp_path, "bare"), spec=spec, design=DESIGN)
        assert store.keys == ["y"]
        np.testing.assert_array_equal(store.masks(2, 5), DESIGN.masks(2, 5))

    def test_explicit_designs_travel_with_the_store(self, tmp_path: Path) -> None:
        masks = np.random.default_rng(0).random((6, 12)) < 0.5
        place = self.location(tmp_path, "explicit")
        Store.create(place, schema={"y": {"shape": (), "dtype": "float32"}}, design=Design.explicit(masks))
        np.testing.assert_array_equal(Store.open(place).design.masks(), masks)

    def test_labels_are_kept(self, tmp_path: Path) -> None:
        place = self.location(tmp_path, "labelled")
        Store.create(place, schema=SCHEMA, design=DESIGN, labels=["b", "a"] * 6)
        np.testing.assert_array_equal(Store.open(place).labels(), [1, 0] * 6)
        assert Store.open(place).ids("train") is None
        with pytest.raises(RequestError, match="labels has 3 entries"):
            Store.create(self.location(tmp_path, "wrong"), schema=SCHEMA, design=DESIGN, labels=[0, 1, 2])

    def test_names_of_examples_are_kept_and_travel_with_copies(self, tmp_path: Path) -> None:
        place = self.location(tmp_path, "named")
        names = {"train": [f"cell-{i}" for i in range(12)], "test": ["é", "b", "c", "d"]}
        store = Store.create(place, schema=SCHEMA, design=DESIGN, ids=names)
        store.copy_to(tmp_path / "copy", progress=False)
        for one in (Store.open(place), Store.open(tmp_path / "copy")):
            assert one.ids("train").tolist() == names["train"]
            assert one.ids("test").tolist() == names["test"]
        for ids, message in (
            ({"train": ["a"]}, "12 train examples"),
            ({"all": ["a"]}, "train and test"),
            ({"test": [1]}, "texts"),
        ):
            with pytest.raises(RequestError, match=message):
                Store.create(self.location(tmp_path, "wrong"), schema=SCHEMA, design=DESIGN, ids=ids)

    @pytest.mark.parametrize(
        ("schema", "message"),
        [
            ({"masks": {"shape": (5,), "dtype": "bool"}, **SCHEMA}, "12 train examples"),
            ({"masks": {"shape": (12,), "dtype": "float32"}}, "must be bool or uint8"),
            ({"y": {"shape": (5,), "dtype": "float32", "of": "train"}}, "last axis must be n_train = 12"),
            ({"y": (5,)}, "give"),
            ({"y": {"shape": (5,)}}, "dtype: Field required"),
        ],
    )
    def test_schema_and_design_must_agree(self, place: str | Path, schema: dict[str, Any], message: str) -> None:
        with pytest.raises(RequestError, match=message):
            Store.create(place, schema=schema, design=DESIGN)
        with pytest.raises(StoreError, match="there is no store"):
            Store.open(place)
