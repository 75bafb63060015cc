"""The commands of the original library, as its users' programs call them (real processes)."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.errors import RequestError
from datamodels.store import Store
from datamodels.training.spec import COMPLETED
from datamodels.training.utils import load_memmap, memmap_path

SPEC = {
    "num_models": 12,
    "schema": {"masks": {"shape": [8], "dtype": "bool_"}, "margins": {"shape": [3], "dtype": "float16"}},
}

PLAIN = """
import numpy as np
def main(index, logdir):
    assert isinstance(logdir, str)
    open(logdir + "/note.txt", "w").write("was here")
    return {"masks": np.random.default_rng(index).random(8) < .5, "margins": np.full(3, index)}
"""

FASTARGS_STRICT = """
import numpy as np
from argparse import ArgumentParser
from fastargs import Section, Param, get_current_config
from fastargs.decorators import param
Section("my", "mine").params(scale=Param(float, "", required=True), loud=Param(bool, "", is_flag=True))
@param("my.scale")
def main(index, logdir, scale):
    config = get_current_config()
    parser = ArgumentParser()
    config.augment_argparse(parser)
    config.collect_argparse_args(parser)
    config.validate(mode="stderr")
    return {"masks": np.ones(8), "margins": np.full(3, scale + 100 * bool(config["my.loud"]))}
"""

FASTARGS_DECLARED = """
import numpy as np
from fastargs import Section, Param
from fastargs.decorators import param
Section("my", "mine").params(scale=Param(float, "", required=True), loud=Param(bool, "", is_flag=True))
@param("my.scale")
@param("my.loud")
def main(index, logdir, scale, loud):
    return {"masks": np.ones(8), "margins": np.full(3, scale + 100 * loud)}
"""

ARGPARSE_STRICT = """
import argparse, numpy as np
def main(index, logdir):
    parser = argparse.ArgumentParser()
    parser.add_argument("--my.scale", dest="scale", type=float, required=True)
    parser.add_argument("--my.loud", dest="loud", action="store_true")
    given = parser.parse_args()
    return {"masks": np.ones(8), "margins": np.full(3, given.scale + 100 * given.loud)}
"""


def run(module: str, *arguments: str, cwd: Path, status: int = 0) -> subprocess.CompletedProcess[str]:
    result = subprocess.run(
        [sys.executable, "-m", f"datamodels.{module}", *arguments], cwd=cwd, capture_output=True, text=True, timeout=60
    )
    assert result.returncode == status, result.stderr
    return result


def one_line(result: subprocess.CompletedProcess[str], text: str) -> None:
    assert text in result.stderr
    assert len(result.stderr.strip().splitlines()) == 1, result.stderr


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with a spec, user programs and an empty store ``st``."""
    (tmp_path / "spec.json").write_text(json.dumps(SPEC))
    programs = {
        "plain": PLAIN,
        "strict": FASTARGS_STRICT,
        "declared": FASTARGS_DECLARED,
        "parsed": ARGPARSE_STRICT,
    }
    for name, text in programs.items():
        (tmp_path / f"{name}.py").write_text(text)
    run("training.initialize_store", "--logging.logdir=st", "--logging.spec=spec.json", cwd=tmp_path)
    return tmp_path


def worker(
    folder: Path, index: int, module: str = "plain", *more: str, status: int = 0
) -> subprocess.CompletedProcess[str]:
    return run(
        "training.worker", f"--worker.index={index}", f"--worker.main_import={module}", "--worker.logdir=st", *more,
        cwd=folder, status=status,
    )  # fmt: skip


def test_initialize_store_makes_the_arrays(folder: Path) -> None:
    assert np.load(folder / "st/margins.npy").shape == (12, 3)
    assert np.load(folder / "st/margins.npy").dtype == np.float16
    assert np.load(folder / f"st/{COMPLETED}.npy").dtype == bool
    again = run(
        "training.initialize_store", "--logging.logdir", "st", "--logging.spec", "spec.json", cwd=folder, status=2
    )
    one_line(again, "a store exists")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--logging.logdir=x"], "--logging.spec is required"),
        (["--logging.logdir=x", "--logging.spec=nowhere.json"], "cannot read the spec"),
        (["--logging.logdir=x", "--logging.spec=spec.json", "--logging.more=1"], "unknown option '--logging.more'"),
        (["--logging.logdir=x", "--logging.spec=spec.json", "--other.x=1"], "unknown option '--other.x=1'"),
        (["--logging.logdir", "--logging.spec=spec.json"], "needs a value"),
        (["-C", "nowhere.yaml"], "cannot read the config file"),
    ],
)
def test_bad_options_are_one_line_and_status_2(folder: Path, arguments: list[str], message: str) -> None:
    one_line(run("training.initialize_store", *arguments, cwd=folder, status=2), message)
    assert not (folder / "x").exists()


