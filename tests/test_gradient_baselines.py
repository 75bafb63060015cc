"""Gradient dot product, gradient cosine and TracIn: what they are, their sign, and what they find."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.training.ensemble import train_models
from datamodels.training.modules import module_of, state_dicts
from datamodels.training.recipes import Recipe
from datamodels.training.streams import Streams
from datamodels.trak import TRAK

N = 30
RATES = [0.3, 0.05]
Batch = tuple[Tensor, Tensor]
State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def net(outputs: int = 3) -> nn.Module:
    return nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, outputs))


def small(n: int = N) -> tuple[nn.Module, Batch, Batch, list[State]]:
    """A model, train examples, targets, two checkpoints."""
    torch.manual_seed(0)
    model = net()
    states = [{k: v + 0.4 * torch.randn(v.shape) for k, v in model.state_dict().items()} for _ in RATES]
    train, targets = ((torch.randn(k, 5), torch.randint(0, 3, (k,))) for k in (n, 9))
    return model, train, targets, states


def cut(batch: Batch, size: int = 7) -> list[Batch]:
    return list(zip(batch[0].split(size), batch[1].split(size), strict=True))


def featurized(model: nn.Module, train: Batch, states: list[State], *given: Any, **options: Any) -> TRAK:
    trak = TRAK(model, *given, **options)
    trak.featurize(cut(train), states)
    return trak


def gradients(model: nn.Module, state: State, batch: Batch, loss: Any = F.cross_entropy) -> NDArray[np.float64]:
    """Loss gradients (n, p) in float64: one example after the other, by plain autograd."""
    one = net(list(model.state_dict().values())[-1].numel()).double()
    one.load_state_dict(state)
    rows = []
    for x, y in zip(*batch, strict=True):
        found = torch.autograd.grad(loss(one(x[None].double()), y[None]), list(one.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]).numpy())
    return np.stack(rows)


def unit(rows: NDArray[np.float64]) -> NDArray[np.float64]:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def close(found: NDArray[Any], expected: NDArray[np.float64]) -> None:
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * abs(expected).max())


# -- what they are ------------------------------------------------------------------------------------


def test_all_three_are_products_of_loss_gradients() -> None:
    model, train, targets, states = small()
    trak = featurized(model, train, states, projection="none")
    pairs = [(gradients(model, state, train), gradients(model, state, targets)) for state in states]
    found = trak.similarity(cut(targets, 4))
    assert isinstance(found, Attribution)
    assert found.weights.dtype == np.float32
    assert (found.bias == 0).all()
    close(found.weights, np.mean([a @ b.T for a, b in pairs], axis=0))
    close(trak.similarity([targets], "cosine").weights, np.mean([unit(a) @ unit(b).T for a, b in pairs], axis=0))
    tracin = trak.similarity([targets], learning_rates=RATES)
    close(tracin.weights, np.sum([rate * a @ b.T for rate, (a, b) in zip(RATES, pairs, strict=True)], axis=0))
    np.testing.assert_array_equal(tracin.train_facts["loss_weight"], trak.score([targets]).train_facts["loss_weight"])


def test_self_influence_is_the_squared_length_of_the_loss_gradient() -> None:
    model, train, _, states = small()
    trak = featurized(model, train, states, projection="none")
    squares = np.stack([(gradients(model, state, train) ** 2).sum(axis=1) for state in states])
    close(trak.self_influence("dot"), squares.mean(axis=0))
    close(trak.self_influence("dot", learning_rates=RATES), np.array(RATES) @ squares)
    close(trak.self_influence("dot"), np.diag(trak.similarity([train]).weights).astype(np.float64))
    close(trak.self_influence("trak"), np.diag(trak.score([train]).weights).astype(np.float64))
    np.testing.assert_array_equal(trak.self_influence(), trak.self_influence("trak"))


def test_a_loss_weight_may_be_negative() -> None:
    """Regression: the sign of label minus prediction belongs to the gradient of the loss."""
    torch.manual_seed(0)
    model, train, targets = net(1), (torch.randn(12, 5), torch.randn(12)), (torch.randn(4, 5), torch.randn(4))
    state = model.state_dict()
    trak = featurized(model, train, [state], "regression", projection="none")
    a, b = (gradients(model, state, one, lambda f, y: 0.5 * (f[0, 0] - y[0]) ** 2) for one in (train, targets))
    assert (trak.similarity([targets]).train_facts["loss_weight"] < 0).any()
    close(trak.similarity([targets]).weights, a @ b.T)
    close(trak.similarity([targets], "cosine").weights, unit(a) @ unit(b).T)


def test_equal_rates_are_the_dot_product() -> None:
    model, train, targets, states = small()
    trak = featurized(model, train, states, dim=64)
    dot, tracin = trak.similarity([targets]), trak.similarity([targets], learning_rates=[0.25, 0.25])
    np.testing.assert_allclose(tracin.weights, 0.5 * dot.weights, rtol=1e-6)
    one = trak.similarity([targets], learning_rates=[1, 0])
    first = featurized(model, train, states[:1], dim=64)
    np.testing.assert_array_equal(one.weights, first.similarity([targets]).weights)


@pytest.mark.parametrize("projection", ["none", "sjlt", "rademacher"])
def test_cosines_are_within_one_and_reach_it_for_the_same_example(projection: str) -> None:
    model, train, _, states = small()
    found = featurized(model, train, states, projection=projection, dim=20).similarity([train], "cosine").weights
    assert abs(found).max() < 1 + 1e-6
    np.testing.assert_allclose(np.diag(found), 1, rtol=1e-6)


@pytest.mark.parametrize("projection", ["sjlt", "rademacher"])
def test_projections_keep_products_in_expectation(projection: str) -> None:
    model, train, targets, states = small(6)
    exact = gradients(model, states[0], train) @ gradients(model, states[0], targets).T
    draws = [
        featurized(model, train, states[:1], projection=projection, dim=12, seed=seed).similarity([targets]).weights
        for seed in range(60)
    ]
    error = np.std(draws, axis=0, ddof=1) / np.sqrt(len(draws))
    assert abs((np.mean(draws, axis=0) - exact) / error).max() < 4.5
    assert error.max() < 0.5 * abs(exact).max()


class Weighted:
    """The label's logit; examples of label 0 have no loss."""

    def output(self, model: nn.Module, params: Any, buffers: Any, batch: Any) -> Tensor:
        logits = torch.func.functional_call(model, (params, buffers), (batch[0],))
        return logits.gather(1, batch[1][:, None])[:, 0]

    def loss_weight(self, model: nn.Module, params: Any, buffers: Any, batch: Any) -> Tensor:
        return (batch[1] > 0).float()


