"""What a dataset on the Hub holds: per store its schema, and which rows are there.

====================================  ==============================================================================
``README.md``                         the card
``stores/NAME/store.json``            schema, design, sweep, versions, as in a local store
``stores/NAME/design_masks.npy``      explicit masks, bit-packed; only for that kind of design
``stores/NAME/labels.npy``            class of each training example, if given
``stores/NAME/ids_train.npy``, ``ids_test.npy``  names of examples, if given
``data/NAME/rows-A-B-HASH.parquet``   a shard; never rewritten
``index/NAME/NUMBER-HASH.json``       what one commit brought: shards, their rows and checksums, who, when
``claims/NAME/...json``               ranges that somebody works on, see `datamodels.hub.claims`
``run/run.json``, ``run/*``           the run, its attributions, recipes
====================================  ==============================================================================
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import re
import tempfile
from collections import Counter
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, RequestError, first_line, newer_format
from datamodels.files import replacing
from datamodels.hub.remote import Head, Repository
from datamodels.hub.shards import Shard
from datamodels.store.meta import Meta
from datamodels.version import versions

FORMAT_VERSION = 1
NAME = r"[A-Za-z0-9_][A-Za-z0-9_.-]*"
ALONE = "default"  # a store that is pushed by itself; `load_dataset` needs no name for it
_AT_ONCE = 8


@dataclass(frozen=True)
class There:
    """One store on the Hub.

    Attributes
    ----------
    shards
        In the order of their commits.
    first
        Position in `shards` of the shard that a row is taken from, (n_models,); -1 for rows that are not there.
    checksums
        Of each row that is there, (n_models,).
    twice
        Rows that shards give different content to; the first shard counts.
    people
        Who sent how many rows.
    next_number
        That of the next file of the index.
    """

    name: str
    meta: Meta
    shards: list[Shard]
    first: NDArray[np.int64]
    checksums: NDArray[np.uint32]
    twice: list[int]
    people: Counter[str]
    next_number: int

    @property
    def complete(self) -> NDArray[np.bool_]:
        """Which rows are there, bool (n_models,)."""
        return self.first >= 0


def store_file(name: str, file: str) -> str:
    return f"stores/{name}/{file}"


def read_stores(repository: Repository, head: Head) -> dict[str, There]:
    """The stores of a dataset by name.

    Raises
    ------
    CorruptStoreError
        when a file of the dataset was edited or is damaged.
    NewerFormatError
        when a newer version wrote it.
    """
    found = (re.fullmatch(rf"stores/({NAME})/store\.json", path) for path in head.files)
    return {name: _read_store(repository, head, name) for name in sorted(match[1] for match in found if match)}


def choose(stores: Mapping[str, There], name: str | None, address: str) -> There:
    """The store of a name, or the only one."""
    if name is None and len(stores) == 1:
        return next(iter(stores.values()))
    if name is None or name not in stores:
        said = (
            f"has no store {name!r}; it has" if stores and name else "has several stores:" if stores else "has no store"
        )
        raise RequestError(
            f"{address} {said} {', '.join(stores)}".rstrip() + (": name one with --store" if stores else "")
        )
    return stores[name]


def fetch(repository: Repository, head: Head, path: str) -> bytes:
    """The content of a small file."""
    with tempfile.TemporaryDirectory(prefix="datamodels-") as folder:
        return repository.download(head, path, Path(folder)).read_bytes()


def npy(content: bytes) -> NDArray[Any]:
    return np.load(io.BytesIO(content), allow_pickle=False)


def fact_file(store: str, fact: str) -> str:
    """Where the labels, or the names of examples, of a store lie."""
    return store_file(store, f"{fact.removeprefix('_')}.npy")


def fact_of(repository: Repository, head: Head, store: str, fact: str) -> NDArray[Any] | None:
    path = fact_file(store, fact)
    return npy(fetch(repository, head, path)) if path in head.files else None


def index_file(store: str, number: int, shards: list[Shard], by: str) -> tuple[str, bytes]:
    """The path and content of what one commit brings."""
    facts = {
        "format_version": FORMAT_VERSION,
        "by": by,
        "sent": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": versions(),
        "shards": {shard.path: shard.to_dict() for shard in shards},
    }
    content = json.dumps(facts).encode()
    return f"index/{store}/{number:08d}-{_short_hash(content)}.json", content


def _read_store(repository: Repository, head: Head, name: str) -> There:
    place = f"{repository.address}/{store_file(name, 'store.json')}"
    try:
        record = json.loads(fetch(repository, head, store_file(name, "store.json")))
    except ValueError as error:
        raise CorruptStoreError(f"{place} is damaged: {first_line(error)}") from None
    meta = Meta.of(record, place, place, lambda: npy(fetch(repository, head, store_file(name, "design_masks.npy"))))
    paths = sorted(
        path for path in head.files if re.fullmatch(rf"index/{re.escape(name)}/\d{{8}}-[0-9a-f]{{16}}\.json", path)
    )
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        contents = list(pool.map(lambda path: _read_index(repository, head, path), paths))
    rows = meta.spec.num_models
    first, sums = np.full(rows, -1, dtype=np.int64), np.zeros(rows, dtype=np.uint32)
    shards: list[Shard] = []
    twice: list[int] = []
    people: Counter[str] = Counter()
    for by, brought in contents:
        for shard in brought:
            if shard.path not in head.files:
                continue
            if shard.rows[-1] >= rows:
                raise CorruptStoreError(f"{place} says {rows} rows, and {shard.path} has row {shard.rows[-1]}")
            known = first[shard.rows] >= 0
            twice += shard.rows[known & (sums[shard.rows] != shard.checksums)].tolist()
            first[shard.rows[~known]] = len(shards)
            sums[shard.rows[~known]] = shard.checksums[~known]
            people[by] += int((~known).sum())
            shards.append(shard)
    number = int(paths[-1].rsplit("/", 1)[1][:8]) + 1 if paths else 0
    return There(name, meta, shards, first, sums, sorted(set(twice)), people, number)


def _read_index(repository: Repository, head: Head, path: str) -> tuple[str, list[Shard]]:
    """Who brought which shards. The file's name says what is in it, so one that was read once is kept."""
    from huggingface_hub import cached_assets_path

    kept = cached_assets_path("datamodels", repository.id.replace("/", "--"), "index") / path.replace("/", "--")
    wanted = path.removesuffix(".json")[-16:]
    content = kept.read_bytes() if kept.is_file() else b""
    if _short_hash(content) != wanted:
        content = fetch(repository, head, path)
        if _short_hash(content) != wanted:
            raise CorruptStoreError(f"{repository.address}/{path} was edited: put the original back")
        with contextlib.suppress(OSError), replacing(kept, sync=False) as temporary:
            temporary.write_bytes(content)
    try:
        data = json.loads(content)
        if data["format_version"] > FORMAT_VERSION:
            raise newer_format(f"{repository.address}/{path}", data["format_version"], FORMAT_VERSION)
        return str(data["by"]), [Shard.from_dict(name, item) for name, item in data["shards"].items()]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptStoreError(f"{repository.address}/{path} is damaged: {first_line(error)}") from None


def _short_hash(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:16]
