"""Sending what the Hub lacks. Each round looks at what is there, and sends one commit; the last has nothing to send."""

from __future__ import annotations

import json
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError
from datamodels.hub.card import card
from datamodels.hub.contents import ALONE, NAME, There, fact_file, fact_of, fetch, index_file, read_stores, store_file
from datamodels.hub.portable import portable, portable_h5ad
from datamodels.hub.records import Exchanged
from datamodels.hub.remote import Head, Repository, without_bars
from datamodels.hub.same import check_attributions, check_same, checksums_of, read_rows
from datamodels.hub.shards import Shard, check_keys, rows_per_shard, write_shard
from datamodels.progress import note
from datamodels.run import FILE, Run
from datamodels.store import Merged, Store
from datamodels.store.array import npy_bytes

_COMMIT_BYTES = 1 << 30


def push(
    source: str | Path,
    address: str,
    *,
    store: str | None = None,
    license: str | None = None,
    private: bool = False,
    recipe: str | Path | None = None,
    replace: bool = False,
    shard_rows: int | None = None,
    progress: bool = True,
) -> Exchanged:
    """Send a run or a store to a dataset on the Hub: the rows that it lacks, and nothing else.

    Rows that the Hub has are left as they are there, whoever sent them. Interrupted, it goes on where it was.

    Parameters
    ----------
    source
        The folder of a run, or a store: its folder or address.
    address
        ``hf://datasets/USER/NAME``; made when there is none.
    store
        The name of a store on the Hub, by default ``default``; of a run: only the store of that name.
    license
        For the card, as the Hub names it (``mit``, ``cc-by-4.0``); by default the one that the card has, or ``unknown``.
    private
        Whether a dataset that is made is private.
    recipe
        A recipe file to send along; ``recipe*.yaml`` of the source's folder is sent anyway.
    replace
        Whether run.json, attributions and recipes that differ on the Hub are replaced; otherwise they are left as they are.
    shard_rows
        Rows per shard; by default as many as make 64 MB, at most 10,000.
    progress
        Whether to show progress on standard error.

    Returns
    -------
    Exchanged
        Rows whose content differs, or whose checksum is wrong here, do not raise; look at ``ok``.

    Raises
    ------
    RequestError
        when nobody is logged in or may not write, or the stores of that name differ in schema, design or sweep.
    HubError
        when the Hub cannot be reached or fails. What was sent is kept.
    """
    repository = Repository(address)
    if shard_rows is not None and shard_rows < 1:
        raise RequestError(f"shard_rows is {shard_rows}; give 1 or more")
    quiet = not progress or not sys.stderr.isatty()
    with tempfile.TemporaryDirectory(prefix="datamodels-") as folder, without_bars(quiet):
        sending = _Sending(repository, Path(folder), source, store, recipe, license, replace, shard_rows, progress)
        repository.ensure(private=private)
        return repository.racing(sending.round)


class _Local:
    """A store here, as it was when the push began."""

    def __init__(self, name: str, store: Store, shard_rows: int | None) -> None:
        check_keys(store.spec)
        self.name, self.store = name, store
        self.meta = store.as_meta()
        self.done = store.completed()
        self.known = store.checksums()
        self.shard_rows = shard_rows or rows_per_shard(store.spec)
        self.sent: list[int] = []
        self.bad: set[int] = set()
        self.there: list[int] = []
        self.conflicting: set[int] = set()

    def compare(self, there: There | None) -> NDArray[np.int64]:
        """The rows that the Hub lacks; takes note of those that it has."""
        if there is None:
            return np.array([row for row in np.flatnonzero(self.done) if row not in self.bad], dtype=np.int64)
        check_same(self.name, self.store, there.meta)
        both = min(len(self.done), len(there.first))
        common = np.flatnonzero(self.done[:both] & there.complete[:both])
        common = common[~np.isin(common, self.sent)]
        self.there = common.tolist()
        self.conflicting |= set(common[checksums_of(self.store, common) != there.checksums[common]].tolist())
        lacking = self.done.copy()
        lacking[:both] &= ~there.complete[:both]
        return np.array([row for row in np.flatnonzero(lacking) if row not in self.bad], dtype=np.int64)

    def shard(self, rows: NDArray[np.int64], path: Path) -> Shard | None:
        """Write a shard of those of `rows` whose checksum is right."""
        values, sums = read_rows(self.store, rows)
        if self.known is not None:
            good = sums == self.known[rows]
            self.bad |= set(rows[~good].tolist())
            rows, sums, values = rows[good], sums[good], {key: value[good] for key, value in values.items()}
        if not len(rows):
            return None
        shard = Shard.of(self.name, rows, sums)
        write_shard(path, self.store.spec, shard, values)
        return shard

    def merged(self) -> Merged:
        return Merged(sorted(self.sent), self.there, sorted(self.conflicting), sorted(self.bad))


