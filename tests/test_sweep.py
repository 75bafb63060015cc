"""Sweeps: settings are a pure function of the row, and travel with the store and its rows."""

from __future__ import annotations

import importlib.util
import itertools
import json
import math
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels import design as designs
from datamodels import sweep as sweeps
from datamodels.cli import main as cli_main
from datamodels.design import Design
from datamodels.errors import CorruptStoreError, RequestError, RowError, TaskChangedWarning
from datamodels.spec import Spec
from datamodels.store import Store
from datamodels.sweep import Sweep
from datamodels.training.campaign import train
from datamodels.training.task import BlockTask, arguments_of, block_task, fingerprint

EXAMPLE = Path(__file__).parent.parent / "examples" / "sweep.py"
GRID = Sweep({"lr": [0.05, 0.1, 1], "hidden": [[32], [64, 32]], "wide": [True, False]})
RANDOM = Sweep(
    {
        "lr": {"low": 1e-4, "high": 1e-1, "log": True},
        "momentum": {"low": 0, "high": 0.9},
        "depth": {"low": 1, "high": 3, "integer": True},
        "width": {"low": 8, "high": 1000, "integer": True, "log": True},
        "loss": ["hinge", None],
    },
    kind="random",
    seed=5,
)
SCHEMA = {"y": {"shape": (2,), "dtype": "float64"}}
DESIGN = Design(n_train=12, alpha=0.5, n_models=24, seed=3)


def number(params: dict[str, Any]) -> float:
    """A number that tells the settings of `GRID` apart."""
    return params["lr"] + 10 * len(params["hidden"]) + 100 * params["wide"]


def row_task(index: int, mask: np.ndarray, params: dict[str, Any]) -> dict[str, Any]:
    return {"y": [number(params), mask.sum()]}


def without_mask(index: int, params: dict[str, Any]) -> dict[str, Any]:
    return {"y": [number(params), 0]}


@block_task(block_size=5)
def blocks(indices: np.ndarray, masks: np.ndarray, params: list[dict[str, Any]]) -> dict[str, Any]:
    return {"y": np.column_stack([[number(one) for one in params], masks.sum(axis=1)])}


@dataclass(frozen=True)
class Recipe:
    """A callable with its own fingerprint."""

    scale: float
    fingerprint: str = "v1"

    def __call__(self, indices: np.ndarray, params: list[dict[str, Any]]) -> dict[str, Any]:
        return {"y": np.array([[self.scale * number(one), 0] for one in params])}


@pytest.fixture
def make(tmp_path: Path) -> Callable[..., Store]:
    def create(name: str = "s", *, sweep: Sweep | None = GRID, design: Design = DESIGN) -> Store:
        return Store.create(tmp_path / name, schema=SCHEMA, design=design, sweep=sweep)

    return create


# -- what a sweep draws -----------------------------------------------------------------------------


def test_a_grid_is_the_product_of_its_values_first_slowest() -> None:
    expected = [
        dict(zip(GRID.parameters, combo, strict=True)) for combo in itertools.product(*GRID.parameters.values())
    ]
    assert GRID.size == len(expected) == 12
    assert [GRID.at(i) for i in range(24)] == expected * 2
    assert Sweep({"one": [7]}).at(10**30) == {"one": 7}


@pytest.mark.parametrize("sweep", [GRID, RANDOM], ids=lambda sweep: sweep.kind)
def test_settings_are_a_pure_function_of_sweep_and_row(sweep: Sweep) -> None:
    rows = [0, 3, 17, 10**6]
    here = [sweep.at(i) for i in rows]
    for one in here:
        for value in one.values():
            if isinstance(value, list):
                value.append("changed by a careless task")
    backwards = [sweep.at(i) for i in reversed(rows)][::-1]
    program = (
        "import json, sys; from datamodels.sweep import Sweep; given = json.load(sys.stdin)\n"
        "print(json.dumps([Sweep.from_dict(given['sweep']).at(i) for i in given['rows']]))"
    )
    given = json.dumps({"sweep": sweep.to_dict(), "rows": rows})
    said = subprocess.run([sys.executable, "-c", program], input=given, capture_output=True, text=True, check=True)
    assert json.loads(said.stdout) == backwards


def test_drawn_values_are_those_of_the_first_version() -> None:
    """Rows that exist refer to these: a change would break stores."""
    first = {"lr": 0.03032638781949787, "momentum": 0.3420115174214028, "depth": 1, "width": 316, "loss": "hinge"}
    assert RANDOM.at(0) == first


