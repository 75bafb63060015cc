"""TRAK: what would give wrong scores without a word is refused, or computed rightly."""

from __future__ import annotations

import weakref
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, SubsetRandomSampler, TensorDataset, WeightedRandomSampler

from datamodels.errors import RequestError
from datamodels.trak import TRAK, Contrastive, batches
from datamodels.trak.scores import Kernel
from tests.trak_models import ForTraker, Own

State = dict[str, Tensor]


@pytest.fixture(autouse=True)
def _no_waiting_for_the_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.fsync", lambda _: None)


def small(n: int = 20) -> tuple[nn.Module, Tensor, Tensor, list[State]]:
    """A model, inputs, labels, two checkpoints."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.Tanh(), nn.Linear(6, 3))
    states = [{k: v + 0.3 * torch.randn(v.shape) for k, v in model.state_dict().items()} for _ in range(2)]
    return model, torch.randn(n, 5), torch.randint(0, 3, (n,)), states


def cut(x: Tensor, y: Tensor, size: int = 6) -> list[Any]:
    return list(zip(x.split(size), y.split(size), strict=True))


def featurized(model: nn.Module, loader: Any, states: Any, **options: Any) -> TRAK:
    trak = TRAK(model, **{"dim": 32, **options})
    trak.featurize(loader, states)
    return trak


# -- the training data --------------------------------------------------------------------------------


def test_features_of_other_training_data_are_refused_in_a_folder(tmp_path: Path) -> None:
    model, x, y, states = small()
    featurized(model, cut(x, y), states, out=tmp_path)
    for loader in (cut(x, (y + 1) % 3), cut(x.flip(0), y), cut(x.double(), y)):
        with pytest.raises(RequestError, match=r"of other training data: other inputs or labels.*out="):
            featurized(model, loader, states, out=tmp_path)
    featurized(model, cut(x, y, 9), states, out=tmp_path)  # the same examples in other batches


def test_a_temporary_folder_starts_afresh_for_other_training_data() -> None:
    model, x, y, states = small()
    trak = featurized(model, cut(x, y), states)
    for loader, given in ((cut(x.flip(0), 2 - y), states), (cut(x[:15], y[:15]), states[::-1]), (cut(x, y), states)):
        trak.featurize(loader, given)
        np.testing.assert_array_equal(trak.self_influence(), featurized(model, loader, given).self_influence())
        expected = featurized(model, loader, given).score(cut(x, y)).weights
        np.testing.assert_array_equal(trak.score(cut(x, y)).weights, expected)


def test_the_identity_of_data_is_that_of_its_examples() -> None:
    x, y = torch.randn(10, 3), torch.arange(10)
    known = batches.identity(cut(x, y))
    assert known[0] == 10
    same: list[Any] = [
        cut(x, y, 4),
        [[x.numpy(), y.numpy()]],
        DataLoader(TensorDataset(x, y), batch_size=3),
        [(x[:0], y[:0]), (x.T.contiguous().T, y)],
    ]
    assert all(batches.identity(loader) == known for loader in same)
    other: list[Any] = [cut(x, y.int()), cut(x.flip(0), y.flip(0)), cut(x.view(10, 3, 1), y), [{"x": x, "y": y}]]
    hashes = {batches.identity(loader)[1] for loader in other}
    assert len(hashes | {known[1]}) == 1 + len(other)
    assert batches.identity([{"x": x, "y": y}]) == batches.identity(
        [{"x": x[:4], "y": y[:4]}, {"x": x[4:], "y": y[4:]}]
    )


@dataclass
class Tempered(Own):
    temperature: float = 1.0
    _calls: int = 0


def test_settings_of_an_output_object_belong_to_its_features(tmp_path: Path) -> None:
    model, x, y, states = small()
    featurized(model, cut(x, y), states, task=Tempered(2.0, 1), out=tmp_path)
    featurized(model, cut(x, y), states, task=Tempered(2.0, 2), out=tmp_path)
    with pytest.raises(RequestError, match=r"of task '\S+Tempered\(temperature=2.0\)', and asked for is .*=3.0"):
        featurized(model, cut(x, y), states, task=Tempered(3.0), out=tmp_path)
    clip, pairs = Clip("own"), cut(x, x + 1)
    featurized(clip, pairs, [clip.state_dict()], task=Contrastive(negatives=15), out=tmp_path / "pairs")
    with pytest.raises(RequestError, match=r"of task 'contrastive\(negatives=15\)'"):
        featurized(clip, pairs, [clip.state_dict()], task=Contrastive(negatives=3), out=tmp_path / "pairs")


@pytest.mark.parametrize("sampler", [SubsetRandomSampler(range(20)), WeightedRandomSampler(torch.ones(20), 20)])
def test_loaders_that_draw_at_random_are_refused(sampler: Any) -> None:
    model, x, y, states = small()
    with pytest.raises(RequestError, match=f"shuffles .{type(sampler).__name__}.*shuffle=False"):
        featurized(model, DataLoader(TensorDataset(x, y), batch_size=6, sampler=sampler), states)


# -- checkpoints --------------------------------------------------------------------------------------


class Gate(nn.Module):
    """Uses the weights of its last layer once more, behind a gate: no rule holds while the gate is open."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last, self.gate = nn.Linear(5, 6), nn.Linear(6, 3), nn.Parameter(torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        h = torch.tanh(self.first(x))
        return self.last(h) + self.gate * (h @ self.last.weight.T)


