"""Everything that the explorer shows, gathered from a run's folder or from attribution files. No web in it."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.errors import DatamodelsError, RequestError
from datamodels.explorer import measures
from datamodels.explorer.cache import Cache
from datamodels.explorer.columns import Column
from datamodels.explorer.examples import Examples
from datamodels.explorer.results import Beside
from datamodels.explorer.weights import Row, TrainMajor, WeightsFile, strongest
from datamodels.run import Run
from datamodels.store import Store

Side = Literal["targets", "train"]
SIDES: tuple[Side, ...] = get_args(Side)
CUT = 2000  # weights of a row that are given at most
_NEAREST = 12
_UMAP_LARGEST = 20_000
_INTERVALS = 200
_CALIBRATION = ("slope", "slope_se", "effect_sd", "noise_sd", "calibration_df")


@dataclass(eq=False)
class Shown:
    """One attribution: its file, its weights by training example, the sums of them, and its LDS where it was judged."""

    name: str
    file: WeightsFile
    by_train: TrainMajor
    sums: dict[str, NDArray[Any]]
    embedding: NDArray[np.float64]
    lds: dict[str, NDArray[Any]] | None = None

    @property
    def calibrated(self) -> bool:
        return all(name in self.file.target_facts for name in _CALIBRATION)

    @cached_property
    def half_widths(self) -> NDArray[np.float64]:
        """What the interval of `datamodels.regression.calibration.removal` is made of, (2, n_targets): half its width for one example
        of weight 0, a, and for a summed weight of 1 whose examples miss nothing, b. For k examples whose weights sum to w it is
        sqrt(k a² + (b w)²)."""
        from datamodels.regression.calibration import removal

        names = {name: np.asarray(self.file.target_facts[name], np.float64) for name in _CALIBRATION}

        def half(weight: float, effect: NDArray[np.float64]) -> NDArray[np.float64]:
            weights, facts = np.full((1, self.file.n_targets), weight, np.float32), {**names, "effect_sd": effect}
            found = removal(Attribution(weights, self.file.bias, target_facts=facts), np.array([0]), add=True)
            return found.high - found.predicted

        return np.stack([half(0.0, names["effect_sd"]), half(1.0, np.zeros(self.file.n_targets))])

    def about(self) -> dict[str, Any]:
        """JSON-ready."""
        estimator = self.file.provenance.get("estimator", {})
        fitted = bool(self.file.provenance.get("sources"))
        score = None
        if self.lds is not None:
            score = {
                name: _plain(self.lds[name]) for name in ("value", "low", "high", "ceiling", "pearson", "r2", "models")
            }
        most = int(self.sums["n_nonzero"].max(initial=0))
        return {
            "name": self.name,
            "estimator": str(estimator.get("name", "unknown")),
            "units": str(self.file.provenance.get("units", "output units" if fitted else "arbitrary")),
            "lds": score,
            "calibrated": self.calibrated,
            "from_models": fitted and "n_checkpoints" not in self.file.provenance,
            "n_nonzero_median": float(np.median(self.sums["n_nonzero"])),
            "cut": CUT if most > CUT else None,
        }


@dataclass(eq=False)
class Content:
    """What is shown. Attributions are of the same targets and training examples; maps and columns are of these.

    Attributes
    ----------
    command
        What serves it again.
    run
        The run, also where it was made of files.
    attributions
        The first is the default one.
    columns, examples
        By side.
    embedded
        Name of the attribution of the default map and of the subgroups.
    outputs
        What `measures.outputs_of` found, or None.
    version
        A hash of all that is shown.
    groups, subgroups
        The table of clusters, as the page shows it; the clusters and their scores, as `Subgroups.to_dict` gives them.
    task, store
        How the models of the default attribution are trained, and where they are; None when it cannot be told.
    together
        Name of the column of training examples that are in the training set together, where the design has such groups.
    n_models
        Complete models of all stores of the run, or rows that the first file's fit has used.
    """

    title: str
    created: str
    version: str
    command: str
    cache: Cache
    run: Run
    attributions: list[Shown]
    embedded: str
    columns: dict[Side, list[Column]]
    examples: dict[Side, Examples]
    labels: dict[Side, str | None]
    facts: list[tuple[str, str]]
    outputs: dict[str, NDArray[Any]] | None = None
    output_name: str = "output"
    groups: dict[str, Any] | None = None
    subgroups: dict[str, Any] | None = None
    n_models: int | None = None
    curve: dict[str, Any] | None = None
    beside: dict[str, Beside] = field(default_factory=dict)
    usual_distance: float = 1.0
    task: Any = None
    store: Store | None = None
    together: str | None = None

    def __post_init__(self) -> None:
        self._drawing, self._painting, self._comparing = threading.Lock(), threading.Lock(), threading.Lock()

    @property
    def n_targets(self) -> int:
        return self.attributions[0].file.n_targets

    @property
    def n_train(self) -> int:
        return self.attributions[0].file.n_train

    @property
    def n_features(self) -> int:
        looks = self.examples["train"].looks
        return 0 if looks is None else int(looks["n_features"])

    def size(self, side: Side) -> int:
        return self.n_targets if side == "targets" else self.n_train

    def attribution(self, name: str) -> Shown:
        """By name.

        Raises
        ------
        RequestError
            when there is none.
        """
        for shown in self.attributions:
            if shown.name == name:
                return shown
        raise RequestError(f"attribution {name!r} is unknown; legal: {', '.join(s.name for s in self.attributions)}")

    # -- what there is ----------------------------------------------------------------------------------

    def maps(self) -> list[dict[str, str]]:
        """Name, method and attribution of each map; that of the subgroups' attribution is first."""
        methods = ["PCA"] if self.no_umap() else ["PCA", "UMAP"]
        order = sorted(self.attributions, key=lambda shown: shown.name != self.embedded)
        return [
            {"name": f"{method}, {shown.name}", "method": method, "attribution": shown.name}
            for shown in order
            for method in methods
        ]

    def no_umap(self) -> str | None:
        """Why no UMAP is offered, None where it is."""
        if not measures.has_umap():
            return "umap-learn is not installed"
        few, many = 4, _UMAP_LARGEST
        return None if few <= self.n_targets <= many else f"{self.n_targets:,} targets are not {few} to {many:,}"

    def meta(self) -> dict[str, Any]:
        """The first thing that a page asks for, JSON-ready."""
        columns = {side: [column.about() for column in self.columns[side]] for side in SIDES}
        known = [column["name"] for column in columns["targets"]]
        grouped = self.groups["column"] if self.groups else None
        colour = grouped if self.groups and self.groups["given"] else self.labels["targets"] or grouped
        sides: dict[str, dict[str, Any]] = {
            side: {
                "columns": columns[side],
                "kind": self.examples[side].kind,
                "ids": None if self.examples[side].names_given is None else True,
                "label": self.labels[side],
            }
            for side in SIDES
        }
        sides["train"]["together"] = self.together
        sides["targets"]["train_columns"] = self.attributions[0].file.train_columns is not None
        maps = self.maps()
        return {
            "title": self.title,
            "version": self.version,
            "n_targets": self.n_targets,
            "n_train": self.n_train,
            "n_models": self.n_models,
            "created": self.created,
            "command": self.command,
            "commands": self.run.commands,
            "facts": [list(fact) for fact in self.facts],
            "attributions": [shown.about() for shown in self.attributions],
            "default": {
                "attribution": self.attributions[0].name,
                "map": maps[0]["name"],
                "colour": colour or (known[0] if known else None),
            },
            "maps": maps,
            **sides,
            "sprites": {side: self.examples[side].sheets() for side in SIDES},
            "groups": self.groups,
            "can_verify": self.task is not None,
            "output_name": self.output_name,
            "curve": self.curve,
        }

    # -- arrays -----------------------------------------------------------------------------------------

    def map(self, number: int) -> NDArray[np.float32]:
        """Coordinates (n_targets, 2) of a map. UMAP is computed when it is first asked for."""
        about = self.maps()[number]
        shown = self.attribution(about["attribution"])
        if about["method"] == "PCA":
            flat = np.zeros((self.n_targets, 2), dtype=np.float32)
            flat[:, : min(2, shown.embedding.shape[1])] = shown.embedding[:, :2]
            return flat
        with self._drawing:
            made = self.cache.arrays("umap", [shown.file.identity], lambda: {"xy": measures.umap(shown.embedding)})
        return made["xy"]

    def is_ready(self, number: int) -> bool:
        """Whether a map is there without being computed."""
        about = self.maps()[number]
        file = self.attribution(about["attribution"]).file
        return about["method"] == "PCA" or self.cache.path("umap", "npz", file.identity).exists()

    def weights(self, shown: Shown, side: Side, index: int, k: int | None = CUT) -> Row:
        """The strongest nonzero weights of a target (indices of training examples) or of a training example (of targets)."""
        row = shown.file.row(index) if side == "targets" else shown.by_train.row(index)
        return strongest(row, k)

    def sprite(self, side: Side, page: int) -> bytes:
        """A page of pictures as PNG, kept once it was drawn."""

        def draw(to: Path) -> None:
            to.write_bytes(self.examples[side].sheet(page))

        with self._painting:
            return self.cache.file(self.sprite_path(side, page), draw).read_bytes()

    def sprite_path(self, side: Side, page: int) -> Path:
        """Where a page of pictures is kept."""
        return self.cache.path("pictures", "png", self.version, side, page)

    def agreement(self, first: Shown, second: Shown) -> dict[str, NDArray[np.float32]]:
        """What `measures.agreement` says of two attributions."""
        facts = [first.file.identity, second.file.identity]
        with self._comparing:
            return self.cache.arrays(
                "agreement", facts, lambda: measures.agreement(first.file, second.file, lambda done: None)
            )

    def whatif(self, shown: Shown, examples: ArrayLike, *, add: bool) -> NDArray[np.float32]:
        """Predicted change of every output when examples are removed (or added): rows ``predicted``, ``low``, ``high`` (3, n_targets).

        Raises
        ------
        RequestError
            when examples do not exist or come twice.
        """
        members = np.asarray(examples)
        if members.ndim != 1 or (len(members) and members.dtype.kind not in "iu"):
            raise RequestError("examples must be a list of whole numbers: training examples")
        members = members.astype(np.int64)
        if len(members) and not 0 <= members.min() <= members.max() < self.n_train:
            raise RequestError(f"examples must lie in 0..{self.n_train - 1}")
        if len(np.unique(members)) != len(members):
            raise RequestError("an example was given twice; it can leave the training set once")
        change = shown.by_train.sum(members)
        out = np.full((3, self.n_targets), np.nan, dtype=np.float32)
        out[0] = change if add else 0 - change
        if shown.calibrated and len(members):
            missed, slope = shown.half_widths
            wide = np.sqrt(len(members) * missed**2 + (slope * change) ** 2)
            out[1:] = out[0] - wide, out[0] + wide
        return out

    # -- pages ------------------------------------------------------------------------------------------

    def details(self, side: Side, index: int, *, copies: bool = True) -> dict[str, Any]:
        """What the page of one target or one training example shows beside weights and columns, JSON-ready; training examples
        with their near-duplicates, unless `copies` is off."""
        out = self.examples[side].details(index)
        if side == "train":
            found = self.examples["train"].duplicates(index, self.usual_distance) if copies else []
            return {**out, "duplicates": found} if found else out
        if self.outputs is not None and self.outputs["runs"][index] > 0:
            names = ("mean", "sd", "low", "high", "counts", "runs")
            out["outputs"] = {name: _plain(self.outputs[name][index]) for name in names}
        fits = {shown.name: fit for shown in self.attributions if (fit := _fit(shown, index))}
        paths = {shown.name: path for shown in self.attributions if (path := _path(shown.file, index))}
        given = {name: item for name in self.beside if (item := self._intervals(name, index))}
        out.update({name: value for name, value in (("fit", fits), ("path", paths), ("intervals", given)) if value})
        out["nearest"] = self.nearest(index)
        return out

    def warm(self) -> None:
        """Load what the pages of examples need, so that the first of them does not wait for it."""
        with contextlib.suppress(DatamodelsError, OSError):
            for side in SIDES:
                self.details(side, 0)

    def nearest(self, target: int, k: int = _NEAREST) -> list[dict[str, Any]]:
        """Targets whose datamodels are most alike: index, and cosine of their principal components."""
        rows = self.attribution(self.embedded).embedding
        norms = np.linalg.norm(rows, axis=1)
        product, scale = rows @ rows[target], norms * norms[target]
        similarity = np.divide(product, scale, out=np.zeros(len(rows)), where=scale > 0)
        order = [int(i) for i in np.argsort(-similarity, kind="stable")[: k + 1] if i != target][:k]
        return [{"index": i, "similarity": float(similarity[i])} for i in order]

    def _intervals(self, name: str, target: int) -> dict[str, list[Any]] | None:
        """Intervals and selection of the strongest weights of a target."""
        indices, _ = strongest(self.attribution(name).file.row(target), _INTERVALS)
        return self.beside[name].of(target, indices)


