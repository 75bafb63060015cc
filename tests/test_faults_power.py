"""Lost power: of all that a disk may then hold, no image shows a wrong row as complete or loses one that was safe."""

from __future__ import annotations

import contextlib
import itertools
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.store import Store, array
from datamodels.store import npy as npy_module
from datamodels.training.campaign import train
from tests import tasks
from tests.fault_checks import FAULTS, NewStore, right

pytestmark = FAULTS
Event = tuple[Any, ...]


@contextlib.contextmanager
def recorded(events: list[Event], patch: pytest.MonkeyPatch) -> Iterator[None]:
    """Note every write, growth, flush and replacement of files of stores, in their order."""
    real_write, real_flush, real_reserve, real_meta = array.pwrite, array.flush, array.reserve, npy_module._write_meta

    def name(fd: int) -> str:
        return Path(os.readlink(f"/proc/self/fd/{fd}")).name

    def write(fd: int, data: bytes, position: int) -> None:
        events.append(("write", name(fd), position, bytes(data)))
        real_write(fd, data, position)

    def reserve(fd: int, size: int) -> None:
        events.append(("write", name(fd), os.fstat(fd).st_size, bytes(max(0, size - os.fstat(fd).st_size))))
        real_reserve(fd, size)

    def flush(fd: int) -> None:
        events.append(("flush", name(fd)))
        real_flush(fd)

    def meta(path: Path, content: Any) -> None:
        real_meta(path, content)
        events.append(("replace", "store.json", (path / "store.json").read_bytes()))

    with patch.context() as inner:
        for what, spy in (("pwrite", write), ("flush", flush), ("reserve", reserve)):
            inner.setattr(array, what, spy)
            if hasattr(npy_module, what):
                inner.setattr(npy_module, what, spy)
        inner.setattr(npy_module, "_write_meta", meta)
        yield


def images(before: dict[str, bytes], events: list[Event]) -> Iterator[tuple[int, dict[str, bytes]]]:
    """What a disk may hold when power is lost after each event: all that was flushed, and of the rest any part in any order,
    also half of a write."""
    durable = {name: bytearray(data) for name, data in before.items()}
    pending: list[Event] = []
    seen: set[int] = set()
    for number, event in enumerate([("start",), *events]):
        if event[0] == "write":
            half = len(event[3]) // 2
            parts = [(event[2], event[3][:half]), (event[2] + half, event[3][half:])]
            pending += [(event[1], *part) for part in parts if part[1]]
        elif event[0] == "flush":
            for one in [one for one in pending if one[0] == event[1]]:
                _apply(durable, one)
            pending = [one for one in pending if one[0] != event[1]]
        elif event[0] == "replace":
            durable[event[1]] = bytearray(event[2])
        for kept in itertools.product((False, True), repeat=len(pending)):
            image = {name: bytearray(data) for name, data in durable.items()}
            for one in itertools.compress(pending, kept):
                _apply(image, one)
            found = {name: bytes(data) for name, data in image.items()}
            key = hash((number, tuple(found.values())))
            if key not in seen:
                seen.add(key)
                yield number, found


def _apply(files: dict[str, bytearray], write: tuple[str, int, bytes]) -> None:
    name, position, data = write
    files[name].extend(bytes(max(0, position + len(data) - len(files[name]))))
    files[name][position : position + len(data)] = data


def history(store: Store, patch: pytest.MonkeyPatch) -> tuple[list[Event], list[tuple[int, set[int]]]]:
    """What a store lives through, and after which event which rows must stay complete (during what follows, too)."""
    events: list[Event] = []
    safe: list[tuple[int, set[int]]] = []
    with recorded(events, patch):
        train(store, tasks.good_blocks, executor="inline", progress=False, rows=slice(0, 10))
        safe.append((len(events), {0, 1, *range(5, 10)}))
        store.write_rows([2, 3, 4], {"margins": right(store, [2, 3, 4]) + 100}, overwrite=True)
        safe.append((len(events), set(range(8))))
        store.forget([8, 9])
        safe.append((len(events), set(range(8))))
        store.extend(4)
        safe.append((len(events), set(range(8))))
        train(store, tasks.good, executor="inline", progress=False)
        safe.append((len(events), set(range(store.n_models))))
    return events, safe


def problems(
    before: dict[str, bytes], events: list[Event], safe: list[tuple[int, set[int]]], folder: Path
) -> list[str]:
    """What is wrong with any image: a complete row with other bytes, or a row that is lost; and how many images there were."""
    found, count = [], 0
    for number, image in images(before, events):
        count += 1
        for name, data in image.items():
            (folder / name).write_bytes(data)
        store = Store.open(folder)
        done = np.flatnonzero(store.completed())
        values, good = np.asarray(store.array("margins")[done]), right(store, done).reshape(-1, 4)
        new = np.isin(done, [2, 3, 4])
        wrong = ~((values == good).all(axis=1) | (new & (values == good + 100).all(axis=1)))
        must = next((rows for after, rows in reversed(safe) if after <= number), set())
        if wrong.any() or not store.verify().ok:
            found.append(f"after event {number}: row {done[wrong]} is wrong")
        if must - set(done.tolist()):
            found.append(f"after event {number}: rows {must - set(done.tolist())} are lost")
    assert count > 100
    return found


def test_lost_power_at_any_moment_shows_no_wrong_row(
    new_store: NewStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store(12)
    before = {file.name: file.read_bytes() for file in store.path.iterdir() if file.is_file()}
    events, safe = history(store, monkeypatch)
    (tmp_path / "image").mkdir()
    assert problems(before, events, safe, tmp_path / "image") == []
    assert Store.open(store.path).n_models == 16
    # That this would be seen: without the flushes of data, a mark may be on disk before what it marks.
    careless = [event for event in events if event != ("flush", "margins.npy")][: safe[0][0]]
    assert any("is wrong" in one for one in problems(before, careless, [], tmp_path / "image"))
