"""TRAK: exact gradients, the formula of the paper, features on disk, and every kind of task."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from datamodels.attribution import Attribution
from datamodels.errors import CorruptStoreError, NewerFormatError, RequestError
from datamodels.training.outputs import log_odds_margins
from datamodels.trak import TRAK, Contrastive
from datamodels.trak.gradients import Gradients
from datamodels.trak.outputs import log_odds, one_minus_p, resolve
from datamodels.trak.projections import projection_of
from tests.kill_trak import SIZE, problem

CPU = torch.device("cpu")
ROOT = Path(__file__).parent.parent


# -- gradients ----------------------------------------------------------------------------------------


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


def tokens(n: int) -> dict[str, Tensor]:
    mask = torch.ones(n, 7)
    mask[:, 5:] = 0
    return {"input_ids": torch.randint(0, 11, (n, 7)), "attention_mask": mask, "labels": torch.randint(0, 4, (n,))}


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


def states_of(model: nn.Module) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    return {k: v.detach() for k, v in model.named_parameters()}, dict(model.named_buffers())


def names_of(model: nn.Module) -> list[str]:
    return [name for name, value in model.named_parameters() if value.requires_grad]


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


def features(gradients: Gradients, model: nn.Module, batch: Any, n: int) -> Tensor:
    project = projection_of("none", 1, 0, gradients.size)
    found = torch.zeros(n, gradients.size)
    for piece in gradients.pieces(*states_of(model), batch):
        found[piece.rows] += project(piece.parts, piece.rows.stop - piece.rows.start, CPU)
    return found


def close(found: Tensor, expected: Tensor) -> None:
    assert found.shape == expected.shape
    assert float((found - expected).norm(dim=1).max()) < 1e-5 * float(expected.norm(dim=1).max())


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


# -- the formula --------------------------------------------------------------------------------------


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


def direct(model: nn.Module, train: Any, targets: Any, states: list[Any], ridge: float | None) -> NDArray[np.float64]:
    """The formula of section 3, written down in float64."""
    inverse, weights = [], []
    for state in states:
        model.load_state_dict(state)
        model.eval()
        phi, target = (loop(model, one, len(one[1])).double().numpy() for one in (train, targets))
        kernel = phi.T @ phi
        lam = 1e-3 * np.trace(kernel) / len(kernel) if ridge is None else ridge
        inverse.append(phi @ np.linalg.solve(kernel + lam * np.eye(len(kernel)), target.T))
        margins = log_odds_margins(model(train[0]).detach().numpy(), train[1].numpy())
        weights.append(1 - 1 / (1 + np.exp(-margins)))
    return np.mean(inverse, axis=0) * np.mean(weights, axis=0)[:, None]


@pytest.mark.parametrize("ridge", [None, 0.7])
def test_scores_are_the_formula(ridge: float | None, tmp_path: Path) -> None:
    model, batches, states = small()
    train = tuple(torch.cat(one) for one in zip(*batches, strict=True))
    targets = (torch.randn(9, 5), torch.randint(0, 3, (9,)))
    trak = TRAK(model, projection="none", ridge="auto" if ridge is None else ridge)
    trak.featurize(batches, states)
    found = trak.score([targets])
    assert model.training
    assert isinstance(found, Attribution)
    assert found.weights.dtype == np.float32
    assert (found.bias == 0).all()
    expected = direct(model, train, targets, states, ridge)
    np.testing.assert_allclose(found.weights, expected, rtol=0, atol=1e-4 * abs(expected).max())
    own = direct(model, train, train, states, ridge)
    np.testing.assert_allclose(trak.self_influence(), np.diag(own), rtol=1e-3, atol=1e-6)
    about = found.provenance["estimator"]
    assert (about["name"], about["projection"], about["dim"]) == ("TRAK", "none", 18 + 18 + 12 + 21)
    assert len(found.provenance["checkpoints"]) == 2
    assert "not calibrated" in found.provenance["units"]
    loaded = Attribution.load(found.save(tmp_path / "trak.h5ad"))
    np.testing.assert_array_equal(loaded.weights, found.weights)
    assert loaded.provenance["estimator"] == about


def test_scores_stream_to_a_file_block_by_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, states = small()
    targets = [(torch.randn(9, 5), torch.randint(0, 3, (9,)))]
    trak = TRAK(model, dim=32, out=tmp_path / "features")
    trak.featurize(batches, states)
    whole = trak.score(targets)
    monkeypatch.setattr("datamodels.trak.scores._ROWS", 8)
    monkeypatch.setattr("datamodels.trak.scores._TARGETS", 4)
    streamed = trak.score(targets, out=tmp_path / "scores.npy")
    np.testing.assert_allclose(np.load(tmp_path / "scores.npy"), whole.weights, rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(streamed.weights, np.load(tmp_path / "scores.npy"))
    assert sorted(p.name for p in (tmp_path / "features").iterdir()) == ["checkpoint_000", "checkpoint_001"]
    with pytest.raises(RequestError, match=r"must end in \.npy"):
        trak.score(targets, out=tmp_path / "scores.bin")


def test_more_features_come_nearer_to_no_projection() -> None:
    """Scores of a projection correlate with those without, the more the larger dim is."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 3))
    x, y = torch.randn(100, 20), torch.randint(0, 3, (100,))
    batches = [(x[:50], y[:50]), (x[50:], y[50:])]

    def scores(**options: Any) -> NDArray[np.float32]:
        trak = TRAK(model, ridge=50.0, **options)
        trak.featurize(batches, [model.state_dict()])
        return trak.score(batches).weights.ravel()

    exact = scores(projection="none")
    for name in ("sjlt", "rademacher"):
        near, far = (np.corrcoef(exact, scores(projection=name, dim=dim))[0, 1] for dim in (1024, 64))
        assert near > 0.95
        assert near > far