class _Sending:
    """One push."""

    def __init__(
        self, repository: Repository, folder: Path, source: str | Path, store: str | None, recipe: str | Path | None,
        license: str | None, replace: bool, shard_rows: int | None, progress: bool,
    ) -> None:  # fmt: skip
        self.repository, self.folder = repository, folder
        self.license, self.replace, self.show = license, replace, progress
        home = None if "://" in str(source) else Path(source)
        self.run = Run.load(home) if home is not None and (home / FILE).is_file() and store is None else None
        self.stores = [_Local(name, opened, shard_rows) for name, opened in _stores(source, home, store)]
        self.files = _files(home, self.run, recipe, folder)
        self.by = repository.user()
        self.sent_files: list[str] = []
        self.kept: list[str] = []
        self.commits = 0

    def round(self, head: Head) -> Exchanged | None:
        """Send one commit; what was done, when there is nothing to send."""
        there = read_stores(self.repository, head)
        files: dict[str, bytes | Path] = {}
        self.kept = [path for path, content in self.files.items() if path in head.files and not head.has(path, content)]
        files |= {path: data for path, data in self.files.items() if path not in head.files}
        if self.replace:
            files |= {path: self.files[path] for path in self.kept}
            self.kept = []
        others = list(files)
        now: dict[str, tuple[There, Counter[str]]] = {name: (item, Counter()) for name, item in there.items()}
        sent: dict[str, list[int]] = {}
        room = _COMMIT_BYTES
        for local in self.stores:
            known = there.get(local.name)
            lacking = local.compare(known)
            files |= self._about(head, local, known)
            shards: list[Shard] = []
            for rows in _grid(lacking, local.shard_rows):
                if room <= 0:
                    break
                temporary = self.folder / f"{local.name}-{len(shards)}.parquet"
                shard = local.shard(rows, temporary)
                if shard is not None:
                    files[shard.path] = temporary
                    room -= temporary.stat().st_size
                    shards.append(shard)
            sent[local.name] = [int(row) for shard in shards for row in shard.rows]
            if shards:
                path, content = index_file(local.name, known.next_number if known else 0, shards, self.by)
                files[path] = content
            now[local.name] = (_after(local, known), Counter({self.by: len(sent[local.name])} if shards else {}))
        text = self._card(head, now).encode()
        if not head.has("README.md", text):
            files["README.md"] = text
        if not files:
            stores = {local.name: local.merged() for local in self.stores}
            return Exchanged(self.repository.address, head.sha, stores, self.sent_files, self.kept, self.commits)
        total = sum(len(rows) for rows in sent.values())
        self.repository.commit(head, files, f"{total} rows" if total else "Facts about the rows")
        self.commits += 1
        self.sent_files += others
        for local in self.stores:
            local.sent += sent[local.name]
        if self.show and total:
            note(f"sent {total} rows to {self.repository.address}")
        return None

    def _about(self, head: Head, local: _Local, known: There | None) -> dict[str, bytes | Path]:
        """Schema and design of a store, labels and masks, where the Hub lacks them."""
        files: dict[str, bytes | Path] = {}
        if known is None or known.meta.spec.num_models < local.meta.spec.num_models:
            record = local.meta if known is None else replace(local.meta, record=known.meta.record)
            files[store_file(local.name, "store.json")] = json.dumps(record.to_dict(), indent=1).encode()
        if known is None and local.meta.design is not None and local.meta.design.packed_masks is not None:
            files[store_file(local.name, "design_masks.npy")] = npy_bytes(np.asarray(local.meta.design.packed_masks))
        for fact, mine in local.store.facts().items():
            path = fact_file(local.name, fact)
            if path not in head.files:
                files[path] = npy_bytes(mine)
            elif not head.has(path, npy_bytes(mine)):
                theirs = fact_of(self.repository, head, local.name, fact)
                if not np.array_equal(mine, theirs if theirs is not None else []):
                    raise RequestError(
                        f"{Path(path).stem} of the store {local.name!r} differ from those at {self.repository.address}"
                    )
        return files

    def _card(self, head: Head, now: Mapping[str, tuple[There, Counter[str]]]) -> str:
        old = fetch(self.repository, head, "README.md").decode() if "README.md" in head.files else ""
        path = f"run/{FILE}"
        described = b"" if self.run is None else _described(self.run)
        if path in head.files and not (self.replace and described):
            described = fetch(self.repository, head, path)
        run = json.loads(described) if described else None
        people: Counter[str] = Counter()
        for item, more in now.values():
            people += item.people + more
        ordered = [now[name] for name in sorted(now)]
        counts = [int(item.complete.sum()) + more.total() for item, more in ordered]
        stores = [item for item, _ in ordered]
        recipes = sorted(path for path in {*head.files, *self.files} if Path(path).match("run/recipe*.y*ml"))
        return card(old, self.repository.id, stores, counts, dict(people), run, self.license, recipes)


