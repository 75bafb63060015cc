"""LDS of several attributions side by side, on the same models and with the same resamplings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.evaluation.lds import LDS, score, unused_rows
from datamodels.regression.calibration import positions_of
from datamodels.regression.problem import Problem
from datamodels.regression.source import OUTPUTS
from datamodels.spec import MASKS, Rows


class Difference(NamedTuple):
    """LDS of a method minus that of the reference.

    Attributes
    ----------
    value
        The difference.
    low, high
        Its paired bootstrap interval.
    """

    value: float
    low: float
    high: float

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out 0."""
        return self.low > 0 or self.high < 0


@dataclass(frozen=True, eq=False)
class Comparison:
    """LDS by method.

    Attributes
    ----------
    scores
        name -> `LDS`, in the order given.
    reference
        Name of the method that the others are compared with.
    differences
        name -> `Difference` to the reference, for all others. Design units and targets are resampled once for all methods,
        so what a hard row or target does to both cancels.
    """

    scores: Mapping[str, LDS]
    reference: str
    differences: Mapping[str, Difference]

    def table(self) -> list[dict[str, Any]]:
        """One row per method, best first: ``method``, ``lds``, ``lds_low``, ``lds_high``, and ``difference``,
        ``difference_low``, ``difference_high`` to the reference (None in its own row)."""
        rows = []
        for name, found in sorted(self.scores.items(), key=lambda item: -item[1].lds):
            value, low, high = self.differences.get(name, (None, None, None))
            rows.append(
                {
                    "method": name,
                    "lds": found.lds,
                    "lds_low": found.lds_ci[0],
                    "lds_high": found.lds_ci[1],
                    "difference": value,
                    "difference_low": low,
                    "difference_high": high,
                }
            )
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        first = self.scores[self.reference]
        facts = {
            name: getattr(first, name) for name in ("n_models", "n_units", "n_targets", "lds_ceiling", "confidence")
        }
        return {"reference": self.reference, **facts, "methods": self.table()}


def compare_lds(
    attributions: Mapping[str, Attribution | str | Path],
    source: Any = None,
    *,
    reference: str | None = None,
    masks: NDArray[Any] | str | Path | None = None,
    outputs: NDArray[Any] | str | Path | None = None,
    masks_key: str | None = None,
    outputs_key: str | None = None,
    rows: Rows = None,
    draws: int = 1000,
    confidence: float = 0.95,
    seed: int = 0,
) -> Comparison:
    """Score attributions on models that none of them has used (see `lds`).

    Parameters
    ----------
    attributions
        name -> attribution or its file. All must be of the same targets, and in the same way: of train examples (out of
        mask) or not.
    source, masks, outputs, masks_key, outputs_key
        Where held-out models are, as in `lds`.
    reference
        Name of the one that others are compared with; by default the first.
    rows
        Which rows; by default all that no fit has used. They must be named when one of the attributions does not say what it
        has used (an empty list of sources in its provenance says: none).
    draws, confidence, seed
        Of the bootstrap intervals.

    Raises
    ------
    RequestError
        when targets differ, when rows were named that a fit has used, or when none are left.
    """
    if not attributions:
        raise RequestError("there is no attribution to score; give {name: attribution}")
    found = {n: a if isinstance(a, Attribution) else Attribution.load(a) for n, a in attributions.items()}
    reference = next(iter(found)) if reference is None else reference
    if reference not in found:
        raise RequestError(f"reference {reference!r} is unknown; legal: {', '.join(found)}")
    unknown = [name for name, one in found.items() if "sources" not in one.provenance]
    if unknown and rows is None:
        raise RequestError(
            f"{unknown[0]!r} does not say which models it has used: name the rows to evaluate with rows, or put "
            "'sources': [] in its provenance when it has used none"
        )
    fitted: Mapping[str, Any] = next((s for one in found.values() for s in one.provenance.get("sources", [])), {})
    problem = Problem.build(
        source,
        masks=masks,
        outputs=outputs,
        rows=rows,
        targets_are_train=False,
        masks_key=masks_key or fitted.get("masks_key", MASKS),
        outputs_key=outputs_key or fitted.get("outputs_key", OUTPUTS),
    )
    targets = _shared_targets(found, problem.n_targets)
    problem = replace(problem, targets=problem.targets[targets])
    for one in found.values():
        if one.provenance.get("sources"):
            problem = unused_rows(one, problem, named=rows is not None)
    if problem.n_rows < 3:
        raise RequestError(f"{problem.n_rows} rows are given; at least 3 are needed to rank models")
    scores = {n: score(one, problem, draws=draws, confidence=confidence, seed=seed) for n, one in found.items()}
    tails = [(1 - confidence) / 2, (1 + confidence) / 2]
    differences = {}
    against = scores[reference]
    for name, judged in scores.items():
        if name != reference:
            low, high = np.quantile(judged.bootstrap - against.bootstrap, tails)
            differences[name] = Difference(judged.lds - against.lds, float(low), float(high))
    return Comparison(scores, reference, differences)


def _shared_targets(attributions: Mapping[str, Attribution], n_outputs: int) -> NDArray[np.int64]:
    """The outputs that all attributions are of, (n_targets,)."""
    first, one = next(iter(attributions.items()))
    wanted = positions_of(one, repr(first))
    for name, other in attributions.items():
        if "target" not in other.target_facts and other.n_targets != n_outputs:
            raise RequestError(
                f"{name!r} has {other.n_targets} targets and does not say which of the {n_outputs} outputs they are: add "
                "target_facts['target']"
            )
        if not np.array_equal(wanted, positions_of(other, repr(name))):
            raise RequestError(
                f"{first!r} and {name!r} are not of the same targets in the same order; choose common ones with "
                "attribution[targets]"
            )
        if not np.array_equal(one.train_columns, other.train_columns):  # type: ignore[arg-type]
            raise RequestError(
                f"the targets of {first!r} and {name!r} are not the same training examples, or those of one are test "
                "examples: give both the same train_columns"
            )
    if len(wanted) and wanted.max() >= n_outputs:
        raise RequestError(f"the attributions have targets up to {wanted.max()}; there are {n_outputs} outputs")
    return wanted