# -- tasks --------------------------------------------------------------------------------------------


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


def test_an_object_for_traker_gives_the_same_scores() -> None:
    model, batches, states = small()
    results = []
    for task in ("image_classification", ForTraker()):
        trak = TRAK(model, task, dim=40)
        trak.featurize(batches, states)
        results.append(trak.score(batches[:2]).weights)
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-4 * abs(results[0]).max())


def test_a_users_output_function() -> None:
    model, batches, states = small()
    trak = TRAK(model, Own(), projection="none")
    trak.featurize(batches, states)
    found = trak.score(batches[:1])
    np.testing.assert_allclose(found.train_facts["loss_weight"], 0.25)
    assert found.provenance["estimator"]["task"].endswith("Own")


def test_text_in_dicts_with_logits_equals_tensors() -> None:
    torch.manual_seed(0)
    model, given = Text(), tokens(12)
    as_dicts = [{k: v[i : i + 4] for k, v in given.items()} for i in (0, 4, 8)]
    as_tuples = [(one["input_ids"], one["attention_mask"], one["labels"]) for one in as_dicts]
    results = []
    for batches in (as_dicts, as_tuples):
        trak = TRAK(model, "text_classification", dim=30)
        trak.featurize(batches, [model.state_dict()])
        results.append(trak.score(batches).weights)
    np.testing.assert_array_equal(*results)