def gradients(model: nn.Module, state: State, x: Tensor, y: Tensor) -> NDArray[np.float64]:
    """Of the log-odds margin, (n, p): one example after the other, by plain autograd."""
    model.load_state_dict(state)
    rows = []
    for one, label in zip(x, y, strict=True):
        logits = model(one[None])[0]
        margin = logits[label] - logits[torch.arange(3) != label].logsumexp(0)
        found = torch.autograd.grad(margin, list(model.parameters()))
        rows.append(torch.cat([g.flatten() for g in found]).double().numpy())
    return np.stack(rows)


@pytest.mark.parametrize("size", [1, 2, 6])
def test_rules_are_checked_under_each_checkpoint(size: int) -> None:
    _, x, y, _ = small()
    model = Gate()
    shut = {k: v.clone() for k, v in model.state_dict().items()}
    states = [shut, {**shut, "gate": torch.tensor(2.0)}]
    trak = featurized(model, cut(x, y, size), states, projection="none", ridge=0.5)
    assert trak._gradients.by_vmap == ["gate", "last.weight"]
    for one, state in zip(trak._features, states, strict=True):
        expected = gradients(model, state, x, y)
        np.testing.assert_allclose(one.rows(), expected, rtol=0, atol=1e-5 * abs(expected).max())


def test_a_state_dict_that_was_not_cloned_is_refused() -> None:
    model, x, y, _ = small()
    optimizer, states = torch.optim.SGD(model.parameters(), 0.5), []
    for _ in range(2):
        F.cross_entropy(model(x), y).backward()
        optimizer.step()
        states.append(model.state_dict())
    with pytest.raises(RequestError, match=r"checkpoints 0 and 1 hold the same values.*v.clone\(\)"):
        featurized(model, cut(x, y), states)
    trak = featurized(model, cut(x, y), states[:1])
    optimizer.step()
    with pytest.raises(RequestError, match="checkpoint 0 has other values than when featurize was called"):
        trak.score(cut(x, y))


def test_data_parallel_is_the_module_within() -> None:
    model, x, y, states = small()
    wrapped = [{f"module.{k}": v for k, v in state.items()} for state in states]
    expected = featurized(model, cut(x, y), states).score(cut(x, y)).weights
    for given in (states, wrapped):
        found = featurized(nn.DataParallel(model), cut(x, y), given).score(cut(x, y)).weights
        np.testing.assert_array_equal(found, expected)


