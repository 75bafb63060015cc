"""FFCV files: what the real library wrote is read, what we write is the same bytes, and what cannot be held is refused."""

from __future__ import annotations

import gzip
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.regression import beton
from tests.beton_files import HEADER, SMALL_PAGE, put, read_all

DATA = Path(__file__).parent / "data"


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


# -- reading and writing ------------------------------------------------------------------------------


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


# -- the real library ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("dtype", ["<f4", "<f8", "<i2"])
def test_the_real_library_reads_what_we_write(tmp_path: Path, dtype: str) -> None:
    """With FFCV, which compiles against OpenCV (Debian: libopencv-dev libturbojpeg0-dev pkg-config), in a virtual environment
    that has this package too: ``pip install --no-deps --no-build-isolation ffcv`` beside opencv-python-headless, assertpy,
    fastargs, terminaltables, psutil, tqdm and torchvision; then ``python -m pytest -m slow tests/test_beton_format.py``.
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
