"""Trained models as plain torch modules: for gradients, as checkpoints, and to take elsewhere."""

from __future__ import annotations

import pkgutil
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn

from datamodels.training.batched import BatchedModels
from datamodels.training.chain import CHAINS, CONVOLUTION, Chain, Layer, picture_shape
from datamodels.training.compiled import CompiledModels
from datamodels.training.ensemble import Models, TrainedModels
from datamodels.training.recipes import Recipe

_SCALE = 0.125  # of the logits of resnet9
_OF_BLOCK = {
    "": "0.weight",
    "scale": "1.weight",
    "shift": "1.bias",
    "mean": "1.running_mean",
    "variance": "1.running_var",
}


class Scaled(nn.Module):
    """A module after a change of scale per channel; `mean` and `deviation` are buffers."""

    mean: Tensor
    deviation: Tensor

    def __init__(self, net: nn.Module, shape: tuple[int, ...]) -> None:
        super().__init__()
        extent = (1, shape[0], 1, 1) if len(shape) == 3 else (1,) * (len(shape) + 1)
        self.register_buffer("mean", torch.zeros(extent))
        self.register_buffer("deviation", torch.ones(extent))
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return self.net((x - self.mean) / self.deviation)


class FlipAveraged(nn.Module):
    """Mean of the logits of a picture and of its mirror image."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * self.net(x) + 0.5 * self.net(x.flip(-1))


class Resnet9(nn.Module):
    """The architecture ``resnet9``, see `datamodels.training.stacks.Resnet9Stack`."""

    def __init__(self, channels: int, widths: Sequence[int], n_classes: int) -> None:
        super().__init__()
        a, b, c, d = widths
        self.prepare, self.first, self.first_a, self.first_b = (
            _block(channels, a),
            _block(a, b),
            _block(b, b),
            _block(b, b),
        )
        self.second, self.third, self.third_a, self.third_b = _block(b, c), _block(c, d), _block(d, d), _block(d, d)
        self.pool = nn.MaxPool2d(2)
        self.last = nn.Linear(d, n_classes, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        x = self.pool(self.first(self.prepare(x)))
        x = x + self.first_b(self.first_a(x))
        x = self.pool(self.third(self.pool(self.second(x))))
        x = x + self.third_b(self.third_a(x))
        return _SCALE * self.last(x.amax(dim=(2, 3)))


def _block(n_in: int, n_out: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


def module_of(recipe: Recipe, shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """The network of a recipe as a module whose values mean nothing yet, in eval mode.

    Parameters
    ----------
    recipe
        How models are trained. ``standardise`` and ``flip_average`` are part of the module.
    shape
        Of an input, without the axis of examples.
    n_classes
        Width of the logits.

    Returns
    -------
    torch.nn.Module
        Inputs (k, ...) to logits (k, n_classes).

    Raises
    ------
    RequestError
        when the architecture is not for such inputs.
    """
    net = _plain(recipe, shape, n_classes)
    if recipe.standardise:
        net = Scaled(net, shape)
    return (FlipAveraged(net) if recipe.flip_average else net).eval()


def _plain(recipe: Recipe, shape: tuple[int, ...], n_classes: int) -> nn.Module:
    name = recipe.architecture
    if name == "resnet9":
        return Resnet9(picture_shape(shape, "resnet9")[0], recipe.widths, n_classes)
    if name not in CHAINS:
        factory = pkgutil.resolve_name(name) if isinstance(name, str) else name
        return factory(shape, n_classes)
    layers = Chain.of(recipe, shape, n_classes).layers
    modules: list[nn.Module] = []
    for layer, before in zip(layers, (None, *layers[:-1]), strict=True):
        if layer.kind == CONVOLUTION:
            modules += [nn.Conv2d(layer.n_in, layer.n_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
        else:
            modules.append(nn.Flatten() if before is None or before.kind == CONVOLUTION else nn.ReLU())
            modules.append(nn.Linear(layer.n_in, layer.n_out))
    return nn.Sequential(*modules)


def state_dicts(models: Models, recipe: Recipe, shape: tuple[int, ...], n_classes: int) -> list[dict[str, Tensor]]:
    """What `train_models` trained as state dicts of `module_of`, one per model, on the CPU.

    Parameters
    ----------
    models
        From `datamodels.training.ensemble.train_models`.
    recipe, shape, n_classes
        As they were trained with; the shape is that of an input.
    """
    module = module_of(recipe, shape, n_classes)
    net = module
    while isinstance(net, FlipAveraged | Scaled):
        if isinstance(net, Scaled):
            assert isinstance(models, TrainedModels)
            net.mean.copy_(torch.from_numpy(models.scale.mean))
            net.deviation.copy_(torch.from_numpy(models.scale.deviation))
        net = net.net
    out = []
    for values in _values(models.models if isinstance(models, TrainedModels) else models, recipe, shape, n_classes):
        net.load_state_dict(values, strict=False)  # a parameter that layers share comes under one name
        out.append({name: value.clone() for name, value in module.state_dict().items()})
    return out


def _values(models: Models, recipe: Recipe, shape: tuple[int, ...], n_classes: int) -> Iterator[dict[str, Tensor]]:
    """Values of the plain network of each model by name."""
    if isinstance(models, CompiledModels):
        parts: list[tuple[dict[str, Tensor], dict[str, Tensor]]] = [({"all": torch.from_numpy(models.parameters)}, {})]
    else:
        assert isinstance(models, BatchedModels)
        parts = models.parts
    chain = Chain.of(recipe, shape, n_classes) if recipe.architecture in CHAINS else None
    for parameters, buffers in parts:
        stacked = {name: value.detach().cpu() for name, value in (parameters | buffers).items()}
        for k in range(len(next(iter(stacked.values())))):
            values = {name: value[k] for name, value in stacked.items()}
            if chain is not None:
                values = _of_chain(chain, values["all"])
            elif recipe.architecture == "resnet9":
                values = dict(_of_resnet9(name, value) for name, value in values.items())
            yield values


def _of_chain(chain: Chain, vector: Tensor) -> dict[str, Tensor]:
    """Names of `_plain`: a convolution takes three places, a dense layer two, of which it is the second."""
    out: dict[str, Tensor] = {}
    place = 0
    for layer in chain.layers:
        place += layer.kind != CONVOLUTION
        weights, bias = vector[layer.at :][: layer.n_weights + layer.n_out].split([layer.n_weights, layer.n_out])
        out |= {f"{place}.weight": _shaped(layer, weights), f"{place}.bias": bias}
        place += 3 if layer.kind == CONVOLUTION else 1
    return out


def _shaped(layer: Layer, weights: Tensor) -> Tensor:
    if layer.kind == CONVOLUTION:
        return weights.reshape(layer.n_out, layer.n_in, 3, 3)
    return weights.reshape(layer.n_in, layer.n_out).T


def _of_resnet9(name: str, value: Tensor) -> tuple[str, Tensor]:
    if name == "last":
        return "last.weight", value.T
    block, _, kind = name.partition(".")
    return f"{block}.{_OF_BLOCK[kind]}", value
