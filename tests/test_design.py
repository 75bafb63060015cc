"""Designs: pure functions of (design, row), with the marginals that they promise."""

from __future__ import annotations

import hashlib
import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from datamodels.design import Design, _smallest, subsets_without_class
from datamodels.errors import RequestError

KINDS = ("fixed_size", "bernoulli", "grouped", "stratified", "antithetic", "leave_one_out", "explicit")


def make(
    kind: str, n_train: int = 24, n_models: int = 12, seed: int = 5, replicates: int = 1, alpha: float = 0.5
) -> Design:
    if kind == "explicit":
        masks = np.random.default_rng(seed).random((-(-n_models // replicates), n_train)) < alpha
        return Design.explicit(masks, replicates=replicates, seed=seed).with_models(n_models)
    more: dict[str, object] = {}
    if kind in ("fixed_size", "bernoulli", "grouped", "stratified"):
        more["alpha"] = alpha
    if kind == "grouped":
        more["groups"] = [f"donor{i % 6}" for i in range(n_train)]
    if kind == "stratified":
        more["strata"] = np.arange(n_train) % 3
    return Design(n_train=n_train, n_models=n_models, seed=seed, kind=kind, replicates=replicates, **more)


@pytest.mark.parametrize("kind", KINDS)
def test_rows_do_not_depend_on_order_or_on_the_number_of_models(kind: str) -> None:
    design = make(kind)
    forward = [design.mask(i) for i in range(12)]
    backward = [design.mask(i) for i in reversed(range(12))][::-1]
    np.testing.assert_array_equal(forward, backward)
    np.testing.assert_array_equal(design.masks(), forward)
    np.testing.assert_array_equal(design.masks(3, 7), forward[3:7])
    if kind not in ("explicit", "leave_one_out"):
        np.testing.assert_array_equal(design.with_models(500).masks(0, 12), forward)


def test_bytes_of_a_mask_are_fixed_for_all_time() -> None:
    """A change here would silently break every store ever written."""
    digests = {
        kind: hashlib.sha256(np.packbits(make(kind).masks()).tobytes()).hexdigest()[:16]
        for kind in ("fixed_size", "bernoulli", "grouped", "stratified", "antithetic")
    }
    assert digests == EXPECTED_DIGESTS


EXPECTED_DIGESTS = {
    "fixed_size": "3a5a34ab21fd5622",
    "bernoulli": "ece6a4a7f7e50598",
    "grouped": "73f410de78204f9e",
    "stratified": "e1dcc29a830bf452",
    "antithetic": "e5afed109366cd20",
}


def test_another_process_draws_the_same_masks() -> None:
    program = (
        "from datamodels.design import Design; import hashlib\n"
        "d = Design(n_train=100, alpha=.3, n_models=50, seed=9)\n"
        "print(hashlib.sha256(d.masks(10, 50).tobytes()).hexdigest())"
    )
    there = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True).stdout.strip()
    design = Design(n_train=100, alpha=0.3, n_models=50, seed=9)
    assert hashlib.sha256(design.masks(10, 50).tobytes()).hexdigest() == there


@settings(max_examples=60, deadline=None)
@given(
    n_train=st.integers(2, 80),
    alpha=st.floats(0.02, 0.98),
    seed=st.integers(0, 2**63),
    row=st.integers(0, 10**6),
)
def test_fixed_size_subsets_have_exactly_the_size(n_train: int, alpha: float, seed: int, row: int) -> None:
    size = round(alpha * n_train)
    if not 0 < size < n_train:
        with pytest.raises(RequestError, match="no subset would vary"):
            Design(n_train=n_train, alpha=alpha, n_models=10**6 + 1, seed=seed)
        return
    assert Design(n_train=n_train, alpha=alpha, n_models=10**6 + 1, seed=seed).mask(row).sum() == size


@settings(max_examples=40, deadline=None)
@given(
    replicates=st.integers(1, 4),
    extra=st.integers(0, 30),
    kind=st.sampled_from(["fixed_size", "bernoulli", "antithetic", "grouped", "stratified"]),
)
def test_extending_never_moves_a_row(replicates: int, extra: int, kind: str) -> None:
    design = make(kind, replicates=replicates, n_models=9)
    longer = design.with_models(9 + extra)
    np.testing.assert_array_equal(longer.masks(0, 9), design.masks())
    for i in range(9):
        np.testing.assert_array_equal(design.mask(i), design.mask(i - i % replicates))
        assert longer.rng(i, "init").random() == design.rng(i, "init").random()


def test_replicates_share_the_mask_and_nothing_else() -> None:
    design = make("fixed_size", replicates=3, n_models=9)
    np.testing.assert_array_equal(design.mask(3), design.mask(5))
    assert not np.array_equal(design.mask(2), design.mask(3))
    streams = {(i, s): design.rng(i, s).random() for i in range(9) for s in ("init", "order", "task")}
    assert len(set(streams.values())) == 27


def test_grouped_takes_whole_groups_and_counts_them() -> None:
    design = make("grouped", n_models=200)
    groups = np.arange(24) % 6
    for mask in design.masks():
        per_group = np.array([mask[groups == g].mean() for g in range(6)])
        assert set(per_group) <= {0.0, 1.0}
        assert per_group.sum() == 3


def test_stratified_has_the_size_within_each_stratum() -> None:
    strata = np.array([0] * 20 + [1] * 10 + [2] * 4)
    design = Design(n_train=34, alpha=0.25, n_models=100, kind="stratified", strata=strata)
    counts = np.array([[mask[strata == s].sum() for s in range(3)] for mask in design.masks()])
    np.testing.assert_array_equal(counts, np.tile([5, 2, 1], (100, 1)))


@pytest.mark.parametrize("n_train", [24, 25])
def test_antithetic_pairs_are_complements_and_one_unit(n_train: int) -> None:
    design = make("antithetic", n_train=n_train)
    masks = design.masks()
    np.testing.assert_array_equal(masks[1::2], ~masks[::2])
    assert design.units(np.arange(6)).tolist() == [0, 0, 1, 1, 2, 2]
    assert make("antithetic", replicates=2).units(np.arange(8)).tolist() == [0] * 4 + [1] * 4


def test_leave_one_out_leaves_out_each_in_turn() -> None:
    design = make("leave_one_out")
    np.testing.assert_array_equal(~design.masks(), np.eye(24, dtype=bool)[:12])
    with pytest.raises(RequestError, match="at most 24 models"):
        make("leave_one_out", n_models=25)


def test_explicit_masks_come_back_and_cannot_grow() -> None:
    masks = np.random.default_rng(0).random((5, 11)) < 0.5
    design = Design.explicit(masks, replicates=2)
    np.testing.assert_array_equal(design.masks(), np.repeat(masks, 2, axis=0))
    with pytest.raises(RequestError, match="cannot grow"):
        design.with_models(11)
    again = Design.from_dict(design.to_dict(), design.packed_masks)
    assert again == design
    with pytest.raises(RequestError, match="not those"):
        Design.from_dict(design.to_dict(), np.packbits(~masks, axis=1))


@pytest.mark.parametrize("kind", KINDS)
def test_description_round_trip(kind: str) -> None:
    import json

    design = make(kind, replicates=2)
    again = Design.from_dict(json.loads(json.dumps(design.to_dict())), design.packed_masks)
    assert again == design
    assert again.identity == design.identity == design.with_models(5).identity
    np.testing.assert_array_equal(again.masks(), design.masks())


@pytest.mark.parametrize(("kind", "alpha"), [("fixed_size", 0.3), ("bernoulli", 0.3), ("antithetic", 0.5)])
def test_marginals_and_pairs_have_their_probabilities(kind: str, alpha: float) -> None:
    """Counts over 4,000 masks lie within 5 standard errors; for 30 columns and 435 pairs a correct
    program fails less than once in 3,000 seeds, and the seed is fixed."""
    m, n = 4000, 30
    design = make(kind, n_train=n, n_models=m, seed=11, alpha=alpha)
    x = design.masks().astype(float)
    independent = m if kind != "antithetic" else m / 2
    frequency = x.mean(axis=0)
    if kind != "antithetic":
        assert np.abs(frequency - alpha).max() < 5 * np.sqrt(alpha * (1 - alpha) / m)
    else:
        np.testing.assert_array_equal(frequency, 0.5)
    size = n // 2 if kind == "antithetic" else round(alpha * n)
    pair = alpha**2 if kind == "bernoulli" else size * (size - 1) / (n * (n - 1))
    both = (x.T @ x / m)[np.triu_indices(n, 1)]
    assert np.abs(both - pair).max() < 5 * np.sqrt(pair * (1 - pair) / independent)


@pytest.mark.parametrize("kind", ["grouped", "stratified"])
def test_groups_and_strata_have_their_probabilities(kind: str) -> None:
    """Every example has the marginal of its group or stratum, and two of different ones meet as often as
    independent choices of exact size do; 5 standard errors over 4,000 masks."""
    m = 4000
    x = make(kind, n_train=24, n_models=m, seed=3).masks().astype(float)
    assert np.abs(x.mean(axis=0) - 0.5).max() < 5 * 0.5 / np.sqrt(m)
    label = np.arange(24) % (6 if kind == "grouped" else 3)
    apart = label[:, None] != label[None, :]
    expected = 3 * 2 / (6 * 5) if kind == "grouped" else 0.25
    assert np.abs((x.T @ x / m)[apart] - expected).max() < 5 * np.sqrt(expected * (1 - expected) / m)


def test_rows_are_independent_of_each_other_and_of_other_seeds() -> None:
    """Overlap of consecutive rows, and of equal rows under other seeds, is that of independent draws."""
    n, m = 200, 400
    a, b = (Design(n_train=n, alpha=0.5, n_models=m, seed=s, kind="bernoulli").masks() for s in (1, 2))
    for overlap in ((a[:-1] == a[1:]).mean(), (a == b).mean()):
        assert abs(overlap - 0.5) < 5 * 0.5 / np.sqrt(n * (m - 1))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"alpha": 1.0}, "0 < alpha < 1"),
        ({"alpha": None}, "0 < alpha < 1"),
        ({"alpha": 0.001}, "no subset would vary"),
        ({"n_train": 0}, "n_train is 0"),
        ({"n_models": 0}, "n_models is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"replicates": 0}, "replicates is 0"),
        ({"kind": "grouped"}, "kind 'grouped' needs groups"),
        ({"groups": [0] * 24}, "groups goes with kind 'grouped'"),
        ({"kind": "stratified", "strata": [0, 1]}, "strata has 2 labels"),
        ({"kind": "antithetic", "alpha": 0.3}, "implies 0.5"),
        ({"kind": "explicit", "alpha": None}, "Design.explicit"),
        ({"kind": "unknown"}, "kind"),
        ({"kind": "grouped", "groups": [0.0, float("nan")] * 12}, "training example 1 is missing"),
        ({"kind": "grouped", "groups": ["a", None] * 12}, "training example 1 is missing"),
    ],
)
def test_bad_parameters_say_what_is_legal(more: dict[str, object], message: str) -> None:
    with pytest.raises(RequestError, match=message):
        Design(**{"n_train": 24, "alpha": 0.5, "n_models": 4, **more})


