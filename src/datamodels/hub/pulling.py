"""Fetching what is lacking here: rows, checked one by one, and the files of a run."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import CorruptStoreError, NewerFormatError, RequestError, RowError, StoreError
from datamodels.files import replacing
from datamodels.hub.contents import There, choose, fact_of, fetch, read_stores
from datamodels.hub.records import Exchanged
from datamodels.hub.remote import Head, Repository, without_bars
from datamodels.hub.same import check_attributions, check_same, checksums_of
from datamodels.hub.shards import Shard, read_shard
from datamodels.progress import Progress
from datamodels.run import FILE, Run
from datamodels.spec import IDS, LABELS
from datamodels.store import Merged, Store
from datamodels.store.plan import row_checksum

_RUN = "run/"


def pull(address: str, target: str | Path, *, store: str | None = None, progress: bool = True) -> Exchanged:
    """Make or complete a run or a store from a dataset on the Hub. Interrupted, it goes on where it was.

    Rows that are complete here are left alone. A store that has fewer models here than there is extended.

    Parameters
    ----------
    address
        ``hf://datasets/USER/NAME``.
    target
        A folder: that of the run if the dataset holds one, else that of the store. With one store, any address of a store.
    store
        Only the store of this name; needed when the dataset holds several and no run.
    progress
        Whether to show progress on standard error.

    Returns
    -------
    Exchanged
        Rows whose content differs, or whose checksum is wrong there, do not raise; look at ``ok``.

    Raises
    ------
    RequestError
        when there is no such dataset, or the store here differs in schema, design or sweep.
    HubError
        when the Hub cannot be reached or fails. What was fetched is kept.
    CorruptStoreError
        when a file there is not what a push writes.
    """
    repository = Repository(address)
    with tempfile.TemporaryDirectory(prefix="datamodels-") as name, without_bars(True):
        head = repository.head()
        stores = read_stores(repository, head)
        folder = Path(name)
        local = None if "://" in str(target) else Path(target)
        if store is not None or f"{_RUN}{FILE}" not in head.files:
            one = choose(stores, store, repository.address)
            merged = {one.name: _pull_store(repository, head, one, target, folder, progress)}
            files, kept = _write(repository, head, _recipes(head), local, folder) if local is not None else ([], [])
            return Exchanged(repository.address, head.sha, merged, files, kept)
        if local is None:
            raise RequestError(
                f"{repository.address} holds a run: pull it to a folder, or one of its stores with --store"
            )
        run = _run(repository, head, folder, local)
        merged = {}
        for key, path in run.stores.items():
            merged[key] = _pull_store(
                repository, head, choose(stores, key, repository.address), local / path, folder, progress
            )
        paths = [f"{_RUN}{item.path}" for item in run.attributions.values()]
        files, kept = _write(repository, head, [*paths, *_recipes(head), f"{_RUN}{FILE}"], local, folder)
        return Exchanged(repository.address, head.sha, merged, files, kept)


def _run(repository: Repository, head: Head, folder: Path, local: Path) -> Run:
    """The run on the Hub, checked: its paths stay in the run's folder. Stores that are here stay where they are."""
    there = folder / "run"
    there.mkdir()
    (there / FILE).write_bytes(fetch(repository, head, f"{_RUN}{FILE}"))
    run = Run.load(there)
    check_attributions(run, repository.address)
    return (
        run.model_copy(update={"stores": {**run.stores, **Run.load(local).stores}}) if (local / FILE).is_file() else run
    )


def _recipes(head: Head) -> list[str]:
    return [path for path in head.files if re.fullmatch(rf"{_RUN}recipe[\w.-]*\.ya?ml", path)]


def _write(
    repository: Repository, head: Head, paths: Sequence[str], local: Path, folder: Path
) -> tuple[list[str], list[str]]:
    """Write files that are not here; those that were written, and those that differ here and were kept."""
    written, kept = [], []
    for path in paths:
        target = local / path.removeprefix(_RUN)
        if not target.resolve().is_relative_to(local.resolve()) or path not in head.files:
            raise CorruptStoreError(
                f"{repository.address} names {path!r}, which is not there, or outside of the run's folder"
            )
        if target.is_file():
            if not head.has(path, target):
                kept.append(path)
            continue
        with replacing(target) as temporary:
            shutil.move(repository.download(head, path, folder), temporary)
        written.append(path)
    return written, kept


def _pull_store(
    repository: Repository, head: Head, there: There, target: str | Path, folder: Path, progress: bool
) -> Merged:
    here = _open_or_create(repository, head, there, target)
    if here.n_models < len(there.first):
        here.extend(len(there.first) - here.n_models)
    done = here.completed()[: len(there.first)]
    common = np.flatnonzero(done & there.complete)
    differing = common[checksums_of(here, common) != there.checksums[common]].tolist()
    wanted = there.complete & ~done
    copied: list[int] = []
    bad: list[int] = []
    with Progress(f"pulling {there.name}", int(there.complete.sum()), show=progress, done=len(common)) as bar:
        for number in np.unique(there.first[wanted]).tolist():
            shard = there.shards[number]
            rows = shard.rows[wanted[shard.rows] & (there.first[shard.rows] == number)]
            written, refused = _pull_shard(repository, head, here, shard, rows, folder)
            copied += written
            bad += refused
            bar.advance(len(written), len(refused))
    return Merged(sorted(copied), common.tolist(), sorted({*differing, *there.twice}), sorted(bad))


def _open_or_create(repository: Repository, head: Head, there: There, target: str | Path) -> Store:
    try:
        here = Store.open(target)
    except (CorruptStoreError, NewerFormatError):
        raise
    except StoreError:
        meta = there.meta
        ids = {of: fact_of(repository, head, there.name, fact) for of, fact in IDS.items()}
        labels = fact_of(repository, head, there.name, LABELS)
        return Store.create(target, spec=meta.spec, design=meta.design, sweep=meta.sweep, labels=labels, ids=ids)
    check_same(there.name, here, there.meta)
    return here


def _pull_shard(
    repository: Repository, head: Head, here: Store, shard: Shard, rows: NDArray[np.int64], folder: Path
) -> tuple[list[int], list[int]]:
    """Write the rows of a shard; those that were written, and those whose checksum is wrong."""
    path = repository.download(head, shard.path, folder)
    try:
        values = read_shard(path, here.spec, shard)
    except CorruptStoreError:
        return [], rows.tolist()
    finally:
        path.unlink(missing_ok=True)
    places = np.flatnonzero(np.isin(shard.rows, rows))
    sums = [row_checksum(int(shard.rows[i]), {key: value[i] for key, value in values.items()}) for i in places]
    right = np.array(sums, dtype=np.uint32) == shard.checksums[places]
    good = places[right]
    written, refused = _write_rows(here, shard.rows[good], {key: value[good] for key, value in values.items()})
    return written, [*shard.rows[places[~right]].tolist(), *refused]


def _write_rows(here: Store, rows: NDArray[np.int64], values: dict[str, Any]) -> tuple[list[int], list[int]]:
    """Write rows; those that do not fit the store (not the design's mask, NaN where none is meant) are refused one by one."""
    if not len(rows):
        return [], []
    try:
        return here.write_rows(rows, values), []
    except RowError:
        if len(rows) == 1:
            return [], rows.tolist()
    half = len(rows) // 2
    parts = [
        (rows[part], {key: value[part] for key, value in values.items()}) for part in (slice(half), slice(half, None))
    ]
    (written, refused), (more, others) = (_write_rows(here, *part) for part in parts)
    return written + more, refused + others
