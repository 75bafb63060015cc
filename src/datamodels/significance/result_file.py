"""AnnData files of results that stand beside an attribution: selections, intervals, stability."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution, read_h5ad
from datamodels.errors import DatamodelsError, RequestError, first_line, newer_format
from datamodels.files import replacing

if TYPE_CHECKING:
    import anndata

_TABLE = "datamodels"  # where an attribution keeps its facts


def write(
    path: str | Path,
    kind: str,
    version: int,
    table: Attribution,
    layers: Mapping[str, NDArray[Any]],
    facts: Mapping[str, Any],
) -> Path:
    """Write an ``.h5ad``: X = the table's weights transposed, layers (n_targets, n_train) beside it.

    Parameters
    ----------
    kind, version
        What the file holds and the version of its format; kept in ``uns["datamodels_<kind>"]``, so
        that the file is not taken for an attribution.
    table
        Carries X, facts of targets and provenance.
    layers
        name -> (n_train, n_targets).
    facts
        Single values, JSON-ready.
    """
    path = Path(path)
    if path.suffix != ".h5ad":
        raise RequestError(f"{str(path)!r} must end in .h5ad")
    data = table.to_anndata()
    for name, layer in layers.items():
        data.layers[name] = _smaller(np.ascontiguousarray(layer.T))
    inner = data.uns.pop(_TABLE)
    data.uns[f"{_TABLE}_{kind}"] = {"format_version": version, "facts": json.dumps(dict(facts)), "table": inner}
    try:
        with replacing(path) as temporary:
            data.write_h5ad(temporary)
    except OSError as error:
        raise RequestError(f"cannot write {str(path)!r}: {first_line(error)}") from None
    return path


def read(path: str | Path, kind: str, version: int) -> tuple[Attribution, dict[str, NDArray[Any]], dict[str, Any]]:
    """Table, layers (n_train, n_targets) and facts of a file that `write` made.

    Raises
    ------
    RequestError
        when the file is missing or holds something else.
    NewerFormatError
        when a newer version wrote it.
    """
    data = read_h5ad(path)
    key = f"{_TABLE}_{kind}"
    if key not in data.uns:
        held = [name.removeprefix(f"{_TABLE}_") for name in data.uns if name.startswith(_TABLE)]
        raise RequestError(f"{str(path)!r} is no file of {kind} (it holds {', '.join(held) or 'something else'})")
    try:
        return _unpack(data, key, kind, version)
    except DatamodelsError:
        raise
    except Exception as error:  # what was edited or damaged may raise anything
        raise RequestError(f"{str(path)!r} is damaged: {first_line(error)}") from None


def _unpack(
    data: anndata.AnnData, key: str, kind: str, version: int
) -> tuple[Attribution, dict[str, NDArray[Any]], dict[str, Any]]:
    found = int(data.uns[key]["format_version"])
    if found > version:
        raise newer_format(f"the file of {kind}", found, version)
    content = data.uns.pop(key)
    data.uns[_TABLE] = content["table"]
    layers = {name: np.ascontiguousarray(_dense(layer).T) for name, layer in data.layers.items()}
    return Attribution.from_anndata(data), layers, json.loads(content["facts"])


def _smaller(matrix: NDArray[Any]) -> Any:
    """The matrix as it is or sparse, whichever takes less space."""
    from scipy import sparse

    nonzero = int(np.count_nonzero(matrix))
    small = nonzero * (matrix.itemsize + 4) + 4 * len(matrix) < matrix.nbytes
    return sparse.csr_matrix(matrix) if small else matrix


def _dense(layer: Any) -> NDArray[Any]:
    from scipy import sparse

    return layer.toarray() if sparse.issparse(layer) else np.asarray(layer)
