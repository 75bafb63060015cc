"""Scores in units of the output, and intervals for what happens when examples are removed.

The model. Of target t, example j has the effect ``θ_tj = s_t w_tj + e_tj``: w are the scores, s_t is the slope, and e, what
the scores miss, is independent with mean 0 and variance τ_t². A model trained on mask x has the output
``y = b_t + Σ_j θ_tj x_j + ε`` with ε of variance σ_t², the noise of training.

* Slope: least squares of y on p = X w with an intercept. With H the projection off 1 and p, given the masks X,
  ``E[RSS] = τ² tr(XᵀHX) + σ² (m - 2)`` and ``Var(s) = τ² ‖Xᵀp_c‖² / ‖p_c‖⁴ + σ² / ‖p_c‖²``, p_c being p minus its mean.
  Both hold for any design, since only e and ε are random; so does τ², by the method of moments. Over random masks, tr(XᵀHX)/m is
  about Σ_j Var(x_j): covariances of columns do not matter, since E[eᵀΣe] = τ² tr(Σ). With subsets of a fixed size
  Var(Σ e_j x_j) = α(1 - α) n/(n - 1) Σ (e_j - ē)², in expectation α(1 - α) n τ², the same.
* Noise: the variance within rows of equal masks. Without such rows σ² counts as 0 and all of the residual as missed effects:
  τ is too large then, and intervals are too wide, never too narrow. Which share of the residual variance is noise is shrunk
  over targets as slopes are.
* Shrinkage: slopes of a few dozen rows are noisy. They are drawn to their precision-weighted mean; the variance between
  targets is that of DerSimonian & Laird 1986 (Control. Clin. Trials 7), and slope and standard error are the posterior mean and sd.
  Targets share their models, so the error of the mean is the larger of that of independent targets and the sandwich over rows.
* Removal of the k examples of S: ``-s Σ_S w_j``, with variance ``k τ² + (Σ_S w_j)² se(s)²``, and 2σ²/r more for means of r
  runs. What the slope has taken up of e would narrow it, and is not subtracted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.regression.problem import OUTPUTS, Problem
from datamodels.regression.used import all_sources, used_rows, without
from datamodels.spec import MASKS, Rows
from datamodels.store import Store

Float = NDArray[np.float64]
Bool = NDArray[np.bool_]
_FEWEST = 6  # different masks
_ROUNDING = 1e-24  # of a variance against the square of the mean
_FACTS = ("slope", "slope_se", "effect_sd", "noise_sd", "calibration_df")


class Removal(NamedTuple):
    """Predicted changes of the mean output, (n_targets,) each, in output units.

    Attributes
    ----------
    predicted
        The change.
    low, high
        Ends of its interval.
    """

    predicted: Float
    low: Float
    high: Float


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


def calibrate(
    attribution: Attribution | str | Path,
    source: Store | str | Path | Sequence[Store | str | Path] | None = None,
    *,
    masks: NDArray[Any] | str | Path | None = None,
    outputs: NDArray[Any] | str | Path | None = None,
    masks_key: str | None = None,
    outputs_key: str | None = None,
    rows: Rows = None,
) -> Attribution:
    """Put scores into units of the output, on a few dozen retrained models of any design.

    The model and its estimates are at the head of `datamodels.regression.calibration`. Models with two runs of each mask
    (``replicates=2``) tell missed effects from noise: intervals are narrower. A fitted attribution can be calibrated as well;
    on fresh rows its slope is near 1, below where it is overfitted, above where it is shrunk.

    Parameters
    ----------
    attribution
        Scores, or their file. Targets that are training examples are judged on the rows that do not hold them.
    source, masks, outputs
        Where the models are, as in `datamodels.fit`.
    masks_key, outputs_key
        Keys of the store; by default those that were fitted.
    rows
        Which rows; by default all that the attribution has not used, nor any run of a mask that it has used.

    Returns
    -------
    Attribution
        Weights times slope, a bias, the rows among those used, and the facts ``slope``, ``slope_se``, ``effect_sd``
        (what scores miss, per example), ``noise_sd`` (of one training; NaN without replicates) and ``calibration_df``.

    Raises
    ------
    RequestError
        when scores are not finite, when rows were named that the attribution has used, when there are fewer than 6 different
        masks, or when no prediction varies.
    """
    if not isinstance(attribution, Attribution):
        attribution = Attribution.load(attribution)
    check_finite(attribution, "attribution")
    problem = _rows_for(attribution, source, masks, outputs, masks_key, outputs_key, rows)
    found = measure(problem, attribution.weights, attribution.train_columns)
    made: Mapping[str, Any] = attribution.provenance.get("estimator", {})
    name = str(made.get("name", "scores")).removeprefix("calibrated ")
    facts = (found.slope, found.slope_se, found.effect_sd, found.noise_sd, found.df)
    return replace(
        attribution,
        weights=(attribution.weights * found.slope).astype(np.float32),
        bias=found.bias,
        target_facts={
            "target": problem.targets,
            **attribution.target_facts,
            **dict(zip(_FACTS, facts, strict=True)),
        },
        provenance={
            **attribution.provenance,
            "estimator": {**made, "name": f"calibrated {name}"},
            "units": "output units",
            "sources": all_sources(attribution.provenance.get("sources", []), problem.rows_used()),
            "calibration": {"n_models": problem.n_rows, "common_slope": found.common},
        },
    )


def removal(
    attribution: Attribution,
    examples: ArrayLike,
    *,
    confidence: float = 0.95,
    runs: int | None = None,
    add: bool = False,
) -> Removal:
    """Predicted change of each target's mean output when examples leave a training set that holds them, with intervals.

    The interval is Student's, with the degrees of freedom of ``target_facts["calibration_df"]``. The examples may be chosen by the
    attribution, but not by the rows that it was calibrated on. The training set should be like those of these rows. Effects count as
    additive; of networks, which are not, fewer intervals hold the change than `confidence` says (see Calibration in
    docs/mathematics.md for measured shares). A target's own example is in none of its rows: its effect is an extrapolation.

    Parameters
    ----------
    attribution
        What `calibrate` returned.
    examples
        (k,) training examples, each once.
    confidence
        Of the intervals.
    runs
        For the change that is measured: the mean of so many runs against the mean of as many on the untouched set, whose noise
        the interval then covers too. By default the change of the expected output.
    add
        The examples join a training set that lacks them.

    Raises
    ------
    RequestError
        when the attribution was not calibrated, examples do not exist or come twice, or `runs` is given and the
        calibration had no two runs of a mask.
    """
    from scipy import stats

    if not is_calibrated(attribution):
        missing = next(name for name in _FACTS if name not in attribution.target_facts)
        raise RequestError(
            f"this attribution is not calibrated (target_facts lacks {missing!r}): use what calibrate(attribution, store) returns"
        )
    if not 0 < confidence < 1:
        raise RequestError(f"confidence is {confidence}; it must be between 0 and 1")
    members = _members(examples, attribution.n_train)
    slope, slope_se, effect, noise, df = (np.asarray(attribution.target_facts[name], np.float64) for name in _FACTS)
    change = attribution.weights[members].sum(axis=0, dtype=np.float64)
    relative = np.divide(slope_se, slope, out=np.zeros_like(slope), where=slope != 0)
    variance = len(members) * effect**2 + (change * relative) ** 2
    if runs is not None:
        if runs < 1:
            raise RequestError(f"runs is {runs}; give 1 or more")
        if np.isnan(noise).any():
            raise RequestError(
                f"the noise of a run is not known for {int(np.isnan(noise).sum())} targets: calibrate on models with two or more "
                "runs of each mask (replicates=2), or leave out runs"
            )
        variance = variance + 2 * noise**2 / runs
    wide = stats.t.ppf((1 + confidence) / 2, df) * np.sqrt(variance)
    predicted = change if add else -change
    return Removal(predicted, predicted - wide, predicted + wide)


def is_calibrated(attribution: Attribution) -> bool:
    """Whether it has the facts that intervals come from."""
    return all(name in attribution.target_facts for name in _FACTS)


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


def check_finite(attribution: Attribution, what: str) -> None:
    """Raise RequestError when a score is NaN or infinite."""
    if not np.isfinite(attribution.weights).all():
        raise RequestError(f"the {what} has scores that are NaN or infinite")


def positions_of(attribution: Attribution, what: str = "attribution") -> NDArray[np.int64]:
    """Which outputs its targets are, (n_targets,): ``target_facts["target"]``, or all in order.

    Raises
    ------
    RequestError
        when they are not whole numbers from 0.
    """
    stated = attribution.target_facts.get("target", np.arange(attribution.n_targets))
    if stated.ndim != 1 or stated.dtype.kind not in "iu" or stated.min(initial=0) < 0:
        raise RequestError(
            f"target_facts['target'] of the {what} has dtype {stated.dtype}, shape {stated.shape} and begins with "
            f"{stated[:3].tolist()}; give the positions of its targets among the outputs, whole numbers from 0, (n_targets,)"
        )
    return stated.astype(np.int64)


def output_key(attribution: Attribution) -> str:
    """Key of the output that an attribution says it is of; margins when it says nothing."""
    fitted: Mapping[str, Any] = next(iter(attribution.provenance.get("sources", [])), {})
    return fitted.get("outputs_key") or (OUTPUTS if attribution.train_columns is None else f"train_{OUTPUTS}")


def _rows_for(
    attribution: Attribution,
    source: Any,
    masks: Any,
    outputs: Any,
    masks_key: str | None,
    outputs_key: str | None,
    rows: Rows,
) -> Problem:
    """The rows to calibrate on, and the attribution's targets."""
    sources: Sequence[Mapping[str, Any]] | None = attribution.provenance.get("sources")
    if sources is None and rows is None:
        raise RequestError(
            "this attribution does not say which rows it was fitted on: name the rows to calibrate on with rows, or put "
            "'sources': [] in its provenance when it has used none"
        )
    entries = list(sources or [])
    first: Mapping[str, Any] = entries[0] if entries else {}
    problem = Problem.build(
        source,
        masks=masks,
        outputs=outputs,
        masks_key=masks_key or first.get("masks_key", MASKS),
        outputs_key=outputs_key or output_key(attribution),
        rows=rows,
        targets_are_train=False,
    )
    if problem.n_train != attribution.n_train:
        raise RequestError(f"the attribution has {attribution.n_train} train examples, the masks {problem.n_train}")
    chosen = positions_of(attribution)
    if "target" not in attribution.target_facts and problem.n_targets != attribution.n_targets:
        raise RequestError(
            f"the attribution has {attribution.n_targets} targets and does not say which of the {problem.n_targets} outputs "
            "they are: add target_facts['target'], or give the outputs of its targets alone"
        )
    if len(chosen) and chosen.max() >= problem.n_targets:
        raise RequestError(f"the attribution has targets up to {chosen.max()}; there are {problem.n_targets} outputs")
    problem = replace(problem, targets=problem.targets[chosen])
    taken = used_rows(problem, entries)
    if rows is not None and taken.any():
        raise RequestError(
            f"{int(taken.sum())} of the {len(taken)} named rows were used by the attribution already; calibrate on others"
        )
    left = without(problem, taken)
    if not left.n_rows:
        raise RequestError("the attribution has used all of these rows; calibrate on others, or fit fewer")
    return left


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


def _members(examples: ArrayLike, n_train: int) -> NDArray[np.int64]:
    members = np.asarray(examples)
    if members.ndim != 1 or not len(members) or members.dtype.kind not in "iu":
        raise RequestError(
            f"examples are {members.dtype} of shape {members.shape}; give whole numbers (k,), one or more: the examples"
        )
    if members.min() < 0 or members.max() >= n_train:
        raise RequestError(f"examples go from {members.min()} to {members.max()}; there are 0..{n_train - 1}")
    if len(np.unique(members)) != len(members):
        raise RequestError("some examples were given twice; an example can leave a training set once")
    return members.astype(np.int64)
