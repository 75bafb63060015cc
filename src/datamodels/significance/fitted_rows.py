"""The rows that an attribution was fitted on, found again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.regression.problem import Problem
from datamodels.regression.source import OUTPUTS, Source
from datamodels.spec import MASKS

_REFUSED = {
    "antithetic": "its models come in complementary pairs, which are no independent rows",
    "grouped": "the examples of one group are never apart, so their weights cannot be told from each other",
    "leave_one_out": "its columns are not independent of each other",
}


def fitted_problem(
    attribution: Attribution,
    source: Any,
    masks: Any,
    outputs: Any,
    masks_key: str | None,
    outputs_key: str | None,
) -> Problem:
    """The rows that an attribution was fitted on, and its targets."""
    estimator = attribution.provenance.get("estimator", {})
    if estimator.get("name") != "lasso" or not estimator.get("intercept", True):
        raise RequestError(
            f"intervals are those of a lasso with intercept; this attribution is of {estimator.get('name', 'unknown')!r}"
            f"{'' if estimator.get('intercept', True) else ' without intercept'}: fit one with Lasso()"
        )
    entries: Sequence[Mapping[str, Any]] = attribution.provenance.get("sources", [])
    if not entries:
        raise RequestError("this attribution does not say which rows it was fitted on: fit it again with Lasso()")
    problem = Problem.build(
        source,
        masks=masks,
        outputs=outputs,
        masks_key=masks_key or entries[0].get("masks_key", MASKS),
        outputs_key=outputs_key or entries[0].get("outputs_key", OUTPUTS),
        targets_are_train=False,
    )
    if problem.n_train != attribution.n_train:
        raise RequestError(f"the attribution has {attribution.n_train} train examples, the masks {problem.n_train}")
    chosen = np.asarray(attribution.target_facts.get("target", np.arange(attribution.n_targets)), dtype=np.int64)
    if len(chosen) and chosen.max() >= problem.n_targets:
        raise RequestError(f"the attribution has targets up to {chosen.max()}, the outputs {problem.n_targets}")
    _check_designs(problem)
    return replace(_fitted_rows(problem, entries), targets=problem.targets[chosen])


def _fitted_rows(problem: Problem, entries: Sequence[Mapping[str, Any]]) -> Problem:
    """The rows that are named in provenance: by number, or by mask in a copy of the files."""
    used = {entry["identity"]: np.asarray(entry["rows"], dtype=np.int64) for entry in entries}
    hashes = np.concatenate([np.asarray(entry.get("mask_hashes", []), dtype=np.uint64) for entry in entries])
    parts = []
    for part in problem.sources:
        known = part.identity in used
        keep = np.isin(part.rows, used[part.identity]) if known else np.isin(part.mask_hashes(), hashes)
        parts.append(part.take(keep))
    wanted, found = sum(map(len, used.values())), sum(len(part.rows) for part in parts)
    if found != wanted:
        raise RequestError(
            f"the fit used {wanted} rows, of which {found} were found here: give all the stores or arrays it was fitted "
            "on, and no others"
        )
    return replace(problem, sources=tuple(part for part in parts if len(part.rows)))


def fixed_sums(problem: Problem) -> NDArray[np.int64] | None:
    """Labels (n_train,) of the parts of the training set of which every subset holds a fixed number.

    One part for ``fixed_size``, the strata for ``stratified``, None where sizes vary. Masks of unknown
    design are judged by their sizes.
    """
    design = _design(problem.sources[0])
    if design.get("kind") == "stratified":
        return np.asarray(design["strata"], dtype=np.int64)
    whole = np.zeros(problem.n_train, dtype=np.int64)
    if design.get("kind") in ("fixed_size", "bernoulli"):
        return whole if design["kind"] == "fixed_size" else None
    sizes = {int(size) for x, _ in replace(problem, targets=problem.targets[:1]).chunks() for size in x.sum(axis=1)}
    return whole if len(sizes) == 1 else None


def mask_groups(problem: Problem) -> NDArray[Any]:
    """Equal labels (m,) for rows of one mask: by the design, or by the masks themselves where it is not known."""
    if all(_design(part) for part in problem.sources):
        return problem.mask_numbers
    return np.concatenate([part.mask_hashes() for part in problem.sources])


def _design(source: Source) -> dict[str, Any]:
    """The description of the design of a source's masks, empty where it is not known."""
    known = source.description.get("masks_key") == MASKS
    return (source.description.get("design") or {}) if known else {}


def _check_designs(problem: Problem) -> None:
    designs = [_design(part) for part in problem.sources]
    for design in designs:
        if design.get("kind") in _REFUSED:
            kind = design["kind"]
            raise RequestError(
                f"there are no intervals for a design of kind {kind!r}: {_REFUSED[kind]}; use 'bernoulli' or 'fixed_size'"
            )
    if len({str([design.get(name) for name in ("kind", "alpha", "strata")]) for design in designs}) > 1:
        raise RequestError(
            "the stores have subsets of different designs, so that columns are dependent when put together: fit each "
            "store alone"
        )