def _after(local: _Local, known: There | None) -> There:
    """What the Hub says of a store after a commit, but for the new rows."""
    if known is None:
        none = np.zeros(0, dtype=np.int64)
        return There(local.name, local.meta, [], none - 1, none.astype(np.uint32), [], Counter(), 0)
    longer = known.meta.spec.num_models < local.meta.spec.num_models
    return replace(known, meta=replace(local.meta, record=known.meta.record)) if longer else known


def _grid(rows: NDArray[np.int64], size: int) -> list[NDArray[np.int64]]:
    """Rows by cells of a fixed grid, so that an interrupted push makes the same shards again."""
    return np.split(rows, np.flatnonzero(np.diff(rows // size)) + 1) if len(rows) else []


def _stores(source: str | Path, home: Path | None, name: str | None) -> list[tuple[str, Store]]:
    """The stores to send by their names."""
    if home is None or not (home / FILE).is_file():
        found = [(name or ALONE, Store.open(source))]
    else:
        run = Run.load(home)
        if name is not None and name not in run.stores:
            raise RequestError(f"the run {str(source)!r} has no store {name!r}; it has {', '.join(run.stores)}")
        found = [(key, Store.open(home / path)) for key, path in run.stores.items() if name in (None, key)]
    for key, _ in found:
        if not re.fullmatch(NAME, key):
            raise RequestError(
                f"the store {key!r} cannot name a folder on the Hub; use letters, digits, '_', '-' and '.'"
            )
    return found


def _files(home: Path | None, run: Run | None, recipe: str | Path | None, folder: Path) -> dict[str, bytes | Path]:
    """The files of a run by their path on the Hub, without absolute paths."""
    files: dict[str, bytes | Path] = {}
    recipes = [] if home is None else [*home.glob("recipe*.yaml"), *home.glob("recipe*.yml")]
    for path in [*sorted(recipes), *([Path(recipe)] if recipe is not None else [])]:
        if not path.is_file():
            raise RequestError(f"there is no recipe {str(path)!r}")
        files[f"run/{path.name}"] = portable(path.read_text()).encode()
    if run is None or home is None:
        return files
    check_attributions(run, str(home))
    files[f"run/{FILE}"] = _described(run)
    for item in run.attributions.values():
        source = home / item.path
        if not source.is_file():
            raise RequestError(
                f"the run names {item.path!r}, which is not in {str(home)!r}; fit it, or take it out of {FILE}"
            )
        files[f"run/{item.path}"] = portable_h5ad(source, folder / "attributions" / item.path)
    return files


def _described(run: Run) -> bytes:
    """What travels of run.json."""
    return json.dumps(portable(run.model_dump()), indent=1).encode()
