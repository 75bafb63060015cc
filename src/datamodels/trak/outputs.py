"""Model output functions: what TRAK differentiates, and how strongly each train example pulls at it.

A model output f(z, θ) is a number per example; Q(z) = -dℓ/df is the weight of a train example, with ℓ the training loss
(Park et al. 2023, section 3). With ℓ = log(1 + exp(-f)) and f the log-odds margin, Q = 1 - p.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import Field, dataclass, field, fields, is_dataclass, replace
from numbers import Number
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor, nn

from datamodels.errors import RequestError
from datamodels.trak import batches

State = dict[str, Tensor]
LABELS = ("labels", "label", "targets", "target", "y")
"""Names under which a dict batch may hold its labels."""


@runtime_checkable
class OutputObject(Protocol):
    """What a user writes: both are (B,) for a batch of B examples, and differentiable by `params`."""

    def output(self, model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor: ...

    def loss_weight(self, model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor: ...


@runtime_checkable
class TrakerObject(Protocol):
    """What is written for the `traker` package: an output of one example (no batch axis), weights of a batch."""

    def get_output(self, model: nn.Module, weights: State, buffers: State, *batch: Tensor) -> Tensor: ...

    def get_out_to_loss_grad(self, model: nn.Module, weights: State, buffers: State, batch: Any) -> Tensor: ...


@dataclass(frozen=True)
class ModelOutput:
    """A model output function, whoever wrote it.

    Attributes
    ----------
    name
        For the manifest and provenance.
    weight
        (model, params, buffers, batch) -> (B,), Q of each example.
    example
        (model, params, buffers, example) -> scalar, for one example without a batch axis; runs under `vmap`.
    batch
        (model, params, buffers, batch) -> (B,); None when only `example` exists.
    weight_of_output
        outputs (B,) -> Q (B,), where the one says the other: saves a forward pass.
    prepare
        (model, params, buffers, train loader): called once per checkpoint, before the others.
    """

    name: str
    weight: Callable[..., Tensor]
    example: Callable[..., Tensor]
    batch: Callable[..., Tensor] | None = None
    weight_of_output: Callable[[Tensor], Tensor] | None = None
    prepare: Callable[..., None] | None = None


def resolve(task: Any) -> ModelOutput:
    """The output function of a task's name or object.

    Raises
    ------
    RequestError
        for an unknown name, a class, and an object without the methods that are needed.
    """
    if isinstance(task, type):
        raise RequestError(f"task is the class {task.__name__}; give an object of it, {task.__name__}()")
    if task in ("image_classification", "text_classification"):
        found = _batched(task, _unchecked_log_odds, one_minus_p)
        return replace(found, batch=log_odds, weight_of_output=lambda f: torch.sigmoid(-f))
    if task == "regression":
        return _batched(task, prediction, residual)
    if task == "contrastive":
        task = Contrastive()
    if isinstance(task, Contrastive):
        name = f"contrastive{_settings_of(task)}"
        return replace(_batched(name, task.output, task.loss_weight), prepare=task.prepare)
    if isinstance(task, OutputObject):
        return _batched(_name_of(task), task.output, task.loss_weight)
    if isinstance(task, TrakerObject):
        return _of_traker(task)
    raise RequestError(
        f"task is {task!r}; legal: 'image_classification', 'text_classification', 'regression', 'contrastive', an object "
        "with output(model, params, buffers, batch) and loss_weight(model, params, buffers, batch), or an object written "
        "for the traker package"
    )


def _name_of(task: Any) -> str:
    return f"{type(task).__module__}.{type(task).__qualname__}{_settings_of(task)}"


def _settings_of(task: Any) -> str:
    """``(name=value, ...)`` of an object's public attributes that are numbers, strings, or sequences of these; or nothing."""

    def plain(value: Any) -> bool:
        if isinstance(value, list | tuple):
            return all(plain(one) for one in value)
        return value is None or isinstance(value, str | Number | np.generic)

    fields = {**getattr(task, "__dict__", {}), **{f.name: getattr(task, f.name) for f in _fields(task)}}
    found = [f"{k}={v!r}" for k, v in sorted(fields.items()) if not k.startswith("_") and plain(v)]
    return f"({', '.join(found)})" if found else ""


def _fields(task: Any) -> tuple[Field[Any], ...]:
    return fields(task) if is_dataclass(task) else ()


