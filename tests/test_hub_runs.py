"""Whole runs on the Hub: their files, the dataset's card, and that no path, no token and no code travels."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import numpy as np
import pytest

import datamodels as dm
from datamodels.design import Design
from datamodels.errors import DatamodelsWarning, RequestError
from datamodels.hub import pull, push
from datamodels.hub.portable import portable, portable_h5ad
from datamodels.run import Run, RunAttribution, View
from datamodels.store import Store
from tests.conftest import row_values
from tests.hub_client import ADDRESS, LARGE_FILES, NAME, TOKEN, card_of, fetch, fill, hub, rebuild, send, store
from tests.hub_server import Hub

__all__ = ["hub", "store"]  # fixtures
pytestmark = LARGE_FILES


# -- the card -----------------------------------------------------------------------------------------


def test_the_card_says_what_there_is(hub: Hub, store: Store) -> None:
    send(store)
    front, body = card_of(hub)
    assert front["license"] == "mit"
    assert "datamodels" in front["tags"]
    assert front["configs"][0]["data_files"] == [{"split": "train", "path": "data/default/*.parquet"}]
    for said in ("| `default` | 20 | 40 | 12 | fixed_size, alpha 0.5, seed 3 |", "rows by ann (20)", f"datamodels pull {ADDRESS}", 'load_dataset("ann/run"'):  # fmt: skip
        assert said in body


def test_what_people_write_into_the_card_stays(hub: Hub, store: Store) -> None:
    send(store)
    front, body = card_of(hub)
    edited = "---\nlicense: cc0-1.0\nlanguage: en\ntags: [own]\nconfigs: [{config_name: mine, data_files: x.csv}]\n---\nMy words.\n"
    rebuild(hub, "README.md", (edited + body + "My end.\n").encode())
    fill(store, [25])
    push(str(store.path), ADDRESS, progress=False)
    front, body = card_of(hub)
    assert (front["license"], front["language"]) == ("cc0-1.0", "en")
    assert front["tags"] == ["own", "datamodels", "data-attribution"]
    assert [config["config_name"] for config in front["configs"]] == ["mine", "default"]
    assert "My words." in body
    assert body.endswith("My end.\n")
    assert "| `default` | 21 |" in body
    assert body.count("datamodels: begin") == 1
    rebuild(hub, "README.md", b"---\n: : [\n---\n")
    fill(store, [26])
    with pytest.raises(RequestError, match="is no YAML"):
        send(store)


def test_no_license_is_unknown_with_a_warning_once(hub: Hub, store: Store) -> None:
    with pytest.warns(DatamodelsWarning, match="license: unknown"):
        push(str(store.path), ADDRESS, progress=False)
    assert card_of(hub)[0]["license"] == "unknown"
    assert push(str(store.path), ADDRESS, progress=False).commits == 0
    assert send(store).commits == 1  # with a license now
    assert card_of(hub)[0]["license"] == "mit"


# -- runs ---------------------------------------------------------------------------------------------


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """A run of two stores and an attribution, with this machine's paths in all of them."""
    home = tmp_path / "home of ann" / "runs" / "a"
    for name, seed in (("half", 0), ("half_test", 1)):
        design = Design(n_train=12, alpha=0.5, n_models=30, seed=seed)
        made = Store.create(home / name, schema={"margins": {"shape": (4,), "dtype": "float32"}}, design=design)
        made.write_rows(range(30), {"margins": [design.mask(i)[:4] + row_values(i) for i in range(30)]})
    dm.fit(home / "half", dm.Ridge(), progress=False).save(home / "ridge.h5ad")
    (home / "recipe.yaml").write_text(
        f"dataset: {{kind: anndata, path: {tmp_path}/cells.h5ad}}\nrecipe: {{hidden: [8]}}\n"
    )
    Run(
        title="A run",
        created="2024-01-01T00:00:00+00:00",
        dataset="digits",
        task="datamodels.training.ensemble:TrainRecipe",
        commands=[f"datamodels demo --out '{home}' --models 30"],
        recipe={"half": {"hidden": [8]}, "file": f"{home}/x.yaml"},
        stores={"half": "half", "half_test": "half_test"},
        attributions={"ridge": RunAttribution(path="ridge.h5ad", store="half", test="half_test")},
        view=View(neighbours="ridge", embedding="ridge"),
    ).save(home)
    return home


def test_a_run_travels_whole(hub: Hub, run: Path, tmp_path: Path) -> None:
    sent = send(run)
    assert sent.rows == 60
    assert sent.files == ["run/recipe.yaml", "run/run.json", "run/ridge.h5ad"]
    assert [config["config_name"] for config in card_of(hub)[0]["configs"]] == ["half", "half_test"]
    assert card_of(hub)[1].startswith("\n# A run\n")
    result = fetch(tmp_path / "copy")
    assert sorted(result.files) == sorted(sent.files)
    copy = Run.load(tmp_path / "copy")
    assert copy.model_copy(update={"commands": [], "recipe": {}}) == Run.load(run).model_copy(
        update={"commands": [], "recipe": {}}
    )
    for name in ("half", "half_test"):
        assert Store.open(tmp_path / "copy" / name).fingerprint() == Store.open(run / name).fingerprint()
    mine, theirs = (dm.Attribution.load(place / "ridge.h5ad") for place in (run, tmp_path / "copy"))
    np.testing.assert_array_equal(mine.weights, theirs.weights)
    assert dm.lds(theirs, tmp_path / "copy" / "half_test").to_dict() == dm.lds(mine, run / "half_test").to_dict()
    assert send(run).commits == 0
    assert send(tmp_path / "copy").commits == 0
    assert fetch(tmp_path / "copy").files == []


