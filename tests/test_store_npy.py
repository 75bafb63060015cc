"""The local store: the contract, its files, and what damaged files and full disks do to it."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.design import Design
from datamodels.errors import CorruptStoreError, FewSubsetsWarning, NewerFormatError, RequestError, StoreError
from datamodels.spec import Spec
from datamodels.store import Store
from datamodels.store import npy as npy_module
from tests.conftest import row_values
from tests.store_contract import DESIGN, SCHEMA, StoreContract, values


class TestNpyStore(StoreContract):
    def location(self, tmp_path: Path, name: str) -> Path:
        return tmp_path / "some" / name


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store.create(tmp_path / "store", schema=SCHEMA, design=DESIGN)
    for row in (0, 1, 5):
        store.write_row(row, values(row))
    return store


def test_anyone_can_load_the_files(store: Store) -> None:
    assert np.load(store.path / "margins.npy").shape == (10, 4)
    np.testing.assert_array_equal(np.load(store.path / "margins.npy")[5], row_values(5))
    assert np.flatnonzero(np.load(store.path / "_completed.npy")).tolist() == [0, 1, 5]
    assert np.load(store.path / "_checksum.npy").dtype == np.uint32
    meta = json.loads((store.path / "store.json").read_text())
    assert meta["design"]["seed"] == 3
    assert {"format_version", "created", "versions", "spec"} <= set(meta)


def test_groups_that_allow_few_subsets_are_warned_of(tmp_path: Path) -> None:
    design = {"n_train": 12, "alpha": 0.5, "kind": "grouped", "groups": [0, 1, 2] * 4}
    with pytest.warns(FewSubsetsWarning, match=r"3 groups .* make 3 different subsets, and 10 masks repeat them"):
        Store.create(tmp_path / "few", schema=SCHEMA, design=Design(n_models=10, **design))
    Store.create(tmp_path / "enough", schema=SCHEMA, design=Design(n_models=3, **design))


def test_grown_files_load_too(store: Store) -> None:
    store.extend(99_990)
    assert np.load(store.path / "margins.npy").shape == (100_000, 4)
    np.testing.assert_array_equal(np.load(store.path / "margins.npy")[5], row_values(5))
    assert np.load(store.path / "_completed.npy").sum() == 3


def test_files_are_allocated_in_full(store: Store) -> None:
    for file in store.path.glob("*.npy"):
        assert file.stat().st_blocks * 512 >= file.stat().st_size


def test_a_damaged_byte_is_found(store: Store) -> None:
    with (store.path / "margins.npy").open("r+b") as file:
        file.seek(-1 - 4 * 16, os.SEEK_END)  # the last byte of row 5
        file.write(b"\xff")
    result = store.verify()
    assert not result.ok
    assert result.bad_rows == [5]


def test_swapped_rows_are_found(store: Store) -> None:
    for name in ("margins", "loss", "table", "masks"):
        array = np.load(store.path / f"{name}.npy", mmap_mode="r+")
        array[[0, 1]] = array[[1, 0]]
        array.flush()
    sums = np.load(store.path / "_checksum.npy", mmap_mode="r+")
    sums[[0, 1]] = sums[[1, 0]]
    sums.flush()
    assert store.verify().bad_rows == [0, 1]


def test_damaged_rows_are_not_merged(store: Store, tmp_path: Path) -> None:
    with (store.path / "loss.npy").open("r+b") as file:
        file.seek(-1 - 4 * 8, os.SEEK_END)
        file.write(b"\x55")
    other = Store.create(tmp_path / "other", schema=SCHEMA, design=DESIGN)
    result = other.merge(store)
    assert result.bad_in_source == [5]
    assert result.copied == [0, 1]


def test_truncated_arrays_are_named(store: Store) -> None:
    os.truncate(store.path / "margins.npy", 200)
    with pytest.raises(CorruptStoreError, match=r"margins\.npy is truncated: 200 bytes, 10 rows need 288"):
        Store.open(store.path)


def test_missing_arrays_are_named(store: Store) -> None:
    (store.path / "loss.npy").unlink()
    with pytest.raises(CorruptStoreError, match=r"loss\.npy is missing"):
        Store.open(store.path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda meta: meta["design"].update(seed=4), "was edited"),
        (lambda meta: meta["spec"]["schema"]["margins"].update(dtype="float64"), "was edited"),
        (lambda meta: meta["spec"].update(num_models=5), "was edited"),
        (lambda meta: meta.pop("spec"), "was edited"),
        (lambda meta: meta.pop("format_version"), "damaged"),
    ],
)
def test_an_edited_spec_is_refused(store: Store, change: object, message: str) -> None:
    file = store.path / "store.json"
    meta = json.loads(file.read_text())
    change(meta)
    file.write_text(json.dumps(meta))
    with pytest.raises(CorruptStoreError, match=message):
        Store.open(store.path)
    assert np.load(store.path / "_completed.npy").sum() == 3


def test_a_newer_format_is_refused_with_both_versions(store: Store) -> None:
    file = store.path / "store.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "format_version": 7}))
    with pytest.raises(NewerFormatError, match=r"version 7.*up to version 1"):
        Store.open(store.path)


def test_exchanged_arrays_are_refused(store: Store) -> None:
    np.save(store.path / "loss.npy", np.zeros((10, 3), np.float32))
    with pytest.raises(CorruptStoreError, match=r"'loss' is float64 \[\] per row"):
        Store.open(store.path)


def test_fortran_order_is_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "_completed.npy", np.zeros(4, bool))
    np.save(tmp_path / "margins.npy", np.asfortranarray(np.zeros((4, 3))))
    with pytest.raises(CorruptStoreError, match="Fortran order"):
        Store.open(tmp_path)


def test_folders_of_the_original_library_open_as_they_are(tmp_path: Path) -> None:
    np.save(tmp_path / "masks.npy", np.ones((6, 5), bool))
    np.save(tmp_path / "margins.npy", np.zeros((6, 2), np.dtype(">f4")))
    np.save(tmp_path / "_completed.npy", np.zeros(6, bool))
    store = Store.open(tmp_path)
    assert store.keys == ["margins", "masks"]
    assert store.write_row(4, {"masks": np.zeros(5), "margins": [1.5, -2.0]})
    np.testing.assert_array_equal(np.load(tmp_path / "margins.npy")[4], [1.5, -2.0])
    assert np.load(tmp_path / "margins.npy").dtype == np.dtype(">f4")
    assert not (tmp_path / "store.json").exists()
    assert not store.verify().has_checksums
    store.extend(3)
    assert Store.open(tmp_path).n_models == 9


def test_an_interrupted_extension_of_an_original_folder_is_repaired(tmp_path: Path) -> None:
    """Headers are grown one after the other, the flags last: until then the old number of rows counts."""
    np.save(tmp_path / "margins.npy", np.arange(8.0).reshape(4, 2))
    np.save(tmp_path / "masks.npy", np.ones((7, 3), bool))  # its header is grown already
    np.save(tmp_path / "_completed.npy", np.ones(4, bool))
    store = Store.open(tmp_path)
    assert store.keys == ["margins", "masks"]
    assert store.n_models == 4
    store.extend(2)
    assert np.load(tmp_path / "masks.npy").shape == (6, 3)


def test_files_beside_the_keys_of_an_original_folder_are_left_alone(tmp_path: Path) -> None:
    np.save(tmp_path / "margins.npy", np.zeros((4, 2)))
    np.save(tmp_path / "_completed.npy", np.zeros(4, bool))
    np.save(tmp_path / "names.npy", np.array(["a", "b", "c", "d"]))
    np.save(tmp_path / "alpha.npy", np.float64(0.5))
    np.save(tmp_path / "objects.npy", np.array([None] * 4), allow_pickle=True)
    np.save(tmp_path / "seeds.npy", np.arange(2))
    assert Store.open(tmp_path).keys == ["margins"]


def test_a_verification_beside_a_writer_finds_nothing(store: Store) -> None:
    import threading

    stop = threading.Event()

    def write() -> None:
        mine, row = Store.open(store.path), 0
        while not stop.is_set():
            mine.write_row(row % 10, values(row % 10), overwrite=True)
            row += 1

    thread = threading.Thread(target=write)
    thread.start()
    try:
        for _ in range(150):
            assert Store.open(store.path).verify().bad_rows == []
    finally:
        stop.set()
        thread.join()


def test_heartbeats_that_cannot_be_read_are_passed_over(store: Store) -> None:
    store.heartbeat("a", {"updated": 0, "rows_per_second": 1.0, "running": True})
    (store.path / "campaigns" / ".a.123.json").write_text("")
    (store.path / "campaigns" / "b.json").write_text("{")
    assert len(store.campaigns()) == 1
    assert store.status().rows_per_second is None


def test_integers_are_kept_whatever_stands_beside_them(tmp_path: Path) -> None:
    spec = Spec.model_validate({"num_models": 3, "schema": {"n": {"shape": [], "dtype": "int64"}}})
    store = Store.create(tmp_path / "s", spec=spec)
    store.write_rows([0, 1, 2], {"n": [np.int64(2**53 + 1), 1.0, True]})
    assert np.asarray(store.array("n")).tolist() == [2**53 + 1, 1, 1]


def test_sizes_that_no_disk_holds_are_an_error(tmp_path: Path) -> None:
    spec = Spec.model_validate({"num_models": 3, "schema": {"n": {"shape": [2**32, 2**32], "dtype": "int64"}}})
    with pytest.raises(StoreError, match="cannot create"):
        Store.create(tmp_path / "s", spec=spec)


def test_bytes_that_are_no_masks_are_refused(tmp_path: Path) -> None:
    spec = Spec.model_validate({"num_models": 3, "schema": {"masks": {"shape": [4], "dtype": "uint8"}}})
    store = Store.create(tmp_path / "s", spec=spec)
    store.write_row(1, {"masks": [0, 1, 2, 0]})
    with pytest.raises(RequestError, match="holds 2"):
        store.masks()


def test_an_interrupted_creation_is_said_and_not_opened(store: Store) -> None:
    (store.path / "_completed.npy").unlink()
    with pytest.raises(StoreError, match="creation was interrupted"):
        Store.open(store.path)


def test_a_creation_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(npy_module, "sync_folder", full)
    with pytest.raises(StoreError, match="No space left on device; nothing was left behind"):
        Store.create(tmp_path / "store", schema=SCHEMA, design=DESIGN)
    assert list((tmp_path / "store").iterdir()) == []


def test_an_interrupted_extension_is_finished_by_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop(*_: object) -> None:
        raise OSError(5, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(npy_module, "_write_meta", stop)
        with pytest.raises(StoreError, match="still has 10 models"):
            store.extend(5)
    again = Store.open(store.path)
    assert again.n_models == 10
    assert again.verify().ok
    again.extend(7)
    assert Store.open(store.path).n_models == 17
    assert np.load(store.path / "margins.npy").shape == (17, 4)


def test_a_full_disk_is_an_error_and_marks_nothing(tmp_path: Path) -> None:
    """A real limit on file size, in a process of its own: creation and growth fail cleanly."""
    program = textwrap.dedent(
        """
        import resource, sys
        from datamodels.errors import StoreError
        from tests.store_contract import *
        store = Store.create(sys.argv[1], schema=SCHEMA, design=DESIGN)
        store.write_row(0, values(0))
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, resource.RLIM_INFINITY))
        for work in (lambda: store.extend(100_000), lambda: Store.create(sys.argv[1] + "2", schema=SCHEMA,
                     design=DESIGN.with_models(100_000))):
            try:
                work()
            except StoreError as error:
                assert "File too large" in str(error), error
            else:
                raise SystemExit("no error")
        assert Store.open(sys.argv[1]).n_models == 10
        store.write_row(1, values(1))
        assert Store.open(sys.argv[1]).verify().ok
        """
    )
    root = Path(__file__).parent.parent
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "store")], check=True, cwd=root)
    assert list((tmp_path / "store2").iterdir()) == []
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.mark.skipif(os.geteuid() != 0 or sys.platform != "linux", reason="needs root to mount")
def test_a_read_only_folder_is_one_clear_error(store: Store, tmp_path: Path) -> None:
    target = tmp_path / "mounted"
    target.mkdir()
    mount = ["mount", "--bind", str(store.path), str(target)]
    if subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        subprocess.run(["mount", "-o", "remount,ro,bind", str(target)], check=True)
        seen = Store.open(target)
        with pytest.raises(StoreError, match="Read-only file system"):
            seen.write_row(2, values(2))
        with pytest.raises(StoreError, match="Read-only file system"):
            Store.create(target / "inner", schema=SCHEMA, design=DESIGN)
        with pytest.raises(StoreError, match="Read-only file system"):
            seen.extend(3)
    finally:
        subprocess.run(["umount", str(target)], check=True)
    assert store.verify().checked == 3


def test_order_of_a_write_is_data_checksum_completed(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every prefix of the writes and flushes of a row leaves it unmarked or whole."""
    from datamodels.store import array

    names = {}
    events: list[tuple[str, str]] = []
    real_open, real_write, real_flush = os.open, array.pwrite, array.flush

    def spy_open(path: str | Path, *args: int) -> int:
        fd = real_open(path, *args)
        names[fd] = Path(path).stem
        return fd

    monkeypatch.setattr(array.os, "open", spy_open)
    monkeypatch.setattr(array, "pwrite", lambda fd, *a: (events.append(("write", names[fd])), real_write(fd, *a))[1])
    monkeypatch.setattr(array, "flush", lambda fd: (events.append(("flush", names[fd])), real_flush(fd))[1])
    monkeypatch.setattr(npy_module, "pwrite", array.pwrite)
    monkeypatch.setattr(npy_module, "flush", array.flush)
    store.write_row(8, values(8))
    keys = [name for kind, name in events if kind == "write"]
    assert set(keys[:-2]) == {"margins", "loss", "table", "masks"}
    assert keys[-2:] == ["_checksum", "_completed"]
    for kind, name in events:
        assert kind == "write" or events.index(("write", name)) < events.index(("flush", name))
    assert events[-4:] == [
        ("write", "_checksum"), ("flush", "_checksum"), ("write", "_completed"), ("flush", "_completed"),
    ]  # fmt: skip


