"""What a campaign and a fit of any size need: costs that are measured here, a formula, and a simulation with failures.

    python benchmarks/scale_plan.py                      # the plan of docs/scale.md
    python benchmarks/scale_plan.py --models 100000 --train 10000 --targets 1000 --workers 100 --seconds 2

The simulation plays every block of rows: who computes it and for how long, what its writer asks of the object store and when
that refuses or answers late, when writers of neighbouring blocks meet at the object that says what is complete, and when a
machine goes away with what it had not written. The formula knows means only; both are printed beside each other.
"""

from __future__ import annotations

import argparse
import heapq
import json
import math
import time
from dataclasses import asdict, dataclass

import numpy as np

from datamodels.design import Design
from datamodels.regression.problem import Problem
from datamodels.regression.statistics import Statistics
from datamodels.store.plan import row_checksum
from datamodels.store.zarr_format import BLOCKS_PER_STATE
from datamodels.threads import n_threads

SMALLEST_BLOCK = 8
LONGEST_BLOCK = 300.0  # seconds of work that are written together
GRAM_BYTES, CROSS_BYTES = 4, 4


@dataclass(frozen=True)
class Plan:
    """A campaign and where it runs. Times in seconds, sizes in bytes, rates per second."""

    models: int = 1_000_000
    train: int = 50_000
    targets: int = 10_000
    bytes_per_output: int = 2  # float16
    block: int = 100
    workers: int = 1000
    seconds: float = 5.0  # per model and worker
    spread: float = 0.3  # deviation of the logarithm of a block's time
    life: float = 6 * 3600.0  # mean life of a machine
    workers_per_machine: int = 8
    absence: float = 120.0  # until a machine that went away is replaced
    latency: float = 0.04  # of a request, median; its logarithm deviates by 0.5
    bandwidth: float = 50e6  # of one worker
    refusals: float = 0.002  # share of requests that fail and are tried again
    nodes: int = 16  # of the fit
    cores: int = 32  # of each
    node_bandwidth: float = 1.25e9
    dollars_per_worker_hour: float = 0.10
    dollars_per_core_hour: float = 0.04
    dollars_per_put: float = 5e-6
    dollars_per_get: float = 4e-7
    dollars_per_gb_month: float = 0.023
    seed: int = 0

    @property
    def rows_per_write(self) -> int:
        return max(1, min(self.block, int(LONGEST_BLOCK / self.seconds)))

    @property
    def row_bytes(self) -> int:
        return self.targets * self.bytes_per_output


@dataclass(frozen=True)
class Costs:
    """Measured: per row, per byte, per target."""

    mask_seconds: float  # of one row's mask, per training example
    checksum_seconds: float  # per byte that is written
    gram_rate: float  # multiplications of X'X per core and second (half of them, by bits)
    cross_rate: float  # multiplications of X'Y per core and second
    path_seconds: float  # of one target's path, per training example

    @classmethod
    def measure(cls, repeats: int = 3) -> Costs:
        """On this machine, medians."""

        def median(action: object) -> float:
            times = []
            for _ in range(repeats):
                started = time.perf_counter()
                action()  # type: ignore[operator]
                times.append(time.perf_counter() - started)
            return float(np.median(times))

        n, m, t = 5_000, 20_000, 500
        design = Design(n_train=50_000, alpha=0.5, n_models=10_000, seed=0)
        mask = median(lambda: design.masks(0, 50)) / 50 / 50_000
        row = np.random.default_rng(0).normal(size=1_000_000).astype(np.float16)
        crc = median(lambda: row_checksum(0, {"margins": row})) / row.nbytes
        rng = np.random.default_rng(0)
        masks = rng.random((m, n), dtype=np.float32) < 0.5
        few, many = (rng.normal(size=(m, count)).astype(np.float32) for count in (1, t))
        alone = median(lambda: Statistics.of(Problem.build(masks=masks, outputs=few)))
        both = median(lambda: Statistics.of(Problem.build(masks=masks, outputs=many)))
        return cls(
            mask_seconds=mask,
            checksum_seconds=crc,
            gram_rate=m * n * n / alone / n_threads(),
            cross_rate=m * n * t / max(both - alone, 1e-9) / n_threads(),
            # 100 ms per target and core at 50,000 examples and 100,000 models: `make bench-scale`, benchmarks/RESULTS.md
            path_seconds=0.100 / 50_000,
        )


