"""Training parameters per row.

A `Sweep` is a small immutable value like a `Design`. `at(i)` is a pure function of (sweep, i): every
machine, process and order of calls gives the same values, so a row's parameters can be told anywhere.

Only raw 64-bit words of `numpy.random.Philox`, integer and IEEE arithmetic, and `decimal` (whose exp
and ln are exact to the last digit by definition, unlike those of a C library) are used to draw them.
"""

from __future__ import annotations

import copy
import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY
from decimal import ROUND_HALF_EVEN, Context, Decimal, localcontext
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import ConfigDict, field_validator, model_validator
from pydantic.dataclasses import dataclass

from datamodels.errors import RequestError, first_line, refusing
from datamodels.files import read_yaml

Kind = Literal["grid", "random"]

PREFIX = "param_"
_STREAM = 1 << 20  # a design numbers its streams from 0
_RANGE = "{'low': a, 'high': b}, with 'log': true or 'integer': true if that is meant"


@refusing
@dataclass(frozen=True, config=ConfigDict(extra="forbid"))
class Sweep:
    """How the training parameters of each model are chosen.

    With a `Design` whose ``replicates`` equal the size of a grid, every subset meets every setting:
    row i has subset ``i // size`` and setting ``i % size``. With ``replicates=1`` each subset meets one.

    Parameters
    ----------
    parameters
        name -> a list of values: numbers, strings, bools, None, or lists of these. For ``random`` also
        a range ``{"low": a, "high": b}``, drawn evenly from a to b, evenly in the logarithm with
        ``"log": True``, and as an integer, b included, with ``"integer": True``.
    kind
        ``grid``: row i has setting ``i % size`` of all combinations, the first parameter varies slowest.
        ``random``: each parameter of each row is drawn by itself.
    seed
        Any integer ≥ 0, for ``random``. Sweeps of other seeds are independent of each other, and of
        any `Design`.

    Raises
    ------
    RequestError
        when the parameters do not go together.
    """

    parameters: dict[str, Any]
    _: KW_ONLY
    kind: Kind = "grid"
    seed: int = 0

    @field_validator("parameters", mode="before")
    @classmethod
    def _normalise(cls, given: Any) -> dict[str, Any]:
        if not isinstance(given, Mapping) or not given:
            raise ValueError(f"parameters are {given!r}; give a dict of names and lists of values")
        for name in given:
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z0-9_.\-]+", name):
                raise ValueError(f"the parameter {name!r} cannot name a file; use letters, digits, '_', '-' and '.'")
        return {name: _range(name, v) if isinstance(v, Mapping) else _values(name, v) for name, v in given.items()}

    @model_validator(mode="after")
    def _check(self) -> Sweep:
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if self.kind == "grid":
            if self.seed:
                raise ValueError(f"seed is {self.seed}, and a grid draws nothing: leave it out, or use kind 'random'")
            ranges = [name for name, values in self.parameters.items() if isinstance(values, dict)]
            if ranges:
                raise ValueError(
                    f"{ranges[0]!r} is a range; a grid needs a list of values (kind 'random' takes ranges)"
                )
        return self

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sweep) and self.identity == other.identity

    def __hash__(self) -> int:
        return hash(self.identity)

    @property
    def size(self) -> int | None:
        """Number of settings of a grid; None for ``random``, which has no end of them."""
        return math.prod(len(values) for values in self.parameters.values()) if self.kind == "grid" else None

    def at(self, i: int) -> dict[str, Any]:
        """The parameters of row i, name -> value.

        Raises
        ------
        IndexError
            when i is negative.
        """
        return {name: copy.deepcopy(value) for name, (value, _) in self._draw(i).items()}

    @property
    def schema(self) -> dict[str, dict[str, Any]]:
        """The keys that a store of this sweep has, ``param_<name>``: float64, int64 or bool by the values,
        and for values that are no numbers the int64 position in the list of values."""
        dtypes = {name: _numeric_dtype(values) or "int64" for name, values in self.parameters.items()}
        return {PREFIX + name: {"shape": (), "dtype": dtype} for name, dtype in dtypes.items()}

    def keys_of(self, rows: Sequence[int] | NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """What the keys of `schema` hold in `rows`, (k,) indices: key -> (k,)."""
        drawn = [self._draw(int(row)) for row in rows]
        out = {}
        for name, values in self.parameters.items():
            dtype = _numeric_dtype(values)
            out[PREFIX + name] = np.array([one[name][dtype is None] for one in drawn], dtype=dtype or "int64")
        return out

    def columns(self, start: int, stop: int) -> dict[str, NDArray[Any]]:
        """The parameters of rows start..stop-1, name -> (stop - start,): float64, int64, bool, or object."""
        settings = [self.at(i) for i in range(start, stop)]
        out: dict[str, NDArray[Any]] = {}
        for name, values in self.parameters.items():
            out[name] = np.empty(len(settings), dtype=_numeric_dtype(values) or object)
            for i, setting in enumerate(settings):
                out[name][i] = setting[name]
        return out

    def _draw(self, i: int) -> dict[str, tuple[Any, int]]:
        """Per parameter its value in row i and the position in the list of values (0 in a range)."""
        if i < 0:
            raise IndexError(f"row {i} does not exist; rows start at 0")
        if self.kind == "random":
            sequence = np.random.SeedSequence(self.seed, spawn_key=(_STREAM, i))
            words = np.random.Philox(sequence).random_raw(len(self.parameters)).tolist()
            return {name: _pick(v, word) for (name, v), word in zip(self.parameters.items(), words, strict=True)}
        out = {}
        for name, values in reversed(self.parameters.items()):
            i, position = divmod(i, len(values))
            out[name] = (values[position], position)
        return {name: out[name] for name in self.parameters}

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description."""
        out: dict[str, Any] = {"parameters": copy.deepcopy(self.parameters), "kind": self.kind}
        return out if self.kind == "grid" else {**out, "seed": self.seed}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Sweep:
        """Rebuild what `to_dict` described."""
        return cls(**data)

    @classmethod
    def read(cls, path: str | Path) -> Sweep:
        """Read a sweep file, YAML or JSON: ``{"parameters": {...}, "kind": ..., "seed": ...}``.

        Raises
        ------
        RequestError
            when the file is missing, is not YAML, or is not a sweep.
        """
        data = read_yaml(path)
        if not set(data) <= {"parameters", "kind", "seed"} or "parameters" not in data:
            raise RequestError(f"the sweep {str(path)!r} must have 'parameters', and may have 'kind' and 'seed'")
        try:
            return cls.from_dict(data)
        except ValueError as error:
            raise RequestError(f"the sweep {str(path)!r}: {first_line(error)}") from None

    @property
    def identity(self) -> str:
        """A hash of everything, the order of parameters included: equal identities give equal rows."""
        names = list(self.parameters)
        return hashlib.sha256(json.dumps([self.to_dict(), names], sort_keys=True).encode()).hexdigest()


def _values(name: str, given: Any) -> list[Any]:
    """A list of values, tuples and arrays made lists."""
    values = _plain(name, given)
    if not isinstance(values, list) or not values:
        raise ValueError(f"{name!r} is {given!r}; give a list of at least one value, or for kind 'random' {_RANGE}")
    texts = [json.dumps(value) for value in values]
    twice = [text for text in texts if texts.count(text) > 1]
    if twice:
        raise ValueError(f"{name!r} has {twice[0]} twice; give each value once")
    return values


def _plain(name: str, value: Any) -> Any:
    """The value as JSON knows it."""
    if isinstance(value, np.ndarray | np.generic):
        value = value.tolist()
    if isinstance(value, list | tuple):
        return [_plain(name, item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError(f"{name!r} holds {value}; values must be finite")
    if value is not None and type(value) not in (bool, int, float, str):
        raise ValueError(
            f"{name!r} holds {value!r} of type {type(value).__name__}; legal are numbers, strings, bools, None and "
            "lists of these"
        )
    return value


def _range(name: str, given: Mapping[Any, Any]) -> dict[str, Any]:
    """A range in its one spelling: what is false is left out."""
    bounds = [_plain(name, given.get(end)) for end in ("low", "high")]
    flags = {flag: given.get(flag, False) for flag in ("log", "integer")}
    known = set(given) <= {"low", "high", *flags} and all(isinstance(flag, bool) for flag in flags.values())
    if not known or any(type(bound) not in (int, float) or abs(bound) > 1e300 for bound in bounds):
        raise ValueError(f"the range of {name!r} is {dict(given)!r}; give {_RANGE}")
    low, high = bounds if flags["integer"] else map(float, bounds)
    if flags["integer"] and not all(type(bound) is int and abs(bound) < 2**63 for bound in bounds):
        raise ValueError(f"{name!r} is drawn as an integer from {low!r} to {high!r}; give integers of 64 bits")
    if not low < high:
        raise ValueError(f"{name!r} has the range {low!r} to {high!r}; low must be below high")
    if flags["log"] and low <= 0:
        raise ValueError(f"{name!r} has low {low!r}; with 'log' it must be above 0")
    return {"low": low, "high": high, **{flag: True for flag, on in flags.items() if on}}


def _pick(values: list[Any] | dict[str, Any], word: int) -> tuple[Any, int]:
    """The value that a 64-bit word stands for, and its position in a list."""
    if isinstance(values, list):
        position = word * len(values) >> 64
        return values[position], position
    low, high, integer = values["low"], values["high"], values.get("integer", False)
    if not values.get("log", False):
        return (low + (word * (high - low + 1) >> 64) if integer else low + (high - low) * ((word >> 11) / 2**53)), 0
    with localcontext(Context(prec=30, rounding=ROUND_HALF_EVEN)):
        ratio = Decimal(high + 1 if integer else high) / Decimal(low)
        drawn = Decimal(low) * (ratio.ln() * word / 2**64).exp()
    return min(high, max(low, int(drawn) if integer else float(drawn))), 0


def _numeric_dtype(values: list[Any] | dict[str, Any]) -> str | None:
    """The type of numbers or of bools that all values have; None when they are not all such."""
    if isinstance(values, dict):
        return "int64" if values.get("integer", False) else "float64"
    types = {type(value) for value in values}
    if types == {bool}:
        return "bool"
    if types <= {int, float} and all(isinstance(value, float) or abs(value) < 2**63 for value in values):
        return "float64" if float in types else "int64"
    return None
