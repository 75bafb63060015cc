"""Files: written wholly or not at all, and read with one clear error."""

from __future__ import annotations

import contextlib
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datamodels.errors import RequestError, first_line


@contextlib.contextmanager
def replacing(path: str | Path, *, sync: bool = True) -> Iterator[Path]:
    """Give a temporary name beside `path` to write to; it takes `path`'s place when the block ends well.

    Missing folders are made. The content is on disk before it takes the place, unless `sync` is off.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.stem}.{uuid.uuid4().hex}{path.suffix}")
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield temporary
        if sync:
            fd = os.open(temporary, os.O_RDONLY)
            try:
                os.fsync(fd)
            finally:
                os.close(fd)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def read_yaml(path: str | Path) -> dict[str, Any]:
    """A YAML or JSON file that holds one mapping. Numbers like 1e-3 are numbers, as in JSON.

    Raises
    ------
    RequestError
        when it is missing, cannot be parsed, or holds something else.
    """
    import yaml

    class Loader(yaml.SafeLoader):
        """Without this, YAML takes 1e-3 for text."""

    number = re.compile(r"[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$")
    Loader.add_implicit_resolver("tag:yaml.org,2002:float", number, list("-+.0123456789"))
    try:
        data = yaml.load(Path(path).read_text(), Loader)  # noqa: S506 (a SafeLoader)
        bounded(data)
    except OSError as error:
        raise RequestError(f"cannot read {str(path)!r}: {error.strerror}") from None
    except Exception as error:  # yaml's own errors, and whatever a bad value of a tag raises
        raise RequestError(f"{str(path)!r} is not YAML: {first_line(error)}") from None
    if not isinstance(data, dict):
        raise RequestError(f"{str(path)!r} holds {type(data).__name__}; it must be a mapping of names to values")
    return data


def bounded(data: Any) -> None:
    """Refuse what is small in a file and endless when its aliases are followed.

    Raises
    ------
    RequestError
        when there are more than a million values.
    """
    left, count = [data], 0
    while left:
        item = left.pop()
        inner = [*item.keys(), *item.values()] if isinstance(item, dict) else item if isinstance(item, list) else ()
        count += len(inner)
        if count > 1_000_000:
            raise RequestError("it has more than a million values, its aliases (*name) followed")
        left.extend(inner)
