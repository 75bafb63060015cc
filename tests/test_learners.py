"""Tasks out of other libraries' learners: against fits by hand, and the same row wherever it runs."""

from __future__ import annotations

import functools
import inspect
import subprocess
import sys
import textwrap
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import scipy.sparse
import torch
from numpy.typing import NDArray
from sklearn.datasets import load_breast_cancer, load_iris
from sklearn.ensemble import RandomForestClassifier
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC, LinearSVC
from sklearn.tree import DecisionTreeClassifier
from threadpoolctl import threadpool_info, threadpool_limits

from datamodels.design import Design
from datamodels.errors import RequestError, RowError, TaskChangedWarning
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.learners import LearnerTask, estimator_task, function_task, hf_task
from datamodels.training.outputs import log_odds_margins, margins, margins_from_proba

N, K = 120, 40
DESIGN = Design(n_train=N, alpha=0.5, n_models=6, seed=5)


def cancer() -> tuple[NDArray[np.float64], NDArray[np.int64], NDArray[np.float64], NDArray[np.int64]]:
    x, y = load_breast_cancer(return_X_y=True)
    x = StandardScaler().fit_transform(x)
    return x[:N], y[:N], x[N : N + K], y[N : N + K]


X, Y, X_TEST, Y_TEST = cancer()


def logistic() -> LogisticRegression:
    return LogisticRegression(C=0.5, max_iter=500)


def forest() -> RandomForestClassifier:
    return RandomForestClassifier(8)


def pairs() -> SVC:
    return SVC(decision_function_shape="ovo")


def row(task: LearnerTask, index: int, design: Design = DESIGN) -> dict[str, NDArray[Any]]:
    return task(mask=design.mask(index), rng=design.rng(index))


def drawn(index: int, design: Design = DESIGN) -> int:
    """The first seed that a row draws."""
    return int(design.rng(index).integers(2**31))


# -- estimators ---------------------------------------------------------------------------------------


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


def test_a_fingerprint_is_the_same_in_every_process(tmp_path: Path) -> None:
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
    first, second = (subprocess.run([sys.executable, script], capture_output=True, check=True).stdout for _ in range(2))
    assert first == second
    assert len(first) > 32


def test_another_learner_in_the_same_store_is_noticed(tmp_path: Path) -> None:
    tasks = [estimator_task(make, X, Y, X_TEST, Y_TEST) for make in (logistic, logistic, forest)]
    store = Store.create(tmp_path / "s", schema=tasks[0].schema, design=DESIGN)
    train(store, tasks[0], executor="inline")
    train(store, tasks[1], executor="inline")
    with pytest.warns(TaskChangedWarning, match="LearnerTask"):
        train(store, tasks[2], executor="inline")


# -- functions ----------------------------------------------------------------------------------------


def nearest_mean(x: Any, y: NDArray[np.int64], x_eval: Any, rng: np.random.Generator, power: float = 2.0) -> Any:
    means = np.stack([x[y == k].mean(axis=0) for k in range(2)])
    return -((np.abs(x_eval[:, None] - means)).mean(axis=2) ** power)


def test_a_function_scores_both_parts() -> None:
    values = row(function_task(nearest_mean, X, Y, X_TEST, Y_TEST, splits=["train", "test"]), 1)
    mask = DESIGN.mask(1)
    for key, x, y in (("margins", X_TEST, Y_TEST), ("train_margins", X, Y)):
        np.testing.assert_array_equal(values[key], margins(nearest_mean(X[mask], Y[mask], x, DESIGN.rng(1)), y))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_tensors_go_in_and_come_out(dtype: torch.dtype) -> None:
    def linear(x: Any, y: Any, x_eval: Any, rng: np.random.Generator) -> Any:
        assert isinstance(x, torch.Tensor)
        weights = torch.as_tensor(rng.normal(size=(x.shape[1], 2)), dtype=dtype).requires_grad_()
        return x_eval.to(dtype) @ weights

    given = (torch.as_tensor(X), torch.as_tensor(Y), torch.as_tensor(X_TEST), torch.as_tensor(Y_TEST))
    task = function_task(linear, *given, outputs=["log_odds_margins"], splits=["test", "train"])
    weights = torch.as_tensor(DESIGN.rng(0).normal(size=(X.shape[1], 2)), dtype=dtype)
    expected = (given[2].to(dtype) @ weights).float().numpy()
    np.testing.assert_allclose(row(task, 0)["log_odds_margins"], log_odds_margins(expected, Y_TEST), rtol=1e-5)
    assert len(task.fingerprint) == 16