# -- examples -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("label", [3, -1, -100, 0.5])
def test_labels_that_are_no_class_are_refused(label: float) -> None:
    model, x, y, states = small()
    wrong = y.float() if isinstance(label, float) else y.clone()
    wrong[8] = label
    message = f"1 of 6 labels that are no class, the first is {label}; the model has 3 logits, so labels are 0 to 2"
    trak = featurized(model, cut(x, y), states)
    with pytest.raises(RequestError, match=message):
        trak.score(cut(x, wrong))
    with pytest.raises(RequestError, match=message):
        featurized(model, cut(x, wrong), states)
    with pytest.raises(RequestError, match=message):
        featurized(Gate(), cut(x, wrong), [Gate().state_dict()], params="gate")  # by vmap alone


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_gradients_that_are_not_finite_are_refused(value: float) -> None:
    model, x, y, states = small()
    broken = x.clone()
    broken[4] = value
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    trak = featurized(model, cut(x, y), states)
    with pytest.raises(RequestError, match="gradients of 1 of 20 targets are not finite, the first of number 4"):
        trak.score(cut(broken, y))
    trak = featurized(model, cut(broken, y), states)
    for call in (lambda: trak.score(cut(x, y)), trak.self_influence):
        with pytest.raises(RequestError, match="gradients of 1 of 20 train examples are not finite, the first of numb"):
            call()


def test_a_label_without_a_value_is_refused_in_regression() -> None:
    _, x, _, _ = small()
    y, line = torch.randn(20), nn.Linear(5, 1)
    missing = y.clone()
    missing[3] = torch.nan
    trak = featurized(line, cut(x, missing), [line.state_dict()], task="regression")
    for call in (lambda: trak.score(cut(x, y)), trak.self_influence, lambda: trak.similarity(cut(x, y))):
        with pytest.raises(RequestError, match="gradients of 1 of 20 train examples are not finite, the first of numb"):
            call()
    trak = featurized(line, cut(x, y), [line.state_dict()], task="regression")
    assert np.isfinite(trak.score(cut(x, missing)).weights).all()  # a target's label has no part in its score


# -- outputs ------------------------------------------------------------------------------------------


class Clip(nn.Module):
    """Its scale is a parameter at the top or within, given with the output, or nowhere."""

    def __init__(self, where: str) -> None:
        super().__init__()
        self.image, self.text, self.where = nn.Linear(5, 4), nn.Linear(5, 4), where
        scale = nn.Parameter(torch.tensor(1.5))
        self.inner = nn.ParameterDict({"logit_scale": scale} if where == "inner" else {})
        if where in ("top", "own"):
            self.logit_scale = scale

    def forward(self, images: Tensor, texts: Tensor) -> Any:
        image, text = F.normalize(self.image(images), dim=1), F.normalize(self.text(texts), dim=1)
        if self.where == "tuple":
            return image, text, torch.tensor(1.5).exp()
        own = {"logit_scale": self.logit_scale.exp()} if self.where == "own" else {}
        return SimpleNamespace(image_embeds=image, text_embeds=text, **own)


def test_the_scale_of_pairs_is_found_wherever_it_is() -> None:
    _, x, _, _ = small()
    found = []
    for where in ("tuple", "top", "inner", "own"):
        torch.manual_seed(0)
        model = Clip(where)
        params = ["image.*", "text.*"]
        trak = featurized(model, cut(x, 2 * x + 1), [model.state_dict()], task="contrastive", params=params, ridge=1)
        found.append(trak.score(cut(x[:3], x[:3])).weights)
    for other in found[1:]:
        np.testing.assert_allclose(other, found[0], rtol=1e-4, atol=1e-7)
    with pytest.raises(RequestError, match="no logit_scale, and 0 parameters have that name"):
        featurized(model := Clip("nowhere"), cut(x, x), [model.state_dict()], task="contrastive")
    with pytest.raises(RequestError, match="returns Tensor; the contrastive output needs"):
        featurized(line := nn.Bilinear(5, 5, 4), cut(x, x), [line.state_dict()], task="contrastive")


class Ignoring(Own):
    """Calls the model with its own parameters."""

    def output(self, model: nn.Module, params: Any, buffers: Any, batch: Any) -> Tensor:
        return model(batch[0]).gather(1, batch[1][:, None])[:, 0]


class IgnoringForTraker(ForTraker):
    def get_output(self, model: nn.Module, weights: Any, buffers: Any, image: Tensor, label: Tensor) -> Tensor:
        return model(image[None])[0].sum()


