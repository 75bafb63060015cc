"""Are the clusters something that is known already: batch, donor, library size?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.datasets.samples import plain
from datamodels.errors import RequestError

if TYPE_CHECKING:
    import pandas as pd

CRAMER, ETA = (0.1, 0.3, 0.5), (0.01, 0.06, 0.14)  # Cohen 1988: from here weak, moderate, strong
_WORDS = ("negligible", "weak", "moderate", "strong")
_DRAWS = 1999
_SPARSE = 5  # expected counts below this make chi-square tables wrong
_FEW = 10  # different whole numbers that are taken for codes
_LEVEL = 0.05


class Confounder(NamedTuple):
    """The association of the clusters with one column.

    Attributes
    ----------
    column
        Its name.
    kind
        ``categories`` or ``numbers``.
    effect
        Of categories Cramér's V with the bias correction of Bergsma (2013); of numbers η², the share of the variance that lies
        between clusters. Both from 0 to 1.
    p
        Of the chi-square test, or of 1,999 permutations where expected counts are below 5; of the Kruskal-Wallis test.
    q
        p after Benjamini and Hochberg, over columns.
    n
        Targets with a value, outside of the noise cluster.
    tests
        2 where whole numbers were tested as categories and as numbers; p is then doubled.
    """

    column: str
    kind: str
    effect: float
    p: float
    q: float
    n: int
    tests: int = 1

    @property
    def measure(self) -> str:
        """What the effect is measured by."""
        return "Cramér's V" if self.kind == "categories" else "η²"

    @property
    def size(self) -> str:
        """``negligible``, ``weak``, ``moderate`` or ``strong``: V from .1, .3, .5 and η² from .01, .06, .14 (Cohen 1988)."""
        return _WORDS[int(np.searchsorted(CRAMER if self.kind == "categories" else ETA, self.effect, side="right"))]

    def confounds(self, level: float = _LEVEL) -> bool:
        """Whether the association is sure (q at most `level`) and moderate or strong."""
        return self.q <= level and self.size in _WORDS[2:]

    def words(self) -> str:
        """The association in a sentence."""
        taken = (
            "" if self.tests == 1 else f", the numbers taken for {'codes' if self.kind == 'categories' else 'amounts'}"
        )
        return f"{self.column}: {self.size} association ({self.measure} = {self.effect:.2f}, q = {self.q:.2g}, {self.n} targets{taken})"


@dataclass(frozen=True)
class Confounders:
    """How clusters go with known columns.

    Attributes
    ----------
    columns
        One `Confounder` per column, largest effect first within each kind.
    """

    columns: tuple[Confounder, ...]

    def named(self, level: float = _LEVEL) -> list[Confounder]:
        """Those that confound at a `level` of q."""
        return [one for one in self.columns if one.confounds(level)]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready."""
        return {"columns": [{**one._asdict(), "size": one.size, "confounds": one.confounds()} for one in self.columns]}


def confounding(clusters: ArrayLike, columns: Mapping[str, ArrayLike], *, seed: int = 0) -> Confounders:
    """Associations of clusters with known columns.

    p-values take targets as independent. Where they are not (cells of few donors), p is too small; look at the effect.

    Parameters
    ----------
    clusters
        (n_targets,) numbers; -1 (noise) is left out.
    columns
        Name -> (n_targets,) values, also a data frame. Text, truth values and pandas categories are categories; so are whole numbers,
        whatever their dtype, of at most 10 distinct values. Whole numbers of more values that repeat (half as many values as
        targets, or fewer) may be codes (donors, dates) or amounts (age): both are tested, and reported is the stronger one, by its
        `Confounder.size`, of those with p at most .025, else that of smaller p; p is doubled (Bonferroni). All other numbers are numbers, dates are whole
        numbers. Missing values (NaN, None, NA) are left out.
    seed
        Of permutations.

    Raises
    ------
    RequestError
        when lengths differ, a column mixes kinds of values or holds an infinite one, or there are not two clusters.
    """
    import pandas as pd

    numbers = as_clusters(clusters)
    if len(np.unique(numbers[numbers >= 0])) < 2:
        raise RequestError("clusters must be numbers (n_targets,) with two clusters or more")
    if not len(columns):
        raise RequestError("columns are empty; give name -> values, such as the obs of the AnnData")
    found = []
    for name in columns:
        if np.shape(columns[name]) != numbers.shape:
            raise RequestError(f"column {name!r} has shape {np.shape(columns[name])}; clusters have {numbers.shape}")
        column = pd.Series(columns[name]).reset_index(drop=True)
        kept = (numbers >= 0) & column.notna().to_numpy()
        found.append(_associate(str(name), numbers[kept], column[kept], seed))
    q = adjusted(np.array([one.p for one in found]))
    rows = [one._replace(q=float(q[i])) for i, one in enumerate(found)]
    return Confounders(tuple(sorted(rows, key=lambda one: (one.kind, -one.effect))))


