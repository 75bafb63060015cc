"""Retraining as the judge: remove or add the examples that an attribution names, and look at what really changes.

Every model here is trained by a campaign into a store, so an interrupted evaluation goes on where it was: call it again with the
same arguments. Intervals are over training runs (initial weights, order of examples, and for random removals the draw of the
examples); the test examples are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.design import Design
from datamodels.errors import CampaignError, RequestError
from datamodels.evaluation.ranks import resampled_spearman, unit_counts
from datamodels.executors.base import usable_cpus
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe

Mode = Literal["remove", "add"]
Which = Literal["helpful", "harmful"]
RANDOM = "random"
_FEWEST = 2  # runs that say something about their spread


class Estimate(NamedTuple):
    """A mean or a difference of means over training runs, with its interval."""

    value: float
    low: float
    high: float

    @classmethod
    def mean(cls, runs: NDArray[np.float64], confidence: float) -> Estimate:
        """Of runs (r,), with Student's interval."""
        from scipy import stats

        error = runs.std(ddof=1) / np.sqrt(len(runs))
        wide = float(stats.t.ppf((1 + confidence) / 2, len(runs) - 1) * error)
        return cls(float(runs.mean()), float(runs.mean()) - wide, float(runs.mean()) + wide)

    @classmethod
    def difference(cls, runs: NDArray[np.float64], others: NDArray[np.float64], confidence: float) -> Estimate:
        """Mean of runs (r,) minus mean of others (s,), with Welch's interval."""
        from scipy import stats

        value = float(runs.mean() - others.mean())
        a, b = runs.var(ddof=1) / len(runs), others.var(ddof=1) / len(others)
        if a + b == 0:
            return cls(value, value, value)
        freedom = (a + b) ** 2 / (a**2 / (len(runs) - 1) + b**2 / (len(others) - 1))
        wide = float(stats.t.ppf((1 + confidence) / 2, freedom) * np.sqrt(a + b))
        return cls(value, value - wide, value + wide)

    def named(self, name: str) -> dict[str, float]:
        """``{name: value, name_low: low, name_high: high}``."""
        return {name: self.value, f"{name}_low": self.low, f"{name}_high": self.high}


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
        Change of the output that the attribution predicts, without interval.
    actual
        Change against the base.
    random
        The change when as many random examples are removed or added.
    beyond_random
        actual - random.
    """

    method: str
    target: int | None
    k: int
    base: float
    predicted: float
    actual: Estimate
    random: Estimate
    beyond_random: Estimate


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
        What was done.
    """

    changes: tuple[Change, ...]
    mode: Mode
    which: Which
    output: str
    replicates: int
    confidence: float

    @property
    def methods(self) -> list[str]:
        return list(dict.fromkeys(change.method for change in self.changes))

    def of(self, method: str) -> list[Change]:
        """The changes of one method, by target."""
        found = [change for change in self.changes if change.method == method]
        if not found:
            raise RequestError(f"method {method!r} is unknown; legal: {', '.join(self.methods)}")
        return found

    def agreement(self, method: str, *, draws: int = 1000, seed: int = 0) -> Agreement:
        """How well predicted changes of a method order the actual ones; needs three targets or more."""
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


