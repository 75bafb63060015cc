"""Random projections of gradients that keep inner products in expectation: E<Px, Py> = <x, y>.

Signs and buckets are hashes of (seed, coordinate): regenerated wherever they are needed, never stored, the same on every
device. The sparse projection (Kane and Nelson 2014, one nonzero per column) sends coordinate j to one of ``dim`` buckets
with a sign, so that a coordinate costs one addition whatever the dimension.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import torch
from numba import njit
from numpy.typing import NDArray
from torch import Tensor

from datamodels.errors import RequestError
from datamodels.trak.parts import Outer, Part

_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB
_LANES = 32  # examples side by side in a table row: two vector registers of 16 floats
_TILE = 32
_FUSED_POSITIONS = 32  # above, a matrix product is faster than sums in the kernel
_RADEMACHER_ROWS = 4096

_compiled: Callable[..., Any] = njit(cache=True, nogil=True, fastmath={"reassoc", "contract", "nsz"})


class Projection(ABC):
    """Projects per-example gradients of ``n_coordinates`` to ``dim`` features."""

    name: str
    dim: int

    @abstractmethod
    def __call__(self, parts: Iterable[Part], size: int, device: torch.device) -> Tensor:
        """Features (size, dim) float32 of the sum of parts, each of ``size`` examples."""


def projection_of(name: str, dim: int, seed: int, n_coordinates: int) -> Projection:
    """A projection by name: ``sjlt``, ``rademacher``, or ``none``, whose dimension is ``n_coordinates``.

    Raises
    ------
    RequestError
        for another name, a dimension below 1, or a seed that is no 64-bit count.
    """
    if not isinstance(dim, int | np.integer) or not 1 <= dim < 2**31:
        raise RequestError(f"dim is {dim!r}; give a whole number of features, at least 1 (2048 unless told)")
    if not isinstance(seed, int | np.integer) or not 0 <= seed < 2**64:
        raise RequestError(f"seed is {seed!r}; give a whole number, at least 0 and below 2^64")
    dim, seed = int(dim), int(seed)
    if name == "sjlt":
        return SparseProjection(dim, seed)
    if name == "rademacher":
        return RademacherProjection(dim, seed)
    if name == "none":
        return NoProjection(n_coordinates)
    raise RequestError(f"projection is {name!r}; legal: 'sjlt' (default), 'rademacher', 'none'")


# -- the hash -----------------------------------------------------------------------------------------


def _key(seed: int) -> int:
    z = (seed + _GOLDEN) % 2**64
    z = (z ^ z >> 30) * _FIRST % 2**64
    z = (z ^ z >> 27) * _SECOND % 2**64
    return z ^ z >> 31


def _signed(word: int) -> int:
    return word - 2**64 if word >= 2**63 else word


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Logical shift to the right of int64."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)


def hashes(counters: Tensor, key: int) -> Tensor:
    """SplitMix64 of key and counter, as int64; equal to `_hash` bit for bit."""
    z = counters * _signed(_GOLDEN) + _signed(key)
    z = (z ^ _shifted(z, 30)) * _signed(_FIRST)
    z = (z ^ _shifted(z, 27)) * _signed(_SECOND)
    return z ^ _shifted(z, 31)


@njit(cache=True, nogil=True, inline="always")
def _hash(counter, key):  # type: ignore[no-untyped-def]
    z = np.uint64(counter) * np.uint64(_GOLDEN) + key
    z = (z ^ (z >> np.uint64(30))) * np.uint64(_FIRST)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(_SECOND)
    return z ^ (z >> np.uint64(31))


# -- sparse -------------------------------------------------------------------------------------------


@_compiled
def _places(coordinates, key, dim, buckets, signs):  # type: ignore[no-untyped-def]
    for t in range(len(coordinates)):
        z = _hash(coordinates[t], key)
        buckets[t] = np.int32(((z >> np.uint64(32)) * np.uint64(dim)) >> np.uint64(32))
        signs[t] = np.float32(1) - np.float32(2) * np.float32(np.int32(z & np.uint64(1)))


@_compiled
def _add_values(values, coordinates, key, table):  # type: ignore[no-untyped-def]
    """table[bucket of coordinate j, b] += sign * values[b, j], in tiles that are turned to examples innermost."""
    size, total = values.shape
    buckets, signs = np.empty(_TILE, np.int32), np.empty(_TILE, np.float32)
    turned = np.zeros((_TILE, _LANES), np.float32)
    for first in range(0, total, _TILE):
        count = min(_TILE, total - first)
        _places(coordinates[first : first + count], key, len(table), buckets, signs)
        for b in range(size):
            for t in range(count):
                turned[t, b] = values[b, first + t]
        for t in range(count):
            row, sign = buckets[t], signs[t]
            for b in range(_LANES):
                table[row, b] += sign * turned[t, b]


@_compiled
def _add_outer(left, right, columns, width, offset, n_out, key, table):  # type: ignore[no-untyped-def]
    """Add Σ_l left[l, o, b] right[l, i, b] at coordinate offset + o * width + columns[i].

    left is (L, a multiple of 4, lanes), right (L, len(columns), lanes). Four rows of o share the loads of right.
    """
    positions = len(left)
    coordinates = np.empty(_TILE, np.int64)
    buckets, signs = np.empty(_TILE, np.int32), np.empty(_TILE, np.float32)
    sums0, sums1 = np.empty((_TILE, _LANES), np.float32), np.empty((_TILE, _LANES), np.float32)
    sums2, sums3 = np.empty((_TILE, _LANES), np.float32), np.empty((_TILE, _LANES), np.float32)
    for first in range(0, len(columns), _TILE):
        count = min(_TILE, len(columns) - first)
        for o in range(0, n_out, 4):
            sums0[:] = 0
            sums1[:] = 0
            sums2[:] = 0
            sums3[:] = 0
            for l in range(positions):
                for t in range(count):
                    for b in range(_LANES):
                        x = right[l, first + t, b]
                        sums0[t, b] += left[l, o, b] * x
                        sums1[t, b] += left[l, o + 1, b] * x
                        sums2[t, b] += left[l, o + 2, b] * x
                        sums3[t, b] += left[l, o + 3, b] * x
            for k in range(min(4, n_out - o)):
                sums = (sums0, sums1, sums2, sums3)[k]
                for t in range(count):
                    coordinates[t] = offset + (o + k) * width + columns[first + t]
                _places(coordinates[:count], key, len(table), buckets, signs)
                for t in range(count):
                    row, sign = buckets[t], signs[t]
                    for b in range(_LANES):
                        table[row, b] += sign * sums[t, b]


def _lanes(x: Tensor, groups: int) -> NDArray[np.float32]:
    """(B, ...) as (groups, ..., lanes), filled up with zeros."""
    padded = x.new_zeros((groups * _LANES, *x.shape[1:]), dtype=torch.float32)
    padded[: len(x)] = x
    return padded.view(groups, _LANES, *x.shape[1:]).movedim(1, -1).contiguous().numpy()


class SparseProjection(Projection):
    """One nonzero, ±1, per coordinate: compiled loops on the CPU, `index_add_` elsewhere."""

    name = "sjlt"

    def __init__(self, dim: int, seed: int) -> None:
        self.dim = dim
        self._word = _key(seed)

    def __call__(self, parts: Iterable[Part], size: int, device: torch.device) -> Tensor:
        return self.by_kernels(parts, size) if device.type == "cpu" else self.by_torch(parts, size, device)

    def by_torch(self, parts: Iterable[Part], size: int, device: torch.device) -> Tensor:
        """The same with torch alone, on any device."""
        features = torch.zeros(size, self.dim, device=device)
        for part in parts:
            for coordinates, values in part.chunks():
                z = hashes(coordinates, self._word)
                signs = 1 - 2 * (z & 1).float()
                features.index_add_(1, _shifted(_shifted(z, 32) * self.dim, 32), values.float() * signs)
        return features

    def by_kernels(self, parts: Iterable[Part], size: int) -> Tensor:
        """The same with compiled loops, in as many threads as torch has."""
        groups = -(-size // _LANES)
        tables = np.zeros((groups, self.dim, _LANES), np.float32)
        with ThreadPoolExecutor(max(1, min(groups, torch.get_num_threads()))) as pool:
            for part in parts:
                if isinstance(part, Outer) and part.left.shape[1] <= _FUSED_POSITIONS:
                    self._outer(part, tables, pool)
                else:
                    self._values(part, tables, pool)
        return torch.from_numpy(tables.transpose(0, 2, 1).reshape(-1, self.dim)[:size].copy())

    def _outer(self, part: Outer, tables: NDArray[np.float32], pool: ThreadPoolExecutor) -> None:
        n_out, width = part.left.shape[2], part.right.shape[2]
        columns = part.right.any(dim=1).any(dim=0).nonzero()[:, 0]  # inputs that are 0 in the whole batch add nothing
        right = _lanes(part.right if len(columns) == width else part.right[:, :, columns], len(tables))
        left = _lanes(torch.nn.functional.pad(part.left, (0, -n_out % 4)), len(tables))
        places, key = columns.numpy(), np.uint64(self._word)

        def add(group: int) -> None:
            _add_outer(left[group], right[group], places, width, part.offset, n_out, key, tables[group])

        list(pool.map(add, range(len(tables))))

    def _values(self, part: Part, tables: NDArray[np.float32], pool: ThreadPoolExecutor) -> None:
        for coordinates, values in part.chunks():
            block, places = np.ascontiguousarray(values.float().numpy()), coordinates.numpy()

            def add(group: int, block: NDArray[np.float32] = block, places: NDArray[np.int64] = places) -> None:
                some = block[group * _LANES : (group + 1) * _LANES]
                _add_values(some, places, np.uint64(self._word), tables[group])

            list(pool.map(add, range(len(tables))))


# -- dense --------------------------------------------------------------------------------------------


@_compiled
def _fill_signs(coordinates, words, key, signs):  # type: ignore[no-untyped-def]
    """signs (len(coordinates), dim), ±1: bit k % 64 of the hash of coordinate * words + k // 64."""
    dim = signs.shape[1]
    for t in range(len(coordinates)):
        for word in range(words):
            z = _hash(coordinates[t] * words + word, key)
            for k in range(64 * word, min(64 * (word + 1), dim)):
                signs[t, k] = np.float32(1) - np.float32(2) * np.float32(
                    np.int32((z >> np.uint64(k % 64)) & np.uint64(1))
                )


