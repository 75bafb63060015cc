"""Writers killed with SIGKILL: every completed row is exact, and nothing else is marked."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np

from datamodels.design import Design
from datamodels.store import Store
from tests.conftest import row_values
from tests.kill_writers import SIZE


def test_two_hundred_kills_lose_and_forge_nothing(tmp_path: Path) -> None:
    store = Store.create(
        tmp_path / "store",
        schema={"margins": {"shape": (SIZE,), "dtype": "float32"}},
        design=Design(n_train=12, alpha=0.5, n_models=60, seed=3),
    )
    root = Path(__file__).parent.parent
    result = subprocess.run(
        [sys.executable, "-m", "tests.kill_writers", str(store.path), "110", "7"],
        capture_output=True, text=True, cwd=root,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert int(result.stdout) >= 200
    done = np.flatnonzero(store.completed())
    assert len(done) > 10
    assert store.verify().ok
    for row in done:
        np.testing.assert_array_equal(store.array("margins")[row], row_values(int(row), SIZE))
    rest = np.flatnonzero(~store.completed())
    store.write_rows(rest, {"margins": [row_values(int(row), SIZE) for row in rest]})
    assert store.completed().all()
    assert store.verify().ok
