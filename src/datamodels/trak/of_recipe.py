"""TRAK of a training recipe: train its networks, take their gradients, score the examples of a split.

A folder keeps what has been done: ``checkpoints/<fingerprint>_<k>.pt``, ``features/<hash>/`` and ``scores/<hash>.h5ad``, each
named by all that it depends on, so that other recipes and options in the same folder are kept apart.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.datasets import Split
from datamodels.devices import device_named
from datamodels.errors import RequestError
from datamodels.executors.pool import MakePool
from datamodels.files import replacing
from datamodels.progress import Progress
from datamodels.training.ensemble import SplitName, TrainedModels, TrainRecipe, train_models
from datamodels.training.recipes import Recipe
from datamodels.training.streams import Streams
from datamodels.trak.scores import RIDGE_UNIT
from datamodels.trak.trak import MOST_COORDINATES, TRAK
from datamodels.version import versions

Kind = Literal["trak", "dot", "cosine"]
_TOGETHER = 4  # networks that are trained side by side; more where there are more threads
_BATCH = 100  # examples whose gradients are taken at once
_ROOM = 2  # gradients of up to so many times `dim` parameters are not projected


@dataclass(frozen=True)
class Checkpoints:
    """Networks of a recipe.

    Attributes
    ----------
    files
        Their state dicts, in order.
    trained
        How many of them were trained by the call that returned this.
    """

    files: list[Path]
    trained: int

    @property
    def seconds(self) -> float:
        """CPU seconds that training took per network, without compilation."""
        return float(np.mean([torch.load(file, weights_only=True, mmap=True)["seconds"] for file in self.files]))


@dataclass(frozen=True, eq=False)
class TrakRun:
    """Scores, and the networks that they are from.

    Attributes
    ----------
    attribution
        Weights (n_train, n_targets) of TRAK.
    checkpoints
        The networks.
    """

    attribution: Attribution
    checkpoints: Checkpoints


def trak_of_recipe(
    task: TrainRecipe,
    folder: str | Path,
    *,
    targets: SplitName = "test",
    checkpoints: int = 20,
    alpha: float = 0.5,
    projection: str = "auto",
    dim: int = 2048,
    ridge: float = 1.0,
    params: Sequence[str] | None = None,
    seed: int = 0,
    executor: str | MakePool = "local",
    progress: bool = True,
) -> TrakRun:
    """Train networks of a recipe, and score all training examples for the examples of a split.

    Parameters
    ----------
    task
        How networks are trained, and on what.
    folder
        Keeps networks, features and scores: what is there is not computed again.
    targets
        ``test``, or ``train``: each training example is a target, and `Attribution.train_columns` says so.
    checkpoints, alpha
        As in `train_checkpoints`.
    projection, dim, ridge, params
        As in `trak_of`.
    seed
        Of the networks and of the projection.
    executor
        Of `TRAK.featurize`; networks are trained here.
    progress
        Whether to show progress on standard error.

    Returns
    -------
    TrakRun
        Weights (n_train, n_targets) and bias 0; ``train_facts["self_influence"]`` (n_train,) is `TRAK.self_influence`.

    Raises
    ------
    RequestError
        before anything is trained, when a value is wrong.
    """
    if targets not in get_args(SplitName):
        raise RequestError(f"targets are {targets!r}; legal: {', '.join(get_args(SplitName))}")
    folder, networks = Path(folder), _fingerprint(task, alpha, seed)
    if not len(getattr(task.data, targets)):
        raise RequestError(
            f"{task.data.name} has no {targets} examples to score: give targets 'train' (--targets train), so that each training example "
            "is a target"
        )
    chosen = None if params is None else list(params)
    gradients = _hash(networks, projection, dim, chosen)
    trak = _trak(task, folder / "features" / gradients, projection, dim, ridge, chosen, seed)
    trained = train_checkpoints(folder / "checkpoints", task, checkpoints, alpha=alpha, seed=seed, progress=progress)
    known = folder / "scores" / f"{_hash(gradients, checkpoints, float(ridge), RIDGE_UNIT, targets)}.h5ad"
    if known.exists():
        return TrakRun(Attribution.load(known), trained)
    trak.featurize(_batches(task.data.train), trained.files, executor=executor, progress=progress)
    found = score_split(trak, getattr(task.data, targets), train=targets == "train", progress=progress)
    origin = {"task": task.to_dict(), "alpha": alpha, "seed": seed, "fingerprint": networks}
    found = replace(
        found,
        train_facts={**found.train_facts, "self_influence": trak.self_influence()},
        provenance={**found.provenance, "networks": origin, "targets": targets, "versions": versions()},
    )
    found.save(known)
    return TrakRun(found, trained)


def train_checkpoints(
    folder: str | Path,
    task: TrainRecipe,
    count: int = 20,
    *,
    alpha: float = 0.5,
    seed: int = 0,
    progress: bool = True,
) -> Checkpoints:
    """Train networks of a recipe, each on its own random share of the training set, into files of state dicts.

    Network k depends on `task`, `alpha`, `seed` and k alone: files that are there are kept, and a larger count adds to them.

    Parameters
    ----------
    folder
        Where files ``<fingerprint>_<k>.pt`` go: ``{"state_dict": of module_of, "seconds": CPU seconds}``.
    task
        How networks are trained, and on what; its outputs and splits do not matter.
    count
        Networks.
    alpha
        Share of the training set that each of them sees, 0 < alpha <= 1.
    seed
        Of the shares, first weights and orders.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when count or alpha are wrong, or networks cannot be trained.
    """
    name = _fingerprint(task, alpha, seed)
    if not isinstance(count, int) or count < 1:
        raise RequestError(f"checkpoints is {count!r}; give 1 or more (20 by default)")
    files = [Path(folder) / f"{name}_{k:03d}.pt" for k in range(count)]
    missing = [k for k in range(count) if not files[k].exists()]
    if missing:
        _train(task, {k: files[k] for k in missing}, count, alpha, seed, progress)
    return Checkpoints(files, len(missing))


def trak_of(
    task: TrainRecipe,
    folder: str | Path,
    files: Sequence[Path],
    *,
    projection: str = "auto",
    dim: int = 2048,
    ridge: float = 1.0,
    params: Sequence[str] | None = None,
    seed: int = 0,
    progress: bool = True,
) -> TRAK:
    """`TRAK` with the features of all training examples of a recipe.

    Parameters
    ----------
    task
        Whose networks, and on which examples; gradients are taken on its device.
    folder
        For the features; those that are there are kept.
    files
        From `train_checkpoints`.
    projection
        As in `TRAK`, or ``auto``: ``none`` where the parameters are at most twice `dim`, else ``sjlt``.
    dim, ridge, params, seed
        As in `TRAK`.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when a value is wrong, or the folder holds features of something else.
    """
    trak = _trak(task, folder, projection, dim, ridge, params, seed)
    trak.featurize(_batches(task.data.train), list(files), progress=progress)
    return trak


def score_split(
    trak: TRAK,
    targets: Split,
    positions: NDArray[np.int64] | None = None,
    *,
    train: bool = False,
    kind: Kind = "trak",
    learning_rates: Sequence[float] | None = None,
    progress: bool = True,
) -> Attribution:
    """Scores for the examples of a split; no row of any store is used.

    Parameters
    ----------
    trak
        With features of the training examples.
    targets
        The split, or some of its examples.
    positions
        Which outputs of a store they are, (n_targets,); all in order by default.
    train
        Whether they are training examples, `positions` their numbers.
    kind, learning_rates
        ``trak``, or ``dot`` or ``cosine``: the baselines of `TRAK.similarity`, with learning rates TracIn.
    progress
        Whether to show progress on standard error.
    """
    given = _batches(targets)
    if kind == "trak":
        found = trak.score(given, progress=progress)
    else:
        found = trak.similarity(given, kind, learning_rates=learning_rates, progress=progress)
    numbers = np.arange(len(targets)) if positions is None else np.asarray(positions, dtype=np.int64)
    return replace(
        found,
        target_facts={"target": numbers},
        train_columns=numbers if train else None,
        provenance={**found.provenance, "sources": []},
    )


def _trak(
    task: TrainRecipe,
    folder: str | Path,
    projection: str,
    dim: int,
    ridge: float,
    params: Sequence[str] | None,
    seed: int,
) -> TRAK:
    """TRAK without features."""
    from datamodels.training.modules import module_of

    module = module_of(task.recipe, task.data.train.x.shape[1:], task.data.n_classes)
    device = device_named(task.device)
    given: dict[str, Any] = {"dim": dim, "seed": seed, "ridge": ridge, "params": params, "device": device}
    if projection == "auto":
        plain = TRAK(module, projection="none", out=folder, **given)
        if plain.projection.dim <= min(_ROOM * dim, MOST_COORDINATES):
            return plain
        projection = "sjlt"
    return TRAK(module, projection=projection, out=folder, **given)


def _batches(split: Split) -> list[tuple[torch.Tensor, torch.Tensor]]:
    x, y = torch.from_numpy(split.x), torch.from_numpy(split.y)
    return list(zip(x.split(_BATCH), y.split(_BATCH), strict=True))


# -- training -------------------------------------------------------------------------------------------


def _train(task: TrainRecipe, files: dict[int, Path], count: int, alpha: float, seed: int, progress: bool) -> None:
    """Train the networks k of `files` (k -> file), some at a time."""
    from datamodels.threads import n_threads
    from datamodels.training.modules import state_dicts

    data, missing, together = task.data, list(files), max(_TOGETHER, n_threads())
    with Progress("training checkpoints", count, "networks", show=progress, done=count - len(files)) as bar:
        _networks(task.recipe.with_parameters({"steps": 1}), task, missing[:1], alpha, seed)  # compiles
        for start in range(0, len(missing), together):
            chosen = missing[start : start + together]
            began = time.process_time()
            models = _networks(task.recipe, task, chosen, alpha, seed)
            seconds = (time.process_time() - began) / len(chosen)
            states = state_dicts(models, task.recipe, data.train.x.shape[1:], data.n_classes)
            for k, state in zip(chosen, states, strict=True):
                with replacing(files[k]) as temporary:
                    torch.save({"state_dict": state, "seconds": seconds}, temporary)
                bar.advance()


def _networks(recipe: Recipe, task: TrainRecipe, chosen: Sequence[int], alpha: float, seed: int) -> TrainedModels:
    train = task.data.train
    size = round(alpha * len(train))
    streams = []
    for k in chosen:
        seen = np.random.default_rng([seed, k]).permutation(len(train)) < size
        streams.append(Streams.seeded(seen, seed, k))
    return train_models(
        recipe, train.x, train.y, streams, n_classes=task.data.n_classes,
        engine=task.engine, device=task.device, stack=task.stack,
    )  # fmt: skip


def _fingerprint(task: TrainRecipe, alpha: float, seed: int) -> str:
    """A hash of all that networks depend on besides their number."""
    if task.prepare is not None:
        raise RequestError(
            "gradients of networks whose features their own subset prepares cannot be compared. To go on, give a copy of the recipe "
            "without prepare: standardise: true in its recipe scales features by all training examples; selection and imputation go "
            "into the file of the dataset, without looking at labels"
        )
    if not isinstance(alpha, float | int) or not 0 < alpha <= 1:
        raise RequestError(
            f"alpha is {alpha!r}; give the share of the training set that a network sees, above 0 and at most 1 "
            "(0.5 by default)"
        )
    if not isinstance(seed, int) or seed < 0:
        raise RequestError(f"seed is {seed!r}; give a whole number, at least 0")
    return _hash(replace(task, outputs=("margins",), splits=("test",)).fingerprint, float(alpha), seed)


def _hash(*facts: Any) -> str:
    plain = [fact.item() if isinstance(fact, np.generic) else fact for fact in facts]
    return hashlib.sha256(json.dumps(plain).encode()).hexdigest()[:16]
