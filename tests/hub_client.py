"""What the tests of the Hub do with `tests.hub_server`: ann is logged in there, pushes a store and looks at the dataset."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from datamodels.hub import pull, push, remote
from datamodels.store import Store
from tests.conftest import row_values
from tests.hub_server import Hub

# The client's own way to send large files.
LARGE_FILES = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")
TOKEN, OTHER = "hf_AnnsSecretToken", "hf_BobsSecretToken"
ADDRESS = "hf://datasets/ann/run"
NAME = "ann/run"


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """A hub that the client library of this process takes for the real one, where ann is logged in."""
    from huggingface_hub import close_session, constants

    server = Hub({TOKEN: "ann", OTHER: "bob"})
    template = constants.HUGGINGFACE_CO_URL_TEMPLATE.replace(constants.ENDPOINT, server.url)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr("huggingface_hub.utils._cache_assets.HF_ASSETS_CACHE", tmp_path / "hf" / "assets")
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "hf" / "token"))
    monkeypatch.setattr(remote, "_PAUSES", (0.01, 0.02, 0.03, 0.04))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    yield server
    close_session()
    server.close()


@pytest.fixture
def store(new_store: Callable[..., Store]) -> Store:
    """Rows 0..19 of 40."""
    return fill(new_store(40), range(20))


def fill(store: Store, rows: Sequence[int]) -> Store:
    store.write_rows(rows, {"margins": [row_values(row) for row in rows]})
    return store


def send(source: Any, **options: Any) -> Any:
    return push(
        str(source.path) if isinstance(source, Store) else source, ADDRESS, license="mit", progress=False, **options
    )


def fetch(target: Path, **options: Any) -> Any:
    return pull(ADDRESS, target, progress=False, **options)


def same(a: Store, b: Store) -> bool:
    """Byte for byte in all complete rows."""
    done = a.completed()
    return np.array_equal(done, b.completed()) and all(
        np.asarray(a.array(key)[done]).tobytes() == np.asarray(b.array(key)[done]).tobytes() for key in a.keys
    )


def shards(hub: Hub) -> list[str]:
    return sorted(path for path in hub.datasets[NAME].files if path.startswith("data/"))


def rebuild(hub: Hub, path: str, content: bytes) -> None:
    """A commit that was not made by us: `path` has another content."""
    dataset = hub.datasets[NAME]
    hub.large[hashlib.sha256(content).hexdigest()] = content
    dataset.add({**dataset.files, path: content}, "by hand")


def card_of(hub: Hub) -> tuple[dict[str, Any], str]:
    import yaml

    text = hub.datasets[NAME].files["README.md"].decode()
    _, front, body = text.split("---\n", 2)
    return yaml.safe_load(front), body


def environment(hub: Hub, home: Path, token: str) -> dict[str, str]:
    """Of a process of somebody else."""
    return {
        **os.environ,
        "HF_ENDPOINT": hub.url,
        "HF_HOME": str(home),
        "HF_TOKEN": token,
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
    }
