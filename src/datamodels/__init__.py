"""Which training examples made the model do that? Answered by retraining.

Names are loaded when they are first used, so that importing the package stays light.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from datamodels.version import __version__

if TYPE_CHECKING:
    from datamodels.attribution import Attribution
    from datamodels.design import Design
    from datamodels.evaluation.lds import lds
    from datamodels.evaluation.watch import watch
    from datamodels.regression.calibration import calibrate
    from datamodels.regression.estimators import DifferenceInMeans, ElasticNet, Lasso, LeastSquares, Ridge
    from datamodels.regression.fit import fit
    from datamodels.significance import intervals, select, stability
    from datamodels.store import Store
    from datamodels.sweep import Sweep
    from datamodels.training.campaign import train
    from datamodels.training.ensemble import TrainRecipe
    from datamodels.training.preparation import Preparation
    from datamodels.training.recipes import Recipe
    from datamodels.training.task import block_task
    from datamodels.trak import TRAK

_HOME = {
    "Attribution": "datamodels.attribution",
    "Design": "datamodels.design",
    "DifferenceInMeans": "datamodels.regression.estimators",
    "ElasticNet": "datamodels.regression.estimators",
    "Lasso": "datamodels.regression.estimators",
    "LeastSquares": "datamodels.regression.estimators",
    "Preparation": "datamodels.training.preparation",
    "Recipe": "datamodels.training.recipes",
    "Ridge": "datamodels.regression.estimators",
    "Store": "datamodels.store",
    "Sweep": "datamodels.sweep",
    "TRAK": "datamodels.trak",
    "TrainRecipe": "datamodels.training.ensemble",
    "block_task": "datamodels.training.task",
    "calibrate": "datamodels.regression.calibration",
    "fit": "datamodels.regression.fit",
    "intervals": "datamodels.significance",
    "lds": "datamodels.evaluation.lds",
    "select": "datamodels.significance",
    "stability": "datamodels.significance",
    "train": "datamodels.training.campaign",
    "watch": "datamodels.evaluation.watch",
}

__all__ = [
    "TRAK",
    "Attribution",
    "Design",
    "DifferenceInMeans",
    "ElasticNet",
    "Lasso",
    "LeastSquares",
    "Preparation",
    "Recipe",
    "Ridge",
    "Store",
    "Sweep",
    "TrainRecipe",
    "__version__",
    "block_task",
    "calibrate",
    "fit",
    "intervals",
    "lds",
    "select",
    "stability",
    "train",
    "watch",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *_HOME})