def test_random_values_keep_to_their_ranges_and_fill_them_evenly() -> None:
    columns = RANDOM.columns(0, 3000)
    lr, width = np.log10(columns["lr"]), columns["width"]
    assert RANDOM.size is None
    assert -4 <= lr.min() < -3.98
    assert -1.02 < lr.max() <= -1
    assert abs(lr.mean() + 2.5) < 0.05
    assert 0 <= columns["momentum"].min() < columns["momentum"].max() <= 0.9
    assert abs(columns["momentum"].mean() - 0.45) < 0.02
    np.testing.assert_allclose(np.bincount(columns["depth"])[1:] / 3000, 1 / 3, atol=0.04)
    assert 8 <= width.min() < width.max() <= 1000
    expected = math.log(90 / 8) / math.log(1001 / 8)
    assert abs((width < 90).mean() - expected) < 0.04
    assert abs((columns["loss"] == "hinge").mean() - 0.5) < 0.04
    assert np.abs(np.corrcoef(lr, columns["momentum"])[0, 1]) < 0.06


def test_logarithmic_draws_equal_the_formula() -> None:
    words = [0, 1, 2**40, 2**63, 2**64 - 1]
    for word in words:
        value, _ = sweeps._pick({"low": 1e-4, "high": 0.1, "log": True}, word)
        assert value == pytest.approx(1e-4 * 1000 ** (word / 2**64), rel=1e-14)
    whole = {"low": 1, "high": 2**62, "log": True, "integer": True}
    assert [sweeps._pick(whole, word)[0] for word in (0, 2**63)] == [1, 2**31]
    assert 2**62 - 11 <= sweeps._pick(whole, 2**64 - 1)[0] <= 2**62
    assert {sweeps._pick({"low": 1, "high": 2, "integer": True}, word)[0] for word in words} == {1, 2}


def test_sweeps_of_other_seeds_differ_and_no_stream_is_that_of_a_design() -> None:
    other = Sweep(RANDOM.parameters, kind="random", seed=6)
    assert not np.isin(RANDOM.columns(0, 50)["lr"], other.columns(0, 50)["lr"]).any()
    assert sweeps._STREAM not in designs._STREAMS.values()


