"""Whether an attribution is right: judged on models that its fit has not used."""

from datamodels.evaluation.curve import Curve, curve
from datamodels.evaluation.lds import LDS, lds

__all__ = ["LDS", "Curve", "curve", "lds"]
