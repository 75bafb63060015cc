"""The built-in architectures that are chains of layers (linear, mlp, cnn): sizes, parameters and their first values.

The parameters of a model are one vector, so that K models are a matrix (K, P) and an optimiser step is one pass over it.
Pictures are (channels, height, width), flattened in that order.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.training.recipes import Recipe

DENSE, CONVOLUTION = 0, 1
CHAINS = ("linear", "mlp", "cnn")
_KERNEL = 9  # 3 x 3


@dataclass(frozen=True)
class Layer:
    """``DENSE``: ReLU(x W + b), without ReLU in the last layer; W (n_in, n_out). ``CONVOLUTION``: 3 x 3 with padding 1, then
    ReLU and 2 x 2 max-pooling; W (n_out, n_in * 9), the input (n_in, height, width).

    `at` is where W begins in the vector of parameters; b follows it.
    """

    kind: int
    n_in: int
    n_out: int
    height: int
    width: int
    at: int

    @property
    def n_weights(self) -> int:
        return self.n_in * self.n_out * (_KERNEL if self.kind == CONVOLUTION else 1)

    @property
    def fan_in(self) -> int:
        return self.n_weights // self.n_out


@dataclass(frozen=True)
class Chain:
    """Layers from an input of some shape to the logits of the classes."""

    layers: tuple[Layer, ...]

    @classmethod
    def of(cls, recipe: Recipe, shape: tuple[int, ...], n_classes: int) -> Chain:
        """The chain of a recipe.

        Raises
        ------
        RequestError
            when a ``cnn`` is asked for inputs that are not pictures, or are too small for its poolings.
        """
        layers: list[Layer] = []
        at, size = 0, prod(shape)
        if recipe.architecture == "cnn":
            channels, height, width = picture_shape(shape, "cnn")
            for n_out in recipe.widths:
                if min(height, width) < 2:
                    raise RequestError(
                        f"a cnn with {len(recipe.widths)} poolings needs larger pictures than {shape[1]} x {shape[2]}; "
                        "give fewer channels"
                    )
                layers.append(Layer(CONVOLUTION, channels, n_out, height, width, at))
                at += layers[-1].n_weights + n_out
                channels, height, width = n_out, height // 2, width // 2
            size = channels * height * width
        for n_out in (*(recipe.hidden if recipe.architecture == "mlp" else ()), n_classes):
            layers.append(Layer(DENSE, size, n_out, 1, 1, at))
            at += layers[-1].n_weights + n_out
            size = n_out
        return cls(tuple(layers))

    @property
    def n_parameters(self) -> int:
        last = self.layers[-1]
        return last.at + last.n_weights + last.n_out

    @property
    def table(self) -> NDArray[np.int64]:
        """(layers, 6): kind, n_in, n_out, height, width, at."""
        return np.array([[e.kind, e.n_in, e.n_out, e.height, e.width, e.at] for e in self.layers], dtype=np.int64)

    def first(self, generator: np.random.Generator) -> NDArray[np.float32]:
        """Parameters to begin with (P,): He-normal weights (He et al. 2015, arXiv:1502.01852), zero biases."""
        out = np.zeros(self.n_parameters, dtype=np.float32)
        for layer in self.layers:
            gain = 1.0 if layer is self.layers[-1] else 2.0
            draws = generator.standard_normal(layer.n_weights, dtype=np.float32)
            out[layer.at : layer.at + layer.n_weights] = draws * np.float32(np.sqrt(gain / layer.fan_in))
        return out


def picture_shape(shape: tuple[int, ...], what: str) -> tuple[int, int, int]:
    """(channels, height, width) of a picture.

    Raises
    ------
    RequestError
        when inputs are not pictures.
    """
    if len(shape) != 3:
        raise RequestError(f"{what} needs pictures (channels, height, width); the inputs have shape {shape}")
    return shape
