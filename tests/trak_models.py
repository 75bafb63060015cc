"""Models, batches and tasks that TRAK is tried on, and its gradients one example after the other."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class Text(nn.Module):
    """Tokens and positions embedded, normalised, a linear layer per token, a mean; the embedding is the decoder too."""

    def __init__(self, tied: bool = False) -> None:
        super().__init__()
        self.tokens = nn.Embedding(11, 8, padding_idx=0)
        self.positions = nn.Embedding(7, 8)
        self.norm = nn.LayerNorm(8)
        self.inner = nn.Linear(8, 8)
        self.head = nn.Linear(8, 11, bias=False) if tied else nn.Linear(8, 4)
        if tied:
            self.head.weight = self.tokens.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Any:
        x = self.tokens(input_ids) + self.positions(torch.arange(input_ids.shape[1])[None])
        x = F.gelu(self.inner(self.norm(x)))
        if attention_mask is not None:
            x = x * attention_mask[..., None]
        return SimpleNamespace(logits=self.head(x.mean(dim=1)))


def tokens(n: int) -> dict[str, Tensor]:
    mask = torch.ones(n, 7)
    mask[:, 5:] = 0
    return {"input_ids": torch.randint(0, 11, (n, 7)), "attention_mask": mask, "labels": torch.randint(0, 4, (n,))}


def states_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {k: v.detach() for k, v in model.named_parameters()}, dict(model.named_buffers())


def loop(model: nn.Module, batch: Any, n: int) -> Tensor:
    """Gradients of the log-odds margin, (n, p): one example after the other, by plain autograd."""
    wanted = [p for p in model.parameters() if p.requires_grad]
    rows = []
    for b in range(n):
        if isinstance(batch, dict):
            inputs, y = {k: v[b : b + 1] for k, v in batch.items() if k != "labels"}, batch["labels"][b]
            logits = model(**inputs).logits[0]
        else:
            logits, y = model(batch[0][b : b + 1])[0], batch[1][b]
        others = logits[torch.arange(len(logits)) != y]
        found = torch.autograd.grad(logits[y] - others.logsumexp(0), wanted)
        rows.append(torch.cat([g.flatten() for g in found]))
    return torch.stack(rows)


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm(dim=1).max()) < 1e-5 * float(expected.norm(dim=1).max())


def small(n: int = 30, seed: int = 0) -> tuple[nn.Module, list[Any], list[dict[str, Tensor]]]:
    """A model with batch norm and dropout, left in training mode; batches of 7; two checkpoints."""
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(5, 6), nn.BatchNorm1d(6), nn.ReLU(), nn.Dropout(0.5), nn.Linear(6, 3))
    x, y = torch.randn(n, 5), torch.randint(0, 3, (n,))
    states = []
    for _ in range(2):
        states.append({k: v + 0.3 * torch.rand(v.shape) if v.dtype.is_floating_point else v
                       for k, v in model.state_dict().items()})  # fmt: skip
    return model, [(x[i : i + 7], y[i : i + 7]) for i in range(0, n, 7)], states


class Own:
    """A user's output function: the label's logit, weighted alike."""

    def output(self, model: nn.Module, params: Any, buffers: Any, batch: Any) -> Tensor:
        logits = torch.func.functional_call(model, (params, buffers), (batch[0],))
        return logits.gather(1, batch[1][:, None])[:, 0]

    def loss_weight(self, model: nn.Module, params: Any, buffers: Any, batch: Any) -> Tensor:
        return torch.full((len(batch[1]),), 0.25)


class ForTraker:
    """As one writes for the traker package: one example, without a batch axis."""

    def get_output(self, model: nn.Module, weights: Any, buffers: Any, image: Tensor, label: Tensor) -> Tensor:
        logits = torch.func.functional_call(model, (weights, buffers), image.unsqueeze(0))
        index = torch.arange(1)
        own = logits[index, label.unsqueeze(0)]
        others = logits.clone()
        others[index, label.unsqueeze(0)] = torch.tensor(-torch.inf)
        return (own - others.logsumexp(dim=-1)).sum()

    def get_out_to_loss_grad(self, model: nn.Module, weights: Any, buffers: Any, batch: Any) -> Tensor:
        images, labels = batch
        logits = torch.func.functional_call(model, (weights, buffers), images)
        p = logits.softmax(-1)[torch.arange(len(labels)), labels]
        return (1 - p).clone().detach().unsqueeze(-1)
