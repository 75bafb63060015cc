"""What must hold after any fault: complete rows are right, the store is whole, and a driver said what happened."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from datamodels.store import Store
from tests import tasks

FAULTS = [
    pytest.mark.faults,
    # Tasks here differ in their speed alone.
    pytest.mark.filterwarnings("ignore::datamodels.errors.TaskChangedWarning"),
]
NewStore = Callable[..., Store]
SCHEMA = {"margins": {"shape": (4,), "dtype": "float32"}}


def right(store: Store, rows: Any) -> np.ndarray:
    """What `tasks.good` writes into rows."""
    design = store.design
    return np.array([tasks.good(i, design.mask(i), design.rng(i))["margins"] for i in map(int, rows)], np.float32)


def holds(store: Store) -> np.ndarray:
    """The complete rows, after a look at each."""
    done = np.flatnonzero(store.completed())
    np.testing.assert_array_equal(np.asarray(store.array("margins")[done]), right(store, done).reshape(-1, 4))
    return done


def is_finished(store: Store) -> None:
    assert len(holds(store)) == store.n_models
    assert store.verify().ok


def said_by(driver: subprocess.Popen[str], status: int) -> str:
    said = driver.communicate(timeout=60)[1]
    assert driver.returncode == status, said
    assert "Traceback" not in said
    return said
