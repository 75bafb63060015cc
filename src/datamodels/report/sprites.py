"""Small pictures as one sheet, so that a page needs no files beside it."""

from __future__ import annotations

import base64
import io
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

_COLUMNS = 40
_PIXELS = 1 << 21  # of a sheet: keeps a page at a few megabytes


@dataclass(frozen=True, eq=False)
class Sheet:
    """Pictures in a grid: that of example ``examples[p]`` is at column ``p % columns`` and row ``p // columns``."""

    uri: str
    examples: NDArray[np.int64]
    columns: int
    rows: int

    def style(self, i: int) -> str:
        """CSS that shows the picture of example i in any box."""
        p = int(np.searchsorted(self.examples, i))
        return f"background-position:{self._percent(p % self.columns, self.columns)} {self._percent(p // self.columns, self.rows)}"

    @staticmethod
    def _percent(position: int, count: int) -> str:
        return "0" if count == 1 else f"{100 * position / (count - 1):.4f}%"


def sheet(images: NDArray[np.uint8], examples: ArrayLike | None = None) -> Sheet:
    """A sheet of some pictures: PNG of grey ones, JPEG of colour ones; shrunk where there are too many pixels.

    Parameters
    ----------
    images
        (k, height, width) or (k, height, width, 3).
    examples
        Which of them, in ascending order; by default all.
    """
    from PIL import Image

    chosen = np.arange(len(images)) if examples is None else np.asarray(examples, dtype=np.int64)
    pictures = _shrunk(images[chosen])
    count, height, width = pictures.shape[:3]
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    grid = np.zeros((rows * columns, *pictures.shape[1:]), dtype=np.uint8)
    grid[:count] = pictures
    grid = grid.reshape(rows, columns, *pictures.shape[1:])
    tall = np.moveaxis(grid, 2, 1).reshape(rows * height, columns * width, *pictures.shape[3:])
    kind = "PNG" if pictures.ndim == 3 else "JPEG"
    # 4:4:4, so that colours do not run into the next picture.
    how = {"optimize": True} if kind == "PNG" else {"quality": 85, "subsampling": 0}
    buffer = io.BytesIO()
    Image.fromarray(tall).save(buffer, kind, **how)
    content = base64.b64encode(buffer.getvalue()).decode()
    return Sheet(f"data:image/{kind.lower()};base64,{content}", chosen, columns, rows)


def _shrunk(images: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The pictures at a scale at which all together have few enough pixels."""
    from PIL import Image

    count, height, width = images.shape[:3]
    scale = math.sqrt(_PIXELS / (count * height * width))
    if scale >= 1:
        return images
    size = (max(1, int(width * scale)), max(1, int(height * scale)))
    return np.stack([np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX)) for image in images])
