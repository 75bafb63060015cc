"""Many models of one architecture as stacked tensors in torch, on any device.

K models are one tensor per parameter, (K, ...), and one batch each, (K, B, ...): chains are batched products and grouped
convolutions, ``resnet9`` adds batch norm per model, and a module of the user's goes through `torch.func.vmap`. Rows of a stack may
have subsets of different sizes: missing places of a batch have weight 0, and a row that is through has learning rate 0.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from datamodels.errors import RequestError
from datamodels.memory import available
from datamodels.training.chain import CHAINS, CONVOLUTION, Chain, picture_shape
from datamodels.training.recipes import Recipe
from datamodels.training.streams import CUT_COLUMN, CUT_ROW, DOWN, FLIP, RIGHT, Streams

_EVALUATED = 256  # examples per forward pass
_LARGEST_STACK = 128
_WORTH = 0.95  # a larger stack must take less than this share of the time per model
_CALIBRATION_STEPS = 3
_BN_MOMENTUM, _BN_EPS = 0.1, 1e-5
Tensors = dict[str, Tensor]


class Stack(ABC):
    """How K models of an architecture are held and evaluated."""

    alone = False  # whether models cannot share a stack

    @abstractmethod
    def first(self, rows: Sequence[Streams], device: torch.device) -> tuple[Tensors, Tensors]:
        """Parameters and buffers to begin with, name -> (K, ...)."""

    @abstractmethod
    def logits(self, parameters: Tensors, buffers: Tensors, x: Tensor, weights: Tensor | None) -> Tensor:
        """x (K, B, ...) -> (K, B, classes). With weights (K, B), which are 1 for examples and 0 for missing places, as
        in training; without, as in evaluation."""


class ChainStack(Stack):
    """Linear models, perceptrons and plain convolutional networks; the parameters are one matrix (K, P)."""

    def __init__(self, chain: Chain) -> None:
        self._chain = chain

    def first(self, rows: Sequence[Streams], device: torch.device) -> tuple[Tensors, Tensors]:
        return {"all": torch.from_numpy(np.stack([self._chain.first(row.init) for row in rows])).to(device)}, {}

    def logits(self, parameters: Tensors, buffers: Tensors, x: Tensor, weights: Tensor | None) -> Tensor:
        table, (k, count) = parameters["all"], x.shape[:2]
        for layer in self._chain.layers:
            w = table[:, layer.at : layer.at + layer.n_weights]
            b = table[:, layer.at + layer.n_weights : layer.at + layer.n_weights + layer.n_out]
            if layer.kind == CONVOLUTION:
                x = x.reshape(k, count, layer.n_in, layer.height, layer.width)
                x = _grouped(x, w.reshape(-1, layer.n_in, 3, 3), b.reshape(-1))
                x = F.max_pool2d(F.relu(x).flatten(0, 1), 2).unflatten(0, (k, count))
            else:
                x = torch.baddbmm(b[:, None], x.reshape(k, count, -1), w.reshape(k, layer.n_in, layer.n_out))
                x = x if layer is self._chain.layers[-1] else F.relu(x)
        return x


def _grouped(x: Tensor, weights: Tensor, bias: Tensor | None = None) -> Tensor:
    """A 3 x 3 convolution per model: x (K, B, channels, H, W), weights (K * n_out, channels, 3, 3)."""
    k, count, channels, height, width = x.shape
    joined = x.transpose(0, 1).reshape(count, k * channels, height, width)
    out = F.conv2d(joined, weights, bias, padding=1, groups=k)
    return out.reshape(count, k, -1, height, width).transpose(0, 1)


class Resnet9Stack(Stack):
    """Eight 3 x 3 convolutions with batch norm, two of them pairs with a shortcut, and a linear layer, after D. Page, "How to train
    your ResNet" (2018). Batch norm never mixes models: each has its own moments over its own batch."""

    _SCALE = 0.125

    def __init__(self, recipe: Recipe, shape: tuple[int, ...], n_classes: int) -> None:
        channels, height, width = picture_shape(shape, "resnet9")
        if min(height, width) < 8:
            raise RequestError(f"resnet9 halves pictures three times; {height} x {width} is too small, 8 x 8 the least")
        a, b, c, d = recipe.widths
        self._convolutions = {
            "prepare": (channels, a), "first": (a, b), "first_a": (b, b), "first_b": (b, b),
            "second": (b, c), "third": (c, d), "third_a": (d, d), "third_b": (d, d),
        }  # fmt: skip
        self._last = (d, n_classes)

    def first(self, rows: Sequence[Streams], device: torch.device) -> tuple[Tensors, Tensors]:
        k = len(rows)
        shapes = {name: (n_out, n_in, 3, 3) for name, (n_in, n_out) in self._convolutions.items()}
        parameters: Tensors = {}
        draws: dict[str, list[NDArray[np.float32]]] = {name: [] for name in (*shapes, "last")}
        for row in rows:
            for name, shape in shapes.items():
                scale = np.float32(np.sqrt(2 / np.prod(shape[1:])))
                draws[name].append(row.init.standard_normal(shape, dtype=np.float32) * scale)
            draws["last"].append(row.init.standard_normal(self._last, np.float32) / np.float32(np.sqrt(self._last[0])))
        for name, values in draws.items():
            parameters[name] = torch.from_numpy(np.stack(values)).to(device)
        buffers: Tensors = {}
        for name, (_, n_out) in self._convolutions.items():
            parameters[f"{name}.scale"] = torch.ones(k, n_out, device=device)
            parameters[f"{name}.shift"] = torch.zeros(k, n_out, device=device)
            buffers[f"{name}.mean"] = torch.zeros(k, n_out, device=device)
            buffers[f"{name}.variance"] = torch.ones(k, n_out, device=device)
        return parameters, buffers

    def logits(self, parameters: Tensors, buffers: Tensors, x: Tensor, weights: Tensor | None) -> Tensor:
        def block(name: str, x: Tensor) -> Tensor:
            x = _grouped(x, parameters[name].flatten(0, 1))
            moments = buffers[f"{name}.mean"], buffers[f"{name}.variance"]
            scale, shift = parameters[f"{name}.scale"], parameters[f"{name}.shift"]
            if len(x) == 1 and x[0, :, 0].numel() > 1:  # a model by itself has no missing places
                mean, variance = (moment[0] for moment in moments)
                training = weights is not None
                x = F.batch_norm(x[0], mean, variance, scale[0], shift[0], training, _BN_MOMENTUM, _BN_EPS)[None]
            else:
                x = _batch_norm(x, *moments, weights) * scale[:, None, :, None, None] + shift[:, None, :, None, None]
            return F.relu(x)

        def pool(x: Tensor) -> Tensor:
            return F.max_pool2d(x.flatten(0, 1), 2).unflatten(0, x.shape[:2])

        x = pool(block("first", block("prepare", x)))
        x = x + block("first_b", block("first_a", x))
        x = pool(block("third", pool(block("second", x))))
        x = x + block("third_b", block("third_a", x))
        return self._SCALE * torch.bmm(x.amax(dim=(3, 4)), parameters["last"])


