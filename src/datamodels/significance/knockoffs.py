"""Which influences are real? Selection of training examples at a stated false-discovery rate.

Model-X knockoffs (Candès, Fan, Janson & Lv 2018, arXiv:1610.02351). The subsets were drawn by us, so
the law of the masks is known, and a second, independent draw of the design is a *knockoff* of the
first: a mask of the same law that no model was trained on. A training example is selected when its
weight exceeds that of its knockoff by more than chance lets any knockoff exceed its example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.regression.estimators import Lasso
from datamodels.regression.fit import fit_problem
from datamodels.regression.problem import Problem
from datamodels.regression.source import OUTPUTS, Source
from datamodels.significance import result_file
from datamodels.significance.chosen import strongest_first, summary_of
from datamodels.significance.laws import law_of
from datamodels.spec import MASKS, Rows
from datamodels.store import Store
from datamodels.version import versions

FORMAT_VERSION = 1
Variant = Literal["knockoff+", "knockoff"]

_STREAM = 0x6B6E6F636B  # tells the seeds of knockoffs from other uses of the same numbers


@dataclass(frozen=True, eq=False)
class Selection:
    """Training examples selected per target.

    Attributes
    ----------
    selected
        (n_train, n_targets) bool.
    statistic
        (n_train, n_targets) float32, |w_j| of the example minus that of its knockoff, on standardised
        columns, in output units. Large and positive: real. Symmetric about 0 where there is no influence.
    threshold
        (n_targets,) what the statistic had to reach; inf where nothing is selected.
    fdr
        Of each target: the expected share of selected examples without influence is at most this.
    exact
        Whether that is proven (`bernoulli` designs) or approximate (fixed sums; see `select`).
    n_models
        Rows that took part.
    targets
        (n_targets,) which outputs they are.
    provenance
        Rows used, estimator, seed, variant, versions.
    """

    selected: NDArray[np.bool_]
    statistic: NDArray[np.float32]
    threshold: NDArray[np.float64]
    fdr: float
    exact: bool
    n_models: int
    targets: NDArray[np.int64] = field(repr=False)
    provenance: dict[str, Any] = field(default_factory=dict, repr=False)

    def of(self, target: int) -> NDArray[np.int64]:
        """The training examples selected for a target, (k,) indices, strongest first."""
        return strongest_first(self.selected, self.statistic, target)

    def counts(self) -> NDArray[np.int64]:
        """How many are selected per target, (n_targets,)."""
        return self.selected.sum(axis=0)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready summary."""
        return {
            "fdr": self.fdr,
            "exact": self.exact,
            "n_models": self.n_models,
            **summary_of(self.selected),
        }

    def save(self, path: str | Path) -> Path:
        """Write an AnnData at `path`, ``.h5ad``: X = statisticᵀ, layer ``selected``, obs = targets, var = training examples."""
        facts = {"threshold": self.threshold, "target": self.targets}
        table = Attribution(self.statistic, np.zeros(len(self.threshold)), facts, provenance=self.provenance)
        single = {"fdr": self.fdr, "exact": self.exact, "n_models": self.n_models}
        return result_file.write(path, "selection", FORMAT_VERSION, table, {"selected": self.selected}, single)

    @classmethod
    def load(cls, path: str | Path) -> Selection:
        """Read what `save` wrote."""
        table, layers, single = result_file.read(path, "selection", FORMAT_VERSION)
        return cls(
            selected=layers["selected"].astype(np.bool_),
            statistic=table.weights,
            threshold=table.target_facts["threshold"].astype(np.float64),
            targets=table.target_facts["target"].astype(np.int64),
            provenance=dict(table.provenance),
            **single,
        )


def select(
    source: Store | str | Path | Sequence[Store | str | Path] | None = None,
    *,
    fdr: float = 0.1,
    estimator: Lasso | None = None,
    design: Design | None = None,
    variant: Variant = "knockoff+",
    seed: int = 0,
    masks: NDArray[Any] | str | Path | None = None,
    outputs: NDArray[Any] | str | Path | None = None,
    masks_key: str = MASKS,
    outputs_key: str = OUTPUTS,
    rows: Rows = None,
    targets: Any = None,
    targets_are_train: bool | None = None,
    progress: bool = True,
) -> Selection:
    """Select, per target, training examples whose influence is real, at a false-discovery rate.

    Model-X knockoffs (Candès, Fan, Janson & Lv 2018, arXiv:1610.02351): W_j is |w_j| minus that of its knockoff, a column of another
    draw of the design; selected is W_j ≥ T, with T > 0 the least for which (1 + #{W_j ≤ -T}) / max(1, #{W_j ≥ T}) ≤ ``fdr``.
    ``knockoff`` is without the 1.

    An example counts as a false discovery when the output, whatever its law, does not depend on
    whether the example was in the subset, given the rest of the subset. Neither linearity nor constant
    noise is assumed; that the subsets are random is what makes it valid. The rate holds per target, in
    expectation over subsets and training noise. With ``knockoff+`` either nothing or at least 1/fdr
    examples are selected.

    Parameters
    ----------
    source, masks, outputs, masks_key, outputs_key, rows, targets, targets_are_train
        As in `datamodels.fit`.
    fdr
        The false-discovery rate, in (0, 1).
    estimator
        A `Lasso`, fitted on the n_train examples and their n_train knockoffs together.
    design
        The law of the masks where it is not known (arrays, stores without a design): kind, alpha and
        replicates count, the seed and number of models do not. Row i is row i of the design.
    variant
        ``knockoff+`` controls the false-discovery rate; ``knockoff`` selects more and controls the
        modified rate, E[false / (selected + 1/fdr)].
    seed
        Draws the knockoffs. Other seeds give somewhat other selections, each of them valid; choosing
        among them by their outcome is not.
    progress
        Whether to show progress on standard error.

    Returns
    -------
    Selection
        With ``exact=True`` for `bernoulli` designs. Where subset sizes are fixed (``fixed_size``,
        ``stratified``) it is approximate. Such subsets tell influences up to a constant only, so examples
        without influence lean against those with: the rate holds where influences of both signs balance
        or few examples have any, and is exceeded where many push the same way. In simulations at fdr .1,
        with 5, 10, 20, 30 and 50 % of the examples of one sign: .08, .10, .14, .20 and .44.

    Raises
    ------
    RequestError
        for designs without a valid knockoff (antithetic, grouped, leave_one_out, explicit), unknown
        designs, and masks that contradict ``design``.
    """
    if variant not in get_args(Variant):
        raise RequestError(f"variant {variant!r} is unknown; legal: {', '.join(get_args(Variant))}")
    if seed < 0:
        raise RequestError(f"seed is {seed}; it must be 0 or more")
    estimator = Lasso() if estimator is None else estimator
    if not isinstance(estimator, Lasso):
        raise RequestError(f"the estimator of knockoffs is a Lasso, with any settings; {estimator!r} was given")
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
    return select_problem(problem, fdr, estimator, design, variant=variant, seed=seed, progress=progress)