class Unused(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.used, self.other = nn.Linear(5, 3), nn.Linear(2, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.used(x)


def test_an_output_that_does_not_depend_on_the_parameters_is_refused() -> None:
    model, x, y, states = small()
    for task in (Ignoring(), IgnoringForTraker()):
        with pytest.raises(RequestError, match=r"depends on none of the parameters 0\.weight.*functional_call"):
            featurized(model, cut(x, y), states, task=task)
    unused = Unused()
    with pytest.raises(RequestError, match=r"parameters other\.weight, other\.bias: params must"):
        featurized(unused, cut(x, y), [unused.state_dict()], params="other.*")
    trak = featurized(unused, cut(x, y), [unused.state_dict()], projection="none")
    assert not np.asarray(trak._features[0].rows())[:, 18:].any()
    with pytest.raises(RequestError, match=r"task is the class Own; give an object of it, Own\(\)"):
        TRAK(model, Own)


# -- memory -------------------------------------------------------------------------------------------


def test_kernels_are_made_once_or_held_one_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    model, x, y, states = small()
    made: list[Any] = []
    alive: list[int] = []
    living: weakref.WeakSet[Kernel] = weakref.WeakSet()
    start = Kernel.__init__

    def counted(self: Kernel, *given: Any) -> None:
        alive.append(len(living))
        living.add(self)
        made.append(given[1])
        start(self, *given)

    monkeypatch.setattr(Kernel, "__init__", counted)
    trak = featurized(model, cut(x, y), states)
    scores, own = trak.score(cut(x, y)).weights, trak.self_influence()
    assert made == [1.0] * 2
    trak.ridge = 3.0
    trak.self_influence()
    assert made == [1.0] * 2 + [3.0] * 2
    trak.ridge = 1.0
    trak.featurize(cut(x, 2 - y), states)
    trak.featurize(cut(x, y), states)
    monkeypatch.setattr("datamodels.trak.trak._KEPT_KERNELS", 0)
    made.clear()
    alive.clear()
    np.testing.assert_array_equal(trak.score(cut(x, y)).weights, scores)
    np.testing.assert_array_equal(trak.self_influence(), own)
    assert made == [1.0] * 4
    assert not any(alive)


def test_no_projection_of_many_coordinates_is_refused_before_gradients_are_taken(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    model, x, y, states = small()
    monkeypatch.setattr("datamodels.trak.trak.MOST_COORDINATES", 50)
    trak = TRAK(model, projection="none", out=tmp_path)
    with pytest.raises(
        RequestError, match="all 57 coordinates of a gradient, and 50 are the most; give projection='sjlt'"
    ):
        trak.featurize(cut(x, y), states)
    assert not list(tmp_path.iterdir())


# -- arguments ----------------------------------------------------------------------------------------


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    model, x, y, states = small()
    trak = featurized(model, cut(x, y), states, dim=np.int64(16), seed=np.int32(3), ridge=np.float32(2), out=tmp_path)
    same = featurized(model, cut(x, y), states, dim=16, seed=3, ridge=np.int64(2), out=tmp_path)
    found = trak.score(cut(x, y))
    np.testing.assert_array_equal(found.weights, same.score(cut(x, y)).weights)
    found.save(tmp_path / "found.h5ad")
    about = found.provenance["estimator"]
    assert [type(about[key]) for key in ("dim", "seed", "ridge")] == [int, int, float]
    trak.featurize(cut(x, y), states, rows=(np.int64(0), np.int64(5)))


def test_arguments_of_another_kind_are_refused() -> None:
    model, x, y, states = small()
    trak = TRAK(model, dim=16)
    for rows in (slice(0, 5), (0, 5.0), (0,), (), 5, "05"):
        with pytest.raises(RequestError, match=r"give \(start, stop\) within 0\.\.20"):
            trak.featurize(cut(x, y), states, rows=rows)  # type: ignore[arg-type]
    for wrong in (None, "resnet", lambda x: x):
        with pytest.raises(RequestError, match=r"give a torch\.nn\.Module"):
            TRAK(wrong)  # type: ignore[arg-type]
    for device in ("nowhere", *(() if torch.cuda.is_available() else ("cuda",))):
        with pytest.raises(RequestError, match=f"cannot compute on device '{device}'"):
            TRAK(model, device=device)
    for options in ({"dim": 2.5}, {"dim": np.float64(8)}, {"seed": "a"}, {"ridge": None}, {"ridge": np.nan}):
        with pytest.raises(RequestError, match=next(iter(options))):
            TRAK(model, **options)  # type: ignore[arg-type]
