"""Many models of one architecture as stacked tensors in torch, on any device.

K models are one tensor per parameter, (K, ...), and one batch each, (K, B, ...): chains are batched products and grouped
convolutions, ``resnet9`` adds batch norm per model, and a module of the user's goes through `torch.func.vmap`. Rows of a stack may
have subsets of different sizes: missing places of a batch have weight 0, and a row that is through has learning rate 0.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from datamodels.memory import available
from datamodels.training.recipes import Recipe
from datamodels.training.stacks import Stack, Tensors
from datamodels.training.streams import CUT_COLUMN, CUT_ROW, DOWN, FLIP, RIGHT, Streams

_EVALUATED = 256  # examples per forward pass
_LARGEST_STACK = 128
_WORTH = 0.95  # a larger stack must take less than this share of the time per model
_CALIBRATION_STEPS = 3


@dataclass(frozen=True, eq=False)
class _Plan:
    """What each row of a stack sees at each step: index (T, K, B) of examples, -1 where there is none; rates (T, K); changes
    (T, K, B, 5), or none."""

    index: NDArray[np.int32]
    rates: NDArray[np.float32]
    changes: NDArray[np.int16] | None

    @classmethod
    def of(cls, recipe: Recipe, rows: Sequence[Streams], height: int, width: int, stop: int | None = None) -> _Plan:
        schedules = [recipe.rates(recipe.total_steps(len(row.members)))[:stop] for row in rows]
        totals = [len(schedule) for schedule in schedules]
        batch = min(recipe.batch_size, max(len(row.members) for row in rows))
        shape = (max(totals), len(rows), batch)
        index = np.full(shape, -1, dtype=np.int32)
        rates = np.zeros(shape[:2], dtype=np.float32)
        changes = np.zeros((*shape, 5), dtype=np.int16) if recipe.augments else None
        for k, (row, total) in enumerate(zip(rows, totals, strict=True)):
            rates[:total, k] = schedules[k]
            per_epoch, seen = recipe.steps_per_epoch(len(row.members)), recipe.seen_per_epoch(len(row.members))
            for begin in range(0, total, per_epoch):
                steps = min(per_epoch, total - begin)
                order = np.full(per_epoch * batch, -1, dtype=np.int32)
                order[:seen] = row.epoch()[:seen]
                index[begin : begin + steps, k] = order.reshape(per_epoch, batch)[:steps]
                if changes is not None:
                    drawn = np.zeros((per_epoch * batch, 5), dtype=np.int16)
                    drawn[:seen] = row.changes(recipe, height, width)[:seen]
                    changes[begin : begin + steps, k] = drawn.reshape(per_epoch, batch, 5)[:steps]
        return cls(index, rates, changes)


def _changed(x: Tensor, changes: Tensor, cutout: int) -> Tensor:
    """Pictures x (M, channels, H, W) as `changes` (M, 5) say."""
    height, width = x.shape[2:]
    rows = torch.arange(height, device=x.device) - changes[:, DOWN, None]
    columns = torch.arange(width, device=x.device) - changes[:, RIGHT, None]
    inside = ((rows >= 0) & (rows < height))[:, :, None] & ((columns >= 0) & (columns < width))[:, None, :]
    columns = torch.where(changes[:, FLIP, None] == 1, width - 1 - columns, columns)
    rows, columns = rows.clamp(0, height - 1), columns.clamp(0, width - 1)
    at = torch.arange(len(x), device=x.device)[:, None, None]
    out = x[at, :, rows[:, :, None], columns[:, None, :]]
    if cutout:
        down = torch.arange(height, device=x.device) - (changes[:, CUT_ROW, None] - cutout // 2)
        right = torch.arange(width, device=x.device) - (changes[:, CUT_COLUMN, None] - cutout // 2)
        cut = ((down >= 0) & (down < cutout))[:, :, None] & ((right >= 0) & (right < cutout))[:, None, :]
        inside = inside & ~cut
    return (out * inside[..., None]).permute(0, 3, 1, 2)


class _Optimiser:
    """SGD or AdamW as in PyTorch, with a learning rate per model."""

    def __init__(self, recipe: Recipe, parameters: Tensors) -> None:
        self._recipe = recipe
        self._parameters = parameters
        self._moments = {name: torch.zeros_like(value) for name, value in parameters.items()}
        adaptive = recipe.optimizer == "adamw"
        self._squares = {name: torch.zeros_like(value) for name, value in parameters.items()} if adaptive else {}
        self._step = 0

    @torch.no_grad()
    def step(self, gradients: Sequence[Tensor], rates: Tensor) -> None:
        """rates (K,)."""
        recipe, self._step = self._recipe, self._step + 1
        for (name, value), gradient in zip(self._parameters.items(), gradients, strict=True):
            moment = self._moments[name]
            rate = rates.reshape(-1, *[1] * (value.ndim - 1))
            if self._squares:
                beta1, beta2 = recipe.betas
                square = self._squares[name]
                moment.mul_(beta1).add_(gradient, alpha=1 - beta1)
                square.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
                root = (square / (1 - beta2**self._step)).sqrt_().add_(recipe.eps)
                value.mul_(1 - rate * recipe.weight_decay)
                value.sub_(rate / (1 - beta1**self._step) * moment / root)
            else:
                gradient = gradient.add(value, alpha=recipe.weight_decay)
                moment.mul_(recipe.momentum).add_(gradient)
                value.sub_(rate * (gradient.add(moment, alpha=recipe.momentum) if recipe.nesterov else moment))


class BatchedModels:
    """K trained models.

    Attributes
    ----------
    parameters, buffers
        name -> (K, ...), in stacks of up to `stack` models.
    """

    def __init__(self, stack: Stack, recipe: Recipe, device: torch.device) -> None:
        self._stack, self._recipe, self._device = stack, recipe, device
        self.parts: list[tuple[Tensors, Tensors]] = []

    @classmethod
    def train(
        cls,
        recipe: Recipe,
        stack: Stack,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        rows: Sequence[Streams],
        *,
        n_classes: int,
        device: str = "cpu",
        size: int | None = None,
        stop: int | None = None,
    ) -> BatchedModels:
        """Train one model per row: x (n, ...) inputs, y (n,) labels; up to `size` models side by side, by default as many as a
        short calibration finds worth it; only the first `stop` steps where that is given."""
        place = torch.device(device)
        out = cls(stack, recipe, place)
        data, labels = torch.from_numpy(np.ascontiguousarray(x)).to(place), torch.from_numpy(y).to(place)
        targets = F.one_hot(labels, n_classes).float()
        targets = targets * (1 - recipe.label_smoothing) + recipe.label_smoothing / n_classes
        if stack.alone:
            size = 1
        elif size is None:
            size = _stack_size(recipe, stack, data, targets, rows[0], len(rows), place)
        for start in range(0, len(rows), size):
            chunk = rows[start : start + size]
            with torch.random.fork_rng(devices=[]):
                parameters, buffers = stack.first(chunk, place)
                out._descend(data, targets, _Plan.of(recipe, chunk, *_extent(x), stop), parameters, buffers)
            out.parts.append((parameters, buffers))
        return out

    def _descend(self, x: Tensor, targets: Tensor, plan: _Plan, parameters: Tensors, buffers: Tensors) -> None:
        """All steps of one stack, in place."""
        for value in parameters.values():
            value.requires_grad_()
        optimiser = _Optimiser(self._recipe, parameters)
        for step in range(len(plan.index)):
            index = torch.from_numpy(plan.index[step]).to(self._device, torch.int64)
            changes = None if plan.changes is None else torch.from_numpy(plan.changes[step]).to(self._device)
            rates = torch.from_numpy(plan.rates[step]).to(self._device)
            loss = self._loss(x, targets, index, changes, parameters, buffers)
            optimiser.step(_gradients(loss, parameters), rates)
        for value in parameters.values():
            value.requires_grad_(False)

    def _loss(
        self, x: Tensor, targets: Tensor, index: Tensor, changes: Tensor | None, parameters: Tensors, buffers: Tensors
    ) -> Tensor:
        """The sum over models of the mean cross-entropy of their batches."""
        weights = (index >= 0).float()
        if len(index) == 1:  # a model by itself sees no missing places
            there = index[0] >= 0
            index, weights = index[:, there], weights[:, there]
            changes = None if changes is None else changes[:, there]
        flat = index.clamp(min=0).reshape(-1)
        batch = x[flat]
        if changes is not None:
            batch = _changed(batch, changes.reshape(-1, 5).long(), self._recipe.cutout)
        batch = batch.unflatten(0, index.shape)
        with self._autocast():
            logits = self._stack.logits(parameters, buffers, batch, weights)
        losses = -(logits.float().log_softmax(-1) * targets[flat].unflatten(0, index.shape)).sum(-1)
        return (losses * weights / weights.sum(dim=1, keepdim=True).clamp(min=1)).sum()

    def _autocast(self) -> Any:
        mixed = self._recipe.precision == "bfloat16"
        return torch.autocast(self._device.type, dtype=torch.bfloat16, enabled=mixed)

    @torch.no_grad()
    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of examples (k, ...), as (K, k, classes)."""
        data = torch.from_numpy(np.ascontiguousarray(x))
        out = []
        for parameters, buffers in self.parts:
            k = len(next(iter(parameters.values())))
            found = []
            for start in range(0, len(data), _EVALUATED):
                batch = data[start : start + _EVALUATED].to(self._device).expand(k, *([-1] * data.ndim))
                with self._autocast():
                    found.append(self._stack.logits(parameters, buffers, batch, None).float().cpu())
            out.append(torch.cat(found, dim=1))
        return torch.cat(out).numpy()


