"""The 1,797 handwritten digits of scikit-learn (8 x 8 pixels; Alpaydin & Kaynak 1998)."""

from __future__ import annotations

import functools
from dataclasses import replace

import numpy as np

from datamodels.datasets.base import Dataset, Split

N_TRAIN = 1300


@functools.cache
def digits() -> Dataset:
    """Digits 5 to 9 against 0 to 4, so that the ten digits are hidden subgroups (Alpaydin & Kaynak 1998).

    The first 1,300 digits of the file train, the last 497 test; x is (k, 64), pixels scaled to [0, 1].
    """
    from sklearn.datasets import load_digits

    raw = load_digits()
    x = (raw.data / 16).astype(np.float32)
    images = np.round(raw.images * (255 / 16)).astype(np.uint8)
    target = raw.target.astype(np.int64)

    def split(part: slice) -> Split:
        return Split(x[part], (target[part] >= 5).astype(np.int64), target[part], images[part])

    names = tuple(str(digit) for digit in range(10))
    return Dataset(
        "digits", split(slice(None, N_TRAIN)), split(slice(N_TRAIN, None)), ("0 to 4", "5 to 9"), "digit", names
    )


def digit_pictures() -> Dataset:
    """`digits` with x of shape (k, 1, 8, 8)."""
    data = digits()
    train, test = (replace(split, x=split.x.reshape(-1, 1, 8, 8)) for split in (data.train, data.test))
    return replace(data, name="digits:pictures", train=train, test=test)
