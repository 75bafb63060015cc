"""The permutation null: would datamodels of shuffled labels look the same?"""

from __future__ import annotations

import hashlib
import json
import warnings
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.applications.clustering import unit_rows
from datamodels.applications.validation.shuffling import Exchange, Groups, exchange
from datamodels.datasets import Dataset
from datamodels.design import Design, label_codes
from datamodels.errors import CampaignError, ConstantColumnWarning, ConvergenceWarning, RequestError
from datamodels.executors.base import usual_jobs
from datamodels.progress import Progress
from datamodels.regression.estimators import Ridge
from datamodels.regression.fit import fit_problem
from datamodels.regression.problem import Problem
from datamodels.regression.source import Source
from datamodels.spec import Spec
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.task import BlockTask

_FEWEST_MODELS = 20
_TAG = 0x73687566


def shared_support(weights: NDArray[Any], labels: ArrayLike) -> float:
    """The statistic: how far targets rest on the same training examples, classes weighted alike.

    ``T = (|v|² - sum a_j²) / (1 - sum a_j²)`` with ``v = sum a_j u_j``, where u_j is the datamodel of target j scaled to length 1
    and ``a_j = 1 / (classes * targets of its class)``: the weighted mean cosine between the datamodels of two different targets.

    Where labels can be learnt, the examples that teach the rule help all targets, and T > 0. Where they were shuffled, whether a
    training example helps a held-out target or harms it is a coin flip of the target's own label, cosines cancel and T is near 0.

    Parameters
    ----------
    weights
        (n_train, n_targets), fitted to margins: outputs that are larger when the prediction is right.
    labels
        (n_targets,) class of each target.
    """
    codes = np.asarray(label_codes(np.asarray(labels)))
    sizes = np.bincount(codes)
    shares = 1 / (len(sizes) * sizes[codes])
    own = float(shares @ shares)
    mean = shares @ unit_rows(np.asarray(weights).T)
    return float((mean @ mean - own) / (1 - own)) if own < 1 else 0.0


@dataclass(frozen=True)
class ShuffledLabels:
    """The block task of all models: row ``s * models + i`` is model i under shuffle s. Shuffle 0 is the labels as they are.

    All shuffles share the subsets, first weights and orders of `design`: they differ in labels alone.
    """

    task: TrainRecipe
    design: Design
    seed: int
    exchange: Exchange

    @property
    def gpus(self) -> tuple[str, ...]:
        return self.task.gpus

    def dataset(self, shuffle: int) -> Dataset:
        """The data with labels shuffled: those of the training examples and, where they are targets, of the test examples."""
        data = self.task.data
        if shuffle == 0:
            return data
        n, rng = len(data.train), np.random.default_rng([self.seed, _TAG, shuffle])
        both = len(self.exchange.units) > n
        labels = self.exchange.shuffled(np.concatenate([data.train.y, data.test.y]) if both else data.train.y, rng)
        test = replace(data.test, y=labels[n:]) if both else data.test
        return replace(data, train=replace(data.train, y=labels[:n]), test=test)

    def __call__(self, indices: NDArray[np.int64]) -> dict[str, Any]:
        models = self.design.n_models
        shuffles = np.asarray(indices) // models
        out: dict[str, list[NDArray[Any]]] = {}
        for shuffle in np.unique(shuffles):  # indices ascend, so parts follow each other
            rows = np.asarray(indices)[shuffles == shuffle] % models
            masks = np.stack([self.design.mask(int(row)) for row in rows])
            found = replace(self.task, dataset=self.dataset(int(shuffle)))(rows, masks, self.design)
            for key, values in found.items():
                out.setdefault(key, []).append(values)
        return {key: np.concatenate(values) for key, values in out.items()}

    @cached_property
    def fingerprint(self) -> str:
        """A hash of all that the outputs depend on."""
        facts = [self.task.fingerprint, self.design.identity, self.design.n_models, self.seed, self.exchange]
        return hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]