# -- the formula -------------------------------------------------------------------------------------------


def formula(plan: Plan, costs: Costs) -> dict[str, float]:
    """Means: what the campaign and the fit need."""
    rows = plan.rows_per_write
    writes = math.ceil(plan.models / rows)
    per_block = math.ceil(plan.block / rows)
    # A whole block: read its state, create its chunk, mark it. A part of a block: read and claim, read and put, mark.
    puts, gets = (2, 1) if per_block == 1 else (3, 2)
    # Who writes a part moves the chunk both ways.
    moved = plan.row_bytes * (plan.block if per_block > 1 else rows)
    wire = moved * (2 if per_block > 1 else 1) / plan.bandwidth
    unit = rows * plan.seconds + wire + (puts + gets) * plan.latency
    lost = unit / 2  # a machine goes away in the middle of a block, on average
    alive = 1 - plan.absence / (plan.life + plan.absence)
    wall = writes * unit / plan.workers * (1 + lost / plan.life) / alive
    size = plan.models * plan.row_bytes
    fit_cores = plan.nodes * plan.cores
    gram = plan.models * plan.train**2 / (costs.gram_rate * fit_cores)
    cross = plan.models * plan.train * plan.targets / (costs.cross_rate * fit_cores)
    masks = plan.models * plan.train * costs.mask_seconds / fit_cores
    read = size / (plan.nodes * plan.node_bandwidth)
    tables = plan.train**2 * GRAM_BYTES + plan.train * plan.targets * CROSS_BYTES
    reduce = math.ceil(math.log2(plan.nodes)) * tables / plan.node_bandwidth
    paths = plan.targets * plan.train * costs.path_seconds / fit_cores
    fit = gram + cross + masks + read + reduce + paths
    states = math.ceil(plan.models / (plan.block * BLOCKS_PER_STATE))
    return {
        "campaign: hours": wall / 3600,
        "campaign: worker hours": wall * plan.workers / 3600,
        "campaign: writes": writes,
        "campaign: puts": writes * puts,
        "campaign: gets": writes * gets,
        "campaign: bytes up, GB": writes * moved / 1e9,
        "campaign: share of time that is training": plan.models * plan.seconds / plan.workers / wall,
        "store: GB": size / 1e9,
        "store: objects": math.ceil(plan.models / plan.block) + states,
        "status: requests": states,
        "fit: masks, minutes": masks / 60,
        "fit: reading, minutes": read / 60,
        "fit: X'X, minutes": gram / 60,
        "fit: X'Y, minutes": cross / 60,
        "fit: adding up tables, minutes": reduce / 60,
        "fit: paths, minutes": paths / 60,
        "fit: minutes": fit / 60,
        "fit: memory per node, GB": 2 * tables / 1e9,
        "dollars: workers": wall * plan.workers / 3600 * plan.dollars_per_worker_hour,
        "dollars: requests": writes * (puts * plan.dollars_per_put + gets * plan.dollars_per_get),
        "dollars: a month of storage": size / 1e9 * plan.dollars_per_gb_month,
        "dollars: fit": fit / 3600 * fit_cores * plan.dollars_per_core_hour,
    }


# -- the simulation ----------------------------------------------------------------------------------------


