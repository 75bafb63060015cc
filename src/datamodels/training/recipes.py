"""Recipes: how one model is trained, declared and checked before anything is."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, Field, model_validator
from pydantic.dataclasses import dataclass

from datamodels.errors import RequestError, refusing

Count = Annotated[int, Field(ge=1)]
Share = Annotated[float, Field(ge=0, lt=1)]
BUILT_IN = ("linear", "mlp", "cnn", "resnet9")


@refusing
@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Recipe:
    """How one model is trained.

    Parameters
    ----------
    architecture
        ``linear``, ``mlp`` (`hidden` layers with ReLU), ``cnn`` (per entry of `channels` a 3x3 convolution, ReLU and 2x2
        max-pooling, then a linear layer), ``resnet9`` (`channels` are its four widths; batch norm), or a factory
        ``(input_shape, n_classes) -> torch.nn.Module``, given itself or as ``PKG.MODULE:FUNCTION``. It is called once per
        model with torch seeded for that model.
    hidden, channels
        Widths. `channels` is by default (16, 32) for ``cnn`` and (64, 128, 256, 512) for ``resnet9``.
    optimizer
        ``sgd`` (with `momentum`, `nesterov`) or ``adamw`` (with `betas`, `eps`), as in PyTorch.
    lr, weight_decay
        The largest learning rate, and the decay of all parameters: added to the gradient for ``sgd``, decoupled for
        ``adamw``.
    label_smoothing
        Share of the target that is spread over all classes.
    schedule
        Learning rate over the steps of a model: ``constant``; ``linear`` to 0; ``triangular``: up from 0 to the share
        `peak` of the steps, then down to 0; ``cosine`` to 0; ``step``: times `gamma` at each of the shares `milestones`.
    epochs, steps
        Passes over the subset, or, when given, optimiser steps.
    batch_size
        Examples per step.
    drop_last
        Whether the last, smaller batch of an epoch is left out. A batch of one or two examples is a noisy step: with few
        examples per epoch this matters.
    flip, translate, cutout
        Augmentation of pictures: mirror half of them, shift by up to so many pixels (zeros come in), and blank a square of so many
        pixels around a random point.
    standardise
        Whether inputs are centred and scaled by mean and deviation of each channel over all training examples.
    flip_average
        Whether outputs are the mean of the logits of a picture and of its mirror image.
    precision
        ``float32``, or ``bfloat16`` for mixed precision by autocast.

    Raises
    ------
    RequestError
        when a value is wrong or values do not go together.
    """

    architecture: str | Callable[..., Any] = "mlp"
    hidden: tuple[Count, ...] = (64,)
    channels: tuple[Count, ...] | None = None
    optimizer: Literal["sgd", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.1
    momentum: Share = 0.9
    nesterov: bool = False
    betas: tuple[Share, Share] = (0.9, 0.999)
    eps: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 1e-8
    weight_decay: Annotated[float, Field(ge=0, allow_inf_nan=False)] = 5e-4
    label_smoothing: Share = 0.0
    schedule: Literal["constant", "linear", "triangular", "cosine", "step"] = "linear"
    peak: Annotated[float, Field(gt=0, lt=1)] = 0.25
    milestones: tuple[Annotated[float, Field(gt=0, lt=1)], ...] = (0.5, 0.75)
    gamma: Annotated[float, Field(gt=0, lt=1)] = 0.1
    epochs: Count = 12
    steps: Count | None = None
    batch_size: Count = 32
    drop_last: bool = False
    flip: bool = False
    translate: Annotated[int, Field(ge=0)] = 0
    cutout: Annotated[int, Field(ge=0)] = 0
    standardise: bool = False
    flip_average: bool = False
    precision: Literal["float32", "bfloat16"] = "float32"

    @model_validator(mode="after")
    def _check(self) -> Recipe:
        name = self.architecture
        if isinstance(name, str) and name not in BUILT_IN and not all(name.partition(":")):
            raise ValueError(f"architecture {name!r} is unknown; legal: {', '.join(BUILT_IN)}, or PKG.MODULE:FUNCTION")
        if callable(name) and not hasattr(name, "__qualname__"):
            raise ValueError(f"architecture is {name!r}, which has no name to be known by; give a function")
        if name == "resnet9" and self.channels is not None and len(self.channels) != 4:
            raise ValueError(f"resnet9 has four widths; channels is {self.channels}")
        if name == "cnn" and self.channels is not None and not self.channels:
            raise ValueError("a cnn needs at least one entry of channels; use linear or mlp for none")
        if self.nesterov and (self.optimizer != "sgd" or not self.momentum):
            raise ValueError("nesterov goes with optimizer 'sgd' and a momentum above 0")
        return self

    @property
    def widths(self) -> tuple[int, ...]:
        """`channels`, or its default for the architecture."""
        default = (64, 128, 256, 512) if self.architecture == "resnet9" else (16, 32)
        return default if self.channels is None else self.channels

    @property
    def augments(self) -> bool:
        """Whether training pictures are changed at random."""
        return self.flip or self.translate > 0 or self.cutout > 0

    def total_steps(self, subset_size: int) -> int:
        """Optimiser steps of a model with a subset of `subset_size` examples."""
        return self.steps or self.epochs * self.steps_per_epoch(subset_size)

    def steps_per_epoch(self, subset_size: int) -> int:
        """Optimiser steps of one pass over a subset of `subset_size` examples."""
        return -(-self.seen_per_epoch(subset_size) // self.batch_size)

    def seen_per_epoch(self, subset_size: int) -> int:
        """How many of the `subset_size` examples of a subset an epoch comes to."""
        dropped = self.drop_last and subset_size > self.batch_size
        return subset_size - subset_size % self.batch_size if dropped else subset_size

    def rates(self, total: int) -> NDArray[np.float64]:
        """The learning rate of each step, (total,)."""
        at = np.arange(total) / total
        if self.schedule == "linear":
            shape = 1 - at
        elif self.schedule == "triangular":
            middle = (np.arange(total) + 0.5) / total
            shape = np.minimum(middle / self.peak, (1 - middle) / (1 - self.peak))
        elif self.schedule == "cosine":
            shape = 0.5 * (1 + np.cos(np.pi * at))
        elif self.schedule == "step":
            shape = self.gamma ** (at[:, None] >= np.array(self.milestones)).sum(axis=1)
        else:
            shape = np.ones(total)
        return self.lr * shape

    def with_parameters(self, parameters: Mapping[str, Any]) -> Recipe:
        """The recipe with other values: `parameters` as a sweep has them, name -> value.

        Raises
        ------
        RequestError
            when a name or a value is not one of a recipe.
        """
        unknown = sorted(set(parameters) - set(self.__dataclass_fields__))
        if unknown:
            raise RequestError(f"a recipe has no {unknown[0]!r}; legal: {', '.join(self.__dataclass_fields__)}")
        try:
            return replace(self, **dict(parameters))
        except RequestError as error:
            raise RequestError(f"the recipe cannot take {dict(parameters)}: {error}") from None

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready. A factory that was given itself is named by its module and name."""
        out: dict[str, Any] = {}
        for name in self.__dataclass_fields__:
            value = getattr(self, name)
            if callable(value):
                value = f"{value.__module__}:{value.__qualname__}"
            out[name] = list(value) if isinstance(value, tuple) else value
        return out

    def changed(self) -> dict[str, Any]:
        """What differs from the defaults, and the architecture, as in `to_dict`."""
        mine, usual = self.to_dict(), Recipe().to_dict()
        return {name: value for name, value in mine.items() if name == "architecture" or value != usual[name]}

    @property
    def factory(self) -> Callable[..., Any] | None:
        """What makes the modules of an architecture that is not built in.

        Raises
        ------
        RequestError
            when it cannot be imported.
        """
        if not isinstance(self.architecture, str):
            return self.architecture
        if self.architecture in BUILT_IN:
            return None
        module, _, function = self.architecture.partition(":")
        try:
            return getattr(importlib.import_module(module), function)
        except (ImportError, AttributeError) as error:
            raise RequestError(f"cannot import the architecture {self.architecture!r}: {error}") from None

    @property
    def identity(self) -> str:
        """A hash of all values, and of the source of a factory."""
        source = ""
        if self.factory is not None:
            with contextlib.suppress(OSError, TypeError):
                source = inspect.getsource(self.factory)
        return hashlib.sha256((json.dumps(self.to_dict(), sort_keys=True) + source).encode()).hexdigest()
