"""Does what is learnt from one subgroup of a class carry over to another? The counterfactual that makes a subgroup matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.errors import RequestError
from datamodels.evaluation.retraining import Estimate, check_runs, retrain
from datamodels.training.ensemble import TrainRecipe

_FEWEST = 8  # members of a subgroup of a class


class OnePair(NamedTuple):
    """What models lose on subgroup `to` when, of its class, they see subgroup `source` alone.

    Attributes
    ----------
    label
        Class, by its code.
    source, to
        Cluster numbers.
    size
        Training examples of the class that models see, in either case.
    drop
        Accuracy on held-out members of `to`: models that saw random members of the class minus models that saw members of `source`
        alone. Its interval is for other runs and for other members of the subgroup, see `drop_of`.
    margin_drop
        The same of the mean margin, with an interval for other runs alone.
    """

    label: int
    source: int
    to: int
    size: int
    drop: Estimate
    margin_drop: Estimate


@dataclass(frozen=True, eq=False)
class Transfer:
    """One `OnePair` per class and ordered pair of its subgroups.

    ``confidence`` is that of all intervals together (Bonferroni over pairs).
    """

    pairs: tuple[OnePair, ...]
    replicates: int
    confidence: float
    class_names: tuple[str, ...] = field(default=(), repr=False)

    @property
    def dropping(self) -> list[OnePair]:
        """Pairs whose interval of the drop of accuracy lies above 0."""
        return [pair for pair in self.pairs if pair.drop.low > 0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = [
            {
                "class": self.class_names[pair.label],
                "source": pair.source,
                "to": pair.to,
                "size": pair.size,
                **pair.drop.named("drop"),
                **pair.margin_drop.named("margin_drop"),
            }
            for pair in self.pairs
        ]
        return {"replicates": self.replicates, "confidence": self.confidence, "pairs": rows}


def transfer(
    task: TrainRecipe,
    clusters: ArrayLike,
    *,
    folder: str | Path,
    pairs: Sequence[tuple[int, int]] | None = None,
    replicates: int = 10,
    confidence: float = 0.95,
    seed: int = 0,
    jobs: int | None = None,
    executor: str = "local",
    progress: bool = True,
) -> Transfer:
    """Train on one subgroup of a class, test on another.

    Per replicate and pair (a, b) of subgroups of a class, half of b is held out. One model sees all examples of other classes and
    members of a; another sees as many random members of the class that are not held out. Both are judged on what was held out.
    Trains ``2 * replicates * pairs`` models.

    A random split of a homogeneous class gives drops around 0. A drop says that what is learnt from a misses something of b. It
    does not say that a and b are separate: halves of one long cloud transfer badly, too.

    Parameters
    ----------
    task
        How models are trained. Its outputs and splits are not looked at.
    clusters
        (n_train,) cluster of each training example; -1 is none. A subgroup is a cluster within a class, of 8 members or more.
    folder
        Of the store; called again with the same arguments, only missing models are trained.
    pairs
        Ordered pairs of clusters (trained on, tested on); by default all.
    replicates
        Draws of the held-out half, of members and of training, 2 or more.
    confidence
        Of all intervals together: each is at ``1 - (1 - confidence) / pairs``.

    Raises
    ------
    RequestError
        when clusters are not those of the training examples, or no class has two subgroups.
    """
    check_runs(replicates, confidence)
    data = task.data
    numbers, y = np.asarray(clusters), data.train.y
    if numbers.shape != y.shape or numbers.dtype.kind not in "iu":
        raise RequestError(
            f"clusters have shape {numbers.shape} and dtype {numbers.dtype}; give the cluster number of each training example, {y.shape}: "
            "fit datamodels of the training examples (splits=('train',)) and cluster those"
        )
    chosen = _pairs(numbers, y, pairs)
    rng = np.random.default_rng([seed, 0x7472616E])
    masks, held = [], []
    sizes = []
    for label, source, to in chosen:
        everyone = np.flatnonzero(y == label)
        for _ in range(replicates):
            target = rng.permutation(np.flatnonzero((y == label) & (numbers == to)))
            out = target[: len(target) // 2]
            pool = np.setdiff1d(everyone, out)
            sources = np.flatnonzero((y == label) & (numbers == source))
            size = min(len(sources), len(pool) // 2)
            for members in (rng.choice(sources, size, replace=False), rng.choice(pool, size, replace=False)):
                mask = y != label
                mask[members] = True
                masks.append(mask)
            held.append(out)
        sizes.append(size)
    found = retrain(
        replace(task, outputs=("margins",)), np.array(masks), outputs=("correct", "margins"), folder=folder, split="train",
        seed=seed, jobs=jobs, executor=executor, progress=progress,
    )  # fmt: skip
    level = 1 - (1 - confidence) / len(chosen)
    rows = []
    for k, (label, source, to) in enumerate(chosen):
        runs = range(k * replicates, (k + 1) * replicates)
        correct, margins = (
            np.array([[found[name][2 * i + j][held[i]].mean(dtype=np.float64) for j in (0, 1)] for i in runs])
            for name in ("correct", "margins")
        )
        examples = len(np.unique(np.concatenate([held[i] for i in runs])))
        drop = drop_of(correct, examples, level)
        rows.append(OnePair(label, source, to, sizes[k], drop, Estimate.mean(margins[:, 1] - margins[:, 0], level)))
    return Transfer(tuple(rows), replicates, confidence, data.class_names)


def drop_of(accuracies: NDArray[np.float64], examples: int, confidence: float) -> Estimate:
    """Mean difference of accuracies (replicates, 2), second minus first, with an interval that replicates which agree cannot close.

    On each side the wider of two: Student's over replicates (runs, draws of the held-out half), and the score interval of a
    difference of two proportions of as many examples as were held out at all (Newcombe 1998, method 10), since the members are a
    sample of their subgroup. Members count as independent, and the two models' answers to one of them as unrelated, which is cautious
    where models tend to agree.
    """
    from scipy import stats

    runs = Estimate.mean(accuracies[:, 1] - accuracies[:, 0], confidence)
    p, z = accuracies.mean(axis=0), stats.norm.ppf((1 + confidence) / 2)
    middle = p + z**2 / (2 * examples)
    wide = z * np.sqrt(p * (1 - p) / examples + z**2 / (4 * examples**2))
    below, above = p - (middle - wide) / (1 + z**2 / examples), (middle + wide) / (1 + z**2 / examples) - p
    low = min(runs.low, runs.value - np.hypot(below[1], above[0]))
    high = max(runs.high, runs.value + np.hypot(above[1], below[0]))
    return Estimate(runs.value, max(float(low), -1.0), min(float(high), 1.0))


def has_pairs(clusters: NDArray[np.int64], y: NDArray[np.int64]) -> bool:
    """Whether some class has two subgroups that are large enough."""
    return bool(_found(clusters, y))


def _found(clusters: NDArray[np.int64], y: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(class, source, to) of every pair of subgroups of a class."""
    out = []
    for label in np.unique(y):
        numbers, counts = np.unique(clusters[(y == label) & (clusters >= 0)], return_counts=True)
        out += [(int(label), int(a), int(b)) for a, b in permutations(numbers[counts >= _FEWEST], 2)]
    return out


def _pairs(
    clusters: NDArray[np.int64], y: NDArray[np.int64], wanted: Sequence[tuple[int, int]] | None
) -> list[tuple[int, int, int]]:
    out = [pair for pair in _found(clusters, y) if wanted is None or pair[1:] in set(wanted)]
    if not out:
        raise RequestError(
            f"no class has two subgroups of {_FEWEST} members or more"
            f"{'' if wanted is None else f' among the pairs {list(wanted)}'}: there is nothing to carry over"
        )
    return out
