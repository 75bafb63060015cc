"""Push, pull and claims against a local server, with the real client library."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datamodels as dm
from datamodels.cli import main
from datamodels.design import Design
from datamodels.errors import CorruptStoreError, DatamodelsWarning, NewerFormatError, RequestError
from datamodels.hub import claim, pull, push, remote
from datamodels.hub.portable import portable, portable_h5ad
from datamodels.hub.remote import HubError
from datamodels.hub.shards import Shard, read_shard, write_shard
from datamodels.run import Run, RunAttribution, View
from datamodels.spec import Spec
from datamodels.store import Store
from datamodels.sweep import Sweep
from tests.conftest import row_values
from tests.hub_server import Fault, Hub
from tests.store_contract import DESIGN, SCHEMA, values

NAMES = {"train": [f"patient {i}" for i in range(12)]}

TOKEN, OTHER = "hf_AnnsSecretToken", "hf_BobsSecretToken"
ADDRESS = "hf://datasets/ann/run"
NAME = "ann/run"
# The client's own way to send large files.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client library of this process takes for the real one, where ann is logged in."""
    from huggingface_hub import close_session, constants

    server = Hub({TOKEN: "ann", OTHER: "bob"})
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", tmp_path / "hf" / "assets")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(remote, "_PAUSES", (0.01, 0.02, 0.03, 0.04))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    close_session()
    server.close()


@pytest.fixture
def store(new_store: Callable[..., Store]) -> Store:
    """Rows 0..19 of 40."""
    return fill(new_store(40), range(20))


def fill(store: Store, rows: Sequence[int]) -> Store:
    store.write_rows(rows, {"margins": [row_values(row) for row in rows]})
    return store


def send(source: Any, **options: Any) -> Any:
    return push(
        str(source.path) if isinstance(source, Store) else source, ADDRESS, license="mit", progress=False, **options
    )


def fetch(target: Path, **options: Any) -> Any:
    return pull(ADDRESS, target, progress=False, **options)


def same(a: Store, b: Store) -> bool:
    """Byte for byte in all complete rows."""
    done = a.completed()
    return np.array_equal(done, b.completed()) and all(
        np.asarray(a.array(key)[done]).tobytes() == np.asarray(b.array(key)[done]).tobytes() for key in a.keys
    )


def shards(hub: Hub) -> list[str]:
    return sorted(path for path in hub.datasets[NAME].files if path.startswith("data/"))


def rebuild(hub: Hub, path: str, content: bytes) -> None:
    """A commit that was not made by us: `path` has another content."""
    dataset = hub.datasets[NAME]
    hub.large[hashlib.sha256(content).hexdigest()] = content
    dataset.add({**dataset.files, path: content}, "by hand")


# -- rows ---------------------------------------------------------------------------------------------


def test_a_store_travels_there_and_back_byte_for_byte(hub: Hub, store: Store, tmp_path: Path) -> None:
    sent = send(store)
    assert (sent.ok, sent.rows, sent.commits) == (True, 20, 1)
    assert fetch(tmp_path / "copy").stores["default"].copied == list(range(20))
    copy = Store.open(tmp_path / "copy")
    assert same(store, copy)
    assert copy.verify().ok
    assert copy.fingerprint() == store.fingerprint()
    assert copy.n_models == 40


def test_only_new_rows_travel_and_nothing_new_makes_no_commit(hub: Hub, store: Store) -> None:
    send(store, shard_rows=10)
    first, uploads = shards(hub), sum(seen.size for seen in hub.requests("^PUT /large"))
    hub.seen.clear()
    again = send(store, shard_rows=10)
    assert (again.rows, again.commits) == (0, 0)
    assert not hub.requests("commit|preupload|^PUT")
    fill(store, [20, 21, 25])
    more = send(store, shard_rows=10)
    assert more.stores["default"].copied == [20, 21, 25]
    assert more.stores["default"].already_there == list(range(20))
    [new] = set(shards(hub)) - set(first)
    assert new.startswith("data/default/rows-00000020-00000025-")
    [put] = hub.requests("^PUT /large")
    assert put.size < uploads
    assert len(hub.datasets[NAME].commits) == 3  # the first is the Hub's own
    before = hub.datasets[NAME].commits[1][1]
    assert all(hub.datasets[NAME].files[path] == before[path] for path in first)


