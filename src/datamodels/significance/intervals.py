"""How sure is each weight? Standard errors, confidence intervals and p-values of a lasso fit.

The degrees-of-freedom-adjusted debiased lasso (Javanmard & Montanari 2014, arXiv:1306.3171; Bellec &
Zhang 2019, arXiv:1902.08885). Debiasing needs the inverse covariance of the columns. We drew the
subsets, so it is known: for a `bernoulli` design standardised columns have the identity.
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.errors import DatamodelsWarning, RequestError
from datamodels.progress import Progress
from datamodels.regression.problem import Problem
from datamodels.significance import result_file
from datamodels.significance.fitted_rows import fitted_problem, fixed_sums, mask_groups
from datamodels.store import Store
from datamodels.version import versions

FORMAT_VERSION = 1
_BLOCK_BYTES = 256 << 20
_LAYERS = ("standard_error", "low", "high", "p_value")


@dataclass(frozen=True, eq=False)
class Intervals:
    """Confidence intervals of every weight.

    Attributes
    ----------
    estimate
        (n_train, n_targets) float32, of E[output | j in] - E[output | j out], in output units.
    standard_error
        (n_train, n_targets) float32, of the estimate; inf where nothing can be learned (an example that is in every subset or in none,
        a target's own column, a target whose fit has as many nonzeros as it has rows).
    low, high
        (n_train, n_targets) float32, ends of the interval.
    p_value
        (n_train, n_targets) float32, two-sided, of no influence; for one example and target, not adjusted for how many were looked at.
    confidence
        The share of intervals that hold the true value.
    robust
        Whether standard errors allow for noise that depends on the subset.
    n_models
        Rows that took part.
    targets
        (n_targets,) which outputs they are.
    provenance
        That of the attribution, and versions.
    """

    estimate: NDArray[np.float32]
    standard_error: NDArray[np.float32]
    low: NDArray[np.float32]
    high: NDArray[np.float32]
    p_value: NDArray[np.float32]
    confidence: float
    robust: bool
    n_models: int
    targets: NDArray[np.int64] = field(repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready summary."""
        known = np.isfinite(self.standard_error)
        return {
            "confidence": self.confidence,
            "robust": self.robust,
            "n_models": self.n_models,
            "n_train": self.estimate.shape[0],
            "n_targets": self.estimate.shape[1],
            "median_standard_error": float(np.median(self.standard_error[known])) if known.any() else None,
            "share_excluding_0": float(((self.low > 0) | (self.high < 0)).mean()),
        }

    def save(self, path: str | Path) -> Path:
        """Write an AnnData at `path`, ``.h5ad``: X = estimateᵀ, layers ``standard_error``, ``low``, ``high``, ``p_value``."""
        table = Attribution(
            self.estimate, np.zeros(len(self.targets)), {"target": self.targets}, provenance=self.provenance
        )
        single = {"confidence": self.confidence, "robust": self.robust, "n_models": self.n_models}
        layers = {name: getattr(self, name) for name in _LAYERS}
        return result_file.write(path, "intervals", FORMAT_VERSION, table, layers, single)

    @classmethod
    def load(cls, path: str | Path) -> Intervals:
        """Read what `save` wrote."""
        table, layers, single = result_file.read(path, "intervals", FORMAT_VERSION)
        arrays: dict[str, Any] = {name: layers[name] for name in _LAYERS}
        if "level" in single:  # its name before version 1
            single["confidence"] = single.pop("level")
        targets = table.target_facts["target"].astype(np.int64)
        return cls(estimate=table.weights, targets=targets, provenance=table.provenance, **arrays, **single)


def intervals(
    attribution: Attribution | str | Path,
    source: Store | str | Path | Sequence[Store | str | Path] | None = None,
    *,
    confidence: float = 0.95,
    robust: bool = True,
    masks: NDArray[Any] | str | Path | None = None,
    outputs: NDArray[Any] | str | Path | None = None,
    masks_key: str | None = None,
    outputs_key: str | None = None,
    progress: bool = True,
) -> Intervals:
    """Confidence intervals of the weights of a lasso fit.

    The debiased lasso (Javanmard & Montanari 2014, arXiv:1306.3171) with its adjustment for degrees of freedom (Bellec & Zhang 2019,
    arXiv:1902.08885). With z standardised columns, w the lasso's standardised weights with |S| nonzeros, r its residuals and
    M rows (replicates of a mask averaged), the estimate is ``w_j + z_jᵀr / (M - |S| - 1)``. Its standard
    error is ``√(Σ_i z_ij² r_i²) / (M - |S| - 1)`` (robust) or ``‖r‖ / (M - |S| - 1)``, and its reference
    distribution Student's t. Everything is then put in output units per example.

    What the interval is about is E[output | j in] - E[output | j out] over the subsets of the design.
    Outputs need not be linear in masks; what is not linear acts as noise that depends on the subset,
    which is why ``robust`` is the default. (At alpha = ½ both standard errors agree, since then z² = 1.)

    With a `bernoulli` design that is the mean influence of j. Where subset sizes are fixed it is the
    influence of j beyond that of the examples that take its place, since such subsets tell nothing about a
    constant added to all influences: the lasso's weights enter relative to their mean (over the stratum,
    for ``stratified``). The columns' weak dependence is taken as none beyond that.

    Parameters
    ----------
    attribution
        A fit by `Lasso` with intercept, or its file.
    source, masks, outputs
        Where the rows are that it was fitted on, as in `datamodels.fit`; other rows there are left out.
        Rows of arrays are taken as independent but for equal masks, so do not give those of an antithetic
        design as arrays.
    confidence
        Of the intervals, in (0, 1).
    robust
        The sandwich standard error, valid when noise depends on the subset.
    masks_key, outputs_key
        Keys of the store; by default those that were fitted.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when the attribution is no lasso fit, does not say its rows, or they are not all there; when
        the design has dependent rows or columns (antithetic, grouped, leave_one_out).
    """
    if not 0 < confidence < 1:
        raise RequestError(f"confidence is {confidence}; give a share between 0 and 1, for example 0.95")
    if not isinstance(attribution, Attribution):
        attribution = Attribution.load(attribution)
    problem = fitted_problem(attribution, source, masks, outputs, masks_key, outputs_key)
    parts, groups = fixed_sums(problem), mask_groups(problem)
    estimate, error = np.empty((2, *attribution.weights.shape))
    dof = np.empty(attribution.n_targets)
    size = max(1, _BLOCK_BYTES // (16 * problem.n_rows + 1))
    with Progress("intervals", attribution.n_targets, "targets", show=progress) as bar:
        for start in range(0, attribution.n_targets, size):
            block = slice(start, start + size)
            part = replace(problem, targets=problem.targets[block])
            estimate[:, block], error[:, block], dof[block] = _debias(part, attribution[block], groups, parts, robust)
            bar.advance(len(part.targets))
    _warn_saturated(dof)
    return _result(attribution, estimate, error, dof, confidence, robust, problem)


def _result(
    attribution: Attribution,
    estimate: NDArray[np.float64],
    error: NDArray[np.float64],
    dof: NDArray[np.float64],
    confidence: float,
    robust: bool,
    problem: Problem,
) -> Intervals:
    from scipy import stats

    dof = np.maximum(dof, 1)
    reach = stats.t.ppf((1 + confidence) / 2, dof) * error
    ratio = np.divide(np.abs(estimate), error, out=np.full_like(error, np.inf), where=error > 0)
    p_value = 2 * stats.t.sf(np.where((error == 0) & (estimate == 0), 0.0, ratio), dof)
    named = {"estimate": estimate, "standard_error": error, "low": estimate - reach, "high": estimate + reach}
    arrays = {name: value.astype(np.float32) for name, value in {**named, "p_value": p_value}.items()}
    return Intervals(
        **arrays,
        confidence=float(confidence),
        robust=robust,
        n_models=problem.n_rows,
        targets=np.asarray(attribution.target_facts.get("target", np.arange(attribution.n_targets)), dtype=np.int64),
        provenance={"attribution": attribution.provenance, "versions": versions()},
    )


def _debias(
    problem: Problem,
    attribution: Attribution,
    groups: NDArray[Any],
    parts: NDArray[np.int64] | None,
    robust: bool,
) -> tuple[NDArray[np.float64], NDArray[np.float64], NDArray[np.float64]]:
    """Estimates (n_train, n_targets), their standard errors, and degrees of freedom (n_targets,)."""
    columns = attribution.train_columns
    residuals, first = _residuals(problem, attribution, groups)
    seen = np.zeros((problem.n_train, 1))
    count, position = np.zeros(1, dtype=np.float64), 0
    xr, xrr = np.zeros((2, *attribution.weights.shape))
    for x, _ in replace(problem, targets=problem.targets[:1]).take(first).chunks():
        floats = x.T.astype(np.float32)
        fitted = np.ones((len(x), 1), np.float32) if columns is None else (~x[:, columns]).astype(np.float32)
        r = residuals[position : position + len(x)]
        seen = seen + floats @ fitted
        count = count + fitted.sum(axis=0, dtype=np.float64)
        xr += floats @ r
        xrr += floats @ r**2
        position += len(x)
    dof = count - np.count_nonzero(attribution.weights, axis=0) - 1
    mean = seen / count
    variance = mean * (1 - mean)
    known = (variance > 0) & (dof >= 1)
    r_sum, r_squares = residuals.sum(axis=0, dtype=np.float64), (residuals**2).sum(axis=0, dtype=np.float64)
    if robust:  # z² takes two values per column: (1 - mean)/mean where x = 1, mean/(1 - mean) where x = 0
        inverse = np.divide(1.0, variance, out=np.zeros_like(variance), where=variance > 0)
        squares = np.maximum((1 - 2 * mean) * inverse * xrr + mean**2 * inverse * r_squares, 0)
    else:
        squares = np.broadcast_to(r_squares, xr.shape)
    scale = np.where(known, np.sqrt(variance) * dof, 1.0)
    step = (xr - mean * r_sum) / np.where(known, variance * dof, 1.0)
    estimate = np.where(known, step + _beyond_others(attribution, parts), 0.0)
    return estimate, np.where(known, np.sqrt(squares) / scale, np.inf), dof


def _beyond_others(attribution: Attribution, parts: NDArray[np.int64] | None) -> NDArray[np.float64]:
    """What the fitted model says of E[output | j in] - E[output | j out], (n_train, n_targets).

    The weight itself; where the size of each of the ``parts`` is fixed, the weight minus the mean of the
    others in its part. A target's own example is in no subset and not among them.
    """
    weights = attribution.weights.astype(np.float64)
    if parts is None:
        return weights
    others = np.ones(weights.shape)
    if attribution.train_columns is not None:
        others[attribution.train_columns, np.arange(attribution.n_targets)] = 0
    for label in np.unique(parts):
        rows = parts == label
        count = np.maximum(others[rows].sum(axis=0) - 1, 1)
        weights[rows] -= (weights[rows].sum(axis=0) - weights[rows]) / count
    return weights


def _residuals(
    problem: Problem, attribution: Attribution, groups: NDArray[Any]
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Residuals of each mask (n_masks, n_targets), and the position of its first row (n_masks,), ascending.

    Replicates of one mask share what is not linear, so they are one observation: their mean. Rows that
    hold a target's own example have residual 0 for it.
    """
    _, first, group = np.unique(groups, return_index=True, return_inverse=True)
    columns = attribution.train_columns
    total = np.zeros((len(first), attribution.n_targets))
    spread, count = np.zeros((2, attribution.n_targets))
    position = 0
    for x, y in problem.chunks():
        r = y - attribution.predict(x)
        fitted = np.ones(r.shape, dtype=np.bool_) if columns is None else ~x[:, columns]
        np.add.at(total, group[position : position + len(x)], r * fitted)
        spread += (r**2 * fitted).sum(axis=0)
        count += fitted.sum(axis=0)
        position += len(x)
    off = np.abs(total.sum(axis=0)) > 0.05 * np.sqrt(spread * count) + 1e-6 * count * (1 + np.abs(attribution.bias))
    if off.any():
        raise RequestError(
            f"the residuals of target {int(off.argmax())} do not average 0, so these outputs are not those that were "
            "fitted: name the key or the file that was"
        )
    order = np.argsort(first)
    return (total[order] * (len(first) / problem.n_rows)).astype(np.float32), first[order]


def _warn_saturated(dof: NDArray[np.float64]) -> None:
    late = np.flatnonzero(dof < 1)
    if len(late):
        warnings.warn(
            f"{len(late)} targets (the first is {late[0]}) have as many nonzero weights as rows: their standard errors "
            "are inf; train more models",
            DatamodelsWarning,
            stacklevel=3,
        )
