"""Between what labels are exchanged: examples, examples of one group, or whole groups."""

from __future__ import annotations

from math import exp, lgamma, log
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.datasets import Dataset, Split
from datamodels.design import label_codes
from datamodels.errors import RequestError
from datamodels.training.ensemble import SplitName

Groups = ArrayLike | Literal[False] | None
_FEWEST = 20  # labellings: below it p cannot reach .05
_LARGE = 8  # examples of a group with one label: from here it is hardly chance that there is one


class TooFewLabellings(RequestError):
    """Labels can be shuffled in so few ways that p cannot reach .05."""


class Exchange(NamedTuple):
    """How labels are shuffled: units of one stratum exchange theirs.

    The k examples are those of the training split, and those of the test split after them where they are targets.

    Attributes
    ----------
    units
        (k,) number of each example's unit: itself, or its group.
    strata
        (units,) numbers.
    words
        What the units are.
    """

    units: tuple[int, ...]
    strata: tuple[int, ...]
    words: str

    def shuffled(self, labels: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
        """Labels (k,) of a shuffle of those given."""
        units, strata = np.asarray(self.units), np.asarray(self.strata)
        own = labels[np.unique(units, return_index=True)[1]]
        out = own.copy()
        for stratum in np.unique(strata):
            members = np.flatnonzero(strata == stratum)
            out[members] = own[rng.permutation(members)]
        return out[units]

    def counts(self, labels: NDArray[np.int64]) -> NDArray[np.int64]:
        """Rows (stratum, label, units with it): what no shuffle changes. Of the first labels where not all are given."""
        units, first = np.unique(np.asarray(self.units)[: len(labels)], return_index=True)
        pairs = np.column_stack([np.asarray(self.strata)[units], labels[first]])
        found, counts = np.unique(pairs, axis=0, return_counts=True)
        return np.column_stack([found, counts])


def exchange(
    data: Dataset,
    split: SplitName,
    *,
    groups: Groups = None,
    groups_test: ArrayLike | None = None,
    within: ArrayLike | None = None,
    within_test: ArrayLike | None = None,
) -> Exchange:
    """What a shuffle of the labels exchanges; `split` is that of the targets, the rest is as in `permutation_null`.

    Raises
    ------
    RequestError
        when a column has another length, only one split has groups, a group lies in two strata, or so little can be shuffled that p
        cannot reach .05.
    """
    splits = [data.train] if split == "train" else [data.train, data.test]
    y = np.concatenate([part.y for part in splits])
    side = np.repeat(np.arange(len(splits)), [len(part) for part in splits])
    strata = np.concatenate(
        [
            np.zeros(len(part), np.int64) if given is None else np.array(label_codes(_column(name, given, part.y)))
            for name, given, part in zip(("within", "within_test"), (within, within_test), splits, strict=False)
        ]
    )
    places = _codes(side, strata)
    donors = donors_of(splits, groups, groups_test)
    if donors is None:
        found = Exchange(tuple(range(len(y))), tuple(places.tolist()), "examples")
    else:
        found = _of_groups(donors, side, places, y)
    _check(found, y, len(data.train))
    return found


def donors_of(splits: list[Split], groups: Groups, groups_test: ArrayLike | None = None) -> NDArray[np.int64] | None:
    """The group of each example of one split or two (k,), numbers that both share; None where there are no groups.

    Raises
    ------
    RequestError
        when a column has another length, or only one of two splits has groups.
    """
    if groups is False:
        return None
    names = ("groups", "groups_test")
    given = [
        part.groups if told is None else _column(name, told, part.y)
        for name, told, part in zip(names, (groups, groups_test), splits, strict=False)
    ]
    known = [column for column in given if column is not None]
    if not known:
        return None
    if len(known) < len(given):
        lacks = names[next(i for i, column in enumerate(given) if column is None)]
        raise RequestError(
            f"one split has groups and the other has none: give {lacks}, the group of each of its examples, or groups=False where "
            "examples are exchangeable one by one"
        )
    return np.array(label_codes(np.concatenate([column.astype(str) for column in known])))


def _of_groups(
    donors: NDArray[np.int64], side: NDArray[np.int64], places: NDArray[np.int64], y: NDArray[np.int64]
) -> Exchange:
    """Groups of one label exchange it as wholes, other groups among their own examples.

    A shuffle leaves each group of one label one that has one, and each mixed group its own labels, so that whatever is shuffled leads
    to the same exchange. Where some groups are mixed, small ones may have one label by chance, and which one they have then depends on
    their size: groups of 1, 2 to 3, 4 to 7, and 8 or more examples exchange with their like.
    """
    count = int(donors.max()) + 1
    labels = np.bincount(np.unique(np.column_stack([donors, y]), axis=0)[:, 0], minlength=count)
    one_by_one = labels[donors] > 1
    mixed = int((labels > 1).sum())
    where = np.full((count, 2), -1)  # a group of both splits exchanges its label with others of both
    where[donors, side] = places
    torn = np.flatnonzero(~one_by_one & (where[donors, side] != places))
    if len(torn):
        raise RequestError(
            f"groups with one label are shuffled as wholes within strata, but the group of example {torn[0]} lies in several strata: "
            "give strata of whole groups, or leave within out"
        )
    sizes = np.bincount(donors)
    alike = np.minimum(np.log2(sizes), np.log2(_LARGE)).astype(np.int64) if mixed else np.zeros(count, np.int64)
    examples = np.arange(len(y))
    units = _codes(one_by_one, np.where(one_by_one, examples, donors))
    rows = np.column_stack(
        [
            one_by_one,
            np.where(
                one_by_one[:, None],
                np.column_stack([donors, places, places]),
                np.column_stack([alike, *where.T])[donors],
            ),
        ]
    )
    strata = _codes(*rows[np.unique(units, return_index=True)[1]].T)
    words = f"whole groups ({count})"
    if mixed:
        words = f"examples within their groups ({mixed} of {count} groups have several labels)"
        words += f" and over whole groups of similar size (the other {count - mixed})" if mixed < count else ""
    return Exchange(tuple(units.tolist()), tuple(strata.tolist()), words)


def _check(found: Exchange, y: NDArray[np.int64], n_train: int) -> None:
    """That enough can be shuffled."""
    what = found.words.partition(" (")[0]
    if _arrangements(found.counts(y[:n_train])) < log(1.5):
        raise TooFewLabellings(
            f"labels are shuffled over {what}, and no stratum of training examples has two classes, so no label can be shuffled: give "
            "larger strata, or none; where labels are facts of a donor, groups (and no within) shuffles whole donors"
        )
    total = _arrangements(found.counts(y))
    if total < log(_FEWEST - 0.5):
        raise TooFewLabellings(
            f"labels are shuffled over {what}, and there are {round(exp(total))} ways to, so that p cannot reach .05: it takes "
            f"{_FEWEST}, for example 3 groups of each of two classes (groups=False is for examples that are exchangeable one by one)"
        )


def _arrangements(counts: NDArray[np.int64]) -> float:
    """Natural logarithm of how many labellings have these counts (stratum, label, units)."""
    sizes = np.bincount(counts[:, 0], counts[:, 2])
    return sum(lgamma(size + 1) for size in sizes) - sum(lgamma(count + 1) for count in counts[:, 2])


def _column(name: str, given: ArrayLike, labels: NDArray[np.int64]) -> NDArray[Any]:
    values = np.asarray(given)
    if values.shape != labels.shape:
        raise RequestError(f"{name} has shape {values.shape}; give one value per example, {labels.shape}")
    return values


def _codes(*columns: NDArray[Any]) -> NDArray[np.int64]:
    """One number per different row."""
    return np.unique(np.column_stack(columns), axis=0, return_inverse=True)[1].ravel()
