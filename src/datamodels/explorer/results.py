"""Results that lie beside an attribution: intervals of its weights, and what was selected at a false-discovery rate."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.explorer.weights import WeightsFile

_KINDS = {"datamodels_intervals": ("low", "high"), "datamodels_selection": ("selected",)}


@dataclass(eq=False)
class Beside:
    """Layers (n_targets, n_train) of files, read by row."""

    layers: dict[str, Any] = field(default_factory=dict)
    facts: list[tuple[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def of(self, target: int, indices: NDArray[np.int32]) -> dict[str, list[Any]] | None:
        """The values of some training examples of a target, as the page takes them."""
        if not len(indices):
            return None
        with self.lock:
            rows = {name: _row(layer, target)[indices] for name, layer in self.layers.items()}
        out: dict[str, list[Any]] = {"indices": indices.tolist()}
        for name, values in rows.items():
            if name == "selected":
                out[name] = (values != 0).tolist()
            else:
                out[name] = [float(value) if np.isfinite(value) else None for value in values]
        return out


def results_beside(paths: Iterable[Path], files: Mapping[str, WeightsFile]) -> dict[str, Beside]:
    """Intervals and selections among some ``.h5ad`` files, by the attribution that they are of: same targets and same rows."""
    import h5py

    found: dict[str, Beside] = {}
    for path in sorted(paths):
        try:
            file = h5py.File(path, "r")
            kind = next((name for name in _KINDS if name in file.get("uns", {})), None)
            if kind is None:
                file.close()
                continue
            inner = file["uns"][kind]
            facts, provenance = (
                json.loads(item.asstr()[()]) for item in (inner["facts"], inner["table"]["provenance"])
            )
            targets = file["obs"]["target"][()]
        except (OSError, KeyError, ValueError, AttributeError, TypeError):
            continue
        for name, given in files.items():
            if np.array_equal(targets, given.targets) and _is_of(provenance, given.provenance):
                beside = found.setdefault(name, Beside())
                beside.layers.update({layer: file["layers"][layer] for layer in _KINDS[kind]})
                what = (
                    f"confidence {facts['confidence']}"
                    if "confidence" in facts
                    else f"false-discovery rate {facts['fdr']}"
                )
                beside.facts.append((f"{kind.removeprefix('datamodels_')} of {name}", f"{path.name}, {what}"))
    return found


def _is_of(result: Mapping[str, Any], attribution: Mapping[str, Any]) -> bool:
    """Whether a result is of this fit, intervals, or of the rows of this lasso, a selection."""
    about, by_fit = result.get("attribution", result), "attribution" in result
    mine, theirs = (one.get("estimator", {}) for one in (about, attribution))
    same = mine == theirs if by_fit else mine.get("name") == theirs.get("name")
    return bool(same and _sources(about) == _sources(attribution))


def _sources(provenance: Mapping[str, Any]) -> list[str]:
    return sorted(str(source.get("identity")) for source in provenance.get("sources", []))


def _row(layer: Any, target: int) -> NDArray[Any]:
    """A row of a layer, dense or CSR."""
    if hasattr(layer, "dtype"):
        return np.asarray(layer[target])
    start, stop = layer["indptr"][target : target + 2]
    out = np.zeros(int(layer.attrs["shape"][1]), dtype=layer["data"].dtype)
    out[layer["indices"][start:stop]] = layer["data"][start:stop]
    return out
