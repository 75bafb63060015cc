"""The training examples that drive one prediction."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import IDS, Attribution, Top
from datamodels.errors import RequestError


class Neighbours(NamedTuple):
    """The training examples that drive one target.

    Attributes
    ----------
    target
        Column of the attribution.
    id
        Its name, None when the attribution has none.
    helpful, harmful
        Those that raise its output, and those that lower it; strongest first.
    """

    target: int
    helpful: Top
    harmful: Top
    id: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """Both lists by training example, its name where it has one, and weight, JSON-ready."""
        out: dict[str, Any] = {"target": self.target}
        if self.id is not None:
            out["id"] = self.id
        for name, top in (("helpful", self.helpful), ("harmful", self.harmful)):
            names = [{} for _ in top.indices] if top.ids is None else [{"id": str(one)} for one in top.ids]
            out[name] = [
                {"train": int(index), **named, "weight": float(weight)}
                for index, named, weight in zip(top.indices, names, top.weights, strict=True)
            ]
        return out


def neighbours(attribution: Attribution, target: int | str, k: int = 10) -> Neighbours:
    """The k most helpful and the k most harmful training examples of a target, by weight.

    Parameters
    ----------
    attribution
        Of many targets.
    target
        Its column, or its name.
    k
        How many of each; fewer come back when fewer weights have that sign (the lasso sets most to 0).

    Raises
    ------
    RequestError
        when there is no such target, or k is below 1.
    """
    if k < 1:
        raise RequestError(f"k is {k}; give 1 or more")
    number = attribution.target_named(target)
    names = attribution.target_facts.get(IDS)
    return Neighbours(
        number,
        attribution.top(number, k, sign="positive"),
        attribution.top(number, k, sign="negative"),
        None if names is None else str(names[number]),
    )


def overlap(first: Attribution, second: Attribution, k: int = 10) -> NDArray[np.float64]:
    """How far two attributions of the same targets name the same helpful examples.

    Parameters
    ----------
    first, second
        Of the same training examples and targets.
    k
        How many helpful examples of each target are compared.

    Returns
    -------
    (n_targets,) the Jaccard index of the two sets of the k most helpful training examples: shared ones over all in
    either. NaN where no weight is positive in either.

    Raises
    ------
    RequestError
        when the attributions are not of the same, or k is below 1.
    """
    if first.weights.shape != second.weights.shape:
        raise RequestError(
            f"one attribution has (train examples, targets) {first.weights.shape}, the other {second.weights.shape}; "
            "they must be of the same"
        )
    out = np.full(first.n_targets, np.nan)
    for target in range(first.n_targets):
        a, b = (set(neighbours(one, target, k).helpful.indices.tolist()) for one in (first, second))
        if a | b:
            out[target] = len(a & b) / len(a | b)
    return out
