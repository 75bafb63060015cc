"""Featurize in a folder, slowly, to be killed: FOLDER. Each batch waits, so that a kill falls between or within writes."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from datamodels.trak import TRAK, features

SIZE, BATCH = 60, 4


class Slow:
    """A list of batches whose every batch takes a while."""

    def __init__(self, batches: list[Any], seconds: float) -> None:
        self._batches, self._seconds = batches, seconds

    def __iter__(self) -> Iterator[Any]:
        for batch in self._batches:
            time.sleep(self._seconds)
            yield batch


def problem() -> tuple[nn.Module, list[Any], list[dict[str, Any]]]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    x, y = torch.randn(SIZE, 6), torch.randint(3, (SIZE,))
    states = [{k: v + 0.1 * torch.randn_like(v) for k, v in model.state_dict().items()} for _ in range(2)]
    return model, [(x[i : i + BATCH], y[i : i + BATCH]) for i in range(0, SIZE, BATCH)], states


def main() -> None:
    features._FLUSH_SECONDS = 0.0
    torch.set_num_threads(1)
    model, batches, states = problem()
    TRAK(model, dim=16, out=sys.argv[1]).featurize(Slow(batches, 0.02), states)


if __name__ == "__main__":
    main()
