"""What stacked training is measured against: plain PyTorch, `vmap`, and one process per model.

Everything runs on one core. The loop is the kind one that a user writes who knows PyTorch: tensors in memory, indexing in
place of a DataLoader, no bookkeeping.
"""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import nn

from datamodels.training.recipes import Recipe


class Block(nn.Sequential):
    def __init__(self, n_in: int, n_out: int) -> None:
        super().__init__(nn.Conv2d(n_in, n_out, 3, padding=1, bias=False), nn.BatchNorm2d(n_out), nn.ReLU())


class Residual(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.inner = nn.Sequential(Block(width, width), Block(width, width))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + self.inner(x)


class Scaled(nn.Linear):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 0.125 * super().forward(x)


def module(recipe: Recipe, shape: tuple[int, ...], n_classes: int) -> nn.Module:
    """The architecture of a recipe as a plain module, He-normal like ours."""
    layers: list[nn.Module] = []
    size = math.prod(shape)
    if recipe.architecture == "cnn":
        channels, height, width = shape
        for n_out in recipe.widths:
            layers += [nn.Conv2d(channels, n_out, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2)]
            channels, height, width = n_out, height // 2, width // 2
        size = channels * height * width
    if recipe.architecture == "resnet9":
        a, b, c, d = recipe.widths
        layers = [
            Block(shape[0], a), Block(a, b), nn.MaxPool2d(2), Residual(b), Block(b, c), nn.MaxPool2d(2), Block(c, d),
            nn.MaxPool2d(2), Residual(d), nn.AdaptiveMaxPool2d(1), nn.Flatten(), Scaled(d, n_classes, bias=False),
        ]  # fmt: skip
        net = nn.Sequential(*layers)
    else:
        layers.append(nn.Flatten())
        for n_out in recipe.hidden if recipe.architecture == "mlp" else ():
            layers += [nn.Linear(size, n_out), nn.ReLU()]
            size = n_out
        net = nn.Sequential(*layers, nn.Linear(size, n_classes))
    weighted = [one for one in net.modules() if isinstance(one, nn.Linear | nn.Conv2d)]
    for one in weighted:
        gain = 1.0 if one is weighted[-1] else 2.0
        nn.init.normal_(one.weight, std=math.sqrt(gain / one.weight[0].numel()))
        if one.bias is not None:
            nn.init.zeros_(one.bias)
    return net


def rates(recipe: Recipe, size: int) -> np.ndarray:
    return recipe.rates(recipe.total_steps(size))


def loop(recipe: Recipe, x: torch.Tensor, y: torch.Tensor, mask: torch.Tensor, n_classes: int) -> nn.Module:
    """One model."""
    net = module(recipe, tuple(x.shape[1:]), n_classes)
    optimiser = torch.optim.SGD(
        net.parameters(), lr=recipe.lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay
    )
    members, step = mask.nonzero()[:, 0], 0
    schedule = rates(recipe, len(members))
    while step < len(schedule):
        order = members[torch.randperm(len(members))]
        for chosen in order.split(recipe.batch_size):
            if step == len(schedule):
                break
            optimiser.param_groups[0]["lr"] = schedule[step]
            loss = nn.functional.cross_entropy(net(x[chosen]), y[chosen])
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            step += 1
    return net.eval()


def vmapped(recipe: Recipe, x: torch.Tensor, y: torch.Tensor, masks: torch.Tensor, n_classes: int) -> None:
    """K models by `torch.func`: vmap over gradients of one functional module; subsets of equal size, no batch norm."""
    from torch.func import functional_call, grad, stack_module_state, vmap

    nets = [module(recipe, tuple(x.shape[1:]), n_classes) for _ in masks]
    parameters, _ = stack_module_state(nets)
    parameters = {name: value.detach() for name, value in parameters.items()}
    momentum = {name: torch.zeros_like(value) for name, value in parameters.items()}

    def loss(state: dict[str, torch.Tensor], inputs: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(functional_call(nets[0], state, (inputs,)), labels)

    gradients = vmap(grad(loss))
    members = torch.stack([mask.nonzero()[:, 0] for mask in masks])
    schedule, step = rates(recipe, members.shape[1]), 0
    while step < len(schedule):
        order = torch.stack([row[torch.randperm(len(row))] for row in members])
        for chosen in order.split(recipe.batch_size, dim=1):
            if step == len(schedule):
                break
            found = gradients(parameters, x[chosen], y[chosen])
            for name, value in parameters.items():
                momentum[name].mul_(recipe.momentum).add_(found[name]).add_(value, alpha=recipe.weight_decay)
                value.sub_(momentum[name], alpha=float(schedule[step]))
            step += 1


def main(index: int, logdir: str) -> dict[str, np.ndarray]:
    """The classic worker's program: one digits perceptron in a process of its own."""
    from datamodels.datasets import load
    from datamodels.design import Design
    from training import DIGITS

    torch.set_num_threads(1)
    data = load("digits")
    x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
    mask = Design(n_train=len(x), alpha=0.5, n_models=index + 1).mask(index)
    net = loop(DIGITS, x, y, torch.from_numpy(mask), 2)
    with torch.no_grad():
        logits = net(torch.from_numpy(data.test.x)).numpy()
    return {"masks": mask, "margins": (logits[:, 1] - logits[:, 0]) * (2 * data.test.y - 1)}
