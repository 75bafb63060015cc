"""CIFAR-10 (Krizhevsky 2009) in its own layout of Python pickles, read without running what a pickle may ask for."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.datasets.base import Dataset, Split
from datamodels.datasets.pictures import scaled
from datamodels.datasets.places import find
from datamodels.errors import RequestError, first_line

_FOLDER = "cifar-10-batches-py"


def cifar10(folder: str | Path | None = None) -> Dataset:
    """CIFAR-10 (Krizhevsky 2009), 50,000 colour pictures to train and 10,000 to test; x is (k, 3, 32, 32).

    Parameters
    ----------
    folder
        ``cifar-10-batches-py`` or the folder that holds it (the ``root`` of torchvision); by default the
        folder that the variable DATAMODELS_DATA names.

    Raises
    ------
    RequestError
        when files are not there or not what they should be.
    """
    advice = "Download it with torchvision.datasets.CIFAR10(FOLDER, download=True)"
    place = find("cifar10", folder, "data_batch_1", (_FOLDER,), (), advice)
    names = _read(place / "batches.meta").get("label_names")
    if not isinstance(names, list):
        raise RequestError(f"{place / 'batches.meta'} has no label_names; fetch it again")
    train = [_batch(place / f"data_batch_{number}") for number in range(1, 6)]
    return Dataset("cifar10", _split(train), _split([_batch(place / "test_batch")]), tuple(map(_text, names)))


def _batch(path: Path) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """Pictures (k, 32, 32, 3) and labels (k,) of one file."""
    content = _read(path)
    data, labels = content.get("data"), content.get("labels")
    if not isinstance(data, _Array) or not isinstance(labels, list):
        raise RequestError(f"{path} is no batch of CIFAR-10: it needs an array 'data' and a list 'labels'")
    rows = data.array(path)
    if rows.shape != (len(labels), 3072):
        raise RequestError(f"{path} has data of shape {rows.shape} for {len(labels)} labels; each needs 3072 bytes")
    if not all(isinstance(label, int) for label in labels):
        raise RequestError(f"{path} has labels that are not integers; fetch CIFAR-10 again")
    return rows.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), np.array(labels, np.int64)


def _split(batches: list[tuple[NDArray[np.uint8], NDArray[np.int64]]]) -> Split:
    images = np.ascontiguousarray(np.concatenate([pictures for pictures, _ in batches]))
    return Split(scaled(images), np.concatenate([labels for _, labels in batches]), images=images)


class _Array:
    """Stands in for an array of bytes while it is unpickled, so that no constructor of numpy runs."""

    def __init__(self, *_: object) -> None:
        self.state: Any = None

    def __setstate__(self, state: Any) -> None:
        self.state = state

    def array(self, path: Path) -> NDArray[np.uint8]:
        """The bytes as uint8 of their shape."""
        try:
            _, shape, dtype, fortran, content = self.state
            if dtype.name not in ("u1", b"u1"):
                raise ValueError(f"values are {dtype.name!r}, not bytes")
            return np.frombuffer(content, np.uint8).reshape(shape, order="F" if fortran else "C")
        except (AttributeError, OverflowError, TypeError, ValueError) as error:
            raise RequestError(f"{path} has an array that is not of bytes: {error}") from error


class _Dtype:
    """Stands in for the type of an array while it is unpickled."""

    def __init__(self, name: object = None, *_: object) -> None:
        self.name = name

    def __setstate__(self, state: object) -> None:
        """Byte order and padding, which bytes do not have."""


def _latin1(text: str, _encoding: str) -> bytes:
    """Bytes as Python 3 pickles them by protocol 2."""
    return text.encode("latin1")


_ALLOWED: dict[tuple[str, str], Any] = {
    ("numpy.core.multiarray", "_reconstruct"): _Array,
    ("numpy._core.multiarray", "_reconstruct"): _Array,
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("_codecs", "encode"): _latin1,
}


class _Unpickler(pickle.Unpickler):
    """Knows arrays of bytes and Python's own containers; anything else that a pickle names is refused."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which no file of CIFAR-10 does")
        return _ALLOWED[module, name]


def _read(path: Path) -> dict[str, Any]:
    try:
        with path.open("rb") as file:
            content = _Unpickler(file, encoding="bytes").load()
    except OSError as error:
        raise RequestError(f"{path} cannot be read: {first_line(error)}; fetch CIFAR-10 again") from error
    except Exception as error:  # a broken pickle may raise anything
        raise RequestError(f"{path} is refused: {error}; fetch CIFAR-10 again from a place that you trust") from error
    if not isinstance(content, dict):
        raise RequestError(f"{path} is refused: it holds {type(content).__name__}, not a dict; fetch CIFAR-10 again")
    return {_text(key): value for key, value in content.items()}


def _text(value: object) -> str:
    return value.decode("ascii", "replace") if isinstance(value, bytes) else str(value)
