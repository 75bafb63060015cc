"""When the Hub or its user fails: killed pushes, failures that pass or last, and errors that say what to do."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from datamodels.errors import RequestError
from datamodels.hub import claim, pull
from datamodels.hub.remote import HubError
from datamodels.store import Store
from tests.hub_client import ADDRESS, LARGE_FILES, NAME, OTHER, TOKEN, environment, fetch, fill, hub, same, send, store
from tests.hub_server import Fault, Hub

__all__ = ["hub", "store"]  # fixtures
pytestmark = LARGE_FILES


@pytest.mark.parametrize("moment", ["^PUT /large", "POST .*/commit/"])
def test_a_push_that_is_killed_leaves_the_dataset_as_it_was(
    hub: Hub, store: Store, tmp_path: Path, moment: str
) -> None:
    import re

    send(fill(store, range(20, 22)), shard_rows=5)
    fill(store, range(22, 40))
    before = hub.datasets[NAME].head
    process = subprocess.Popen(
        [sys.executable, "-m", "datamodels", "push", str(store.path), ADDRESS],
        env=environment(hub, tmp_path / "hf2", TOKEN),
        stderr=subprocess.DEVNULL,
    )
    reached, dead = threading.Event(), threading.Event()

    def kill(request: str) -> None:
        if re.search(moment, request) and not dead.is_set():
            reached.set()
            dead.wait(20)

    hub.before = kill
    assert reached.wait(30)
    process.send_signal(signal.SIGKILL)
    process.wait()
    hub.faults.append(Fault(".", 503, 100))  # what the dead had sent is not worked on any more
    dead.set()
    time.sleep(0.1)
    hub.faults.clear()
    assert hub.datasets[NAME].head == before
    fetch(tmp_path / "meanwhile")
    assert Store.open(tmp_path / "meanwhile").completed().sum() == 22
    assert send(store).stores["default"].copied == list(range(22, 40))
    fetch(tmp_path / "after")
    assert same(store, Store.open(tmp_path / "after"))


def test_failures_that_may_pass_are_tried_again(hub: Hub, store: Store, tmp_path: Path) -> None:
    faults = [
        ("whoami", 429), ("GET /api/datasets/ann/run$", 0), ("/tree/", 502), ("validate-yaml", 503), ("repos/create", 500), ("^PUT", 500),
        ("/commit/", 503), ("/commit/", 0),
    ]  # fmt: skip
    hub.faults += [Fault(pattern, status) for pattern, status in faults]
    assert send(store).rows == 20
    assert len(hub.datasets[NAME].commits) == 2
    assert not any(fault.times for fault in hub.faults)
    hub.faults += [Fault("^HEAD .*resolve", 503), Fault("^GET .*store.json", 429), Fault("^GET /large", 503)]
    assert fetch(tmp_path / "copy").rows == 20
    assert not any(fault.times for fault in hub.faults)


def test_failures_that_last_end_with_one_clear_error(hub: Hub, store: Store, tmp_path: Path) -> None:
    send(store)
    fill(store, [30])
    hub.faults.append(Fault("/commit/", 503, 100))
    with pytest.raises(HubError, match=r"the Hub answered 503 for hf://datasets/ann/run: .*; run it again to go on"):
        send(store)
    hub.faults[:] = [Fault("GET /api/datasets/", 0, 100)]
    with pytest.raises(HubError, match="cannot reach the Hub"):
        fetch(tmp_path / "copy")
    hub.faults.clear()
    assert send(store).rows == 1


@pytest.mark.parametrize(
    ("token", "go", "message"),
    [
        (None, lambda store: send(store), "nobody is logged in .*hf auth login.*HF_TOKEN"),
        ("hf_wrong", lambda store: send(store), "does not know the token"),
        (OTHER, lambda store: send(store), "may not write to hf://datasets/ann/run"),
        (OTHER, lambda store: pull("hf://datasets/ann/none", "x"), "there is no dataset hf://datasets/ann/none"),
        (None, lambda store: pull("hf://datasets/ann/none", "x"), "there is no dataset hf://datasets/ann/none"),
        (TOKEN, lambda store: pull("hf://models/ann/none", "x"), "give hf://datasets/USER/NAME"),
        (TOKEN, lambda store: pull("hf://datasets/ann/../x", "x"), "give hf://datasets/USER/NAME"),
        (TOKEN, lambda store: claim(ADDRESS), "there is no dataset"),
        (TOKEN, lambda store: claim(ADDRESS, rows=0), "rows is 0"),
        (TOKEN, lambda store: claim(ADDRESS, hours=0), "hours is 0"),
        (TOKEN, lambda store: send(store, store="a/b"), "cannot name a folder"),
        (TOKEN, lambda store: send(store, shard_rows=0), "shard_rows is 0"),
        (TOKEN, lambda store: send(store, recipe="none.yaml"), "there is no recipe 'none.yaml'"),
    ],
)
def test_errors_say_what_to_do(hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, token: str | None, go: Callable[[Store], Any], message: str) -> None:  # fmt: skip
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    with pytest.raises(RequestError, match=message):
        go(store)
    assert NAME not in hub.datasets


def test_offline_and_without_rights_there_is_one_clear_error(
    hub: Hub, store: Store, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    send(store, private=True)
    monkeypatch.setenv("HF_TOKEN", OTHER)
    for go in (lambda: fetch(tmp_path / "copy"), lambda: claim(ADDRESS)):
        with pytest.raises(RequestError, match="or the account that is logged in may not see it"):
            go()
    hub.datasets[NAME].private = False
    assert fetch(tmp_path / "copy").rows == 20
    with pytest.raises(RequestError, match="may not write"):
        claim(ADDRESS)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    from huggingface_hub import close_session

    close_session()
    with pytest.raises(RequestError, match="HF_HUB_OFFLINE is set"):
        fetch(tmp_path / "copy")
