"""The regression engine against its peers and against the floor of two matrix products.

``make bench-regression`` prints the tables of RESULTS.md; ``--part`` runs one of them. Compiled kernels are warm,
comparisons are paired in one run, and every gap is measured by one function on all features.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time
import warnings
from collections.abc import Callable

import numpy as np

from datamodels.regression import bits
from datamodels.regression.path import fit_path, lambda_grid, lambda_max, solve_at, solve_path
from datamodels.regression.problem import Problem
from datamodels.regression.split_statistics import SplitStatistics
from datamodels.regression.statistics import Statistics
from peers import (
    Data,
    Peer,
    available,
    by_excess,
    grid_of,
    objective_of,
    planted,
    saga_path,
    standardised,
    worst_gap,
)

SUPPORT, NOISE = 20, 0.5
# What each peer has to be asked for so that its measured gap is just what is wanted, see peers.calibrated.
ASKED = {"scikit-learn": 1.0, "celer": 1.0, "skglm": 10.0, "glmnet": 0.1}


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def median_of(work: Callable[[], object], repeats: int) -> float:
    return statistics.median(timed(work) for _ in range(repeats))


def products(m: int = 18_000, n: int = 5_000, repeats: int = 5) -> None:
    """XᵀX: exact counts of bit-packed masks against float32 of torch, the same integers."""
    import torch

    x = np.random.default_rng(0).random((m, n), dtype=np.float32) < 0.5
    floats = torch.from_numpy(x.astype(np.float32))
    gram = np.zeros((n, n), dtype=np.uint16)

    def ours() -> None:
        gram[:] = 0
        bits.add_products(bits.pack_columns(x), gram, "popcount")

    ours()
    expected = (floats.T @ floats).numpy()
    assert np.array_equal(gram, expected.astype(np.int64))
    int8 = torch.from_numpy(x).to(torch.int8)
    rows = {
        "torch float32 `X.T @ X`": lambda: floats.T @ floats,
        "torch int8 `_int_mm`": lambda: torch._int_mm(int8.T, int8),
    }
    rows["numpy float32 `X.T @ X` (half of it)"] = lambda: floats.numpy().T @ floats.numpy()
    pairs = {name: [(timed(ours), timed(theirs)) for _ in range(repeats)] for name, theirs in rows.items()}
    print(f"\n| XᵀX, m {m:,}, n {n:,}, equal integers | s | ours, from bool masks, s | ratio |\n|---|---|---|---|")
    for name, taken in pairs.items():
        a, b = (statistics.median(pair[i] for pair in taken) for i in (0, 1))
        ratio = statistics.median(theirs / mine for mine, theirs in taken)
        print(f"| {name} | {b:.2f} | {a:.2f} | {ratio:.1f}× |", flush=True)


def whole(m: int = 20_000, n: int = 5_000, t: int = 1_000, repeats: int = 3) -> None:
    """A whole fit by stage, against the two matrix products alone."""
    import torch

    masks, outputs, _ = planted(n, m, t, SUPPORT, NOISE, 0.5, 0)
    problem = Problem.build(masks=masks, outputs=outputs)
    held_out = np.random.default_rng(1).random(m) < 0.15
    x, y = torch.from_numpy(masks.astype(np.float32)), torch.from_numpy(outputs)
    warm()
    floors, reads, paths, results = [], [], [], []
    for _ in range(repeats):
        floors.append(timed(lambda: (x.T @ x, x.T @ y)))
        started = time.perf_counter()
        data = SplitStatistics.of(problem, [held_out])
        reads.append(time.perf_counter() - started)
        started = time.perf_counter()
        results.append(fit_path(data, n_lambdas=50, eps=1e-2))
        paths.append(time.perf_counter() - started)
    floor, read, path = (statistics.median(part) for part in (floors, reads, paths))
    cores = torch.get_num_threads()
    result = results[-1]
    per = path * cores / t * 1e3
    print(f"\n| whole lasso fit, n {n:,}, m {m:,}, t {t:,}, 50 λ to 10⁻²·λ_max | |\n|---|---|")
    print(f"| floor: XᵀX and XᵀY alone, torch float32 | {floor:.1f} s |")
    print(f"| statistics (read, shift, XᵀX, XᵀY, fitted and held-out rows) | {read:.1f} s |")
    print(f"| paths, validation, refit, certificates | {path:.1f} s, {per:.1f} ms per target-core |")
    print(f"| all | {read + path:.1f} s; wanted ≤ {2 * floor + 0.02 * t / cores:.1f} s |")
    print(f"| worst gap on all features | {result.gap.max():.1e} (tolerance 1e-5) |")
    walked = np.isfinite(result.errors).sum(axis=1)
    print(f"| median λ walked, nonzeros walked, nonzeros chosen | {np.median(walked):.0f}, "
          f"{np.median(result.path_n_nonzero.max(axis=1)):.0f}, {np.median(result.n_nonzero):.0f} |", flush=True)  # fmt: skip


def warm() -> None:
    """Compile what is not compiled."""
    p = planted(60, 300, 2, 3, 0.5, 0.5, 0)
    data = SplitStatistics.of(Problem.build(masks=p[0], outputs=p[1]), [np.arange(300) % 7 == 0])
    fit_path(data, n_lambdas=5, eps=0.1)
    solve_path(data.total, lambda_grid(lambda_max(data.total), 5, 0.1), tol=1e-6)


def against_peers(n: int, m: int, t: int, theirs: int, noise: float, tol: float = 1e-4) -> None:
    """Seconds per target at an equal gap, one thread each: the full path, and all stopped where ours stops."""
    import numba
    from threadpoolctl import threadpool_limits

    peers, missing = available()
    for name, why in missing.items():
        print(f"(left out: {name}, {why})")
    masks, outputs, _ = planted(n, m, t, SUPPORT, noise, 0.5, 0)
    total = Statistics.of(Problem.build(masks=masks, outputs=outputs))
    split = SplitStatistics.of(Problem.build(masks=masks, outputs=outputs), [np.random.default_rng(1).random(m) < 0.15])
    stopped = int(np.median(np.isfinite(fit_path(split, n_lambdas=50, eps=1e-2).errors).sum(axis=1)))
    problem = standardised(masks, outputs[:, :theirs])
    grid = np.stack([grid_of(data, 50, 1e-2) for data in problem])
    ours = lambda_grid(lambda_max(total), 50, 1e-2)
    warm()
    numba.set_num_threads(1)
    with threadpool_limits(1):
        for title, count in (
            ("full path, 50 λ to 10⁻²·λ_max", 50),
            (f"stopped after {stopped} λ, where ours stops", stopped),
        ):
            mine = median_of(lambda: solve_path(total, ours[:, :count], tol=tol, certify=False), 3) / t  # noqa: B023
            weights, _ = solve_path(total, ours[:, :count], tol=tol, certify=False)
            gap = max(worst_gap(problem[k], grid[k, :count], weights[k]) for k in range(theirs))
            print(
                f"\n| {title}; n {n:,}, m {m:,}, noise {noise:g} × signal, gap {tol:g} | s per target-core | worst gap | ratio |\n|---|---|---|---|"
            )
            print(f"| ours, {t} targets | {mine:.4f} | {gap:.1e} | |")
            for name, peer in list(peers.items()):
                asked = next((value for key, value in ASKED.items() if name.startswith(key)), 1.0) * tol
                found, taken = theirs_of(peer, problem, grid[:, :count], asked)
                reached = max(worst_gap(problem[k], grid[k, :count], found[k]) for k in range(theirs))
                if taken > 30:  # once is enough
                    del peers[name]
                print(f"| {name} {peer.version} | {taken:.3f} | {reached:.1e} | {taken / mine:.0f}× |", flush=True)
    numba.set_num_threads(numba.config.NUMBA_NUM_THREADS)


def theirs_of(peer: Peer, problem: list[Data], grid: np.ndarray, asked: float) -> tuple[list[np.ndarray], float]:
    """Weights of a peer, and its seconds per target when it is warm: the median of three, of one when it is slow."""

    def work() -> list[np.ndarray]:
        return [peer.solve(data, lams, asked) for data, lams in zip(problem, grid, strict=True)]

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        started = time.perf_counter()
        found = work()
        slow = time.perf_counter() - started > 20 * len(problem)
        return found, median_of(work, 1 if slow else 3) / len(problem)


def against_saga(n: int, m: int, t: int) -> None:
    """Proximal SAGA, all targets at once and all cores, to the same objective within 1e-3 at every λ."""
    masks, outputs, _ = planted(n, m, t, SUPPORT, NOISE, 0.5, 0)
    problem = standardised(masks, outputs)
    total = Statistics.of(Problem.build(masks=masks, outputs=outputs))
    lams = lambda_grid(lambda_max(total), 50, 1e-2)
    warm()
    best, _ = solve_path(total, lams, tol=1e-8)
    values = np.stack(
        [objective_of(data.z, data.y[:, None], w.T, grid) for data, w, grid in zip(problem, best, lams, strict=True)]
    )
    print(
        f"\n| path of 50 λ, objective within 1e-3 of the best at each, n {n:,}, m {m:,}, t {t} | s per target | epochs | ratio |"
    )
    print("|---|---|---|---|")
    loose = 1e-3
    mine = median_of(lambda: solve_path(total, lams, tol=loose, certify=False), 3) / t
    weights, _ = solve_path(total, lams, tol=loose, certify=False)
    found = np.stack(
        [objective_of(data.z, data.y[:, None], w.T, grid) for data, w, grid in zip(problem, weights, lams, strict=True)]
    )
    print(f"| ours (worst excess {((found - values) / values).max():.0e}) | {mine:.4f} | | |", flush=True)
    for title, keep in (("one λ, λ_max/10", np.array([lams.shape[1] // 2])), ("the path", np.arange(lams.shape[1]))):
        run = saga_path(problem, lams[:, keep], by_excess(problem, lams[:, keep], values[:, keep]))
        one = mine if len(keep) > 1 else median_of(lambda: solve_at(total, lams[:, keep[0]], tol=loose), 3) / t  # noqa: B023
        print(
            f"| proximal SAGA, {title} | {run.seconds / t:.4f} | {run.epochs} | {run.seconds / t / one:.0f}× (ours {one:.4f}) |",
            flush=True,
        )


def growth() -> None:
    """How the path stage grows with targets and with rows, at a planted support and the same ratio of λ."""
    warm()
    n, times = 3_000, {}
    masks, outputs, _ = planted(n, 40_000, 800, SUPPORT, NOISE, 0.5, 0)
    for m, t in ((10_000, 200), (10_000, 800), (40_000, 200)):
        data = SplitStatistics.of(
            Problem.build(masks=masks[:m], outputs=outputs[:m, :t]), [np.random.default_rng(1).random(m) < 0.15]
        )
        times[m, t] = median_of(lambda: fit_path(data, n_lambdas=30, eps=0.05), 5)  # noqa: B023
    base = times[10_000, 200]
    print(f"\n| growth, n {n:,} | path stage | ratio | wanted |\n|---|---|---|---|")
    print(f"| m 10,000, t 200 | {base:.2f} s | | |")
    print(f"| t × 4 | {times[10_000, 800]:.2f} s | {times[10_000, 800] / base:.2f} | ≤ 4.4 |")
    print(f"| m × 4 | {times[40_000, 200]:.2f} s | {times[40_000, 200] / base:.2f} | ≤ 1.5 |", flush=True)


def memory() -> None:
    """Peak private memory of a fit from files, with four times the rows."""
    print("\n| peak memory of a fit, n 3,000, t 200 | anonymous MiB |\n|---|---|")
    peaks = [anonymous_peak(m) for m in (10_000, 40_000)]
    for m, peak in zip((10_000, 40_000), peaks, strict=True):
        print(f"| m {m:,} | {peak / 2**20:.0f} |")
    print(f"| ratio (wanted within 5 %) | {peaks[1] / peaks[0]:.3f} |", flush=True)


def anonymous_peak(m: int) -> float:
    """The largest RssAnon that a process reaches: file pages that are mapped are the system's to take back."""
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            [sys.executable, "-c", MEMORY_CHILD, str(m), folder], stdout=subprocess.PIPE, text=True
        )
        out, _ = process.communicate()
        return float(out.split()[-1])


