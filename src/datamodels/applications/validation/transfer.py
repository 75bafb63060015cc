"""Does what is learnt from one subgroup of a class carry over to another? The counterfactual that makes a subgroup matter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import permutations
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.applications.validation.confounding import as_clusters
from datamodels.applications.validation.shuffling import Groups, donors_of
from datamodels.errors import RequestError
from datamodels.evaluation.retraining import Estimate, check_runs, retrain
from datamodels.training.ensemble import TrainRecipe

_FEWEST = 8  # members of a subgroup of a class
_DONORS = 2  # of a subgroup of a class, where there are groups: some to learn from, some to be judged on


class UntestableTransferError(RequestError):
    """There is no pair of subgroups, or none with enough donors."""


class OnePair(NamedTuple):
    """What models lose on subgroup `to` when, of its class, they see subgroup `source` alone.

    Attributes
    ----------
    label
        Class, by its code.
    source, to
        Cluster numbers.
    size
        Training examples of the class that models see, in either case; a mean over replicates.
    drop
        Accuracy on held-out members of `to`: models that saw random members of the class minus models that saw members of `source`
        alone. Its interval is for other runs and for other members of the subgroup, or other donors of it, see `drop_of`.
    margin_drop
        The same of the mean margin, with an interval for other runs alone.
    """

    label: int
    source: int
    to: int
    size: float
    drop: Estimate
    margin_drop: Estimate


@dataclass(frozen=True, eq=False)
class Transfer:
    """What models lose from one subgroup of a class to another.

    Attributes
    ----------
    pairs
        One `OnePair` per class and ordered pair of its subgroups.
    replicates
        Draws of each.
    class_names
        Name of each class code.
    confidence
        Of all intervals together (Bonferroni over pairs).
    lone
        Subgroups (class, cluster) that are in no pair, since all their members are of one donor.
    """

    pairs: tuple[OnePair, ...]
    replicates: int
    confidence: float
    class_names: tuple[str, ...] = field(default=(), repr=False)
    lone: tuple[tuple[int, int], ...] = ()

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
        lone = [{"class": self.class_names[label], "cluster": cluster} for label, cluster in self.lone]
        return {"replicates": self.replicates, "confidence": self.confidence, "pairs": rows, "lone": lone}


def transfer(
    task: TrainRecipe,
    clusters: ArrayLike,
    *,
    folder: str | Path,
    groups: Groups = None,
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

    Where there are groups (donors), half of the *donors* of b are held out, and no model sees any example of theirs. The random
    members come from as many random donors as the members of a, as many examples from each: a model that knew the donors that it is
    judged on, or more donors than the other, would win without any subgroup. Held-out donors weigh alike.

    A random split of a homogeneous class, of examples or of donors, gives drops around 0. A drop says that what is learnt from a
    misses something of b. It does not say that a and b are separate: halves of one long cloud transfer badly, too, and so do donors that
    were sorted by what they look like.

    Parameters
    ----------
    task
        How models are trained. Its outputs and splits are not looked at.
    clusters
        (n_train,) cluster of each training example; -1 is none. A subgroup is a cluster within a class, of 8 members or more.
    folder
        Of the store; called again with the same arguments, only missing models are trained.
    groups
        (n_train,) donor, family or batch of each example, by default those of the dataset. False: there are none, examples are
        independent of each other.
    pairs
        Ordered pairs of clusters (trained on, tested on); by default all. Subgroups of one donor are left out.
    replicates
        Draws of the held-out half, of members and of training, 2 or more. Of donors, every second draw holds out the other half
        of the one before.
    confidence
        Of all intervals together: each is at ``1 - (1 - confidence) / pairs``.
    seed
        Of draws and of training.
    jobs, executor
        Where models are trained, as in `datamodels.train`.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when clusters or groups are not those of the training examples, no class has two subgroups, or they have one donor each.
    """
    check_runs(replicates, confidence)
    data = task.data
    numbers, y = as_clusters(clusters), data.train.y
    if numbers.shape != y.shape:
        raise RequestError(
            f"clusters have shape {numbers.shape}; give the cluster number of each training example, {y.shape}: fit datamodels of the "
            "training examples (splits=('train',)) and cluster those"
        )
    donors = donors_of([data.train], groups)
    chosen, lone = _pairs(numbers, y, donors, pairs, data.class_names)
    rng = np.random.default_rng([seed, 0x7472616E])
    draws = [
        _draws((y == label), numbers == source, numbers == to, donors, replicates, rng) for label, source, to in chosen
    ]
    masks = []
    for (label, _, _), drawn in zip(chosen, draws, strict=True):
        for draw in drawn:
            for members in (draw.source, draw.random):
                mask = (y != label) & draw.open
                mask[members] = True
                masks.append(mask)
    found = retrain(
        replace(task, outputs=("margins",)), np.array(masks), outputs=("correct", "margins"), folder=folder, split="train",
        seed=seed, jobs=jobs, executor=executor, progress=progress,
    )  # fmt: skip
    level = 1 - (1 - confidence) / len(chosen)
    rows = []
    for k, (pair, drawn) in enumerate(zip(chosen, draws, strict=True)):
        first = 2 * k * replicates
        correct, margins = (
            [_judged(found[name][first + 2 * i : first + 2 * i + 2], draw) for i, draw in enumerate(drawn)]
            for name in ("correct", "margins")
        )
        accuracies = np.array([part.mean(axis=0) for part in correct])
        examples = len(np.unique(np.concatenate([draw.held for draw in drawn])))
        if donors is None:
            drop = drop_of(accuracies, examples, level)
        else:
            each, values = np.concatenate([donors[draw.held[draw.starts]] for draw in drawn]), np.concatenate(correct)
            drop = drop_of(
                accuracies, examples, level, np.array([values[each == one].mean(axis=0) for one in np.unique(each)])
            )
        lower = np.array([part.mean(axis=0) @ [-1.0, 1.0] for part in margins])
        size = float(np.mean([len(draw.source) for draw in drawn]))
        rows.append(OnePair(*pair, size, drop, Estimate.mean(lower, level)))
    return Transfer(tuple(rows), replicates, confidence, data.class_names, lone)


