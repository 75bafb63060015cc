"""Chains of layers trained in compiled code, each model from first to last step on one core.

A small model's parameters, momentum and gradient fit into the cache of a core, so a model that is trained from first to last
step without a return to Python runs close to the speed of its matrix products. Steps of many models side by side, as in
`batched`, move all of that through memory once per step. Each model depends on its own streams alone: the same
row is the same to the bit in any block.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

import numpy as np
from numba import njit
from numpy.typing import NDArray
from threadpoolctl import ThreadpoolController

from datamodels.threads import spread
from datamodels.training.chain import CONVOLUTION, Chain
from datamodels.training.recipes import Recipe
from datamodels.training.streams import CUT_COLUMN, CUT_ROW, DOWN, FLIP, RIGHT, Streams

_EVALUATED = 256  # examples per forward pass
# Numbers that float32 holds in denormal form slow processors down a hundredfold. They come from probabilities near 0
# and from momentum that dies out; at these sizes 0 is the same step.
_NO_GRADIENT, _NO_MOMENTUM = np.float32(1e-18), np.float32(1e-30)
_OPTIONS: dict[str, Any] = {"cache": True, "nogil": True, "error_model": "numpy"}
_compiled = njit(**_OPTIONS)
# Within a sum the order of terms is free; for a given machine and batch it is always the same.
_loops = njit(**_OPTIONS, fastmath={"reassoc", "contract", "arcp", "nsz"})


# Of slices and not of places in arrays: a place that could be negative would be checked in every round.
@_loops
def _copy(values, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] = values[j]


@_loops
def _increase(values, out):  # type: ignore[no-untyped-def]
    for j in range(len(out)):
        out[j] += values[j]


@_loops
def _columns(picture, height, width, padded, out):  # type: ignore[no-untyped-def]
    """The 3 x 3 surroundings of every pixel: picture (channels * H * W) -> out (channels * 9, H * (W + 2)).

    Pictures get a frame of zeros, `padded` (channels, (H + 2) * (W + 2) + 2), so that each row of `out` is one
    stretch of it. The last two of every W + 2 places stand for no pixel.
    """
    stride = width + 2
    padded[:] = 0.0
    for channel in range(padded.shape[0]):
        frame = padded[channel]
        for h in range(height):
            to, begin = (h + 1) * stride + 1, (channel * height + h) * width
            _copy(picture[begin : begin + width], frame[to : to + width])
        for place in range(9):
            shift = place // 3 * stride + place % 3
            _copy(frame[shift : shift + height * stride], out[channel * 9 + place])


@_loops
def _add_columns(columns, height, width, padded, out):  # type: ignore[no-untyped-def]
    """The adjoint of `_columns`: out (channels * H * W) is overwritten."""
    stride = width + 2
    padded[:] = 0.0
    for channel in range(padded.shape[0]):
        frame = padded[channel]
        for place in range(9):
            shift = place // 3 * stride + place % 3
            _increase(columns[channel * 9 + place], frame[shift : shift + height * stride])
        for h in range(height):
            begin, to = (h + 1) * stride + 1, (channel * height + h) * width
            _copy(frame[begin : begin + width], out[to : to + width])


@_loops
def _pool(z, bias, height, width, out, winners):  # type: ignore[no-untyped-def]
    """ReLU and 2 x 2 max-pooling of z (channels, H * (W + 2)) + bias; winners say which of the four, -1 where it is 0."""
    rows, columns, stride = height // 2, width // 2, width + 2
    for channel in range(z.shape[0]):
        for h in range(rows):
            at = (channel * rows + h) * columns
            upper, lower = z[channel, 2 * h * stride :], z[channel, (2 * h + 1) * stride :]
            pooled, won = out[at : at + columns], winners[at : at + columns]
            for w in range(columns):
                a, b, c, d = upper[2 * w], upper[2 * w + 1], lower[2 * w], lower[2 * w + 1]
                top, low = max(a, b), max(c, d)
                best = max(top, low) + bias[channel]
                winner = (1 if b > a else 0) if top >= low else (3 if d > c else 2)
                pooled[w] = max(best, np.float32(0.0))
                won[w] = winner if best > 0.0 else -1


@_loops
def _unpool(gradient, winners, height, width, out):  # type: ignore[no-untyped-def]
    """The adjoint of `_pool`: gradient (channels * H/2 * W/2) -> out (channels, H * (W + 2)), overwritten."""
    rows, columns, stride = height // 2, width // 2, width + 2
    out[:] = 0.0
    for channel in range(out.shape[0]):
        for h in range(rows):
            at = (channel * rows + h) * columns
            upper, lower = out[channel, 2 * h * stride :], out[channel, (2 * h + 1) * stride :]
            pooled, won = gradient[at : at + columns], winners[at : at + columns]
            zero = np.float32(0.0)
            for w in range(columns):
                g, winner = pooled[w], won[w]
                upper[2 * w] = g if winner == 0 else zero
                upper[2 * w + 1] = g if winner == 1 else zero
                lower[2 * w] = g if winner == 2 else zero
                lower[2 * w + 1] = g if winner == 3 else zero


@_loops
def _load(x, shape, example, change, cutout, out):  # type: ignore[no-untyped-def]
    """One training picture (channels * H * W), changed, into out."""
    if len(change) == 0:
        for j in range(len(out)):
            out[j] = x[example, j]
        return
    channels, height, width = shape
    half = cutout // 2
    for channel in range(channels):
        for h in range(height):
            to = (channel * height + h) * width
            source = h - change[DOWN]
            blank = source < 0 or source >= height
            cut = cutout > 0 and change[CUT_ROW] - half <= h < change[CUT_ROW] - half + cutout
            for w in range(width):
                column = w - change[RIGHT]
                value = np.float32(0.0)
                inside = not cut or w < change[CUT_COLUMN] - half or w >= change[CUT_COLUMN] - half + cutout
                if not blank and inside and 0 <= column < width:
                    if change[FLIP]:
                        column = width - 1 - column
                    value = x[example, (channel * height + source) * width + column]
                out[to + w] = value


@_compiled
def _sizes(table):  # type: ignore[no-untyped-def]
    """Where the activations of each layer begin, per example, (layers + 2,), and the sizes of scratch for convolutions: columns, maps
    and framed pictures."""
    layers = len(table)
    begins = np.zeros(layers + 2, dtype=np.int64)
    begins[1] = table[0, 1] * table[0, 3] * table[0, 4]
    columns = maps = frames = 1
    for layer in range(layers):
        kind, n_in, n_out, height, width = table[layer, :5]
        size = n_out
        if kind == CONVOLUTION:
            size = n_out * (height // 2) * (width // 2)
            pixels = height * (width + 2)
            columns, maps = max(columns, 9 * n_in * pixels), max(maps, n_out * pixels)
            frames = max(frames, n_in * (pixels + 2 * width + 6))
        begins[layer + 2] = begins[layer + 1] + size
    return begins, columns, maps, frames


@_loops
def _bias_relu(values, bias, relu):  # type: ignore[no-untyped-def]
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            value = values[i, j] + bias[j]
            values[i, j] = max(value, np.float32(0.0)) if relu else value


@_compiled
def _forward(table, parameters, begins, k, activations, winners, columns, maps, frames):  # type: ignore[no-untyped-def]
    """Activations of all layers from those of the first, for k examples. Activations of a layer lie together."""
    layers = len(table)
    for layer in range(layers):
        kind, n_in, n_out, height, width, at = table[layer]
        size_in, size_out = begins[layer + 1] - begins[layer], begins[layer + 2] - begins[layer + 1]
        x = activations[k * begins[layer] : k * begins[layer + 1]].reshape(k, size_in)
        out = activations[k * begins[layer + 1] : k * begins[layer + 2]].reshape(k, size_out)
        if kind == CONVOLUTION:
            pixels = height * (width + 2)
            padded = frames[: n_in * (pixels + 2 * width + 6)].reshape(n_in, pixels + 2 * width + 6)
            weights = parameters[at : at + 9 * n_in * n_out].reshape(n_out, 9 * n_in)
            bias = parameters[at + 9 * n_in * n_out : at + 9 * n_in * n_out + n_out]
            around = columns[: 9 * n_in * pixels].reshape(9 * n_in, pixels)
            z = maps[: n_out * pixels].reshape(n_out, pixels)
            for i in range(k):
                _columns(x[i], height, width, padded, around)
                np.dot(weights, around, z)
                first = k * begins[layer + 1] + i * size_out
                _pool(z, bias, height, width, out[i], winners[first : first + size_out])
        else:
            weights = parameters[at : at + n_in * n_out].reshape(n_in, n_out)
            np.dot(x, weights, out)
            _bias_relu(out, parameters[at + n_in * n_out : at + n_in * n_out + n_out], layer < layers - 1)


@_loops
def _loss_gradient(logits, y, order, smoothing):  # type: ignore[no-untyped-def]
    """Logits (k, classes) -> the gradient of the mean cross-entropy, in place."""
    k, classes = logits.shape
    for i in range(k):
        largest = logits[i, 0]
        for c in range(1, classes):
            largest = max(largest, logits[i, c])
        total = np.float32(0.0)
        for c in range(classes):
            logits[i, c] = np.exp(logits[i, c] - largest)
            total += logits[i, c]
        for c in range(classes):
            wanted = smoothing / np.float32(classes)
            if c == y[order[i]]:
                wanted += np.float32(1.0) - smoothing
            gradient = (logits[i, c] / total - wanted) / np.float32(k)
            logits[i, c] = gradient if abs(gradient) > _NO_GRADIENT else np.float32(0.0)


@_loops
def _sum_rows(values, out):  # type: ignore[no-untyped-def]
    out[:] = 0.0
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            out[j] += values[i, j]


@_loops
def _add_row_sums(values, out):  # type: ignore[no-untyped-def]
    for i in range(values.shape[0]):
        total = np.float32(0.0)
        for j in range(values.shape[1]):
            total += values[i, j]
        out[i] += total


@_loops
def _relu_gradient(gradient, activations):  # type: ignore[no-untyped-def]
    for i in range(gradient.shape[0]):
        for j in range(gradient.shape[1]):
            gradient[i, j] = gradient[i, j] if activations[i, j] > 0.0 else np.float32(0.0)


@_loops
def _add(values, out):  # type: ignore[no-untyped-def]
    for i in range(values.shape[0]):
        for j in range(values.shape[1]):
            out[i, j] += values[i, j]


@_compiled
def _backward(table, parameters, begins, k, activations, gradients, winners, columns, back, maps, frames, gradient):  # type: ignore[no-untyped-def]
    """The gradient (P,) of all parameters from that of the logits, which is the last part of `gradients`."""
    layers = len(table)
    for layer in range(layers - 1, -1, -1):
        kind, n_in, n_out, height, width, at = table[layer]
        size_in, size_out = begins[layer + 1] - begins[layer], begins[layer + 2] - begins[layer + 1]
        x = activations[k * begins[layer] : k * begins[layer + 1]].reshape(k, size_in)
        down = gradients[k * begins[layer] : k * begins[layer + 1]].reshape(k, size_in)
        up = gradients[k * begins[layer + 1] : k * begins[layer + 2]].reshape(k, size_out)
        if kind == CONVOLUTION:
            pixels = height * (width + 2)
            padded = frames[: n_in * (pixels + 2 * width + 6)].reshape(n_in, pixels + 2 * width + 6)
            weights = parameters[at : at + 9 * n_in * n_out].reshape(n_out, 9 * n_in)
            of_weights = gradient[at : at + 9 * n_in * n_out].reshape(n_out, 9 * n_in)
            of_bias = gradient[at + 9 * n_in * n_out : at + 9 * n_in * n_out + n_out]
            around = columns[: 9 * n_in * pixels].reshape(9 * n_in, pixels)
            spread = back[: 9 * n_in * pixels].reshape(9 * n_in, pixels)
            z = maps[: n_out * pixels].reshape(n_out, pixels)
            part = np.empty((n_out, 9 * n_in), dtype=np.float32)
            of_weights[:] = 0.0
            of_bias[:] = 0.0
            for i in range(k):
                first = k * begins[layer + 1] + i * size_out
                _unpool(up[i], winners[first : first + size_out], height, width, z)
                _columns(x[i], height, width, padded, around)
                np.dot(z, around.T, part)
                _add(part, of_weights)
                _add_row_sums(z, of_bias)
                if layer > 0:
                    np.dot(weights.T, z, spread)
                    _add_columns(spread, height, width, padded, down[i])
        else:
            if layer < layers - 1:
                _relu_gradient(up, activations[k * begins[layer + 1] : k * begins[layer + 2]].reshape(k, size_out))
            weights = parameters[at : at + n_in * n_out].reshape(n_in, n_out)
            np.dot(x.T, up, gradient[at : at + n_in * n_out].reshape(n_in, n_out))
            _sum_rows(up, gradient[at + n_in * n_out : at + n_in * n_out + n_out])
            if layer > 0:
                np.dot(up, weights.T, down)


@_loops
def _descend(parameters, gradient, momentum, rate, decay, share, nesterov):  # type: ignore[no-untyped-def]
    """A step of SGD as in PyTorch: decay joins the gradient, momentum is a running sum."""
    for i in range(len(parameters)):
        g = gradient[i] + decay * parameters[i]
        v = share * momentum[i] + g
        v = v if abs(v) > _NO_MOMENTUM else np.float32(0.0)
        momentum[i] = v
        parameters[i] -= rate * (g + share * v if nesterov else v)


@_loops
def _adapt(parameters, gradient, momentum, squares, rate, decay, beta1, beta2, eps, step):  # type: ignore[no-untyped-def]
    """A step of AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101)."""
    one = np.float32(1.0)
    first, second = one - beta1**step, one - beta2**step
    keep, size = one - rate * decay, np.float32(rate / first)
    root = np.float32(1.0 / np.sqrt(second))
    for i in range(len(parameters)):
        g = gradient[i]
        m, s = beta1 * momentum[i] + (one - beta1) * g, beta2 * squares[i] + (one - beta2) * g * g
        m = m if abs(m) > _NO_MOMENTUM else np.float32(0.0)
        s = s if s > _NO_MOMENTUM else np.float32(0.0)
        momentum[i], squares[i] = m, s
        parameters[i] = keep * parameters[i] - size * m / (np.sqrt(s) * root + eps)


@_compiled
def _train(x, y, shape, table, order, changes, cutout, batch, rates, adamw, nesterov, numbers, parameters):  # type: ignore[no-untyped-def]
    """Train one model in place, from its first parameters (P,) through all of its steps.

    order (epochs, size); changes (epochs, size, 5) or (0, 0, 0); numbers: momentum, decay, smoothing, beta1, beta2, eps.
    """
    momentum_share, decay, smoothing, beta1, beta2, eps = numbers
    begins, n_columns, n_maps, n_frames = _sizes(table)
    layers, size = len(table), order.shape[1]
    activations = np.empty(batch * begins[layers + 1], dtype=np.float32)
    gradients = np.empty_like(activations)
    winners = np.empty(len(activations) if table[0, 0] == CONVOLUTION else 0, dtype=np.int8)
    columns, back = np.empty(n_columns, dtype=np.float32), np.empty(n_columns, dtype=np.float32)
    maps, frames = np.empty(n_maps, dtype=np.float32), np.empty(n_frames, dtype=np.float32)
    gradient, momentum = np.empty_like(parameters), np.zeros_like(parameters)
    squares = np.zeros(len(parameters) if adamw else 0, dtype=np.float32)
    unchanged = np.empty(0, dtype=np.int16)
    step = 0
    for epoch in range(len(order)):
        for start in range(0, size, batch):
            if step == len(rates):
                return
            k = min(batch, size - start)
            inputs = activations[: k * begins[1]].reshape(k, begins[1])
            for i in range(k):
                change = changes[epoch, start + i] if len(changes) else unchanged
                _load(x, shape, order[epoch, start + i], change, cutout, inputs[i])
            _forward(table, parameters, begins, k, activations, winners, columns, maps, frames)
            logits = activations[k * begins[layers] : k * begins[layers + 1]]
            _loss_gradient(logits.reshape(k, table[layers - 1, 2]), y, order[epoch, start : start + k], smoothing)
            gradients[k * begins[layers] : k * begins[layers + 1]] = logits
            _backward(
                table, parameters, begins, k, activations, gradients, winners, columns, back, maps, frames, gradient
            )  # fmt: skip
            if adamw:
                _adapt(
                    parameters, gradient, momentum, squares, rates[step], decay, beta1, beta2, eps, np.float32(step + 1)
                )  # fmt: skip
            else:
                _descend(parameters, gradient, momentum, rates[step], decay, momentum_share, nesterov)
            step += 1


@_compiled
def _logits(x, table, parameters, batch, out):  # type: ignore[no-untyped-def]
    """Logits of examples x (k, features) into out (k, classes)."""
    begins, n_columns, n_maps, n_frames = _sizes(table)
    layers = len(table)
    activations = np.empty(batch * begins[layers + 1], dtype=np.float32)
    winners = np.empty(len(activations) if table[0, 0] == CONVOLUTION else 0, dtype=np.int8)
    columns, maps = np.empty(n_columns, dtype=np.float32), np.empty(n_maps, dtype=np.float32)
    frames = np.empty(n_frames, dtype=np.float32)
    for start in range(0, len(x), batch):
        k = min(batch, len(x) - start)
        activations[: k * begins[1]] = x[start : start + k].ravel()
        _forward(table, parameters, begins, k, activations, winners, columns, maps, frames)
        out[start : start + k] = activations[k * begins[layers] : k * begins[layers + 1]].reshape(k, out.shape[1])


class CompiledModels:
    """K trained chains.

    Attributes
    ----------
    parameters
        (K, P) float32.
    """

    def __init__(self, chain: Chain, parameters: NDArray[np.float32]) -> None:
        self._chain = chain
        self.parameters = parameters

    @classmethod
    def train(
        cls,
        recipe: Recipe,
        chain: Chain,
        x: NDArray[np.float32],
        y: NDArray[np.int64],
        rows: Sequence[Streams],
        stop: int | None = None,
    ) -> CompiledModels:
        """Train one model per row: x (n, ...) inputs, y (n,) labels; only the first `stop` steps where that is given."""
        shape = x.shape[1:] if x.ndim == 4 else (1, 1, int(np.prod(x.shape[1:])))
        flat = np.ascontiguousarray(x.reshape(len(x), -1))
        numbers = np.array(
            [recipe.momentum, recipe.weight_decay, recipe.label_smoothing, *recipe.betas, recipe.eps], dtype=np.float32
        )
        out = np.empty((len(rows), chain.n_parameters), dtype=np.float32)

        def one(k: int) -> None:
            row, batch = rows[k], min(recipe.batch_size, len(rows[k].members))
            out[k] = chain.first(row.init)
            rates = recipe.rates(recipe.total_steps(len(row.members)))[:stop].astype(np.float32)
            epochs = -(-len(rates) // recipe.steps_per_epoch(len(row.members)))
            seen = recipe.seen_per_epoch(len(row.members))
            order = np.stack([row.epoch()[:seen] for _ in range(epochs)])
            changes = np.empty((0, 0, 0), dtype=np.int16)
            if recipe.augments:
                changes = np.stack([row.changes(recipe, *shape[1:])[:seen] for _ in range(epochs)])
            _train(
                flat, y, shape, chain.table, order, changes, recipe.cutout, batch, rates,
                recipe.optimizer == "adamw", recipe.nesterov, numbers, out[k],
            )  # fmt: skip

        with _one_blas_thread():
            spread(one, range(len(rows)))
        return cls(chain, out)

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of examples (k, ...), as (K, k, classes)."""
        flat = np.ascontiguousarray(x.reshape(len(x), -1))
        out = np.empty((len(self.parameters), len(x), self._chain.layers[-1].n_out), dtype=np.float32)
        table, batch = self._chain.table, min(_EVALUATED, max(len(x), 1))
        with _one_blas_thread():
            spread(lambda k: _logits(flat, table, self.parameters[k], batch, out[k]), range(len(out)))
        return out


def _one_blas_thread() -> AbstractContextManager[Any]:
    """Products of one model are too small to share: threads are for models. numba's products are those of SciPy's BLAS."""
    return _blas().limit(limits=1, user_api="blas")


@functools.cache
def _blas() -> ThreadpoolController:
    """The BLAS libraries of the process; looking for them takes milliseconds."""
    import scipy.linalg.cython_blas  # noqa: F401  (loaded now, or the limit would miss it)

    return ThreadpoolController()
