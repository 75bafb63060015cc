"""Compiled coordinate descent on counts: one target at a time, inside a working set, certified on all features.

A target meets up to S + 1 fits: one per split (the rows that it does not hold out) and the whole. Each
is a lasso or elastic net in standardised columns, but nothing is standardised: with raw weights v the
covariance of a column x_i with the residual is

    c_i = x_iᵀy / m - Σ_a v_a C_ai / m - mean_i · b,    b = ȳ - Σ_a v_a mean_a,

where C_ai counts the rows that hold both a and i. Counts are exact integers, so the certificate is that
of the problem itself, with no rounding of a Gram matrix.

Masks are random and their columns nearly orthogonal, so few features matter at any λ. `fit_target`
gathers the counts of those that may enter next into small matrices that stay in cache, walks some λ
there, checks the duality gap on all features, and takes the violators in when it is too large. Every
call works on one target and touches nothing shared, so threads cannot change an answer.
`reference.elastic_net` is the oracle.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numba import njit
from numpy.typing import NDArray

from datamodels.regression.bits import common
from datamodels.regression.certificate import UNSETTLED
from datamodels.regression.solver_types import Found

_SWEEPS_PER_CHECK = 5
_DUST = 1e-10  # of the largest weight
_NEAR = 0.9  # features whose correlation is above this share of the next λ are taken in before they enter
_GROUP = 16
_FIRST = 64  # features to begin with, and the room that is always left for more

# Functions that only compiled code calls: without wrappers for Python they compile in a fraction of the time, and so
# do loops in place of array expressions.
_COMPILED: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_INNER: dict[str, Any] = {**_COMPILED, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_inner = njit(**_INNER)
_fast = njit(**_INNER, fastmath=True)


@_inner
def _counts_with(source, splits, part, a, features, size, masked, out):  # type: ignore[no-untyped-def]
    """out[i] = rows of a part that hold both `a` and features[i]."""
    if len(source.columns):
        words = source.columns.shape[1]
        for w in range(words):
            masked[w] = source.columns[a, w] & source.keep[part, w]
        for i in range(size):
            out[i] = common(masked, source.columns[features[i]])
        return
    first, other = source.matrices[0, a], source.matrices[min(len(source.matrices) - 1, 1 + part % max(splits, 1)), a]
    if splits <= part < 2 * splits:
        for i in range(size):
            out[i] = other[features[i]]
    elif splits == 0 or (source.folds and part == 2 * splits):
        for i in range(size):
            out[i] = first[features[i]]
    elif source.folds:
        for i in range(size):
            out[i] = np.float32(first[features[i]]) - np.float32(other[features[i]])
    elif part == 2 * splits:
        for i in range(size):
            out[i] = np.float32(first[features[i]]) + np.float32(other[features[i]])
    else:
        for i in range(size):
            out[i] = first[features[i]]


@_inner
def _copy(values, size, out):  # type: ignore[no-untyped-def]
    """The first `size` columns of each row. Loops, since numba has mistaken such assignments to fields of tuples."""
    for row in range(len(values)):
        for slot in range(size):
            out[row, slot] = values[row, slot]


@_inner
def _count_nonzero(values, size):  # type: ignore[no-untyped-def]
    """How many of the first values are more than dust: examples with equal masks leave some, since they take turns."""
    least = _dust(values, size)
    count = 0
    for slot in range(size):
        count += abs(values[slot]) > least
    return count


@_inner
def _dust(values, size):  # type: ignore[no-untyped-def]
    """Below what a value is the rounding of others and not a weight."""
    largest = 0.0
    for slot in range(size):
        largest = max(largest, abs(values[slot]))
    return _DUST * largest


@_inner
def _gather(values, features, size, out):  # type: ignore[no-untyped-def]
    for slot in range(size):
        out[slot] = values[features[slot]]


@_inner
def _subtract_row(u, row, factor):  # type: ignore[no-untyped-def]
    for i in range(len(u)):
        u[i] -= factor * row[i]


@_inner
def _cached(source, part, state, fit, size, cache):  # type: ignore[no-untyped-def]
    """Counts of each feature with a nonzero weight against all features, from columns: cache[state.place[fit, slot]]."""
    features, w, place = state.features, state.w[fit], state.place[fit]
    filled = 0
    for row in range(len(state.place)):
        for slot in range(size):
            filled = max(filled, state.place[row, slot] + 1)
    words = source.columns.shape[1]
    masked = np.empty(words, dtype=np.uint64)
    for slot in range(size):
        if w[slot] != 0.0 and place[slot] < 0:
            if filled == len(cache):
                larger = np.empty((2 * filled + 16, cache.shape[1]), dtype=np.float32)
                _copy(cache, cache.shape[1], larger)
                cache = larger
            for word in range(words):
                masked[word] = source.columns[features[slot], word] & source.keep[part, word]
            for i in range(cache.shape[1]):
                cache[filled, i] = common(masked, source.columns[i])
            place[slot] = filled
            filled += 1
    return cache


@_inner
def _subtract_counts(source, splits, part, a, factor, u):  # type: ignore[no-untyped-def]
    """u -= factor * (rows of a part that hold both `a` and each feature), from matrices."""
    _subtract_row(u, source.matrices[0, a], factor)
    if source.folds and part < splits:
        _subtract_row(u, source.matrices[1 + part, a], -factor)
    elif not source.folds and splits > 0 and part == 2 * splits:
        _subtract_row(u, source.matrices[1, a], factor)


@_inner
def _fill(source, splits, parts, features, known, size, table):  # type: ignore[no-untyped-def]
    """Counts between all features and those from `known` on, into table (parts, capacity, capacity).

    Rows come in groups, so that their mirror image is written a cache line at a time.
    """
    masked = np.empty(source.columns.shape[1], dtype=np.uint64)
    rows = np.empty((_GROUP, size), dtype=np.float32)
    for p in range(len(parts)):
        for first in range(known, size, _GROUP):
            last = min(first + _GROUP, size)
            for slot in range(first, last):
                _counts_with(source, splits, parts[p], features[slot], features, last, masked, rows[slot - first])
                for other in range(last):
                    table[p, slot, other] = rows[slot - first, other]
            for other in range(first):
                for slot in range(first, last):
                    table[p, other, slot] = rows[slot - first, other]


@_inner
def _correlate(source, part, fits, fit, target, features, size, w, u, c, place, cache):  # type: ignore[no-untyped-def]
    """Of all features: u = x_iᵀy/m - Σ v_a C_ai/m, and c, the correlation of z_i with the residual; returns b."""
    rows = fits.rows[fit]
    b = target.y_mean[fit]
    for i in range(len(u)):
        u[i] = target.xty[fit, i] / rows
    for slot in range(size):
        if w[slot] != 0.0:
            a = features[slot]
            v = w[slot] * fits.inverse_scale[fit, a]
            b -= v * fits.centre[fit, a]
            if len(source.columns):
                _subtract_row(u, cache[place[slot]], v / rows)
            else:
                _subtract_counts(source, len(fits.rows) - 1, part, a, v / rows, u)
    for i in range(len(u)):
        c[i] = (u[i] - fits.centre[fit, i] * b) * fits.inverse_scale[fit, i]
    return b


@_inner
def _gap(q, y_var, w, c, penalty, lam, l1_ratio):  # type: ignore[no-untyped-def]
    """Relative duality gap, see `certificate.relative_gap`; c = correlation of each column with the residual.

    Unpenalised features must have c = 0 up to rounding, see `_settle`; where they have not, the gap is not known: ∞.
    """
    fit = inner = penalised = largest = unsettled = 0.0
    for j in range(len(w)):
        p = penalty[j]
        if p == np.inf:
            continue
        r = c[j] - lam * (1.0 - l1_ratio) * p * w[j]
        if p > 0.0:
            largest = max(largest, abs(r) / p)
        else:
            unsettled += abs(c[j]) * (abs(w[j]) + abs(c[j]))
        if w[j] != 0.0:
            fit += q[j] * w[j]
            inner += w[j] * r
            penalised += p * abs(w[j])
    if unsettled > UNSETTLED * y_var:
        return np.inf
    residual = y_var - fit - inner
    scaling = 1.0
    if residual > 0.0:
        scaling = (y_var - fit) / residual
    if largest > 0.0:
        bound = lam * l1_ratio / largest
        scaling = min(max(scaling, -bound), bound)
    primal = 0.5 * residual + lam * l1_ratio * penalised
    dual = scaling * (y_var - fit) - 0.5 * scaling * scaling * residual
    return max(primal - dual, 0.0) / (0.5 * y_var) if y_var > 0.0 else 0.0


class _State(NamedTuple):
    """The working set of some fits: features (capacity,), which they are among all (n,); weights and u of each fit
    (fits, capacity); those of the least error (fits, capacity); counts (parts, capacity, capacity); places in the cache
    (fits, capacity)."""

    features: NDArray[np.int64]
    member: NDArray[np.bool_]
    w: NDArray[np.float64]
    u: NDArray[np.float64]
    best: NDArray[np.float64]
    table: NDArray[np.float32]
    place: NDArray[np.int64]


@_inner
def _empty_state(n, fits, parts, capacity):  # type: ignore[no-untyped-def]
    return _State(
        np.empty(capacity, dtype=np.int64),
        np.zeros(n, dtype=np.bool_),
        np.zeros((fits, capacity)),
        np.zeros((fits, capacity)),
        np.zeros((fits, capacity)),
        np.empty((parts, capacity, capacity), dtype=np.float32),
        np.full((fits, capacity), -1),
    )


@_inner
def _with_room(state, size, wanted):  # type: ignore[no-untyped-def]
    """The state, or a larger copy of it, with room for `wanted` features."""
    n, (fits, capacity), parts = len(state.member), state.w.shape, len(state.table)
    if wanted <= capacity:
        return state
    larger = _empty_state(n, fits, parts, min(n, max(2 * _FIRST, wanted + wanted // 4)))
    for slot in range(size):
        larger.features[slot] = state.features[slot]
        larger.member[state.features[slot]] = True
    _copy(state.w, size, larger.w)
    _copy(state.best, size, larger.best)
    _copy(state.place, size, larger.place)
    for part in range(parts):
        _copy(state.table[part, :size], size, larger.table[part])
    return larger


class _Local(NamedTuple):
    """One fit inside the working set: per feature q, scale, centre, diagonal and penalty; w and u are its state."""

    q: NDArray[np.float64]
    inverse_scale: NDArray[np.float64]
    centre: NDArray[np.float64]
    diagonal: NDArray[np.float64]
    penalty: NDArray[np.float64]
    w: NDArray[np.float64]
    u: NDArray[np.float64]


@_inner
def _localise(fits, fit, target, state, row, size, table, constants):  # type: ignore[no-untyped-def]
    """Fill constants (5, capacity) of one fit inside the working set, for `_local`."""
    rows = fits.rows[fit]
    for slot in range(size):
        j = state.features[slot]
        inverse, centre = fits.inverse_scale[fit, j], fits.centre[fit, j]
        diagonal = (table[slot, slot] / rows - centre * centre) * inverse * inverse
        constants[0, slot] = (target.xty[fit, j] / rows - centre * target.y_mean[fit]) * inverse
        constants[1, slot] = inverse
        constants[2, slot] = centre
        constants[3, slot] = diagonal if diagonal > 0.0 else 1.0
        constants[4, slot] = target.penalty[j]


@_inner
def _local(state, row, size, constants):  # type: ignore[no-untyped-def]
    return _Local(
        constants[0, :size], constants[1, :size], constants[2, :size], constants[3, :size], constants[4, :size],
        state.w[row, :size], state.u[row, :size],
    )  # fmt: skip


@_inner
def _sweep(local, table, rows, active, count, threshold, ridge, b):  # type: ignore[no-untyped-def]
    """One pass of coordinate descent over the active features; the largest decrease, and b."""
    w, u = local.w, local.u
    size = len(w)
    moved = 0.0
    for a in range(count):
        j = active[a]
        old = w[j]
        penalty = local.penalty[j]
        z = (u[j] - local.centre[j] * b) * local.inverse_scale[j] + local.diagonal[j] * old
        new = 0.0
        if z > threshold * penalty:
            new = (z - threshold * penalty) / (local.diagonal[j] + ridge * penalty)
        elif z < -threshold * penalty:
            new = (z + threshold * penalty) / (local.diagonal[j] + ridge * penalty)
        if new != old:
            w[j] = new
            v = (new - old) * local.inverse_scale[j]
            b -= v * local.centre[j]
            factor = v / rows
            row = table[j]
            for i in range(size):
                u[i] -= factor * row[i]
            moved = max(moved, local.diagonal[j] * (new - old) * (new - old))
    return moved, b


@_inner
def _unpenalised(penalty):  # type: ignore[no-untyped-def]
    """Which penalty factors are 0."""
    out = np.empty(len(penalty), dtype=np.int64)
    count = 0
    for j in range(len(penalty)):
        if penalty[j] == 0.0:
            out[count] = j
            count += 1
    return out[:count]


@_inner
def _settle(local, table, rows, free, b, y_var):  # type: ignore[no-untyped-def]
    """Bring the unpenalised features to their optimum given the others."""
    for _ in range(1000):
        moved, b = _sweep(local, table, rows, free, len(free), 0.0, 0.0, b)
        if moved <= 1e-26 * y_var:
            break
    return b


@_inner
def _descend(local, table, rows, b, y_var, lam, l1_ratio, tol, max_sweeps):  # type: ignore[no-untyped-def]
    """Solve one fit at one λ inside the working set, in place; returns b."""
    w, u = local.w, local.u
    size = len(w)
    if y_var <= 0.0 or size == 0:
        return b
    threshold, ridge = lam * l1_ratio, lam * (1.0 - l1_ratio)
    active = np.empty(size, dtype=np.int64)
    c = np.empty(size)
    free = _unpenalised(local.penalty)
    sweeps = 0
    while True:
        if len(free):
            b = _settle(local, table, rows, free, b, y_var)
        for i in range(size):
            c[i] = (u[i] - local.centre[i] * b) * local.inverse_scale[i]
        if sweeps >= max_sweeps or _gap(local.q, y_var, w, c, local.penalty, lam, l1_ratio) <= tol:
            return b
        count = 0
        for j in range(size):
            if w[j] != 0.0 or abs(c[j]) > threshold * local.penalty[j]:
                active[count] = j
                count += 1
        moved = 0.0
        for _ in range(_SWEEPS_PER_CHECK):
            moved, b = _sweep(local, table, rows, active, count, threshold, ridge, b)
            sweeps += 1
            if moved <= 1e-4 * tol * y_var:
                break
        if moved <= 1e-30 * y_var:  # a fixed point to rounding: only a feature that was left out can help
            entered = False
            for j in range(size):
                z = (u[j] - local.centre[j] * b) * local.inverse_scale[j]
                if w[j] == 0.0 and abs(z) > threshold * local.penalty[j] * (1.0 + 1e-12):
                    entered = True
            if not entered:
                return b


@_fast
def _dot(a, b, size):  # type: ignore[no-untyped-def]
    total = 0.0
    for i in range(size):
        total += a[i] * b[i]
    return total


@_inner
def _held_out_error(fits, split, target, features, local, table, b):  # type: ignore[no-untyped-def]
    """Σ (y - prediction)² over the held-out rows of a split, from their statistics."""
    size = len(local.w)
    raw = np.empty(size)
    for slot in range(size):
        raw[slot] = local.w[slot] * local.inverse_scale[slot]
    cross = reach = quadratic = 0.0
    for slot in range(size):
        if raw[slot] != 0.0:
            j = features[slot]
            cross += raw[slot] * target.held_xty[split, j]
            reach += raw[slot] * fits.held_sum_x[split, j]
            quadratic += raw[slot] * _dot(table[slot], raw, size)
    error = target.held_yty[split] - 2.0 * b * target.held_sum_y[split] - 2.0 * cross
    return error + fits.held_rows[split] * b * b + 2.0 * b * reach + quadratic


@_inner
def _prediction_change(fits, split, state, size, local, b):  # type: ignore[no-untyped-def]
    """Σ (change of the prediction)² over the held-out rows of a split, from the weights of the least error, when
    the constant moves by `b`."""
    table = state.table[len(fits.rows) - 1 + split]
    raw = np.empty(size)
    for slot in range(size):
        raw[slot] = (state.best[split, slot] - local.w[slot]) * local.inverse_scale[slot]
    reach = quadratic = 0.0
    for slot in range(size):
        if raw[slot] != 0.0:
            reach += raw[slot] * fits.held_sum_x[split, state.features[slot]]
            quadratic += raw[slot] * _dot(table[slot], raw, size)
    return max(quadratic + 2.0 * b * reach + fits.held_rows[split] * b * b, 0.0)


@_inner
def _strengths(c, penalty):  # type: ignore[no-untyped-def]
    """The largest |correlation| over fits of each feature, in units of its penalty; 0 where that is 0 or inf."""
    out = np.zeros(len(penalty))
    for j in range(len(penalty)):
        if 0.0 < penalty[j] < np.inf:
            for f in range(len(c)):
                out[j] = max(out[j], abs(c[f, j]) / penalty[j])
    return out


@_inner
def _at_least(strengths, bound):  # type: ignore[no-untyped-def]
    out = np.zeros(len(strengths), dtype=np.bool_)
    for j in range(len(strengths)):
        out[j] = strengths[j] >= bound and strengths[j] > 0.0
    return out


@_inner
def _violated(c, penalty, member, bound):  # type: ignore[no-untyped-def]
    """Whether a feature outside of the working set ought to have a weight."""
    strengths = _strengths(c, penalty)
    for j in range(len(strengths)):  # noqa: SIM110
        if strengths[j] > bound and not member[j]:
            return True
    return False


@_inner
def _next_stretch(strengths, member, lams, first, size, l1_ratio):  # type: ignore[no-untyped-def]
    """How far to walk before the next check: as far as few more features come near (at least one λ)."""
    room = _FIRST + size // 2
    last = first + 1
    while last < len(lams):
        coming = 0
        for j in range(len(strengths)):
            if not member[j] and strengths[j] >= _NEAR * l1_ratio * lams[last]:
                coming += 1
        if coming > room:
            break
        last += 1
    return last


@_inner
def _take_in(source, splits, parts, state, size, wanted):  # type: ignore[no-untyped-def]
    """Add the features that are `wanted` (n,); returns the state and how many it has."""
    count = 0
    for j in range(len(wanted)):
        count += wanted[j] and not state.member[j]
    if count == 0:
        return state, size
    state = _with_room(state, size, size + count)
    known = size
    for j in range(len(wanted)):
        if wanted[j] and not state.member[j]:
            state.features[size] = j
            state.member[j] = True
            size += 1
    _fill(source, splits, parts, state.features, known, size, state.table)
    return state, size


@_inner
def _check(source, parts, fits, first_fit, target, q, state, size, lam, l1_ratio, u, c, b, cache):  # type: ignore[no-untyped-def]
    """The largest gap of the fits on all features at one λ, and the cache; leaves u, c (fits, n) and b (fits,)."""
    worst = 0.0
    w = np.zeros(u.shape[1])
    for f in range(len(u)):
        if len(source.columns):
            cache = _cached(source, parts[f], state, f, size, cache)
        b[f] = _correlate(
            source, parts[f], fits, first_fit + f, target, state.features, size, state.w[f], u[f], c[f],
            state.place[f], cache,
        )  # fmt: skip
        for slot in range(size):
            w[state.features[slot]] = state.w[f, slot]
        worst = max(worst, _gap(q[f], target.y_var[first_fit + f], w, c[f], target.penalty, lam, l1_ratio))
    return worst, cache


@_inner
def _correlations_of_outputs(fits, first_fit, count, target):  # type: ignore[no-untyped-def]
    q = np.empty((count, len(target.penalty)))
    for f in range(count):
        g = first_fit + f
        for j in range(q.shape[1]):
            centred = target.xty[g, j] / fits.rows[g] - fits.centre[g, j] * target.y_mean[g]
            q[f, j] = centred * fits.inverse_scale[g, j]
    return q


@_inner
def _settled(source, parts, fits, first_fit, target, q, state, size, u, c, b, cache):  # type: ignore[no-untyped-def]
    """Begin: unpenalised features at their optimum, and u, c, b there; returns the cache."""
    _, cache = _check(source, parts, fits, first_fit, target, q, state, size, 0.0, 1.0, u, c, b, cache)
    penalty = np.empty(size)
    _gather(target.penalty, state.features, size, penalty)
    free = _unpenalised(penalty)
    if len(free):
        for f in range(len(u)):
            _gather(u[f], state.features, size, state.u[f])
            constants = np.empty((5, size))
            _localise(fits, first_fit + f, target, state, f, size, state.table[f], constants)
            local = _local(state, f, size, constants)
            b[f] = _settle(local, state.table[f], fits.rows[first_fit + f], free, b[f], target.y_var[first_fit + f])
        _, cache = _check(source, parts, fits, first_fit, target, q, state, size, 0.0, 1.0, u, c, b, cache)
    return cache


@_inner
def _begin(source, fits, target, fit_count, parts, start):  # type: ignore[no-untyped-def]
    """A state with the unpenalised features and those of the `start` weights (n,) taken in."""
    n = len(target.penalty)
    state = _empty_state(n, fit_count, len(parts), min(n, _FIRST))
    wanted = np.zeros(n, dtype=np.bool_)
    for j in range(n):
        wanted[j] = start[j] != 0.0 and target.penalty[j] < np.inf
        if target.penalty[j] == 0.0:
            for f in range(len(fits.rows)):
                wanted[j] = wanted[j] or fits.inverse_scale[f, j] > 0.0
    state, size = _take_in(source, len(fits.rows) - 1, parts, state, 0, wanted)
    for f in range(fit_count):
        _gather(start, state.features, size, state.w[f])
    _copy(state.w, size, state.best)
    return state, size


@_inner
def _walk(source, fits, target, rules, start, errors, n_nonzero, path, path_gaps):  # type: ignore[no-untyped-def]
    """Walk the path on all splits in step (on all rows when there is none) until its end or its turn.

    Returns the state, its size, and the chosen index; fills errors, n_nonzero, and the path when kept.
    """
    splits, lams = len(fits.rows) - 1, target.lams
    count = max(splits, 1)
    parts = np.arange(max(2 * splits, 1))
    n = len(target.penalty)
    u, c, b = np.empty((count, n)), np.empty((count, n)), np.empty(count)
    q = _correlations_of_outputs(fits, 0, count, target)
    cache = np.empty((0, n), dtype=np.float32)
    state, size = _begin(source, fits, target, count, parts, start)
    cache = _settled(source, parts, fits, 0, target, q, state, size, u, c, b, cache)
    tol = rules.tol if rules.keep_path else rules.path_tol
    total = fits.held_rows.sum()
    i, chosen, best_b = 0, 0, b.copy()
    while i < len(lams):
        strengths = _strengths(c, target.penalty)
        last = i + 1 if rules.certify_path else _next_stretch(strengths, state.member, lams, i, size, rules.l1_ratio)
        near = _at_least(strengths, _NEAR * rules.l1_ratio * lams[last - 1])
        state, size = _take_in(source, splits, parts, state, size, near)
        for f in range(count):
            _gather(u[f], state.features, size, state.u[f])
        constants = np.empty((count, 5, size))
        for f in range(count):
            _localise(fits, f, target, state, f, size, state.table[f], constants[f])
        chosen = 0
        for k in range(1, i):
            if errors[k] < errors[chosen]:
                chosen = k
        best_before, b_before = np.empty((count, size)), best_b.copy()
        _copy(state.best[:, :size], size, best_before)
        turned = False
        at = i
        for k in range(i, last):
            at = k
            error = 0.0
            for f in range(count):
                local = _local(state, f, size, constants[f])
                b[f] = _descend(
                    local, state.table[f], fits.rows[f], b[f], target.y_var[f], lams[k], rules.l1_ratio,
                    0.5 * tol, rules.max_sweeps,
                )  # fmt: skip
                if splits:
                    error += _held_out_error(fits, f, target, state.features, local, state.table[splits + f], b[f])
            n_nonzero[k] = _count_nonzero(state.w[0], size)
            if rules.keep_path:
                for slot in range(size):
                    path[k, state.features[slot]] = state.w[0, slot]
            if splits:
                errors[k] = error / total
                if k == 0 or errors[k] < errors[chosen]:
                    chosen = k
                    _copy(state.w, size, state.best)
                    for f in range(count):
                        best_b[f] = b[f]
                elif lams[k] < rules.stop_below * lams[chosen]:
                    far = lams[k] < rules.far_below * lams[chosen] and errors[k] > rules.far_above * errors[chosen]
                    turned = far or n_nonzero[k] > rules.saturated
                    if not turned:
                        change = 0.0
                        for f in range(count):
                            local = _local(state, f, size, constants[f])
                            change += _prediction_change(fits, f, state, size, local, best_b[f] - b[f])
                        turned = (
                            errors[k] - errors[chosen] > rules.stop_above * np.sqrt(errors[chosen] * change) / total
                        )
                    if turned:
                        break
        gap, cache = _check(source, parts, fits, 0, target, q, state, size, lams[at], rules.l1_ratio, u, c, b, cache)
        if gap > tol and _violated(c, target.penalty, state.member, rules.l1_ratio * lams[at]):
            for k in range(i, at + 1):
                errors[k], n_nonzero[k] = np.nan, -1
            _copy(best_before, size, state.best)
            best_b = b_before
            continue
        if rules.keep_path:
            path_gaps[at] = gap
        i = at + 1
        if turned:
            break
    return state, size, chosen if splits else len(lams) - 1


@njit(**_COMPILED)
def fit_target(source, fits, target, rules, start):  # type: ignore[no-untyped-def]
    """Choose λ for one target and solve at it on all rows; see `Found`.

    Without splits the last λ is the choice. `start` (n,) are standardised weights to begin with.
    """
    splits, n, lams = len(fits.rows) - 1, len(target.penalty), target.lams
    errors, n_nonzero = np.full(len(lams), np.nan), np.full(len(lams), -1)
    path = np.zeros((len(lams) if rules.keep_path else 0, n))
    path_gaps = np.full(len(path), np.nan)
    walked, size, chosen = _walk(source, fits, target, rules, start, errors, n_nonzero, path, path_gaps)
    lam, part = lams[chosen], np.array([2 * splits])
    state = _State(
        walked.features, walked.member, walked.w[:1], walked.u[:1], walked.best[:1], walked.table[:1],
        np.full((1, len(walked.features)), -1),
    )  # fmt: skip
    if splits:  # the counts of all rows are those of the fitted and the held-out rows of any split
        for slot in range(size):
            inverse = fits.inverse_scale[splits, walked.features[slot]]
            ratio = fits.inverse_scale[0, walked.features[slot]] / inverse if inverse > 0.0 else 0.0
            state.w[0, slot] = state.best[0, slot] * ratio
            for other in range(size):
                state.table[0, slot, other] += walked.table[splits, slot, other]
    u, c, b = np.empty((1, n)), np.empty((1, n)), np.empty(1)
    q = _correlations_of_outputs(fits, splits, 1, target)
    cache = np.empty((0, n), dtype=np.float32)
    cache = _settled(source, part, fits, splits, target, q, state, size, u, c, b, cache)
    gap, cache = _check(source, part, fits, splits, target, q, state, size, lam, rules.l1_ratio, u, c, b, cache)
    while rules.refit and gap > rules.tol:
        near = _at_least(_strengths(c, target.penalty), _NEAR * rules.l1_ratio * lam)
        state, size = _take_in(source, splits, part, state, size, near)
        _gather(u[0], state.features, size, state.u[0])
        constants = np.empty((5, size))
        _localise(fits, splits, target, state, 0, size, state.table[0], constants)
        local = _local(state, 0, size, constants)
        b[0] = _descend(
            local, state.table[0], fits.rows[splits], b[0], target.y_var[splits], lam, rules.l1_ratio,
            0.5 * rules.tol, rules.max_sweeps,
        )  # fmt: skip
        gap, cache = _check(source, part, fits, splits, target, q, state, size, lam, rules.l1_ratio, u, c, b, cache)
        if not _violated(c, target.penalty, state.member, rules.l1_ratio * lam):
            break
    count, at = _count_nonzero(state.w[0], size), 0
    features, weights, raw = np.empty(count, dtype=np.int64), np.empty(count), np.empty(count)
    least = _dust(state.w[0], size)
    for slot in range(size):
        if abs(state.w[0, slot]) > least:
            features[at], weights[at] = state.features[slot], state.w[0, slot]
            raw[at] = weights[at] * fits.inverse_scale[splits, features[at]]
            at += 1
    return Found(errors, n_nonzero, chosen, features, weights, raw, b[0], gap, path, path_gaps)
