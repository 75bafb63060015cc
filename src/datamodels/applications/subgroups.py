"""Hidden subgroups: targets whose predictions rest on the same training examples."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.applications.clustering import Method, as_labels, check_method, cluster, embed
from datamodels.applications.refits import Source, StabilityCurve, choose_clusters
from datamodels.attribution import IDS, Attribution
from datamodels.datasets import Dataset
from datamodels.errors import RequestError
from datamodels.regression.estimator import Estimator
from datamodels.version import versions

if TYPE_CHECKING:
    import anndata

__all__ = ["Method", "Subgroups", "embed", "subgroups", "with_ids", "write_to"]


@dataclass(frozen=True, eq=False)
class Subgroups:
    """Clusters of targets.

    Attributes
    ----------
    clusters
        (n_targets,) cluster numbers; -1 is HDBSCAN's noise.
    embedding
        (n_targets, components).
    method
        How targets were clustered.
    ari, nmi
        Adjusted Rand index and normalised mutual information against given labels, else None.
    ari_baseline, nmi_baseline
        The same pipeline on raw features.
    setting
        Number of clusters (k-means) or resolution (Leiden) that was used.
    curve
        How it was chosen by stability, else None.
    names
        (n_targets,) names of the targets, where the attribution has them in ``target_facts["ids"]``.
    provenance
        Where the clusters come from: options, estimator, fingerprints of stores, versions.
    """

    clusters: NDArray[np.int64] = field(repr=False)
    embedding: NDArray[np.float64] = field(repr=False)
    method: str
    ari: float | None = None
    nmi: float | None = None
    ari_baseline: float | None = None
    nmi_baseline: float | None = None
    setting: float | None = None
    curve: StabilityCurve | None = field(default=None, repr=False)
    names: NDArray[Any] | None = field(default=None, repr=False)
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)

    @property
    def n_clusters(self) -> int:
        """Number of clusters, noise aside."""
        return len(np.unique(self.clusters[self.clusters >= 0]))

    def table(self, labels: ArrayLike | None = None) -> list[dict[str, Any]]:
        """One row per cluster: size, and with labels, (n_targets,), the commonest one and its share."""
        rows = []
        for number in np.unique(self.clusters):
            members = self.clusters == number
            row: dict[str, Any] = {"cluster": int(number), "size": int(members.sum())}
            if labels is not None:
                names, counts = np.unique(np.asarray(labels)[members], return_counts=True)
                row["label"] = np.asarray(names[counts.argmax()]).item()
                row["share"] = float(counts.max() / members.sum())
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        """Clusters and scores without the embedding, JSON-ready."""
        names = ("method", "n_clusters", "setting", "ari", "nmi", "ari_baseline", "nmi_baseline")
        curve = {} if self.curve is None else {"stability": self.curve.to_dict()}
        return {**{name: getattr(self, name) for name in names}, "clusters": self.clusters.tolist(), **curve}


def subgroups(
    attribution: Attribution,
    *,
    n_clusters: int | Literal["stability"] | None = None,
    method: Method = "kmeans",
    resolution: float | None = None,
    n_components: int = 10,
    labels: ArrayLike | None = None,
    features: ArrayLike | None = None,
    models: Source | None = None,
    max_clusters: int = 10,
    n_refits: int = 10,
    estimator: Estimator | type[Estimator] | str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> Subgroups:
    """Cluster targets by what their predictions rest on.

    Parameters
    ----------
    attribution
        Whose targets.
    n_clusters
        For k-means alone; by default the number of distinct labels. ``"stability"``: the number (or, for Leiden, the resolution)
        whose clusters come back when datamodels are refitted on independent halves of `models`, see `choose_clusters`.
    method
        ``kmeans`` (20 starts), ``leiden`` (communities of the graph of 15 nearest neighbours) or ``hdbscan``. The last two find
        the number of clusters by themselves.
    resolution
        Of Leiden, by default 1: the larger, the more clusters.
    n_components
        Of the embedding, see `embed`.
    labels
        (n_targets,) hidden labels to score against, none of them missing. They are not used to find clusters.
    features
        (n_targets, ...) raw features: the same pipeline on them is the baseline. Needs labels.
    models
        Stores, or a `Problem`, that the attribution was fitted on. Needed for ``"stability"`` and only there.
    max_clusters, n_refits, estimator
        Of ``"stability"``; the estimator of the refits is by default `Ridge`.
    seed
        Of clustering and of the halves.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when the number of clusters is unknown, or given to a method that finds it, a label is missing, or sizes differ.
    """
    truth = None if labels is None else as_labels(labels, attribution.n_targets)
    if features is not None and truth is None:
        raise RequestError("features are the baseline for labels: give labels too")
    check_method(method)
    if resolution is not None and method != "leiden":
        raise RequestError(f"resolution is of method 'leiden'; the method is {method!r}")
    embedding = embed(attribution, n_components)
    curve = None
    setting: float | None
    if n_clusters == "stability":
        if models is None:
            raise RequestError(
                "n_clusters='stability' refits on halves of the models: give models, the stores of the fit (--store)"
            )
        curve = choose_clusters(
            models, method=method, max_clusters=max_clusters, n_refits=n_refits, estimator=estimator,
            n_components=n_components, seed=seed, progress=progress, of=attribution.provenance,
        )  # fmt: skip
        setting = curve.setting
    elif method == "kmeans":
        setting = _number(n_clusters, truth)
    elif n_clusters is not None:
        raise RequestError(
            f"{method} finds the number of clusters by itself: leave n_clusters out{', and set resolution' if method == 'leiden' else ''}"
        )
    else:
        setting = 1.0 if method == "leiden" and resolution is None else resolution
    clusters = cluster(embedding, method, setting, seed)
    scores: dict[str, float] = {}
    if truth is not None:
        scores.update(_agreement(truth, clusters, ""))
        if features is not None:
            raw = np.asarray(features)
            if len(raw) != attribution.n_targets:
                raise RequestError(f"features have {len(raw)} rows; there are {attribution.n_targets} targets")
            _check_known(raw)
            baseline = cluster(embed(raw.reshape(len(raw), -1), n_components), method, setting, seed)
            scores.update(_agreement(truth, baseline, "_baseline"))
    given = {"method": method, "setting": setting, "n_components": n_components, "seed": seed}
    return Subgroups(
        clusters,
        embedding,
        method,
        **scores,
        setting=setting,
        curve=curve,
        names=attribution.target_facts.get(IDS),
        provenance={**given, **_origin(attribution)},
    )


def with_ids(attribution: Attribution, data: Dataset, outputs_key: str | None = None) -> Attribution:
    """The attribution with the names of its samples, ``target_facts["ids"]`` and ``train_facts["ids"]``, as far as the dataset has them.

    Then `write_to` finds targets by name, and the explorer shows the names.

    Parameters
    ----------
    attribution
        Without names.
    data
        What the models were trained on.
    outputs_key
        Of the store; targets get names where there is one output per example: not those of ``logits``.

    Raises
    ------
    RequestError
        when the attribution is of another number of training or test examples.
    """
    if len(data.train) != attribution.n_train:
        raise RequestError(
            f"{data.name} has {len(data.train)} training examples, the attribution {attribution.n_train}: give the data that the "
            "models were trained on"
        )
    train, columns = data.train.ids, attribution.train_columns
    ids, positions = (data.test.ids, attribution.target_facts.get("target")) if columns is None else (train, columns)
    targets = None
    if ids is not None and not (outputs_key or "").endswith("logits"):
        at = np.arange(attribution.n_targets) if positions is None else positions
        if at.max(initial=-1) >= len(ids):
            raise RequestError(
                f"the attribution has targets up to {at.max()}, {data.name} {len(ids)} test examples: give the data that the models "
                "were trained on"
            )
        targets = ids[at]
    return replace(
        attribution,
        target_facts={**attribution.target_facts, **({} if targets is None else {IDS: targets})},
        train_facts={**attribution.train_facts, **({} if train is None else {IDS: train})},
    )


def write_to(
    adata: anndata.AnnData, groups: Subgroups, *, key: str = "datamodels", names: ArrayLike | None = None
) -> anndata.AnnData:
    """Put subgroups into an AnnData object whose observations are the targets, where every scanpy tool finds them.

    ``obs[key]`` gets the clusters (categorical), ``obsm["X_" + key]`` the embedding, ``uns[key]`` the provenance:
    ``sc.pl.embedding(adata, basis=key, color=key)`` draws them.

    Parameters
    ----------
    adata
        Changed in place, and returned.
    groups
        The subgroups.
    key
        What they are called there.
    names
        (n_targets,) names of observations that the targets are; by default those the attribution knows, see `with_ids`.
        Observations that are no target get no cluster and NaN as embedding. Without names, targets are the observations in their
        order, which nothing checks.

    Raises
    ------
    RequestError
        when there are more or fewer observations than targets, or a name is unknown or there twice.
    """
    import pandas as pd

    chosen = groups.names if names is None else np.asarray(names)
    count = len(groups.clusters)
    if chosen is None:
        if adata.n_obs != count:
            raise RequestError(
                f"the AnnData has {adata.n_obs} observations, there are {count} targets: give the observations that the targets "
                "are, in their order, or their names"
            )
        rows = np.arange(count)
    else:
        rows = _rows_of(adata, [str(name) for name in chosen], count)
    values = np.full(adata.n_obs, None, dtype=object)
    values[rows] = groups.clusters.astype(str)
    levels = [str(number) for number in np.unique(groups.clusters)]
    embedding = np.full((adata.n_obs, groups.embedding.shape[1]), np.nan)
    embedding[rows] = groups.embedding
    adata.obs[key] = pd.Categorical(values, categories=levels)
    adata.obsm[f"X_{key}"] = embedding
    adata.uns.pop(f"{key}_colors", None)  # of other clusters
    adata.uns[key] = {
        "params": {name: value for name, value in groups.provenance.items() if isinstance(value, str | int | float)},
        "n_clusters": groups.n_clusters,
        "provenance": json.dumps(groups.provenance, default=str),
    }
    if groups.curve is not None:
        table = groups.curve.table()
        adata.uns[key]["stability"] = {name: np.array([row[name] for row in table]) for name in table[0]}
    return adata


def _rows_of(adata: anndata.AnnData, names: list[str], count: int) -> NDArray[np.int64]:
    """Positions of the named observations."""
    if len(names) != count:
        raise RequestError(f"there are {len(names)} names and {count} targets; give one per target")
    if not adata.obs_names.is_unique or len(set(names)) != len(names):
        raise RequestError("names of observations must be there once each; call adata.obs_names_make_unique() first")
    rows = adata.obs_names.get_indexer(names)
    lost = np.flatnonzero(rows < 0)
    if len(lost):
        raise RequestError(
            f"{len(lost)} of {count} targets are no observations of this AnnData (the first is {names[lost[0]]!r}); give the data "
            "that the models were trained on, or names"
        )
    return rows


def _check_known(features: NDArray[Any]) -> None:
    """That features (n_targets, ...) are finite numbers."""
    if features.dtype.kind not in "biuf":
        raise RequestError(f"features are {features.dtype}; give numbers, (n_targets, ...)")
    lost = np.argwhere(~np.isfinite(features))
    if len(lost):
        rows = len(np.unique(lost[:, 0]))
        where = ", ".join(map(str, lost[0, 1:]))
        raise RequestError(
            f"features hold {len(lost):,} values that are NaN or infinite, in {rows:,} of {len(features):,} targets (the first is target "
            f"{lost[0, 0]}, feature {where}), and the baseline needs all of them: fill them (with the feature's mean, for example), leave "
            "such features out, or leave features out"
        )


def _number(n_clusters: Any, truth: NDArray[Any] | None) -> int:
    if isinstance(n_clusters, str):
        raise RequestError(f"n_clusters is {n_clusters!r}; give a number, or 'stability'")
    if n_clusters is None:
        if truth is None:
            raise RequestError(
                "k-means needs a number of clusters (n_clusters, --clusters), or labels to count; stability chooses it from the "
                "models, leiden and hdbscan find it by themselves"
            )
        return len(np.unique(truth))
    if isinstance(n_clusters, bool) or not isinstance(n_clusters, int | np.integer):
        raise RequestError(f"n_clusters is {n_clusters!r}; give a whole number, or 'stability'")
    return int(n_clusters)


def _origin(attribution: Attribution) -> dict[str, Any]:
    """What the attribution says about itself, without its long tables."""
    sources = [
        {name: source.get(name) for name in ("path", "fingerprint", "outputs_key", "identity")}
        for source in attribution.provenance.get("sources", [])
    ]
    return {"estimator": attribution.provenance.get("estimator"), "sources": sources, "versions": versions()}


def _agreement(truth: NDArray[Any], clusters: NDArray[np.int64], suffix: str) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        f"ari{suffix}": float(adjusted_rand_score(truth, clusters)),
        f"nmi{suffix}": float(normalized_mutual_info_score(truth, clusters)),
    }