def test_a_worker_writes_its_row(folder: Path) -> None:
    worker(folder, 5)
    assert load_memmap(str(folder / "st"), COMPLETED, "r").tolist() == [i == 5 for i in range(12)]
    np.testing.assert_array_equal(load_memmap(folder / "st", "margins", "r")[5], 5)
    assert memmap_path(folder / "st", "margins") == folder / "st" / "margins.npy"
    with pytest.raises(RequestError, match="'w\\+'; legal"):
        load_memmap(folder / "st", "margins", "w+")
    assert np.load(folder / "st/margins.npy")[5, 0] == 5
    assert (folder / "st/workers/5/note.txt").read_text() == "was here"
    assert "--worker.index=5" in (folder / "st/cmds.txt").read_text()
    assert Store.open(folder / "st").verify().ok


def test_a_complete_row_is_skipped_unless_told(folder: Path) -> None:
    worker(folder, 5)
    np.load(folder / "st/margins.npy", mmap_mode="r+")[5] = 77
    assert "complete already" in worker(folder, 5).stdout
    assert np.load(folder / "st/margins.npy")[5, 0] == 77
    worker(folder, 5, "plain", "--worker.do_if_complete")
    assert np.load(folder / "st/margins.npy")[5, 0] == 5


@pytest.mark.parametrize("program", ["strict", "declared", "parsed"])
@pytest.mark.parametrize("form", [["--my.scale=2", "--my.loud"], ["--my.loud", "--my.scale", "2"]])
def test_options_of_the_users_program_reach_it(folder: Path, program: str, form: list[str]) -> None:
    worker(folder, 1, program, *form)
    np.testing.assert_array_equal(np.load(folder / "st/margins.npy")[1], 102)


def test_an_h_may_be_the_users_option(folder: Path) -> None:
    (folder / "hidden_size.py").write_text(
        ARGPARSE_STRICT.replace("ArgumentParser()", "ArgumentParser(add_help=False)").replace('"--my.scale"', '"-h"')
    )
    worker(folder, 1, "hidden_size", "-h", "256")
    np.testing.assert_array_equal(np.load(folder / "st/margins.npy")[1], 256)


@pytest.mark.parametrize("program", ["strict", "declared"])
def test_config_files_serve_both_programs_and_the_line_wins(folder: Path, program: str) -> None:
    (folder / "a.yaml").write_text(f"worker: {{index: 3, main_import: {program}, logdir: st}}\nmy: {{scale: 4}}\n")
    (folder / "b.yaml").write_text("worker: {index: 4}\nmy: {scale: 1e1}\n")
    run("training.worker", "-C", "a.yaml", "--config-file=b.yaml", cwd=folder)
    np.testing.assert_array_equal(np.load(folder / "st/margins.npy")[4], 10)
    run("training.worker", "-C", "a.yaml", "-C", "b.yaml", "--worker.index=6", "--my.scale=9", cwd=folder)
    np.testing.assert_array_equal(np.load(folder / "st/margins.npy")[6], 9)


