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
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.regression.problem import Problem
from datamodels.regression.slopes import Float, measure
from datamodels.regression.source import OUTPUTS
from datamodels.regression.used import all_sources, used_rows, without
from datamodels.spec import MASKS, Rows
from datamodels.store import Store

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

    The interval is Student's, with the degrees of freedom of ``target_facts["calibration_df"]``. The examples must not be chosen
    by the rows that it was calibrated on, and the training set should be like those of these rows. Effects count as additive, which
    networks are not: of examples that the attribution chose, fewer intervals hold the change than `confidence` says, far fewer of many
    (see Calibration in docs/mathematics.md for measured shares). A target's own example is in none of its rows: its effect is an extrapolation.

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