def test_every_type_shape_and_bit_survives(hub: Hub, tmp_path: Path) -> None:
    schema = {
        "half": {"shape": (3,), "dtype": "float16", "allow_nonfinite": True},
        "single": {"shape": (2, 0, 3), "dtype": "float32"},
        "wave": {"shape": (2,), "dtype": "complex64"},
        "count": {"shape": (2, 2), "dtype": "uint64"},
        "small": {"shape": (), "dtype": "int8"},
        **SCHEMA,
    }
    sweep = Sweep({"lr": [0.1, 0.2], "name": ["a", "b"]})
    original = Store.create(tmp_path / "a", schema=schema, design=DESIGN, sweep=sweep, labels=["b", "a"] * 6, ids=NAMES)
    rng = np.random.default_rng(0)
    for row in range(0, 10, 3):
        odd = np.array([0x7E01, 0xFE02, 0x8000], dtype=np.uint16).view(np.float16)  # two NaNs, and minus zero
        wave = (rng.normal(size=2) + 1j * rng.normal(size=2)).astype(np.complex64)
        count = np.array([[2**64 - 1, 0], [row, 1]], dtype=np.uint64)
        one = {"half": odd, "single": np.zeros((2, 0, 3)), "wave": wave, "count": count, "small": -row}
        original.write_row(row, {**one, **values(row)})
    send(original)
    fetch(tmp_path / "b")
    copy = Store.open(tmp_path / "b")
    assert same(original, copy)
    assert copy.fingerprint() == original.fingerprint()
    np.testing.assert_array_equal(copy.labels(), [1, 0] * 6)
    assert copy.ids("train").tolist() == NAMES["train"]
    assert copy.sweep == sweep


def test_explicit_masks_stores_without_design_and_without_masks_travel(hub: Hub, tmp_path: Path) -> None:
    masks = np.random.default_rng(0).random((6, 12)) < 0.5
    spec = Spec.model_validate({"num_models": 6, "schema": {"y": {"shape": [], "dtype": "float32"}}})
    explicit = Store.create(tmp_path / "explicit", spec=spec, design=Design.explicit(masks))
    explicit.write_row(4, {"y": 1.5})
    send(explicit, store="explicit")
    fetch(tmp_path / "explicit2", store="explicit")
    copy = Store.open(tmp_path / "explicit2")
    np.testing.assert_array_equal(copy.masks(), masks)
    assert copy.fingerprint() == explicit.fingerprint()
    bare = Store.create(tmp_path / "bare", spec=spec)
    bare.write_row(2, {"y": 2.5})
    send(bare, store="bare")
    fetch(tmp_path / "bare2", store="bare")
    assert same(bare, Store.open(tmp_path / "bare2"))


