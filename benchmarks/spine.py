"""Speed of the whole flow, each figure as a ratio to a peer or a floor that is measured beside it.

Run with ``make bench``. Every pair is measured in turn, several times; medians are reported.
"""

from __future__ import annotations

import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from datamodels import Design, Store, train
from datamodels.regression.path import lambda_grid, lambda_max, solve_path
from datamodels.regression.problem import Problem
from datamodels.regression.statistics import Statistics

REPEATS = 5


def timed(work: Callable[[], object]) -> float:
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def paired(
    ours: Callable[[], object], theirs: Callable[[], object], repeats: int = REPEATS
) -> tuple[float, float, float]:
    """Median seconds of both, and the median of the ratios theirs / ours pair by pair."""
    ours(), theirs()
    pairs = [(timed(ours), timed(theirs)) for _ in range(repeats)]
    ratio = statistics.median(b / a for a, b in pairs)
    return statistics.median(a for a, _ in pairs), statistics.median(b for _, b in pairs), ratio


def lasso_path_against_scikit_learn() -> str:
    """All of the path, no early stop, the same grid, the same gap or better, one thread each."""
    import numba
    from sklearn.linear_model import lasso_path

    rng = np.random.default_rng(0)
    masks = rng.random((3500, 1300)) < 0.5
    weights = rng.normal(size=(1300, 4)) * (rng.random((1300, 4)) < 0.1)
    outputs = masks @ weights + 4 * rng.normal(size=(3500, 4))
    total = Statistics.of(Problem.build(masks=masks, outputs=outputs))
    lams = lambda_grid(lambda_max(total), 50, 1e-2)
    z = np.asfortranarray((masks - masks.mean(axis=0)) / masks.std(axis=0))
    gram = z.T @ z
    y = outputs - outputs.mean(axis=0)
    xy = z.T @ y
    numba.set_num_threads(1)

    def theirs() -> None:
        for k in range(4):
            lasso_path(
                z, y[:, k], alphas=lams[k], precompute=gram, Xy=xy[:, k], tol=1e-6, copy_X=False, check_input=False
            )

    a, b, ratio = paired(lambda: solve_path(total, lams, tol=1e-6), theirs)
    return (
        f"| lasso path, n 1,300, m 3,500, 50 λ to 10⁻²·λ_max, gap 1e-6, per target and core | {a / 4 * 1e3:.0f} ms "
        f"| scikit-learn `lasso_path(precompute=Gram)` {b / 4 * 1e3:.0f} ms | {ratio:.1f}× |"
    )


def statistics_against_their_products() -> str:
    """Streaming statistics against the two matrix products alone, on arrays that are there already."""
    rng = np.random.default_rng(0)
    masks = rng.random((8192, 1300)) < 0.5
    outputs = rng.normal(size=(8192, 500))
    floats, shifted = masks.astype(np.float32), outputs - outputs.mean(axis=0)
    wide = masks.astype(np.float64)
    a, b, ratio = paired(
        lambda: Statistics.of(Problem.build(masks=masks, outputs=outputs)),
        lambda: (floats.T @ floats, wide.T @ shifted),
    )
    return (
        f"| statistics, m 8,192, n 1,300, t 500 | {a:.2f} s | XᵀX and XᵀY alone {b:.2f} s | {ratio:.2f} of the floor |"
    )


def empty_task(index: int) -> dict[str, object]:
    return {"margins": np.zeros(10, np.float32)}


def campaign_overhead() -> str:
    """A task that does nothing: what the campaign, the checks and the disk cost per row."""
    with tempfile.TemporaryDirectory() as folder:
        count, data = 20_000, np.zeros(10, np.float32).tobytes()

        def ours() -> None:
            name = Path(folder) / str(time.perf_counter_ns())
            design = Design(n_train=100, alpha=0.5, n_models=count, seed=0)
            store = Store.create(name, schema={"margins": {"shape": (10,), "dtype": "float32"}}, design=design)
            assert train(store, empty_task, progress=False).ok

        def theirs() -> None:
            fd = os.open(Path(folder) / "raw", os.O_CREAT | os.O_WRONLY)
            for row in range(count):
                os.pwrite(fd, data, row * len(data))
            os.fsync(fd)
            os.close(fd)

        a, b, _ = paired(ours, theirs, 3)
    return f"| campaign of {count:,} empty rows, per row | {a / count * 1e3:.3f} ms | bare `pwrite` {b / count * 1e3:.4f} ms | – |"


def worker_start() -> str:
    """One cold process of the classic worker against an empty Python that imports NumPy."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "job.py").write_text("def main(index, logdir): return {'margins': [0.0] * 10}\n")
        design = Design(n_train=100, alpha=0.5, n_models=100, seed=0)
        Store.create(Path(folder) / "s", schema={"margins": {"shape": (10,), "dtype": "float32"}}, design=design)
        rows = iter(range(100))

        def ours() -> None:
            command = [sys.executable, "-m", "datamodels.training.worker", f"--worker.index={next(rows)}"]
            subprocess.run([*command, "--worker.main_import=job", "--worker.logdir=s"], cwd=folder, check=True)

        a, b, _ = paired(ours, lambda: subprocess.run([sys.executable, "-c", "import numpy"], check=True), 11)
    return f"| classic worker, one row, cold process | {a:.2f} s | `python -c 'import numpy'` {b:.2f} s | – |"


def cpu() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        names = [line.split(":")[1].strip() for line in lines if line.startswith("model name")]
    except OSError:
        names = []
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores"


def main() -> None:
    print(f"{datetime.now(UTC):%Y-%m-%d}, {cpu()}, Python {platform.python_version()}, NumPy {np.__version__}\n")
    print("| what | ours | beside it | ratio |\n|---|---|---|---|")
    for measure in (
        lasso_path_against_scikit_learn,
        statistics_against_their_products,
        campaign_overhead,
        worker_start,
    ):
        print(measure(), flush=True)


if __name__ == "__main__":
    main()
