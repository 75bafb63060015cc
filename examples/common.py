"""What the image experiments share: recipes that suit datasets, their options, and how models are split."""

from __future__ import annotations

import argparse
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from datamodels.errors import DatamodelsError
from datamodels.experiment import Part
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe

PERCEPTRON = Recipe(hidden=(64,), epochs=15, batch_size=32, lr=0.05, weight_decay=1e-3)
TINY = Recipe(hidden=(16,), epochs=6, batch_size=32, lr=0.05)
RESNET = Recipe(
    architecture="resnet9", epochs=24, batch_size=128, lr=0.2, nesterov=True, schedule="triangular", flip=True,
    translate=2, standardise=True, precision="bfloat16",
)  # fmt: skip
FEWEST = 48


@dataclass(frozen=True)
class Setting:
    """A dataset, how models are trained on it, and how many by default."""

    dataset: str
    recipe: Recipe
    models: int


def options(
    document: str, stem: str, settings: Mapping[str, Setting], quick: Setting, argv: Sequence[str] | None
) -> argparse.Namespace:
    """The options of a script, with the `setting`, the `task` and the `command` that they come to."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=settings, default=next(iter(settings)), help="dataset (%(default)s)")
    parser.add_argument("--models", type=int, help="networks; more than last time extends what is there")
    parser.add_argument("--out", type=Path, help=f"folder of the run (runs/{stem}-DATA)")
    parser.add_argument("--jobs", type=int, help="worker processes; by default one per CPU")
    parser.add_argument("--quick", action="store_true", help=f"{quick.dataset}, {quick.models} tiny networks")
    given = parser.parse_args(argv)
    given.setting = quick if given.quick else settings[given.data]
    given.models = given.models or given.setting.models
    if given.models < FEWEST:
        parser.error(f"--models is {given.models}; give {FEWEST} or more")
    given.out = given.out or Path("runs") / f"{stem}-{'quick' if given.quick else given.data}"
    given.task = TrainRecipe(given.setting.recipe, given.setting.dataset)
    given.command = shlex.join(["python", f"examples/{stem}.py", *(sys.argv[1:] if argv is None else argv)])
    return given


def parts(name: str, task: TrainRecipe, alpha: float, models: int, seed: int = 0) -> list[Part]:
    """7/8 of the models to fit, and 1/8 to judge on: two runs of each of their subsets."""
    judged = models // 16 * 2
    return [
        Part(name, task, alpha, models - judged, seed=seed),
        Part(f"{name}_test", task, alpha, judged, seed=seed + 1, replicates=2),
    ]


def said(score: Mapping[str, Any]) -> str:
    """A score in words."""
    low, high = score["lds_ci"]
    ceiling = "" if score["lds_ceiling"] is None else f", ceiling {score['lds_ceiling']:.3f}"
    return f"LDS {score['lds']:.3f} (95 % interval {low:.3f} to {high:.3f}{ceiling})"


def run(main: Callable[[], Any]) -> None:
    """A script as a command: an error that the library raises on purpose ends it with its message alone."""
    try:
        main()
    except DatamodelsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
