"""The λ path from the rows themselves: for targets with rows of their own, and for Gram matrices that do not fit.

A target that is a training example is fitted on the rows without it, so it has a Gram matrix of its own.
Only the counts of its working set are ever needed; they are computed from bit-packed masks on demand, as
exact as those of the shared matrix, and the certificate is on all features.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from datamodels.regression.moments import batch_penalty, default_tolerance, make_fits, make_target
from datamodels.regression.path import PathFit, lambda_grid, lambda_max_of, path_rules, solve_one
from datamodels.regression.problem import unseen_by_too_few
from datamodels.regression.rows import PackedRows
from datamodels.regression.solver_types import Counts, Fits, Found, Target
from datamodels.regression.split_statistics import near_mean
from datamodels.threads import spread

_BATCH_BYTES = 128 << 20
_NO_MATRICES = np.zeros((0, 0, 0), dtype=np.uint16)

Splitter = Callable[[NDArray[np.int64]], list[NDArray[np.bool_]]]


def fit_path_from_rows(
    rows: PackedRows,
    splitter: Splitter,
    *,
    own_rows: bool,
    n_lambdas: int,
    eps: float,
    l1_ratio: float = 1.0,
    tol: float | None = None,
    intercept: bool = True,
    penalty: NDArray[np.float64] | None = None,
    progress: Callable[[int], None] | None = None,
) -> PathFit:
    """`path.fit_path` for targets whose rows may differ.

    Parameters
    ----------
    splitter
        Design units of rows (k,) -> held-out rows of each split, bool (k,).
    own_rows
        Whether target k is fitted on the rows without training example ``problem.train_columns[k]``, split
        for itself; otherwise all targets share all rows and their split.
    """
    problem = rows.problem
    result = PathFit.empty(problem.n_train, problem.n_targets, n_lambdas)
    tol = default_tolerance(problem.n_train) if tol is None else tol
    everything = np.ones(problem.n_rows, dtype=np.bool_)
    shared = None if own_rows else _Pieces.of(rows, everything, splitter(problem.units))
    size = max(1, _BATCH_BYTES // (16 * (problem.n_rows + problem.n_train)))
    for start in range(0, problem.n_targets, size):
        part = slice(start, min(start + size, problem.n_targets))
        pieces = [shared or _without(rows, splitter, k) for k in range(part.start, part.stop)]
        batch = _Batch.of(rows, part, pieces, intercept, batch_penalty(penalty, problem.n_train, part))
        lambdas = partial(_solve, rows, batch, n_lambdas=n_lambdas, eps=eps, l1_ratio=l1_ratio, tol=tol)
        for k, (found, fits, target) in enumerate(spread(lambdas, range(len(pieces)), progress)):
            result.put(start + k, found, fits, target, float(batch.shift[k]))
    return result


def _solve(
    rows: PackedRows, batch: _Batch, k: int, *, n_lambdas: int, eps: float, l1_ratio: float, tol: float
) -> tuple[Found, Fits, Target]:
    pieces = batch.pieces[k]
    counts = Counts(_NO_MATRICES, False, rows.columns, pieces.keep)
    fits, target = pieces.fits(batch.intercept), batch.target(k)
    largest = lambda_max_of(counts, fits, target, l1_ratio)
    target = target._replace(lams=lambda_grid(np.array([largest]), n_lambdas, eps)[0])
    rules = path_rules(int(pieces.rows.sum() - pieces.rows[1:].max()), int(pieces.rows[1:].sum()), l1_ratio, tol)
    return solve_one(counts, fits, target, rules), fits, target


@dataclass(frozen=True, eq=False)
class _Pieces:
    """The rows of a target in pieces: those that no split holds out, then those of each split.

    members (pieces, m) bool; rows (pieces,) and sum_x (pieces, n) count them; keep (2 splits + 1, words) are the bits
    of the parts that `coordinate.Counts` names.
    """

    members: NDArray[np.bool_]
    rows: NDArray[np.float64]
    sum_x: NDArray[np.float64]
    keep: NDArray[np.uint64]

    @classmethod
    def of(cls, packed: PackedRows, taken: NDArray[np.bool_], splits: list[NDArray[np.bool_]]) -> _Pieces:
        """From the rows taken (m,) and the held-out rows (m,) of each split, which are among them."""
        members = np.stack([taken & ~np.logical_or.reduce(splits), *splits])
        bits = np.stack([packed.packed(piece) for piece in members])
        fitted = [np.bitwise_or.reduce(np.delete(bits, s + 1, axis=0)) for s in range(len(splits))]
        keep = np.stack([*fitted, *bits[1:], np.bitwise_or.reduce(bits)])
        return cls(members, members.sum(axis=1).astype(np.float64), packed.counts(bits), keep)

    def fits(self, intercept: bool) -> Fits:
        """What `coordinate.fit_target` needs of the rows."""
        return make_fits(self.rows, self.sum_x, intercept)


def _without(packed: PackedRows, splitter: Splitter, position: int) -> _Pieces:
    """The rows that do not hold the training example that a target is."""
    problem = packed.problem
    assert problem.train_columns is not None
    column = int(problem.train_columns[position])
    taken = ~packed.rows_with(column)
    if taken.sum() < 2:
        raise unseen_by_too_few(column, int((~taken).sum()), problem.n_rows)
    splits = []
    for held_out in splitter(problem.take(taken).units):
        splits.append(np.zeros(problem.n_rows, dtype=np.bool_))
        splits[-1][np.flatnonzero(taken)[held_out]] = True
    return _Pieces.of(packed, taken, splits)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Some targets with their products: xty (k, pieces, n); sum_y and yty (k, pieces); shift (k,); penalty (k, n)."""

    pieces: list[_Pieces]
    xty: NDArray[np.float64]
    sum_y: NDArray[np.float64]
    yty: NDArray[np.float64]
    shift: NDArray[np.float64]
    penalty: NDArray[np.float64]
    intercept: bool

    @classmethod
    def of(
        cls, rows: PackedRows, part: slice, pieces: list[_Pieces], intercept: bool, penalty: NDArray[np.float64]
    ) -> _Batch:
        outputs = rows.outputs(part)
        shift = np.zeros(len(pieces))
        if intercept:
            shift = np.array(
                [near_mean(y[p.members.any(axis=0), None])[0] for y, p in zip(outputs.T, pieces, strict=True)]
            )
        values = [(y - at) * p.members for y, at, p in zip(outputs.T, shift, pieces, strict=True)]
        flat = rows.products(np.concatenate(values).T)
        xty = np.ascontiguousarray(flat.T).reshape(len(pieces), -1, len(rows.columns))
        sum_y = np.stack([value.sum(axis=1) for value in values])
        yty = np.stack([(value**2).sum(axis=1) for value in values])
        return cls(pieces, xty, sum_y, yty, shift, penalty, intercept)

    def target(self, k: int) -> Target:
        """One target, without its λ."""
        return make_target(
            self.xty[k], self.sum_y[k], self.yty[k],
            self.pieces[k].fits(self.intercept), self.penalty[k], 1e-24 * float(self.shift[k]) ** 2, self.intercept,
        )  # fmt: skip
