"""What a pilot finds: settings, their measures, and which of them to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.files import replacing

_DRAWS = 1000


_TAIL = 0.025


@dataclass(frozen=True)
class Setting:
    """What a few models say about one recipe at one alpha.

    Attributes
    ----------
    recipe, alpha
        Name of the recipe, and share of the training set per model.
    models
        Models that were trained.
    accuracy, accuracy_se
        Share of test examples that are right, mean over models, and its standard error over masks.
    signal, noise
        Variance of a test margin that the subset causes, and variance between seeds on one subset: means over test
        examples of the estimates of a one-way analysis of variance.
    reliability, reliability_ci
        signal / (signal + noise), and its 95 % bootstrap interval over masks.
    seconds_per_model
        Of one worker that is warm.
    models_per_hour
        Of all workers together.
    """

    recipe: str
    alpha: float
    models: int
    accuracy: float
    accuracy_se: float
    signal: float
    noise: float
    reliability: float
    reliability_ci: tuple[float, float]
    seconds_per_model: float
    models_per_hour: float

    def __str__(self) -> str:
        return f"{self.recipe} at alpha {self.alpha:g}"

    @property
    def snr(self) -> float:
        """signal / noise; infinite when seeds make no difference."""
        return self.signal / self.noise if self.noise > 0 else float("inf") if self.signal > 0 else 0.0

    @property
    def evidence(self) -> float:
        """reliability x models per hour: how fast squared t-statistics of weights grow."""
        return self.reliability * self.models_per_hour

    @property
    def evidence_ci(self) -> tuple[float, float]:
        """The interval of `evidence` that the one of the reliability gives; the time is taken as known."""
        low, high = self.reliability_ci
        return low * self.models_per_hour, high * self.models_per_hour

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        facts = asdict(self) | {"snr": self.snr, "evidence": self.evidence}
        return facts | {"reliability_ci": list(self.reliability_ci), "evidence_ci": list(self.evidence_ci)}


@dataclass(frozen=True)
class Pilot:
    """The settings of a pilot, and which one to take.

    Attributes
    ----------
    settings
        All that were tried, by recipe and alpha.
    best
        The one to take, or None when nothing can be recommended.
    reasons
        Why, in sentences.
    chance
        Accuracy of always naming the largest class of the test split.
    masks, replicates, seed, jobs
        What it rests on.
    """

    settings: tuple[Setting, ...]
    best: Setting | None
    reasons: list[str]
    chance: float
    masks: int
    replicates: int
    seed: int
    jobs: int

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready; ``best`` has the recipe's name and alpha."""
        names = ("reasons", "chance", "masks", "replicates", "seed", "jobs")
        return {
            "settings": [setting.to_dict() for setting in self.settings],
            "best": None if self.best is None else {"recipe": self.best.recipe, "alpha": self.best.alpha},
            **{name: getattr(self, name) for name in names},
        }

    def table(self) -> Any:
        """The settings as a `rich.table.Table`; the best is marked."""
        from rich import box
        from rich.table import Table

        out = Table(
            box=box.SIMPLE_HEAD, title=f"{self.masks} masks x {self.replicates} models each, {self.jobs} workers"
        )
        for name in ("", "recipe", "alpha", "accuracy", "signal/noise", "reliability (95 %)", "s/model", "models/h"):
            out.add_column(name, justify="left" if name in ("", "recipe") else "right", no_wrap=True)
        for one in self.settings:
            low, high = one.reliability_ci
            out.add_row(
                "*" if one == self.best else "",
                one.recipe,
                f"{one.alpha:g}",
                f"{one.accuracy:.3f} ± {one.accuracy_se:.3f}",
                f"{one.snr:.3g}",
                f"{one.reliability:.3f} ({low:.3f} to {high:.3f})",
                f"{one.seconds_per_model:.3g}",
                _rounded(one.models_per_hour),
            )
        return out


@dataclass(frozen=True)
class Variances:
    """Parts of the variance of outputs, see `variances`.

    Attributes
    ----------
    signal, noise
        What the subset causes, and what the seed does.
    reliability, reliability_ci
        signal / (signal + noise), and its 95 % bootstrap interval over masks.
    """

    signal: float
    noise: float
    reliability: float
    reliability_ci: tuple[float, float]


