"""Names that programs written for the original library import from here."""

from datamodels.spec import COMPLETED

__all__ = ["COMPLETED"]
