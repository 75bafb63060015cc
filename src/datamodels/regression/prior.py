"""Datamodels with a prior: another attribution, cheap and rough, says which training examples are likely to matter.

An example with a large prior score gets a small penalty factor, so that it enters the path early. How far the
prior is trusted is chosen per target on the same held-out rows as λ; not at all is one of the choices, so a useless
prior costs time and little else. Held-out rows can choose only for a prior that has not seen them, so the prior may not have used
any of the rows that are fitted.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.regression.calibration import check_finite, positions_of
from datamodels.regression.problem import Problem
from datamodels.regression.solution import Solution
from datamodels.regression.used import used_rows

_LARGEST = 20
# (exponent, floor) that are tried beside no prior at all.
CHOICES = ((0.25, 0.05), (0.5, 0.05), (0.5, 0.2), (1.0, 0.05), (1.0, 0.2))


def prior_factors(
    prior: Attribution | NDArray[Any], *, exponent: float = 0.5, floor: float = 0.05
) -> NDArray[np.float64]:
    """Penalty factors (n_train, n_targets) from scores of the same shape.

    ``s_j = min(1, |score_j| / mean of the target's 20 largest |score|)`` and ``p_j = 1 / (s_j^exponent + floor)``, scaled to mean 1 per
    target.

    Raises
    ------
    RequestError
        when scores are not finite, or exponent and floor not above 0.
    """
    scores = np.abs(prior.weights if isinstance(prior, Attribution) else np.asarray(prior), dtype=np.float64)
    if not np.isfinite(scores).all():
        raise RequestError("the prior has scores that are NaN or infinite")
    if exponent <= 0 or floor <= 0:
        raise RequestError(f"exponent is {exponent} and floor {floor}; both must be above 0")
    largest = min(_LARGEST, len(scores))
    reference = np.partition(scores, len(scores) - largest, axis=0)[-largest:].mean(axis=0)
    share = np.minimum(np.divide(scores, reference, out=np.zeros_like(scores), where=reference > 0), 1.0)
    factors = 1.0 / (share**exponent + floor)
    return factors / factors.mean(axis=0)


def describe_scores(scores: Attribution) -> dict[str, Any]:
    """What provenance says of a prior or an offset: how it came to be, and a hash of its scores."""
    made = scores.provenance.get("estimator", {})
    digest = hashlib.sha256(np.ascontiguousarray(scores.weights).tobytes()).hexdigest()
    return {"name": str(made.get("name", "unknown")), "sha256": digest}


def solve_with_prior(
    solve: Callable[[NDArray[np.float64] | None], Solution],
    prior: Attribution,
    penalty: NDArray[np.float64] | None,
) -> Solution:
    """The solution per target of the choice with the largest held-out R².

    Parameters
    ----------
    solve
        Penalty factors (n_train, n_targets) -> a solution with the fact ``val_r2``.
    penalty
        Factors of the user's, which multiply those of the prior.

    Returns
    -------
    Solution
        With the facts ``prior_exponent`` and ``prior_floor``, (n_targets,); 0 where no prior was best.
    """
    best = solve(penalty)
    zeros = np.zeros(len(best.bias))
    best = replace(best, facts={**best.facts, "prior_exponent": zeros, "prior_floor": zeros})
    for exponent, floor in CHOICES:
        factors = prior_factors(prior, exponent=exponent, floor=floor)
        if penalty is not None:
            factors = factors * (penalty if penalty.ndim == 2 else penalty[:, None])
        other = solve(factors)
        facts = {
            **other.facts,
            "prior_exponent": np.full(len(other.bias), exponent),
            "prior_floor": np.full(len(other.bias), floor),
        }
        better = other.facts["val_r2"] > best.facts["val_r2"]
        best = picked(better, replace(other, facts=facts), best)
    return best


def picked(first: NDArray[np.bool_], one: Solution, other: Solution) -> Solution:
    """Targets of `one` where `first` (n_targets,) says so, else of the other; the facts are those that the other has."""
    return Solution(
        np.where(first, one.weights, other.weights),
        np.where(first, one.bias, other.bias),
        {
            name: np.where(first.reshape(-1, *[1] * (value.ndim - 1)), one.facts[name], value)
            for name, value in other.facts.items()
        },
    )


def check_scores(scores: Attribution, problem: Problem, name: str) -> None:
    """Whether a prior or an offset, as `name` says, may be used on rows.

    Raises
    ------
    RequestError
        when scores are not finite, not of the same examples and targets, or have used some of the rows.
    """
    check_finite(scores, name)
    check_shape(scores, problem.n_train, problem.n_targets, name)
    stated = positions_of(scores, name)
    if "target" in scores.target_facts and not np.array_equal(stated, problem.targets):
        first = int((stated != problem.targets).argmax())
        raise RequestError(
            f"the {name} is of other targets: its target {first} is output {stated[first]} (target_facts['target']), and output "
            f"{problem.targets[first]} is fitted there; choose the same ones in the same order, with fit(..., targets=...) or "
            f"{name}[targets]"
        )
    if scores.train_columns is not None and not np.array_equal(scores.train_columns, problem.train_columns):  # type: ignore[arg-type]
        raise RequestError(
            f"the targets of the {name} are training examples (train_columns), and those that are fitted are "
            + ("not" if problem.train_columns is None else "others")
            + ": score the same ones, or say targets_are_train=True where the outputs are of training examples"
        )
    taken = used_rows(problem, scores.provenance.get("sources", []))
    if taken.any():
        raise RequestError(
            f"the {name} has used {int(taken.sum())} of the {len(taken)} rows, so that it looks better there than it is: fit on rows "
            "that it has not used"
        )


def check_shape(scores: Attribution, n_train: int, n_targets: int, name: str = "prior") -> None:
    """Raise RequestError when a prior, or what `name` says, is not of so many examples and targets."""
    if scores.weights.shape != (n_train, n_targets):
        raise RequestError(
            f"the {name} scores {scores.n_train} training examples for {scores.n_targets} targets; the outputs are of {n_train} "
            f"and {n_targets}: score the same ones, or take some with {name}[targets]"
        )