def _gradients(loss: Tensor, parameters: Tensors) -> Sequence[Tensor]:
    """Zero for a parameter that a module does not use."""
    return torch.autograd.grad(loss, list(parameters.values()), allow_unused=True, materialize_grads=True)


def _extent(x: NDArray[np.float32]) -> tuple[int, int]:
    return (x.shape[2], x.shape[3]) if x.ndim == 4 else (1, 1)


_known_sizes: dict[tuple[Any, ...], int] = {}


def _stack_size(
    recipe: Recipe, stack: Stack, x: Tensor, targets: Tensor, row: Streams, most: int, device: torch.device
) -> int:
    """How many models to train side by side: doubled while that saves time per model, within half of the free memory.

    A few steps of the model of `row` are timed; once per process for an architecture, shape of inputs and batch, whatever
    the rates of a sweep are.
    """
    batch = min(recipe.batch_size, len(row.members))
    fixed = (recipe.architecture, recipe.hidden, recipe.widths, recipe.optimizer, recipe.augments, recipe.precision)
    key = (*fixed, batch, tuple(x.shape[1:]), targets.shape[1], str(device))
    if key in _known_sizes:
        return min(_known_sizes[key], most)
    trial = BatchedModels(stack, recipe, device)
    index = torch.from_numpy(row.members[None, :batch].copy()).to(device)
    changes = torch.zeros((*index.shape, 5), dtype=torch.int16, device=device) if recipe.augments else None

    def first(k: int) -> tuple[Tensors, Tensors]:
        streams = [Streams(row.members, *map(np.random.default_rng, (0, 0, 0))) for _ in range(k)]
        with torch.random.fork_rng(devices=[]):
            return stack.first(streams, device)

    def seconds(k: int) -> float:
        parameters, buffers = first(k)
        for value in parameters.values():
            value.requires_grad_()
        optimiser = _Optimiser(recipe, parameters)
        rates, least = torch.full((k,), 1e-9, device=device), np.inf
        for _ in range(_CALIBRATION_STEPS):
            began = time.perf_counter()
            loss = trial._loss(
                x, targets, index.expand(k, -1), None if changes is None else changes.expand(k, -1, -1), parameters, buffers
            )  # fmt: skip
            optimiser.step(_gradients(loss, parameters), rates)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            least = min(least, time.perf_counter() - began)
        return least / k

    kept: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        kept.append(tensor.nbytes)
        return tensor

    parameters, buffers = first(1)
    for value in parameters.values():
        value.requires_grad_()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        trial._loss(x, targets, index, changes, parameters, buffers)
    per_model = sum(kept) + 5 * sum(value.nbytes for value in parameters.values())
    room = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else available()
    limit = max(1, min(_LARGEST_STACK, int(room // 2 // max(per_model, 1))))
    size, least = 1, seconds(1)
    while 2 * size <= limit:
        now = seconds(2 * size)
        if now > _WORTH * least:
            break
        size, least = 2 * size, now
    _known_sizes[key] = size
    return min(size, most)
