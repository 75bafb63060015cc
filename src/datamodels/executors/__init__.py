"""Where work runs. Every executor runs blocks of rows and reports row by row."""

from datamodels.executors.base import Executor, RowOutcome, Runner

__all__ = ["Executor", "RowOutcome", "Runner"]
