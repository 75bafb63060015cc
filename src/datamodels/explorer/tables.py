"""Columns as Parquet, and the file that Embedding Atlas opens."""

from __future__ import annotations

import io
from typing import Any

import numpy as np

from datamodels.errors import RequestError
from datamodels.explorer.content import Content, Side, nearest_of_all

_NEIGHBOURS = 15


def table(content: Content, side: Side) -> dict[str, Any]:
    """Name -> values of all columns, ``index`` and ``id`` first; categories as text, missing ones None."""
    examples = content.examples[side]
    size = content.size(side)
    ids = [examples.name(i) for i in range(size)]
    out: dict[str, Any] = {"index": np.arange(size), "id": ids}
    for column in content.columns[side]:
        known = column.categories is None
        out.setdefault(column.name, column.values if known else [text or None for text in column.texts()])
    return out


def to_parquet(content: Content, side: Side) -> bytes:
    """The columns of one side as a Parquet file."""
    return _bytes(_pyarrow().table(table(content, side)))


def to_atlas(content: Content, map_number: int = 0) -> bytes:
    """Targets as Embedding Atlas takes them: ``x``, ``y`` of a map, all columns, ``image`` {bytes, path} or ``text``, and
    ``neighbors`` {ids, distances} by the principal components."""
    pa = _pyarrow()
    flat = content.map(map_number)
    examples, size = content.examples["targets"], content.n_targets
    columns: dict[str, Any] = {"x": flat[:, 0], "y": flat[:, 1]}
    for name, values in table(content, "targets").items():
        columns.setdefault(name, values)
    if examples.kind == "images":
        kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
        pictures = [{"bytes": examples.picture(i), "path": None} for i in range(size)]
        columns["image"] = pa.array(pictures, kind)
    texts = examples.snippets()["texts"]
    if texts is not None:
        columns["text"] = texts if examples.texts is None else [str(text) for text in examples.texts]
    if size > 1:
        shown = content.attribution(content.maps()[map_number]["attribution"])
        indices, distances = nearest_of_all(shown.embedding, _NEIGHBOURS)
        kind = pa.struct([("ids", pa.list_(pa.int64())), ("distances", pa.list_(pa.float64()))])
        near = [{"ids": i, "distances": d} for i, d in zip(indices.tolist(), distances.tolist(), strict=True)]
        columns["neighbors"] = pa.array(near, kind)
    return _bytes(pa.table(columns))


def _pyarrow() -> Any:
    try:
        import pyarrow
    except ImportError:
        raise RequestError("Parquet needs pyarrow: pip install pyarrow, or save the table as CSV") from None
    return pyarrow


def _bytes(made: Any) -> bytes:
    import pyarrow.parquet as parquet

    buffer = io.BytesIO()
    parquet.write_table(made, buffer)
    return buffer.getvalue()