def test_regression_of_a_linear_model_is_its_leverage() -> None:
    """f = w x: the score is x_i (XᵀX + ridge I)⁻¹ x_t (y_i - f_i), the step that removes an example."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)
    x, y = torch.randn(20, 3), torch.randn(20)
    trak = TRAK(model, "regression", projection="none", ridge=0.5)
    trak.featurize([(x, y)], [model.state_dict()])
    found = trak.score([(x[:4], y[:4])])
    residual = (y - model(x)[:, 0]).detach()
    expected = x @ torch.linalg.inv(x.T @ x + 0.5 * torch.eye(3)) @ x[:4].T * residual[:, None]
    np.testing.assert_allclose(found.weights, expected.numpy(), rtol=1e-4, atol=1e-5)


class Clip(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.image, self.text = nn.Linear(6, 4), nn.Linear(5, 4)
        self.scale = nn.Parameter(torch.tensor(1.5))

    def forward(self, images: Tensor, texts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1), self.scale.exp()


def test_contrastive_outputs_have_fixed_negatives_and_exact_gradients() -> None:
    torch.manual_seed(0)
    model, images, texts = Clip(), torch.randn(10, 6), torch.randn(10, 5)
    batches = [(images[:6], texts[:6]), (images[6:], texts[6:])]
    trak = TRAK(model, Contrastive(negatives=8), projection="none", ridge=0.1)
    trak.featurize(batches, [model.state_dict()])
    with torch.no_grad():
        negatives, _, _ = model(images[:8], texts[:8])
        _, other, _ = model(images[:8], texts[:8])
    rows, weights = [], []
    for b in range(10):
        image, text, scale = model(images[b : b + 1], texts[b : b + 1])
        own = scale * (image * text).sum()
        margins = [own - (scale * one @ them.T).logsumexp(1)[0] for one, them in ((image, other), (text, negatives))]
        found = torch.autograd.grad(sum(margins), list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]))
        weights.append(1 - sum(float(torch.sigmoid(m).detach()) for m in margins) / 2)
    close(torch.from_numpy(np.array(trak._features[0].rows())), torch.stack(rows))
    np.testing.assert_allclose(trak._features[0].weights(), weights, rtol=1e-5)
    assert trak.score(batches).weights.shape == (10, 10)


def test_log_odds_and_their_weights() -> None:
    model, batch = nn.Linear(4, 5), (3 * torch.randn(8, 4), torch.randint(0, 5, (8,)))
    state = states_of(model)
    logits = model(batch[0]).detach()
    expected = log_odds_margins(logits.numpy(), batch[1].numpy())
    np.testing.assert_allclose(log_odds(model, *state, batch).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    p = logits.softmax(1)[torch.arange(8), batch[1]]
    np.testing.assert_allclose(one_minus_p(model, *state, batch).detach().numpy(), 1 - p.numpy(), rtol=1e-4, atol=1e-6)


# -- parameters and checkpoints -----------------------------------------------------------------------


def test_parameters_are_chosen_by_name_or_pattern() -> None:
    model, batches, states = small()
    for params, size in (("4.*", 21), (["0.weight", "4.bias"], 33), ("*.bias", 15), (None, 69)):
        trak = TRAK(model, projection="none", params=params)
        assert trak.projection.dim == size
    trak = TRAK(model, projection="none", params="4.*", ridge=1.0)
    trak.featurize(batches, states[:1])
    model.load_state_dict(states[0])
    train = tuple(torch.cat(one) for one in zip(*batches, strict=True))
    expected = loop(model.eval(), train, 30)[:, -21:]
    close(torch.from_numpy(np.array(trak._features[0].rows())), expected)
    tied = Text(tied=True)
    assert TRAK(tied, projection="none", params="head.weight").projection.dim == 88  # by its other name, once
    with pytest.raises(RequestError, match=r"'5\.\*', which names no parameter"):
        TRAK(model, params="5.*")
    with pytest.raises(RequestError, match="no parameter with requires_grad"):
        TRAK(nn.Linear(2, 2).requires_grad_(False))


def test_checkpoints_are_state_dicts_or_files(tmp_path: Path) -> None:
    model, batches, states = small()
    torch.save(states[0], tmp_path / "plain.pt")
    torch.save({"state_dict": states[1], "epoch": 3}, tmp_path / "nested.pt")
    a, b = TRAK(model, dim=16), TRAK(model, dim=16)
    a.featurize(batches, states)
    b.featurize(batches, [tmp_path / "plain.pt", str(tmp_path / "nested.pt")])
    np.testing.assert_array_equal(a.score(batches).weights, b.score(batches).weights)
    with pytest.raises(RequestError, match="cannot read the checkpoint"):
        a.featurize(batches, [tmp_path / "none.pt"])
    with pytest.raises(RequestError, match=r"missing \['0.weight'"):
        a.featurize(batches, [{"other": torch.zeros(1)}])
    with pytest.raises(RequestError, match=r"'0.weight' must have shape \(6, 5\)"):
        a.featurize(batches, [{**states[0], "0.weight": torch.zeros(1)}])
    with pytest.raises(RequestError, match="a list of state dicts"):
        a.featurize(batches, states[0])  # type: ignore[arg-type]


def test_the_model_itself_is_left_as_it_was() -> None:
    model, batches, states = small()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    trak = TRAK(model, dim=16)
    trak.featurize(batches, states)
    trak.score(batches)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(module.training and not module._forward_hooks for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())


# -- loaders ------------------------------------------------------------------------------------------


def test_loaders_of_all_kinds_and_batch_sizes_agree() -> None:
    model, batches, states = small()
    x, y = (torch.cat(one) for one in zip(*batches, strict=True))
    loaders: list[Any] = [
        batches,
        DataLoader(TensorDataset(x, y), batch_size=11),
        [[x.numpy(), y.numpy()]],
        [{"x": x[:2], "label": y[:2]}, {"x": x[2:], "label": y[2:]}],
    ]
    found = []
    for loader in loaders[:3]:
        trak = TRAK(model, dim=16, ridge=5.0)
        trak.featurize(loader, states)
        found.append(trak.score(batches[:1]).weights)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-3, atol=1e-6)


def test_loaders_that_cannot_serve_are_refused() -> None:
    model, batches, states = small()
    data = TensorDataset(torch.randn(10, 5), torch.zeros(10, dtype=torch.long))
    trak = TRAK(model, dim=16)
    for loader, message in (
        (iter(batches), "only once"),
        (DataLoader(data, batch_size=3, shuffle=True), "shuffle=False"),
        (DataLoader(data, batch_size=3, drop_last=True), "drop_last=False"),
        ([], "no examples"),
        ([(torch.zeros(3, 5), torch.zeros(2))], "examples; a loader must give"),
        ([{"x": torch.zeros(3, 5)}], "no labels"),
        ([(torch.zeros(3, 5),)], "no labels"),
    ):
        with pytest.raises(RequestError, match=message):
            trak.featurize(loader, states)

    class Shrinking(list[Any]):
        passes = 0

        def __iter__(self) -> Any:
            self.passes += 1
            return iter(list.__iter__(self) if self.passes < 3 else batches[:2])

    with pytest.raises(RequestError, match="30 examples before and 14 in this pass"):
        TRAK(model, dim=16).featurize(Shrinking(batches), states)
    with pytest.raises(RequestError, match="call featurize"):
        TRAK(model).score(batches)


# -- ridge --------------------------------------------------------------------------------------------


def test_ridge_is_absolute_and_needed_when_features_outnumber_examples() -> None:
    model, batches, states = small()
    weights = {}
    for ridge in (1e-2, 1.0, 1e6):
        trak = TRAK(model, dim=64, ridge=ridge)
        trak.featurize(batches, states)
        found = trak.score(batches[:1])
        assert found.provenance["estimator"]["ridges"] == [ridge, ridge]
        weights[ridge] = found.weights
    phi, q = (np.stack([getattr(one, name)() for one in trak._features]) for name in ("rows", "weights"))
    gradient_dot = np.mean([one @ one[:7].T for one in phi], axis=0) * q.mean(axis=0)[:, None]
    np.testing.assert_allclose(1e6 * weights[1e6], gradient_dot, rtol=1e-2, atol=1e-3)
    singular = TRAK(model, dim=64, ridge=0)
    singular.featurize(batches, states)
    with pytest.raises(RequestError, match="30 examples in 64 dimensions is singular with ridge 0"):
        singular.score(batches)
    for bad in (-1.0, float("nan"), "large"):
        with pytest.raises(RequestError, match="at least 0, or 'auto'"):
            TRAK(model, ridge=bad)  # type: ignore[arg-type]


# -- on disk ------------------------------------------------------------------------------------------


def content(folder: Path) -> dict[str, bytes]:
    """Files by name, without those that a killed process had not given their name yet."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("[!.]*") if p.is_file()}


