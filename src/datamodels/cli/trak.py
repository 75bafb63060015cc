"""The command trak."""

from __future__ import annotations

import time
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer

from datamodels.cli.common import ExecutorOptions, Json, PoolName, Seed, emit, executor_of, refuse_suffix


class TargetsName(StrEnum):
    test = "test"
    train = "train"


class ProjectionName(StrEnum):
    auto = "auto"
    sjlt = "sjlt"
    rademacher = "rademacher"
    none = "none"


def trak(
    recipe: Annotated[Path, typer.Option(help="YAML file of a recipe and its dataset.")],
    out: Annotated[Path, typer.Option(help="File to write, .h5ad.")],
    checkpoints: Annotated[int, typer.Option(help="Networks to train and take gradients of.")] = 20,
    alpha: Annotated[float, typer.Option(help="Share of the training set that each of them sees.")] = 0.5,
    targets: Annotated[TargetsName, typer.Option(help="Examples whose outputs are attributed.")] = TargetsName.test,
    projection: Annotated[
        ProjectionName, typer.Option(help="Of gradients; auto: none for up to twice --dim parameters, else sjlt.")
    ] = ProjectionName.auto,
    dim: Annotated[int, typer.Option(help="Numbers that a gradient is projected to.")] = 2048,
    ridge: Annotated[
        float, typer.Option(help="Added to the diagonal of the kernel, in mean squared lengths of a gradient.")
    ] = 1.0,
    params: Annotated[
        list[str] | None,
        typer.Option(help="Names of parameters, or patterns like 'layer4.*'; all by default. May repeat."),
    ] = None,
    seed: Seed = 0,
    folder: Annotated[
        Path | None, typer.Option(help="Keeps networks and gradients; by default OUT with .trak for .h5ad.")
    ] = None,
    calibrate: Annotated[
        Path | None, typer.Option(metavar="STORE", help="A store whose models bring the scores to units of the output.")
    ] = None,
    executor: PoolName = "local",
    executor_option: ExecutorOptions = None,
    as_json: Json = False,
) -> None:
    """Attribute with gradients (TRAK): train a few networks of a recipe, score training examples, and write the scores.
    An interrupted run goes on where it was; so does one with more checkpoints.

    Example: datamodels trak --recipe recipe.yaml --out trak.h5ad

    Example: datamodels trak --recipe recipe.yaml --targets train --params 'layer4.*' --checkpoints 10 --out self.h5ad
    """
    from datamodels.store import Store
    from datamodels.training.ensemble import TrainRecipe
    from datamodels.training.task import make_importable

    refuse_suffix(out, ".h5ad")
    make_importable(Path.cwd())
    task = TrainRecipe.read(recipe)
    if calibrate is not None:
        Store.open(calibrate)  # before the networks are trained

    from datamodels.trak import trak_of_recipe

    began = time.monotonic()
    folder = out.with_suffix(".trak") if folder is None else folder
    run = trak_of_recipe(
        task,
        folder,
        targets=targets.value,
        checkpoints=checkpoints,
        alpha=alpha,
        projection=projection.value,
        dim=dim,
        ridge=ridge,
        params=params or None,
        seed=seed,
        executor=executor_of(executor, executor_option),
    )
    attribution, used = run.attribution, run.attribution.provenance["estimator"]
    if calibrate is not None:
        from datamodels.regression.calibration import calibrate as calibrated

        attribution = calibrated(
            attribution, str(calibrate), outputs_key="train_margins" if targets is TargetsName.train else None
        )
    attribution.save(out)
    facts: dict[str, Any] = {
        "out": str(out),
        "folder": str(folder),
        "checkpoints": checkpoints,
        "trained": run.checkpoints.trained,
        "alpha": alpha,
        "parameters": used["coordinates"],
        "projection": used["projection"],
        "dim": used["dim"],
        "n_train": attribution.n_train,
        "n_targets": attribution.n_targets,
        "targets": targets.value,
        "calibrated_on": None if calibrate is None else str(calibrate),
        "seconds": time.monotonic() - began,
    }
    emit(facts, _text(facts), as_json)


def _text(facts: dict[str, Any]) -> str:
    there = facts["checkpoints"] - facts["trained"]
    text = (
        f"{facts['checkpoints']} checkpoints in {facts['folder']}: {facts['trained']} trained, {there} there already\n"
    )
    text += f"gradients of {facts['parameters']:,} parameters, "
    text += "not projected" if facts["projection"] == "none" else f"projected to {facts['dim']} ({facts['projection']})"
    text += (
        f"\nwrote {facts['out']}: {facts['n_train']} training examples, {facts['n_targets']} {facts['targets']} targets"
    )
    text += "" if facts["calibrated_on"] is None else f", calibrated on {facts['calibrated_on']}"
    return f"{text}; {facts['seconds']:.1f} seconds"
