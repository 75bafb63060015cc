"""Model outputs that datamodels are fitted to."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.errors import RequestError, RowError


def _split(logits: ArrayLike, labels: ArrayLike) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """The logit of the correct class (..., k), and all logits with that one at -inf (..., k, classes)."""
    scores = np.array(logits, dtype=np.float64)
    y = np.asarray(labels)
    if scores.ndim < 2 or y.shape != scores.shape[-2:-1] or y.dtype.kind not in "iu":
        raise RequestError(
            f"logits have shape {scores.shape} and labels {y.shape} of {y.dtype}; they must be (..., k, classes) and integers (k,)"
        )
    if scores.shape[-1] < 2:
        raise RequestError("a margin compares classes: there must be at least two")
    if len(y) and not 0 <= y.min() <= y.max() < scores.shape[-1]:
        raise RequestError(f"labels lie in {y.min()}..{y.max()}; there are {scores.shape[-1]} classes")
    index = np.broadcast_to(y, scores.shape[:-1])[..., None]
    correct = np.take_along_axis(scores, index, -1)[..., 0]
    np.put_along_axis(scores, index, -np.inf, -1)
    return correct, scores


def margins(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Correct-class margin: the logit of the label minus the largest other logit.

    Parameters
    ----------
    logits
        (..., k, classes).
    labels
        (k,) integers.

    Returns
    -------
    (..., k), positive where the prediction is right.

    Raises
    ------
    RequestError
        for shapes or labels that do not go together.
    """
    correct, others = _split(logits, labels)
    return correct - others.max(axis=-1)


