"""What is computed of weights in blocks of targets, so that they are never all in memory."""

from __future__ import annotations

import importlib
import importlib.util
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.explorer.weights import WeightsFile, strongest
from datamodels.regression.source import OUTPUTS
from datamodels.spec import MASKS
from datamodels.store import Store

if TYPE_CHECKING:
    from datamodels.evaluation.lds import LDS

COMPONENTS = 10
BINS = 30
_EXACT = 20_000_000  # weights up to which the principal components are those of the full decomposition
_ROWS = 512
Tick = Callable[[int], None]


def sums(file: WeightsFile, progress: Tick) -> dict[str, NDArray[Any]]:
    """Per target ``n_nonzero`` and ``norm``; per training example sums of its ``positive`` and ``negative`` weights, ``n_targets``
    with a nonzero one, and of targets that it is itself ``own`` (sum of weights) and ``n_own``."""
    n, t = file.n_train, file.n_targets
    total, size, own, n_own = np.zeros(n), np.zeros(n), np.zeros(n), np.zeros(n)
    count = np.zeros(n, dtype=np.int64)
    nonzero, norm = np.zeros(t, dtype=np.int64), np.zeros(t)
    for start, stop in file.blocks():
        block = file.block(start, stop)
        file.check(block, start)
        total += block.sum(axis=0, dtype=np.float64)
        size += abs(block).sum(axis=0, dtype=np.float64)
        there = block != 0
        count += there.sum(axis=0)
        nonzero[start:stop] = there.sum(axis=1)
        norm[start:stop] = np.sqrt((block * block).sum(axis=1, dtype=np.float64))
        if file.train_columns is not None:
            columns = file.train_columns[start:stop]
            np.add.at(own, columns, np.asarray(block[np.arange(stop - start), columns]).ravel())
            np.add.at(n_own, columns, 1)
        progress(stop - start)
    return {
        "n_nonzero": nonzero, "norm": norm, "positive": (total + size) / 2, "negative": (total - size) / 2,
        "n_targets": count, "own": own, "n_own": n_own,
    }  # fmt: skip


def mislabel(
    found: Mapping[str, NDArray[Any]], n_targets: int, train_facts: Mapping[str, NDArray[Any]]
) -> NDArray[np.float64]:
    """`datamodels.evaluation.mislabels.mislabel_scores` by its default method, out of `sums`; NaN where it has no others."""
    from datamodels.evaluation.mislabels import SELF_INFLUENCE

    own, n_own = found["own"], found["n_own"]
    if n_own.min() > 0 and own.any():
        return own / n_own
    if SELF_INFLUENCE in train_facts and train_facts[SELF_INFLUENCE].any():
        return np.asarray(train_facts[SELF_INFLUENCE], dtype=np.float64)
    others = n_targets - n_own
    total = found["positive"] + found["negative"] - own
    return np.divide(-total, others, out=np.full(len(total), np.nan), where=others > 0)


def keys_of(file: WeightsFile) -> tuple[str, str]:
    """Keys of masks and outputs in a store, as the fit has used them; margins of what its targets are by default."""
    told: Mapping[str, Any] = next(iter(file.provenance.get("sources", [])), {})
    usual = OUTPUTS if file.train_columns is None else f"train_{OUTPUTS}"
    return str(told.get("masks_key") or MASKS), str(told.get("outputs_key") or usual)


def lds_of(file: WeightsFile, test: Store, progress: Tick) -> dict[str, Any]:
    """LDS on the rows of a store that the fit has not used, ``per_target`` and overall. The bootstrap resamples targets within blocks."""
    from datamodels.evaluation.lds import lds

    found, (masks_key, outputs_key) = [], keys_of(file)
    for start, stop in file.blocks():
        found.append(lds(file.part(start, stop), test, masks_key=masks_key, outputs_key=outputs_key))
        progress(stop - start)
    return scored(found)


def scored(found: Sequence[LDS]) -> dict[str, Any]:
    """``per_target`` and the means over targets, of the scores of blocks of targets on the same models."""
    shares = np.array([(~np.isnan(one.per_target)).sum() for one in found], dtype=np.float64)
    shares /= shares.sum()
    bootstrap = shares @ np.stack([one.bootstrap for one in found])
    tail = (1 - found[0].confidence) / 2
    low, high = np.quantile(bootstrap, [tail, 1 - tail])
    ceilings = [one.lds_ceiling for one in found]
    known = [(share, ceiling) for share, ceiling in zip(shares, ceilings, strict=True) if ceiling is not None]
    return {
        "per_target": np.concatenate([one.per_target for one in found]),
        "value": float(shares @ [one.lds for one in found]),
        "low": float(low),
        "high": float(high),
        "ceiling": float(np.sqrt(sum(s * c**2 for s, c in known) / sum(s for s, _ in known))) if known else np.nan,
        "pearson": float(shares @ [one.pearson for one in found]),
        "r2": float(shares @ [one.r2 for one in found]),
        "models": found[0].n_models,
    }


