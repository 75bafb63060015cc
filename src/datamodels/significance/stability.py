"""Which influences come back? Stability selection over complementary half-samples.

Meinshausen & Bühlmann 2010; complementary pairs and their bound: Shah & Samworth 2013, arXiv:1105.5578.
Needs no assumption on the design but that its units are independent draws.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.progress import Progress
from datamodels.regression.estimator import Estimator
from datamodels.regression.estimators import Lasso
from datamodels.regression.fit import fit_problem, resolve
from datamodels.regression.problem import Problem
from datamodels.regression.source import OUTPUTS
from datamodels.significance import result_file
from datamodels.significance.chosen import strongest_first, summary_of
from datamodels.spec import MASKS, Rows
from datamodels.store import Store
from datamodels.version import versions

FORMAT_VERSION = 1
_FEWEST_UNITS = 8


@dataclass(frozen=True, eq=False)
class Stability:
    """How often each training example is among the strongest of a half-sample.

    Attributes
    ----------
    frequency
        (n_train, n_targets) float32, the share of half-samples in which the example is one of the ``q``
        strongest of the target.
    selected
        (n_train, n_targets) bool, frequency at or above ``threshold``.
    threshold
        The π of the bound, in (½, 1].
    q
        How many examples a half-sample names per target, at most.
    bound
        Per target, the expected number of selected examples whose chance to be named on a half-sample is
        no better than q / n_train is at most this: q² / ((2π - 1) n_train).
    halves, n_models
        Half-samples, and rows in all.
    targets
        (n_targets,) which outputs they are.
    provenance
        Rows used, estimator, seed, versions.
    """

    frequency: NDArray[np.float32]
    selected: NDArray[np.bool_]
    threshold: float
    q: int
    bound: float
    halves: int
    n_models: int
    targets: NDArray[np.int64] = field(repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    def of(self, target: int) -> NDArray[np.int64]:
        """The training examples selected for a target, (k,) indices, most frequent first."""
        return strongest_first(self.selected, self.frequency, target)

    def counts(self) -> NDArray[np.int64]:
        """How many are selected per target, (n_targets,)."""
        return self.selected.sum(axis=0)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready summary."""
        return {
            "threshold": self.threshold,
            "q": self.q,
            "bound": self.bound,
            "halves": self.halves,
            "n_models": self.n_models,
            **summary_of(self.selected),
        }

    def save(self, path: str | Path) -> Path:
        """Write an AnnData at `path`, ``.h5ad``: X = frequencyᵀ, layer ``selected``, obs = targets, var = training examples."""
        table = Attribution(
            self.frequency, np.zeros(len(self.targets)), {"target": self.targets}, provenance=self.provenance
        )
        single = {name: getattr(self, name) for name in ("threshold", "q", "bound", "halves", "n_models")}
        return result_file.write(path, "stability", FORMAT_VERSION, table, {"selected": self.selected}, single)

    @classmethod
    def load(cls, path: str | Path) -> Stability:
        """Read what `save` wrote."""
        table, layers, single = result_file.read(path, "stability", FORMAT_VERSION)
        return cls(
            frequency=table.weights,
            selected=layers["selected"].astype(np.bool_),
            targets=table.target_facts["target"].astype(np.int64),
            provenance=table.provenance,
            **single,
        )


