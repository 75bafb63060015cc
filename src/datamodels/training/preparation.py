"""What is done to features before a model sees them, with what its own subset says: no leakage from examples it is judged on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numba import njit
from numpy.typing import NDArray

from datamodels.errors import RequestError

By = Literal["variance", "f_score"]


@dataclass(frozen=True, kw_only=True)
class Preparation:
    """Steps in this order, each fitted to the examples of a model's subset and applied to all examples that it trains on or is judged on.

    Parameters
    ----------
    impute
        Whether a missing value (NaN) becomes the mean of its feature in the subset: of genotypes twice the allele's frequency there.
        A feature that the subset lacks altogether becomes 0.
    select
        How many features are kept, by default all; they stay in their order.
    by
        What ranks them: ``variance``, which knows no labels, or ``f_score``, the F statistic of a one-way analysis of variance
        between classes, as scikit-learn's ``f_classif``. Of equals the later go first. A subset of one class, which has no F, is ranked by variance.
    scale
        Whether features are centred and divided by their deviation in the subset; a constant one is only centred.

    Raises
    ------
    RequestError
        when a value is wrong.
    """

    select: int | None = None
    by: By = "variance"
    scale: bool = False
    impute: bool = False

    def __post_init__(self) -> None:
        if self.select is not None and (
            not isinstance(self.select, int) or isinstance(self.select, bool) or self.select < 1
        ):
            raise RequestError(f"select is {self.select!r}; give 1 or more features, or None for all")
        if self.by not in get_args(By):
            raise RequestError(f"by is {self.by!r}; legal: {', '.join(get_args(By))}")
        for name in ("scale", "impute"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is {getattr(self, name)!r}; give true or false")

    @classmethod
    def of(cls, values: Mapping[str, Any]) -> Preparation:
        """From parameters by their names, as a YAML file has them.

        Raises
        ------
        RequestError
            when there is no such parameter, or a value is wrong.
        """
        unknown = sorted(set(values) - set(cls.__dataclass_fields__))
        if unknown:
            raise RequestError(f"a preparation has no {unknown[0]!r}; legal: {', '.join(cls.__dataclass_fields__)}")
        return cls(**values)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready, as `of` takes it."""
        return asdict(self)

    def check(self, x: NDArray[np.float32]) -> None:
        """Whether it is for examples such as x (n, features).

        Raises
        ------
        RequestError
            when they are pictures, or have fewer features than are to be selected.
        """
        if x.ndim != 2:
            raise RequestError(
                f"a preparation is for features (n, features); x is {x.shape}: of pictures, let the recipe standardise channels"
            )
        if self.select is not None and self.select > x.shape[1]:
            raise RequestError(f"select is {self.select}; the examples have {x.shape[1]} features: give that or fewer")

    def fit(self, x: NDArray[np.float32], y: NDArray[np.int64], members: NDArray[np.int64]) -> Prepared:
        """The steps with what the examples `members` (size,) of x (n, features) with class codes y (n,) say."""
        counts, means, within, between = _moments(x, y, members, int(y.max()) + 1)
        variance = (within + between) / len(members)
        chosen = None
        if self.select is not None:
            classes = int((counts > 0).sum())
            scores = variance
            if self.by == "f_score" and classes > 1:
                with np.errstate(divide="ignore", invalid="ignore"):
                    scores = (between / (classes - 1)) / (within / (len(members) - classes))
                scores = np.where(np.isnan(scores), -1.0, scores)  # a constant feature
            chosen = np.sort(np.argsort(scores, kind="stable")[len(scores) - self.select :])
            means, variance = means[chosen], variance[chosen]
        mean = means.astype(np.float32)
        deviation = np.sqrt(np.where(variance > 0, variance, 1.0)).astype(np.float32)
        return Prepared(chosen, mean if self.impute else None, (mean, deviation) if self.scale else None)


@dataclass(frozen=True, eq=False)
class Prepared:
    """A preparation with what one subset says.

    Attributes
    ----------
    chosen
        (s,) features that are kept, or None for all.
    fill
        (s,) what missing values become, or None.
    scale
        Means and deviations, (s,) each, or None.
    """

    chosen: NDArray[np.int64] | None
    fill: NDArray[np.float32] | None
    scale: tuple[NDArray[np.float32], NDArray[np.float32]] | None

    def __call__(self, x: NDArray[np.float32]) -> NDArray[np.float32]:
        """Of examples (k, features), as (k, s)."""
        out = x if self.chosen is None else np.take(x, self.chosen, axis=1)
        if self.fill is not None:
            out = out.copy() if out is x else out
            np.copyto(out, self.fill, where=np.isnan(out))
        if self.scale is not None:
            out = out - self.scale[0]
            out /= self.scale[1]
        return out


@njit(cache=True, nogil=True, error_model="numpy")
def _moments(x, y, members, n_classes):  # type: ignore[no-untyped-def]
    """Of the members' features, missing ones taken as the mean: examples per class (C,), means, and sums of squares within and between
    classes, (features,) each.

    Loops over members, so that a row is the same to the bit in any block; of a constant feature both sums are exactly 0.
    """
    width = x.shape[1]
    counts, present, sums = np.zeros(n_classes), np.zeros((n_classes, width)), np.zeros((n_classes, width))
    for i in members:
        counts[y[i]] += 1.0
        values, there, total = x[i], present[y[i]], sums[y[i]]
        for j in range(width):
            known = values[j] == values[j]
            there[j] += 1.0 if known else 0.0
            total[j] += np.float64(values[j]) if known else 0.0
    means, within, between = np.zeros(width), np.zeros(width), np.zeros(width)
    for j in range(width):
        known_of_all = present[:, j].sum()
        means[j] = sums[:, j].sum() / known_of_all if known_of_all > 0.0 else 0.0
    for c in range(n_classes):
        if counts[c] > 0.0:
            for j in range(width):
                sums[c, j] = (sums[c, j] + (counts[c] - present[c, j]) * means[j]) / counts[c]
                between[j] += counts[c] * (sums[c, j] - means[j]) ** 2
    for i in members:
        values, centre = x[i], sums[y[i]]
        for j in range(width):
            value = np.float64(values[j]) if values[j] == values[j] else means[j]
            within[j] += (value - centre[j]) ** 2
    return counts, means, within, between