def test_rows_of_a_folder_without_checksums_travel_with_checksums(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "classic"
    folder.mkdir()
    np.save(folder / "margins.npy", np.arange(12, dtype=np.float32).reshape(6, 2))
    np.save(folder / "_completed.npy", np.arange(6) % 2 == 0)
    send(folder)
    assert send(folder).commits == 0
    assert fetch(tmp_path / "copy").rows == 3
    copy = Store.open(tmp_path / "copy")
    assert copy.verify().ok
    assert copy.array("margins")[4].tolist() == [8, 9]


def test_a_pull_completes_and_leaves_alone(
    hub: Hub, store: Store, new_store: Callable[..., Store], tmp_path: Path
) -> None:
    send(store, shard_rows=5)
    here = fill(new_store(10, "here"), [0, 1, 2, 3, 4, 7])
    before = {row: here.array("margins")[row].tobytes() for row in (0, 7)}
    hub.seen.clear()
    result = fetch(tmp_path / "here").stores["default"]
    assert result.copied == [5, 6, *range(8, 20)]
    assert len(hub.requests("^GET /large")) == 3  # the shard of rows 0..4 is not fetched
    here = Store.open(tmp_path / "here")
    assert here.n_models == 40  # extended
    assert same(store, here)
    assert all(here.array("margins")[row].tobytes() == value for row, value in before.items())
    hub.seen.clear()
    assert fetch(tmp_path / "here").rows == 0
    assert not hub.requests("^GET /large")


def test_a_pull_that_broke_off_goes_on(hub: Hub, store: Store, tmp_path: Path) -> None:
    send(store, shard_rows=5)

    def fail_from_the_third(request: str) -> None:
        if len(hub.requests("^GET /large")) == 2 and not hub.faults:
            hub.faults.append(Fault("^GET /large", 500, 100))

    hub.before = fail_from_the_third
    with pytest.raises(HubError, match="the Hub answered 500"):
        fetch(tmp_path / "copy")
    assert Store.open(tmp_path / "copy").completed().sum() == 10
    hub.faults[:] = [Fault("nothing", 500)]
    hub.seen.clear()
    assert fetch(tmp_path / "copy").rows == 10
    assert len(hub.requests("^GET /large")) == 2
    assert same(store, Store.open(tmp_path / "copy"))


def test_a_download_that_breaks_off_goes_on_where_it_was(hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 256)
    send(store)
    hub.cut = 1
    assert fetch(tmp_path / "copy").rows == 20
    first, second = hub.requests("^GET /large")
    assert first.start == 0 < second.start
    assert same(store, Store.open(tmp_path / "copy"))


def test_a_longer_store_makes_the_shared_one_longer(hub: Hub, store: Store, tmp_path: Path) -> None:
    send(store)
    fetch(tmp_path / "copy")
    copy = Store.open(tmp_path / "copy")
    copy.extend(20)
    fill(copy, [55])
    assert send(copy).stores["default"].copied == [55]
    assert json.loads(hub.datasets[NAME].files["stores/default/store.json"])["spec"]["num_models"] == 60
    assert send(store).commits == 0  # the shorter one has nothing to say
    fetch(Path(store.path))
    assert same(Store.open(store.path), copy)


def test_a_store_of_another_identity_is_refused(
    hub: Hub, store: Store, new_store: Callable[..., Store], tmp_path: Path
) -> None:
    send(store)
    commits = len(hub.datasets[NAME].commits)
    other = fill(new_store(40, "seed", seed=4), [30])
    for go in (lambda: send(other), lambda: fetch(tmp_path / "seed")):
        with pytest.raises(RequestError, match="another design than 'default' on the Hub"):
            go()
    schema = Store.create(tmp_path / "schema", schema=SCHEMA, design=store.design)
    with pytest.raises(RequestError, match="another schema"):
        send(schema)
    assert len(hub.datasets[NAME].commits) == commits


def test_the_first_content_of_a_row_stays_and_the_conflict_is_named(hub: Hub, store: Store, new_store: Callable[..., Store], tmp_path: Path) -> None:  # fmt: skip
    send(store)
    other = new_store(40, "other")
    other.write_rows([5, 6, 30], {"margins": [row_values(5), row_values(99), row_values(30)]})
    result = send(other)
    assert (result.ok, result.stores["default"].conflicting) == (False, [6])
    assert result.stores["default"].copied == [30]
    pulled = fetch(tmp_path / "other").stores["default"]
    assert pulled.conflicting == [6]
    assert 6 not in pulled.copied
    np.testing.assert_array_equal(Store.open(tmp_path / "other").array("margins")[6], row_values(99))
    fetch(tmp_path / "fresh")
    np.testing.assert_array_equal(Store.open(tmp_path / "fresh").array("margins")[6], row_values(6))


def test_of_two_shards_with_one_row_the_first_counts(hub: Hub, store: Store, new_store: Callable[..., Store], tmp_path: Path) -> None:  # fmt: skip
    """Such as a pull request brings that is merged by hand."""
    send(store)
    mine = dict(hub.datasets[NAME].files)
    hub.datasets[NAME].commits[-1:] = []
    other = new_store(40, "other")
    other.write_rows([6], {"margins": [row_values(99)]})
    send(other)
    theirs = hub.datasets[NAME].files
    later = {path.replace("/00000000-", "/00000001-"): data for path, data in theirs.items() if "index/" in path}
    hub.datasets[NAME].add({**mine, **{path: theirs[path] for path in shards(hub)}, **later}, "both")
    result = fetch(tmp_path / "copy").stores["default"]
    assert (result.copied, result.conflicting) == (list(range(20)), [6])
    np.testing.assert_array_equal(Store.open(tmp_path / "copy").array("margins")[6], row_values(6))


def test_a_damaged_row_is_not_sent(hub: Hub, store: Store) -> None:
    file = Path(store.path) / "margins.npy"
    data = bytearray(file.read_bytes())
    data[-40 * 16 + 3 * 16] ^= 1
    file.write_bytes(data)
    result = send(store)
    assert (result.ok, result.stores["default"].bad_in_source) == (False, [3])
    assert result.rows == 19
    assert "rows-00000000-00000019" in shards(hub)[0]


def test_rows_with_a_wrong_checksum_or_mask_are_refused_and_named(hub: Hub, store: Store, tmp_path: Path) -> None:
    send(store, shard_rows=10)
    first, second = shards(hub)
    whole = Shard(first, np.arange(10), store.checksums()[:10])
    (tmp_path / "x").write_bytes(hub.datasets[NAME].files[first])
    content = {key: value.copy() for key, value in read_shard(tmp_path / "x", store.spec, whole).items()}
    content["margins"][4] += 1
    write_shard(tmp_path / "y", store.spec, whole, content)
    rebuild(hub, first, (tmp_path / "y").read_bytes())
    rebuild(hub, second, b"no parquet")
    result = fetch(tmp_path / "copy").stores["default"]
    assert result.bad_in_source == [4, *range(10, 20)]
    copy = Store.open(tmp_path / "copy")
    assert np.flatnonzero(copy.completed()).tolist() == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert copy.verify().ok


def test_a_mask_that_is_not_the_designs_is_refused_though_its_checksum_is_right(hub: Hub, tmp_path: Path) -> None:
    spec = Spec.model_validate(
        {"num_models": 4, "schema": {"masks": {"shape": [12], "dtype": "bool"}, "y": {"shape": [], "dtype": "float32"}}}
    )
    free = Store.create(tmp_path / "free", spec=spec)
    design = Design(n_train=12, alpha=0.5, n_models=4)
    free.write_rows(
        range(4), {"masks": [design.mask(0), design.mask(1), ~design.mask(2), design.mask(3)], "y": range(4)}
    )
    send(free)
    strict = Store.create(tmp_path / "strict", spec=spec, design=design)
    strict_meta = json.loads((tmp_path / "strict" / "store.json").read_text())
    rebuild(hub, "stores/default/store.json", json.dumps(strict_meta).encode())
    result = fetch(tmp_path / "strict").stores["default"]
    assert (result.copied, result.bad_in_source) == ([0, 1, 3], [2])
    assert not strict.completed()[2]


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("store.json", b"{", "store.json is damaged"),
        ("store.json", b'{"format_version": 99}', "has format version 99"),
        ("index", b"{}", "was edited"),
    ],
)
def test_edited_and_newer_files_are_refused(hub: Hub, store: Store, tmp_path: Path, file: str, content: bytes, message: str) -> None:  # fmt: skip
    send(store)
    [path] = [path for path in hub.datasets[NAME].files if file in path and "gitattributes" not in path]
    (tmp_path / "hf").rename(tmp_path / "forgotten")  # the index is kept once it was read
    rebuild(hub, path, content)
    with pytest.raises((CorruptStoreError, NewerFormatError), match=message):
        fetch(tmp_path / "copy")


