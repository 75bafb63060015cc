"""Whether an attribution is right: judged on models that its fit has not used."""

from datamodels.evaluation.curve import Curve, curve
from datamodels.evaluation.lds import LDS, lds
from datamodels.evaluation.watch import Look, Watched, watch

__all__ = ["LDS", "Curve", "Look", "Watched", "curve", "lds", "watch"]
