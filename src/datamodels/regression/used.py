"""Which rows an attribution has used: they must not judge it, nor be used twice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.regression.problem import Problem


def used_rows(problem: Problem, sources: Sequence[Mapping[str, Any]]) -> NDArray[np.bool_]:
    """Which rows are among those that an attribution names as used, (m,): by number, or by mask in a copy of the files."""
    used = {entry["identity"]: np.asarray(entry["rows"], dtype=np.int64) for entry in sources}
    hashes = [np.asarray(entry["mask_hashes"], dtype=np.uint64) for entry in sources if "mask_hashes" in entry]
    parts = []
    for part in problem.sources:
        taken = np.zeros(len(part.rows), dtype=np.bool_)
        if part.identity in used:
            taken = np.isin(part.rows, used[part.identity])
        elif hashes:
            mine = part.mask_hashes()
            by_chance = len(np.unique(mine)) < len(np.unique(part.mask_numbers))
            taken = taken if by_chance else np.isin(mine, np.concatenate(hashes))
        parts.append(taken)
    return np.concatenate(parts)


def without(problem: Problem, taken: NDArray[np.bool_]) -> Problem:
    """The rows whose design units hold none of those `taken`, (m,): a replicate of a used row has seen the same subset."""
    return problem.take(~np.isin(problem.units, problem.units[taken]))


def all_sources(*lists: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Rows used, of several lists of sources: one entry per identity, each row once."""
    out: dict[str, dict[str, Any]] = {}
    for entry in (entry for entries in lists for entry in entries):
        old = out.get(entry["identity"])
        if old is None:
            out[entry["identity"]] = dict(entry)
            continue
        rows, first = np.unique(np.concatenate([old["rows"], entry["rows"]]), return_index=True)
        merged = {**old, "rows": rows}
        if "mask_hashes" not in entry:
            merged.pop("mask_hashes", None)
        elif "mask_hashes" in old:
            merged["mask_hashes"] = np.concatenate([old["mask_hashes"], entry["mask_hashes"]])[first]
        out[entry["identity"]] = merged
    return list(out.values())