@dataclass(frozen=True, eq=False)
class PermutationNull:
    """A statistic of the labels as they are, against the same of shuffled labels.

    Attributes
    ----------
    observed
        `shared_support` of the labels as they are.
    null
        (shuffles,) the same of shuffled labels.
    models
        Models per shuffle, and for the labels as they are.
    shared_with
        What the null depends on besides chance: features, number of labels of each class, recipe, design. Another labelling of
        equal `shared_with` may use the same null.
    exchanged
        Between what labels were shuffled.

    Raises
    ------
    RequestError
        when a statistic is NaN or infinite.
    """

    observed: float
    null: NDArray[np.float64] = field(repr=False)
    models: int
    shared_with: str = field(repr=False)
    exchanged: str = "examples"

    def __post_init__(self) -> None:
        broken = np.flatnonzero(~np.isfinite(np.r_[self.observed, self.null]))
        if len(broken):
            raise RequestError(
                f"{len(broken)} of {1 + len(self.null)} statistics are NaN or infinite (the first is of "
                f"{'the labels as they are' if broken[0] == 0 else f'shuffle {broken[0]}'}), which have no rank: some models gave such "
                "outputs; choose a smaller learning rate, or clean the features, and another folder"
            )

    @property
    def p(self) -> float:
        """``(1 + shuffles at or above observed) / (1 + shuffles)``."""
        return float((1 + (self.null >= self.observed).sum()) / (1 + len(self.null)))

    def words(self, level: float = 0.05) -> str:
        """What the result means at a `level` of p, and what it does not."""
        facts = f"p = {self.p:.3g} from {len(self.null)} shuffles over {self.exchanged}, of {self.models} models each"
        if self.p <= level:
            return (
                f"The datamodels depend on the labels, and with them the embedding ({facts}): shuffled labels of the same examples "
                "do not give datamodels that agree as these do. This does not show that subgroups exist; stability, confounders and "
                "transfer speak to that."
            )
        return (
            f"Datamodels of shuffled labels agree as well as these do ({facts}): nothing shows that the embedding depends on the "
            "labels, so structure in it is that of the features or of chance. With few models or shuffles the test may miss it."
        )

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        facts = {
            "observed": self.observed,
            "p": self.p,
            "shuffles": len(self.null),
            "models": self.models,
            "exchanged": self.exchanged,
        }
        return {**facts, "null": self.null.tolist(), "shared_with": self.shared_with}


def permutation_null(
    task: TrainRecipe,
    *,
    folder: str | Path,
    shuffles: int = 99,
    models: int = 300,
    alpha: float = 0.5,
    design: Design | None = None,
    groups: Groups = None,
    groups_test: ArrayLike | None = None,
    within: ArrayLike | None = None,
    within_test: ArrayLike | None = None,
    shared: PermutationNull | None = None,
    seed: int = 0,
    jobs: int | None = None,
    executor: str = "local",
    progress: bool = True,
) -> PermutationNull:
    """Test whether datamodels depend on the labels.

    Trains ``models * (1 + shuffles)`` models: for the labels as they are and for each shuffle of them, on the same subsets, with
    the same first weights and orders. Ridge datamodels are fitted to the margins of each, and `shared_support` is computed of each
    alike; the observed statistic comes from as many models as those of the null, never from a larger run.

    Valid because labels that are independent of the features (given the strata) are exchangeable: the statistic is one function
    of the labels, so the observed one and those of the shuffles are exchangeable too, and p is uniform on
    ``1 / (1 + shuffles), ..., 1``. What is shuffled must be exchangeable. Cells of one donor are alike, so they are not
    exchangeable with those of others; with `groups`, those that have one label exchange it as wholes, and groups of several labels
    exchange them among their own examples. Where some groups are mixed, whole groups exchange with those of similar size (1, 2 to 3,
    4 to 7, 8 examples or more), since small ones may have one label by chance.

    Parameters
    ----------
    task
        How models are trained, and on what. Targets are examples of its first split; its outputs are not looked at.
    folder
        Of the store; called again with the same arguments, only missing models are trained.
    shuffles, models
        How many. p is at least ``1 / (1 + shuffles)``.
    alpha
        Share of the training examples in a subset, for a fixed-size design.
    design
        Instead of alpha: subsets are drawn as here, the first `models` of them.
    groups, groups_test
        (n_train,) and (n_test,) donor, family or batch of each example, by default those of the dataset's splits; one name is one
        group in both splits. False: there are none, examples are exchangeable one by one.
    within, within_test
        (n_train,) and (n_test,) strata, such as sites: labels, of examples or of whole groups, are shuffled within each. By
        default over the whole split.
    shared
        A result for another labelling of the same features with equally many labels of each class (among groups, where these are
        shuffled), same task and design: its null is used, and no shuffle is trained. Draws of one null serve all labellings, since
        all of them are shuffles of each other.
    seed
        Of shuffles, subsets and training.
    jobs, executor
        Where models are trained, as in `datamodels.train`.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when options are out of range, so little can be shuffled that p cannot reach .05, `shared` is of other data, or a statistic
        is not finite.
    CampaignError
        when models could not be trained.
    """
    if shuffles < 19 or models < _FEWEST_MODELS:
        raise RequestError(
            f"shuffles is {shuffles} and models {models}; give 19 shuffles or more, so that p can reach .05, and {_FEWEST_MODELS} "
            "models or more"
        )
    base = (
        Design(n_train=task.n_train, alpha=alpha, n_models=models, seed=seed)
        if design is None
        else design.with_models(models)
    )
    if base.n_train != task.n_train:
        raise RequestError(f"the design has {base.n_train} training examples, the task {task.n_train}")
    split = task.splits[0]
    wanted = replace(task, outputs=("margins",), splits=(split,))
    how = exchange(task.data, split, groups=groups, groups_test=groups_test, within=within, within_test=within_test)
    job = ShuffledLabels(wanted, base, seed, how)
    of = _shared_with(job)
    if shared is not None and shared.shared_with != of:
        raise RequestError(
            "the shared null is of other features, class counts, strata, recipe, subsets or number of models: run the shuffles "
            "(leave shared out)"
        )
    count = 1 if shared is not None else 1 + shuffles
    outputs = _train(job, count, Path(folder), jobs, executor, progress)
    values = _statistics(job, outputs, count, progress)
    return PermutationNull(float(values[0]), values[1:] if shared is None else shared.null, models, of, how.words)


