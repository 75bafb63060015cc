"""Many models of one recipe at once: the engine for it, and the block task that fills a store with their outputs."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, replace
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np
from numpy.typing import NDArray

from datamodels import datasets
from datamodels.datasets import Dataset
from datamodels.design import Design
from datamodels.devices import device_named, gpus_of
from datamodels.errors import RequestError
from datamodels.files import read_yaml
from datamodels.training.chain import CHAINS, Chain
from datamodels.training.outputs import check_names, outputs_of_splits, schema_of_splits
from datamodels.training.preparation import Preparation
from datamodels.training.recipes import Recipe
from datamodels.training.streams import Streams
from datamodels.training.task import BlockTask

Engine = Literal["auto", "compiled", "torch"]
SplitName = Literal["test", "train"]
_BLOCK = 100
_DTYPES = ("float16", "float32", "float64")


class Models(Protocol):
    """K trained models."""

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of examples (k, ...), as (K, k, classes)."""


def train_models(
    recipe: Recipe,
    x: NDArray[np.float32],
    y: NDArray[np.int64],
    rows: Sequence[Streams],
    *,
    n_classes: int,
    engine: Engine = "auto",
    device: str = "auto",
    stack: int | None = None,
    stop: int | None = None,
) -> TrainedModels:
    """Train one model per row.

    Parameters
    ----------
    recipe
        How.
    x, y
        All training examples, (n, features) or (n, channels, height, width), and their labels (n,).
    rows
        What each model sees and draws, see `Streams`.
    n_classes
        Width of the logits; labels are 0..n_classes-1.
    engine
        ``compiled``: linear models, perceptrons and plain convolutional networks on a CPU, each from first to last step in
        compiled code. ``torch``: stacked tensors, for all architectures and devices. ``auto``: compiled where it can.
        Both draw alike, and agree to rounding.
    device
        Of the torch engine; ``auto`` is ``cuda`` where there is one.
    stack
        Models side by side in the torch engine; by default a short calibration chooses.
    stop
        Only the first so many steps of the schedule, all of them for a model that has fewer. The learning rates stay those
        of the whole schedule, ``recipe.rates(recipe.total_steps(size))``, so rows that begin alike and stop at several steps
        are checkpoints of one run. Streams are used up by training: make those of a row anew for each.

    Raises
    ------
    RequestError
        when the recipe is not for such inputs, or the engine not for the recipe.
    """
    if engine not in get_args(Engine):
        raise RequestError(f"engine is {engine!r}; legal: {', '.join(get_args(Engine))}")
    if stack is not None and stack < 1:
        raise RequestError(f"stack is {stack}; give 1 or more models")
    if stop is not None and stop < 1:
        raise RequestError(f"stop is {stop!r}; give 1 or more steps, or None for the whole schedule")
    if (recipe.augments or recipe.flip_average) and x.ndim != 4:
        raise RequestError(
            f"flip, translate, cutout and flip_average are for pictures (n, channels, height, width); x is {x.shape}"
        )
    empty = next((k for k, row in enumerate(rows) if not len(row.members)), None)
    if empty is not None:
        raise RequestError(f"model {empty} of {len(rows)} has no training examples; choose a larger alpha")
    place = "cpu" if engine == "compiled" and device == "auto" else device_named(device)
    possible = recipe.architecture in CHAINS and recipe.precision == "float32" and place == "cpu"
    if engine == "compiled" and not possible:
        raise RequestError(
            f"the compiled engine trains {', '.join(CHAINS)} in float32 on a CPU; the recipe has architecture "
            f"{recipe.architecture!r}, precision {recipe.precision!r}, and the device is {place!r}: use engine='torch'"
        )
    scale = _Standardise.of(recipe, x)
    inputs = scale(x)
    trained: Models
    if engine != "torch" and possible:
        from datamodels.training.compiled import CompiledModels

        trained = CompiledModels.train(recipe, Chain.of(recipe, x.shape[1:], n_classes), inputs, y, rows, stop)
    else:
        from datamodels.training.batched import BatchedModels
        from datamodels.training.stacks import stack_of

        made = stack_of(recipe, x.shape[1:], n_classes)
        trained = BatchedModels.train(
            recipe, made, inputs, y, rows, n_classes=n_classes, device=place, size=stack, stop=stop
        )  # fmt: skip
    return TrainedModels(trained, scale, recipe.flip_average)


