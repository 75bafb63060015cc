"""Rows to the Hub and back: byte for byte, only what is missing, the first content stays, and nothing damaged or edited passes."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from datamodels.design import Design
from datamodels.errors import CorruptStoreError, NewerFormatError, RequestError
from datamodels.hub.remote import HubError
from datamodels.hub.shards import Shard, read_shard, write_shard
from datamodels.spec import Spec
from datamodels.store import Store
from datamodels.sweep import Sweep
from tests.conftest import row_values
from tests.hub_client import LARGE_FILES, NAME, fetch, fill, hub, rebuild, same, send, shards, store
from tests.hub_server import Fault, Hub
from tests.store_contract import DESIGN, SCHEMA, values

__all__ = ["hub", "store"]  # fixtures
pytestmark = LARGE_FILES
NAMES = {"train": [f"patient {i}" for i in range(12)]}


# -- there and back -----------------------------------------------------------------------------------


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


# -- what is refused or left alone --------------------------------------------------------------------


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


def test_keys_that_parquet_has_no_room_for_are_refused(hub: Hub, tmp_path: Path) -> None:
    for name, field in (("row", {"shape": (), "dtype": "float32"}), ("y", {"shape": (), "dtype": "longdouble"})):
        made = Store.create(tmp_path / name, schema={name: field}, design=DESIGN)
        with pytest.raises(RequestError, match=f"the key '{name}'"):
            send(made)
