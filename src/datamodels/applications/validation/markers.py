"""Which features mark a subgroup?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.applications.clustering import as_labels
from datamodels.applications.validation.confounding import adjusted, as_clusters
from datamodels.errors import RequestError, first_line

_CHUNK = 32 << 20  # bytes of features at a time


@dataclass(frozen=True, eq=False)
class Markers:
    """Features whose values differ between a cluster and the rest.

    Attributes
    ----------
    clusters
        (k,) numbers.
    auc
        (k, features) chance that a member's value is above that of another example, ties counted half: .5 is no difference.
    p
        (k, features) two-sided rank-sum test (Mann-Whitney), normal with corrections for ties and continuity.
    q
        (k, features) p after Benjamini and Hochberg, over the features of a cluster.
    names
        (features,).
    """

    clusters: NDArray[np.int64]
    auc: NDArray[np.float64] = field(repr=False)
    p: NDArray[np.float64] = field(repr=False)
    q: NDArray[np.float64] = field(repr=False)
    names: NDArray[Any] = field(repr=False)

    def of(self, cluster: int, k: int = 20, fdr: float = 0.05) -> list[dict[str, Any]]:
        """The k features of a cluster that are farthest from AUC .5, of those with q at most `fdr`.

        Raises
        ------
        RequestError
            when there is no such cluster.
        """
        if cluster not in self.clusters:
            raise RequestError(f"there is no cluster {cluster}; legal: {self.clusters.tolist()}")
        row = int(np.flatnonzero(self.clusters == cluster)[0])
        order = np.lexsort((np.arange(len(self.names)), -np.abs(self.auc[row] - 0.5)))
        order = order[self.q[row, order] <= fdr][:k]
        return [
            {
                "feature": str(self.names[i]),
                "auc": float(self.auc[row, i]),
                "p": float(self.p[row, i]),
                "q": float(self.q[row, i]),
            }
            for i in order
        ]

    def counts(self, fdr: float = 0.05) -> NDArray[np.int64]:
        """Features with q at most `fdr`, (k,) numbers, one per cluster."""
        return (self.q <= fdr).sum(axis=1)

    def to_dict(self, k: int = 20) -> dict[str, Any]:
        """JSON-ready: the `k` strongest features of each cluster."""
        counts = self.counts()
        return {
            "clusters": [
                {"cluster": int(one), "n_significant": int(counts[i]), "top": self.of(int(one), k)}
                for i, one in enumerate(self.clusters)
            ]
        }


def markers(
    x: Any,
    clusters: ArrayLike,
    feature_names: Sequence[str] | NDArray[Any] | None = None,
    *,
    labels: ArrayLike | None = None,
) -> Markers:
    """Rank-sum tests of each feature, each cluster against the rest.

    The p-values describe, they do not prove. Clusters were found through models of the same features, and groups that are found in
    features differ in these features even where there are no groups ("double dipping": Gao, Bien & Witten 2022,
    arXiv:2012.02936). Features that no model was trained on are free of that: give those as `x` where there are any.

    Parameters
    ----------
    x
        (n_targets, features) array or sparse matrix.
    clusters
        (n_targets,) numbers; -1 (noise) gets no markers but is part of the rest.
    feature_names
        (features,), by default numbers.
    labels
        (n_targets,) class of each target: members of a cluster are then compared with other examples of the cluster's commonest
        class, and its other members left out. Without, markers of a class are markers of its clusters.

    Raises
    ------
    RequestError
        when lengths differ, a value is not a finite number, a label is missing, or a cluster has no rest to be compared with.
    """
    from scipy import sparse

    numbers = as_clusters(clusters)
    matrix: Any = x.tocsc() if sparse.issparse(x) else np.asarray(x)
    if matrix.ndim != 2 or matrix.shape[0] != len(numbers):
        raise RequestError(f"x has shape {matrix.shape}; give one row per target, ({len(numbers)}, features)")
    width = matrix.shape[1]
    names = np.arange(width) if feature_names is None else np.asarray(feature_names)
    if names.shape != (width,):
        raise RequestError(f"feature_names has shape {names.shape}; x has {width} features")
    classes = None if labels is None else as_labels(labels, len(numbers))
    groups = np.unique(numbers[numbers >= 0])
    if not len(groups):
        raise RequestError("all targets are noise (cluster -1): there is no cluster to find markers of")
    comparisons = [_members(numbers, int(one), classes) for one in groups]
    auc, p = np.empty((len(groups), width)), np.empty((len(groups), width))
    step = max(1, _CHUNK // (8 * len(numbers)))
    for start in range(0, width, step):
        part = matrix[:, start : start + step]
        try:
            dense = np.asarray(part.toarray() if sparse.issparse(part) else part, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise RequestError(f"x holds what is no number ({first_line(error)}); give numbers alone") from None
        if not np.isfinite(dense).all():
            raise RequestError(
                "x holds NaN or inf; rank sums need finite values: leave such features out, or fill them"
            )
        for k, (members, compared) in enumerate(comparisons):
            auc[k, start : start + step], p[k, start : start + step] = rank_sum(dense[compared], members[compared])
    return Markers(groups.astype(np.int64), auc, p, adjusted(p), names)


def rank_sum(x: NDArray[np.float64], members: NDArray[np.bool_]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """AUC and two-sided p of each feature of x (k, features), members (k,) against the others."""
    from scipy import stats

    n, inside = len(x), int(members.sum())
    outside = n - inside
    ranks = stats.rankdata(x, axis=0)
    u = ranks[members].sum(axis=0) - inside * (inside + 1) / 2
    ordered = np.sort(x, axis=0)
    ties = np.zeros(x.shape[1])
    for column in range(x.shape[1]):
        starts = np.flatnonzero(np.r_[True, ordered[1:, column] != ordered[:-1, column], True])
        sizes = np.diff(starts).astype(np.float64)
        ties[column] = (sizes**3 - sizes).sum()
    variance = inside * outside / 12 * ((n + 1) - ties / (n * (n - 1)))
    away = np.maximum(np.abs(u - inside * outside / 2) - 0.5, 0)
    z = np.divide(away, np.sqrt(variance), out=np.zeros_like(away), where=variance > 0)
    return u / (inside * outside), 2 * stats.norm.sf(z)


def _members(
    clusters: NDArray[np.int64], number: int, labels: NDArray[Any] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Who is in the cluster, and who is compared at all."""
    members = clusters == number
    compared = np.ones(len(members), dtype=np.bool_)
    if labels is not None:
        found, counts = np.unique(labels[members], return_counts=True)
        compared = labels == found[counts.argmax()]
    if (members & compared).sum() in (0, compared.sum()):
        raise RequestError(
            f"cluster {number} is all of "
            + ("the targets" if labels is None else "its class")
            + ", so there is no rest to compare it with: "
            + ("markers need a second cluster" if labels is None else "leave labels out")
        )
    return members, compared
