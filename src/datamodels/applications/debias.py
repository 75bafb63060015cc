"""D3M: remove the training examples that drive errors on the worst group (Jain et al. 2024, arXiv:2406.16846).

Examples are chosen on one part of the test split (the choice split) and worst-group accuracy is measured on the other (the
report split).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.design import label_codes
from datamodels.errors import RequestError
from datamodels.evaluation.retraining import Estimate, check_runs, retrain
from datamodels.regression.calibration import check_finite, positions_of
from datamodels.training.ensemble import TrainRecipe

_FEWEST = 2  # targets of a class that have a component


def group_alignment(
    attribution: Attribution, groups: ArrayLike, losses: ArrayLike, *, beta: float = 1.0
) -> NDArray[np.float64]:
    """How far each training example helps the groups that models fail on (Jain et al. 2024, arXiv:2406.16846).

    ``A_j = sum_g v_g mean_{i in g} W_ji`` with ``v_g = exp(beta l_g) / sum_h exp(beta l_h)`` and l_g the mean loss of
    group g: the change of a smooth maximum of group losses, with its sign turned, when example j joins.

    Parameters
    ----------
    attribution
        Of margins of the choice split, (n_train, t): larger weights help.
    groups
        (t,) group of each target, of any kind.
    losses
        (t,) loss of each target under models trained on all data, in nats.
    beta
        0 weighs groups alike; the larger, the more the worst one counts.

    Returns
    -------
    (n_train,) in units of the output: negative for examples that harm the groups of large loss.

    Raises
    ------
    RequestError
        when weights or losses are not finite, or groups are not one per target.
    """
    check_finite(attribution, "attribution")
    codes = _groups("groups", groups, attribution.n_targets)
    values = np.asarray(losses, dtype=np.float64)
    if values.shape != codes.shape or not np.isfinite(values).all() or not 0 <= beta < np.inf:
        raise RequestError(
            f"losses have shape {values.shape} and beta is {beta}; give one finite loss for each of the {len(codes)} "
            "targets, and 0 or more"
        )
    sizes = np.bincount(codes)
    exponents = beta * np.bincount(codes, values) / sizes
    shares = np.exp(exponents - exponents.max())
    shares /= shares.sum()
    return attribution.weights.astype(np.float64) @ (shares / sizes)[codes]


def pseudo_groups(attribution: Attribution, labels: ArrayLike) -> NDArray[np.int64]:
    """Groups without group labels (AutoD3M): within each class, the sign of the leading component of the targets' weights
    (Jain et al. 2024, arXiv:2406.16846).

    Parameters
    ----------
    attribution
        Of the choice split, (n_train, t). Each target's column is scaled to length 1, then centred within its class.
    labels
        (t,) class of each target.

    Returns
    -------
    (t,) ``2 * class code + side``. Side 1 is the smaller one; a class of one target has side 0 only.

    Raises
    ------
    RequestError
        when weights are not finite, or labels are not one per target.
    """
    from scipy.sparse.linalg import eigsh

    check_finite(attribution, "attribution")
    codes = _groups("labels", labels, attribution.n_targets)
    out = 2 * codes
    for label in range(int(codes.max()) + 1):
        members = np.flatnonzero(codes == label)
        if len(members) < _FEWEST:
            continue
        columns = attribution.weights[:, members].astype(np.float64)
        columns /= np.maximum(np.linalg.norm(columns, axis=0), 1e-12)
        columns -= columns.mean(axis=1, keepdims=True)
        gram = columns.T @ columns
        if not gram.any():
            continue
        side = eigsh(gram, k=1, v0=np.diag(gram) + 1e-9)[1][:, 0] > 0 if len(members) > 2 else gram[0] > 0
        if 2 * side.sum() > len(members):
            side = ~side
        out[members] += side
    return out


class Selection(NamedTuple):
    """Training examples to keep.

    Attributes
    ----------
    keep
        Bool (n_train,).
    alignment
        (n_train,) what chose them, see `group_alignment`.
    """

    keep: NDArray[np.bool_]
    alignment: NDArray[np.float64]


def d3m(
    attribution: Attribution, groups: ArrayLike, losses: ArrayLike, *, k: int | None = None, beta: float = 1.0
) -> Selection:
    """D3M: the training set without the examples that harm the worst groups (Jain et al. 2024, arXiv:2406.16846).

    Parameters
    ----------
    attribution, groups, losses, beta
        As in `group_alignment`; with `pseudo_groups` for `groups` it is AutoD3M.
    k
        Drop the k examples of lowest alignment; by default all that are negative. Weights of a dense fit are negative by
        noise alone for many examples, so k is better there.

    Raises
    ------
    RequestError
        when arguments do not go together, or nothing would be kept.
    """
    scores = group_alignment(attribution, groups, losses, beta=beta)
    if k is None:
        keep = scores >= 0
    else:
        if isinstance(k, bool) or not isinstance(k, int | np.integer) or not 0 <= k < len(scores):
            raise RequestError(
                f"k is {k}; give 0 up to {len(scores) - 1} of the {len(scores)} training examples, a whole number"
            )
        keep = np.ones(len(scores), dtype=np.bool_)
        keep[np.argsort(scores, kind="stable")[:k]] = False
    if not keep.any():
        raise RequestError("every training example has a negative alignment; say with k how many to drop")
    return Selection(keep, scores)


def group_accuracies(outcomes: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """Accuracy of each group.

    Parameters
    ----------
    outcomes
        (..., t) bool, true where right; or margins, right where positive.
    groups
        (t,) group of each example, of any kind.

    Returns
    -------
    (..., n_groups) in sorted order of the groups.

    Raises
    ------
    RequestError
        when groups are not one per example.
    """
    values = np.asarray(outcomes)
    codes = _groups("groups", groups, values.shape[-1] if values.ndim else 0)
    right = (values if values.dtype == np.bool_ else values > 0).astype(np.float64)
    return right @ (np.eye(int(codes.max()) + 1)[codes] / np.bincount(codes))


def worst_group_accuracy(outcomes: ArrayLike, groups: ArrayLike) -> NDArray[np.float64]:
    """The smallest of `group_accuracies`: that of each model's own worst group.

    Parameters
    ----------
    outcomes, groups
        As in `group_accuracies`.

    Returns
    -------
    (...), one per model.

    Raises
    ------
    RequestError
        when groups are not one per example.
    """
    return group_accuracies(outcomes, groups).min(axis=-1)


def balanced_mask(groups: ArrayLike, seed: int = 0) -> NDArray[np.bool_]:
    """As many random examples of each group (or class) as the smallest one has.

    Parameters
    ----------
    groups
        (n_train,) group of each training example, of any kind.
    seed
        Draws them.

    Returns
    -------
    Bool (n_train,).

    Raises
    ------
    RequestError
        when groups are no list of labels, or one is missing.
    """
    codes = _groups("groups", groups, np.size(groups))
    return _balanced(codes, np.random.default_rng(seed))


def _balanced(codes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.bool_]:
    mask = np.zeros(len(codes), dtype=np.bool_)
    fewest = int(np.bincount(codes).min())
    for code in range(int(codes.max()) + 1):
        mask[rng.permutation(np.flatnonzero(codes == code))[:fewest]] = True
    return mask


class Outcome(NamedTuple):
    """Models of one training set, on the report split; means over runs.

    Attributes
    ----------
    method, n_train
        ``all``, ``d3m``, ``random``, ``class_balanced``, ``group_balanced``, ``auto_d3m`` or ``random_auto`` (random removal of
        equal size to auto_d3m); examples that it trains on.
    worst
        Worst-group accuracy.
    accuracy
        Mean accuracy over the examples.
    groups
        Accuracy of each group, in sorted order of the groups.
    beyond_all, beyond_random
        Worst-group accuracy minus that of ``all``, and minus that of the random removal of equal size; None where there is none.
    """

    method: str
    n_train: int
    worst: Estimate
    accuracy: Estimate
    groups: tuple[float, ...]
    beyond_all: Estimate | None
    beyond_random: Estimate | None


@dataclass(frozen=True, eq=False)
class Debiased:
    """Worst-group accuracy after each way to choose the training set.

    Attributes
    ----------
    outcomes
        method -> `Outcome`.
    keep
        method -> bool (n_train,), for ``d3m`` and ``auto_d3m``.
    group_losses
        (n_groups,) mean loss of each group of the choice split under models of all data, that D3M was weighted with.
    replicates, confidence
        Runs of each, and that of the intervals.
    """

    outcomes: Mapping[str, Outcome]
    keep: Mapping[str, NDArray[np.bool_]] = field(repr=False)
    group_losses: NDArray[np.float64]
    replicates: int
    confidence: float

    def table(self) -> list[dict[str, Any]]:
        """One row per method: the fields of `Outcome`, each estimate as three numbers."""
        rows = []
        for found in self.outcomes.values():
            row: dict[str, Any] = {"method": found.method, "n_train": found.n_train}
            for name in ("worst", "accuracy", "beyond_all", "beyond_random"):
                value = getattr(found, name)
                empty = dict.fromkeys((name, f"{name}_low", f"{name}_high"))
                row |= empty if value is None else value.named(name)
            rows.append(row | {"groups": list(found.groups)})
        return rows

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        facts = {"replicates": self.replicates, "confidence": self.confidence}
        return {**facts, "group_losses": self.group_losses.tolist(), "methods": self.table()}


def debias(
    task: TrainRecipe,
    attribution: Attribution,
    groups: ArrayLike,
    *,
    report: Sequence[int] | NDArray[np.int64] | None = None,
    train_groups: ArrayLike | None = None,
    k: int | None = None,
    beta: float = 1.0,
    auto: bool = False,
    replicates: int = 5,
    folder: str | Path,
    seed: int = 0,
    jobs: int | None = None,
    executor: str = "local",
    confidence: float = 0.95,
    progress: bool = True,
) -> Debiased:
    """Choose with D3M (Jain et al. 2024, arXiv:2406.16846) on one part of the test split, retrain, and measure worst-group accuracy on
    the other part.

    Trained are `replicates` models of: all data (``all``; on them the losses of the choice split are measured), D3M
    (``d3m``), as many random removals (``random``), ``class_balanced``, with `train_groups` ``group_balanced``, and with
    `auto` ``auto_d3m`` with its random removals (``random_auto``). Random and balanced sets are drawn anew for each run.

    Parameters
    ----------
    task
        How models are trained.
    attribution
        Of margins of the choice split: its ``target_facts["target"]`` say which test examples those are.
    groups
        (n_test,) group of every test example; ``auto_d3m`` uses them for the report alone.
    report
        (k,) positions of test examples to measure on; by default all that are not of the choice split. The two may not overlap.
    train_groups
        (n_train,) group of every training example, for ``group_balanced``; D3M needs none.
    k, beta
        As in `d3m`.
    auto
        Whether to try AutoD3M too.
    replicates
        2 or more. Intervals are over runs; the report split is taken as it is.
    folder, seed, jobs, executor, confidence, progress
        As in `datamodels.evaluation.counterfactual.counterfactual`.

    Raises
    ------
    RequestError
        when the splits overlap, a test example is reported on twice, or a group of the choice split is not in the report split.
    """
    check_runs(replicates, confidence)
    data = task.data
    codes = _groups("groups", groups, len(data.test))
    choice, judged = _splits(attribution, report, codes)
    if attribution.n_train != task.n_train:
        raise RequestError(f"the attribution has {attribution.n_train} train examples, the task {task.n_train}")
    train_codes = None if train_groups is None else _groups("train_groups", train_groups, task.n_train)
    options: dict[str, Any] = {"jobs": jobs, "executor": executor, "progress": progress}
    every = np.ones((replicates, task.n_train), dtype=np.bool_)
    first = retrain(task, every, outputs=("losses", "correct"), folder=Path(folder) / "all", seed=seed, **options)
    losses = first["losses"][:, choice].mean(axis=0, dtype=np.float64)

    rng = np.random.default_rng([seed, 0])
    keep = {"d3m": d3m(attribution, codes[choice], losses, k=k, beta=beta).keep}
    if auto:
        pseudo = pseudo_groups(attribution, data.test.y[choice])
        keep["auto_d3m"] = d3m(attribution, pseudo, losses, k=k, beta=beta).keep
    against = {"d3m": "random", "auto_d3m": "random_auto"}
    sets: dict[str, NDArray[np.bool_]] = {}
    for name, mask in keep.items():
        sets[name] = np.repeat(mask[None], replicates, axis=0)
        sets[against[name]] = np.stack([rng.permutation(mask) for _ in range(replicates)])
    for name, labels in (("class_balanced", data.train.y), ("group_balanced", train_codes)):
        if labels is not None:
            present = np.unique(labels, return_inverse=True)[1]
            sets[name] = np.stack([_balanced(present, rng) for _ in range(replicates)])
    masks = np.concatenate(list(sets.values()))
    rest = retrain(task, masks, outputs=("losses", "correct"), folder=Path(folder) / "chosen", seed=seed + 1, **options)
    right = {
        "all": first["correct"],
        **dict(zip(sets, rest["correct"].reshape(len(sets), replicates, -1), strict=True)),
    }

    per_group = {name: group_accuracies(found[:, judged], codes[judged]) for name, found in right.items()}
    worst = {name: found.min(axis=1) for name, found in per_group.items()}
    outcomes = {}
    for name, found in right.items():
        other = against.get(name)
        outcomes[name] = Outcome(
            name,
            int(sets[name][0].sum()) if name in sets else task.n_train,
            Estimate.mean(worst[name], confidence),
            Estimate.mean(found[:, judged].mean(axis=1, dtype=np.float64), confidence),
            tuple(per_group[name].mean(axis=0).tolist()),
            None if name == "all" else Estimate.difference(worst[name], worst["all"], confidence),
            None if other is None else Estimate.difference(worst[name], worst[other], confidence),
        )
    known = codes[choice]
    sizes = np.bincount(known)
    group_losses = np.bincount(known, losses)[sizes > 0] / sizes[sizes > 0]
    return Debiased(outcomes, keep, group_losses, replicates, confidence)


def _splits(
    attribution: Attribution, report: Sequence[int] | NDArray[np.int64] | None, codes: NDArray[np.int64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Positions of the choice and of the report split among the test examples."""
    if "target" not in attribution.target_facts or attribution.train_columns is not None:
        raise RequestError("the attribution must say which test examples its targets are, in target_facts['target']")
    choice = positions_of(attribution)
    n_test = len(codes)
    if choice.max() >= n_test:
        raise RequestError(f"the attribution has targets up to {choice.max()}; there are {n_test} test examples")
    judged = np.setdiff1d(np.arange(n_test), choice) if report is None else np.asarray(report)
    if judged.ndim != 1 or (len(judged) and judged.dtype.kind not in "iu"):
        raise RequestError(
            f"report has dtype {judged.dtype} and shape {judged.shape}; give positions of test examples, whole numbers (of a mask: "
            "np.flatnonzero(mask))"
        )
    judged = judged.astype(np.int64)
    if len(np.unique(judged)) < len(judged):
        raise RequestError(
            f"{len(judged) - len(np.unique(judged))} entries of report come twice; each test example is judged once: give "
            "np.unique(report)"
        )
    if not len(judged) or judged.min() < 0 or judged.max() >= n_test:
        raise RequestError(
            f"{len(judged)} of the {n_test} test examples are left to report on; fit the attribution on some of them only, "
            "with fit(..., targets=choice)"
        )
    both = np.intersect1d(choice, judged)
    if len(both):
        raise RequestError(
            f"{len(both)} test examples are in the choice and in the report split (the first is {both[0]}); examples that "
            "chose the training set cannot judge it"
        )
    missing = np.setdiff1d(codes[choice], codes[judged])
    if len(missing):
        raise RequestError(f"{len(missing)} groups of the choice split have no example in the report split")
    return choice, judged


def _groups(name: str, groups: ArrayLike, count: int) -> NDArray[np.int64]:
    """Groups of any kind as codes 0..k-1, (count,)."""
    array = np.asarray(groups)
    if array.shape != (count,) or not count:
        raise RequestError(f"{name} have shape {array.shape}; give one for each of the {count} examples")
    try:
        return np.array(label_codes(array), dtype=np.int64)
    except ValueError as error:
        raise RequestError(f"{name}: {error}") from None
