"""What a page shows, put together from the files of a run: weights, groups, examples, outputs, scores."""

from __future__ import annotations

import hashlib
import json
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels import datasets
from datamodels.datasets import Split
from datamodels.errors import DatamodelsError, RequestError, first_line
from datamodels.explorer import groups, measures
from datamodels.explorer.assemble import Opened, task_of
from datamodels.explorer.cache import FOLDER, Cache
from datamodels.explorer.columns import Column, category, column_of, number
from datamodels.explorer.content import Content, Shown, Side, column_named
from datamodels.explorer.dataset_facts import LEARNED, OF_DATASET, SplitName, columns_from, describe, identity, is_code
from datamodels.explorer.examples import Examples
from datamodels.explorer.fact_columns import OF_FIT, target_facts, train_facts
from datamodels.explorer.results import results_beside
from datamodels.explorer.run_facts import curve_of, curve_of_results, facts_of, models_of
from datamodels.explorer.weights import TrainMajor, WeightsFile
from datamodels.progress import Progress
from datamodels.report.judging import Judgement
from datamodels.store import Store

if TYPE_CHECKING:
    from datamodels.evaluation.lds import LDS


_NO_COLUMNS = (
    "target",
    "id",
    "ids",
    "text",
    "n_nonzero",
    "slope_se",
    "calibration_df",
    "n_constant",
    "residual",
    "steps",
)


_PAIRS = 3


OF_FILE = "given in the file"


