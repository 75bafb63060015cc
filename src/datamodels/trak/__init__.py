"""Attribution from gradients: TRAK on any device, with layer-wise gradients and projections that are never stored."""

from datamodels.trak.of_recipe import score_split, train_checkpoints, trak_of, trak_of_recipe
from datamodels.trak.outputs import Contrastive
from datamodels.trak.trak import TRAK

__all__ = ["TRAK", "Contrastive", "score_split", "train_checkpoints", "trak_of", "trak_of_recipe"]
