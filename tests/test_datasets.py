"""Datasets and splits: their types, classes and subsets, the names that load them, and arrays that become one."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from datamodels import datasets
from datamodels.datasets import Dataset, Split, from_arrays, load
from datamodels.errors import RequestError

RNG = np.random.default_rng


def small(k: int = 12, n_classes: int = 4) -> Dataset:
    """A dataset whose features say which example it is: x[i] = i, y[i] = i mod n_classes."""

    def split(start: int) -> Split:
        i = np.arange(start, start + k)
        images = np.broadcast_to(i[:, None, None], (k, 2, 2)).astype(np.uint8)
        return Split(np.tile(i[:, None], (1, 3)).astype(np.float32), i % n_classes, i * 10, images)

    return Dataset("small", split(0), split(100), tuple("abcdefgh"[:n_classes]), "ten")


# -- the types ----------------------------------------------------------------------------------------


def test_flat_is_a_view_of_rows() -> None:
    split = Split(np.arange(24, dtype=np.float32).reshape(2, 3, 2, 2), np.array([0, 1]))
    np.testing.assert_array_equal(split.flat, np.arange(24).reshape(2, 12))
    assert np.shares_memory(split.flat, split.x)
    assert split.take([]).flat.shape == (0, 12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"x": np.zeros((3, 2))}, "x must be a numpy array of float32, got float64"),
        ({"x": [[0.0]] * 3}, "x must be a numpy array of float32, got list"),
        ({"x": np.zeros(3, np.float32)}, "x must be .*one row per example"),
        ({"y": np.zeros(3)}, "y must be a numpy array of int64, got float64"),
        ({"y": np.array([0, 1, -1])}, "class codes from 0"),
        ({"y": np.zeros(2, np.int64)}, "x has 3 examples, y has 2"),
        ({"hidden": np.zeros(4)}, "hidden has 4 examples, y has 3"),
        ({"hidden": ["a", "b", "c"]}, "hidden must be an array"),
        ({"images": np.zeros((3, 2, 2))}, "images must be a numpy array of uint8"),
        ({"images": np.zeros((3, 2, 2, 4), np.uint8)}, r"images must be \(k, height, width\)"),
    ],
)
def test_a_split_says_what_does_not_fit(change: dict[str, Any], message: str) -> None:
    good = {"x": np.zeros((3, 2), np.float32), "y": np.zeros(3, np.int64)}
    Split(**good)
    with pytest.raises(RequestError, match=message):
        Split(**{**good, **change})


def test_take_keeps_the_fields_of_an_example_together() -> None:
    part = small().train.take([7, 2, 2])
    for values in (part.x[:, 0], part.hidden // 10, part.images[:, 1, 1]):
        np.testing.assert_array_equal(values, [7, 2, 2])
    np.testing.assert_array_equal(part.y, [3, 2, 2])
    for indices, message in (([0, 12], "index 12 is outside .* 0..11"), ([-1], "index -1"), ([0.5], "positions")):
        with pytest.raises(RequestError, match=message):
            small().train.take(indices)


def test_a_dataset_says_what_does_not_fit() -> None:
    data = small()
    other = Split(np.zeros((1, 2), np.float32), np.zeros(1, np.int64))
    with pytest.raises(RequestError, match=r"train examples have shape \(3,\), test examples \(2,\)"):
        Dataset("d", data.train, other, data.class_names)
    with pytest.raises(RequestError, match="label 3, but 3 class_names"):
        Dataset("d", data.train, data.test, ("a", "b", "c"))
    with pytest.raises(RequestError, match="differ from each other"):
        Dataset("d", data.train, data.test, ("a", "b", "c", "c"))
    with pytest.raises(RequestError, match=r"lie in 0\.\.1"):
        Dataset("d", data.train, data.test, data.class_names, "ten", ("x", "y"))


def test_coarse_hides_the_former_classes() -> None:
    data = small()
    coarse = data.coarse({"last": ["d", 2], "first": ["a", "b"]}, name="halves", hidden_name="letter")
    assert (coarse.name, coarse.class_names, coarse.n_classes) == ("halves", ("last", "first"), 2)
    assert (coarse.hidden_name, coarse.hidden_names) == ("letter", ("a", "b", "c", "d"))
    np.testing.assert_array_equal(coarse.train.hidden, data.train.y)
    np.testing.assert_array_equal(coarse.train.y, data.train.y < 2)
    assert coarse.train.x is data.train.x
    turned = data.coarse({"last": ["d", 2], "first": ["a", "b"]}, class_names=["first", "last"])
    assert turned.class_names == ("first", "last")
    np.testing.assert_array_equal(turned.test.y, 1 - coarse.test.y)


def test_coarse_drops_classes_of_no_group() -> None:
    coarse = small().coarse({"p": ["a"], "q": ["c"]})
    np.testing.assert_array_equal(coarse.train.x[:, 0], [0, 2, 4, 6, 8, 10])
    np.testing.assert_array_equal(coarse.train.y, [0, 1] * 3)
    np.testing.assert_array_equal(coarse.train.hidden, [0, 2] * 3)
    np.testing.assert_array_equal(coarse.train.images[:, 0, 0], [0, 2, 4, 6, 8, 10])


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        ({"p": ["a"], "q": ["z"]}, "class 'z' is unknown; legal: a, b, c, d, or codes 0..3"),
        ({"p": ["a"], "q": [4]}, "class 4 is unknown"),
        ({"p": ["a", "b"], "q": [1]}, "class 'b' is used twice"),
        ({"p": ["a"], "q": []}, "group 'q' must be a list"),
        ({"p": ["a"], "q": "bc"}, "group 'q' must be a list"),
        ({"p": ["a", "b"]}, "two or more"),
    ],
)
def test_coarse_refuses_unclear_groups(groups: dict[str, Any], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        small().coarse(groups)


def test_subsets_are_ordered_draws_without_replacement() -> None:
    data = small()
    first = data.subset(n_train=5, n_test=3)
    np.testing.assert_array_equal(first.train.x[:, 0], np.arange(5))
    np.testing.assert_array_equal(first.test.x[:, 0], np.arange(100, 103))
    drawn = data.subset(n_train=6, seed=0)
    numbers = drawn.train.x[:, 0]
    assert (np.diff(numbers) > 0).all()
    np.testing.assert_array_equal(numbers, data.subset(n_train=6, n_test=4, seed=0).train.x[:, 0])
    assert not np.array_equal(numbers, data.subset(n_train=6, seed=1).train.x[:, 0])
    assert drawn.test is data.test
    counts = sum(np.bincount(data.subset(n_train=6, seed=s).train.hidden // 10, minlength=12) for s in range(400))
    assert abs(counts / 400 - 0.5).max() < 0.1
    for wanted in (0, 13):
        with pytest.raises(RequestError, match=f"n_train is {wanted}; small has 12 train examples"):
            data.subset(n_train=wanted)
    with pytest.raises(RequestError, match="seed is -1"):
        data.subset(n_train=3, seed=-1)


# -- names --------------------------------------------------------------------------------------------


def test_a_subset_is_loaded_by_its_name() -> None:
    data = load("digits")
    for subset in (
        data.subset(n_train=100, n_test=50),
        data.subset(n_train=100, seed=0),
        data.subset(n_train=80, n_test=20, seed=3),
        data.subset(),
    ):
        again = load(subset.name)
        assert again.name == subset.name
        np.testing.assert_array_equal(again.train.x, subset.train.x)
        np.testing.assert_array_equal(again.test.hidden, subset.test.hidden)
    assert data.subset(n_train=100, n_test=50, seed=0).name == "digits[100,50]"
    assert load("digits[100,50][10,5]").name == "digits[100,50][10,5]"
    assert load("digits[100,50]") is load("digits[100,50]")


def test_unknown_names_list_the_legal_ones() -> None:
    listed = datasets.names()
    assert {"digits", "mnist_5k:large", "fashion_mnist:tops", "cifar10:animate"} <= set(listed)
    for name in ("imagenet", "digits[5]", "digits[5,-1]", "digits:", "[1,2]", ""):
        with pytest.raises(RequestError, match=r"is unknown; legal: digits, .*cifar10:animate.*, each also with sizes"):
            load(name)
    with pytest.raises(RequestError, match="n_test is 5000; digits has 497"):
        load("digits[10,5000]")
    with pytest.raises(RequestError, match="without brackets"):
        datasets.register("a[1,2]", small)


def test_a_registered_loader_is_called_once_and_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datamodels.datasets.registry._LOADERS", {})
    calls = []

    def loader() -> Dataset:
        calls.append(1)
        return small()

    datasets.register("mine", loader)
    assert load("mine") is load("mine")
    assert len(calls) == 1
    datasets.register("mine", lambda: small(5))
    assert len(load("mine").train) == 5
    load.cache_clear()


def test_importing_datasets_loads_nothing_heavy() -> None:
    heavy = "{'torch', 'sklearn', 'PIL', 'mlxtend', 'pandas', 'datasets'}"
    code = f"import sys, datamodels.datasets; print(sorted({heavy} & set(sys.modules)))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# -- arrays -------------------------------------------------------------------------------------------


def test_labels_of_any_kind_become_codes() -> None:
    x = np.arange(8, dtype=np.float64).reshape(4, 2)
    data = from_arrays(
        "mine", x, ["t", "b", "t", "a"], x[:2], ["b", "a"], hidden_train=[3, 1, 3, 7], hidden_test=[9, 1]
    )
    assert data.class_names == ("a", "b", "t")
    np.testing.assert_array_equal(data.train.y, [2, 1, 2, 0])
    np.testing.assert_array_equal(data.test.y, [1, 0])
    assert data.hidden_names == ("1", "3", "7", "9")
    np.testing.assert_array_equal(data.train.hidden, [1, 0, 1, 2])
    np.testing.assert_array_equal(data.test.hidden, [3, 0])
    np.testing.assert_array_equal(data.train.x, x)
    assert data.train.images is None
    assert from_arrays("b", x, [True, False, True, True], x[:1], [True]).class_names == ("False", "True")


def test_class_names_go_by_code_or_by_order() -> None:
    x = np.zeros((3, 1))
    by_code = from_arrays("d", x, [0, 2, 2], x, [0, 0, 2], class_names=["p", "q", "r"])
    np.testing.assert_array_equal(by_code.train.y, [0, 2, 2])
    by_order = from_arrays("d", x, [10, 30, 30], x, [10, 10, 10], class_names=["p", "q"])
    np.testing.assert_array_equal(by_order.train.y, [0, 1, 1])
    with pytest.raises(RequestError, match="3 class_names for 2 labels, 10 to 30"):
        from_arrays("d", x, [10, 30, 30], x, [10, 10, 10], class_names=["p", "q", "r"])


@pytest.mark.parametrize(
    ("given", "shape", "pictures"),
    [
        ((4, 5, 6), (4, 1, 5, 6), (4, 5, 6)),
        ((4, 5, 6, 1), (4, 1, 5, 6), (4, 5, 6)),
        ((4, 5, 6, 3), (4, 3, 5, 6), (4, 5, 6, 3)),
        ((4, 3, 5, 6), (4, 3, 5, 6), None),
        ((4, 30), (4, 30), None),
    ],
)
def test_bytes_are_pixels(given: tuple[int, ...], shape: tuple[int, ...], pictures: tuple[int, ...] | None) -> None:
    x = RNG(0).integers(0, 256, given).astype(np.uint8)
    data = from_arrays("d", x, [0, 1, 0, 1], x, [0, 1, 0, 1])
    assert data.train.x.shape == shape
    assert (None if data.train.images is None else data.train.images.shape) == pictures
    assert data.train.x.sum() == pytest.approx(x.sum() / 255, rel=1e-5)
    if pictures is not None and len(pictures) == 4:
        np.testing.assert_allclose(data.train.x[2, 1], x[2, :, :, 1] / 255, rtol=1e-6)


def test_arrays_that_do_not_fit_are_refused() -> None:
    x, y = np.zeros((3, 2)), [0, 1, 1]
    bad = x.copy()
    bad[1, 1] = 1e60
    for message, arguments in {
        "x_train has a value that is NaN or infinite in float32, in example 1": (bad, y, x, y),
        "x_test must be numbers": (x, y, np.array([["a"], ["b"], ["c"]]), y),
        "x_train must be one array": ([[1, 2], [3]], y, x, y),
        "y_train has no label for example 2": (x, ["a", "b", None], x, y),
        "y_test has no label for example 0": (x, y, x, [np.nan, 1, 1]),
        "y_test has the label '2', which y_train lacks": (x, y, x, [0, 1, 2]),
        "y mixes labels": (x, y, x, ["a", "b", "c"]),
        "y_train must be one label": (x, np.zeros((3, 2)), x, y),
        "x has 3 examples, y has 2": (x, [0, 1], x, y),
        "y_test has no examples": (x, y, x[:0], []),
    }.items():
        with pytest.raises(RequestError, match=message):
            from_arrays("d", *arguments)
    with pytest.raises(RequestError, match="go together"):
        from_arrays("d", x, y, x, y, hidden_train=y)
