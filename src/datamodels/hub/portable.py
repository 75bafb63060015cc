"""What leaves this machine names no path of it: absolute paths become the last part of them."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

_QUOTED = re.compile(r"""(['"])(?:file://)?(/[^'"\n]+|[A-Za-z]:\\[^'"\n]+)\1""")
_PLAIN = re.compile(r"""(?:file://|(?<!:/)(?<![\w/.~]))(/(?!/)[^\s'"`,;()\]}]+)|\b([A-Za-z]:\\[^\s'"`,;()\]}]+)""")


def portable(value: Any) -> Any:
    """A value of JSON, or text that holds one, without absolute paths."""
    if isinstance(value, Mapping):
        return {portable(key): _last(item) if _is_path(key, item) else portable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [portable(item) for item in value]
    return _text(value) if isinstance(value, str) else value


def portable_h5ad(path: Path, target: Path) -> Path:
    """An ``.h5ad`` without absolute paths: itself, or a copy at `target` where it has some.

    Looked at are its unstructured part (where provenance is) and the names and texts of targets and training examples.
    """
    from datamodels.attribution import read_h5ad

    data = read_h5ad(path)
    changed = False
    uns = _inside(dict(data.uns))
    if not _same(uns, dict(data.uns)):
        data.uns = uns
        changed = True
    for frame in (data.obs, data.var):
        names = [portable(name) for name in frame.index]
        if names != list(frame.index):
            frame.index = names
            changed = True
        for key in frame.columns:
            texts = frame[key].tolist() if frame[key].dtype.kind not in "biufc" else []
            if texts != portable(texts):
                frame[key] = portable(texts)
                changed = True
    if not changed:
        return path
    target.parent.mkdir(parents=True, exist_ok=True)
    data.write_h5ad(target)
    return target


def _inside(value: Any) -> Any:
    """As `portable`, keeping arrays and frames."""
    if isinstance(value, Mapping):
        return {key: _inside(item) for key, item in value.items()}
    return _text(value) if isinstance(value, str) else value


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, Mapping):
        return all(_same(a[key], b[key]) for key in a)
    return a == b if isinstance(a, str) else True


def _text(text: str) -> str:
    if text[:1] in "[{":
        try:
            return _json(text)
        except ValueError:
            pass
    one = not re.search(r"\s", text) or ("\n" not in text and os.path.exists(os.path.dirname(text)))  # else a command
    if one and _is_absolute(text):
        return _last(text)
    text = _QUOTED.sub(lambda found: f"{found[1]}{_last(found[2])}{found[1]}", text)
    return _PLAIN.sub(lambda found: _last(found[1] or found[2]), text)


def _json(text: str) -> str:
    value = json.loads(text)
    cleaned = portable(value)
    return text if cleaned == value else json.dumps(cleaned)


def _is_absolute(text: str) -> bool:
    return PurePosixPath(text).is_absolute() or PureWindowsPath(text).is_absolute()


def _is_path(key: Any, value: Any) -> bool:
    """Whether a value is one path by its name, spaces and all."""
    return key in ("path", "imported_from") and isinstance(value, str) and _is_absolute(value)


def _last(path: str) -> str:
    return re.split(r"[/\\]", path.rstrip("/\\"))[-1]
