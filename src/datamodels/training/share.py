"""A share of a store's rows, for array jobs of schedulers that this package does not know."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from datamodels.executors.share import run_blocks
from datamodels.store import Store
from datamodels.training.campaign import Summary
from datamodels.training.task import BlockTask, TaskRunner, load_task


def train_share(
    store: Store | str | Path,
    task: str | Callable[..., dict[str, Any]],
    index: int,
    count: int,
    *,
    jobs: int | None = None,
    timeout: float | None = None,
    threads: int = 1,
) -> Summary:
    """Run every `count`-th row from row `index` on, or of a block task every `count`-th block, on this machine.

    Shares do not depend on what is complete, so those of one task never overlap, whenever they run; rows that are
    complete are not run again.

    Parameters
    ----------
    task, jobs, timeout, threads
        As of `train`.

    Returns
    -------
    Summary
        ``pending`` is 0: each row of the share was run, or was complete.
    """
    if not isinstance(store, Store):
        store = Store.open(store)
    function = load_task(task)
    whole = isinstance(function, BlockTask)
    runner = TaskRunner(store.address, task, whole)
    runner.prepare()
    size = function.block_size if isinstance(function, BlockTask) else 1
    done = store.completed()
    blocks = [
        [row for row in range(start, min(start + size, store.n_models)) if not done[row]]
        for start in range(index * size, store.n_models, count * size)
    ]
    ended = {"done": 0, "there": 0}
    failed = []
    begun = time.monotonic()
    for news in run_blocks(runner, blocks, jobs=jobs, timeout=timeout, threads=threads):
        if news.ok:
            ended[news.ended] += 1
        else:
            failed.append(news.row)
            store.record_failure(news.row, f"row {news.row}: {news.ended}\n{news.text}\n")
    return Summary(ended["done"], ended["there"], sorted(failed), 0, time.monotonic() - begun)
