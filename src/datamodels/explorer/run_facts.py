"""What was run, in words, and the curve of its judgement."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.errors import DatamodelsError, first_line
from datamodels.explorer.assemble import Opened
from datamodels.explorer.content import Shown
from datamodels.report.judging import RESULTS
from datamodels.store import Store


def facts_of(opened: Opened, attributions: Sequence[Shown]) -> list[tuple[str, str]]:
    """Recipes, stores and attributions, name and text."""
    run = opened.run
    out = [(f"recipe {name}", _listed(recipe)) for name, recipe in run.recipe.items()]
    for name in run.stores:
        try:
            store = Store.open(run.place(opened.root, name))
        except DatamodelsError as error:
            out.append((f"store {name}", first_line(error)))
            continue
        text = f"{int(store.completed().sum()):,} of {store.n_models:,} models"
        if store.design is not None:
            text += f", {store.design.kind}, alpha {store.design.alpha}, seed {store.design.seed}"
            text += f", {store.design.replicates} runs per subset" if store.design.replicates > 1 else ""
        out.append((f"store {name}", text))
    for shown in attributions:
        estimator = shown.file.provenance.get("estimator", {}).get("name", "unknown")
        gap = shown.file.target_facts.get("gap")
        exact = f", largest relative duality gap {np.max(gap):.1e}" if gap is not None else ""
        out.append((f"attribution {shown.name}", f"{estimator}{_made_of(shown)}{exact}"))
    versions = attributions[0].file.provenance.get("versions", {})
    return out + [("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))] * bool(versions)


def models_of(opened: Opened, attributions: Sequence[Shown]) -> int | None:
    """Complete models of the stores of a run that was told, or the rows that the first file's fit has used; None where nobody knows."""
    if not opened.told:
        return _rows_used(attributions[0]) or None
    total = 0
    for name in opened.run.stores:
        with contextlib.suppress(DatamodelsError):
            total += int(Store.open(opened.run.place(opened.root, name)).completed().sum())
    return total or None


def curve_of_results(root: Path) -> dict[str, Any] | None:
    """The curve that a report has drawn."""
    try:
        found: dict[str, Any] = json.loads((root / RESULTS).read_text())
    except (OSError, ValueError):
        return None
    return curve_of(found.get("curve")) if isinstance(found, dict) else None


def curve_of(curve: Any) -> dict[str, Any] | None:
    """LDS against the number of models, and what more of them would give (``ahead``), of what `Judgement.to_dict` gives; None when it
    is another thing."""
    try:
        points = curve["points"]
        sizes, scores = [int(point["models"]) for point in points], [float(point["lds"]) for point in points]
        ahead = curve.get("ahead") and {
            "sizes": [float(point["models"]) for point in curve["ahead"]],
            "lds": [float(point["lds"]) for point in curve["ahead"]],
            "limit": float(curve["asymptote"]),
        }
        return {
            "sizes": sizes,
            "lds": scores,
            "low": [float(point["lds_ci"][0]) for point in points],
            "high": [float(point["lds_ci"][1]) for point in points],
            "ceiling": None if points[-1]["lds_ceiling"] is None else float(points[-1]["lds_ceiling"]),
            "ahead": ahead,
        }
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return None


def _made_of(shown: Shown) -> str:
    """The models or networks that an attribution rests on, in words; nothing where nobody knows."""
    rows, networks = _rows_used(shown), shown.file.provenance.get("n_checkpoints")
    if rows:
        return f" on {rows:,} models"
    return f" from {networks:,} network{'s' * (networks > 1)}" if isinstance(networks, int) else ""


def _rows_used(shown: Shown) -> int:
    return sum(len(np.atleast_1d(source.get("rows", ()))) for source in shown.file.provenance.get("sources", []))


def _listed(values: Any) -> str:
    if not isinstance(values, Mapping):
        return str(values)
    return ", ".join(f"{k} ({_listed(v)})" if isinstance(v, Mapping) else f"{k} {v}" for k, v in values.items())
