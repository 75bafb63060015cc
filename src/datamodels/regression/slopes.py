"""How outputs follow predictions, target by target: slopes over design units, and their shrinkage."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.regression.problem import Problem

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
_FEWEST = 6  # different masks
_ROUNDING = 1e-24  # of a variance against the square of the mean


@dataclass(frozen=True, eq=False)
class Slopes:
    """What rows say of scores; all (n_targets,), see the head of the module.

    Attributes
    ----------
    slope, slope_se
        Shrunk slopes and their posterior standard deviations.
    raw
        Slopes of least squares; NaN where predictions do not vary.
    effect_sd
        τ, in units of the output per example.
    noise_sd
        σ, in units of the output; NaN where no mask has two runs.
    df
        Degrees of freedom of τ².
    bias
        Such that the mean over the rows is predicted.
    common
        The mean slope, one number.
    """

    slope: Float
    slope_se: Float
    raw: Float
    effect_sd: Float
    noise_sd: Float
    df: Float
    bias: Float
    common: float


def measure(problem: Problem, weights: NDArray[Any], columns: NDArray[np.int64] | None) -> Slopes:
    """Slopes of outputs on ``X @ weights``, weights (n_train, n_targets); with `columns` of targets that are training
    examples, on the rows that do not hold them."""
    p, y, valid, masks = _predictions(problem, np.asarray(weights, dtype=np.float64), columns)
    count = valid.sum(axis=0)
    units, different = _distinct(problem.units, valid), _distinct(masks, valid)
    freedom = np.minimum(units, different) - 2
    if freedom.min() < _FEWEST - 2:
        worst = int(freedom.argmin())
        raise RequestError(
            f"there are {int(freedom[worst]) + 2} independent masks{'' if columns is None else ' without it'} for target "
            f"{problem.targets[worst]}; a slope and its interval need {_FEWEST} or more, better a few dozen"
        )
    p_mean, y_mean = (p * valid).sum(axis=0) / count, (y * valid).sum(axis=0) / count
    p, y = (p - p_mean) * valid, (y - y_mean) * valid
    pp, yy = (p**2).sum(axis=0), (y**2).sum(axis=0)
    varies = yy > _ROUNDING * count * y_mean**2
    useful = (pp > _ROUNDING * count * p_mean**2) & varies
    if not useful.any():
        raise RequestError(
            "on these rows no prediction varies together with an output that varies: give others, or more"
        )
    pp = np.where(useful, pp, np.inf)
    raw = (p * y).sum(axis=0) / pp
    residual = y - raw * p
    spread, pull = _spread(problem, p, valid)
    spread = spread - pull / pp
    within = _within(residual, masks, valid)
    runs, between = count - different, (residual**2).sum(axis=0) - within
    noise = np.divide(within, runs, out=np.zeros_like(within), where=runs > 0)
    signal, precision = _signal_share(noise, between / (different - 2), different - 2, runs)
    effect = np.maximum(between, 0.0) * signal / spread
    error = np.where(useful, effect * pull / pp**2 + noise / pp, np.inf)
    scores = _sums(residual * p / pp, problem.units)
    slope, slope_se, common = shrink(np.where(useful, raw, 0.0), error, scores)
    slope, slope_se = np.where(varies, slope, 0.0), np.where(varies, slope_se, 0.0)
    return Slopes(
        slope=slope,
        slope_se=slope_se,
        raw=np.where(useful, raw, np.nan),
        effect_sd=np.sqrt(effect),
        noise_sd=np.where(runs > 0, np.sqrt(noise), np.nan),
        df=2 / (2 / freedom + precision),
        bias=y_mean - slope * p_mean,
        common=common,
    )


def shrink(values: Float, variances: Float, scores: Float | None = None) -> tuple[Float, Float, float]:
    """Values (t,) drawn to their mean: posterior mean and sd (t,), and the mean.

    Parameters
    ----------
    variances
        (t,) of the values; inf for one that says nothing.
    scores
        (u, t) what each independent unit adds to the error of each value, for values whose errors depend on each other.
    """
    known = np.isfinite(variances)
    v = np.where(known, np.maximum(variances, np.finfo(np.float64).tiny ** 0.25), 1.0)
    precision = known / v
    total, between = precision.sum(), np.inf
    if known.sum() > 1:
        excess = precision @ (values - precision @ values / total) ** 2 - (known.sum() - 1)
        between = max(0.0, float(excess / (total - (precision**2).sum() / total)))
    kept = known * (1.0 if np.isinf(between) else between / (v + between))
    share = precision if np.isinf(between) else known / (v + between)
    mean, variance = float(share @ values / share.sum()), 1 / share.sum()
    if scores is not None:
        by_unit = scores @ (share / share.sum())
        variance = max(variance, float(by_unit @ by_unit) * len(scores) / (len(scores) - 1))
    alone = np.where(known, kept * v, 0.0 if np.isinf(between) else between)
    return mean + kept * (values - mean), np.sqrt(alone + (1 - kept) ** 2 * variance), mean


def _spread(problem: Problem, p: Float, valid: Bool) -> tuple[Float, Float]:
    """‖X_c‖² over the rows of each target, and ‖Xᵀp‖² (t,), for centred predictions p (m, t) that are 0 elsewhere."""
    seen, product = np.zeros((problem.n_train, valid.shape[1])), np.zeros((problem.n_train, p.shape[1]))
    start = 0
    for x, _ in replace(problem, targets=problem.targets[:0]).chunks():
        part = slice(start, start + len(x))
        floats = x.T.astype(np.float64)
        seen += floats @ valid[part]
        product += floats @ p[part]
        start += len(x)
    return (seen - seen**2 / valid.sum(axis=0)).sum(axis=0), (product**2).sum(axis=0)


def _signal_share(noise: Float, mean_square: Float, df: Any, runs: Any) -> tuple[Float, Float]:
    """Which share of the residual variance is not noise, (t,), and its relative variance; 1 and 0 without replicates.

    Noise over residual mean square is F-distributed up to its expectation; shares are shrunk over targets.
    """
    replicated = np.broadcast_to(runs > 0, noise.shape)
    if not replicated.any():
        return np.ones_like(noise), np.zeros_like(noise)
    ratio = np.divide(noise * (df - 2) / df, mean_square, out=np.ones_like(noise), where=mean_square > 0)
    typical = np.clip(ratio[replicated].mean(), 0.0, 1.0)
    relative = 2 * (df + runs - 2) / (np.maximum(runs, 1) * np.maximum(df - 4, 1))  # that of an F variable
    spread = np.where(replicated, typical**2 * relative, np.inf)
    share, sd, _ = shrink(ratio, spread)
    rest, square = _positive_part(1 - share, np.maximum(sd, 1e-9))
    return np.where(replicated, rest, 1.0), np.where(replicated, square / rest**2 - 1, 0.0)


def _positive_part(mean: Float, sd: Float) -> tuple[Float, Float]:
    """E[d] and E[d²] of d = max(0, z), z normal; never quite 0."""
    from scipy import special

    ratio = mean / sd
    density, below = np.exp(-(ratio**2) / 2) / np.sqrt(2 * np.pi), special.ndtr(ratio)
    first = np.maximum(mean * below + sd * density, 1e-12)
    return first, np.maximum((mean**2 + sd**2) * below + mean * sd * density, first**2)


def _sums(values: NDArray[Any], codes: NDArray[np.int64]) -> Float:
    """Sums (groups, t) of rows (m, t) by the number of their group."""
    order = np.argsort(codes, kind="stable")
    starts = np.flatnonzero(np.diff(codes[order], prepend=-1))
    return np.add.reduceat(values[order].astype(np.float64), starts, axis=0)


def _distinct(codes: NDArray[np.int64], valid: Bool) -> NDArray[np.int64]:
    """How many groups the rows that count are of."""
    return np.asarray((_sums(valid, codes) > 0).sum(axis=0), dtype=np.int64)


def _within(residual: Float, codes: NDArray[np.int64], valid: Bool) -> Float:
    """Sum of squares within groups (t,), of residuals that are 0 where they do not count."""
    counts = np.maximum(_sums(valid, codes), 1)
    return (residual**2).sum(axis=0) - (_sums(residual, codes) ** 2 / counts).sum(axis=0)


def _predictions(
    problem: Problem, weights: Float, columns: NDArray[np.int64] | None
) -> tuple[Float, Float, Bool, NDArray[np.int64]]:
    """``X @ weights`` and outputs (m, t), which of them count (m, t) or (m, 1), and which masks are equal (m,)."""
    p, y, valid = [], [], []
    for x, values in problem.chunks():
        p.append(x.astype(np.float64) @ weights)
        y.append(values)
        valid.append(np.ones((len(x), 1), dtype=np.bool_) if columns is None else ~x[:, columns])
    hashes = np.concatenate([part.mask_hashes() for part in problem.sources])
    same = np.unique(hashes, return_inverse=True)[1].astype(np.int64)
    return np.concatenate(p), np.concatenate(y), np.concatenate(valid), same
