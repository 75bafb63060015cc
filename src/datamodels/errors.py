"""Errors and warnings. Each message says what was given, what is legal, and what to do.

``exit_status`` is what a command ends with: 2 when the request was wrong, 1 when the work ran
and something failed.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, TypeVar

from pydantic import ValidationError

T = TypeVar("T")


class DatamodelsError(Exception):
    """Base of every error this package raises on purpose."""

    exit_status = 2


class RequestError(DatamodelsError, ValueError):
    """An argument, option or input file is not what is needed."""


class StoreError(DatamodelsError):
    """A store cannot be created, opened or extended as asked."""


class WriteError(StoreError):
    """The disk refuses: full, read-only, or failing."""

    exit_status = 1


class CorruptStoreError(StoreError):
    """What lies on disk is not what was written."""

    exit_status = 1


class RowError(StoreError, ValueError):
    """The values of a row do not fit the schema of the store."""

    exit_status = 1


class NewerFormatError(StoreError):
    """A file was written by a newer version of the format than this package reads."""


class CampaignError(DatamodelsError):
    """Training ran, and something failed."""

    exit_status = 1


class DatamodelsWarning(UserWarning):
    """Base of every warning of this package."""


class ConstantColumnWarning(DatamodelsWarning):
    """A training example is in every fitted subset, or in none: its weight is 0."""


class MissingClassWarning(DatamodelsWarning):
    """A training subset has no example of some class."""


class TaskChangedWarning(DatamodelsWarning):
    """A store holds rows of another task, or of another version of this one."""


class FewSubsetsWarning(DatamodelsWarning):
    """A design has more masks than there are subsets to draw."""


class SweepWarning(DatamodelsWarning):
    """Rows of a store were trained with different settings, and are taken together."""


class ConvergenceWarning(DatamodelsWarning):
    """A solution missed its tolerance; its gap is stored and says by how much."""


def newer_format(what: str, found: object, known: int) -> NewerFormatError:
    """The error for a file whose format version is newer than `known`."""
    return NewerFormatError(
        f"{what} has format version {found}, this package reads up to version {known}; "
        "upgrade with `pip install --upgrade datamodels-kit`"
    )


def refusing(cls: type[T]) -> type[T]:
    """Make a pydantic dataclass raise a `RequestError` of one line for values that do not fit its fields."""
    create = cls.__init__

    @functools.wraps(create)
    def __init__(self: Any, *args: Any, **given: Any) -> None:
        try:
            create(self, *args, **given)
        except ValidationError as error:
            fields = [field for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
            legal, places = [field.name for field in fields], [field.name for field in fields if not field.kw_only]
            unknown = [name for name in given if name not in legal]
            text = first_line(error)
            if unknown:
                text = f"{cls.__name__} has no {unknown[0]!r}; legal: {', '.join(legal)}"
            elif any(item["type"] == "unexpected_positional_argument" for item in error.errors()):
                named = next(name for name in legal if name not in places)
                first = f"after {', '.join(places)} " if places else ""
                text = f"{cls.__name__} {first}takes its values by name, like {named}=...; given: {args!r:.60}"
            raise RequestError(text) from None

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


def first_line(error: BaseException) -> str:
    """One line that says what an error says, whatever library raised it."""
    if isinstance(error, ValidationError):
        parts = []
        for item in error.errors():
            place = ".".join(str(part) for part in item["loc"])
            message = item["msg"].removeprefix("Value error, ")
            given = "" if item["type"] == "missing" or not place else f" (given: {item['input']!r:.60})"
            parts.append(f"{place}: {message}{given}" if place else message)
        return "; ".join(parts)
    if isinstance(error, OSError) and error.strerror:
        name = f": {error.filename}" if error.filename else ""
        return f"{error.strerror}{name}"
    lines = str(error).strip().splitlines()
    text = " ".join(line.strip() for line in lines) if isinstance(error, DatamodelsError) else "".join(lines[:1])
    return text if isinstance(error, DatamodelsError) else f"{type(error).__name__}: {text}".rstrip(": ")
