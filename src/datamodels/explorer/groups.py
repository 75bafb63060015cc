"""Subgroups of targets: what they are made of, whether they are stable, and what else tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.explorer.columns import Column
from datamodels.progress import Progress

_CLUSTERS = 10
_DRAWS = 20
_SHOWN = 8
_LEVEL = 0.01


def clusters_of(embedding: NDArray[np.float64], label: Column | None) -> NDArray[np.int64] | None:
    """k-means on principal components, (n_targets,); as many clusters as labels, else ten. None when hardly any target differs.

    With labels it is what `datamodels.applications.subgroups.subgroups` finds.
    """
    from datamodels.applications.clustering import cluster

    distinct = len(np.unique(embedding, axis=0))
    if distinct < 3:
        return None
    wanted = 0 if label is None else len(np.unique(label.values[label.values >= 0]))
    k = wanted if 2 <= wanted <= distinct else min(_CLUSTERS, max(1, distinct // 2))
    return cluster(embedding, "kmeans", k)


def stability(embedding: NDArray[np.float64], clusters: NDArray[np.int64], progress: bool) -> list[float]:
    """Of each cluster the mean Jaccard index with its best match when a bootstrap sample of the targets is clustered (Hennig 2007,
    Comput. Stat. Data Anal. 52, 258-271): above 0.75 stable, below 0.5 dissolved."""
    from datamodels.applications.clustering import cluster

    rng, k = np.random.default_rng(0), int(clusters.max()) + 1
    found: list[list[float]] = [[] for _ in range(k)]
    with Progress("stability of subgroups", _DRAWS, "samples", show=progress) as bar:
        for _ in range(_DRAWS):
            drawn = np.unique(rng.integers(0, len(embedding), len(embedding)))
            if len(np.unique(embedding[drawn], axis=0)) >= k:
                again, before = cluster(embedding[drawn], "kmeans", k, starts=3), clusters[drawn]
                both = np.zeros((k, k))
                np.add.at(both, (before, again), 1)
                either = both.sum(axis=1, keepdims=True) + both.sum(axis=0) - both
                best = (both / np.maximum(either, 1)).max(axis=1)
                for number in np.unique(before):
                    found[number].append(float(best[number]))
            bar.advance()
    return [float(np.mean(values)) if values else float("nan") for values in found]


def describe(
    attribution: str,
    embedding: NDArray[np.float64],
    clusters: NDArray[np.int64],
    label: Column | None,
    others: Sequence[Column],
    progress: bool,
) -> dict[str, Any]:
    """The table of subgroups, JSON-ready.

    Parameters
    ----------
    label
        What composition is counted by.
    others
        Columns that may tell a cluster from the rest without being its meaning: confounders.
    """
    stable = stability(embedding, clusters, progress)
    numbers = np.unique(clusters).tolist()
    rows = []
    for number in numbers:
        members = np.flatnonzero(clusters == number)
        centre = embedding[members].mean(axis=0)
        near = np.argsort(((embedding[members] - centre) ** 2).sum(axis=1), kind="stable")[:_SHOWN]
        rows.append(
            {
                "cluster": number,
                "size": len(members),
                "composition": [] if label is None else _counts(label, members),
                "stability": stable[number] if np.isfinite(stable[number]) else None,
                "representatives": members[near].tolist(),
                "confounders": _confounders(clusters == number, others, len(numbers)),
            }
        )
    return {
        "method": "k-means on principal components of the datamodels",
        "attribution": attribution,
        "n_clusters": len(numbers),
        "rows": rows,
        "statements": _statements(clusters, label, rows),
    }


def _counts(label: Column, members: NDArray[np.int64]) -> list[list[Any]]:
    codes, counts = np.unique(label.values[members], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    names = (*(label.categories or ()), "missing")
    return [[names[codes[i]], int(counts[i])] for i in order]


def _confounders(inside: NDArray[np.bool_], columns: Sequence[Column], n_clusters: int) -> list[dict[str, Any]]:
    """Columns that differ between a cluster and the rest after Bonferroni's correction, strongest first.

    Effects: the rank-biserial correlation of numbers, Cramér's V of categories.
    """
    from scipy import stats

    found: list[dict[str, Any]] = []
    for column in columns:
        known = column.values >= 0 if column.categories is not None else np.isfinite(column.values)
        values, mine = column.values[known], inside[known]
        if len(np.unique(values)) < 2 or not 0 < mine.sum() < len(mine):
            continue
        if column.categories is None:
            test = stats.mannwhitneyu(values[mine], values[~mine])
            effect = 2 * float(test.statistic) / (int(mine.sum()) * int((~mine).sum())) - 1
            p = float(test.pvalue)
        else:
            table = np.stack([np.bincount(values[mine == side], minlength=len(column.categories)) for side in (0, 1)])
            table = table[:, table.sum(axis=0) > 0]
            test = stats.chi2_contingency(table, correction=False)
            effect, p = float(np.sqrt(test.statistic / len(values))), float(test.pvalue)
        if p * len(columns) * n_clusters < _LEVEL:
            found.append({"name": column.name, "effect": effect, "p": p})
    return sorted(found, key=lambda one: -abs(one["effect"]))[:_SHOWN]


def _statements(clusters: NDArray[np.int64], label: Column | None, rows: Sequence[dict[str, Any]]) -> list[str]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    out = []
    if label is not None:
        known = label.values >= 0
        ari = adjusted_rand_score(label.values[known], clusters[known])
        nmi = normalized_mutual_info_score(label.values[known], clusters[known])
        out.append(
            f"Clusters agree with {label.name} to an adjusted Rand index of {ari:.3f} (mutual information {nmi:.3f})."
        )
    known_rows = [row for row in rows if row["stability"] is not None]
    stable = sum(row["stability"] >= 0.75 for row in known_rows)
    if known_rows:
        out.append(
            f"{stable} of {len(known_rows)} clusters are stable: a bootstrap of the targets finds them again with a "
            "Jaccard index of 0.75 or more."
        )
    return out
