"""Tables: one row per sample, in a file or a data frame."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from datamodels.datasets.base import Dataset
from datamodels.datasets.samples import (
    Missing,
    Unlabelled,
    column,
    dataset_of,
    plain,
    read_table,
    spell,
    without_missing,
)
from datamodels.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

_MOST = 100  # values of a column of text


def from_table(
    source: pd.DataFrame | str | Path,
    label: str,
    *,
    ids: str | None = None,
    hidden: str | None = None,
    groups: str | None = None,
    features: Sequence[str] | None = None,
    obs: Sequence[str] = (),
    missing: Missing = "refuse",
    unlabelled: Unlabelled = "refuse",
    name: str | None = None,
) -> Dataset:
    """Rows of a table; all are training examples, and targets out of mask, see `Dataset`.

    Parameters
    ----------
    source
        A data frame, or a ``.csv``, ``.tsv`` (also ``.gz``) or ``.parquet`` file.
    label
        Column that models are trained on.
    ids
        Column of the names of samples; by default they are numbered, those of a data frame are its index.
    hidden, groups, unlabelled, name
        As in `from_anndata`.
    features
        Columns that models see; by default all that are not named otherwise. Numbers and truth values are features as they are; a column
        of text or categories is one feature ``column=value`` of 0 and 1 per value in sorted order, all of them 0 where it is missing.
    obs
        Columns to keep beside the samples, which no model sees.
    missing
        Numbers that are missing: ``refuse``; ``mean``: the mean of the column over all samples, those that a model does not see
        included; ``subset``: left missing, for `datamodels.training.preparation.Preparation` to fill in the mean of each
        model's own subset.

    Raises
    ------
    RequestError
        when the file cannot be read, a column is not there, or values are not of use.
    """
    if isinstance(source, str | Path):
        options = {
            "label": label, "ids": ids, "hidden": hidden, "groups": groups, "features": features, "obs": obs or None,
            "missing": None if missing == "refuse" else missing, "unlabelled": None if unlabelled == "refuse" else unlabelled,
        }  # fmt: skip
        name = name or spell("table", source, options)
        frame = read_table(source, text=[] if ids is None else [ids])
    else:
        frame = source
    named = {label, ids, hidden, groups, *obs} - {None}
    chosen = [part for part in frame.columns if part not in named] if features is None else list(features)
    if not chosen:
        raise RequestError("the table has no column left for features; name fewer of them otherwise")
    seen = sorted(str(part) for part in named & set(chosen) if part not in obs)
    if seen:
        raise RequestError(f"column {seen[0]!r} is named among features and otherwise; models must not see it")
    names: list[str] = []
    columns: list[NDArray[np.float32]] = []
    for part in chosen:
        made = _encoded(column(frame, part, "the table"), str(part))
        names += made
        columns += made.values()
    return dataset_of(
        name or "table",
        without_missing(np.stack(columns, axis=1), missing, "the table", names),
        frame,
        "the table",
        ids=frame.index if ids is None else column(frame, ids, "the table"),
        feature_names=names,
        label=label,
        hidden=hidden,
        groups=groups,
        obs=obs,
        unlabelled=unlabelled,
    )


def _encoded(values: pd.Series, name: str) -> dict[str, NDArray[np.float32]]:
    """The features that a column becomes, by their names."""
    import pandas as pd

    array = plain(values)
    if array is None:
        raise RequestError(
            f"column {name!r} holds neither numbers nor text; leave it out with features, or keep it in obs"
        )
    if array.dtype.kind != "U" and not isinstance(values.dtype, pd.CategoricalDtype):
        return {name: array.astype(np.float32)}
    kinds = sorted({value for value, lacking in zip(array.tolist(), values.isna(), strict=True) if not lacking})
    if len(kinds) > _MOST:
        raise RequestError(
            f"column {name!r} has {len(kinds)} different texts, too many to be one feature each; if they name samples, "
            f"give ids={name!r}, else keep the column in obs or leave it out with features"
        )
    return {f"{name}={kind}": (array == kind).astype(np.float32) for kind in kinds}