def test_datasets_reads_what_was_pushed(
    hub: Hub, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    send(store, shard_rows=7)
    fill(store, range(30, 35))
    send(store, shard_rows=7)
    folder = hub.save(NAME, tmp_path / "clone")
    rows = datasets.load_dataset(str(folder), split="train", cache_dir=str(tmp_path / "cache"))
    assert sorted(rows.column_names) == ["checksum", "margins", "masks", "row"]
    table = rows.with_format("numpy")[:]
    assert table["row"].tolist() == [*range(20), *range(30, 35)]
    assert (table["margins"].dtype, table["masks"].dtype) == (np.float32, np.bool_)
    np.testing.assert_array_equal(table["margins"], np.asarray(store.array("margins")[table["row"]]))
    np.testing.assert_array_equal(table["masks"], store.masks()[table["row"]])
    np.testing.assert_array_equal(table["checksum"], store.checksums()[table["row"]])
    described = json.loads((folder / "stores/default/store.json").read_text())["design"]
    np.testing.assert_array_equal(Design.from_dict(described).masks()[table["row"]], table["masks"])  # as the card says


# -- the card -----------------------------------------------------------------------------------------


def card_of(hub: Hub) -> tuple[dict[str, Any], str]:
    import yaml

    text = hub.datasets[NAME].files["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


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


# -- claims and several people ------------------------------------------------------------------------


def test_claims_do_not_overlap_and_end(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, [24])
    send(store)
    assert [claim(ADDRESS, rows=6).rows for _ in range(3)] == ["20:27", "27:33", "33:39"]  # row 24 is there
    assert claim(ADDRESS, rows=6, hours=1).to_dict()["missing"] == 1
    with pytest.raises(
        RequestError, match=r"no row of 'default' .* is free: 21 of 40 are there, 19 claimed, the first until"
    ):
        claim(ADDRESS)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=2)

    monkeypatch.setattr("datamodels.hub.claims.datetime", Later)
    assert claim(ADDRESS, rows=9).rows == "39:40"
    monkeypatch.setattr(Later, "now", classmethod(lambda cls, tz=None: datetime.now(tz) + timedelta(hours=26)))
    assert claim(ADDRESS, rows=9).rows == "20:30"
    assert (
        len([path for path in hub.datasets[NAME].files if path.startswith("claims/")]) == 1
    )  # those that ended are removed


def test_a_claim_stops_before_rows_of_others(hub: Hub, store: Store) -> None:
    send(store)
    held = datetime.now(UTC) + timedelta(hours=1)
    rebuild(hub, f"claims/default/00000025-00000030-5-{held:%Y%m%dT%H%M%SZ}-{'0' * 12}.json", b"{}")
    assert [claim(ADDRESS, rows=8).rows for _ in range(2)] == ["20:25", "30:38"]


def test_the_slower_of_two_claimers_chooses_again(hub: Hub, store: Store) -> None:
    send(store)
    met = threading.Barrier(4)
    passed: set[int] = set()

    def meet(request: str) -> None:
        """All four have read the same head before any of them commits."""
        if "/commit/" in request and threading.get_ident() not in passed and len(passed) < 4:
            passed.add(threading.get_ident())
            met.wait(20)

    hub.before = meet
    taken: list[str] = []
    people = [threading.Thread(target=lambda: taken.append(claim(ADDRESS, rows=5).rows)) for _ in range(4)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert sorted(taken) == ["20:25", "25:30", "30:35", "35:40"]
    assert len(hub.requests("commit")) > 5  # some had to try again


def test_a_claim_whose_answer_was_lost_is_not_made_twice(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi, errors

    send(store)
    commit = HfApi.create_commit
    lost: list[int] = []

    def lose_the_answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = commit(self, *args, **kwargs)
        if not lost:
            lost.append(1)
            raise errors.HTTPError("the connection was lost")
        return done

    monkeypatch.setattr(HfApi, "create_commit", lose_the_answer)
    assert claim(ADDRESS, rows=5).rows == "20:25"
    assert len([path for path in hub.datasets[NAME].files if path.startswith("claims/")]) == 1


def test_two_people_with_folders_of_their_own_extend_one_run_at_once(hub: Hub, store: Store, tmp_path: Path) -> None:
    store.extend(40)
    send(store)
    hub.datasets[NAME].writers |= {"ann", "bob"}
    program = (
        "import sys\nfrom datamodels.hub import claim, pull, push\nfrom datamodels.training.campaign import train\n"
        "folder, address = sys.argv[1:]\n"
        "pull(address, folder, progress=False)\n"
        "for _ in range(3):\n"
        "    taken = claim(address, rows=10)\n"
        "    train(folder, 'tests.tasks:good', executor='inline', progress=False, rows=slice(taken.start, taken.stop))\n"
        "    assert push(folder, address, progress=False, shard_rows=10).ok\n"
    )
    people = {
        name: subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / name), ADDRESS],
            env=environment(hub, tmp_path / f"hf-{name}", token),
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, token in (("ann", TOKEN), ("bob", OTHER))
    }
    for name, process in people.items():
        _, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, f"{name}: {complaint}"
    fetch(tmp_path / "all")
    everything = Store.open(tmp_path / "all")
    assert everything.completed().all()
    assert everything.verify().ok
    parts = [np.flatnonzero(Store.open(tmp_path / name).completed()) for name in people]
    assert sorted(np.concatenate(parts).tolist()) == sorted([*range(20), *range(80)])  # no row twice
    alone = Store.create(tmp_path / "alone", spec=everything.spec, design=everything.design)
    fill(alone, range(20))
    dm.train(alone, "tests.tasks:good", executor="inline", progress=False)
    assert everything.fingerprint() == alone.fingerprint()
    assert "rows by ann (50), bob (30)" in card_of(hub)[1]


def environment(hub: Hub, home: Path, token: str) -> dict[str, str]:
    """Of a process of somebody else."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }


@pytest.mark.parametrize("moment", ["^PUT /large", "POST .*/commit/"])
def test_a_push_that_is_killed_leaves_the_dataset_as_it_was(
    hub: Hub, store: Store, tmp_path: Path, moment: str
) -> None:
    import re

    send(fill(store, range(20, 22)), shard_rows=5)
    fill(store, range(22, 40))
    before = hub.datasets[NAME].head
    process = subprocess.Popen(
        [sys.executable, "-m", "datamodels", "push", str(store.path), ADDRESS],
        env=environment(hub, tmp_path / "hf2", TOKEN),
        stderr=subprocess.DEVNULL,
    )
    reached, dead = threading.Event(), threading.Event()

    def kill(request: str) -> None:
        if re.search(moment, request) and not dead.is_set():
            reached.set()
            dead.wait(20)

    hub.before = kill
    assert reached.wait(30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.faults.append(Fault(".", 503, 100))  # what the dead had sent is not worked on any more
    dead.set()
    time.sleep(0.1)
    hub.faults.clear()
    assert hub.datasets[NAME].head == before
    fetch(tmp_path / "meanwhile")
    assert Store.open(tmp_path / "meanwhile").completed().sum() == 22
    assert send(store).stores["default"].copied == list(range(22, 40))
    fetch(tmp_path / "after")
    assert same(store, Store.open(tmp_path / "after"))


def test_an_overtaken_push_looks_again(hub: Hub, store: Store, new_store: Callable[..., Store]) -> None:
    """Somebody else sends rows 10..29 between our look at the head and our commit."""
    other = fill(new_store(40, "other"), range(10, 30))
    send(fill(new_store(40, "first"), [39]))
    overtaking: list[Any] = []

    def overtake(request: str) -> None:
        if "/commit/" in request and not overtaking:
            overtaking.append(None)
            overtaking.append(send(other))

    hub.before = overtake
    result = send(store)
    assert overtaking[1].rows == 20
    assert result.stores["default"].copied == list(range(10))
    assert result.stores["default"].already_there == list(range(10, 20))
    assert hub.requests("commit")
    rows = [int(name.split("-")[1]) for name in shards(hub)]
    assert rows == [0, 10, 39]


# -- faults -------------------------------------------------------------------------------------------


def test_failures_that_may_pass_are_tried_again(hub: Hub, store: Store, tmp_path: Path) -> None:
    faults = [
        ("whoami", 429), ("GET /api/datasets/ann/run$", 0), ("/tree/", 502), ("validate-yaml", 503), ("repos/create", 500), ("^PUT", 500),
        ("/commit/", 503), ("/commit/", 0),
    ]  # fmt: skip
    hub.faults += [Fault(pattern, status) for pattern, status in faults]
    assert send(store).rows == 20
    assert len(hub.datasets[NAME].commits) == 2
    assert not any(fault.times for fault in hub.faults)
    hub.faults += [Fault("^HEAD .*resolve", 503), Fault("^GET .*store.json", 429), Fault("^GET /large", 503)]
    assert fetch(tmp_path / "copy").rows == 20
    assert not any(fault.times for fault in hub.faults)


def test_failures_that_last_end_with_one_clear_error(hub: Hub, store: Store, tmp_path: Path) -> None:
    send(store)
    fill(store, [30])
    hub.faults.append(Fault("/commit/", 503, 100))
    with pytest.raises(HubError, match=r"the Hub answered 503 for hf://datasets/ann/run: .*; run it again to go on"):
        send(store)
    hub.faults[:] = [Fault("GET /api/datasets/", 0, 100)]
    with pytest.raises(HubError, match="cannot reach the Hub"):
        fetch(tmp_path / "copy")
    hub.faults.clear()
    assert send(store).rows == 1


@pytest.mark.parametrize(
    ("token", "go", "message"),
    [
        (None, lambda store: send(store), "nobody is logged in .*hf auth login.*HF_TOKEN"),
        ("hf_wrong", lambda store: send(store), "does not know the token"),
        (OTHER, lambda store: send(store), "may not write to hf://datasets/ann/run"),
        (OTHER, lambda store: pull("hf://datasets/ann/none", "x"), "there is no dataset hf://datasets/ann/none"),
        (None, lambda store: pull("hf://datasets/ann/none", "x"), "there is no dataset hf://datasets/ann/none"),
        (TOKEN, lambda store: pull("hf://models/ann/none", "x"), "give hf://datasets/USER/NAME"),
        (TOKEN, lambda store: pull("hf://datasets/ann/../x", "x"), "give hf://datasets/USER/NAME"),
        (TOKEN, lambda store: claim(ADDRESS), "there is no dataset"),
        (TOKEN, lambda store: claim(ADDRESS, rows=0), "rows is 0"),
        (TOKEN, lambda store: claim(ADDRESS, hours=0), "hours is 0"),
        (TOKEN, lambda store: send(store, store="a/b"), "cannot name a folder"),
        (TOKEN, lambda store: send(store, shard_rows=0), "shard_rows is 0"),
        (TOKEN, lambda store: send(store, recipe="none.yaml"), "there is no recipe 'none.yaml'"),
    ],
)
def test_errors_say_what_to_do(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, token: str | None, go: Callable[[Store], Any], message: str) -> None:  # fmt: skip
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RequestError, match=message):
        go(store)
    assert NAME not in hub.datasets


def test_offline_and_without_rights(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from huggingface_hub import constants

    send(store, private=True)
    monkeypatch.setenv("HF_TOKEN", OTHER)
    for go in (lambda: fetch(tmp_path / "copy"), lambda: claim(ADDRESS)):
        with pytest.raises(RequestError, match="or the account that is logged in may not see it"):
            go()
    hub.datasets[NAME].private = False
    assert fetch(tmp_path / "copy").rows == 20
    with pytest.raises(RequestError, match="may not write"):
        claim(ADDRESS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from huggingface_hub import close_session

    close_session()
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE is set"):
        fetch(tmp_path / "copy")


def test_keys_that_parquet_has_no_room_for_are_refused(hub: Hub, tmp_path: Path) -> None:
    for name, field in (("row", {"shape": (), "dtype": "float32"}), ("y", {"shape": (), "dtype": "longdouble"})):
        made = Store.create(tmp_path / name, schema={name: field}, design=DESIGN)
        with pytest.raises(RequestError, match=f"the key '{name}'"):
            send(made)


# -- the command line ---------------------------------------------------------------------------------


def test_commands(hub: Hub, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, capsys.readouterr().out

    folder = str(store.path)
    assert run("push", folder, ADDRESS, "--license", "mit") == (0, f"sent 20 rows in 1 commits to {ADDRESS}\n")
    status, text = run("pull", ADDRESS, str(tmp_path / "copy"), "--json")
    assert (status, json.loads(text)["rows"]) == (0, 20)
    status, rows = run("claim", ADDRESS, "--rows", "5")
    assert (status, rows) == (0, "20:25\n")
    train = ("train", str(tmp_path / "copy"), "--task", "tests.tasks:good", "--executor", "inline")
    assert run(*train, "--rows", rows.strip())[0] == 0
    assert np.flatnonzero(Store.open(tmp_path / "copy").completed()).tolist() == list(range(25))
    assert run(*train, "--rows", "40:50")[0] == 2
    store.write_row(22, {"margins": row_values(0)})
    assert run("push", str(tmp_path / "copy"), ADDRESS)[0] == 0
    status, text = run("push", folder, ADDRESS)
    assert status == 1
    assert "rows of default with other content on both sides, left as they are: 22" in text


def test_train_does_the_rows_that_are_asked_for(new_store: Callable[..., Store]) -> None:
    made = new_store(20)
    summary = dm.train(made, "tests.tasks:good_blocks", executor="inline", progress=False, rows=slice(5, 12))
    assert (summary.ok, summary.done, summary.pending) == (True, 7, 0)
    assert np.flatnonzero(made.completed()).tolist() == list(range(5, 12))
    assert dm.train(made, "tests.tasks:good_blocks", executor="inline", progress=False, rows=slice(3)).done == 3
    for rows in (slice(15, 21), slice(20, None), slice(4, 4)):
        with pytest.raises(RequestError, match=r"beyond the 20 rows"):
            dm.train(made, "tests.tasks:good_blocks", executor="inline", progress=False, rows=rows)
