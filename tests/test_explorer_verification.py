"""What-if answers against predictions, and verifications that retrain: their models, their failures, one at a time."""

from __future__ import annotations

import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from scipy import stats

from datamodels import Attribution, Store
from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.evaluation.retraining import retrain
from datamodels.explorer import app, gather
from datamodels.explorer.content import Content
from datamodels.explorer.verify import Busy, Verifier
from datamodels.regression.calibration import removal
from tests.explorer_runs import ADDRESS, cells, client, content, folder, post, wait

__all__ = ["cells", "client", "content", "folder"]  # fixtures


# -- what if ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("add", [False, True])
def test_whatif_is_the_difference_of_two_predictions(client: TestClient, folder: Path, add: bool) -> None:
    lasso = Attribution.load(folder / "lasso.h5ad")
    examples = [3, 17, 40, 41]
    body = post(client, "whatif", {"attribution": "lasso", "examples": examples, "add": add}).content
    predicted, low, high = np.frombuffer(body, np.float32).reshape(3, 40)
    masks = np.ones((2, 60), bool)
    masks[1, examples] = False
    full, without = lasso.predict(masks)
    np.testing.assert_allclose(predicted, (full - without) if add else (without - full), atol=1e-5)
    assert np.isnan(low).all()
    assert np.isnan(high).all()


def test_whatif_of_a_calibrated_attribution_has_its_intervals(client: TestClient, folder: Path) -> None:
    ridge = Attribution.load(folder / "ridge.h5ad")
    body = post(client, "whatif", {"attribution": "ridge", "examples": [5, 6, 7], "add": False}).content
    expected = removal(ridge, np.array([5, 6, 7]))
    np.testing.assert_allclose(np.frombuffer(body, np.float32).reshape(3, 40), np.stack(expected), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        {"examples": [60]},
        {"examples": [-1]},
        {"examples": [3, 3]},
        {"examples": [1.5]},
        {"examples": ["1"]},
        {"attribution": "none"},
        {"attribution": 0},
        {"add": "yes"},
        {"more": 1},
    ],
)
def test_wrong_questions_are_refused(client: TestClient, change: dict[str, Any]) -> None:
    answer = post(client, "whatif", {"attribution": "lasso", "examples": [1], "add": False, **change})
    assert 400 <= answer.status_code < 500
    assert "detail" in answer.json()


# -- verification -------------------------------------------------------------------------------------


def test_verification_retrains_and_compares(content: Content, tmp_path: Path) -> None:
    verifier = Verifier(content, executor="inline")
    with TestClient(app(content, verifier=verifier), base_url=ADDRESS) as client:
        question = {"attribution": "lasso", "examples": [9, 1, 5], "add": False, "runs": 3}
        name = post(client, "verify", question).json()["id"]
        wait(verifier, name)
        state = client.get(f"/api/verification/{name}").json()
        assert (state["state"], state["done"], state["total"]) == ("done", 6, 6)
        result = state["result"]
        masks = np.ones((3, 60), bool)
        full = retrain(
            content.task, masks, outputs=("margins",), folder=tmp_path / "a", executor="inline", progress=False
        )
        masks[:, [1, 5, 9]] = False
        less = retrain(
            content.task, masks, outputs=("margins",), folder=tmp_path / "b", seed=1, executor="inline", progress=False
        )
        actual = less["margins"].mean(axis=0) - full["margins"].mean(axis=0)
        np.testing.assert_allclose(result["actual"], actual, atol=1e-5)
        predicted = content.whatif(content.attribution("lasso"), [1, 5, 9], add=False)[0]
        np.testing.assert_allclose(result["predicted"], predicted)
        assert all(a <= b <= c for a, b, c in zip(result["low"], result["actual"], result["high"], strict=True))
        assert set(result["agreement"]) == {"pearson", "spearman", "low", "high", "slope"}
        # The same question in another order is answered already, also after a restart.
        again = Verifier(content, executor="inline")
        assert again.start("lasso", [1, 5, 9], add=False, runs=3) == name
        assert again.state(name)["state"] == "done"
        added = wait(verifier, verifier.start("lasso", [1, 5, 9], add=True, runs=3))["result"]
        np.testing.assert_allclose(added["actual"], -actual, atol=1e-5)


