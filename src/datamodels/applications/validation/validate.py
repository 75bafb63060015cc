"""All checks of one clustering, and what they say in words."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.applications.clustering import as_labels
from datamodels.applications.refits import Source, as_problem
from datamodels.applications.subgroups import Subgroups
from datamodels.applications.validation.confounding import Confounders, confounding
from datamodels.applications.validation.markers import Markers, markers
from datamodels.applications.validation.permutation import PermutationNull, permutation_null
from datamodels.applications.validation.shuffling import Groups as Donors
from datamodels.applications.validation.shuffling import TooFewLabellings, donors_of
from datamodels.applications.validation.stability import ClusterStability, cluster_stability
from datamodels.applications.validation.transfer import Transfer, UntestableTransferError, has_pairs, transfer
from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.regression.estimator import Estimator
from datamodels.regression.problem import Problem
from datamodels.training.ensemble import TrainRecipe

_DRAWN = ("fixed_size", "bernoulli", "grouped", "stratified", "antithetic")
_ROWS = 256  # models of each store that are asked whose donors they saw
_REPEATS = 0.9  # Cramér's V from which clusters are the classes


@dataclass(frozen=True)
class Verdict:
    """The answer to one question.

    Attributes
    ----------
    question
        What is asked.
    holds
        None where it was not tested.
    words
        The answer with its numbers.
    """

    question: str
    holds: bool | None
    words: str

    @property
    def word(self) -> str:
        """``holds``, ``does not hold`` or ``not tested``."""
        return "not tested" if self.holds is None else "holds" if self.holds else "does not hold"


@dataclass(frozen=True, eq=False)
class Validation:
    """What was checked of a clustering. A part that is None was not tested.

    Attributes
    ----------
    groups
        The clustering.
    stability, null, confounders, transfer, markers
        What `cluster_stability`, `permutation_null`, `confounding`, `transfer` and `markers` returned.
    labels
        (n_targets,) class of each target.
    level
        Of tests: p and q at or below it count.
    no_null, no_transfer
        Why they are None, where they were tried.
    donors_seen
        How many targets are judged by models that saw other examples of the target's donor (group); None where donors are not known.
    """

    groups: Subgroups
    stability: ClusterStability
    null: PermutationNull | None = None
    confounders: Confounders | None = None
    labels: NDArray[Any] | None = None
    transfer: Transfer | None = None
    markers: Markers | None = None
    level: float = 0.05
    no_null: str | None = None
    no_transfer: str | None = None
    donors_seen: int | None = None

    def verdicts(self) -> list[Verdict]:
        """One per question."""
        return [self._stable(), self._apart(), self._labels(), self._hidden(), self._confounded(), self._matters()]

    @property
    def holds(self) -> bool:
        """Whether the labels were shuffled, and nothing that was tested failed."""
        return self.null is not None and all(one.holds is not False for one in self.verdicts())

    def summary(self) -> str:
        """One sentence or two."""
        verdicts = self.verdicts()
        failed = [one.question for one in verdicts if one.holds is False]
        untested = [one.question for one in verdicts if one.holds is None]
        if failed:
            text = f"Do not report these subgroups as they are: {len(failed)} of {len(verdicts) - len(untested)} checks failed"
            text += f" ({'; '.join(failed)})."
        elif self.holds:
            text = "The subgroups passed every check that was made."
        else:
            text = "Nothing failed, but too little was tested to report these subgroups."
        return text + (f" Not tested: {'; '.join(untested)}." if untested else "")

    def warning(self) -> str:
        """What to know of donors before reading on; nothing where models keep them together, or they are not known."""
        if not self.donors_seen:
            return ""
        return (
            f"Donors were not kept together: {self.donors_seen} of {len(self.groups.clusters)} targets are judged by models that saw other "
            "examples of the target's donor, so what a donor's examples share can make a cluster. To rule that out, train on subsets "
            "that take donors whole: --kind grouped, Design(kind='grouped', groups=...)."
        )

    def report(self) -> str:
        """The checks in plain words, each with its numbers."""
        lines = [f"{self.groups.n_clusters} clusters of {len(self.groups.clusters)} targets ({self.groups.method})", ""]
        lines += [self.summary(), "", *([self.warning(), ""] if self.warning() else [])]
        lines += [f"{one.question}: {one.word.upper()}. {one.words}" for one in self.verdicts()]
        if self.markers is not None:
            lines += ["", "Markers (they describe: the clusters were found through models of the same features)"]
            for number, count in zip(self.markers.clusters, self.markers.counts(self.level), strict=True):
                top = ", ".join(
                    f"{row['feature']} (AUC {row['auc']:.2f})" for row in self.markers.of(int(number), 5, self.level)
                )
                lines.append(f"  cluster {number}: {count} features at FDR {self.level:g}{f': {top}' if top else ''}")
        return "\n".join(lines)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        parts = {name: getattr(self, name) for name in ("stability", "null", "confounders", "transfer", "markers")}
        return {
            "holds": self.holds,
            "summary": self.summary(),
            "warning": self.warning(),
            "verdicts": [
                {"question": one.question, "verdict": one.word, "words": one.words} for one in self.verdicts()
            ],
            "n_clusters": self.groups.n_clusters,
            **{name: None if part is None else part.to_dict() for name, part in parts.items()},
        }

    def _stable(self) -> Verdict:
        found = self.stability
        each = ", ".join(f"{one.cluster} {one.word} ({one.jaccard.value:.2f})" for one in found.clusters)
        words = (
            f"Clusterings of refits on disjoint halves of the models agree to an adjusted Rand index of {found.ari} over "
            f"{found.n_refits} refits. By cluster, with mean Jaccard index: {each}."
        )
        return Verdict("Clusters come back", all(one.word == "stable" for one in found.clusters), words)

    def _apart(self) -> Verdict:
        found = self.stability.separation
        words = (
            f"{self.groups.n_clusters} clusters explain {found.explained:.0%} of the embedding's variance, of one Gaussian cloud of the "
            f"same shape {found.one_cloud:.0%} (p = {found.p:.2g})"
        )
        holds = found.p <= self.level
        return Verdict(
            "Clusters are separate", holds, f"{words}{'' if holds else ': they may be cuts through a continuum'}."
        )

    def _labels(self) -> Verdict:
        question = "Datamodels depend on the labels"
        if self.null is None:
            return Verdict(question, None, self.no_null or "It needs the recipe, to train models on shuffled labels.")
        return Verdict(question, self.null.p <= self.level, self.null.words(self.level))

    def _hidden(self) -> Verdict:
        question = "Clusters are more than the classes"
        if self.labels is None:
            return Verdict(question, None, "It needs the labels of the targets.")
        classes = len(np.unique(self.labels))
        (found,) = confounding(self.groups.clusters, {"class": self.labels.astype(str)}).columns
        words = f"{self.groups.n_clusters} clusters, {classes} {'class' if classes == 1 else 'classes'}; between them Cramér's V = {found.effect:.2f}"
        if found.effect >= _REPEATS and self.groups.n_clusters <= classes:
            return Verdict(question, False, f"{words}: the clusters are the labels again, nothing hidden.")
        return Verdict(question, True, f"{words}.")

    def _confounded(self) -> Verdict:
        question = "Clusters are no known confounder"
        if self.confounders is None:
            return Verdict(question, None, "It needs columns: batch, donor, library size.")
        named = self.confounders.named(self.level)
        if named:
            return Verdict(question, False, f"Confounded with {'; '.join(one.words() for one in named)}.")
        largest = max(self.confounders.columns, key=lambda one: one.effect)
        return Verdict(
            question, True, f"None of {len(self.confounders.columns)} columns; the largest is {largest.words()}."
        )

    def _matters(self) -> Verdict:
        question = "What is learnt from one subgroup misses another"
        if self.transfer is None:
            return Verdict(
                question,
                None,
                self.no_transfer or "It needs the recipe, and subgroups of training examples that share a class.",
            )
        found = self.transfer
        names = found.class_names
        worst = max(found.pairs, key=lambda pair: pair.drop.value)
        words = (
            f"In {len(found.dropping)} of {len(found.pairs)} pairs the drop is sure. The largest: class {names[worst.label]}, trained on "
            f"cluster {worst.source}, tested on {worst.to}: accuracy {worst.drop.value:.2f} less ({worst.drop.low:.2f} to {worst.drop.high:.2f}) than "
            f"from as many random members."
        )
        if found.lone:
            lone = ", ".join(f"cluster {one} of class {names[label]}" for label, one in found.lone)
            words += f" Not tested, for all members are of one donor: {lone}."
        return Verdict(question, bool(found.dropping), words)


def validate(
    models: Source,
    groups: Subgroups,
    *,
    labels: ArrayLike | None = None,
    columns: Mapping[str, ArrayLike] | None = None,
    x: Any = None,
    feature_names: Any = None,
    task: TrainRecipe | None = None,
    folder: str | Path | None = None,
    n_refits: int = 20,
    shuffles: int = 99,
    null_models: int = 300,
    design: Design | None = None,
    donors: Donors = None,
    donors_test: ArrayLike | None = None,
    within: ArrayLike | None = None,
    within_test: ArrayLike | None = None,
    replicates: int = 10,
    estimator: Estimator | type[Estimator] | str | None = None,
    level: float = 0.05,
    seed: int = 0,
    jobs: int | None = None,
    executor: str = "local",
    progress: bool = True,
) -> Validation:
    """Run every check of a clustering that can be run with what is given.

    Parameters
    ----------
    models
        Stores or a `Problem`: the models that the clustered datamodels were fitted on, with the same targets.
    groups
        The clustering.
    labels
        (n_targets,) class of each target, to see whether clusters are just the classes, and to find markers within classes. By
        default those of the task.
    columns
        Name -> (n_targets,) what is known of the targets, for `confounding`.
    x, feature_names
        (n_targets, features) and (features,), for `markers`.
    task, folder
        The recipe, and a folder for stores, for `permutation_null` and, where targets are training examples, `transfer`.
    n_refits, estimator
        Of `cluster_stability`.
    shuffles, null_models, design
        Of `permutation_null`; subsets are by default drawn as those of the models were.
    within, within_test
        (n_train,) and (n_test,) strata, as in `permutation_null`.
    donors, donors_test
        (n_train,) and (n_test,), the `groups` of `permutation_null` and `transfer`: by default those of the dataset.
    replicates
        Of `transfer`.
    level
        Of tests: p and q at or below it count.
    seed
        Of all that is drawn.
    jobs, executor
        Where models are trained, as in `datamodels.train`.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when parts do not go together.
    """
    problem = as_problem(models, groups.provenance)
    if (task is None) != (folder is None):
        raise RequestError("task and folder go together: models on shuffled labels are trained into the folder")
    if not 0 < level < 1:
        raise RequestError(f"level is {level}; it must be between 0 and 1, for example 0.05")
    classes = _labels(labels, problem, task)
    confounders = None if columns is None else confounding(groups.clusters, columns, seed=seed)
    found = None if x is None else markers(x, groups.clusters, feature_names, labels=_compared(groups, classes))
    stability = cluster_stability(problem, groups, n_refits=n_refits, estimator=estimator, seed=seed, progress=progress)
    seen = None if task is None else _donors_seen(problem, task, donors, donors_test)
    null = moved = why = unmoved = None
    how: dict[str, Any] = {"seed": seed, "jobs": jobs, "executor": executor, "progress": progress}
    if task is not None and folder is not None:
        judged = replace(task, splits=("test" if problem.train_columns is None else "train",))
        try:
            null = permutation_null(
                judged, folder=Path(folder) / "shuffles", shuffles=shuffles, models=null_models,
                design=_drawn_as(problem) if design is None else design, groups=donors, groups_test=donors_test,
                within=within, within_test=within_test, **how,
            )  # fmt: skip
        except TooFewLabellings as error:
            if any(given is not None for given in (donors, donors_test, within, within_test)):
                raise
            why = f"The dataset's donors leave too little to shuffle: {error}."
        if problem.train_columns is not None and classes is not None:
            clusters = np.full(task.n_train, -1)
            clusters[problem.train_columns] = groups.clusters
            if has_pairs(clusters, task.data.train.y):
                try:
                    moved = transfer(
                        task, clusters, folder=Path(folder) / "transfer", groups=donors, replicates=replicates, **how
                    )
                except UntestableTransferError as error:
                    unmoved = f"{error}."
    return Validation(groups, stability, null, confounders, classes, moved, found, level, why, unmoved, seen)


def _labels(given: ArrayLike | None, problem: Problem, task: TrainRecipe | None) -> NDArray[Any] | None:
    """The class of each target, (n_targets,)."""
    if given is not None:
        return as_labels(given, problem.n_targets)
    if task is None:
        return None
    if problem.train_columns is not None:
        return task.data.train.y[problem.train_columns]
    if problem.targets.max() >= len(task.data.test):
        raise RequestError(
            f"the models have targets up to {problem.targets.max()}, the task {len(task.data.test)} test examples: give the task "
            "that the models were trained with"
        )
    return task.data.test.y[problem.targets]


def _donors_seen(problem: Problem, task: TrainRecipe, donors: Donors, donors_test: ArrayLike | None) -> int | None:
    """How many targets are judged by a model that saw other examples of the target's donor; None where donors are not known."""
    data, own = task.data, problem.train_columns
    known = donors_of([data.train] if own is not None else [data.train, data.test], donors, donors_test)
    if known is None or problem.n_train != len(data.train):
        return None
    trained, of_targets = known[: len(data.train)], known[own if own is not None else len(data.train) + problem.targets]
    members = np.zeros((len(trained), known.max() + 1), dtype=np.float32)
    members[np.arange(len(trained)), trained] = 1
    seen = np.zeros(problem.n_targets, dtype=np.bool_)
    for source in problem.sources:
        rows = source.rows[:_ROWS]
        masks = np.asarray(source.masks(int(rows[0]), int(rows[-1]) + 1))[rows - rows[0]].astype(np.float32)
        judging = np.ones((len(rows), len(seen)), np.bool_) if own is None else masks[:, own] == 0
        seen |= (judging & ((masks @ members)[:, of_targets] > 0)).any(axis=0)
    return int(seen.sum())


def _compared(groups: Subgroups, labels: NDArray[Any] | None) -> NDArray[Any] | None:
    """Labels to find markers within, where every cluster has others of its class to be compared with."""
    if labels is None:
        return None
    for number in np.unique(groups.clusters[groups.clusters >= 0]):
        members = groups.clusters == number
        names, counts = np.unique(labels[members], return_counts=True)
        if (members | (labels != names[counts.argmax()])).all():
            return None
    return labels


def _drawn_as(problem: Problem) -> Design | None:
    """The design of the models, where it says how to draw other subsets."""
    told = problem.sources[0].description.get("design")
    return Design.from_dict(told) if told and told["kind"] in _DRAWN else None