def test_the_example_of_the_docstring_trains_a_network(tmp_path: Path) -> None:
    doc = inspect.getdoc(function_task)
    text = doc[doc.index("    import torch\n") :].split("\n\nParameters\n", 1)[0]
    names: dict[str, Any] = {"function_task": function_task, "y_train": Y, "y_test": Y_TEST}
    names |= {"x_train": X.astype(np.float32), "x_test": X_TEST.astype(np.float32)}
    exec(textwrap.dedent(text), names)  # noqa: S102
    task = names["task"]
    store = Store.create(tmp_path / "s", schema=task.schema, design=DESIGN)
    assert train(store, task, executor="inline").done == 6
    assert (store.array("margins") > 0).mean() > 0.9
    np.testing.assert_array_equal(row(task, 2)["margins"].astype(np.float32), store.array("margins")[2])


@pytest.mark.parametrize(
    ("function", "error", "message"),
    [
        (lambda x, y, x_eval, rng: x_eval[:5, :2], RowError, r"returned \(5, 2\) for 40 examples"),
        (lambda x, y, x_eval, rng: x_eval[:, 0], RowError, r"returned \(40,\) for 40 examples"),
        (lambda x, y, x_eval, rng: x_eval[:, :2] * np.nan, RowError, "hold NaN or inf"),
        (lambda x, y, x_eval, rng: x_eval[:, :1], RequestError, "there must be at least two"),
    ],
)
def test_what_a_function_may_not_return(function: Any, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        row(function_task(function, X, Y, X_TEST, Y_TEST), 0)


@pytest.mark.parametrize("y", [Y / 2, Y.astype(str), Y - 1, Y[:, None], []])
def test_labels_of_a_function_are_numbers_of_classes(y: Any) -> None:
    with pytest.raises(RequestError, match=r"^y is .*give \(k,\) integers 0..classes-1"):
        function_task(nearest_mean, X, y, X_TEST, Y_TEST)


# -- transformers -------------------------------------------------------------------------------------

RECIPE = {"epochs": 8, "batch_size": 16, "lr": 0.02}
HF_DESIGN = Design(n_train=96, alpha=0.5, n_models=3, seed=2)


def bert() -> Any:
    from transformers import BertConfig, BertForSequenceClassification

    config = BertConfig(
        vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=16,
        max_position_embeddings=8, num_labels=2,
    )  # fmt: skip
    return BertForSequenceClassification(config)


def vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(
        image_size=8, patch_size=4, num_channels=1, hidden_size=16, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=16, num_labels=3,
    )  # fmt: skip
    return ViTForImageClassification(config)


def sentences(n: int, seed: int) -> tuple[dict[str, NDArray[np.int64]], NDArray[np.int64]]:
    """Words 3..25 say class 0 and words 26..48 say class 1; padding of random length."""
    rng = np.random.default_rng(seed)
    y = rng.integers(2, size=n)
    words = rng.integers(3, 26, size=(n, 8)) + 23 * y[:, None]
    there = np.arange(8) < rng.integers(4, 9, size=(n, 1))
    return {"input_ids": np.where(there, words, 0), "attention_mask": there.astype(np.int64)}, y


def pictures(n: int, seed: int) -> tuple[dict[str, NDArray[np.float32]], NDArray[np.int64]]:
    """Bright, dark, or striped."""
    rng = np.random.default_rng(seed)
    y = rng.integers(3, size=n)
    pixels = rng.normal(scale=0.3, size=(n, 1, 8, 8)).astype(np.float32)
    pixels += np.array([np.ones(8), -np.ones(8), np.tile([1, -1], 4)], dtype=np.float32)[y][:, None, None]
    return {"pixel_values": pixels}, y


@pytest.mark.parametrize(("make", "examples"), [(bert, sentences), (vit, pictures)])
def test_transformers_learn_and_a_row_is_the_same_again(
    tmp_path: Path, make: Callable[[], Any], examples: Callable[..., Any]
) -> None:
    pytest.importorskip("transformers")
    (x, y), (x_test, y_test) = examples(96, 0), examples(50, 1)
    outputs = ["margins", "losses", "correct"]
    task = hf_task(make, x, y, x_test, y_test, **RECIPE, outputs=outputs, splits=["test", "train"])
    store = Store.create(tmp_path / "s", schema=task.schema, design=HF_DESIGN)
    assert train(store, task, executor="inline").done == 3
    assert store.array("correct").mean() > 0.9
    assert store.array("train_correct").mean() > 0.9
    assert store.array("losses").mean() < 0.4
    torch.manual_seed(12345)
    before = torch.random.get_rng_state()
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the campaign did: sums of several threads differ in their last bits
    again = row(task, 1, HF_DESIGN)
    torch.set_num_threads(threads)
    assert torch.equal(torch.random.get_rng_state(), before)  # the caller's generator is as it was
    np.testing.assert_array_equal(again["margins"].astype(np.float32), store.array("margins")[1])
    same_subset = task(mask=HF_DESIGN.mask(1), rng=HF_DESIGN.rng(0))["margins"]
    assert not np.allclose(same_subset, again["margins"])  # other initial weights, another order


def test_a_transformer_trained_by_hand_is_the_row() -> None:
    pytest.importorskip("transformers")
    (x, y), (x_test, y_test) = sentences(96, 0), sentences(20, 1)
    tensors = {name: torch.as_tensor(value) for name, value in x.items()}
    task = hf_task(bert, tensors, y, x_test, y_test, epochs=2, batch_size=10, lr=0.01, weight_decay=0.1)
    rng, members = HF_DESIGN.rng(0), np.flatnonzero(HF_DESIGN.mask(0))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(rng.integers(2**63)))
        model = bert().train()
        optimizer = torch.optim.AdamW(model.parameters(), weight_decay=0.1)
        for epoch in range(2):
            order = members[rng.permutation(48)]
            for step in range(5):
                optimizer.param_groups[0]["lr"] = 0.01 * (1 - (5 * epoch + step) / 10)
                chosen = order[10 * step : 10 * step + 10]
                logits = model(**{name: value[chosen] for name, value in tensors.items()}).logits
                optimizer.zero_grad()
                torch.nn.functional.cross_entropy(logits, torch.as_tensor(y[chosen])).backward()
                optimizer.step()
        with torch.no_grad():
            logits = model.eval()(**{name: torch.as_tensor(value) for name, value in x_test.items()}).logits
    expected = margins(logits.numpy(), y_test)
    np.testing.assert_allclose(row(task, 0, HF_DESIGN)["margins"], expected, rtol=1e-4, atol=1e-5)