def test_names_that_are_not_its_own_and_values_without_a_name_are_refused() -> None:
    with pytest.raises(RequestError, match="Design has no 'alfa'; legal: n_train, alpha, n_models"):
        Design(n_train=24, alfa=0.5)  # type: ignore[call-arg]
    with pytest.raises(RequestError, match=r"takes its values by name, like n_train=...; given: \(24,\)"):
        Design(24)  # type: ignore[misc]
    with pytest.raises(RequestError, match=r"alpha: Input should be a valid number.*\(given: 'half'\)"):
        Design(n_train=24, alpha="half")  # type: ignore[arg-type]


@pytest.mark.parametrize("row", [-1, 12, 10**9])
def test_rows_outside_of_the_design_are_refused(row: int) -> None:
    with pytest.raises(IndexError, match=r"0\.\.11"):
        make("fixed_size").mask(row)


def test_ties_go_to_the_lower_index() -> None:
    words = np.array([7, 3, 3, 3, 9], dtype=np.uint64)
    assert _smallest(words, 2).tolist() == [False, True, True, False, False]


def test_subsets_that_lack_a_class_are_found() -> None:
    masks = np.array([[1, 1, 0, 0], [1, 0, 1, 0], [0, 0, 1, 1]], dtype=bool)
    assert subsets_without_class(masks, ["a", "a", "b", "b"]).tolist() == [0, 2]
    with pytest.raises(RequestError, match="3 entries"):
        subsets_without_class(masks, [0, 1, 2])
