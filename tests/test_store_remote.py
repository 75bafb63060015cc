"""The remote store: the contract on every backend, its format, its protocol among writers, and faults of the service."""

from __future__ import annotations

import json
import threading
import time
import uuid
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.cli import main
from datamodels.design import Design
from datamodels.errors import CorruptStoreError, NewerFormatError, RequestError, StoreError
from datamodels.regression.fit import fit
from datamodels.store import Store
from datamodels.store.objects import Changed, Objects
from datamodels.store.remote import RemoteStore
from datamodels.store.remote_rows import Part
from datamodels.training.campaign import train
from tests import tasks
from tests.conftest import row_values
from tests.s3 import S3, Faults, proxy
from tests.store_contract import DESIGN, SCHEMA, StoreContract, values

LARGE = Design(n_train=12, alpha=0.5, n_models=250, seed=3)


class TestMemory(StoreContract):
    def location(self, tmp_path: Path, name: str) -> str:
        return f"memory://{tmp_path.name}-{name}"


class TestFolder(StoreContract):
    def location(self, tmp_path: Path, name: str) -> str:
        return (tmp_path / "some" / name).as_uri()


class TestS3(StoreContract):
    @pytest.fixture(autouse=True)
    def _bucket(self, s3: S3) -> None:
        self.runs = s3.bucket()

    def location(self, tmp_path: Path, name: str) -> str:
        return f"{self.runs}/{name}"


@pytest.fixture
def address() -> str:
    return f"memory://{uuid.uuid4().hex}"


def large(address: str) -> RemoteStore:
    store = Store.create(address, schema=SCHEMA, design=LARGE)
    assert isinstance(store, RemoteStore)
    return store


def table(rows: Any, of: Any = None) -> dict[str, Any]:
    """Values of many rows; `of` gives other rows' values instead."""
    one = [values(int(row)) for row in (rows if of is None else of)]
    return {key: [value[key] for value in one] for key in SCHEMA}


# -- the format ---------------------------------------------------------------------------------------


def test_zarr_reads_the_arrays_and_one_object_is_a_block_of_rows(tmp_path: Path) -> None:
    import zarr

    store = large((tmp_path / "run").as_uri())
    store.write_rows(np.arange(120), table(range(120)))
    group = zarr.open_group(tmp_path / "run", mode="r")
    assert sorted(group.array_keys()) == ["_rows", "loss", "margins", "table"]  # the design draws the masks
    np.testing.assert_array_equal(group["margins"][:120], [row_values(row) for row in range(120)])
    np.testing.assert_array_equal(store.array("masks")[[119, 3]], [LARGE.mask(119), LARGE.mask(3)])
    np.testing.assert_array_equal(np.flatnonzero((group["_rows"][:] >> 32) == 2), np.arange(120))
    assert sorted(file.name for file in (tmp_path / "run" / "margins" / "c").iterdir()) == ["0", "1"]
    record = group.attrs["datamodels"]
    assert record["design"]["seed"] == 3
    assert {"format_version", "created", "versions", "spec", "block_rows"} <= set(record)


def test_arrays_are_read_as_numpy_arrays_are(address: str) -> None:
    store = large(address)
    store.write_rows(np.arange(250), table(range(250)))
    found, wanted = store.array("table"), np.array([values(row)["table"] for row in range(250)])
    assert found.shape == (250, 2, 3)
    assert found.dtype == np.uint8
    for index in (
        3, -1, slice(90, 110), slice(None), slice(240, 10, -7), [5, 3, 200], np.arange(250) % 3 == 0, [],
        (slice(0, 5), 1), (7, 1, 2), (slice(95, 105), slice(None), [0, 2]), (..., 1),
    ):  # fmt: skip
        np.testing.assert_array_equal(found[index], wanted[index], err_msg=str(index))
    np.testing.assert_array_equal(np.asarray(found), wanted)
    np.testing.assert_array_equal(found.reshape(250, -1)[95:105, 4], wanted.reshape(250, -1)[95:105, 4])
    with pytest.raises(IndexError):
        found[250]
    with pytest.raises(RequestError, match="cannot take the shape"):
        found.reshape(125, -1)


