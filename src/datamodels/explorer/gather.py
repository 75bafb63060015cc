"""From a run's folder, or an attribution file, to its `Content`. What is expensive is computed once and kept."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels import datasets
from datamodels.datasets import Split
from datamodels.errors import DatamodelsError, RequestError, first_line
from datamodels.explorer import groups, measures
from datamodels.explorer.cache import FOLDER, Cache
from datamodels.explorer.columns import Column, column_of, number
from datamodels.explorer.content import Content, Shown, Side, column_named
from datamodels.explorer.dataset_facts import LEARNED, OF_DATASET, SplitName, columns_from, describe, identity, is_code
from datamodels.explorer.examples import Examples
from datamodels.explorer.fact_columns import OF_FIT, target_facts, train_facts
from datamodels.explorer.results import results_beside
from datamodels.explorer.run_facts import curve_of, curve_of_results, facts_of, models_of
from datamodels.explorer.weights import TrainMajor, WeightsFile
from datamodels.progress import Progress
from datamodels.report.judging import Judgement, name_of
from datamodels.run import FILE, Run
from datamodels.spec import MASKS
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
_TASK = "datamodels.training.ensemble:TrainRecipe"


def gather(
    source: str | Path,
    *,
    cache: str | Path | None = None,
    trust: bool = False,
    judged: Judgement | None = None,
    n_clusters: int | None = None,
    progress: bool = True,
) -> Content:
    """All that is shown of a run's folder or an attribution file.

    Parameters
    ----------
    source
        A folder with ``run.json``, or an ``.h5ad`` file of an attribution.
    cache
        Folder of what is computed once, for any number of sources; by default ``.explorer`` in the run's folder or beside the file.
    trust
        Whether code that ``run.json`` names, as PKG.MODULE:FUNCTION of a dataset or of an architecture, may be imported
        and called.
    judged
        Scores that are known already. By default a run's attributions are scored on the test stores that it names, and the curve
        is that of its ``results.json``.
    n_clusters
        Of subgroups; by default as many as hidden labels, else ten.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when there is nothing to show.
    """
    source = Path(source)
    if source.is_dir():
        made = _Gathering(source, source, Run.load(source), cache, trust, progress)
    else:
        made = _Gathering(source, source.parent, None, cache, trust, progress)
    return made.content(Judgement() if judged is None else judged, n_clusters)


class _Gathering:
    """The steps of `gather`, and what they share."""

    def __init__(
        self, source: Path, root: Path, run: Run | None, cache: str | Path | None, trust: bool, progress: bool
    ) -> None:
        self.source, self.root, self.run, self.trust, self.progress = source, root, run, trust, progress
        self.facts: list[tuple[str, str]] = []
        files = self._files()
        self.cache = Cache(self._cache_folder(cache))
        self.default = next(iter(files))
        first = files[self.default]
        self.files = {name: file for name, file in files.items() if self._is_alike(name, file, first)}
        self.embedded = run.view.embedding if run is not None and run.view.embedding in self.files else self.default
        self.dataset = self._dataset_name()
        self.data = self._dataset()
        self.side = self._side_of_targets()

    def _cache_folder(self, given: str | Path | None) -> Path:
        """Of this source alone, since what it has not used is removed from it."""
        if given is None:
            return self.root / FOLDER if self.run is not None else self.root / FOLDER / self.source.name
        place = self.source.resolve()
        return Path(given) / f"{place.name}-{hashlib.sha256(str(place).encode()).hexdigest()[:8]}"

    def _files(self) -> dict[str, WeightsFile]:
        """All attributions, that of the default view first."""
        if self.run is None:
            file = WeightsFile(self.source)
            return {name_of(file.provenance, self.source): file}
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

    def _dataset_name(self) -> str | None:
        """The dataset of the run, or the one whose networks a file's scores are from."""
        if self.run is not None:
            return self.run.dataset
        networks = self.files[self.default].provenance.get("networks")
        task = networks.get("task") if isinstance(networks, Mapping) else None
        name = task.get("dataset") if isinstance(task, Mapping) else None
        return name if isinstance(name, str) else None

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
        if self.run is None:
            return None
        try:
            store = Store.open(self.root / self.run.stores[self.run.attributions[self.default].store])
        except DatamodelsError:
            return None
        return store if self._key() in store.keys else None

    def _key(self) -> str:
        usual = "margins" if self.files[self.default].train_columns is None else "train_margins"
        return str(self._first_source().get("outputs_key", usual))

    def _first_source(self) -> Mapping[str, Any]:
        """What the default attribution says of the rows that it was fitted on."""
        return next(iter(self.files[self.default].provenance.get("sources", [])), {})

    @contextmanager
    def _bar(self, title: str, total: int, unit: str = "targets") -> Iterator[Callable[[int], None]]:
        with Progress(title, total, unit, show=self.progress) as bar:
            yield bar.advance

    # -- steps ------------------------------------------------------------------------------------------

    def content(self, judged: Judgement, n_clusters: int | None) -> Content:
        attributions = [self._shown(name, file, judged.scores.get(name)) for name, file in self.files.items()]
        examples = self._examples()
        outputs = self._outputs()
        columns: dict[Side, list[Column]] = {
            "targets": _apart(self._given("targets"), target_facts(attributions, outputs, self._key())),
            "train": _apart(self._given("train"), train_facts(attributions)),
        }
        labels: dict[Side, str | None] = {side: self._label(columns[side]) for side in columns}
        grouped = self._groups(attributions, columns["targets"], labels["targets"], examples["targets"], n_clusters)
        if grouped is not None:
            clusters = groups.column_of_clusters(grouped["subgroups"]["clusters"], self.embedded)
            columns["targets"] = _apart(columns["targets"], [clusters])
            grouped["page"]["column"] = columns["targets"][-1].name
        columns["targets"] = _apart(columns["targets"], self._agreement(attributions))
        near = results_beside(self._neighbouring_files(), self.files)
        usual = 1.0
        if self.data is not None and self.dataset is not None:
            facts = identity(self.dataset)
            usual = self.cache.json("distance", facts, lambda: examples["train"].usual_distance())
        created = datetime.fromtimestamp(self.source.stat().st_mtime, UTC).isoformat(timespec="seconds")
        content = Content(
            source=self.source,
            title=self.run.title if self.run else f"Datamodels of {self.source.name}",
            created=self.run.created if self.run else created,
            version=self._version(),
            cache=self.cache,
            run=self.run,
            attributions=attributions,
            embedded=self.embedded,
            columns=columns,
            examples=examples,
            labels=labels,
            facts=[
                *self.facts,
                *facts_of(self.root, self.run, attributions),
                *(fact for one in near.values() for fact in one.facts),
            ],
            outputs=outputs,
            output_name=self._key().removeprefix("train_").replace("_", " ").removesuffix("s"),
            groups=grouped and grouped["page"],
            subgroups=grouped and grouped["subgroups"],
            n_models=models_of(self.root, self.run, attributions),
            curve=curve_of(judged.to_dict()["curve"]) if judged.curve or not self.run else curve_of_results(self.root),
            beside=near,
            usual_distance=usual,
            task=self._task(),
            store=self._store(),
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
        test = None if self.run is None else self.run.attributions[name].test
        if self.run is None or test is None:
            return known
        folder = self.root / self.run.stores[test]

        def compute() -> dict[str, Any]:
            if known is not None:
                return known
            with self._bar(f"LDS of {name}", file.n_targets) as tick:
                return {key: np.asarray(value) for key, value in measures.lds_of(file, folder, tick).items()}

        try:
            return self.cache.arrays("lds", [file.identity, Store.open(folder).fingerprint()], compute)
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
        file, masks_key = self.files[self.default], str(self._first_source().get("masks_key", MASKS))
        targets = file.targets

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
    ) -> dict[str, Any] | None:
        """``subgroups``, what was found, and ``page``, how it is shown."""
        shown = next(one for one in attributions if one.name == self.embedded)
        label = column_named(columns, label_name)
        outside = [column for column in columns if column.description in (OF_FILE, OF_DATASET)]
        others = [c for c in columns if c.name in ("class", "group", "mean output", "sd of output") or c in outside]
        others = [c for c in others if c is not label]
        hidden = (
            label if label is not None and label.description != LEARNED else None
        )  # clusters are not to be the classes

        def compute() -> dict[str, Any] | None:
            found = groups.find(shown.embedding, hidden, n_clusters)
            if found is None:
                return None
            found = groups.scored(found, hidden, examples.features())
            page = groups.describe(shown.name, found, label, hidden, others, self.progress)
            return {"subgroups": found.to_dict(), "page": page}

        hashed = hashlib.sha256(
            b"".join(c.name.encode() + c.values.tobytes() for c in [*filter(None, [label]), *others])
        )
        facts = [shown.name, shown.file.identity, hashed.hexdigest(), n_clusters]
        found: dict[str, Any] | None = self.cache.json("groups", facts, compute)
        return found

    # -- the rest ---------------------------------------------------------------------------------------

    def _neighbouring_files(self) -> list[Path]:
        own = {file.path.resolve() for file in self.files.values()}
        return [path for path in self.root.glob("*.h5ad") if path.resolve() not in own]

    def _task(self) -> Any:
        """The `TrainRecipe` of the default attribution's store, None when it cannot be had."""
        if self.run is None or self.data is None or self.run.task != _TASK:
            return None
        values = self.run.recipe.get(self.run.attributions[self.default].store)
        if not isinstance(values, Mapping) or (":" in str(values.get("architecture", "")) and not self.trust):
            return None
        from datamodels.training.ensemble import TrainRecipe
        from datamodels.training.outputs import OUTPUTS
        from datamodels.training.recipes import Recipe

        if self._key().removeprefix("train_") not in OUTPUTS:
            return None
        try:
            return TrainRecipe(Recipe().with_parameters(values), str(self.run.dataset))
        except RequestError:
            return None

    def _version(self) -> str:
        facts = [file.identity for file in self.files.values()]
        text = json.dumps([facts, sorted(self.cache.used)])
        if self.run is not None:
            text += (self.root / FILE).read_text()
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


def _groups_them(column: Column) -> bool:
    """Whether a column of categories tells groups of examples, and not single ones, as names do."""
    return column.n_known <= max(2, len(column.values) / 3)