def simulate(plan: Plan) -> dict[str, float]:
    """Every block of one campaign, with failures; the protocol is that of `datamodels.store.remote_rows`."""
    rng = np.random.default_rng(plan.seed)
    rows = plan.rows_per_write
    waiting = [(start, min(rows, plan.models - start)) for start in range(0, plan.models, rows)][::-1]
    changed: dict[int, float] = {}  # number of a state object -> when it was last written
    counts = dict.fromkeys(("puts", "gets", "conflicts", "refused", "died", "again"), 0)
    dies = rng.exponential(plan.life, -(-plan.workers // plan.workers_per_machine))
    trained = end = 0.0
    done, left = 0, plan.models
    # What happens next to each worker: (time, worker, what, first row, rows, when it last read their state).
    events = [(0.0, worker, "free", 0, 0, 0.0) for worker in range(plan.workers)]
    heapq.heapify(events)

    def request(kind: str, now: float, size: float = 0.0) -> float:
        """When its answer is there."""
        while True:
            counts[kind] += 1
            now += plan.latency * math.exp(0.5 * rng.standard_normal()) + size / plan.bandwidth
            if rng.random() >= plan.refusals:
                return now
            counts["refused"] += 1
            now += 0.1 + rng.random() * 0.1

    while events:
        now, worker, what, start, count, read = heapq.heappop(events)
        machine = worker // plan.workers_per_machine
        if now >= dies[machine]:  # it went away, and what it had not marked is another's
            if what != "free":
                counts["died"] += 1
                counts["again"] += count
                left += count
                waiting.append((start, count))
            back = dies[machine] + plan.absence
            if now >= back:
                dies[machine] = back + rng.exponential(plan.life)
            heapq.heappush(events, (max(now, back), worker, "free", 0, 0, 0.0))
            continue
        if what == "free":
            if not waiting:
                continue
            start, count = waiting.pop()
            fair = max(SMALLEST_BLOCK, -(-left // plan.workers))  # as campaigns cut blocks where workers would idle
            if fair < count:
                waiting.append((start + fair, count - fair))
                count = fair
            left -= count
            spent = count * plan.seconds * math.exp(plan.spread * rng.standard_normal() - plan.spread**2 / 2)
            heapq.heappush(events, (now + spent, worker, "trained", start, count, 0.0))
            trained += spent
            continue
        if what == "trained":
            read = request("gets", now)
            if count < plan.block:
                heapq.heappush(events, (request("puts", read), worker, "claim", start, count, read))
            else:
                put = request("puts", read, count * plan.row_bytes)
                heapq.heappush(events, (request("puts", put), worker, "mark", start, count, read))
            continue
        state = start // (plan.block * BLOCKS_PER_STATE)
        if changed.get(state, -1.0) > read:  # somebody else changed it since
            counts["conflicts"] += 1
            read = request("gets", now)
            heapq.heappush(events, (request("puts", read), worker, what, start, count, read))
            continue
        changed[state] = now
        if what == "claim":
            put = request("puts", request("gets", now, plan.block * plan.row_bytes), plan.block * plan.row_bytes)
            heapq.heappush(events, (request("puts", put), worker, "mark", start, count, now))
        else:
            done += count
            end = max(end, now)
            heapq.heappush(events, (now, worker, "free", 0, 0, 0.0))
        if not waiting and done == plan.models:
            break
    assert done == plan.models
    return {
        "campaign: hours": end / 3600,
        "campaign: worker hours": end * plan.workers / 3600,
        "campaign: puts": counts["puts"],
        "campaign: gets": counts["gets"],
        "campaign: share of time that is training": plan.models * plan.seconds / plan.workers / end,
        "requests that failed": counts["refused"],
        "writers that met at a state object": counts["conflicts"],
        "blocks lost with their machine": counts["died"],
        "rows trained again, share": counts["again"] / plan.models,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("models", "train", "targets", "workers", "nodes"):
        parser.add_argument(f"--{name}", type=int, default=getattr(Plan, name))
    for name in ("seconds", "life", "refusals"):
        parser.add_argument(f"--{name}", type=float, default=getattr(Plan, name))
    parser.add_argument("--json", action="store_true")
    given = vars(parser.parse_args())
    as_json = given.pop("json")
    plan = Plan(**given)
    costs = Costs.measure()
    means, played = formula(plan, costs), simulate(plan)
    if as_json:
        print(json.dumps({"plan": asdict(plan), "costs": asdict(costs), "formula": means, "simulation": played}))
        return
    for title, table in (("plan", asdict(plan)), ("measured", asdict(costs))):
        print(title, *(f"  {name:38s} {value:.4g}" for name, value in table.items()), sep="\n")
    print(f"{'':40s} {'formula':>12s} {'simulated':>12s}")
    for name in [*means, *(name for name in played if name not in means)]:
        cells = (f"{table[name]:12.4g}" if name in table else f"{'':12s}" for table in (means, played))
        print(f"  {name:38s}", *cells)


if __name__ == "__main__":
    main()