def test_a_fit_streams_from_it(address: str, tmp_path: Path) -> None:
    remote, local = large(address), Store.create(tmp_path / "local", schema=SCHEMA, design=LARGE)
    for store in (remote, local):
        store.write_rows(np.arange(250), table(range(250)))
    here, there = (fit(store, "ridge", progress=False) for store in (local, remote))
    np.testing.assert_array_equal(here.weights, there.weights)


# -- writers ------------------------------------------------------------------------------------------


def test_a_new_block_costs_one_request_per_key_and_one_for_its_state(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = large(address)
    store.completed()
    requests = []
    for name in ("read", "create", "replace", "put", "names"):
        real = getattr(Objects, name)
        monkeypatch.setattr(
            Objects, name, lambda self, *a, _real=real, _name=name: requests.append((_name, a[0])) or _real(self, *a)
        )
    store.write_rows(np.arange(100, 200), table(range(100, 200)))
    made = [name for kind, name in requests if kind == "create" and not name.startswith("_rows")]
    assert sorted(made) == ["loss/c/1", "margins/c/1/0", "table/c/1/0/0"]
    assert [name for kind, name in requests if name not in made] == ["_rows/c/0"] * 2  # to replace nothing is to create


def test_writers_of_one_block_lose_nothing(address: str) -> None:
    large(address)
    rng = np.random.default_rng(0)

    def writer(number: int) -> list[int]:
        store = Store.open(address)
        order = rng.permutation(250)
        done: list[int] = []
        for start in range(0, 250, 25):
            part = order[start : start + 25]
            done += store.write_rows(part, table(part, part + 1000 * number))
        return done

    with ThreadPoolExecutor(4) as pool:
        written = list(pool.map(writer, range(1, 5)))
    store = Store.open(address)
    assert store.completed().all()
    assert store.verify().ok
    assert sorted(row for rows in written for row in rows) == list(range(250))  # each by one writer
    for number, rows in enumerate(written, 1):
        for row in rows:
            np.testing.assert_array_equal(store.array("margins")[row], row_values(row + 1000 * number))


# Creation is three chunks and the state; a claim is the claim, three chunks and the state.
@pytest.mark.parametrize(("stop", "after"), [*(("create", i) for i in range(4)), *(("claim", i) for i in range(5))])
def test_a_writer_that_dies_anywhere_blocks_nobody_for_long(
    address: str, monkeypatch: pytest.MonkeyPatch, stop: str, after: int
) -> None:
    store = large(address)
    store.write_rows([0] if stop == "claim" else [200], table([0] if stop == "claim" else [200]))

    class Died(BaseException):
        pass

    left = after
    doomed = Store.open(address)
    assert isinstance(doomed, RemoteStore)
    doomed._states.parallel = lambda function, items, meanwhile=None: [function(item) for item in items]  # type: ignore[method-assign]

    def dies(real: Any) -> Any:
        def wrapped(*given: Any) -> Any:
            nonlocal left
            if left == 0:
                raise Died
            left -= 1
            return real(*given)

        return wrapped

    for name in ("create", "replace"):
        monkeypatch.setattr(doomed._objects, name, dies(getattr(doomed._objects, name)))
    rows = np.arange(10, 40)
    with pytest.raises(Died):
        doomed.write_rows(rows, table(rows, rows + 5000))
    other = Store.open(address)
    assert isinstance(other, RemoteStore)
    assert not other.completed()[10:40].any()
    other._states.lease = 0.3
    started = time.monotonic()
    assert other.write_rows(rows, table(rows)) == rows.tolist()
    assert time.monotonic() - started < 5
    assert other.verify().ok
    np.testing.assert_array_equal(other.array("margins")[10:40], [row_values(row) for row in rows])


def test_a_writer_that_stalled_cannot_come_back(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = large(address)
    store.write_rows([0], table([0]))
    slow, quick = (Store.open(address) for _ in range(2))
    assert isinstance(slow, RemoteStore)
    assert isinstance(quick, RemoteStore)
    slow._states.lease, quick._states.lease = 0.6, 0.3
    real, stalled, go = Part._put_into, threading.Event(), threading.Event()

    def stalls(part: Part, key: str, *rest: Any) -> None:
        if part.states is slow._states and key == "loss" and not go.is_set():
            stalled.set()
            go.wait(10)
        real(part, key, *rest)

    monkeypatch.setattr(Part, "_put_into", stalls)
    rows = np.arange(5, 9)
    with ThreadPoolExecutor(1) as pool:
        pending = pool.submit(slow.write_rows, rows, table(rows, rows + 5000))
        assert stalled.wait(10)
        assert quick.write_rows(rows, table(rows)) == rows.tolist()
        go.set()
        assert pending.result(20) == []
    assert quick.verify().ok
    np.testing.assert_array_equal(quick.array("margins")[5:9], [row_values(row) for row in rows])


def test_creation_at_the_same_time_makes_one_store(address: str) -> None:
    def make(_: int) -> str:
        try:
            return large(address)._origin()
        except StoreError:
            return "refused"

    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(make, range(4)))
    assert len(set(made) - {"refused"}) == 1
    assert Store.open(address)._origin() in made


def test_extensions_of_one_moment_all_count(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow, quick = large(address), Store.open(address)
    real, between = Objects.replace, []

    def late(self: Objects, name: str, *rest: Any) -> Any:
        if name == "zarr.json" and not between:
            between.append(quick)
            quick.extend(40)
        return real(self, name, *rest)

    monkeypatch.setattr(Objects, "replace", late)
    slow.extend(40)
    assert [store.n_models for store in (slow, quick, Store.open(address))] == [330, 290, 330]


def test_a_store_of_before_goes_on_storing_its_masks(tmp_path: Path) -> None:
    """Whose record does not say that they are drawn."""
    import zarr

    from datamodels.store.meta import Meta
    from datamodels.store.zarr_format import ATTRIBUTE, arrays

    place = tmp_path / "old"
    large(place.as_uri())
    root = json.loads((place / "zarr.json").read_text())
    assert root["attributes"][ATTRIBUTE].pop("drawn") == ["masks"]
    (place / "zarr.json").write_text(json.dumps(root))
    meta = Meta.of(root["attributes"][ATTRIBUTE], "here", "it", lambda: None)
    (place / "masks").mkdir()
    (place / "masks" / "zarr.json").write_bytes(arrays(meta, 100)["masks"])
    store = Store.open(place.as_uri())
    store.write_rows(range(120), table(range(120)))
    np.testing.assert_array_equal(zarr.open_group(place, mode="r")["masks"][:120], LARGE.masks(0, 120))
    np.testing.assert_array_equal(store.masks(100, 120), LARGE.masks(100, 120))
    assert store.verify().ok


@pytest.mark.parametrize("missing", ["bucket", "credentials"])
def test_what_trying_again_cannot_mend_ends_at_once(s3: S3, monkeypatch: pytest.MonkeyPatch, missing: str) -> None:
    if missing == "credentials":
        for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
            monkeypatch.delenv(name)
    address = "s3://no-such-bucket/a" if missing == "bucket" else s3.bucket()
    started = time.monotonic()
    with pytest.raises(StoreError, match="no such bucket" if missing == "bucket" else "no credentials were found"):
        large(address)
    assert time.monotonic() - started < 60


def test_a_copy_of_a_remote_store_is_the_same_store(address: str, tmp_path: Path) -> None:
    store = large(address)
    store.write_rows(range(30), table(range(30)))
    store.copy_to(tmp_path / "copy", progress=False)
    mine = json.loads((tmp_path / "copy" / "store.json").read_text())
    theirs = store.as_meta().record
    assert {key: mine[key] for key in ("id", "created", "versions")} == {
        key: theirs[key] for key in ("id", "created", "versions")
    }
    assert not {"drawn", "block_rows", "extension"} & mine.keys()


# -- damage -------------------------------------------------------------------------------------------


def damaged(folder: Path, name: str, change: Any) -> None:
    file = folder / name
    file.write_bytes(change(file.read_bytes()))


@pytest.mark.parametrize("name", ["margins/c/0/0", "table/c/0/0/0", "loss/c/0", "_rows/c/0"])
@pytest.mark.parametrize("how", ["flip", "cut", "empty"])
def test_damaged_objects_are_found(tmp_path: Path, name: str, how: str) -> None:
    store = large((tmp_path / "run").as_uri())
    store.write_rows(np.arange(100), table(range(100)))

    def change(data: bytes) -> bytes:
        middle = len(data) // 2 if name != "_rows/c/0" else 8 * 50
        return {
            "flip": data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :],
            "cut": data[:middle],
            "empty": b"",
        }[how]

    damaged(tmp_path / "run", name, change)
    again = Store.open((tmp_path / "run").as_uri())
    if name == "_rows/c/0" and how != "flip":
        with pytest.raises(CorruptStoreError, match="restore it from a copy"):
            again.verify()
        return
    bad = again.verify().bad_rows
    assert bad
    if how != "flip":
        with pytest.raises(CorruptStoreError, match="is damaged"):
            again.write_rows([3], table([3]), overwrite=True)
    again.forget(bad)
    assert again.verify().ok
    for rows in (bad[: len(bad) // 2], bad[len(bad) // 2 :]):
        assert again.write_rows(rows, table(rows)) == rows
    assert again.completed()[:100].all()
    assert again.verify().ok
    np.testing.assert_array_equal(again.array("margins")[:100], [row_values(row) for row in range(100)])


@pytest.mark.parametrize(
    ("edit", "error", "message"),
    [
        (lambda d: d["attributes"]["datamodels"].update(format_version=99), NewerFormatError, "format version 99"),
        (lambda d: d["attributes"]["datamodels"]["spec"].update(num_models=9), CorruptStoreError, "was edited"),
        (lambda d: d["attributes"]["datamodels"].update(drawn=["margins"]), CorruptStoreError, "cannot draw"),
        (lambda d: d["attributes"]["datamodels"].update(drawn=5), CorruptStoreError, "cannot draw"),
        (lambda d: d["attributes"]["datamodels"].update(block_rows="many"), CorruptStoreError, "block_rows"),
        (lambda d: d.pop("attributes"), CorruptStoreError, "is damaged"),
    ],
)
def test_an_edited_record_is_refused(tmp_path: Path, edit: Any, error: type[Exception], message: str) -> None:
    large((tmp_path / "run").as_uri())

    def change(data: bytes) -> bytes:
        document = json.loads(data)
        edit(document)
        return json.dumps(document).encode()

    damaged(tmp_path / "run", "zarr.json", change)
    with pytest.raises(error, match=message):
        Store.open((tmp_path / "run").as_uri())


def test_an_array_that_was_edited_is_refused(tmp_path: Path) -> None:
    large((tmp_path / "run").as_uri())
    damaged(tmp_path / "run", "margins/zarr.json", lambda data: data.replace(b"float32", b"float64"))
    with pytest.raises(CorruptStoreError, match="margins"):
        Store.open((tmp_path / "run").as_uri())


# -- addresses ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("address", "message"),
    [
        ("s3://key:secret-word@bucket/run", "credentials"),
        ("s3://bucket", "BUCKET/PATH"),
        ("s3://bucket/a/../../b", r"'\.\.'"),
        ("s3://bucket/a/%2e%2e/b", r"'\.\.'"),
        ("file://host/run", "three slashes"),
        ("ftp://host/run", "no store backend"),
    ],
)
def test_bad_addresses_are_refused_without_their_secrets(address: str, message: str) -> None:
    with pytest.raises(RequestError, match=message) as caught:
        Store.open(address)
    assert "secret-word" not in str(caught.value)


# -- the service fails --------------------------------------------------------------------------------


def test_nothing_is_lost_when_the_service_fails(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    faults = Faults(refused=0.05, lost_before=0.05, lost_after=0.08, cut=0.05, slow=0.03)
    address = f"{s3.bucket()}/run"
    with proxy(s3, faults) as worse:
        monkeypatch.setenv("AWS_ENDPOINT_URL", worse.url)
        large(address)

        def writer(number: int) -> list[int]:
            store, done = Store.open(address), []
            for start in np.random.default_rng(number).permutation(np.arange(0, 250, 50)):
                done += store.write_rows(np.arange(start, start + 50), table(range(start, start + 50)))
            return done

        with ThreadPoolExecutor(2) as pool:
            written = list(pool.map(writer, range(2)))
        assert min(faults.counts.get(name, 0) for name in ("refused", "lost_before", "lost_after", "cut")) > 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", s3.url)
    store = Store.open(address)
    assert store.completed().all()
    assert store.verify().ok
    assert set(written[0]) | set(written[1]) == set(range(250))


def test_a_service_that_is_gone_is_said_without_secrets(s3: S3, monkeypatch: pytest.MonkeyPatch) -> None:
    address = f"{s3.bucket()}/run"
    store = large(address)
    monkeypatch.setattr("datamodels.store.objects._PATIENCE", 0.5)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    with pytest.raises(StoreError, match="cannot read") as caught:
        Store.open(address)
    assert "secret-of-the-tester" not in str(caught.value)
    assert store.completed().sum() == 0


def test_a_conditional_write_notices_what_came_between(s3: S3) -> None:
    objects = Objects(f"{s3.bucket()}/x")
    objects.create("a", b"1")
    objects.create("a", b"1")  # an answer that was lost
    with pytest.raises(Changed):
        objects.create("a", b"2")
    _, tag = objects.read("a")  # type: ignore[misc]
    objects.replace("a", b"3", tag)
    with pytest.raises(Changed):
        objects.replace("a", b"4", tag)
    assert objects.read("a")[0] == b"3"  # type: ignore[index]


# -- campaigns ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("task", [tasks.good, tasks.good_blocks])
def test_a_campaign_writes_there_what_it_writes_here(s3: S3, tmp_path: Path, task: Any) -> None:
    schema = {"margins": {"shape": (4,), "dtype": "float32"}}
    here = Store.create(tmp_path / "here", schema=schema, design=LARGE)
    there = Store.create(f"{s3.bucket()}/run", schema=schema, design=LARGE)
    assert train(here, tasks.good, executor="inline", progress=False).ok
    summary = train(there, task, jobs=2, progress=False)
    assert summary.ok
    assert summary.done == 250
    assert there.fingerprint() == here.fingerprint()
    assert not there.status().rows_per_second


def test_a_failure_is_kept_where_the_store_is(s3: S3) -> None:
    schema = {"margins": {"shape": (4,), "dtype": "float32"}}
    store = Store.create(f"{s3.bucket()}/run", schema=schema, design=DESIGN)
    assert train(store, tasks.fails_on_three, executor="inline", progress=False).failed == [3]
    assert "three is not allowed" in Store.open(store.path).failure_log(3)
    assert store.failures() == {3: f"{store.path}/failures/3.log"}


def command(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    assert ended.value.code == 0


def test_the_command_copies_up_and_down(s3: S3, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    store = Store.create(tmp_path / "here", schema=SCHEMA, design=LARGE)
    store.write_rows(np.arange(150), table(range(150)))
    there = f"{s3.bucket()}/run"
    for source, destination in ((str(tmp_path / "here"), there), (there, str(tmp_path / "back"))):
        command(["sync", source, destination])
        assert "copied 150 rows, 0 were there" in capsys.readouterr().out
    command(["sync", str(tmp_path / "here"), there, "--both", "--json"])
    assert [one["copied"] for one in json.loads(capsys.readouterr().out)["copies"]] == [0, 0]
    command(["status", there, "--json"])
    assert json.loads(capsys.readouterr().out)["completed"] == 150
    assert Store.open(tmp_path / "back").fingerprint() == store.fingerprint()