def test_gradients_of_zero_have_no_similarity() -> None:
    model, train, targets, states = small()
    trak = featurized(model, train, states, Weighted(), dim=64)
    some = np.outer(train[1] > 0, targets[1] > 0)
    for found in (trak.similarity([targets]), trak.similarity([targets], "cosine")):
        np.testing.assert_array_equal(found.weights != 0, some)


# -- how they are computed ----------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["dot", "cosine"])
def test_weights_stream_to_a_file_block_by_block(kind: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, train, targets, states = small()
    trak = featurized(model, train, states, dim=32, out=tmp_path / "features")
    whole = trak.similarity([targets], kind)
    monkeypatch.setattr("datamodels.trak.scores._ROWS", 8)
    monkeypatch.setattr("datamodels.trak.scores._TARGETS", 4)
    streamed = trak.similarity([targets], kind, out=tmp_path / "weights.npy")
    np.testing.assert_allclose(np.load(tmp_path / "weights.npy"), whole.weights, rtol=1e-5, atol=1e-6)
    np.testing.assert_array_equal(streamed.weights, np.load(tmp_path / "weights.npy"))
    assert sorted(p.name for p in (tmp_path / "features").iterdir()) == ["checkpoint_000", "checkpoint_001"]


def test_train_examples_are_not_featurized_again(monkeypatch: pytest.MonkeyPatch) -> None:
    model, train, targets, states = small()
    trak = featurized(model, train, states, dim=32)
    seen: list[int] = []
    project = TRAK._project

    def counted(self: TRAK, batch: Batch, *rest: Any) -> Any:
        seen.append(len(batch[1]))
        return project(self, batch, *rest)

    monkeypatch.setattr(TRAK, "_project", counted)
    for call in (trak.similarity, trak.score):
        call(cut(targets, 5))
        assert seen == [5, 4, 5, 4]
        seen.clear()
    trak.self_influence("dot")
    assert not seen


def test_provenance_names_the_method(tmp_path: Path) -> None:
    model, train, targets, states = small()
    trak = featurized(model, train, states, dim=16)
    options: dict[str, dict[str, Any]] = {
        "gradient dot product": {},
        "gradient cosine": {"kind": "cosine"},
        "TracIn": {"learning_rates": np.array(RATES)},
    }
    usual = trak.score([targets]).provenance
    for name, given in options.items():
        found = trak.similarity([targets], **given)
        about = found.provenance["estimator"]
        assert (about["name"], about["projection"], about["dim"]) == (name, "sjlt", 16)
        assert about.get("learning_rates") == (RATES if name == "TracIn" else None)
        assert "loss" in found.provenance["units"]
        assert set(found.provenance) == set(usual)
        assert found.provenance["checkpoints"] == usual["checkpoints"]
        loaded = Attribution.load(found.save(tmp_path / f"{name}.h5ad"))
        np.testing.assert_array_equal(loaded.weights, found.weights)
        assert loaded.provenance["estimator"]["name"] == name


def test_what_cannot_be_is_refused() -> None:
    model, train, targets, states = small()
    with pytest.raises(RequestError, match="call featurize"):
        TRAK(model).similarity([targets])
    with pytest.raises(RequestError, match="call featurize"):
        TRAK(model).self_influence("dot")
    trak = featurized(model, train, states, dim=16)
    for given, message in (
        ({"kind": "angle"}, "kind is 'angle'; legal: dot, cosine"),
        ({"kind": "cosine", "learning_rates": RATES}, "learning_rates go with kind 'dot'"),
        ({"learning_rates": [0.1]}, "give 2 numbers of at least 0, one per checkpoint"),
        ({"learning_rates": [0.1, -0.1]}, "give 2 numbers"),
        ({"learning_rates": [0.1, float("nan")]}, "give 2 numbers"),
        ({"learning_rates": ["a", "b"]}, "give 2 numbers"),
        ({"out": "weights.bin"}, r"must end in \.npy"),
    ):
        with pytest.raises(RequestError, match=message):
            trak.similarity([targets], **given)
    with pytest.raises(RequestError, match="kind is 'cosine'; legal: trak, dot"):
        trak.self_influence("cosine")  # type: ignore[arg-type]
    with pytest.raises(RequestError, match="TRAK has none"):
        trak.self_influence(learning_rates=RATES)
    missing = torch.full_like(targets[0], torch.nan)
    with pytest.raises(RequestError, match="gradients of 9 of 9 targets are not finite, the first of number 0"):
        trak.similarity([(missing, targets[1])], "cosine")
    missing = train[0].clone()
    missing[4] = torch.nan
    broken = featurized(model, (missing, train[1]), states, dim=16)
    for call in (lambda: broken.similarity([targets]), lambda: broken.self_influence("dot")):
        with pytest.raises(
            RequestError, match="gradients of 1 of 30 train examples are not finite, the first of number 4"
        ):
            call()


def test_progress_is_one_bar_over_all_checkpoints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("datamodels.progress._FIRST_LINE_AFTER", 0.0)
    monkeypatch.setattr("datamodels.progress._LINE_EVERY", 0.0)
    model, train, targets, states = small()
    trak = TRAK(model, dim=16, out=tmp_path)
    trak.featurize(cut(train), states, rows=(0, 10), progress=False)
    assert capsys.readouterr().err == ""
    trak.featurize(cut(train), states)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(",")[0] for line in lines] == [
        f"train gradients: {done}/60" for done in (24, 31, 38, 40, 44, 51, 58, 60)
    ]
    assert "examples/s" in lines[0]
    assert "left" in lines[0]
    for call in (trak.score, trak.similarity):
        call(cut(targets, 5), progress=False)
        assert capsys.readouterr().err == ""
        call(cut(targets, 5))
        lines = capsys.readouterr().err.splitlines()
        assert [line.split(",")[0] for line in lines] == [f"target gradients: {done}/18" for done in (5, 9, 14, 18)]


