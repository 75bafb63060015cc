"""A run of attribution files that no run.json describes: their stores are those that they name, or given; a recipe names the dataset."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datamodels.errors import DatamodelsError, RequestError
from datamodels.explorer.weights import WeightsFile
from datamodels.report.judging import name_of
from datamodels.run import FILE, Run, RunAttribution, View
from datamodels.store import Store

if TYPE_CHECKING:
    from datamodels.training.ensemble import TrainRecipe

TASK = "datamodels.training.ensemble:TrainRecipe"
Sources = str | Path | Sequence[str | Path] | Mapping[str, str | Path]
_PREPARE = "prepare"


@dataclass(frozen=True)
class Opened:
    """A run, and where it is.

    Attributes
    ----------
    source
        The run's folder, or the first file.
    root
        What the run's paths count from.
    told
        Whether a ``run.json`` in `root` says it; else it was made of files.
    trusted
        Whether the code that it names was named by the caller's own recipe.
    command
        The command that shows it.
    """

    source: Path
    root: Path
    run: Run
    told: bool
    trusted: bool
    command: tuple[str, ...]


def opened(
    source: Sources,
    *,
    stores: Sources = (),
    test: str | Path | None = None,
    recipe: str | Path | None = None,
) -> Opened:
    """The run in a folder, or one made of attribution files; parameters as in `gather`.

    Raises
    ------
    RequestError
        when there is nothing to show, or options are given that a run has itself.
    """
    places = _named(source)
    folders = [place for _, place in places if Path(place).is_dir()]
    extra = {"stores": bool(stores), "test": test is not None, "recipe": recipe is not None}
    if not folders:
        run = run_of(source, Path(places[0][1]).parent, stores=stores, test=test, recipe=recipe)
        command = ["datamodels", "explore", *(str(place) for _, place in places)]
        command += [word for _, place in _named(stores) for word in ("--store", str(place))]
        command += [] if test is None else ["--test", str(test)]
        command += [] if recipe is None else ["--recipe", str(recipe)]
        first = Path(places[0][1])
        return Opened(first, first.parent.resolve(), run, False, recipe is not None, tuple(command))
    if len(places) > 1:
        raise RequestError(f"{str(folders[0])!r} is a folder: give one run, or attribution files (.h5ad) alone")
    if any(extra.values()):
        name = next(name for name, given in extra.items() if given).removesuffix("s")
        raise RequestError(f"{name} goes with attribution files; the run {str(folders[0])!r} names its own in {FILE}")
    folder = Path(folders[0])
    return Opened(folder, folder, load_run(folder), True, False, ("datamodels", "explore", str(source)))


def load_run(folder: Path) -> Run:
    """`Run.load`, which says what to do with a store that is taken for a run."""
    if not (folder / FILE).exists():
        try:
            store = Store.open(folder)
        except DatamodelsError:
            store = None
        if store is not None:
            raise RequestError(_not_a_run(folder, store))
    return Run.load(folder)


def _not_a_run(folder: Path, store: Store) -> str:
    name = f"{str(folder)!r} is a store ({store.n_models:,} models), not a run"
    files = [*sorted(folder.glob("*.h5ad")), *sorted(folder.parent.glob("*.h5ad")), *sorted(Path().glob("*.h5ad"))]
    fitted = next((path for path in files if _is_fitted_on(path, store)), None)
    if fitted is None:
        made = f"{str(folder).rstrip('/')}.h5ad"
        return f"{name}; fit it (datamodels fit {folder} --out {made}), and explore that: datamodels explore {made} --recipe recipe.yaml"
    return (
        f"{name}; explore an attribution fitted on it: datamodels explore {fitted} --recipe recipe.yaml, or make a run of it with "
        "datamodels run"
    )


def _is_fitted_on(path: Path, store: Store) -> bool:
    try:
        return store.identity in _identities(WeightsFile(path))
    except DatamodelsError:
        return False


def run_of(
    files: Sources,
    root: str | Path,
    *,
    stores: Sources = (),
    test: str | Path | None = None,
    recipe: str | Path | None = None,
    title: str | None = None,
    dataset: str | None = None,
    commands: Sequence[str] = (),
) -> Run:
    """A run of attribution files, with paths that count from `root`; the first is shown first.

    Parameters
    ----------
    files, stores
        Paths, or name -> path. An attribution without a name is called as its estimator, or as its file where two are of one
        estimator; a store as its folder. Stores that the files name are found where they are still there; of `stores` one that a file was not
        fitted on judges it.
    test
        Store that all are judged on; by default that of the fit. Rows that a fit has used never count.
    recipe
        YAML file: the dataset, and how the models of all stores were trained.
    title, commands
        As in `Run`.
    dataset
        Where there is no recipe; by default that of the networks that the first file's scores are from.

    Raises
    ------
    RequestError
        when a file or a store cannot be opened, two have one name, or the recipe cannot be read.
    """
    from datamodels.training.ensemble import TrainRecipe

    task = None if recipe is None else TrainRecipe.read(recipe)
    opened_files = _names_of([(name, WeightsFile(place)) for name, place in _named(files)])
    known = _Stores(Path(root))
    for name, place in _named(stores):
        known.add(place, name)
    given = dict(known.identities)
    judged_on = None if test is None else known.add(test, None)
    attributions = {}
    for name, file in opened_files.items():
        store, other = _stores_of(file, known, given)
        path = os.path.relpath(file.path.resolve(), known.root)
        attributions[name] = RunAttribution(path=path, store=store, test=judged_on or other)
    first = next(iter(opened_files))
    described = {} if task is None else {name: recipe_of(task) for name in known.named or {"models": ""}}
    when = datetime.fromtimestamp(opened_files[first].path.stat().st_mtime, UTC)
    return Run(
        title=title or f"Datamodels of {opened_files[first].path.name}",
        created=when.isoformat(timespec="seconds"),
        dataset=_dataset_of(task, opened_files[first]) if dataset is None else dataset,
        task=None if task is None else TASK,
        commands=list(commands),
        recipe=described,
        stores=known.named,
        attributions=attributions,
        view=View(neighbours=first, embedding=first),
    )


def write_run(
    folder: str | Path,
    attributions: Sources,
    *,
    stores: Sources = (),
    test: str | Path | None = None,
    recipe: str | Path | None = None,
    title: str | None = None,
    dataset: str | None = None,
    commands: Sequence[str] = (),
    neighbours: str | None = None,
    embedding: str | None = None,
    overwrite: bool = False,
) -> tuple[Path, Run]:
    """Write the ``run.json`` of attribution files and stores that lie in a folder.

    Parameters
    ----------
    folder
        That holds them, and which ``run.json`` goes to.
    attributions
        Files, or name -> file; all of the same targets. One without a name is called as its estimator, or as its file where two are
        of one estimator.
    stores
        Stores, or name -> store: those that the files were fitted on, by default where the files say; another one judges them.
    test
        A store that judges all of them; by default those of the fits, on rows that these have not used.
    recipe
        A YAML file with the dataset, and how models were trained.
    title, dataset, commands
        As in `Run`; the dataset is by default that of the recipe, or what the first file says.
    neighbours, embedding
        Names of attributions that are shown first; by default the first.
    overwrite
        Whether a ``run.json`` that is there is replaced.

    Returns
    -------
    tuple
        The file, and what is in it.

    Raises
    ------
    RequestError
        when there is one already, or a file or a store lies elsewhere.
    """
    path = Path(folder) / FILE
    if path.exists() and not overwrite:
        raise RequestError(f"{str(path)!r} is there already: choose another folder, or say overwrite (--overwrite)")
    made = run_of(
        attributions, folder, stores=stores, test=test, recipe=recipe, title=title, dataset=dataset, commands=commands
    )
    inside = [*made.stores.values(), *(item.path for item in made.attributions.values())]
    outside = next((one for one in inside if one.startswith("..")), None)
    if outside is not None:
        top = os.path.relpath(os.path.commonpath([(Path(folder) / one).resolve() for one in [".", *inside]]))
        raise RequestError(
            f"{os.path.relpath(Path(folder).resolve() / outside)!r} lies outside of the run's folder {str(folder)!r}, and a run can be "
            f"moved with its folder alone: make it in one that holds all, such as {top!r}"
        )
    view = {"neighbours": neighbours, "embedding": embedding}
    for option, name in view.items():
        if name is not None and name not in made.attributions:
            raise RequestError(f"{option} is {name!r}; legal: {', '.join(made.attributions)}")
    chosen = {option: name for option, name in view.items() if name is not None}
    made = made.model_copy(update={"view": made.view.model_copy(update=chosen)})
    return made.save(folder), made


def task_of(run: Run, store: str | None) -> TrainRecipe | None:
    """How the models of a store of a run were trained, or those that scores without a store are of; None where it does not say.

    Raises
    ------
    RequestError
        when what it says is wrong.
    """
    from datamodels.training.ensemble import TrainRecipe
    from datamodels.training.preparation import Preparation
    from datamodels.training.recipes import Recipe

    values = next(iter(run.recipe.values()), None) if store is None else run.recipe.get(store)
    if run.task != TASK or run.dataset is None or not isinstance(values, Mapping):
        return None
    parameters = dict(values)
    prepare = parameters.pop(_PREPARE, None)
    return TrainRecipe(
        Recipe().with_parameters(parameters),
        run.dataset,
        prepare=Preparation.of(prepare) if isinstance(prepare, Mapping) else None,
    )


def recipe_of(task: TrainRecipe) -> dict[str, Any]:
    """What `task_of` reads."""
    return {**task.recipe.changed(), **({} if task.prepare is None else {_PREPARE: task.prepare.to_dict()})}


def _dataset_of(task: TrainRecipe | None, file: WeightsFile) -> str | None:
    if task is not None:
        return task.dataset if isinstance(task.dataset, str) else task.dataset.name
    networks = file.provenance.get("networks")
    trained = networks.get("task") if isinstance(networks, Mapping) else None
    name = trained.get("dataset") if isinstance(trained, Mapping) else None
    return name if isinstance(name, str) else None


def _named(given: Any) -> list[tuple[str | None, str | Path]]:
    """Paths with their names, None where they have none."""
    if isinstance(given, Mapping):
        return list(given.items())
    found = [given] if isinstance(given, str | Path) else list(given)
    return [(None, place) for place in found]


def _names_of(files: Sequence[tuple[str | None, WeightsFile]]) -> dict[str, WeightsFile]:
    if not files:
        raise RequestError("give an attribution file (.h5ad), or a run")
    usual = [name or name_of(file.provenance, file.path) for name, file in files]
    names = [
        name if usual.count(name) == 1 or given else file.path.stem
        for name, (given, file) in zip(usual, files, strict=True)
    ]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise RequestError(f"two attributions are called {twice!r}; name them, as NAME=FILE")
    return dict(zip(names, (file for _, file in files), strict=True))


class _Stores:
    """Stores of a run by name, each once."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self.named: dict[str, str] = {}
        self.identities: dict[str, str] = {}

    def add(self, place: str | Path, name: str | None) -> str:
        """The name of a store, which is opened."""
        return self.add_opened(Store.open(place), place, name)

    def add_opened(self, store: Store, place: str | Path, name: str | None) -> str:
        remote = "://" in str(place)
        path = str(place) if remote else os.path.relpath(Path(place).resolve(), self.root)
        old = next((key for key, value in self.named.items() if value == path), None)
        if old is not None and name in (None, old):
            return old
        stem = name or str(place).rstrip("/").rpartition("/")[2] or "store"
        free = (stem if k == 1 else f"{stem} {k}" for k in range(1, len(self.named) + 2))
        chosen = next(one for one in free if one not in self.named)
        if name is not None and chosen != name:
            raise RequestError(f"two stores are called {name!r}")
        self.named[chosen], self.identities[chosen] = path, store.identity
        return chosen


def _stores_of(file: WeightsFile, known: _Stores, given: Mapping[str, str]) -> tuple[str | None, str | None]:
    """Names of the store that a file was fitted on, and of the one that judges it; None where there is none."""
    wanted = _identities(file)
    own = next((name for name, identity in given.items() if identity in wanted), None)
    if own is None:
        found = [
            known.add_opened(store, store.path, None)
            for source in file.provenance.get("sources", [])
            if (store := _still_there(source, file.path)) is not None
        ]
        own = next(iter(found), None)
        other = next(iter(given), own)
        return own or other, other
    return own, own


def _still_there(source: Mapping[str, Any], file: Path) -> Store | None:
    """The local store of a source: where the file says it is, or beside the file."""
    path = source.get("path")
    if not isinstance(path, str) or "://" in path:
        return None
    for place in (Path(path), file.parent / path, file.parent / Path(path).name):
        try:
            store = Store.open(place)
        except (DatamodelsError, OSError, ValueError):
            continue
        if store.identity == source.get("identity"):
            return store
    return None


def _identities(file: WeightsFile) -> list[str]:
    return [str(source.get("identity")) for source in file.provenance.get("sources", [])]
