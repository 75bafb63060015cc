"""Tasks out of scikit-learn's estimators: against fits by hand, and the same row wherever it runs."""

from __future__ import annotations

import functools
import runpy
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
from numpy.typing import NDArray
from sklearn.datasets import load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier

from datamodels.design import Design
from datamodels.errors import RequestError, RowError, TaskChangedWarning
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.learners import estimator_task, function_task
from datamodels.training.outputs import margins_from_proba
from tests.learner_data import DESIGN, X_TEST, Y_TEST, K, N, X, Y, nearest_mean, row

# -- estimators ---------------------------------------------------------------------------------------


def logistic() -> LogisticRegression:
    return LogisticRegression(C=0.5, max_iter=500)


def forest() -> RandomForestClassifier:
    return RandomForestClassifier(8)


def pairs() -> SVC:
    return SVC(decision_function_shape="ovo")


def drawn(index: int, design: Design = DESIGN) -> int:
    """The first seed that a row draws."""
    return int(design.rng(index).integers(2**31))


@pytest.mark.parametrize("make", [logistic, forest])
def test_margins_of_probabilities_are_those_of_a_fit_by_hand(make: Callable[[], Any]) -> None:
    task = estimator_task(
        make, X, Y, X_TEST, Y_TEST, outputs=["margins", "losses", "correct"], splits=["test", "train"]
    )
    for index in range(2):
        mask = DESIGN.mask(index)
        model = make().set_params(random_state=drawn(index)).fit(X[mask], Y[mask])
        values = row(task, index)
        np.testing.assert_array_equal(values["margins"], margins_from_proba(model.predict_proba(X_TEST), Y_TEST))
        np.testing.assert_array_equal(values["train_margins"], margins_from_proba(model.predict_proba(X), Y))
        p = np.clip(model.predict_proba(X_TEST)[np.arange(K), Y_TEST], 1e-6, 1.0)
        np.testing.assert_allclose(values["losses"], -np.log(p), atol=2e-6)
        assert set(values) == set(task.schema)


def test_margins_of_decisions_are_the_signed_distance() -> None:
    task = estimator_task(LinearSVC, X, Y, X_TEST, Y_TEST, outputs=["margins", "log_odds_margins"])
    mask = DESIGN.mask(0)
    decision = LinearSVC(random_state=drawn(0)).fit(X[mask], Y[mask]).decision_function(X_TEST)
    values = row(task, 0)
    np.testing.assert_array_equal(values["margins"], np.where(Y_TEST == 1, decision, -decision))
    np.testing.assert_allclose(values["log_odds_margins"], values["margins"])


def test_decisions_of_several_classes_are_logits() -> None:
    x, y = load_iris(return_X_y=True)
    design = Design(n_train=len(y), alpha=0.5, n_models=1, seed=1)
    mask = design.mask(0)
    values = row(estimator_task(SVC, x, y, x, y, outputs=["logits"]), 0, design)
    np.testing.assert_array_equal(values["logits"], SVC().fit(x[mask], y[mask]).decision_function(x))
    for make in (pairs, lambda: make_pipeline(StandardScaler(), pairs())):
        with pytest.raises(RequestError, match="'ovo', whose columns are pairs of classes"):
            row(estimator_task(make, x, y, x, y), 0, design)


def test_labels_of_any_kind_and_features_of_any_kind_give_the_same_margins() -> None:
    expected = row(estimator_task(logistic, X, Y, X_TEST, Y_TEST), 0)["margins"]
    names, frame = np.array(["benign", "malign"]), [f"gene {j}" for j in range(X.shape[1])]
    for x, x_test, y, y_test in (
        (X, X_TEST, names[Y], names[Y_TEST].tolist()),
        (X.tolist(), X_TEST.tolist(), Y.astype(float), Y_TEST.tolist()),
        (pd.DataFrame(X, columns=frame, index=range(5, 5 + N)), pd.DataFrame(X_TEST, columns=frame), Y, Y_TEST),
        (scipy.sparse.coo_array(X), scipy.sparse.csc_array(X_TEST), Y, Y_TEST),
    ):
        values = row(estimator_task(logistic, x, y, x_test, y_test), 0)
        np.testing.assert_allclose(values["margins"], expected, rtol=1e-6)


