"""Tasks that the tests train with, importable from worker processes."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

from datamodels import block_task
from datamodels.store import Store


def good(index: int, mask: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    return {"margins": rng.normal(size=4).astype(np.float32) + mask.sum()}


@block_task(block_size=7)
def good_blocks(indices: np.ndarray, masks: np.ndarray, rngs: list[np.random.Generator]) -> dict[str, Any]:
    return {"margins": np.stack([good(0, mask, rng)["margins"] for mask, rng in zip(masks, rngs, strict=True)])}


def slow_good(index: int, mask: np.ndarray, rng: np.random.Generator) -> dict[str, Any]:
    time.sleep(0.01)
    return good(index, mask, rng)


def fails_on_three(index: int) -> dict[str, Any]:
    if index == 3:
        raise ZeroDivisionError("three is not allowed")
    return {"margins": np.zeros(4)}


def fails_until_told(index: int, logdir: str) -> dict[str, Any]:
    """Fails twice per row, then succeeds."""
    file = Path(logdir) / "attempts"
    attempts = int(file.read_text()) if file.exists() else 0
    file.write_text(str(attempts + 1))
    if attempts < 2:
        raise RuntimeError(f"attempt {attempts}")
    return {"margins": np.full(4, attempts)}


def hangs_on_three(index: int) -> dict[str, Any]:
    if index == 3:
        time.sleep(120)
    return {"margins": np.full(4, os.getpid())}


def dies_on_three(index: int) -> dict[str, Any]:
    if index == 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return {"margins": np.zeros(4)}


def dies_once_three_is_written(index: int) -> dict[str, Any]:
    """The row is in the store before its process is lost."""
    if index == 3:
        Store.open(os.environ["STORE"]).write_row(3, {"margins": np.zeros(4)})
    return dies_on_three(index)


def exits_on_three(index: int) -> dict[str, Any]:
    if index == 3:
        sys.exit(0)
    return {"margins": np.zeros(4)}


def wrong_shape_on_three(index: int) -> dict[str, Any]:
    return {"margins": np.zeros(5 if index == 3 else 4)}


@block_task(block_size=5)
def bad_value_on_three(indices: np.ndarray) -> dict[str, Any]:
    out = np.zeros((len(indices), 4))
    out[indices == 3] = np.nan
    return {"margins": out}


def process_id(index: int) -> dict[str, Any]:
    time.sleep(0.002)
    return {"margins": np.full(4, os.getpid())}


def thread_settings(index: int) -> dict[str, Any]:
    return {"margins": [float(os.environ["OMP_NUM_THREADS"]), float(os.environ["OPENBLAS_NUM_THREADS"]), 0, 0]}


def needs_more(index: int, learning_rate: float) -> dict[str, Any]:
    return {"margins": np.zeros(4)}


def sleeps(index: int) -> dict[str, Any]:
    (Path(os.environ["PID_FOLDER"]) / str(os.getpid())).touch()
    time.sleep(0.3)
    return {"margins": np.zeros(4)}


def forks_and_dies(index: int) -> dict[str, Any]:
    """A child outlives the worker and holds its pipe."""
    if index == 0:
        if os.fork() == 0:
            time.sleep(5)
            os._exit(0)
        os._exit(3)
    return {"margins": np.zeros(4)}


def prints(index: int) -> dict[str, Any]:
    print("hello from Python")
    os.system("echo hello from a child")
    return {"margins": np.zeros(4)}


def forgets_to_return(index: int) -> None:
    """Returns nothing."""


@block_task(block_size=4)
def returns_too_few(indices: np.ndarray) -> dict[str, Any]:
    return {"margins": np.zeros((1, 4))}


def wants_rng(index: int, rng: np.random.Generator) -> dict[str, Any]:
    return {"margins": rng.normal(size=4)}


def good_values() -> dict[str, Any]:
    return {"margins": np.zeros(4)}
