"""Embeddings of targets, and the ways to cluster them."""

from __future__ import annotations

import functools
import importlib
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.datasets.samples import plain
from datamodels.errors import RequestError

Method = Literal["kmeans", "hdbscan", "leiden"]
NEIGHBOURS = 15
_FEWEST = 5
_SMALL = 5000  # targets that k-means does in one thread


def embed(vectors: Attribution | ArrayLike, n_components: int = 10) -> NDArray[np.float64]:
    """PCA of unit-normalised datamodels: one row per target.

    Parameters
    ----------
    vectors
        An attribution, or an array (n_targets, n_features), with whose rows the same is done.
    n_components
        Largest number of components; there are no more than targets or features.

    Returns
    -------
    (n_targets, components). Signs of components are fixed, so that the result is reproducible.

    Raises
    ------
    RequestError
        when the array is no matrix, or n_components below 1.
    """
    from sklearn.decomposition import PCA

    rows = unit_rows(vectors)
    if n_components < 1:
        raise RequestError(f"n_components is {n_components}; give 1 or more")
    if (rows == rows[:1]).all():  # nothing varies, and PCA would divide by it
        return np.zeros((len(rows), min(n_components, *rows.shape)))
    return PCA(min(n_components, *rows.shape), svd_solver="full").fit_transform(rows)


def unit_rows(vectors: Attribution | ArrayLike) -> NDArray[np.float64]:
    """Datamodels, or rows of an array, scaled to length 1: (n_targets, n_features). Rows of zeros stay."""
    rows = vectors.weights.T if isinstance(vectors, Attribution) else np.asarray(vectors)
    if rows.ndim != 2:
        raise RequestError(f"the vectors to embed have shape {rows.shape}; give (n_targets, n_features)")
    rows = rows.astype(np.float64)
    norms = np.linalg.norm(rows, axis=1, keepdims=True)
    return np.divide(rows, norms, out=np.zeros_like(rows), where=norms > 0)


def as_labels(given: ArrayLike, n_targets: int) -> NDArray[Any]:
    """Labels (n_targets,), text or numbers, of which none is missing."""
    import pandas as pd

    if np.shape(given) != (n_targets,):
        raise RequestError(f"labels have shape {np.shape(given)}; there are {n_targets} targets")
    column = pd.Series(np.asarray(given))
    lacking = np.flatnonzero(column.isna())
    if len(lacking):
        raise RequestError(
            f"{len(lacking)} of {n_targets} targets have no label, the first is target {lacking[0]}; give every target one (a name of "
            "their own will do)"
        )
    values = plain(column)
    if values is None:
        kinds = ", ".join(sorted({type(value).__name__ for value in column}))
        raise RequestError(f"labels hold {kinds}; give text or numbers, one kind of them")
    return values


def check_method(method: str) -> None:
    """That there is such a way to cluster."""
    if method not in get_args(Method):
        raise RequestError(f"method {method!r} is unknown; legal: {', '.join(get_args(Method))}")


def cluster(
    embedding: NDArray[np.float64],
    method: str,
    setting: float | None,
    seed: int = 0,
    *,
    starts: int = 20,
) -> NDArray[np.int64]:
    """Cluster an embedding.

    Parameters
    ----------
    embedding
        (n_targets, components).
    method
        ``kmeans``, ``hdbscan`` (Campello, Moulavi & Sander 2013), or ``leiden`` (Traag, Waltman & van Eck 2019) on the graph of
        15 nearest neighbours.
    setting
        Of ``kmeans`` the number of clusters, of ``leiden`` the resolution; ``hdbscan`` has none.
    seed
        Of k-means and Leiden.
    starts
        Of k-means.

    Returns
    -------
    (n_targets,) cluster numbers; -1 is HDBSCAN's noise.

    Raises
    ------
    RequestError
        when there is no such method, its setting is out of range, its packages are missing, or there are too few targets.
    """
    check_method(method)
    if method == "kmeans":
        return _kmeans(embedding, setting, seed, starts)
    if len(embedding) < _FEWEST:
        raise RequestError(f"{method} needs at least {_FEWEST} targets; there are {len(embedding)}")
    if method == "leiden":
        return _leiden(embedding, 1.0 if setting is None else setting, seed)
    from sklearn.cluster import HDBSCAN

    smallest = max(_FEWEST, len(embedding) // 100)
    return HDBSCAN(min_cluster_size=smallest, copy=True).fit_predict(embedding).astype(np.int64)


def _kmeans(embedding: NDArray[np.float64], setting: float | None, seed: int, starts: int) -> NDArray[np.int64]:
    from sklearn.cluster import KMeans

    if setting is None or not 1 <= setting <= len(embedding):
        raise RequestError(f"n_clusters is {setting}; it must be between 1 and the {len(embedding)} targets")
    distinct = len(np.unique(embedding, axis=0))
    if distinct < setting:
        raise RequestError(f"n_clusters is {setting}, but only {distinct} targets differ from each other")
    model = KMeans(int(setting), n_init=starts, random_state=seed)
    if len(embedding) > _SMALL:
        return model.fit_predict(embedding).astype(np.int64)
    with _pools().limit(limits=1):  # threads cost more than they save, many times more where others want the CPUs
        return model.fit_predict(embedding).astype(np.int64)


@functools.cache
def _pools() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _leiden(embedding: NDArray[np.float64], resolution: float, seed: int) -> NDArray[np.int64]:
    """Communities of the graph that joins each target to its 15 nearest (Euclidean, on the embedding); an edge that both ends
    have counts twice. Modularity with a resolution (Reichardt & Bornholdt 2006), Traag, Waltman & van Eck 2019."""
    from sklearn.neighbors import kneighbors_graph

    igraph, leidenalg = _leiden_packages()
    if not 0 < resolution < np.inf:
        raise RequestError(f"resolution is {resolution}; give a number above 0, for example 1")
    near = kneighbors_graph(embedding, min(NEIGHBOURS, len(embedding) - 1), mode="connectivity")
    joined = (near + near.T).tocoo()
    upper = joined.row < joined.col
    graph = igraph.Graph(len(embedding), np.column_stack([joined.row[upper], joined.col[upper]]).tolist())
    found = leidenalg.find_partition(
        graph,
        leidenalg.RBConfigurationVertexPartition,
        weights=joined.data[upper].tolist(),
        resolution_parameter=float(resolution),
        n_iterations=-1,
        seed=seed,
    )
    return np.asarray(found.membership, dtype=np.int64)


def _leiden_packages() -> tuple[Any, Any]:
    try:
        igraph, leidenalg = (importlib.import_module(name) for name in ("igraph", "leidenalg"))
    except ImportError as error:
        raise RequestError(
            f"method 'leiden' needs the package {error.name!r}, which is not installed: "
            "pip install 'datamodels-kit[bio]', or use method='kmeans'"
        ) from None
    return igraph, leidenalg
