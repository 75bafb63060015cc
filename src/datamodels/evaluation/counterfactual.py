"""Remove or add the examples that an attribution names, retrain, and compare what changes with its prediction.

See `datamodels.evaluation.retraining` for how models are trained and what intervals are over.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.evaluation.ranks import resampled_spearman, unit_counts
from datamodels.evaluation.retraining import (
    Estimate,
    Mode,
    base_mask,
    check_methods,
    check_runs,
    columns_of,
    flipped,
    retrain,
    size_of,
)
from datamodels.regression.calibration import check_finite, is_calibrated, output_key, positions_of, removal
from datamodels.training.ensemble import TrainRecipe

Which = Literal["helpful", "harmful"]


class Change(NamedTuple):
    """What one removal (or addition) was predicted to do to a target, and what it did. In units of the output.

    Attributes
    ----------
    method, target
        Whose choice of examples it is; the column of the attribution, or None for the mean over all of them.
    k
        Examples that were removed or added.
    base
        Mean output of the models trained on the untouched base.
    predicted
        Change of the output that the attribution predicts.
    actual
        Change against the base.
    random
        The change when as many random examples are removed or added.
    beyond_random
        actual - random.
    predicted_low, predicted_high
        Interval of the prediction, where the attribution is calibrated (see `datamodels.regression.calibration.removal`) and the
        change is of one target. It covers the noise of the measured change where the calibration knows it. None otherwise.
    """

    method: str
    target: int | None
    k: int
    base: float
    predicted: float
    actual: Estimate
    random: Estimate
    beyond_random: Estimate
    predicted_low: float | None = None
    predicted_high: float | None = None


class Agreement(NamedTuple):
    """Predicted against actual changes over targets.

    Attributes
    ----------
    pearson, spearman
        Correlations. Noise of the training runs is in them: more replicates raise them.
    low, high
        Bootstrap interval over targets of the Spearman correlation.
    slope
        Least squares of actual on predicted changes, through the origin: 1 where predictions are of the right size, 0 where
        they are all 0.
    """

    pearson: float
    spearman: float
    low: float
    high: float
    slope: float


@dataclass(frozen=True, eq=False)
class Counterfactual:
    """Predicted against actual changes.

    Attributes
    ----------
    changes
        One `Change` per method and target.
    mode, which, output, replicates, confidence
        What was done, as in `counterfactual`.
    """

    changes: tuple[Change, ...]
    mode: Mode
    which: Which
    output: str
    replicates: int
    confidence: float

    @property
    def methods(self) -> list[str]:
        """Names of the attributions, in the order given."""
        return list(dict.fromkeys(change.method for change in self.changes))

    def of(self, method: str) -> list[Change]:
        """The changes of one method, by target.

        Raises
        ------
        RequestError
            when there is no such method.
        """
        found = [change for change in self.changes if change.method == method]
        if not found:
            raise RequestError(f"method {method!r} is unknown; legal: {', '.join(self.methods)}")
        return found

    def agreement(self, method: str, *, draws: int = 1000, seed: int = 0) -> Agreement:
        """How well predicted changes of a method order the actual ones; its interval is of so many bootstrap `draws` by `seed`.

        Raises
        ------
        RequestError
            when there is no such method, or fewer than three targets were changed.
        """
        mine = self.of(method)
        if len(mine) < 3:
            raise RequestError(f"{len(mine)} targets were changed; a correlation over targets needs 3 or more")
        predicted = np.array([change.predicted for change in mine])
        actual = np.array([change.actual.value for change in mine])
        counts = unit_counts(np.arange(len(mine)), draws, seed)
        found = resampled_spearman(actual[:, None], predicted[:, None], counts)[:, 0]
        tail = (1 - self.confidence) / 2
        low, high = np.nanquantile(found[1:], [tail, 1 - tail])
        varies = predicted.std() > 0 and actual.std() > 0
        pearson = float(np.corrcoef(predicted, actual)[0, 1]) if varies else 0.0
        slope = float(predicted @ actual / (predicted @ predicted)) if predicted.any() else 0.0
        return Agreement(pearson, float(found[0]), float(low), float(high), slope)

    def table(self) -> list[dict[str, Any]]:
        """One row per method and target: the fields of `Change`, each estimate as three numbers."""
        return [
            {
                "method": change.method,
                "target": change.target,
                "k": change.k,
                "base": change.base,
                "predicted": change.predicted,
                "predicted_low": change.predicted_low,
                "predicted_high": change.predicted_high,
                **change.actual.named("actual"),
                **change.random.named("random"),
                **change.beyond_random.named("beyond_random"),
            }
            for change in self.changes
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        names = ("mode", "which", "output", "replicates", "confidence")
        return {**{name: getattr(self, name) for name in names}, "changes": self.table()}


def counterfactual(
    task: TrainRecipe,
    attributions: Attribution | Mapping[str, Attribution],
    *,
    targets: Sequence[int] | NDArray[np.int64] | Literal["all"] = "all",
    k: int | None = None,
    share: float | None = None,
    mode: Mode = "remove",
    which: Which = "helpful",
    replicates: int = 5,
    base: ArrayLike | None = None,
    output: str | None = None,
    folder: str | Path,
    seed: int = 0,
    jobs: int | None = None,
    executor: str = "local",
    confidence: float = 0.95,
    progress: bool = True,
) -> Counterfactual:
    """Remove (or add) the examples that each attribution names for a target, retrain, and compare with its prediction.

    Trains ``replicates * (2 + methods * targets)`` models: on the untouched base, on the base without k random examples (another
    draw each), and per method and target on the base without those k.

    Parameters
    ----------
    task
        How models are trained.
    attributions
        One, or name -> attribution, all of the same targets.
    targets
        (t,) columns of the attributions, each changed by itself; or ``all``: one change, chosen by the mean weight over all
        targets and measured on their mean output.
    k, share
        How many examples, or which share of those that can be removed (or added). One of the two.
    mode
        ``remove`` from the base, or ``add`` to the base some of what it leaves out.
    which
        ``helpful``: the examples of largest weight; ``harmful``: those of smallest. Always k, ties in random order, so that
        all methods and the random choice are of equal size.
    replicates
        Runs of each, 2 or more.
    base
        bool (n_train,); by default all examples.
    output
        Key of the output that the attributions are of ("margins", "train_margins"); by default what they say, else margins.
    folder
        Of the store that the models go to; called again with the same arguments, only missing ones are trained.
    seed
        Of random choices and of training.
    jobs, executor
        Where models are trained, as in `datamodels.train`.
    confidence
        Of all intervals.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when sizes, targets or the base do not go together, weights are not finite, or the folder holds something else.
    """
    methods = {"attribution": attributions} if isinstance(attributions, Attribution) else dict(attributions)
    check_methods(methods)
    if mode not in get_args(Mode) or which not in get_args(Which):
        raise RequestError(f"mode is {mode!r} and which {which!r}; legal: remove, add, and helpful, harmful")
    check_runs(replicates, confidence)
    first = next(iter(methods.values()))
    start = base_mask(task.n_train, base)
    if any(one.weights.shape != first.weights.shape for one in methods.values()) or first.n_train != task.n_train:
        shapes = {name: one.weights.shape for name, one in methods.items()}
        raise RequestError(
            f"attributions have (n_train, n_targets) {shapes}; the task has {task.n_train} train examples"
        )
    candidates = start if mode == "remove" else ~start
    count = size_of(k, share, int(candidates.sum()), mode)
    for label, one in methods.items():
        check_finite(one, f"attribution {label!r}")
    key = output or output_key(first)
    positions = _positions(methods)
    everything = isinstance(targets, str) and targets == "all"
    columns = [None] if everything else columns_of(targets, first.n_targets).tolist()
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(np.flatnonzero(candidates))
    chosen, predicted = [], []
    for one in methods.values():
        for column in columns:
            weights = one.weights.mean(axis=1, dtype=np.float64) if column is None else one.weights[:, column]
            members = order[np.argsort(-weights[order] if which == "helpful" else weights[order], kind="stable")][
                :count
            ]
            chosen.append(members)
            change = float(weights[members].sum(dtype=np.float64)) * (1 if mode == "add" else -1)
            predicted.append((change, *_interval(one, column, members, mode, replicates, confidence)))
    flips = [np.empty(0, np.int64)] * replicates
    flips += [rng.permutation(order)[:count] for _ in range(replicates)]
    flips += [members for members in chosen for _ in range(replicates)]
    split: Literal["test", "train"] = "train" if key.startswith("train_") else "test"
    name = key.removeprefix("train_")
    found = retrain(
        task, flipped(start, flips), outputs=(name,), folder=folder, split=split, seed=seed, jobs=jobs,
        executor=executor, progress=progress,
    )[name]  # fmt: skip
    flat = found.reshape(len(found), -1).astype(np.float64)
    if positions.max(initial=-1) >= flat.shape[1]:
        raise RequestError(
            f"the attributions have targets up to {positions.max()}; {key!r} has {flat.shape[1]} of them"
        )
    values = flat[:, positions].reshape(-1, replicates, len(positions))
    changes = []
    pairs = [(method, column) for method in methods for column in columns]
    for number, (method, column) in enumerate(pairs):
        runs = values.mean(axis=2) if column is None else values[:, :, column]
        untouched, at_random, mine = runs[0], runs[1], runs[2 + number]
        changes.append(
            Change(
                method,
                column,
                count,
                float(untouched.mean()),
                predicted[number][0],
                Estimate.difference(mine, untouched, confidence),
                Estimate.difference(at_random, untouched, confidence),
                Estimate.difference(mine, at_random, confidence),
                *predicted[number][1:],
            )
        )
    return Counterfactual(tuple(changes), mode, which, key, replicates, confidence)


def _positions(methods: Mapping[str, Attribution]) -> NDArray[np.int64]:
    """Which outputs the targets are, (n_targets,)."""
    found = {name: positions_of(one, f"attribution {name!r}") for name, one in methods.items()}
    stated = [found[name] for name, one in methods.items() if "target" in one.target_facts]
    if any(not np.array_equal(stated[0], other) for other in stated[1:]):
        raise RequestError("the attributions are of other targets; choose common ones with attribution[targets]")
    return stated[0] if stated else next(iter(found.values()))


def _interval(
    attribution: Attribution,
    column: int | None,
    members: NDArray[np.int64],
    mode: Mode,
    replicates: int,
    confidence: float,
) -> tuple[float, float] | tuple[None, None]:
    """Of the predicted change of one target, where the attribution is calibrated."""
    if column is None or not is_calibrated(attribution):
        return None, None
    one = attribution.select([column])
    runs = replicates if np.isfinite(one.target_facts["noise_sd"]).all() else None
    found = removal(one, members, confidence=confidence, runs=runs, add=mode == "add")
    return float(found.low[0]), float(found.high[0])
