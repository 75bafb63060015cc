"""Which training labels are wrong: scores from attributions or stores, and how good they are where the truth is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.regression.calibration import check_finite
from datamodels.regression.problem import Problem
from datamodels.spec import Rows
from datamodels.store import Store

Method = Literal["self_influence", "influence", "out_of_mask"]
SELF_INFLUENCE = "self_influence"  # of train_facts


def mislabel_scores(
    source: Attribution | Store | str | Path,
    method: Method | None = None,
    *,
    outputs_key: str = "train_margins",
    rows: Rows = None,
) -> NDArray[np.float64]:
    """How suspicious the label of each training example is.

    Parameters
    ----------
    source
        An attribution (or its ``.h5ad`` file), or a store (or its folder) with outputs on train examples.
    method
        ``self_influence``
            The weight of an example on its own output, of an attribution of train examples (difference in means:
            memorisation, Feldman & Zhang 2020, arXiv:2008.03703; TRAK of the train set), or, where targets are others,
            ``train_facts["self_influence"]``, which `trak_of_recipe` leaves. A wrong label is learnt only by seeing it. By
            default when there is one of the two.
        ``influence``
            Minus the mean weight of an example over all targets but itself. A wrong label harms the others. By default for
            other attributions; targets whose labels are right, such as a clean test set, are best.
        ``out_of_mask``
            Minus the mean margin of an example over the models that did not see it. By default for stores.
    outputs_key
        Margins on train examples in a store.
    rows
        Which rows of a store; by default all complete ones.

    Returns
    -------
    (n_train,) float64 in units of the output (of the attribution's scores): **larger is more suspicious**, for every method.

    Raises
    ------
    RequestError
        when the source is not of the kind that the method needs, weights are not finite, or some example was seen by every model.
    """
    if method is not None and method not in get_args(Method):
        raise RequestError(f"method is {method!r}; legal: {', '.join(get_args(Method))}")
    if isinstance(source, str | Path) and Path(source).suffix == ".h5ad":
        source = Attribution.load(source)
    if not isinstance(source, Attribution):
        if method not in (None, "out_of_mask"):
            raise RequestError(f"method {method!r} needs an attribution; a store gives 'out_of_mask'")
        return -out_of_mask_margins(source, outputs_key=outputs_key, rows=rows)
    if method == "out_of_mask":
        raise RequestError("method 'out_of_mask' needs a store with outputs on train examples, not an attribution")
    check_finite(source, "attribution")
    own = _own_weights(source)
    if own is None or not own.any():
        own = source.train_facts.get(SELF_INFLUENCE, own)
    if method is None:
        method = "self_influence" if own is not None and own.any() else "influence"
    if method == "self_influence":
        if own is None or not own.any():
            raise RequestError(
                f"self-influence is the weight of a training example on its own output, or train_facts[{SELF_INFLUENCE!r}]; this "
                "attribution has none ("
                + (
                    "its targets are not all training examples"
                    if own is None
                    else "they are 0: it was fitted out of mask"
                )
                + "): use DifferenceInMeans or TRAK on train outputs, or method='influence'"
            )
        if not np.isfinite(own).all():
            raise RequestError(
                f"train_facts[{SELF_INFLUENCE!r}] holds NaN or inf; compute it again, or use method='influence'"
            )
        return np.asarray(own, dtype=np.float64)
    totals = source.weights.sum(axis=1, dtype=np.float64)
    others = np.full(source.n_train, float(source.n_targets))
    if source.train_columns is not None:
        columns = source.train_columns
        np.subtract.at(totals, columns, source.weights[columns, np.arange(source.n_targets)])
        np.subtract.at(others, columns, 1.0)
    if others.min() < 1:
        raise RequestError(
            "an example has no influence on others, since it is itself the only target; give more targets"
        )
    return -totals / others


def _own_weights(attribution: Attribution) -> NDArray[np.float64] | None:
    """The weight of each train example on its own output, (n_train,); None when some example is no target."""
    columns = attribution.train_columns
    if columns is None or len(np.unique(columns)) < attribution.n_train:
        return None
    weights = attribution.weights[columns, np.arange(attribution.n_targets)].astype(np.float64)
    return np.bincount(columns, weights, attribution.n_train) / np.bincount(columns, minlength=attribution.n_train)


def out_of_mask_margins(
    source: Store | str | Path | Sequence[Store | str | Path] | None = None,
    *,
    masks: NDArray[Any] | str | Path | None = None,
    outputs: NDArray[Any] | str | Path | None = None,
    outputs_key: str = "train_margins",
    rows: Rows = None,
) -> NDArray[np.float64]:
    """Mean output on each train example over the models that did not see it; rows are read in chunks.

    Parameters
    ----------
    source, masks, outputs, rows
        As in `datamodels.fit`.
    outputs_key
        Outputs on train examples in a store.

    Returns
    -------
    (n_train,) float64.

    Raises
    ------
    RequestError
        when outputs are not one number per train example, or every model saw some example.
    """
    problem = Problem.build(
        source, masks=masks, outputs=outputs, outputs_key=outputs_key, rows=rows, targets_are_train=True
    )
    if problem.n_targets != problem.n_train:
        raise RequestError(
            f"there are {problem.n_targets} outputs per model and {problem.n_train} train examples; give one output "
            "per train example"
        )
    sums, counts = np.zeros(problem.n_train), np.zeros(problem.n_train)
    for x, y in replace(problem, train_columns=None).chunks():
        sums += np.where(x, 0.0, y).sum(axis=0)
        counts += (~x).sum(axis=0)
    if not counts.all():
        raise RequestError(
            f"train example {int(np.argmin(counts))} is in all {problem.n_rows} subsets, so no model can judge it; train more "
            "models or on smaller subsets"
        )
    return sums / counts


@dataclass(frozen=True)
class MislabelScore:
    """How well scores find wrong labels.

    Attributes
    ----------
    auc, auc_ci
        Probability that a wrong label scores above a right one (ties count half), and its interval after DeLong et al.
        (1988), on the logit scale. With an AUC of exactly 0 or 1 the interval has no width.
    precision
        Share of wrong labels among as many highest scores as there are wrong labels.
    precision_at
        k -> share of wrong labels among the k highest scores. Ties at the limit count with their expected share.
    n, n_mislabelled
        Examples, and wrong labels among them.
    confidence
        Of the interval.
    """

    auc: float
    auc_ci: tuple[float, float]
    precision: float
    precision_at: Mapping[int, float]
    n: int
    n_mislabelled: int
    confidence: float

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        out = {name: getattr(self, name) for name in self.__dataclass_fields__}
        return {**out, "auc_ci": list(self.auc_ci), "precision_at": {str(k): v for k, v in self.precision_at.items()}}


def evaluate_mislabels(
    scores: ArrayLike, truth: ArrayLike, *, k: int | Sequence[int] = (), confidence: float = 0.95
) -> MislabelScore:
    """Judge scores where it is known which labels are wrong.

    Parameters
    ----------
    scores
        (n,) larger is more suspicious.
    truth
        bool (n,) true where the label is wrong.
    k
        Numbers of examples that one would look at.
    confidence
        Of the interval of the AUC.

    Raises
    ------
    RequestError
        when there are not two wrong and two right labels, or scores are not finite.
    """
    values, wrong = np.asarray(scores, dtype=np.float64), np.asarray(truth)
    if values.ndim != 1 or wrong.shape != values.shape or wrong.dtype != np.bool_ or not np.isfinite(values).all():
        raise RequestError(
            f"scores have shape {values.shape} and truth {wrong.shape} of {wrong.dtype}; give finite scores (n,) and bool (n,)"
        )
    count = int(wrong.sum())
    if not 2 <= count <= len(wrong) - 2:
        raise RequestError(f"{count} of {len(wrong)} labels are wrong; two wrong and two right ones are needed")
    sizes = [k] if isinstance(k, int) else list(k)
    outside = [size for size in sizes if not 1 <= size <= len(values)]
    if outside or not 0 < confidence < 1:
        raise RequestError(f"k is {k} and confidence {confidence}; give 1..{len(values)}, and a number between 0 and 1")
    auc, interval = _delong(values[wrong], values[~wrong], confidence)
    return MislabelScore(
        auc, interval, _precision(values, wrong, count), {size: _precision(values, wrong, size) for size in sizes},
        len(values), count, confidence,
    )  # fmt: skip


def _delong(
    wrong: NDArray[np.float64], right: NDArray[np.float64], confidence: float
) -> tuple[float, tuple[float, float]]:
    from scipy import stats

    joint = stats.rankdata(np.concatenate([wrong, right]))
    of_wrong = (joint[: len(wrong)] - stats.rankdata(wrong)) / len(right)  # share of right labels below each wrong one
    of_right = 1 - (joint[len(wrong) :] - stats.rankdata(right)) / len(wrong)
    auc = float(of_wrong.mean())
    if not 0 < auc < 1:
        return auc, (auc, auc)
    error = np.sqrt(of_wrong.var(ddof=1) / len(wrong) + of_right.var(ddof=1) / len(right))
    wide = stats.norm.ppf((1 + confidence) / 2) * error / (auc * (1 - auc))
    low, high = 1 / (1 + np.exp(-(np.log(auc / (1 - auc)) + np.array([-wide, wide]))))
    return auc, (float(low), float(high))


def _precision(scores: NDArray[np.float64], wrong: NDArray[np.bool_], k: int) -> float:
    limit = np.partition(scores, len(scores) - k)[len(scores) - k]
    above, tied = scores > limit, scores == limit
    return float((wrong[above].sum() + wrong[tied].mean() * (k - above.sum())) / k)


def plant_label_noise(
    labels: ArrayLike, share: float, seed: int = 0, n_classes: int | None = None
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Give a random share of examples a wrong label, uniform over the other classes.

    Parameters
    ----------
    labels
        (n,) integers from 0.
    share
        ``round(share * n)`` examples are changed, drawn without regard to their class.
    seed
        Draws them.
    n_classes
        By default the largest label + 1.

    Returns
    -------
    (n,) int64 labels, and bool (n,) true where they were changed.

    Raises
    ------
    RequestError
        when labels are no codes from 0, or share and classes are out of range.
    """
    y = np.asarray(labels)
    if y.ndim != 1 or y.dtype.kind not in "iu" or not len(y) or y.min() < 0:
        raise RequestError(f"labels have shape {y.shape} and dtype {y.dtype}; give integers from 0, (n,)")
    classes = int(y.max()) + 1 if n_classes is None else n_classes
    if classes < 2 or y.max() >= classes or not 0 <= share <= 1:
        raise RequestError(
            f"share is {share} of labels up to {y.max()} in {classes} classes; give 0..1, and 2 classes or more"
        )
    rng = np.random.default_rng(seed)
    flipped = np.zeros(len(y), dtype=np.bool_)
    flipped[rng.permutation(len(y))[: round(share * len(y))]] = True
    noisy = y.astype(np.int64)
    noisy[flipped] = (noisy[flipped] + rng.integers(1, classes, int(flipped.sum()))) % classes
    return noisy, flipped
