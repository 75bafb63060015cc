"""Damaged data files, FFCV's and ours: one clear error or arrays of the size that is said, and nothing is unpickled."""

from __future__ import annotations

import contextlib
import io
import pickle
import struct
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, DatamodelsError, RequestError
from datamodels.regression import beton, dataset_file
from datamodels.regression.problem import Problem
from tests.beton_files import ENTRY, FIELD, HEADER, SMALL_PAGE, put, read_all


def some(m: int = 5) -> dict[str, NDArray[Any]]:
    rng = np.random.default_rng(0)
    return {
        "mask": rng.random((m, 11)) < 0.5,
        "targets": rng.normal(size=(m, 3)).astype(np.float32),
        "idx": np.arange(m),
    }


def patched(path: Path, position: int, content: bytes) -> Path:
    with path.open("r+b") as file:
        file.seek(position)
        file.write(content)
    return path


def argument(field: int, offset: int = 0) -> int:
    """Where the arguments of a field are."""
    return HEADER + field * FIELD + 17 + offset


# -- what a file says ---------------------------------------------------------------------------------


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


# -- at random ----------------------------------------------------------------------------------------


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


# -- pickles ------------------------------------------------------------------------------------------


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
