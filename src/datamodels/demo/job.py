"""The demo: digits with hidden subgroups, from empty folder to page. Interrupted, it goes on where it was."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datamodels.datasets import digits
from datamodels.demo.task import EPOCHS, RECIPE
from datamodels.design import Design
from datamodels.errors import CampaignError, RequestError
from datamodels.progress import note
from datamodels.regression.estimators import Lasso, Ridge
from datamodels.regression.fit import fit
from datamodels.report.run_report import report_run
from datamodels.run import Run, RunAttribution, View
from datamodels.store import Store
from datamodels.training.campaign import train

MODELS = 4000
_FEWEST = 160


@dataclass(frozen=True)
class _Part:
    """One store of the demo: subsets of `alpha`, trained by a function of `demo.task`."""

    name: str
    alpha: float
    n_models: int
    seed: int
    replicates: int
    task: str


def _parts(models: int) -> list[_Part]:
    """Per subset size 7/8 of the models to fit, and 1/8 to judge on: two runs of each of their masks."""
    judged = models // 16 * 2
    fitted = models - judged
    return [
        _Part("half", 0.5, fitted, 0, 1, "half"),
        _Part("half_test", 0.5, judged, 1, 2, "half"),
        _Part("tenth", 0.1, fitted, 2, 1, "tenth"),
        _Part("tenth_test", 0.1, judged, 3, 2, "tenth"),
    ]


def run_demo(
    out: str | Path, *, models: int = MODELS, jobs: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Train, fit, judge and draw.

    Parameters
    ----------
    out
        Folder of the run. A folder where the demo was interrupted is gone on with.
    models
        Networks per subset size (there are two sizes); 7/8 of them are fitted, 1/8 judge the fit.
    jobs
        Worker processes; by default one per CPU.

    Returns
    -------
    dict
        ``lds``, ``lds_ci``, ``lds_ceiling``, ``ari``, ``ari_baseline``, ``nmi``, ``nmi_baseline``, ``models``, ``trained``
        (how many of them now), ``seconds`` and ``page``.

    Raises
    ------
    RequestError
        when the folder holds a demo of another size.
    CampaignError
        when some of the networks could not be trained.
    """
    started = time.monotonic()
    if models < _FEWEST:
        raise RequestError(f"models is {models}; the demo needs at least {_FEWEST}")
    folder = Path(out)
    parts = _parts(models)
    stores, trained = {}, {}
    for part in parts:
        stores[part.name], trained[part.name] = _train(folder, part, jobs, progress)
    for name, estimator, store in (("lasso", Lasso(), "half"), ("ridge", Ridge(), "tenth")):
        fit(stores[store], estimator, progress=progress).save(folder / f"{name}.h5ad")
    run = Run(
        title="Which digits make the network say so?",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset="digits",
        task="datamodels.demo.task",
        commands=[f"datamodels demo --out {out}" + (f" --models {models}" if models != MODELS else "")],
        recipe={**RECIPE, "epochs": EPOCHS},
        stores={part.name: part.name for part in parts},
        attributions={
            "lasso": RunAttribution(path="lasso.h5ad", store="half", test="half_test"),
            "ridge": RunAttribution(path="ridge.h5ad", store="tenth", test="tenth_test"),
        },
        view=View(neighbours="lasso", embedding="ridge"),
    )
    run.save(folder)
    results = report_run(folder, progress=progress)
    score, groups = results["attributions"]["lasso"], results["subgroups"]
    return {
        **{name: score[name] for name in ("lds", "lds_ci", "lds_ceiling")},
        **{name: groups[name] for name in ("ari", "ari_baseline", "nmi", "nmi_baseline")},
        "models": sum(part.n_models for part in parts),
        "trained": sum(trained.values()),
        "seconds": round(time.monotonic() - started, 1),
        "page": results["page"],
    }


def _train(folder: Path, part: _Part, jobs: int | None, progress: bool) -> tuple[Store, int]:
    """The complete store of one part, and how many networks were trained for it now."""
    data = digits()
    design = Design(
        n_train=len(data.train),
        alpha=part.alpha,
        n_models=part.n_models,
        seed=part.seed,
        replicates=part.replicates,
    )
    path = folder / part.name
    schema = {"margins": {"shape": (len(data.test),), "dtype": "float32"}}
    store = Store.open_or_create(path, schema=schema, design=design, labels=data.train.y)
    if progress:
        note(f"{part.name}: {part.n_models} networks, each on {part.alpha:.0%} of {len(data.train)} digits")
    summary = train(store, f"datamodels.demo.task:{part.task}", jobs=jobs, progress=progress)
    if not summary.ok:
        raise CampaignError(
            f"{len(summary.failed)} networks failed; their logs are in {path / 'failures'}; run it again to retry"
        )
    return store, summary.done