def _shared_with(job: ShuffledLabels) -> str:
    """A hash of everything but the order of labels within strata."""
    data, how = job.task.data, {name: value for name, value in job.task.to_dict().items() if name != "dataset"}
    y = np.concatenate([data.train.y, data.test.y])[: len(job.exchange.units)]
    parts = [hashlib.sha256(split.x.tobytes()).hexdigest() for split in (data.train, data.test)]
    facts = [
        [*parts, job.exchange, job.exchange.counts(y).tolist()],
        how,
        job.task.recipe.identity,
        job.design.identity,
        job.design.n_models,
    ]
    return hashlib.sha256(json.dumps(facts, default=str).encode()).hexdigest()


def _train(
    job: ShuffledLabels, count: int, folder: Path, jobs: int | None, executor: str, progress: bool
) -> NDArray[np.float32]:
    """Margins (count * models, n_targets)."""
    rows = count * job.design.n_models
    workers = 1 if executor == "inline" else jobs or usual_jobs(job.gpus)
    block = BlockTask(job, min(job.task.block_size, -(-rows // workers)))
    store = Store.open_or_create(folder, spec=Spec(num_models=rows, schema=job.task.schema))
    summary = train(store, block, executor=executor, jobs=jobs, progress=progress)
    if not summary.ok:
        raise CampaignError(
            f"{len(summary.failed)} of {rows} models failed; their logs are in {folder / 'failures'}; call it again to retry"
        )
    return store.array(*job.task.schema)


def _statistics(job: ShuffledLabels, outputs: NDArray[np.float32], count: int, progress: bool) -> NDArray[np.float64]:
    """`shared_support` of each shuffle, (count,)."""
    models, masks = job.design.n_models, job.design.masks()
    rows = np.arange(models)
    split = job.task.splits[0]
    values = np.empty(count)
    with Progress("fitting shuffles", count, "shuffles", show=progress) as bar, warnings.catch_warnings():
        warnings.simplefilter("ignore", ConstantColumnWarning)
        warnings.simplefilter("ignore", ConvergenceWarning)
        for shuffle in range(count):
            own = np.asarray(outputs[shuffle * models : (shuffle + 1) * models])
            source = Source.from_arrays(masks, own)
            source = replace(source, units=job.design.units(rows), mask_numbers=rows // job.design.replicates)
            problem = Problem.assemble([source], None, split == "train")
            weights = fit_problem(problem, Ridge(), progress=False).weights
            values[shuffle] = shared_support(weights, getattr(job.dataset(shuffle), split).y)
            bar.advance()
    return values
