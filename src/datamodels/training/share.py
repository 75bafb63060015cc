"""A share of a store's rows, for array jobs of schedulers that this package does not know."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from datamodels.store import Store
from datamodels.training.campaign import Summary, train
from datamodels.training.task import BlockTask, load_task


def train_share(
    store: Store | str | Path, task: str | Callable[..., dict[str, Any]], index: int, count: int, **options: Any
) -> Summary:
    """Run every `count`-th row from row `index` on, or every `count`-th block of a block task or of a store that is written in
    blocks.

    Shares do not depend on what is complete, so those of one task never overlap, whenever they run; rows that are
    complete are not run again.

    Parameters
    ----------
    store, task, options
        As of `train`.
    index
        Which share, 0 to ``count - 1``.
    count
        How many shares there are.
    """
    if not isinstance(store, Store):
        store = Store.open(store)
    function = load_task(task)
    size = function.block_size if isinstance(function, BlockTask) else store.block_rows or 1
    rows = np.arange(store.n_models)
    return train(store, task, rows=rows[rows // size % count == index], **options)
