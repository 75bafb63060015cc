"""Small networks on the digits, many at once: the block tasks of the demo.

Row i of a store is a 64-32-2 perceptron that starts from its own weights and sees its own subset in
its own order, all drawn from the row's streams, so a row is the same network in any block.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.datasets import digits
from datamodels.design import Design
from datamodels.training.outputs import margins
from datamodels.training.task import block_task

HIDDEN = 32
BATCH = 32
RECIPE = {
    "hidden": HIDDEN,
    "batch_size": BATCH,
    "lr": 0.1,
    "momentum": 0.9,
    "weight_decay": 5e-3,
    "schedule": "linear to 0",
}
EPOCHS = {"half": 15, "tenth": 25}


@block_task(block_size=100)
def half(indices: NDArray[np.int64], masks: NDArray[np.bool_], design: Design) -> dict[str, Any]:
    """Subsets of half of the training digits, 15 epochs."""
    return {"margins": _train(indices, masks, design, EPOCHS["half"])}


@block_task(block_size=100)
def tenth(indices: NDArray[np.int64], masks: NDArray[np.bool_], design: Design) -> dict[str, Any]:
    """Subsets of a tenth, 25 epochs."""
    return {"margins": _train(indices, masks, design, EPOCHS["tenth"])}


def _train(indices: NDArray[np.int64], masks: NDArray[np.bool_], design: Design, epochs: int) -> NDArray[np.float64]:
    """Train one network per row; returns margins (k, 497) on the test digits.

    The gradients of a two-layer network are written out: batched products of small matrices are all
    the work there is.
    """
    import torch
    from torch import bmm

    data = digits()
    x_train = torch.from_numpy(data.train.x)
    y_train = torch.nn.functional.one_hot(torch.from_numpy(data.train.y), 2).float()
    weights, moments = _initial(indices, design)
    order = _orders(indices, masks, design, epochs)
    steps = -(-order.shape[2] // BATCH)
    for epoch in range(epochs):
        for step in range(steps):
            chosen = torch.from_numpy(order[:, epoch, step * BATCH : (step + 1) * BATCH])
            x, y = x_train[chosen], y_train[chosen]
            w1, b1, w2, b2 = weights
            hidden = torch.baddbmm(b1, x, w1).relu_()
            error = (torch.baddbmm(b2, hidden, w2).softmax(-1) - y) / x.shape[1]
            back = bmm(error, w2.transpose(1, 2)) * (hidden > 0)
            gradients = (
                bmm(x.transpose(1, 2), back), back.sum(1, keepdim=True),
                bmm(hidden.transpose(1, 2), error), error.sum(1, keepdim=True),
            )  # fmt: skip
            rate = RECIPE["lr"] * (1 - (epoch * steps + step) / (epochs * steps))
            for weight, moment, gradient in zip(weights, moments, gradients, strict=True):
                moment.mul_(RECIPE["momentum"]).add_(gradient).add_(weight, alpha=RECIPE["weight_decay"])
                weight.sub_(moment, alpha=rate)
    w1, b1, w2, b2 = weights
    x_test = torch.from_numpy(data.test.x).expand(len(indices), -1, -1)
    logits = torch.baddbmm(b2, torch.baddbmm(b1, x_test, w1).relu_(), w2)
    return margins(logits.numpy(), data.test.y)


def _initial(indices: NDArray[np.int64], design: Design) -> tuple[list[Any], list[Any]]:
    """He-normal weights from each row's ``init`` stream, zero biases, zero momentum."""
    import torch

    draws = np.stack(
        [design.rng(int(i), "init").standard_normal(64 * HIDDEN + HIDDEN * 2, np.float32) for i in indices]
    )
    k = len(indices)
    w1 = torch.from_numpy(draws[:, : 64 * HIDDEN].reshape(k, 64, HIDDEN) * np.float32(np.sqrt(2 / 64)))
    w2 = torch.from_numpy(draws[:, 64 * HIDDEN :].reshape(k, HIDDEN, 2) * np.float32(np.sqrt(1 / HIDDEN)))
    weights = [w1, torch.zeros(k, 1, HIDDEN), w2, torch.zeros(k, 1, 2)]
    return weights, [torch.zeros_like(weight) for weight in weights]


def _orders(indices: NDArray[np.int64], masks: NDArray[np.bool_], design: Design, epochs: int) -> NDArray[np.int64]:
    """The training examples of each row in the order it sees them, (k, epochs, subset size)."""
    orders = []
    for i, mask in zip(indices, masks, strict=True):
        members = np.flatnonzero(mask)
        keys = design.rng(int(i), "order").random((epochs, len(members)))
        orders.append(members[keys.argsort(axis=1)])
    return np.stack(orders)
