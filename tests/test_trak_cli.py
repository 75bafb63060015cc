"""The command trak, and TRAK of a recipe behind it: the same scores as by hand, what is kept, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from datamodels import Attribution, Design, Store, train
from datamodels.cli import main as cli_main
from datamodels.errors import RequestError
from datamodels.regression.calibration import calibrate
from datamodels.training.ensemble import TrainRecipe, train_models
from datamodels.training.modules import module_of, state_dicts
from datamodels.training.streams import Streams
from datamodels.trak import TRAK, score_split, train_checkpoints, trak_of, trak_of_recipe
from tests.test_cli import in_process

RECIPE = {
    "dataset": "digits[200,60]",
    "recipe": {"architecture": "mlp", "hidden": [8], "epochs": 8, "lr": 0.05},
    "splits": ["test", "train"],
}
PARAMETERS = 64 * 8 + 8 + 8 * 2 + 2
COUNT = 4


def command(folder: Path, *more: str, out: str = "t.h5ad") -> list[str]:
    given = ["trak", "--recipe", str(folder / "recipe.yaml"), "--out", str(folder / out)]
    return [*given, "--checkpoints", str(COUNT), "--folder", str(folder / "kept"), *more]


def times(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """``recipe.yaml``, and ``t.h5ad`` with what it was made of in ``kept/``."""
    path = tmp_path_factory.mktemp("trak")
    (path / "recipe.yaml").write_text(yaml.safe_dump(RECIPE))
    with pytest.raises(SystemExit) as ended:
        cli_main(command(path))
    assert ended.value.code == 0
    return path


@pytest.fixture(scope="module")
def task(folder: Path) -> TrainRecipe:
    return TrainRecipe.read(folder / "recipe.yaml")


def by_hand(task: TrainRecipe, files: list[Path], **how: Any) -> TRAK:
    x, y = torch.from_numpy(task.data.train.x), torch.from_numpy(task.data.train.y)
    trak = TRAK(module_of(task.recipe, (64,), 2), **how)
    trak.featurize([(x, y)], files)
    return trak


def test_scores_are_those_of_trak_by_hand(folder: Path, task: TrainRecipe) -> None:
    found = Attribution.load(folder / "t.h5ad")
    files = sorted((folder / "kept" / "checkpoints").glob(f"{found.provenance['networks']['fingerprint']}_*.pt"))
    assert len(files) == COUNT
    trak, test = by_hand(task, files, projection="none"), task.data.test
    expected = trak.score([(torch.from_numpy(test.x), torch.from_numpy(test.y))])
    np.testing.assert_allclose(found.weights, expected.weights, atol=1e-4 * np.abs(expected.weights).max())
    np.testing.assert_allclose(found.train_facts["self_influence"], trak.self_influence(), rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(found.target_facts["target"], np.arange(60))
    assert found.train_columns is None
    assert not found.bias.any()
    assert found.provenance["sources"] == []
    assert found.provenance["estimator"]["projection"] == "none"  # there are few parameters
    assert found.provenance["networks"]["task"]["dataset"] == "digits[200,60]"


def test_the_command_writes_what_the_library_returns(
    folder: Path, task: TrainRecipe, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ("--projection", "rademacher", "--dim", "32", "--ridge", "0.5", "--params", "3.*", "--params", "1.bias")
    facts = in_process(capsys, *command(folder, *options, "--alpha", "0.3", "--seed", "4", out="r.h5ad"))
    run = trak_of_recipe(
        task, tmp_path, checkpoints=COUNT, alpha=0.3, projection="rademacher", dim=32, ridge=0.5,
        params=["3.*", "1.bias"], seed=4, progress=False,
    )  # fmt: skip
    found = Attribution.load(folder / "r.h5ad")
    np.testing.assert_array_equal(found.weights, run.attribution.weights)
    assert found.provenance == json.loads(json.dumps(run.attribution.provenance))
    assert found.provenance["estimator"]["ridge"] == 0.5
    assert (facts["trained"], facts["parameters"], facts["dim"], facts["n_targets"]) == (COUNT, 8 + 18, 32, 60)
    assert facts["projection"] == "rademacher"
    assert run.checkpoints.seconds > 0


def test_networks_see_their_own_share_and_depend_on_their_number_alone(
    folder: Path, task: TrainRecipe, tmp_path: Path
) -> None:
    files = train_checkpoints(folder / "kept" / "checkpoints", task, COUNT).files
    data = task.data.train
    for k in (0, COUNT - 1):
        seen = np.random.default_rng([0, k]).permutation(200) < 100
        models = train_models(task.recipe, data.x, data.y, [Streams.seeded(seen, 0, k)], n_classes=2)
        (alone,) = state_dicts(models, task.recipe, (64,), 2)
        kept = torch.load(files[k], weights_only=True)["state_dict"]
        assert all(torch.equal(kept[name], value) for name, value in alone.items())
    whole = train_checkpoints(tmp_path, task, 2, alpha=1, seed=3)
    assert whole.trained == 2
    assert train_checkpoints(tmp_path, task, 3, alpha=1, seed=3).trained == 1
    assert train_checkpoints(tmp_path, task, 2, alpha=0.9, seed=3).trained == 2  # kept apart
    assert len(list(tmp_path.iterdir())) == 5


def test_nothing_is_done_twice(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, weights = times(folder / "kept"), Attribution.load(folder / "t.h5ad").weights
    assert in_process(capsys, *command(folder))["trained"] == 0
    assert times(folder / "kept") == before
    name = Attribution.load(folder / "t.h5ad").provenance["networks"]["fingerprint"]
    lost = sorted((folder / "kept" / "checkpoints").glob(f"{name}_*.pt"))[: COUNT // 2]
    scores = list((folder / "kept" / "scores").iterdir())
    for path in [*lost, *scores]:
        path.unlink()
    assert in_process(capsys, *command(folder))["trained"] == len(lost)
    after = times(folder / "kept")
    assert all(after[path] == before[path] for path in before if path not in {*lost, *scores})
    np.testing.assert_array_equal(Attribution.load(folder / "t.h5ad").weights, weights)


def test_an_interrupted_run_goes_on(folder: Path, task: TrainRecipe, tmp_path: Path) -> None:
    whole = trak_of_recipe(task, folder / "kept", checkpoints=COUNT, progress=False)
    trak_of_recipe(task, tmp_path, checkpoints=2, progress=False)
    for done in tmp_path.rglob("checkpoint_001/done.npy"):  # as when killed in the middle of its gradients
        flags = np.load(done)
        flags[70:] = 0
        np.save(done, flags)
    resumed = trak_of_recipe(task, tmp_path, checkpoints=COUNT, progress=False)
    assert resumed.checkpoints.trained == COUNT - 2
    np.testing.assert_array_equal(resumed.attribution.weights, whole.attribution.weights)


def test_recipes_share_a_folder_without_mixing(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = times(folder / "kept")
    other = {**RECIPE, "recipe": {**RECIPE["recipe"], "lr": 0.02}}  # type: ignore[dict-item]
    (folder / "other.yaml").write_text(yaml.safe_dump(other))
    facts = in_process(capsys, *command(folder, "--recipe", str(folder / "other.yaml"), out="o.h5ad"))
    assert facts["trained"] == COUNT
    assert times(folder / "kept").items() >= before.items()
    assert not np.array_equal(Attribution.load(folder / "o.h5ad").weights, Attribution.load(folder / "t.h5ad").weights)
    outputs = {**RECIPE, "outputs": ["losses"]}  # what is recorded in stores is not what networks are
    (folder / "other.yaml").write_text(yaml.safe_dump(outputs))
    facts = in_process(capsys, *command(folder, "--recipe", str(folder / "other.yaml"), out="o.h5ad"))
    assert facts["trained"] == 0


def test_training_examples_as_targets(folder: Path, task: TrainRecipe, capsys: pytest.CaptureFixture[str]) -> None:
    facts = in_process(capsys, *command(folder, "--targets", "train", out="own.h5ad"))
    assert (facts["targets"], facts["n_targets"], facts["trained"]) == ("train", 200, 0)
    own = Attribution.load(folder / "own.h5ad")
    np.testing.assert_array_equal(own.train_columns, np.arange(200))
    np.testing.assert_array_equal(own.target_facts["target"], np.arange(200))
    np.testing.assert_allclose(np.diag(own.weights), own.train_facts["self_influence"], rtol=0.2, atol=0.05)
    test = Attribution.load(folder / "t.h5ad")
    np.testing.assert_array_equal(own.train_facts["self_influence"], test.train_facts["self_influence"])
    files = train_checkpoints(folder / "kept" / "checkpoints", task, COUNT).files
    trak = trak_of(task, folder / "again", files)
    some = score_split(trak, task.data.train.take([7, 3]), np.array([7, 3]), train=True)
    np.testing.assert_allclose(some.weights, own.weights[:, [7, 3]], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(some.train_columns, [7, 3])


@pytest.fixture(scope="module")
def store(folder: Path, task: TrainRecipe) -> Store:
    """Networks of the recipe on 150 random halves, which TRAK has not seen."""
    design = Design(n_train=200, alpha=0.5, n_models=150, seed=0)
    made = Store.create(folder / "st", schema=task.schema, design=design)
    train(made, task.block_task, executor="inline", progress=False)
    return made


def test_scores_rank_models_that_were_retrained(folder: Path, store: Store, capsys: pytest.CaptureFixture[str]) -> None:
    for name, key, targets in (("t.h5ad", "margins", 60), ("own.h5ad", "train_margins", 200)):
        given = ["--rows", "0:", "--outputs-key", key]
        score = in_process(capsys, "evaluate", str(folder / name), str(store.path), *given)
        assert (score["n_models"], score["n_targets"]) == (150, targets)
        assert score["lds_ci"][0] > 0.04
        assert score["r2"] < 0  # not in units of the output


def test_scores_are_brought_to_units_of_the_output(
    folder: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    for targets, key in (("test", "margins"), ("train", "train_margins")):
        plain = in_process(capsys, *command(folder, "--targets", targets, out="p.h5ad"))
        facts = in_process(
            capsys, *command(folder, "--targets", targets, "--calibrate", str(store.path), out=f"{targets}.h5ad")
        )
        assert (plain["calibrated_on"], facts["calibrated_on"]) == (None, str(store.path))
        found = Attribution.load(folder / f"{targets}.h5ad")
        expected = calibrate(Attribution.load(folder / "p.h5ad"), str(store.path), outputs_key=key)
        np.testing.assert_array_equal(found.weights, expected.weights)
        np.testing.assert_array_equal(found.bias, expected.bias)
        assert found.provenance["sources"][0]["outputs_key"] == key


def test_what_was_done_is_said_in_three_lines(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli_main(command(folder, "--projection", "sjlt", "--dim", "64", out="p.h5ad"))
    assert ended.value.code == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == f"{COUNT} checkpoints in {folder / 'kept'}: 0 trained, {COUNT} there already"
    assert lines[1] == f"gradients of {PARAMETERS:,} parameters, projected to 64 (sjlt)"
    assert lines[2].startswith(f"wrote {folder / 'p.h5ad'}: 200 training examples, 60 test targets; ")
    assert len(lines) == 3


def test_a_small_dim_is_projected_unless_told(folder: Path, task: TrainRecipe, tmp_path: Path) -> None:
    files = train_checkpoints(folder / "kept" / "checkpoints", task, 1).files
    for dim, name in ((PARAMETERS // 2 - 1, "sjlt"), (PARAMETERS // 2, "none")):
        assert trak_of(task, tmp_path / name, files, dim=dim).projection.name == name


def test_the_folder_is_beside_the_file_by_default(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ["--recipe", str(folder / "recipe.yaml"), "--out", str(tmp_path / "a.h5ad"), "--checkpoints", "1"]
    facts = in_process(capsys, "trak", *given)
    assert facts["folder"] == str(tmp_path / "a.trak")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.h5ad", "a.trak"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--projection", "magic"], "'auto', 'sjlt', 'rademacher', 'none'"),
        (["--ridge", "auto"], "Invalid value for '--ridge'"),
        (["--ridge", "-1"], "give a number of at least 0, in mean squared gradients"),
        (["--ridge", "nan"], "give a number of at least 0, in mean squared gradients"),
        (["--checkpoints", "0"], "checkpoints is 0; give 1 or more"),
        (["--alpha", "0"], "above 0 and at most 1"),
        (["--alpha", "1.5"], "above 0 and at most 1"),
        (["--dim", "0"], "dim is 0"),
        (["--seed", "-1"], "seed is -1"),
        (["--params", "layer*"], "names no parameter"),
        (["--targets", "both"], "'test', 'train'"),
        (["--out", "a.npy"], "must end in .h5ad"),
        (["--recipe", "nowhere.yaml"], "cannot read 'nowhere.yaml'"),
        (["--calibrate", "nowhere"], "there is no store at 'nowhere'"),
    ],
)
def test_bad_requests_are_refused_before_anything_is_trained(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    arguments: list[str], message: str,
) -> None:  # fmt: skip
    monkeypatch.chdir(tmp_path)
    given = ["--recipe", str(folder / "recipe.yaml"), "--out", "a.h5ad"]
    assert message in in_process(capsys, "trak", *given, *arguments, status=2)
    assert not list(tmp_path.iterdir())


def test_recipes_that_have_no_scores_say_how_to_go_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{i % 7},{i % 5},{'ab'[i % 2]}\n" for i in range(40))
    (tmp_path / "rows.csv").write_text(f"x,y,label\n{rows}")
    given = {
        "dataset": {"kind": "table", "path": "rows.csv", "label": "label"},
        "splits": ["train"],
        "recipe": {"architecture": "linear"},
    }
    for prepare, message in (
        ({}, "no test examples to score: give targets 'train' (--targets train)"),
        ({"scale": True}, "standardise: true"),
    ):
        (tmp_path / "r.yaml").write_text(yaml.safe_dump({**given, **({"prepare": prepare} if prepare else {})}))
        assert message in in_process(capsys, "trak", "--recipe", "r.yaml", "--out", "a.h5ad", status=2)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["r.yaml", "rows.csv"]
    (tmp_path / "r.yaml").write_text(yaml.safe_dump({**given, "recipe": {**given["recipe"], "standardise": True}}))  # type: ignore[dict-item]
    options = ["--targets", "train", "--checkpoints", "2"]
    assert in_process(capsys, "trak", "--recipe", "r.yaml", "--out", "a.h5ad", *options)["n_targets"] == 40


def test_the_library_refuses_as_the_command_does(task: TrainRecipe, tmp_path: Path) -> None:
    with pytest.raises(RequestError, match="targets are 'both'; legal: test, train"):
        trak_of_recipe(task, tmp_path, targets="both")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="projection is 'magic'; legal"):
        trak_of_recipe(task, tmp_path, projection="magic")
    with pytest.raises(RequestError, match="choose a larger alpha"):
        trak_of_recipe(task, tmp_path, alpha=0.001)
    assert not list(tmp_path.rglob("*.pt"))
