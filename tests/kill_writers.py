"""Kill writers at random moments, many times. Run as a program: STORE, KILLS, SEED.

Each writer is a real process, forked from this small one so that hundreds are cheap. Between kills the
store is looked at by this process; at the end by the test.
"""

from __future__ import annotations

import os
import random
import signal
import sys
import time

import numpy as np

from datamodels.store import Store
from tests.conftest import row_values

SIZE = 20_000


def write_forever(path: str, seed: int) -> None:
    store = Store.open(path)
    rng = random.Random(seed)
    while True:
        rows = rng.sample(range(store.n_models), rng.randint(1, 4))
        store.write_rows(rows, {"margins": [row_values(row, SIZE) for row in rows]}, overwrite=rng.random() < 0.5)


def main() -> None:
    path, kills, seed = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    rng = random.Random(seed)
    longest = 0.03
    for kill in range(kills):
        children = []
        for writer in range(2):
            child = os.fork()
            if child == 0:
                write_forever(path, hash((seed, kill, writer)))
            children.append(child)
        time.sleep(rng.uniform(0.001, longest))
        for child in children:
            os.kill(child, signal.SIGKILL)
        for child in children:
            assert os.waitpid(child, 0)[1] == signal.SIGKILL
        store = Store.open(path)
        longest = 0.03 if store.completed().sum() > 20 else 0.15  # a busy machine gives writers little time
        for row in np.flatnonzero(store.completed()):
            assert np.array_equal(store.array("margins")[row], row_values(int(row), SIZE)), f"row {row} is wrong"
    print(2 * kills)


if __name__ == "__main__":
    main()
