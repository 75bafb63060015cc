"""Commands about stores: init, train, status, verify, extend, merge."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datamodels.cli.common import ExecutorName, Json, Seed, StorePath, emit, read_labels
from datamodels.errors import RequestError

if TYPE_CHECKING:
    from datamodels.design import Design


def init(
    store: StorePath,
    spec: Annotated[Path, typer.Option(help="JSON file: num_models and schema.")],
    alpha: Annotated[float | None, typer.Option(help="Share of the training set that one model sees.")] = None,
    n_train: Annotated[int | None, typer.Option(help="Number of training examples; gives the store a design.")] = None,
    kind: Annotated[
        str,
        typer.Option(help="fixed_size, bernoulli, grouped, stratified, antithetic, leave_one_out, explicit."),
    ] = "fixed_size",
    seed: Seed = 0,
    replicates: Annotated[int, typer.Option(help="Runs of the same subset.")] = 1,
    groups: Annotated[
        Path | None, typer.Option(help="Group of each training example, .npy or one per line (grouped).")
    ] = None,
    strata: Annotated[Path | None, typer.Option(help="Stratum of each training example (stratified).")] = None,
    masks: Annotated[Path | None, typer.Option(help="Masks to use, .npy bool (n_masks, n_train) (explicit).")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Class of each training example; lets train report subsets that lack one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a store. With a design, subsets are drawn by us; without, the task returns its own masks.

    Example: datamodels init runs/a --spec spec.json --alpha 0.5 --n-train 1300 --seed 1
    """
    from datamodels.spec import Spec
    from datamodels.store import Store

    parsed = Spec.read(spec)
    design = None
    if masks is not None or n_train is not None or alpha is not None:
        design = _design(parsed.num_models, alpha, n_train, kind, seed, replicates, groups, strata, masks)
    elif kind != "fixed_size" or groups or strata or seed or replicates != 1:
        raise RequestError("a design needs --n-train (and --alpha for most kinds)")
    made = Store.create(store, spec=parsed, design=design, labels=None if labels is None else read_labels(labels))
    text = f"made a store of {made.n_models} models at {store}"
    emit({"store": str(store), "models": made.n_models, "keys": made.keys}, text, as_json)


def _design(
    n_models: int, alpha: float | None, n_train: int | None, kind: str, seed: int, replicates: int,
    groups: Path | None, strata: Path | None, masks: Path | None,
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
        groups=None if groups is None else read_labels(groups),
        strata=None if strata is None else read_labels(strata),
    )


def train(
    store: StorePath,
    task: Annotated[
        str, typer.Option(help="PKG.MODULE:FUNCTION; takes index, and mask, rng, logdir if it names them.")
    ],
    jobs: Annotated[int | None, typer.Option(help="Worker processes; one per CPU by default.")] = None,
    executor: Annotated[
        ExecutorName, typer.Option(help="local: worker processes; inline: this process.")
    ] = ExecutorName.local,
    timeout: Annotated[float | None, typer.Option(help="Seconds that one row may take.")] = None,
    retries: Annotated[int, typer.Option(help="How often a failed row is tried again.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch and BLAS per worker.")] = 1,
    as_json: Json = False,
) -> None:
    """Run a task over the rows that are not complete. Running it again does what is missing.

    Example: datamodels train runs/a --task mypackage.train:main --jobs 8
    """
    from datamodels.training.campaign import train as run
    from datamodels.training.task import make_importable

    make_importable(Path.cwd())
    summary = run(store, task, executor=executor.value, jobs=jobs, timeout=timeout, retries=retries, threads=threads)
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


def status(store: StorePath, as_json: Json = False) -> None:
    """How many rows are complete, failed and pending, and how long the rest will take.

    Example: datamodels status runs/a --json
    """
    from datamodels.progress import duration
    from datamodels.store import Store

    now = Store.open(store).status()
    text = f"{now.completed} of {now.models} complete, {now.failed} failed, {now.pending} pending"
    if now.rows_per_second:
        text += f"; {now.rows_per_second:.3g} rows/s, {duration(now.seconds_left)} left"
    emit(now.to_dict(), text, as_json)


def verify(store: StorePath, as_json: Json = False) -> None:
    """Recompute the checksum of every completed row; exit status 1 when one is bad.

    Example: datamodels verify runs/a
    """
    from datamodels.store import Store

    found = Store.open(store).verify()
    text = f"{found.checked} rows checked, " + (f"bad: {found.bad_rows}" if found.bad_rows else "all good")
    if not found.has_checksums:
        text += " (this folder has no checksums)"
    emit(found.to_dict(), text, as_json)
    if not found.ok:
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


def merge(
    store: StorePath,
    other: Annotated[Path, typer.Argument(help="Store to copy completed rows from.", metavar="OTHER")],
    as_json: Json = False,
) -> None:
    """Copy completed rows from a store of the same design. Exit status 1 when rows conflict or are bad.

    Example: datamodels merge runs/a /mnt/usb/a
    """
    from datamodels.store import Store

    result = Store.open(store).merge(Store.open(other))
    text = f"copied {len(result.copied)} rows, {len(result.already_there)} were there"
    if result.conflicting:
        text += f"; rows with other content in {other}, left as they are here: {result.conflicting}"
    if result.bad_in_source:
        text += f"; rows that are damaged in {other}, not copied: {result.bad_in_source}"
    emit(result.to_dict(), text, as_json)
    if result.conflicting or result.bad_in_source:
        raise typer.Exit(1)
