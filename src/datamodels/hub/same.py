"""What may travel, whether stores go together, and what the rows of one are known by."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.run import Run
from datamodels.store import Store
from datamodels.store.meta import Meta
from datamodels.store.plan import row_checksum

_SLICE = 256


def check_same(name: str, here: Store, there: Meta) -> None:
    """Refuse stores whose row i is not the same model."""
    for what, mine, theirs in (
        ("sweep", here.sweep, there.sweep),
        ("schema", here.spec.fields, there.spec.fields),
        ("design", here.design and here.design.identity, there.design and there.design.identity),
    ):
        if mine != theirs:
            raise RequestError(
                f"the store {str(here.path)!r} has another {what} than {name!r} on the Hub, so row i is not the same "
                "model: choose another folder, or push to another name (--store) or dataset"
            )


def check_attributions(run: Run, place: str) -> None:
    """Refuse attributions that are no ``.h5ad``: no other kind of file travels, since some kinds are run by who finds them."""
    for item in run.attributions.values():
        if not item.path.endswith(".h5ad"):
            raise RequestError(f"the run at {place!r} names the attribution {item.path!r}; only .h5ad files travel")


def read_rows(store: Store, rows: NDArray[np.int64]) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint32]]:
    """The values of rows, key -> (k, *shape), and the checksums of these values, (k,)."""
    values = {
        key: np.ascontiguousarray(store.array(key)[rows], dtype=field.numpy_dtype)
        for key, field in store.spec.fields.items()
    }
    sums = [row_checksum(row, {key: value[i] for key, value in values.items()}) for i, row in enumerate(rows.tolist())]
    return values, np.array(sums, dtype=np.uint32)


def checksums_of(store: Store, rows: NDArray[np.int64]) -> NDArray[np.uint32]:
    """The checksums that a store keeps of rows, or, where it keeps none, those of its values."""
    kept = store.checksums()
    if kept is not None:
        return kept[rows]
    parts = [read_rows(store, rows[start : start + _SLICE])[1] for start in range(0, len(rows), _SLICE)]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.uint32)
