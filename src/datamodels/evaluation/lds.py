"""The linear datamodelling score: do predicted outputs rank models that were never fitted?"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.evaluation.ranks import resampled_spearman, unit_counts
from datamodels.regression.calibration import positions_of
from datamodels.regression.problem import Problem
from datamodels.regression.source import OUTPUTS
from datamodels.regression.used import used_rows, without
from datamodels.spec import MASKS, Rows
from datamodels.store import Store

_FEWEST_MASKS = 10


@dataclass(frozen=True, eq=False)
class LDS:
    """Scores on held-out models.

    Attributes
    ----------
    lds, lds_ci
        Mean over targets of the Spearman correlation between predicted and true outputs, and its
        bootstrap interval over design units and targets.
    lds_ceiling
        What a perfect predictor of the expected output would reach, √ρ with ρ the mean Spearman
        correlation between replicate runs (classical attenuation); None without replicates.
    pearson, r2
        Means over targets of the Pearson correlation and of 1 - squared error / variance.
    per_target
        (n_targets,) Spearman correlations; NaN where the true output does not vary.
    n_models, n_units, n_targets
        What the score rests on.
    confidence
        Of the interval.
    n_constant_predictions, n_constant_outputs
        Targets whose prediction does not vary (they score 0), and whose true output does not (they
        are left out).
    bootstrap
        (draws,) resampled means, shared between evaluations on the same rows and seed.
    """

    lds: float
    lds_ci: tuple[float, float]
    lds_ceiling: float | None
    pearson: float
    r2: float
    n_models: int
    n_units: int
    n_targets: int
    n_constant_predictions: int
    n_constant_outputs: int
    confidence: float
    per_target: NDArray[np.float64] = field(repr=False)
    bootstrap: NDArray[np.float64] = field(repr=False)

    def __str__(self) -> str:
        low, high = self.lds_ci
        ceiling = "no ceiling without replicates" if self.lds_ceiling is None else f"ceiling {self.lds_ceiling:.3f}"
        text = f"LDS {self.lds:.3f} ({self.confidence:.0%} interval {low:.3f} to {high:.3f}; {ceiling}), R² {self.r2:.3f}, on {self.n_models} models"
        if self.n_constant_predictions:
            text += f"; {self.n_constant_predictions} of {self.n_targets} targets have a constant prediction"
        return text

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, without the arrays."""
        names = [name for name in self.__dataclass_fields__ if name not in ("per_target", "bootstrap")]
        return {name: getattr(self, name) if name != "lds_ci" else list(self.lds_ci) for name in names}


