"""How learners of other libraries are fitted and scored: scikit-learn estimators, functions, Hugging Face classifiers."""

from __future__ import annotations

import functools
import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.devices import device_named, gpus_of
from datamodels.errors import RequestError, RowError, first_line


@dataclass(frozen=True, eq=False)
class EstimatorLearner:
    """`classes` (c,) are the labels as the user gave them, sorted."""

    make: Callable[[], Any]
    classes: NDArray[Any] = field(repr=False)
    eps: float

    @property
    def code(self) -> str:
        estimator = self.make()
        made = sorted(_parameters(estimator).items()) or _source(self.make)
        return _without_addresses(repr((type(estimator), made, self.classes.tolist(), self.eps)))

    def scores(self, x: Any, y: NDArray[np.int64], evaluated: list[Any], rng: np.random.Generator) -> list[Any]:
        present, recoded = np.unique(y, return_inverse=True)
        if len(present) == 1:
            return [self._placed(np.zeros((one.shape[0], 1)), self._floor, present) for one in evaluated]
        estimator = self.make()
        _seed(estimator, rng)
        labels = self.classes[y]
        try:
            estimator.fit(x, labels)
        except ValueError:
            if np.array_equal(labels, recoded):
                raise
            estimator.fit(x, recoded)
        return [self._placed(*self._present_logits(estimator, one), present) for one in evaluated]

    @property
    def _floor(self) -> Any:
        """The smallest logit of a probability."""
        return np.log(self.eps)

    def _present_logits(self, estimator: Any, x: Any) -> tuple[NDArray[np.float64], Any]:
        """Logits (k, c') of the classes in the subset, and the logit of the others, () or (k, 1)."""
        if hasattr(estimator, "predict_proba"):
            return np.log(np.clip(np.asarray(estimator.predict_proba(x), np.float64), self.eps, 1.0)), self._floor
        if not hasattr(estimator, "decision_function"):
            raise RequestError(f"{type(estimator).__name__} has neither predict_proba nor decision_function")
        if any(name.endswith("decision_function_shape") and v == "ovo" for name, v in _parameters(estimator).items()):
            raise RequestError("decision_function_shape is 'ovo', whose columns are pairs of classes; make it 'ovr'")
        decision = np.asarray(estimator.decision_function(x), np.float64)
        logits = np.stack([-decision / 2, decision / 2], axis=1) if decision.ndim == 1 else decision
        return logits, logits.min(axis=1, keepdims=True) + self._floor

    def _placed(self, logits: NDArray[np.float64], floor: Any, present: NDArray[np.int64]) -> NDArray[np.float64]:
        """Logits (k, c) of all classes out of those of the classes `present`, (k, c')."""
        if logits.ndim != 2 or logits.shape[1] != len(present):
            raise RowError(f"the estimator's scores are {logits.shape}; its subset has {len(present)} classes")
        placed = np.array(np.broadcast_to(floor, (len(logits), len(self.classes))))
        placed[:, present] = logits
        return placed


@dataclass(frozen=True, eq=False)
class FunctionLearner:
    fit_and_score: Callable[..., Any]

    @property
    def code(self) -> str:
        return _source(self.fit_and_score)

    def scores(self, x: Any, y: NDArray[np.int64], evaluated: list[Any], rng: np.random.Generator) -> list[Any]:
        sizes = [one.shape[0] for one in evaluated]
        logits = as_array(self.fit_and_score(x, y, _joined(evaluated), rng))
        if logits.ndim != 2 or len(logits) != sum(sizes):
            raise RowError(f"the function returned {logits.shape} for {sum(sizes)} examples; give (k, classes)")
        return np.split(logits, np.cumsum(sizes)[:-1])


@dataclass(frozen=True, eq=False)
class TransformerLearner:
    make_model: Callable[[], Any]
    epochs: int
    batch_size: int
    lr: float
    weight_decay: float
    device: str

    @property
    def gpus(self) -> tuple[str, ...]:
        return gpus_of(self.device)

    @property
    def code(self) -> str:
        return repr((_source(self.make_model), self.epochs, self.batch_size, self.lr, self.weight_decay))

    def scores(self, x: Any, y: NDArray[np.int64], evaluated: list[Any], rng: np.random.Generator) -> list[Any]:
        import torch

        device = torch.device(device_named(self.device))
        with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
            torch.manual_seed(int(rng.integers(2**63)))
            model = self.make_model().to(device)
            self._fit(model, x, y, rng, device)
            return [self._score(model, one, device) for one in evaluated]

    def _fit(self, model: Any, x: Any, y: NDArray[np.int64], rng: np.random.Generator, device: Any) -> None:
        import torch

        starts = range(0, len(y), self.batch_size)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.lr, weight_decay=self.weight_decay)
        schedule = torch.optim.lr_scheduler.LinearLR(
            optimizer, start_factor=1.0, end_factor=0.0, total_iters=self.epochs * len(starts)
        )
        model.train()
        for _ in range(self.epochs):
            order = rng.permutation(len(y))
            for start in starts:
                chosen = order[start : start + self.batch_size]
                loss = model(**_batch({**x, "labels": y}, chosen, device)).loss
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
                schedule.step()

    def _score(self, model: Any, x: Any, device: Any) -> Any:
        import torch

        k = lengths(x)[0]
        model.eval()
        with torch.no_grad():
            parts = np.split(np.arange(k), range(self.batch_size, k, self.batch_size))
            return torch.cat([model(**_batch(x, part, device)).logits for part in parts])


