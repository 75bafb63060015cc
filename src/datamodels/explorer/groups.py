"""Subgroups of targets, found or given: what they are made of, whether they are stable, and what else tells them apart."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.explorer.columns import Column, category, column_of
from datamodels.explorer.weights import read_observations
from datamodels.progress import Progress

if TYPE_CHECKING:
    from datamodels.applications.subgroups import Subgroups

_CLUSTERS = 10
_DRAWS = 20
_SHOWN = 8
_LEVEL = 0.01


def find(embedding: NDArray[np.float64], hidden: Column | None, n_clusters: int | None = None) -> Subgroups | None:
    """k-means on principal components; as many clusters as hidden labels, else ten. None when hardly any target differs.

    With labels it is what `datamodels.applications.subgroups.subgroups` finds.
    """
    from datamodels.applications.clustering import cluster
    from datamodels.applications.subgroups import Subgroups

    distinct = _distinct(embedding)
    if distinct < 3:
        return None
    wanted = 0 if hidden is None else len(np.unique(hidden.values[hidden.values >= 0]))
    k = (
        wanted
        if n_clusters is None and 2 <= wanted <= distinct
        else min(n_clusters or _CLUSTERS, max(1, distinct // 2))
    )
    return Subgroups(cluster(embedding, "kmeans", k), embedding, "kmeans", setting=float(k))


def of(embedding: NDArray[np.float64], given: Column) -> Subgroups:
    """The groups that a column of categories tells; -1 where it tells none."""
    from datamodels.applications.subgroups import Subgroups

    return Subgroups(given.values.astype(np.int64), embedding, "given")


def scored(found: Subgroups, hidden: Column | None, features: NDArray[Any] | None) -> Subgroups:
    """The same with its agreement with hidden labels, and with that of the same pipeline on raw features (n_targets, f)."""
    from datamodels.applications.clustering import cluster, embed

    if hidden is None:
        return found
    known, k = (hidden.values >= 0) & (found.clusters >= 0), found.setting
    scores: dict[str, Any] = _agreement(hidden.values[known], found.clusters[known], "")
    if features is not None and k is not None and _distinct(features) >= k:
        baseline = cluster(embed(features, found.embedding.shape[1]), "kmeans", k)
        scores |= _agreement(hidden.values[known], baseline[known], "_baseline")
    return replace(found, **scores)


def _distinct(rows: NDArray[Any]) -> int:
    """Rows that differ by more than rounding."""
    return len(np.unique(rows.round(9), axis=0))


def column_to_group_by(columns: Sequence[Column], name: str) -> Column:
    """The column of this name, whole numbers as categories.

    Raises
    ------
    RequestError
        when there is none, or it is of other numbers.
    """
    able = [one for one in columns if one.categories is not None or _is_whole(one.values)]
    found = next((one for one in able if one.name == name), None)
    if found is None:
        what = "has numbers, not groups" if any(one.name == name for one in columns) else "is none of the targets'"
        raise RequestError(
            f"the column {name!r} {what}; legal: {', '.join(one.name for one in able) or 'none, for no column tells groups'}"
        )
    if found.categories is not None:
        return found
    numbers, codes = np.unique(found.values, return_inverse=True)
    return category(found.name, codes, [str(number) for number in numbers], found.description)


def column_of_file(path: str | Path, name: str | None, ids: NDArray[Any] | None, n_targets: int) -> Column:
    """A column of the observations of an AnnData file, as groups of targets.

    Parameters
    ----------
    name
        Of the column; by default the one that `datamodels.applications.subgroups.write_to` has written.
    ids
        Names of the targets, by which observations are found; None: they are the targets in their order.

    Raises
    ------
    RequestError
        when the file or the column cannot be read, or does not say the groups of all targets.
    """
    frame, names, written = read_observations(path)
    if name is None:
        keys = [key for key in written if key in frame]
        if len(keys) != 1:
            what = (
                f"several columns of clusters, {', '.join(keys)}"
                if keys
                else "no clusters of `datamodels subgroups --write-to`"
            )
            raise RequestError(f"{str(path)!r} has {what}: name a column of its obs (--groups)")
        name = keys[0]
    size = len(next(iter(frame.values()), ()))
    rows = np.arange(n_targets)
    if ids is not None and names is not None:
        place = {str(one): i for i, one in enumerate(names)}
        lost = [str(one) for one in ids if str(one) not in place]
        if lost or len(place) < len(names):
            raise RequestError(
                f"{str(path)!r} lacks {len(lost)} of {n_targets} targets (the first is {lost[0]!r})"
                if lost
                else f"{str(path)!r} has observations of one name more than once"
            )
        rows = np.array([place[str(one)] for one in ids])
    elif size != n_targets:
        raise RequestError(
            f"{str(path)!r} has {size} observations; there are {n_targets} targets, whose names are not known: give --recipe, whose "
            "dataset may know them"
        )
    told = f"in {Path(path).name}"
    return column_to_group_by([column_of(key, values[rows], told) for key, values in frame.items()], name)


def _is_whole(values: NDArray[Any]) -> bool:
    return values.dtype.kind in "iu" and len(np.unique(values)) <= max(2, len(values) / 3)


def column_of_clusters(clusters: Sequence[int], attribution: str) -> Column:
    """The clusters as a column of targets."""
    names = [str(k) for k in range(max(clusters) + 1)]
    return category("cluster", clusters, names, f"subgroups of targets by {attribution}")


def stability(embedding: NDArray[np.float64], clusters: NDArray[np.int64], progress: bool) -> list[float]:
    """Of each cluster the mean Jaccard index with its best match when a bootstrap sample of the targets is clustered (Hennig 2007,
    Comput. Stat. Data Anal. 52, 258-271): above 0.75 stable, below 0.5 dissolved.

    It says nothing about other models: `datamodels.applications.validation.stability.cluster_stability` does, and refits for it.
    """
    from datamodels.applications.clustering import cluster
    from datamodels.applications.validation.stability import best_jaccard

    rng, k = np.random.default_rng(0), int(clusters.max()) + 1
    found: list[list[float]] = [[] for _ in range(k)]
    with Progress("stability of subgroups", _DRAWS, "samples", show=progress) as bar:
        for _ in range(_DRAWS):
            drawn = np.unique(rng.integers(0, len(embedding), len(embedding)))
            if _distinct(embedding[drawn]) >= k:
                again, before = cluster(embedding[drawn], "kmeans", k, starts=3), clusters[drawn]
                for number in np.unique(before):
                    found[number].append(best_jaccard(before == number, again))
            bar.advance()
    return [float(np.mean(values)) if values else float("nan") for values in found]


def describe(
    attribution: str,
    found: Subgroups,
    label: Column | None,
    hidden: Column | None,
    others: Sequence[Column],
    progress: bool,
    given: Column | None = None,
) -> dict[str, Any]:
    """The table of subgroups, JSON-ready.

    Parameters
    ----------
    found
        What `find` found, or `of` made of a column, scored.
    label, hidden
        What composition is counted by, and what the clusters were scored against.
    others
        Columns that may tell a cluster from the rest without being its meaning: confounders.
    given
        The column. Its groups have its names, and no stability, for nobody knows here how they were found.
    """
    embedding, clusters = found.embedding, found.clusters
    stable = stability(embedding, clusters, progress) if given is None else [float("nan")] * (clusters.max() + 1)
    names = given.categories if given is not None else None
    numbers = np.unique(clusters[clusters >= 0]).tolist()
    rows = []
    for number in numbers:
        members = np.flatnonzero(clusters == number)
        centre = embedding[members].mean(axis=0)
        near = np.argsort(((embedding[members] - centre) ** 2).sum(axis=1), kind="stable")[:_SHOWN]
        rows.append(
            {
                "cluster": number if names is None else names[number],
                "size": len(members),
                "composition": [] if label is None else _counts(label, members),
                "stability": stable[number] if np.isfinite(stable[number]) else None,
                "representatives": members[near].tolist(),
                "confounders": _confounders(clusters == number, others, len(numbers)),
            }
        )
    return {
        "method": "k-means on principal components of the datamodels" if given is None else "given",
        "given": None if given is None else f"{given.name}, {given.description}",
        "attribution": attribution,
        "n_clusters": len(numbers),
        "label": None if hidden is None else hidden.name,
        **{name: getattr(found, name) for name in ("ari", "nmi", "ari_baseline", "nmi_baseline")},
        "rows": rows,
        "statements": _statements(found, hidden, rows),
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


def _statements(found: Subgroups, hidden: Column | None, rows: Sequence[dict[str, Any]]) -> list[str]:
    from datamodels.applications.validation.stability import STABLE

    out = []
    if hidden is not None and found.ari is not None:
        text = f"Clusters agree with {hidden.name} to an adjusted Rand index of {found.ari:.3f} (mutual information {found.nmi:.3f})"
        if found.ari_baseline is not None:
            text += f"; the same pipeline on raw features reaches {found.ari_baseline:.3f} ({found.nmi_baseline:.3f})"
        out.append(f"{text}.")
    known = [row for row in rows if row["stability"] is not None]
    stable = sum(row["stability"] >= STABLE for row in known)
    if known:
        out.append(
            f"{stable} of {len(known)} clusters are stable over targets: a bootstrap of the targets finds them again with a "
            f"Jaccard index of {STABLE} or more. Whether they come back with other models, datamodels validate tells."
        )
    return out


def _agreement(truth: NDArray[Any], clusters: NDArray[np.int64], suffix: str) -> dict[str, float]:
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

    return {
        f"ari{suffix}": float(adjusted_rand_score(truth, clusters)),
        f"nmi{suffix}": float(normalized_mutual_info_score(truth, clusters)),
    }
