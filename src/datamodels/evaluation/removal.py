"""Accuracy after removing what a ranking calls harmful, or helpful, against random removal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from datamodels.errors import RequestError
from datamodels.evaluation.retraining import (
    RANDOM,
    Estimate,
    base_mask,
    check_methods,
    check_runs,
    flipped,
    retrain,
    size_of,
)
from datamodels.training.ensemble import TrainRecipe


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
    replicates, confidence
        Runs at each point, and that of the intervals.
    """

    base: Estimate
    points: tuple[CurvePoint, ...]
    replicates: int
    confidence: float

    def at(self, method: str, share: float) -> CurvePoint:
        """The point of a method at a share.

        Raises
        ------
        RequestError
            when there is none.
        """
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
        As in `datamodels.evaluation.counterfactual.counterfactual`.

    Raises
    ------
    RequestError
        when scores are not one finite number per training example, or a share leaves nothing.
    """
    named = scores if isinstance(scores, Mapping) else {"scores": scores}
    rankings = {name: np.asarray(values, dtype=np.float64) for name, values in named.items()}
    check_methods(rankings)
    check_runs(replicates, confidence)
    if remove not in ("lowest", "highest"):
        raise RequestError(f"remove is {remove!r}; legal: lowest, highest")
    start = base_mask(task.n_train, base)
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
        task, flipped(start, flips), outputs=("correct",), folder=folder, seed=seed, jobs=jobs, executor=executor,
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