def test_identity_knows_order_types_and_seed() -> None:
    same = Sweep({"lr": np.array([0.05, 0.1]), "depth": (1, 2)})
    assert same == Sweep({"lr": [0.05, 0.1], "depth": [1, 2]}) == Sweep.from_dict(same.to_dict())
    assert len({same, Sweep.from_dict(json.loads(json.dumps(same.to_dict())))}) == 1
    for other in (
        Sweep({"depth": [1, 2], "lr": [0.05, 0.1]}),
        Sweep({"lr": [0.05, 0.1], "depth": [1.0, 2.0]}),
        Sweep({"lr": [0.05, 0.1], "depth": [1, 2]}, kind="random"),
        Sweep({"lr": [0.05, 0.1], "depth": [1, 2]}, kind="random", seed=1),
    ):
        assert other != same


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"parameters": {}}, "give a dict"),
        ({"parameters": {"a": []}}, "at least one value"),
        ({"parameters": {"a": 3}}, "at least one value"),
        ({"parameters": {"a": [1, 1]}}, "has 1 twice"),
        ({"parameters": {"a": [math.nan]}}, "must be finite"),
        ({"parameters": {"a": [[1, math.inf]]}}, "must be finite"),
        ({"parameters": {"a": [{"b": 1}]}}, "of type dict"),
        ({"parameters": {"a/b": [1]}}, "cannot name a file"),
        ({"parameters": {"a": [1]}, "kind": "bayes"}, "'grid' or 'random'"),
        ({"parameters": {"a": [1]}, "seed": 3}, "a grid draws nothing"),
        ({"parameters": {"a": [1]}, "kind": "random", "seed": -1}, "0 or more"),
        ({"parameters": {"a": {"low": 0, "high": 1}}}, "a grid needs a list"),
        ({"parameters": {"a": {"low": 1, "high": 1}}, "kind": "random"}, "low must be below high"),
        ({"parameters": {"a": {"low": 0, "high": 1, "log": True}}, "kind": "random"}, "above 0"),
        ({"parameters": {"a": {"low": 0.5, "high": 3, "integer": True}}, "kind": "random"}, "give integers"),
        ({"parameters": {"a": {"low": 0, "hihg": 3}}, "kind": "random"}, "the range of 'a'"),
        ({"parameters": {"a": {"low": 0, "high": math.inf}}, "kind": "random"}, "finite"),
        ({"parameters": {"a": [1]}, "sed": 3}, "sed"),
    ],
)
def test_what_is_no_sweep_is_refused(given: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Sweep(**given)


def test_values_after_the_last_place_are_given_by_name() -> None:
    with pytest.raises(
        RequestError, match=r"Sweep after parameters takes its values by name, like kind=\.\.\.; given: "
    ):
        Sweep({"lr": [0.1]}, "grid")  # type: ignore[misc]


def test_rows_start_at_0() -> None:
    with pytest.raises(IndexError, match="rows start at 0"):
        GRID.at(-1)


# -- with a store -----------------------------------------------------------------------------------


def test_every_subset_meets_every_setting(make: Callable[..., Store]) -> None:
    store = make(design=Design(n_train=12, alpha=0.5, n_models=36, replicates=12))
    assert train(store, row_task, executor="inline").ok
    met = {(store.masks()[i].tobytes(), json.dumps(GRID.at(i))) for i in range(36)}
    assert len(met) == 36
    assert len({mask for mask, _ in met}) == 3


def test_a_store_keeps_its_sweep_and_fills_its_keys(make: Callable[..., Store]) -> None:
    store = make()
    dtypes = {key: store.field(key).dtype for key in store.keys if key.startswith("param_")}
    assert dtypes == {"param_lr": "float64", "param_hidden": "int64", "param_wide": "bool"}
    store.write_rows([7, 2], {"y": np.zeros((2, 2))})
    again = Store.open(store.path)
    assert again.sweep == GRID
    assert again.spec == store.spec
    for row in (2, 7):
        setting = GRID.at(row)
        assert np.load(store.path / "param_lr.npy")[row] == setting["lr"]
        assert np.load(store.path / "param_wide.npy")[row] == setting["wide"]
        assert GRID.parameters["hidden"][np.load(store.path / "param_hidden.npy")[row]] == setting["hidden"]
    assert again.verify().ok
    parameters = again.parameters(3, 9)
    assert {name: column.dtype.kind for name, column in parameters.items()} == {"lr": "f", "hidden": "O", "wide": "b"}
    assert [dict(zip(parameters, one, strict=True)) for one in zip(*parameters.values(), strict=True)] == [
        GRID.at(i) for i in range(3, 9)
    ]
    assert len(again.parameters()["lr"]) == 24
    with pytest.raises(IndexError, match=r"rows 3\.\.25"):
        again.parameters(3, 25)


def test_a_random_sweep_round_trips_to_the_bit(tmp_path: Path) -> None:
    store = Store.create(tmp_path / "s", schema=SCHEMA, design=DESIGN, sweep=RANDOM)
    store.write_rows(np.arange(24), {"y": np.zeros((24, 2))})
    assert Store.open(store.path).sweep == RANDOM
    for name in ("lr", "momentum", "depth", "width"):
        np.testing.assert_array_equal(np.load(store.path / f"param_{name}.npy"), store.parameters()[name])
    assert store.verify().ok


def test_a_sweep_needs_no_design(tmp_path: Path) -> None:
    spec = Spec.model_validate({"num_models": 5, "schema": SCHEMA})
    store = Store.create(tmp_path / "s", spec=spec, sweep=GRID)
    train(store, without_mask, executor="inline")
    np.testing.assert_array_equal(store.array("y")[:, 0], [number(GRID.at(i)) for i in range(5)])
    assert store.design is None
    assert store.verify().ok


def test_rows_of_another_setting_are_refused_and_found(make: Callable[..., Store]) -> None:
    store = make()
    lr = GRID.at(4)["lr"]
    assert store.write_row(4, {"y": [0, 0], "param_lr": lr})
    with pytest.raises(RowError, match="'param_lr' that the task returned"):
        store.write_row(5, {"y": [0, 0], "param_lr": lr + 1})
    values = {key: np.array(store.array(key)[4]) for key in store.keys}
    wrong = {**values, "param_lr": np.array(0.7)}
    store._write_data(np.array([4]), {key: value[None] for key, value in wrong.items()})
    assert store.verify().bad_rows == [4], "the checksum is right and the setting is not"


def test_extending_keeps_the_sweep(make: Callable[..., Store]) -> None:
    store = make()
    store.write_row(23, {"y": [1, 2]})
    before = store.identity
    store.extend(10)
    assert store.sweep == Store.open(store.path).sweep == GRID
    assert store.write_row(33, {"y": [1, 2]})
    assert store.array("param_lr")[33] == GRID.at(33)["lr"]
    assert store.identity == before
    assert store.verify().ok


def test_stores_of_another_sweep_are_not_merged_nor_taken_for_it(make: Callable[..., Store]) -> None:
    store, copy = make(), make("copy")
    copy.write_row(3, {"y": [1, 2]})
    assert store.merge(copy).copied == [3]
    assert store.verify().ok
    for i, sweep in enumerate((None, Sweep({**GRID.parameters, "lr": [0.05, 0.1, 2]}))):
        other = make(f"other{i}", sweep=sweep)
        assert other.identity != store.identity
        with pytest.raises(RequestError, match="another sweep"):
            store.merge(other)
        with pytest.raises(RequestError, match="another sweep"):
            other.merge(store)
        with pytest.raises(RequestError, match="another sweep"):
            Store.open_or_create(store.path, schema=SCHEMA, design=DESIGN, sweep=sweep)
    assert Store.open_or_create(store.path, schema=SCHEMA, design=DESIGN, sweep=GRID).completed()[3]


def test_the_schema_may_name_the_keys_of_the_sweep_as_they_are(tmp_path: Path) -> None:
    lr = {"param_lr": {"shape": (), "dtype": "float64"}}
    store = Store.create(tmp_path / "s", schema={**SCHEMA, **lr}, design=DESIGN, sweep=GRID)
    assert store.keys == ["y", "param_lr", "masks", "param_hidden", "param_wide"]
    narrow = {"param_lr": {"shape": (), "dtype": "float32"}}
    with pytest.raises(RequestError, match=r"'param_lr' is float32 .* leave it out"):
        Store.create(tmp_path / "t", schema={**SCHEMA, **narrow}, design=DESIGN, sweep=GRID)


def test_stores_without_a_sweep_are_as_they_were(make: Callable[..., Store], tmp_path: Path) -> None:
    store = make(sweep=None)
    assert store.sweep is None
    assert not {"sweep", "sweep_identity"} & set(json.loads((store.path / "store.json").read_text()))
    assert store.identity == f"design:{DESIGN.identity}"
    with pytest.raises(RequestError, match="has no sweep"):
        store.parameters()
    classic = tmp_path / "classic"
    classic.mkdir()
    np.save(classic / "_completed.npy", np.ones(3, bool))
    np.save(classic / "y.npy", np.ones((3, 2)))
    assert Store.open(classic).sweep is None


def test_an_edited_sweep_is_refused_and_ignoring_it_reads_the_same(make: Callable[..., Store]) -> None:
    store = make()
    store.write_row(0, {"y": [1, 2]})
    file = store.path / "store.json"
    meta = json.loads(file.read_text())
    assert meta["format_version"] == 1
    file.write_text(json.dumps({**meta, "sweep": {**meta["sweep"], "kind": "random"}}))
    with pytest.raises(CorruptStoreError, match="its sweep is not the one"):
        Store.open(store.path)
    file.write_text(json.dumps({**meta, "sweep": {"parameters": {}}}))
    with pytest.raises(CorruptStoreError, match="damaged"):
        Store.open(store.path)
    del meta["sweep"], meta["sweep_identity"]  # what a reader that knows no sweeps sees
    file.write_text(json.dumps(meta))
    old = Store.open(store.path)
    assert old.verify().ok
    assert old.array("param_lr")[0] == 0.05
    with pytest.raises(RowError, match="missing"):
        old.write_row(1, {"y": [1, 2]})


# -- with tasks -------------------------------------------------------------------------------------


def test_campaigns_in_worker_processes_and_in_blocks_write_the_same(make: Callable[..., Store]) -> None:
    stores = [make(name) for name in ("rows", "blocks", "inline")]
    assert train(stores[0], "tests.test_sweep:row_task", jobs=2).ok
    assert train(stores[1], "tests.test_sweep:blocks", jobs=2).ok
    assert train(stores[2], row_task, executor="inline").ok
    np.testing.assert_array_equal(stores[0].array("y")[:, 0], [number(GRID.at(i)) for i in range(24)])
    np.testing.assert_array_equal(stores[0].array("y")[:, 1], 6)
    for store in stores:
        assert store.verify().ok
        assert store.fingerprint() == stores[0].fingerprint()


@pytest.mark.parametrize("task", [row_task, blocks])
def test_a_task_that_names_params_needs_a_sweep(make: Callable[..., Store], task: Any) -> None:
    with pytest.raises(RequestError, match=r"names 'params', which needs a store with a sweep \(.*--sweep"):
        train(make(sweep=None), task, executor="inline")


def test_callable_objects_are_tasks_and_say_their_own_fingerprint(make: Callable[..., Store]) -> None:
    task = BlockTask(Recipe(2.0), block_size=7)
    assert arguments_of(task) == (False, ("indices", "params"))
    assert fingerprint(task) == f"{__name__}:Recipe#v1"
    assert fingerprint(task) != fingerprint(BlockTask(Recipe(2.0, "v2"), 7))
    store = make()
    assert train(store, task, executor="inline").ok
    np.testing.assert_array_equal(store.array("y")[:, 0], [2 * number(GRID.at(i)) for i in range(24)])
    store.extend(1)
    with pytest.warns(TaskChangedWarning, match="Recipe"):
        train(store, BlockTask(Recipe(2.0, "v2"), block_size=7), executor="inline")


# -- on the command line, and the example --------------------------------------------------------------


@pytest.fixture
def said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec.json").write_text(
        json.dumps({"num_models": 8, "schema": {"y": {"shape": [2], "dtype": "float64"}}})
    )

    def command(*arguments: str, status: int = 0) -> str:
        with pytest.raises(SystemExit) as ended:
            cli_main(list(arguments))
        out, err = capsys.readouterr()
        assert ended.value.code == status, err
        return out if status == 0 else err

    return command


