"""Datasets that need no download, as one small type."""

from datamodels.datasets.base import Dataset, Split, load, register
from datamodels.datasets.digits import digits

register("digits", digits)

__all__ = ["Dataset", "Split", "digits", "load", "register"]
