"""Datamodels with an offset: another attribution is believed as far as its slope goes, and what it misses is fitted.

Where a prior only says which examples are likely to matter, an offset also says how much and in which direction. Its slope
on the fitted rows is shrunk over targets, so that scores that say nothing get about 0 and the fit is the usual one. Where rows are
held out to choose λ, they also choose per target whether there is an offset at all: one that is informative but dense can cost a
sparse fit more than it gives.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.regression.prior import picked
from datamodels.regression.problem import Problem
from datamodels.regression.slopes import measure
from datamodels.regression.solution import Solution
from datamodels.regression.source import Source


@dataclass(frozen=True, eq=False)
class Offset:
    """What was taken off the outputs.

    Attributes
    ----------
    weights
        (n_train, n_targets) in output units.
    slope
        (n_targets,) of outputs on the predictions of the scores.
    """

    weights: NDArray[np.float64]
    slope: NDArray[np.float64]

    def added_to(self, solution: Solution) -> Solution:
        """The solution of the outputs themselves."""
        facts = {**solution.facts, "offset_slope": self.slope}
        return replace(solution, weights=solution.weights + self.weights, facts=facts)

    def chosen(self, rest: Solution, plain: Solution) -> Solution:
        """Per target the better of the solution of what is left and that without offset, by error on the same held-out rows.

        Errors of both are errors on the outputs, so ``val_r2`` of the first follows from their ratio.
        """
        added = self.added_to(rest)
        error, without = (np.nanmin(one.facts["path_val_error"], axis=1) for one in (rest, plain))
        share = np.divide(error, without, out=np.ones_like(error), where=without > 0)
        added.facts["val_r2"] = 1 - share * (1 - plain.facts["val_r2"])
        plain = replace(plain, facts={**plain.facts, "offset_slope": np.zeros_like(self.slope)})
        return picked(error < without, added, plain)


def take_off(problem: Problem, scores: Attribution) -> tuple[Problem, Offset]:
    """The same rows with outputs minus slope times prediction, which are held in memory (8 bytes per row and target)."""
    slope = measure(problem, scores.weights, problem.train_columns).slope
    weights = scores.weights * slope
    if problem.train_columns is not None:
        weights[problem.train_columns, np.arange(problem.n_targets)] = 0  # no fitted row holds a target's own example
    rest = [_without(replace(problem, sources=(part,)), part, weights) for part in problem.sources]
    return replace(problem, sources=tuple(rest), targets=np.arange(problem.n_targets)), Offset(weights, slope)


def _without(problem: Problem, source: Source, weights: NDArray[Any]) -> Source:
    """A source with outputs (models, n_targets) minus ``X @ weights``; rows that take no part are not written."""
    outputs = np.empty((len(source.outputs), problem.n_targets))
    start = 0
    for x, y in problem.chunks():
        outputs[source.rows[start : start + len(x)]] = y - x.astype(np.float64) @ weights
        start += len(x)
    return replace(source, outputs=outputs)
