"""Shared fixtures: small problems whose answer is known."""

from __future__ import annotations

import importlib
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from datamodels.design import Design
from datamodels.regression.problem import Problem
from datamodels.regression.statistics import Statistics
from datamodels.store import Store
from tests.s3 import s3  # noqa: F401

if (
    signal.getsignal(signal.SIGINT) == signal.SIG_IGN
):  # a job in a shell's background, whose children would be deaf to Ctrl-C
    signal.signal(signal.SIGINT, signal.default_int_handler)
EXAMPLES = Path(__file__).parent.parent / "examples"
# Quick sizes have so few models that some training examples are in none of their subsets.
few = pytest.mark.filterwarnings("ignore::datamodels.errors.ConstantColumnWarning")


_SLOWEST = 12  # files that are listed
_seconds: Counter[str] = Counter()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    _seconds[report.nodeid.partition("::")[0]] += report.duration  # type: ignore[assignment]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Which files take the time: a file is run by one worker, so the longest is the least that all of them can take."""
    if sum(_seconds.values()) > 60:
        terminalreporter.section("seconds by file")
        for name, seconds in _seconds.most_common(_SLOWEST):
            terminalreporter.write_line(f"{seconds:6.0f}  {name}")


class Planted(NamedTuple):
    """Outputs that are linear in masks: y = masks @ weights + bias + noise."""

    masks: NDArray[np.bool_]
    outputs: NDArray[np.float64]
    weights: NDArray[np.float64]
    bias: NDArray[np.float64]


def plant(
    m: int, n: int, t: int, *, noise: float = 0.0, nonzero: int = 4, alpha: float = 0.5, seed: int = 0
) -> Planted:
    rng = np.random.default_rng(seed)
    masks = rng.random((m, n)) < alpha
    weights = np.zeros((n, t))
    for k in range(t):
        chosen = rng.choice(n, nonzero, replace=False)
        weights[chosen, k] = rng.choice([-1.0, 1.0], nonzero) * rng.uniform(0.5, 1.5, nonzero)
    bias = rng.normal(size=t)
    return Planted(masks, masks @ weights + bias + noise * rng.normal(size=(m, t)), weights, bias)


def statistics_of(p: Planted) -> Statistics:
    return Statistics.of(Problem.build(masks=p.masks, outputs=p.outputs))


@pytest.fixture
def new_store(tmp_path: Path) -> Callable[..., Store]:
    """Make an empty store with keys ``margins`` float32 (4,) and ``masks`` (12,)."""

    def make(n_models: int = 10, name: str = "store", **design: object) -> Store:
        given = {"n_train": 12, "alpha": 0.5, "seed": 3, **design}
        return Store.create(
            tmp_path / name,
            schema={"margins": {"shape": (4,), "dtype": "float32"}},
            design=Design(n_models=n_models, **given),
        )

    return make


def row_values(row: int, size: int = 4) -> NDArray[np.float32]:
    """What row `row` should hold, wherever it is written."""
    return np.random.default_rng(row).normal(size=size).astype(np.float32)


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> ModuleType:
    """The script of the examples that a test names."""
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module(request.param)


def script(name: str) -> pytest.MarkDecorator:
    """Marks a test that takes `example`: the script of that name."""
    return pytest.mark.parametrize("example", [name], indirect=True)
