"""Where work runs. Every executor runs blocks of rows and reports row by row."""

from datamodels.executors.base import Executor, MakeExecutor, RowOutcome, Runner
from datamodels.executors.names import EXECUTORS, executor_named
from datamodels.executors.ray import Ray
from datamodels.executors.slurm import Slurm

__all__ = ["EXECUTORS", "Executor", "MakeExecutor", "Ray", "RowOutcome", "Runner", "Slurm", "executor_named"]
