"""Parts of a fit that other processes compute: statistics of ranges of rows, which add up, and solutions of blocks of targets."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import ConvergenceWarning
from datamodels.executors.pool import Pool
from datamodels.regression.estimator import Estimator
from datamodels.regression.path import BATCH
from datamodels.regression.problem import Problem
from datamodels.regression.solution import Solution
from datamodels.regression.split_statistics import SplitStatistics, near_mean

Penalty = NDArray[np.float64] | None

_MOST_ROWS = 1 << 16  # of a part: what adding it up costs is little beside that, and so is what is lost with a node
_BLOCKS = 4  # per slot, since targets cost more or less


def statistics_by_rows(
    problem: Problem, splits: Sequence[NDArray[np.bool_]], pool: Pool, progress: Callable[[int], None]
) -> SplitStatistics:
    """`SplitStatistics.of`, in ranges of rows: counts are the same, sums of outputs up to rounding."""
    if pool.slots == 1:
        return SplitStatistics.of(problem, splits, progress)
    x, y = next(problem.chunks())
    shift = near_mean(y)
    total = SplitStatistics.empty(problem, len(splits), x, shift)
    size = min(_MOST_ROWS, math.ceil(problem.n_rows / pool.slots))
    ranges = [slice(start, min(start + size, problem.n_rows)) for start in range(0, problem.n_rows, size)]
    for rows, found in zip(ranges, pool.map(partial(_of_rows, problem, splits, shift), ranges), strict=True):
        for part, more in zip(total, found.parts, strict=True):
            part.add_part(more)
        progress(rows.stop - rows.start)
    return SplitStatistics.join(total)


def _of_rows(
    problem: Problem, splits: Sequence[NDArray[np.bool_]], shift: NDArray[np.float64], rows: slice
) -> SplitStatistics:
    return SplitStatistics.of(problem.take(rows), [split[rows] for split in splits], shift=shift)  # type: ignore[arg-type]


def solve_statistics(
    data: SplitStatistics, estimator: Estimator, penalty: Penalty, pool: Pool, progress: Callable[[int], None]
) -> Solution:
    """``estimator.solve``, in blocks of targets where that costs nothing."""
    if pool.slots == 1 or not estimator.by_target:
        return estimator.solve(data, penalty=penalty, progress=progress)
    return _by_targets(partial(_solve_statistics, data, estimator, penalty), data.n_targets, estimator, pool, progress)


def _solve_statistics(data: SplitStatistics, estimator: Estimator, penalty: Penalty, targets: slice) -> Solution:
    return estimator.of_targets(targets).solve(data.of_targets(targets), penalty=_of(penalty, targets))


def solve_problem(
    solve: Callable[..., Solution],
    problem: Problem,
    estimator: Estimator,
    penalty: Penalty,
    pool: Pool,
    progress: Callable[[int], None],
) -> Solution:
    """``solve(problem, estimator, penalty, progress)``, in blocks of targets, each from the rows themselves."""
    if pool.slots == 1:
        return solve(problem, estimator, penalty, progress)
    work = partial(_solve_problem, solve, problem, estimator, penalty)
    return _by_targets(work, problem.n_targets, estimator, pool, progress)


def _solve_problem(
    solve: Callable[..., Solution], problem: Problem, estimator: Estimator, penalty: Penalty, targets: slice
) -> Solution:
    columns = None if problem.train_columns is None else problem.train_columns[targets]
    block = replace(problem, targets=problem.targets[targets], train_columns=columns)
    return solve(block, estimator.of_targets(targets), _of(penalty, targets), _nobody_hears)


def _by_targets(
    work: Callable[[slice], Solution], n_targets: int, estimator: Estimator, pool: Pool, progress: Callable[[int], None]
) -> Solution:
    """Blocks of whole batches, so that each target is solved beside the same others as it would be here."""
    size = BATCH * math.ceil(n_targets / (BATCH * _BLOCKS * pool.slots))
    blocks = [slice(start, min(start + size, n_targets)) for start in range(0, n_targets, size)]
    found = []
    for targets, solution in zip(blocks, pool.map(partial(_without_warning, work), blocks), strict=True):
        found.append(solution)
        progress(targets.stop - targets.start)
    whole = Solution.joined(found)
    estimator.warn_gaps(whole)
    return whole


def _without_warning(work: Callable[[slice], Solution], targets: slice) -> Solution:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)  # given once, of all targets
        return work(targets)


def _of(penalty: Penalty, targets: slice) -> Any:
    return penalty if penalty is None or penalty.ndim == 1 else penalty[:, targets]


def _nobody_hears(count: int) -> None:
    """Progress is told when a block has come back."""
