"""One whole fit at full scale: 50,000 examples, 100,000 models, 1,000 planted sparse targets, masks on disk.

``make bench-scale`` prints the time of each stage and the memory it took. ``--folder`` keeps the files (6 GB).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path

import numpy as np

from datamodels.regression.path import fit_path
from datamodels.regression.problem import Problem
from datamodels.regression.split_statistics import SplitStatistics
from datamodels.threads import n_threads

SUPPORT = 20


def generate(folder: Path, n: int, m: int, t: int) -> np.ndarray:
    """Masks (m, n) and outputs (m, t) as .npy files, a block of rows at a time; the planted weights (t, SUPPORT)
    belong to the examples returned, (t, SUPPORT)."""
    rng = np.random.default_rng(0)
    where = np.stack([rng.choice(n, SUPPORT, replace=False) for _ in range(t)])
    weights = rng.normal(size=(t, SUPPORT)).astype(np.float32)
    x = np.lib.format.open_memmap(folder / "x.npy", "w+", np.bool_, (m, n))
    y = np.lib.format.open_memmap(folder / "y.npy", "w+", np.float32, (m, t))
    for start in range(0, m, 2_000):
        count = min(2_000, m - start)
        random = np.frombuffer(rng.bytes(count * -(-n // 8)), dtype=np.uint8).reshape(count, -1)
        block = np.unpackbits(random, axis=1, count=n)
        x[start : start + count] = block
        for k in range(t):
            y[start : start + count, k] = block[:, where[k]] @ weights[k]
        y[start : start + count] += 0.5 * np.sqrt(SUPPORT) / 2 * rng.standard_normal((count, t), dtype=np.float32)
    x.flush()
    y.flush()
    return where


def memory(name: str) -> float:
    """A line of /proc/self/status in GiB."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name)) / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--n", type=int, default=50_000)
    parser.add_argument("--m", type=int, default=100_000)
    parser.add_argument("--t", type=int, default=1_000)
    parser.add_argument("--folder", type=Path)
    given = parser.parse_args()
    n, m, t = given.n, given.m, given.t
    with nullcontext(given.folder) if given.folder else tempfile.TemporaryDirectory() as folder:
        folder = Path(folder)
        folder.mkdir(exist_ok=True)
        started = time.perf_counter()
        where = generate(folder, n, m, t)
        print(f"generated in {time.perf_counter() - started:.0f} s", flush=True)
        run(folder, where, n, m, t)


def run(folder: Path, where: np.ndarray, n: int, m: int, t: int) -> None:
    problem = Problem.build(masks=folder / "x.npy", outputs=folder / "y.npy")
    held_out = np.random.default_rng(1).random(m) < 0.15
    few = problem.take(np.arange(200))
    fit_path(SplitStatistics.of(few, [held_out[:200]]), n_lambdas=3, eps=0.5)  # compile

    started = time.perf_counter()
    data = SplitStatistics.of(problem, [held_out], lambda rows: None)
    read = time.perf_counter() - started
    started = time.perf_counter()
    result = fit_path(data, n_lambdas=50, eps=1e-2)
    path = time.perf_counter() - started
    found = np.mean([np.isin(where[k], np.flatnonzero(result.weights[:, k])).mean() for k in range(t)])

    rows = min(m, 4096)
    block = np.load(folder / "x.npy", mmap_mode="r")[:rows]
    started = time.perf_counter()
    block.astype(np.float32).T @ np.ones((rows, t), dtype=np.float32)
    product = (time.perf_counter() - started) * m / rows
    print(f"\n| n {n:,}, m {m:,}, t {t:,}, {n_threads()} threads | |\n|---|---|")
    print(f"| statistics (of which XᵀY about {product:.0f} s) | {read:.0f} s |")
    print(
        f"| paths, validation, refit, certificates | {path:.0f} s, {path * n_threads() / t * 1e3:.0f} ms per target-core |"
    )
    print(f"| worst gap on all features | {result.gap.max():.1e} |")
    print(f"| planted examples found, median nonzeros | {found:.3f}, {np.median(result.n_nonzero):.0f} |")
    print(
        f"| peak memory: all, and without the pages of mapped files now | {memory('VmHWM'):.1f}, {memory('RssAnon'):.1f} GiB |"
    )
    print(f"| predicted for t = 10,000 | {read - product + 10 * (product + path):.0f} s |")


if __name__ == "__main__":
    main()
