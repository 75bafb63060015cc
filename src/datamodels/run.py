"""A run: which stores, attributions and dataset belong together, and what to show first.

``run.json`` lies in the run's folder; its paths are relative to it, so the folder can be moved.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from datamodels.errors import RequestError, first_line, newer_format
from datamodels.files import replacing

FORMAT_VERSION = 1
FILE = "run.json"


class RunAttribution(BaseModel):
    """An attribution file, and its stores.

    Attributes
    ----------
    path
        The file.
    store
        Name of the store that it was fitted on; None for scores that used none.
    test
        Name of the store that it is judged on, on rows that the fit has not used; it may be the same.
    """

    model_config = ConfigDict(extra="forbid")

    path: str
    store: str | None = None
    test: str | None = None


class View(BaseModel):
    """What a report or an explorer shows first.

    Attributes
    ----------
    neighbours, embedding
        Names of the attributions that lists are of, and that the map and the subgroups are of.
    """

    model_config = ConfigDict(extra="forbid")

    neighbours: str
    embedding: str


class Run(BaseModel):
    """The content of ``run.json``.

    Attributes
    ----------
    format_version
        A newer one than this package knows is refused.
    title, created
        Of the page, and when the run was made (ISO 8601).
    dataset
        A name that `datamodels.datasets.load` knows.
    task, recipe
        How models were trained: ``PKG.MODULE:CLASS``, and for each store what differs from a default `Recipe`, and ``prepare`` where
        features are prepared.
    commands
        How to make the run again.
    stores
        Name -> folder, or address of a remote store.
    attributions
        Name -> `RunAttribution`.
    view
        What is shown first.
    """

    model_config = ConfigDict(extra="forbid")

    format_version: int = FORMAT_VERSION
    title: str
    created: str
    dataset: str | None = None
    task: str | None = None
    commands: list[str] = Field(default_factory=list)
    recipe: dict[str, Any] = Field(default_factory=dict)
    stores: dict[str, str]
    attributions: Annotated[dict[str, RunAttribution], Field(min_length=1)]
    view: View

    @model_validator(mode="after")
    def _names_exist(self) -> Run:
        for name, item in self.attributions.items():
            for store in (item.store, item.test):
                if store is not None and store not in self.stores:
                    raise ValueError(
                        f"attribution {name!r} names the store {store!r}, which is none of {sorted(self.stores)}"
                    )
        for shown in (self.view.neighbours, self.view.embedding):
            if shown not in self.attributions:
                raise ValueError(f"the view names {shown!r}, which is none of {sorted(self.attributions)}")
        return self

    def place(self, folder: str | Path, store: str) -> str | Path:
        """What `Store.open` takes for the store of this name, of the run in `folder`."""
        inside = self.stores[store]
        return inside if "://" in inside else Path(folder) / inside

    def save(self, folder: str | Path) -> Path:
        """Write the ``run.json`` of a `folder` in one step."""
        path = Path(folder) / FILE
        with replacing(path) as temporary:
            temporary.write_text(json.dumps(self.model_dump(), indent=1))
        return path

    @classmethod
    def load(cls, folder: str | Path) -> Run:
        """Read the run of a folder.

        Raises
        ------
        RequestError
            when there is none, or it is damaged, or a path leaves the folder.
        """
        path = Path(folder) / FILE
        try:
            data = json.loads(path.read_text())
        except OSError as error:
            raise RequestError(f"there is no run at {str(folder)!r}: {first_line(error)}") from None
        except (ValueError, RecursionError) as error:
            raise RequestError(f"{path} is not JSON: {first_line(error)}") from None
        version = data.get("format_version") if isinstance(data, dict) else None
        if isinstance(version, int) and version > FORMAT_VERSION:
            raise newer_format(str(path), version, FORMAT_VERSION)
        try:
            run = cls.model_validate(data)
        except ValidationError as error:
            raise RequestError(f"{path} is damaged: {first_line(error)}") from None
        root = Path(folder).resolve()
        for inside in [*run.stores.values(), *(item.path for item in run.attributions.values())]:
            if "\0" in inside or not (root / inside).resolve().is_relative_to(root):
                raise RequestError(f"{path} names {inside!r}, which lies outside of the run's folder")
        return run
