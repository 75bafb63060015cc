"""Commands about stores: init, train, status, verify, extend, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datamodels.cli.common import (
    ExecutorOptions,
    Json,
    Recipe,
    Seed,
    StorePath,
    emit,
    executor_of,
    parse_range,
    read_labels,
)
from datamodels.errors import RequestError

if TYPE_CHECKING:
    from datamodels.design import Design
    from datamodels.store import Merged
    from datamodels.sweep import Sweep


def init(
    store: StorePath,
    spec: Annotated[Path | None, typer.Option(help="JSON file: num_models and schema.")] = None,
    recipe: Recipe = None,
    models: Annotated[int | None, typer.Option(help="Number of models, with --recipe.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Share of the training set that one model sees.")] = None,
    n_train: Annotated[int | None, typer.Option(help="Number of training examples; gives the store a design.")] = None,
    kind: Annotated[
        str,
        typer.Option(help="fixed_size, bernoulli, grouped, stratified, antithetic, leave_one_out, explicit."),
    ] = "fixed_size",
    seed: Seed = 0,
    replicates: Annotated[int, typer.Option(help="Runs of the same subset.")] = 1,
    groups: Annotated[
        Path | None,
        typer.Option(
            help="Group of each training example, .npy or one per line (grouped); those of a recipe's dataset by default."
        ),
    ] = None,
    strata: Annotated[Path | None, typer.Option(help="Stratum of each training example (stratified).")] = None,
    masks: Annotated[Path | None, typer.Option(help="Masks to use, .npy bool (n_masks, n_train) (explicit).")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Class of each training example; lets train report subsets that lack one."),
    ] = None,
    sweep: Annotated[
        Path | None, typer.Option(help="YAML or JSON file: parameters, kind (grid, random) and seed of a sweep.")
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a store. With a design, subsets are drawn by us; without, the task returns its own masks.
    With a sweep, each row has its training parameters, which the task gets as params. A recipe says by itself
    what the store holds, and its dataset how many training examples and which classes there are.

    Example: datamodels init runs/a --recipe recipe.yaml --models 1000 --alpha 0.5

    Example: datamodels init runs/a --recipe donors.yaml --models 1000 --alpha 0.5 --kind grouped

    Example: datamodels init runs/a --spec spec.json --alpha 0.5 --n-train 1300 --seed 1
    """
    from datamodels.spec import Spec
    from datamodels.store import Store
    from datamodels.sweep import Sweep
    from datamodels.training.task import make_importable

    make_importable(Path.cwd())

    classes = None if labels is None else read_labels(labels)
    own: Any = None  # groups of the dataset
    ids: Any = None
    if recipe is not None:
        from datamodels.training.ensemble import TrainRecipe

        if spec is not None or n_train is not None:
            raise RequestError("--recipe says what the store holds: leave out --spec and --n-train")
        if models is None:
            raise RequestError("--recipe needs --models, the number of models")
        task = TrainRecipe.read(recipe)
        parsed = Spec.model_validate({"num_models": models, "schema": task.schema})
        n_train = task.n_train
        classes = task.data.train.y if classes is None else classes
        own = task.data.train.groups
        ids = task.data.ids
    elif spec is None or models is not None:
        raise RequestError("give --spec, a JSON file with num_models and schema; or --recipe and --models")
    else:
        parsed = Spec.read(spec)
    grouping = read_labels(groups) if groups is not None else own if kind == "grouped" else None
    design = None
    if masks is not None or n_train is not None or alpha is not None:
        design = _design(parsed.num_models, alpha, n_train, kind, seed, replicates, grouping, strata, masks)
    elif kind != "fixed_size" or groups or strata or seed or replicates != 1:
        raise RequestError("a design needs --n-train (and --alpha for most kinds)")
    settings = None if sweep is None else Sweep.read(sweep)
    if recipe is not None and settings is not None:
        for i in range(min(parsed.num_models, settings.size or 1)):
            task.recipe.with_parameters(settings.at(i))  # raises for what no recipe has
    made = Store.create(
        store,
        spec=parsed,
        design=design,
        sweep=settings,
        labels=classes,
        ids=ids,
    )
    text = f"made a store of {made.n_models} models at {store}" + _settings(made.sweep)
    if own is not None and kind == "fixed_size" and masks is None:
        text += "; its subsets part the samples of a group, which --kind grouped keeps together"
    emit({"store": str(store), "models": made.n_models, "keys": made.keys}, text, as_json)


