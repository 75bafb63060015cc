"""TRAK's scores: the formula of the paper, every kind of task, parameters, checkpoints, loaders and the ridge."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.training.outputs import log_odds_margins
from datamodels.trak import TRAK, Contrastive
from datamodels.trak.outputs import log_odds, one_minus_p
from tests.trak_models import ForTraker, Own, Text, close, loop, small, states_of, tokens

# -- the formula --------------------------------------------------------------------------------------


def direct(model: nn.Module, train: Any, targets: Any, states: list[Any], ridge: float) -> NDArray[np.float64]:
    """The formula of section 3, written down in float64."""
    inverse, weights = [], []
    for state in states:
        model.load_state_dict(state)
        model.eval()
        phi, target = (loop(model, one, len(one[1])).double().numpy() for one in (train, targets))
        kernel = phi.T @ phi
        lam = ridge * (phi**2).sum(axis=1).mean()
        inverse.append(phi @ np.linalg.solve(kernel + lam * np.eye(len(kernel)), target.T))
        margins = log_odds_margins(model(train[0]).detach().numpy(), train[1].numpy())
        weights.append(1 - 1 / (1 + np.exp(-margins)))
    return np.mean(inverse, axis=0) * np.mean(weights, axis=0)[:, None]


@pytest.mark.parametrize("ridge", [1.0, 0.02])
def test_scores_are_the_formula(ridge: float, tmp_path: Path) -> None:
    model, batches, states = small()
    train = tuple(torch.cat(one) for one in zip(*batches, strict=True))
    targets = (torch.randn(9, 5), torch.randint(0, 3, (9,)))
    trak = TRAK(model, projection="none", ridge=ridge)
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
        trak = TRAK(model, **options)
        trak.featurize(batches, [model.state_dict()])
        return trak.score(batches).weights.ravel()

    exact = scores(projection="none")
    for name in ("sjlt", "rademacher"):
        near, far = (np.corrcoef(exact, scores(projection=name, dim=dim))[0, 1] for dim in (1024, 64))
        assert near > 0.95
        assert near > far


def test_ridge_counts_in_mean_squared_gradients_and_is_needed_when_features_outnumber_examples() -> None:
    model, batches, states = small()
    weights = {}
    for ridge in (1e-2, 1.0, 1e6):
        trak = TRAK(model, dim=64, ridge=ridge)
        trak.featurize(batches, states)
        found = trak.score(batches[:1])
        lengths = [float((one.rows() ** 2).sum(axis=1).mean()) for one in trak._features]
        np.testing.assert_allclose(found.provenance["estimator"]["lambdas"], ridge * np.array(lengths), rtol=1e-5)
        weights[ridge] = found.weights
    phi, q = (np.stack([getattr(one, name)() for one in trak._features]) for name in ("rows", "weights"))
    gradient_dot = np.mean([one @ one[:7].T / size for one, size in zip(phi, lengths, strict=True)], axis=0)
    gradient_dot *= q.mean(axis=0)[:, None]
    np.testing.assert_allclose(1e6 * weights[1e6], gradient_dot, rtol=1e-2, atol=1e-3)
    singular = TRAK(model, dim=64, ridge=0)
    singular.featurize(batches, states)
    with pytest.raises(RequestError, match="30 examples in 64 dimensions is singular with ridge 0"):
        singular.score(batches)
    for bad in (-1.0, float("nan"), "auto"):
        with pytest.raises(RequestError, match="at least 0, in mean squared gradients"):
            TRAK(model, ridge=bad)  # type: ignore[arg-type]


# -- tasks --------------------------------------------------------------------------------------------


def test_an_object_for_traker_gives_the_same_scores() -> None:
    model, batches, states = small()
    results = []
    for task in ("image_classification", ForTraker()):
        trak = TRAK(model, task, dim=40)
        trak.featurize(batches, states)
        results.append(trak.score(batches[:2]).weights)
    np.testing.assert_allclose(results[1], results[0], rtol=0, atol=1e-4 * abs(results[0]).max())


def test_a_users_output_function_and_its_weights_are_used() -> None:
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
    """f = w x: the score is x_i (XᵀX + λ I)⁻¹ x_t (y_i - f_i), the step that removes an example."""
    torch.manual_seed(0)
    model = nn.Linear(3, 1, bias=False)
    x, y = torch.randn(20, 3), torch.randn(20)
    trak = TRAK(model, "regression", projection="none", ridge=0.5)
    trak.featurize([(x, y)], [model.state_dict()])
    found = trak.score([(x[:4], y[:4])])
    residual = (y - model(x)[:, 0]).detach()
    added = 0.5 * x.pow(2).sum(1).mean() * torch.eye(3)
    expected = x @ torch.linalg.inv(x.T @ x + added) @ x[:4].T * residual[:, None]
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


def test_log_odds_and_their_weights_are_those_of_numpy() -> None:
    model, batch = nn.Linear(4, 5), (3 * torch.randn(8, 4), torch.randint(0, 5, (8,)))
    state = states_of(model)
    logits = model(batch[0]).detach()
    expected = log_odds_margins(logits.numpy(), batch[1].numpy())
    np.testing.assert_allclose(log_odds(model, *state, batch).detach().numpy(), expected, rtol=1e-4, atol=1e-5)
    p = logits.softmax(1)[torch.arange(8), batch[1]]
    np.testing.assert_allclose(one_minus_p(model, *state, batch).detach().numpy(), 1 - p.numpy(), rtol=1e-4, atol=1e-6)


def test_an_unknown_task_is_refused_with_what_is_legal() -> None:
    with pytest.raises(RequestError, match="'contrastive', an object"):
        TRAK(nn.Linear(2, 2), "segmentation")

    class Wrong(Own):
        def output(self, *given: Any) -> Tensor:
            return super().output(*given).sum()

    model, batches, states = small()
    with pytest.raises(RequestError, match=r"gave shape \(\) for 7 examples"):
        TRAK(model, Wrong(), dim=8).featurize(batches, states)


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
