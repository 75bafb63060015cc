"""A small store, damage to what such a store or a document holds, and the errors that may come of it."""

from __future__ import annotations

import contextlib
import json
import random
import warnings
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from datamodels.design import Design
from datamodels.errors import DatamodelsError

SCHEMA = {"margins": {"shape": (4,), "dtype": "float32"}}
DESIGN = Design(n_train=12, alpha=0.5, n_models=10, seed=3)
BOUNDED = settings(
    derandomize=True, deadline=timedelta(seconds=20), max_examples=80, database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**30), 10**30) | st.floats() | st.text(max_size=8)
    | st.sampled_from(["../x", "explicit", "float32", "object", 10**400]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)  # fmt: skip


@contextlib.contextmanager
def only_our_errors() -> Iterator[None]:
    """A parser may refuse, with an error of ours, and warn."""
    with warnings.catch_warnings(), contextlib.suppress(DatamodelsError):
        warnings.simplefilter("ignore")
        yield


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Some bits turned, bytes put in or taken out, the end cut off, or a part that is repeated."""
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 8))):
        at, how = rng.randrange(len(out) + 1), rng.randrange(6)
        if how <= 2 and at < len(out):
            out[at] ^= 1 << rng.randrange(8)
        elif how == 3:
            out[at:at] = rng.randbytes(rng.choice((1, 8)))
        elif how == 4:
            del out[at : at + rng.choice((1, 8, 1 << 20))]
        else:
            out[at:at] = out[: min(at, 64)]
    return bytes(out)


def edited(document: Any, value: Any, rng: random.Random) -> Any:
    """A JSON document with another value, or none, in one of its places."""
    document = json.loads(json.dumps(document))
    places: list[tuple[Any, Any]] = []

    def walk(item: Any) -> None:
        pairs = item.items() if isinstance(item, dict) else enumerate(item) if isinstance(item, list) else ()
        for key, inner in pairs:
            places.append((item, key))
            walk(inner)

    walk(document)
    holder, key = rng.choice(places)
    if isinstance(holder, dict) and rng.random() < 0.2:
        del holder[key]
    else:
        holder[key] = value
    return document


def text_of(document: Any) -> str:
    return json.dumps(document, default=str)
