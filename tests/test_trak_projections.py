"""Projections: inner products kept in expectation, and the same numbers whatever the way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from torch import Tensor

from datamodels.errors import RequestError
from datamodels.trak.parts import Dense, Outer, Part, Rows
from datamodels.trak.projections import (
    RademacherProjection,
    SparseProjection,
    _fill_signs,
    _key,
    _places,
    hashes,
    projection_of,
)

CPU = torch.device("cpu")


def integers(*shape: int, seed: int = 0) -> Tensor:
    """Small whole numbers, whose sums in float32 are exact in any order."""
    return torch.randint(-3, 4, shape, generator=torch.Generator().manual_seed(seed)).float()


def parts_of(batch: int) -> list[Part]:
    """Parts of every kind over 3000 coordinates, some of them twice."""
    index = torch.randint(0, 30, (batch, 5), generator=torch.Generator().manual_seed(1))
    dead = integers(batch, 2, 40, seed=2)
    dead[:, :, 7:19] = 0
    return [
        Outer(0, integers(batch, 3, 13, seed=3), integers(batch, 3, 40, seed=4)),
        Outer(0, integers(batch, 2, 13, seed=5), dead),
        Outer(520, integers(batch, 50, 6, seed=6), integers(batch, 50, 40, seed=7)),
        Dense(760, integers(batch, 333, seed=8)),
        Rows(1100, index, integers(batch, 5, 60, seed=9)),
    ]


def whole(parts: list[Part], batch: int, size: int = 3000) -> Tensor:
    """The sum of parts, (batch, size), one example and one coordinate after the other."""
    total = torch.zeros(batch, size)
    for part in parts:
        for b in range(batch):
            if isinstance(part, Outer):
                found = torch.einsum("lo,li->oi", part.left[b], part.right[b]).flatten()
                total[b, part.offset : part.offset + len(found)] += found
            elif isinstance(part, Dense):
                total[b, part.offset : part.offset + part.values.shape[1]] += part.values[b]
            else:
                for row, value in zip(part.index[b].tolist(), part.values[b], strict=True):
                    start = part.offset + row * len(value)
                    total[b, start : start + len(value)] += value
    return total


def matrix(dim: int, seed: int, size: int, name: str = "sjlt") -> Tensor:
    """The projection as a matrix (size, dim)."""
    return projection_of(name, dim, seed, size)(iter([Dense(0, torch.eye(size))]), size, CPU)


@pytest.mark.parametrize("batch", [1, 5, 32, 70])
def test_kernels_torch_and_the_matrix_agree_exactly(batch: int) -> None:
    parts = parts_of(batch)
    projection = SparseProjection(64, seed=3)
    by_matrix = whole(parts, batch) @ matrix(64, 3, 3000)
    torch.testing.assert_close(projection.by_kernels(iter(parts), batch), by_matrix, rtol=0, atol=0)
    torch.testing.assert_close(projection.by_torch(iter(parts), batch, CPU), by_matrix, rtol=0, atol=0)
    none = projection_of("none", 1, 0, 3000)
    torch.testing.assert_close(none(iter(parts), batch, CPU), whole(parts, batch), rtol=0, atol=0)


def test_an_example_is_projected_alike_in_any_batch() -> None:
    parts, projection = parts_of(40), SparseProjection(64, seed=3)
    together = projection(iter(parts), 40, CPU)
    for b in (0, 31, 32, 39):
        alone = projection(iter([part.example(b) for part in parts]), 1, CPU)
        torch.testing.assert_close(alone[0], together[b], rtol=0, atol=0)


def test_rademacher_is_one_matrix_of_signs() -> None:
    parts, projection = parts_of(6), RademacherProjection(100, seed=5)
    coordinates = torch.arange(0, 9000, 7)
    signs = projection.signs(coordinates)
    assert set(signs.unique().tolist()) == {-1.0, 1.0}
    torch.testing.assert_close(projection.signs_by_torch(coordinates), signs, rtol=0, atol=0)
    expected = whole(parts, 6) @ projection.signs(torch.arange(3000)) / 10
    torch.testing.assert_close(projection(iter(parts), 6, CPU), expected, rtol=1e-5, atol=1e-3)


def test_hashes_are_the_published_splitmix64() -> None:
    """Python integers, the compiled kernels and torch give the same words, for coordinates beyond 32 bits too."""
    words = 2**64

    def splitmix(counter: int, key: int) -> int:
        z = (counter * 0x9E3779B97F4A7C15 + key) % words
        z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9 % words
        z = (z ^ z >> 27) * 0x94D049BB133111EB % words
        return z ^ z >> 31

    assert splitmix(1, 0) == 0xE220A8397B1DCDAF  # the first output of the reference implementation for seed 0
    coordinates = [0, 1, 5, 2**31, 2**40 + 3]
    for key in (_key(0), _key(7), 2**64 - 1):
        expected = [splitmix(c, key) for c in coordinates]
        assert [word % words for word in hashes(torch.tensor(coordinates), key).tolist()] == expected
        buckets, signs = np.empty(5, np.int32), np.empty(5, np.float32)
        _places(np.array(coordinates), np.uint64(key), 2048, buckets, signs)
        assert buckets.tolist() == [(word >> 32) * 2048 >> 32 for word in expected]
        assert signs.tolist() == [1.0 - 2.0 * (word & 1) for word in expected]
        table = np.empty((5, 64), np.float32)
        _fill_signs(np.array(coordinates), 1, np.uint64(key), table)
        assert table[3].tolist() == [1.0 - 2.0 * (expected[3] >> k & 1) for k in range(64)]


@pytest.mark.parametrize("name", ["sjlt", "rademacher"])
def test_inner_products_are_kept_in_expectation(name: str) -> None:
    """Over 2000 seeds the mean is within 4 standard errors, and the variance is that of theory."""
    rng = np.random.default_rng(0)
    x, y = (torch.from_numpy(rng.normal(size=200).astype(np.float32)) for _ in range(2))
    y = (0.5 * x + y).contiguous()
    pair, dim = torch.stack([x, y]), 32

    def products() -> Iterator[float]:
        for seed in range(2000):
            found = projection_of(name, dim, seed, 200)(iter([Dense(0, pair)]), 2, CPU).double()
            yield float(found[0] @ found[1])

    found = np.fromiter(products(), float)
    exact = float(x.double() @ y.double())
    variance = (float(x.double() @ x.double()) * float(y.double() @ y.double()) + exact**2) / dim
    variance -= 2 * float((x.double() ** 2) @ (y.double() ** 2)) / dim
    assert abs(found.mean() - exact) < 4 * np.sqrt(variance / 2000)
    assert found.var() == pytest.approx(variance, rel=0.15)


def test_buckets_and_signs_are_even() -> None:
    p = matrix(16, 0, 16_000)
    assert ((p != 0).sum(dim=1) == 1).all()
    assert set(p[p != 0].tolist()) == {-1.0, 1.0}
    counts = (p != 0).sum(dim=0)
    assert abs(counts - 1000).max() < 4 * np.sqrt(1000)
    assert abs(p.sum()) < 4 * np.sqrt(16_000)
    assert not torch.equal(p, matrix(16, 1, 16_000))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"name": "gauss"}, "legal: 'sjlt'"),
        ({"dim": 0}, "at least 1"),
        ({"seed": -1}, "at least 0"),
    ],
)
def test_wrong_requests_say_what_is_legal(given: dict, message: str) -> None:
    with pytest.raises(RequestError, match=message):
        projection_of(**{"name": "sjlt", "dim": 8, "seed": 0, "n_coordinates": 4, **given})
