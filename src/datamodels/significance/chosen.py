"""What results that choose training examples have in common."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError


def strongest_first(selected: NDArray[np.bool_], strength: NDArray[np.float32], target: int) -> NDArray[np.int64]:
    """The examples selected (n_train, n_targets) for a target, by falling strength (n_train, n_targets)."""
    if not 0 <= target < selected.shape[1]:
        raise RequestError(f"target {target} is outside of 0..{selected.shape[1] - 1}")
    order = np.argsort(-strength[:, target], kind="stable")
    return order[selected[order, target]].astype(np.int64)


def summary_of(selected: NDArray[np.bool_]) -> dict[str, Any]:
    """How many are selected (n_train, n_targets), JSON-ready."""
    counts = selected.sum(axis=0)
    return {
        "n_train": selected.shape[0],
        "n_targets": selected.shape[1],
        "n_selected": int(counts.sum()),
        "median_selected": float(np.median(counts)),
        "targets_without": int((counts == 0).sum()),
    }