# -- what they say ------------------------------------------------------------------------------------


def test_the_sign_is_that_of_a_step_of_gradient_descent() -> None:
    """A small step on a train example changes the target's loss by minus rate times weight, its margin the other way."""
    model, train, targets, states = small()
    found = featurized(model, train, states[:1], projection="none").similarity([targets]).weights
    before = net().double()
    before.load_state_dict(states[0])

    @torch.no_grad()
    def judged(module: nn.Module, k: int) -> tuple[float, float]:
        logits, y = module(targets[0][k].double()), int(targets[1][k])
        margin = logits[y] - logits[torch.arange(3) != y].logsumexp(0)
        return float(F.cross_entropy(logits, targets[1][k])), float(margin)

    for k in range(found.shape[1]):
        for i in (int(found[:, k].argmax()), int(found[:, k].argmin())):
            after = net().double()
            after.load_state_dict(states[0])
            F.cross_entropy(after(train[0][i].double()), train[1][i]).backward()
            torch.optim.SGD(after.parameters(), lr=1e-4).step()
            (loss, margin), (new_loss, new_margin) = judged(before, k), judged(after, k)
            assert (loss - new_loss) / 1e-4 == pytest.approx(found[i, k], rel=0.01, abs=1e-3)
            assert np.sign(new_margin - margin) == np.sign(found[i, k])


