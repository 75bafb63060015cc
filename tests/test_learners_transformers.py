"""Tasks out of transformers: they learn, a row is the same again, and one trained by hand is the row."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datamodels.design import Design
from datamodels.errors import RequestError
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.learners import hf_task
from datamodels.training.outputs import margins
from tests.learner_data import row

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