class RademacherProjection(Projection):
    """Every entry ±1/√dim. The cost is (coordinates × dim) per example: for small models, and to compare with."""

    name = "rademacher"

    def __init__(self, dim: int, seed: int) -> None:
        self.dim = dim
        self._word = _key(seed)
        self._words = -(-dim // 64)

    def __call__(self, parts: Iterable[Part], size: int, device: torch.device) -> Tensor:
        features = torch.zeros(size, self.dim, device=device)
        for part in parts:
            for coordinates, values in part.chunks():
                for first in range(0, len(coordinates), _RADEMACHER_ROWS):
                    rows = slice(first, first + _RADEMACHER_ROWS)
                    signs = (
                        self.signs(coordinates[rows])
                        if device.type == "cpu"
                        else self.signs_by_torch(coordinates[rows])
                    )
                    features.addmm_(values[:, rows].float(), signs)
        return features / math.sqrt(self.dim)

    def signs(self, coordinates: Tensor) -> Tensor:
        """(len(coordinates), dim) of ±1."""
        signs = np.empty((len(coordinates), self.dim), np.float32)
        _fill_signs(coordinates.numpy(), self._words, np.uint64(self._word), signs)
        return torch.from_numpy(signs)

    def signs_by_torch(self, coordinates: Tensor) -> Tensor:
        """The same with torch alone, on any device."""
        words = torch.arange(self._words, device=coordinates.device)
        z = hashes(coordinates[:, None] * self._words + words, self._word)
        bits = (z[:, :, None] >> torch.arange(64, device=z.device)) & 1
        return 1 - 2 * bits.flatten(1)[:, : self.dim].float()


class NoProjection(Projection):
    """The gradients themselves: for tests and small models."""

    name = "none"

    def __init__(self, n_coordinates: int) -> None:
        self.dim = n_coordinates

    def __call__(self, parts: Iterable[Part], size: int, device: torch.device) -> Tensor:
        features = torch.zeros(size, self.dim, device=device)
        for part in parts:
            for coordinates, values in part.chunks():
                features.index_add_(1, coordinates, values.float())
        return features
