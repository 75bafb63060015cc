"""What a store says of itself in ``store.json`` (of a remote store: in the attributes of its Zarr group)."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.design import Design
from datamodels.errors import CorruptStoreError, RequestError, first_line, newer_format
from datamodels.spec import DESIGN_MASKS, Spec
from datamodels.sweep import Sweep
from datamodels.version import versions

FORMAT_VERSION = 1


@dataclass(frozen=True)
class Meta:
    """Schema, design and sweep of a store, with what else its record holds (id, time, versions)."""

    spec: Spec
    design: Design | None
    sweep: Sweep | None
    record: dict[str, Any]

    @classmethod
    def new(cls, spec: Spec, design: Design | None, sweep: Sweep | None) -> Meta:
        """That of a store that is being made."""
        record = {
            "format": "datamodels-store",
            "format_version": FORMAT_VERSION,
            "id": uuid.uuid4().hex,
            "created": datetime.now(UTC).isoformat(timespec="seconds"),
            "versions": versions(),
        }
        if sweep is not None:
            record |= {"sweep": sweep.to_dict(), "sweep_identity": sweep.identity}
        return cls(spec, design, sweep, record)

    @classmethod
    def of(cls, record: Any, place: str, what: str, masks: Callable[[], NDArray[np.uint8] | None]) -> Meta:
        """From a record that was read at `place`, of `what`; `masks` reads the packed masks of an explicit design.

        Raises
        ------
        NewerFormatError
            when a newer version wrote it.
        CorruptStoreError
            when it is damaged, or was edited.
        """
        try:
            version = record["format_version"]
        except (KeyError, TypeError) as error:
            raise CorruptStoreError(f"{place} is damaged: {first_line(error)}") from None
        if not isinstance(version, int) or version > FORMAT_VERSION:
            raise newer_format(what, version, FORMAT_VERSION)
        if record.get("digest") != _digest(record.get("spec"), record.get("design")):
            raise CorruptStoreError(
                f"{place} was edited: its spec and design are not those that the store was made with; "
                "put the original back (to add models, use `datamodels extend`)"
            )
        try:
            if not isinstance(record["id"], str):
                raise TypeError(f"its id is {record['id']!r}")
            spec = Spec.model_validate(record["spec"])
            design = None
            if record.get("design") is not None:
                packed = masks() if record["design"].get("kind") == "explicit" else None
                if packed is not None and (packed.dtype != np.uint8 or packed.ndim != 2):
                    raise ValueError(f"{DESIGN_MASKS}.npy holds {packed.dtype} of shape {packed.shape}")
                try:
                    design = Design.from_dict(record["design"], packed)
                except RequestError as error:
                    raise ValueError(f"{first_line(error)} ({DESIGN_MASKS}.npy)") from None
            sweep = Sweep.from_dict(record["sweep"]) if "sweep" in record else None
        except (ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
            raise CorruptStoreError(f"{place} is damaged: {first_line(error)}") from None
        if sweep is not None and sweep.identity != record.get("sweep_identity"):
            raise CorruptStoreError(
                f"{place} was edited: its sweep is not the one that the store was made with; put the original back"
            )
        return cls(spec, design, sweep, record)

    def with_models(self, rows: int) -> Meta:
        """The same for more models."""
        design = self.design.with_models(rows) if self.design else None
        return Meta(self.spec.model_copy(update={"num_models": rows}), design, self.sweep, self.record)

    def to_dict(self) -> dict[str, Any]:
        """The record, for JSON."""
        parts = (self.spec.to_dict(), self.design.to_dict() if self.design else None)
        return {**self.record, "spec": parts[0], "design": parts[1], "digest": _digest(*parts)}


def _digest(spec: dict[str, Any] | None, design: dict[str, Any] | None) -> str:
    return hashlib.sha256(json.dumps([spec, design], sort_keys=True).encode()).hexdigest()
