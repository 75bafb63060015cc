"""The command line in real processes: exit statuses, one-line errors, JSON alone on standard output."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels import Attribution, Store
from datamodels.cli import app
from datamodels.cli import main as cli_main
from datamodels.version import __version__

TASK = """
import numpy as np
WEIGHTS = np.random.default_rng(0).normal(size=(10, 3))
def main(index, mask, rng, logdir):
    if index == 5 and not __import__("os").path.exists("fixed"):
        raise ValueError("five is broken")
    return {"margins": mask @ WEIGHTS + 0.1 * rng.normal(size=3)}
"""


def run(*arguments: str, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run([sys.executable, "-m", "datamodels", *arguments], cwd=cwd, capture_output=True, text=True)
    assert result.returncode == status, result.stderr
    return result


def in_process(capsys: pytest.CaptureFixture[str], *arguments: str, status: int = 0) -> Any:
    """The same without the cost of a process; returns the JSON, or the error line."""
    with pytest.raises(SystemExit) as ended:
        cli_main([*arguments, *(["--json"] if status != 2 else [])])
    said = capsys.readouterr()
    assert ended.value.code == status, said.err
    if status == 2:
        assert said.out == ""
        assert len(said.err.strip().splitlines()) == 1
        assert said.err.startswith("error: ")
        return said.err
    return json.loads(said.out)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "task.py").write_text(TASK)
    schema = {"masks": {"shape": [10], "dtype": "bool"}, "margins": {"shape": [3], "dtype": "float32"}}
    (tmp_path / "spec.json").write_text(json.dumps({"num_models": 120, "schema": schema}))
    return tmp_path


def test_the_whole_flow_in_commands(folder: Path) -> None:
    made = run("init", "st", "--spec", "spec.json", "--alpha", "0.5", "--n-train", "10", "--seed", "1", cwd=folder)
    assert "120 models" in made.stdout
    trained = json.loads(
        run("train", "st", "--task", "task:main", "--jobs", "2", "--json", cwd=folder, status=1).stdout
    )
    assert trained["failed"] == [5]
    assert trained["ok"] is False
    status = json.loads(run("status", "st", "--json", cwd=folder).stdout)
    assert (status["models"], status["completed"], status["failed"], status["pending"]) == (120, 119, 1, 0)
    assert {"rows_per_second", "seconds_left"} <= set(status)
    (folder / "fixed").touch()
    assert run("train", "st", "--task", "task:main", cwd=folder).stdout.strip() == "st: complete"
    assert json.loads(run("verify", "st", "--json", cwd=folder).stdout)["ok"] is True
    fitted = run("fit", "st", "--rows", "0:100", "--lambdas", "40", "--out", "a.h5ad", "--json", cwd=folder)
    assert json.loads(fitted.stdout)["gap"] <= 1e-5
    assert json.loads(fitted.stdout)["n_models"] == 100
    score = json.loads(run("evaluate", "a.h5ad", "st", "--json", cwd=folder).stdout)
    assert score["lds"] > 0.95
    assert score["lds_ci"][0] <= score["lds"] <= score["lds_ci"][1]
    assert (score["n_models"], score["n_targets"], score["lds_ceiling"]) == (20, 3, None)
    truth = np.random.default_rng(0).normal(size=(10, 3))
    found = Attribution.load(folder / "a.h5ad").weights
    # subsets of a fixed size know the weights up to one constant per target
    np.testing.assert_allclose(found - found.mean(axis=0), truth - truth.mean(axis=0), atol=0.15)


def test_stores_grow_and_merge(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "fixed").touch()
    design = ("--spec", "spec.json", "--alpha", "0.5", "--n-train", "10")
    in_process(capsys, "init", "a", *design)
    in_process(capsys, "init", "b", *design)
    in_process(capsys, "train", "b", "--task", "task:main", "--executor", "inline")
    assert in_process(capsys, "merge", "a", "b")["copied"] == 120
    assert in_process(capsys, "extend", "a", "30")["models"] == 150
    assert in_process(capsys, "status", "a")["pending"] == 30
    with (folder / "b" / "margins.npy").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x17")
    assert in_process(capsys, "verify", "b", status=1)["bad_rows"] == [119]


def test_published_matrices_are_fitted_directly(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((300, 12)) < 0.5
    np.save("train_masks_50pct.npy", masks)
    np.save("test_margins_50pct.npy", (masks @ rng.normal(size=(12, 4)) + rng.normal(size=(300, 4))).astype(np.float16))
    files = ("--masks", "train_masks_50pct.npy", "--outputs", "test_margins_50pct.npy")
    for estimator in ("lasso", "ridge", "elasticnet", "ols", "difference"):
        facts = in_process(
            capsys, "fit", *files, "--estimator", estimator, "--rows", ":250", "--targets", "1:4", "--out", "x.h5ad"
        )
        assert facts["n_targets"] == 3
        assert in_process(capsys, "evaluate", "x.h5ad", *files)["lds"] > 0.5
    curve = in_process(capsys, "curve", *files, "--sizes", "50,100,200", "--reach", "0.5", "--plot", "c.png")
    assert [point["models"] for point in curve["points"]] == [50, 100, 200]
    assert curve["reach"]["models"] > 0
    alone = in_process(capsys, "curve", *files, "--sizes", "200", "--reach", "0.5")
    assert alone["reach"] == {"lds": 0.5, "models": None, "models_ci": None}
    assert Path("c.png").stat().st_size > 1000


def test_scores_from_a_file_help_a_fit(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "fixed").touch()
    in_process(capsys, "init", "st", "--spec", "spec.json", "--alpha", "0.5", "--n-train", "10")
    in_process(capsys, "train", "st", "--task", "task:main", "--executor", "inline")
    truth = np.random.default_rng(0).normal(size=(10, 3))
    facts = {"target": np.arange(3)}
    Attribution(2 * truth, np.zeros(3), facts, provenance={"sources": []}).save("scores.h5ad")
    rows = ("--rows", "0:60")
    both = in_process(
        capsys, "fit", "st", *rows, "--prior", "scores.h5ad", "--offset", "scores.h5ad", "--out", "a.h5ad"
    )
    assert both["n_models"] == 60
    found = Attribution.load("a.h5ad")
    assert {"prior_exponent", "offset_slope"} <= set(found.target_facts)
    assert set(found.provenance["estimator"]) >= {"prior", "offset"}
    assert in_process(capsys, "evaluate", "a.h5ad", "st")["n_models"] == 60
    for estimator in ("ridge", "elasticnet"):
        in_process(capsys, "fit", "st", *rows, "--estimator", estimator, "--offset", "scores.h5ad", "--out", "b.h5ad")
        assert "offset_slope" in Attribution.load("b.h5ad").target_facts
    for arguments, message in (
        (("--estimator", "ridge", "--prior", "scores.h5ad"), "--prior has no meaning for --estimator ridge"),
        (
            ("--estimator", "difference", "--offset", "scores.h5ad"),
            "--offset has no meaning for --estimator difference",
        ),
        (("--prior", "nowhere.h5ad"), "there is no file 'nowhere.h5ad'"),
        (("--prior", "task.py"), "is not a readable .h5ad file"),
        (("--offset", "scores.h5ad", "--targets", "1:3"), "offset scores 10 training examples for 3 targets"),
        (("--prior", "a.h5ad"), "prior has used 60 of the 120 rows"),
        (("--offset", "scores.h5ad", "--watch"), "it does not go with --offset"),
    ):
        assert message in in_process(capsys, "fit", "st", *arguments, "--out", "c.h5ad", status=2)
    assert not Path("c.h5ad").exists()


def test_looking_at_a_result(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat([0, 1], 10)
    weights = rng.normal(size=(30, 20)) * 0.1 + np.eye(30)[:, :2][:, labels]
    Attribution(weights, np.zeros(20)).save("a.h5ad")
    near = in_process(capsys, "neighbours", "a.h5ad", "3", "-k", "2")
    assert near["helpful"][0]["train"] == 0
    names = {"ids": np.arange(20)[::-1].astype(str)}
    Attribution(weights, np.zeros(20), target_facts=names, train_facts={"ids": np.arange(30).astype(str)}).save(
        "n.h5ad"
    )
    assert in_process(capsys, "neighbours", "n.h5ad", "3")["id"] == "16"
    assert in_process(capsys, "neighbours", "n.h5ad", "16", "--by-name") == in_process(
        capsys, "neighbours", "n.h5ad", "3"
    )
    names = {"ids": np.arange(100, 120).astype(str)}
    Attribution(weights, np.zeros(20), target_facts=names).save("large.h5ad")
    assert "there is no target 107, and one of that name: give --by-name" in in_process(
        capsys, "neighbours", "large.h5ad", "107", status=2
    )
    with pytest.raises(SystemExit, match="0"):
        cli_main(["neighbours", "n.h5ad", "3", "-k", "1"])
    assert re.search(r"most helpful to target 3, 16:\n  train +0 +\+1\S*  0\n", capsys.readouterr().out)
    Path("labels.txt").write_text("\n".join("ab"[label] for label in labels) + "\n")
    np.save("features.npy", rng.normal(size=(20, 5)))
    found = in_process(capsys, "subgroups", "a.h5ad", "--labels", "labels.txt", "--features", "features.npy")
    assert found["ari"] == 1.0
    assert {row["label"] for row in found["table"]} == {"a", "b"}
    found = in_process(capsys, "report", "a.h5ad", "--out", "page.html", "--clusters", "2")
    assert found["subgroups"]["clusters"] in ([0] * 10 + [1] * 10, [1] * 10 + [0] * 10)
    assert 'id="datamodels-data"' in Path(found["page"]).read_text()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["fit", "nowhere", "--out", "a.h5ad"], "there is no store at 'nowhere'"),
        (["fit", "--out", "a.h5ad"], "give stores, or both masks and outputs"),
        (["fit", "nowhere"], "Missing option '--out'"),
        (["fit", "nowhere", "--out", "a.pt"], "must end in .h5ad"),
        (["fit", "nowhere", "--out", "a.h5ad", "--rows", "5"], "give START:STOP"),
        (["fit", "nowhere", "--out", "a.h5ad", "--estimator", "magic"], "lasso"),
        (
            ["fit", "nowhere", "--out", "a.h5ad", "--estimator", "ols", "--lambdas", "5"],
            "no meaning for --estimator ols",
        ),
        (["fit", "nowhere", "--out", "a.h5ad", "--estimator", "lasso", "--l1-ratio", "0.5"], "no meaning"),
        (["fit", "nowhere", "--out", "a.h5ad", "--eps", "2"], "less than 1"),
        (["init", "st", "--spec", "nowhere.json"], "cannot read the spec"),
        (["init", "st", "--spec", "spec.json", "--alpha", "2", "--n-train", "10"], "0 < alpha < 1"),
        (["init", "st", "--spec", "spec.json", "--alpha", "0.5"], "--alpha needs --n-train"),
        (["init", "st", "--spec", "spec.json", "--replicates", "2"], "a design needs --n-train"),
        (["init", "st", "--spec", "spec.json", "--alpha", "0.5", "--n-train", "11"], "masks"),
        (["train", "nowhere", "--task", "task:main"], "there is no store"),
        (["init", "st", "--spec", "spec.json", "--n-train", "10"], "for example 0.5"),
        (["status", "nowhere"], "there is no store"),
        (["evaluate", "nowhere.h5ad", "st"], "there is no file"),
        (["neighbours", "nowhere.h5ad", "x"], "nowhere.h5ad"),
        (["report", "nowhere"], "there is no run"),
        (["demo", "--models", "3"], "at least 160"),
        (["bogus"], "No such command 'bogus'"),
        (["status", "st", "--bogus"], "No such option"),
    ],
)
def test_bad_requests_are_one_line_and_status_2(
    folder: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    assert message in in_process(capsys, *arguments, status=2)
    assert sorted(path.name for path in folder.iterdir()) == ["spec.json", "task.py"]


def test_a_task_that_cannot_be_imported_is_status_2(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    in_process(capsys, "init", "st", "--spec", "spec.json", "--alpha", "0.5", "--n-train", "10")
    assert "write task:main" in in_process(capsys, "train", "st", "--task", "task.py:main", status=2)
    assert "no function 'nothing'" in in_process(capsys, "train", "st", "--task", "task:nothing", status=2)
    assert "cannot import" in in_process(capsys, "train", "st", "--task", "nothing:main", status=2)


def test_fits_that_follow_and_selections_in_commands(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "fixed").touch()
    in_process(capsys, "init", "st", "--spec", "spec.json", "--alpha", "0.5", "--n-train", "10", "--kind", "bernoulli")
    in_process(capsys, "train", "st", "--task", "task:main", "--executor", "inline")
    followed = in_process(capsys, "fit", "st", "--watch", "--out", "a.h5ad")
    assert followed["ended"] == "all rows are complete"
    assert followed["looks"][-1]["models"] + followed["looks"][-1]["n_models"] == 120
    assert Attribution.load("a.h5ad").n_train == 10
    assert "go with --watch, which follows one store" in in_process(
        capsys, "fit", "st", "--reach", "0.5", "--out", "b.h5ad", status=2
    )
    assert "with --rows" in in_process(capsys, "fit", "st", "--watch", "--rows", "0:50", "--out", "b.h5ad", status=2)
    np.save("p.npy", np.where(np.arange(10) < 3, np.inf, 1.0))
    in_process(capsys, "fit", "st", "--penalty", "p.npy", "--memory", "1MB", "--out", "p.h5ad")
    assert not Attribution.load("p.h5ad").weights[:3].any()
    assert "text with a unit like 500MB" in in_process(
        capsys, "fit", "st", "--memory", "much", "--out", "b.h5ad", status=2
    )
    assert "with a unit like 500MB" in in_process(capsys, "fit", "st", "--memory", "8", "--out", "b.h5ad", status=2)
    assert "give a rate between 0 and 1" in in_process(
        capsys, "select", "st", "--fdr", "2", "--out", "s.h5ad", status=2
    )
    in_process(capsys, "init", "empty", "--spec", "spec.json", "--alpha", "0.5", "--n-train", "10")
    began = time.monotonic()
    said = in_process(capsys, "fit", "empty", "--watch", "--patience", "0.5", "--out", "b.h5ad", status=2)
    assert "no campaign is running" in said
    assert time.monotonic() - began < 20
    chosen = in_process(capsys, "select", "st", "--fdr", "0.3", "--out", "s.h5ad")
    assert chosen["exact"]
    assert chosen["n_targets"] == 3
    in_process(capsys, "fit", "st", "--out", "l.h5ad")
    sure = in_process(capsys, "intervals", "l.h5ad", "st", "--out", "i.h5ad")
    assert sure["share_excluding_0"] > 0.5
    often = in_process(capsys, "stability", "st", "--halves", "4", "--out", "t.h5ad")
    assert often["halves"] == 4


def test_debug_shows_the_traceback_and_nothing_else_does(folder: Path) -> None:
    assert "Traceback" not in run("status", "nowhere", cwd=folder, status=2).stderr
    assert "Traceback" in run("status", "nowhere", "--debug", cwd=folder, status=2).stderr


def test_every_command_helps_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    names = {command.callback.__name__ for command in app.registered_commands}
    assert names == {
        "init", "train", "share", "sbatch", "status", "verify", "extend", "merge", "sync", "push", "pull", "claim", "fit", "evaluate", "curve", "neighbours", "subgroups",
        "report", "demo", "select", "stability", "intervals", "pilot", "validate", "trak", "calibrate",
        "explore", "run",
    }  # fmt: skip
    for name in names:
        with pytest.raises(SystemExit) as ended:
            cli_main([name, "--help"])
        assert ended.value.code == 0
        assert f"Example: datamodels {name}" in capsys.readouterr().out


def test_version_and_bare_command(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, text in ((["--version"], __version__), ([], "Usage: datamodels")):
        with pytest.raises(SystemExit) as ended:
            cli_main(arguments)
        assert ended.value.code == 0
        assert text in capsys.readouterr().out


def test_explicit_masks_from_the_command_line(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    masks = np.random.default_rng(0).random((120, 10)) < 0.5
    np.save("m.npy", masks)
    in_process(capsys, "init", "st", "--spec", "spec.json", "--masks", "m.npy")
    np.testing.assert_array_equal(Store.open("st").design.masks(), masks)
    assert "leave out" in in_process(
        capsys, "init", "s2", "--spec", "spec.json", "--masks", "m.npy", "--alpha", "0.5", status=2
    )