def test_each_row_has_its_own_seed_and_keeps_it() -> None:
    everyone = np.ones(N, dtype=bool)
    task = estimator_task(forest, X, Y, X_TEST, Y_TEST)
    first, again, other = (task(mask=everyone, rng=DESIGN.rng(i))["margins"] for i in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert (first != other).any()


def test_parts_of_an_estimator_are_seeded_too() -> None:
    seen: list[dict[str, Any]] = []

    class Recorded(DecisionTreeClassifier):
        def fit(self, x: Any, y: Any) -> Any:
            seen.append(self.get_params())
            return super().fit(x, y)

    task = estimator_task(lambda: make_pipeline(StandardScaler(), Recorded()), X, Y, X_TEST, Y_TEST)
    row(task, 3)
    assert [params["random_state"] for params in seen] == [drawn(3)]


def three_classes() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.bool_]]:
    """Iris, and a mask that lacks its class 1."""
    x, y = load_iris(return_X_y=True)
    return x, y, (y != 1) & (np.arange(len(y)) % 2 == 0)


def test_a_class_that_the_subset_lacks_has_probability_zero() -> None:
    x, y, mask = three_classes()
    model = logistic().fit(x[mask], y[mask])
    proba = np.zeros((len(y), 3))
    proba[:, [0, 2]] = model.predict_proba(x)
    values = estimator_task(logistic, x, y, x, y, eps=1e-4)(mask=mask, rng=np.random.default_rng(0))
    np.testing.assert_array_equal(values["margins"], margins_from_proba(proba, y, eps=1e-4))
    assert (values["margins"][y == 1] < -8).all()


def test_a_class_that_the_subset_lacks_lies_below_all_decisions() -> None:
    x, y, mask = three_classes()
    decision = LinearSVC(random_state=int(np.random.default_rng(0).integers(2**31))).fit(x[mask], y[mask])
    d = decision.decision_function(x)
    task = estimator_task(LinearSVC, x, y, x, y, outputs=["logits"], eps=1e-4)
    logits = task(mask=mask, rng=np.random.default_rng(0))["logits"]
    np.testing.assert_allclose(logits, np.stack([-d / 2, -np.abs(d) / 2 + np.log(1e-4), d / 2], axis=1))


@pytest.mark.parametrize("make", [logistic, forest, LinearSVC])
def test_a_subset_of_one_class_always_says_that_class(make: Callable[[], Any]) -> None:
    x, y, _ = three_classes()
    values = estimator_task(make, x, y, x, y)(mask=y == 2, rng=np.random.default_rng(0))
    np.testing.assert_allclose(values["margins"], np.where(y == 2, -np.log(1e-6), np.where(y < 2, np.log(1e-6), 0)))


