"""From rows to an attribution: `fit`."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import IDS, Attribution
from datamodels.errors import ConstantColumnWarning, ConvergenceWarning, RequestError
from datamodels.executors.pool import MakePool, Pool, pool_of
from datamodels.memory import bytes_of
from datamodels.progress import Progress
from datamodels.regression.estimator import Estimator
from datamodels.regression.estimators import Lasso, from_description
from datamodels.regression.offset import take_off
from datamodels.regression.own_rows import blas_limit
from datamodels.regression.parts import Penalty, solve_problem, solve_statistics, statistics_by_rows
from datamodels.regression.prior import check_scores
from datamodels.regression.problem import Problem, unseen_by_too_few
from datamodels.regression.rows import PackedRows
from datamodels.regression.solution import Solution
from datamodels.regression.source import OUTPUTS
from datamodels.regression.split_statistics import SplitStatistics
from datamodels.regression.used import all_sources
from datamodels.spec import MASKS, Rows
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
    penalty_factors: NDArray[Any] | None = None,
    memory: int | str | None = None,
    executor: str | MakePool = "local",
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
    penalty_factors
        How much each weight is penalised, for lasso and elastic net: (n_train,) or (n_train, n_targets)
        numbers ≥ 0, used as given. 0: not penalised. ``inf``: left out.
    memory
        Bytes that tables of counts may take (or text like ``"8GB"``); by default most of what is free. What needs
        more is computed from bit-packed masks on demand: the same answer, later.
    executor
        ``local``: this process and its threads. ``"ray"`` or its settings, `datamodels.executors.Ray`: ranges of rows are
        summed up, and blocks of targets solved, on a cluster whose nodes can all read the store.
    progress
        Whether to show progress on standard error.

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
    return fit_problem(
        problem,
        resolve(estimator),
        penalty_factors=penalty_factors,
        memory=memory,
        executor=executor,
        progress=progress,
    )


def resolve(estimator: Estimator | type[Estimator] | str | None) -> Estimator:
    """An estimator from its name, or the default."""
    if estimator is None:
        return Lasso()
    if isinstance(estimator, type) and issubclass(estimator, Estimator):
        return estimator()
    if isinstance(estimator, Estimator):
        return estimator
    return from_description({"name": str(estimator).lower()})


def fit_problem(
    problem: Problem,
    estimator: Estimator,
    *,
    penalty_factors: NDArray[Any] | None = None,
    memory: int | str | None = None,
    executor: str | MakePool = "local",
    progress: bool = True,
) -> Attribution:
    """`fit` for rows that were put together already."""
    penalty = _checked_penalty(penalty_factors, problem, estimator)
    apart = estimator.out_of_mask and problem.train_columns is not None
    for name, scores in estimator.scores().items():
        check_scores(scores, problem, name)
    with pool_of(executor) as pool:
        solve = partial(_solve, penalty=penalty, memory=memory, pool=pool, progress=progress, apart=apart)
        if estimator.offset is None:
            solution = solve(problem, estimator)
        else:
            rest, offset = take_off(problem, estimator.offset)
            plain: Estimator = replace(estimator, offset=None)  # type: ignore[type-var]
            left = solve(rest, plain)
            if "path_val_error" in left.facts:
                solution = offset.chosen(left, solve(problem, plain))
            else:
                solution = offset.added_to(left)
    return attribution_of(solution, problem, estimator, out_of_mask=apart)


def _solve(
    problem: Problem,
    estimator: Estimator,
    *,
    penalty: Penalty,
    memory: int | str | None,
    pool: Pool,
    progress: bool,
    apart: bool,
) -> Solution:
    if apart:
        return _fit_out_of_mask(problem, estimator, penalty, pool, progress)
    if estimator.prefers_rows(problem, bytes_of(memory)):
        return _fit_rows(problem, estimator, penalty, pool, progress)
    return _fit_statistics(problem, estimator, penalty, pool, progress)


def attribution_of(solution: Solution, problem: Problem, estimator: Estimator, *, out_of_mask: bool) -> Attribution:
    """A solution with where it comes from; rows that a prior or an offset has used are used too."""
    names = {IDS: problem.target_ids} if problem.target_ids is not None else {}
    train_names = {IDS: problem.train_ids} if problem.train_ids is not None else {}
    before = [scores.provenance.get("sources", []) for scores in estimator.scores().values()]
    return Attribution(
        weights=solution.weights.astype(np.float32, copy=False),
        bias=solution.bias,
        target_facts={"target": problem.targets, **names, **solution.facts},
        train_facts=train_names,
        train_columns=problem.train_columns,
        provenance={
            "estimator": estimator.describe(),
            "sources": all_sources(problem.rows_used(), *before),
            "out_of_mask": out_of_mask,
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _checked_penalty(given: NDArray[Any] | None, problem: Problem, estimator: Estimator) -> NDArray[np.float64] | None:
    if given is None:
        return None
    if not estimator.penalised:
        raise RequestError(f"{estimator.name} takes no penalty factors; lasso and elasticnet do")
    penalty = np.asarray(given, dtype=np.float64)
    legal = [(problem.n_train,), (problem.n_train, problem.n_targets)]
    if penalty.shape not in legal:
        raise RequestError(
            f"penalty_factors have shape {penalty.shape}; legal: {legal[0]}, one per training example, or {legal[1]}"
        )
    if not (penalty >= 0).all():
        raise RequestError("penalty_factors must be 0 or larger (inf leaves an example out); some are negative or NaN")
    penalised = (penalty > 0) & np.isfinite(penalty)
    if not penalised.any(axis=0).all():
        raise RequestError(
            "penalty_factors leave a target no weight that is penalised, so there is no λ to choose; give "
            "at least one example a factor above 0"
        )
    return penalty


def _fit_statistics(problem: Problem, estimator: Estimator, penalty: Penalty, pool: Pool, progress: bool) -> Solution:
    """All targets from shared statistics."""
    with Progress("reading rows", problem.n_rows, "rows", show=progress) as bar:
        data = statistics_by_rows(problem, estimator.splits(problem.units), pool, bar.advance)
    _warn_constant(data.rest.sum_x + sum(part.sum_x for part in data.held_out), data.count)
    with Progress(f"fitting ({estimator.name})", problem.n_targets, "targets", show=progress) as bar:
        return solve_statistics(data, estimator, penalty, pool, bar.advance)


def _fit_rows(problem: Problem, estimator: Estimator, penalty: Penalty, pool: Pool, progress: bool) -> Solution:
    """All targets from the same rows, kept as bits."""
    seen = np.zeros(problem.n_train)
    for x, _ in replace(problem, targets=problem.targets[:0]).chunks():
        seen += x.sum(axis=0)
    _warn_constant(seen, problem.n_rows)
    with Progress(f"fitting ({estimator.name}) from rows", problem.n_targets, "targets", show=progress) as bar:
        return solve_problem(_from_rows, problem, estimator, penalty, pool, bar.advance)


def _from_rows(problem: Problem, estimator: Estimator, penalty: Penalty, progress: Callable[[int], None]) -> Solution:
    solution = estimator.solve_rows(problem, own_rows=False, penalty=penalty, progress=progress)
    assert solution is not None
    return solution


def _fit_out_of_mask(problem: Problem, estimator: Estimator, penalty: Penalty, pool: Pool, progress: bool) -> Solution:
    """Each target from the rows that do not hold it."""
    title = f"fitting out of mask ({estimator.name})"
    with (
        Progress(title, problem.n_targets, "targets", show=progress) as bar,
        warnings.catch_warnings(record=True) as said,
    ):
        warnings.simplefilter("always", ConvergenceWarning)
        solution = solve_problem(_apart, problem, estimator, penalty, pool, bar.advance)
    for item in said:
        if not issubclass(item.category, ConvergenceWarning):
            warnings.warn(item.message, stacklevel=3)
    _warn_apart(problem, solution, [str(i.message) for i in said if issubclass(i.category, ConvergenceWarning)])
    return solution


def _apart(problem: Problem, estimator: Estimator, penalty: Penalty, progress: Callable[[int], None]) -> Solution:
    solution = estimator.solve_rows(problem, own_rows=True, penalty=penalty, progress=progress)
    return _one_by_one(problem, estimator, progress) if solution is None else solution


def _one_by_one(problem: Problem, estimator: Estimator, progress: Callable[[int], None]) -> Solution:
    """Out of mask for any estimator: one small problem per target."""
    assert problem.train_columns is not None
    rows = PackedRows.read(problem)
    solutions = []
    with blas_limit(problem):
        for position, column in enumerate(problem.train_columns):
            outside = ~rows.rows_with(column)
            if outside.sum() < 2:
                raise unseen_by_too_few(int(column), int((~outside).sum()), problem.n_rows)
            part = replace(problem.take(outside), targets=problem.targets[[position]], train_columns=None)
            data = SplitStatistics.of(part, estimator.splits(part.units))
            seen = data.total.sum_x
            solution = estimator.solve(data)
            never = np.array([int(((seen == 0) | (seen == data.count)).sum())])
            solutions.append(replace(solution, facts={"n_constant": never, **solution.facts}))
            progress(1)
    return Solution.joined(solutions)


def _warn_apart(problem: Problem, solution: Solution, late: list[str]) -> None:
    assert problem.train_columns is not None
    lacking = np.flatnonzero(solution.facts.get("n_constant", np.zeros(0)) > 1)
    grouped = all((source.description.get("design") or {}).get("kind") == "grouped" for source in problem.sources)
    if len(lacking) and grouped:  # its own column is constant by construction, and so are those of its group
        lacking = lacking[solution.facts["n_constant"][lacking] > _equal_columns(problem)[lacking]]
    if len(lacking):
        warnings.warn(
            f"among the models that did not see a target, other training examples are in all subsets or in none, for "
            f"{len(lacking)} targets (the first is train example {problem.train_columns[lacking[0]]}): their weights "
            "are 0 there",
            ConstantColumnWarning,
            stacklevel=4,
        )
    for message in late[:1]:
        warnings.warn(message, ConvergenceWarning, stacklevel=4)


def _equal_columns(problem: Problem) -> NDArray[np.int64]:
    """How many columns are the same as the target's own in all rows, itself among them, (n_targets,)."""
    assert problem.train_columns is not None
    rng, limit = np.random.default_rng(0), 2**53 // max(1, problem.n_rows)
    keys = np.zeros(problem.n_train)  # sums of random whole numbers, which float64 holds exactly
    for x, _ in replace(problem, targets=problem.targets[:0]).chunks():
        keys += rng.integers(0, limit, len(x)).astype(np.float64) @ x
    _, position, count = np.unique(keys, return_inverse=True, return_counts=True)
    return count[position][problem.train_columns]


def _warn_constant(seen: NDArray[Any], count: int) -> None:
    constant = np.flatnonzero((seen == 0) | (seen == count))
    if len(constant):
        warnings.warn(
            f"{len(constant)} training examples are in all {count} subsets or in none (the first is {constant[0]}): "
            "their weights are 0, since nothing can be learned about them",
            ConstantColumnWarning,
            stacklevel=4,
        )
