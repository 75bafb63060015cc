"""LDS against the number of models, and an estimate of how many more would be needed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.evaluation.lds import LDS, score
from datamodels.files import replacing
from datamodels.progress import Progress
from datamodels.regression.estimator import Estimator
from datamodels.regression.fit import fit_problem, resolve
from datamodels.regression.problem import Problem
from datamodels.regression.used import used_rows, without


@dataclass(frozen=True, eq=False)
class Curve:
    """LDS at growing numbers of models, all on the same held-out rows.

    The extrapolation assumes ``1 / LDS² = a + c / m``: the error of the weights shrinks like 1/m and
    attenuates the correlation. It is an estimate; its interval only holds if that form does.

    Attributes
    ----------
    sizes
        (k,) numbers of models, ascending.
    scores
        One `LDS` per size.
    """

    sizes: NDArray[np.int64]
    scores: tuple[LDS, ...]

    @property
    def lds(self) -> NDArray[np.float64]:
        """The LDS at each size, (k,)."""
        return np.array([score.lds for score in self.scores])

    @property
    def asymptote(self) -> float | None:
        """Estimated LDS with unlimited models; None when fewer than two sizes say anything."""
        parameters = extrapolate(self.sizes, self.lds)
        return None if parameters is None else float(parameters[0] ** -0.5)

    def at(self, n_models: float) -> float | None:
        """Estimated LDS with `n_models` models; None when fewer than two sizes say anything."""
        parameters = extrapolate(self.sizes, self.lds)
        return None if parameters is None else float((parameters[0] + parameters[1] / n_models) ** -0.5)

    def gain_interval(self, n_models: float) -> tuple[float, float] | None:
        """Bootstrap interval of how much the LDS would still rise from the last size to `n_models`; None when
        fewer than two sizes say anything."""
        draws = np.stack([score.bootstrap for score in self.scores], axis=1)
        gains = []
        for draw in draws:
            parameters = extrapolate(self.sizes, draw)
            if parameters is not None:
                gains.append((parameters[0] + parameters[1] / n_models) ** -0.5 - draw[-1])
        if not gains:
            return None
        tail = (1 - self.scores[0].confidence) / 2
        low, high = np.quantile(gains, [tail, 1 - tail])
        return float(low), float(high)

    def models_for(self, wanted: float) -> float | None:
        """Estimated number of models at which the LDS reaches `wanted`; None when it never would.

        Raises
        ------
        RequestError
            when `wanted` is not between 0 and 1.
        """
        return _models_for(extrapolate(self.sizes, self.lds), wanted)

    def models_for_interval(self, wanted: float) -> tuple[float | None, float | None]:
        """Bootstrap interval of `models_for` a `wanted` LDS; an end is None where it never would.

        Raises
        ------
        RequestError
            when `wanted` is not between 0 and 1.
        """
        if not 0 < wanted < 1:
            raise RequestError(f"the wanted LDS is {wanted}; it must be between 0 and 1")
        draws = np.stack([score.bootstrap for score in self.scores], axis=1)
        needs = [_models_for(extrapolate(self.sizes, draw), wanted) for draw in draws]
        numbers = np.array([np.inf if need is None else need for need in needs])
        tail = (1 - self.scores[0].confidence) / 2
        low, high = np.quantile(numbers, [tail, 1 - tail], method="nearest")
        return tuple(None if np.isinf(end) else float(end) for end in (low, high))  # type: ignore[return-value]

    def to_dict(self) -> dict[str, Any]:
        """The scores by size, and the asymptote, JSON-ready."""
        points = [{"models": int(m), **s.to_dict()} for m, s in zip(self.sizes, self.scores, strict=True)]
        return {"points": points, "asymptote": self.asymptote}


def extrapolate(sizes: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[float, float] | None:
    """Least squares for a ≥ 1 and c ≥ 0 in ``1 / LDS² = a + c / m``, weighted so that errors of the
    LDS itself count equally. Sizes whose LDS is not positive say nothing and are left out; None when
    fewer than two are left."""
    use = values > 0.01
    if use.sum() < 2:
        return None
    x, y, weight = 1.0 / sizes[use], values[use] ** -2.0, values[use] ** 3.0
    c, a = np.polyfit(x, y, 1, w=weight)
    if a < 1:
        a, c = 1.0, float((weight**2 * x * (y - 1)).sum() / (weight**2 * x**2).sum())
    if c < 0:
        a, c = float((weight**2 * y).sum() / (weight**2).sum()), 0.0
    return float(a), float(c)


def _models_for(parameters: tuple[float, float] | None, wanted: float) -> float | None:
    if not 0 < wanted < 1:
        raise RequestError(f"the wanted LDS is {wanted}; it must be between 0 and 1")
    if parameters is None:
        return None
    a, c = parameters
    room = wanted**-2.0 - a
    return c / room if room > 0 else None


def curve(
    source: Any = None,
    estimator: Estimator | str | None = None,
    *,
    sizes: Sequence[int] | None = None,
    held_out: float = 0.15,
    test: Any = None,
    seed: int = 0,
    draws: int = 1000,
    fitted: Attribution | None = None,
    progress: bool = True,
    **where: Any,
) -> Curve:
    """Fit on nested subsets of rows, judge each on the same held-out rows.

    Parameters
    ----------
    source, estimator, **where
        As in `datamodels.fit` (``masks``, ``outputs``, ``masks_key``, ``outputs_key``, ``rows``, ``targets``,
        ``targets_are_train``).
    sizes
        Numbers of models; by default four, halving from all that are not held out.
    held_out, seed
        Share of design units that is held out, drawn by seed.
    test
        A store whose rows are held out instead; then every row of `source` may be fitted. Rows that a prior or an offset of the
        estimator has used are judged on in neither case.
    fitted
        What this estimator made of all rows that are not held out, where it is known: then it is not fitted again.
    draws
        Of the bootstrap intervals.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when sizes or shares leave too few rows, or the test store is no other one.
    """
    if not 0 < held_out < 1:
        raise RequestError(f"held_out is {held_out}; it must be between 0 and 1")
    problem = Problem.build(source, **where)
    if test is None:
        units = np.unique(problem.units)
        drawn = np.random.default_rng(seed).permutation(units)[: max(1, round(held_out * len(units)))]
        out = np.isin(problem.units, drawn)
        training, testing = problem.take(~out), problem.take(out)
    else:
        keys = {name: value for name, value in where.items() if name not in ("rows", "masks", "outputs")}
        training, testing = problem, Problem.build(test, **keys)
        shared = {part.identity for part in training.sources} & {part.identity for part in testing.sources}
        if shared:
            raise RequestError("the test store has the same design as the store that is fitted: its models are not new")
    chosen = resolve(estimator)
    before = [entry for scores in chosen.scores().values() for entry in scores.provenance.get("sources", [])]
    testing = without(testing, used_rows(testing, before))
    if testing.n_rows < 3:
        raise RequestError(f"only {testing.n_rows} rows are held out; hold out more or train more models")
    numbers = _sizes(sizes, training.n_rows)
    scores = []
    with Progress("curve", len(numbers), "fits", show=progress) as bar:
        for size in numbers:
            if fitted is not None and size == training.n_rows:
                attribution = fitted
            else:
                attribution = fit_problem(training.take(np.arange(size)), chosen, progress=False)
            scores.append(score(attribution, testing, draws=draws, confidence=0.95, seed=seed))
            bar.advance()
    return Curve(numbers, tuple(scores))


def _sizes(sizes: Sequence[int] | None, available: int) -> NDArray[np.int64]:
    if sizes is None:
        sizes = sorted({available // 2**k for k in range(4) if available // 2**k >= 20})
    numbers = np.unique(np.asarray(sizes, dtype=np.int64))
    if not len(numbers) or numbers[0] < 2 or numbers[-1] > available:
        raise RequestError(
            f"sizes are {list(sizes)}; they must be between 2 and the {available} rows that are not held out"
        )
    return numbers


def save_plot(result: Curve, path: str | Path, *, ceiling: float | None = None) -> Path:
    """Draw a curve with its intervals and its extrapolation to a PNG, SVG or PDF file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5, 3.4), layout="constrained")
    axes = figure.add_subplot()
    lows, highs = zip(*(score.lds_ci for score in result.scores), strict=True)
    axes.fill_between(result.sizes, lows, highs, alpha=0.2, linewidth=0)
    axes.plot(result.sizes, result.lds, "o-", label="measured, 95 % interval")
    if result.asymptote is not None:
        ahead = np.geomspace(result.sizes[-1], 4 * result.sizes[-1], 30)
        axes.plot(ahead, np.array([result.at(m) for m in ahead], dtype=float), "--", color="grey", label="estimate")
    if ceiling is not None:
        axes.axhline(ceiling, color="black", linewidth=0.8, label="noise ceiling")
    axes.set(xlabel="models", ylabel="LDS", xscale="log")
    axes.legend(frameon=False)
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return path
