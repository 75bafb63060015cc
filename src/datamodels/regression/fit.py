"""From rows to an attribution: `fit`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.errors import ConstantColumnWarning, ConvergenceWarning, RequestError
from datamodels.progress import Progress
from datamodels.regression.estimators import Estimator, Lasso, Solution, from_description
from datamodels.regression.problem import OUTPUTS, Problem, Rows
from datamodels.regression.statistics import Statistics, near_mean
from datamodels.spec import MASKS
from datamodels.store import Store
from datamodels.version import versions


def fit(
    source: Store | str | Path | Sequence[Store | str | Path] | None = None,
    estimator: Estimator | type[Estimator] | str | None = None,
    *,
    masks: NDArray[Any] | str | Path | None = None,
    outputs: NDArray[Any] | str | Path | None = None,
    masks_key: str = MASKS,
    outputs_key: str = OUTPUTS,
    rows: Rows = None,
    targets: Any = None,
    targets_are_train: bool | None = None,
    progress: bool = True,
) -> Attribution:
    """Fit datamodels: regress outputs on subset membership.

    Parameters
    ----------
    source
        A store, its folder, or several over the same training set, fitted as one. Only completed
        rows are used.
    estimator
        `Lasso` (default), `Ridge`, `ElasticNet`, `LeastSquares`, `DifferenceInMeans`, or their name.
    masks, outputs
        Instead of stores: 0/1 array (m, n_train) and outputs (m, ...), or ``.npy`` files of any size.
    masks_key, outputs_key
        Which keys of the store hold them.
    rows
        Which rows of each store to use: a slice, (start, stop), indices, or a bool mask.
    targets
        Which outputs to fit, the same way.
    targets_are_train
        Whether target j is training example j; such targets are fitted on the models that did not
        see them. By default what the store's schema says (``"of": "train"``).

    Returns
    -------
    Attribution
        Weights (n_train, n_targets) in raw mask units.

    Raises
    ------
    RequestError
        when the inputs do not go together or hold something else than 0/1 masks and finite outputs.
    """
    problem = Problem.build(
        source,
        masks=masks,
        outputs=outputs,
        masks_key=masks_key,
        outputs_key=outputs_key,
        rows=rows,
        targets=targets,
        targets_are_train=targets_are_train,
    )
    return fit_problem(problem, resolve(estimator), progress=progress)


def resolve(estimator: Estimator | type[Estimator] | str | None) -> Estimator:
    """An estimator from its name, or the default."""
    if estimator is None:
        return Lasso()
    if isinstance(estimator, type) and issubclass(estimator, Estimator):
        return estimator()
    if isinstance(estimator, Estimator):
        return estimator
    return from_description({"name": str(estimator).lower()})


def fit_problem(problem: Problem, estimator: Estimator, *, progress: bool = True) -> Attribution:
    """`fit` for rows that were put together already."""
    apart = estimator.out_of_mask and problem.train_columns is not None
    solution = (_fit_out_of_mask if apart else _fit_shared)(problem, estimator, progress)
    return Attribution(
        weights=solution.weights.astype(np.float32),
        bias=solution.bias,
        target_facts={"target": problem.targets, **solution.facts},
        train_columns=problem.train_columns,
        provenance={
            "estimator": estimator.describe(),
            "sources": problem.rows_used(),
            "out_of_mask": apart,
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _fit_shared(problem: Problem, estimator: Estimator, progress: bool) -> Solution:
    """All targets from the same rows."""
    with Progress("reading rows", problem.n_rows, "rows", show=progress) as bar:
        total, held_out = gather(problem, estimator.splits(problem.units), bar.advance)
    _warn_constant(total.sum_x, total.count)
    steps = estimator.passes * problem.n_targets
    with Progress(f"fitting ({estimator.name})", steps, "targets", show=progress) as bar:
        return estimator.solve(total, held_out, bar.advance)


def gather(
    problem: Problem, splits: list[NDArray[np.bool_]], progress: Callable[[int], None] | None = None
) -> tuple[Statistics, list[Statistics]]:
    """Statistics of all rows and of the held-out rows of each split, in one pass.

    Splits do not overlap, so the rows that are never held out and the splits add up to all rows.
    """
    part_of = np.zeros(problem.n_rows, dtype=np.int64)  # 0: never held out
    for number, held_out in enumerate(splits, start=1):
        part_of[held_out] = number
    parts: list[Statistics] = []
    position = 0
    for x, y in problem.chunks():
        if not parts:
            shift = near_mean(y)
            parts = [Statistics.empty(problem.n_train, shift) for _ in range(len(splits) + 1)]
        numbers = part_of[position : position + len(x)]
        for number in np.unique(numbers):
            chosen = numbers == number
            parts[number].update(x[chosen], y[chosen])
        position += len(x)
        if progress:
            progress(len(x))
    total = parts[0]
    for part in parts[1:]:
        total = total + part
    return total, parts[1:]


def _fit_out_of_mask(problem: Problem, estimator: Estimator, progress: bool) -> Solution:
    """Each target from the rows that do not hold it: one small problem per target."""
    assert problem.train_columns is not None
    held = _memberships(problem)
    solutions, lacking, late = [], [], []
    with Progress(f"fitting out of mask ({estimator.name})", problem.n_targets, "targets", show=progress) as bar:
        for position, column in enumerate(problem.train_columns):
            outside = ~held[:, column]
            if outside.sum() < 2:
                raise RequestError(
                    f"train example {column} is in {int(held[:, column].sum())} of {problem.n_rows} subsets: too few "
                    "models did not see it; train models on smaller subsets"
                )
            part = replace(problem.take(outside), targets=problem.targets[[position]], train_columns=None)
            total, held_out = gather(part, estimator.splits(part.units))
            constant = (total.sum_x == 0) | (total.sum_x == total.count)
            lacking += [column] * int(constant.sum() > 1)  # its own column is constant by construction
            with warnings.catch_warnings(record=True) as said:
                warnings.simplefilter("always", ConvergenceWarning)
                solutions.append(estimator.solve(total, held_out))
            late += [str(item.message) for item in said]
            bar.advance()
    if lacking:
        warnings.warn(
            f"among the models that did not see a target, other training examples are in all subsets or in none, for "
            f"{len(lacking)} targets (the first is train example {lacking[0]}): their weights are 0 there",
            ConstantColumnWarning,
            stacklevel=3,
        )
    if late:
        warnings.warn(
            f"{len(late)} fits missed their tolerance; the first: {late[0]}", ConvergenceWarning, stacklevel=3
        )
    return Solution(
        np.concatenate([solution.weights for solution in solutions], axis=1),
        np.concatenate([solution.bias for solution in solutions]),
        {name: np.concatenate([solution.facts[name] for solution in solutions]) for name in solutions[0].facts},
    )


def _memberships(problem: Problem) -> NDArray[np.bool_]:
    """All masks at once, bool (m, n_train)."""
    return np.concatenate([x for x, _ in replace(problem, targets=problem.targets[:1]).chunks()])


def _warn_constant(seen: NDArray[Any], count: int) -> None:
    constant = np.flatnonzero((seen == 0) | (seen == count))
    if len(constant):
        warnings.warn(
            f"{len(constant)} training examples are in all {count} subsets or in none (the first is {constant[0]}): "
            "their weights are 0, since nothing can be learned about them",
            ConstantColumnWarning,
            stacklevel=4,
        )