class _Draw(NamedTuple):
    """One replicate.

    Attributes
    ----------
    held
        Held-out members of `to`, those of a donor beside each other.
    starts
        Where in `held` donors begin; without groups 0.
    open
        (n_train,) examples that models may see.
    source, random
        Members of the class that the one model and the other sees.
    """

    held: NDArray[np.int64]
    starts: NDArray[np.int64]
    open: NDArray[np.bool_]
    source: NDArray[np.int64]
    random: NDArray[np.int64]


def _draws(
    of_class: NDArray[np.bool_],
    source: NDArray[np.bool_],
    to: NDArray[np.bool_],
    donors: NDArray[np.int64] | None,
    replicates: int,
    rng: np.random.Generator,
) -> list[_Draw]:
    """The replicates of a pair."""
    if donors is not None:
        halves = _halves(np.unique(donors[of_class & to]), donors[of_class & source], replicates, rng)
        return [_of_donors(of_class, source, to, donors, out, rng) for out in halves]
    drawn = []
    for _ in range(replicates):
        target = rng.permutation(np.flatnonzero(of_class & to))
        out = target[: len(target) // 2]
        pool = np.setdiff1d(np.flatnonzero(of_class), out)
        sources = np.flatnonzero(of_class & source)
        size = min(len(sources), len(pool) // 2)
        members = (rng.choice(sources, size, replace=False), rng.choice(pool, size, replace=False))
        drawn.append(_Draw(out, np.zeros(1, np.int64), np.ones(len(to), np.bool_), *members))
    return drawn


def _halves(
    theirs: NDArray[np.int64], sources: NDArray[np.int64], replicates: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    """Donors to hold out of `theirs`, half of them at a time; each half has half of those that are sources, too."""
    halves: list[NDArray[np.int64]] = []
    while len(halves) < replicates:
        order = rng.permutation(theirs)
        order = order[np.argsort(~np.isin(order, sources), kind="stable")]
        halves += [order[::2], order[1::2]]
    return halves[:replicates]


def _of_donors(
    of_class: NDArray[np.bool_],
    source: NDArray[np.bool_],
    to: NDArray[np.bool_],
    donors: NDArray[np.int64],
    out: NDArray[np.int64],
    rng: np.random.Generator,
) -> _Draw:
    """The replicate that holds out donors `out`: the largest donor of the source goes with the largest that is drawn, and so on."""
    apart = np.isin(donors, out)
    held = np.flatnonzero(of_class & to & apart)
    held = held[np.argsort(donors[held], kind="stable")]
    names, counts = np.unique(donors[of_class & source & ~apart], return_counts=True)
    others, room = np.unique(donors[of_class & ~apart], return_counts=True)
    drawn = rng.choice(len(others), len(names), replace=False)
    by_size, by_room = np.argsort(-counts, kind="stable"), drawn[np.argsort(-room[drawn], kind="stable")]
    sizes = np.minimum(counts[by_size], room[by_room])

    def some(members: NDArray[np.bool_], of: NDArray[np.int64]) -> NDArray[np.int64]:
        pairs = zip(of, sizes, strict=True)
        return np.concatenate(
            [rng.choice(np.flatnonzero(members & (donors == one)), k, replace=False) for one, k in pairs]
        )

    starts = np.unique(donors[held], return_index=True)[1]
    return _Draw(held, starts, ~apart, some(of_class & source, names[by_size]), some(of_class, others[by_room]))


def _judged(outputs: NDArray[Any], draw: _Draw) -> NDArray[np.float64]:
    """Means (donors, 2) of the outputs (2, n_train) of the two models."""
    sizes = np.diff(np.append(draw.starts, len(draw.held)))
    return (np.add.reduceat(outputs[:, draw.held].astype(np.float64), draw.starts, axis=1) / sizes).T


def drop_of(
    accuracies: NDArray[np.float64], examples: int, confidence: float, donors: NDArray[np.float64] | None = None
) -> Estimate:
    """Mean difference of accuracies (replicates, 2), second minus first, with an interval that replicates which agree cannot close.

    On each side the widest of: Student's over replicates (runs, draws of the held-out half); where there are groups, Student's over the
    accuracies of held-out donors (donors, 2); and the score interval of a difference of two proportions of as many examples as were
    held out at all (Newcombe 1998, method 10), since these are a sample of their subgroup. Where there are groups, that many
    examples count as fewer, after Korn and Graubard (1998): as many independent ones as would spread as the donors do, and of these the
    share (z / t)² for the few donors. Examples without groups, and donors, count as independent, and the two models' answers to one
    of them as unrelated, which is cautious where models tend to agree.
    """
    from scipy import stats

    samples = [accuracies] if donors is None else [accuracies, donors]
    value = float((accuracies[:, 1] - accuracies[:, 0]).mean())
    means = [Estimate.mean(sample[:, 1] - sample[:, 0], confidence) for sample in samples]
    student = max(one.high - one.value for one in means)
    p, z = accuracies.mean(axis=0), stats.norm.ppf((1 + confidence) / 2)
    n = np.full(2, float(examples))
    if donors is not None:
        mean, error = donors.mean(axis=0), donors.var(axis=0, ddof=1) / len(donors)
        n = np.minimum(n, np.divide(mean * (1 - mean), error, out=n.copy(), where=error > 0))
        n *= (z / stats.t.ppf((1 + confidence) / 2, len(donors) - 1)) ** 2
    middle = p + z**2 / (2 * n)
    wide = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2))
    below, above = p - (middle - wide) / (1 + z**2 / n), (middle + wide) / (1 + z**2 / n) - p
    low = value - max(student, np.hypot(below[1], above[0]))
    high = value + max(student, np.hypot(above[1], below[0]))
    return Estimate(value, max(float(low), -1.0), min(float(high), 1.0))


def has_pairs(clusters: NDArray[np.int64], y: NDArray[np.int64]) -> bool:
    """Whether some class has two subgroups that are large enough for `transfer`.

    Parameters
    ----------
    clusters
        (n_train,) cluster of each training example; -1 is none.
    y
        (n_train,) class codes.
    """
    return bool(_found(clusters, y))


def _found(clusters: NDArray[np.int64], y: NDArray[np.int64]) -> list[tuple[int, int, int]]:
    """(class, source, to) of every pair of subgroups of a class."""
    out = []
    for label in np.unique(y):
        numbers, counts = np.unique(clusters[(y == label) & (clusters >= 0)], return_counts=True)
        out += [(int(label), int(a), int(b)) for a, b in permutations(numbers[counts >= _FEWEST], 2)]
    return out


def _pairs(
    clusters: NDArray[np.int64],
    y: NDArray[np.int64],
    donors: NDArray[np.int64] | None,
    wanted: Sequence[tuple[int, int]] | None,
    class_names: Sequence[str],
) -> tuple[list[tuple[int, int, int]], tuple[tuple[int, int], ...]]:
    """Pairs (class, source, to) whose subgroups have donors enough, and the subgroups (class, cluster) that have not."""
    found = [pair for pair in _found(clusters, y) if wanted is None or pair[1:] in set(wanted)]
    if not found:
        raise UntestableTransferError(
            f"no class has two subgroups of {_FEWEST} members or more"
            f"{'' if wanted is None else f' among the pairs {list(wanted)}'}: there is nothing to carry over"
        )
    if donors is None:
        return found, ()
    groups = sorted({(label, one) for label, *pair in found for one in pair})
    lone = [(k, one) for k, one in groups if len(np.unique(donors[(y == k) & (clusters == one)])) < _DONORS]
    tested = [pair for pair in found if not {(pair[0], pair[1]), (pair[0], pair[2])} & set(lone)]
    if not tested:
        where = ", ".join(f"cluster {one} of class {class_names[k]!r}" for k, one in lone)
        raise UntestableTransferError(
            f"transfer cannot be tested: fewer than {_DONORS} donors in {where}, so a drop there may be the donor's (groups=False is for "
            "examples that are independent of each other)"
        )
    return tested, tuple(lone)
