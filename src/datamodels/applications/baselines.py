"""Attributions that cost no training of models: what any other method must beat.

All are `Attribution` objects with bias 0, so that evaluations and applications take them as they take datamodels. Their units are
not those of the output, and ``provenance["units"]`` says what they are; ``provenance["sources"]`` is empty, since they have
used no rows of any store.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError

Metric = Literal["cosine", "euclidean"]
_BLOCK = 64 << 20  # bytes of similarities at a time


def nearest_neighbours(
    train_features: ArrayLike,
    target_features: ArrayLike,
    train_labels: ArrayLike,
    target_labels: ArrayLike,
    *,
    metric: Metric = "cosine",
    neighbours: int = 10,
    train_columns: ArrayLike | None = None,
) -> Attribution:
    """Similar examples of the target's label help it, similar ones of another label harm it.

    Parameters
    ----------
    train_features, target_features
        (n_train, ...) and (n_targets, ...): pixels, or the last layer of a trained model.
    train_labels, target_labels
        (n_train,) and (n_targets,). A weight is positive where they agree and negative where not.
    metric
        ``cosine``: the size of a weight is the cosine of the two examples, 0 where it is negative. ``euclidean``: it is
        exp(-d² / 2h²), d the distance and h the median over targets of the distance to the training example at rank `neighbours`.
    neighbours
        That rank; for ``euclidean``.
    train_columns
        (n_targets,) when targets are training examples: which. The weight of an example for itself is then 0.

    Returns
    -------
    Attribution
        Weights (n_train, n_targets) in [-1, 1], in units of similarity.

    Raises
    ------
    RequestError
        when shapes do not go together, features are not finite, or the metric is unknown.
    """
    if metric not in get_args(Metric):
        raise RequestError(f"metric is {metric!r}; legal: {', '.join(get_args(Metric))}")
    train, targets = _rows("train_features", train_features), _rows("target_features", target_features)
    labels, wanted = np.asarray(train_labels), np.asarray(target_labels)
    if train.shape[1] != targets.shape[1] or labels.shape != train.shape[:1] or wanted.shape != targets.shape[:1]:
        raise RequestError(
            f"train features {train.shape} with labels {labels.shape} and target features {targets.shape} with labels "
            f"{wanted.shape} do not go together; give (n_train, features), (n_train,), (n_targets, features), (n_targets,)"
        )
    if metric == "euclidean" and not 1 <= neighbours <= len(train):
        raise RequestError(f"neighbours is {neighbours}; give 1 up to the {len(train)} training examples")
    weights = np.empty((len(train), len(targets)), dtype=np.float32)
    step = max(1, _BLOCK // (8 * len(train)))
    for start in range(0, len(targets), step):
        part = targets[start : start + step]
        weights[:, start : start + step] = _cosines(train, part) if metric == "cosine" else _distances(train, part)
    if metric == "euclidean":
        h = float(np.median(np.partition(weights, neighbours - 1, axis=0)[neighbours - 1]))
        np.exp(-0.5 * (weights / max(h, 1e-12)) ** 2, out=weights)
    weights *= np.where(labels[:, None] == wanted, np.float32(1), np.float32(-1))
    columns = None if train_columns is None else np.asarray(train_columns)
    out = _baseline(weights, f"nearest neighbours ({metric})", "similarity, signed by the label", columns)
    if columns is not None:
        out.weights[out.train_columns, np.arange(len(targets))] = 0
    return out


def random_scores(n_train: int, n_targets: int, seed: int = 0) -> Attribution:
    """Standard normal weights (n_train, n_targets): what knowing nothing scores."""
    if n_train < 1 or n_targets < 1:
        raise RequestError(f"n_train is {n_train} and n_targets {n_targets}; give 1 or more of each")
    weights = np.random.default_rng(seed).standard_normal((n_train, n_targets), dtype=np.float32)
    return _baseline(weights, "random", "none (standard normal)", None)


def loss_scores(losses: ArrayLike, n_targets: int) -> Attribution:
    """The same weight for every target, minus the loss of the training example: what fits badly is taken to harm.

    Parameters
    ----------
    losses
        (n_train,) loss of each training example, in nats for the cross-entropy; best of models that have not seen it.
    n_targets
        Number of targets.
    """
    values = np.asarray(losses, dtype=np.float32)
    if values.ndim != 1 or not np.isfinite(values).all() or n_targets < 1:
        raise RequestError(
            f"losses have shape {values.shape} and n_targets is {n_targets}; give one finite loss per training "
            "example, and 1 target or more"
        )
    return _baseline(np.repeat(-values[:, None], n_targets, axis=1), "loss", "minus the loss of the example", None)


def _baseline(weights: NDArray[np.float32], method: str, units: str, columns: NDArray[Any] | None) -> Attribution:
    return Attribution.from_scores(
        weights,
        orientation="train_by_target",
        method=method,
        units=units,
        train_columns=columns,
        provenance={"sources": []},
    )


def _rows(name: str, features: ArrayLike) -> NDArray[np.float32]:
    array = np.asarray(features, dtype=np.float32)
    if array.ndim < 2 or not len(array) or not np.isfinite(array).all():
        raise RequestError(f"{name} have shape {array.shape}; give finite numbers, one row per example")
    return array.reshape(len(array), -1)


def _cosines(train: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """(n_train, k), 0 where negative or where an example is all 0."""
    a, b = (x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (train, targets))
    return np.clip(a @ b.T, 0, 1)


def _distances(train: NDArray[np.float32], targets: NDArray[np.float32]) -> NDArray[np.float32]:
    """Euclidean, (n_train, k), in float64 on the way: squares cancel for close pairs."""
    a, b = train.astype(np.float64), targets.astype(np.float64)
    squares = (a**2).sum(axis=1)[:, None] + (b**2).sum(axis=1) - 2 * a @ b.T
    return np.sqrt(np.maximum(squares, 0)).astype(np.float32)
