"""Is a run right? Its attributions are judged on models that no fit has used; the results lie in ``results.json``."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from datamodels.attribution import Attribution
from datamodels.errors import RequestError, first_line
from datamodels.files import replacing
from datamodels.regression.calibration import output_key
from datamodels.run import Run
from datamodels.store import Store

if TYPE_CHECKING:
    from datamodels.evaluation.curve import Curve
    from datamodels.evaluation.lds import LDS

RESULTS = "results.json"
_AHEAD = 4  # times as many models


@dataclass(frozen=True, eq=False)
class Judgement:
    """What was found.

    Attributes
    ----------
    scores
        By name of the attribution.
    curve
        LDS of the default attribution's estimator against the number of models, None where it is not judged.
    """

    scores: Mapping[str, LDS] = field(default_factory=dict)
    curve: Curve | None = None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready: ``attributions`` and ``curve``, with estimates for more models in ``ahead``."""
        return {
            "attributions": {name: score.to_dict() for name, score in self.scores.items()},
            "curve": None if self.curve is None else {**self.curve.to_dict(), "ahead": _ahead(self.curve)},
        }


def judge_run(folder: str | Path, *, progress: bool = True) -> Judgement:
    """Score every attribution of a run that names a test store, on rows that its fit has not used, and draw the curve of the one that is
    shown first where its test store is another than that of the fit.

    Parameters
    ----------
    folder
        Of the run.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when an attribution cannot be judged on its test store.
    """
    folder = Path(folder)
    run = Run.load(folder)
    judged = {name: item for name, item in run.attributions.items() if item.test is not None}
    attributions = {name: Attribution.load(folder / item.path) for name, item in judged.items()}
    scores = {}
    for name, item in judged.items():
        try:
            scores[name] = judge(attributions[name], [run.place(folder, str(item.test))])
        except RequestError as error:
            raise RequestError(f"{name!r} cannot be judged on the store {item.test!r}: {first_line(error)}") from None
    name = run.view.neighbours
    if name not in judged or judged[name].store is None:
        return Judgement(scores)
    store, test = (Store.open(run.place(folder, str(key))) for key in (judged[name].store, judged[name].test))
    if store.identity == test.identity:  # the curve needs a test store of its own
        return Judgement(scores)
    return Judgement(scores, _growth(attributions[name], store, test, progress))


def name_of(provenance: Mapping[str, Any], path: Path) -> str:
    """What the attribution of a file is called: as its estimator, or as the file."""
    return str(provenance.get("estimator", {}).get("name", path.stem))


def judge(
    attribution: Attribution,
    stores: Sequence[str | Path],
    *,
    masks_key: str | None = None,
    outputs_key: str | None = None,
) -> LDS:
    """The score of an attribution on the rows of stores that its fit has not used; the outputs are those of the fit by default, and the
    margins of what the targets are where nothing was fitted."""
    from datamodels.evaluation.lds import lds

    return lds(attribution, list(stores), masks_key=masks_key, outputs_key=outputs_key or output_key(attribution))


def save_results(folder: Path, results: Mapping[str, Any]) -> None:
    """Write ``results.json`` in one step."""
    with replacing(folder / RESULTS) as temporary:
        temporary.write_text(json.dumps(results, indent=1), encoding="utf-8")


def _growth(attribution: Attribution, store: Store, test: Store, progress: bool) -> Curve:
    """The curve of the estimator, rows and targets of an attribution."""
    from datamodels.evaluation.curve import curve
    from datamodels.regression.estimators import from_description

    (source,) = attribution.provenance["sources"]
    return curve(
        store,
        from_description(attribution.provenance["estimator"]),
        test=test,
        rows=source["rows"],
        targets=attribution.target_facts.get("target", np.arange(attribution.n_targets)),
        fitted=attribution,
        progress=progress,
        masks_key=source["masks_key"],
        outputs_key=source["outputs_key"],
    )


def _ahead(found: Curve) -> list[dict[str, float]] | None:
    """Estimates up to four times as many models; None when the curve allows none."""
    last = int(found.sizes[-1])
    estimates = [(float(size), found.at(size)) for size in np.geomspace(last, _AHEAD * last, 9)]
    return [{"models": size, "lds": lds} for size, lds in estimates if lds is not None] or None
