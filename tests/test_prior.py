"""Datamodels with a prior: the factors, the choice per target, and what a good and a useless prior do."""

from __future__ import annotations

import numpy as np
import pytest

from datamodels import Attribution, ElasticNet, Lasso, fit, lds
from datamodels.errors import RequestError
from datamodels.regression.estimators import from_description
from datamodels.regression.prior import CHOICES, prior_factors

from .conftest import plant


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


def test_out_of_mask_targets_take_a_prior() -> None:
    p = plant(150, 20, 20, noise=0.5)
    prior = Attribution(p.weights, np.zeros(20))
    result = fit(masks=p.masks, outputs=p.outputs, estimator=Lasso(prior=prior), targets_are_train=True, progress=False)
    assert result.provenance["out_of_mask"]
    assert set(np.unique(result.target_facts["prior_exponent"])) <= {0.0, *(exponent for exponent, _ in CHOICES)}
    assert (result.weights[np.arange(20), np.arange(20)] == 0).all()
