"""What the readers of cells, genotypes and tables share: one row per sample, and named columns beside the features."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args
from urllib.parse import quote

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.datasets.arrays import from_arrays
from datamodels.datasets.base import Dataset
from datamodels.errors import RequestError, first_line

if TYPE_CHECKING:
    import pandas as pd

Missing = Literal["refuse", "mean", "subset"]
Unlabelled = Literal["refuse", "drop"]
INSTALL = "pip install 'datamodels-kit[bio]'"
_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def spell(kind: str, path: str | Path, options: Mapping[str, Any]) -> str:
    """The name ``KIND:PATH?option=value&...`` that `datamodels.datasets.load` reads a file by; options that are None or False
    are left out."""
    if "?" in str(path):
        raise RequestError(
            f"{str(path)!r} has a '?', which begins the options in the name of a dataset; rename the file"
        )
    parts = []
    for name, value in options.items():
        if value is None or value is False:
            continue
        texts = [value] if isinstance(value, str) else ["true"] if value is True else list(value)
        parts.append(f"{name}=" + ",".join(quote(text, safe=" /:+()") for text in texts))
    return f"{kind}:{path}" + ("?" + "&".join(parts) if parts else "")


def read_table(path: str | Path, text: Sequence[str] = ()) -> pd.DataFrame:
    """A ``.csv`` or ``.tsv`` (also ``.gz``) or ``.parquet`` file; columns of `text` are not taken for numbers.

    Raises
    ------
    RequestError
        when it cannot be read as that.
    """
    import pandas as pd

    place = Path(path)
    suffix = Path(place.stem).suffix if place.suffix == ".gz" else place.suffix
    try:
        if suffix in _SEPARATORS:
            return pd.read_csv(place, sep=_SEPARATORS[suffix], dtype=dict.fromkeys(text, str))
        if place.suffix == ".parquet":
            return pd.read_parquet(place, engine="pyarrow")
    except ImportError:
        raise RequestError(f"{str(path)!r} needs pyarrow to be read; {INSTALL}") from None
    except (OSError, ValueError) as error:
        raise RequestError(f"cannot read {str(path)!r} as a table: {first_line(error)}") from None
    raise RequestError(f"{str(path)!r} is no table that is known; legal: .csv, .tsv (also .gz), .parquet")


def column(frame: pd.DataFrame, name: str, where: str) -> pd.Series:
    """A column by its name."""
    if name not in frame.columns:
        raise RequestError(f"{where} has no column {name!r}; it has {', '.join(map(str, frame.columns))}")
    found = frame[name]
    if found.ndim != 1:
        raise RequestError(f"{where} has more than one column {name!r}; name columns differently")
    return found


def plain(values: pd.Series) -> NDArray[Any] | None:
    """Numbers, truth values or text of a column as an array, missing ones NaN or ''; None when it holds anything else."""
    import pandas as pd

    if isinstance(values.dtype, pd.CategoricalDtype):
        values = values.astype(values.cat.categories.dtype if not values.isna().any() else object)
    if pd.api.types.is_bool_dtype(values.dtype) and not values.isna().any():
        return values.to_numpy(dtype=np.bool_)
    if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_complex_dtype(values.dtype):
        return values.to_numpy(dtype=np.float64, na_value=np.nan) if values.isna().any() else values.to_numpy()
    known = values[values.notna()].tolist()
    if all(isinstance(value, str) for value in known):
        return np.array(["" if lacking else value for value, lacking in zip(values, values.isna(), strict=True)], str)
    if all(isinstance(value, bool | int | float | np.number) for value in known):
        return pd.to_numeric(values).to_numpy(dtype=np.float64, na_value=np.nan)
    return None


def _categories(values: pd.Series, what: str) -> list[Any]:
    """The values of a column of classes, None where one is missing."""
    array = plain(values)
    if array is None:
        kinds = sorted({type(value).__name__ for value in values[values.notna()]})
        raise RequestError(
            f"{what} holds {', '.join(kinds)}; classes are text, integers or truth values, one kind of them"
        )
    lacking = values.isna().to_numpy()
    if array.dtype.kind == "f":
        if (array[~lacking] % 1 != 0).any():
            raise RequestError(
                f"{what} holds numbers like {array[~lacking][array[~lacking] % 1 != 0][0]:g}: models tell classes apart, so cut "
                "it into classes first"
            )
        array = np.where(lacking, 0, array).astype(np.int64)
    return [None if none else value for value, none in zip(array.tolist(), lacking, strict=True)]


def without_missing(x: NDArray[np.float32], missing: Missing, what: str, names: Sequence[str]) -> NDArray[np.float32]:
    """Features (k, p) with NaN filled as `missing` says: ``mean`` of the feature over all samples, ``subset`` leaves them."""
    if missing not in get_args(Missing):
        raise RequestError(f"missing is {missing!r}; legal: {', '.join(get_args(Missing))}")
    if np.isinf(x).any():
        raise RequestError(f"{what} has an infinite value, in example {np.argwhere(np.isinf(x))[0][0]}; mend it")
    lacking = np.isnan(x)
    if missing == "subset" or not lacking.any():
        return x
    if missing == "refuse":
        example, feature = np.argwhere(lacking)[0]
        raise RequestError(
            f"{what} has {lacking.sum()} missing values, the first in example {example}, feature {names[feature]!r}; give "
            "missing='mean' to fill in the mean of all samples, or missing='subset' and Preparation(impute=True) for that "
            "of each model's own subset"
        )
    means = np.where(lacking, 0, x).sum(axis=0, dtype=np.float64) / np.maximum((~lacking).sum(axis=0), 1)
    return np.where(lacking, means, x).astype(np.float32)


def dataset_of(
    name: str,
    x: NDArray[np.float32],
    facts: pd.DataFrame,
    where: str,
    *,
    ids: ArrayLike,
    feature_names: Sequence[str] | None,
    label: str,
    hidden: str | None,
    groups: str | None,
    obs: Sequence[str] | None,
    unlabelled: Unlabelled,
) -> Dataset:
    """A dataset without a test split: all samples are training examples, and targets out of mask.

    Parameters
    ----------
    facts
        Columns of the samples, in the order of x (k, p).
    where
        What `facts` is, for errors.
    obs
        Columns to keep; by default all others that are numbers, truth values or text.
    """
    if unlabelled not in get_args(Unlabelled):
        raise RequestError(f"unlabelled is {unlabelled!r}; legal: {', '.join(get_args(Unlabelled))}")
    if not x.shape[1]:
        raise RequestError("there are no features, and models need some: the matrix has shape " + str(x.shape))
    lacking = column(facts, label, where).isna().to_numpy()
    identities = np.asarray(ids, dtype=str)
    if lacking.any() and unlabelled == "refuse":
        raise RequestError(
            f"{lacking.sum()} of {len(lacking)} samples have no {label!r}, the first is {str(identities[lacking][0])!r}; give "
            "unlabelled='drop' to leave them out"
        )
    if lacking.any():
        x, facts, identities = x[~lacking], facts[~lacking], identities[~lacking]
    if not len(facts):
        raise RequestError(f"no sample of {where} has a {label!r}; models need some")
    known, counts = np.unique(identities, return_counts=True)
    if counts.max() > 1:
        raise RequestError(
            f"{counts.max()} samples are called {str(known[counts.argmax()])!r}; samples are found by their names, so give each its own "
            "(of an AnnData: adata.obs_names_make_unique())"
        )
    columns = {part: column(facts, part, where) for part in (hidden, groups) if part is not None}
    for part, values in columns.items():
        if values.isna().any():
            first = str(identities[values.isna().to_numpy()][0])
            raise RequestError(f"sample {first!r} has no {part!r}; give every sample one, or drop it")
    y = _categories(column(facts, label, where), f"{where}, column {label!r},")
    if len(set(y)) < 2:
        raise RequestError(f"all samples have the {label!r} {y[0]!r}; a margin compares classes, so there must be two")
    made = from_arrays(
        name,
        x[:, :0],
        y,
        hidden_train=None if hidden is None else _categories(columns[hidden], f"{where}, column {hidden!r},"),
        hidden_name=hidden,
    )
    train = replace(
        made.train,
        x=x,
        ids=identities,
        groups=None if groups is None else np.array(_categories(columns[groups], f"{where}, column {groups!r},")),
        obs=_kept(facts, where, obs, {label, hidden, groups}),
    )
    return replace(
        made, train=train, test=train.take([]), feature_names=None if feature_names is None else tuple(feature_names)
    )


def _kept(facts: pd.DataFrame, where: str, obs: Sequence[str] | None, used: set[str | None]) -> dict[str, NDArray[Any]]:
    wanted = [name for name in map(str, facts.columns) if name not in used] if obs is None else list(obs)
    out: dict[str, NDArray[Any]] = {}
    for name in wanted:
        values = plain(column(facts, name, where))
        if values is not None:
            out[name] = values
        elif obs is not None:
            raise RequestError(f"{where}, column {name!r}, holds neither numbers nor text; leave it out of obs")
    return out