def agreement(a: WeightsFile, b: WeightsFile, progress: Tick) -> dict[str, NDArray[np.float32]]:
    """How far two attributions of the same targets agree, (n_targets,) each.

    ``spearman`` of all weights, ``helpful``: Jaccard index of the 10 most helpful examples, ``overlap``: share of the 20 strongest
    in common, ``cosine``. NaN where it is not defined.
    """
    out = {name: np.full(a.n_targets, np.nan, np.float32) for name in ("spearman", "helpful", "overlap", "cosine")}
    for k in range(a.n_targets):
        one, two = a.row(k), b.row(k)
        first, second = (set(strongest(row, 20)[0].tolist()) for row in (one, two))
        helpful = [set(strongest(_positive(row), 10)[0].tolist()) for row in (one, two)]
        if helpful[0] | helpful[1]:
            out["helpful"][k] = len(helpful[0] & helpful[1]) / len(helpful[0] | helpful[1])
        if first or second:
            out["overlap"][k] = len(first & second) / max(len(first), len(second))
        out["cosine"][k] = _cosine(one, two, 0.0, 0.0, a.n_train)
        (ranks_one, zero_one), (ranks_two, zero_two) = _ranks(one, a.n_train), _ranks(two, a.n_train)
        out["spearman"][k] = _cosine((one[0], ranks_one), (two[0], ranks_two), zero_one, zero_two, a.n_train)
        progress(1)
    return out


def _positive(row: Any) -> Any:
    keep = row[1] > 0
    return row[0][keep], row[1][keep]


def _ranks(row: Any, n: int) -> tuple[NDArray[np.float64], float]:
    """Midranks of nonzero values among n of which the others are 0, minus their mean; and that of the zeros."""
    from scipy.stats import rankdata

    values = row[1]
    zeros, below = n - len(values), int((values < 0).sum())
    ranks = rankdata(values) + np.where(values > 0, zeros, 0)
    return ranks - (n + 1) / 2, below + (zeros + 1) / 2 - (n + 1) / 2


def _cosine(one: Any, two: Any, zero_one: float, zero_two: float, n: int) -> float:
    """Cosine of two vectors of n entries, given at some indices and constant elsewhere."""
    shared, at_one, at_two = np.intersect1d(one[0], two[0], return_indices=True)
    a, b = np.asarray(one[1], np.float64), np.asarray(two[1], np.float64)
    neither = n - len(a) - len(b) + len(shared)
    product = a[at_one] @ b[at_two] + neither * zero_one * zero_two
    product += zero_two * (a.sum() - a[at_one].sum()) + zero_one * (b.sum() - b[at_two].sum())
    norms = (a @ a + (n - len(a)) * zero_one**2) * (b @ b + (n - len(b)) * zero_two**2)
    return float(product / np.sqrt(norms)) if norms > 0 else np.nan


def pca(file: WeightsFile, norm: NDArray[np.float64], progress: Tick) -> NDArray[np.float64]:
    """`datamodels.applications.clustering.embed` of the weights, (n_targets, components); of large ones by randomised subspace
    iteration (Halko, Martinsson & Tropp 2011, arXiv:0909.4061)."""
    from datamodels.applications.clustering import embed

    t, n = file.n_targets, file.n_train
    if t * n <= _EXACT:
        block = file.block(0, t)
        progress(t)
        return embed(block if file.dense else block.toarray(), COMPONENTS)
    return randomised_pca(file, norm, progress)


