"""Fits that follow a running campaign: LDS as rows come in, and an end when more rows are not worth it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.evaluation.curve import Curve
from datamodels.evaluation.lds import LDS, score
from datamodels.memory import bytes_of
from datamodels.regression.estimator import Estimator
from datamodels.regression.fit import attribution_of, fit_problem, resolve
from datamodels.regression.prior import check_scores
from datamodels.regression.problem import Problem
from datamodels.regression.source import OUTPUTS, Source
from datamodels.regression.split_statistics import SplitStatistics
from datamodels.spec import MASKS
from datamodels.store import Store

_FEWEST_TESTS = 10
_FEWEST_ROWS = 20
_BEAT_IS_OLD = 15.0
_SPAN = 4  # how far looks must reach, as a factor in models, before an extrapolation may end a campaign
_TICK = 0.5


@dataclass(frozen=True, eq=False)
class Look:
    """One refit, and what is expected of the whole campaign by the extrapolation of `Curve`.

    Attributes
    ----------
    n_models
        Models that were fitted.
    score
        Their `LDS` on held-out models.
    expected, limit
        The LDS when all rows are complete, and that of unlimited rows; None while fewer than two looks say anything.
    gain
        Interval of what the missing rows will add, or None likewise.
    """

    n_models: int
    score: LDS
    expected: float | None
    limit: float | None
    gain: tuple[float, float] | None

    def to_dict(self) -> dict[str, Any]:
        """All of it, JSON-ready."""
        rest = {"expected": self.expected, "limit": self.limit, "gain": None if self.gain is None else list(self.gain)}
        return {"models": self.n_models, **self.score.to_dict(), **rest}


@dataclass(frozen=True, eq=False)
class Watched:
    """How watching ended.

    Attributes
    ----------
    attribution
        The last fit, which has not used the held-out models.
    looks
        All of them, in order.
    ended
        Why.
    """

    attribution: Attribution
    looks: tuple[Look, ...]
    ended: str


def watch(
    store: Store | str | Path,
    estimator: Estimator | type[Estimator] | str | None = None,
    *,
    reach: float | None = None,
    worth: float | None = None,
    growth: float = 1.25,
    held_out: float = 0.15,
    patience: float = 60.0,
    seed: int = 0,
    draws: int = 500,
    masks_key: str = MASKS,
    outputs_key: str = OUTPUTS,
    on_look: Callable[[Look], None] | None = None,
) -> Watched:
    """Refit while a campaign completes rows, until it ends, or stop it when there are enough.

    Parameters
    ----------
    store
        The store that the campaign fills.
    estimator
        As in `datamodels.fit`.
    reach
        Stop the campaign when the lower end of the LDS interval is at least this (at any look, so the chance to
        stop a little early is larger than that of one interval).
    worth
        Stop the campaign when all rows that are still missing will raise the LDS by less than this, by the upper end
        of the interval of the extrapolation, and fits of four times as many models as the first have been seen.
    growth
        Refit when the rows have grown by this factor.
    held_out, seed
        Share of the design units of the whole campaign that is judged on and never fitted, drawn by seed.
    patience
        Seconds without a living campaign or a new row after which an incomplete store is taken as it is.
    draws
        Of the bootstrap intervals.
    masks_key, outputs_key
        Keys of the store.
    on_look
        Called after each refit.

    Raises
    ------
    RequestError
        when too few rows ever come, or options are out of range.
    """
    if not isinstance(store, Store):
        store = Store.open(store)
    for name, value in (("reach", reach), ("worth", worth), ("held_out", held_out)):
        if value is not None and not 0 < value < 1:
            raise RequestError(f"{name} is {value}; it must be between 0 and 1")
    if growth <= 1:
        raise RequestError(f"growth is {growth}; it must be above 1, for example 1.25")
    rows = _Rows(store, resolve(estimator), held_out, seed, masks_key, outputs_key)
    looks: list[Look] = []
    alive, before, ended, enough = time.monotonic(), 0, None, False
    while ended is None:
        done = int(store.completed().sum())
        if done > before or _running(store):
            alive, before = time.monotonic(), done
        last = rows.complete or time.monotonic() - alive > patience
        if rows.worth_a_look(looks[-1].n_models if looks else 0, growth, last):
            attribution, result = rows.fit(draws)
            looks.append(_look(looks, len(rows.fitted), result, rows.planned))
            if on_look:
                on_look(looks[-1])
        elif last and not looks:
            raise RequestError(
                f"{int(store.completed().sum())} rows are complete and no campaign is running: too few to fit and to judge; "
                "start `datamodels train`, or watch with more patience"
            )
        ended, enough = _reason(looks, reach, worth, last, rows.complete)
        if ended is None:
            time.sleep(_TICK)
    if enough and not rows.complete:
        for name in _running(store):
            store.ask_to_stop(name, ended)
    return Watched(attribution, tuple(looks), ended)


def _running(store: Store) -> list[str]:
    """Names of the campaigns that live."""
    now = time.time()
    beats = (beat for beat in store.campaigns() if beat.get("running") and "name" in beat)
    return [beat["name"] for beat in beats if now - beat.get("updated", 0) < _BEAT_IS_OLD]


def _look(looks: list[Look], n_models: int, result: LDS, planned: int) -> Look:
    sizes = np.array([look.n_models for look in looks] + [n_models])
    curve = Curve(sizes, tuple([look.score for look in looks] + [result]))
    return Look(n_models, result, curve.at(planned), curve.asymptote, curve.gain_interval(planned) if looks else None)


def _reason(
    looks: list[Look], reach: float | None, worth: float | None, last: bool, complete: bool
) -> tuple[str | None, bool]:
    """Why to end now, or None to go on; and whether the campaign has done enough."""
    if looks and not complete:
        look = looks[-1]
        if reach is not None and look.score.lds_ci[0] >= reach:
            return f"the lower end of the LDS interval, {look.score.lds_ci[0]:.3f}, has reached {reach}", True
        seen = look.n_models >= _SPAN * looks[0].n_models
        if worth is not None and seen and look.gain is not None and look.gain[1] < worth:
            return f"the missing rows would raise the LDS by {max(look.gain[1], 0):.3f} at most", True
    if last:
        reason = "all rows are complete" if complete else "no campaign is running"
        if reach is not None and looks and looks[-1].score.lds_ci[0] < reach:
            reason += f"; the lower end of the LDS interval is {looks[-1].score.lds_ci[0]:.3f}, below {reach}"
        return reason, False
    return None, False


class _Rows:
    """The rows of a store that are fitted and those that are judged on, as they become complete.

    Which row is which, and on which rows λ is chosen, is drawn once for all planned rows; so statistics of new
    rows are added to those of the old ones, which are not read again.
    """

    def __init__(
        self, store: Store, estimator: Estimator, held_out: float, seed: int, masks_key: str, outputs_key: str
    ) -> None:
        self.store = store
        self.estimator = estimator
        self.keys = (masks_key, outputs_key)
        every = np.arange(store.n_models)
        units = store.design.units(every) if store.design else every
        names = np.unique(units)
        drawn = np.random.default_rng(seed).permutation(names)[: max(1, round(held_out * len(names)))]
        self.for_test: NDArray[np.bool_] = np.isin(units, drawn)
        training = np.flatnonzero(~self.for_test)
        self.splits = []
        for chosen in estimator.splits(units[training]):
            self.splits.append(np.zeros(store.n_models, dtype=np.bool_))
            self.splits[-1][training[chosen]] = True
        self.of_train = store.field(outputs_key).of == "train"
        self.fitted = np.zeros(0, dtype=np.int64)
        self.counted = np.zeros(0, dtype=np.int64)
        self.sums: NDArray[np.uint32] | None = None
        self.data: SplitStatistics | None = None

    @property
    def planned(self) -> int:
        """Rows that will be fitted in the end."""
        return int((~self.for_test).sum())

    @property
    def complete(self) -> bool:
        return bool(self._done().all())

    def _done(self) -> NDArray[np.bool_]:
        """Which rows are complete, of those that were planned when watching began."""
        done = np.zeros(len(self.for_test), dtype=np.bool_)
        found = self.store.completed()[: len(done)]
        done[: len(found)] = found
        return done

    def worth_a_look(self, before: int, growth: float, last: bool) -> bool:
        """Whether there are enough new rows, and enough to choose λ and to judge on."""
        done = self._done()
        now = int((done & ~self.for_test).sum())
        enough = now >= _FEWEST_ROWS and int((done & self.for_test).sum()) >= _FEWEST_TESTS
        enough = enough and all((done & chosen).any() for chosen in self.splits)
        return enough and now > before and (last or now >= growth * before)

    def fit(self, draws: int) -> tuple[Attribution, LDS]:
        """Fit the rows that are complete by now, and judge on the held-out ones."""
        done = self._done()
        for name, scores in self.estimator.scores().items():  # held-out rows that it has used cannot judge it
            check_scores(scores, self._problem(done), name)
        training = self._problem(done & ~self.for_test)
        rows = training.sources[0].rows
        attribution = self._fit(training, rows)
        self.fitted = rows
        testing = self._problem(done & self.for_test)
        return attribution, score(attribution, testing, draws=draws, confidence=0.95, seed=0)

    def _fit(self, training: Problem, rows: NDArray[np.int64]) -> Attribution:
        apart = training.train_columns is not None and self.estimator.out_of_mask
        if apart or self.estimator.prefers_rows(training, bytes_of(None)):
            return fit_problem(training, self.estimator, progress=False)
        self._forget_what_changed(rows)
        new = ~np.isin(rows, self.counted)
        found = SplitStatistics.of(training.take(new), [chosen[rows[new]] for chosen in self.splits])
        self.data = found if self.data is None else self.data + found
        self.counted = rows
        sums = self.store.checksums()
        self.sums = None if sums is None else sums[rows]
        return attribution_of(self.estimator.solve(self.data), training, self.estimator, out_of_mask=False)

    def _forget_what_changed(self, rows: NDArray[np.int64]) -> None:
        """Begin again when a row that was counted has gone or was written anew."""
        sums = self.store.checksums()
        rewritten = sums is not None and self.sums is not None and bool((sums[self.counted] != self.sums).any())
        if rewritten or not np.isin(self.counted, rows).all():
            self.data, self.counted = None, np.zeros(0, dtype=np.int64)

    def _problem(self, rows: NDArray[np.bool_]) -> Problem:
        source = Source.from_store(self.store, *self.keys).restrict(rows)
        return Problem.assemble([source], None, self.of_train)
