"""Datamodels with an offset: another attribution is believed as far as its slope goes, and what it misses is fitted.

Where a prior only says which examples are likely to matter, an offset also says how much and in which direction. Its slope
on the fitted rows is shrunk over targets, so that scores that say nothing get about 0 and the fit is the usual one.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.regression.calibration import check_finite, measure
from datamodels.regression.prior import check_scores
from datamodels.regression.problem import Problem, Source
from datamodels.regression.solution import Solution
from datamodels.regression.used import used_rows


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


def take_off(problem: Problem, scores: Attribution) -> tuple[Problem, Offset]:
    """The same rows with outputs minus slope times prediction, which are held in memory (8 bytes per row and target).

    Raises
    ------
    RequestError
        when scores are not finite, not of the same examples and targets, or have used some of the rows.
    """
    check_finite(scores, "offset")
    check_scores(scores, problem.n_train, problem.n_targets, "offset")
    taken = used_rows(problem, scores.provenance.get("sources", []))
    if taken.any():
        raise RequestError(
            f"the offset has used {int(taken.sum())} of the {len(taken)} rows, so that its predictions are too good there: fit on "
            "rows that it has not used"
        )
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