def test_a_config_with_our_section_alone_is_not_shown_to_a_strict_program(folder: Path) -> None:
    (folder / "ours.yaml").write_text("worker: {index: 3, main_import: parsed, logdir: st}\n")
    run("training.worker", "-C", "ours.yaml", "--my.scale=6", cwd=folder)
    np.testing.assert_array_equal(np.load(folder / "st/margins.npy")[3], 6)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("raise ValueError('broken')", "ValueError: broken"),
        ("return {'masks': np.ones(8)}", "missing ['margins']"),
        ("return {'masks': np.ones(8), 'margins': np.ones(3), 'extra': 1}", "unknown ['extra']"),
        ("return {'masks': np.ones(8), 'margins': np.ones(4)}", "shape (4,)"),
        ("return {'masks': np.ones(8), 'margins': np.full(3, 1e9)}", "does not survive"),
        ("return {'masks': np.full(8, 2), 'margins': np.ones(3)}", "does not survive"),
        ("return {'masks': np.ones(8), 'margins': np.full(3, np.nan)}", "NaN or inf"),
        ("return {'masks': np.ones(8), 'margins': np.ones(3), '_completed': True}", "reserved"),
        ("return None", "must return a dict"),
        ("import sys; sys.exit()", "ended itself"),
        ("import sys; sys.exit(256)", "ended itself"),
    ],
)
def test_a_job_that_fails_leaves_its_row_incomplete(folder: Path, body: str, message: str) -> None:
    before = (folder / "st/margins.npy").read_bytes()
    (folder / "bad.py").write_text(f"import numpy as np\ndef main(index, logdir):\n    {body}\n")
    result = worker(folder, 2, "bad", status=1)
    assert message in result.stderr
    assert (folder / "st/margins.npy").read_bytes() == before
    assert not Store.open(folder / "st").completed().any()
    assert not (folder / "st/cmds.txt").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--worker.index=12", "--worker.main_import=plain", "--worker.logdir=st"], "rows 0..11"),
        (["--worker.index=-1", "--worker.main_import=plain", "--worker.logdir=st"], "rows 0..11"),
        (["--worker.index=x", "--worker.main_import=plain", "--worker.logdir=st"], "--worker.index is 'x'"),
        (["--worker.index=1", "--worker.main_import=nowhere", "--worker.logdir=st"], "there is no module 'nowhere'"),
        (["--worker.index=1", "--worker.main_import=plain", "--worker.logdir=nowhere"], "there is no store"),
        (["--worker.index=1", "--worker.main_import=plain"], "--worker.logdir is required"),
        (["--worker.index=1", "--worker.main_import=.plain", "--worker.logdir=st"], "give the name of a module"),
        (["--worker.idx=1"], "unknown option '--worker.idx'"),
    ],
)
def test_bad_requests_of_a_worker_are_one_line_and_status_2(folder: Path, arguments: list[str], message: str) -> None:
    one_line(run("training.worker", *arguments, cwd=folder, status=2), message)


@pytest.mark.parametrize(
    "wait",
    ["import time; time.sleep(60)", "import re; re.match(r'(a+)+$', 'a' * 40 + 'b')"],
    ids=["sleeping", "holding the interpreter lock"],
)
def test_a_job_that_takes_too_long_ends_with_a_status(folder: Path, wait: str) -> None:
    (folder / "late.py").write_text(f"def main(index, logdir):\n    {wait}\n    return {{}}\n")
    result = worker(folder, 2, "late", "--worker.job_timeout=1", status=1)
    assert "longer than 1 seconds" in result.stderr or "Timeout" in result.stderr
    assert not Store.open(folder / "st").completed().any()


def test_main_may_change_folder(folder: Path) -> None:
    (folder / "mover.py").write_text(PLAIN.replace("assert", "import os; os.chdir('/'); assert"))
    worker(folder, 7, "mover")
    assert Store.open(folder / "st").completed()[7]
    assert "--worker.index=7" in (folder / "st/cmds.txt").read_text()


def test_worker_writes_into_a_folder_of_the_original(folder: Path) -> None:
    old = folder / "old"
    old.mkdir()
    np.save(old / "masks.npy", np.zeros((4, 8), bool))
    np.save(old / "margins.npy", np.zeros((4, 3), np.float16))
    np.save(old / "_completed.npy", np.zeros(4, bool))
    run("training.worker", "--worker.index=2", "--worker.main_import=plain", "--worker.logdir=old", cwd=folder)
    np.testing.assert_array_equal(np.load(old / "margins.npy")[2], 2)
    assert np.load(old / "_completed.npy").tolist() == [False, False, True, False]


def test_a_designed_store_fills_the_masks(folder: Path) -> None:
    from datamodels.design import Design

    design = Design(n_train=8, alpha=0.5, n_models=4, seed=1)
    Store.create(folder / "designed", schema={"margins": {"shape": (3,), "dtype": "float16"}}, design=design)
    (folder / "maskless.py").write_text("def main(index, logdir): return {'margins': [1, 2, 3]}\n")
    run("training.worker", "--worker.index=2", "--worker.main_import=maskless", "--worker.logdir=designed", cwd=folder)
    np.testing.assert_array_equal(np.load(folder / "designed/masks.npy")[2], design.mask(2))


