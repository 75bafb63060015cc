"""FFCV files: what the real library wrote is read, what we write is the same bytes, and damage is one clear error."""

from __future__ import annotations

import contextlib
import gzip
import io
import pickle
import struct
import tracemalloc
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from typer.testing import CliRunner

import datamodels as dm
from datamodels.cli import app
from datamodels.errors import CorruptStoreError, DatamodelsError, RequestError
from datamodels.regression import beton, compute_datamodels, dataset_file, write_dataset
from datamodels.regression.problem import Problem
from tests.conftest import Planted, plant

DATA = Path(__file__).parent / "data"
HEADER, FIELD, ENTRY = 24, 1041, 24
SMALL_PAGE = 2 << 20


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file that FFCV wrote."""
    path = tmp_path_factory.mktemp("real") / "ffcv.beton"
    path.write_bytes(gzip.decompress((DATA / "ffcv_regression.beton.gz").read_bytes()))
    return path


@pytest.fixture(scope="module")
def truth() -> dict[str, NDArray[Any]]:
    with np.load(DATA / "ffcv_regression.npz") as content:
        return {"mask": content["X"], "targets": content["Y"], "idx": np.arange(64)}


def put(path: Path, arrays: dict[str, NDArray[Any]], step: int = 1000, page_size: int = beton.PAGE_SIZE) -> Path:
    """Write whole arrays, `step` rows at a time."""

    def chunks(array: NDArray[Any]) -> Iterator[NDArray[Any]]:
        return (array[start : start + step] for start in range(0, len(array), step))

    beton.write(path, {name: (a.shape, a.dtype, chunks(a)) for name, a in arrays.items()}, page_size)
    return path


def some(m: int = 5) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        "mask": rng.random((m, 11)) < 0.5,
        "targets": rng.normal(size=(m, 3)).astype(np.float32),
        "idx": np.arange(m),
    }


def read_all(path: Path) -> dict[str, NDArray[Any]]:
    file = beton.Beton(path)
    return {name: np.asarray(file.array(name)) for name in file.fields}


# -- reading and writing --------------------------------------------------------------------------


def test_the_file_of_the_real_library_reads_back(real: Path, truth: dict[str, NDArray[Any]]) -> None:
    file = beton.Beton(real)
    assert (file.n_samples, list(file.fields)) == (64, ["mask", "targets", "idx"])
    for name, expected in truth.items():
        array = file.array(name)
        assert (array.shape, array.dtype, array.ndim, len(array)) == (expected.shape, expected.dtype, expected.ndim, 64)
        np.testing.assert_array_equal(array, expected)


@pytest.mark.parametrize("step", [64, 7])
def test_the_writer_writes_the_bytes_of_the_real_library(
    real: Path, truth: dict[str, NDArray[Any]], tmp_path: Path, step: int
) -> None:
    assert put(tmp_path / "ours.beton", truth, step).read_bytes() == real.read_bytes()


@pytest.mark.parametrize(
    "index",
    [3, -1, np.int64(5), slice(2, 9), slice(None, None, -3), slice(9, 2), [4, 4, 0], np.arange(64) % 5 == 1,
     (slice(1, 5), 2), (3, slice(1, 4)), ([1, 2], [0, 6]), (slice(0, 3), [5, 1])],
    ids=repr,
)  # fmt: skip
def test_rows_are_taken_as_from_an_array(real: Path, truth: dict[str, NDArray[Any]], index: Any) -> None:
    rows = beton.Beton(real).array("targets")
    if isinstance(index, tuple) and isinstance(index[0], list):
        index = (index[0], slice(None), None)  # pairs of indices are not taken together: NumPy's rule needs all axes
    np.testing.assert_array_equal(rows[index], truth["targets"][index])


def test_rows_outside_of_the_file_are_an_index_error(real: Path) -> None:
    rows = beton.Beton(real).array("mask")
    with pytest.raises(IndexError):
        rows[64]
    with pytest.raises(RequestError, match="cannot take the shape"):
        rows.reshape(32, -1)


@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_what_is_written_reads_back(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    m, step = data.draw(st.integers(1, 40)), data.draw(st.integers(1, 45))
    names = data.draw(st.lists(st.text("abcXYZ_09 ", min_size=1, max_size=16), min_size=1, max_size=4, unique=True))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    arrays = {}
    for name in names:
        shape = (m, *data.draw(st.lists(st.integers(1, 5), max_size=3)))
        dtype = data.draw(st.sampled_from(["?", "u1", "<i2", ">i4", "u8", "<f2", "f4", ">f8"]))
        arrays[name] = rng.integers(0, 2 if dtype == "?" else 100, shape).astype(dtype)
    path = put(tmp_path_factory.mktemp("w") / "x.beton", arrays, step, SMALL_PAGE)
    found = read_all(path)
    assert list(found) == names
    for name, array in arrays.items():
        np.testing.assert_array_equal(found[name], array)
        assert found[name].dtype == (array.dtype.newbyteorder("<") if array.ndim > 1 else f"{'<f8' if array.dtype.kind == 'f' else '<i8'}")  # fmt: skip


@pytest.mark.parametrize(("width", "pages"), [(299_585, 3), (SMALL_PAGE - 8, 20), (SMALL_PAGE, 20)])
def test_a_row_lies_in_one_page(tmp_path: Path, width: int, pages: int) -> None:
    """7 rows of 299,585 + 8 bytes fill a page of 2 MiB; a larger row doubles the page."""
    m, rng = 20, np.random.default_rng(0)
    arrays = {"x": rng.integers(0, 256, (m, width), dtype=np.uint8), "y": rng.normal(size=(m, 1))}
    path = put(tmp_path / "x.beton", arrays, 13, SMALL_PAGE)
    page_size, table = struct.unpack_from("<4xI8xQ", path.read_bytes()[:HEADER])
    assert page_size == (SMALL_PAGE if width < SMALL_PAGE else 2 * SMALL_PAGE)
    assert table == (1 + pages) * page_size
    entries = np.fromfile(path, "<u8", offset=table).reshape(m, 2, 3)
    assert (entries[:, :, 0] == np.arange(m)[:, None]).all()
    assert (entries[:, 0, 1] // page_size == (entries[:, 1, 1] + 7) // page_size).all()
    for name, expected in arrays.items():
        np.testing.assert_array_equal(beton.Beton(path).array(name)[::-1], expected[::-1])


def test_only_the_rows_that_are_taken_are_loaded(tmp_path: Path) -> None:
    m, n = 96, 1 << 20
    zeros = np.zeros((8, n), np.bool_)
    shape = {
        "mask": ((m, n), np.dtype(bool), iter([zeros] * 12)),
        "y": ((m, 1), np.dtype("f4"), iter([zeros[:, :1]] * 12)),
    }
    beton.write(tmp_path / "x.beton", shape)
    tracemalloc.start()
    try:
        rows = beton.Beton(tmp_path / "x.beton").array("mask")
        opening = tracemalloc.get_traced_memory()[1]
        assert not rows[50:53].any()
        taking = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert opening < 2 << 20
    assert taking < 6 << 20


@pytest.mark.parametrize(
    ("arrays", "message"),
    [
        ({"a name of 17 char": np.ones((2, 3))}, "1 to 16 ASCII characters"),
        ({"é": np.ones((2, 3))}, "1 to 16 ASCII characters"),
        ({"x": np.ones((2, 3), complex)}, "dtype complex128"),
        ({"x": np.ones((2, 3)), "y": np.ones(3)}, "the same rows of every field"),
        ({"x": np.ones((0, 3))}, "none without values"),
        ({"x": np.ones((2, 0))}, "none without values"),
        ({"x": np.broadcast_to(np.uint8(1), (2, (2 << 30) + 1))}, "room for 2147483648"),
    ],
)
def test_what_the_format_cannot_hold_is_refused(tmp_path: Path, arrays: dict[str, NDArray[Any]], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        put(tmp_path / "x.beton", arrays)
    assert not any(tmp_path.iterdir())


# -- regression -----------------------------------------------------------------------------------


@pytest.fixture
def planted(tmp_path: Path) -> tuple[Path, Planted]:
    p = plant(300, 20, 4, noise=0.05, seed=1)
    outputs = p.outputs.astype(np.float32)
    return put(tmp_path / "rows.beton", {"mask": p.masks, "targets": outputs, "idx": np.arange(300)}), p


def test_a_fit_takes_a_file_where_a_store_goes(planted: tuple[Path, Planted]) -> None:
    path, p = planted
    for estimator in (dm.Lasso(), dm.Ridge()):
        found = dm.fit(path, estimator)
        expected = dm.fit(masks=p.masks, outputs=p.outputs.astype(np.float32), estimator=estimator)
        np.testing.assert_array_equal(found.weights, expected.weights)
    some_rows = dm.fit(str(path), dm.Ridge(), rows=(0, 200), targets=[2])
    judged = dm.lds(some_rows, path)
    assert judged.n_models == 100
    assert judged.lds > 0.9
    with pytest.raises(RequestError, match="give it where a store goes"):
        dm.fit(masks=path, outputs=path)


def test_targets_that_are_train_examples_are_fitted_out_of_mask(tmp_path: Path) -> None:
    p = plant(300, 8, 8, noise=0.1, seed=2)
    path = put(tmp_path / "x.beton", {"mask": p.masks, "targets": p.outputs})
    found = dm.fit(path, dm.Ridge(), targets_are_train=True)
    expected = dm.fit(masks=p.masks, outputs=p.outputs, estimator=dm.Ridge(), targets_are_train=True)
    np.testing.assert_array_equal(found.weights, expected.weights)
    assert not np.diag(found.weights).any()


def test_fields_of_other_names_are_named_by_the_keys(tmp_path: Path) -> None:
    p = plant(100, 10, 1)
    path = put(tmp_path / "x.beton", {"in": p.masks.astype(np.float32), "loss": p.outputs[:, 0]})
    problem = Problem.build(path, masks_key="in", outputs_key="loss")
    x, y = problem.load()
    np.testing.assert_array_equal(x, p.masks)
    np.testing.assert_array_equal(y, p.outputs)
    with pytest.raises(RequestError, match=r"no field 'mask'; arrays and numbers are in \['in', 'loss'\]"):
        Problem.build(path)


def test_the_commands_take_files_of_both_kinds(planted: tuple[Path, Planted], tmp_path: Path) -> None:
    path, _ = planted
    result = CliRunner().invoke(app, ["fit", str(path), "--rows", "0:200", "--out", str(tmp_path / "a.h5ad")])
    assert result.exit_code == 0, result.output
    result = CliRunner().invoke(app, ["evaluate", str(tmp_path / "a.h5ad"), str(path), "--json"])
    assert result.exit_code == 0, result.output
    assert '"n_models": 100' in result.output


@pytest.fixture
def store(tmp_path: Path) -> dm.Store:
    """60 of 80 rows, four runs of each mask, outputs of the train examples in float64."""
    design = dm.Design(n_train=12, alpha=0.5, n_models=80, seed=0, replicates=4)
    schema = {"margins": {"shape": (12,), "dtype": "float64", "of": "train"}}
    made = dm.Store.create(tmp_path / "st", schema=schema, design=design)
    rng = np.random.default_rng(0)
    made.write_rows(np.arange(20, 80), {"margins": design.masks(20, 80) @ rng.normal(size=(12, 12))})
    return made


def gather(store: dm.Store, path: Path, **options: Any) -> int:
    config = {"data_dir": str(store.path), "out_path": str(path), "y_name": "margins"}
    return write_dataset.write_dataset(write_dataset.Config(**config, **options))


def test_write_dataset_writes_an_ffcv_file(store: dm.Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert gather(store, tmp_path / "x.beton", format="beton") == 60
    note = capsys.readouterr().err
    assert "cannot say which rows are replicates or pairs nor that targets are train examples" in note
    found = read_all(tmp_path / "x.beton")
    assert list(found) == ["mask", "targets", "idx"]
    np.testing.assert_array_equal(found["mask"], store.masks(20, 80))
    np.testing.assert_array_equal(found["targets"], store.array("margins")[20:80].astype(np.float32))
    np.testing.assert_array_equal(found["idx"], np.arange(60))
    assert found["targets"].dtype == np.float32


def test_the_default_format_keeps_replicates_and_train_targets(store: dm.Store, tmp_path: Path) -> None:
    gather(store, tmp_path / "x.beton")
    assert zipfile.is_zipfile(tmp_path / "x.beton")
    problem = Problem.build(tmp_path / "x.beton")
    assert len(np.unique(problem.units)) == 15
    assert problem.train_columns is not None


def test_outputs_beyond_float32_are_refused(tmp_path: Path) -> None:
    schema = {"margins": {"shape": (2,), "dtype": "float64"}}
    store = dm.Store.create(tmp_path / "st", schema=schema, design=dm.Design(n_train=4, alpha=0.5, n_models=3, seed=0))
    store.write_row(1, {"margins": [1e300, 0.0]})
    with pytest.raises(RequestError, match="too large for the float32"):
        gather(store, tmp_path / "x.beton", format="beton")
    assert not (tmp_path / "x.beton").exists()


def test_compute_datamodels_reads_both_formats_alike(planted: tuple[Path, Planted], tmp_path: Path) -> None:
    import torch

    path, p = planted
    spec = {"margins": {"shape": (4,), "dtype": "float32"}, "masks": {"shape": (20,), "dtype": "bool"}}
    store = dm.Store.create(tmp_path / "st", spec=dm.spec.Spec.model_validate({"num_models": 300, "schema": spec}))
    store.write_rows(np.arange(300), {"masks": p.masks, "margins": p.outputs})
    gather(store, tmp_path / "ours")
    weights = []
    for source in (path, tmp_path / "ours"):
        out = tmp_path / f"out-{source.name}"
        compute_datamodels.main(
            [
                "--data.num_train=250",
                "--data.num_val=50",
                "--cfg.k=10",
                f"--data.data_path={source}",
                f"--cfg.out_dir={out}",
            ]
        )
        weights.append(torch.load(out / "datamodels.pt", weights_only=True)["weight"].numpy())
    np.testing.assert_array_equal(*weights)
    assert np.abs(weights[0] - p.weights).max() < 0.1


# -- damage ---------------------------------------------------------------------------------------


def patched(path: Path, position: int, content: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)
    return path


def argument(field: int, offset: int = 0) -> int:
    """Where the arguments of a field are."""
    return HEADER + field * FIELD + 17 + offset


@pytest.mark.parametrize(
    ("position", "content", "message"),
    [
        (0, struct.pack("<H", 3), "layout has version 3"),
        (2, struct.pack("<H", 0), "0 fields"),
        (2, struct.pack("<H", 65535), "65535 fields"),
        (4, struct.pack("<I", 0), "page size is 0"),
        (4, struct.pack("<I", 3 << 20), "page size is 3145728"),
        (8, struct.pack("<Q", 0), "0 samples"),
        (8, struct.pack("<Q", 6), "does not have the 'mask' of sample"),
        (8, struct.pack("<Q", 1 << 16), "allocation table has 10 entries for 65536 samples"),
        (8, struct.pack("<Q", 1 << 40), "past the start of the allocation table"),
        (8, b"\xff" * 8, "past the start of the allocation table"),
        (16, bytes(8), "was stopped before the end"),
        (16, b"\xff" * 8, "an allocation table of 24 bytes per entry at"),
        (16, struct.pack("<Q", 40), "3 fields, and an allocation table at 40"),
        (argument(0), struct.pack("<Q", 1 << 62), "pages have"),
        (argument(0), b"\xff" * 248, "pages have"),
        (argument(0), b"\1\0\0\0\0\0\0\0" * 32, "has the shape"),
        (argument(0), bytes(8), "the shape \\(\\)"),
        (argument(0, 256), struct.pack("<Q", 1 << 40), "760 are there"),
        (argument(0, 256), struct.pack("<Q", 3), "no JSON text"),
        (argument(0, 264), b'[["", "|O"]]\n', "it must be one real number"),
        (argument(0, 264), b'[["", "|b9"]]', "it must be one real number"),
        (argument(0, 264), b'[["", "<c8"]]', "it must be one real number"),
        (argument(0, 264), b'[["x", "|u1"]', "no JSON text"),
        (argument(0, 256), struct.pack("<Q", 760) + b"[" * 760, "no JSON text"),
        (HEADER, b"\xc8", "type 200"),
        (HEADER + 1, b"targets\0", "two fields 'targets'"),
    ],
)
def test_a_file_that_says_what_cannot_be_is_one_error(
    tmp_path: Path, position: int, content: bytes, message: str
) -> None:
    path = patched(put(tmp_path / "x.beton", some(), page_size=SMALL_PAGE), position, content)
    with pytest.raises((CorruptStoreError, RequestError), match=message):
        read_all(path)
    with pytest.raises(DatamodelsError) as error:
        Problem.build(path)
    assert "\n" not in str(error.value)


def test_other_kinds_of_fields_are_named(tmp_path: Path) -> None:
    path = patched(put(tmp_path / "x.beton", some(), page_size=SMALL_PAGE), HEADER + 2 * FIELD, b"\3")
    with pytest.raises(
        RequestError, match=r"has bytes in the field 'idx'; arrays and numbers are in \['mask', 'targets'\]"
    ):
        beton.Beton(path).array("idx")


def test_a_byte_that_is_no_bool_is_an_error(tmp_path: Path) -> None:
    path = patched(put(tmp_path / "x.beton", some(), page_size=SMALL_PAGE), SMALL_PAGE + 2, b"\2")
    rows = beton.Beton(path).array("mask")
    assert rows[1:].shape == (4, 11)
    with pytest.raises(CorruptStoreError, match="the byte 2 in the field 'mask' of bools"):
        rows[:]


def test_every_flipped_bit_of_an_address_or_of_the_allocation_table_is_noticed(tmp_path: Path) -> None:
    """But for those of idx, which are values and not addresses."""
    path = put(tmp_path / "x.beton", some(3), page_size=SMALL_PAGE)
    content = path.read_bytes()
    samples = range(HEADER + 3 * FIELD, HEADER + 3 * FIELD + 3 * 24)
    table = range(2 * SMALL_PAGE, len(content))
    assert len(table) == 3 * 2 * ENTRY
    for position in (*(p for p in samples if (p - samples.start) % 24 < 16), *table):
        for bit in range(8):
            patched(path, position, bytes([content[position] ^ (1 << bit)]))
            with pytest.raises(CorruptStoreError, match="the allocation table does not have"):
                read_all(path)
        patched(path, position, content[position : position + 1])
    np.testing.assert_equal(read_all(path), some(3))


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    path = put(tmp_path / "x.beton", some(2), page_size=SMALL_PAGE)
    content = path.read_bytes()
    starts, end = (0, HEADER, HEADER + FIELD, SMALL_PAGE, SMALL_PAGE + 23), len(content)
    for size in sorted({size + delta for size in starts for delta in range(26)} | set(range(end - 100, end))):
        path.write_bytes(content[:size])
        with pytest.raises((CorruptStoreError, RequestError)):
            read_all(path)
        with pytest.raises((CorruptStoreError, RequestError)):
            Problem.build(path)


@pytest.fixture(scope="module")
def victim(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, bytes]:
    path = put(tmp_path_factory.mktemp("v") / "x.beton", some(), page_size=SMALL_PAGE)
    return path, path.read_bytes()


def survives(path: Path) -> None:
    """The file reads as arrays of the size that it says, or is one error of ours."""
    try:
        found = read_all(path)
    except (CorruptStoreError, RequestError):
        return
    n_samples = beton.Beton(path).n_samples
    assert all(len(array) == n_samples for array in found.values())
    assert sum(array.nbytes for array in found.values()) <= path.stat().st_size


HEAD = HEADER + 3 * FIELD + 5 * 24
WHERE = st.one_of(
    st.integers(0, HEADER - 1),
    st.sampled_from([argument(field, offset) for field in range(3) for offset in (-17, -16, 0, 1, 8, 248, 256, 257)]),
    st.builds(argument, st.integers(0, 1), st.integers(264, 280)),
    st.integers(0, HEAD - 1),
    st.integers(2 * SMALL_PAGE, 2 * SMALL_PAGE + 5 * 2 * ENTRY - 1),
)


@settings(max_examples=400, deadline=2000)
@given(changes=st.dictionaries(WHERE, st.integers(0, 255), min_size=1, max_size=12), size=st.none() | WHERE)
def test_random_damage_is_one_error_or_reads(
    victim: tuple[Path, bytes], changes: dict[int, int], size: int | None
) -> None:
    path, content = victim
    for position, value in changes.items():
        patched(path, position, bytes([value]))
    if size is not None:
        with path.open("r+b") as file:
            file.truncate(size)
    try:
        survives(path)
    finally:
        with path.open("r+b") as file:
            file.truncate(len(content))
            file.write(content[:HEAD])
            file.seek(SMALL_PAGE)
            file.write(content[SMALL_PAGE:])


U64 = st.one_of(st.integers(0, 200), st.integers(0, 2**64 - 1), st.integers(0, 63).map(lambda k: 1 << k))


@settings(max_examples=400, deadline=2000)
@given(
    header=st.tuples(st.just(2), st.integers(0, 6), st.integers(21, 31).map(lambda k: 1 << k), U64, U64),
    fields=st.lists(
        st.tuples(st.integers(0, 7), st.binary(max_size=16), st.lists(U64, max_size=32), U64, st.binary(max_size=40)),
        max_size=6,
    ),
    rest=st.binary(max_size=400),
    fix=st.booleans(),
)
def test_random_headers_are_one_error_or_read(
    tmp_path_factory: pytest.TempPathFactory, header: tuple[int, ...], fields: list[Any], rest: bytes, fix: bool
) -> None:
    body = b""
    for kind, name, shape, length, text in fields:
        arguments = np.array(shape, "<u8").tobytes().ljust(256, b"\0") + struct.pack("<Q", len(text) if fix else length)
        body += bytes([kind]) + name.ljust(16, b"\0") + (arguments + text).ljust(1024, b"\0")
    if fix:  # so that what comes after is reached as well
        end = HEADER + len(body) + len(rest)
        header = (2, len(fields), header[2], 1 + header[3] % 3, max(0, end - end % 24 // 2 - 24))
        rest = rest.ljust(len(rest) + (header[4] - end) % 24, b"\0")
    path = tmp_path_factory.getbasetemp() / "random.beton"
    path.write_bytes(struct.pack("<HHIQQ", *header) + body + rest)
    survives(path)


@settings(max_examples=300, deadline=2000)
@given(data=st.data())
def test_random_damage_to_a_file_of_ours_is_one_error_or_reads(
    tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    path = tmp_path_factory.getbasetemp() / "ours"
    arrays = {"masks": np.ones((5, 7), bool), "outputs": np.ones((5, 2)), "rows": np.arange(5), "units": np.arange(5)}
    dataset_file.write(path, {k: (a.shape, a.dtype, iter([a])) for k, a in arrays.items()}, {"of": None})
    content = bytearray(path.read_bytes())
    for position, value in data.draw(
        st.dictionaries(st.integers(0, len(content) - 1), st.integers(0, 255), max_size=6)
    ).items():
        content[position] = value
    path.write_bytes(content[: data.draw(st.none() | st.integers(0, len(content)))])
    with contextlib.suppress(DatamodelsError):
        found, _ = dataset_file.read(path)
        assert {array.shape[:1] for array in found.values()} == {found["rows"].shape}


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return (pytest.fail, ("a data file was unpickled",))


def test_reading_never_unpickles(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither what says that it is of objects, nor a pickle in the place of values."""
    bomb = pickle.dumps(Bomb())
    values = np.frombuffer(bomb.ljust(64, b"\0"), np.uint8)[None].repeat(3, axis=0)
    path = put(tmp_path / "x.beton", {"mask": values, "targets": values}, page_size=SMALL_PAGE)
    objects = io.BytesIO()
    np.save(objects, np.array([Bomb(), None], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "ours", "w") as archive:
        for name in ("masks", "outputs", "rows", "units"):
            archive.writestr(f"{name}.npy", objects.getvalue())
        archive.writestr("meta.json", '{"format_version": 1}')
    for name in ("load", "loads", "Unpickler"):
        monkeypatch.setattr(pickle, name, lambda *_, **__: pytest.fail("a data file was unpickled"))
    np.testing.assert_array_equal(beton.Beton(path).array("mask")[:], values)
    patched(path, argument(0, 264), b'[["", "|O8"]]')
    with pytest.raises(CorruptStoreError, match="must be one real number"):
        read_all(path)
    path.write_bytes(b"\2\0" + bomb)
    with pytest.raises(CorruptStoreError):
        dataset_file.read(path)
    with pytest.raises(RequestError, match="another size than its header says"):
        dataset_file.read(tmp_path / "ours")


# -- the real library -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i2"])
def test_the_real_library_reads_what_we_write(tmp_path: Path, dtype: str) -> None:
    """With FFCV, which compiles against OpenCV (Debian: libopencv-dev libturbojpeg0-dev pkg-config), in a virtual environment
    that has this package too: ``pip install --no-deps --no-build-isolation ffcv`` beside opencv-python-headless, assertpy,
    fastargs, terminaltables, psutil, tqdm and torchvision; then ``python -m pytest -m slow tests/test_beton.py``.
    """
    pytest.importorskip("ffcv.loader", reason="FFCV is not installed; it compiles against OpenCV")
    from ffcv.fields.decoders import FloatDecoder, IntDecoder, NDArrayDecoder
    from ffcv.loader import Loader, OrderOption

    rng, m = np.random.default_rng(0), 500
    arrays = {
        "mask": rng.random((m, 9000)) < 0.5,
        "targets": rng.normal(scale=9, size=(m, 3, 2)).astype(dtype),
        "idx": np.arange(m),
        "weight": rng.normal(size=m),
    }
    path = put(tmp_path / "x.beton", arrays, 70, SMALL_PAGE)
    decoders = {"mask": NDArrayDecoder, "targets": NDArrayDecoder, "idx": IntDecoder, "weight": FloatDecoder}
    for os_cache in (True, False):
        loader = Loader(
            str(path), batch_size=64, num_workers=1, order=OrderOption.SEQUENTIAL, drop_last=False, os_cache=os_cache,
            pipelines={name: [decoder()] for name, decoder in decoders.items()},
        )  # fmt: skip
        batches = [[np.array(part) for part in batch] for batch in loader]
        for k, (name, expected) in enumerate(arrays.items()):
            found = np.concatenate([batch[k] for batch in batches])
            assert found.dtype == expected.dtype
            np.testing.assert_array_equal(found.reshape(expected.shape), expected, err_msg=name)


class Samples:
    """What the real library's writer takes."""

    def __init__(self, *columns: Any) -> None:
        self.columns = columns

    def __getitem__(self, index: int) -> tuple[Any, ...]:
        return tuple(column[index] for column in self.columns)

    def __len__(self) -> int:
        return len(self.columns[0])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("workers", [1, 3])
def test_we_read_what_the_real_library_writes(tmp_path: Path, workers: int) -> None:
    """See `test_the_real_library_reads_what_we_write` for how to run it."""
    writer = pytest.importorskip("ffcv.writer", reason="FFCV is not installed; it compiles against OpenCV")
    import torch
    from ffcv.fields import BytesField, FloatField, IntField, JSONField, NDArrayField, RGBImageField, TorchTensorField

    rng, m = np.random.default_rng(0), 450
    arrays = {
        "mask": rng.random((m, 9000)) < 0.5,
        "half": rng.normal(size=(m, 2, 3)).astype(np.float16),
        "targets": rng.normal(size=(m, 5)),
        "idx": np.arange(m) * 7,
        "weight": rng.normal(size=m),
    }
    fields = {
        name: NDArrayField(array.dtype, array.shape[1:]) if array.ndim > 1 else IntField() if array.dtype == np.int64 else FloatField()
        for name, array in arrays.items()
    }  # fmt: skip
    tensor = torch.arange(m * 4, dtype=torch.int32).reshape(m, 4)
    more = {
        "picture": (RGBImageField(), [rng.integers(0, 256, (8, 8, 3), dtype=np.uint8)] * m),
        "text": (JSONField(), [{"k": k} for k in range(m)]),
        "tensor": (TorchTensorField(torch.int32, (4,)), tensor),
        "bytes": (BytesField(), [np.arange(k % 9 + 1, dtype=np.uint8) for k in range(m)]),
    }
    path = tmp_path / "x.beton"
    # What cannot be read as an array stands first, so that all others are found behind it.
    every = {**{name: field for name, (field, _) in more.items()}, **fields}
    columns = [*(values for _, values in more.values()), *arrays.values()]
    writer.DatasetWriter(str(path), every, page_size=SMALL_PAGE, num_workers=workers).from_indexed_dataset(
        Samples(*columns)
    )
    file = beton.Beton(path)
    for name, expected in {**arrays, "tensor": tensor.numpy()}.items():
        assert file.array(name).dtype == expected.dtype
        np.testing.assert_array_equal(file.array(name), expected, err_msg=name)
    with pytest.raises(RequestError, match="has a picture in the field 'picture'"):
        file.array("picture")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_one_worker_of_the_real_library_writes_our_bytes(tmp_path: Path) -> None:
    """Rows fill a page exactly, so that no page has rests. See `test_the_real_library_reads_what_we_write`."""
    writer = pytest.importorskip("ffcv.writer", reason="FFCV is not installed; it compiles against OpenCV")
    from ffcv.fields import IntField, NDArrayField

    rng, m = np.random.default_rng(0), 300
    arrays = {"mask": rng.random((m, (1 << 15) - 16)) < 0.5, "targets": rng.normal(size=(m, 2)), "idx": np.arange(m)}
    fields = {name: NDArrayField(a.dtype, a.shape[1:]) if a.ndim > 1 else IntField() for name, a in arrays.items()}
    theirs = tmp_path / "theirs.beton"
    writer.DatasetWriter(str(theirs), fields, page_size=SMALL_PAGE, num_workers=1).from_indexed_dataset(
        Samples(*arrays.values())
    )
    assert put(tmp_path / "ours.beton", arrays, 70, SMALL_PAGE).read_bytes() == theirs.read_bytes()
