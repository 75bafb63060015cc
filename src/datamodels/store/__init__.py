"""The rows on disk: one row per model; a row is complete or it does not exist."""

from datamodels.store.base import Store
from datamodels.store.records import Merged, Status, Verified

__all__ = ["Merged", "Status", "Store", "Verified"]
