"""Donors go in or out together: what is fitted for their samples, and what init takes from a dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from typer.testing import CliRunner

from datamodels import Ridge, fit
from datamodels.cli import app
from datamodels.design import Design
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from tests.biomedical_data import cells

RNG = np.random.default_rng


def donors(tmp_path: Path, n_models: int = 400) -> tuple[Store, NDArray[np.float64], NDArray[np.int64]]:
    """A store of 16 donors with 3 samples each: margins of the samples are linear in which donors a model saw."""
    groups = np.repeat(np.arange(16), 3)
    design = Design(n_train=48, alpha=0.5, n_models=n_models, kind="grouped", groups=tuple(groups.tolist()))
    store = Store.create(
        tmp_path / "s", schema={"train_margins": {"shape": (48,), "dtype": "float64", "of": "train"}}, design=design
    )
    weights = RNG(0).normal(size=(16, 48))
    outputs = design.masks()[:, ::3] @ weights + 0.1 * RNG(1).normal(size=(n_models, 48))
    store.write_rows(np.arange(n_models), {"train_margins": outputs})
    return store, weights, groups


def test_a_sample_is_fitted_on_models_without_its_donor_and_donors_share_weights(tmp_path: Path) -> None:
    store, _, groups = donors(tmp_path)
    masks = store.masks(0, store.n_models)
    np.testing.assert_array_equal(masks[:, groups == 4].sum(axis=1) % 3, 0)
    found = fit(store, outputs_key="train_margins", estimator=Ridge(selection="gcv"), progress=False)
    by_donor = found.weights.reshape(16, 3, 48)
    np.testing.assert_allclose(by_donor, by_donor[:, :1].repeat(3, axis=1), atol=1e-5)
    own = by_donor[groups, :, np.arange(48)]
    np.testing.assert_allclose(own, 0, atol=1e-6)
    # The oracle: ridge on donors among the rows without the target's donor, with a third of the penalty.
    target = 13
    rows = ~masks[:, target]
    x, y = masks[rows][:, ::3].astype(float), store.array("train_margins")[rows, target]
    x = np.delete(x, groups[target], axis=1)
    z = (x - x.mean(axis=0)) / x.std(axis=0)
    penalty = found.target_facts["lam"][target] / 3
    solved = np.linalg.solve(z.T @ z / len(z) + penalty * np.eye(15), z.T @ (y - y.mean()) / len(z)) / x.std(axis=0)
    sums = np.delete(by_donor.sum(axis=1), groups[target], axis=0)[:, target]
    np.testing.assert_allclose(sums, solved, atol=2e-3)


def test_the_sum_over_a_donor_is_the_effect_of_the_donor(tmp_path: Path) -> None:
    store, weights, groups = donors(tmp_path)
    found = fit(store, outputs_key="train_margins", estimator=Ridge(), progress=False)
    sums = found.weights.reshape(16, 3, 48).sum(axis=1)
    others = groups[None, :] != np.arange(16)[:, None]
    # Every model has 8 donors, so what all others have in common is part of the bias.
    expected = weights - (weights * others).sum(axis=0) / 15
    np.testing.assert_allclose(sums[others], expected[others], atol=0.1)


@pytest.mark.filterwarnings("ignore::datamodels.errors.FewSubsetsWarning")
def test_init_takes_the_groups_of_the_dataset(tmp_path: Path) -> None:
    made = cells()
    del made.obs["odd"]
    made.write_h5ad(tmp_path / "c.h5ad")
    source = {"kind": "anndata", "path": str(tmp_path / "c.h5ad"), "label": "type", "groups": "donor"}
    recipe = tmp_path / "r.yaml"
    text = {"dataset": source, "splits": ["train"], "recipe": {"architecture": "linear"}, "prepare": {"select": 2}}
    recipe.write_text(yaml.safe_dump(text))

    def init(name: str, *more: str) -> Any:
        given = ["init", str(tmp_path / name), "--recipe", str(recipe), "--models", "6", "--alpha", "0.5", *more]
        return CliRunner().invoke(app, given)

    assert "--kind grouped keeps together" in init("plain").output
    result = init("donors", "--kind", "grouped")
    assert result.exit_code == 0, result.output
    assert "--kind" not in result.output
    store = Store.open(tmp_path / "donors")
    assert store.design is not None
    masks = store.design.masks()
    assert (masks.reshape(6, 4, 3).sum(axis=(1, 2)) == 6).all()
    assert (masks.reshape(6, 4, 3).std(axis=2) == 0).all()
    file = tmp_path / "groups.txt"
    file.write_text("\n".join(["a"] * 6 + ["b"] * 6) + "\n")
    init("own", "--kind", "grouped", "--groups", str(file))
    assert Store.open(tmp_path / "own").design.groups == (0,) * 6 + (1,) * 6
    train(store, TrainRecipe.read(recipe), executor="inline", progress=False)
    assert store.completed().all()
