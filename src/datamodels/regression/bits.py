"""Masks as bits: 64 rows of a column in one word, and exact counts of rows that hold two examples.

XᵀX of 0/1 masks is a table of counts. On bit-packed columns a count is AND and population count, which
the compiler turns into vector instructions: far fewer operations than a matrix product of numbers.
`add_products` can also use an integer or a float32 matrix product where a measurement says that it is
faster; all of them return the same integers.
"""

from __future__ import annotations

import sys
import time
from functools import cache
from typing import Any, Literal

import numpy as np
from numba import njit, types
from numba.extending import intrinsic
from numpy.typing import NDArray

from datamodels.threads import n_threads, spread

Engine = Literal["popcount", "int8", "float32"]
_TILE = 48
_LINE = 8  # words of a cache line: columns start at multiples of it
_MEASURE_ABOVE = 5e12  # pairs of bits that a process has multiplied: seconds of work
_UNPACK_ROWS = 4096


def _popcount(typing_context, word):  # type: ignore[no-untyped-def]
    """Number of set bits of a uint64."""

    def generate(context, builder, signature, arguments):  # type: ignore[no-untyped-def]
        return builder.ctpop(arguments[0])

    return types.uint64(types.uint64), generate


popcount: Any = intrinsic(_popcount)


@njit(cache=True, nogil=True)
def common(a, b):  # type: ignore[no-untyped-def]
    """How many bits two lists of words share."""
    found = np.uint64(0)
    for w in range(len(a)):
        found += popcount(a[w] & b[w])
    return found