def test_xgboost_takes_any_labels_and_subsets_without_a_class() -> None:
    xgboost = pytest.importorskip("xgboost")

    def make() -> Any:
        return xgboost.XGBClassifier(n_estimators=5, max_depth=2, n_jobs=1, subsample=0.5)

    x, y, mask = three_classes()
    rng = np.random.default_rng
    model = make().set_params(random_state=int(rng(0).integers(2**31))).fit(x[mask], y[mask] // 2)
    proba = np.zeros((len(y), 3))
    proba[:, [0, 2]] = model.predict_proba(x)
    for labels in (y, np.array(["a", "b", "c"])[y]):
        task = estimator_task(make, x, labels, x, labels)
        first, again = (task(mask=mask, rng=rng(0))["margins"] for _ in range(2))
        np.testing.assert_array_equal(first, margins_from_proba(proba, y))
        np.testing.assert_array_equal(first, again)
    whole = np.arange(len(y)) % 2 == 0
    full = make().set_params(random_state=int(rng(0).integers(2**31))).fit(x[whole], y[whole])
    np.testing.assert_array_equal(
        estimator_task(make, x, y, x, y)(mask=whole, rng=rng(0))["margins"],
        margins_from_proba(full.predict_proba(x), y),
    )


def test_what_an_estimator_refuses_is_not_hidden() -> None:
    broken = np.where(np.arange(N)[:, None] % 2 == 0, X, np.nan)
    with pytest.raises(ValueError, match="contains NaN"):
        row(estimator_task(logistic, broken, Y, X_TEST, Y_TEST), 0)
    with pytest.raises(RequestError, match="StandardScaler has neither predict_proba nor decision_function"):
        row(estimator_task(StandardScaler, X, Y, X_TEST, Y_TEST), 0)


# -- campaigns ----------------------------------------------------------------------------------------


def test_three_lines_fill_a_store(tmp_path: Path) -> None:
    task = estimator_task(logistic, X, Y, X_TEST, Y_TEST, outputs=["margins", "correct"], splits=["test", "train"])
    store = Store.open_or_create(tmp_path / "s", schema=task.schema, design=DESIGN, labels=Y)
    assert train(store, task, executor="inline").done == 6
    assert store.field("train_margins").of == "train"
    assert store.array("correct").mean() > 0.9
    assert store.array("train_correct").dtype == np.bool_
    for index in (4, 1):
        for key, value in row(task, index).items():
            np.testing.assert_array_equal(store.array(key)[index], value.astype(store.field(key).dtype))
    again = estimator_task(logistic, X, Y, X_TEST, Y_TEST, outputs=["margins", "correct"], splits=["test", "train"])
    assert Store.open_or_create(store.path, schema=again.schema, design=DESIGN).completed().all()


def test_worker_processes_give_the_rows_of_this_process(tmp_path: Path) -> None:
    """Lambdas and arrays travel; a forest's votes do not depend on the number of threads."""
    task = estimator_task(lambda: RandomForestClassifier(5), X, Y, X_TEST, Y_TEST)
    stores = [Store.create(tmp_path / name, schema=task.schema, design=DESIGN) for name in ("inline", "local")]
    train(stores[0], task, executor="inline")
    assert train(stores[1], task, jobs=1).done == 6
    np.testing.assert_array_equal(*(store.array("margins") for store in stores))


def test_a_store_of_another_size_is_refused() -> None:
    other = Design(n_train=50, alpha=0.5)
    with pytest.raises(RequestError, match=r"of 50 train examples and the task has 120; .*Design.n_train=120"):
        row(estimator_task(logistic, X, Y, X_TEST, Y_TEST), 0, other)
    with pytest.raises(RowError, match="subset is empty"):
        estimator_task(logistic, X, Y, X_TEST, Y_TEST)(mask=np.zeros(N, bool), rng=np.random.default_rng(0))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"make": LogisticRegression()}, "give a function that makes an estimator"),
        ({"make": dict}, "give a function that makes an estimator"),
        ({"y": Y[:-1]}, r"the train features are of \[120\] examples and the labels of 119"),
        ({"x_test": X_TEST[1:]}, r"the test features are of \[39\] examples and the labels of 40"),
        ({"y": Y[:, None]}, r"y is \(120, 1\)"),
        ({"y": np.zeros(N, int), "y_test": np.zeros(K, int)}, "all labels are the same"),
        ({"y_test": np.full(K, 7)}, r"y_test has the labels \[7\], which y lacks"),
        ({"outputs": ["loss"]}, r"outputs are \['loss'\]; .*'losses'"),
        ({"splits": "test"}, r"splits are 'test'; give \('test',\)"),
        ({"splits": ["test", "test"]}, "splits are"),
        ({"eps": 0.0}, "eps is 0.0"),
        ({"outputs": ["logits"], "splits": ["train"]}, "cannot be recorded of the train examples"),
    ],
)
def test_bad_requests_say_what_is_legal(options: dict[str, Any], message: str) -> None:
    given = {"make": logistic, "x": X, "y": Y, "x_test": X_TEST, "y_test": Y_TEST, **options}
    with pytest.raises(RequestError, match=message):
        estimator_task(**given)


