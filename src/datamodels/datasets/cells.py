"""Single cells from AnnData."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from numpy.typing import NDArray

from datamodels.datasets.base import Dataset
from datamodels.datasets.samples import Missing, Unlabelled, dataset_of, spell, without_missing
from datamodels.errors import RequestError, first_line

if TYPE_CHECKING:
    from anndata import AnnData

_ROWS = 2048  # that are made dense at once
_TARGET = 1e4


def from_anndata(
    source: AnnData | str | Path,
    label: str,
    *,
    layer: str | None = None,
    raw: bool = False,
    obsm: str | None = None,
    hidden: str | None = None,
    groups: str | None = None,
    obs: Sequence[str] | None = None,
    normalise: Literal["none", "log1p_cp10k"] = "none",
    backed: bool = False,
    missing: Missing = "refuse",
    unlabelled: Unlabelled = "refuse",
    name: str | None = None,
) -> Dataset:
    """Cells of an AnnData object or ``.h5ad`` file; all are training examples, and targets out of mask, see `Dataset`.

    What looks at one cell at a time (`normalise`) can be done before any subset is drawn. What looks at several cells and at
    labels (choosing genes by a test between classes) must be done within each subset: that is
    `datamodels.training.preparation.Preparation`. What looks at several cells but no label (highly variable genes or PCA of all
    cells) does not leak labels, but lets a model see the features of cells that it is judged on.

    Parameters
    ----------
    source
        The object, which may be backed by its file, or the file. Sparse values become dense float32, cells x features.
    label
        Column of ``obs`` that models are trained on.
    layer, raw, obsm
        Where features are: a layer, ``raw.X``, or an embedding in ``obsm``; by default ``X``.
    hidden
        Column of labels that models never see.
    groups
        Column of donors or batches, see `Split`.
    obs
        Further columns to keep beside the cells; by default all that are numbers, truth values or text.
    normalise
        ``log1p_cp10k``: log(1 + counts per 10,000 of the cell); a cell without counts stays 0.
    backed
        Whether a file is read a few cells at a time, so that its ``X`` need not fit into memory in the form it has there.
    missing
        Values that are missing: ``refuse``; ``mean``: the mean of the feature over all cells, those that a model does not see included;
        ``subset``: left missing, for `datamodels.training.preparation.Preparation` to fill in the mean of each model's own subset.
    unlabelled
        What to do when cells have no `label`: ``refuse``, or ``drop`` them.
    name
        By default of a file what `load` finds it by.

    Raises
    ------
    RequestError
        when the file cannot be read, a column or matrix is not there, or values are not of use.
    """
    import anndata

    if (layer is not None) + raw + (obsm is not None) > 1:
        raise RequestError("layer, raw and obsm each say where features are; give one of them at most")
    if normalise not in ("none", "log1p_cp10k"):
        raise RequestError(f"normalise is {normalise!r}; legal: none, log1p_cp10k")
    data: Any = source
    opened = isinstance(source, str | Path)
    if opened:
        options = {
            "label": label,
            "layer": layer,
            "raw": raw,
            "obsm": obsm,
            "hidden": hidden,
            "groups": groups,
            "obs": obs,
        }
        options["normalise"] = None if normalise == "none" else normalise
        options |= {"backed": backed, "missing": None if missing == "refuse" else missing}
        options |= {"unlabelled": None if unlabelled == "refuse" else unlabelled}
        name = name or spell("anndata", source, options)
        if not Path(source).is_file():
            raise RequestError(f"there is no file {str(source)!r}")
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about files of older versions, which are read all the same
                data = anndata.read_h5ad(str(source), backed="r" if backed else None)
        except Exception as error:
            raise RequestError(f"cannot read {str(source)!r} as an AnnData file: {first_line(error)}") from error
    elif not isinstance(source, anndata.AnnData):
        raise RequestError(f"got {type(source).__name__}; needed is an AnnData object or the path of a .h5ad file")
    try:
        matrix, features = _features(data, layer, raw, obsm)
        x = _dense(matrix)
    finally:
        if opened and backed:
            data.file.close()
    if normalise != "none" and np.isnan(x).any():
        raise RequestError(
            f"the AnnData has {np.isnan(x).sum()} missing values, and {normalise} needs all counts of a cell: fill them, or give "
            "normalise='none' and missing='mean' or 'subset'"
        )
    x = without_missing(x, missing, "the AnnData", features)
    return dataset_of(
        name or "anndata",
        x if normalise == "none" else _log1p_cp10k(x),
        data.obs,
        "obs",
        ids=data.obs_names,
        feature_names=features,
        label=label,
        hidden=hidden,
        groups=groups,
        obs=obs,
        unlabelled=unlabelled,
    )


def _features(data: AnnData, layer: str | None, raw: bool, obsm: str | None) -> tuple[Any, list[str]]:
    """The matrix (cells, features), and the names of its features."""
    if raw:
        if data.raw is None:
            raise RequestError("the AnnData has no raw; leave raw out to take X, or name a layer")
        return data.raw.X, list(map(str, data.raw.var_names))
    if obsm is not None:
        found = _named(data.obsm, obsm, "obsm")
        columns = getattr(found, "columns", None)
        names = [f"{obsm}_{j}" for j in range(found.shape[1])] if columns is None else list(map(str, columns))
        return (found if columns is None else found.to_numpy()), names
    matrix = data.X if layer is None else _named(data.layers, layer, "layer")
    if matrix is None:
        raise RequestError(f"the AnnData has no X; name a layer ({', '.join(data.layers) or 'there is none'}) or obsm")
    return matrix, list(map(str, data.var_names))


def _named(mapping: Any, name: str, what: str) -> Any:
    if name not in mapping:
        raise RequestError(f"the AnnData has no {what} {name!r}; it has {', '.join(mapping) or 'none'}")
    return mapping[name]


def _dense(matrix: Any) -> NDArray[np.float32]:
    """A matrix in memory or in a file, sparse or not, as dense float32."""
    out = np.empty(matrix.shape, dtype=np.float32)
    for start in range(0, len(out), _ROWS):
        part = matrix[start : start + _ROWS]
        out[start : start + _ROWS] = part.toarray() if hasattr(part, "toarray") else np.asarray(part)
    return out


def _log1p_cp10k(x: NDArray[np.float32]) -> NDArray[np.float32]:
    if x.min(initial=0) < 0:
        raise RequestError(
            f"log1p_cp10k is for counts; the least value is {x.min():g}: take raw counts (layer=..., raw=True), or "
            "normalise='none' for values that are normalised already"
        )
    totals = x.sum(axis=1, dtype=np.float64, keepdims=True)
    return np.log1p(x * (_TARGET / np.where(totals > 0, totals, 1.0))).astype(np.float32)