@pytest.mark.slow
def test_gnu_parallel_fills_a_store(folder: Path) -> None:
    command = (
        f"parallel -j 4 {sys.executable} -m datamodels.training.worker --worker.index={{}} "
        "--worker.main_import=plain --worker.logdir=st ::: {0..11}"
    )
    subprocess.run(["bash", "-c", command], cwd=folder, check=True, capture_output=True)
    store = Store.open(folder / "st")
    assert store.completed().all()
    assert store.verify().ok
    np.testing.assert_array_equal(store.array("margins")[:, 0], np.arange(12))
    lines = (folder / "st/cmds.txt").read_text().splitlines()
    assert sorted(line.split()[3] for line in lines) == sorted(f"--worker.index={i}" for i in range(12))


# -- regression -----------------------------------------------------------------------------------------


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Any]:
    from tests.conftest import plant

    truth = plant(300, 20, 4, noise=0.05, seed=4)
    spec = {
        "num_models": 310,
        "schema": {"masks": {"shape": [20], "dtype": "bool"}, "margins": {"shape": [4], "dtype": "float32"}},
    }
    from datamodels.spec import Spec

    store = Store.create(tmp_path / "st", spec=Spec.model_validate(spec))
    store.write_rows(np.arange(5, 305), {"masks": truth.masks, "margins": truth.outputs})
    return tmp_path, truth


CONFIG = """
data: {data_path: rows.beton, num_train: 250, num_val: 50, seed: null}
cfg: {k: 40, batch_size: 100, lr: 1e-2, eps: 1e-4, out_dir: out}
early_stopping: {check_every: 2, eps: 1e-5}
"""


def test_write_dataset_and_compute_datamodels(trained: tuple[Path, Any]) -> None:
    import torch

    folder, truth = trained
    wrote = run(
        "regression.write_dataset", "--cfg.data_dir=st", "--cfg.out_path=rows.beton", "--cfg.y_name=margins", cwd=folder
    )
    assert "300 rows" in wrote.stdout
    with np.load(folder / "rows.beton") as content:
        np.testing.assert_array_equal(content["masks"], truth.masks)
        np.testing.assert_array_equal(content["outputs"], truth.outputs.astype(np.float32))
    (folder / "c.yaml").write_text(CONFIG)
    result = run("regression.compute_datamodels", "-C", "c.yaml", cwd=folder)
    assert "cfg.lr has no effect" in result.stderr
    content = torch.load(folder / "out/datamodels.pt", weights_only=True)
    assert content["weight"].shape == (20, 4)
    assert content["weight"].dtype == torch.float32
    predicted = truth.masks @ content["weight"].double().numpy() + content["bias"].double().numpy()
    assert np.abs(predicted - truth.outputs).mean() < 0.1
    assert np.abs(content["weight"].numpy() - truth.weights).max() < 0.05
    lambdas = np.load(folder / "out/regularization_path/lambdas.npy")
    errors = np.load(folder / "out/regularization_path/val_error.npy")
    assert lambdas.shape == errors.shape == (4, 40)
    np.testing.assert_allclose(lambdas[:, -1] / lambdas[:, 0], 1e-4)
    best = np.nanargmin(errors, axis=1)
    np.testing.assert_allclose(content["lam"], lambdas[np.arange(4), best], rtol=1e-6)
    assert np.load(folder / "out/final_lambda/gap.npy").max() <= 1e-5
    np.testing.assert_array_equal(np.load(folder / "out/final_lambda/val_error.npy"), np.nanmin(errors, axis=1))
    refused = run("regression.compute_datamodels", "-C", "c.yaml", cwd=folder, status=2)
    assert "has results already" in refused.stderr


def test_compute_datamodels_from_a_store_with_target_ranges(trained: tuple[Path, Any]) -> None:
    import torch

    folder, _ = trained
    base = ["--data.data_path=st", "--data.num_train=250", "--data.num_val=50", "--cfg.k=10"]
    run("regression.compute_datamodels", *base, "--cfg.out_dir=all", cwd=folder)
    run("regression.compute_datamodels", *base, "--cfg.out_dir=some", "--data.target_start_ind=1",
        "--data.target_end_ind", "3", cwd=folder)  # fmt: skip
    whole, part = (torch.load(folder / name / "datamodels.pt", weights_only=True) for name in ("all", "some"))
    np.testing.assert_allclose(part["weight"], whole["weight"][:, 1:3], atol=1e-6)


