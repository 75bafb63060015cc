"""An experiment: from a recipe to stores, fits and a page, in one folder. Run again, it does what is missing."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.applications.subgroups import with_ids
from datamodels.attribution import IDS, Attribution
from datamodels.datasets import Dataset
from datamodels.design import Design, Kind
from datamodels.errors import CampaignError, DatamodelsWarning, RequestError
from datamodels.progress import note
from datamodels.regression.estimator import Estimator
from datamodels.regression.fit import fit
from datamodels.regression.problem import Problem
from datamodels.regression.source import OUTPUTS
from datamodels.run import Run, RunAttribution, View
from datamodels.spec import MASKS
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.task import fingerprint


class PartedGroupsWarning(DatamodelsWarning):
    """Subsets take a donor's samples apart: a target's models see other samples of its donor."""


@dataclass(frozen=True)
class Part:
    """One store of an experiment.

    Attributes
    ----------
    name
        Of the store, and of its folder.
    task
        How models are trained, and on what.
    alpha, n_models, seed, replicates
        As in `Design`.
    kind
        As in `Design`: ``grouped`` keeps together the groups of the dataset, ``stratified`` draws the same share of each of `strata`.
    strata
        (n_train,) labels of any kind, for ``stratified``; by default the classes.
    """

    name: str
    task: TrainRecipe
    alpha: float
    n_models: int
    seed: int = 0
    replicates: int = 1
    kind: Kind = "fixed_size"
    strata: Sequence[Any] | NDArray[Any] | None = field(default=None, repr=False, compare=False)

    @property
    def design(self) -> Design:
        """How subsets are drawn.

        Raises
        ------
        RequestError
            when the part is grouped and the dataset has no groups.
        """
        train = self.task.data.train
        if self.kind == "grouped" and train.groups is None:
            raise RequestError(
                f"part {self.name!r} is grouped and the dataset {self.task.data.name} has no groups: load it with groups, or "
                "leave kind out"
            )
        strata = train.y if self.kind == "stratified" and self.strata is None else self.strata
        return Design(
            n_train=self.task.n_train,
            alpha=self.alpha,
            n_models=self.n_models,
            seed=self.seed,
            kind=self.kind,
            replicates=self.replicates,
            groups=train.groups if self.kind == "grouped" else None,  # type: ignore[arg-type]
            strata=strata,  # type: ignore[arg-type]
        )


@dataclass(frozen=True)
class Fit:
    """One attribution: an estimator on all rows of a store, judged on another store.

    Attributes
    ----------
    name
        Of the attribution, and of its file.
    estimator
        What is fitted.
    store, test
        Names of the parts that it is fitted on and judged on.
    outputs_key
        Of the store; by default margins of test examples where it has them, else its first outputs.
    targets
        Which outputs, as in `datamodels.fit`; by default all.
    """

    name: str
    estimator: Estimator
    store: str
    test: str | None = None
    outputs_key: str | None = None
    targets: Any = field(default=None, compare=False)


def run_experiment(
    folder: str | Path,
    *,
    title: str,
    parts: Sequence[Part],
    fits: Sequence[Fit],
    neighbours: str,
    embedding: str,
    commands: Sequence[str] = (),
    jobs: int | None = None,
    progress: bool = True,
) -> dict[str, Any]:
    """Train what is missing, fit, judge, and write the explorer as one page.

    Warns (`PartedGroupsWarning`) where the dataset has groups and a part is not of kind ``grouped``.

    Parameters
    ----------
    folder
        Of the run. Stores that are there already are filled up; one with fewer models than asked for grows.
    title, commands
        Of the page, and how to make it again.
    parts, fits
        Stores and attributions by name. All parts must be of one dataset.
    neighbours, embedding
        Names of the fits that the page shows.
    jobs
        Worker processes; by default as in `train`.
    progress
        Whether to show progress on standard error.

    Returns
    -------
    dict
        As `report_run`, and ``trained``: how many models were trained now.

    Raises
    ------
    RequestError
        when a store in the folder is of another design or of another task.
    CampaignError
        when some of the models could not be trained.
    """
    from datamodels.explorer import report_run  # its server is heavy, and worker processes import this module
    from datamodels.explorer.assemble import TASK, recipe_of

    folder = Path(folder)
    _warn_of_parted_groups(parts)
    stores: dict[str, Store] = {}
    tasks = {part.name: part.task for part in parts}
    trained = 0
    for part in parts:
        stores[part.name], now = fill(folder / part.name, part, jobs=jobs, progress=progress)
        trained += now
    for item in fits:
        path = folder / f"{item.name}.h5ad"
        store, data = stores[item.store], tasks[item.store].data
        if not _is_current(path, item, store, data):
            key = _outputs_key(item, store)
            found = fit(store, item.estimator, outputs_key=key, targets=item.targets, progress=progress)
            with_ids(found, data, key).save(path)
    Run(
        title=title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=parts[0].task.data.name,
        task=TASK,
        commands=list(commands),
        recipe={part.name: recipe_of(part.task) for part in parts},
        stores={part.name: part.name for part in parts},
        attributions={
            item.name: RunAttribution(path=f"{item.name}.h5ad", store=item.store, test=item.test) for item in fits
        },
        view=View(neighbours=neighbours, embedding=embedding),
    ).save(folder)
    return {**report_run(folder, trust=True, progress=progress), "trained": trained}


def fill(path: Path, part: Part, *, jobs: int | None = None, progress: bool = True) -> tuple[Store, int]:
    """The complete store of a part, made or grown when needed, and how many models were trained for it now.

    Parameters
    ----------
    path
        Folder of the store.
    part
        What it holds.
    jobs
        Worker processes; by default as in `train`.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when the store is of another design or of another task.
    CampaignError
        when some of the models could not be trained.
    """
    design = part.design
    if path.exists():
        there = Store.open(path)
        known = fingerprint(part.task.block_task)
        if there.completed().any() and any(beat.get("task", known) != known for beat in there.campaigns()):
            raise RequestError(
                f"the store at {str(path)!r} has models of another recipe or dataset: choose another folder, or remove it"
            )
        if there.n_models < part.n_models and there.design == design.with_models(there.n_models):
            there.extend(part.n_models - there.n_models)
    data = part.task.data
    store = Store.open_or_create(path, schema=part.task.schema, design=design, labels=data.train.y, ids=data.ids)
    if progress:
        note(f"{part.name}: {part.n_models:,} models, each on {part.alpha:.0%} of {part.task.n_train:,} examples")
    summary = train(store, part.task, jobs=jobs, progress=progress)
    if not summary.ok:
        raise CampaignError(
            f"{len(summary.failed)} models failed; their logs are in {path / 'failures'}; run it again to retry"
        )
    return store, summary.done


def _warn_of_parted_groups(parts: Sequence[Part]) -> None:
    names = [part.name for part in parts if part.kind != "grouped" and part.task.data.train.groups is not None]
    if names:
        warnings.warn(
            f"the dataset {parts[0].task.data.name} has groups (donors, families, batches), and subsets of {', '.join(names)} take them "
            "apart: models that judge a sample see others of its donor, and what these share can look like a subgroup. Give Part(..., "
            "kind='grouped') (init: --kind grouped), or load the dataset without groups where samples are independent",
            PartedGroupsWarning,
            stacklevel=3,
        )


def _outputs_key(item: Fit, store: Store) -> str:
    """The outputs that are asked for; else margins of test examples where the store has them, or its first outputs."""
    keys = [key for key in store.keys if key != MASKS]
    wanted = item.outputs_key or (OUTPUTS if OUTPUTS in keys else keys[0])
    if wanted not in keys:
        raise RequestError(f"fit {item.name!r} asks for {wanted!r}; the store {item.store!r} has {', '.join(keys)}")
    return wanted


def _is_current(path: Path, item: Fit, store: Store, data: Dataset) -> bool:
    """Whether a file holds the fit of this estimator to these outputs of all rows that the store has, with the names of samples."""
    if not path.exists():
        return False
    try:
        known = Attribution.load(path)
    except RequestError:
        return False
    key = _outputs_key(item, store)
    for source in known.provenance["sources"]:
        if source["identity"] == store.identity and source["outputs_key"] == key:
            targets = Problem.build(store, outputs_key=key, targets=item.targets).targets
            same = np.array_equal(known.target_facts["target"], targets) and len(source["rows"]) == store.n_models
            named = (IDS in known.train_facts) == (data.train.ids is not None)
            return bool(same and named and known.provenance["estimator"] == item.estimator.describe())
    return False
