"""Gradients per example: by hooks, by vmap and by a loop the same, for layers of every kind."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from datamodels.trak.gradients import Gradients
from datamodels.trak.outputs import resolve
from datamodels.trak.projections import projection_of
from tests.trak_models import Text, close, loop, states_of, tokens

CPU = torch.device("cpu")


# -- models -------------------------------------------------------------------------------------------


class Shared(nn.Module):
    """One layer used twice, and batches folded into positions."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.twice, self.last = nn.Linear(6, 6), nn.Linear(6, 6), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.twice(F.relu_(self.first(x.reshape(-1, 6))))
        return self.last(torch.tanh(self.twice(y))).view(len(x), -1, 3).sum(dim=1)


class Scaled(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return 0.5 * super().forward(x)


class Odd(nn.Module):
    """What no rule serves: time first, a parameter of its own, a subclass's forward, attention, a layer that is bypassed."""

    def __init__(self) -> None:
        super().__init__()
        self.time_first, self.scaled, self.bypassed = nn.Linear(6, 8), Scaled(8, 8), nn.Linear(8, 8)
        self.token = nn.Parameter(torch.randn(8))
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.head = nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        y = self.time_first(x.transpose(0, 1)).transpose(0, 1) + self.token
        y = y + self.attention(y, y, y, need_weights=False)[0]
        y = F.linear(self.scaled(y), self.bypassed.weight, self.bypassed.bias)
        return self.head(y.mean(dim=1))


def cnn() -> nn.Module:
    """Groups, strides, dilation, padding of all kinds, and norms with statistics that are not trivial."""
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, padding="same", bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 8, (3, 1), groups=4, stride=(2, 1), padding=(1, 0)),
        nn.GroupNorm(2, 8),
        nn.ReLU(inplace=True),
        nn.Conv2d(8, 6, 3, dilation=2, padding=2, padding_mode="circular"),
        nn.ReLU(),
        nn.Conv2d(6, 6, (1, 3), groups=6, padding="same"),
        nn.Flatten(),
        nn.Linear(6 * 5 * 9, 3),
    )
    norm: Any = model[1]
    nn.init.normal_(norm.running_mean)
    nn.init.uniform_(norm.running_var, 0.5, 2.0)
    nn.init.normal_(norm.weight)
    return model


def frozen() -> nn.Module:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    model[2].weight.requires_grad_(False)
    return model


def temporal() -> nn.Module:
    return nn.Sequential(
        nn.Conv1d(3, 6, 3, stride=2, padding=1, padding_mode="reflect"),
        nn.BatchNorm1d(6),
        nn.ReLU(),
        nn.Conv1d(6, 4, 3, groups=2, dilation=2),
        nn.Flatten(),
        nn.Linear(16, 8),
        nn.BatchNorm1d(8),
        nn.Linear(8, 3),
    )


ZOO: dict[str, tuple[Callable[[], nn.Module], Callable[[int], Any], set[str]]] = {
    # name: model, inputs of n examples, parameters that no rule serves
    "mlp": (
        lambda: nn.Sequential(nn.Linear(6, 16), nn.Tanh(), nn.LayerNorm(16), nn.Linear(16, 3)),
        lambda n: torch.randn(n, 6),
        set(),
    ),
    "cnn": (cnn, lambda n: torch.randn(n, 2, 9, 9), set()),
    "conv1d": (temporal, lambda n: torch.randn(n, 3, 15), set()),
    "text": (Text, tokens, set()),
    "tied": (lambda: Text(tied=True), tokens, set()),
    "shared": (Shared, lambda n: torch.randn(n, 4, 6), set()),
    "frozen": (frozen, lambda n: torch.randn(n, 6), set()),
    "odd": (
        Odd,
        lambda n: torch.randn(n, 5, 6),
        {"token", "time_first.weight", "time_first.bias", "scaled.weight", "scaled.bias", "bypassed.weight",
         "bypassed.bias", "attention.in_proj_weight", "attention.in_proj_bias", "attention.out_proj.weight",
         "attention.out_proj.bias"},
    ),
}  # fmt: skip


def names_of(model: nn.Module) -> list[str]:
    return [name for name, value in model.named_parameters() if value.requires_grad]


def features(gradients: Gradients, model: nn.Module, batch: Any, n: int) -> Tensor:
    project = projection_of("none", 1, 0, gradients.size)
    found = torch.zeros(n, gradients.size)
    for piece in gradients.pieces(*states_of(model), batch):
        found[piece.rows] += project(piece.parts, piece.rows.stop - piece.rows.start, CPU)
    return found


# -- equality -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("n", [1, 5])
def test_hooks_equal_vmap_equal_the_loop(name: str, n: int) -> None:
    torch.manual_seed(0)
    make, draw, rest = ZOO[name]
    model, drawn = make().eval(), draw(n)
    batch = drawn if isinstance(drawn, dict) else (drawn, torch.randint(0, 3, (n,)))
    expected = loop(model, batch, n)
    task = resolve("image_classification")
    by_hooks = Gradients(model, task, names_of(model))
    close(features(by_hooks, model, batch, n), expected)
    if n > 1:
        assert set(by_hooks.by_vmap) == rest
    by_vmap = Gradients(model, task, names_of(model))
    by_vmap._rest, by_vmap._layers = set(names_of(model)), []
    close(features(by_vmap, model, batch, n), expected)


def test_a_layer_that_is_square_in_time_and_examples_is_not_mistaken() -> None:
    """As many time steps as examples: shapes cannot tell the axes apart, the comparison with autograd does."""
    torch.manual_seed(0)
    model, n = Odd().eval(), 5
    batch = (torch.randn(n, n, 6), torch.randint(0, 3, (n,)))
    gradients = Gradients(model, resolve("image_classification"), names_of(model))
    close(features(gradients, model, batch, n), loop(model, batch, n))
    assert "time_first.weight" in gradients.by_vmap
    assert "head.weight" not in gradients.by_vmap


class Branching(nn.Module):
    """A parameter behind a decision that vmap cannot take."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.head = nn.Parameter(torch.ones(6)), nn.Linear(6, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(x * self.scale if float(x.sum()) > 0 else x * self.scale * 2)


def test_where_vmap_fails_there_is_a_loop() -> None:
    torch.manual_seed(0)
    model, batch = Branching(), (torch.rand(4, 6), torch.randint(0, 3, (4,)))
    gradients = Gradients(model, resolve("image_classification"), names_of(model))
    close(features(gradients, model, batch, 4), loop(model, batch, 4))
    assert gradients.by_vmap == ["scale"]
