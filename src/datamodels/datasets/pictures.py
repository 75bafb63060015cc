"""Pictures as arrays."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError

_GREY = ("1", "L", "LA")
_DEEP = ("I", "F", "I;16", "I;16B", "I;16L", "I;16N")


def scaled(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Pictures (k, height, width) or (k, height, width, channels) as float32 (k, channels, height, width) in [0, 1]."""
    channels = images[:, None] if images.ndim == 3 else np.ascontiguousarray(np.moveaxis(images, 3, 1))
    return np.divide(channels, np.float32(255), dtype=np.float32)


def picture_size(size: int | tuple[int, int] | None) -> tuple[int, int] | None:
    """A size that was asked for as (height, width)."""
    if size is None:
        return None
    height, width = (size, size) if isinstance(size, int) else size
    if height < 1 or width < 1:
        raise RequestError(f"size is {size!r}; it must be pixels, one number or (height, width)")
    return height, width


def stack(pictures: Iterable[tuple[str, Any]], size: tuple[int, int] | None) -> NDArray[np.uint8]:
    """PIL pictures as one array: (k, height, width) when all are grey, (k, height, width, 3) otherwise.

    Parameters
    ----------
    pictures
        Pairs of what to call the picture in an error, and the picture.
    size
        (height, width) that all are resized to; None: all must agree.

    Raises
    ------
    RequestError
        that names the first picture that cannot be decoded, has more than 8 bits, or differs in size.
    """
    from PIL import Image

    arrays: list[NDArray[np.uint8]] = []
    first = ""
    for name, picture in pictures:
        if picture.mode in _DEEP:
            raise RequestError(
                f"{name} has pixels of mode {picture.mode}, not 8 bits; convert it, or use from_arrays with floats"
            )
        try:
            # A palette's transparency can only be dropped by way of RGBA.
            whole = picture.convert("RGBA") if picture.mode == "P" else picture
            plain = whole.convert("L" if picture.mode in _GREY else "RGB")
        except (OSError, SyntaxError, ValueError) as error:
            raise RequestError(f"{name} cannot be read as a picture: {error}") from error
        if size is not None:
            plain = plain.resize((size[1], size[0]), Image.Resampling.BILINEAR)
        array = np.asarray(plain)
        if arrays and array.shape[:2] != arrays[0].shape[:2]:
            raise RequestError(
                f"{name} has {array.shape[0]} x {array.shape[1]} pixels (height x width), {first} has "
                f"{arrays[0].shape[0]} x {arrays[0].shape[1]}; give a size to bring all to"
            )
        first = first or name
        arrays.append(array)
    if any(array.ndim == 3 for array in arrays):
        arrays = [array if array.ndim == 3 else np.repeat(array[..., None], 3, axis=2) for array in arrays]
    return np.stack(arrays)
