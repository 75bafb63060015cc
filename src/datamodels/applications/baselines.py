"""Attributions that cost no training of models: what any other method must beat.

All are `Attribution` objects with bias 0, so that evaluations and applications take them as they take datamodels. Their units are
not those of the output, and ``provenance["units"]`` says what they are; ``provenance["sources"]`` is empty, since they have
used no rows of any store.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError, first_line
from datamodels.training.ensemble import TrainRecipe

Metric = Literal["cosine", "euclidean"]
_BLOCK = 64 << 20  # bytes of similarities at a time
_BATCH = 200  # examples that go through a network at once


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
        (n_train, ...) and (n_targets, ...): pixels, or the `last_layer` of a trained network.
    train_labels, target_labels
        (n_train,) and (n_targets,). A weight is positive where they agree and negative where not.
    metric
        ``cosine``: the size of a weight is the cosine of the two examples, 0 where it is negative. ``euclidean``: it is
        exp(-d² / 2h²), d the distance and h the median over targets of the distance to the training example at rank `neighbours`.
    neighbours
        That rank; for ``euclidean``.
    train_columns
        (n_targets,) when targets are training examples: which. The weight of an example for itself is then 0, and it is no
        neighbour of itself.

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
    columns = None if train_columns is None else np.asarray(train_columns)
    if columns is not None and (
        columns.shape != wanted.shape
        or columns.dtype.kind not in "iu"
        or columns.min() < 0
        or columns.max() >= len(train)
    ):
        raise RequestError(
            f"train_columns are {columns.dtype} of shape {columns.shape}; give one training example 0..{len(train) - 1} for each of the "
            f"{len(targets)} targets"
        )
    others = len(train) - (columns is not None)
    if metric == "euclidean" and not 1 <= neighbours <= others:
        raise RequestError(
            f"neighbours is {neighbours}; give 1 up to the {others} training examples{'' if columns is None else ' besides the target'}"
        )
    weights = np.empty((len(train), len(targets)), dtype=np.float32)
    step = max(1, _BLOCK // (8 * len(train)))
    for start in range(0, len(targets), step):
        part = targets[start : start + step]
        weights[:, start : start + step] = _cosines(train, part) if metric == "cosine" else _distances(train, part)
    if columns is not None:
        weights[columns, np.arange(len(targets))] = 0 if metric == "cosine" else np.inf
    if metric == "euclidean":
        h = float(np.median(np.partition(weights, neighbours - 1, axis=0)[neighbours - 1]))
        np.exp(-0.5 * (weights / max(h, 1e-12)) ** 2, out=weights)
    weights *= np.where(labels[:, None] == wanted, np.float32(1), np.float32(-1))
    return _baseline(weights, f"nearest neighbours ({metric})", "similarity, signed by the label", columns)


class Features(NamedTuple):
    """Features of the examples of a dataset.

    Attributes
    ----------
    train, test
        (n_train, d) and (n_test, d) float32.
    """

    train: NDArray[np.float32]
    test: NDArray[np.float32]


def last_layer(task: TrainRecipe, checkpoint: str | Path | Mapping[str, Any]) -> Features:
    """What goes into the last linear layer of a trained network of a recipe.

    Parameters
    ----------
    task
        Whose network, and on which examples.
    checkpoint
        A file of `datamodels.trak.of_recipe.train_checkpoints`, or a state dict of `datamodels.training.modules.module_of`.

    Returns
    -------
    Features
        Where the layer is called more than once (pictures and their mirror images), the mean over its calls.

    Raises
    ------
    RequestError
        when the checkpoint is not of this recipe, or its network has no linear layer.
    """
    import torch

    from datamodels.training.modules import module_of

    if task.prepare is not None:
        raise RequestError(
            "features that each subset prepares for itself are not those of one network: leave out prepare"
        )
    data = task.data
    module = module_of(task.recipe, data.train.x.shape[1:], data.n_classes)
    try:
        given = torch.load(checkpoint, weights_only=True) if isinstance(checkpoint, str | Path) else checkpoint
        module.load_state_dict(given.get("state_dict", given))
    except Exception as error:
        raise RequestError(f"the checkpoint does not hold a network of this recipe: {first_line(error)}") from None
    calls: list[tuple[torch.nn.Module, torch.Tensor]] = []
    for layer in module.modules():
        if isinstance(layer, torch.nn.Linear):
            layer.register_forward_pre_hook(lambda layer, inputs: calls.append((layer, inputs[0])))

    def features(x: NDArray[np.float32]) -> NDArray[np.float32]:
        parts = []
        for batch in torch.from_numpy(x).split(_BATCH):
            calls.clear()
            module(batch)
            if not calls:
                raise RequestError(f"the network {task.recipe.architecture!r} has no linear layer")
            last = [values for layer, values in calls if layer is calls[-1][0]]
            parts.append(torch.stack(last).mean(dim=0).flatten(1).numpy())
        return np.concatenate(parts)

    with torch.no_grad():
        return Features(features(data.train.x), features(data.test.x))


def random_scores(n_train: int, n_targets: int, seed: int = 0) -> Attribution:
    """Standard normal weights (n_train, n_targets): what knowing nothing scores.

    Parameters
    ----------
    n_train, n_targets
        How many.
    seed
        Draws them.

    Raises
    ------
    RequestError
        when there are none.
    """
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

    Raises
    ------
    RequestError
        when losses are not one finite number per training example.
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
