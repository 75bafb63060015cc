"""The law that masks were drawn from, which knockoffs are drawn from again."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.regression.problem import Problem
from datamodels.regression.source import Source
from datamodels.spec import MASKS

_CHECKED_ROWS = 512
_REFUSED = {
    "antithetic": "its masks have a fixed size and come in complementary pairs, so a model and its pair are not "
    "independent draws, and no valid knockoff of them is known",
    "grouped": "the examples of one group are never apart, so no data can tell which of them matters; select among "
    "groups: give masks with one column per group, the outputs, and design=Design(n_train=number of groups, "
    "alpha=..., kind='fixed_size')",
    "leave_one_out": "nothing in it is drawn at random",
    "explicit": "how its masks were drawn is not known; if you know it, give masks and outputs as arrays with design=...",
}


def law_of(source: Source, given: Design | None, problem: Problem) -> Design:
    """The design that the masks of a source were drawn from: its own, or the one that was given.

    Raises
    ------
    RequestError
        when it is not known, has no knockoffs, or contradicts the masks.
    """
    own: Any = source.description.get("design") if source.description.get("masks_key") == MASKS else None
    if own is not None and given is not None:
        raise RequestError("the store knows how its masks were drawn: leave out design")
    if own is None and given is None:
        raise RequestError(
            "how these masks were drawn is not known, and knockoffs are drawn the same way; say it with design, for "
            f"example Design(n_train={problem.n_train}, alpha=0.5, kind='bernoulli')"
        )
    kind = given.kind if given is not None else own["kind"]
    if kind in _REFUSED:
        raise RequestError(
            f"there are no knockoffs for a design of kind {kind!r}: {_REFUSED[kind]}. Designs of kind 'bernoulli' have "
            "exact ones, 'fixed_size' and 'stratified' approximate ones; stability selection needs none"
        )
    if given is None:
        return Design.from_dict(own)
    x = next(replace(problem, sources=(source,)).chunks(_CHECKED_ROWS))[0]
    _check_law(x, given)
    _check_replicates(x, source.rows[: len(x)] // given.replicates, given)
    return given


def _check_law(x: NDArray[np.bool_], design: Design) -> None:
    """Refuse a design that the first masks x (k, n_train) could not have come from."""
    if design.n_train != x.shape[1]:
        raise RequestError(f"design has n_train {design.n_train}; the masks have {x.shape[1]} columns")
    sizes = x.sum(axis=1)
    if design.kind != "bernoulli":
        wanted = int(design.mask(0).sum())
        if (sizes != wanted).any():
            raise RequestError(
                f"a design of kind {design.kind!r} has {wanted} examples in every subset, but these subsets have "
                f"{sizes.min()} to {sizes.max()}: is its kind 'bernoulli'?"
            )
        return
    alpha, independent = float(design.alpha or 0), -(-len(x) // design.replicates)
    deviation = np.sqrt(alpha * (1 - alpha) * x.shape[1])
    if abs(sizes.mean() - alpha * x.shape[1]) > 6 * deviation / np.sqrt(independent):
        raise RequestError(
            f"alpha is {alpha}, but these subsets hold {sizes.mean() / x.shape[1]:.3f} of the examples on average"
        )
    if independent >= 16 and deviation >= 1.4 and (sizes == sizes[0]).all():
        raise RequestError(f"all of these subsets have {sizes[0]} examples: their kind is not 'bernoulli'")


def _check_replicates(x: NDArray[np.bool_], numbers: NDArray[np.int64], design: Design) -> None:
    """Refuse masks x (k, n_train) that are equal where the design's mask numbers (k,) differ, or the reverse.

    A mask that comes twice with two knockoffs can be told from them, and the rate would not hold.
    """
    _, first, position = np.unique(numbers, return_index=True, return_inverse=True)
    distinct = len(np.unique(np.packbits(x, axis=1), axis=0))
    alpha = float(design.alpha or 0)
    by_chance = len(x) ** 2 / 2 * (alpha**2 + (1 - alpha) ** 2) ** design.n_train  # expected pairs of equal masks
    repeated = len(first) - distinct > 4 + 4 * by_chance
    if repeated or (x != x[first][position]).any():
        raise RequestError(
            f"design has replicates {design.replicates}, but the first {len(x)} rows hold {distinct} masks: give "
            "design=Design(..., replicates=runs of each mask), with the runs of a mask in adjacent rows"
        )
