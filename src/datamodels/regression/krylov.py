"""Ridge for targets that are training examples, each fitted on the models that did not see it.

Every target has rows, means and scales of its own, so no decomposition is shared. What is shared is X:
the Golub-Kahan bidiagonalisations of a batch of targets advance together, and each step is two products
of X with as many columns as there are targets. A Krylov space does not depend on λ, so one run serves the
whole grid.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.regression.bidiagonal import CHECK, EIGENVALUE_TOL, Runs
from datamodels.regression.decomposed import Decomposed
from datamodels.regression.own_rows import Batch, Bool, Float, Index, Masks, Systems, blas_limit
from datamodels.regression.problem import Problem, unseen_by_too_few
from datamodels.regression.solution import Solution, Splits
from datamodels.regression.spectral import explained, ridge_lambdas
from datamodels.threads import n_threads, spread

BUDGET = 1 << 30
_MAX_STEPS = 256
_MAX_RUNS = 256  # products gain nothing from more columns
_LEAST = 16  # targets of a thread: the masks are read for each thread
_SPREAD_ABOVE = 1 << 19  # entries of the masks: with fewer, most time goes by between the products, in one thread
_NEAR = 2  # λ on either side of the chosen one that must be solved as well as it
_AHEAD = 100  # looks within which an unsolved error that falls could become the least
_FLOAT32_TOL = 1e-6  # float32 is used where no more than this is asked


def ridge_out_of_mask(
    problem: Problem,
    splits: Splits,
    *,
    n_lambdas: int = 30,
    intercept: bool = True,
    tol: float = 1e-6,
    budget: int = BUDGET,
    whole_path: bool = True,
    progress: Callable[[int], None] | None = None,
) -> Solution:
    """Ridge of every target on the rows that do not hold it, exactly, without a decomposition per target.

    Target k is training example j. On the m rows with X[i, j] = 0, standardised by their own mean and
    scale, it minimises ``1/(2m) ‖y - b - Zw‖² + λ/2 ‖w‖²``; λ is chosen as `Ridge` does it, on rows held out
    among them. Solved in Krylov spaces by bidiagonalisation of Z from Zᵀy (Golub & Kahan 1965; Paige &
    Saunders 1982), with the basis of weights orthogonalised in full, which keeps the other one orthogonal
    too (Simon & Zha 2000). Targets that do not reach ``tol`` in 256 steps, and all of them with GCV, are
    solved by decomposition. The largest eigenvalue, which places the grid, is a Ritz value known to 1e-9
    as far as the start Zᵀy is not all but orthogonal to its vector.

    Parameters
    ----------
    splits
        ``Ridge.splits``: design units of a target's rows (m,) to the held-out ones of each split, bool (m,), the
        same number of splits for every target; none for GCV.
    n_lambdas, intercept
        As in `Ridge`.
    tol
        Largest relative residual ``‖Zᵀ(y - ȳ - Zw)/m - λw‖ / ‖Zᵀ(y - ȳ)/m‖``, of the weights and of the
        fits behind held-out errors, checked on the rows in float64. From 1e-6 up, steps are made in float32.
    budget
        Bytes for masks, bases and outputs together; more means fewer, larger batches.
    whole_path
        Go on until the held-out errors at all λ are solved to ``tol``, or the steps are used up. Without, until
        they are at the λ of least error and its two neighbours on either side, and the error at smaller λ does not
        fall fast enough to matter: half the work where m is near n, and ``path_residual`` says what is rough.
    progress
        Called with the number of targets that were finished.

    Returns
    -------
    Solution
        Raw weights (n_train, n_targets), bias, the facts of `Ridge`, and per target ``n_constant`` (columns that
        are in all of its rows or in none, its own among them), ``residual``,
        ``steps`` (0 when decomposed) and, with held-out rows, ``path_residual`` (n_targets, K): the
        relative residual behind each held-out error, the largest over splits.

    Raises
    ------
    RequestError
        when fewer than 2 rows do not hold a target.
    """
    if problem.train_columns is None:
        raise RequestError("the targets are not training examples: an out-of-mask fit needs targets_are_train=True")
    masks = Masks.of(problem, budget // 4)
    _check_counts(problem, masks)
    single = tol >= _FLOAT32_TOL
    steps, size, threads = _batch_size(problem, masks, splits, budget - masks.nbytes, 4 if single else 8)
    how = _How(splits, n_lambdas, intercept, tol, steps, whole_path, np.float32 if single else np.float64)
    parts: list[Solution] = []
    with blas_limit(problem, threads):
        for start in range(0, problem.n_targets, size):
            batch = Batch.of(problem, masks, np.arange(start, min(start + size, problem.n_targets)))
            count = len(batch.columns)
            shares = np.array_split(np.arange(count), min(threads, count))
            parts += spread(lambda share, batch=batch: _fit_batch(batch.take(share), masks, how), shares)  # type: ignore[misc]
            if progress:
                progress(count)
    return Solution.joined(parts)


def _check_counts(problem: Problem, masks: Masks) -> None:
    assert problem.train_columns is not None
    for column in problem.train_columns:
        seen = int(masks.sum_x[column])
        if masks.count - seen < 2:
            raise unseen_by_too_few(int(column), seen, masks.count)


@dataclass(frozen=True)
class _How:
    """What is asked of every batch: products and bases are in ``dtype``, what is returned is checked in float64."""

    splits: Splits
    n_lambdas: int
    intercept: bool
    tol: float
    steps: int
    whole_path: bool
    dtype: type


def _batch_size(problem: Problem, masks: Masks, draw: Splits, budget: int, itemsize: int) -> tuple[int, int, int]:
    """How many steps the bases have room for, how many targets go together, and over how many threads."""
    m, n = problem.n_rows, problem.n_train
    drawn = draw(problem.units[Batch.of(problem, masks, np.arange(1)).outside[0]])
    splits, held = len(drawn), int(1.1 * sum(rows.sum() for rows in drawn))  # other targets may hold out more
    rows = m * ((8 + 8 + itemsize) * (1 + splits) + (itemsize + 2) * splits)  # outputs and left vectors
    basis = itemsize * (n * (1 + splits) + held)
    steps = min(_MAX_STEPS, min(m, n), max(2 * CHECK, (budget - rows) // basis))
    room = int(min(problem.n_targets, max(1, budget // (rows + steps * basis))))
    apart = splits and m * n > _SPREAD_ABOVE  # decompositions hold the interpreter's lock
    threads = min(n_threads(), max(1, room // _LEAST)) if apart else 1
    return steps, min(room, threads * max(1, _MAX_RUNS // max(1, splits))), threads


def _fit_batch(batch: Batch, masks: Masks, how: _How) -> Solution:
    """Weights and facts of a batch."""
    systems = Systems.of(masks, batch.outside, batch.y, batch.shift, how.intercept)
    held = _held_out(batch, how.splits)
    fit, failed = None, np.arange(len(batch.columns))
    if held.shape[1]:
        runs = Runs(systems, steps=how.steps, dtype=how.dtype, probe=True)
        largest, found = _eigenvalues(runs)
        lams = np.stack([ridge_lambdas(value, how.n_lambdas) for value in largest])
        facts, solved = _select(batch, masks, held, lams, how)
        _solve(runs, facts["lam"], 0.5 * how.tol)
        facts["steps"] = runs.k.copy()
        w = runs.weights(failed, facts["lam"])
        facts["residual"] = _refine(systems, w, facts["lam"], how)
        fit = systems.to_raw(w, batch.shift, facts)
        failed = np.flatnonzero(~(solved & found & (facts["residual"] <= how.tol)))
    if len(failed):
        exact = _decompose(batch.take(failed), masks, systems.take(failed), held[failed], how)
        fit = exact if fit is None else _replaced(fit, exact, failed)
    assert fit is not None
    return replace(fit, facts={"n_constant": (systems.scale == 0).sum(axis=1), **fit.facts})


def _eigenvalues(runs: Runs) -> tuple[Float, Bool]:
    """Largest eigenvalue of each run, and whether it is known to be that."""
    value, found = np.zeros(len(runs.k)), np.zeros(len(runs.k), dtype=np.bool_)
    todo = np.arange(len(runs.k))
    while len(todo):
        runs.advance(todo)
        value[todo], missing = runs.largest(todo)
        # a space that ended early holds an exact eigenvalue, but not necessarily the largest
        full = runs.k[todo] >= runs.room[todo]
        found[todo] = np.where(runs.ended[todo], full, missing <= EIGENVALUE_TOL)
        todo = todo[~found[todo] & ~runs.stopped[todo]]
    return value, found


def _select(batch: Batch, masks: Masks, held: Bool, lams: Float, how: _How) -> tuple[dict[str, NDArray[Any]], Bool]:
    """λ of least held-out error per target, from grids (b, K), with the facts of the path; and whether it
    was reached."""
    errors, residual, solved = _errors(batch, masks, held, lams, how)
    rough = np.flatnonzero(~solved)
    if how.dtype == np.float32 and len(rough):
        wide = replace(how, dtype=np.float64)
        for part in np.array_split(rough, min(len(rough), 2)):  # they take twice the memory
            errors[part], residual[part], solved[part] = _errors(batch.take(part), masks, held[part], lams[part], wide)
    return {**_chosen(batch, held, lams, errors), "path_residual": residual}, solved


def _chosen(batch: Batch, held: Bool, lams: Float, errors: Float) -> dict[str, NDArray[Any]]:
    """λ of least held-out error per target, with the facts of the path, from grids (b, K) and Σ (y - prediction)² (b, K)."""
    count = held.sum(axis=(1, 2))
    errors = errors / count[:, None]
    order, chosen = np.arange(len(lams)), errors.argmin(axis=1)
    y = np.where(held.any(axis=1), batch.y, 0.0)
    return {
        "lam": lams[order, chosen],
        "path_lam": lams,
        "path_val_error": errors,
        "val_r2": explained(errors[order, chosen], y.sum(axis=1) / count, (y**2).sum(axis=1) / count),
    }


def _errors(batch: Batch, masks: Masks, held: Bool, lams: Float, how: _How) -> tuple[Float, Float, Bool]:
    """Σ (y - prediction)² (b, K) over rows held out by splits (b, splits, m), relative residuals, and whether
    those at the λ that matter are below the tolerance, the least of these λ checked on the rows in float64."""
    b, splits, m = held.shape
    systems = _without(batch, masks, held, how)
    runs = Runs(systems, steps=how.steps, dtype=how.dtype)
    runs.watch(held.reshape(b * splits, m), np.repeat(batch.y, splits, axis=0))
    errors, residual, solved = _walk(runs, lams, splits, how)
    last = lams.shape[1] - 1
    whole = residual[:, last] <= 0.5 * how.tol  # residuals grow as λ falls
    least = np.where(whole, last, np.minimum(errors.argmin(axis=1) + _NEAR, last))
    lam = np.repeat(lams[np.arange(b), least], splits)
    gradient = systems.gradient(runs.weights(np.arange(b * splits), lam), lam)
    checked = systems.relative(gradient).reshape(b, splits).max(axis=1)
    residual[np.arange(b), least] = checked
    return errors, residual, solved & (checked <= how.tol)


def _without(batch: Batch, masks: Masks, held: Bool, how: _How) -> Systems:
    """The systems of each target without the rows (b, splits, m) that each split holds out, (b * splits)."""
    splits, m = held.shape[1:]
    fitted = np.repeat(batch.outside, splits, axis=0) & ~held.reshape(-1, m)
    return Systems.of(masks, fitted, np.repeat(batch.y, splits, axis=0), np.repeat(batch.shift, splits), how.intercept)


def _held_out(batch: Batch, splits: Splits) -> Bool:
    """Rows that each split of each target holds out, drawn among the rows outside, (b, splits, m)."""
    units = batch.problem.units
    drawn = [splits(units[outside]) for outside in batch.outside]
    held: Bool = np.zeros((len(drawn), len(drawn[0]), units.size), dtype=np.bool_)
    for b, outside in enumerate(batch.outside):
        for number, rows in enumerate(drawn[b]):
            held[b, number, outside] = rows
    few = int((batch.outside.sum(axis=1)[:, None] - held.sum(axis=2)).min(initial=units.size))
    if few < 2:
        raise RequestError(f"{few} rows are too few to fit; at least 2 are needed")
    return held


def _walk(runs: Runs, lams: Float, splits: int, how: _How) -> tuple[Float, Float, Bool]:
    """Advance until the λ of least error is known: errors (b, K) over all splits, residuals, whether solved."""
    b, size = lams.shape
    errors, residual = np.full(lams.shape, np.inf), np.ones(lams.shape)
    solved, todo = np.zeros(b, dtype=np.bool_), np.arange(b)
    while len(todo):
        members = (todo[:, None] * splits + np.arange(splits)).ravel()
        runs.advance(members)
        squares, left = runs.errors(members, np.repeat(lams[todo], splits, axis=0))
        squares = squares.reshape(-1, splits, size).sum(axis=1)
        residual[todo] = left.reshape(-1, splits, size).max(axis=1)
        near = np.abs(np.arange(size) - squares.argmin(axis=1)[:, None]) <= _NEAR
        settled = residual[todo] <= 0.5 * how.tol
        falling = _AHEAD * (errors[todo] - squares) > squares - squares.min(axis=1)[:, None]
        errors[todo] = squares
        solved[todo] = np.where(near, settled, settled | ~falling).all(axis=1)
        done = settled.all(axis=1) if how.whole_path else solved[todo]
        todo = todo[~done & ~runs.stopped[members].reshape(-1, splits).all(axis=1)]
    return errors, residual, solved


def _solve(runs: Runs, lam: Float, tol: Float | float) -> None:
    """Advance until the residual at one λ per run is below a tolerance, or the run stops."""
    tol, todo = np.broadcast_to(tol, lam.shape), np.arange(len(lam))
    while len(todo):
        left = runs.small(todo, lam[todo, None])[1][:, 0]
        todo = todo[(left > tol[todo]) & ~runs.stopped[todo]]
        runs.advance(todo, 2)


def _refine(systems: Systems, w: Float, lam: Float, how: _How) -> Float:
    """Correct standardised weights (R, n) in place until their relative residuals are below a tolerance, as
    far as they go; those residuals (R,). All in float64, whatever the weights were found in."""
    gradient = systems.gradient(w, lam)
    residual = systems.relative(gradient)
    for _ in range(2):
        rough = np.flatnonzero(residual > how.tol)
        if not len(rough):
            break
        part = systems.take(rough)
        runs = Runs(part, start=gradient[rough], steps=how.steps, dtype=np.float64)
        _solve(runs, lam[rough], 0.5 * how.tol / residual[rough])
        w[rough] += runs.weights(np.arange(len(rough)), lam[rough])
        gradient[rough] = part.gradient(w[rough], lam[rough])
        residual[rough] = part.relative(gradient[rough])
    return residual


def _decompose(batch: Batch, masks: Masks, systems: Systems, held: Bool, how: _How) -> Solution:
    """Exact solutions, by one decomposition per target and split."""
    b, splits, _ = held.shape
    n, size = batch.problem.n_train, how.n_lambdas
    lams, scores, lam, w = np.empty((b, size)), np.zeros((b, size)), np.empty(b), np.empty((b, n))
    parts = _without(batch, masks, held, how)
    for i in range(b):
        counts = masks.counts(batch.outside[i]) if systems.count[i] >= n else None
        whole = Decomposed(systems, i, counts)
        lams[i] = ridge_lambdas(whole.largest(), size)
        for number, rows in enumerate(held[i]):
            run = i * splits + number
            rest = counts - masks.counts(rows) if counts is not None and parts.count[run] >= n else None
            scores[i] += Decomposed(parts, run, rest).squared_errors(lams[i], rows, batch.y[i])
        if not splits:
            scores[i] = whole.gcv(lams[i])
        lam[i] = lams[i, scores[i].argmin()]
        w[i] = whole.weights(lam[[i]])[0]
    facts: dict[str, NDArray[Any]] = {"lam": lam, "path_lam": lams, "path_gcv": scores}
    if splits:
        facts = {**_chosen(batch, held, lams, scores), "path_residual": np.zeros_like(lams)}
    facts["steps"] = np.zeros(b, dtype=np.int64)
    facts["residual"] = systems.relative(systems.gradient(w, lam))
    return systems.to_raw(w, batch.shift, facts)


def _replaced(fit: Solution, other: Solution, which: Index) -> Solution:
    """A solution with that of some targets in its place."""
    fit.weights[:, which], fit.bias[which] = other.weights, other.bias
    for name, values in other.facts.items():
        fit.facts[name][which] = values
    return fit
