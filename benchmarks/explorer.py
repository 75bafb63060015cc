"""How long the explorer takes: a first view, a click on a target, a what-if, against a real server on this machine.

    python benchmarks/explorer.py [--targets 10000] [--train 50000]

Weights are synthetic: a sparse attribution (60 nonzeros per target) of the full size, and a dense one with a tenth of the targets.
The server runs in a process of its own; times are medians of requests over a kept connection.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from scipy import sparse

NONZERO = 60
REMOVED = 1000


def save_run(folder: Path, targets: int, train: int, *, dense: bool) -> None:
    """A run of one attribution, written as `Attribution.save` does, without ever holding a dense matrix of all."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.json").write_text(
        json.dumps(
            {
                "title": "Synthetic",
                "created": "2026-01-01T00:00:00+00:00",
                "stores": {"none": "none"},
                "attributions": {"weights": {"path": "weights.h5ad", "store": "none"}},
                "view": {"neighbours": "weights", "embedding": "weights"},
            }
        )
    )
    import anndata
    import pandas as pd

    groups = rng.integers(0, 10, targets)
    obs = pd.DataFrame({"bias": np.zeros(targets), "kind": pd.Categorical([f"kind {g}" for g in groups])})
    obs.index = [f"target_{i}" for i in range(targets)]
    var = pd.DataFrame(index=[f"train_{i}" for i in range(train)])
    if dense:
        x: Any = rng.normal(size=(targets, train)).astype(np.float32)
    else:
        # Half of a target's examples are of its kind, so that there is something to see.
        own = (groups[:, None] * (train // 10) + rng.integers(0, train // 10, (targets, NONZERO // 2))) % train
        columns = np.concatenate([own, rng.integers(0, train, (targets, NONZERO // 2))], axis=1).ravel()
        rows = np.repeat(np.arange(targets), NONZERO)
        x = sparse.csr_matrix((rng.normal(size=len(rows)).astype(np.float32), (rows, columns)), (targets, train))
    data = anndata.AnnData(X=x, obs=obs, var=var)
    data.uns["datamodels"] = {"format_version": 1, "provenance": "{}", "arrays": {}}
    data.write_h5ad(folder / "weights.h5ad")


def started(folder: Path) -> tuple[subprocess.Popen[str], str, float]:
    """A server of a run, its address, and the seconds until it answered."""
    begun = time.perf_counter()
    command = [sys.executable, "-m", "datamodels", "explore", str(folder), "--no-browser", "--json"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, bufsize=1)
    assert process.stdout is not None
    line = process.stdout.readline()
    address = json.loads(line)["address"]
    httpx.get(address + "api/meta", timeout=60).raise_for_status()
    return process, address, time.perf_counter() - begun


def median_ms(action: Callable[[int], None], repeats: int) -> float:
    times = []
    for k in range(repeats):
        begun = time.perf_counter()
        action(k)
        times.append(1000 * (time.perf_counter() - begun))
    return statistics.median(times)


def measure(folder: Path, repeats: int) -> dict[str, float]:
    process, _, made = started(folder)  # computes what is kept
    process.terminate()
    process.wait()
    process, address, opened = started(folder)
    rng = np.random.default_rng(1)
    try:
        with httpx.Client(base_url=address, timeout=60) as client:

            def get(path: str) -> httpx.Response:
                answer = client.get(path)
                answer.raise_for_status()
                return answer

            def view(_: int) -> None:
                for name in ("", "static/style.css", "static/plotly.js", "static/app.js"):
                    get(name)
                meta = get("api/meta").json()
                names = [column["name"] for column in meta["targets"]["columns"]]
                get("api/map/0")
                get(f"api/column/targets/{names.index(meta['default']['colour'])}")

            begun = time.perf_counter()
            view(0)
            first = 1000 * (time.perf_counter() - begun)
            meta = get("api/meta").json()
            picked = rng.permutation(meta["n_targets"])
            examples = rng.choice(meta["n_train"], REMOVED, replace=False).tolist()

            def target(k: int) -> None:
                i = picked[k % len(picked)]
                get(f"api/details/targets/{i}")
                get(f"api/weights/0/targets/{i}")

            def example(k: int) -> None:
                get(f"api/details/train/{examples[k]}")
                get(f"api/weights/0/train/{examples[k]}")

            def whatif(_: int) -> None:
                body = {"attribution": meta["attributions"][0]["name"], "examples": examples, "add": False}
                client.post("api/whatif", json=body, headers={"origin": address.rstrip("/")}).raise_for_status()

            return {
                "made s": made,
                "opened s": opened,
                "first view, first time ms": first,
                "first view ms": median_ms(view, repeats),
                "target page ms": median_ms(target, 5 * repeats),
                "train page ms": median_ms(example, 5 * repeats),
                f"what-if of {REMOVED} ms": median_ms(whatif, repeats),
            }
    finally:
        process.terminate()
        process.wait()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--targets", type=int, default=10_000)
    parser.add_argument("--train", type=int, default=50_000)
    parser.add_argument("--repeats", type=int, default=20)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        for name, targets, dense in (("sparse", given.targets, False), ("dense", given.targets // 10, True)):
            save_run(Path(folder) / name, targets, given.train, dense=dense)
            print(f"{name}: {targets:,} targets x {given.train:,} training examples", flush=True)
            for what, value in measure(Path(folder) / name, given.repeats).items():
                print(f"  {what:<28}{value:>10.1f}", flush=True)


if __name__ == "__main__":
    main()
