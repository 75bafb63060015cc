"""What the examples share: recipes that suit datasets, options, how models are split, checkpoints for TRAK, and pages."""

from __future__ import annotations

import argparse
import base64
import json
import shlex
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from datamodels.attribution import Attribution
from datamodels.errors import DatamodelsError
from datamodels.experiment import Part
from datamodels.files import replacing
from datamodels.regression.estimator import Estimator
from datamodels.regression.fit import fit
from datamodels.store import Store
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.recipes import Recipe

if TYPE_CHECKING:
    from datamodels.trak import TRAK

PERCEPTRON = Recipe(hidden=(64,), epochs=15, batch_size=32, lr=0.05, weight_decay=1e-3)
TINY = Recipe(hidden=(16,), epochs=6, batch_size=32, lr=0.05)
RESNET = Recipe(
    architecture="resnet9", epochs=24, batch_size=128, lr=0.2, nesterov=True, schedule="triangular", flip=True,
    translate=2, standardise=True, precision="bfloat16",
)  # fmt: skip
WIDTHS = (64, 128, 256, 512)  # of ResNet-18
FEWEST = 48
T = TypeVar("T")
_SEED = 1000  # of the networks whose gradients are taken


@dataclass(frozen=True)
class Setting:
    """A dataset, how models are trained on it, and how many by default."""

    dataset: str
    recipe: Recipe
    models: int


