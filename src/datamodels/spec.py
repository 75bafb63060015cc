"""What a store holds per row: the schema, and the check that values fit it."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError, field_validator

from datamodels.errors import RequestError, RowError, first_line

COMPLETED = "_completed"
CHECKSUM = "_checksum"
LABELS = "_labels"
IDS = {"train": "_ids_train", "test": "_ids_test"}
DESIGN_MASKS = "_design_masks"
MASKS = "masks"
Rows = slice | tuple[int, int] | Sequence[int] | NDArray[Any] | None
"""Which rows: a slice, (start, stop), indices, or a bool mask; None for all."""

_OLD_SPELLINGS = {
    "float": "float64",
    "float_": "float64",
    "int": "int64",
    "int_": "int64",
    "int0": "int64",
    "uint": "uint64",
    "uint0": "uint64",
    "bool8": "bool",
    "bool_": "bool",
    "complex": "complex128",
    "complex_": "complex128",
    "cfloat": "complex128",
    "singlecomplex": "complex64",
    "longfloat": "longdouble",
    "longcomplex": "clongdouble",
    "clongfloat": "clongdouble",
}


def resolve_dtype(name: Any) -> str:
    """The canonical name of a numeric NumPy scalar type, old spellings included."""
    text = _OLD_SPELLINGS.get(name, name) if isinstance(name, str) else ""
    try:
        dtype = np.dtype(text)
    except TypeError:
        dtype = np.dtype(object)
    if not text or dtype.kind not in "biufc" or not dtype.isnative:
        raise ValueError(f"{name!r} is not a numeric NumPy type; legal are names like bool_, uint8, float16, float32")
    return dtype.name


class KeySpec(BaseModel):
    """One key of a store: the shape and type of its value in one row.

    Attributes
    ----------
    shape
        Of the value in one row; () for a number.
    dtype
        A numeric NumPy type by name: ``bool``, ``float16``, ``float32``.
    allow_nonfinite
        Whether NaN and inf are values like others.
    of
        ``train`` says that column j of the value belongs to train example j, so that fits and evaluations leave out the
        models that saw it; ``test`` and None say nothing.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    shape: tuple[Annotated[int, Field(ge=0)], ...]
    dtype: Annotated[str, BeforeValidator(resolve_dtype)]
    allow_nonfinite: bool = False
    of: Literal["train", "test"] | None = None

    @property
    def numpy_dtype(self) -> np.dtype[Any]:
        """`dtype` as NumPy has it."""
        return np.dtype(self.dtype)

    @property
    def row_bytes(self) -> int:
        """Bytes of the value in one row."""
        return prod(self.shape) * self.numpy_dtype.itemsize


class Spec(BaseModel):
    """What a store holds: ``{"num_models": m, "schema": {key: {"shape": [...], "dtype": NAME}}}``.

    Attributes
    ----------
    num_models
        Number of rows.
    fields
        key -> `KeySpec`; ``schema`` in files and when a spec is made.
    """

    model_config = ConfigDict(extra="ignore", frozen=True, populate_by_name=True)

    num_models: Annotated[int, Field(ge=1)]
    fields: dict[str, KeySpec] = Field(alias="schema", min_length=1)

    @field_validator("fields")
    @classmethod
    def _names(cls, fields: dict[str, KeySpec]) -> dict[str, KeySpec]:
        for key in fields:
            if key in (COMPLETED, CHECKSUM, LABELS, DESIGN_MASKS, *IDS.values()):
                raise ValueError(f"the key {key!r} is reserved")
            if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.\-]*", key):
                raise ValueError(f"the key {key!r} cannot name a file; use letters, digits, '_', '-' and '.'")
        return fields

    def to_dict(self) -> dict[str, Any]:
        """What a spec file holds, defaults left out."""
        return {
            "num_models": self.num_models,
            "schema": {
                key: {k: list(v) if k == "shape" else v for k, v in item.model_dump(exclude_defaults=True).items()}
                for key, item in self.fields.items()
            },
        }

    @classmethod
    def read(cls, path: str | Path) -> Spec:
        """Read a spec file (JSON).

        Raises
        ------
        RequestError
            when the file is missing, is not JSON, or is not a spec.
        """
        try:
            data = json.loads(Path(path).read_text())
        except OSError as error:
            raise RequestError(f"cannot read the spec {str(path)!r}: {error.strerror}") from None
        except (ValueError, RecursionError) as error:
            raise RequestError(f"the spec {str(path)!r} is not JSON: {error}") from None
        if not isinstance(data, dict):
            raise RequestError(f'the spec {str(path)!r} is not an object {{"num_models": ..., "schema": ...}}')
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise RequestError(f"the spec {str(path)!r} is wrong: {first_line(error)}") from None


