"""Whether an attribution is right: judged on models that its fit has not used, and by retraining."""

from datamodels.evaluation.brittleness import Brittleness, brittleness, data_support
from datamodels.evaluation.compare import Comparison, Difference, compare_lds
from datamodels.evaluation.counterfactual import Agreement, Change, Counterfactual, counterfactual
from datamodels.evaluation.curve import Curve, curve
from datamodels.evaluation.lds import LDS, lds
from datamodels.evaluation.mislabels import (
    MislabelScore,
    evaluate_mislabels,
    mislabel_scores,
    out_of_mask_margins,
    plant_label_noise,
)
from datamodels.evaluation.pilot import pilot
from datamodels.evaluation.removal import CurvePoint, RemovalCurve, removal_curve
from datamodels.evaluation.retraining import RANDOM, Estimate
from datamodels.evaluation.settings import Pilot, Setting, Variances, variances
from datamodels.evaluation.watch import Look, Watched, watch

__all__ = [
    "LDS",
    "RANDOM",
    "Agreement",
    "Brittleness",
    "Change",
    "Comparison",
    "Counterfactual",
    "Curve",
    "CurvePoint",
    "Difference",
    "Estimate",
    "Look",
    "MislabelScore",
    "Pilot",
    "RemovalCurve",
    "Setting",
    "Variances",
    "Watched",
    "brittleness",
    "compare_lds",
    "counterfactual",
    "curve",
    "data_support",
    "evaluate_mislabels",
    "lds",
    "mislabel_scores",
    "out_of_mask_margins",
    "pilot",
    "plant_label_noise",
    "removal_curve",
    "variances",
    "watch",
]
