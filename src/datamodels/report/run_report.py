"""From a run's folder, or from an attribution file, to its page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodels import datasets
from datamodels.applications.subgroups import Subgroups, subgroups
from datamodels.attribution import Attribution
from datamodels.datasets import Dataset, Split
from datamodels.errors import RequestError
from datamodels.evaluation.curve import Curve, curve
from datamodels.evaluation.lds import LDS, lds
from datamodels.files import replacing
from datamodels.regression.estimators import from_description
from datamodels.report.page import Examples, Page, render
from datamodels.run import Run
from datamodels.store import Store

PAGE = "index.html"
RESULTS = "results.json"
_SHOWN = 12
_CLUSTERS = 10


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
        growth = _growth(attributions[name], folder / run.stores[item.store], folder / run.stores[item.test], progress)
    data = datasets.load(run.dataset) if run.dataset else None
    embedded = attributions[run.view.embedding]
    of = {known: _side(attributions[known]) for known in (name, run.view.embedding)}
    split = None if data is None else getattr(data, of[run.view.embedding])
    hidden = features = shown = None
    if data is not None and split is not None:
        features = split.flat[_targets(embedded)]
        if split.hidden is not None:
            hidden = _names(data, split)[_targets(embedded)]
            shown = _names(data, getattr(data, of[name]))[_targets(attributions[name])]
    groups = _groups(embedded, None if hidden is not None else _CLUSTERS, hidden, features)
    page = Page(
        title=run.title,
        facts=_facts(folder, run, attributions),
        scores=scores,
        attribution=attributions[name],
        train=_examples(data, "train", np.arange(attributions[name].n_train)),
        targets=_examples(data, of[name], _targets(attributions[name])),
        shown_targets=_choose(attributions[name].n_targets, shown),
        shown_name=name,
        curve=growth,
        curve_name=name,
        groups=groups,
        groups_name=run.view.embedding,
        labels=hidden,
        labels_name=(data.hidden_name if data else None) or "label",
        map_examples=_examples(data, of[run.view.embedding], _targets(embedded)),
        mean_outputs=_mean_outputs(
            Store.open(folder / run.stores[run.attributions[run.view.embedding].store]), embedded
        ),
        commands=run.commands,
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
    masks_key: str | None = None,
    outputs_key: str | None = None,
    n_clusters: int | None = None,
) -> dict[str, Any]:
    """The page of one attribution file; with stores that hold unused rows, its scores too."""
    attribution = Attribution.load(path)
    scores: dict[str, LDS] = {}
    name = str(attribution.provenance.get("estimator", {}).get("name", "datamodel"))
    if stores:
        scores[name] = lds(attribution, list(stores), masks_key=masks_key, outputs_key=outputs_key)
    groups = None if n_clusters is None else _groups(attribution, n_clusters)
    target = Path(out) if out is not None else Path(path).with_suffix(".html")
    page = Page(
        title=f"Datamodels of {Path(path).name}",
        facts=_provenance_facts(attribution),
        scores=scores,
        attribution=attribution,
        train=_examples(None, "train", np.arange(attribution.n_train)),
        targets=_examples(None, "test", _targets(attribution)),
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


def _side(attribution: Attribution) -> Literal["train", "test"]:
    """Which split the targets are of."""
    return "test" if attribution.train_columns is None else "train"


def _targets(attribution: Attribution) -> NDArray[np.int64]:
    """Which outputs of the store the targets are."""
    return attribution.target_facts.get("target", np.arange(attribution.n_targets))


def _growth(attribution: Attribution, store: Path, test: Path, progress: bool) -> Curve:
    """The curve of the estimator, rows and targets of an attribution."""
    (source,) = attribution.provenance["sources"]
    estimator = from_description(attribution.provenance["estimator"])
    targets = _targets(attribution)
    keys = _keys(attribution)
    return curve(
        store,
        estimator,
        test=test,
        rows=source["rows"],
        targets=targets,
        fitted=attribution,
        progress=progress,
        **keys,
    )


def _keys(attribution: Attribution) -> dict[str, Any]:
    """Which keys of the store the attribution was fitted on."""
    (source,) = attribution.provenance["sources"]
    return {name: source[name] for name in ("masks_key", "outputs_key")}


def _groups(
    attribution: Attribution,
    n_clusters: int | None,
    labels: NDArray[Any] | None = None,
    features: NDArray[Any] | None = None,
) -> Subgroups | None:
    """Subgroups with as many clusters as the targets can bear; None when all datamodels are the same."""
    distinct = len(np.unique(attribution.weights, axis=1).T)
    if distinct < 3:
        return None
    if labels is not None and len(np.unique(labels)) <= distinct:
        return subgroups(attribution, labels=labels, features=features)
    return subgroups(attribution, n_clusters=min(n_clusters or _CLUSTERS, max(1, distinct // 2)))


def _names(data: Dataset, split: Split) -> NDArray[Any]:
    """What the examples are, (k,): their hidden labels, or their classes where nothing is hidden."""
    if split.hidden is None:
        return np.array(data.class_names)[split.y]
    return split.hidden if data.hidden_names is None else np.array(data.hidden_names)[split.hidden]


def _examples(data: Dataset | None, which: Literal["train", "test"], index: NDArray[np.int64]) -> Examples:
    if data is None:
        return Examples([str(i) for i in index])
    split: Split = getattr(data, which)
    names = _names(data, split)[index]
    return Examples([str(name) for name in names], None if split.images is None else split.images[index])


def _choose(n_targets: int, labels: NDArray[Any] | None) -> list[int]:
    """A dozen targets spread over the labels, or over the whole range."""
    if labels is None:
        return np.unique(np.linspace(0, n_targets - 1, min(_SHOWN, n_targets)).round().astype(int)).tolist()
    kinds = np.unique(labels)
    rounds = -(-_SHOWN // len(kinds))
    chosen = [int(i) for r in range(rounds) for kind in kinds for i in np.flatnonzero(labels == kind)[r : r + 1]]
    return chosen[:_SHOWN]


def _mean_outputs(store: Store, attribution: Attribution) -> NDArray[np.float64]:
    """Mean output of each target over the models of its store."""
    flat = store.array(_keys(attribution)["outputs_key"]).reshape(store.n_models, -1)[store.completed()]
    return flat[:, _targets(attribution)].mean(axis=0, dtype=np.float64)


def _facts(folder: Path, run: Run, attributions: dict[str, Attribution]) -> list[tuple[str, str]]:
    facts = [("dataset", run.dataset or "not named")]
    if run.recipe:
        facts.append(("recipe", _listed(run.recipe)))
    for name, place in run.stores.items():
        store = Store.open(folder / place)
        text = f"{int(store.completed().sum()):,} of {store.n_models:,} models"
        if store.design is not None:
            d = store.design
            text += f", {d.kind}, alpha {d.alpha}, {d.n_train:,} training examples, seed {d.seed}"
            text += f", {d.replicates} runs per subset" if d.replicates > 1 else ""
        facts.append((f"store {name}", text))
    for name, attribution in attributions.items():
        facts.append((f"fit {name}", f"{_describe(attribution)}, from store {run.attributions[name].store}"))
    return facts


def _listed(values: Mapping[str, Any]) -> str:
    """Names and values in one line; nested ones in brackets."""
    parts = (
        f"{name} ({_listed(value)})" if isinstance(value, dict) else f"{name} {value}" for name, value in values.items()
    )
    return ", ".join(parts)


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
