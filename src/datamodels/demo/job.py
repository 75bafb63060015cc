"""The demo: digits with hidden subgroups, from empty folder to page. Interrupted, it goes on where it was."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from datamodels.errors import RequestError
from datamodels.experiment import Fit, Part, run_experiment
from datamodels.regression.estimators import Lasso, Ridge
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe

MODELS = 4000
_FEWEST = 160
_RECIPE = Recipe(architecture="mlp", hidden=(32,), batch_size=32, lr=0.1, weight_decay=5e-3, schedule="linear")
HALF = TrainRecipe(_RECIPE.with_parameters({"epochs": 15}), "digits")
TENTH = TrainRecipe(_RECIPE.with_parameters({"epochs": 25}), "digits")


def _parts(models: int) -> list[Part]:
    """Per subset size 7/8 of the models to fit, and 1/8 to judge on: two runs of each of their masks."""
    judged = models // 16 * 2
    fitted = models - judged
    return [
        Part("half", HALF, 0.5, fitted, seed=0),
        Part("half_test", HALF, 0.5, judged, seed=1, replicates=2),
        Part("tenth", TENTH, 0.1, fitted, seed=2),
        Part("tenth_test", TENTH, 0.1, judged, seed=3, replicates=2),
    ]


def run_demo(
    out: str | Path, *, models: int = MODELS, jobs: int | None = None, progress: bool = True
) -> dict[str, Any]:
    """Train, fit, judge and draw.

    Parameters
    ----------
    out
        Folder of the run. A folder where the demo was interrupted, or was smaller, is gone on with.
    models
        Networks per subset size (there are two sizes); 7/8 of them are fitted, 1/8 judge the fit.
    jobs
        Worker processes; by default one per CPU.
    progress
        Whether to show progress on standard error.

    Returns
    -------
    dict
        ``lds``, ``lds_ci``, ``lds_ceiling``, ``ari``, ``ari_baseline``, ``nmi``, ``nmi_baseline``, ``models``, ``trained``
        (how many of them now), ``seconds`` and ``page``.

    Raises
    ------
    RequestError
        when the folder holds a larger demo, or something else.
    CampaignError
        when some of the networks could not be trained.
    """
    started = time.monotonic()
    if models < _FEWEST:
        raise RequestError(f"models is {models}; the demo needs at least {_FEWEST}")
    parts = _parts(models)
    results = run_experiment(
        out,
        title="Which digits make the network say so?",
        parts=parts,
        fits=[Fit("lasso", Lasso(), "half", "half_test"), Fit("ridge", Ridge(), "tenth", "tenth_test")],
        neighbours="lasso",
        embedding="ridge",
        commands=[f"datamodels demo --out {out}" + (f" --models {models}" if models != MODELS else "")],
        jobs=jobs,
        progress=progress,
    )
    score, groups = results["attributions"]["lasso"], results["subgroups"]
    return {
        **{name: score[name] for name in ("lds", "lds_ci", "lds_ceiling")},
        **{name: groups[name] for name in ("ari", "ari_baseline", "nmi", "nmi_baseline")},
        "models": sum(part.n_models for part in parts),
        "trained": results["trained"],
        "seconds": round(time.monotonic() - started, 1),
        "page": results["page"],
    }
