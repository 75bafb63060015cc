"""The command pilot."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from datamodels.cli.common import Json, Seed, emit
from datamodels.errors import RequestError

if TYPE_CHECKING:
    from datamodels.training.ensemble import TrainRecipe

_PICTURES = (".png", ".svg", ".pdf")
_WIDTH = 110  # of the table where there is no terminal


def pilot(
    recipe: Annotated[list[Path], typer.Option(help="YAML file of a recipe and its dataset; may repeat.")],
    alphas: Annotated[str, typer.Option(help="Shares of the training set to try.")] = "0.05,0.1,0.2,0.35,0.5,0.75",
    masks: Annotated[int, typer.Option(help="Subsets per setting.")] = 16,
    replicates: Annotated[int, typer.Option(help="Models per subset.")] = 2,
    seed: Seed = 0,
    jobs: Annotated[
        int | None, typer.Option(help="Worker processes; by default one per CPU, or per GPU in use.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder of the stores; with it an interrupted pilot goes on.")
    ] = None,
    plot: Annotated[Path | None, typer.Option(help="Picture to write (.png, .svg, .pdf).")] = None,
    as_json: Json = False,
) -> None:
    """Train a few models of each recipe at each alpha, and say which to take for a campaign of thousands.

    Example: datamodels pilot --recipe recipe.yaml --alphas 0.1,0.3,0.5 --out runs/pilot

    Example: datamodels pilot --recipe mlp.yaml --recipe cnn.yaml --masks 24 --plot pilot.png
    """
    from datamodels.evaluation.pilot import pilot as run
    from datamodels.evaluation.settings import save_plot

    try:
        shares = [float(alpha) for alpha in alphas.split(",")]
    except ValueError:
        raise RequestError(f"--alphas is {alphas!r}; give numbers between 0 and 1 like 0.1,0.3,0.5") from None
    if plot is not None and plot.suffix not in _PICTURES:
        raise RequestError(f"--plot is {str(plot)!r}; it must end in {', '.join(_PICTURES)}")
    tasks = _tasks(recipe)
    result = run(
        next(iter(tasks.values())),
        alphas=shares,
        recipes={name: task.recipe for name, task in tasks.items()},
        masks=masks,
        replicates=replicates,
        seed=seed,
        jobs=jobs,
        folder=out,
    )
    facts = result.to_dict()
    if plot is not None:
        save_plot(result, plot)
        facts["plot"] = str(plot)
    if as_json:
        emit(facts, "", True)
        return
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else _WIDTH).print(result.table())
    print("\n".join(result.reasons))
    if plot is not None:
        print(f"wrote {plot}")


def _tasks(files: list[Path]) -> dict[str, TrainRecipe]:
    """Name of each file -> what it says; they may differ in their recipes alone."""
    from datamodels.training.ensemble import TrainRecipe
    from datamodels.training.task import make_importable

    make_importable(Path.cwd())
    out: dict[str, TrainRecipe] = {}
    for file in files:
        task = TrainRecipe.read(file)
        if file.stem in out:
            raise RequestError(f"two recipes are named {file.stem!r}; give their files different names")
        first = next(iter(out.values()), task)
        for name in ("dataset", "engine", "device", "stack"):
            mine, theirs = getattr(task, name), getattr(first, name)
            if mine != theirs:
                raise RequestError(
                    f"{str(file)!r} has {name} {mine!r}, {str(files[0])!r} has {theirs!r}: recipes are compared on the "
                    f"same {name}; change one, or run two pilots"
                )
        out[file.stem] = task
    return out