def _settings(sweep: Sweep | None) -> str:
    if sweep is None:
        return ""
    return ", random settings" if sweep.size is None else f", {sweep.size} settings"


def _design(
    n_models: int, alpha: float | None, n_train: int | None, kind: str, seed: int, replicates: int,
    groups: Any, strata: Path | None, masks: Path | None,
) -> Design:  # fmt: skip
    from datamodels.design import Design

    if masks is not None:
        if any(given is not None for given in (alpha, n_train, groups, strata)) or kind not in (
            "fixed_size",
            "explicit",
        ):
            raise RequestError(
                "--masks is a design by itself: leave out --alpha, --n-train, --kind, --groups and --strata"
            )
        import numpy as np

        return Design.explicit(np.load(masks, allow_pickle=False), replicates=replicates, seed=seed)
    if n_train is None:
        raise RequestError("--alpha needs --n-train, the number of training examples")
    return Design(
        n_train=n_train,
        alpha=alpha,
        n_models=n_models,
        seed=seed,
        kind=kind,  # type: ignore[arg-type]
        replicates=replicates,
        groups=groups,
        strata=None if strata is None else read_labels(strata),
    )


def train(
    store: StorePath,
    task: Annotated[
        str | None,
        typer.Option(help="PKG.MODULE:FUNCTION; takes index, and mask, rng, params, logdir if it names them."),
    ] = None,
    recipe: Recipe = None,
    jobs: Annotated[
        int | None, typer.Option(help="Worker processes; by default one per CPU, or per GPU in use.")
    ] = None,
    executor: Annotated[
        str, typer.Option(help="local: worker processes; inline: this process; ray, slurm: a cluster.")
    ] = "local",
    executor_option: ExecutorOptions = None,
    timeout: Annotated[
        float | None, typer.Option(help="Seconds that one row may take; a block of rows takes as many times that.")
    ] = None,
    retries: Annotated[int, typer.Option(help="How often a failed row is tried again.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch and BLAS per worker.")] = 1,
    rows: Annotated[str | None, typer.Option(help="Only these rows, START:STOP, as `claim` prints them.")] = None,
    as_json: Json = False,
) -> None:
    """Run a task over the rows that are not complete. Running it again does what is missing.

    Example: datamodels train runs/a --recipe recipe.yaml

    Example: datamodels train runs/a --task mypackage.train:main --jobs 8

    Example: datamodels train runs/a --recipe recipe.yaml --executor slurm --executor-option partition=gpu
    """
    from datamodels.training.campaign import train as run

    where = executor_of(executor, executor_option)
    work = work_of(task, recipe)
    summary = run(
        store, work, executor=where, jobs=jobs, timeout=timeout, retries=retries, threads=threads,
        rows=parse_range(rows, "--rows"),
    )  # fmt: skip
    state = (
        f"stopped as asked ({summary.stopped}), {summary.pending} not reached"
        if summary.ok and summary.stopped and summary.pending
        else "complete"
        if summary.ok
        else f"{len(summary.failed)} failed, {summary.pending} not reached; run it again to retry"
    )
    emit(summary.to_dict(), f"{store}: {state}", as_json)
    if not summary.ok:
        raise typer.Exit(1)


def work_of(task: str | None, recipe: Path | None) -> Any:
    """What --task or --recipe name, as `datamodels.train` takes it."""
    from datamodels.training.task import make_importable

    if (task is None) == (recipe is None):
        raise RequestError("give --task or --recipe, one of them")
    make_importable(Path.cwd())
    if recipe is None:
        return task
    from datamodels.training.ensemble import TrainRecipe

    return TrainRecipe.read(recipe)