def as_clusters(clusters: ArrayLike) -> NDArray[np.int64]:
    """Cluster numbers (k,), which must be whole."""
    numbers = np.asarray(clusters)
    if numbers.ndim != 1 or numbers.dtype.kind not in "iu":
        raise RequestError(
            f"clusters have shape {numbers.shape} and dtype {numbers.dtype}; give whole numbers, one each, -1 for none (of names: "
            "np.unique(names, return_inverse=True)[1])"
        )
    return numbers.astype(np.int64)


def adjusted(p: NDArray[np.float64]) -> NDArray[np.float64]:
    """Benjamini-Hochberg over the last axis."""
    from scipy.stats import false_discovery_control

    return false_discovery_control(p, axis=-1)


def cramers_v(table: NDArray[np.int64]) -> float:
    """Bias-corrected Cramér's V of a table of counts (Bergsma 2013)."""
    n, (r, k) = table.sum(), table.shape
    phi = _chi_square(table) / n
    phi = max(0.0, phi - (k - 1) * (r - 1) / (n - 1))
    rows, columns = r - (r - 1) ** 2 / (n - 1), k - (k - 1) ** 2 / (n - 1)
    return float(np.sqrt(phi / max(min(rows, columns) - 1, 1e-12)))


def _associate(name: str, clusters: NDArray[np.int64], column: pd.Series, seed: int) -> Confounder:
    """The association of one column, of whose values none is missing; q is not known yet."""
    values, ways = _ways(name, column)
    codes, levels = np.unique(clusters, return_inverse=True)[1], np.unique(values)
    if len(values) < 3 or len(levels) < 2 or codes.max(initial=0) < 1:
        return Confounder(name, ways[0], 0.0, 1.0, 1.0, len(values))
    tested = []
    for kind in ways:
        found = (
            _categories(codes, np.searchsorted(levels, values), seed)
            if kind == "categories"
            else _numbers(codes, values.astype(np.float64))
        )
        effect, p = found
        tested.append(Confounder(name, kind, effect, min(1.0, p * len(ways)), 1.0, len(values), len(ways)))
    return max(tested, key=lambda one: ((one.p <= _LEVEL) * (1 + _WORDS.index(one.size)), -one.p, one.effect))


def _ways(name: str, column: pd.Series) -> tuple[NDArray[Any], tuple[str, ...]]:
    """Values of a column, none missing, and how to take them: ``categories``, ``numbers`` or both."""
    import pandas as pd

    dates = pd.api.types.is_datetime64_any_dtype(column.dtype) or pd.api.types.is_timedelta64_dtype(column.dtype)
    values = plain(column.astype("int64") if dates else column)
    if values is None:
        kinds = ", ".join(sorted({type(value).__name__ for value in column}))
        raise RequestError(
            f"column {name!r} holds {kinds}; give text, numbers, truth values or dates, one kind of them (column.astype(str) makes "
            "categories)"
        )
    if isinstance(column.dtype, pd.CategoricalDtype) or values.dtype.kind in "bU":
        return values, ("categories",)
    if np.isinf(values).any():
        raise RequestError(
            f"column {name!r} holds inf {int(np.isinf(values).sum())} times, which has no mean; give finite numbers, or NaN for values "
            "to leave out"
        )
    distinct = len(np.unique(values))
    if (values % 1 != 0).any():
        return values, ("numbers",)
    if distinct <= _FEW:
        return values, ("categories",)
    return values, ("categories", "numbers") if distinct <= len(values) / 2 else ("numbers",)


def _categories(codes: NDArray[np.int64], other: NDArray[np.int64], seed: int) -> tuple[float, float]:
    from scipy import stats

    table = _table(codes, other)
    effect = min(cramers_v(table), 1.0)
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    observed = _chi_square(table)
    if expected.min() >= _SPARSE:
        return effect, float(stats.chi2.sf(observed, (table.shape[0] - 1) * (table.shape[1] - 1)))
    rng = np.random.default_rng(seed)
    beyond = sum(_chi_square(_table(codes, rng.permutation(other))) >= observed * (1 - 1e-12) for _ in range(_DRAWS))
    return effect, (1 + beyond) / (1 + _DRAWS)


def _numbers(codes: NDArray[np.int64], values: NDArray[np.float64]) -> tuple[float, float]:
    from scipy import stats

    sizes = np.bincount(codes)
    means = np.bincount(codes, values) / sizes
    total = ((values - values.mean()) ** 2).sum()
    between = (sizes * (means - values.mean()) ** 2).sum()
    return float(between / total), float(stats.kruskal(*(values[codes == code] for code in range(len(sizes)))).pvalue)


def _table(a: NDArray[np.int64], b: NDArray[np.int64]) -> NDArray[np.int64]:
    width = int(b.max()) + 1
    return np.bincount(a * width + b, minlength=(int(a.max()) + 1) * width).reshape(-1, width)


def _chi_square(table: NDArray[np.int64]) -> float:
    expected = np.outer(table.sum(axis=1), table.sum(axis=0)) / table.sum()
    return float(((table - expected) ** 2 / expected).sum())
