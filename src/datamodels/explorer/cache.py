"""What is expensive is computed once, and kept in a folder under a hash of what it depends on."""

from __future__ import annotations

import hashlib
import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError, first_line
from datamodels.files import replacing

FOLDER = ".explorer"
_VERSION = 3  # of what is computed; a change of it computes all anew


_BLOCK = 1 << 16
_DAMAGED = (ValueError, EOFError, zipfile.BadZipFile)
T = TypeVar("T")


def file_identity(path: Path, name: str) -> list[Any]:
    """What tells a file from another: a name, size, time of change, and a hash of its first, middle and last 64 KiB."""
    about, hashed = path.stat(), hashlib.blake2b(digest_size=10)
    with path.open("rb") as file:
        for place in (0, about.st_size // 2, about.st_size - _BLOCK):
            file.seek(max(0, place))
            hashed.update(file.read(_BLOCK))
    return [name, about.st_size, about.st_mtime_ns, hashed.hexdigest()]


class Cache:
    """Files named ``<kind>.<hash>.<suffix>`` in one folder.

    Attributes
    ----------
    made
        Names of files that were computed since the cache was opened.
    used
        Names of files that were asked for: they tell what everything depends on.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.made: list[str] = []
        self.used: set[str] = set()
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise RequestError(
                f"cannot make {str(folder)!r}, where computed things are kept ({first_line(error)}): name another folder "
                "with cache, --cache"
            ) from None

    def path(self, kind: str, suffix: str, *facts: Any) -> Path:
        """Where the thing of this kind that depends on `facts` (JSON-ready) lies, or is to lie."""
        text = json.dumps([_VERSION, kind, facts], sort_keys=True)
        name = f"{kind}.{hashlib.sha256(text.encode()).hexdigest()[:20]}.{suffix}"
        self.used.add(name)
        return self.folder / name

    def file(self, path: Path, make: Callable[[Path], object]) -> Path:
        """`path`, made when it is not there."""
        if not path.exists():
            with replacing(path) as temporary:
                make(temporary)
            self.made.append(path.name)
        return path

    def arrays(self, kind: str, facts: list[Any], make: Callable[[], Mapping[str, NDArray[Any]]]) -> dict[str, Any]:
        """Name -> array."""

        def save(to: Path) -> None:
            np.savez(to, **cast(dict[str, Any], make()))

        return self._loaded(self.path(kind, "npz", *facts), save, _arrays_of)

    def json(self, kind: str, facts: list[Any], make: Callable[[], Any]) -> Any:
        """A value of JSON."""
        return self._loaded(
            self.path(kind, "json", *facts),
            lambda to: to.write_text(json.dumps(make())),
            lambda path: json.loads(path.read_text()),
        )

    def _loaded(self, path: Path, make: Callable[[Path], object], load: Callable[[Path], T]) -> T:
        """What a file holds; made anew when it is damaged."""
        if path.exists():
            try:
                return load(path)
            except _DAMAGED:
                path.unlink(missing_ok=True)
        return load(self.file(path, make))

    def prune(self) -> None:
        """Remove files that depended on what is no more."""
        for path in self.folder.iterdir():
            parts = path.name.split(".")
            if path.is_file() and len(parts) == 3 and len(parts[1]) == 20 and path.name not in self.used:
                path.unlink(missing_ok=True)


def _arrays_of(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as content:
        return dict(content)
