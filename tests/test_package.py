"""What the package promises before any work is done."""

from __future__ import annotations

import subprocess
import sys

import pytest

import datamodels

HEAVY = ("torch", "numba", "sklearn", "anndata", "plotly", "matplotlib", "pandas", "scipy", "ray", "zarr")

LIGHT_MODULES = (
    "datamodels",
    "datamodels.store",
    "datamodels.training.initialize_store",
    "datamodels.training.worker",
    "datamodels.training.spec",
    "datamodels.training.utils",
    "datamodels.regression.write_dataset",
    "datamodels.regression.compute_datamodels",
    "datamodels.cli",
)


@pytest.mark.parametrize("module", LIGHT_MODULES)
def test_import_loads_nothing_heavy(module: str) -> None:
    result = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", f"import {module}"], capture_output=True, text=True, check=True
    )
    loaded = {line.rsplit("|", 1)[1].strip().split(".")[0] for line in result.stderr.splitlines() if "|" in line}
    assert "datamodels" in loaded
    assert not loaded & set(HEAVY)


def test_importing_the_package_leaves_logging_and_signals_alone() -> None:
    program = (
        "import logging, signal, sys; before = [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]\n"
        "import datamodels, datamodels.cli\n"
        "assert before == [signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)]\n"
        "assert not logging.getLogger().handlers"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_every_public_name_can_be_had_and_is_documented() -> None:
    for name in datamodels.__all__:
        value = getattr(datamodels, name)
        assert value is not None
        if name != "__version__":
            assert value.__doc__
            assert len(value.__doc__) > 20


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = datamodels.nonsense
