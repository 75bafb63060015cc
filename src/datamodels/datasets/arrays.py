"""Datasets from arrays, and from datasets of Hugging Face."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.datasets.base import Dataset, Split
from datamodels.datasets.pictures import picture_size, scaled, stack
from datamodels.errors import RequestError


def from_arrays(
    name: str,
    x_train: ArrayLike,
    y_train: ArrayLike,
    x_test: ArrayLike | None = None,
    y_test: ArrayLike | None = None,
    *,
    class_names: Sequence[str] | None = None,
    hidden_train: ArrayLike | None = None,
    hidden_test: ArrayLike | None = None,
    hidden_name: str | None = None,
) -> Dataset:
    """A dataset from arrays of any numbers and labels of any kind.

    Parameters
    ----------
    name
        Name of the dataset.
    x_train, x_test
        Features (k, ...). uint8 is read as pixels and divided by 255; uint8 of shape (k, height, width) or
        (k, height, width, 1 or 3) become pictures, x (k, channels, height, width). Other numbers are kept
        as they are, in float32. Without x_test and y_test the test split is empty, see `Dataset`.
    y_train, y_test
        Labels (k,): strings, numbers, truth values. Codes follow their sorted order.
    class_names
        Names of the classes in sorted order of the labels; by default the labels as text. Integers from 0
        to len(class_names) - 1 are the codes themselves, so that a class may lack examples.
    hidden_train, hidden_test
        Labels (k,) that models never see; they become codes and ``hidden_names`` the same way.
    hidden_name
        What the hidden labels are.

    Raises
    ------
    RequestError
        when a feature is NaN or infinite, a label is missing, or only the test split has it.
    """
    if (x_test is None) != (y_test is None):
        raise RequestError("x_test and y_test go together; give both or neither")
    train = feature_array("x_train", x_train)
    test = feature_array("x_test", x_test) if x_test is not None else (train[0][:0], None)
    given = labels_of("y_train", y_train)
    y, labels = codes("y", given, given[:0] if y_test is None else labels_of("y_test", y_test), class_names)
    unseen = sorted(set(y[1].tolist()) - set(y[0].tolist()))
    if unseen:
        raise RequestError(f"y_test has the label {labels[unseen[0]]!r}, which y_train lacks; drop these examples")
    hidden: list[Any] = [None, None]
    hidden_names = None
    if (hidden_test is not None) != (hidden_train is not None and y_test is not None):
        raise RequestError("hidden_train and hidden_test go together; give both or neither")
    if hidden_train is not None:
        given = labels_of("hidden_train", hidden_train)
        others = given[:0] if hidden_test is None else labels_of("hidden_test", hidden_test)
        hidden, hidden_names = codes("hidden", given, others, None)
    return Dataset(
        name,
        Split(train[0], y[0], hidden[0], train[1]),
        Split(test[0], y[1], hidden[1], test[1]),
        labels,
        hidden_name,
        hidden_names,
    )


def from_hf(
    data: Any,
    name: str,
    *,
    image: str | None = None,
    features: str | Sequence[str] | None = None,
    label: str = "label",
    hidden: str | None = None,
    hidden_name: str | None = None,
    size: int | tuple[int, int] | None = None,
) -> Dataset:
    """A dataset from the library `datasets` of Hugging Face.

    Parameters
    ----------
    data
        A ``DatasetDict`` with ``train`` and ``test``, or a pair of ``Dataset``.
    name
        Name of the dataset.
    image
        Column of pictures; by default ``image``.
    features
        Instead of `image`: a column of arrays, or several columns of numbers, which become (k, columns).
        Arrays of uint8 are read as `from_arrays` does.
    label
        Column of labels. Classes are named by its ``ClassLabel``, if it is one, else by its values.
    hidden
        Column of labels that models never see.
    hidden_name
        What the hidden labels are; by default the column's name.
    size
        Pixels that pictures are resized to, one number or (height, width); by default all must agree.

    Raises
    ------
    RequestError
        when a split or a column is not there, or its values do not go together.
    """
    if image is not None and features is not None:
        raise RequestError("image and features are both given; give the one that x is made of")
    if size is not None and features is not None:
        raise RequestError("size is for pictures; features are taken as they are")
    splits = _pair(data)
    columns = [features] if isinstance(features, str) else list(features or [image or "image"])
    for split in splits:
        if not len(split):
            raise RequestError("the dataset has a split without examples; both need some")
        for column in [*columns, label, *([hidden] if hidden else [])]:
            if column not in split.column_names:
                raise RequestError(f"the dataset has no column {column!r}; it has {', '.join(split.column_names)}")
    if features is None:
        x = _pictures(splits, columns[0], picture_size(size))
    else:
        x = [_columns(split, columns) for split in splits]
    names, others = (getattr(split.features[label], "names", None) for split in splits)
    if names != others:
        raise RequestError(f"column {label!r} has the classes {names} in train and {others} in test; they must agree")
    y = [_decoded(split, label) for split in splits]
    kept = [_decoded(split, hidden, named=True) for split in splits] if hidden else [None, None]
    return from_arrays(
        name,
        x[0],
        y[0],
        x[1],
        y[1],
        class_names=names,
        hidden_train=kept[0],
        hidden_test=kept[1],
        hidden_name=hidden_name or hidden,
    )


def feature_array(name: str, values: ArrayLike) -> tuple[NDArray[np.float32], NDArray[np.uint8] | None]:
    """x, and the pictures that it is made of."""
    try:
        array = np.asarray(values)
    except ValueError as error:
        raise RequestError(f"{name} must be one array (k, ...): {error}") from error
    if array.dtype.kind not in "fiub" or array.ndim < 2:
        raise RequestError(f"{name} must be numbers, (k, ...); got {array.dtype} of shape {array.shape}")
    if array.dtype == np.uint8:
        if array.ndim == 4 and array.shape[3] == 1:
            array = array[..., 0]
        if array.ndim == 3 or (array.ndim == 4 and array.shape[3] == 3):
            return scaled(array), array
        return np.divide(array, np.float32(255), dtype=np.float32), None
    with np.errstate(over="ignore"):
        x = array.astype(np.float32)
    for i, row in enumerate(x):
        if not np.isfinite(row).all():
            raise RequestError(
                f"{name} has a value that is NaN or infinite in float32, in example {i}; drop or mend it"
            )
    return x, None


def labels_of(name: str, values: ArrayLike) -> NDArray[Any]:
    array = np.asarray(values)
    if array.ndim != 1:
        raise RequestError(f"{name} must be one label per example, (k,); got shape {array.shape}")
    if not len(array):
        raise RequestError(f"{name} has no examples; both splits need some")
    for i, label in enumerate(array.tolist()):
        if label is None or label != label:
            raise RequestError(f"{name} has no label for example {i}; give every example one")
    return array


def codes(
    name: str, train: NDArray[Any], test: NDArray[Any], names: Sequence[str] | None
) -> tuple[list[NDArray[np.int64]], tuple[str, ...]]:
    """Codes of both splits, and the names of the codes."""
    values = train.tolist() + test.tolist()
    try:
        classes = sorted(set(values))
    except TypeError as error:
        raise RequestError(f"{name} mixes labels that cannot be sorted: {error}; make them all text") from error
    if names is None:
        texts = [str(value) for value in classes]
    else:
        texts = list(names)
        if all(isinstance(value, int) for value in classes) and classes[:1] >= [0] and classes[-1] < len(texts):
            classes = list(range(len(texts)))
        if len(texts) != len(classes):
            raise RequestError(
                f"there are {len(texts)} class_names for {len(classes)} labels, {classes[0]!r} to {classes[-1]!r}; "
                "give one name per label"
            )
    place = {value: code for code, value in enumerate(classes)}
    codes = np.array([place[value] for value in values], np.int64)
    return [codes[: len(train)], codes[len(train) :]], tuple(texts)


def _pair(data: Any) -> tuple[Any, Any]:
    if isinstance(data, Mapping):
        if "train" not in data or "test" not in data:
            raise RequestError(
                f"the DatasetDict has {', '.join(data)}; needed are train and test, or a pair of Dataset"
            )
        return data["train"], data["test"]
    if isinstance(data, (tuple, list)) and len(data) == 2:
        return data[0], data[1]
    raise RequestError(f"got {type(data).__name__}; needed is a DatasetDict with train and test, or a pair of Dataset")


def _pictures(splits: Sequence[Any], column: str, size: tuple[int, int] | None) -> list[NDArray[np.uint8]]:
    """Pictures of both splits, grey or coloured alike."""
    from PIL import Image

    def named() -> Any:
        for part, split in zip(("train", "test"), splits, strict=True):
            for i, row in enumerate(split.select_columns([column]).with_format(None)):
                if not isinstance(row[column], Image.Image):
                    raise RequestError(
                        f"column {column!r} holds {type(row[column]).__name__} in {part} example {i}, not a picture; "
                        f"give arrays as features={column!r}"
                    )
                yield f"{part} example {i}", row[column]

    images = stack(named(), size)
    return [images[: len(splits[0])], images[len(splits[0]) :]]


def _columns(split: Any, columns: Sequence[str]) -> NDArray[Any]:
    rows = split.select_columns(list(columns)).with_format("numpy")[:]
    if len(columns) > 1:
        return np.stack([np.asarray(rows[column]) for column in columns], axis=1)
    values = np.asarray(rows[columns[0]])
    if values.ndim == 1 and values.dtype.kind in "fiub":
        return values[:, None]
    feature = split.features[columns[0]]
    while isinstance(feature, list) or getattr(feature, "feature", None) is not None:
        feature = feature[0] if isinstance(feature, list) else feature.feature
    # The library turns every integer into int64.
    return values.astype(np.uint8) if getattr(feature, "dtype", None) == "uint8" else values


def _decoded(split: Any, column: str, named: bool = False) -> list[Any]:
    """Values of a label column; those of a ``ClassLabel`` as names when asked, and None for its -1, "unknown"."""
    values = list(split.with_format(None)[column])
    names = getattr(split.features[column], "names", None)
    if names is None:
        return values
    return [None if value in (None, -1) else names[value] if named else value for value in values]