class Gathering:
    """The steps of `gather`, and what they share."""

    def __init__(self, found: Opened, cache: str | Path | None, trust: bool, progress: bool) -> None:
        self.opened, self.root, self.run, self.trust, self.progress = found, found.root, found.run, trust, progress
        self.facts: list[tuple[str, str]] = []
        files = self._files()
        self.cache = Cache(self._cache_folder(cache))
        self.default = next(iter(files))
        first = files[self.default]
        self.files = {name: file for name, file in files.items() if self._is_alike(name, file, first)}
        self.embedded = self.run.view.embedding if self.run.view.embedding in self.files else self.default
        self.dataset = self.run.dataset
        self.data = self._dataset()
        self.side = self._side_of_targets()

    def _cache_folder(self, given: str | Path | None) -> Path:
        """Of this source alone, since what it has not used is removed from it."""
        source, places = self.opened.source, [self.root / item.path for item in self.run.attributions.values()]
        if given is None and (self.opened.told or len(places) == 1):
            return self.root / FOLDER if self.opened.told else self.root / FOLDER / source.name
        several = [source] if self.opened.told or len(places) == 1 else places
        hashed = hashlib.sha256("\0".join(str(place.resolve()) for place in several).encode()).hexdigest()[:8]
        return (self.root / FOLDER if given is None else Path(given)) / f"{source.resolve().name}-{hashed}"

    def _files(self) -> dict[str, WeightsFile]:
        """All attributions, that of the default view first."""
        first = self.run.view.neighbours
        names = sorted(self.run.attributions, key=lambda name: name != first)
        places = {name: str(self.run.attributions[name].path) for name in names}
        return {name: WeightsFile(self.root / place, place) for name, place in places.items()}

    def _is_alike(self, name: str, file: WeightsFile, first: WeightsFile) -> bool:
        same = file.n_train == first.n_train and np.array_equal(file.targets, first.targets)
        columns = (file.train_columns, first.train_columns)
        if same and (columns[0] is None) == (columns[1] is None):
            return True
        self.facts.append((f"not shown: {name}", f"its targets are not those of {self.default}"))
        return False

    def _dataset(self) -> dict[str, Any] | None:
        """What `describe` says of the dataset."""
        name = self.dataset
        if name is None:
            return None
        if is_code(name) and not self.trust:
            self.facts.append(("dataset", f"{name} is made by code, which is not called unless you say --trust"))
            return None
        try:
            found: dict[str, Any] = self.cache.json("dataset", identity(name), lambda: describe(datasets.load(name)))
        except (DatamodelsError, OSError) as error:
            self.facts.append(("dataset", f"{name} (not at hand: {first_line(error)})"))
            return None
        if found["train"]["size"] != self.files[self.default].n_train:
            sizes = f"{found['train']['size']:,} training examples, the weights {self.files[self.default].n_train:,}"
            self.facts.append(("dataset", f"{name} has {sizes}: it is not shown"))
            return None
        self.facts.append(("dataset", name))
        return found

    def _side_of_targets(self) -> tuple[SplitName, NDArray[np.int64]]:
        """Which examples of which split the targets are."""
        file = self.files[self.default]
        if file.train_columns is not None:
            return "train", file.train_columns
        return "test", file.targets // self._outputs_per_example()

    def _outputs_per_example(self) -> int:
        store = self._store()
        return 1 if store is None else int(np.prod(store.field(self._key()).shape[1:], dtype=np.int64))

    def _store(self) -> Store | None:
        """The store of the default attribution."""
        name = self.run.attributions[self.default].store
        if name is None:
            return None
        try:
            store = Store.open(self.run.place(self.root, name))
        except DatamodelsError:
            return None
        return store if self._key() in store.keys else None

    def _key(self) -> str:
        return measures.keys_of(self.files[self.default])[1]

    @contextmanager
    def _bar(self, title: str, total: int, unit: str = "targets") -> Iterator[Callable[[int], None]]:
        with Progress(title, total, unit, show=self.progress) as bar:
            yield bar.advance

    # -- steps ------------------------------------------------------------------------------------------

    def content(
        self, judged: Judgement, n_clusters: int | None, group_by: str | None, annotated: str | Path | None
    ) -> Content:
        attributions = [self._shown(name, file, judged.scores.get(name)) for name, file in self.files.items()]
        examples = self._examples()
        outputs = self._outputs()
        columns: dict[Side, list[Column]] = {
            "targets": _apart(self._given("targets"), target_facts(attributions, outputs, self._key())),
            "train": _apart(self._given("train"), train_facts(attributions)),
        }
        labels: dict[Side, str | None] = {side: self._label(columns[side]) for side in columns}
        given = None
        if annotated is not None:
            found = groups.column_of_file(
                annotated, group_by, examples["targets"].names_given, len(examples["targets"])
            )
            columns["targets"] = _apart(columns["targets"], [found])
            given = columns["targets"][-1]
        elif group_by is not None:
            given = groups.column_to_group_by(columns["targets"], group_by)
            columns["targets"] = [given if one.name == given.name else one for one in columns["targets"]]
        grouped = self._groups(
            attributions, columns["targets"], labels["targets"], examples["targets"], n_clusters, given
        )
        if grouped is not None:
            if given is None:
                clusters = groups.column_of_clusters(grouped["subgroups"]["clusters"], self.embedded)
                columns["targets"] = _apart(columns["targets"], [clusters])
            grouped["page"]["column"] = columns["targets"][-1].name if given is None else given.name
        columns["train"], together = self._together(columns["train"])
        columns["targets"] = _apart(columns["targets"], self._agreement(attributions))
        near = results_beside(self._neighbouring_files(), self.files)
        usual = 1.0
        if self.data is not None and self.dataset is not None:
            facts = identity(self.dataset)
            usual = self.cache.json("distance", facts, lambda: examples["train"].usual_distance())
        content = Content(
            title=self.run.title,
            created=self.run.created,
            version=self._version(),
            command=shlex.join(self.opened.command),
            cache=self.cache,
            run=self.run,
            attributions=attributions,
            embedded=self.embedded,
            columns=columns,
            examples=examples,
            labels=labels,
            facts=[
                *self.facts,
                *facts_of(self.opened, attributions),
                *(fact for one in near.values() for fact in one.facts),
            ],
            outputs=outputs,
            output_name=self._key().removeprefix("train_").replace("_", " ").removesuffix("s"),
            groups=grouped and grouped["page"],
            subgroups=grouped and grouped["subgroups"],
            n_models=models_of(self.opened, attributions),
            curve=curve_of(judged.to_dict()["curve"])
            if judged.curve or not self.opened.told
            else curve_of_results(self.root),
            beside=near,
            usual_distance=usual,
            task=self._task(),
            store=self._store(),
            together=together,
        )
        _keep_drawn(content)
        self.cache.prune()
        return content

    def _shown(self, name: str, file: WeightsFile, score: LDS | None) -> Shown:
        def in_bar(title: str, make: Callable[[WeightsFile, Callable[[int], None]], Any]) -> Any:
            with self._bar(f"{title} of {name}", file.n_targets) as tick:
                return make(file, tick)

        sums = self.cache.arrays("sums", [file.identity], lambda: in_bar("sums", measures.sums))
        by_train = in_bar("weights by training example", lambda file, tick: TrainMajor(file, self.cache, tick))
        embedding = self.cache.arrays(
            "pca",
            [file.identity],
            lambda: {"rows": in_bar("map", lambda file, tick: measures.pca(file, sums["norm"], tick))},
        )["rows"]
        return Shown(name, file, by_train, sums, embedding, self._lds(name, file, score))

    def _lds(self, name: str, file: WeightsFile, score: LDS | None) -> dict[str, Any] | None:
        known = None if score is None else {key: np.asarray(value) for key, value in measures.scored([score]).items()}
        test = self.run.attributions[name].test
        if test is None or (known is not None and not self.opened.told):
            return known

        def compute() -> dict[str, Any]:
            if known is not None:
                return known
            with self._bar(f"LDS of {name}", file.n_targets) as tick:
                return {key: np.asarray(value) for key, value in measures.lds_of(file, store, tick).items()}

        try:
            store = Store.open(self.run.place(self.root, test))
            return self.cache.arrays("lds", [file.identity, store.fingerprint()], compute)
        except DatamodelsError as error:
            self.facts.append((f"LDS of {name}", f"unknown: {first_line(error)}"))
            return None

    def _examples(self) -> dict[Side, Examples]:
        first = self.files[self.default]
        given_by: dict[Side, tuple[Any, Mapping[str, Any]]] = {
            "targets": (first.target_names, first.target_facts),
            "train": (first.train_names, first.train_facts),
        }
        out: dict[Side, Examples] = {}
        for side, (names, facts) in given_by.items():
            split, index, found = self._of_split(side)
            given = facts.get("id", facts.get("ids", names))
            if given is None and found is not None and found["ids"] is not None:
                given = np.array(found["ids"])[index]
            if given is None and (store := self._store()) is not None:
                known = store.ids(split)
                given = known[index] if known is not None and index.max(initial=-1) < len(known) else None
            texts = facts.get("text")
            out[side] = Examples(
                index,
                found,
                partial(self._load, split),
                given,
                texts if texts is not None and texts.dtype.kind == "U" else None,
                self.data["features"] if self.data else None,
            )
        return out

    def _of_split(self, side: Side) -> tuple[SplitName, NDArray[np.int64], dict[str, Any] | None]:
        """Which examples of which split are on a side, and what is known of that split."""
        split, index = self.side if side == "targets" else ("train", np.arange(self.files[self.default].n_train))
        found = None if self.data is None else self.data[split]
        return split, index, found if found is not None and index.max(initial=-1) < found["size"] else None

    def _load(self, split: SplitName) -> Split:
        assert self.dataset is not None
        return getattr(datasets.load(self.dataset), split)

    def _outputs(self) -> dict[str, Any] | None:
        store = self._store()
        if store is None:
            return None
        file = self.files[self.default]
        targets, masks_key = file.targets, measures.keys_of(file)[0]

        def compute() -> dict[str, Any]:
            with self._bar("outputs", 2 * int(store.completed().sum()), "models") as tick:
                return measures.outputs_of(
                    store, self._key(), targets, tick, train_columns=file.train_columns, masks_key=masks_key
                )

        flat = int(np.prod(store.field(self._key()).shape, dtype=np.int64))
        if targets.max(initial=-1) >= flat or not store.completed().any():
            return None
        hashed = hashlib.sha256(targets.tobytes())
        if file.train_columns is not None:
            hashed.update(file.train_columns.tobytes())
        return self.cache.arrays("outputs", [store.fingerprint(), self._key(), masks_key, hashed.hexdigest()], compute)

    # -- columns ----------------------------------------------------------------------------------------

    def _given(self, side: Side) -> list[Column]:
        """Columns of the dataset, and those that the file has."""
        _, index, found = self._of_split(side)
        out = [] if found is None else columns_from(found, index)
        file = self.files[self.default]
        facts = file.target_facts if side == "targets" else file.train_facts
        plain = {name: v for name, v in facts.items() if v.ndim == 1 and name not in _NO_COLUMNS and name not in OF_FIT}
        return out + [column_of(name, values, OF_FILE) for name, values in plain.items()]

    def _label(self, columns: list[Column]) -> str | None:
        """The first column of categories that are no names of single examples."""
        able = (one for one in columns if one.categories is not None)
        return next((one.name for one in able if one.description == LEARNED or _groups_them(one)), None)

    def _agreement(self, attributions: list[Shown]) -> list[Column]:
        out: list[Column] = []
        first = attributions[0]
        for other in attributions[1 : _PAIRS + 1]:
            found = self.cache.arrays(
                "agreement", [first.file.identity, other.file.identity], partial(self._agree, first, other)
            )
            pair = f"{first.name} / {other.name}"
            out.append(number(f"rank correlation, {pair}", found["spearman"], "Spearman correlation of all weights"))
            text = "Jaccard index of the 10 most helpful training examples"
            out.append(number(f"shared top 10, {pair}", found["helpful"], text))
        return out

    def _agree(self, first: Shown, other: Shown) -> dict[str, Any]:
        with self._bar(f"agreement of {first.name} and {other.name}", first.file.n_targets) as tick:
            return measures.agreement(first.file, other.file, tick)

    def _groups(
        self,
        attributions: list[Shown],
        columns: list[Column],
        label_name: str | None,
        examples: Examples,
        n_clusters: int | None,
        given: Column | None,
    ) -> dict[str, Any] | None:
        """``subgroups``, what was found or `given`, and ``page``, how it is shown."""
        shown = next(one for one in attributions if one.name == self.embedded)
        label = column_named(columns, label_name)
        outside = [column for column in columns if column.description in (OF_FILE, OF_DATASET)]
        others = [c for c in columns if c.name in ("class", "group", "mean output", "sd of output") or c in outside]
        others = [c for c in others if c is not label and c is not given]
        hidden = (
            label if label is not None and label.description != LEARNED else None
        )  # clusters are not to be the classes

        def compute() -> dict[str, Any] | None:
            found = (
                groups.find(shown.embedding, hidden, n_clusters) if given is None else groups.of(shown.embedding, given)
            )
            if found is None:
                return None
            found = groups.scored(found, hidden, examples.features())
            page = groups.describe(shown.name, found, label, hidden, others, self.progress, given)
            return {"subgroups": found.to_dict(), "page": page}

        hashed = hashlib.sha256(
            b"".join(c.name.encode() + c.values.tobytes() for c in [*filter(None, [label, given]), *others])
        )
        facts: list[Any] = [shown.name, shown.file.identity, hashed.hexdigest(), n_clusters]
        if given is not None:
            facts += [given.name, given.description, given.categories]
        found: dict[str, Any] | None = self.cache.json("groups", facts, compute)
        return found

    # -- the rest ---------------------------------------------------------------------------------------

    def _neighbouring_files(self) -> list[Path]:
        own = {file.path.resolve() for file in self.files.values()}
        return [path for path in self.root.glob("*.h5ad") if path.resolve() not in own]

    def _task(self) -> Any:
        """The `TrainRecipe` of the default attribution's store, None when it cannot be had."""
        if self.data is None:
            return None
        from datamodels.training.outputs import OUTPUTS

        try:
            task = task_of(self.run, self.run.attributions[self.default].store)
        except RequestError:
            return None
        if task is None or self._key().removeprefix("train_") not in OUTPUTS:
            return None
        return None if ":" in str(task.recipe.architecture) and not self.trust else task

    def _together(self, columns: list[Column]) -> tuple[list[Column], str | None]:
        """Columns of training examples, and the one of the groups that the store's design has in or out together: the dataset's where
        it has one, else one more; None without such groups."""
        store = self._store()
        design = None if store is None else store.design
        if design is None or design.groups is None:
            return columns, None
        codes = np.array(design.groups)
        for column in columns:
            if column.categories is not None and _are_alike(column.values, codes):
                return columns, column.name
        text = "examples that are in the training set together"
        out = _apart(columns, [category("group", codes, [str(k) for k in range(codes.max() + 1)], text)])
        return out, out[-1].name

    def _version(self) -> str:
        facts = [file.identity for file in self.files.values()]
        text = json.dumps([facts, sorted(self.cache.used)]) + self.run.model_dump_json()
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def _keep_drawn(content: Content) -> None:
    """Name what is drawn when it is first asked for, so that it is not pruned."""
    for about in range(len(content.maps())):
        content.is_ready(about)
    for side, examples in content.examples.items():
        sheets = examples.sheets()
        for page in range(len(sheets["pages"]) if sheets else 0):
            content.sprite_path(side, page)


def _apart(given: list[Column], computed: list[Column]) -> list[Column]:
    """The first given column of each name, and all computed ones, called otherwise where a given one has their name."""
    out: dict[str, Column] = {}
    for column in given:
        out.setdefault(column.name, column)
    for column in computed:
        while column.name in out:
            column = replace(column, name=f"{column.name} (computed)")
        out[column.name] = column
    return list(out.values())


def _are_alike(first: NDArray[Any], second: NDArray[Any]) -> bool:
    """Whether two columns of codes tell the same groups."""
    sizes = {len(np.unique(codes, axis=-1).T) for codes in (first, second, np.stack([first, second]))}
    return len(sizes) == 1


def _groups_them(column: Column) -> bool:
    """Whether a column of categories tells groups of examples, and not single ones, as names do."""
    return column.n_known <= max(2, len(column.values) / 3)