def _fit(shown: Shown, target: int) -> dict[str, Any]:
    """Facts of a target's fit that are known."""
    facts = shown.file.target_facts
    out: dict[str, Any] = {name: _plain(facts[name][target]) for name in ("lam", "val_r2", "gap") if name in facts}
    out["n_nonzero"] = int(shown.sums["n_nonzero"][target])
    if shown.lds is not None:
        out["lds"] = _plain(shown.lds["per_target"][target])
    return out


def _path(file: WeightsFile, target: int) -> dict[str, Any] | None:
    """The λ that were tried: value, error on held-out rows, nonzero weights; those that were not reached are left out."""
    facts = file.target_facts
    errors = next((facts[name] for name in ("path_val_error", "path_loo") if name in facts), None)
    if errors is None or "path_lam" not in facts:
        return None
    lams, error = facts["path_lam"][target], errors[target]
    known = np.isfinite(lams) & np.isfinite(error)
    out = {"lam": lams[known].tolist(), "error": error[known].tolist()}
    if "path_n_nonzero" in facts:
        out["n_nonzero"] = facts["path_n_nonzero"][target][known].tolist()
    if "lam" in facts and known.any():
        out["chosen"] = int(np.abs(lams[known] - facts["lam"][target]).argmin())
    return out


def _plain(value: Any) -> Any:
    """A number or an array as JSON has it; None for NaN and inf."""
    found = np.asarray(value).tolist()
    return None if isinstance(found, float) and not np.isfinite(found) else found


def check_side(side: str) -> Side:
    if side not in SIDES:
        raise RequestError(f"side {side!r} is unknown; legal: {', '.join(SIDES)}")
    return side


def nearest_of_all(rows: NDArray[np.float64], k: int) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """The k nearest other rows of each, (rows, k), and their Euclidean distances."""
    from sklearn.neighbors import NearestNeighbors

    count = min(k, len(rows) - 1)
    distances, indices = NearestNeighbors(n_neighbors=count).fit(rows).kneighbors()
    return indices.astype(np.int64), distances


def column_named(columns: Sequence[Column], name: str | None) -> Column | None:
    return next((column for column in columns if column.name == name), None)