def _batched(name: str, output: Callable[..., Tensor], weight: Callable[..., Tensor]) -> ModelOutput:
    def of_batch(model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor:
        found = output(model, params, buffers, batch)
        if found.shape != (batches.size(batch),):
            raise RequestError(
                f"the output function gave shape {tuple(found.shape)} for {batches.size(batch)} examples; "
                f"it must be ({batches.size(batch)},), a number per example"
            )
        return found

    def of_example(model: nn.Module, params: State, buffers: State, example: Any) -> Tensor:
        one = {k: v[None] for k, v in example.items()} if isinstance(example, dict) else tuple(v[None] for v in example)
        return output(model, params, buffers, one)[0]

    return ModelOutput(name, weight, of_example, of_batch)


def _of_traker(task: TrakerObject) -> ModelOutput:
    def values(batch: Any) -> list[Tensor]:
        return list(batch.values()) if isinstance(batch, Mapping) else list(batch)

    def example(model: nn.Module, params: State, buffers: State, one: Any) -> Tensor:
        return task.get_output(model, params, buffers, *values(one)).sum()

    def weight(model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor:
        return task.get_out_to_loss_grad(model, params, buffers, values(batch)).reshape(-1)

    return ModelOutput(_name_of(task), weight, example)


# -- classification and regression ------------------------------------------------------------------


def _split(batch: Any) -> tuple[tuple[Any, ...], dict[str, Any], Tensor]:
    """Positional inputs, named inputs and labels of a batch: labels come last in a tuple."""
    if isinstance(batch, Mapping):
        name = next((key for key in LABELS if key in batch), None)
        if name is None:
            raise RequestError(
                f"a batch has the keys {list(batch)} and no labels; name them one of {', '.join(LABELS)}"
            )
        return (), {key: value for key, value in batch.items() if key != name}, batch[name]
    if len(batch) < 2:
        raise RequestError("a batch has inputs and no labels; give (inputs, labels)")
    return tuple(batch[:-1]), {}, batch[-1]


def _call(model: nn.Module, params: State, buffers: State, batch: Any) -> tuple[Tensor, Tensor]:
    """What the model returns, or its ``.logits``, and the labels."""
    inputs, named, labels = _split(batch)
    found = torch.func.functional_call(model, (params, buffers), inputs, named)
    if not isinstance(found, Tensor):
        found = found["logits"] if isinstance(found, dict) else getattr(found, "logits", None)
    if found is None:
        raise RequestError("the model returns neither a tensor nor an object with .logits; write an output function")
    return found, labels


def _margin(logits: Tensor, labels: Tensor) -> Tensor:
    """Log-odds margin of each label, (B,), from logits (B, classes)."""
    if logits.ndim != 2 or logits.shape[1] < 2 or labels.shape != logits.shape[:1]:
        raise RequestError(
            f"logits have shape {tuple(logits.shape)} and labels {tuple(labels.shape)}; they must be (B, classes), "
            "of at least two classes, and (B,)"
        )
    own = labels.long()[:, None] == torch.arange(logits.shape[1], device=logits.device)
    others = logits.masked_fill(own, -torch.inf).logsumexp(dim=1)
    return logits.masked_fill(~own, 0).sum(dim=1) - others


def log_odds(model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor:
    """Log-odds margin log(p/(1-p)) of each label's probability p, (B,).

    Raises
    ------
    RequestError
        for a label that is no class.
    """
    logits, labels = _call(model, params, buffers, batch)
    found = _margin(logits, labels)
    bad = ((labels < 0) | (labels >= logits.shape[1]) | (labels != labels.long())).nonzero()[:, 0]
    if len(bad):
        raise RequestError(
            f"a batch has {len(bad)} of {len(labels)} labels that are no class, the first is {labels[bad[0]].item()}; the model "
            f"has {logits.shape[1]} logits, so labels are 0 to {logits.shape[1] - 1}: leave the other examples out"
        )
    return found


def _unchecked_log_odds(model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor:
    """`log_odds` under `vmap`, where values cannot be looked at."""
    return _margin(*_call(model, params, buffers, batch))


def one_minus_p(model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor:
    """1 - p of each label, (B,)."""
    return torch.sigmoid(-log_odds(model, params, buffers, batch))


def _predictions(model: nn.Module, params: State, buffers: State, batch: Any) -> tuple[Tensor, Tensor]:
    found, labels = _call(model, params, buffers, batch)
    if found.numel() != labels.numel() or found.shape[:1] != labels.shape[:1] or labels.numel() != len(labels):
        raise RequestError(
            f"the model returns shape {tuple(found.shape)} for labels {tuple(labels.shape)}; regression needs one number "
            "per example"
        )
    return found.reshape(-1), labels.reshape(-1)


def prediction(model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor:
    """The prediction itself, (B,)."""
    return _predictions(model, params, buffers, batch)[0]


def residual(model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor:
    """Label minus prediction, (B,): Q of the loss ½(f - y)²."""
    found, labels = _predictions(model, params, buffers, batch)
    return labels - found


# -- contrastive --------------------------------------------------------------------------------------


@dataclass
class Contrastive:
    """CLIP-style models: ``model(images, texts)`` returns (image embeddings, text embeddings, scale), or an object with
    ``image_embeds`` and ``text_embeds``.

    The scale of a pair without one is 1; that of an object its ``logit_scale``, or else the exponential of the model's one
    parameter of that name, in whatever module.

    The output of a pair is the sum of its two log-odds margins, image against other texts and text against other images,
    at the similarities ``scale * <image, text>``; Q is one minus the mean of the two probabilities. The others are the
    first ``negatives`` train pairs, embedded once per checkpoint and held fixed; a train pair among them is one of its
    own negatives, as in the simulated batches of section 5.1 of Park et al. 2023 (arXiv:2303.14186).

    Parameters
    ----------
    negatives
        How many train pairs are the others.
    """

    negatives: int = 300
    _images: Tensor | None = field(default=None, repr=False)
    _texts: Tensor | None = field(default=None, repr=False)

    def prepare(self, model: nn.Module, params: State, buffers: State, loader: Iterable[Any]) -> None:
        """Embed the first pairs of a `loader` by a `model` with values `params` and `buffers`, as the others."""
        images, texts, found = [], [], 0
        device = next(iter(params.values())).device
        with torch.no_grad():
            for batch in loader:
                image, text, _ = self._embed(model, params, buffers, batches.on(batch, device))
                images.append(image)
                texts.append(text)
                found += len(image)
                if found >= self.negatives:
                    break
        self._images, self._texts = (torch.cat(one)[: self.negatives] for one in (images, texts))

    def _embed(self, model: nn.Module, params: State, buffers: State, batch: Any) -> tuple[Tensor, Tensor, Any]:
        inputs, named = ((), dict(batch)) if isinstance(batch, Mapping) else (tuple(batch), {})
        found = torch.func.functional_call(model, (params, buffers), inputs, named)
        if isinstance(found, tuple):
            return found[0], found[1], found[2] if len(found) > 2 else 1.0
        image, text = getattr(found, "image_embeds", None), getattr(found, "text_embeds", None)
        if image is None or text is None:
            raise RequestError(
                f"the model returns {type(found).__name__}; the contrastive output needs (image embeddings, text embeddings, "
                "scale), or an object with image_embeds and text_embeds"
            )
        scale = getattr(found, "logit_scale", None)
        if scale is None:
            logs = [v for k, v in {**params, **buffers}.items() if k.split(".")[-1] == "logit_scale"]
            if len(logs) != 1:
                raise RequestError(
                    f"the model's output has no logit_scale, and {len(logs)} parameters have that name; return (image embeddings, "
                    "text embeddings, scale), or give the output a logit_scale"
                )
            scale = logs[0].exp()
        return image, text, scale

    def _margins(self, model: nn.Module, params: State, buffers: State, batch: Any) -> tuple[Tensor, Tensor]:
        if self._images is None or self._texts is None:
            raise RequestError("the contrastive output has no negatives yet; featurize the train examples first")
        image, text, scale = self._embed(model, params, buffers, batch)
        own = scale * (image * text).sum(dim=1)
        return (
            own - (scale * image @ self._texts.T).logsumexp(dim=1),
            own - (scale * text @ self._images.T).logsumexp(dim=1),
        )

    def output(self, model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor:
        """The output of each pair of a `batch`, (B,), by a `model` with values `params` and `buffers`."""
        return sum(self._margins(model, params, buffers, batch))  # type: ignore[return-value]

    def loss_weight(self, model: nn.Module, params: State, buffers: State, batch: Any) -> Tensor:
        """Q of each pair of a `batch`, (B,), by a `model` with values `params` and `buffers`."""
        by_image, by_text = self._margins(model, params, buffers, batch)
        return (torch.sigmoid(-by_image) + torch.sigmoid(-by_text)) / 2
