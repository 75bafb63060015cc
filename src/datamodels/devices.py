"""GPUs of this machine: whether there are any, and which one each worker process sees."""

from __future__ import annotations

import os
from pathlib import Path

_SIGNS = ("/dev/nvidiactl", "/dev/kfd", "/dev/dxg")  # of drivers of NVIDIA, AMD, and of either under Windows
VISIBLE = "CUDA_VISIBLE_DEVICES"
"""What the environment of a process says of the GPUs that it may use. Of ROCm, too, unless it is given HIP_VISIBLE_DEVICES."""


def device_named(device: str) -> str:
    """A name for PyTorch: ``auto`` is ``cuda`` where there is a driver and a device, else ``cpu``."""
    if device != "auto":
        return device
    if not any(Path(sign).exists() for sign in _SIGNS):  # importing torch to ask it takes seconds
        return "cpu"
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def gpus_of(device: str) -> tuple[str, ...]:
    """What `VISIBLE` is to be for each worker process that computes on `device`; empty for a CPU.

    ``cuda`` is any GPU that this process may use, so that there is one worker for each. ``cuda:1`` is one of them, so that one worker
    sees what this process sees.
    """
    name = device_named(device)
    if not name.startswith("cuda"):
        return ()
    import torch

    given = [one.strip() for one in os.environ.get(VISIBLE, "").split(",") if one.strip()]
    seen = given or [str(number) for number in range(torch.cuda.device_count())]
    if not seen:  # PyTorch says so, in every row
        return ()
    return tuple(seen) if name == "cuda" else (",".join(seen),)