def retrain(
    task: TrainRecipe,
    masks: NDArray[np.bool_],
    *,
    outputs: Sequence[str],
    folder: str | Path,
    split: Literal["test", "train"] = "test",
    seed: int = 0,
    jobs: int | None = None,
    executor: str = "local",
    progress: bool = True,
) -> dict[str, NDArray[Any]]:
    """Train one model per mask and give its outputs; what is in the folder already is not trained again.

    Parameters
    ----------
    task
        How models are trained, and on what. Its own `outputs` and `splits` are not looked at.
    masks
        (m, n_train) bool; repeat a mask for more runs of it.
    outputs
        Names of `datamodels.training.outputs.OUTPUTS`.
    folder
        Of the store.
    split
        Whose outputs.
    seed
        Of initial weights and order of examples.
    jobs, executor, progress
        As in `datamodels.train`.

    Returns
    -------
    dict
        Name of the output -> (m, ...).

    Raises
    ------
    RequestError
        when the folder holds a store of other masks, outputs or seed.
    CampaignError
        when models could not be trained.
    """
    names = tuple(outputs)
    workers = 1 if executor == "inline" else jobs or usable_cpus()
    block = min(task.block_size, -(-len(masks) // workers))
    wanted = replace(task, outputs=names, splits=(split,), block_size=block)
    design = Design.explicit(masks, seed=seed)
    store = Store.open_or_create(folder, schema=wanted.schema, design=design, labels=task.data.train.y)
    summary = train(store, wanted, executor=executor, jobs=jobs, progress=progress)
    if not summary.ok:
        raise CampaignError(
            f"{len(summary.failed)} of {len(masks)} models failed; their logs are in {Path(folder) / 'failures'}; call it "
            "again to retry"
        )
    prefix = "train_" if split == "train" else ""
    return {name: np.asarray(store.array(prefix + name)) for name in names}


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
        Columns of the attributions, each changed by itself; or ``all``: one change, chosen by the mean weight over all
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
    confidence
        Of all intervals.

    Raises
    ------
    RequestError
        when sizes, targets or the base do not go together, or the folder holds something else.
    """
    methods = {"attribution": attributions} if isinstance(attributions, Attribution) else dict(attributions)
    _check_options(methods, mode, which, replicates, confidence)
    first = next(iter(methods.values()))
    start = _base_mask(task, base)
    if any(one.weights.shape != first.weights.shape for one in methods.values()) or first.n_train != task.n_train:
        shapes = {name: one.weights.shape for name, one in methods.items()}
        raise RequestError(
            f"attributions have (n_train, n_targets) {shapes}; the task has {task.n_train} train examples"
        )
    candidates = start if mode == "remove" else ~start
    count = size_of(k, share, int(candidates.sum()), mode)
    key = output or output_key(first)
    positions = _positions(methods)
    columns = _columns(targets, first.n_targets)
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
            predicted.append(float(weights[members].sum(dtype=np.float64)) * (1 if mode == "add" else -1))
    flips = [np.empty(0, np.int64)] * replicates
    flips += [rng.permutation(order)[:count] for _ in range(replicates)]
    flips += [members for members in chosen for _ in range(replicates)]
    split: Literal["test", "train"] = "train" if key.startswith("train_") else "test"
    name = key.removeprefix("train_")
    found = retrain(
        task, _flipped(start, flips), outputs=(name,), folder=folder, split=split, seed=seed, jobs=jobs,
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
                predicted[number],
                Estimate.difference(mine, untouched, confidence),
                Estimate.difference(at_random, untouched, confidence),
                Estimate.difference(mine, at_random, confidence),
            )
        )
    return Counterfactual(tuple(changes), mode, which, key, replicates, confidence)


class CurvePoint(NamedTuple):
    """Test accuracy after a removal.

    Attributes
    ----------
    method, share, removed
        Whose ranking, or ``random``; which share of the base was removed, and how many examples that is.
    accuracy
        Share of the test examples that are right, mean over runs.
    beyond_base, beyond_random
        The same minus that of the untouched base, and minus that of random removals of equal size (None for those).
    """

    method: str
    share: float
    removed: int
    accuracy: Estimate
    beyond_base: Estimate
    beyond_random: Estimate | None


@dataclass(frozen=True, eq=False)
class RemovalCurve:
    """Test accuracy against the share that was removed, by ranking.

    Attributes
    ----------
    base
        Accuracy of models on the untouched base.
    points
        One per method (``random`` among them) and share.
    """

    base: Estimate
    points: tuple[CurvePoint, ...]
    replicates: int
    confidence: float

    def at(self, method: str, share: float) -> CurvePoint:
        """The point of a method at a share."""
        for point in self.points:
            if (point.method, point.share) == (method, share):
                return point
        known = sorted({(point.method, point.share) for point in self.points})
        raise RequestError(f"there is no point {method!r} at {share}; there are {known}")

    def table(self) -> list[dict[str, Any]]:
        """One row per point: the fields of `CurvePoint`, each estimate as three numbers."""
        rows = []
        for point in self.points:
            row = {"method": point.method, "share": point.share, "removed": point.removed}
            row |= {**point.accuracy.named("accuracy"), **point.beyond_base.named("beyond_base")}
            empty = dict.fromkeys(("beyond_random", "beyond_random_low", "beyond_random_high"))
            rows.append(row | (empty if point.beyond_random is None else point.beyond_random.named("beyond_random")))
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        facts = {"replicates": self.replicates, "confidence": self.confidence}
        return {**facts, **self.base.named("base"), "points": self.table()}


def removal_curve(
    task: TrainRecipe,
    scores: ArrayLike | Mapping[str, ArrayLike],
    *,
    shares: Sequence[float] = (0.05, 0.1, 0.2, 0.3),
    remove: Literal["lowest", "highest"] = "lowest",
    replicates: int = 5,
    base: ArrayLike | None = None,
    folder: str | Path,
    seed: int = 0,
    jobs: int | None = None,
    executor: str = "local",
    confidence: float = 0.95,
    progress: bool = True,
) -> RemovalCurve:
    """Test accuracy after removing the training examples that a score ranks lowest, against random ones.

    Trains ``replicates * (1 + shares * (1 + methods))`` models.

    Parameters
    ----------
    task
        How models are trained, and on whose test examples they are judged. They must not be those that the scores were made
        from, or the curve flatters them.
    scores
        (n_train,), or name -> (n_train,): the mean weight over targets, minus a mislabel score.
    shares
        Of the base to remove, each from the whole base.
    remove
        ``lowest`` scores (harmful first) or ``highest`` (helpful first); ties in random order.
    replicates
        Runs at each point, 2 or more; every random removal is another draw.
    base, folder, seed, jobs, executor, confidence, progress
        As in `counterfactual`.

    Raises
    ------
    RequestError
        when scores are not one finite number per training example, or a share leaves nothing.
    """
    named = scores if isinstance(scores, Mapping) else {"scores": scores}
    rankings = {name: np.asarray(values, dtype=np.float64) for name, values in named.items()}
    _check_options(rankings, "remove", "helpful", replicates, confidence)
    if remove not in ("lowest", "highest"):
        raise RequestError(f"remove is {remove!r}; legal: lowest, highest")
    start = _base_mask(task, base)
    for name, values in rankings.items():
        if values.shape != (task.n_train,) or not np.isfinite(values).all():
            raise RequestError(
                f"{name!r} has shape {values.shape}; give one finite score per training example, ({task.n_train},)"
            )
    counts = [size_of(None, share, int(start.sum()), "remove") for share in shares]
    rng = np.random.default_rng([seed, 0])
    order = rng.permutation(np.flatnonzero(start))
    sign = 1 if remove == "lowest" else -1
    sorted_members = [order[np.argsort(sign * values[order], kind="stable")] for values in rankings.values()]
    flips = [np.empty(0, np.int64)] * replicates
    for count in counts:
        flips += [rng.permutation(order)[:count] for _ in range(replicates)]
        flips += [members[:count] for members in sorted_members for _ in range(replicates)]
    found = retrain(
        task, _flipped(start, flips), outputs=("correct",), folder=folder, seed=seed, jobs=jobs, executor=executor,
        progress=progress,
    )["correct"]  # fmt: skip
    runs = found.mean(axis=1, dtype=np.float64).reshape(-1, replicates)
    points = []
    for i, (share, count) in enumerate(zip(shares, counts, strict=True)):
        block = runs[1 + i * (1 + len(rankings)) :]
        for j, name in enumerate([RANDOM, *rankings]):
            points.append(
                CurvePoint(
                    name,
                    float(share),
                    count,
                    Estimate.mean(block[j], confidence),
                    Estimate.difference(block[j], runs[0], confidence),
                    None if j == 0 else Estimate.difference(block[j], block[0], confidence),
                )
            )
    return RemovalCurve(Estimate.mean(runs[0], confidence), tuple(points), replicates, confidence)


def output_key(attribution: Attribution) -> str:
    """Key of the output that an attribution says it is of; margins when it says nothing."""
    fitted: Mapping[str, Any] = next(iter(attribution.provenance.get("sources", [])), {})
    return fitted.get("outputs_key") or ("margins" if attribution.train_columns is None else "train_margins")


def size_of(k: int | None, share: float | None, available: int, mode: Mode) -> int:
    """How many examples k or a share of those `available` is: at least 1, and not all that can be removed."""
    if (k is None) == (share is None):
        raise RequestError("give k, a number of examples, or share, a share of them; one of the two")
    count = k if k is not None else round(float(share or 0) * available)
    if not 1 <= count <= available - (mode == "remove"):
        raise RequestError(
            f"{f'k is {k}' if share is None else f'share {share} is {count} examples'}; there are {available} examples to "
            f"{mode}: choose 1 up to {available - (mode == 'remove')} of them"
        )
    return count


def check_runs(replicates: int, confidence: float) -> None:
    """That there are runs enough for an interval, and that its level is one."""
    if replicates < _FEWEST:
        raise RequestError(
            f"replicates is {replicates}; give {_FEWEST} or more, since intervals come from their spread"
        )
    if not 0 < confidence < 1:
        raise RequestError(f"confidence is {confidence}; it must be between 0 and 1")


def _check_options(methods: Mapping[str, Any], mode: str, which: str, replicates: int, confidence: float) -> None:
    if not methods or RANDOM in methods:
        raise RequestError(f"methods are {list(methods)}; give one or more, and call none of them {RANDOM!r}")
    if mode not in get_args(Mode) or which not in get_args(Which):
        raise RequestError(f"mode is {mode!r} and which {which!r}; legal: remove, add, and helpful, harmful")
    check_runs(replicates, confidence)


def _base_mask(task: TrainRecipe, base: ArrayLike | None) -> NDArray[np.bool_]:
    if base is None:
        return np.ones(task.n_train, dtype=np.bool_)
    mask = np.asarray(base)
    if mask.dtype != np.bool_ or mask.shape != (task.n_train,) or not mask.any():
        raise RequestError(
            f"base has shape {mask.shape} and dtype {mask.dtype}; give a bool array ({task.n_train},) with an example in it"
        )
    return mask


def _columns(targets: Any, n_targets: int) -> list[int | None]:
    """The columns to change, or None for the mean over all."""
    if isinstance(targets, str) and targets == "all":
        return [None]
    found = np.asarray(targets)
    wrong = found.ndim != 1 or not len(found) or found.dtype.kind not in "iu"
    if wrong or found.min() < 0 or found.max() >= n_targets:
        raise RequestError(f"targets are {targets!r}; give 'all', or columns 0..{n_targets - 1}")
    return [int(column) for column in found]


def _positions(methods: Mapping[str, Attribution]) -> NDArray[np.int64]:
    """Which outputs the targets are, (n_targets,)."""
    stated = [one.target_facts["target"] for one in methods.values() if "target" in one.target_facts]
    if any(not np.array_equal(stated[0], other) for other in stated[1:]):
        raise RequestError("the attributions are of other targets; choose common ones with attribution[targets]")
    n_targets = next(iter(methods.values())).n_targets
    return np.asarray(stated[0] if stated else np.arange(n_targets), dtype=np.int64)


def _flipped(base: NDArray[np.bool_], flips: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """The base with the members of each set taken out, or in where they are out, (sets, n_train)."""
    masks = np.repeat(base[None], len(flips), axis=0)
    for row, members in zip(masks, flips, strict=True):
        row[members] = ~row[members]
    return masks