@dataclass(frozen=True, eq=False)
class _Standardise:
    """(x - mean) / deviation per channel; the same for every model, whatever it sees."""

    mean: NDArray[np.float32]
    deviation: NDArray[np.float32]

    @classmethod
    def of(cls, recipe: Recipe, x: NDArray[np.float32]) -> _Standardise:
        if not recipe.standardise:
            return cls(np.zeros(1, np.float32), np.ones(1, np.float32))
        axes = (0, 2, 3) if x.ndim == 4 else None
        deviation = x.std(axis=axes, keepdims=True, dtype=np.float64)
        mean = x.mean(axis=axes, keepdims=True, dtype=np.float64)
        return cls(mean.astype(np.float32), np.where(deviation > 0, deviation, 1.0).astype(np.float32))

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        return (x - self.mean) / self.deviation if self.mean.any() or (self.deviation != 1).any() else x


@dataclass(frozen=True, eq=False)
class TrainedModels:
    """Trained models with what goes before and after them when they are judged.

    Attributes
    ----------
    models
        K networks.
    scale
        What is done to inputs.
    flip_average
        Whether logits are the mean over a picture and its mirror image.
    """

    models: Models
    scale: _Standardise
    flip_average: bool

    def logits(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Logits of examples x (k, ...), as (K, k, classes)."""
        inputs = self.scale(x)
        if not self.flip_average:
            return self.models.logits(inputs)
        return 0.5 * self.models.logits(inputs) + 0.5 * self.models.logits(np.ascontiguousarray(inputs[..., ::-1]))


@dataclass(frozen=True)
class TrainRecipe:
    """The block task that trains a recipe on the subsets of a store's design and records outputs.

    Parameters
    ----------
    recipe
        How models are trained. Where the store has a sweep, its parameters replace values of the recipe, row by row; the
        parameter ``seed`` makes rows of one seed begin alike, in weights and order.
    dataset
        A dataset, or its name for `datamodels.datasets.load`. In a YAML file a mapping names a file: ``{kind: anndata, path: cells.h5ad,
        label: cell_type}``, see `datamodels.datasets.name_of`.
    outputs
        Names of what is recorded: ``margins``, ``log_odds_margins``, ``logits``, ``losses``, ``correct``.
    splits
        ``test`` examples, ``train`` examples, or both. Outputs on train examples have keys ``train_<name>``, and are fitted on
        the models that did not see the example (out of mask). A dataset without test examples takes ``("train",)``.
    dtype
        Of the outputs in the store. ``float16`` halves it; a value that does not fit fails its row.
    engine, device, stack
        As in `train_models`.
    block_size
        Rows that a worker does at a time.
    prepare
        What is done to features with what each model's own subset says: selection, scaling, imputation. Models are then trained one by
        one, which costs little in the compiled engine and gives up the stack of the torch engine.

    Raises
    ------
    RequestError
        when a value is wrong, or values do not go together.

    Examples
    --------
    >>> task = TrainRecipe(Recipe(hidden=(32,)), "digits")                      # doctest: +SKIP
    >>> design = Design(n_train=task.n_train, alpha=0.5, n_models=1000)          # doctest: +SKIP
    >>> store = Store.create("runs/a", schema=task.schema, design=design)        # doctest: +SKIP
    >>> train(store, task.block_task)                                            # doctest: +SKIP
    """

    recipe: Recipe
    dataset: str | Dataset
    _: KW_ONLY
    outputs: tuple[str, ...] = ("margins",)
    splits: tuple[SplitName, ...] = ("test",)
    dtype: str = "float32"
    engine: Engine = "auto"
    device: str = "auto"
    stack: int | None = None
    block_size: int = _BLOCK
    prepare: Preparation | None = None

    def __post_init__(self) -> None:
        check_names(self.outputs)
        if self.prepare is not None and (not isinstance(self.prepare, Preparation) or self.recipe.standardise):
            raise RequestError(
                "the recipe standardises by all training examples; with prepare, let Preparation(scale=True) do it by each subset"
                if isinstance(self.prepare, Preparation)
                else f"prepare is {self.prepare!r}; give a Preparation, or None"
            )
        if not isinstance(self.dataset, str | Dataset):
            raise RequestError(f"dataset is {self.dataset!r}; give a Dataset, or its name for datasets.load")
        if isinstance(self.splits, str) or not self.splits or set(self.splits) - set(get_args(SplitName)):
            raise RequestError(f"splits are {self.splits!r}; legal: test, train, or both")
        for name, legal in (("dtype", _DTYPES), ("engine", get_args(Engine))):
            if getattr(self, name) not in legal:
                raise RequestError(f"{name} is {getattr(self, name)!r}; legal: {', '.join(legal)}")
        for name, count in (("stack", 1 if self.stack is None else self.stack), ("block_size", self.block_size)):
            if not isinstance(count, int) or count < 1:
                raise RequestError(f"{name} is {count!r}; give 1 or more models")

    @classmethod
    def read(cls, path: str | Path) -> TrainRecipe:
        """From a YAML file: ``dataset``, ``recipe`` (a mapping of `Recipe`), ``prepare`` (of `Preparation`), and the other parameters by
        their names.

        Raises
        ------
        RequestError
            when the file cannot be read, or a name or value in it is wrong.
        """
        values = read_yaml(path)
        legal = list(cls.__dataclass_fields__)
        unknown, missing = sorted(set(values) - set(legal)), {"recipe", "dataset"} - set(values)
        if unknown or missing:
            what = f"has no {sorted(missing)[0]!r}" if missing else f"has {unknown[0]!r}"
            raise RequestError(
                f"{str(path)!r} {what}; legal: {', '.join(legal)}, of which recipe and dataset are needed"
            )
        if not isinstance(values["recipe"], Mapping):
            raise RequestError(f"recipe in {str(path)!r} must be a mapping, like {{architecture: mlp, hidden: [64]}}")
        values["recipe"] = Recipe().with_parameters(values["recipe"])
        if isinstance(values["dataset"], Mapping):
            values["dataset"] = datasets.name_of(values["dataset"])
        if isinstance(values.get("prepare"), Mapping):
            values["prepare"] = Preparation.of(values["prepare"])
        for name in ("outputs", "splits"):
            if name in values:
                given = values[name]
                values[name] = tuple(map(str, given if isinstance(given, list) else [given]))
        return cls(**values)

    @property
    def data(self) -> Dataset:
        """The dataset; one that is named is loaded once per process."""
        return datasets.load(self.dataset) if isinstance(self.dataset, str) else self.dataset

    @property
    def n_train(self) -> int:
        """Number of training examples."""
        return len(self.data.train)

    @property
    def schema(self) -> dict[str, Any]:
        """The schema of a store for the outputs.

        Raises
        ------
        RequestError
            when the dataset lacks what `splits` or `prepare` need.
        """
        self._check_data()
        sizes: dict[str, int] = {name: len(getattr(self.data, name)) for name in self.splits}
        return schema_of_splits(self.outputs, sizes, self.data.n_classes, self.dtype)

    @property
    def block_task(self) -> BlockTask:
        """What `datamodels.train` takes."""
        return BlockTask(self, self.block_size)

    @property
    def labels(self) -> NDArray[np.int64]:
        """(n_train,) of the training examples."""
        return self.data.train.y

    @property
    def gpus(self) -> tuple[str, ...]:
        """The GPUs of this machine that rows are trained on, one per worker, as `gpus_of`; none by the compiled engine."""
        return () if self.engine == "compiled" else gpus_of(self.device)

    @property
    def fingerprint(self) -> str:
        """A hash of all that the outputs depend on: of recipe, outputs, splits and preparation, and of the dataset's name, or its
        content when it was given itself or is read from a file."""
        if isinstance(self.dataset, str) and not datasets.is_file(self.dataset):
            data = self.dataset
        else:
            data = _content(self.data if self.data is self.dataset else replace(self.data, name=""))
        facts: list[Any] = [self.recipe.identity, data, list(self.outputs), list(self.splits)]
        if self.prepare is not None:
            facts.append(self.prepare.to_dict())
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as `read` takes it from YAML."""
        named = self.dataset if isinstance(self.dataset, str) else self.dataset.name
        out = {name: getattr(self, name) for name in ("dtype", "engine", "device", "stack", "block_size")}
        return {
            "dataset": named,
            "recipe": self.recipe.to_dict(),
            "outputs": list(self.outputs),
            "splits": list(self.splits),
            "prepare": None if self.prepare is None else self.prepare.to_dict(),
            **out,
        }

    def _check_data(self) -> None:
        """What the dataset must have for the splits and the preparation."""
        data = self.data
        if "test" in self.splits and not len(data.test):
            raise RequestError(
                f"{data.name} has no test examples: give splits ('train',), so that each example is a target of the models that "
                "did not see it"
            )
        if self.prepare is not None:
            self.prepare.check(data.train.x)
        if (self.prepare is None or not self.prepare.impute) and (data.train.has_missing or data.test.has_missing):
            raise RequestError(
                f"{data.name} has missing values (NaN): give prepare=Preparation(impute=True), or mend them"
            )

    def __call__(
        self,
        indices: NDArray[np.int64],
        masks: NDArray[np.bool_],
        design: Design,
        params: Sequence[Mapping[str, Any]] | None = None,
    ) -> dict[str, Any]:
        """Outputs of the rows `indices` (k,) with subsets `masks` (k, n_train), key -> (k, ...)."""
        data = self.data
        if masks.shape[1] != len(data.train):
            raise RequestError(f"the design has {masks.shape[1]} training examples, {data.name} has {len(data.train)}")
        self._check_data()
        groups: dict[Recipe, list[int]] = defaultdict(list)
        streams = []
        for position, mask in enumerate(masks):
            settings = dict(params[position]) if params is not None else {}
            seed = settings.pop("seed", None)
            streams.append(
                Streams.of(design, int(indices[position]), mask) if seed is None else Streams.seeded(mask, int(seed))
            )
            groups[self.recipe.with_parameters(settings)].append(position)
        out: dict[str, NDArray[Any]] = {}
        for recipe, whole in groups.items():
            for positions in [whole] if self.prepare is None else [[position] for position in whole]:
                values_of = self._outputs(recipe, [streams[position] for position in positions])
                for key, values in values_of.items():
                    room = out.setdefault(key, np.empty((len(indices), *values.shape[1:]), dtype=values.dtype))
                    room[positions] = values
        return out

    def _outputs(self, recipe: Recipe, rows: list[Streams]) -> dict[str, NDArray[Any]]:
        """Outputs of the models of rows, which are one row where its own subset prepares the features."""
        data = self.data
        x = {name: getattr(data, name).x for name in {"train", *self.splits}}
        if self.prepare is not None:
            prepared = self.prepare.fit(data.train.x, data.train.y, rows[0].members)
            x = {name: prepared(values) for name, values in x.items()}
        models = train_models(
            recipe, x["train"], data.train.y, rows, n_classes=data.n_classes,
            engine=self.engine, device=self.device, stack=self.stack,
        )  # fmt: skip
        judged: dict[str, Any] = {name: (models.logits(x[name]), getattr(data, name).y) for name in self.splits}
        return outputs_of_splits(self.outputs, judged)


def _content(data: Dataset) -> str:
    """A hash of what models are trained and judged on."""
    digest = hashlib.sha256(repr((data.name, data.n_classes)).encode())
    for values in (data.train.x, data.train.y, data.test.x, data.test.y):
        digest.update(repr(values.shape).encode())
        digest.update(np.ascontiguousarray(values).data)
    return digest.hexdigest()