def _batch(x: dict[str, Any], chosen: NDArray[np.int64], device: Any) -> dict[str, Any]:
    """The chosen examples as tensors."""
    import torch

    return {name: torch.as_tensor(values[chosen]).to(device) for name, values in x.items()}


def class_numbers(y: ArrayLike, y_test: ArrayLike) -> tuple[NDArray[np.int64], NDArray[np.int64], int]:
    """Both labels as int64, and the number of classes."""
    labels, test = as_array(y), as_array(y_test)
    for name, given in (("y", labels), ("y_test", test)):
        if given.ndim != 1 or given.dtype.kind not in "iu" or not len(given) or given.min() < 0:
            raise RequestError(f"{name} is {given.shape} of {given.dtype}; give (k,) integers 0..classes-1")
    return labels.astype(np.int64), test.astype(np.int64), int(max(labels.max(), test.max())) + 1


def features_of(x: Any) -> Any:
    """Something whose rows a mask selects: as it is, or as an array."""
    if hasattr(x, "tocsr"):
        return x.tocsr()
    try:
        return x if hasattr(x, "shape") else np.asarray(x)
    except ValueError as error:
        raise RequestError(f"features cannot become an array ({first_line(error)}); pad them to one length") from None


def lengths(x: Any) -> list[int]:
    """Number of examples, for a dict those of each of its values."""
    return [part.shape[0] if part.shape else 0 for part in (x.values() if isinstance(x, dict) else [x])]


def chosen(x: Any, mask: NDArray[np.bool_]) -> Any:
    return {name: part[mask] for name, part in x.items()} if isinstance(x, dict) else x[mask]


def _joined(parts: list[Any]) -> Any:
    """One array or tensor out of several, one after the other."""
    if len(parts) == 1:
        return parts[0]
    if hasattr(parts[0], "detach"):
        import torch

        return torch.cat(parts)
    return np.concatenate(parts)


def as_array(value: Any) -> NDArray[Any]:
    """A NumPy array out of an array, or out of a tensor wherever that lives."""
    if not hasattr(value, "detach"):
        return np.asarray(value)
    tensor = value.detach().cpu()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def _seed(estimator: Any, rng: np.random.Generator) -> None:
    """Draw the ``random_state`` of an estimator and of its parts."""
    names = [name for name in sorted(_parameters(estimator)) if re.search(r"(^|__)random_state$", name)]
    if names:
        estimator.set_params(**{name: int(rng.integers(2**31)) for name in names})


def _parameters(estimator: Any) -> dict[str, Any]:
    """Settings of an estimator and of its parts, none when it does not tell."""
    return estimator.get_params() if hasattr(estimator, "get_params") else {}


def _source(function: Any) -> str:
    """The source of a function, with what a `functools.partial` binds; its name where there is no source."""
    if isinstance(function, functools.partial):
        return _source(function.func) + _without_addresses(repr((function.args, function.keywords)))
    try:
        return inspect.getsource(function)
    except (OSError, TypeError):
        return _without_addresses(repr(function))


def _without_addresses(text: str) -> str:
    return re.sub(r"0x[0-9a-fA-F]+", "", text)


def add_to_digest(digest: Any, value: Any) -> None:
    """Feed the content of features or labels to a hash."""
    if isinstance(value, dict):
        for name in sorted(value):
            digest.update(name.encode())
            add_to_digest(digest, value[name])
    elif hasattr(value, "tocsr"):
        add_to_digest(digest, {"data": value.data, "indices": value.indices, "indptr": value.indptr})
    else:
        array = as_array(value)
        digest.update(repr((array.dtype.str, array.shape)).encode())
        plain = array.dtype.kind == "O"
        digest.update(
            repr(array.tolist()).encode() if plain else np.ascontiguousarray(array).reshape(-1).view(np.uint8)
        )