def test_init_takes_a_sweep_and_status_counts_its_settings(said: Callable[..., str], tmp_path: Path) -> None:
    (tmp_path / "sweep.yaml").write_text("parameters:\n  lr: [1e-3, 1E-2, 0.1]\n  loss: [hinge, null]\n")
    init = ("init", "--spec", "spec.json", "--sweep")
    assert said(*init, "sweep.yaml", "st").endswith(", 6 settings\n")
    store = Store.open("st")
    assert store.sweep == Sweep({"lr": [0.001, 0.01, 0.1], "loss": ["hinge", None]})
    assert store.keys == ["y", "param_lr", "param_loss"]
    assert said("status", "st") == "0 of 8 complete, 0 failed, 8 pending, 6 settings\n"
    assert json.loads(said("status", "st", "--json"))["settings"] == 6
    (tmp_path / "sweep.json").write_text(json.dumps(RANDOM.to_dict()))
    assert said(*init, "sweep.json", "--alpha", "0.5", "--n-train", "12", "st2").endswith(", random settings\n")
    assert Store.open("st2").sweep == RANDOM
    said("init", "--spec", "spec.json", "st3")
    assert said("status", "st3") == "0 of 8 complete, 0 failed, 8 pending\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot read"),
        ("a: [", "is not YAML"),
        ("lr: [1, 2]", "must have 'parameters'"),
        ("parameters: {lr: []}", "at least one value"),
        ('{"parameters": {"lr": [.nan]}}', "must be finite"),
    ],
)
def test_files_that_are_no_sweep_are_refused(
    said: Callable[..., str], tmp_path: Path, text: str | None, message: str
) -> None:
    if text is not None:
        (tmp_path / "sweep.yaml").write_text(text)
    error = said("init", "st", "--spec", "spec.json", "--sweep", "sweep.yaml", status=2)
    assert message in error
    assert len(error.splitlines()) == 1
    assert not (tmp_path / "st").exists()


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("parameters: {learning_rate: [0.1, 0.2]}", "a recipe has no 'learning_rate'; legal: architecture"),
        ("parameters: {lr: [0.1, -1]}", "the recipe cannot take {'lr': -1}"),
    ],
)
def test_a_sweep_that_is_not_for_the_recipe_is_refused_before_a_store_is_made(
    said: Callable[..., str], tmp_path: Path, text: str, message: str
) -> None:
    (tmp_path / "recipe.yaml").write_text("dataset: digits[60,20]\nrecipe: {hidden: [4]}\n")
    (tmp_path / "sweep.yaml").write_text(text)
    init = ("init", "st", "--recipe", "recipe.yaml", "--models", "4", "--alpha", "0.5", "--sweep", "sweep.yaml")
    assert message in said(*init, status=2)
    assert not (tmp_path / "st").exists()
    (tmp_path / "sweep.yaml").write_text("parameters: {lr: [0.1, 0.2], hidden: [[4], [8]]}")
    assert said(*init).endswith(", 4 settings\n")


def test_the_example_predicts_better_when_it_knows_the_settings(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spec = importlib.util.spec_from_file_location("example_of_a_sweep", EXAMPLE)
    assert spec is not None
    assert spec.loader is not None
    example = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(example)
    scores = example.main(["--quick", "--out", str(tmp_path / "st")])
    assert scores["masks and settings"].r2 > scores["masks"].r2 + 0.3
    assert scores["masks and settings"].lds > scores["masks"].lds + 0.3
    said = capsys.readouterr().out
    assert said.count("accuracy") == 6
    assert Store.open(tmp_path / "st").verify().ok
