"""Knockoffs, intervals and stability selection against simulations whose truth is known."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import typer

from datamodels import Design, Lasso, Ridge, Store, fit
from datamodels.attribution import Attribution
from datamodels.errors import DatamodelsWarning, NewerFormatError, RequestError
from datamodels.regression.problem import Problem
from datamodels.significance import knockoffs, result_file
from datamodels.significance.intervals import Intervals, intervals
from datamodels.significance.knockoffs import Selection, knockoff_threshold, select
from datamodels.significance.stability import Stability, _half_samples, stability, strongest

FEW = Lasso(n_lambdas=40, eps=1e-2)
# Repeats of a simulation are independent, so the deviation of their mean is known; a normal mean is
# further above its expectation than this many deviations less than once in 100,000 times.
SIGMAS = 4.3


class Simulated(NamedTuple):
    """Masks (m, n), outputs (m, t), weights (n, t), and the design."""

    masks: np.ndarray
    outputs: np.ndarray
    weights: np.ndarray
    design: Design


def simulate(
    m: int,
    *,
    n: int = 100,
    t: int = 30,
    nonzero: int = 15,
    noise: float = 1.0,
    one_sign: bool = False,
    **design: object,
) -> Simulated:
    """Independent sparse truths for many targets, which share the masks."""
    drawn = Design(**{"n_train": n, "n_models": m, "alpha": 0.5, "kind": "bernoulli", "seed": 0, **design})
    rng = np.random.default_rng([m, drawn.seed])
    masks = drawn.masks()
    weights = np.zeros((n, t))
    for k in range(t):
        signs = 1.0 if one_sign else rng.choice([-1.0, 1.0], nonzero)
        weights[rng.choice(n, nonzero, replace=False), k] = signs * rng.uniform(0.5, 1.5, nonzero)
    scale = noise * np.sqrt(nonzero * drawn.alpha * (1 - drawn.alpha))
    return Simulated(masks, masks @ weights + scale * rng.normal(size=(m, t)), weights, drawn)


def chosen(s: Simulated, **options: object) -> Selection:
    return select(masks=s.masks, outputs=s.outputs, design=s.design, estimator=FEW, progress=False, **options)


def false_share(selected: np.ndarray, weights: np.ndarray) -> float:
    """Mean over targets of the share of selected examples without influence."""
    false = (selected & (weights == 0)).sum(axis=0)
    return float((false / np.maximum(selected.sum(axis=0), 1)).mean())


def power(selected: np.ndarray, weights: np.ndarray) -> float:
    return float(selected[weights != 0].mean())


class TestKnockoffs:
    @pytest.mark.parametrize("alpha", [0.5, 0.1])
    @pytest.mark.parametrize("one_sign", [False, True])
    def test_the_realised_rate_is_at_most_the_nominal_one(self, alpha: float, one_sign: bool) -> None:
        shares, powers = [], []
        for seed in range(8):
            s = simulate(500, alpha=alpha, seed=seed, one_sign=one_sign, nonzero=25)
            found = chosen(s, fdr=0.2, seed=seed)
            assert found.exact
            shares.append(false_share(found.selected, s.weights))
            powers.append(power(found.selected, s.weights))
        # The deviation is not estimated from 8 repeats: that of one target is at most .2 or so, and targets that
        # share masks and knockoffs still have noise and truths of their own. Measured: .02 per repeat.
        assert np.mean(shares) <= 0.2 + SIGMAS * 0.03 / np.sqrt(8)
        assert np.mean(powers) > 0.5

    def test_it_holds_for_outputs_that_are_not_linear_and_noise_that_depends_on_the_subset(self) -> None:
        shares = []
        for seed in range(6):
            s = simulate(600, alpha=0.3, seed=seed, noise=0.0)
            u = (s.outputs - s.outputs.mean(axis=0)) / s.outputs.std(axis=0)
            noise = np.random.default_rng(seed).normal(size=u.shape)
            bent = np.tanh(2 * u) + 0.3 * u**2 + 0.5 * np.exp(0.5 * u) * noise
            shares.append(false_share(chosen(s._replace(outputs=bent), fdr=0.2).selected, s.weights))
        assert np.mean(shares) <= 0.2 + SIGMAS * 0.03 / np.sqrt(6)

    def test_power_grows_with_models(self) -> None:
        powers = []
        for m in (150, 400, 1200):
            s = simulate(m, noise=1.5)
            powers.append(power(chosen(s, fdr=0.2).selected, s.weights))
        assert powers[0] < powers[1] < powers[2]
        assert powers[2] > 0.8

    def test_fixed_sums_are_called_approximate_and_are(self) -> None:
        """The rate holds where signs balance, and is exceeded where many examples push the same way."""
        shares = {}
        for one_sign in (False, True):
            found = []
            for seed in range(4):
                s = simulate(800, kind="fixed_size", seed=seed, one_sign=one_sign, nonzero=35)
                result = chosen(s, fdr=0.1)
                assert not result.exact
                found.append(false_share(result.selected, s.weights))
            shares[one_sign] = np.mean(found)
        assert shares[False] <= 0.1 + SIGMAS * 0.02 / 2
        assert shares[True] > 0.12

    def test_nothing_to_find_gives_nothing_in_most_targets(self) -> None:
        """Without any influence the rate is the chance of selecting anything at all."""
        s = simulate(300, t=200, noise=1.0)
        noise = np.random.default_rng(1).normal(size=s.outputs.shape)
        some = chosen(s._replace(outputs=noise), fdr=0.2).counts() > 0
        assert some.mean() <= 0.2

    def test_a_small_example_of_the_threshold(self) -> None:
        w = np.array([[5, 4, 3, 2, -1.5, 1, 0, 0]], dtype=np.float32).T
        # knockoff+: (1 + 0)/4 at T = 2; (1 + 1)/5 at T = 1
        assert knockoff_threshold(w, 0.25)[0] == 2
        assert knockoff_threshold(w, 0.4)[0] == 1
        assert knockoff_threshold(w, 0.2)[0] == np.inf
        assert knockoff_threshold(w, 0.1, "knockoff")[0] == 2
        assert knockoff_threshold(-w, 0.5)[0] == np.inf
        assert knockoff_threshold(0 * w, 0.5)[0] == np.inf

    def test_the_variant_knockoff_selects_at_least_as_much(self) -> None:
        s = simulate(300)
        plus, plain = chosen(s), chosen(s, variant="knockoff")
        assert (plain.selected | ~plus.selected).all()
        assert plain.counts().sum() > plus.counts().sum()

    def test_swapping_an_example_and_its_knockoff_flips_its_statistic_alone(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        s = simulate(200, n=20, t=4, nonzero=5)
        before = chosen(s)
        double = knockoffs._doubled

        def swapped(*arguments: object) -> object:
            pair = double(*arguments)
            order = np.arange(40)
            order[[3, 23]] = [23, 3]
            masks = pair.masks
            return replace(pair, masks=lambda start, stop: masks(start, stop)[:, order])

        monkeypatch.setattr(knockoffs, "_doubled", swapped)
        after = chosen(s)
        flip = np.where(np.arange(20) == 3, -1, 1)[:, None]
        np.testing.assert_allclose(after.statistic, flip * before.statistic, atol=1e-5)

    def test_replicates_share_their_knockoff_mask(self) -> None:
        design = Design(n_train=30, alpha=0.5, n_models=12, kind="bernoulli", replicates=3)
        source = Problem.build(masks=design.masks(), outputs=np.zeros(12)).sources[0]
        pair = knockoffs._doubled(source, design, 0)
        both = pair.masks(0, 12)
        np.testing.assert_array_equal(both[:, :30], design.masks())
        copies = both[:, 30:].reshape(4, 3, 30)
        assert (copies == copies[:, :1]).all()
        assert len(np.unique(copies[:, 0], axis=0)) == 4
        assert pair.units.tolist() == np.repeat(np.arange(4), 3).tolist()
        assert not np.array_equal(both, knockoffs._doubled(source, design, 1).masks(0, 12))

    def test_targets_that_are_train_examples_never_select_themselves(self) -> None:
        s = simulate(300, n=20, t=20, nonzero=6, noise=0.1)
        s.outputs[:] += 5 * s.masks
        found = chosen(s, fdr=0.3, targets_are_train=True)
        assert not found.statistic.diagonal().any()
        assert not found.selected.diagonal().any()
        assert power(found.selected, np.where(np.eye(20), 0, s.weights)) > 0.5

    def test_a_store_knows_its_design(self, new_store: Callable[..., Store]) -> None:
        store = new_store(200, kind="bernoulli")
        outputs = store.design.masks()[:, :8] @ np.ones((8, 4))
        store.write_rows(range(200), {"margins": outputs.astype(np.float32)})
        found = select(store, fdr=0.2, progress=False)
        assert found.exact
        assert (found.counts() >= 5).all()
        first = found.of(0)
        assert (np.diff(found.statistic[first, 0]) <= 0).all()
        assert set(first) <= set(np.flatnonzero(found.selected[:, 0]))
        with pytest.raises(RequestError, match="the store knows how its masks were drawn"):
            select(store, design=store.design, progress=False)

    @pytest.mark.parametrize(
        ("kind", "more", "says"),
        [
            ("antithetic", {}, "complementary pairs.*'bernoulli'.*stability selection"),
            ("leave_one_out", {}, "nothing in it is drawn at random"),
            ("grouped", {"alpha": 0.5, "groups": [0, 0, 1, 1, 2, 2]}, "masks with one column per group"),
        ],
    )
    def test_designs_without_knockoffs_are_refused(self, kind: str, more: dict[str, object], says: str) -> None:
        design = Design(n_train=6, n_models=6, kind=kind, **more)
        with pytest.raises(RequestError, match=says):
            select(masks=design.masks(), outputs=np.arange(6.0), design=design)

    def test_unknown_and_wrong_designs_are_refused(self) -> None:
        s = simulate(100, n=30)
        with pytest.raises(RequestError, match=r"not known.*design.*Design\(n_train=30"):
            select(masks=s.masks, outputs=s.outputs)
        for wrong, says in (
            (Design(n_train=30, alpha=0.2, kind="bernoulli"), "alpha is 0.2, but these subsets hold 0[.][45]"),
            (Design(n_train=30, alpha=0.5, kind="fixed_size"), "15 examples in every subset.*is its kind 'bernoulli'"),
            (Design(n_train=31, alpha=0.5, kind="bernoulli"), "n_train 31; the masks have 30"),
        ):
            with pytest.raises(RequestError, match=says):
                select(masks=s.masks, outputs=s.outputs, design=wrong)
        for repeated, replicates in ((s.masks.repeat(2, axis=0)[:100], 1), (s.masks, 2)):
            with pytest.raises(RequestError, match=f"design has replicates {replicates}, but the first 100 rows hold"):
                select(masks=repeated, outputs=s.outputs, design=replace(s.design, replicates=replicates))
        fixed = Design(n_train=30, alpha=0.5, n_models=100).masks()
        with pytest.raises(RequestError, match="their kind is not 'bernoulli'"):
            select(masks=fixed, outputs=s.outputs, design=s.design)
        for options, says in (
            ({"fdr": 1.0}, "fdr is 1.0"),
            ({"estimator": Ridge()}, "is a Lasso"),
            ({"variant": "plus"}, r"legal: knockoff\+, knockoff"),
            ({"seed": -1}, "seed is -1"),
        ):
            with pytest.raises(RequestError, match=says):
                select(masks=s.masks, outputs=s.outputs, design=s.design, **options)


def effects(s: Simulated) -> np.ndarray:
    """E[output | j in] - E[output | j out] of a linear truth."""
    if s.design.kind == "bernoulli":
        return s.weights
    n = len(s.weights)
    return (s.weights - s.weights.mean(axis=0)) * n / (n - 1)


def covered(found: Intervals, truth: np.ndarray) -> np.ndarray:
    return (found.low <= truth) & (truth <= found.high)


def fitted(s: Simulated, **options: object) -> Attribution:
    return fit(masks=s.masks, outputs=s.outputs, estimator=FEW, progress=False, **options)


class TestIntervals:
    @pytest.mark.parametrize("kind", ["bernoulli", "fixed_size"])
    @pytest.mark.parametrize("alpha", [0.5, 0.1])
    @pytest.mark.parametrize("robust", [True, False])
    def test_they_cover(self, kind: str, alpha: float, robust: bool) -> None:
        s = simulate(600, t=60, kind=kind, alpha=alpha, one_sign=True, nonzero=30)
        found = intervals(fitted(s), masks=s.masks, outputs=s.outputs, confidence=0.9, robust=robust, progress=False)
        # 6,000 intervals; those of one target are nearly independent. 1 point is left for what is asymptotic.
        tolerance = SIGMAS * np.sqrt(0.9 * 0.1 / 6000) + 0.01
        assert covered(found, effects(s)).mean() == pytest.approx(0.9, abs=tolerance)
        z = (found.estimate - effects(s)) / found.standard_error
        assert abs(z.mean()) < 0.1
        assert z.std() == pytest.approx(1, abs=0.07)

    def test_robust_errors_cover_where_noise_depends_on_the_subset_and_plain_ones_do_not(self) -> None:
        """Example j doubles the noise of target j: at alpha .1 the error of its weight is much larger."""
        s = simulate(800, n=80, t=80, alpha=0.1, nonzero=6, noise=0.0)
        noise = np.random.default_rng(5).normal(size=s.outputs.shape) * np.where(s.masks, 3.0, 1.0)
        s = s._replace(outputs=s.outputs + noise)
        attribution, shares = fitted(s), {}
        for robust in (True, False):
            found = intervals(attribution, masks=s.masks, outputs=s.outputs, robust=robust, progress=False)
            shares[robust] = covered(found, s.weights).diagonal().mean()
        assert shares[True] > 0.95 - SIGMAS * np.sqrt(0.95 * 0.05 / 80)
        assert shares[False] < 0.75

    def test_they_cover_mean_influences_where_examples_interact(self) -> None:
        s = simulate(900, alpha=0.2, t=60, nonzero=10)
        truth, outputs = s.weights.copy(), s.outputs.copy()
        for k in range(60):
            a, b = np.flatnonzero(s.weights[:, k])[:2]
            outputs[:, k] += 4 * (s.masks[:, a] & s.masks[:, b])
            truth[[a, b], k] += 4 * 0.2
        s = s._replace(outputs=outputs)
        found = intervals(fitted(s), masks=s.masks, outputs=outputs, progress=False)
        inside = covered(found, truth)[s.weights != 0]
        assert inside.mean() > 0.95 - SIGMAS * np.sqrt(0.95 * 0.05 / inside.size) - 0.01

    def test_p_values_are_uniform_without_influence(self) -> None:
        s = simulate(500, t=60)
        p = intervals(fitted(s), masks=s.masks, outputs=s.outputs, progress=False).p_value[s.weights == 0]
        for share in (0.01, 0.1, 0.5):
            assert (p < share).mean() == pytest.approx(share, abs=SIGMAS * np.sqrt(share * (1 - share) / p.size) + 0.01)

    def test_they_are_those_of_the_formula(self) -> None:
        s = simulate(150, n=60, t=3, nonzero=4, alpha=0.3)
        attribution = fitted(s)
        found = intervals(attribution, masks=s.masks, outputs=s.outputs, progress=False)
        z = (s.masks - s.masks.mean(axis=0)) / s.masks.std(axis=0)
        for k in range(3):
            r = s.outputs[:, k] - attribution.predict(s.masks)[:, k]
            dof = 150 - np.count_nonzero(attribution.weights[:, k]) - 1
            expected = attribution.weights[:, k] + z.T @ r / dof / s.masks.std(axis=0)
            error = np.sqrt((z**2).T @ r**2) / dof / s.masks.std(axis=0)
            np.testing.assert_allclose(found.estimate[:, k], expected, atol=1e-5)
            np.testing.assert_allclose(found.standard_error[:, k], error, rtol=1e-4)

    def test_replicates_count_as_one_observation(self) -> None:
        """Runs of one mask that agree tell no more than one run."""
        once = simulate(200, n=30, t=10)
        twice = Simulated(once.masks.repeat(2, axis=0), once.outputs.repeat(2, axis=0), once.weights, once.design)
        a = fitted(once)
        expected = intervals(a, masks=once.masks, outputs=once.outputs, progress=False)
        again = replace(a, provenance=fitted(twice).provenance)
        found = intervals(again, masks=twice.masks, outputs=twice.outputs, progress=False)
        np.testing.assert_allclose(found.estimate, expected.estimate, atol=1e-5)
        np.testing.assert_allclose(found.standard_error, expected.standard_error, rtol=1e-5)

    def test_they_cover_where_replicates_share_what_is_not_linear(self, tmp_path: Path) -> None:
        s = simulate(600, n=60, t=40, nonzero=12, noise=0.0, alpha=0.3, replicates=3)
        rng = np.random.default_rng(2)
        outputs = s.outputs + rng.normal(size=(200, 40)).repeat(3, axis=0) + 0.3 * rng.normal(size=(600, 40))
        store = Store.create(tmp_path / "st", schema={"margins": {"shape": (40,), "dtype": "float64"}}, design=s.design)
        store.write_rows(range(600), {"margins": outputs})
        found = intervals(fit(store, FEW, progress=False), store, progress=False)
        assert covered(found, s.weights).mean() == pytest.approx(0.95, abs=SIGMAS * np.sqrt(0.95 * 0.05 / 2400) + 0.01)

    def test_targets_that_are_train_examples_use_rows_without_them(self) -> None:
        s = simulate(500, n=30, t=30, nonzero=6)
        s.outputs[:] += 20 * s.masks * s.masks[:, ::-1]  # what happens when j is in must not matter
        attribution = fitted(s, targets_are_train=True)
        found = intervals(attribution, masks=s.masks, outputs=s.outputs, progress=False)
        own = np.eye(30, dtype=bool)
        assert np.isinf(found.standard_error[own]).all()
        assert (found.p_value[own] == 1).all()
        inside = covered(found, s.weights)[~own]
        assert inside.mean() == pytest.approx(0.95, abs=SIGMAS * np.sqrt(0.95 * 0.05 / inside.size) + 0.01)

    def test_rows_are_found_again(self, new_store: Callable[..., Store]) -> None:
        store = new_store(120, n_train=30, kind="bernoulli")
        outputs = store.design.masks()[:, :4] + np.random.default_rng(0).normal(size=(120, 4))
        store.write_rows(range(120), {"margins": outputs.astype(np.float32)})
        attribution = fit(store, rows=(20, 120), targets=[1, 3], progress=False)
        found = intervals(attribution, store, progress=False)
        assert (found.n_models, found.targets.tolist()) == (100, [1, 3])
        # A copy of the files is known again by its masks.
        copy = intervals(attribution, masks=store.masks(20, 120), outputs=outputs[20:], progress=False)
        np.testing.assert_allclose(copy.estimate, found.estimate, atol=1e-5)
        with pytest.raises(RequestError, match="used 100 rows, of which 0 were found"):
            intervals(attribution, masks=~store.masks(), outputs=outputs, progress=False)
        with pytest.raises(RequestError, match="has targets up to 3, the outputs 2"):
            intervals(attribution, masks=store.masks(), outputs=outputs[:, :2], progress=False)

    def test_constant_examples_and_saturated_fits_are_unknown(self) -> None:
        s = simulate(100, n=20, t=2, nonzero=3)
        s.masks[:, 4] = True
        with pytest.warns(DatamodelsWarning):
            attribution = fitted(s)
        found = intervals(attribution, masks=s.masks, outputs=s.outputs, progress=False)
        assert np.isinf(found.standard_error[4]).all()
        assert np.isfinite(found.estimate).all()
        few = simulate(20, n=20, t=2, nonzero=3)
        attribution = fitted(few)
        full = replace(attribution, weights=attribution.weights + np.where(attribution.weights == 0, 1e-9, 0))
        with pytest.warns(DatamodelsWarning, match="2 targets .* as many nonzero weights as rows"):
            found = intervals(full, masks=few.masks, outputs=few.outputs, progress=False)
        assert np.isinf(found.standard_error).all()
        assert (found.p_value == 1).all()

    def test_wrong_requests(self) -> None:
        s = simulate(80, n=10, t=3, nonzero=2)
        arrays = {"masks": s.masks, "outputs": s.outputs, "progress": False}
        attribution = fitted(s)
        with pytest.raises(RequestError, match="confidence is 95"):
            intervals(attribution, confidence=95, **arrays)
        with pytest.raises(RequestError, match="of 'ridge': fit one with Lasso"):
            intervals(fit(estimator=Ridge(), **arrays), **arrays)
        with pytest.raises(RequestError, match="without intercept"):
            intervals(fit(estimator=Lasso(intercept=False), **arrays), **arrays)
        with pytest.raises(RequestError, match="do not average 0"):
            intervals(attribution, masks=s.masks, outputs=s.outputs + 9, progress=False)
        with pytest.raises(RequestError, match="used 80 rows, of which 60"):
            intervals(attribution, masks=s.masks[:60], outputs=s.outputs[:60], progress=False)

    @pytest.mark.parametrize("kind", ["antithetic", "leave_one_out"])
    def test_designs_with_dependent_rows_are_refused(self, kind: str, new_store: Callable[..., Store]) -> None:
        store = new_store(12, kind=kind, alpha=None)
        outputs = np.random.default_rng(0).normal(size=(12, 4)).astype(np.float32)
        store.write_rows(range(12), {"margins": outputs})
        with pytest.raises(RequestError, match=f"no intervals for a design of kind '{kind}'"):
            intervals(fit(store, progress=False), store, progress=False)


class TestStability:
    def test_it_finds_what_was_planted_and_keeps_its_bound(self) -> None:
        s = simulate(500, t=40, nonzero=8)
        found = stability(masks=s.masks, outputs=s.outputs, halves=20, progress=False)
        assert (found.q, found.bound) == (7, pytest.approx(49 / 50))
        wrong = (found.selected & (s.weights == 0)).sum(axis=0)
        assert wrong.mean() <= found.bound
        # Only q per half can be named, so weak ones of the 8 miss out: the strong half of them is found.
        strong = np.abs(s.weights) > 1
        assert found.selected[strong].mean() > 0.9
        assert found.frequency.max() <= 1
        assert (found.frequency.sum(axis=0) <= found.q + 1e-4).all()

    def test_noise_selects_less_than_the_bound(self) -> None:
        s = simulate(200, t=40)
        noise = np.random.default_rng(3).normal(size=s.outputs.shape)
        found = stability(masks=s.masks, outputs=noise, halves=10, threshold=0.6, q=4, progress=False)
        assert found.bound == pytest.approx(16 / (0.2 * 100))
        assert found.counts().mean() <= found.bound

    def test_halves_are_complementary_and_keep_units_together(self) -> None:
        units = np.arange(20).repeat(3)
        halves = list(_half_samples(units, 6, seed=0))
        assert len(halves) == 6
        for one, other in zip(halves[::2], halves[1::2], strict=True):
            np.testing.assert_array_equal(one, ~other)
            assert len(np.unique(units[one])) == 10
            assert one.sum() == 30

    def test_the_strongest(self) -> None:
        weights = np.array([[3, 0], [-4, 0], [1, 0], [0, -2]], dtype=np.float32)
        assert strongest(weights, 2).tolist() == [[True, False], [True, False], [False, False], [False, True]]

    def test_antithetic_designs_and_targets_of_train(self) -> None:
        design = Design(n_train=16, n_models=300, kind="antithetic")
        rng = np.random.default_rng(0)
        masks = design.masks()
        outputs = masks[:, [5] * 16] * 2.0 + rng.normal(size=(300, 16))
        found = stability(masks=masks, outputs=outputs, halves=4, targets_are_train=True, progress=False)
        assert not found.selected.diagonal().any()
        assert np.delete(found.selected[5], 5).all()
        assert found.of(0).tolist()[0] == 5

    def test_wrong_requests(self) -> None:
        s = simulate(80, n=10, t=2, nonzero=2)
        arrays = {"masks": s.masks, "outputs": s.outputs, "progress": False}
        for options, says in (
            ({"halves": 5}, "halves is 5; give an even number"),
            ({"threshold": 0.5}, "threshold is 0.5"),
            ({"q": 11}, "q is 11; it must be from 1"),
            ({"seed": -1}, "seed is -1"),
            ({"rows": (0, 6)}, "6 independent models are too few"),
        ):
            with pytest.raises(RequestError, match=says):
                stability(**arrays, **options)


class TestFiles:
    def results(self) -> list[Selection | Intervals | Stability]:
        s = simulate(150, n=20, t=4, nonzero=5, noise=0.3)
        arrays = {"masks": s.masks, "outputs": s.outputs, "progress": False}
        return [
            chosen(s, fdr=0.3, targets=[0, 2]),
            intervals(fitted(s, targets=[0, 2]), **arrays),
            stability(halves=4, targets=[0, 2], **arrays),
        ]

    def test_they_come_back(self, tmp_path: Path) -> None:
        for result in self.results():
            path = result.save(tmp_path / "result.h5ad")
            back = type(result).load(path)
            for name in result.__dataclass_fields__:
                if name != "provenance":
                    np.testing.assert_array_equal(getattr(back, name), getattr(result, name), err_msg=name)
                    assert type(getattr(back, name)) is type(getattr(result, name))
            assert back.to_dict() == result.to_dict()
            assert json.dumps(result.to_dict())
            assert back.provenance["versions"] == result.provenance["versions"]

    def test_other_files_are_refused(self, tmp_path: Path) -> None:
        selection, made, stable = self.results()
        path = selection.save(tmp_path / "a.h5ad")
        with pytest.raises(RequestError, match="no file of intervals \\(it holds selection\\)"):
            Intervals.load(path)
        with pytest.raises(RequestError, match="holds selection, not weights to predict with"):
            Attribution.load(path)
        with pytest.raises(RequestError, match=r"must end in \.h5ad"):
            made.save(tmp_path / "a.npz")
        with pytest.raises(RequestError, match="there is no file"):
            Stability.load(tmp_path / "none.h5ad")
        (tmp_path / "text.h5ad").write_text("text")
        with pytest.raises(RequestError, match="not a readable"):
            Stability.load(tmp_path / "text.h5ad")
        assert stable.of(0).dtype == np.int64

    @pytest.mark.parametrize("kind", ["selection", "intervals", "stability"])
    def test_newer_files_are_refused(self, tmp_path: Path, kind: str) -> None:
        table = Attribution(np.zeros((2, 3)), np.zeros(3))
        path = result_file.write(tmp_path / "new.h5ad", kind, 99, table, {}, {})
        kinds = {"selection": Selection, "intervals": Intervals, "stability": Stability}
        with pytest.raises(NewerFormatError, match="format version 99, this package reads up to version 1"):
            kinds[kind].load(path)


class TestCommands:
    @pytest.fixture
    def run(self) -> Callable[..., None]:
        from datamodels.cli import selecting

        app = typer.Typer(pretty_exceptions_enable=False)
        for command in (selecting.select, selecting.stability, selecting.intervals):
            app.command()(command)

        def call(*arguments: object) -> None:
            app([str(argument) for argument in arguments], standalone_mode=False)

        return call

    def test_they_write_and_say_so(
        self, run: Callable[..., None], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        s = simulate(200, n=20, t=3, nonzero=8, noise=0.3)
        np.save(tmp_path / "x.npy", s.masks)
        np.save(tmp_path / "y.npy", s.outputs)
        arrays = ("--masks", tmp_path / "x.npy", "--outputs", tmp_path / "y.npy")
        out = tmp_path / "out.h5ad"
        run("select", *arrays, "--out", out, "--kind", "bernoulli", "--alpha", 0.5, "--fdr", 0.2, "--json")
        said = json.loads(capsys.readouterr().out)
        assert said["n_selected"] == int(Selection.load(out).selected.sum()) > 0
        run("stability", *arrays, "--out", out, "--halves", 4, "--json")
        assert json.loads(capsys.readouterr().out)["halves"] == Stability.load(out).halves == 4
        fitted(s).save(tmp_path / "lasso.h5ad")
        run("intervals", tmp_path / "lasso.h5ad", *arrays, "--out", out, "--no-robust", "--confidence", 0.9)
        assert "90% intervals of 20 x 3 weights" in capsys.readouterr().out
        assert not Intervals.load(out).robust
        with pytest.raises(RequestError, match="--kind and --alpha go together"):
            run("select", *arrays, "--out", out, "--kind", "bernoulli")
        with pytest.raises(RequestError, match=r"must end in \.h5ad"):
            run("select", *arrays, "--out", "out.csv")
