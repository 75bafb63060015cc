"""Retraining as the judge: models of chosen subsets, and what their runs say.

Every model here is trained by a campaign into a store, so an interrupted evaluation goes on where it was: call it again with the
same arguments. Intervals are over training runs (initial weights, order of examples, and for random removals the draw of the
examples); the test examples are taken as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.design import Design
from datamodels.errors import CampaignError, RequestError
from datamodels.executors.base import usual_jobs
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe

Mode = Literal["remove", "add"]
RANDOM = "random"
"""The name of random choices beside those of methods."""
_FEWEST = 2  # runs that say something about their spread


class Estimate(NamedTuple):
    """A mean or a difference of means over training runs.

    Attributes
    ----------
    value
        The estimate.
    low, high
        Its interval.
    """

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
    workers = 1 if executor == "inline" else jobs or usual_jobs(task.gpus)
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


def size_of(k: int | None, share: float | None, available: int, mode: Mode) -> int:
    """How many examples k or a share of those `available` is: at least 1, and not all that can be removed."""
    if (k is None) == (share is None):
        raise RequestError("give k, a number of examples, or share, a share of them; one of the two")
    if k is not None and (isinstance(k, bool) or not isinstance(k, int | np.integer)):
        raise RequestError(f"k is {k!r}; give a whole number of examples, or a share of them with share")
    if share is not None and not 0 < share <= 1:
        raise RequestError(f"share is {share}; give a number above 0 and at most 1")
    count = int(k) if k is not None else round(float(share or 0) * available)
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


def check_methods(methods: Mapping[str, Any]) -> None:
    """That there are methods, none of which is called as the random choice is."""
    if not methods or RANDOM in methods:
        raise RequestError(f"methods are {list(methods)}; give one or more, and call none of them {RANDOM!r}")


def base_mask(n_train: int, base: ArrayLike | None) -> NDArray[np.bool_]:
    """The examples to change, bool (n_train,): all of them by default."""
    if base is None:
        return np.ones(n_train, dtype=np.bool_)
    mask = np.asarray(base)
    if mask.dtype != np.bool_ or mask.shape != (n_train,) or not mask.any():
        raise RequestError(
            f"base has shape {mask.shape} and dtype {mask.dtype}; give a bool array ({n_train},) with an example in it"
        )
    return mask


def columns_of(targets: ArrayLike, n_targets: int) -> NDArray[np.int64]:
    """Columns of an attribution, (k,), as they were asked for."""
    found = np.asarray(targets)
    wrong = found.ndim != 1 or not len(found) or found.dtype.kind not in "iu"
    if wrong or found.min() < 0 or found.max() >= n_targets:
        raise RequestError(
            f"targets begin with {found.ravel()[:5].tolist()}; give columns 0..{n_targets - 1}, whole numbers (of a mask: np.flatnonzero(mask))"
        )
    return found.astype(np.int64)


def flipped(base: NDArray[np.bool_], flips: Sequence[NDArray[np.int64]]) -> NDArray[np.bool_]:
    """The base with the members of each set taken out, or in where they are out, (sets, n_train)."""
    masks = np.repeat(base[None], len(flips), axis=0)
    for row, members in zip(masks, flips, strict=True):
        row[members] = ~row[members]
    return masks