MEMORY_CHILD = """
import sys, threading, time, numpy as np
m, n, t, folder = int(sys.argv[1]), 3000, 200, sys.argv[2]
rng = np.random.default_rng(0)
for name, width, dtype in (("x", n, np.bool_), ("y", t, np.float32)):
    np.lib.format.open_memmap(f"{folder}/{name}.npy", "w+", dtype, (m, width)).flush()
x, y = (np.lib.format.open_memmap(f"{folder}/{name}.npy", "r+") for name in "xy")
for start in range(0, m, 2000):
    rows = slice(start, start + 2000)
    x[rows] = rng.random((2000, n), dtype=np.float32) < 0.5
    y[rows] = x[rows, :t] + rng.normal(size=(2000, t))
x.flush(), y.flush()
del x, y
from datamodels import fit, Lasso
fit(masks=np.eye(40, dtype=bool), outputs=rng.normal(size=(40, 2)), progress=False)
peak, done = 0, False
def watch():
    global peak
    while not done:
        for line in open("/proc/self/status"):
            if line.startswith("RssAnon"):
                peak = max(peak, int(line.split()[1]) << 10)
        time.sleep(0.002)
thread = threading.Thread(target=watch)
thread.start()
fit(masks=f"{folder}/x.npy", outputs=f"{folder}/y.npy", estimator=Lasso(n_lambdas=20, eps=0.1), progress=False)
done = True
thread.join()
print(peak)
"""

PARTS: dict[str, Callable[[], object]] = {
    "products": products,
    "whole": whole,
    "peers": lambda: [against_peers(5_000, 20_000, 16, 1, noise) for noise in (NOISE, 0.1)],
    "saga": lambda: against_saga(5_000, 20_000, 16),
    "growth": growth,
    "memory": memory,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    chosen = parser.parse_args().part
    for name, part in PARTS.items():
        if chosen in (name, "all"):
            part()


if __name__ == "__main__":
    main()
