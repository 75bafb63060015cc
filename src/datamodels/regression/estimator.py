"""What every estimator does: which rows choose, how it solves, how it describes itself."""

from __future__ import annotations

import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import field, fields, replace
from typing import Annotated, Any, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass as validated

from datamodels.attribution import Attribution
from datamodels.errors import ConvergenceWarning, RequestError, refusing
from datamodels.regression.prior import describe_scores
from datamodels.regression.problem import Problem
from datamodels.regression.solution import Solution
from datamodels.regression.split_statistics import SplitStatistics

Count = Annotated[int, Field(ge=1)]
Fraction = Annotated[float, Field(gt=0, lt=1)]

CONFIG = ConfigDict(extra="forbid", arbitrary_types_allowed=True)


_VAL_FRACTION = 0.15


SCORES = ("prior", "offset")  # fields that hold an attribution


class Estimator(ABC):
    """Turns statistics into weights.

    ``out_of_mask`` says whether a target that is itself a training example is fitted on the models
    that did not see it; ``penalised`` whether penalty factors are taken; ``by_target`` whether solving for targets that share
    their rows costs as much together as apart. ``offset`` is applied by `datamodels.fit`, to outputs before they come here: an
    estimator that still has one refuses to solve.
    """

    name: ClassVar[str]
    out_of_mask: ClassVar[bool] = True
    penalised: ClassVar[bool] = False
    by_target: ClassVar[bool] = False
    offset: Attribution | None = None

    def __new__(cls, *args: Any, **given: Any) -> Estimator:
        for name in SCORES:  # pydantic would say less, and take a dict
            if not isinstance(given.get(name), Attribution | None):
                raise RequestError(
                    f"{name} is of type {type(given[name]).__name__}; give an Attribution (Attribution.load reads a file, "
                    "Attribution.from_scores takes an array)"
                )
        return super().__new__(cls)

    @abstractmethod
    def splits(self, units: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        """Held-out rows of each split, bool (m,); rows of one design unit, `units` (m,), stay together."""

    @abstractmethod
    def solve(
        self,
        data: SplitStatistics,
        *,
        penalty: NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Solution:
        """Fit from the statistics of the rows that `splits` chose and of all others.

        Parameters
        ----------
        data
            Sums and products of the rows.
        penalty
            Factors (n_train,) or (n_train, n_targets), for estimators that take them.
        progress
            Called with how many targets are done since the last call.
        """

    def prefers_rows(self, problem: Problem, memory: int) -> bool:
        """Whether `solve_rows` is the way to fit targets of a `problem` that share all rows, within `memory` bytes."""
        return False

    def solve_rows(
        self,
        problem: Problem,
        *,
        own_rows: bool,
        penalty: NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Solution | None:
        """Fit from the rows themselves, where the estimator has such a way; None where it has not.

        Parameters
        ----------
        problem
            The rows.
        own_rows
            Whether each target is fitted on the rows without the training example that it is; the fact ``n_constant`` then says how
            many columns are constant among them.
        penalty, progress
            As in `solve`.
        """
        return None

    def describe(self) -> dict[str, Any]:
        """Name and parameters, for provenance. A prior or an offset is named, not held."""
        said = {one.name: getattr(self, one.name) for one in fields(self)}  # type: ignore[arg-type]
        for key in SCORES:
            said.pop(key, None)
        name = self.name if self.offset is None else f"{self.name} with offset"
        return {"name": name, **said, **{key: describe_scores(one) for key, one in self.scores().items()}}

    def scores(self) -> dict[str, Attribution]:
        """The prior and the offset, where there are."""
        given = {key: getattr(self, key, None) for key in SCORES}
        return {key: one for key, one in given.items() if one is not None}

    def of_targets(self, targets: slice) -> Estimator:
        """The same for some targets: with their part of a prior."""
        return replace(self, **{key: one[targets] for key, one in self.scores().items()})  # type: ignore[type-var]

    def tolerance(self, n_train: int) -> float | None:
        """The relative duality gap that solutions of `n_train` weights are to reach, for estimators that have one."""
        return None

    def warn_gaps(self, solution: Solution) -> None:
        """Warn of targets of a `solution` that missed the tolerance."""
        tol = self.tolerance(len(solution.weights))
        if tol is None:
            return
        gap = solution.facts["gap"]
        late = np.flatnonzero(gap > max(tol, 1e-12) * 1.01)
        if len(late):
            warnings.warn(
                f"{len(late)} of {len(gap)} targets missed the tolerance {tol:g}; the largest relative gap is "
                f"{gap.max():.2g}, at target {int(gap.argmax())} (see target_facts['gap'])",
                ConvergenceWarning,
                stacklevel=5,
            )

    def _refuse_offset(self) -> None:
        if self.offset is not None:
            raise RequestError(
                "an offset is taken off the outputs before they are summed up, and can only be used through fit: here, give "
                "the estimator without offset"
            )


@refusing
@validated(frozen=True, kw_only=True, config=CONFIG)
class Selected(Estimator):
    """Estimators that choose λ per target on held-out rows: a share of them, or folds."""

    n_lambdas: Count = 100
    val_fraction: Fraction | None = None
    folds: Annotated[int, Field(ge=2)] | None = None
    seed: Annotated[int, Field(ge=0)] = 0
    intercept: bool = True
    offset: Attribution | None = field(default=None, repr=False)

    @model_validator(mode="after")
    def _one_way_to_hold_out(self) -> Selected:
        if self.folds is not None and self.val_fraction is not None:
            raise ValueError("give val_fraction or folds, not both")
        return self

    def _draw(self, units: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        self._refuse_offset()
        names = np.unique(units)
        order = np.random.default_rng(self.seed).permutation(names)
        if self.folds is not None:
            if self.folds > len(names):
                raise RequestError(f"{self.folds} folds of {len(names)} independent rows: use fewer folds")
            parts = np.array_split(order, self.folds)
        else:
            fraction = _VAL_FRACTION if self.val_fraction is None else self.val_fraction
            count = round(fraction * len(names))
            if not 1 <= count < len(names):
                raise RequestError(
                    f"val_fraction {fraction} of {len(names)} independent rows leaves {count} to validate on; "
                    "train more models or change val_fraction"
                )
            parts = [order[:count]]
        return [np.isin(units, part) for part in parts]
