"""The types that every loader returns."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.errors import RequestError


@dataclass(frozen=True, eq=False)
class Split:
    """Examples of one split.

    Attributes
    ----------
    x
        (k, ...) float32 features; of pictures (k, channels, height, width) in [0, 1].
    y
        (k,) int64 class labels that models are trained on, from 0.
    hidden
        (k,) labels that models never see, or None.
    images
        (k, height, width) or (k, height, width, 3) uint8 pictures to show, or None.
    ids
        (k,) names of the samples, text, or None.
    groups
        (k,) donor, family or batch of each sample, integers or text, or None. ``Design(kind="grouped", groups=...)`` takes
        them as they are: samples of one group are then in or out together, so the models that did not see a sample did not
        see its group. The masks of a group's samples are the same column: what the data say is the sum of their weights, the
        effect of the whole group in or out. Ridge gives each sample an equal share of it; a lasso may give all to one.
    obs
        Further facts of the samples that no model sees (library size, batch): name -> (k,) numbers, truth values or text.

    Raises
    ------
    RequestError
        when a type or a shape is not that.
    """

    x: NDArray[np.float32]
    y: NDArray[np.int64]
    hidden: NDArray[Any] | None = None
    images: NDArray[np.uint8] | None = None
    ids: NDArray[np.str_] | None = None
    groups: NDArray[Any] | None = None
    obs: Mapping[str, NDArray[Any]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _check_array("x", self.x, np.float32)
        _check_array("y", self.y, np.int64)
        if self.y.ndim != 1 or self.y.min(initial=0) < 0:
            raise RequestError(f"y must be class codes from 0, (k,); got shape {self.y.shape}, least {self.y.min()}")
        if self.x.ndim < 2:
            raise RequestError(f"x must be (k, ...), one row per example; got shape {self.x.shape}")
        if self.images is not None:
            _check_array("images", self.images, np.uint8)
            if self.images.ndim != 3 and not (self.images.ndim == 4 and self.images.shape[3] == 3):
                raise RequestError(
                    f"images must be (k, height, width) or (k, height, width, 3); got shape {self.images.shape}"
                )
        if self.hidden is not None and (not isinstance(self.hidden, np.ndarray) or self.hidden.ndim != 1):
            raise RequestError(f"hidden must be an array (k,); got {np.shape(self.hidden)}")
        columns = {"ids": (self.ids, "U"), "groups": (self.groups, "biuU")}
        columns |= {f"obs[{name!r}]": (values, "biufU") for name, values in self.obs.items()}
        for name, (column, kinds) in columns.items():
            if column is None:
                continue
            if not isinstance(column, np.ndarray) or column.ndim != 1 or column.dtype.kind not in kinds:
                given = column.dtype if isinstance(column, np.ndarray) else type(column).__name__
                legal = "text" if kinds == "U" else "integers or text" if kinds == "biuU" else "numbers or text"
                raise RequestError(f"{name} must be an array (k,) of {legal}; got {given} {np.shape(column)}")
        given_columns = [(name, column) for name, (column, _) in columns.items()]
        for name, values in [("x", self.x), ("hidden", self.hidden), ("images", self.images), *given_columns]:
            if values is not None and len(values) != len(self.y):
                raise RequestError(f"{name} has {len(values)} examples, y has {len(self.y)}; they must agree")

    def __len__(self) -> int:
        return len(self.y)

    @property
    def flat(self) -> NDArray[np.float32]:
        """The features as rows, (k, features)."""
        return self.x.reshape(len(self), math.prod(self.x.shape[1:]))

    @functools.cached_property
    def has_missing(self) -> bool:
        """Whether a feature is NaN, for `datamodels.training.preparation.Preparation` to impute."""
        return bool(np.isnan(self.x).any())

    def take(self, indices: ArrayLike) -> Split:
        """The examples at positions `indices`, (r,), in that order; copies.

        Raises
        ------
        RequestError
            when there are no such examples.
        """
        chosen = np.asarray(indices)
        if chosen.size == 0:
            chosen = np.empty(0, np.int64)
        if chosen.ndim != 1 or chosen.dtype.kind not in "iu":
            raise RequestError(f"indices must be positions, integers (r,); got {chosen.dtype} {chosen.shape}")
        outside = chosen[(chosen < 0) | (chosen >= len(self))]
        if len(outside):
            raise RequestError(f"index {outside[0]} is outside of the split's examples 0..{len(self) - 1}")
        optional = {name: getattr(self, name) for name in ("hidden", "images", "ids", "groups")}
        return Split(
            self.x[chosen],
            self.y[chosen],
            **{name: None if values is None else values[chosen] for name, values in optional.items()},
            obs={name: values[chosen] for name, values in self.obs.items()},
        )


@dataclass(frozen=True, eq=False)
class Dataset:
    """A train and a test split, and what their labels mean.

    Attributes
    ----------
    name
        What `load` finds it by, when it is registered.
    train, test
        The examples; their features have the same shape. `test` may be empty: then the targets are the training examples,
        each judged by the models that did not see it (out of mask): ``TrainRecipe(..., splits=("train",))``.
    class_names
        Name of each class code.
    hidden_name
        What the hidden labels are ("digit", "cell type"), or None.
    hidden_names
        Name of each hidden code, or None.
    feature_names
        Name of each feature (genes, variants, columns), or None.

    Raises
    ------
    RequestError
        when splits and names do not go together.
    """

    name: str
    train: Split
    test: Split
    class_names: tuple[str, ...]
    hidden_name: str | None = None
    hidden_names: tuple[str, ...] | None = None
    feature_names: tuple[str, ...] | None = None

    @property
    def ids(self) -> dict[str, NDArray[np.str_] | None]:
        """Names of the examples of each split, (k,) or None, as `Store.create` takes them."""
        return {"train": self.train.ids, "test": self.test.ids}

    def __post_init__(self) -> None:
        if self.train.x.shape[1:] != self.test.x.shape[1:]:
            raise RequestError(
                f"train examples have shape {self.train.x.shape[1:]}, test examples {self.test.x.shape[1:]}; "
                "they must agree"
            )
        if len(set(self.class_names)) != self.n_classes:
            raise RequestError(f"class_names must differ from each other; got {list(self.class_names)}")
        largest = max(split.y.max(initial=-1) for split in (self.train, self.test))
        if largest >= self.n_classes:
            raise RequestError(
                f"there is a label {largest}, but {self.n_classes} class_names: legal are 0 and up to that"
            )
        if self.hidden_names is not None:
            for split in (self.train, self.test):
                if split.hidden is None or split.hidden.dtype.kind not in "iu":
                    raise RequestError("hidden_names name hidden codes; give both splits hidden labels of integers")
                if len(split) and not 0 <= split.hidden.min() <= split.hidden.max() < len(self.hidden_names):
                    raise RequestError(f"hidden codes must lie in 0..{len(self.hidden_names) - 1}, as hidden_names do")
        if self.feature_names is not None and len(self.feature_names) != math.prod(self.train.x.shape[1:]):
            raise RequestError(
                f"there are {len(self.feature_names)} feature_names for features of shape {self.train.x.shape[1:]}"
            )

    @property
    def n_classes(self) -> int:
        """Number of classes that models tell apart."""
        return len(self.class_names)

    def coarse(
        self,
        groups: Mapping[str, Sequence[str | int]],
        *,
        name: str | None = None,
        class_names: Sequence[str] | None = None,
        hidden_name: str = "class",
    ) -> Dataset:
        """The same examples under fewer, larger classes; the classes of now become the hidden labels.

        Parameters
        ----------
        groups
            New class -> the classes, by name or code, that it is made of. Examples of a class that is in
            no group are dropped from both splits.
        name
            Name of the result; by default this one's.
        class_names
            The new classes in the order of their codes; by default that of `groups`.
        hidden_name
            What the classes of now are ("digit").

        Raises
        ------
        RequestError
            when a class is unknown or in two groups, or a group has none.
        """
        order = tuple(groups) if class_names is None else tuple(class_names)
        if len(order) < 2 or len(order) != len(groups) or set(order) != set(groups):
            raise RequestError(f"groups are {list(groups)}; needed are two or more, and class_names of just these")
        table = np.full(self.n_classes, -1)
        for code, group in enumerate(order):
            if isinstance(groups[group], str) or not groups[group]:
                raise RequestError(f"the group {group!r} must be a list of classes; got {groups[group]!r}")
            for member in groups[group]:
                old = self._code(member)
                if table[old] >= 0:
                    raise RequestError(f"class {self.class_names[old]!r} is used twice; each may be in one group")
                table[old] = code

        def relabel(split: Split) -> Split:
            kept = np.flatnonzero(table[split.y] >= 0)
            part = split if len(kept) == len(split) else split.take(kept)
            return replace(part, y=table[part.y], hidden=part.y)

        return replace(
            self,
            name=self.name if name is None else name,
            train=relabel(self.train),
            test=relabel(self.test),
            class_names=order,
            hidden_name=hidden_name,
            hidden_names=self.class_names,
        )

    def _code(self, member: str | int) -> int:
        if isinstance(member, Integral) and 0 <= member < self.n_classes:
            return int(member)
        if member not in self.class_names:
            raise RequestError(
                f"class {member!r} is unknown; legal: {', '.join(self.class_names)}, or codes 0..{self.n_classes - 1}"
            )
        return self.class_names.index(str(member))

    def subset(self, *, n_train: int | None = None, n_test: int | None = None, seed: int | None = None) -> Dataset:
        """Fewer examples.

        Parameters
        ----------
        n_train, n_test
            How many; by default all.
        seed
            Draws them at random, without replacement and without regard to labels; they keep their
            order. By default the first ones are taken.

        Returns
        -------
        Dataset
            Named ``name[n_train,n_test]`` for seed 0, ``name[n_train,n_test,seed=s]`` for others and
            ``name[n_train,n_test,first]`` without; `load` understands all three.

        Raises
        ------
        RequestError
            when there are not so many.
        """
        if seed is not None and seed < 0:
            raise RequestError(f"seed is {seed}; it must be 0 or more")
        parts = []
        for stream, (which, split, wanted) in enumerate((("train", self.train, n_train), ("test", self.test, n_test))):
            count = len(split) if wanted is None else wanted
            if not min(1, len(split)) <= count <= len(split):
                raise RequestError(
                    f"n_{which} is {count}; {self.name} has {len(split)} {which} examples: give 1 to that"
                    if len(split)
                    else f"n_{which} is {count}; {self.name} has no {which} examples: give 0, or leave it out"
                )
            if count == len(split):
                parts.append(split)
            elif seed is None:
                parts.append(split.take(np.arange(count)))
            else:
                drawn = np.random.default_rng([seed, stream]).choice(len(split), count, replace=False)
                parts.append(split.take(np.sort(drawn)))
        how = ",first" if seed is None else f",seed={seed}" if seed else ""
        name = f"{self.name}[{len(parts[0])},{len(parts[1])}{how}]"
        return replace(self, name=name, train=parts[0], test=parts[1])


def _check_array(name: str, values: object, dtype: type) -> None:
    if not isinstance(values, np.ndarray) or values.dtype != dtype:
        given = values.dtype if isinstance(values, np.ndarray) else type(values).__name__
        raise RequestError(
            f"{name} must be a numpy array of {np.dtype(dtype)}, got {given}; convert it, or let from_arrays do it"
        )