def variances(outputs: NDArray[Any], *, seed: int = 0) -> Variances:
    """Variance between masks and between seeds, by a one-way random-effects analysis of variance per target.

    Parameters
    ----------
    outputs
        (masks, replicates, targets).
    seed
        Of the bootstrap over masks.

    Returns
    -------
    Variances
        ``noise`` is the mean over targets of MS_within, ``signal`` that of (MS_between - MS_within) / replicates. The
        mean is set to 0 when it is negative, and not the single terms, which would make signal out of noise.

    Raises
    ------
    RequestError
        when there are fewer than three masks, two replicates or one target.

    Notes
    -----
    A resample of a masks has (a - 1) / a of the variance between them; the interval corrects for that.
    """
    y = np.asarray(outputs, dtype=np.float64)
    if y.ndim != 3 or y.shape[0] < 3 or y.shape[1] < 2 or not y.shape[2]:
        raise RequestError(
            f"outputs have shape {y.shape}; they must be (3 masks or more, 2 replicates or more, targets)"
        )
    a, r, t = y.shape
    means = y.mean(axis=1) - y.mean(axis=(0, 1))
    products = means @ means.T / t
    within = y.var(axis=1, ddof=1).mean(axis=1)

    def parts(counts: NDArray[Any]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Signal and noise of masks that stand `counts` (draws, a) times each, (draws,) each."""
        squares = counts @ products.diagonal() - ((counts @ products) * counts).sum(axis=1) / a
        noise = counts @ within / a
        return squares / (a - 1), noise

    between, noise = parts(np.ones((1, a)))
    signal = np.maximum(between - noise / r, 0.0)
    counts = np.random.default_rng(seed).multinomial(a, np.full(a, 1 / a), size=_DRAWS)
    drawn_between, drawn_noise = parts(counts)
    drawn_signal = np.maximum(drawn_between * a / (a - 1) - drawn_noise / r, 0.0)
    low, high = np.quantile(_share(drawn_signal, drawn_noise), [_TAIL, 1 - _TAIL])
    share = float(_share(signal, noise)[0])
    return Variances(float(signal[0]), float(noise[0]), share, (float(low), float(high)))


def _share(signal: NDArray[np.float64], noise: NDArray[np.float64]) -> NDArray[np.float64]:
    total = signal + noise
    return np.divide(signal, total, out=np.zeros_like(total), where=total > 0)


def recommend(settings: Sequence[Setting], chance: float) -> tuple[Setting | None, list[str]]:
    """The setting to take, or None, and the reasons in sentences."""
    most = max(settings, key=lambda one: one.accuracy)
    if most.accuracy - 2 * most.accuracy_se <= chance:
        return None, [
            f"No setting is surely better than always naming the largest class ({chance:.3f}): the best is {most} with "
            f"accuracy {most.accuracy:.3f} ± {most.accuracy_se:.3f}. Mend the recipe first, or raise alpha."
        ]
    bar = (chance + most.accuracy) / 2
    good = sorted((one for one in settings if one.accuracy >= bar), key=lambda one: -one.evidence)
    best = good[0]
    if not best.evidence:
        return None, [
            "Models on different subsets differ no more than models of different seeds, as far as this pilot can tell: "
            "take more masks."
        ]
    low, high = best.reliability_ci
    reasons = [
        f"Take {best}. A share of {best.reliability:.3f} ({low:.3f} to {high:.3f}) of the variance of its outputs comes "
        f"from the subset, and {_rounded(best.models_per_hour)} models are trained per hour. The models needed go with 1 / "
        "that share, so the product of the two counts, and here it is largest."
    ]
    if low == 0:
        reasons.append("The interval of that share reaches 0: take more masks before you trust it.")
    reasons += _against_next(good)
    first = {one.recipe: one for one in reversed(good)}
    others = [str(one) for name, one in first.items() if name != best.recipe]
    if others:
        reasons.append(f"Of the other recipes alone, take {'; '.join(others)}.")
    poor = [str(one) for one in settings if one.accuracy < bar]
    if poor:
        reasons.append(
            f"Left out, since their accuracy is less than halfway ({bar:.3f}) from chance ({chance:.3f}) to the best "
            f"({most.accuracy:.3f}, {most}): {', '.join(poor)}."
        )
    reasons.append(
        "The purpose counts too: weights of another alpha or recipe answer another question. A small alpha, about 0.1, suits "
        "embeddings and hidden subgroups; alpha 0.5 suits the prediction of outputs. The product says how soon weights "
        "are certain, not what they are good for."
    )
    return best, reasons


def _rounded(rate: float) -> str:
    """Three digits of a rate, which is not known better."""
    return f"{float(f'{rate:.3g}'):,.0f}"


def _against_next(good: Sequence[Setting]) -> list[str]:
    """How the best setting compares with the next one, if there is one."""
    if len(good) < 2:
        return []
    best, second = good[:2]
    text = f"Next is {second} with {second.evidence / best.evidence:.0%} of that product"
    if second.evidence_ci[1] >= best.evidence_ci[0]:
        return [f"{text}; their 95 % intervals overlap: the difference may be within the error."]
    return [f"{text}; their 95 % intervals do not overlap."]


def save_plot(result: Pilot, path: str | Path) -> Path:
    """Draw accuracy and reliability against alpha, one line per recipe, to a PNG, SVG or PDF file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 3.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name in dict.fromkeys(one.recipe for one in result.settings):
        mine = [one for one in result.settings if one.recipe == name]
        alphas = [one.alpha for one in mine]
        left.errorbar(alphas, [one.accuracy for one in mine], [one.accuracy_se for one in mine], fmt="o-", label=name)
        right.plot(alphas, [one.reliability for one in mine], "o-", label=name)
        right.fill_between(alphas, *zip(*(one.reliability_ci for one in mine), strict=True), alpha=0.2, linewidth=0)
    left.axhline(result.chance, color="black", linewidth=0.8, label="chance")
    left.set(xlabel="alpha", ylabel="accuracy ± standard error")
    right.set(xlabel="alpha", ylabel="reliability, 95 % interval", ylim=(0, None))
    left.legend(frameon=False)
    path = Path(path)
    with replacing(path) as temporary:
        figure.savefig(temporary, dpi=150)
    return path
