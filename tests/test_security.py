"""What files and addresses of others cannot do, run code and reach outside; and where secrets never are."""

from __future__ import annotations

import ast
import json
import os
import shutil
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels import options
from datamodels.attribution import Attribution
from datamodels.design import Design
from datamodels.errors import DatamodelsError, RequestError
from datamodels.run import Run
from datamodels.spec import Spec
from datamodels.store import Store
from datamodels.store.objects import Objects
from datamodels.sweep import Sweep
from tests.damage import DESIGN, SCHEMA
from tests.s3 import S3

ROOT = Path(__file__).parent.parent


# -- code in data -------------------------------------------------------------------------------------

# Where each of these stands with a reason: the driver's task travels to its own workers, and CIFAR-10 is read by an unpickler
# that makes nothing but arrays of bytes and Python's own containers.
ALLOWED = {
    ("executors/local.py", "cloudpickle.loads"),
    ("executors/local.py", "cloudpickle.dumps"),
    ("executors/slurm.py", "cloudpickle.dumps"),
    ("executors/packed.py", "cloudpickle.loads"),
    ("executors/ray.py", "cloudpickle.dumps"),
    ("datasets/cifar.py", "import pickle"),
    ("datasets/cifar.py", "pickle.Unpickler"),
    ("datasets/cifar.py", "pickle.UnpicklingError"),
    ("files.py", "yaml.load"),  # with a Loader that derives from SafeLoader
}
_MODULES = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}
_CALLS = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "yaml.load",
    "yaml.load_all",
    "yaml.unsafe_load",
    "yaml.full_load",
}


def dangers(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Whatever could run code that a file holds, or write where an archive says."""
    for node in ast.walk(tree):
        line = getattr(node, "lineno", 0)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from ((line, f"import {name}") for name in names if name.split(".")[0] in _MODULES - {"cloudpickle"})
        elif isinstance(node, ast.Attribute) and ast.unparse(node) == "pickle.Unpickler":
            yield line, "pickle.Unpickler"
        elif isinstance(node, ast.Call):
            called = ast.unparse(node.func)
            given = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            if called in _CALLS or called.split(".")[0] in _MODULES or called.endswith((".extractall", ".extract")):
                yield line, called
            elif called in ("np.load", "numpy.load") and given.get("allow_pickle", "False") != "False":
                yield line, "np.load(allow_pickle)"
            elif called == "torch.load" and given.get("weights_only") != "True":
                yield line, "torch.load without weights_only"
            elif (
                called.startswith(("subprocess.", "asyncio.create_subprocess"))
                and given.get("shell", "False") != "False"
            ):
                yield line, "a shell"


def test_no_module_runs_code_from_data() -> None:
    source = ROOT / "src" / "datamodels"
    found = {}
    for file in sorted(source.rglob("*.py")):
        name = str(file.relative_to(source))
        for line, what in dangers(ast.parse(file.read_text())):
            if (name, what) not in ALLOWED:
                found[f"{name}:{line}"] = what
    assert found == {}


@pytest.mark.parametrize(
    "code",
    ["import pickle", "from pickle import load", "eval(x)", "np.load(f, allow_pickle=True)", "torch.load(f)",
     "torch.load(f, weights_only=False)", "yaml.load(f)", "archive.extractall(d)", "subprocess.run(c, shell=True)",
     "cloudpickle.loads(b)", "joblib.load(f)"],
)  # fmt: skip
def test_the_look_at_the_source_sees_what_it_should(code: str) -> None:
    assert list(dangers(ast.parse(code)))


class Bomb:
    """What a pickle runs when it is loaded."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...]]:
        return os.mkdir, (str(self.file),)


def test_files_with_pickles_are_refused_unread(tmp_path: Path) -> None:
    import torch

    went_off = tmp_path / "went-off"
    np.save(tmp_path / "array.npy", np.array([Bomb(went_off)] * 10, dtype=object), allow_pickle=True)
    torch.save({"weight": Bomb(went_off)}, tmp_path / "old.pt")
    store = Store.create(tmp_path / "store", schema=SCHEMA, design=DESIGN, labels=np.arange(12) % 2)
    shutil.copy(tmp_path / "array.npy", tmp_path / "store" / "_labels.npy")
    with pytest.raises(DatamodelsError, match=r"_labels\.npy is damaged"):
        store.labels()
    shutil.copy(tmp_path / "array.npy", tmp_path / "store" / "margins.npy")
    with pytest.raises(DatamodelsError, match=r"margins\.npy holds object"):
        Store.open(tmp_path / "store")
    with pytest.raises(DatamodelsError, match="classic layout"):
        Attribution.import_pt(tmp_path / "old.pt")
    assert not went_off.exists()


def test_yaml_makes_no_objects_and_no_endless_values(tmp_path: Path) -> None:
    file = tmp_path / "a.yaml"
    layers = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    layers += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 12)]
    for text in ("parameters: !!python/object/apply:os.mkdir [/tmp/x]", "a: !!bool x", "a: !!timestamp x", "a: 2001-99-99",
                 "a: &b [*b]", "\n".join(layers)):  # fmt: skip
        file.write_text(text)
        with pytest.raises(RequestError):
            Sweep.read(file)
        with pytest.raises(RequestError):
            options.read_config_file(str(file))
    assert not Path("/tmp/x").exists()