def words_of(rows: int) -> int:
    """Words that hold the bits of so many rows, in whole cache lines."""
    return -(-rows // (64 * _LINE)) * _LINE


@njit(cache=True, nogil=True)
def _pack(x, out, first, first_word, last_word):  # type: ignore[no-untyped-def]
    m, n = x.shape
    for word in range(first_word, last_word):
        line = np.zeros(n, dtype=np.uint64)
        for bit in range(min(64, m - 64 * word)):
            row = x[64 * word + bit]
            for j in range(n):
                line[j] |= np.uint64(row[j]) << np.uint64(bit)
        for j in range(n):
            out[j, first + word] = line[j]


def pack_columns(x: NDArray[np.bool_], out: NDArray[np.uint64] | None = None, first: int = 0) -> NDArray[np.uint64]:
    """Bits of masks x (k, n) by column, uint64 (n, words): bit b of word w is row 64 w + b.

    With ``out`` they go to its words from `first` on.
    """
    x = np.ascontiguousarray(x, dtype=np.bool_)
    if out is None:
        out = np.zeros((x.shape[1], words_of(len(x))), dtype=np.uint64)
    words, step = -(-len(x) // 64), 16
    spread(lambda start: _pack(x, out, first, start, min(start + step, words)), range(0, words, step))
    return out


def pack_bits(rows: NDArray[np.bool_], words: int) -> NDArray[np.uint64]:
    """One bit per row, (k,) bool -> (words,) uint64."""
    out = np.zeros(words, dtype=np.uint64)
    packed = np.packbits(rows, bitorder="little")
    out.view(np.uint8)[: len(packed)] = packed
    return out


@njit(cache=True, nogil=True)
def _unpack(columns, first, out):  # type: ignore[no-untyped-def]
    rows, n = out.shape
    for j in range(n):
        column = columns[j]
        for i in range(rows):
            row = first + i
            out[i, j] = (column[row >> 6] >> np.uint64(row & 63)) & np.uint64(1)


def unpack_rows(columns: NDArray[np.uint64], first: int, out: NDArray[Any]) -> NDArray[Any]:
    """Rows `first` to ``first + len(out)`` of bit-packed columns as numbers, into out (k, n)."""
    step = 512
    spread(
        lambda start: _unpack(columns[start : start + step], first, out[:, start : start + step]),
        range(0, len(columns), step),
    )
    return out


@njit(cache=True, nogil=True)
def _tile(columns, i0, i1, j0, j1, counts):  # type: ignore[no-untyped-def]
    """counts[i - i0, j - j0] = rows that hold both i and j, two by four columns at a time."""
    words = columns.shape[1]
    i = i0
    while i < i1:
        x0 = columns[i]
        x1 = columns[min(i + 1, i1 - 1)]
        j = j0
        while j < j1:
            y0 = columns[j]
            y1 = columns[min(j + 1, j1 - 1)]
            y2 = columns[min(j + 2, j1 - 1)]
            y3 = columns[min(j + 3, j1 - 1)]
            a0 = a1 = a2 = a3 = b0 = b1 = b2 = b3 = np.uint64(0)
            for w in range(words):
                a0 += popcount(x0[w] & y0[w])
                a1 += popcount(x0[w] & y1[w])
                a2 += popcount(x0[w] & y2[w])
                a3 += popcount(x0[w] & y3[w])
                b0 += popcount(x1[w] & y0[w])
                b1 += popcount(x1[w] & y1[w])
                b2 += popcount(x1[w] & y2[w])
                b3 += popcount(x1[w] & y3[w])
            r, c = i - i0, j - j0  # the table has room for a pair and a quadruple that stick out
            counts[r, c], counts[r, c + 1], counts[r, c + 2], counts[r, c + 3] = a0, a1, a2, a3
            counts[r + 1, c], counts[r + 1, c + 1], counts[r + 1, c + 2], counts[r + 1, c + 3] = b0, b1, b2, b3
            j += 4
        i += 2


@njit(cache=True, nogil=True)
def _add_stripe(columns, gram, stripe):  # type: ignore[no-untyped-def]
    """Add the counts of one stripe of tiles, right of the diagonal, and their mirror image."""
    n = len(columns)
    counts = np.empty((_TILE + 1, _TILE + 3), dtype=np.int64)
    i0, i1 = stripe * _TILE, min(n, (stripe + 1) * _TILE)
    for j0 in range(i0, n, _TILE):
        j1 = min(n, j0 + _TILE)
        _tile(columns, i0, i1, j0, j1, counts)
        for i in range(i0, i1):
            for j in range(j0, j1):
                gram[i, j] += gram.dtype.type(counts[i - i0, j - j0])
        if j0 > i0:
            for j in range(j0, j1):
                for i in range(i0, i1):
                    gram[j, i] += gram.dtype.type(counts[i - i0, j - j0])


_done = [0.0]  # work so far


def _add_popcount(columns: NDArray[np.uint64], gram: NDArray[Any]) -> None:
    stripes = -(-len(columns) // _TILE)
    spread(lambda stripe: _add_stripe(columns, gram, stripe), range(stripes))


def _add_dense(columns: NDArray[np.uint64], gram: NDArray[Any], engine: Engine) -> None:
    """The same by matrix products of unpacked rows, blocks right of the diagonal only."""
    n, block = len(columns), 1024
    for first in range(0, 64 * columns.shape[1], _UNPACK_ROWS):
        rows = min(_UNPACK_ROWS, 64 * columns.shape[1] - first)
        x = unpack_rows(columns, first, np.empty((rows, n), dtype=np.int8 if engine == "int8" else np.float32))
        for start in range(0, n, block):
            stop = min(start + block, n)
            found = (
                _int8_product(x[:, start:stop], x[:, start:]) if engine == "int8" else x[:, start:stop].T @ x[:, start:]
            )
            found = found.astype(gram.dtype)
            gram[start:stop, start:] += found
            gram[stop:, start:stop] += found[:, stop - start :].T


def _int8_product(a: NDArray[np.int8], b: NDArray[np.int8]) -> NDArray[np.int32]:
    """aᵀ b in integers, on a GPU when there is one."""
    import torch

    device = "cuda" if torch.cuda.is_available() else "cpu"
    left, right = (torch.from_numpy(np.ascontiguousarray(part)).to(device) for part in (a, b))
    # GPUs want multiples of 8, and torch on CPUs returns anything for a single column.
    left = torch.nn.functional.pad(left, (0, -left.shape[1] % 8, 0, -left.shape[0] % 8))
    right = torch.nn.functional.pad(right, (0, -right.shape[1] % 8, 0, -right.shape[0] % 8))
    return torch._int_mm(left.T, right).cpu().numpy()[: a.shape[1], : b.shape[1]]


def add_products(columns: NDArray[np.uint64], gram: NDArray[Any], engine: Engine | None = None) -> None:
    """Add XᵀX of bit-packed columns (n, words) to gram (n, n), exactly.

    Parameters
    ----------
    engine
        ``popcount``, ``int8`` or ``float32``. By default ``popcount``, and when the process has much to multiply
        what a short measurement finds fastest (``int8`` takes part where torch is loaded already).
    """
    if engine is None:
        _done[0] += 64.0 * columns.shape[1] * len(columns) ** 2
        engine = fastest_engine() if _done[0] > _MEASURE_ABOVE else "popcount"
    if engine == "popcount":
        _add_popcount(columns, gram)
    else:
        _add_dense(columns, gram, engine)


@cache
def fastest_engine() -> Engine:
    """The engine that computes a small product fastest on this machine, measured once per process."""
    engines: list[Engine] = ["popcount", "float32"]
    if "torch" in sys.modules or n_threads() > 8:
        engines.append("int8")
    return min(engines, key=_seconds)


def _seconds(engine: Engine) -> float:
    columns = np.random.default_rng(0).integers(0, 2**63, size=(1536, 128), dtype=np.uint64)
    gram = np.zeros((1536, 1536), dtype=np.uint32)
    best = np.inf
    for _ in range(3):
        start = time.perf_counter()
        try:
            add_products(columns, gram, engine)
        except (ImportError, RuntimeError):  # this build of torch or this device has no such product
            return np.inf
        best = min(best, time.perf_counter() - start)
    return best


@njit(cache=True, nogil=True)
def _cross(columns, keep, features, out):  # type: ignore[no-untyped-def]
    for k in range(len(features)):
        masked = columns[features[k]] & keep
        for i in range(len(columns)):
            out[i, k] = common(masked, columns[i])


def cross_counts(
    columns: NDArray[np.uint64], keep: NDArray[np.uint64], features: NDArray[np.int64]
) -> NDArray[np.float64]:
    """Of the rows in `keep` (words,), how many hold both: all columns by some of them, (n, k)."""
    out = np.empty((len(columns), len(features)))
    _cross(columns, keep, features, out)
    return out


@njit(cache=True, nogil=True)
def _count(columns, kept, out):  # type: ignore[no-untyped-def]
    for j in range(len(columns)):
        for k in range(len(kept)):
            out[k, j] = common(kept[k], columns[j])


def count_columns(columns: NDArray[np.uint64], kept: NDArray[np.uint64]) -> NDArray[np.float64]:
    """How many rows of each of several sets (k, words) hold each column, (k, n)."""
    out = np.empty((len(kept), len(columns)))
    _count(columns, kept, out)
    return out
