"""What trains together: the forward passes of many models of one architecture at once."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from datamodels.errors import RequestError
from datamodels.training.chain import CHAINS, CONVOLUTION, Chain, picture_shape
from datamodels.training.recipes import Recipe
from datamodels.training.streams import Streams

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
