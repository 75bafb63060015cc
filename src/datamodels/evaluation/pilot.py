"""A pilot: which alpha and which recipe a campaign of thousands should take, judged on a few models of each."""

from __future__ import annotations

import contextlib
import re
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.design import Design
from datamodels.errors import CampaignError, RequestError
from datamodels.evaluation.settings import Pilot, Setting, recommend, variances
from datamodels.executors.base import usual_jobs
from datamodels.progress import note
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import BUILT_IN, Recipe
from datamodels.training.task import BlockTask, fingerprint

ALPHAS = (0.05, 0.1, 0.2, 0.35, 0.5, 0.75)
_TIMED_SECONDS = 0.3  # a block that takes less is repeated, for the time's sake
_NAME = re.compile(r"\w[\w.+-]*")


def pilot(
    task: TrainRecipe,
    *,
    alphas: Sequence[float] = ALPHAS,
    recipes: Mapping[str, Recipe] | None = None,
    masks: int = 16,
    replicates: int = 2,
    seed: int = 0,
    jobs: int | None = None,
    folder: str | Path | None = None,
    progress: bool = True,
) -> Pilot:
    """Train a few models of every recipe at every alpha, and say which setting to take.

    The sum over training examples of the squared t-statistics of their difference-in-means weights grows by about
    `reliability` per model where outputs are linear in masks. So the models needed for weights of a given certainty
    go with 1 / reliability, and the time with 1 / (reliability x models per hour). The setting with the largest such
    product is recommended, of those whose accuracy is at least halfway from chance to the best accuracy found.

    Every setting is an ordinary store, which also holds what each row cost as ``seconds``. That is measured by the
    workers while all of them run, on blocks that follow one model that does not count: process start, imports,
    compilation are left out, the strain that workers put on each other is not. A short block is repeated until it
    can be timed. A resumed pilot keeps those times. Stacked engines may be faster in a campaign, whose blocks are larger.

    Masks of one alpha are the same for all recipes, and those of a smaller alpha are part of those of a larger one,
    so that settings differ by less than their intervals say.

    Parameters
    ----------
    task
        Dataset, engine and device; its recipe, unless `recipes` are given. Margins on test examples are recorded,
        whatever its outputs are.
    alphas
        Shares of the training set to try.
    recipes
        name -> recipe, to compare.
    masks, replicates
        Subsets per setting, and models per subset.
    seed
        Of the designs and the intervals.
    jobs
        Worker processes; by default as in `train`.
    folder
        Where the store of each setting is, as ``<recipe>-a<alpha>``; complete rows in it are not trained again. By
        default a temporary folder.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when an option is wrong, or the folder holds stores of something else.
    CampaignError
        when models fail.
    """
    named = {_own_name(task.recipe): task.recipe} if recipes is None else dict(recipes)
    jobs = usual_jobs(task.gpus) if jobs is None else jobs
    if jobs < 1:
        raise RequestError(f"jobs is {jobs}; give 1 or more")
    if not len(task.data.test):
        raise RequestError(f"{task.data.name} has no test examples, on which a pilot compares models: split some off")
    designs = _designs(task, named, alphas, masks, replicates, seed)
    models = masks * replicates
    settings: list[Setting] = []
    test = task.data.test.y
    chance = float(np.bincount(test).max() / len(test))
    with contextlib.ExitStack() as stack:
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="datamodels-pilot-"))
        for name, recipe in named.items():
            work = replace(
                task, recipe=recipe, outputs=("margins",), splits=("test",), dtype="float32",
                block_size=min(task.block_size, -(-models // jobs)),
            )  # fmt: skip
            for design in designs:
                if progress:
                    where = f"setting {len(settings) + 1} of {len(named) * len(designs)}"
                    note(f"{where}: {name} at alpha {design.alpha:g}")
                store = _trained(Path(folder) / f"{name}-a{design.alpha}", work, design, jobs, progress)
                settings.append(_measured(name, store, design, jobs))
    best, reasons = recommend(settings, chance)
    return Pilot(tuple(settings), best, reasons, chance, masks, replicates, seed, jobs)


def _own_name(recipe: Recipe) -> str:
    return str(recipe.architecture) if recipe.architecture in BUILT_IN else "custom"


def _designs(
    task: TrainRecipe, recipes: Mapping[str, Recipe], alphas: Sequence[float], masks: int, replicates: int, seed: int
) -> list[Design]:
    """One per alpha, ascending; all that is wrong is said before anything is trained."""
    for what, names in (("recipes", recipes), ("alphas", alphas)):
        if not len(names):
            raise RequestError(f"there are no {what}; give at least one")
    for name in recipes:
        if not _NAME.fullmatch(name):
            raise RequestError(f"a recipe is named {name!r}; names are of letters, digits and . _ + -, for folders")
    if masks < 3:
        raise RequestError(f"masks is {masks}; give 3 or more, better 16: variances between subsets are wanted")
    if replicates < 2:
        raise RequestError(f"replicates is {replicates}; give 2 or more: seeds are compared on the same subset")
    for alpha in alphas:
        if not 0 < alpha < 1:
            raise RequestError(f"alpha is {alpha}; alphas must be between 0 and 1, for example 0.1,0.3,0.5")
    return [
        Design(n_train=task.n_train, alpha=alpha, n_models=masks * replicates, replicates=replicates, seed=seed)
        for alpha in sorted({float(alpha) for alpha in alphas})
    ]


class _Timed:
    """A recipe's block task that also records the seconds of a model, once the process is warm."""

    def __init__(self, task: TrainRecipe) -> None:
        self.task = task
        self.warm = False

    @property
    def fingerprint(self) -> str:
        return self.task.fingerprint

    @property
    def gpus(self) -> tuple[str, ...]:
        return self.task.gpus

    def __call__(self, indices: NDArray[np.int64], masks: NDArray[np.bool_], design: Design) -> dict[str, Any]:
        if not self.warm:
            self.task(indices[:1], masks[:1], design)
            self.warm = True
        started, times, seconds = time.perf_counter(), 0, 0.0
        while seconds < _TIMED_SECONDS:
            out = self.task(indices, masks, design)
            times, seconds = times + 1, time.perf_counter() - started
        return out | {"seconds": np.full(len(indices), seconds / times / len(indices))}


def _trained(path: Path, task: TrainRecipe, design: Design, jobs: int, progress: bool) -> Store:
    """The complete store of a setting; only rows that are missing are trained.

    Raises
    ------
    RequestError
        when there is a store of another recipe, dataset or design.
    CampaignError
        when rows failed, or were not reached.
    """
    schema = task.schema | {"seconds": {"shape": (), "dtype": "float64"}}
    store = Store.open_or_create(path, schema=schema, design=design, labels=task.data.train.y)
    work = BlockTask(_Timed(task), task.block_size)
    if any(beat.get("task") != fingerprint(work) for beat in store.campaigns()):
        raise RequestError(
            f"the store at {str(path)!r} has models of another recipe or dataset: choose another folder, or remove it"
        )
    train(store, work, jobs=min(jobs, design.n_models), progress=progress)
    missing = int((~store.completed()).sum())
    if missing:
        failures = store.failures()
        why = "it was stopped; run it again to go on"
        if failures:
            why = store.failure_log(next(iter(failures))).strip().splitlines()[-1]
        raise CampaignError(f"{missing} of the {design.n_models} models of {path.name} are missing: {why}")
    return store


def _measured(recipe: str, store: Store, design: Design, jobs: int) -> Setting:
    outputs = np.asarray(store.array("margins"), dtype=np.float64)
    outputs = outputs.reshape(-1, design.replicates, outputs.shape[1])
    per_mask = (outputs > 0).mean(axis=(1, 2))
    found = variances(outputs, seed=design.seed)
    seconds = float(np.mean(store.array("seconds")))
    return Setting(
        recipe=recipe,
        alpha=float(design.alpha or 0),
        models=design.n_models,
        accuracy=float(per_mask.mean()),
        accuracy_se=float(per_mask.std(ddof=1) / np.sqrt(len(per_mask))),
        signal=found.signal,
        noise=found.noise,
        reliability=found.reliability,
        reliability_ci=found.reliability_ci,
        seconds_per_model=seconds,
        models_per_hour=3600 * jobs / seconds,
    )