def lds(
    attribution: Attribution | str | Path,
    source: Store | str | Path | Sequence[Store | str | Path] | None = None,
    *,
    masks: NDArray[Any] | str | Path | None = None,
    outputs: NDArray[Any] | str | Path | None = None,
    masks_key: str | None = None,
    outputs_key: str | None = None,
    rows: Rows = None,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> LDS:
    """Score an attribution on models that its fit has not used (Park et al. 2023, arXiv:2303.14186).

    Parameters
    ----------
    attribution
        What to judge, or its file.
    source, masks, outputs
        Where held-out models are, as in `datamodels.fit`.
    masks_key, outputs_key
        Keys of the store; by default those that were fitted.
    rows
        Which rows; by default all that the fit has not used, nor any run of a mask that it has used.
    draws, confidence, seed
        Of the bootstrap interval.

    Raises
    ------
    RequestError
        when rows were named that the fit has used, when none are left, or when the attribution does
        not say which rows it used and none were named.
    """
    if not isinstance(attribution, Attribution):
        attribution = Attribution.load(attribution)
    fitted: Mapping[str, Any] = next(iter(attribution.provenance.get("sources", [])), {})
    keys = {
        "masks_key": masks_key or fitted.get("masks_key", MASKS),
        "outputs_key": outputs_key or fitted.get("outputs_key", OUTPUTS),
    }
    problem = Problem.build(source, masks=masks, outputs=outputs, rows=rows, targets_are_train=False, **keys)
    if "target" in attribution.target_facts:
        targets = positions_of(attribution)
        if len(targets) and targets.max() >= problem.n_targets:
            raise RequestError(
                f"the attribution has targets up to {targets.max()}; the outputs ({keys['outputs_key']!r}) have "
                f"{problem.n_targets}: name the key that was fitted, or another store"
            )
        problem = replace(problem, targets=problem.targets[targets])
    if problem.n_targets != attribution.n_targets:
        raise RequestError(
            f"the attribution has {attribution.n_targets} targets and does not say which; the outputs have "
            f"{problem.n_targets}: add target_facts['target'], or give the outputs of its targets alone"
        )
    problem = unused_rows(attribution, problem, named=rows is not None)
    return score(attribution, problem, draws=draws, confidence=confidence, seed=seed)


def unused_rows(attribution: Attribution, problem: Problem, *, named: bool) -> Problem:
    """The rows of a problem that the fit has not used.

    Raises
    ------
    RequestError
        when `named` and some of them were used, or when nothing is left.
    """
    sources: Sequence[Mapping[str, Any]] = attribution.provenance.get("sources", [])
    if "sources" not in attribution.provenance and not named:
        raise RequestError(
            "this attribution does not say which rows it was fitted on: name the rows to evaluate with rows"
        )
    taken = used_rows(problem, sources)
    if named and taken.any():
        first = np.concatenate([part.rows for part in problem.sources])[taken][0]
        raise RequestError(
            f"{int(taken.sum())} of the {len(taken)} named rows were used by the fit (the first is row {first}); evaluate on "
            "rows that it has not used"
        )
    left = without(problem, taken)
    if left.n_rows < 3:
        raise RequestError(
            f"{left.n_rows} rows are left that the fit has not used; at least 3 are needed: fit on fewer rows "
            "(--rows START:STOP) or train more models"
        )
    return left


def score(attribution: Attribution, problem: Problem, *, draws: int, confidence: float, seed: int) -> LDS:
    """The scores of an attribution on the rows of a problem, whichever they are."""
    if not 0 < confidence < 1 or draws < 1:
        raise RequestError(f"confidence is {confidence} and draws {draws}; they must be in (0, 1) and at least 1")
    if problem.n_train != attribution.n_train:
        raise RequestError(f"the attribution has {attribution.n_train} train examples, the masks {problem.n_train}")
    x, truth = problem.load()
    prediction = attribution.predict(x)
    columns = attribution.train_columns
    valid = np.ones(truth.shape, dtype=np.bool_) if columns is None else ~x[:, columns]
    counts = unit_counts(problem.units, draws, seed)
    resampled = resampled_spearman(truth, prediction, counts, valid)
    per_target = resampled[0]
    defined = ~np.isnan(per_target)
    if not defined.any():
        raise RequestError("no target's output varies over these rows: there is nothing to rank")
    bootstrap = _means_over_targets(resampled[1:, defined], seed)
    tail = (1 - confidence) / 2
    low, high = np.quantile(bootstrap, [tail, 1 - tail])
    pearson, r2 = _moments(truth, prediction, valid, defined)
    return LDS(
        lds=float(per_target[defined].mean()),
        lds_ci=(float(low), float(high)),
        lds_ceiling=ceiling(problem, truth, valid),
        pearson=pearson,
        r2=r2,
        n_models=problem.n_rows,
        n_units=len(np.unique(problem.units)),
        n_targets=attribution.n_targets,
        n_constant_predictions=int((~attribution.weights.any(axis=0)).sum()),
        n_constant_outputs=int((~defined).sum()),
        confidence=confidence,
        per_target=per_target,
        bootstrap=bootstrap,
    )


def _means_over_targets(resampled: NDArray[np.float64], seed: int) -> NDArray[np.float64]:
    """Mean over resampled targets of each resampling of rows; a target that is constant there is left out."""
    draws, n = resampled.shape
    weights = np.random.default_rng([seed, 1]).multinomial(n, np.full(n, 1.0 / n), size=draws)
    weights = weights * ~np.isnan(resampled)
    return (weights * np.nan_to_num(resampled)).sum(axis=1) / np.maximum(weights.sum(axis=1), 1)


def _moments(
    truth: NDArray[np.float64],
    prediction: NDArray[np.float64],
    valid: NDArray[np.bool_],
    defined: NDArray[np.bool_],
) -> tuple[float, float]:
    """Mean Pearson correlation and mean R² over the targets that vary."""
    n = valid.sum(axis=0)[defined]
    y, p, v = truth[:, defined], prediction[:, defined], valid[:, defined]
    y_centred = np.where(v, y - (y * v).sum(axis=0) / n, 0.0)
    p_centred = np.where(v, p - (p * v).sum(axis=0) / n, 0.0)
    yy, pp, yp = (y_centred**2).sum(axis=0), (p_centred**2).sum(axis=0), (y_centred * p_centred).sum(axis=0)
    pearson = np.divide(yp, np.sqrt(yy * pp), out=np.zeros_like(yp), where=pp > 0)
    r2 = 1 - (np.where(v, y - p, 0.0) ** 2).sum(axis=0) / yy
    return float(pearson.mean()), float(r2.mean())


def ceiling(problem: Problem, truth: NDArray[np.float64], valid: NDArray[np.bool_]) -> float | None:
    """√ρ, ρ the mean Spearman correlation between replicates; None with fewer than 10 replicated masks."""
    _, position, per_mask = np.unique(problem.mask_numbers, return_inverse=True, return_counts=True)
    order = np.argsort(position, kind="stable")
    first = np.cumsum(per_mask) - per_mask
    correlations = []
    for a in range(int(per_mask.max())):
        for b in range(a + 1, int(per_mask.max())):
            both = np.flatnonzero(per_mask > b)
            if len(both) >= _FEWEST_MASKS:
                rows_a, rows_b = order[first[both] + a], order[first[both] + b]
                ones = np.ones((1, len(both)))
                correlations.append(resampled_spearman(truth[rows_a], truth[rows_b], ones, valid[rows_a])[0])
    if not correlations:
        return None
    found = np.array(correlations)
    if np.isnan(found).all():
        return None
    return float(np.sqrt(max(float(found[~np.isnan(found)].mean()), 0.0)))