# -- paths --------------------------------------------------------------------------------------------

OUTSIDE = ["../x", "/x", "a/b", "a/../../x", "..", ".", "", ".hidden", "a\0b", "a\nb", "a\\b", "C:x", "é", "-a", "a b"]


def bare(key: str) -> dict[str, Any]:
    return {"num_models": 3, "schema": {key: {"shape": [], "dtype": "float32"}}}


@pytest.mark.parametrize("key", [*OUTSIDE, "_completed", "_checksum", "_labels", "_design_masks"])
def test_keys_stay_inside_of_a_store(tmp_path: Path, key: str) -> None:
    (tmp_path / "spec.json").write_text(json.dumps(bare(key)))
    with pytest.raises(RequestError, match=r"reserved|cannot name a file"):
        Spec.read(tmp_path / "spec.json")
    with pytest.raises(RequestError, match=r"reserved|cannot name a file"):
        Store.create(tmp_path / "store", schema={key: SCHEMA["margins"]}, design=DESIGN)
    assert sorted(file.name for file in tmp_path.rglob("*")) == ["spec.json"]


@pytest.mark.parametrize(
    "key", ["failures", "campaigns", "workers", "store", "store.json", "_rows", "zarr.json", "a..b"]
)
def test_keys_named_as_what_else_a_store_holds_do_no_harm(tmp_path: Path, key: str) -> None:
    def fill(store: Store) -> None:
        store.record_failure(2, "why")
        store.heartbeat("one", {"updated": 0})
        store.write_rows([0, 1], {key: [1.5, 2.5]})
        again = Store.open(store.address)
        assert np.asarray(again.array(key)[:2]).tolist() == [1.5, 2.5]
        assert again.completed().tolist() == [True, True, False]
        assert list(again.failures()) == [2]
        assert again.verify().ok

    spec = Spec.model_validate(bare(key))
    fill(Store.create(tmp_path / "local", spec=spec))
    for address in (f"memory://{uuid.uuid4().hex}", (tmp_path / "remote").as_uri()):
        if key in ("_rows", "zarr.json", "failures", "campaigns"):
            with pytest.raises(RequestError, match="needs the name"):
                Store.create(address, spec=spec)
        else:
            fill(Store.create(address, spec=spec))


@pytest.mark.parametrize("name", [*OUTSIDE, "../../store", "x/../../_completed"])
def test_campaigns_write_into_their_folder_alone(tmp_path: Path, name: str) -> None:
    for place in (tmp_path / "local", (tmp_path / "remote").as_uri()):
        store = Store.create(place, schema=SCHEMA, design=DESIGN)
        for act in (
            lambda s: s.heartbeat(name, {}),
            lambda s: s.ask_to_stop(name, "x"),
            lambda s: s.asked_to_stop(name),
        ):
            with pytest.raises(RequestError, match="cannot name a campaign"):
                act(store)
    folder = tmp_path / "local" / "campaigns"
    folder.mkdir()
    (folder / "forged.json").write_text(json.dumps({"name": name, "updated": 0, "running": True}))
    assert Store.open(tmp_path / "local").campaigns() == []


