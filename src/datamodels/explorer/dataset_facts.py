"""What the explorer's first view needs of a dataset, kept so that the dataset itself is loaded when an example is looked at."""

from __future__ import annotations

import uuid
from pathlib import Path
from typing import Any, Literal
from urllib.parse import unquote

import numpy as np
from numpy.typing import NDArray

from datamodels import datasets
from datamodels.datasets import Dataset, Split
from datamodels.explorer.cache import file_identity
from datamodels.explorer.columns import Column, category, column_of

SplitName = Literal["train", "test"]
LEARNED = "label that models are trained on"
OF_DATASET = "given with the dataset"


def is_code(name: str) -> bool:
    """Whether a dataset is named as PKG.MODULE:FUNCTION, with or without sizes."""
    return ":" in name and not datasets.is_file(name)


def identity(name: str) -> list[Any]:
    """What the content of a named dataset depends on, as far as it can be told without loading it; code is new each time."""
    if is_code(name):
        return [name, uuid.uuid4().hex]
    if not datasets.is_file(name):
        return [name]
    place, _, query = name.partition(":")[2].partition("?")
    path = Path(place)
    tables = [Path(unquote(part.removeprefix("table="))) for part in query.split("&") if part.startswith("table=")]
    found = [*sorted(path.parent.glob(f"{path.name}*")), *tables]
    return [name, *(file_identity(one, one.name) for one in found if one.is_file())]


def describe(data: Dataset) -> dict[str, Any]:
    """Looks, names and columns of both splits, JSON-ready."""
    return {"features": data.feature_names, "train": _split(data, data.train), "test": _split(data, data.test)}


def _split(data: Dataset, split: Split) -> dict[str, Any]:
    return {
        "size": len(split),
        "kind": "rows" if split.images is None else "images",
        "picture": None if split.images is None else list(split.images.shape[1:3]),
        "n_features": split.flat.shape[1],
        "ids": None if split.ids is None else split.ids.tolist(),
        "columns": [
            {**column.about(), "dtype": str(column.values.dtype), "values": column.values.tolist()}
            for column in _columns(data, split)
        ],
    }


def _columns(data: Dataset, split: Split) -> list[Column]:
    out: list[Column] = []
    if split.hidden is not None:
        name, text = data.hidden_name or "hidden label", "label that no model has seen"
        if data.hidden_names is not None:
            out.append(category(name, split.hidden, data.hidden_names, text))
        else:
            plain = split.hidden if split.hidden.dtype.kind == "f" else split.hidden.astype(str)
            out.append(column_of(name, plain, text))
    out.append(category("class", split.y, data.class_names, LEARNED))
    if split.groups is not None:
        out.append(column_of("group", split.groups.astype(str), "donor, family or batch"))
    return out + [column_of(name, values, OF_DATASET) for name, values in split.obs.items()]


def columns_from(found: dict[str, Any], index: NDArray[np.int64]) -> list[Column]:
    """The columns of what `describe` found of a split, at some of its examples."""
    return [
        Column(
            about["name"],
            np.asarray(about["values"], dtype=about["dtype"])[index],
            about["description"],
            tuple(about["categories"]) if "categories" in about else None,
        )
        for about in found["columns"]
    ]
