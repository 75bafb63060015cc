"""Checkpoints of a model: which of its parameters to use, the values that state dicts and files hold, and their hash."""

from __future__ import annotations

import fnmatch
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from datamodels.errors import RequestError, first_line
from datamodels.trak import batches
from datamodels.trak.outputs import State

Checkpoint = Mapping[str, Tensor] | str | Path
"""A state dict, or a file of one, as it is or under ``state_dict``."""

_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_PREFIX = "module."  # of the names in a wrapper's state dict


def unwrapped(model: Any, device: str | torch.device | None) -> nn.Module:
    """The model on a device (None: where it is), without a wrapper that spreads it over several.

    Raises
    ------
    RequestError
        when it is no module, and for a device that is not there.
    """
    if not isinstance(model, nn.Module):
        raise RequestError(f"model is {model!r:.80}; give a torch.nn.Module")
    inner: nn.Module = model.module if isinstance(model, _WRAPPERS) else model
    try:
        return inner if device is None else inner.to(device)
    except (RuntimeError, AssertionError) as error:
        raise RequestError(
            f"cannot compute on device {str(device)!r}: {first_line(error)}; leave device out to stay where the model is"
        ) from None


def chosen_names(model: nn.Module, params: str | Sequence[str] | None) -> list[str]:
    """Names of the parameters to use, each once, in the model's order."""
    aliases: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if value.requires_grad:
            aliases.setdefault(id(value), []).append(name)
    if not aliases:
        raise RequestError("the model has no parameter with requires_grad, so there are no gradients")
    if params is None:
        return [names[0] for names in aliases.values()]
    patterns = [params] if isinstance(params, str) else list(params)
    every = [name for names in aliases.values() for name in names]
    for pattern in patterns:
        if not fnmatch.filter(every, pattern):
            raise RequestError(
                f"params has {pattern!r}, which names no parameter with requires_grad; the model has {', '.join(every[:8])}"
                f"{', ...' if len(every) > 8 else ''}"
            )
    chosen = [names[0] for names in aliases.values() if any(fnmatch.fnmatchcase(n, p) for n in names for p in patterns)]
    if not chosen:
        raise RequestError("params is empty; leave it out to use all parameters")
    return chosen


def read_state(model: nn.Module, checkpoint: Checkpoint) -> tuple[State, State]:
    """Parameters and buffers of a checkpoint, on the model's device.

    Raises
    ------
    RequestError
        when a file cannot be read, and when names or shapes are not the model's.
    """
    content: Any = checkpoint
    if isinstance(checkpoint, str | Path):
        try:
            content = torch.load(checkpoint, map_location="cpu", weights_only=True)
        except Exception as error:
            raise RequestError(f"cannot read the checkpoint {str(checkpoint)!r}: {first_line(error)}") from None
        if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
            content = content["state_dict"]
    mine = model.state_dict()
    if isinstance(content, Mapping) and content and content.keys() == {_PREFIX + k for k in mine}:
        content = {k.removeprefix(_PREFIX): v for k, v in content.items()}
    if not isinstance(content, Mapping) or {k: v.shape for k, v in mine.items()} != {
        key: getattr(value, "shape", None) for key, value in content.items()
    }:
        raise RequestError(
            f"the checkpoint {_brief(checkpoint)} is no state dict of the model: {_difference(mine, content)}"
        )
    params, buffers = (
        {name: content.get(name, old).detach().to(old) for name, old in pairs}
        for pairs in (model.named_parameters(), model.named_buffers())
    )
    return params, buffers


def hash_of(state: tuple[State, State]) -> str:
    """Of all values of a checkpoint."""
    content = hashlib.sha256()
    for values in state:
        for name, value in values.items():
            content.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            content.update(batches.raw(value))
    return content.hexdigest()[:16]


def refuse_equal(hashes: Sequence[str]) -> None:
    """Raise a RequestError when two checkpoints are the same."""
    for c, one in enumerate(hashes):
        if hashes.index(one) < c:
            raise RequestError(
                f"checkpoints {hashes.index(one)} and {c} hold the same values; give each once. A state dict shows the model as it "
                "is now, not as it was: clone it when you take it, {k: v.clone() for k, v in model.state_dict().items()}"
            )


def _brief(checkpoint: Any) -> str:
    return repr(str(checkpoint)) if isinstance(checkpoint, str | Path) else f"({type(checkpoint).__name__})"


def _difference(mine: Mapping[str, Tensor], content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"it holds {type(content).__name__}"
    missing, extra = [k for k in mine if k not in content], [k for k in content if k not in mine]
    if missing or extra:
        return f"missing {missing[:4]}, unknown {extra[:4]}"
    other = next(k for k in mine if mine[k].shape != getattr(content[k], "shape", None))
    return f"{other!r} must have shape {tuple(mine[other].shape)}"
