"""From a run's folder, or from an attribution file, to its page."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels import datasets
from datamodels.applications.subgroups import Subgroups, subgroups
from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.evaluation.curve import Curve, curve
from datamodels.evaluation.lds import LDS, lds
from datamodels.files import replacing
from datamodels.regression.fit import resolve
from datamodels.regression.problem import OUTPUTS
from datamodels.report.page import Examples, Page, render
from datamodels.run import Run
from datamodels.spec import MASKS
from datamodels.store import Store

PAGE = "index.html"
RESULTS = "results.json"
_SHOWN = 12


def report_run(folder: str | Path, *, progress: bool = True) -> dict[str, Any]:
    """Judge the attributions of a run and write ``index.html`` and ``results.json`` beside ``run.json``.

    Returns
    -------
    dict
        ``attributions`` (name -> scores), ``curve``, ``subgroups`` and ``page``.
    """
    folder = Path(folder)
    run = Run.load(folder)
    attributions = {name: Attribution.load(folder / item.path) for name, item in run.attributions.items()}
    scores: dict[str, LDS] = {}
    for name, item in run.attributions.items():
        if item.test is not None:
            scores[name] = lds(attributions[name], folder / run.stores[item.test])
    name = run.view.neighbours
    item = run.attributions[name]
    growth = None
    if item.test is not None:
        estimator = resolve(attributions[name].provenance["estimator"]["name"])
        growth = curve(
            folder / run.stores[item.store], estimator, test=folder / run.stores[item.test], progress=progress
        )
    data = datasets.load(run.dataset) if run.dataset else None
    hidden = data.test.hidden if data else None
    groups = subgroups(
        attributions[run.view.embedding],
        n_clusters=None if hidden is not None else 10,
        labels=hidden,
        features=data.test.x if data else None,
    )
    page = Page(
        title=run.title,
        facts=_facts(folder, run, attributions),
        scores=scores,
        attribution=attributions[name],
        train=_examples(data.train if data else None, attributions[name].n_train),
        targets=_examples(data.test if data else None, attributions[name].n_targets),
        shown_targets=_choose(attributions[name].n_targets, hidden),
        shown_name=name,
        curve=growth,
        curve_name=name,
        groups=groups,
        groups_name=run.view.embedding,
        labels=hidden,
        labels_name=(data.hidden_name if data else None) or "label",
        mean_outputs=_mean_outputs(Store.open(folder / run.stores[item.store])),
        commands=["make demo"] if run.task == "datamodels.demo.task" else [],
    )
    _write(folder / PAGE, render(page))
    results = _results(scores, growth, groups, folder / PAGE)
    _write(folder / RESULTS, json.dumps(results, indent=1))
    return results


def report_attribution(
    path: str | Path,
    stores: Sequence[str | Path] = (),
    *,
    out: str | Path | None = None,
    masks_key: str = MASKS,
    outputs_key: str = OUTPUTS,
    n_clusters: int = 10,
) -> dict[str, Any]:
    """The page of one attribution file; with stores that hold unused rows, its scores too."""
    attribution = Attribution.load(path)
    scores: dict[str, LDS] = {}
    name = str(attribution.provenance.get("estimator", {}).get("name", "datamodel"))
    if stores:
        scores[name] = lds(attribution, list(stores), masks_key=masks_key, outputs_key=outputs_key)
    groups = None
    if attribution.n_targets >= 3:
        groups = subgroups(attribution, n_clusters=min(n_clusters, attribution.n_targets // 2 or 1))
    target = Path(out) if out is not None else Path(path).with_suffix(".html")
    page = Page(
        title=f"Datamodels of {Path(path).name}",
        facts=_provenance_facts(attribution),
        scores=scores,
        attribution=attribution,
        train=_examples(None, attribution.n_train),
        targets=_examples(None, attribution.n_targets),
        shown_targets=_choose(attribution.n_targets, None),
        shown_name=name,
        groups=groups,
        groups_name=name,
    )
    _write(target, render(page))
    return _results(scores, None, groups, target)


def _results(scores: dict[str, LDS], growth: Curve | None, groups: Subgroups | None, page: Path) -> dict[str, Any]:
    return {
        "attributions": {name: score.to_dict() for name, score in scores.items()},
        "curve": None if growth is None else growth.to_dict(),
        "subgroups": None if groups is None else groups.to_dict(),
        "page": str(page),
    }


def _write(path: Path, text: str) -> None:
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot write {str(path)!r}: {error.strerror}") from None


def _examples(split: Any, count: int) -> Examples:
    if split is None:
        return Examples([str(i) for i in range(count)])
    names = split.y if split.hidden is None else split.hidden
    return Examples([str(name) for name in names], split.images)


def _choose(n_targets: int, labels: NDArray[Any] | None) -> list[int]:
    """A dozen targets spread over the labels, or over the whole range."""
    if labels is None:
        return np.unique(np.linspace(0, n_targets - 1, min(_SHOWN, n_targets)).round().astype(int)).tolist()
    kinds = np.unique(labels)
    rounds = -(-_SHOWN // len(kinds))
    chosen = [int(i) for r in range(rounds) for kind in kinds for i in np.flatnonzero(labels == kind)[r : r + 1]]
    return chosen[:_SHOWN]


def _mean_outputs(store: Store, key: str = OUTPUTS) -> NDArray[np.float64] | None:
    if key not in store.keys:
        return None
    return np.asarray(store.array(key))[store.completed()].reshape(int(store.completed().sum()), -1).mean(axis=0)


def _facts(folder: Path, run: Run, attributions: dict[str, Attribution]) -> list[tuple[str, str]]:
    facts = [("dataset", run.dataset or "not named")]
    if run.recipe:
        facts.append(("recipe", ", ".join(f"{name} {value}" for name, value in run.recipe.items())))
    for name, place in run.stores.items():
        store = Store.open(folder / place)
        text = f"{int(store.completed().sum()):,} of {store.n_models:,} models"
        if store.design is not None:
            d = store.design
            text += f", {d.kind}, alpha {d.alpha}, {d.n_train:,} training examples, seed {d.seed}"
            text += f", {d.replicates} runs per subset" if d.replicates > 1 else ""
        facts.append((f"store {name}", text))
    for name, attribution in attributions.items():
        facts.append((f"fit {name}", _describe(attribution)))
    return facts


def _describe(attribution: Attribution) -> str:
    estimator = attribution.provenance.get("estimator", {})
    rows = sum(len(np.atleast_1d(source["rows"])) for source in attribution.provenance.get("sources", []))
    text = f"{estimator.get('name', 'unknown')} on {rows:,} models, {attribution.n_targets:,} targets"
    facts = attribution.target_facts
    if "n_nonzero" in facts:
        text += f", {np.median(facts['n_nonzero']):.0f} nonzero weights (median)"
    if "gap" in facts:
        text += f", largest relative duality gap {facts['gap'].max():.1e}"
    return text


def _provenance_facts(attribution: Attribution) -> list[tuple[str, str]]:
    facts = [("fit", _describe(attribution)), ("training examples", f"{attribution.n_train:,}")]
    for i, source in enumerate(attribution.provenance.get("sources", [])):
        facts.append((f"source {i}", str(source.get("path", "arrays"))))
    versions = attribution.provenance.get("versions", {})
    return [*facts, ("versions", ", ".join(f"{name} {version}" for name, version in versions.items()))]
