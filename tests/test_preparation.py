"""Features prepared inside each subset, as scikit-learn's pipelines would: selection, scale and imputation, and other learners."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from numpy.typing import NDArray
from sklearn.ensemble import HistGradientBoostingClassifier
from sklearn.feature_selection import SelectKBest, f_classif
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from datamodels.datasets import Dataset, from_arrays, from_plink
from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.learners import estimator_task
from datamodels.training.preparation import Preparation
from datamodels.training.recipes import Recipe
from tests.biomedical_data import LINEAR, bed

__all__ = ["bed"]  # fixtures
RNG = np.random.default_rng


def noisy(
    n: int = 60, p: int = 30, classes: int = 3, gaps: float = 0.0
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    rng = RNG(1)
    y = np.arange(n) % classes
    x = rng.normal(size=(n, p)) * rng.uniform(0.1, 5, p) + rng.normal(size=(classes, p))[y] + 50 * rng.normal(size=p)
    x[rng.random((n, p)) < gaps] = np.nan
    return x.astype(np.float32), y


# -- preparation --------------------------------------------------------------------------------------


@pytest.mark.parametrize("gaps", [0.0, 0.2])
def test_a_preparation_is_scikit_learns_pipeline_fitted_to_the_subset(gaps: float) -> None:
    x, y = noisy(gaps=gaps)
    x[:, 7] = 3.0
    for seed in range(5):
        members = np.flatnonzero(RNG(seed).random(60) < 0.5)
        select = SelectKBest(f_classif, k=8)
        pipeline = make_pipeline(SimpleImputer(), select, StandardScaler())
        with pytest.warns(UserWarning, match="constant"), np.errstate(invalid="ignore", divide="ignore"):
            pipeline.fit(x[members].astype(np.float64), y[members])
        ours = Preparation(select=8, by="f_score", scale=True, impute=True).fit(x, y, members)
        np.testing.assert_array_equal(ours.chosen, select.get_support(indices=True))
        np.testing.assert_allclose(ours(x), pipeline.transform(x.astype(np.float64)), rtol=1e-3, atol=1e-4)


def test_a_preparation_ranks_by_variance_and_leaves_constants() -> None:
    x, y = noisy()
    x[:, 4] = 1e6
    members = np.arange(0, 60, 2)
    variance = x[members].var(axis=0, dtype=np.float64)
    chosen = Preparation(select=5).fit(x, y, members).chosen
    np.testing.assert_array_equal(chosen, np.sort(np.argsort(variance)[-5:]))
    scaled = Preparation(scale=True).fit(x, y, members)(x)
    assert (scaled[:, 4] == 0).all()
    others = np.delete(scaled[members], 4, axis=1)
    np.testing.assert_allclose(others.mean(axis=0), 0, atol=1e-4)
    np.testing.assert_allclose(others.std(axis=0), 1, rtol=1e-4)
    one = np.flatnonzero(y == 1)[:9]
    by_f = Preparation(select=5, by="f_score").fit(x, y, one).chosen
    np.testing.assert_array_equal(by_f, Preparation(select=5).fit(x, y, one).chosen)
    assert Preparation().fit(x, y, members)(x) is x


def test_missing_genotypes_are_twice_the_frequency_in_the_subset(bed: Path) -> None:
    data = from_plink(bed, "sex", missing="subset")
    prepared = Preparation(impute=True).fit(data.train.x, data.train.y, np.array([0, 3]))
    np.testing.assert_array_equal(prepared(data.train.x), [[0, 1, 2, 0], [1, 1, 1.5, 0], [2, 0, 0, 0], [2, 2, 1, 0]])
    with pytest.raises(RequestError, match=r"missing values \(NaN\): give prepare=Preparation\(impute=True\)"):
        _ = TrainRecipe(LINEAR, data, splits=("train",)).schema
    task = TrainRecipe(LINEAR, data, splits=("train",), prepare=Preparation(impute=True))
    design = Design(n_train=4, alpha=0.5, n_models=3)
    assert np.isfinite(task(np.arange(3), design.masks(), design)["train_margins"]).all()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"select": 0}, "select is 0"),
        ({"select": True}, "select is True"),
        ({"by": "mean"}, "legal: variance, f_score"),
        ({"scale": 1}, "scale is 1; give true or false"),
        ({"center": True}, "no 'center'; legal: select, by"),
    ],
)
def test_a_preparation_says_what_does_not_fit(values: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Preparation.of(values)


def test_a_recipe_says_when_its_preparation_makes_no_sense() -> None:
    x, y = noisy()
    data = from_arrays("d", x, y)
    with pytest.raises(RequestError, match="select is 31; the examples have 30 features"):
        _ = TrainRecipe(LINEAR, data, splits=("train",), prepare=Preparation(select=31)).schema
    with pytest.raises(RequestError, match=r"x is .*: of pictures"):
        _ = TrainRecipe(LINEAR, "digits:pictures", prepare=Preparation(scale=True)).schema
    with pytest.raises(RequestError, match=r"let Preparation\(scale=True\) do it by each subset"):
        TrainRecipe(replace(LINEAR, standardise=True), data, prepare=Preparation())
    with pytest.raises(RequestError, match="prepare is 'scale'"):
        TrainRecipe(LINEAR, data, prepare="scale")  # type: ignore[arg-type]


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_a_prepared_row_is_the_model_of_its_prepared_features(engine: Any) -> None:
    """The oracle: prepare by hand with scikit-learn, and train that row alone on it."""
    x, y = noisy(classes=2)
    both = from_arrays("d", x[:40], y[:40], x[40:], y[40:])
    recipe, preparation = Recipe(hidden=(5,), epochs=3, lr=0.02), Preparation(select=6, by="f_score", scale=True)
    task = TrainRecipe(recipe, both, splits=("test", "train"), engine=engine, prepare=preparation)
    design = Design(n_train=40, alpha=0.5, n_models=4)
    out = task(np.arange(4), design.masks(), design)
    for row in range(4):
        members = np.flatnonzero(design.mask(row))
        pipeline = make_pipeline(SelectKBest(f_classif, k=6), StandardScaler()).fit(x[members], y[members])
        made = from_arrays("d", pipeline.transform(x[:40]), y[:40], pipeline.transform(x[40:]), y[40:])
        plain = TrainRecipe(recipe, made, splits=("test", "train"), engine=engine)
        expected = plain(np.array([row]), design.masks(row, row + 1), design)
        alone = task(np.array([row]), design.masks(row, row + 1), design)
        for key in ("margins", "train_margins"):
            np.testing.assert_allclose(out[key][row], expected[key][0], atol=1e-3)
            if engine == "compiled":
                np.testing.assert_array_equal(out[key][row], alone[key][0])


def test_the_fingerprint_knows_the_preparation(tmp_path: Path) -> None:
    data = from_arrays("d", *noisy())
    plain = TrainRecipe(LINEAR, data, splits=("train",))
    tasks = [
        replace(plain, prepare=Preparation(**kw))
        for kw in ({}, {"scale": True}, {"select": 3}, {"select": 3, "by": "f_score"})
    ]
    assert len({task.fingerprint for task in [plain, *tasks]}) == 5
    digits = TrainRecipe(LINEAR, "digits", prepare=Preparation(select=9, scale=True))
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(json.loads(json.dumps(digits.to_dict()))))
    assert TrainRecipe.read(file) == digits
    assert TrainRecipe.read(file).fingerprint == digits.fingerprint


def test_selection_outside_of_subsets_leaks_and_inside_does_not() -> None:
    """Noise and random labels: nobody can do better than chance on examples that a model did not see."""
    n, p, keep = 60, 3000, 20
    rng = RNG(3)
    x, y = rng.normal(size=(n, p)).astype(np.float32), rng.permutation(np.arange(n) % 2)
    design = Design(n_train=n, alpha=0.5, n_models=60, kind="stratified", strata=tuple(y.tolist()))
    masks = design.masks()

    def unseen_accuracy(data: Dataset, prepare: Preparation | None) -> float:
        task = TrainRecipe(LINEAR, data, outputs=("correct",), splits=("train",), prepare=prepare)
        return float(task(np.arange(60), masks, design)["train_correct"][~masks].mean())

    inside = unseen_accuracy(from_arrays("d", x, y), Preparation(select=keep, by="f_score", scale=True))
    outside = unseen_accuracy(from_arrays("d", SelectKBest(f_classif, k=keep).fit_transform(x, y), y), None)
    assert abs(inside - 0.5) < 0.1
    assert outside > 0.65


# -- other learners -----------------------------------------------------------------------------------


def test_boosted_trees_and_pipelines_are_judged_out_of_mask() -> None:
    x, y = noisy(classes=2)
    labels = np.array(["ill", "well"])[y]
    x[::7, 3] = np.nan  # which these trees take

    def trees() -> HistGradientBoostingClassifier:
        return HistGradientBoostingClassifier(max_iter=5, min_samples_leaf=5)

    def pipeline() -> Any:
        return make_pipeline(SimpleImputer(), SelectKBest(k=10), StandardScaler(), LogisticRegression())

    design = Design(n_train=60, alpha=0.5, n_models=5)
    for make in (trees, pipeline):
        task = estimator_task(make, x, labels, outputs=("margins", "correct"), splits=("train",))
        assert task.schema["train_margins"] == {"shape": (60,), "dtype": "float32", "of": "train"}
        rows = [task(design.mask(i), design.rng(i)) for i in range(5)]
        unseen = np.concatenate([row["train_correct"][~design.mask(i)] for i, row in enumerate(rows)])
        assert unseen.mean() > 0.7
        seen = design.mask(0)
        other = np.where(
            seen[:, None], x, -x
        )  # of examples outside of the subset neither fit nor scaling knows anything
        again = estimator_task(make, other, labels, splits=("train",))(seen, design.rng(0))
        np.testing.assert_array_equal(again["train_margins"][seen], rows[0]["train_margins"][seen])
    with pytest.raises(RequestError, match=r"no test examples; give them, or splits=\('train',\)"):
        estimator_task(trees, x, labels)
    with pytest.raises(RequestError, match="go together"):
        estimator_task(trees, x, labels, x)
