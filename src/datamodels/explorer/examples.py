"""How targets and training examples look: pictures on sheets, texts, or the values of a row."""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodels.datasets import Split

Kind = Literal["images", "texts", "rows", "none"]
_PER_ROW = 32
_PER_PAGE = 1024
_TILE = 64  # pixels of the longer side at most
_SHOWN = 8  # values of a row
_SNIPPET = 160
_MANY = 50  # features of a row
_NEAR = 0.3
_SAMPLED = 200
_DECOMPOSED = 1e11  # products of a decomposition


class Examples:
    """The examples of one side.

    Parameters
    ----------
    index
        (k,) which examples of their split they are.
    looks
        Of the split: its ``kind`` (images, rows), the size of a ``picture`` (height, width), ``n_features``; None when it is not at
        hand.
    load
        Gives the split, when an example is looked at.
    names
        (k,) names that a file gives, or None.
    texts
        (k,) texts, or None.
    features
        Names of the features, or None.
    """

    def __init__(
        self,
        index: NDArray[np.int64],
        looks: Mapping[str, Any] | None = None,
        load: Callable[[], Split] | None = None,
        names: NDArray[Any] | None = None,
        texts: NDArray[Any] | None = None,
        features: Sequence[str] | None = None,
    ) -> None:
        self.index, self.looks, self._load = index, looks, load
        self.names_given, self.texts, self._features = names, texts, features

    @property
    def kind(self) -> Kind:
        if self.texts is not None:
            return "texts"
        return "none" if self.looks is None else self.looks["kind"]

    @cached_property
    def _split(self) -> Split:
        assert self._load is not None
        return self._load()

    def __len__(self) -> int:
        return len(self.index)

    @cached_property
    def _rows(self) -> NDArray[np.float32]:
        """Features (k, features), missing ones at their mean."""
        rows = self._split.flat
        missing = np.isnan(rows)
        return np.where(missing, np.nanmean(rows, axis=0), rows) if missing.any() else rows

    @cached_property
    def _scale(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        deviation = self._rows.std(axis=0)
        return self._rows.mean(axis=0), np.where(deviation > 0, deviation, 1.0).astype(np.float32)

    def features(self) -> NDArray[np.float32] | None:
        """Raw features (k, f), missing ones at their mean; None when there are none, or a decomposition of them would take minutes."""
        if (
            self.looks is None
            or len(self) * self.looks["n_features"] * min(len(self), self.looks["n_features"]) > _DECOMPOSED
        ):
            return None
        return self._rows[self.index]

    def name(self, i: int) -> str:
        return str(self.index[i]) if self.names_given is None else str(self.names_given[i])

    def row(self, i: int) -> list[list[Any]]:
        """The values of example i that stand out most: name, value and z-score, by falling |z|."""
        values, (mean, deviation) = self._rows[self.index[i]], self._scale
        z = (values - mean) / deviation
        order = np.argsort(-np.abs(z), kind="stable")[:_SHOWN]
        return [[self._features[j] if self._features else f"feature {j}", float(values[j]), float(z[j])] for j in order]

    def _words(self, i: int) -> str:
        """The row in short: names and values; of many features, such as genes, names alone, for the values say little."""
        assert self.looks is not None
        if self.looks["n_features"] > _MANY:
            return ", ".join(name if z > 0 else f"low {name}" for name, _, z in self.row(i))
        return ", ".join(f"{name} {value:.3g}" for name, value, _ in self.row(i))

    def details(self, i: int) -> dict[str, Any]:
        """What a page about example i shows of itself."""
        out: dict[str, Any] = {"id": self.name(i)}
        if self.texts is not None:
            out["text"] = str(self.texts[i])
        elif self.kind == "rows":
            out["row"] = self.row(i)
        return out

    def snippets(self) -> dict[str, Any]:
        """``ids`` and ``texts`` of all, None where there are none."""
        texts = None
        if self.texts is not None:
            texts = [str(text)[:_SNIPPET] for text in self.texts]
        elif self.kind == "rows":
            texts = [self._words(i)[:_SNIPPET] for i in range(len(self))]
        ids = None if self.names_given is None else [str(name) for name in self.names_given]
        return {"ids": ids, "texts": texts}

    # -- pictures ---------------------------------------------------------------------------------------

    def sheets(self) -> dict[str, Any] | None:
        """Size of a tile, tiles per row, and tiles of each page; None without pictures."""
        if self.kind != "images":
            return None
        full, rest = divmod(len(self), _PER_PAGE)
        height, width = self._tile()
        return {"tile": [width, height], "per_row": _PER_ROW, "pages": [_PER_PAGE] * full + [rest] * (rest > 0)}

    def _tile(self) -> tuple[int, int]:
        assert self.looks is not None
        height, width = self.looks["picture"]
        scale = min(1.0, _TILE / max(height, width))
        return max(1, round(height * scale)), max(1, round(width * scale))

    def sheet(self, page: int) -> bytes:
        """One page of pictures as PNG."""
        return png(self._grid(page, self._tile()))

    def sheet_url(self, page: int, tile: tuple[int, int]) -> str:
        """One page of pictures of size (height, width) as a ``data:`` address: PNG of grey ones, JPEG of colour ones."""
        whole = self._grid(page, tile)
        kind, packed = ("png", png(whole)) if whole.ndim == 2 else ("jpeg", jpeg(whole))
        return f"data:image/{kind};base64,{base64.b64encode(packed).decode()}"

    def _grid(self, page: int, size: tuple[int, int]) -> NDArray[np.uint8]:
        part = self.index[page * _PER_PAGE : (page + 1) * _PER_PAGE]
        pictures = self._pictures(part, size)
        rows = math.ceil(len(part) / _PER_ROW)
        grid = np.zeros((rows * _PER_ROW, *pictures.shape[1:]), dtype=np.uint8)
        grid[: len(part)] = pictures
        grid = grid.reshape(rows, _PER_ROW, *pictures.shape[1:])
        return np.moveaxis(grid, 2, 1).reshape(rows * size[0], _PER_ROW * size[1], *pictures.shape[3:])

    def picture(self, i: int) -> bytes:
        """The picture of one example as PNG."""
        return png(self._pictures(self.index[i : i + 1], self._tile())[0])

    def _pictures(self, index: NDArray[np.int64], size: tuple[int, int]) -> NDArray[np.uint8]:
        from PIL import Image

        assert self._split.images is not None
        images = self._split.images[index]
        if images.shape[1:3] == size:
            return images
        how = Image.Resampling.BOX
        return np.stack([np.asarray(Image.fromarray(image).resize(size[::-1], how)) for image in images])

    # -- copies -----------------------------------------------------------------------------------------

    def usual_distance(self) -> float:
        """Median distance of an example to the nearest other one, over a sample; copies aside."""
        drawn = np.random.default_rng(0).permutation(len(self))[:_SAMPLED]
        mine = self.index[drawn]
        square = (
            self._norms[mine][:, None] + self._norms[self.index] - 2 * (self._rows[mine] @ self._rows[self.index].T)
        )
        square[np.arange(len(drawn)), drawn] = np.inf
        nearest = np.sqrt(np.maximum(square.min(axis=1), 0.0))
        apart = nearest[(nearest > 1e-3 * np.sqrt(self._norms.mean())) & np.isfinite(nearest)]
        return float(np.median(apart)) if len(apart) else 1.0

    @cached_property
    def _norms(self) -> NDArray[np.float32]:
        return np.einsum("ij,ij->i", self._rows, self._rows)

    def _distances(self, i: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
        """All other examples, and distances of features."""
        me = self.index[i]
        square = self._norms + self._norms[me] - 2 * (self._rows @ self._rows[me])
        near = np.flatnonzero(np.arange(len(self.index)) != i)
        distances = np.sqrt(np.maximum(square[self.index[near]], 0.0)).astype(np.float64)
        for k in np.argsort(distances)[:10]:  # rounding of the difference of large numbers matters for the nearest only
            distances[k] = np.linalg.norm(self._rows[self.index[near[k]]] - self._rows[me])
        return near, distances

    def duplicates(self, i: int, usual: float, k: int = 5) -> list[dict[str, Any]]:
        """Other examples that are much nearer than the `usual` distance of the nearest: index, and distance over that."""
        if self.looks is None:
            return []
        near, distances = self._distances(i)
        order = np.argsort(distances, kind="stable")[:k]
        found = [(int(near[j]), float(distances[j]) / usual) for j in order]
        return [{"index": j, "distance": distance} for j, distance in found if distance < _NEAR]


def png(image: NDArray[np.uint8]) -> bytes:
    """A picture (height, width) or (height, width, 3) as a PNG file."""
    return _encoded(image, "PNG")


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """A picture as a JPEG file; 4:4:4, so that colours do not run into the next tile."""
    return _encoded(image, "JPEG", quality=85, subsampling=0)


def _encoded(image: NDArray[np.uint8], kind: str, **options: int) -> bytes:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind, **options)
    return buffer.getvalue()