@pytest.mark.parametrize("add", [False, True])
def test_targets_that_are_training_examples_are_judged_on_models_that_did_not_see_them(cells: Path, add: bool) -> None:
    content = gather(cells, progress=False)
    shown, examples, runs = content.attribution("ridge"), [3, 4, 11, 40], 9
    verifier = Verifier(content, executor="inline")
    name = verifier.start("ridge", examples, add=add, runs=runs)
    result = wait(verifier, name)["result"]
    more, less = (Store.open(path) for path in verifier._stores(name, runs))
    outputs = [np.asarray(store.array("train_margins"), np.float64) for store in (more, less)]
    rest = np.setdiff1d(np.arange(60), examples)
    assert more.masks()[:, examples].all()
    assert not less.masks()[:, examples].any()
    np.testing.assert_array_equal(more.masks()[:, rest], less.masks()[:, rest])
    assert len(np.unique(more.masks(), axis=0)) > runs / 2
    assert 0.4 < less.masks()[:, rest].mean() < 0.6
    unseen = ~more.masks()
    judged = [t for t in range(60) if unseen[:, t].sum() >= 2]
    assert result["targets"] == judged
    assert not set(judged) & set(examples)
    assert (result["chosen"], result["seen"]) == (4, 56 - len(judged))
    change = (outputs[0] - outputs[1]) * (1 if add else -1)
    pairs = {t: change[unseen[:, t], t] for t in judged}
    np.testing.assert_allclose(result["actual"], [pairs[t].mean() for t in judged], rtol=1e-6)
    wide = [stats.t.ppf(0.975, len(one) - 1) * one.std(ddof=1) / np.sqrt(len(one)) for one in pairs.values()]
    np.testing.assert_allclose(np.array(result["high"]) - result["actual"], wide, rtol=1e-6)
    np.testing.assert_allclose(result["predicted"], content.whatif(shown, examples, add=add)[0][judged])


def test_a_verification_that_could_judge_no_target_is_refused(cells: Path, tmp_path: Path) -> None:
    content = gather(cells, progress=False)
    with pytest.raises(RequestError, match="subset is empty"):
        Verifier(content).start("ridge", list(range(1, 60)), add=False, runs=2)
    all_but_one = Design(n_train=60, n_models=60, kind="leave_one_out")
    schema = {"train_margins": {"shape": [60], "dtype": "float32"}}
    store = Store.create(tmp_path / "s", schema=schema, design=all_but_one)
    with pytest.raises(RequestError, match="no target has"):
        Verifier(replace(content, store=store)).start("ridge", [1], add=False, runs=2)
    with pytest.raises(RequestError, match="not at hand"):
        Verifier(replace(content, store=None)).start("ridge", [1], add=False, runs=2)


def test_one_verification_at_a_time_and_failures_say_why(content: Content, monkeypatch: pytest.MonkeyPatch) -> None:
    import threading

    gate = threading.Event()

    def held(*args: Any, **kwargs: Any) -> Any:
        gate.wait(20)
        raise RuntimeError("no more disk")

    monkeypatch.setattr("datamodels.evaluation.retraining.retrain", held)
    verifier = Verifier(content, executor="inline")
    with TestClient(app(content, verifier=verifier), base_url=ADDRESS) as client:
        name = verifier.start("lasso", [2], add=False, runs=2)
        assert client.get(f"/api/verification/{name}").json()["state"] == "running"
        assert verifier.start("lasso", [2], add=False, runs=2) == name
        with pytest.raises(Busy):
            verifier.start("lasso", [3], add=False, runs=2)
        assert post(client, "verify", {"attribution": "lasso", "examples": [3], "runs": 2}).status_code == 409
        gate.set()
        state = wait(verifier, name)
        assert state["state"] == "failed"
        assert "no more disk" in state["message"]
        assert "no more disk" in Verifier(content).state(name)["message"]
    for wrong in ("..", "nothing", "base", "%2e%2e"):
        assert client.get(f"/api/verification/{wrong}").status_code == 404
    assert post(client, "verify", {"attribution": "lasso", "examples": [3], "runs": 1}).status_code == 400
    assert post(client, "verify", {"attribution": "lasso", "examples": [], "runs": 2}).status_code == 400


def test_closing_stops_a_verification_which_goes_on_later(folder: Path, tmp_path: Path) -> None:
    content = gather(folder, cache=tmp_path / "cache", progress=False)
    slow = replace(content.task, recipe=content.task.recipe.with_parameters({"epochs": 300}))
    verifier = Verifier(replace(content, task=slow), executor="inline")
    name = verifier.start("lasso", [2], add=False, runs=1000)
    end = time.monotonic() + 30
    while verifier.state(name)["done"] < 1:
        assert time.monotonic() < end
        time.sleep(0.02)
    verifier.close()
    state = verifier.state(name)
    assert state["state"] == "failed"
    assert "start it again" in state["message"]
    assert 0 < state["done"] < state["total"]
