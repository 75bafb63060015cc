"""Breast cancers in two classes, the rows that tasks made of them give, and a learner that is a function."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer
from sklearn.preprocessing import StandardScaler

from datamodels.design import Design
from datamodels.training.learners import LearnerTask

N, K = 120, 40
DESIGN = Design(n_train=N, alpha=0.5, n_models=6, seed=5)


def cancer() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    x, y = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    return x[:N], y[:N], x[N : N + K], y[N : N + K]


X, Y, X_TEST, Y_TEST = cancer()


def row(task: LearnerTask, index: int, design: Design = DESIGN) -> dict[str, NDArray[Any]]:
    return task(mask=design.mask(index), rng=design.rng(index))


def nearest_mean(x: Any, y: NDArray[np.int64], x_eval: Any, rng: np.random.Generator, power: float = 2.0) -> Any:
    means = np.stack([x[y == k].mean(axis=0) for k in range(2)])
    return -((np.abs(x_eval[:, None] - means)).mean(axis=2) ** power)