def stability(
    source: Store | str | Path | Sequence[Store | str | Path] | None = None,
    *,
    halves: int = 50,
    estimator: Estimator | None = None,
    threshold: float = 0.75,
    q: int | None = None,
    seed: int = 0,
    masks: NDArray[Any] | str | Path | None = None,
    outputs: NDArray[Any] | str | Path | None = None,
    masks_key: str = MASKS,
    outputs_key: str = OUTPUTS,
    rows: Rows = None,
    targets: Any = None,
    targets_are_train: bool | None = None,
    progress: bool = True,
) -> Stability:
    """Select, per target, training examples that are strong on most half-samples of the models.

    Stability selection (Meinshausen & Bühlmann 2010) over complementary half-samples (Shah & Samworth 2013, arXiv:1105.5578): a
    training example is selected when the share of half-samples that name it is at least ``threshold``. The models are split at random
    into two halves, ``halves / 2`` times over; whole design units (replicates, antithetic pairs) stay together. On each half the
    estimator is fitted and names the ``q`` training examples of the largest |weight| that is not 0.

    Parameters
    ----------
    source, masks, outputs, masks_key, outputs_key, rows, targets, targets_are_train
        As in `datamodels.fit`.
    halves
        Number of half-samples, even. The bound holds for any; frequencies are multiples of 1 / halves.
    estimator
        Fitted on every half; ``Lasso(n_lambdas=30, eps=0.01)`` by default, since only order counts.
    threshold
        Frequency π at which an example is selected, ½ < π ≤ 1.
    q
        How many each half names at most; by default the largest for which the bound is at most 1.
    seed
        Draws the half-samples.
    progress
        Whether to show progress on standard error.

    Returns
    -------
    Stability
        Its ``bound`` is Theorem 1 of Shah & Samworth with θ = q / n_train, which assumes nothing about
        the estimator. It is the number of Meinshausen & Bühlmann too, whose reading of it (expected number
        of selected examples without influence) assumes that such examples are exchangeable and the
        estimator better than guessing. It is a worst case: far fewer errors are usual.

    Raises
    ------
    RequestError
        when there are too few models, or an option is out of range.
    """
    if halves < 2 or halves % 2:
        raise RequestError(f"halves is {halves}; give an even number, for example 50: they come in complementary pairs")
    if not 0.5 < threshold <= 1:
        raise RequestError(f"threshold is {threshold}; it must be above 0.5 and at most 1, for example 0.75")
    if seed < 0:
        raise RequestError(f"seed is {seed}; it must be 0 or more")
    problem = Problem.build(
        source,
        masks=masks,
        outputs=outputs,
        masks_key=masks_key,
        outputs_key=outputs_key,
        rows=rows,
        targets=targets,
        targets_are_train=targets_are_train,
    )
    # A target's own example cannot be named, so there is one candidate less.
    candidates = problem.n_train - (problem.train_columns is not None)
    if q is None:
        q = max(1, int(np.sqrt((2 * threshold - 1) * candidates)))
    if not 1 <= q <= candidates:
        raise RequestError(f"q is {q}; it must be from 1 to the number of training examples, {candidates}")
    chosen = Lasso(n_lambdas=30, eps=0.01) if estimator is None else resolve(estimator)
    frequency = _frequencies(problem, chosen, halves, q, seed, progress)
    return Stability(
        frequency=frequency,
        selected=frequency >= np.float32(threshold),
        threshold=float(threshold),
        q=int(q),
        bound=float(q**2 / ((2 * threshold - 1) * candidates)),
        halves=halves,
        n_models=problem.n_rows,
        targets=problem.targets,
        provenance={
            "estimator": chosen.describe(),
            "sources": problem.rows_used(),
            "seed": seed,
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def _frequencies(
    problem: Problem, estimator: Estimator, halves: int, q: int, seed: int, progress: bool
) -> NDArray[np.float32]:
    named = np.zeros((problem.n_train, problem.n_targets), dtype=np.int64)
    with Progress("half-samples", halves, "fits", show=progress) as bar:
        for half in _half_samples(problem.units, halves, seed):
            weights = fit_problem(problem.take(half), estimator, progress=False).weights
            named += strongest(weights, q)
            bar.advance()
    return (named / halves).astype(np.float32)


def _half_samples(units: NDArray[np.int64], halves: int, seed: int) -> Iterator[NDArray[np.bool_]]:
    """Rows of each half-sample, bool (m,): pairs of disjoint halves of the design units."""
    names = np.unique(units)
    size = len(names) // 2
    if len(names) < _FEWEST_UNITS:
        raise RequestError(
            f"{len(names)} independent models are too few to split in halves; {_FEWEST_UNITS} at least are needed"
        )
    rng = np.random.default_rng([seed, 0x68616C66])
    for _ in range(halves // 2):
        order = rng.permutation(names)
        for part in (order[:size], order[size : 2 * size]):
            yield np.isin(units, part)


def strongest(weights: NDArray[np.float32], q: int) -> NDArray[np.bool_]:
    """The q largest |weights| (n_train, n_targets) of each target that are not 0, as a bool mask."""
    size = np.abs(weights)
    order = np.argsort(-size, axis=0, kind="stable")[:q]
    out = np.zeros(size.shape, dtype=np.bool_)
    np.put_along_axis(out, order, True, axis=0)
    return out & (size > 0)