def log_odds_margins(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Log-odds margin ``log(p / (1 - p))`` of the label's probability p, ``logit_y - logsumexp of the others``: what TRAK
    differentiates (Park et al. 2023, arXiv:2303.14186).

    Parameters
    ----------
    logits, labels
        As in `margins`; the two agree for two classes.

    Returns
    -------
    (..., k).

    Raises
    ------
    RequestError
        for shapes or labels that do not go together.
    """
    correct, others = _split(logits, labels)
    largest = others.max(axis=-1, keepdims=True)
    return correct - (largest[..., 0] + np.log(np.exp(others - largest).sum(axis=-1)))


def margins_from_proba(proba: ArrayLike, labels: ArrayLike, *, eps: float = 1e-6) -> NDArray[np.float64]:
    """Correct-class margin ``log p_label - max log p_other`` from ``predict_proba``.

    Parameters
    ----------
    proba
        (..., k, classes) probabilities.
    labels
        (k,) integers.
    eps
        Probabilities are clipped to [eps, 1] first, so margins lie within ± log(1/eps).

    Returns
    -------
    (..., k).

    Raises
    ------
    RequestError
        for shapes or labels that do not go together.
    """
    return margins(np.log(np.clip(np.asarray(proba, dtype=np.float64), eps, 1.0)), labels)


def losses(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """Cross-entropy ``-log p`` of the label's probability p, in nats: ``log(1 + exp(-log_odds_margins))``.

    Parameters
    ----------
    logits, labels
        As in `margins`.

    Returns
    -------
    (..., k).

    Raises
    ------
    RequestError
        for shapes or labels that do not go together.
    """
    return np.logaddexp(0.0, -log_odds_margins(logits, labels))


def correct(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.bool_]:
    """Whether the label's logit is larger than every other one: a tie is wrong.

    Parameters
    ----------
    logits, labels
        As in `margins`.

    Returns
    -------
    (..., k), true where the margin is positive.

    Raises
    ------
    RequestError
        for shapes or labels that do not go together.
    """
    chosen, others = _split(logits, labels)
    return chosen > others.max(axis=-1)


def _logits(logits: ArrayLike, labels: ArrayLike) -> NDArray[np.float64]:
    """The logits themselves, (..., k, classes)."""
    return np.asarray(logits, dtype=np.float64)


OUTPUTS: dict[str, Callable[[ArrayLike, ArrayLike], NDArray[Any]]] = {
    "margins": margins,
    "log_odds_margins": log_odds_margins,
    "logits": _logits,
    "losses": losses,
    "correct": correct,
}
"""Outputs by name: functions of logits (..., k, classes) and labels (k,)."""


def check_names(names: Sequence[str]) -> tuple[str, ...]:
    """Names of outputs, each known and given once.

    Raises
    ------
    RequestError
        when they are not.
    """
    if isinstance(names, str) or not names or len(set(names)) < len(names) or not set(names) <= set(OUTPUTS):
        raise RequestError(f"outputs are {names!r}; give a list of names, each at most once, out of {list(OUTPUTS)}")
    return tuple(names)


def outputs_of(names: Sequence[str], logits: ArrayLike, labels: ArrayLike) -> dict[str, NDArray[Any]]:
    """Several outputs of the same logits, by name.

    Parameters
    ----------
    names
        Keys of `OUTPUTS`.
    logits
        (..., k, classes).
    labels
        (k,) integers.

    Returns
    -------
    dict
        name -> (..., k), for ``logits`` (..., k, classes).

    Raises
    ------
    RequestError
        for an unknown name, and for logits and labels that do not go together.
    """
    return {name: OUTPUTS[name](logits, labels) for name in check_names(names)}


def schema_of(
    names: Sequence[str],
    n_examples: int,
    n_classes: int,
    dtype: str = "float32",
    prefix: str = "",
    of: str | None = None,
) -> dict[str, dict[str, Any]]:
    """Schema entries of a store for what `outputs_of` returns for one row.

    Parameters
    ----------
    names
        Keys of `OUTPUTS`.
    n_examples, n_classes
        k and the number of classes.
    dtype
        Of all keys but ``correct``, which is bool. In float16 a value is rounded to 11 bits; the store
        refuses a row with a value beyond ± 65504.
    prefix
        What keys start with, for example ``"train_"``.
    of
        ``"train"`` when example j is train example j, so that fits leave out the models that saw it.

    Returns
    -------
    dict
        ``{prefix + name: {"shape": ..., "dtype": ...}}``, with ``"of"`` when it is given.

    Raises
    ------
    RequestError
        for an unknown name, and for ``logits`` of the train examples: their last axis is the classes
        and not the examples.
    """
    if of == "train" and "logits" in names:
        raise RequestError(
            'logits (k, classes) cannot be recorded of the train examples, since a key that is "of": "train" has '
            "the examples on its last axis; take margins, log_odds_margins, losses or correct"
        )
    return {
        prefix + name: {
            "shape": (n_examples, n_classes) if name == "logits" else (n_examples,),
            "dtype": "bool" if name == "correct" else dtype,
            **({} if of is None else {"of": of}),
        }
        for name in check_names(names)
    }


def schema_of_splits(
    names: Sequence[str], sizes: Mapping[str, int], n_classes: int, dtype: str = "float32"
) -> dict[str, dict[str, Any]]:
    """Schema entries for outputs on the splits ``test`` and ``train``, of so many examples; keys of the latter are ``train_<name>``."""
    out: dict[str, dict[str, Any]] = {}
    for split, size in sizes.items():
        marks = {"prefix": "train_", "of": "train"} if split == "train" else {}
        out |= schema_of(names, size, n_classes, dtype, **marks)
    return out


def outputs_of_splits(
    names: Sequence[str], judged: Mapping[str, tuple[ArrayLike, ArrayLike]]
) -> dict[str, NDArray[Any]]:
    """Outputs by the keys of `schema_of_splits`, from the logits and the labels of each split.

    Raises
    ------
    RowError
        when logits are not finite.
    """
    out: dict[str, NDArray[Any]] = {}
    for split, (logits, labels) in judged.items():
        if not np.isfinite(logits).all():
            raise RowError("the model's logits hold NaN or inf: training has diverged; lower the learning rate")
        prefix = "train_" if split == "train" else ""
        out |= {prefix + name: value for name, value in outputs_of(names, logits, labels).items()}
    return out
