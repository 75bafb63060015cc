"""What was run, in words, and the curve that a report has drawn."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.errors import DatamodelsError, first_line
from datamodels.explorer.content import Shown
from datamodels.run import Run
from datamodels.store import Store


def facts_of(root: Path, run: Run | None, attributions: Sequence[Shown]) -> list[tuple[str, str]]:
    """Recipes, stores and attributions, name and text."""
    out: list[tuple[str, str]] = []
    if run is not None:
        out += [(f"recipe {name}", _listed(recipe)) for name, recipe in run.recipe.items()]
        for name, place in run.stores.items():
            try:
                store = Store.open(root / place)
            except DatamodelsError as error:
                out.append((f"store {name}", first_line(error)))
                continue
            text = f"{int(store.completed().sum()):,} of {store.n_models:,} models"
            if store.design is not None:
                text += f", {store.design.kind}, alpha {store.design.alpha}, seed {store.design.seed}"
            out.append((f"store {name}", text))
    for shown in attributions:
        sources = shown.file.provenance.get("sources", [])
        rows = sum(len(np.atleast_1d(source.get("rows", ()))) for source in sources)
        estimator = shown.file.provenance.get("estimator", {}).get("name", "unknown")
        out.append((f"attribution {shown.name}", f"{estimator} on {rows:,} models"))
    versions = attributions[0].file.provenance.get("versions", {})
    return out + [("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))] * bool(versions)


def curve_of(root: Path) -> dict[str, Any] | None:
    """LDS against the number of models, where a report has drawn it."""
    path = root / "results.json"
    if not path.is_file():
        return None
    try:
        points = json.loads(path.read_text())["curve"]["points"]
        return {
            "sizes": [int(point["models"]) for point in points],
            "lds": [float(point["lds"]) for point in points],
            "low": [float(point["lds_ci"][0]) for point in points],
            "high": [float(point["lds_ci"][1]) for point in points],
            "ceiling": None if points[-1]["lds_ceiling"] is None else float(points[-1]["lds_ceiling"]),
        }
    except (ValueError, KeyError, TypeError, IndexError):
        return None


def _listed(values: Any) -> str:
    return ", ".join(f"{k} {v}" for k, v in values.items()) if isinstance(values, Mapping) else str(values)