def check_rows(fields: Mapping[str, KeySpec], values: Mapping[str, Any], n_rows: int) -> dict[str, NDArray[Any]]:
    """The values of `n_rows` rows as contiguous arrays of the schema's types.

    Parameters
    ----------
    fields
        The schema.
    values
        key -> array-like (n_rows, *shape).

    Raises
    ------
    RowError
        when keys are missing or unknown, a shape differs, or a value does not survive the type.
        Rounding to a narrower float is fine; overflow, wrap-around, a lost fraction or sign is not,
        nor NaN or inf unless the schema allows them.
    """
    if not isinstance(values, Mapping):
        raise RowError(f"a row is a dict {{key: array}}; got {type(values).__name__}")
    if COMPLETED in values:
        raise RowError(f"the key {COMPLETED!r} is reserved: the store marks a row completed by itself")
    unknown, missing = sorted(set(values) - set(fields)), sorted(set(fields) - set(values))
    if unknown or missing:
        said = [f"unknown {unknown}"] * bool(unknown) + [f"missing {missing}"] * bool(missing)
        raise RowError(f"the row's keys are wrong: {', '.join(said)}; the schema has {sorted(fields)}")
    return {key: _check_column(key, field, values[key], n_rows) for key, field in fields.items()}


def _check_column(key: str, field: KeySpec, value: Any, n_rows: int) -> NDArray[Any]:
    """The values of one key. Items of a list are cast one by one: NumPy would first give them all one
    type, and so change a large integer that stands beside a float."""
    if isinstance(value, list | tuple) and len(value) == n_rows:
        items = [_check_value(key, field, _one(key, item), 1) for item in value]
        return np.concatenate(items) if items else np.empty((0, *field.shape), field.numpy_dtype)
    return _check_value(key, field, value, n_rows)


def _one(key: str, item: Any) -> NDArray[Any]:
    try:
        return np.asarray(item)[None]
    except Exception as error:
        raise RowError(f"{key!r} cannot become an array: {first_line(error)}") from None


def _check_value(key: str, field: KeySpec, value: Any, n_rows: int) -> NDArray[Any]:
    try:
        array = np.asarray(value)
    except Exception as error:
        raise RowError(f"{key!r} cannot become an array: {first_line(error)}") from None
    want = field.numpy_dtype
    if array.dtype.kind not in "biufc":
        raise RowError(f"{key!r} has dtype {array.dtype}; the schema wants {want}")
    if array.shape != (n_rows, *field.shape):
        raise RowError(f"{key!r} has shape {array.shape[1:]} in a row; the schema wants {field.shape}")
    if array.dtype.kind in "fc" and not field.allow_nonfinite and not np.isfinite(array).all():
        raise RowError(
            f'{key!r} holds NaN or inf; set "allow_nonfinite": true for this key in the schema if that is meant'
        )
    with np.errstate(all="ignore"), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what a cast loses is judged below, value by value
        cast = array.astype(want)
        lost = _lost(array, cast)
    if lost is not None:
        raise RowError(f"{key!r} holds {lost}, which does not survive the schema's dtype {want}")
    return np.ascontiguousarray(cast)


def _lost(array: NDArray[Any], cast: NDArray[Any]) -> Any:
    """A value of `array` that `cast` does not stand for, or None."""
    source, target = array.dtype.kind, cast.dtype.kind
    if source == target == "b" or array.dtype == cast.dtype:
        return None
    if source == "c" and target != "c":
        bad = array.imag != 0
        if bad.any():
            return array[bad].flat[0]
        return _lost(array.real, cast)
    if target in "fc":
        bad = np.isfinite(array) & ~np.isfinite(cast)
    else:  # to bool or an integer: the value itself must come back, sign and fraction included
        bad = ~np.isfinite(array) if source == "f" else np.zeros(array.shape, dtype=np.bool_)
        bad |= cast.astype(array.dtype) != array
        if source in "iuf" and target in "iu":
            bad |= (cast < 0) != (array < 0)
            if source == "f":  # the largest integers round up to a float just outside of the range
                bad |= array >= 2.0 ** (8 * cast.dtype.itemsize - (target == "i"))
    return array[bad].flat[0] if bad.any() else None


def rows_named(rows: Rows, count: int) -> NDArray[np.bool_]:
    """Which of `count` rows are meant, bool (count,).

    Raises
    ------
    RequestError
        when some do not exist.
    """
    if isinstance(rows, str | int):
        raise RequestError(f"rows is {rows!r}; give (start, stop), a slice, indices, or a bool mask")
    keep = np.zeros(count, dtype=np.bool_)
    if isinstance(rows, tuple) and len(rows) == 2:
        rows = slice(*rows)
    if isinstance(rows, slice) and (max(rows.start or 0, rows.stop or 0) > count or not range(count)[rows]):
        raise RequestError(
            f"rows {rows.start or 0}:{'' if rows.stop is None else rows.stop} are none, or go beyond the {count} rows that there are"
        )
    try:
        keep[slice(None) if rows is None else rows if isinstance(rows, slice) else np.asarray(rows)] = True
    except IndexError as error:
        raise RequestError(f"rows do not exist: {first_line(error)}") from None
    return keep