@pytest.mark.parametrize("address", ["file:///a/../b", "file:///a/%2e%2e/b", "s3://bucket/../other", "memory://a/../b"])
def test_addresses_do_not_climb(address: str) -> None:
    with pytest.raises(RequestError, match=r"'\.\.'"):
        Objects(address)


@pytest.mark.parametrize("place", ["../outside", "/etc", "inside/../../outside", "link", "a\0b"])
def test_paths_of_a_run_stay_in_its_folder(tmp_path: Path, place: str) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "link").symlink_to(tmp_path)
    run = {
        "title": "t", "created": "now", "stores": {"s": "store"}, "view": {"neighbours": "a", "embedding": "a"},
        "attributions": {"a": {"path": "a.h5ad", "store": "s"}},
    }  # fmt: skip
    for change in ({"stores": {"s": place}}, {"attributions": {"a": {"path": place, "store": "s"}}}):
        (folder / "run.json").write_text(json.dumps({**run, **change}))
        with pytest.raises(RequestError, match="lies outside of the run's folder"):
            Run.load(folder)


def test_a_record_of_a_store_cannot_name_files_outside(tmp_path: Path) -> None:
    """Also one that was made by hand, with a digest that fits."""
    from datamodels.store.meta import _digest

    store = Store.create(tmp_path / "store", schema=SCHEMA, design=DESIGN)
    (tmp_path / "secret.npy").write_bytes((store.path / "margins.npy").read_bytes())
    record = json.loads((store.path / "store.json").read_text())
    record["spec"]["schema"]["../secret"] = record["spec"]["schema"]["margins"]
    record["digest"] = _digest(record["spec"], record["design"])
    (store.path / "store.json").write_text(json.dumps(record))
    with pytest.raises(DatamodelsError, match="cannot name a file"):
        Store.open(store.path)


# -- secrets ------------------------------------------------------------------------------------------

SECRETS = {
    "AWS_SECRET_ACCESS_KEY": "aws-secret-0123456789",
    "AWS_SESSION_TOKEN": "aws-session-0123456789",
    "HF_TOKEN": "hf_secret0123456789",
    "WANDB_API_KEY": "wandb-secret-0123456789",
}


def test_secrets_are_in_no_file_log_or_provenance(s3: S3, tmp_path: Path) -> None:
    """A campaign with failing rows, a fit and a refused address, with secrets in the environment of all processes."""
    import obstore

    address = f"{s3.bucket()}/run"
    Store.create(address, schema=SCHEMA, design=Design(n_train=12, alpha=0.5, n_models=60, seed=3))
    environment = {**os.environ, **SECRETS, "AWS_ENDPOINT_URL": s3.url}

    def run(*arguments: str, **more: str) -> str:
        result = subprocess.run(
            [sys.executable, "-m", "datamodels", *arguments, "--debug"],
            cwd=ROOT, env={**environment, **more}, capture_output=True, text=True,
        )  # fmt: skip
        return result.stdout + result.stderr

    said = run("train", address, "--task", "tests.tasks:fails_on_three", "--jobs", "1", "--json")
    assert '"failed": [3]' in said
    said += run("train", address, "--task", "tests.tasks:good", "--jobs", "1", TMPDIR=str(tmp_path))
    assert Store.open(address).completed().all()
    said += run("fit", address, "--estimator", "ridge", "--out", str(tmp_path / "ridge.h5ad"))
    said += run("status", f"{address}-that-is-not-there")  # tracebacks of the client of the service
    said += run("status", f"s3://key:{SECRETS['HF_TOKEN'][::-1]}@bucket/run").replace(SECRETS["HF_TOKEN"][::-1], "seen")
    assert "seen" not in said
    local = Store.create(tmp_path / "local", schema=SCHEMA, design=DESIGN)
    said += run("train", str(local.path), "--task", "tests.tasks:fails_on_three", "--executor", "inline")
    contents = {str(file): file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()}
    objects = Objects(address)
    for name in objects.names(""):
        contents[name] = bytes(obstore.get(objects.store, name).bytes())
    assert any("failures/3.log" in name for name in contents)
    assert any(name.endswith("ridge.h5ad") for name in contents)
    assert len(contents) > 15
    for secret in SECRETS.values():
        assert secret not in said
        assert [name for name, content in contents.items() if secret.encode() in content] == []
    assert json.dumps(Attribution.load(tmp_path / "ridge.h5ad").provenance, default=str).find("secret") == -1