@pytest.mark.parametrize("given", [{}, {"kind": "cosine"}, {"learning_rates": RATES}])
def test_the_copy_of_a_train_example_comes_first(given: dict[str, Any]) -> None:
    """Inputs of many dimensions are nearly orthogonal, so nothing else is as near."""
    torch.manual_seed(0)
    model, x, y = nn.Sequential(nn.Linear(60, 8), nn.Tanh(), nn.Linear(8, 3)), torch.randn(80, 60), torch.arange(80) % 3
    states = [{k: v + 0.1 * torch.randn(v.shape) for k, v in model.state_dict().items()} for _ in RATES]
    copied = [3, 17, 41, 79]
    found = featurized(model, (x, y), states, dim=2048).similarity([(x[copied], y[copied])], **given)
    assert found.weights.argmax(axis=0).tolist() == copied


def test_checkpoints_along_a_run_show_mislabels() -> None:
    """Learning rates of the run for TracIn; three far examples with a wrong label pull hardest."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(60, 6)).astype(np.float32)
    labels = (x[:, 0] + x[:, 1] > 0).astype(np.int64)
    wrong = np.argsort(-abs(x[:, 0] + x[:, 1]))[:3]
    labels[wrong] = 1 - labels[wrong]
    recipe, stops = Recipe(hidden=(12,), lr=0.2, momentum=0, epochs=10, batch_size=8), (8, 40, 80)
    states = []
    for stop in stops:
        row = Streams.seeded(np.ones(len(x), dtype=bool), 0)
        models = train_models(recipe, x, labels, [row], n_classes=2, engine="torch", stop=stop)
        states += state_dicts(models, recipe, (6,), 2)
    rates = recipe.rates(recipe.total_steps(len(x)))[[stop - 1 for stop in stops]]
    np.testing.assert_allclose(rates, [0.2 * (1 - step / 80) for step in (7, 39, 79)])
    trak = featurized(module_of(recipe, (6,), 2), (torch.from_numpy(x), torch.from_numpy(labels)), states, dim=512)
    for own in (trak.self_influence("dot"), trak.self_influence("dot", learning_rates=rates.tolist())):
        assert set(np.argsort(-own)[:3]) == set(wrong)
