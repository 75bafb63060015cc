"""Pictures as training changes them: flips, shifts and cutouts by hand, mirror images, standard units."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from datamodels.training.batched import _changed
from datamodels.training.compiled import _load
from datamodels.training.ensemble import Engine, train_models
from datamodels.training.recipes import Recipe
from datamodels.training.streams import Streams
from tests.networks import CLOSE, CNN, MLP, UNEVEN, logits_of, one_thread, problem, row

__all__ = ["one_thread"]  # fixtures


def changed_by_hand(picture: NDArray[np.float32], change: NDArray[np.int16], cutout: int) -> NDArray[np.float32]:
    """Mirror, then shift, then blank."""
    flip, down, right, cut_row, cut_column = map(int, change)
    height, width = picture.shape[1:]
    mirrored = picture[:, :, ::-1] if flip else picture
    out = np.zeros_like(picture)
    for h in range(height):
        for w in range(width):
            if 0 <= h - down < height and 0 <= w - right < width:
                out[:, h, w] = mirrored[:, h - down, w - right]
    if cutout:
        top, left = cut_row - cutout // 2, cut_column - cutout // 2
        out[:, max(top, 0) : max(top + cutout, 0), max(left, 0) : max(left + cutout, 0)] = 0
    return out


@pytest.mark.parametrize(
    ("flip", "translate", "cutout"), [(True, 0, 0), (False, 2, 0), (False, 0, 3), (False, 0, 4), (True, 3, 2)]
)
@pytest.mark.parametrize("shape", [(1, 6, 6), (3, 5, 7)])
def test_pictures_change_as_by_hand(flip: bool, translate: int, cutout: int, shape: tuple[int, int, int]) -> None:
    x, _ = problem(shape)
    recipe = Recipe(flip=flip, translate=translate, cutout=cutout)
    streams = row(0)
    changes = np.concatenate([streams.changes(recipe, *shape[1:]) for _ in range(3)])
    chosen = np.resize(streams.members, len(changes))
    expected = np.stack([changed_by_hand(x[i], change, cutout) for i, change in zip(chosen, changes, strict=True)])
    assert (expected != x[chosen]).any()
    found = np.empty((len(chosen), x[0].size), dtype=np.float32)
    for i, change, out in zip(chosen, changes, found, strict=True):
        _load(x.reshape(len(x), -1), shape, i, change, cutout, out)
    np.testing.assert_array_equal(found.reshape(expected.shape), expected)
    stacked = _changed(torch.from_numpy(x[chosen]), torch.from_numpy(changes).long(), cutout)
    np.testing.assert_array_equal(stacked.numpy(), expected)


def test_changes_are_drawn_evenly_and_only_when_asked() -> None:
    streams = Streams.seeded(np.ones(3000, dtype=bool), 0, 0)
    changes = streams.changes(Recipe(flip=True, translate=2, cutout=3), 4, 6)
    for column, (least, most) in enumerate([(0, 1), (-2, 2), (-2, 2), (0, 3), (0, 5)]):
        values, counts = np.unique(changes[:, column], return_counts=True)
        np.testing.assert_array_equal(values, np.arange(least, most + 1))
        expected = 3000 / len(values)
        assert abs(counts - expected).max() < 6 * np.sqrt(expected)
    assert not streams.changes(Recipe(), 4, 6).any()


@pytest.mark.parametrize("architecture", ["cnn", "mlp", "linear"])
def test_engines_agree_on_changed_pictures(architecture: str) -> None:
    recipe = replace(
        CNN, architecture=architecture, hidden=(9,), epochs=2, flip=True, translate=2, cutout=3, standardise=True,
        flip_average=True,
    )  # fmt: skip
    data = problem((3, 7, 6), 3)
    both = [
        logits_of(recipe, data, [row(i, size) for i, size in enumerate(UNEVEN)], engine, classes=3)
        for engine in ("compiled", "torch")
    ]
    np.testing.assert_allclose(both[0], both[1], atol=CLOSE, rtol=0)


@pytest.mark.parametrize("engine", ["compiled", "torch"])
def test_flip_average_is_the_mean_over_a_picture_and_its_mirror_image(engine: Engine) -> None:
    x, y = problem()
    one, two = (
        train_models(replace(CNN, flip_average=on), x, y, [row(0), row(1)], n_classes=2, engine=engine, stack=2)
        for on in (False, True)
    )
    by_hand = (one.logits(x) + one.logits(x[..., ::-1].copy())) / 2
    np.testing.assert_allclose(two.logits(x), by_hand, atol=1e-6)
    np.testing.assert_allclose(two.logits(x), two.logits(x[..., ::-1].copy()), atol=1e-6)


@pytest.mark.parametrize("shape", [(3, 6, 5), (11,)])
def test_standardise_takes_moments_of_all_training_examples(shape: tuple[int, ...]) -> None:
    x, y = problem(shape)
    x = 5 * x + np.arange(shape[0], dtype=np.float32).reshape(-1, *[1] * (len(shape) - 1))
    if len(shape) == 3:
        x[:, 1] = 4.0  # a channel without deviation
        by_hand = np.stack([(c - c.mean()) / (c.std() or 1) for c in np.moveaxis(x.astype(float), 1, 0)], axis=1)
    else:
        by_hand = (x.astype(float) - x.mean(dtype=float)) / x.std(dtype=float)
    recipe = replace(MLP, standardise=True)
    models = train_models(recipe, x, y, [row(0)], n_classes=2)
    plainly = train_models(replace(MLP), by_hand.astype(np.float32), y, [row(0)], n_classes=2)
    np.testing.assert_allclose(models.logits(x[:7]), plainly.logits(by_hand[:7].astype(np.float32)), atol=CLOSE)