def test_neither_paths_nor_the_token_leave(hub: Hub, run: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]) -> None:  # fmt: skip
    with caplog.at_level(logging.DEBUG):
        send(run)
        fetch(tmp_path / "copy")
    import anndata

    for path, content in hub.datasets[NAME].files.items():
        assert str(tmp_path).encode() not in content, path
        assert b"home of ann" not in content, path
    provenance = anndata.read_h5ad(tmp_path / "copy" / "ridge.h5ad").uns["datamodels"]["provenance"]
    assert '"path": "half"' in provenance
    assert str(tmp_path) in anndata.read_h5ad(run / "ridge.h5ad").uns["datamodels"]["provenance"]  # ours is untouched
    captured = capfd.readouterr()
    said = caplog.text + captured.out + captured.err
    written = [file.read_bytes() for file in tmp_path.rglob("*") if file.is_file()]
    for content in [*written, *hub.datasets[NAME].files.values(), said.encode()]:
        assert TOKEN.encode() not in content
    assert all(not seen.authorised for seen in hub.requests("^GET /large"))  # another host


def test_files_that_differ_are_kept_on_both_sides_unless_told(hub: Hub, run: Path, tmp_path: Path) -> None:
    send(run)
    fetch(tmp_path / "copy")
    (tmp_path / "copy" / "recipe.yaml").write_text("recipe: {hidden: [16]}\n")
    assert fetch(tmp_path / "copy").kept == ["run/recipe.yaml"]
    result = send(tmp_path / "copy")
    assert (result.kept, result.commits) == (["run/recipe.yaml"], 0)
    result = send(tmp_path / "copy", replace=True)
    assert (result.kept, result.files) == ([], ["run/recipe.yaml"])
    assert hub.datasets[NAME].files["run/recipe.yaml"] == b"recipe: {hidden: [16]}\n"


def test_one_store_of_a_run_is_pulled_anywhere(hub: Hub, run: Path, tmp_path: Path) -> None:
    send(run)
    with pytest.raises(RequestError, match="pull it to a folder, or one of its stores"):
        pull(ADDRESS, f"file://{tmp_path}/remote", progress=False)
    with pytest.raises(RequestError, match="has no store 'none'; it has half, half_test"):
        pull(ADDRESS, tmp_path / "x", store="none", progress=False)
    pull(ADDRESS, f"file://{tmp_path}/remote", store="half", progress=False)
    copy = Store.open(f"file://{tmp_path}/remote")
    assert copy.fingerprint() == Store.open(run / "half").fingerprint()
    assert push(copy.address, ADDRESS, store="half", progress=False).commits == 0


def test_a_run_that_leaves_its_folder_or_brings_code_is_refused(hub: Hub, run: Path, tmp_path: Path) -> None:
    send(run)
    described = json.loads(hub.datasets[NAME].files["run/run.json"])
    for change in (
        {"stores": {"half": "../../out"}},
        {"attributions": {"ridge": {"path": "../x.h5ad", "store": "half"}}},
    ):
        rebuild(hub, "run/run.json", json.dumps({**described, **change}).encode())
        with pytest.raises(RequestError, match=r"outside of the run's folder|damaged"):
            fetch(tmp_path / "copy")
    code = {"attributions": {"ridge": {"path": "conftest.py", "store": "half", "test": None}}}
    rebuild(hub, "run/run.json", json.dumps({**described, **code}).encode())
    rebuild(hub, "run/conftest.py", b"raise SystemExit")
    with pytest.raises(RequestError, match=r"only \.h5ad files travel"):
        fetch(tmp_path / "copy")
    assert not (tmp_path / "copy").exists()


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("/home/ann/runs/a/", "a"),
        ("datamodels demo --out /home/ann/demo --models 4", "datamodels demo --out demo --models 4"),
        ("x.py '/home/an n/y z' --a=/tmp/b", "x.py 'y z' --a=b"),
        ("https://h.co/a/b s3://b/c hf://datasets/u/n a/b ./c ~/d 1/2", None),
        ("file:///home/ann/x", "x"),
        ("folder:/home/ann/s", "folder:s"),
        ("C:\\Users\\ann\\x.h5ad", "x.h5ad"),
        ('{"path": "/home/a n/x", "l": ["/a/b"], "n": 1}', '{"path": "x", "l": ["b"], "n": 1}'),
        ("dataset: {path: /home/ann/cells.h5ad, label: x}\n", "dataset: {path: cells.h5ad, label: x}\n"),
    ],
)
def test_absolute_paths_become_names(text: str, clean: str | None) -> None:
    assert portable(text) == (text if clean is None else clean)
    assert portable({"k": [text]}) == {"k": [text if clean is None else clean]}


def test_an_h5ad_without_paths_is_sent_as_it_is(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    masks = rng.random((60, 20)) < 0.5
    path = dm.fit(masks=masks, outputs=masks @ rng.normal(size=(20, 4)), estimator=dm.Ridge()).save(tmp_path / "a.h5ad")
    assert portable_h5ad(path, tmp_path / "b.h5ad") == path
    assert not (tmp_path / "b.h5ad").exists()