def options(
    document: str,
    stem: str,
    settings: Mapping[str, Setting],
    quick: Setting,
    argv: Sequence[str] | None,
    more: Mapping[str, Mapping[str, Any]] | None = None,
) -> argparse.Namespace:
    """The options of a script, with the `setting`, the `task` and the `command` that they come to; `more` are its own."""
    parser = argparse.ArgumentParser(description=document, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", choices=settings, default=next(iter(settings)), help="dataset (%(default)s)")
    parser.add_argument("--models", type=int, help="networks; more than last time extends what is there")
    parser.add_argument("--out", type=Path, help=f"folder of the run (runs/{stem}-DATA)")
    parser.add_argument("--jobs", type=int, help="worker processes; by default one per CPU, or per GPU in use")
    parser.add_argument("--quick", action="store_true", help=f"{quick.dataset}, {quick.models} tiny networks")
    for name, how in (more or {}).items():
        parser.add_argument(name, **how)
    given = parser.parse_args(argv)
    given.setting = quick if given.quick else settings[given.data]
    given.models = given.models or given.setting.models
    if given.models < FEWEST:
        parser.error(f"--models is {given.models}; give {FEWEST} or more")
    given.out = given.out or Path("runs") / f"{stem}-{'quick' if given.quick else given.data}"
    given.task = TrainRecipe(given.setting.recipe, given.setting.dataset)
    given.how = (
        {"executor": "inline"} if given.quick else {"jobs": given.jobs}
    )  # of retraining: processes take time to start
    given.command = command_of(stem, argv)
    return given


def command_of(stem: str, argv: Sequence[str] | None) -> str:
    """The command that makes the run of a script again."""
    return shlex.join(["python", f"examples/{stem}.py", *(sys.argv[1:] if argv is None else argv)])


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


def fitted(path: Path, store: Store, estimator: Estimator, rows: int | None = None, **how: Any) -> Attribution:
    """The fit of the first rows of a store, from its file when that holds it."""
    rows = store.n_models if rows is None else rows
    if path.exists():
        there = Attribution.load(path)
        used = {source["identity"]: len(source["rows"]) for source in there.provenance["sources"]}
        if used == {store.identity: rows} and there.provenance["estimator"] == estimator.describe():
            return there
    found = fit(store, estimator, rows=slice(0, rows), progress=False, **how)
    found.save(path)
    return found


# -- TRAK ---------------------------------------------------------------------------------------------


def checkpoints(folder: Path, task: TrainRecipe, count: int) -> tuple[list[Path], float]:
    """Files of networks that are each trained on their own half of the training set, and CPU seconds per network."""
    from datamodels.trak import train_checkpoints

    found = train_checkpoints(folder, task, count, seed=_SEED)
    return found.files, found.seconds


def along_one_run(folder: Path, task: TrainRecipe, count: int = 5) -> tuple[list[Path], list[float], float]:
    """Files of one network's states at the middles of `count` equal parts of its training on all examples, the learning rates
    there, and the CPU seconds of the whole run."""
    import torch

    from datamodels.training.ensemble import train_models
    from datamodels.training.modules import state_dicts
    from datamodels.training.streams import Streams

    data, recipe = task.data, task.recipe
    steps = recipe.total_steps(len(data.train))
    stops = [round((k + 0.5) * steps / count) for k in range(count)]
    files, note = [folder / f"{task.fingerprint}_{stop}.pt" for stop in stops], folder / "seconds.json"

    def trained(stop: int) -> Any:
        streams = Streams.seeded(np.ones(len(data.train), dtype=np.bool_), _SEED)
        return train_models(recipe, data.train.x, data.train.y, [streams], n_classes=data.n_classes, stop=stop)

    for stop, file in zip(stops, files, strict=True):
        if not file.exists():
            (state,) = state_dicts(trained(stop), recipe, data.train.x.shape[1:], data.n_classes)
            with replacing(file) as temporary:
                torch.save(state, temporary)
    if not note.exists():
        began = time.process_time()
        trained(steps)
        note.write_text(json.dumps(time.process_time() - began))
    rates = recipe.rates(steps)
    return files, [float(rates[stop - 1]) for stop in stops], float(json.loads(note.read_text()))


def trak_of(folder: Path, task: TrainRecipe, files: Sequence[Path]) -> tuple[TRAK, float]:
    """TRAK with the features of all training examples, and the CPU seconds that they took."""
    from datamodels import trak

    return timed(folder / "seconds.json", lambda: trak.trak_of(task, folder, files))


def timed(note: Path, work: Callable[[], T]) -> tuple[T, float]:
    """What work returns, and the CPU seconds that it took the first time, which a note keeps."""
    began = time.process_time()
    found = work()
    if not note.exists():
        note.write_text(json.dumps(time.process_time() - began))
    return found, float(json.loads(note.read_text()))


def resnet18(shape: tuple[int, ...], n_classes: int) -> Any:
    """ResNet-18 of `transformers`, untrained, for pictures of a shape; (k, channels, height, width) to logits."""
    import torch
    from transformers import ResNetConfig, ResNetForImageClassification

    class Logits(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            config = ResNetConfig(
                num_channels=shape[0], embedding_size=WIDTHS[0], hidden_sizes=list(WIDTHS), depths=[2, 2, 2, 2],
                layer_type="basic", num_labels=n_classes,
            )  # fmt: skip
            self.net = ResNetForImageClassification(config)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.net(x).logits

    return Logits()


# -- tables and pages ---------------------------------------------------------------------------------

Rows = Sequence[Mapping[str, Any]]


def cell(value: Any) -> str:
    """A value of a table as text."""
    if isinstance(value, list | tuple):
        return ", ".join(cell(one) for one in value)
    return "" if value is None else f"{value:.3f}" if isinstance(value, float) else str(value)


def table(rows: Rows) -> str:
    """Rows of the same keys as a table in Markdown."""
    lines = [list(rows[0]), ["---"] * len(rows[0]), *([cell(value) for value in row.values()] for row in rows)]
    wide = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        f"| {' | '.join(text.ljust(size, '-' if n == 1 else ' ') for text, size in zip(line, wide, strict=True))} |"
        for n, line in enumerate(lines)
    )


def page(path: Path, title: str, content: Sequence[str | Path | Rows]) -> Path:
    """A page in one file: paragraphs, pictures (paths of PNGs, which it takes in) and tables (rows of the same keys)."""
    parts = [f"<h1>{escape(title)}</h1>"]
    for item in content:
        if isinstance(item, str):
            parts.append(f"<p>{escape(item)}</p>")
        elif isinstance(item, Path):
            parts.append(f'<img alt="{item.stem}" src="data:image/png;base64,{_text(item)}">')
        else:
            head = "".join(f"<th>{escape(name)}</th>" for name in item[0])
            body = ["".join(f"<td>{escape(cell(value))}</td>" for value in row.values()) for row in item]
            lines = "".join(f"<tr>{line}</tr>" for line in [head, *body])
            parts.append(f"<div class=wide><table>{lines}</table></div>")
    style = (
        "body{font:16px/1.5 system-ui,sans-serif;max-width:70rem;margin:2rem auto;padding:0 1rem}img{max-width:100%}"
        "table{border-collapse:collapse;font-size:14px}th,td{padding:.2rem .6rem;text-align:left;border-bottom:1px solid #ddd}"
        ".wide{overflow-x:auto}"
    )
    head = f'<meta charset=utf-8><meta name=viewport content="width=device-width"><title>{escape(title)}</title>'
    text = f"<!doctype html><html lang=en>{head}<style>{style}</style>{''.join(parts)}</html>"
    with replacing(path) as temporary:
        temporary.write_text(text)
    return path


def _text(path: Path) -> str:
    return base64.b64encode(path.read_bytes()).decode()


def run(main: Callable[[], Any]) -> None:
    """A script as a command: an error that the library raises on purpose ends it with its message alone."""
    try:
        main()
    except DatamodelsError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
