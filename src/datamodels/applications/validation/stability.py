"""Do the clusters come back when datamodels are fitted on other models?"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.applications.clustering import cluster
from datamodels.applications.refits import Source, agreement, as_problem, gaussian_like, half_pairs
from datamodels.applications.subgroups import Subgroups
from datamodels.errors import RequestError
from datamodels.regression.estimator import Estimator

STABLE, DOUBTFUL = 0.75, 0.6  # Hennig 2007: above a stable cluster, between a pattern, below nothing to trust


class Spread(NamedTuple):
    """A mean over refits.

    Attributes
    ----------
    value
        The mean.
    low, high
        Quantiles of the refits around it.
    """

    value: float
    low: float
    high: float

    @classmethod
    def of(cls, values: NDArray[np.float64], confidence: float) -> Spread:
        """That of `values`, (r,), with the quantiles that hold the share `confidence` of them."""
        tail = (1 - confidence) / 2
        low, high = np.quantile(values, [tail, 1 - tail])
        return cls(float(values.mean()), float(low), float(high))

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} to {self.high:.2f})"


class OneCluster(NamedTuple):
    """How well one cluster comes back.

    Attributes
    ----------
    cluster, size
        Its number and its targets.
    jaccard
        Its largest Jaccard index with any cluster of a refit, over all refits.
    """

    cluster: int
    size: int
    jaccard: Spread

    @property
    def word(self) -> str:
        """``stable``, ``doubtful`` or ``dissolves``: above .75, from .6, and below (Hennig 2007)."""
        mean = self.jaccard.value
        return "stable" if mean >= STABLE else "doubtful" if mean >= DOUBTFUL else "dissolves"


class Separation(NamedTuple):
    """Whether the embedding falls into clusters, or is one cloud.

    Attributes
    ----------
    explained
        Share of the embedding's variance that k-means with as many clusters explains.
    one_cloud
        The mean of the same over Gaussian clouds of equal covariance.
    p
        ``(1 + clouds that explain as much) / (1 + clouds)`` (SigClust: Liu et al. 2008).
    """

    explained: float
    one_cloud: float
    p: float


def separation(embedding: NDArray[np.float64], n_clusters: int, *, draws: int = 99, seed: int = 0) -> Separation:
    """Test an embedding (n_targets, components) for clusters against one Gaussian cloud of the same covariance.

    A rejection says that the embedding is no Gaussian cloud: clusters, or something else that k-means can use.
    """
    rng = np.random.default_rng([seed, 0x73657061])
    observed = _explained(embedding, n_clusters, seed)
    null = np.array([_explained(gaussian_like(embedding, rng), n_clusters, seed) for _ in range(draws)])
    return Separation(observed, float(null.mean()), float((1 + (null >= observed).sum()) / (1 + draws)))


def _explained(embedding: NDArray[np.float64], n_clusters: int, seed: int) -> float:
    codes = cluster(embedding, "kmeans", n_clusters, seed, starts=5)
    centred = embedding - embedding.mean(axis=0)
    means = np.array([centred[codes == code].mean(axis=0) for code in range(n_clusters)])
    return float((np.bincount(codes) * (means**2).sum(axis=1)).sum() / (centred**2).sum())


@dataclass(frozen=True, eq=False)
class ClusterStability:
    """How well clusterings of refits on halves of the models agree.

    Attributes
    ----------
    ari
        Adjusted Rand index between the two disjoint halves of a pair. Halves have half of the models, so all of them together do
        better than this.
    clusters
        One `OneCluster` per cluster of the given clustering.
    separation
        Whether there are clusters at all: stable cuts through one cloud are none.
    n_refits, confidence
        Pairs of halves, and that of the intervals.
    runs
        (n_refits,) adjusted Rand index of each pair.
    """

    ari: Spread
    clusters: tuple[OneCluster, ...]
    separation: Separation
    n_refits: int
    confidence: float
    runs: NDArray[np.float64] = field(repr=False)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        rows = [
            {"cluster": one.cluster, "size": one.size, **one.jaccard._asdict(), "word": one.word}
            for one in self.clusters
        ]
        facts = {"n_refits": self.n_refits, "confidence": self.confidence}
        return {"ari": self.ari._asdict(), **facts, "separation": self.separation._asdict(), "clusters": rows}


def cluster_stability(
    models: Source,
    groups: Subgroups,
    *,
    n_refits: int = 20,
    estimator: Estimator | type[Estimator] | str | None = None,
    confidence: float = 0.95,
    seed: int = 0,
    progress: bool = True,
) -> ClusterStability:
    """Refit on disjoint halves of the models, embed and cluster as `groups` were, and compare: all clusters by the adjusted Rand index
    (Hubert & Arabie 1985), each one by its largest Jaccard index (Hennig 2007).

    Parameters
    ----------
    models
        Stores or a `Problem`, of the same targets as `groups`.
    groups
        The clustering to judge. Refits use its method, its number of clusters or resolution, and its number of components.
    n_refits
        Pairs of halves.
    estimator
        Of the refits, by default `Ridge`.
    confidence
        Of the intervals: quantiles over refits. Refits share models and targets are taken as they are, so these say how much a
        refit scatters, not how much another experiment would.
    seed
        Draws the halves.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when targets differ in number, or there is only one cluster.
    """
    problem = as_problem(models, groups.provenance)
    if problem.n_targets != len(groups.clusters):
        raise RequestError(
            f"the models have {problem.n_targets} targets, the subgroups {len(groups.clusters)}: give the same ones"
        )
    if groups.n_clusters < 2:
        raise RequestError(f"there is {groups.n_clusters} cluster; stability compares two or more")
    setting = groups.setting if groups.setting is not None or groups.method != "kmeans" else groups.n_clusters
    numbers = np.unique(groups.clusters[groups.clusters >= 0])
    ari, jaccard = [], []
    pairs = half_pairs(
        problem,
        n_refits=n_refits,
        estimator=estimator,
        n_components=groups.embedding.shape[1],
        seed=seed,
        progress=progress,
    )
    for pair in pairs:
        first, second = (cluster(half, groups.method, setting, seed, starts=10) for half in pair)
        ari.append(agreement(first, second))
        jaccard += [[best_jaccard(groups.clusters == number, half) for number in numbers] for half in (first, second)]
    found = np.array(jaccard)
    rows = tuple(
        OneCluster(int(number), int((groups.clusters == number).sum()), Spread.of(found[:, k], confidence))
        for k, number in enumerate(numbers)
    )
    runs = np.array(ari)
    apart = separation(groups.embedding, groups.n_clusters, seed=seed)
    return ClusterStability(Spread.of(runs, confidence), rows, apart, n_refits, confidence, runs)


def best_jaccard(members: NDArray[np.bool_], clusters: NDArray[np.int64]) -> float:
    """The largest Jaccard index of a set of targets with any cluster; noise (-1) is none."""
    best = 0.0
    for number in np.unique(clusters[clusters >= 0]):
        other = clusters == number
        best = max(best, float((members & other).sum() / (members | other).sum()))
    return best
