"""The contract of a store. Backends override the methods that start with an underscore."""

from __future__ import annotations

import hashlib
import importlib
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.design import Design
from datamodels.errors import RequestError, RowError
from datamodels.progress import Progress
from datamodels.spec import IDS, LABELS, MASKS, KeySpec, Spec, check_rows
from datamodels.store.integrity import check_same_models, differing, good_rows, parts
from datamodels.store.meta import Meta
from datamodels.store.plan import check_ids, check_labels, plan, warn_few_subsets
from datamodels.store.records import Merged, Status, Verified
from datamodels.sweep import Sweep


class Store(ABC):
    """Rows of training outcomes, one per model.

    Use `Store.create` for a store that does not exist and `Store.open` for one that does; neither
    does the work of the other.

    Attributes
    ----------
    spec
        The schema and the number of models.
    design
        How subsets are drawn, or None when the task returns its own masks.
    sweep
        The training parameters of each row, or None.
    path
        Where the store is: a folder, or the address of a remote store.
    """

    _backends: ClassVar[dict[str, str]] = {
        "": "datamodels.store.npy:NpyStore",
        **dict.fromkeys(("s3", "gs", "az", "file", "memory"), "datamodels.store.remote:RemoteStore"),
    }

    path: Path | str
    spec: Spec
    design: Design | None
    sweep: Sweep | None
    #: How many rows are best written together, from a multiple of it on; None when single rows cost as little.
    block_rows: int | None = None

    @staticmethod
    def _backend(path: str | Path) -> type[Store]:
        scheme, separator, _ = str(path).partition("://")
        target = Store._backends.get(scheme if separator else "")
        if target is None:
            schemes = ", ".join(f"{name}://" for name in Store._backends if name)
            raise RequestError(f"no store backend for {str(path)!r}; legal: a local folder, or {schemes}")
        module, _, name = target.partition(":")
        return getattr(importlib.import_module(module), name)

    @classmethod
    def create(
        cls,
        path: str | Path,
        *,
        schema: Mapping[str, Any] | None = None,
        spec: Spec | None = None,
        design: Design | None = None,
        sweep: Sweep | None = None,
        labels: ArrayLike | None = None,
        ids: Mapping[str, ArrayLike | None] | None = None,
    ) -> Store:
        """Make a store where there is none.

        Parameters
        ----------
        path
            A folder, made when absent; or an address like ``s3://bucket/run`` (extra ``cloud``).
        schema
            key -> ``{"shape": (...), "dtype": name}``, plus ``"of": "train"`` when column j belongs to
            train example j and ``"allow_nonfinite": True`` when NaN and inf are meant. Give it with a
            design, which says how many models there are.
        spec
            Schema and number of models in one; instead of ``schema``.
        design
            How subsets are drawn. The key ``masks`` is then filled by the store, and added to a
            ``schema`` that lacks it.
        sweep
            The training parameters of each row, which a task gets as ``params``. Its keys ``param_<name>``
            are filled by the store, and added to a ``schema`` or ``spec`` that lacks them.
        labels
            Class of each training example, (n_train,), kept with the store; lets `train` report
            subsets that lack a class.
        ids
            ``{"train": names, "test": names}``, either of which may be missing: names of the training examples,
            (n_train,), and of the test examples that targets are, in their order. Fits hand them on.

        Raises
        ------
        StoreError
            when there is a store already. Nothing is emptied or overwritten.
        RequestError
            when schema, spec, design and sweep do not go together.
        """
        spec = plan(schema, spec, design, sweep)
        warn_few_subsets(design)
        facts = {} if labels is None else {LABELS: check_labels(labels, design)}
        return cls._backend(path)._create(path, Meta.new(spec, design, sweep), facts | check_ids(ids, design))

    def copy_to(self, path: str | Path, *, progress: bool = True) -> Merged:
        """Copy the completed rows to another store, made when there is none, that lacks them: here or far away.

        Doing it again copies what is new; after an interruption, what is missing. A copy that is shorter is extended.

        Parameters
        ----------
        path
            A folder or an address.
        progress
            Whether to show progress on standard error.

        Returns
        -------
        Merged
            What `merge` did there.

        Raises
        ------
        RequestError
            when there is a store of another schema, design or sweep.
        """
        backend = self._backend(path)
        if backend._exists(path):
            other = backend._open(path)
            check_same_models(other, self)
            if other.n_models < self.n_models:
                other.extend(self.n_models - other.n_models)
        else:
            other = backend._create(path, self.as_meta(), self.facts())
        return other.merge(self, progress=progress)

    @abstractmethod
    def as_meta(self) -> Meta:
        """What a copy of this store says of itself."""

    @classmethod
    def open_or_create(
        cls,
        path: str | Path,
        *,
        schema: Mapping[str, Any] | None = None,
        spec: Spec | None = None,
        design: Design | None = None,
        sweep: Sweep | None = None,
        labels: ArrayLike | None = None,
        ids: Mapping[str, ArrayLike | None] | None = None,
    ) -> Store:
        """The store at `path`, made when there is none: for scripts that are run again and again.

        Parameters as in `Store.create`.

        Raises
        ------
        RequestError
            when there is a store with another sweep, schema, design or number of models.
        """
        backend = cls._backend(path)
        if not backend._exists(path):
            return cls.create(path, schema=schema, spec=spec, design=design, sweep=sweep, labels=labels, ids=ids)
        store, wanted = backend._open(path), plan(schema, spec, design, sweep)
        for what, mine, given in (
            ("sweep", store.sweep, sweep),
            ("schema", store.spec.fields, wanted.fields),
            ("design", store.design and store.design.identity, design and design.identity),
            ("number of models", store.n_models, wanted.num_models),
        ):
            if mine != given:
                raise RequestError(
                    f"the store at {str(path)!r} has another {what} than the one asked for: choose another folder, or "
                    "open it as it is with Store.open (to add models, use extend)"
                )
        return store

    @classmethod
    def open(cls, path: str | Path) -> Store:
        """Open a store that exists.

        Raises
        ------
        StoreError
            when there is none, or when it was made by a newer version.
        CorruptStoreError
            when its files do not go together (a truncated array, an edited spec).
        """
        return cls._backend(path)._open(path)

    @classmethod
    @abstractmethod
    def _create(cls, path: str | Path, meta: Meta, facts: Mapping[str, NDArray[Any]]) -> Store: ...

    @classmethod
    @abstractmethod
    def _open(cls, path: str | Path) -> Store: ...

    @classmethod
    @abstractmethod
    def _exists(cls, path: str | Path) -> bool: ...

    # -- what is there ----------------------------------------------------------------------------

    @property
    def address(self) -> str:
        """What `Store.open` takes in any process: an absolute path, or the address of a remote store."""
        return str(self.path.resolve()) if isinstance(self.path, Path) else self.path

    @property
    def n_models(self) -> int:
        """Number of rows."""
        return self.spec.num_models

    @property
    def keys(self) -> list[str]:
        """Names of what each row holds."""
        return list(self.spec.fields)

    @abstractmethod
    def completed(self) -> NDArray[np.bool_]:
        """Which rows are complete at this moment, bool (n_models,)."""

    def completed_rows(self, rows: Sequence[int]) -> NDArray[np.bool_]:
        """Which of `rows`, (k,) indices, are complete at this moment, bool (k,)."""
        return self.completed()[np.asarray(rows, dtype=np.int64)]

    @abstractmethod
    def array(self, key: str) -> NDArray[Any]:
        """All rows of a key, (n_models, *shape), read-only and not loaded; incomplete rows hold anything."""

    def labels(self) -> NDArray[np.int64] | None:
        """Class of each training example, (n_train,), when the store was created with labels."""
        return self._fact(LABELS)

    def ids(self, of: Literal["train", "test"]) -> NDArray[np.str_] | None:
        """Names of the training or of the test examples, (n_train,) or (k,), when the store was created with them."""
        return self._fact(IDS[of])

    @abstractmethod
    def _fact(self, name: str) -> NDArray[Any] | None:
        """An array that was given when the store was created."""

    def facts(self) -> dict[str, NDArray[Any]]:
        """Labels and names, (n_train,) or (k,) each, as far as there are, by the names of their files."""
        found = {name: self._fact(name) for name in (LABELS, *IDS.values())}
        return {name: array for name, array in found.items() if array is not None}

    def masks(self, start: int = 0, stop: int | None = None, *, key: str = MASKS) -> NDArray[np.bool_]:
        """The masks of rows start..stop-1, bool (stop - start, n_train), read from `key` or regenerated from the design.

        Raises
        ------
        RequestError
            when there is no such key, or it holds no masks.
        """
        stop = self._end(start, stop)
        if key in self.spec.fields:
            rows = np.asarray(self.array(key)[start:stop])
            if rows.dtype == np.uint8 and rows.max(initial=0) > 1:
                raise RequestError(f"the key {key!r} holds {rows.max()}, so it holds no masks: a mask is 0 and 1")
            return rows.view(np.bool_) if rows.dtype == np.uint8 else rows
        if key == MASKS and self.design is not None:
            return self.design.masks(start, stop)
        raise RequestError(f"the store {str(self.path)!r} has no key {key!r}; it has {self.keys}")

    def parameters(self, start: int = 0, stop: int | None = None) -> dict[str, NDArray[Any]]:
        """The training parameters of rows start..stop-1, name -> (rows,): float64, int64 or bool, and object
        for values that are no numbers.

        Raises
        ------
        RequestError
            when the store has no sweep.
        """
        if self.sweep is None:
            raise RequestError(
                f"the store {str(self.path)!r} has no sweep, so its rows have no parameters; make one with "
                "sweep=Sweep(...) or --sweep"
            )
        return self.sweep.columns(start, self._end(start, stop))

    def _end(self, start: int, stop: int | None) -> int:
        """Where rows start..stop-1 end, after a look whether they are rows of the store."""
        stop = self.n_models if stop is None else stop
        if not 0 <= start <= stop <= self.n_models:
            raise IndexError(f"rows {start}..{stop} are outside of the store's rows 0..{self.n_models}")
        return stop

    def field(self, key: str) -> KeySpec:
        """The schema of a key.

        Raises
        ------
        RequestError
            when there is no such key.
        """
        if key not in self.spec.fields:
            raise RequestError(f"the store {str(self.path)!r} has no key {key!r}; it has {self.keys}")
        return self.spec.fields[key]

    # -- writing ----------------------------------------------------------------------------------

    def write_row(self, index: int, values: Mapping[str, Any], *, overwrite: bool = False) -> bool:
        """Write the values of one row, key -> array-like, and mark it complete. See `write_rows`.

        Returns whether row `index` was written: one that is complete is left alone unless `overwrite` is true.
        """
        if not isinstance(values, Mapping):
            check_rows(self.spec.fields, values, 1)
        return bool(self.write_rows([index], {key: [value] for key, value in values.items()}, overwrite=overwrite))

    def write_rows(
        self, rows: Sequence[int] | NDArray[np.int64], values: Mapping[str, Any], *, overwrite: bool = False
    ) -> list[int]:
        """Write whole rows; each is complete or untouched, whatever happens on the way.

        Parameters
        ----------
        rows
            (k,) indices, each at most once.
        values
            key -> array-like (k, *shape). With a design, ``masks`` may be left out; with a sweep,
            its keys ``param_<name>``.
        overwrite
            Whether rows that are complete are written again; otherwise they are left alone.

        Returns
        -------
        list of int
            The rows that were written. On object storage, a row that two writers write at the same moment with equal bytes may
            be named by both.

        Raises
        ------
        RequestError
            when rows are not distinct rows of the store.
        RowError
            when values do not fit the schema; nothing is written then.
        StoreError
            when the disk refuses; no row is marked that is not wholly there.
        """
        index = np.asarray(rows, dtype=np.int64)
        if index.ndim != 1 or len(np.unique(index)) != len(index):
            raise RequestError(f"rows must be a list of distinct indices, got {rows!r}")
        outside = index[(index < 0) | (index >= self.n_models)]
        if len(outside):
            raise RequestError(f"row {outside[0]} is outside of the store's rows 0..{self.n_models - 1}")
        ready = check_rows(self.stored, self._with_parameters(index, self._with_masks(index, values)), len(index))
        return self._write_rows(index, ready, overwrite)

    @abstractmethod
    def _write_rows(self, rows: NDArray[np.int64], values: dict[str, NDArray[Any]], overwrite: bool) -> list[int]: ...

    @property
    def stored(self) -> Mapping[str, KeySpec]:
        """The schema of the keys whose values are written."""
        return self.spec.fields

    def _with_masks(self, rows: NDArray[np.int64], values: Mapping[str, Any]) -> Mapping[str, Any]:
        """`values` with the design's masks, after a look at those that the task returned."""
        if self.design is None or MASKS not in self.spec.fields or not isinstance(values, Mapping):
            return values
        masks = self.design.masks_of(rows)
        if MASKS in values:
            given = np.asarray(values[MASKS])
            if given.shape != masks.shape or not np.array_equal(given, masks):
                raise RowError(
                    "the masks that the task returned are not those of the store's design; "
                    "train on the mask that is passed to the task, and leave 'masks' out of its result"
                )
        return {**values, MASKS: masks}

    def _with_parameters(self, rows: NDArray[np.int64], values: Mapping[str, Any]) -> Mapping[str, Any]:
        """`values` with the keys of the sweep, after a look at those that the task returned."""
        if self.sweep is None or not isinstance(values, Mapping):
            return values
        drawn = self.sweep.keys_of(rows)
        for key in drawn.keys() & values.keys():
            if not np.array_equal(np.asarray(values[key]), drawn[key]):
                raise RowError(
                    f"{key!r} that the task returned is not that of the store's sweep; train with the params that "
                    f"are passed to the task, and leave {key!r} out of its result"
                )
        return {**values, **drawn}

    @abstractmethod
    def extend(self, k: int) -> None:
        """Add k models in place. Rows that exist keep their masks and their bytes."""

    @abstractmethod
    def record_failure(self, row: int, text: str) -> str:
        """Keep `text` as the log of a row that failed; gone when the row completes. Returns where it is."""

    def failures(self) -> dict[int, str]:
        """Rows whose last attempt failed and that nobody has completed, and where their logs are; see `failure_log`."""
        logs = self._failure_logs()
        done = self.completed() if logs else np.empty(0, np.bool_)
        return {row: log for row, log in logs.items() if row < len(done) and not done[row]}

    @abstractmethod
    def _failure_logs(self) -> dict[int, str]:
        """All logs of failed rows, also of rows that were completed later, and where they are."""

    @abstractmethod
    def failure_log(self, row: int) -> str:
        """The log of a row that failed; empty when there is none."""

    # -- looking after it ---------------------------------------------------------------------------

    @abstractmethod
    def checksums(self) -> NDArray[np.uint32] | None:
        """Checksum of each row, (n_models,); None for folders that have none."""

    @abstractmethod
    def campaigns(self) -> list[dict[str, Any]]:
        """Heartbeats of campaigns: ``{"updated": unix seconds, "rows_per_second": x, "running": bool}``."""

    @abstractmethod
    def heartbeat(self, name: str, beat: dict[str, Any]) -> None:
        """Leave the heartbeat of the campaign `name`: `beat` as `campaigns` lists it."""

    @abstractmethod
    def ask_to_stop(self, name: str, reason: str) -> None:
        """Ask a campaign, by the name of its heartbeat, to end soon for a `reason` that it will say; rows that it has completed
        stay."""

    @abstractmethod
    def asked_to_stop(self, name: str) -> str | None:
        """Why the campaign `name` was asked to end; None when it was not."""

    def status(self) -> Status:
        """Counts, failures, and, while campaigns run, their rate and the time left."""
        done = self.completed()
        failed = sorted(self.failures())
        rate = sum(
            beat.get("rows_per_second", 0)
            for beat in self.campaigns()
            if beat.get("running") and abs(time.time() - beat.get("updated", 0)) < 60  # either way: clocks are set back
        )
        completed = int(done.sum())
        rate = rate if completed < self.n_models else 0  # of a campaign that died, beats go on for a moment
        pending = self.n_models - completed - len(failed)
        return Status(
            models=self.n_models,
            completed=completed,
            failed=len(failed),
            pending=pending,
            rows_per_second=rate or None,
            seconds_left=(self.n_models - completed) / rate if rate else None,
            failed_rows=failed,
        )

    def verify(self) -> Verified:
        """Recompute the checksum of every completed row, and compare its mask with the design's and its
        parameters with the sweep's."""
        done = np.flatnonzero(self.completed())
        bad: list[int] = []
        for part in parts(self, done):
            bad += np.setdiff1d(part, good_rows(self, part)[0]).tolist()
        return Verified(checked=len(done), bad_rows=bad, has_checksums=self.checksums() is not None)

    def forget(self, rows: Sequence[int] | NDArray[np.int64]) -> None:
        """Mark complete rows, (k,) indices, as not complete, so that the next campaign trains them again: those that `verify`
        found bad.

        Raises
        ------
        RequestError
            when there are no such rows.
        """
        index = np.unique(np.asarray(rows, dtype=np.int64))
        outside = index[(index < 0) | (index >= self.n_models)]
        if len(outside):
            raise RequestError(f"row {outside[0]} is outside of the store's rows 0..{self.n_models - 1}")
        if len(index):
            self._forget(index)

    @abstractmethod
    def _forget(self, rows: NDArray[np.int64]) -> None: ...

    def merge(self, other: Store, *, progress: bool = True) -> Merged:
        """Copy the completed rows of another store of the same design and sweep that are missing here.

        Rows whose checksum is wrong there are not copied. Rows that are complete in both are left
        alone; those whose content differs (by their checksums, where both have them) are named in the result.
        When it is interrupted, doing it again does what is missing. With `progress`, progress is shown on standard error.

        Raises
        ------
        RequestError
            when schema, design or sweep differ, or the other store has rows that this one lacks.
        """
        check_same_models(self, other)
        rows = np.flatnonzero(other.completed())
        if len(rows) and rows[-1] >= self.n_models:
            raise RequestError(
                f"{str(other.path)!r} has row {rows[-1]}; {str(self.path)!r} has {self.n_models} models: "
                f"extend it first by {rows[-1] + 1 - self.n_models}"
            )
        done = self.completed()
        both, missing = rows[done[rows]], rows[~done[rows]]
        copied: list[int] = []
        bad: list[int] = []
        with Progress("copying rows", len(missing), show=progress) as bar:
            for part in parts(self, missing):
                good, values = good_rows(other, part)
                bad += np.setdiff1d(part, good).tolist()
                if len(good):
                    copied += self.write_rows(good, values)
                bar.advance(len(part))
        return Merged(copied, both.tolist(), differing(self, other, both), bad)

    def rng(self, row: int) -> np.random.Generator:
        """The generator of a row: the design's, or one drawn from the store's identity."""
        if self.design is not None:
            return self.design.rng(row)
        entropy = int.from_bytes(hashlib.sha256(self.identity.encode()).digest()[:16], "little")
        return np.random.Generator(np.random.Philox(np.random.SeedSequence(entropy, spawn_key=(row,))))

    @property
    def identity(self) -> str:
        """What row numbers refer to: stores of equal identity have the same model in row i."""
        if self.design is None:
            return self._origin()
        return f"design:{self.design.identity}" + (f" sweep:{self.sweep.identity}" if self.sweep else "")

    @abstractmethod
    def _origin(self) -> str:
        """What tells this store from all others when there is no design."""

    def fingerprint(self) -> str:
        """A hash of identity, completed rows and their checksums: equal when the content is equal."""
        digest = hashlib.sha256(self.identity.encode())
        done, sums = self.completed(), self.checksums()
        digest.update(np.packbits(done).tobytes())
        if sums is not None:
            digest.update(sums[done].tobytes())
        return digest.hexdigest()

    def __repr__(self) -> str:
        return f"{type(self).__name__}({str(self.path)!r}, {self.n_models} models, keys {self.keys})"
