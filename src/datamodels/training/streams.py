"""What is random in the training of a row: first weights, order of examples, changes of pictures.

All of it is drawn here and in NumPy, so that a row is the same model in any block, in any engine and on any device.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from datamodels.design import Design
from datamodels.training.recipes import Recipe

# Columns of the changes of a picture.
FLIP, DOWN, RIGHT, CUT_ROW, CUT_COLUMN = range(5)


@dataclass(frozen=True, eq=False)
class Streams:
    """The generators of one row, and the training examples that it sees.

    Attributes
    ----------
    members
        (size,) indices of the examples in the row's subset.
    init, order, augment
        Draw first weights, the order of examples, and changes of pictures.
    """

    members: NDArray[np.int64]
    init: np.random.Generator
    order: np.random.Generator
    augment: np.random.Generator

    @classmethod
    def of(cls, design: Design, row: int, mask: NDArray[np.bool_]) -> Streams:
        """Those of a row of a design, with its subset `mask`, bool (n_train,)."""
        return cls(np.flatnonzero(mask), *(design.rng(row, name) for name in ("init", "order", "augment")))

    @classmethod
    def seeded(cls, mask: NDArray[np.bool_], seed: int, row: int = 0) -> Streams:
        """Those of model number `row` under a seed, with a subset `mask`, bool (n_train,), whatever the design."""
        seeds = np.random.SeedSequence([seed, row]).spawn(3)
        return cls(np.flatnonzero(mask), *map(np.random.default_rng, seeds))

    def epoch(self) -> NDArray[np.int64]:
        """The members in the order of the next epoch, (size,)."""
        return self.order.permutation(self.members)

    def changes(self, recipe: Recipe, height: int, width: int) -> NDArray[np.int16]:
        """How each picture, `height` by `width` pixels, of the next epoch is changed by a recipe, (size, 5): mirrored or not,
        shift down and right, and the centre of the blanked square."""
        size = len(self.members)
        out = np.zeros((size, 5), dtype=np.int16)
        if recipe.flip:
            out[:, FLIP] = self.augment.integers(0, 2, size)
        if recipe.translate:
            out[:, DOWN : RIGHT + 1] = self.augment.integers(-recipe.translate, recipe.translate + 1, (size, 2))
        if recipe.cutout:
            out[:, CUT_ROW] = self.augment.integers(0, height, size)
            out[:, CUT_COLUMN] = self.augment.integers(0, width, size)
        return out