def test_the_seed_draws_the_validation_rows(trained: tuple[Path, Any]) -> None:
    folder, _ = trained
    base = ["--data.data_path=st", "--data.num_train=250", "--data.num_val=50", "--cfg.k=10"]
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        run("regression.compute_datamodels", *base, f"--cfg.out_dir={name}", f"--data.seed={seed}", cwd=folder)
    a, b, c = (np.load(folder / name / "regularization_path/val_error.npy") for name in "abc")
    np.testing.assert_array_equal(a, b)
    assert not np.array_equal(a, c)


def test_use_bias_0_fits_without_intercept(trained: tuple[Path, Any]) -> None:
    import torch
    from sklearn.linear_model import Lasso

    folder, truth = trained
    run("regression.compute_datamodels", "--data.data_path=st", "--data.num_train=250", "--data.num_val=50",
        "--cfg.k=10", "--cfg.eps=1e-2", "--cfg.use_bias=0", "--cfg.out_dir=o", cwd=folder)  # fmt: skip
    content = torch.load(folder / "o/datamodels.pt", weights_only=True)
    assert not content["bias"].any()
    scale = truth.masks.std(axis=0)
    for k in range(4):
        model = Lasso(alpha=float(content["lam"][k]), fit_intercept=False, tol=1e-10, max_iter=100_000)
        expected = model.fit(truth.masks / scale, truth.outputs[:, k].astype(np.float32)).coef_ / scale
        np.testing.assert_allclose(content["weight"][:, k], expected, atol=2e-4)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.data_path=st", "--data.num_train=300", "--data.num_val=50", "--cfg.k=5", "--cfg.out_dir=x"], "there are 300"),
        (["--data.data_path=nowhere", "--data.num_train=3", "--data.num_val=5", "--cfg.k=5", "--cfg.out_dir=x"], "No such file"),
        (["--data.data_path=st", "--data.num_train=3", "--data.num_val=5", "--cfg.out_dir=x"], "--cfg.k is required"),
        (["--data.data_path=st", "--data.num_train=30", "--data.num_val=5", "--cfg.k=5", "--cfg.out_dir=x",
          "--data.y_name=foo"], "no key 'foo'"),
        (["--data.data_path=st", "--data.num_train=30", "--data.num_val=5", "--cfg.k=5", "--cfg.out_dir=x",
          "--data.target_start_ind=4"], "no range of the 4 targets"),
    ],
)  # fmt: skip
def test_bad_regression_requests(trained: tuple[Path, Any], arguments: list[str], message: str) -> None:
    one_line(run("regression.compute_datamodels", *arguments, cwd=trained[0], status=2), message)
    assert not (trained[0] / "x").exists()


def test_write_dataset_takes_a_slice_other_keys_and_every_row(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    outputs = rng.normal(size=(6, 2, 3)).astype(np.float32)
    np.save(tmp_path / "in.npy", rng.random((6, 5)) < 0.5)
    np.save(tmp_path / "y.npy", outputs)
    np.save(tmp_path / "_completed.npy", np.array([1, 1, 0, 1, 1, 0], bool))
    common = ["--cfg.data_dir=.", "--cfg.y_name=y", "--cfg.x_name", "in", "--cfg.y_slice=1"]
    run("regression.write_dataset", *common, "--cfg.out_path=a", cwd=tmp_path)
    run("regression.write_dataset", *common, "--cfg.out_path=b", "--cfg.ignore_completed", cwd=tmp_path)
    with np.load(tmp_path / "a") as a, np.load(tmp_path / "b") as b:
        np.testing.assert_array_equal(a["outputs"], outputs[[0, 1, 3, 4], 1])
        assert a["rows"].tolist() == [0, 1, 3, 4]
        np.testing.assert_array_equal(b["outputs"], outputs[:, 1])
    np.save(tmp_path / "_done.npy", np.arange(6) == 2)
    run("regression.write_dataset", *common, "--cfg.out_path=d", "--cfg.completed_name=_done", cwd=tmp_path)
    with np.load(tmp_path / "d") as d:
        assert d["rows"].tolist() == [2]
    bad = run("regression.write_dataset", *common[:-1], "--cfg.y_slice=2", "--cfg.out_path=c", cwd=tmp_path, status=2)
    one_line(bad, "y_slice is 2")


def test_help_lists_the_options(tmp_path: Path) -> None:
    for module, option in [
        ("training.worker", "--worker.job_timeout"),
        ("training.initialize_store", "--logging.spec"),
        ("regression.write_dataset", "--cfg.y_slice"),
        ("regression.compute_datamodels", "--data.num_val"),
    ]:
        assert option in run(module, "--help", cwd=tmp_path).stdout
    assert os.listdir(tmp_path) == []
