"""An experiment: from a recipe to stores, fits and a page, in one folder. Run again, it does what is missing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from datamodels.attribution import Attribution
from datamodels.design import Design
from datamodels.errors import CampaignError, RequestError
from datamodels.progress import note
from datamodels.regression.estimators import Estimator
from datamodels.regression.fit import fit
from datamodels.regression.problem import OUTPUTS
from datamodels.run import Run, RunAttribution, View
from datamodels.spec import MASKS
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.task import fingerprint


@dataclass(frozen=True)
class Part:
    """One store: `n_models` models of a task on subsets of `alpha`, `replicates` per subset."""

    name: str
    task: TrainRecipe
    alpha: float
    n_models: int
    seed: int = 0
    replicates: int = 1

    @property
    def design(self) -> Design:
        return Design(
            n_train=self.task.n_train,
            alpha=self.alpha,
            n_models=self.n_models,
            seed=self.seed,
            replicates=self.replicates,
        )


@dataclass(frozen=True)
class Fit:
    """One attribution: an estimator on all rows of a store, judged on another store."""

    name: str
    estimator: Estimator
    store: str
    test: str | None = None


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

    Parameters
    ----------
    folder
        Of the run. Stores that are there already are filled up; one with fewer models than asked for grows.
    parts, fits
        Stores and attributions by name. All parts must be of one dataset.
    neighbours, embedding
        Names of the fits that the page shows.

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

    folder = Path(folder)
    stores: dict[str, Store] = {}
    trained = 0
    for part in parts:
        stores[part.name], now = fill(folder / part.name, part, jobs=jobs, progress=progress)
        trained += now
    for item in fits:
        path = folder / f"{item.name}.h5ad"
        if not _is_current(path, item, stores[item.store]):
            key = _outputs_key(stores[item.store])
            fit(stores[item.store], item.estimator, outputs_key=key, progress=progress).save(path)
    Run(
        title=title,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=parts[0].task.data.name,
        task="datamodels.training.ensemble:TrainRecipe",
        commands=list(commands),
        recipe={part.name: part.task.recipe.changed() for part in parts},
        stores={part.name: part.name for part in parts},
        attributions={
            item.name: RunAttribution(path=f"{item.name}.h5ad", store=item.store, test=item.test) for item in fits
        },
        view=View(neighbours=neighbours, embedding=embedding),
    ).save(folder)
    return {**report_run(folder, trust=True, progress=progress), "trained": trained}


def fill(path: Path, part: Part, *, jobs: int | None = None, progress: bool = True) -> tuple[Store, int]:
    """The complete store of a part, made or grown when needed, and how many models were trained for it now."""
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
    store = Store.open_or_create(path, schema=part.task.schema, design=design, labels=part.task.data.train.y)
    if progress:
        note(f"{part.name}: {part.n_models:,} models, each on {part.alpha:.0%} of {part.task.n_train:,} examples")
    summary = train(store, part.task, jobs=jobs, progress=progress)
    if not summary.ok:
        raise CampaignError(
            f"{len(summary.failed)} models failed; their logs are in {path / 'failures'}; run it again to retry"
        )
    return store, summary.done


def _outputs_key(store: Store) -> str:
    """The margins of test examples, where the store has them; else its first outputs, such as those of training examples."""
    return OUTPUTS if OUTPUTS in store.keys else next(key for key in store.keys if key != MASKS)


def _is_current(path: Path, item: Fit, store: Store) -> bool:
    """Whether a file holds the fit of this estimator to all rows that the store has."""
    if not path.exists():
        return False
    try:
        known = Attribution.load(path).provenance
    except RequestError:
        return False
    rows = next((len(source["rows"]) for source in known["sources"] if source["identity"] == store.identity), 0)
    return bool(known["estimator"] == item.estimator.describe() and rows == store.n_models)
