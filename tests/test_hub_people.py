"""Several people and one dataset: claims, pushes at once, and the commands that they give."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import datamodels as dm
from datamodels.cli import main
from datamodels.errors import RequestError
from datamodels.hub import claim
from datamodels.store import Store
from tests.conftest import row_values
from tests.hub_client import (
    ADDRESS,
    LARGE_FILES,
    NAME,
    OTHER,
    TOKEN,
    card_of,
    environment,
    fetch,
    fill,
    hub,
    rebuild,
    send,
    shards,
    store,
)
from tests.hub_server import Hub

__all__ = ["hub", "store"]  # fixtures
pytestmark = LARGE_FILES


# -- claims -------------------------------------------------------------------------------------------


def test_claims_do_not_overlap_and_end(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    fill(store, [24])
    send(store)
    assert [claim(ADDRESS, rows=6).rows for _ in range(3)] == ["20:27", "27:33", "33:39"]  # row 24 is there
    assert claim(ADDRESS, rows=6, hours=1).to_dict()["missing"] == 1
    with pytest.raises(
        RequestError, match=r"no row of 'default' .* is free: 21 of 40 are there, 19 claimed, the first until"
    ):
        claim(ADDRESS)

    class Later(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> Any:
            return datetime.now(tz) + timedelta(hours=2)

    monkeypatch.setattr("datamodels.hub.claims.datetime", Later)
    assert claim(ADDRESS, rows=9).rows == "39:40"
    monkeypatch.setattr(Later, "now", classmethod(lambda cls, tz=None: datetime.now(tz) + timedelta(hours=26)))
    assert claim(ADDRESS, rows=9).rows == "20:30"
    assert (
        len([path for path in hub.datasets[NAME].files if path.startswith("claims/")]) == 1
    )  # those that ended are removed


def test_a_claim_stops_before_rows_of_others(hub: Hub, store: Store) -> None:
    send(store)
    held = datetime.now(UTC) + timedelta(hours=1)
    rebuild(hub, f"claims/default/00000025-00000030-5-{held:%Y%m%dT%H%M%SZ}-{'0' * 12}.json", b"{}")
    assert [claim(ADDRESS, rows=8).rows for _ in range(2)] == ["20:25", "30:38"]


def test_the_slower_of_two_claimers_chooses_again(hub: Hub, store: Store) -> None:
    send(store)
    met = threading.Barrier(4)
    passed: set[int] = set()

    def meet(request: str) -> None:
        """All four have read the same head before any of them commits."""
        if "/commit/" in request and threading.get_ident() not in passed and len(passed) < 4:
            passed.add(threading.get_ident())
            met.wait(20)

    hub.before = meet
    taken: list[str] = []
    people = [threading.Thread(target=lambda: taken.append(claim(ADDRESS, rows=5).rows)) for _ in range(4)]
    for person in people:
        person.start()
    for person in people:
        person.join()
    assert sorted(taken) == ["20:25", "25:30", "30:35", "35:40"]
    assert len(hub.requests("commit")) > 5  # some had to try again


def test_a_claim_whose_answer_was_lost_is_not_made_twice(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub import HfApi, errors

    send(store)
    commit = HfApi.create_commit
    lost: list[int] = []

    def lose_the_answer(self: Any, *args: Any, **kwargs: Any) -> Any:
        done = commit(self, *args, **kwargs)
        if not lost:
            lost.append(1)
            raise errors.HTTPError("the connection was lost")
        return done

    monkeypatch.setattr(HfApi, "create_commit", lose_the_answer)
    assert claim(ADDRESS, rows=5).rows == "20:25"
    assert len([path for path in hub.datasets[NAME].files if path.startswith("claims/")]) == 1


# -- pushes at once -----------------------------------------------------------------------------------


def test_two_people_with_folders_of_their_own_extend_one_run_at_once(hub: Hub, store: Store, tmp_path: Path) -> None:
    store.extend(40)
    send(store)
    hub.datasets[NAME].writers |= {"ann", "bob"}
    program = (
        "import sys\nfrom datamodels.hub import claim, pull, push\nfrom datamodels.training.campaign import train\n"
        "folder, address = sys.argv[1:]\n"
        "pull(address, folder, progress=False)\n"
        "for _ in range(3):\n"
        "    taken = claim(address, rows=10)\n"
        "    train(folder, 'tests.tasks:good', executor='inline', progress=False, rows=slice(taken.start, taken.stop))\n"
        "    assert push(folder, address, progress=False, shard_rows=10).ok\n"
    )
    people = {
        name: subprocess.Popen(
            [sys.executable, "-c", program, str(tmp_path / name), ADDRESS],
            env=environment(hub, tmp_path / f"hf-{name}", token),
            stderr=subprocess.PIPE,
            text=True,
        )
        for name, token in (("ann", TOKEN), ("bob", OTHER))
    }
    for name, process in people.items():
        _, complaint = process.communicate(timeout=120)
        assert process.returncode == 0, f"{name}: {complaint}"
    fetch(tmp_path / "all")
    everything = Store.open(tmp_path / "all")
    assert everything.completed().all()
    assert everything.verify().ok
    parts = [np.flatnonzero(Store.open(tmp_path / name).completed()) for name in people]
    assert sorted(np.concatenate(parts).tolist()) == sorted([*range(20), *range(80)])  # no row twice
    alone = Store.create(tmp_path / "alone", spec=everything.spec, design=everything.design)
    fill(alone, range(20))
    dm.train(alone, "tests.tasks:good", executor="inline", progress=False)
    assert everything.fingerprint() == alone.fingerprint()
    assert "rows by ann (50), bob (30)" in card_of(hub)[1]


def test_an_overtaken_push_looks_again(hub: Hub, store: Store, new_store: Callable[..., Store]) -> None:
    """Somebody else sends rows 10..29 between our look at the head and our commit."""
    other = fill(new_store(40, "other"), range(10, 30))
    send(fill(new_store(40, "first"), [39]))
    overtaking: list[Any] = []

    def overtake(request: str) -> None:
        if "/commit/" in request and not overtaking:
            overtaking.append(None)
            overtaking.append(send(other))

    hub.before = overtake
    result = send(store)
    assert overtaking[1].rows == 20
    assert result.stores["default"].copied == list(range(10))
    assert result.stores["default"].already_there == list(range(10, 20))
    assert hub.requests("commit")
    rows = [int(name.split("-")[1]) for name in shards(hub)]
    assert rows == [0, 10, 39]


# -- the command line ---------------------------------------------------------------------------------


def test_the_commands_push_pull_claim_and_name_conflicting_rows(
    hub: Hub, store: Store, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def run(*arguments: str) -> tuple[int, str]:
        with pytest.raises(SystemExit) as ended:
            main(list(arguments))
        return ended.value.code, capsys.readouterr().out

    folder = str(store.path)
    assert run("push", folder, ADDRESS, "--license", "mit") == (0, f"sent 20 rows in 1 commits to {ADDRESS}\n")
    status, text = run("pull", ADDRESS, str(tmp_path / "copy"), "--json")
    assert (status, json.loads(text)["rows"]) == (0, 20)
    status, rows = run("claim", ADDRESS, "--rows", "5")
    assert (status, rows) == (0, "20:25\n")
    train = ("train", str(tmp_path / "copy"), "--task", "tests.tasks:good", "--executor", "inline")
    assert run(*train, "--rows", rows.strip())[0] == 0
    assert np.flatnonzero(Store.open(tmp_path / "copy").completed()).tolist() == list(range(25))
    assert run(*train, "--rows", "40:50")[0] == 2
    store.write_row(22, {"margins": row_values(0)})
    assert run("push", str(tmp_path / "copy"), ADDRESS)[0] == 0
    status, text = run("push", folder, ADDRESS)
    assert status == 1
    assert "rows of default with other content on both sides, left as they are: 22" in text


def test_train_does_the_rows_that_are_asked_for(new_store: Callable[..., Store]) -> None:
    made = new_store(20)
    summary = dm.train(made, "tests.tasks:good_blocks", executor="inline", progress=False, rows=slice(5, 12))
    assert (summary.ok, summary.done, summary.pending) == (True, 7, 0)
    assert np.flatnonzero(made.completed()).tolist() == list(range(5, 12))
    assert dm.train(made, "tests.tasks:good_blocks", executor="inline", progress=False, rows=slice(3)).done == 3
    for rows in (slice(15, 21), slice(20, None), slice(4, 4)):
        with pytest.raises(RequestError, match=r"beyond the 20 rows"):
            dm.train(made, "tests.tasks:good_blocks", executor="inline", progress=False, rows=rows)