# -- fingerprints -------------------------------------------------------------------------------------


def test_a_fingerprint_changes_with_whatever_changes_the_rows() -> None:
    def make(c: float) -> Callable[[], Any]:
        return lambda: LogisticRegression(C=c, class_weight={0: 1.0, 1: 2.0})

    moved = X.copy()
    moved[3, 4] += 1e-9
    tasks = [
        estimator_task(make(1.0), X, Y, X_TEST, Y_TEST),
        estimator_task(make(2.0), X, Y, X_TEST, Y_TEST),
        estimator_task(make(1.0), moved, Y, X_TEST, Y_TEST),
        estimator_task(make(1.0), X, Y, X_TEST, 1 - Y_TEST),
        estimator_task(make(1.0), X, Y, X_TEST, Y_TEST, eps=1e-3),
        estimator_task(make(1.0), X, Y, X_TEST, Y_TEST, outputs=["losses"]),
        estimator_task(make(1.0), scipy.sparse.csr_array(X), Y, X_TEST, Y_TEST),
        estimator_task(make(1.0), scipy.sparse.csr_array(moved), Y, X_TEST, Y_TEST),
        function_task(nearest_mean, X, Y, X_TEST, Y_TEST),
        function_task(functools.partial(nearest_mean, power=1.0), X, Y, X_TEST, Y_TEST),
    ]
    assert len({task.fingerprint for task in tasks}) == len(tasks)
    assert estimator_task(make(1.0), X.copy(), Y, X_TEST, Y_TEST).fingerprint == tasks[0].fingerprint
    table = pd.DataFrame({"age": [1, 2, 3], "sex": ["f", "m", None]})
    assert len({function_task(nearest_mean, t, [0, 1, 1], t, [0, 1, 1]).fingerprint for t in (table, table * 2)}) == 2


def test_a_fingerprint_is_the_same_in_every_process(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent("""
        import numpy as np
        from sklearn.ensemble import BaggingClassifier
        from sklearn.linear_model import LogisticRegression
        from datamodels.training.learners import estimator_task, function_task

        x, y = np.arange(8.0)[:, None], np.arange(8) % 2
        make = lambda: BaggingClassifier(LogisticRegression(), random_state=np.random.RandomState(0))
        print(estimator_task(make, x, y, x, y).fingerprint, function_task(lambda a, b, c, rng: c, x, y, x, y).fingerprint)
        """)
    )
    runpy.run_path(str(script), run_name="__main__")
    here = capsys.readouterr().out
    assert len(here) > 32
    assert subprocess.run([sys.executable, script], capture_output=True, check=True, text=True).stdout == here


def test_another_learner_in_the_same_store_is_noticed(tmp_path: Path) -> None:
    tasks = [estimator_task(make, X, Y, X_TEST, Y_TEST) for make in (logistic, logistic, forest)]
    store = Store.create(tmp_path / "s", schema=tasks[0].schema, design=DESIGN)
    train(store, tasks[0], executor="inline")
    train(store, tasks[1], executor="inline")
    with pytest.warns(TaskChangedWarning, match="LearnerTask"):
        train(store, tasks[2], executor="inline")


def test_a_regressor_is_sent_to_a_task_of_its_own() -> None:
    from sklearn.linear_model import Ridge

    with pytest.raises(RequestError, match="Ridge is a regressor"):
        estimator_task(lambda: Ridge(), X, Y, X_TEST, Y_TEST)
