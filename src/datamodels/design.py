"""How training subsets are drawn.

A `Design` is a small immutable value. `mask(i)` is a pure function of (design, i): every machine,
process and order of calls gives the same bytes, so a row can be regenerated anywhere.

Only raw 64-bit words of `numpy.random.Philox` are used to draw masks. NumPy promises that these
words never change, which it does not promise of `Generator` methods.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import field, replace
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray
from pydantic import ConfigDict, field_validator, model_validator
from pydantic.dataclasses import dataclass

from datamodels.errors import RequestError, refusing

Kind = Literal["fixed_size", "bernoulli", "grouped", "stratified", "antithetic", "leave_one_out", "explicit"]
Stream = Literal["mask", "init", "order", "task", "augment"]

_STREAMS: dict[str, int] = {"mask": 0, "init": 1, "order": 2, "task": 3, "augment": 4}
_NEEDS_ALPHA = ("fixed_size", "bernoulli", "grouped", "stratified")


def label_codes(labels: ArrayLike) -> tuple[int, ...]:
    """Labels of any kind as integers 0..k-1, in sorted order of the labels."""
    array = np.asarray(labels)
    missing = [i for i, label in enumerate(array.tolist()) if label is None or label != label]
    if missing:
        raise ValueError(f"the label of training example {missing[0]} is missing; give every example one")
    return tuple(np.unique(array, return_inverse=True)[1].ravel().tolist())


@refusing
@dataclass(frozen=True, kw_only=True, config=ConfigDict(extra="forbid"))
class Design:
    """How the subset of each model is drawn.

    Parameters
    ----------
    n_train
        Number of training examples (columns of the mask matrix).
    alpha
        Expected share of the training set that one model sees, 0 < alpha < 1. Given for
        ``fixed_size``, ``bernoulli``, ``grouped`` and ``stratified``; implied by the other kinds.
    n_models
        Number of models (rows). Row i uses mask number ``i // replicates``.
    seed
        Any integer ≥ 0. Designs of other seeds have independent masks.
    kind
        ``fixed_size``: exactly ``round(alpha * n_train)`` examples.
        ``bernoulli``: each example in or out by itself.
        ``grouped``: whole groups in or out, exactly ``round(alpha * n_groups)`` of them.
        ``stratified``: exactly ``round(alpha * size)`` of each stratum.
        ``antithetic``: mask 2k has ``n_train // 2`` examples, mask 2k+1 is its complement.
        ``leave_one_out``: mask k is every example but k.
        ``explicit``: masks given by the user, see `Design.explicit`.
    replicates
        Runs of the same mask with other training seeds, for noise ceilings.
    groups, strata
        (n_train,) one label per training example, for ``grouped`` and ``stratified``. Any values that sort.
    masks_sha256
        Hash of the masks of an ``explicit`` design; `Design.explicit` sets it.

    Raises
    ------
    RequestError
        when the parameters do not go together.
    """

    n_train: int
    alpha: float | None = None
    n_models: int = 1
    seed: int = 0
    kind: Kind = "fixed_size"
    replicates: int = 1
    groups: tuple[int, ...] | None = field(default=None, repr=False)
    strata: tuple[int, ...] | None = field(default=None, repr=False)
    masks_sha256: str | None = field(default=None, repr=False)

    @field_validator("groups", "strata", mode="before")
    @classmethod
    def _encode(cls, value: Any) -> tuple[int, ...] | None:
        return None if value is None else label_codes(value)

    @model_validator(mode="after")
    def _check(self) -> Design:
        if self.n_train < 1:
            raise ValueError(f"n_train is {self.n_train}; it must be at least 1")
        if self.n_models < 1:
            raise ValueError(f"n_models is {self.n_models}; it must be at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; it must be 0 or more")
        if self.replicates < 1:
            raise ValueError(f"replicates is {self.replicates}; it must be at least 1")
        self._check_alpha()
        self._check_labels("groups", "grouped")
        self._check_labels("strata", "stratified")
        if (self.masks_sha256 is not None) != (self.kind == "explicit"):
            raise ValueError("kind 'explicit' is made from masks: use Design.explicit(masks), or --masks FILE.npy")
        if self.kind == "leave_one_out" and self.n_masks > self.n_train:
            raise ValueError(
                f"leave_one_out over {self.n_train} examples has {self.n_train} masks, so at most "
                f"{self.n_train * self.replicates} models; n_models is {self.n_models}"
            )
        if self.kind in _NEEDS_ALPHA and self.kind != "bernoulli":
            self._check_sizes()
        return self

    def _check_alpha(self) -> None:
        if self.kind in _NEEDS_ALPHA:
            if self.alpha is None or not 0 < self.alpha < 1:
                raise ValueError(f"alpha is {self.alpha}; kind {self.kind!r} needs 0 < alpha < 1, for example 0.5")
            return
        implied = {"antithetic": 0.5, "leave_one_out": 1 - 1 / self.n_train}.get(self.kind)
        if self.alpha is None:
            object.__setattr__(self, "alpha", implied)
        elif implied is not None and self.alpha != implied:
            raise ValueError(f"alpha is {self.alpha}; kind {self.kind!r} implies {implied}: leave it out")

    def _check_labels(self, name: str, kind: str) -> None:
        labels = getattr(self, name)
        if (labels is not None) != (self.kind == kind):
            if labels is None:
                raise ValueError(f"kind {kind!r} needs {name}: one label per training example")
            raise ValueError(f"{name} goes with kind {kind!r} and with no other (kind is {self.kind!r})")
        if labels is not None and len(labels) != self.n_train:
            raise ValueError(f"{name} has {len(labels)} labels; n_train is {self.n_train}")

    def _check_sizes(self) -> None:
        for name, size in self._strata_sizes():
            count = round(float(self.alpha or 0) * size)
            if not 0 < count < size:
                raise ValueError(
                    f"alpha {self.alpha} of {size} {name} is {count}: no subset would vary; "
                    "choose alpha so that some are in and some are out"
                )

    def _strata_sizes(self) -> Iterator[tuple[str, int]]:
        if self.kind == "stratified":
            for label, size in zip(*np.unique(self._array("strata"), return_counts=True), strict=True):
                yield f"examples of stratum {label}", int(size)
        elif self.kind == "grouped":
            yield "groups", int(self._array("groups").max()) + 1
        else:
            yield "examples", self.n_train

    def _array(self, name: str) -> NDArray[np.int64]:
        """`groups` or `strata` as an array, converted once."""
        cache = self.__dict__.get("_arrays")
        if cache is None:
            cache = {}
            object.__setattr__(self, "_arrays", cache)
        if name not in cache:
            cache[name] = np.asarray(getattr(self, name), dtype=np.int64)
        return cache[name]

    @classmethod
    def explicit(cls, masks: ArrayLike, *, replicates: int = 1, seed: int = 0) -> Design:
        """A design of given masks, bool (n_masks, n_train); it has ``n_masks * replicates`` models.

        Parameters
        ----------
        masks
            Bool (n_masks, n_train), one row per subset.
        replicates
            Runs of each mask.
        seed
            Of the generators that rows get; masks do not depend on it.

        Raises
        ------
        RequestError
            when masks are no bool matrix.
        """
        array = np.asarray(masks)
        if array.ndim != 2 or array.dtype != np.bool_:
            raise RequestError(
                f"explicit masks have shape {array.shape} and dtype {array.dtype}; "
                "give a bool array of shape (n_masks, n_train)"
            )
        packed = np.packbits(array, axis=1)
        return cls._from_packed(packed, array.shape[1], len(array) * replicates, seed, replicates)

    @classmethod
    def _from_packed(cls, packed: NDArray[np.uint8], n_train: int, n_models: int, seed: int, replicates: int) -> Design:
        digest = hashlib.sha256(f"{n_train}:".encode() + np.ascontiguousarray(packed).tobytes()).hexdigest()
        design = cls(
            n_train=n_train,
            n_models=n_models,
            seed=seed,
            kind="explicit",
            replicates=replicates,
            masks_sha256=digest,
        )
        object.__setattr__(design, "_packed", packed)
        return design

    @property
    def packed_masks(self) -> NDArray[np.uint8] | None:
        """Explicit masks, bit-packed (n_masks, ceil(n_train / 8)); None for drawn designs."""
        return self.__dict__.get("_packed")

    @property
    def n_masks(self) -> int:
        """Number of distinct mask numbers that the rows use."""
        return -(-self.n_models // self.replicates)

    def mask(self, i: int) -> NDArray[np.bool_]:
        """The training subset of row i, bool (n_train,).

        Raises
        ------
        IndexError
            when i is not in ``range(n_models)``.
        """
        if not 0 <= i < self.n_models:
            raise IndexError(f"row {i} is outside of the design's rows 0..{self.n_models - 1}")
        return self._mask_number(i // self.replicates)

    def masks(self, start: int = 0, stop: int | None = None) -> NDArray[np.bool_]:
        """The subsets of rows start..stop-1, bool (stop - start, n_train); by default of all.

        Raises
        ------
        IndexError
            when there are no such rows.
        """
        stop = self.n_models if stop is None else stop
        if not 0 <= start <= stop <= self.n_models:
            raise IndexError(f"rows {start}..{stop} are outside of the design's rows 0..{self.n_models}")
        return self.masks_of(np.arange(start, stop))

    def masks_of(self, rows: ArrayLike) -> NDArray[np.bool_]:
        """The subsets of these rows, in their order, bool (len(rows), n_train)."""
        index = np.asarray(rows, dtype=np.int64)
        outside = index[(index < 0) | (index >= self.n_models)]
        if len(outside):
            raise IndexError(f"row {outside[0]} is outside of the design's rows 0..{self.n_models - 1}")
        out = np.empty((len(index), self.n_train), dtype=np.bool_)
        last = -1
        for i, number in enumerate((index // self.replicates).tolist()):
            out[i] = out[i - 1] if number == last else self._mask_number(number)
            last = number
        return out

    def _mask_number(self, k: int) -> NDArray[np.bool_]:
        alpha = float(self.alpha or 0)
        if self.kind == "fixed_size":
            return _smallest(self._words(k, self.n_train), round(alpha * self.n_train))
        if self.kind == "bernoulli":
            return self._words(k, self.n_train) < np.uint64(min(int(alpha * 2.0**64), 2**64 - 1))
        if self.kind == "antithetic":
            half = _smallest(self._words(k - k % 2, self.n_train), self.n_train // 2)
            return ~half if k % 2 else half
        if self.kind == "grouped":
            groups = self._array("groups")
            n_groups = int(groups.max()) + 1
            return _smallest(self._words(k, n_groups), round(alpha * n_groups))[groups]
        if self.kind == "stratified":
            return self._stratified(k, alpha)
        if self.kind == "leave_one_out":
            out = np.ones(self.n_train, dtype=np.bool_)
            out[k] = False
            return out
        packed = self.packed_masks
        if packed is None:
            raise RequestError("this explicit design was made without its masks: use Design.explicit(masks)")
        return np.unpackbits(packed[k], count=self.n_train).astype(np.bool_)

    def _stratified(self, k: int, alpha: float) -> NDArray[np.bool_]:
        words, strata = self._words(k, self.n_train), self._array("strata")
        out = np.zeros(self.n_train, dtype=np.bool_)
        for label in range(int(strata.max()) + 1):
            members = np.flatnonzero(strata == label)
            out[members] = _smallest(words[members], round(alpha * len(members)))
        return out

    def _words(self, k: int, count: int) -> NDArray[np.uint64]:
        return self._philox("mask", k).random_raw(count)

    def _philox(self, stream: Stream, i: int) -> np.random.Philox:
        if stream not in _STREAMS:
            raise RequestError(f"stream {stream!r} does not exist; legal: {', '.join(get_args(Stream))}")
        return np.random.Philox(np.random.SeedSequence(self.seed, spawn_key=(_STREAMS[stream], i)))

    def rng(self, i: int, stream: Stream = "task") -> np.random.Generator:
        """A generator of row i alone, by `stream`: ``init`` for weights, ``order`` for data order, ``augment`` for changed pictures, ``task`` for
        everything else. Replicates share a mask and nothing else."""
        return np.random.Generator(self._philox(stream, i))

    def units(self, rows: ArrayLike) -> NDArray[np.int64]:
        """The design unit of each of `rows`, (k,): rows of one unit (replicates, antithetic pairs) are dependent
        and stay together when rows are held out or resampled."""
        numbers = np.asarray(rows, dtype=np.int64) // self.replicates
        return numbers // 2 if self.kind == "antithetic" else numbers

    def with_models(self, n_models: int) -> Design:
        """The same design with `n_models` models; existing rows keep their masks.

        Raises
        ------
        RequestError
            when a design of explicit masks is to grow: nobody knows the next mask.
        """
        packed = self.packed_masks
        if self.kind == "explicit":
            if packed is None or n_models > len(packed) * self.replicates:
                raise RequestError(
                    "a design of explicit masks cannot grow; make a new store from the longer list of masks"
                )
            return self._from_packed(packed, self.n_train, n_models, self.seed, self.replicates)
        return replace(self, n_models=n_models)

    def to_dict(self) -> dict[str, Any]:
        """A JSON-ready description. Explicit masks are named by their hash and travel separately."""
        names = ("n_train", "alpha", "n_models", "seed", "kind", "replicates")
        out: dict[str, Any] = {name: getattr(self, name) for name in names}
        for name in ("groups", "strata"):
            if getattr(self, name) is not None:
                out[name] = list(getattr(self, name))
        if self.masks_sha256 is not None:
            out["masks_sha256"] = self.masks_sha256
        return out

    @classmethod
    def from_dict(cls, data: dict[str, Any], packed_masks: NDArray[np.uint8] | None = None) -> Design:
        """Rebuild what `to_dict` described.

        Parameters
        ----------
        data
            What `to_dict` returned.
        packed_masks
            (n_masks, ceil(n_train / 8)) uint8, the `packed_masks` of an explicit design; they are checked against their hash.

        Raises
        ------
        RequestError
            when explicit masks are missing, or are not those of the design.
        """
        if data.get("kind") != "explicit":
            return cls(**data)
        if packed_masks is None:
            raise RequestError("an explicit design needs its masks to be read back")
        design = cls._from_packed(packed_masks, data["n_train"], data["n_models"], data["seed"], data["replicates"])
        if design.masks_sha256 != data.get("masks_sha256"):
            raise RequestError("the explicit masks are not those that the design was made from")
        return design

    @property
    def identity(self) -> str:
        """A hash of everything but ``n_models``: equal identities give equal rows."""
        data = self.to_dict()
        del data["n_models"]
        return hashlib.sha256(json.dumps(data, sort_keys=True).encode()).hexdigest()


def _smallest(words: NDArray[np.uint64], count: int) -> NDArray[np.bool_]:
    """Bool mask of the `count` smallest words; ties go to the lower index."""
    if count == 0:
        return np.zeros(len(words), dtype=np.bool_)
    chosen = words <= np.partition(words, count - 1)[count - 1]
    if int(chosen.sum()) != count:
        chosen[:] = False
        chosen[np.argsort(words, kind="stable")[:count]] = True
    return chosen


def subsets_without_class(masks: NDArray[np.bool_], labels: Sequence[Any] | NDArray[Any]) -> NDArray[np.int64]:
    """Positions of the masks (k, n_train) whose subset has no example of some class of `labels`."""
    codes = np.asarray(label_codes(np.asarray(labels)))
    if len(codes) != masks.shape[1]:
        raise RequestError(f"labels has {len(codes)} entries; the masks have {masks.shape[1]} columns")
    onehot = np.eye(int(codes.max()) + 1, dtype=np.float32)[codes]
    counts = masks.astype(np.float32) @ onehot
    return np.flatnonzero((counts == 0).any(axis=1))