def test_the_device_is_a_choice_that_leaves_the_fingerprint() -> None:
    pytest.importorskip("transformers")
    x, y = sentences(96, 0)
    recipe = {"epochs": 1, "batch_size": 32, "lr": 0.01}
    tasks = [hf_task(bert, x, y, x, y, **recipe, device=device) for device in ("cpu", "auto")]
    if not torch.cuda.is_available():
        np.testing.assert_array_equal(*(row(task, 0, HF_DESIGN)["margins"] for task in tasks))
    assert len({task.fingerprint for task in tasks}) == 1
    assert hf_task(bert, x, y, x, y, **{**recipe, "lr": 0.02}).fingerprint != tasks[0].fingerprint


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"make_model": None}, "give one that makes a model"),
        ({"epochs": 0}, "epochs=0"),
        ({"lr": -0.1}, "lr=-0.1"),
        ({"test_features": {"input_ids": np.zeros((2, 3), int)}}, r"test_features \['input_ids'\]; give the same"),
        ({"train_features": {"input_ids": [[1, 2], [3]], "attention_mask": np.zeros((2, 2))}}, "pad them"),
        ({"train_features": sentences(7, 0)[0]}, r"the train features are of \[7, 7\] examples and the labels of 2"),
    ],
)
def test_bad_requests_of_transformers_say_what_is_legal(options: dict[str, Any], message: str) -> None:
    x = sentences(2, 0)[0]
    given = {"make_model": bert, "train_features": x, "y": [0, 1], "test_features": x, "y_test": [1, 0]}
    with pytest.raises(RequestError, match=message):
        hf_task(**{**given, **RECIPE, **options})


def threads_now() -> dict[str, int]:
    """Threads of BLAS, OpenMP and torch that this process may use."""
    return {"torch": torch.get_num_threads(), **{lib["filepath"]: lib["num_threads"] for lib in threadpool_info()}}


@pytest.mark.parametrize("stop", [None, ValueError, KeyboardInterrupt])
def test_rows_in_this_process_have_one_thread_and_leave_the_others_as_they_were(
    tmp_path: Path, stop: type[BaseException] | None
) -> None:
    X, Y, X_TEST, Y_TEST = cancer()
    seen: list[dict[str, int]] = []

    def learn(x: Any, y: Any, x_eval: Any, rng: np.random.Generator) -> Any:
        seen.append(threads_now())
        if stop is not None:
            raise stop
        return np.zeros((len(x_eval), 2))

    task = function_task(learn, X, Y, X_TEST, Y_TEST)
    store = Store.create(tmp_path / "st", schema=task.schema, design=DESIGN)
    in_torch = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        with threadpool_limits(2):
            before = threads_now()
            with pytest.raises(KeyboardInterrupt) if stop is KeyboardInterrupt else nullcontext():
                train(store, task, executor="inline", retries=0, progress=False)
            assert threads_now() == before
            assert set(before.values()) == {2}
    finally:
        torch.set_num_threads(in_torch)
    assert seen
    for now in seen:
        assert set(now) >= set(before)
        assert set(now.values()) == {1}
