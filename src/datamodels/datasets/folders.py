"""Folders of pictures, one subfolder per class."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.datasets.base import Dataset, Split
from datamodels.datasets.pictures import picture_size, scaled, stack
from datamodels.errors import RequestError

_SUFFIXES = (".png", ".jpg", ".jpeg")


def image_folder(
    folder: str | Path,
    *,
    size: int | tuple[int, int] | None = None,
    test: float | None = None,
    seed: int = 0,
    name: str | None = None,
) -> Dataset:
    """Pictures (.png, .jpg, .jpeg) in ``train/<class>/`` and ``test/<class>/``, or in ``<class>/``.

    Classes and files are in the order of their names; x is (k, 1, height, width) when all pictures are
    grey and (k, 3, height, width) otherwise.

    Parameters
    ----------
    folder
        The folder.
    size
        Pixels that pictures are resized to, one number or (height, width); by default all must agree.
    test
        Share of the pictures that is drawn as the test split, when the folder has none.
    seed
        Draws it.
    name
        Name of the dataset; by default that of the folder.

    Raises
    ------
    RequestError
        that names the folder, or the first file that cannot be read or differs in size.
    """
    root, wanted = Path(folder), picture_size(size)
    if not root.is_dir():
        raise RequestError(f"{root} is no folder")
    split = (root / "train").is_dir() and (root / "test").is_dir()
    if split == (test is not None):
        raise RequestError(
            f"{root} has folders train and test, so test must not be given"
            if split
            else f"{root} has no folders train and test; give the share to test on, as in test=0.2"
        )
    classes = _classes(root / "train" if split else root)
    if split:
        _check_classes(root / "test", classes)
        train, held = _files(root / "train", classes), _files(root / "test", classes)
    else:
        train, held = _draw(root, _files(root, classes), float(test or 0), seed)
    images = stack(_opened([path for path, _ in train + held]), wanted)
    x, y = scaled(images), np.array([code for _, code in train + held], np.int64)
    parts = [Split(x[part], y[part], images=images[part]) for part in (slice(len(train)), slice(len(train), None))]
    return Dataset(root.resolve().name if name is None else name, parts[0], parts[1], tuple(classes))


def _classes(root: Path) -> list[str]:
    found = sorted(path.name for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))
    if len(found) < 2:
        raise RequestError(f"{root} has {len(found)} subfolders; it needs one per class, at least two")
    return found


def _check_classes(root: Path, classes: list[str]) -> None:
    for path in sorted(root.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name not in classes:
            raise RequestError(f"{path} is a class that the train folder lacks; legal: {', '.join(classes)}")


def _files(root: Path, classes: Sequence[str]) -> list[tuple[Path, int]]:
    """Pictures with their class codes."""
    files = []
    for code, name in enumerate(classes):
        inside = sorted((root / name).iterdir()) if (root / name).is_dir() else []
        found = [path for path in inside if path.suffix.lower() in _SUFFIXES and not path.name.startswith(".")]
        if not found:
            raise RequestError(f"{root / name} has no pictures ({', '.join(_SUFFIXES)}); each class needs some")
        files += [(path, code) for path in found]
    return files


def _draw(
    root: Path, files: list[tuple[Path, int]], share: float, seed: int
) -> tuple[list[tuple[Path, int]], list[tuple[Path, int]]]:
    count = round(share * len(files))
    if not 0 < count < len(files):
        raise RequestError(
            f"test is {share}: that is {count} of the {len(files)} pictures in {root}; both splits need some"
        )
    held = set(np.random.default_rng(seed).choice(len(files), count, replace=False).tolist())
    train = [file for i, file in enumerate(files) if i not in held]
    return train, [file for i, file in enumerate(files) if i in held]


def _opened(paths: Sequence[Path]) -> Iterator[tuple[str, Any]]:
    from PIL import Image

    for path in paths:
        try:
            picture = Image.open(path)
        except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
            raise RequestError(f"{path} cannot be read as a picture: {error}") from error
        with picture:
            yield str(path), picture
