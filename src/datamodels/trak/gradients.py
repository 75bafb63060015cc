"""Per-example gradients of a model output function, layer by layer.

One forward and one backward pass over a batch give, for every layer with a rule, its inputs and the gradients of its
outputs; the gradient of its parameters for each example is a small product of the two, which a projection takes without
it ever being whole. Parameters of other modules get `vmap(grad)` over the functional model, or a loop where that fails.

A rule supposes that the layer's parameters act through its call alone and that its first axis is the examples. Both are
checked against autograd, on one example of the first batch under each checkpoint; parameters that differ are moved to
`vmap` for good.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from datamodels.errors import RequestError
from datamodels.trak import batches
from datamodels.trak.outputs import ModelOutput, State
from datamodels.trak.parts import Dense, Outer, Part, Rows

_VMAP_ELEMENTS = 1 << 26  # of gradients at once: 256 MB
_CHECK = 1e-3  # relative difference from autograd that rounding cannot explain

Backward = Callable[[Tensor, Mapping[str, int]], Iterator[Part]]
"""(gradient of the layer's output, {"weight" or "bias": offset}) -> parts."""

Call = tuple[list[Tensor], Backward, dict[str, str]]
"""A call of a layer: the gradient of its output when it is known, what makes parts of it, and {"weight" or "bias": name}."""


class Piece(NamedTuple):
    """Parts of the gradients of some examples of a batch, and their outputs where those are known."""

    rows: slice
    parts: Iterator[Part]
    outputs: Tensor | None = None


class Gradients:
    """Per-example gradients with respect to the parameters `names`, as one vector in their order.

    Attributes
    ----------
    offsets
        name -> first coordinate of the parameter.
    size
        Coordinates in all.
    """

    def __init__(self, model: nn.Module, task: ModelOutput, names: Sequence[str]) -> None:
        self._model, self._task, self._names = model, task, list(names)
        parameters = dict(model.named_parameters())
        self.offsets, self.size = {}, 0
        for name in self._names:
            self.offsets[name] = self.size
            self.size += parameters[name].numel()
        name_of = {id(parameters[name]): name for name in self._names}
        self._layers: list[tuple[nn.Module, Callable[..., Backward | None], dict[str, str]]] = []
        hooked: set[str] = set()
        for module in model.modules() if task.batch is not None else ():
            rule = _RULES.get(getattr(module.forward, "__func__", None))
            own = {key: name_of[id(p)] for key, p in module._parameters.items() if id(p) in name_of}
            if rule is not None and own:
                self._layers.append((module, rule, own))
                hooked.update(own.values())
        self._rest = {name for name in self._names if name not in hooked}
        self._due = True
        self._checked_whole = False
        self._loop = False

    @property
    def by_vmap(self) -> list[str]:
        """Names of the parameters that no layer rule serves."""
        return [name for name in self._names if name in self._rest]

    def recheck(self) -> None:
        """Check the rules again, with the next batch: for other values of the parameters."""
        self._due = True

    def pieces(self, params: State, buffers: State, batch: Any) -> Iterator[Piece]:
        """Pieces of a batch, which add up.

        Raises
        ------
        RequestError
            when the outputs depend on none of the parameters.
        """
        count = batches.size(batch)
        if self._due and count:
            middle = count // 2
            two = self._checked_whole and count > 2
            settled = self._check(params, buffers, batches.rows_of(batch, middle - 1, middle + 1) if two else batch)
            self._due = not settled
            self._checked_whole |= settled
        if len(self._rest) < len(self._names):
            yield Piece(slice(0, count), *self._by_layers(params, buffers, batch))
        if self._rest:
            size = sum(params[name].numel() for name in self._rest)
            step = max(1, _VMAP_ELEMENTS // size)
            for start in range(0, count, step):
                rows = slice(start, min(start + step, count))
                yield Piece(rows, self._by_examples(params, buffers, batches.rows_of(batch, rows.start, rows.stop)))

    # -- by layers ------------------------------------------------------------------------------------

    def _by_layers(self, params: State, buffers: State, batch: Any) -> tuple[Iterator[Part], Tensor]:
        """Parts of all layers with a rule, and the outputs (B,)."""
        assert self._task.batch is not None
        fixed = {name: value.detach() for name, value in params.items()}
        anchor = torch.zeros((), device=next(iter(fixed.values())).device, requires_grad=True)
        calls: list[Call] = []
        with ExitStack() as stack, torch.enable_grad():
            for module, rule, own in self._layers:
                hook = _recorder(rule, own, batches.size(batch), anchor, calls, self._rest)
                stack.callback(module.register_forward_hook(hook, with_kwargs=True).remove)
            outputs = self._task.batch(self._model, fixed, buffers, batch)
            if outputs.requires_grad:
                torch.autograd.grad(outputs.sum(), anchor, allow_unused=True)
        return self._parts_of(calls), outputs.detach()

    def _parts_of(self, calls: list[Call]) -> Iterator[Part]:
        """Parts of calls, the last first; what a call kept is freed on the way."""
        while calls:
            gradients, backward, own = calls.pop()
            wanted = {key: self.offsets[name] for key, name in own.items() if name not in self._rest}
            if wanted and gradients:
                yield from backward(gradients[0], wanted)

    def _check(self, params: State, buffers: State, batch: Any) -> bool:
        """Compare one example with autograd; parameters that differ leave the layers. Returns whether that settles it."""
        count = batches.size(batch)
        b = count // 2
        own = {name: params[name].detach().requires_grad_() for name in self._names}
        with torch.enable_grad():
            state = {**params, **own}
            output = (
                self._task.example(self._model, state, buffers, self._example(batch, b))
                if self._task.batch is None
                else self._task.batch(self._model, state, buffers, batch)[b]
            )
            used = output.requires_grad
            truth = torch.autograd.grad(output, list(own.values()), allow_unused=True) if used else [None] * len(own)
        if all(gradient is None for gradient in truth):
            raise RequestError(
                f"the output of task {self._task.name!r} depends on none of the parameters {', '.join(self._names[:4])}"
                f"{', ...' if len(self._names) > 4 else ''}: params must name some that the model uses for it, and an output "
                "function must call the model with those it is given, torch.func.functional_call(model, (params, buffers), ...)"
            )
        if len(self._rest) == len(self._names):
            return True
        wanted = [
            torch.zeros(own[k].numel()) if g is None else g.flatten().cpu() for k, g in zip(own, truth, strict=True)
        ]
        length = torch.cat(wanted).double().norm()
        if not length.isfinite():
            return False
        found = torch.zeros(self.size, dtype=torch.float64)
        for part in self._by_layers(params, buffers, batch)[0]:
            for coordinates, values in part.example(b).chunks():
                found.index_add_(0, coordinates.cpu(), values[0].detach().double().cpu())
        for name, gradient in zip(own, wanted, strict=True):
            mine = found[self.offsets[name] : self.offsets[name] + gradient.numel()]
            if not (mine - gradient.double()).norm() <= _CHECK * gradient.double().norm() + 1e-6 * length:
                self._rest.add(name)
        return count > 1

    # -- by examples ----------------------------------------------------------------------------------

    def _by_examples(self, params: State, buffers: State, batch: Any) -> Iterator[Part]:
        names = self.by_vmap

        def output(own: State, example: Any) -> Tensor:
            return self._task.example(self._model, {**params, **own}, buffers, example)

        own = {name: params[name].detach() for name in names}
        gradient = torch.func.grad(output)
        if not self._loop:
            try:
                with sdpa_kernel(SDPBackend.MATH):  # the other kinds of attention have no rule for vmap
                    found = torch.func.vmap(gradient, in_dims=(None, 0), randomness="different")(own, batch)
            except RuntimeError:  # an operation that vmap cannot do, as data-dependent control flow
                self._loop = True
        if self._loop:
            one_by_one = [gradient(own, self._example(batch, b)) for b in range(batches.size(batch))]
            found = {name: torch.stack([one[name] for one in one_by_one]) for name in names}
        for name in names:
            yield Dense(self.offsets[name], found.pop(name).detach().reshape(batches.size(batch), -1))

    @staticmethod
    def _example(batch: Any, b: int) -> Any:
        return {k: v[b] for k, v in batch.items()} if isinstance(batch, dict) else tuple(v[b] for v in batch)


def _recorder(
    rule: Callable[..., Backward | None],
    own: dict[str, str],
    count: int,
    anchor: Tensor,
    calls: list[Call],
    rest: set[str],
) -> Callable[..., Tensor | None]:
    """A forward hook that keeps the layer's input, and later the gradient of its output."""

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        x = args[0] if args else kwargs["input"]
        if isinstance(module, nn.Embedding) and x.ndim > 1 and len(x) == 1 < count:
            # Positions, the same for all examples: a row for each of them.
            x, output = x.expand(count, *x.shape[1:]), output.expand(count, *output.shape[1:])
        backward = rule(module, x.detach(), count) if x.ndim else None
        if backward is None:
            rest.update(own.values())
            return None
        if not output.requires_grad:
            output = output + anchor
        if not output.requires_grad:  # within no_grad: the output does not depend on these parameters
            return None
        gradients: list[Tensor] = []
        output.register_hook(lambda gradient: gradients.append(gradient.detach()))
        calls.append((gradients, backward, own))
        return output

    return hook


# -- rules --------------------------------------------------------------------------------------------


def _examples(x: Tensor, count: int) -> Tensor | None:
    """x with the examples as its first axis, which may be folded with the next one; None when that cannot be."""
    if len(x) == count:
        return x
    return x.reshape(count, len(x) // count, *x.shape[1:]) if len(x) and len(x) % count == 0 else None


def _linear(module: nn.Linear, x: Tensor, count: int) -> Backward | None:
    inputs = _examples(x, count) if x.ndim > 1 else None
    if inputs is None:
        return None

    def backward(gradient: Tensor, wanted: Mapping[str, int]) -> Iterator[Part]:
        left = gradient.reshape(count, -1, gradient.shape[-1])
        if "weight" in wanted:
            yield Outer(wanted["weight"], left, inputs.reshape(count, -1, inputs.shape[-1]))
        if "bias" in wanted:
            yield Dense(wanted["bias"], left.sum(dim=1))

    return backward


def _convolution(module: nn.Conv1d | nn.Conv2d, x: Tensor, count: int) -> Backward | None:
    if len(x) != count or x.ndim != len(module.kernel_size) + 2:
        return None

    def backward(gradient: Tensor, wanted: Mapping[str, int]) -> Iterator[Part]:
        left = gradient.flatten(2)
        if "bias" in wanted:
            yield Dense(wanted["bias"], left.sum(dim=2))
        if "weight" not in wanted:
            return
        right = _patches(module, x)
        if module.groups == 1:
            yield Outer(wanted["weight"], left.transpose(1, 2), right.transpose(1, 2))
            return
        grouped = left.unflatten(1, (module.groups, -1)) @ right.unflatten(1, (module.groups, -1)).transpose(2, 3)
        yield Dense(wanted["weight"], grouped.flatten(1))

    return backward


def _patches(module: nn.Conv1d | nn.Conv2d, x: Tensor) -> Tensor:
    """What each output position sees, (B, in channels * kernel size, positions)."""
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    x = F.pad(x, module._reversed_padding_repeated_twice, mode=mode)
    kernel, dilation, stride = module.kernel_size, module.dilation, module.stride
    if x.ndim == 3:
        x, kernel, dilation, stride = x[:, :, None], (1, *kernel), (1, *dilation), (1, *stride)
    return F.unfold(x, kernel, dilation=dilation, stride=stride)


def _embedding(module: nn.Embedding, x: Tensor, count: int) -> Backward | None:
    index = _examples(x, count)
    if index is None or module.max_norm is not None or module.scale_grad_by_freq:
        return None

    def backward(gradient: Tensor, wanted: Mapping[str, int]) -> Iterator[Part]:
        rows, values = index.reshape(count, -1).long(), gradient.reshape(count, -1, gradient.shape[-1])
        if module.padding_idx is not None:
            values = values.masked_fill((rows == module.padding_idx)[..., None], 0)
        yield Rows(wanted["weight"], rows, values)

    return backward


def _scaled(normal: Tensor, axes: Sequence[int], count: int) -> Backward:
    """Of ``normal * weight + bias``, where weight and bias lie along `axes` (a run, counted from the end when negative)."""
    kept = {axis % normal.ndim for axis in axes}
    summed = [axis for axis in range(1, normal.ndim) if axis not in kept]

    def backward(gradient: Tensor, wanted: Mapping[str, int]) -> Iterator[Part]:
        gradient = gradient.reshape(normal.shape)
        for key in ("weight", "bias"):
            if key in wanted:
                found = gradient * normal if key == "weight" else gradient
                yield Dense(wanted[key], (found.sum(dim=summed) if summed else found).flatten(1))

    return backward


def _layer_norm(module: nn.LayerNorm, x: Tensor, count: int) -> Backward | None:
    normal = _examples(F.layer_norm(x, module.normalized_shape, eps=module.eps), count)
    width = len(module.normalized_shape)
    return None if normal is None or normal.ndim <= width else _scaled(normal, range(-width, 0), count)


def _group_norm(module: nn.GroupNorm, x: Tensor, count: int) -> Backward | None:
    return _scaled(F.group_norm(x, module.num_groups, eps=module.eps), (1,), count) if len(x) == count else None


def _batch_norm(module: nn.BatchNorm1d, x: Tensor, count: int) -> Backward | None:
    if module.running_mean is None or module.running_var is None or module.training or len(x) != count:
        return None
    return _scaled(F.batch_norm(x, module.running_mean, module.running_var, eps=module.eps), (1,), count)


_RULES: dict[Any, Callable[..., Backward | None]] = {
    nn.Linear.forward: _linear,
    nn.Conv1d.forward: _convolution,
    nn.Conv2d.forward: _convolution,
    nn.Embedding.forward: _embedding,
    nn.LayerNorm.forward: _layer_norm,
    nn.GroupNorm.forward: _group_norm,
    nn.BatchNorm2d.forward: _batch_norm,
}
"""Rules by the forward method itself: a subclass that overrides it gets none."""
