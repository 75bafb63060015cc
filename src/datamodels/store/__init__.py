"""The rows on disk: one row per model; a row is complete or it does not exist."""

from datamodels.store.base import Merged, Status, Store, Verified

__all__ = ["Merged", "Status", "Store", "Verified"]