def select_problem(
    problem: Problem,
    fdr: float,
    estimator: Lasso,
    design: Design | None = None,
    *,
    variant: Variant = "knockoff+",
    seed: int = 0,
    progress: bool = True,
) -> Selection:
    """`select` for rows that were put together already."""
    if not 0 < fdr < 1:
        raise RequestError(f"fdr is {fdr}; give a rate between 0 and 1, for example 0.1")
    laws = [law_of(part, design, problem) for part in problem.sources]
    pairs = [_doubled(part, law, seed) for part, law in zip(problem.sources, laws, strict=True)]
    doubled = replace(problem, sources=tuple(pairs))
    size = np.abs(fit_problem(doubled, estimator, progress=progress).weights) * _deviations(doubled)
    statistic = (size[: problem.n_train] - size[problem.n_train :]).astype(np.float32)
    if problem.train_columns is not None:
        statistic[problem.train_columns, np.arange(problem.n_targets)] = 0
    threshold = knockoff_threshold(statistic, fdr, variant)
    return Selection(
        selected=statistic >= threshold,
        statistic=statistic,
        threshold=threshold,
        fdr=float(fdr),
        exact=all(law.kind == "bernoulli" for law in laws),
        n_models=problem.n_rows,
        targets=problem.targets,
        provenance={
            "estimator": estimator.describe(),
            "sources": problem.rows_used(),
            "designs": [law.to_dict() for law in laws],
            "variant": variant,
            "seed": seed,
            "versions": versions(),
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
        },
    )


def knockoff_threshold(
    statistic: NDArray[np.float32], fdr: float, variant: Variant = "knockoff+"
) -> NDArray[np.float64]:
    """The least T > 0 with (offset + #{j: W_j ≤ -T}) / max(1, #{j: W_j ≥ T}) ≤ fdr, per target.

    ``statistic`` W is (n_train, n_targets); the offset is 1 for knockoff+ and 0 for knockoff. Returns
    (n_targets,), inf where no T will do.
    """
    offset = 1 if variant == "knockoff+" else 0
    out = np.full(statistic.shape[1], np.inf)
    for k, column in enumerate(np.sort(statistic, axis=0).T):
        candidates = np.unique(np.abs(column[column != 0]))
        above = len(column) - np.searchsorted(column, candidates, side="left")
        below = np.searchsorted(column, -candidates, side="right")
        good = candidates[offset + below <= fdr * np.maximum(above, 1)]
        if len(good):
            out[k] = good[0]
    return out


def _doubled(source: Source, law: Design, seed: int) -> Source:
    """A source with masks [X, X~]: X~ drawn like X with another seed, replicates alike.

    The seed follows from that of the design alone, so that stores whose masks were drawn from the same
    random words have knockoffs drawn from the same words too.
    """
    words = np.random.SeedSequence([_STREAM, law.seed, seed]).generate_state(4)
    copy = replace(law, seed=int.from_bytes(words.tobytes(), "little"), n_models=len(source.outputs))

    def both(start: int, stop: int) -> NDArray[Any]:
        return np.concatenate([np.asarray(source.masks(start, stop)), copy.masks(start, stop)], axis=1)

    return replace(
        source,
        masks=both,
        n_train=2 * source.n_train,
        units=law.units(source.rows),
        mask_numbers=source.rows // law.replicates,
    )


def _deviations(problem: Problem) -> NDArray[np.float64]:
    """Standard deviation of each column over the rows of each fit, (n_train, n_targets) or (n_train, 1).

    An example and its knockoff are compared on standardised columns, where the penalty is the same for
    both and weights without influence have the same spread for every example; raw weights would favour
    whichever of the two columns happens to vary less. Either comparison is valid.
    """
    columns = problem.train_columns
    seen, count = np.zeros((problem.n_train, 1)), np.zeros(1)
    for x, _ in replace(problem, targets=problem.targets[:1], train_columns=None).chunks():
        fitted = np.ones((len(x), 1), np.float32) if columns is None else (~x[:, columns]).astype(np.float32)
        seen = seen + x.T.astype(np.float32) @ fitted
        count = count + fitted.sum(axis=0, dtype=np.float64)
    mean = seen / count
    return np.sqrt(mean * (1 - mean))