def status(store: StorePath, as_json: Json = False) -> None:
    """How many rows are complete, failed and pending, how many settings a sweep has, and how long the rest will take.

    Example: datamodels status runs/a --json
    """
    from datamodels.progress import duration
    from datamodels.store import Store

    opened = Store.open(store)
    now, sweep = opened.status(), opened.sweep
    text = f"{now.completed} of {now.models} complete, {now.failed} failed, {now.pending} pending" + _settings(sweep)
    if now.rows_per_second:
        text += f"; {now.rows_per_second:.3g} rows/s, {duration(now.seconds_left)} left"
    emit({**now.to_dict(), "settings": sweep and sweep.size}, text, as_json)


def verify(
    store: StorePath,
    forget: Annotated[
        bool, typer.Option("--forget", help="Mark bad rows as not complete: the next train does them again.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Recompute the checksum of every completed row; exit status 1 when one is bad.

    Example: datamodels verify runs/a

    Example: datamodels verify runs/a --forget && datamodels train runs/a --recipe recipe.yaml
    """
    from datamodels.store import Store
    from datamodels.store.records import as_ranges

    opened = Store.open(store)
    found = opened.verify()
    if forget:
        opened.forget(found.bad_rows)
    text = f"{found.checked} rows checked, " + (f"bad: {as_ranges(found.bad_rows)}" if found.bad_rows else "all good")
    if not found.has_checksums:
        text += " (this folder has no checksums)"
    elif forget and found.bad_rows:
        text += "; they are to be trained again"
    emit({**found.to_dict(), "forgotten": found.bad_rows if forget else []}, text, as_json)
    if not found.ok and not forget:
        raise typer.Exit(1)


def extend(
    store: StorePath,
    models: Annotated[int, typer.Argument(help="How many models to add.")],
    as_json: Json = False,
) -> None:
    """Add models to a store in place; existing rows stay as they are.

    Example: datamodels extend runs/a 1000
    """
    from datamodels.store import Store

    opened = Store.open(store)
    opened.extend(models)
    emit({"store": str(store), "models": opened.n_models}, f"{store} has {opened.n_models} models now", as_json)


def sync(
    source: Annotated[str, typer.Argument(help="Folder or address of a store.", metavar="SRC")],
    destination: Annotated[
        str, typer.Argument(help="Folder or address to copy it to; made when there is none.", metavar="DST")
    ],
    both: Annotated[bool, typer.Option("--both", help="Then copy back what only DST has.")] = False,
    as_json: Json = False,
) -> None:
    """Copy completed rows that DST lacks, up or down: folders, s3://, gs://, az://, file://. Doing it again copies what is
    new or was left by an interruption. Exit status 1 when rows conflict or are bad.

    Example: datamodels sync runs/a s3://bucket/runs/a

    Example: datamodels sync s3://bucket/runs/a runs/a
    """
    from datamodels.store import Store

    results = [(destination, source, Store.open(source).copy_to(destination))]
    if both:
        results.append((source, destination, Store.open(destination).copy_to(source)))
    facts = [{"to": to, **result.to_dict()} for to, _, result in results]
    emit(
        {"copies": facts} if both else facts[0],
        "\n".join(f"{to}: {_copied(origin, result)}" for to, origin, result in results),
        as_json,
    )
    if any(result.conflicting or result.bad_in_source for _, _, result in results):
        raise typer.Exit(1)


def _copied(origin: str, result: Merged) -> str:
    from datamodels.store.records import as_ranges

    text = f"copied {len(result.copied)} rows, {len(result.already_there)} were there"
    if result.conflicting:
        text += f"; rows with other content in {origin}, left as they are here: {as_ranges(result.conflicting)}"
    if result.bad_in_source:
        text += f"; rows that are damaged in {origin}, not copied: {as_ranges(result.bad_in_source)}"
    return text


def merge(
    store: StorePath,
    other: Annotated[str, typer.Argument(help="Store to copy completed rows from.", metavar="OTHER")],
    as_json: Json = False,
) -> None:
    """Copy completed rows from a store of the same design. Exit status 1 when rows conflict or are bad.

    Example: datamodels merge runs/a /mnt/usb/a
    """
    from datamodels.store import Store

    result = Store.open(store).merge(Store.open(other))
    emit(result.to_dict(), _copied(other, result), as_json)
    if result.conflicting or result.bad_in_source:
        raise typer.Exit(1)
