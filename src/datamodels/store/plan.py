"""What a new store is to hold: schema, design, sweep, labels and names, checked against each other."""

from __future__ import annotations

import math
import warnings
import zlib
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ValidationError

from datamodels.design import Design, label_codes
from datamodels.errors import FewSubsetsWarning, RequestError, first_line
from datamodels.spec import IDS, MASKS, KeySpec, Spec
from datamodels.sweep import Sweep


def row_checksum(row: int, values: Mapping[str, NDArray[Any]]) -> int:
    """CRC-32 over the row's index and, key by key in sorted order, its bytes."""
    crc = zlib.crc32(row.to_bytes(8, "little"))
    for key in sorted(values):
        crc = zlib.crc32(np.ascontiguousarray(values[key]).reshape(-1).view(np.uint8).data, crc)
    return crc


def is_floating(field: KeySpec) -> bool:
    return field.numpy_dtype.kind in "fc"


def plan(schema: Mapping[str, Any] | None, spec: Spec | None, design: Design | None, sweep: Sweep | None) -> Spec:
    """The spec that `Store.create` is asked for, checked against the design, with the keys of the sweep."""
    if spec is None:
        if schema is None or design is None:
            raise RequestError("give a spec, or a schema and a design")
        given = {key: dict(value) if isinstance(value, Mapping) else value for key, value in schema.items()}
        for key, value in given.items():
            if not isinstance(value, dict):
                raise RequestError(f'schema[{key!r}] is {value!r}; give {{"shape": (...), "dtype": name}}')
        given.setdefault(MASKS, {"shape": (design.n_train,), "dtype": "bool"})
        try:
            spec = Spec.model_validate({"num_models": design.n_models, "schema": given})
        except ValidationError as error:
            raise RequestError(first_line(error)) from None
    elif schema is not None:
        raise RequestError("give a spec or a schema, not both")
    _check_design(spec, design)
    return spec if sweep is None else _with_sweep(spec, sweep)


def _with_sweep(spec: Spec, sweep: Sweep) -> Spec:
    drawn = {key: KeySpec.model_validate(field) for key, field in sweep.schema.items()}
    for key in drawn.keys() & spec.fields.keys():
        if spec.fields[key] != drawn[key]:
            raise RequestError(
                f"{key!r} is {spec.fields[key].dtype} {spec.fields[key].shape} in the schema; the sweep fills it with "
                f"one {drawn[key].dtype} per row: leave it out of the schema"
            )
    return spec.model_copy(update={"fields": {**spec.fields, **drawn}})


def _check_design(spec: Spec, design: Design | None) -> None:
    masks = spec.fields.get(MASKS)
    for key, field in spec.fields.items():
        if field.of == "train" and design is not None and field.shape[-1:] != (design.n_train,):
            raise RequestError(
                f'{key!r} is "of": "train" with shape {field.shape}; its last axis must be n_train = {design.n_train}'
            )
    if design is None:
        return
    if design.n_models != spec.num_models:
        raise RequestError(f"the spec has {spec.num_models} models and the design {design.n_models}")
    if masks is not None and masks.shape != (design.n_train,):
        raise RequestError(
            f"'masks' has shape {masks.shape} in the schema; the design has {design.n_train} train examples"
        )
    if masks is not None and masks.dtype not in ("bool", "uint8"):
        raise RequestError(f"'masks' has dtype {masks.dtype} in the schema; with a design it must be bool or uint8")


def warn_few_subsets(design: Design | None) -> None:
    if design is None or design.kind != "grouped":
        return
    groups = len(set(design.groups or ()))
    possible = math.comb(groups, round(float(design.alpha or 0) * groups))
    if design.n_masks > possible:
        warnings.warn(
            f"{groups} groups in or out together, at alpha {design.alpha:g}, make {possible} different subsets, and {design.n_masks} masks "
            "repeat them: more models tell nothing new. Group by something with more values (20 or more)",
            FewSubsetsWarning,
            stacklevel=3,
        )


def check_ids(ids: Mapping[str, ArrayLike | None] | None, design: Design | None) -> dict[str, NDArray[np.str_]]:
    if ids is not None and (not isinstance(ids, Mapping) or set(ids) - set(IDS)):
        said = f"has {sorted(set(ids) - set(IDS))}" if isinstance(ids, Mapping) else f"is {type(ids).__name__}"
        raise RequestError(f"ids {said}; give a mapping of {' and '.join(IDS)} to names, one per example")
    given = {of: np.asarray(names) for of, names in (ids or {}).items() if names is not None}
    for of, names in given.items():
        if names.ndim != 1 or names.dtype.kind != "U":
            raise RequestError(
                f"ids[{of!r}] is {names.dtype} {names.shape}; give texts, one per example, for {', '.join(IDS)}"
            )
        if of == "train" and design is not None and len(names) != design.n_train:
            raise RequestError(f"ids['train'] has {len(names)} entries; the design has {design.n_train} train examples")
    return {IDS[of]: names for of, names in given.items()}


def check_labels(labels: ArrayLike, design: Design | None) -> NDArray[np.int64]:
    codes = np.array(label_codes(labels), dtype=np.int64)
    if design is not None and len(codes) != design.n_train:
        raise RequestError(f"labels has {len(codes)} entries; the design has {design.n_train} train examples")
    return codes
