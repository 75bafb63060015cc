"""Estimators: statistics of (X, Y) in, weights in raw mask units out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import field, replace
from typing import Annotated, Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator
from pydantic.dataclasses import dataclass as validated

from datamodels.attribution import Attribution
from datamodels.errors import RequestError, refusing
from datamodels.regression.estimator import CONFIG, SCORES, Count, Estimator, Fraction, Selected
from datamodels.regression.kernel import leave_one_out, ridge_kernel
from datamodels.regression.krylov import ridge_out_of_mask
from datamodels.regression.moments import default_tolerance
from datamodels.regression.path import PathFit, fit_path
from datamodels.regression.prior import check_shape, solve_with_prior
from datamodels.regression.problem import Problem
from datamodels.regression.row_path import fit_path_from_rows
from datamodels.regression.rows import PackedRows
from datamodels.regression.solution import Solution
from datamodels.regression.spectral import Spectrum, chosen_fit, ridge_grid, ridge_of_statistics
from datamodels.regression.split_statistics import SplitStatistics
from datamodels.regression.statistics import Statistics, count_dtype, expected_dtype


@refusing
@validated(frozen=True, kw_only=True, config=CONFIG)
class _PathEstimator(Selected):
    """Estimators that walk a λ path by coordinate descent."""

    eps: Fraction = 1e-3
    tol: Annotated[float, Field(gt=0)] | None = None
    prior: Attribution | None = field(default=None, repr=False)
    penalised: ClassVar[bool] = True
    by_target: ClassVar[bool] = True

    @property
    @abstractmethod
    def _ratio(self) -> float:
        """ρ of the elastic net."""

    def splits(self, units: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        return self._draw(units)

    def solve(
        self,
        data: SplitStatistics,
        *,
        penalty: NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Solution:
        def once(factors: NDArray[np.float64] | None) -> Solution:
            return self._solution(fit_path(data, penalty=factors, progress=progress, **self._settings()))

        return self._chosen(once, penalty, data.n_train, data.n_targets)

    def _chosen(
        self,
        solve: Callable[[NDArray[np.float64] | None], Solution],
        penalty: NDArray[np.float64] | None,
        n_train: int,
        n_targets: int,
    ) -> Solution:
        self._refuse_offset()
        if self.prior is None:
            return solve(penalty)
        check_shape(self.prior, n_train, n_targets)
        return solve_with_prior(solve, self.prior, penalty)

    def prefers_rows(self, problem: Problem, memory: int) -> bool:
        tables = 2 if self.folds is None else 2 * self.folds + 1  # folds need the table of all rows beside their own
        if tables * problem.n_train**2 * count_dtype(problem.n_rows).itemsize <= memory:
            return False
        first = next(replace(problem, targets=problem.targets[:0]).chunks())[0]
        return tables * problem.n_train**2 * expected_dtype(first, problem.n_rows).itemsize > memory

    def solve_rows(
        self,
        problem: Problem,
        *,
        own_rows: bool,
        penalty: NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Solution:
        rows = PackedRows.read(problem)

        def once(factors: NDArray[np.float64] | None) -> Solution:
            found = fit_path_from_rows(
                rows, self.splits, own_rows=own_rows, penalty=factors, progress=progress, **self._settings()
            )
            return self._solution(found)

        return self._chosen(once, penalty, problem.n_train, problem.n_targets)

    def _settings(self) -> dict[str, Any]:
        return {
            "n_lambdas": self.n_lambdas,
            "eps": self.eps,
            "l1_ratio": self._ratio,
            "tol": self.tol,
            "intercept": self.intercept,
        }

    def _solution(self, found: PathFit) -> Solution:
        facts = {
            "lam": found.lam,
            "n_nonzero": found.n_nonzero,
            "n_constant": found.n_constant,
            "gap": found.gap,
            "val_r2": found.val_r2,
            "path_lam": found.lams,
            "path_val_error": found.errors,
            "path_n_nonzero": found.path_n_nonzero,
        }
        solution = Solution(found.weights, found.bias, facts)
        self.warn_gaps(solution)
        return solution

    def tolerance(self, n_train: int) -> float:
        return default_tolerance(n_train) if self.tol is None else self.tol


@refusing
@validated(frozen=True, kw_only=True, config=CONFIG)
class Lasso(_PathEstimator):
    """Lasso, the estimator of Ilyas et al. 2022 (arXiv:2202.00622), by coordinate descent.

    Minimises ``1/(2m) ‖y - b - Zw‖² + λ ‖w‖₁`` over standardised columns Z. λ is chosen per target on
    held-out rows; then the target is refitted on all rows (Friedman, Hastie & Tibshirani 2010).

    Parameters
    ----------
    n_lambdas, eps
        The grid: ``n_lambdas`` values from λ_max down to ``eps * λ_max``, geometric.
    val_fraction, folds, seed
        Held-out rows, drawn by ``seed``: a share of them (.15 by default), or ``folds`` folds.
    tol
        Relative duality gap of the refit; by default 1e-8 (float64, up to 2,048 examples) or 1e-5.
    intercept
        Without, b = 0 and nothing is centred.
    prior
        An attribution of the same examples to the same targets, TRAK say, that says what is likely to matter: examples
        with large scores are penalised less (see `prior.prior_factors`). How much less is chosen per target on
        the held-out rows, not at all being one of the choices. It may not have used any of the rows that are fitted.
    offset
        An attribution of the same examples to the same targets that has not used the rows that are fitted, TRAK say. Outputs are
        regressed on its predictions, with slopes that are shrunk over targets (see `calibration.calibrate`); what it misses is
        fitted as usual, and slope times scores are added to the weights. The fit without offset is made too, and the held-out rows
        choose between the two per target. ``target_facts["offset_slope"]`` says how far the offset was followed: 0 where it was
        not taken. ``val_r2`` is of the outputs; other facts, and penalty factors, are those of what was fitted. Goes with `prior`.
    """

    name: ClassVar[str] = "lasso"

    @property
    def _ratio(self) -> float:
        return 1.0


@refusing
@validated(frozen=True, kw_only=True, config=CONFIG)
class ElasticNet(_PathEstimator):
    """Elastic net: like `Lasso`, with penalty ``λ (ρ ‖w‖₁ + (1 - ρ)/2 ‖w‖²)`` (Zou & Hastie 2005).

    Parameters
    ----------
    l1_ratio
        ρ, in (0, 1]. One λ scales both penalties, so results depend on the units of y.
    n_lambdas, eps, val_fraction, folds, seed, tol, intercept, prior, offset
        As in `Lasso`.
    """

    name: ClassVar[str] = "elasticnet"
    l1_ratio: Annotated[float, Field(gt=0, le=1)] = 0.5

    @property
    def _ratio(self) -> float:
        return self.l1_ratio


@refusing
@validated(frozen=True, kw_only=True, config=CONFIG)
class Ridge(Selected):
    """Ridge regression: one eigendecomposition, all λ, all targets.

    Of the n x n matrix, or of the m x m matrix when there are fewer rows. Targets that are training examples
    have rows of their own and are solved to a stated residual (see `krylov.ridge_out_of_mask`).

    Minimises ``1/(2m) ‖y - b - Zw‖² + λ/2 ‖w‖²``. λ per target, geometric over [1e-4, 10] times the
    largest eigenvalue of ZᵀZ/m.

    Parameters
    ----------
    selection
        ``held_out``: by error on held-out rows, like the lasso. ``gcv``: generalised
        cross-validation on all rows, which needs none (Golub, Heath & Wahba 1979). ``loo``: exact
        leave-one-out by a second pass over the rows, at the scale of all rows (see `kernel.leave_one_out`).
    n_lambdas
        Size of the grid.
    val_fraction, folds, seed, intercept
        As in `Lasso`.
    offset
        As in `Lasso`; with ``gcv`` and ``loo``, which hold no rows out, it is always kept.
    """

    name: ClassVar[str] = "ridge"
    n_lambdas: Count = 30
    selection: Literal["held_out", "gcv", "loo"] = "held_out"

    @model_validator(mode="after")
    def _gcv_holds_nothing_out(self) -> Ridge:
        if self.selection != "held_out" and (self.folds is not None or self.val_fraction is not None):
            raise ValueError(f"selection {self.selection!r} holds no rows out: leave out val_fraction and folds")
        return self

    def splits(self, units: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        self._refuse_offset()
        return self._draw(units) if self.selection == "held_out" else []

    def solve(
        self,
        data: SplitStatistics,
        *,
        penalty: NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Solution:
        self._refuse_offset()
        if self.selection == "loo":
            raise RequestError("selection 'loo' needs the rows themselves, which statistics do not hold: use fit")
        solution = ridge_of_statistics(data, self.n_lambdas, intercept=self.intercept)
        if progress:
            progress(data.n_targets)
        return solution

    def prefers_rows(self, problem: Problem, memory: int) -> bool:
        return problem.n_rows < problem.n_train or self.selection == "loo"

    def solve_rows(
        self,
        problem: Problem,
        *,
        own_rows: bool,
        penalty: NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Solution | None:
        self._refuse_offset()
        settings: dict[str, Any] = {"n_lambdas": self.n_lambdas, "intercept": self.intercept}
        if own_rows:
            if self.selection == "loo":
                raise RequestError("selection 'loo' is not for targets that are training examples: use 'held_out'")
            return ridge_out_of_mask(problem, self.splits, progress=progress, **settings)
        if problem.n_rows < problem.n_train:
            solution = ridge_kernel(problem, self.splits, leave_out=self.selection == "loo", **settings)
        else:
            spectrum = Spectrum.of(Statistics.of(problem), intercept=self.intercept)
            lams = ridge_grid(spectrum, self.n_lambdas)
            solution = chosen_fit(spectrum, leave_one_out(problem, spectrum, lams), lams, "path_loo")
        if progress:
            progress(problem.n_targets)
        return solution


@refusing
@validated(frozen=True, kw_only=True, config=CONFIG)
class LeastSquares(Estimator):
    """Ordinary least squares; the solution of smallest norm when it is not unique.

    Minimises ``‖y - b - Xw‖²``. With an offset it is the solution nearest to what the offset says.

    Parameters
    ----------
    intercept
        As in `Lasso`.
    offset
        As in `Lasso`; it is always kept.
    """

    name: ClassVar[str] = "ols"
    intercept: bool = True
    offset: Attribution | None = field(default=None, repr=False)

    def splits(self, units: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        self._refuse_offset()
        return []

    def solve(
        self,
        data: SplitStatistics,
        *,
        penalty: NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Solution:
        self._refuse_offset()
        total = data.total
        spectrum = Spectrum.of(total, intercept=self.intercept)
        weights, bias = spectrum.problem.to_raw(spectrum.least_squares())
        if progress:
            progress(total.n_targets)
        return Solution(weights, bias)


@refusing
@validated(frozen=True, kw_only=True, config=CONFIG)
class DifferenceInMeans(Estimator):
    """``E[y | j in] - E[y | j out]`` (Feldman & Zhang 2020, arXiv:2008.03703).

    For ``bernoulli`` designs at alpha = ½ this is the maximum-sample-reuse estimate of the Banzhaf value
    (Wang & Jia 2023, arXiv:2205.15466). A target that is train example j is not treated apart: its
    j-th weight is its memorisation.
    """

    name: ClassVar[str] = "difference"
    out_of_mask: ClassVar[bool] = False

    def splits(self, units: NDArray[np.int64]) -> list[NDArray[np.bool_]]:
        return []

    def solve(
        self,
        data: SplitStatistics,
        *,
        penalty: NDArray[np.float64] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Solution:
        total = data.total
        inside, outside = total.sum_x[:, None], (total.count - total.sum_x)[:, None]
        both = (inside > 0) & (outside > 0)
        mean_in = np.divide(total.xty, inside, out=np.zeros_like(total.xty), where=both)
        mean_out = np.divide(total.sum_y - total.xty, outside, out=np.zeros_like(total.xty), where=both)
        weights = mean_in - mean_out
        mean = total.sum_x / total.count
        if progress:
            progress(total.n_targets)
        return Solution(weights, total.shift + total.sum_y / total.count - mean @ weights)


ESTIMATORS: dict[str, type[Estimator]] = {
    kind.name: kind for kind in (Lasso, Ridge, ElasticNet, LeastSquares, DifferenceInMeans)
}


def from_description(description: Mapping[str, Any]) -> Estimator:
    """The estimator that `Estimator.describe` described."""
    options = {key: value for key, value in description.items() if key != "name"}
    for key in SCORES:
        if key in options:
            raise RequestError(
                f"the estimator had a{'n' if key == 'offset' else ''} {key}, which its description does not hold: give the "
                "estimator itself"
            )
    if description.get("name") not in ESTIMATORS:
        raise RequestError(f"estimator {description.get('name')!r} is unknown; legal: {', '.join(ESTIMATORS)}")
    return ESTIMATORS[description["name"]](**options)
