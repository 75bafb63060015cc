"""Small pictures as one PNG sheet, so that a page needs no files beside it."""

from __future__ import annotations

import base64
import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_COLUMNS = 40


@dataclass(frozen=True)
class Sheet:
    """Pictures in a grid: picture i is at column ``i % columns`` and row ``i // columns``."""

    uri: str
    columns: int
    rows: int

    def style(self, i: int) -> str:
        """CSS that shows picture i in any box."""
        return f"background-position:{self._percent(i % self.columns, self.columns)} {self._percent(i // self.columns, self.rows)}"

    @staticmethod
    def _percent(position: int, count: int) -> str:
        return "0" if count == 1 else f"{100 * position / (count - 1):.4f}%"


def sheet(images: NDArray[np.uint8]) -> Sheet:
    """A sheet of grey pictures (k, height, width) or colour pictures (k, height, width, 3)."""
    from PIL import Image

    count, height, width = images.shape[:3]
    columns = min(_COLUMNS, count)
    rows = -(-count // columns)
    grid = np.zeros((rows * columns, *images.shape[1:]), dtype=np.uint8)
    grid[:count] = images
    grid = grid.reshape(rows, columns, *images.shape[1:])
    tall = np.moveaxis(grid, 2, 1).reshape(rows * height, columns * width, *images.shape[3:])
    buffer = io.BytesIO()
    Image.fromarray(tall).save(buffer, "PNG", optimize=True)
    return Sheet(f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}", columns, rows)
