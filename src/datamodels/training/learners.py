"""Tasks out of learners of other libraries: scikit-learn, XGBoost, PyTorch, Hugging Face transformers.

Each function here returns a `LearnerTask`, which knows the schema of the store that it fills::

    task = estimator_task(lambda: LogisticRegression(max_iter=500), x_train, y_train, x_test, y_test)
    store = Store.open_or_create("runs/a", schema=task.schema, design=Design(n_train=len(x_train), alpha=0.5, n_models=200))
    train(store, task)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.errors import RequestError, RowError
from datamodels.training.learner_kinds import (
    EstimatorLearner,
    FunctionLearner,
    TransformerLearner,
    add_to_digest,
    as_array,
    chosen,
    class_numbers,
    features_of,
    lengths,
)
from datamodels.training.outputs import check_names, outputs_of_splits, schema_of_splits


class Learner(Protocol):
    """What a `LearnerTask` fits: examples and labels in, logits out."""

    def scores(self, x: Any, y: NDArray[np.int64], evaluated: list[Any], rng: np.random.Generator) -> list[Any]:
        """Fit to x (s, ...) and y (s,); logits (k, classes) for each x (k, ...) of `evaluated`."""

    @property
    def code(self) -> str:
        """What tells the learner from others, the same in every process."""


@dataclass(frozen=True, eq=False)
class LearnerTask:
    """A task for `train`: fits a learner to the row's subset and records outputs. Made by the functions below.

    Attributes
    ----------
    learner
        What is fitted.
    x, x_test
        (n, ...) and (k, ...) features, or dicts of them.
    y, y_test
        (n,) and (k,) labels as integers 0..n_classes-1.
    n_classes
        How many classes there are.
    outputs
        Names of `datamodels.training.outputs.OUTPUTS`.
    splits
        ``"test"``: keys are named as the outputs. ``"train"``: keys ``train_<name>``, ``"of": "train"``.
    dtype
        Of the keys in the store, but ``correct``.

    Raises
    ------
    RequestError
        when features, labels and outputs do not go together.
    """

    learner: Learner
    x: Any = field(repr=False)
    y: NDArray[np.int64] = field(repr=False)
    x_test: Any = field(repr=False)
    y_test: NDArray[np.int64] = field(repr=False)
    n_classes: int
    outputs: tuple[str, ...]
    splits: tuple[str, ...]
    dtype: str

    def __post_init__(self) -> None:
        for name, x, y in (("train", self.x, self.y), ("test", self.x_test, self.y_test)):
            if {*lengths(x)} != {len(y)} or (not len(y) and name in ("train", *self.splits)):
                raise RequestError(f"the {name} features are of {lengths(x)} examples and the labels of {len(y)}")
        if self.n_classes < 2:
            raise RequestError("all labels are the same; a margin compares classes, so there must be at least two")
        _ = self.schema  # raises for what cannot be recorded

    @property
    def schema(self) -> dict[str, dict[str, Any]]:
        """What `Store.create` needs to know of the keys that a row fills."""
        sizes = {part: len(self._labels(part)) for part in self.splits}
        return schema_of_splits(self.outputs, sizes, self.n_classes, self.dtype)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n_train,) of the training examples, as integers."""
        return self.y

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs of this machine that rows are trained on, one per worker, as far as the learner says so."""
        return getattr(self.learner, "gpus", ())

    def _labels(self, part: str) -> NDArray[np.int64]:
        return self.y if part == "train" else self.y_test

    @property
    def fingerprint(self) -> str:
        """A hash of learner, data and options: another one means that rows come from another task."""
        digest = hashlib.sha256(repr((self.learner.code, self.outputs, self.splits, self.dtype)).encode())
        for value in (self.x, self.y, self.x_test, self.y_test):
            add_to_digest(digest, value)
        return digest.hexdigest()[:16]

    def __call__(self, mask: NDArray[np.bool_], rng: np.random.Generator) -> dict[str, NDArray[Any]]:
        if len(mask) != len(self.y):
            raise RequestError(
                f"the mask is of {len(mask)} train examples and the task has {len(self.y)}; "
                f"make the store with Design(n_train={len(self.y)}, ...)"
            )
        if not mask.any():
            raise RowError("the row's subset is empty; raise alpha")
        evaluated = [self.x if part == "train" else self.x_test for part in self.splits]
        scores = self.learner.scores(chosen(self.x, mask), self.y[mask], evaluated, rng)
        parts = zip(self.splits, scores, strict=True)
        return outputs_of_splits(self.outputs, {part: (as_array(given), self._labels(part)) for part, given in parts})


def estimator_task(
    make: Callable[[], Any],
    x: Any,
    y: ArrayLike,
    x_test: Any = None,
    y_test: ArrayLike | None = None,
    *,
    outputs: Sequence[str] = ("margins",),
    splits: Sequence[str] = ("test",),
    eps: float = 1e-6,
    dtype: str = "float32",
) -> LearnerTask:
    """A task out of a classifier with the methods of scikit-learn: its own, XGBoost's, and those of others.

    The logits of an example are the logarithms of ``predict_proba``, clipped to [eps, 1]; without that
    method the columns of ``decision_function``, for two classes (-d/2, d/2), so that the margin is ± d.

    A class that the subset lacks gets probability 0, so the logit log(eps); with ``decision_function``
    it gets log(eps) below the example's smallest logit. A subset of one class is not fitted: its model
    says that class with probability 1. An estimator that refuses labels (XGBoost takes 0..c-1 only) is
    given the codes 0..c-1 of the classes in its subset.

    The estimator sees its subset and nothing else, so a pipeline of it, ``make_pipeline(SimpleImputer(), SelectKBest(k=100),
    StandardScaler(), LogisticRegression())``, chooses and scales features without leakage from examples that it is judged on.

    Parameters
    ----------
    make
        Makes an estimator, unfitted: ``lambda: RandomForestClassifier(200)``. Its ``random_state``, and
        those of its parts, are drawn from the row's generator.
    x, x_test
        (n, ...) and (k, ...): arrays, sparse matrices or data frames. Without test examples, splits are ``("train",)``: each
        example is a target of the models that did not see it.
    y, y_test
        (n,) and (k,) labels of any kind that sorts.
    outputs
        Names of `datamodels.training.outputs.OUTPUTS`.
    splits
        ``("test",)``, ``("train",)`` or both; keys of the train examples are ``train_<name>``.
    eps
        0 < eps < 1/2.
    dtype
        Of the keys in the store, but ``correct``.

    Raises
    ------
    RequestError
        when arguments do not go together.
    """
    from sklearn.base import RegressorMixin

    made = make() if callable(make) else None
    if not hasattr(made, "fit"):
        raise RequestError(f"make is {make!r}; give a function that makes an estimator: lambda: LogisticRegression()")
    if isinstance(made, RegressorMixin):
        raise RequestError(
            f"{type(made).__name__} is a regressor, and estimator_task is for classifiers: write a task that returns its predictions "
            "(docs/how-to/scikit-learn.md)"
        )
    if not 0 < eps < 0.5:
        raise RequestError(f"eps is {eps}; give a probability above 0 and below 1/2, for example 1e-6")
    x, x_test, labels, test = _with_test(x, y, x_test, y_test, splits)
    if labels.ndim != 1 or test.ndim != 1:
        raise RequestError(f"y is {labels.shape} and y_test {test.shape}; give one label per example, (n,) and (k,)")
    classes, codes = np.unique(labels, return_inverse=True)
    unknown = sorted({*test.tolist()} - {*classes.tolist()})
    if unknown:
        raise RequestError(f"y_test has the labels {unknown[:5]}, which y lacks")
    return LearnerTask(
        learner=EstimatorLearner(make, classes, eps),
        x=x,
        y=codes.astype(np.int64),
        x_test=x_test,
        y_test=np.searchsorted(classes, test).astype(np.int64),
        n_classes=len(classes),
        outputs=check_names(outputs),
        splits=_check_parts(splits),
        dtype=dtype,
    )


def function_task(
    fit_and_score: Callable[[Any, NDArray[np.int64], Any, np.random.Generator], Any],
    x: Any,
    y: ArrayLike,
    x_test: Any,
    y_test: ArrayLike,
    *,
    outputs: Sequence[str] = ("margins",),
    splits: Sequence[str] = ("test",),
    dtype: str = "float32",
) -> LearnerTask:
    """A task out of a function that trains and scores: PyTorch, or anything else.

        import torch

        def fit_and_score(x, y, x_eval, rng):
            torch.manual_seed(int(rng.integers(2**63)))  # the row's own initial weights
            model = torch.nn.Sequential(torch.nn.Linear(x.shape[1], 16), torch.nn.ReLU(), torch.nn.Linear(16, 2))
            optimizer = torch.optim.AdamW(model.parameters(), lr=0.02)
            for _ in range(60):
                loss = torch.nn.functional.cross_entropy(model(torch.as_tensor(x)), torch.as_tensor(y))
                optimizer.zero_grad()
                loss.backward()
                optimizer.step()
            return model(torch.as_tensor(x_eval))

        task = function_task(fit_and_score, x_train, y_train, x_test, y_test)

    Parameters
    ----------
    fit_and_score
        Takes the subset's x (s, ...) and y (s,), the examples to score (k, ...) and the row's generator;
        returns logits (k, classes), an array or a tensor on any device. All that is random in it comes
        from the generator, so that a row is the same wherever it runs.
    x, x_test
        (n, ...) and (k, ...) arrays or tensors.
    y, y_test
        (n,) and (k,) integers from 0; the largest says how many classes there are.
    outputs, splits, dtype
        As in `estimator_task`. With both parts, the function scores the test examples and then the
        train examples in one call.

    Raises
    ------
    RequestError
        when arguments do not go together.
    """
    labels, test, n_classes = class_numbers(y, y_test)
    return LearnerTask(
        learner=FunctionLearner(fit_and_score),
        x=features_of(x),
        y=labels,
        x_test=features_of(x_test),
        y_test=test,
        n_classes=n_classes,
        outputs=check_names(outputs),
        splits=_check_parts(splits),
        dtype=dtype,
    )


def hf_task(
    make_model: Callable[[], Any],
    train_features: Mapping[str, Any],
    y: ArrayLike,
    test_features: Mapping[str, Any],
    y_test: ArrayLike,
    *,
    epochs: int,
    batch_size: int,
    lr: float,
    weight_decay: float = 0.0,
    device: str = "auto",
    outputs: Sequence[str] = ("margins",),
    splits: Sequence[str] = ("test",),
    dtype: str = "float32",
) -> LearnerTask:
    """A task out of a classifier of Hugging Face transformers, trained from `make_model`'s weights.

    AdamW with a rate that falls linearly to 0, batches in a new order every epoch; scored in eval mode.
    What the model draws at random (a head's weights, dropout) comes from PyTorch's generator, seeded
    from the row's and put back afterwards.

    Parameters
    ----------
    make_model
        Makes a model: ``lambda: AutoModelForSequenceClassification.from_pretrained("...", num_labels=2)``.
        Called with ``**batch, labels=...`` it returns an object with ``loss`` and ``logits``.
    train_features, test_features
        What a tokenizer or image processor returns, padded: name -> (n, ...) and (k, ...), for example
        ``input_ids`` and ``attention_mask``, or ``pixel_values``; without labels.
    y, y_test
        (n,) and (k,) integers from 0; the largest says how many classes there are.
    epochs, batch_size, lr, weight_decay
        The recipe; examples are scored in batches of `batch_size` too.
    device
        ``"cpu"``, ``"cuda"`` and the like, or ``"auto"``: CUDA where there is one. On a GPU a row that is
        trained again differs by rounding.
    outputs, splits, dtype
        As in `estimator_task`.

    Raises
    ------
    RequestError
        when arguments do not go together.
    """
    if not callable(make_model):
        raise RequestError(
            "make_model is no function; give one that makes a model: lambda: Auto...from_pretrained(...)"
        )
    if epochs < 1 or batch_size < 1 or lr <= 0 or weight_decay < 0:
        raise RequestError(
            f"epochs={epochs}, batch_size={batch_size}, lr={lr}, weight_decay={weight_decay}; "
            "give at least 1 epoch and 1 example per batch, lr above 0 and weight_decay of 0 or more"
        )
    train, test = ({name: features_of(x) for name, x in given.items()} for given in (train_features, test_features))
    if set(train) != set(test) or "labels" in train or not train:
        raise RequestError(
            f"train_features has {sorted(train)} and test_features {sorted(test)}; "
            "give the same names in both, without 'labels', which go as y and y_test"
        )
    labels, test_labels, n_classes = class_numbers(y, y_test)
    return LearnerTask(
        learner=TransformerLearner(make_model, epochs, batch_size, lr, weight_decay, device),
        x=train,
        y=labels,
        x_test=test,
        y_test=test_labels,
        n_classes=n_classes,
        outputs=check_names(outputs),
        splits=_check_parts(splits),
        dtype=dtype,
    )


def _check_parts(splits: Sequence[str]) -> tuple[str, ...]:
    if tuple(splits) not in (("test",), ("train",), ("test", "train"), ("train", "test")):
        raise RequestError(f"splits are {splits!r}; give ('test',), ('train',) or ('test', 'train')")
    return tuple(splits)


def _with_test(
    x: Any, y: ArrayLike, x_test: Any, y_test: ArrayLike | None, splits: Sequence[str]
) -> tuple[Any, Any, NDArray[Any], NDArray[Any]]:
    """Features and labels of both splits; the test split is empty when it is not given."""
    if (x_test is None) != (y_test is None):
        raise RequestError("x_test and y_test go together; give both or neither")
    x, labels = features_of(x), np.asarray(y)
    if y_test is not None:
        return x, features_of(x_test), labels, np.asarray(y_test)
    if "test" in splits:
        raise RequestError(
            "there are no test examples; give them, or splits=('train',) to judge each example out of mask"
        )
    return x, x[:0], labels, labels[:0]
