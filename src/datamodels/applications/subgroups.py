"""Hidden subgroups: targets whose predictions rest on the same training examples."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError

Method = Literal["kmeans", "hdbscan"]
_FEWEST = 5


@dataclass(frozen=True, eq=False)
class Subgroups:
    """Clusters of targets.

    Attributes
    ----------
    clusters
        (n_targets,) cluster numbers; -1 is HDBSCAN's noise.
    embedding
        (n_targets, components).
    ari, nmi
        Adjusted Rand index and normalised mutual information against given labels, else None.
    ari_baseline, nmi_baseline
        The same pipeline on raw features.
    """

    clusters: NDArray[np.int64] = field(repr=False)
    embedding: NDArray[np.float64] = field(repr=False)
    method: str
    ari: float | None = None
    nmi: float | None = None
    ari_baseline: float | None = None
    nmi_baseline: float | None = None

    @property
    def n_clusters(self) -> int:
        return len(np.unique(self.clusters[self.clusters >= 0]))

    def table(self, labels: ArrayLike | None = None) -> list[dict[str, Any]]:
        """One row per cluster: size, and with labels the commonest one and its share."""
        rows = []
        for cluster in np.unique(self.clusters):
            members = self.clusters == cluster
            row: dict[str, Any] = {"cluster": int(cluster), "size": int(members.sum())}
            if labels is not None:
                names, counts = np.unique(np.asarray(labels)[members], return_counts=True)
                row["label"] = np.asarray(names[counts.argmax()]).item()
                row["share"] = float(counts.max() / members.sum())
            rows.append(row)
        return rows

    def to_dict(self) -> dict[str, Any]:
        names = ("method", "n_clusters", "ari", "nmi", "ari_baseline", "nmi_baseline")
        return {**{name: getattr(self, name) for name in names}, "clusters": self.clusters.tolist()}


def embed(vectors: Attribution | ArrayLike, n_components: int = 10) -> NDArray[np.float64]:
    """PCA of unit-normalised datamodels: one row per target, (n_targets, n_components).

    Given an array (n_targets, n_features) instead, the same is done with its rows. Signs of
    components are fixed, so that the result is reproducible.
    """
    from sklearn.decomposition import PCA

    rows = vectors.weights.T if isinstance(vectors, Attribution) else np.asarray(vectors)
    if rows.ndim != 2:
        raise RequestError(f"the vectors to embed have shape {rows.shape}; give (n_targets, n_features)")
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    rows = np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)
    if n_components < 1:
        raise RequestError(f"n_components is {n_components}; give 1 or more")
    if (rows == rows[:1]).all():  # nothing varies, and PCA would divide by it
        return np.zeros((len(rows), min(n_components, *rows.shape)))
    return PCA(min(n_components, *rows.shape), svd_solver="full").fit_transform(rows)


def subgroups(
    attribution: Attribution,
    *,
    n_clusters: int | None = None,
    method: Method = "kmeans",
    n_components: int = 10,
    labels: ArrayLike | None = None,
    features: ArrayLike | None = None,
    seed: int = 0,
) -> Subgroups:
    """Cluster targets by what their predictions rest on.

    Parameters
    ----------
    n_clusters
        For k-means; by default the number of distinct labels.
    method
        ``kmeans`` (20 starts) or ``hdbscan`` (finds the number of clusters by itself).
    labels
        (n_targets,) hidden labels to score against. They are not used to find clusters.
    features
        (n_targets, ...) raw features: the same pipeline on them is the baseline. Needs labels.

    Raises
    ------
    RequestError
        when the number of clusters is unknown or sizes differ.
    """
    truth = None if labels is None else np.asarray(labels)
    if truth is not None and truth.shape != (attribution.n_targets,):
        raise RequestError(f"labels have shape {truth.shape}; there are {attribution.n_targets} targets")
    if features is not None and truth is None:
        raise RequestError("features are the baseline for labels: give labels too")
    if method == "kmeans" and n_clusters is None:
        if truth is None:
            raise RequestError(
                "k-means needs a number of clusters (n_clusters, --clusters), or labels to count; hdbscan finds the number by itself"
            )
        n_clusters = len(np.unique(truth))
    embedding = embed(attribution, n_components)
    clusters = _cluster(embedding, n_clusters, method, seed)
    scores: dict[str, float] = {}
    if truth is not None:
        scores.update(_agreement(truth, clusters, ""))
        if features is not None:
            raw = np.asarray(features)
            if len(raw) != attribution.n_targets:
                raise RequestError(f"features have {len(raw)} rows; there are {attribution.n_targets} targets")
            baseline = _cluster(embed(raw.reshape(len(raw), -1), n_components), n_clusters, method, seed)
            scores.update(_agreement(truth, baseline, "_baseline"))
    return Subgroups(clusters, embedding, method, **scores)


def _cluster(embedding: NDArray[np.float64], n_clusters: int | None, method: str, seed: int) -> NDArray[np.int64]:
    from sklearn.cluster import HDBSCAN, KMeans

    if method == "kmeans":
        if n_clusters is None or not 1 <= n_clusters <= len(embedding):
            raise RequestError(f"n_clusters is {n_clusters}; it must be between 1 and the {len(embedding)} targets")
        distinct = len(np.unique(embedding, axis=0))
        if distinct < n_clusters:
            raise RequestError(f"n_clusters is {n_clusters}, but only {distinct} targets differ from each other")
        return KMeans(n_clusters, n_init=20, random_state=seed).fit_predict(embedding).astype(np.int64)
    if method == "hdbscan":
        if len(embedding) < _FEWEST:
            raise RequestError(f"hdbscan needs at least {_FEWEST} targets; there are {len(embedding)}")
        return (
            HDBSCAN(min_cluster_size=max(_FEWEST, len(embedding) // 100), copy=True)
            .fit_predict(embedding)
            .astype(np.int64)
        )
    raise RequestError(f"method {method!r} is unknown; legal: kmeans, hdbscan")


def _agreement(truth: NDArray[Any], clusters: NDArray[np.int64], suffix: str) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        f"ari{suffix}": float(adjusted_rand_score(truth, clusters)),
        f"nmi{suffix}": float(normalized_mutual_info_score(truth, clusters)),
    }
