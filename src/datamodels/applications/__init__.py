"""What an attribution is good for."""

from datamodels.applications.neighbours import Neighbours, neighbours
from datamodels.applications.subgroups import Subgroups, embed, subgroups

__all__ = ["Neighbours", "Subgroups", "embed", "neighbours", "subgroups"]
