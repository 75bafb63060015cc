"""The schema, and what survives a dtype."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pydantic import ValidationError

from datamodels.errors import RequestError, RowError
from datamodels.spec import KeySpec, Spec, check_rows, resolve_dtype


@pytest.mark.parametrize(
    ("name", "canonical"),
    [
        ("bool_", "bool"), ("bool", "bool"), ("bool8", "bool"), ("float16", "float16"), ("uint8", "uint8"),
        ("float", "float64"), ("float_", "float64"), ("int", "int64"), ("half", "float16"), ("single", "float32"),
        ("double", "float64"), ("intc", "int32"), ("longfloat", "float128"), ("complex_", "complex128"),
    ],
)  # fmt: skip
def test_names_of_types_old_spellings_included(name: str, canonical: str) -> None:
    assert resolve_dtype(name) == canonical


@pytest.mark.parametrize(
    "name", ["object", "object_", "str_", "datetime64", "void", "ndarray", "float17", "", "number"]
)
def test_other_names_are_refused(name: Any) -> None:
    with pytest.raises(ValidationError, match="not a numeric NumPy type"):
        KeySpec(shape=(1,), dtype=name)


@pytest.mark.parametrize(
    "key", ["_completed", "_checksum", "a/b", "..", "", ".hidden", "a b", "_design_masks", "_labels"]
)
def test_keys_that_cannot_be_files_are_refused(key: str) -> None:
    with pytest.raises(ValidationError, match=r"reserved|cannot name a file"):
        Spec.model_validate({"num_models": 1, "schema": {key: {"shape": [], "dtype": "float32"}}})


def test_spec_files_round_trip_and_fail_clearly(tmp_path: Path) -> None:
    file = tmp_path / "spec.json"
    content = {"num_models": 3, "schema": {"y": {"shape": [2], "dtype": "float16", "allow_nonfinite": True}}}
    file.write_text(json.dumps(content))
    assert Spec.read(file).to_dict() == content
    for text, message in [("{", "not JSON"), ("[]", "not an object")]:
        file.write_text(text)
        with pytest.raises(RequestError, match=message):
            Spec.read(file)
    with pytest.raises(RequestError, match="cannot read the spec"):
        Spec.read(tmp_path / "missing.json")


BAD_VALUES: list[tuple[str, Any]] = [
    ("float16", 70000.0), ("float16", np.float32(-1e6)), ("float32", 1e39), ("uint8", 256), ("uint8", -1),
    ("uint8", 1.5), ("int8", 128), ("int8", -129), ("int64", 2.0**63), ("int64", np.uint64(2**63)),
    ("uint64", -1), ("uint64", 2.0**64), ("bool", 2), ("bool", 0.5), ("bool", -1), ("int32", np.nan),
    ("float32", 1 + 1j), ("int32", 2**40), ("float32", np.nan), ("float16", np.inf), ("int8", np.float16(200)),
]  # fmt: skip

GOOD_VALUES: list[tuple[str, Any]] = [
    ("float16", 0.1), ("float16", 1e-12), ("float32", 1 / 3), ("uint8", 255), ("uint8", 3.0), ("int8", -128),
    ("int64", 2**62), ("int64", np.uint64(2**62)), ("uint64", 2**64 - 1), ("bool", 1), ("bool", 0.0),
    ("int16", True), ("float32", 1 + 0j), ("complex64", 1.5), ("float64", np.float16(0.1)), ("int8", np.float16(-128)),
    ("float32", 123456789),
]  # fmt: skip


@pytest.mark.parametrize(("dtype", "value"), BAD_VALUES)
def test_values_that_do_not_survive_are_refused(dtype: str, value: Any) -> None:
    with pytest.raises(RowError, match=r"survive|NaN or inf"):
        check_rows({"y": KeySpec(shape=(), dtype=dtype)}, {"y": np.array([value])}, 1)


@pytest.mark.parametrize(("dtype", "value"), GOOD_VALUES)
def test_values_that_survive_are_kept(dtype: str, value: Any) -> None:
    out = check_rows({"y": KeySpec(shape=(), dtype=dtype)}, {"y": np.array([value])}, 1)["y"]
    assert out.dtype == np.dtype(dtype)
    assert np.isclose(complex(out[0]), complex(value), rtol=2e-3, atol=1e-7)


@given(
    values=hnp.arrays(np.float64, 5, elements=st.floats(-1e6, 1e6)),
    dtype=st.sampled_from(["int8", "uint8", "int32", "uint64", "bool", "float16"]),
)
def test_what_is_accepted_as_an_integer_is_equal(values: np.ndarray, dtype: str) -> None:
    """Property: an accepted row equals what was given, exactly for integers, to rounding for floats."""
    try:
        out = check_rows({"y": KeySpec(shape=(5,), dtype=dtype)}, {"y": values[None]}, 1)["y"][0]
    except RowError:
        with np.errstate(all="ignore"):
            same = np.array_equal(values.astype(dtype).astype(float), values)
        assert not same or dtype == "float16"
    else:
        tolerance = {"rtol": 2**-10, "atol": 1e-7} if dtype == "float16" else {"rtol": 0, "atol": 0}
        np.testing.assert_allclose(out.astype(float), values, **tolerance)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"y": [[1, 2]]}, r"shape \(2,\).*wants \(3,\)"),
        ({"y": [[1, 2, 3]], "z": [0]}, r"unknown \['z'\]"),
        ({}, r"missing \['y'\]"),
        ({"y": [["a", "b", "c"]]}, "dtype <U1"),
        ({"y": [[None, 1, 2]]}, "dtype object"),
        ({"y": [[1, 2, 3]], "_completed": [True]}, "reserved"),
        ([1, 2], "a row is a dict"),
    ],
)
def test_rows_of_the_wrong_form_are_refused(values: Any, message: str) -> None:
    with pytest.raises(RowError, match=message):
        check_rows({"y": KeySpec(shape=(3,), dtype="float32")}, values, 1)


def test_nonfinite_values_pass_where_the_schema_allows_them() -> None:
    field = KeySpec(shape=(2,), dtype="float16", allow_nonfinite=True)
    out = check_rows({"y": field}, {"y": [[np.nan, -np.inf]]}, 1)["y"]
    assert np.isnan(out[0, 0])
    assert out[0, 1] == -np.inf
    with pytest.raises(RowError, match="survive"):
        check_rows({"y": field}, {"y": [[1e9, 0]]}, 1)