def test_disjoint_ranges_make_the_same_files(tmp_path: Path) -> None:
    model, batches, states = small()
    whole, shared = (TRAK(model, dim=16, out=tmp_path / name) for name in ("whole", "shared"))
    whole.featurize(batches, states)
    shared.featurize(batches, states, rows=(17, 30))
    with pytest.raises(RequestError, match="features of 13 of 30 train examples"):
        shared.score(batches)
    TRAK(model, dim=16, out=tmp_path / "shared").featurize(batches, states, rows=(0, 17))
    assert content(tmp_path / "shared") == content(tmp_path / "whole")
    np.testing.assert_array_equal(shared.score(batches).weights, whole.score(batches).weights)
    with pytest.raises(RequestError, match=r"within 0\.\.30"):
        shared.featurize(batches, states, rows=(5, 31))


def test_what_is_done_is_not_done_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, batches, states = small()
    TRAK(model, dim=16, out=tmp_path).featurize(batches, states[:1])
    monkeypatch.setattr(TRAK, "_project", lambda *_: pytest.fail("computed again"))
    TRAK(model, dim=16, out=tmp_path).featurize(batches, states[:1])


def test_killed_and_resumed_is_uninterrupted(tmp_path: Path) -> None:
    model, batches, states = problem()
    whole = TRAK(model, dim=16, out=tmp_path / "whole")
    whole.featurize(batches, states)
    done = tmp_path / "killed" / "checkpoint_000" / "done.npy"
    counts = []
    for rows in (8, 24):
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.kill_trak", str(tmp_path / "killed")],
            cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE,
        )  # fmt: skip
        deadline = time.monotonic() + 60
        while not (done.exists() and np.load(done).sum() >= rows):
            assert process.poll() is None, process.stderr.read().decode()  # type: ignore[union-attr]
            assert time.monotonic() < deadline
            time.sleep(0.002)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        process.stderr.close()  # type: ignore[union-attr]
        flags = np.load(done).astype(bool)
        exact = np.load(tmp_path / "whole" / "checkpoint_000" / "features.npy")
        np.testing.assert_array_equal(np.load(done.with_name("features.npy"))[flags], exact[flags])
        counts.append(int(flags.sum()))
    assert 8 <= counts[0] < counts[1] < SIZE
    resumed = TRAK(model, dim=16, out=tmp_path / "killed")
    resumed.featurize(batches, states)
    assert content(tmp_path / "killed") == content(tmp_path / "whole")