def _batch_norm(x: Tensor, mean: Tensor, variance: Tensor, weights: Tensor | None) -> Tensor:
    """x (K, B, channels, H, W) with the moments of each model; in training those of the batch, and the running ones,
    (K, channels), take them in."""
    if weights is None:
        return (x - mean[:, None, :, None, None]) * (variance + _BN_EPS).rsqrt()[:, None, :, None, None]
    pixels = x.shape[3] * x.shape[4]
    count = (weights.sum(dim=1) * pixels).clamp(min=1)[:, None]
    share = weights[:, :, None, None, None]
    now = (x * share).sum(dim=(1, 3, 4)) / count
    centred = (x - now[:, None, :, None, None]) * share
    spread = centred.square().sum(dim=(1, 3, 4)) / count
    with torch.no_grad():
        rate = _BN_MOMENTUM * (weights.sum(dim=1) > 0)[:, None]
        mean += rate * (now - mean)
        variance += rate * (spread * count / (count - 1).clamp(min=1) - variance)
    return centred * (spread + _BN_EPS).rsqrt()[:, None, :, None, None]


class ModuleStack(Stack):
    """Modules of the user's, through `torch.func`. Those that keep buffers, look across a batch (batch norm) or draw at random
    (dropout) train one after the other, so that no model sees another's, nor a missing place. Parameters that the factory
    froze stay as they are."""

    def __init__(self, factory: Callable[..., Any], shape: tuple[int, ...], n_classes: int) -> None:
        self._factory, self._shape, self._classes = factory, shape, n_classes
        self._module = self._make(0)
        lonely = (torch.nn.modules.dropout._DropoutNd, torch.nn.modules.batchnorm._BatchNorm, torch.nn.RReLU)
        self.alone = any(True for _ in self._module.buffers()) or any(
            isinstance(m, lonely) for m in self._module.modules()
        )

    def _make(self, seed: int) -> torch.nn.Module:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            module = self._factory(self._shape, self._classes)
        if not isinstance(module, torch.nn.Module):
            raise RequestError(f"the architecture returned {type(module).__name__}; it must return a torch.nn.Module")
        return module

    def first(self, rows: Sequence[Streams], device: torch.device) -> tuple[Tensors, Tensors]:
        seeds = [int(row.init.integers(2**63)) for row in rows]
        modules = [self._make(seed) for seed in seeds]
        if len(rows) == 1:  # what the module draws in training
            torch.manual_seed(seeds[0])
        states = [dict(module.named_parameters()) | dict(module.named_buffers()) for module in modules]
        learned = {name for name, value in modules[0].named_parameters() if value.requires_grad}
        if not learned:
            raise RequestError("the architecture has no parameters to train; leave some with requires_grad")
        parameters: Tensors = {}
        buffers: Tensors = {}
        for name in states[0]:
            kind = parameters if name in learned else buffers
            kind[name] = torch.stack([state[name].detach() for state in states]).to(device)
        self._module.to(device)
        return parameters, buffers

    def logits(self, parameters: Tensors, buffers: Tensors, x: Tensor, weights: Tensor | None) -> Tensor:
        from torch.func import functional_call, vmap

        self._module.train(weights is not None)
        if len(x) == 1:
            state = {name: value[0] for name, value in (parameters | buffers).items()}
            return functional_call(self._module, state, (x[0],))[None]
        return vmap(lambda state, one: functional_call(self._module, state, (one,)))(parameters | buffers, x)


def stack_of(recipe: Recipe, shape: tuple[int, ...], n_classes: int) -> Stack:
    """The stack of an architecture.

    Raises
    ------
    RequestError
        when it cannot be imported, or is not for such inputs.
    """
    name = recipe.architecture
    if name in CHAINS:
        return ChainStack(Chain.of(recipe, shape, n_classes))
    if name == "resnet9":
        return Resnet9Stack(recipe, shape, n_classes)
    factory = recipe.factory
    assert factory is not None
    return ModuleStack(factory, shape, n_classes)


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
