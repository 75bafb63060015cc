"""Refits on halves of the models, and the number of clusters that comes back in them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from datamodels.applications.clustering import check_method, cluster, embed
from datamodels.errors import ConstantColumnWarning, ConvergenceWarning, RequestError
from datamodels.progress import Progress
from datamodels.regression.estimator import Estimator
from datamodels.regression.estimators import Ridge
from datamodels.regression.fit import fit_problem, resolve
from datamodels.regression.problem import Problem
from datamodels.regression.source import OUTPUTS
from datamodels.store import Store

Source = Problem | Store | str | Path | Sequence[Store | str | Path]
RESOLUTIONS = (0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 1.0, 1.4)
_FEWEST_UNITS = 8
_STARTS = 5  # of k-means: clusterings are many here


class Pair(NamedTuple):
    """Embeddings (n_targets, components) of datamodels that were fitted on disjoint halves of the models."""

    first: NDArray[np.float64]
    second: NDArray[np.float64]


def as_problem(source: Source, of: Mapping[str, Any] | None = None) -> Problem:
    """The rows of a store, a folder or several, with the outputs that an attribution, of this provenance, is of; or a problem
    as it is."""
    if isinstance(source, Problem):
        return source
    told: Mapping[str, Any] = next(iter((of or {}).get("sources", ())), {})
    return Problem.build(source, outputs_key=told.get("outputs_key") or OUTPUTS)


def half_pairs(
    source: Source,
    *,
    n_refits: int = 20,
    estimator: Estimator | type[Estimator] | str | None = None,
    n_components: int = 10,
    seed: int = 0,
    progress: bool = True,
) -> Iterator[Pair]:
    """Split the models at random into two halves and fit, embed both, `n_refits` times over.

    Replicates and antithetic pairs stay together. The estimator is by default `Ridge`. The two embeddings of a pair rest on no
    common model; those of different pairs do.
    """
    problem = as_problem(source)
    if n_refits < 2:
        raise RequestError(f"n_refits is {n_refits}; give 2 or more, for example 20")
    names = np.unique(problem.units)
    if len(names) < _FEWEST_UNITS:
        raise RequestError(
            f"{len(names)} independent models are too few to split in halves; train {_FEWEST_UNITS} at least"
        )
    chosen = Ridge() if estimator is None else resolve(estimator)
    rng = np.random.default_rng([seed, 0x70616972])
    size = len(names) // 2
    with Progress("refits on halves", n_refits, "pairs", show=progress) as bar:
        for _ in range(n_refits):
            order = rng.permutation(names)
            halves = []
            for part in (order[:size], order[size : 2 * size]):
                with warnings.catch_warnings():  # fewer rows: what the whole fit would say once is said there
                    warnings.simplefilter("ignore", ConstantColumnWarning)
                    warnings.simplefilter("ignore", ConvergenceWarning)
                    fitted = fit_problem(problem.take(np.isin(problem.units, part)), chosen, progress=False)
                halves.append(embed(fitted, n_components))
            yield Pair(*halves)
            bar.advance()


def gaussian_like(values: NDArray[np.float64], rng: np.random.Generator) -> NDArray[np.float64]:
    """Gaussian draws of mean 0 with the sample covariance of values (k, d), of any rank."""
    _, scale, directions = np.linalg.svd(values - values.mean(axis=0), full_matrices=False)
    drawn = rng.normal(size=(len(values), len(scale)))
    return drawn @ (scale[:, None] * directions) / np.sqrt(max(len(values) - 1, 1))


def agreement(first: NDArray[np.int64], second: NDArray[np.int64]) -> float:
    """Adjusted Rand index; 0 when one of the clusterings is a single cluster, which is none."""
    from sklearn.metrics import adjusted_rand_score

    if min(len(np.unique(first)), len(np.unique(second))) < 2:
        return 0.0
    return float(adjusted_rand_score(first, second))


@dataclass(frozen=True, eq=False)
class StabilityCurve:
    """How well clusterings of independent halves of the models agree, by number of clusters (or Leiden resolution).

    Attributes
    ----------
    method
        How targets were clustered.
    settings
        (s,) numbers of clusters, or resolutions.
    n_clusters
        (s,) clusters found, median over refits; equal to `settings` for k-means.
    ari
        (s,) mean adjusted Rand index between halves: corrected for what random clusterings of the same sizes give, so 0 is chance
        for any number of clusters, and 1 is full agreement.
    error
        (s,) its standard error over refits. Refits share models, so it is too small rather than too large.
    chosen
        Position of the choice: the last setting with 2 clusters or more whose `ari` is within one standard error of the best one.
        Ties go to more clusters, since merging true clusters leaves them stable. Stable is not separate: one long cloud is cut
        in two stably; see `datamodels.applications.validation.stability.separation`.
    n_refits
        Pairs of halves.
    """

    method: str
    settings: NDArray[np.float64]
    n_clusters: NDArray[np.int64]
    ari: NDArray[np.float64]
    error: NDArray[np.float64]
    chosen: int
    n_refits: int = field(repr=False)

    @property
    def setting(self) -> float:
        """The chosen number of clusters or resolution."""
        return float(self.settings[self.chosen])

    def table(self) -> list[dict[str, float | int]]:
        """One row per setting."""
        names = ("ari", "error")
        return [
            {
                "setting": float(self.settings[i]),
                "n_clusters": int(self.n_clusters[i]),
                **{name: float(getattr(self, name)[i]) for name in names},
            }
            for i in range(len(self.settings))
        ]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {
            "method": self.method,
            "setting": self.setting,
            "n_refits": self.n_refits,
            "curve": self.table(),
        }


def choose_clusters(
    source: Source,
    *,
    method: str = "kmeans",
    settings: Sequence[float] | None = None,
    max_clusters: int = 10,
    n_refits: int = 10,
    estimator: Estimator | type[Estimator] | str | None = None,
    n_components: int = 10,
    seed: int = 0,
    progress: bool = True,
    of: Mapping[str, Any] | None = None,
) -> StabilityCurve:
    """The number of clusters (k-means) or the resolution (Leiden) that comes back in independent halves of the models.

    Parameters
    ----------
    source
        Stores or a `Problem`: the models to split.
    settings
        By default 2 to `max_clusters` clusters, at most as many as half of the targets, or the resolutions `RESOLUTIONS`.
    n_refits, estimator, n_components, seed, progress
        As in `half_pairs`.
    of
        Provenance of the attribution whose outputs are clustered; the key ``margins`` by default.

    Raises
    ------
    RequestError
        for HDBSCAN, which finds the number by itself, and when no setting gives two clusters.
    """
    check_method(method)
    if method == "hdbscan":
        raise RequestError("hdbscan finds the number of clusters by itself; stability chooses it for kmeans and leiden")
    problem = as_problem(source, of)
    if settings is None:
        most = min(max_clusters, problem.n_targets // 2)
        settings = tuple(range(2, most + 1)) if method == "kmeans" else RESOLUTIONS
    if not len(settings):
        raise RequestError(
            f"there is no number of clusters to try: max_clusters is {max_clusters}, targets {problem.n_targets}"
        )
    found, counts = [], []
    for first, second in half_pairs(
        problem, n_refits=n_refits, estimator=estimator, n_components=n_components, seed=seed, progress=progress
    ):
        both = [[cluster(half, method, one, seed, starts=_STARTS) for half in (first, second)] for one in settings]
        found.append([agreement(*halves) for halves in both])
        counts.append([[len(np.unique(half)) for half in halves] for halves in both])
    ari = np.array(found)
    mean, error = ari.mean(axis=0), ari.std(axis=0, ddof=1) / np.sqrt(n_refits)
    n_clusters = np.median(np.array(counts), axis=(0, 2))
    legal = n_clusters >= 2
    if not legal.any():
        raise RequestError("no setting gives two clusters: the targets are one group, or try larger resolutions")
    best = int(np.argmax(np.where(legal, mean, -np.inf)))
    chosen = int(np.flatnonzero(legal & (mean >= mean[best] - error[best]))[-1])
    return StabilityCurve(
        method,
        np.asarray(settings, dtype=np.float64),
        n_clusters.astype(np.int64),
        mean,
        error,
        chosen,
        n_refits,
    )