def test_features_of_something_else_are_refused(tmp_path: Path) -> None:
    model, batches, states = small()
    TRAK(model, dim=16, out=tmp_path).featurize(batches, states)
    for options, given, checkpoints, message in (
        ({"dim": 32}, batches, states, "of dim 16, and asked for is 32"),
        ({"dim": 16, "seed": 1}, batches, states, "of seed 0, and asked for is 1"),
        ({"dim": 16, "projection": "rademacher"}, batches, states, "of projection 'sjlt'"),
        ({"dim": 16, "params": "4.*"}, batches, states, "of coordinates 69"),
        ({"dim": 16, "task": "regression"}, batches, states, "of task 'image_classification'"),
        ({"dim": 16}, batches[:2], states, "of n 30, and asked for is 14"),
        ({"dim": 16}, batches, states[::-1], "of checkpoint .*choose another folder with out="),
    ):
        with pytest.raises(RequestError, match=message):
            TRAK(model, out=tmp_path, **options).featurize(given, checkpoints)  # type: ignore[arg-type]
    manifest = tmp_path / "checkpoint_000" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "format_version": 99}))
    with pytest.raises(NewerFormatError, match="99"):
        TRAK(model, dim=16, out=tmp_path).featurize(batches, states)
    manifest.write_text("{")
    with pytest.raises(CorruptStoreError, match="no manifest"):
        TRAK(model, dim=16, out=tmp_path).featurize(batches, states)


def test_an_unknown_task_is_refused_with_what_is_legal() -> None:
    with pytest.raises(RequestError, match="'contrastive', an object"):
        TRAK(nn.Linear(2, 2), "segmentation")

    class Wrong(Own):
        def output(self, *given: Any) -> Tensor:
            return super().output(*given).sum()

    model, batches, states = small()
    with pytest.raises(RequestError, match=r"gave shape \(\) for 7 examples"):
        TRAK(model, Wrong(), dim=8).featurize(batches, states)
