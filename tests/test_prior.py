"""Datamodels with a prior: the factors, the choice per target, and what a good and a useless prior do."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from datamodels import Attribution, Design, ElasticNet, Lasso, Ridge, Store, calibrate, fit, lds, stability, watch
from datamodels.errors import RequestError
from datamodels.evaluation.compare import compare_lds
from datamodels.evaluation.curve import curve
from datamodels.regression.estimators import from_description
from datamodels.regression.prior import CHOICES, prior_factors

from .conftest import Planted, plant


def test_factors_are_those_of_the_formula() -> None:
    scores = np.random.default_rng(0).normal(size=(50, 3))
    scores[:, 2] = 0
    factors = prior_factors(scores, exponent=0.5, floor=0.05)
    for k in range(2):
        largest = np.sort(abs(scores[:, k]))[-20:].mean()
        expected = 1 / (np.sqrt(np.minimum(1, abs(scores[:, k]) / largest)) + 0.05)
        np.testing.assert_allclose(factors[:, k], expected / expected.mean(), rtol=1e-12)
    np.testing.assert_allclose(factors[:, 2], 1.0)  # a prior without an opinion
    for wrong in ({"exponent": 0.0}, {"floor": -1.0}):
        with pytest.raises(RequestError, match="must be above 0"):
            prior_factors(scores, **wrong)
    with pytest.raises(RequestError, match="NaN or infinite"):
        prior_factors(np.full((4, 2), np.nan))


@pytest.mark.parametrize("estimator", [Lasso, ElasticNet])
def test_a_choice_is_the_fit_with_its_factors(estimator: type[Lasso]) -> None:
    """Each target has the weights of the penalty factors that it says it chose, and of those the largest R²."""
    p = plant(200, 40, 6, noise=1.0)
    rng = np.random.default_rng(1)
    prior = Attribution(p.weights + 0.3 * rng.normal(size=p.weights.shape), np.zeros(6))
    result = fit(masks=p.masks, outputs=p.outputs, estimator=estimator(prior=prior), progress=False)
    tried = {(0.0, 0.0): fit(masks=p.masks, outputs=p.outputs, estimator=estimator(), progress=False)}
    for exponent, floor in CHOICES:
        factors = prior_factors(prior, exponent=exponent, floor=floor)
        tried[exponent, floor] = fit(
            masks=p.masks, outputs=p.outputs, estimator=estimator(), penalty_factors=factors, progress=False
        )
    facts = result.target_facts
    for k in range(6):
        chosen = tried[float(facts["prior_exponent"][k]), float(facts["prior_floor"][k])]
        np.testing.assert_array_equal(result.weights[:, k], chosen.weights[:, k])
        assert facts["val_r2"][k] == max(one.target_facts["val_r2"][k] for one in tried.values())
        assert facts["gap"][k] <= 1e-8
    assert (facts["prior_exponent"] > 0).any()
    assert result.provenance["estimator"]["prior"]["name"] == "unknown"
    assert from_description(estimator(eps=0.01).describe()) == estimator(eps=0.01)
    with pytest.raises(RequestError, match="had a prior"):
        from_description(result.provenance["estimator"])


def test_a_good_prior_helps_and_a_useless_one_does_little_harm() -> None:
    p = plant(1300, 300, 20, nonzero=20, noise=1.0, seed=3)
    rng = np.random.default_rng(4)
    good = Attribution(p.weights + 0.3 * abs(p.weights).max() * rng.normal(size=p.weights.shape) ** 3 / 4, np.zeros(20))
    useless = Attribution(rng.normal(size=p.weights.shape), np.zeros(20))
    held = {"masks": p.masks[100:], "outputs": p.outputs[100:]}
    score = {}
    for name, prior in (("plain", None), ("good", good), ("useless", useless)):
        fitted = fit(masks=p.masks[:100], outputs=p.outputs[:100], estimator=Lasso(prior=prior), progress=False)
        score[name] = lds(fitted, **held, rows=(0, 1000)).lds
    assert score["good"] > score["plain"] + 0.03
    assert score["useless"] > score["plain"] - 0.03


def test_a_prior_of_other_examples_is_refused() -> None:
    p = plant(60, 12, 2)
    prior = Attribution(np.zeros((12, 3)), np.zeros(3))
    with pytest.raises(RequestError, match=r"scores 12 training examples for 3 targets; the outputs are of 12\s+and 2"):
        fit(masks=p.masks, outputs=p.outputs, estimator=Lasso(prior=prior), progress=False)
    for given, message in (
        (
            Attribution(np.ones((12, 2)), np.zeros(2), {"target": np.array([1, 0])}),
            "its target 0 is output 1 .*, and output 0 is fitted there",
        ),
        (Attribution(np.ones((12, 2)), np.zeros(2), {"target": np.array([0, -1])}), "'target'. of the prior .* from 0"),
        (Attribution(np.ones((12, 2)), np.zeros(2), {"target": np.array([0, 1.5])}), "dtype float64"),
        (Attribution(np.ones((12, 2)), np.zeros(2), train_columns=np.array([3, 4])), "that are fitted are not"),
        (Attribution(np.full((12, 2), np.inf), np.zeros(2)), "prior has scores that are NaN"),
    ):
        with pytest.raises(RequestError, match=message):
            fit(masks=p.masks, outputs=p.outputs, estimator=Lasso(prior=given), progress=False)


@pytest.mark.parametrize("given", [np.ones((12, 2)), "scores.h5ad", {"weights": np.ones((12, 2)), "bias": np.zeros(2)}])
def test_only_an_attribution_is_a_prior(given: object) -> None:
    for name in ("prior", "offset"):
        with pytest.raises(RequestError, match=rf"{name} is of type .*; give an Attribution \(Attribution.load reads"):
            Lasso(**{name: given})


def used() -> tuple[Planted, Attribution]:
    """400 rows, of which ridge has used the last 100."""
    p = plant(400, 30, 4, noise=1.0)
    return p, fit(masks=p.masks, outputs=p.outputs, estimator=Ridge(), rows=(300, 400), progress=False)


def test_rows_that_a_prior_has_used_are_used() -> None:
    p, rough = used()
    arrays = {"masks": p.masks, "outputs": p.outputs}
    result = fit(**arrays, estimator=Lasso(prior=rough), rows=(0, 200), progress=False)
    (source,) = result.provenance["sources"]
    np.testing.assert_array_equal(source["rows"], np.r_[0:200, 300:400])
    assert len(source["mask_hashes"]) == 300
    assert lds(result, **arrays, draws=10).n_models == 100
    assert calibrate(result, **arrays).provenance["calibration"]["n_models"] == 100
    assert compare_lds({"hybrid": result}, **arrays, draws=10).to_dict()["n_models"] == 100
    with pytest.raises(RequestError, match="20 of the 50 named rows"):
        lds(result, **arrays, rows=(270, 320))
    copy = {"masks": p.masks[::-1].copy(), "outputs": p.outputs[::-1].copy()}  # known again by their masks
    assert lds(result, **copy, draws=10).n_models == 100
    with pytest.raises(RequestError, match="prior has used 50 of the 150 rows"):
        fit(**arrays, estimator=Lasso(prior=rough), rows=(200, 350), progress=False)


def test_refits_on_parts_of_the_rows_take_a_prior_that_has_not_seen_them() -> None:
    p, rough = used()
    arrays = {"masks": p.masks, "outputs": p.outputs}
    steps = curve(**arrays, rows=(0, 300), estimator=Lasso(prior=rough), sizes=[60, 200], draws=10, progress=False)
    assert steps.scores[0].n_models == 45
    often = stability(**arrays, rows=(0, 300), estimator=Lasso(prior=rough), halves=4, q=4, progress=False)
    assert (often.frequency[p.weights != 0] > 0.7).all()
    with pytest.raises(RequestError, match=r"prior has used \d+ of the"):
        stability(**arrays, estimator=Lasso(prior=rough), halves=4, q=4, progress=False)
    with pytest.raises(RequestError, match=r"prior has used \d+ of the"):
        curve(**arrays, estimator=Lasso(prior=rough), sizes=[60, 340], progress=False)
    some = curve(
        **arrays, estimator=Lasso(prior=rough), sizes=[60], draws=10, progress=False
    )  # judged on what it has not used
    assert some.scores[0].n_models < 60


def test_a_campaign_is_not_watched_with_a_prior_from_its_own_rows(tmp_path: Path) -> None:
    p = plant(1, 20, 3)
    design = Design(n_train=20, alpha=0.5, n_models=200)
    store = Store.create(tmp_path / "s", schema={"margins": {"shape": (3,), "dtype": "float32"}}, design=design)
    noise = np.random.default_rng(0).normal(size=(200, 3))
    for row, mask in enumerate(store.masks()):
        store.write_row(row, {"margins": (mask @ p.weights + noise[row]).astype(np.float32)})
    rough = fit(store, Ridge(), rows=(150, 200), progress=False)
    with pytest.raises(RequestError, match="prior has used 50 of the 200 rows"):
        watch(store, Lasso(prior=rough), patience=0)
    other = replace(rough, provenance={**rough.provenance, "sources": [{"identity": "other", "rows": np.arange(3)}]})
    seen = watch(store, Lasso(prior=other), patience=0).attribution
    assert [source["identity"] for source in seen.provenance["sources"]] == [store.identity, "other"]


def test_out_of_mask_targets_take_a_prior() -> None:
    p = plant(150, 20, 20, noise=0.5)
    prior = Attribution(p.weights, np.zeros(20))
    result = fit(masks=p.masks, outputs=p.outputs, estimator=Lasso(prior=prior), targets_are_train=True, progress=False)
    assert result.provenance["out_of_mask"]
    assert set(np.unique(result.target_facts["prior_exponent"])) <= {0.0, *(exponent for exponent, _ in CHOICES)}
    assert (result.weights[np.arange(20), np.arange(20)] == 0).all()
