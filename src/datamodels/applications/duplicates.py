"""Leaks: training examples that a test example rests on because they are copies of it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.datasets import Split
from datamodels.errors import RequestError


class Leak(NamedTuple):
    """A test example and the training example that its datamodel rests on most.

    Attributes
    ----------
    target, train
        Their numbers in the two splits.
    weight
        Of the training example. A copy under another label has a negative one.
    share
        |weight| over the sum of the target's |weights|, or over the median target's sum where that is larger: a
        target with hardly any weights does not stand out by it.
    distance
        Euclidean distance of the features, over the median distance of a test example to the nearest training
        example. 1 is usual; a small one is a near-duplicate, 0 an exact one.
    """

    target: int
    train: int
    weight: float
    share: float
    distance: float

    @property
    def exact(self) -> bool:
        """Whether the features are the same."""
        return self.distance == 0


def leaks(attribution: Attribution, train: Split, test: Split, k: int = 20) -> tuple[Leak, ...]:
    """The k targets whose single strongest training example stands out most, the closest pairs first.

    The datamodel says which pairs to look at, and the features whether they are copies. A copy that no model needs to get
    the target right has a small weight, and is not looked at.

    Parameters
    ----------
    attribution
        Of the test examples; its ``target_facts["target"]``, where it has them, say of which.
    train, test
        The examples that it is about.
    k
        Pairs to return; fewer come back when fewer targets have a weight.

    Raises
    ------
    RequestError
        when the splits are not those of the attribution, or k is below 1.
    """
    targets = attribution.target_facts.get("target", np.arange(attribution.n_targets))
    if k < 1:
        raise RequestError(f"k is {k}; give 1 or more")
    if len(train) != attribution.n_train or targets.max(initial=-1) >= len(test):
        raise RequestError(
            f"the splits have {len(train)} train and {len(test)} test examples; the attribution is of "
            f"{attribution.n_train} train examples and of targets up to {targets.max(initial=-1)}"
        )
    sizes = np.abs(attribution.weights)
    strongest = sizes.argmax(axis=0)
    sums = sizes.sum(axis=0, dtype=np.float64)
    least = np.median(sums[sums > 0]) if sums.any() else 1.0
    shares = sizes.max(axis=0) / np.maximum(sums, least)
    candidates = [int(c) for c in np.argsort(-shares, kind="stable")[:k] if shares[c] > 0]
    usual = _usual_distance(train.flat, test.flat)
    found = [
        Leak(
            target=int(targets[c]),
            train=int(strongest[c]),
            weight=float(attribution.weights[strongest[c], c]),
            share=float(shares[c]),
            distance=float(np.linalg.norm(test.flat[targets[c]] - train.flat[strongest[c]])) / usual,
        )
        for c in candidates
    ]
    return tuple(sorted(found, key=lambda leak: (leak.distance, -leak.share)))


def _usual_distance(train: NDArray[np.float32], test: NDArray[np.float32]) -> float:
    """Median distance of a test example to its nearest training example, copies aside; 1 when all are copies."""
    from sklearn.metrics import pairwise_distances_argmin

    nearest = pairwise_distances_argmin(test, train)
    distances = np.array([np.linalg.norm(a - train[i]) for a, i in zip(test, nearest, strict=True)])
    return float(np.median(distances[distances > 0])) if distances.any() else 1.0
