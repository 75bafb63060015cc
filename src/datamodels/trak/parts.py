"""Per-example gradients in pieces that know their coordinates, so that a projection can take them one by one.

Gradients of parts add up: a parameter that is used twice is two parts with the same coordinates.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

_ELEMENTS = 1 << 23  # of a gradient block: 32 MB


@dataclass(frozen=True)
class Outer:
    """The gradient of a matrix (o, i), stored row by row from coordinate `offset`: Σ_l left[b, l, o] right[b, l, i].

    ``left`` is (B, L, o) and ``right`` (B, L, i), in any strides.
    """

    offset: int
    left: Tensor
    right: Tensor

    def example(self, b: int) -> Outer:
        return Outer(self.offset, self.left[b : b + 1], self.right[b : b + 1])

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        n_in, n_out = self.right.shape[2], self.left.shape[2]
        step = max(1, _ELEMENTS // (len(self.left) * n_in))
        for first in range(0, n_out, step):
            block = self.left[:, :, first : first + step].transpose(1, 2) @ self.right
            start = self.offset + first * n_in
            yield torch.arange(start, start + block[0].numel(), device=block.device), block.flatten(1)


@dataclass(frozen=True)
class Dense:
    """Gradients of the coordinates from `offset` on, ``values`` (B, k)."""

    offset: int
    values: Tensor

    def example(self, b: int) -> Dense:
        return Dense(self.offset, self.values[b : b + 1])

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        yield torch.arange(self.offset, self.offset + self.values.shape[1], device=self.values.device), self.values


@dataclass(frozen=True)
class Rows:
    """The gradient of a table (rows, d) of which example b used the rows ``index`` (B, L), with ``values`` (B, L, d)."""

    offset: int
    index: Tensor
    values: Tensor

    def example(self, b: int) -> Rows:
        return Rows(self.offset, self.index[b : b + 1], self.values[b : b + 1])

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        used, position = torch.unique(self.index, return_inverse=True)
        size, width = len(self.values), self.values.shape[2]
        step = max(1, _ELEMENTS // (size * width))
        for first in range(0, len(used), step):
            rows = used[first : first + step]
            inside = (position >= first) & (position < first + step)
            example, place = inside.nonzero(as_tuple=True)
            block = self.values.new_zeros(size * len(rows), width)
            block.index_add_(0, example * len(rows) + position[example, place] - first, self.values[example, place])
            coordinates = self.offset + rows[:, None] * width + torch.arange(width, device=rows.device)
            yield coordinates.flatten(), block.view(size, -1)


Part = Outer | Dense | Rows
"""``chunks()`` yields (coordinates (k,) int64, all different; gradients (B, k)); ``example(b)`` is the part of one example."""
