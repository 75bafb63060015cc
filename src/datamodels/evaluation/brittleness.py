"""How few training examples a prediction rests on: the smallest removal that flips it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.evaluation.retraining import base_mask, check_runs, columns_of, retrain
from datamodels.regression.calibration import check_finite, output_key, positions_of
from datamodels.training.ensemble import TrainRecipe

NEVER = -1


def data_support(
    attribution: Attribution,
    *,
    margins: ArrayLike | None = None,
    base: ArrayLike | None = None,
) -> NDArray[np.int64]:
    """The number of most helpful examples whose removal is predicted to flip each target (Ilyas et al. 2022, arXiv:2202.00622).

    Parameters
    ----------
    attribution
        Of margins: a prediction is flipped when its margin is below 0.
    margins
        (n_targets,) margins of models trained on the base, where they are known; by default the attribution predicts them, for
        which it must be a datamodel: scores with bias 0 cannot.
    base
        bool (n_train,), from which examples are removed; by default all of them.

    Returns
    -------
    (n_targets,) int64: 0 where the margin is below 0 before any removal, -1 where not even removing all helpful
    examples is predicted to flip it.

    Raises
    ------
    RequestError
        when weights or margins are not finite, or margins are left out and every bias is 0.
    """
    check_finite(attribution, "attribution")
    start = base_mask(attribution.n_train, base)
    if margins is None and not attribution.bias.any():
        raise RequestError(
            "every bias of the attribution is 0, so it cannot say what the margins are before removal: give margins, those of "
            "models trained on the base"
        )
    before = attribution.predict(start) if margins is None else np.asarray(margins, dtype=np.float64)
    if before.shape != (attribution.n_targets,) or not np.isfinite(before).all():
        raise RequestError(
            f"margins have shape {before.shape}; there are {attribution.n_targets} targets: give one finite margin for each"
        )
    out = np.full(attribution.n_targets, NEVER, dtype=np.int64)
    for target, margin in enumerate(before):
        if margin < 0:
            out[target] = 0
            continue
        weights = np.sort(attribution.weights[start, target].astype(np.float64))[::-1]
        flipped = np.flatnonzero(margin - np.cumsum(weights[weights > 0]) < 0)
        if len(flipped):
            out[target] = flipped[0] + 1
    return out


@dataclass(frozen=True, eq=False)
class Brittleness:
    """Smallest removals that flip predictions, one entry per target that was asked for.

    Attributes
    ----------
    targets
        (t,) columns of the attribution.
    base_margins
        (t,) mean margin of the models trained on the untouched base.
    estimated
        (t,) examples whose removal is predicted to flip the target, starting from `base_margins`; -1: never.
    verified
        (t,) the smallest removal that was found to make the mean margin of retrained models negative; 0: it is without any
        removal; -1: not even `largest` examples do.
    holds
        (t,) the largest smaller removal that was found not to: the true size lies in (holds, verified], if a longer prefix never
        flips back.
    margins
        (t,) mean margin of the retrained models at `verified`, or at `largest` where that is -1.
    wrong
        (t,) share of those models that are wrong.
    largest, replicates
        Most examples that were removed, and models per removal.
    models
        Models that were trained in all.
    """

    targets: NDArray[np.int64]
    base_margins: NDArray[np.float64]
    estimated: NDArray[np.int64]
    verified: NDArray[np.int64]
    holds: NDArray[np.int64]
    margins: NDArray[np.float64] = field(repr=False)
    wrong: NDArray[np.float64] = field(repr=False)
    largest: int
    replicates: int
    models: int

    def table(self) -> list[dict[str, Any]]:
        """One row per target, named as the attributes."""
        names = ("base_margins", "estimated", "verified", "holds", "margins", "wrong")
        return [
            {"target": int(target), **{name: getattr(self, name)[i].item() for name in names}}
            for i, target in enumerate(self.targets)
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        facts = {name: getattr(self, name) for name in ("largest", "replicates", "models")}
        return {**facts, "targets": self.table()}


@dataclass
class _Search:
    """Where the search for one target is: sizes up to `holds` do not flip it, `flips` does."""

    largest: int
    size: int
    holds: int = 0
    flips: int | None = None
    ended: bool = False
    seen: dict[int, tuple[float, float]] = field(default_factory=dict)

    def take(self, margins: NDArray[np.float64], tolerance: float) -> None:
        """Note the margins (r,) of the models at `size`, and choose the next one."""
        mean = float(margins.mean())
        self.seen[self.size] = (mean, float((margins <= 0).mean()))
        if mean < 0:
            self.flips = self.size
        else:
            self.holds = self.size
        if self.flips is None:
            self.ended = self.holds >= self.largest
            self.size = min(self.largest, 2 * self.holds)
        else:
            self.ended = self.flips - self.holds <= max(1, int(tolerance * self.flips))
            self.size = (self.holds + self.flips) // 2


def brittleness(
    task: TrainRecipe,
    attribution: Attribution,
    targets: Sequence[int] | NDArray[np.int64],
    *,
    largest: int | None = None,
    tolerance: float = 0.1,
    replicates: int = 5,
    base: ArrayLike | None = None,
    folder: str | Path,
    seed: int = 0,
    jobs: int | None = None,
    executor: str = "local",
    progress: bool = True,
) -> Brittleness:
    """Find the smallest removal that flips a prediction, by the attribution (Ilyas et al. 2022, arXiv:2202.00622) and then by retraining.

    The most helpful examples of a target are removed first, so that removals are prefixes of one order. The size that the
    attribution predicts is retrained, then sizes by doubling or bisection; each round is one campaign for all targets, in
    a store of its own, so an interrupted search goes on where it was.

    Parameters
    ----------
    task
        How models are trained.
    attribution
        Of margins of test examples (or of train examples), in units of the margin for the prediction to mean something.
    targets
        (t,) its columns.
    largest
        Most examples to remove; by default a quarter of the base. Examples that are not helpful are never removed.
    tolerance
        The search ends when the bracket is this share of the size, or one example.
    replicates
        Models per removal, 2 or more.
    base, folder, seed, jobs, executor, progress
        As in `counterfactual`.

    Raises
    ------
    RequestError
        when targets, base or `largest` do not fit.
    """
    check_runs(replicates, 0.95)
    check_finite(attribution, "attribution")
    columns = columns_of(targets, attribution.n_targets)
    start = base_mask(task.n_train, base)
    if attribution.n_train != task.n_train:
        raise RequestError(
            f"the attribution has {attribution.n_train} train examples; give one of the task's {task.n_train} examples"
        )
    most = int(start.sum()) // 4 if largest is None else largest
    if not 1 <= most < start.sum():
        raise RequestError(
            f"largest is {most}; give 1 up to {int(start.sum()) - 1}, so that examples are left to train on"
        )
    key = output_key(attribution)
    name = key.removeprefix("train_")
    if name not in ("margins", "log_odds_margins"):
        raise RequestError(f"the attribution is of {key!r}; a flip is seen in margins or log_odds_margins")
    positions = positions_of(attribution)[columns]

    def margins_of(masks: NDArray[np.bool_], step: str) -> NDArray[np.float64]:
        found = retrain(
            task, np.repeat(masks, replicates, axis=0), outputs=("margins",), folder=Path(folder) / step,
            split="train" if key.startswith("train_") else "test", seed=seed, jobs=jobs, executor=executor, progress=progress,
        )["margins"]  # fmt: skip
        return found.astype(np.float64).reshape(len(masks), replicates, -1)

    untouched = margins_of(start[None], "base")[0][:, positions]
    before = untouched.mean(axis=0)
    estimated = data_support(attribution.select(columns), margins=before, base=start)
    orders, searches = [], []
    for column, margin, guess in zip(columns, before, estimated, strict=True):
        weights = np.where(start, attribution.weights[:, column], 0)
        order = np.argsort(-weights, kind="stable")[: int((weights > 0).sum())]
        room = min(most, len(order))
        first = room if guess == NEVER else int(np.clip(guess, 1, max(room, 1)))
        orders.append(order)
        searches.append(_Search(room, first, ended=bool(margin < 0) or room == 0))
    rounds = trained = 0
    while active := [i for i, search in enumerate(searches) if not search.ended]:
        masks = np.repeat(start[None], len(active), axis=0)
        for row, i in zip(masks, active, strict=True):
            row[orders[i][: searches[i].size]] = False
        found = margins_of(masks, f"round-{rounds:02d}")
        for j, i in enumerate(active):
            searches[i].take(found[j][:, positions[i]], tolerance)
        rounds, trained = rounds + 1, trained + len(active) * replicates
    verified = [
        0 if margin < 0 else NEVER if s.flips is None else s.flips for s, margin in zip(searches, before, strict=True)
    ]
    last = [
        s.seen.get(s.largest if v == NEVER else v, (float(m), float((u <= 0).mean())))
        for s, v, m, u in zip(searches, verified, before, untouched.T, strict=True)
    ]
    return Brittleness(
        targets=columns,
        base_margins=before,
        estimated=estimated,
        verified=np.array(verified, dtype=np.int64),
        holds=np.array([s.holds for s in searches], dtype=np.int64),
        margins=np.array([mean for mean, _ in last]),
        wrong=np.array([share for _, share in last]),
        largest=most,
        replicates=replicates,
        models=trained + replicates,
    )