def randomised_pca(file: WeightsFile, norm: NDArray[np.float64], progress: Tick) -> NDArray[np.float64]:
    """The principal components without the matrix in memory."""
    t, n = file.n_targets, file.n_train
    k = min(COMPONENTS, t, n)
    scale = np.divide(1.0, norm, out=np.zeros(t), where=norm > 0).astype(np.float32)[:, None]

    def project(directions: NDArray[np.float32]) -> NDArray[np.float64]:
        """Centred unit rows times directions (n, q)."""
        out = np.concatenate([(file.block(a, b) @ directions) * scale[a:b] for a, b in file.blocks()]).astype(
            np.float64
        )
        return out - out.mean(axis=0)

    def back(scores: NDArray[np.float64]) -> NDArray[np.float32]:
        """The transpose, for scores (t, q) whose columns have mean 0."""
        centred = (scores - scores.mean(axis=0)).astype(np.float32)
        return sum(file.block(a, b).T @ (centred[a:b] * scale[a:b]) for a, b in file.blocks())

    basis = np.random.default_rng(0).standard_normal((n, min(k + 10, t, n)), dtype=np.float32)
    for _ in range(7):
        left = np.linalg.qr(project(basis))[0]
        basis = np.linalg.qr(back(left))[0].astype(np.float32)
        progress(t // 7)
    u, s, v = np.linalg.svd(project(basis), full_matrices=False)
    loadings = v[:k] @ basis.T
    signs = np.sign(loadings[np.arange(k), np.abs(loadings).argmax(axis=1)])
    return u[:, :k] * s[:k] * np.where(signs == 0, 1, signs)


def has_umap() -> bool:
    return importlib.util.find_spec("umap") is not None


def umap(embedding: NDArray[np.float64]) -> NDArray[np.float32]:
    """UMAP of the principal components to two dimensions (McInnes et al. 2018, arXiv:1802.03426)."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        reducer = importlib.import_module("umap").UMAP(n_neighbors=min(15, len(embedding) - 1), random_state=0)
        return np.asarray(reducer.fit_transform(embedding), dtype=np.float32)


def outputs_of(
    store: Store,
    key: str,
    positions: NDArray[np.int64],
    progress: Tick,
    *,
    train_columns: NDArray[np.int64] | None = None,
    masks_key: str = MASKS,
) -> dict[str, NDArray[Any]]:
    """Of each target's outputs over the complete models of a store: ``mean``, ``sd``, ``positive`` (share above 0), ``low`` and ``high``
    (the least and the largest) and ``counts`` (n_targets, 30) in equal bins between them; ``runs``. Values that are not finite are
    left out, and of targets that are training examples (`train_columns`) those of models that were trained on them."""
    flat = store.array(key).reshape(store.n_models, -1)
    done = store.completed()
    starts = [start for start in range(0, store.n_models, _ROWS) if done[start : start + _ROWS].any()]
    t = len(positions)

    def chunks() -> Iterator[tuple[NDArray[np.float64], NDArray[np.bool_]]]:
        for start in starts:
            rows = np.flatnonzero(done[start : start + _ROWS])
            values = np.asarray(flat[start + rows], dtype=np.float64)[:, positions]
            good = np.isfinite(values)
            if train_columns is not None:
                good &= ~store.masks(start, start + int(rows[-1]) + 1, key=masks_key)[rows][:, train_columns]
            yield values, good
            progress(len(rows))

    runs, total, square, above = np.zeros(t), np.zeros(t), np.zeros(t), np.zeros(t)
    low, high, counts = np.full(t, np.inf), np.full(t, -np.inf), np.zeros(t * BINS, dtype=np.int64)
    shift: Any = 0.0
    for number, (values, good) in enumerate(chunks()):
        if number == 0:
            shift = np.where(good.any(axis=0), values[good.argmax(axis=0), np.arange(t)], 0.0)
        moved = np.where(good, values - shift, 0.0)
        runs, total, square = runs + good.sum(axis=0), total + moved.sum(axis=0), square + (moved**2).sum(axis=0)
        above += (good & (values > 0)).sum(axis=0)
        low = np.minimum(low, np.where(good, values, np.inf).min(axis=0))
        high = np.maximum(high, np.where(good, values, -np.inf).max(axis=0))
    width = np.where(high > low, high - low, 1.0)
    for values, good in chunks():
        bins = np.clip(np.where(good, (values - low) / width, 0.0) * BINS, 0, BINS - 1).astype(np.int64)
        counts += np.bincount((bins + BINS * np.arange(t))[good], minlength=t * BINS)
    known = np.maximum(runs, 1)
    variance = np.maximum(square - total**2 / known, 0) / np.maximum(runs - 1, 1)
    return {
        "mean": np.where(runs > 0, shift + total / known, np.nan), "sd": np.where(runs > 1, np.sqrt(variance), np.nan),
        "positive": np.where(runs > 0, above / known, np.nan), "low": low, "high": high,
        "counts": counts.reshape(t, BINS), "runs": runs.astype(np.int64),
    }  # fmt: skip