def test_values_of_a_merge_travel_exactly(tmp_path: Path) -> None:
    spec = Spec.model_validate(
        {"num_models": 4, "schema": {"y": {"shape": [], "dtype": "float64", "allow_nonfinite": True}}}
    )
    a, b = (Store.create(tmp_path / name, spec=spec) for name in "ab")
    a.write_rows([0, 1, 2], {"y": [np.pi, np.inf, 5e-324]})
    assert b.merge(a).copied == [0, 1, 2]
    np.testing.assert_array_equal(b.array("y")[:3], [np.pi, np.inf, 5e-324])


def test_many_processes_write_different_rows_at_once(tmp_path: Path) -> None:
    Store.create(tmp_path / "s", schema=SCHEMA, design=Design(n_train=12, alpha=0.5, n_models=120, seed=3))
    program = (
        "import sys; from tests.store_contract import *\n"
        "store = Store.open(sys.argv[1])\n"
        "for row in range(int(sys.argv[2]), 120, 4): store.write_row(row, values(row))"
    )
    root = Path(__file__).parent.parent
    jobs = [subprocess.Popen([sys.executable, "-c", program, str(tmp_path / "s"), str(k)], cwd=root) for k in range(4)]
    assert [job.wait() for job in jobs] == [0] * 4
    store = Store.open(tmp_path / "s")
    assert store.completed().all()
    assert store.verify().ok
    for row in range(120):
        np.testing.assert_array_equal(store.array("margins")[row], row_values(row))


def test_a_million_rows_have_a_status(tmp_path: Path) -> None:
    spec = Spec.model_validate({"num_models": 1_000_000, "schema": {"y": {"shape": [], "dtype": "uint8"}}})
    store = Store.create(tmp_path / "big", spec=spec)
    store.write_rows(np.arange(0, 1_000_000, 1000), {"y": np.ones(1000, np.uint8)})
    assert store.status().completed == 1000


@pytest.mark.parametrize(
    ("ids", "message"), [(np.array(["a", "b"]), "ids is ndarray"), ({"trian": ["a"]}, r"ids has \['trian'\]")]
)
def test_names_that_say_not_whose_are_refused(tmp_path: Path, ids: Any, message: str) -> None:
    with pytest.raises(RequestError, match=f"{message}; give a mapping of train and test"):
        Store.create(tmp_path / "s", schema={"x": {"shape": (), "dtype": "float32"}}, spec=None, design=DESIGN, ids=ids)
