"""Past one machine: what campaigns cost per row here, a Ray of two nodes against local processes, a store on S3 against raw puts.

Run with ``python benchmarks/scale_out.py [--part local|ray|s3]`` on a quiet machine, from the folder of the repository: the S3
server is that of the tests. Each figure is a median over pairs that are measured in turn.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from datamodels import Design, Store, block_task, train
from spine import cpu, paired, timed, worker_start

ROOT = Path(__file__).parent.parent
ROW = {"margins": {"shape": (10,), "dtype": "float32"}}


@block_task(block_size=100)
def empty_blocks(indices: np.ndarray) -> dict[str, Any]:
    return {"margins": np.zeros((len(indices), 10), np.float32)}


@block_task(block_size=10)
def second(indices: np.ndarray) -> dict[str, Any]:
    """About a tenth of a second of one core per row."""
    x = np.random.default_rng(0).normal(size=(300, 300))
    for _ in indices:
        for _ in range(80):
            y = x @ x
    return {"margins": np.full((len(indices), 10), y[0, 0], np.float32)}


def new(folder: str | Path, rows: int) -> Store:
    place = Path(folder) / str(time.perf_counter_ns())
    return Store.create(place, schema=ROW, design=Design(n_train=100, alpha=0.5, n_models=rows, seed=0))


def local() -> list[str]:
    """Rows of no work, the status of a million of them, and the classic worker from cold."""
    with tempfile.TemporaryDirectory() as folder:
        count = 100_000

        def campaign(rows: int) -> Callable[[], object]:
            return lambda: train(new(folder, rows), empty_blocks, jobs=2, progress=False)

        many, few, _ = paired(campaign(count), campaign(200), 3)
        million = new(folder, 1_000_000)
        million.write_rows(range(0, 1_000_000, 97), {"margins": np.zeros((len(range(0, 1_000_000, 97)), 10))})
        status = float(np.median([timed(lambda: Store.open(million.path).status()) for _ in range(5)]))
        command = [sys.executable, "-m", "datamodels", "status", str(million.path)]
        cold = float(np.median([timed(lambda: subprocess.run(command, check=True, stdout=-3)) for _ in range(3)]))
    return [
        f"| campaign of {count:,} empty rows in blocks of 100, per row | {(many - few) / (count - 200) * 1e3:.4f} ms "
        f"| with the start of its workers {many / count * 1e3:.4f} ms | ≤ 0.2 ms |",
        f"| status of 1,000,000 rows | {status:.3f} s | `datamodels status`, cold process {cold:.2f} s | ≤ 1 s |",
        worker_start().replace("| – |", "| ≤ 0.5 s |"),
    ]


def ray() -> list[str]:
    """The same campaign of blocks of a second by two local processes, and on two nodes of one CPU."""
    import logging

    import ray
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    cluster.add_node(num_cpus=1)
    ray.init(address=cluster.address, logging_level=logging.ERROR)
    with tempfile.TemporaryDirectory() as folder:
        rows = 600

        def campaign(executor: str) -> Callable[[], object]:
            return lambda: train(new(folder, rows), second, executor=executor, jobs=2, progress=False)

        ours, theirs, ratio = paired(campaign("ray"), campaign("local"), 3)
    ray.shutdown()
    cluster.shutdown()
    return [
        f"| Ray, 2 nodes of 1 CPU, {rows} rows in blocks of 10, start of workers included | {rows / ours:.2f} rows/s "
        f"| 2 local processes {rows / theirs:.2f} rows/s | {ratio:.0%} (≥ 90 %) |"
    ]


BLOCKS = 20  # per writer


def s3() -> list[str]:
    """Blocks of 100 rows of 10,000 float32 written to moto, and as many bytes put by obstore: by one process, and by two at once;
    block by block, and ten blocks in one call, as a task for 1,000 rows gives them, against ten puts at once."""
    import obstore
    from obstore.store import from_url

    sys.path.insert(0, str(ROOT))
    from tests.s3 import server

    lines = []
    with server() as running, ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        os.environ.update(running.environment)
        folder = running.bucket()
        cases = [(writers, blocks) for blocks in (1, 10) for writers in (1, 2)]
        for writers, blocks in cases:
            who = "one process" if writers == 1 else "two processes at once"
            how = "a block per call" if blocks == 1 else f"{blocks} blocks per call"
            pairs = []
            for _ in range(11):
                store = f"{folder}/{time.perf_counter_ns()}"
                schema = {"margins": {"shape": (10_000,), "dtype": "float32"}}
                design = Design(n_train=100, alpha=0.5, n_models=100 * BLOCKS * writers, seed=0)
                Store.create(store, schema=schema, design=design)
                pairs.append(
                    [
                        max(pool.map(partial(write, store, writers=writers, blocks=blocks, raw=raw), range(writers)))
                        for raw in (False, True)
                    ]
                )
                bucket = from_url(store)
                for some in obstore.list(bucket):  # moto keeps all of it in memory
                    obstore.delete(bucket, [one["path"] for one in some])
            ours, theirs = np.median(pairs[1:], axis=0)
            rows = 100 * BLOCKS * writers
            lines.append(
                f"| S3 (moto on loopback), blocks of 100 rows of 40 kB, {how}, {who} | {rows / ours:.0f} rows/s | the same bytes by "
                f"`obstore.put` {rows / theirs:.0f} rows/s | {np.median([b / a for a, b in pairs[1:]]):.0%} (≥ 80 %) |"
            )
    return lines


def write(store: str, writer: int, writers: int, blocks: int, raw: bool) -> float:
    """Seconds in which one process writes its share, some blocks per call, to the store or beside it; the others write those between."""
    import obstore
    from obstore.store import from_url

    values = np.random.default_rng(0).normal(size=(100 * blocks, 10_000)).astype(np.float32)
    opened, bucket, data = Store.open(store), from_url(store), values[:100].tobytes()
    opened.completed()
    threads = ThreadPoolExecutor(blocks)
    time.sleep(1 - time.time() % 1)  # all processes begin together
    started = time.perf_counter()
    for call in range(writer, writers * BLOCKS // blocks, writers):
        names = [f"raw/{block}" for block in range(blocks * call, blocks * call + blocks)]
        if not raw:
            opened.write_rows(range(100 * blocks * call, 100 * blocks * (call + 1)), {"margins": values})
        elif blocks == 1:
            obstore.put(bucket, names[0], data)
        else:
            list(threads.map(lambda name: obstore.put(bucket, name, data), names))
    return time.perf_counter() - started


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--part", choices=["local", "ray", "s3"], action="append")
    chosen = parser.parse_args().part or ["local", "s3", "ray"]
    load = os.getloadavg()[0]
    print(f"{datetime.now(UTC):%Y-%m-%d}, {cpu()}, Python {platform.python_version()}, load before {load:.1f}\n")
    print("| what | ours | beside it | to reach |\n|---|---|---|---|")
    for part in chosen:
        for line in {"local": local, "ray": ray, "s3": s3}[part]():
            print(line, flush=True)


if __name__ == "__main__":
    main()
