"""The result: one weight per (training example, target), in output units per example.

Every way to attribute yields an `Attribution`, so every evaluation and application takes any of them.
"""

from __future__ import annotations

import json
import operator
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, get_args

import numpy as np
from numpy.typing import ArrayLike, NDArray

from datamodels.errors import DatamodelsError, RequestError, first_line, newer_format
from datamodels.files import replacing

if TYPE_CHECKING:
    import anndata

FORMAT_VERSION = 1
_UNS = "datamodels"
_ARRAY = "__array__"
IDS = "ids"
"""The fact of training examples, and of targets, that holds their names."""
_RESERVED = ("bias", "train_column", "_index")
Sign = Literal["positive", "negative", "absolute"]
Orientation = Literal["train_by_target", "target_by_train"]


class Top(NamedTuple):
    """Training examples of one target, strongest first.

    Attributes
    ----------
    indices
        (k,) which they are.
    weights
        (k,) their weights.
    ids
        (k,) their names, None when the attribution has none.
    """

    indices: NDArray[np.int64]
    weights: NDArray[np.float32]
    ids: NDArray[Any] | None = None


@dataclass(frozen=True, eq=False)
class Attribution:
    """Datamodels of many targets: ``masks @ weights + bias`` predicts the outputs.

    Attributes
    ----------
    weights
        (n_train, n_targets) float32, in raw mask units: the change of the output when the example
        joins the training set.
    bias
        (n_targets,) float64.
    target_facts
        name -> (n_targets,) or (n_targets, k): ``lam``, ``n_nonzero``, ``gap``, ``val_r2`` for path
        estimators, ``path_*`` for what was tried on the way, and what users add.
    train_facts
        name -> (n_train,): what users add about training examples.
    train_columns
        (n_targets,) the training example that each target is, or None when targets are not training
        examples. Such targets are fitted and evaluated on the models that did not see them.
    provenance
        Where it comes from: estimator, versions, and per source of rows its identity, design,
        fingerprint and the rows used.

    Raises
    ------
    RequestError
        when shapes do not go together, or a fact has a name that the file needs for itself.
    """

    weights: NDArray[np.float32]
    bias: NDArray[np.float64]
    target_facts: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    train_facts: Mapping[str, NDArray[Any]] = field(default_factory=dict)
    train_columns: NDArray[np.int64] | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        weights = np.asarray(self.weights, dtype=np.float32)
        bias = np.asarray(self.bias, dtype=np.float64)
        if weights.ndim != 2 or bias.shape != weights.shape[1:]:
            raise RequestError(
                f"weights have shape {weights.shape} and bias {bias.shape}; they must be (n_train, n_targets) and (n_targets,)"
            )
        object.__setattr__(self, "weights", weights)
        object.__setattr__(self, "bias", bias)
        for name, size in (("target_facts", self.n_targets), ("train_facts", self.n_train)):
            facts = {key: np.asarray(value) for key, value in getattr(self, name).items()}
            reserved = [key for key in facts if key in _RESERVED or "/" in key]
            if reserved:
                raise RequestError(f"{name} has the name {reserved[0]!r}, which the file needs for itself")
            for key, value in facts.items():
                if value.shape[:1] != (size,):
                    raise RequestError(f"{name}[{key!r}] has shape {value.shape}; its first axis must be {size}")
            object.__setattr__(self, name, facts)
        if self.train_columns is not None:
            columns = np.asarray(self.train_columns, dtype=np.int64)
            if columns.shape != (self.n_targets,) or (
                len(columns) and not 0 <= columns.min() <= columns.max() < self.n_train
            ):
                raise RequestError("train_columns must name one training example per target")
            object.__setattr__(self, "train_columns", columns)

    @classmethod
    def from_scores(
        cls,
        scores: ArrayLike,
        *,
        orientation: Orientation,
        method: str,
        units: str = "arbitrary",
        target_facts: Mapping[str, NDArray[Any]] | None = None,
        train_columns: ArrayLike | None = None,
        provenance: Mapping[str, Any] | None = None,
    ) -> Attribution:
        """Scores of any other method or package as an attribution, with bias 0.

        Parameters
        ----------
        scores
            One number per pair, larger where the training example raises the target's output: negate influences on
            the loss. An array or a tensor on the CPU; it is kept in float32.
        orientation
            ``train_by_target``: (n_train, n_targets), as `traker` returns. ``target_by_train``: (n_targets, n_train), as
            kronfluence and captum return. It is never guessed.
        method
            Whose scores they are; `provenance` keeps it as the name of the estimator.
        units
            What one unit of a score is ("change of the margin"). Ranks and LDS need none; predicted changes mean
            something only in units of the output.
        target_facts, train_columns
            As in `Attribution`. ``target_facts["target"]`` says which output each target is; by default all in order.
        provenance
            What else is known. ``{"sources": []}`` says that the method has used no rows of any store.

        Raises
        ------
        RequestError
            when the scores are no finite matrix or the orientation is not named.
        """
        if orientation not in get_args(Orientation):
            raise RequestError(f"orientation is {orientation!r}; legal: {', '.join(get_args(Orientation))}")
        if not isinstance(method, str) or not method:
            raise RequestError(f"method is {method!r}; give the name of whose scores these are")
        try:
            matrix = np.asarray(scores, dtype=np.float32)
        except (TypeError, ValueError, RuntimeError) as error:
            raise RequestError(
                f"the scores cannot become an array ({first_line(error)}); give numbers, a tensor as "
                "scores.detach().float().cpu()"
            ) from None
        if matrix.ndim != 2 or not np.isfinite(matrix).all():
            raise RequestError(
                f"the scores have shape {matrix.shape}{' and hold NaN or inf' if matrix.ndim == 2 else ''}; give a "
                "finite number per training example and target"
            )
        weights = matrix if orientation == "train_by_target" else np.ascontiguousarray(matrix.T)
        return cls(
            weights,
            np.zeros(weights.shape[1]),
            target_facts=target_facts or {},
            train_columns=None if train_columns is None else np.asarray(train_columns),
            provenance={**(provenance or {}), "estimator": {"name": method}, "units": units},
        )

    @property
    def n_train(self) -> int:
        """Number of training examples."""
        return self.weights.shape[0]

    @property
    def n_targets(self) -> int:
        """Number of targets."""
        return self.weights.shape[1]

    def __repr__(self) -> str:
        estimator = self.provenance.get("estimator", {}).get("name", "unknown estimator")
        return f"Attribution({self.n_train} train examples x {self.n_targets} targets, {estimator})"

    def predict(self, masks: ArrayLike) -> NDArray[np.float64]:
        """Predicted outputs (k, n_targets) of models trained on `masks`, bool (k, n_train); (n_targets,) for one mask.

        Raises
        ------
        RequestError
            when masks are of another number of training examples.
        """
        array = np.asarray(masks)
        if array.shape[-1:] != (self.n_train,) or array.ndim > 2:
            raise RequestError(f"masks have shape {array.shape}; their last axis must be n_train = {self.n_train}")
        return (array.astype(np.float32) @ self.weights).astype(np.float64) + self.bias

    def target_named(self, target: int | str) -> int:
        """The number of a target: of a name, where its fact `IDS` has it once; a number is itself.

        Raises
        ------
        RequestError
            when there is no such target, or several have the name.
        """
        if isinstance(target, str):
            names = self.target_facts.get(IDS)
            if names is None:
                raise RequestError(
                    f"target {target!r} is a name, and these targets have none: give a number in 0..{self.n_targets - 1}"
                )
            found = np.flatnonzero(np.asarray(names).astype(str) == target)
            if len(found) != 1:
                raise RequestError(
                    f"{len(found) or 'no'} targets are named {target!r}; names look like {str(names[0])!r}, or give a number in "
                    f"0..{self.n_targets - 1}"
                )
            return int(found[0])
        try:
            number = operator.index(target)
        except TypeError:
            raise RequestError(f"target is {target!r}; give a number in 0..{self.n_targets - 1}, or a name") from None
        if not 0 <= number < self.n_targets:
            raise RequestError(f"target {number} is outside of 0..{self.n_targets - 1}")
        return number

    def top(self, target: int | str, k: int = 10, *, sign: Sign = "positive") -> Top:
        """The k training examples with the strongest weights for a target, strongest first.

        Parameters
        ----------
        target
            Its column, or its name.
        k
            How many; fewer come back when fewer weights have that sign, since examples of weight 0 are never listed.
        sign
            ``positive``: raise the output (helpful, for margins); ``negative``: lower it; ``absolute``: either.

        Raises
        ------
        RequestError
            when there is no such target or sign.
        """
        column = self.weights[:, self.target_named(target)]
        scores = {"positive": column, "negative": -column, "absolute": np.abs(column)}.get(sign)
        if scores is None:
            raise RequestError(f"sign {sign!r} is unknown; legal: positive, negative, absolute")
        order = np.argsort(-scores, kind="stable")[: max(k, 0)]
        order = order[scores[order] > 0]
        names = self.train_facts.get(IDS)
        return Top(order.astype(np.int64), column[order], None if names is None else np.asarray(names)[order])

    def select(self, targets: Any) -> Attribution:
        """The same attribution for some `targets`: a slice, indices (k,), or a bool mask (n_targets,). ``attribution[targets]`` does it, too.

        Raises
        ------
        RequestError
            when there are no such targets.
        """
        try:
            index = np.atleast_1d(np.arange(self.n_targets)[targets])
        except IndexError:
            raise RequestError(f"targets {targets!r} do not exist; there are {self.n_targets}") from None
        return replace(
            self,
            weights=self.weights[:, index],
            bias=self.bias[index],
            target_facts={key: value[index] for key, value in self.target_facts.items()},
            train_columns=None if self.train_columns is None else self.train_columns[index],
        )

    def __getitem__(self, targets: Any) -> Attribution:
        return self.select(targets)

    # -- files ------------------------------------------------------------------------------------------

    def save(self, path: str | Path) -> Path:
        """Write an AnnData at `path`, ``.h5ad``: X = weightsᵀ (sparse when that is smaller), obs = targets, var =
        training examples, uns = provenance. An existing file is replaced in one step.

        Raises
        ------
        RequestError
            when the name ends otherwise, or the file cannot be written.
        """
        path = Path(path)
        if path.suffix != ".h5ad":
            raise RequestError(f"{str(path)!r} must end in .h5ad (for the classic layout use export_pt)")
        try:
            with replacing(path) as temporary:
                self.to_anndata().write_h5ad(temporary)
        except OSError as error:
            raise RequestError(f"cannot write {str(path)!r}: {first_line(error)}") from None
        return path

    def to_anndata(self) -> anndata.AnnData:
        """The AnnData object that `save` writes."""
        import anndata
        import pandas as pd
        from scipy import sparse

        matrix = np.ascontiguousarray(self.weights.T)
        nonzero = int(np.count_nonzero(matrix))
        smaller_sparse = nonzero * 8 + 4 * len(matrix) < matrix.nbytes
        obs = pd.DataFrame({"bias": self.bias}, index=[f"target_{i}" for i in range(self.n_targets)])
        var = pd.DataFrame(index=[f"train_{i}" for i in range(self.n_train)])
        data = anndata.AnnData(X=sparse.csr_matrix(matrix) if smaller_sparse else matrix, obs=obs, var=var)
        for frame, multi, facts in (
            (data.obs, data.obsm, self.target_facts),
            (data.var, data.varm, self.train_facts),
        ):
            for key, value in facts.items():
                (frame if value.ndim == 1 else multi)[key] = value
        if self.train_columns is not None:
            data.obs["train_column"] = self.train_columns
        text, arrays = _to_json(self.provenance)
        data.uns[_UNS] = {"format_version": FORMAT_VERSION, "provenance": text, "arrays": arrays}
        return data

    @classmethod
    def load(cls, path: str | Path) -> Attribution:
        """Read what `save` wrote.

        Raises
        ------
        RequestError
            when the file is missing or holds something else.
        NewerFormatError
            when a newer version wrote it.
        """
        data = read_h5ad(path)
        if _UNS not in data.uns:
            other = next((key for key in data.uns if str(key).startswith(f"{_UNS}_")), None)
            holds = (
                f"holds {other.removeprefix(f'{_UNS}_')}, not weights to predict with" if other else "is no attribution"
            )
            raise RequestError(f"{str(path)!r} {holds}: give a file that `datamodels fit` wrote (it has uns[{_UNS!r}])")
        try:
            return cls.from_anndata(data)
        except DatamodelsError:
            raise
        except Exception as error:  # what was edited or damaged may raise anything
            raise RequestError(f"{str(path)!r} is damaged: {first_line(error)}") from None

    @classmethod
    def from_anndata(cls, data: anndata.AnnData) -> Attribution:
        """The inverse of `to_anndata`."""
        from scipy import sparse

        missing = [name for name in ("format_version", "provenance") if name not in data.uns.get(_UNS, {})]
        if missing or "bias" not in data.obs:
            raise RequestError(f"this AnnData is no complete attribution: {missing or ['obs/bias']} is missing")
        version = int(data.uns[_UNS]["format_version"])
        if version > FORMAT_VERSION:
            raise newer_format("the attribution", version, FORMAT_VERSION)
        matrix = data.X.toarray() if sparse.issparse(data.X) else np.asarray(data.X)
        target_facts = {key: _column(data.obs[key]) for key in data.obs if key not in ("bias", "train_column")}
        target_facts.update({key: np.asarray(value) for key, value in data.obsm.items()})
        train_facts = {key: _column(data.var[key]) for key in data.var}
        train_facts.update({key: np.asarray(value) for key, value in data.varm.items()})
        return cls(
            weights=np.ascontiguousarray(matrix.T),
            bias=data.obs["bias"].to_numpy(),
            target_facts=target_facts,
            train_facts=train_facts,
            train_columns=data.obs["train_column"].to_numpy() if "train_column" in data.obs else None,
            provenance=provenance_from(data.uns[_UNS]["provenance"], data.uns[_UNS].get("arrays", {})),
        )

    def export_pt(self, path: str | Path) -> Path:
        """Write the classic layout at `path`, for `torch.load`: ``weight`` (n_train, n_targets) float32, ``bias`` and
        ``lam`` (n_targets,).

        Raises
        ------
        RequestError
            when the file cannot be written.
        """
        import torch

        lam = self.target_facts.get("lam", np.zeros(self.n_targets))
        content = {
            "weight": torch.from_numpy(np.array(self.weights)),
            "bias": torch.from_numpy(np.array(self.bias, dtype=np.float32)),
            "lam": torch.from_numpy(np.array(lam, dtype=np.float32)),
        }
        path = Path(path)
        try:
            with replacing(path) as temporary:
                torch.save(content, temporary)
        except (OSError, RuntimeError) as error:
            raise RequestError(f"cannot write {str(path)!r}: {first_line(error)}") from None
        return path

    @classmethod
    def import_pt(cls, path: str | Path) -> Attribution:
        """Read the classic layout. Its rows are unknown, so `evaluate` needs ``rows`` named by you."""
        import torch

        try:
            content = torch.load(path, map_location="cpu", weights_only=True)
            weight, bias = content["weight"].float().numpy(), content["bias"].double().numpy()
            facts = {} if content.get("lam") is None else {"lam": torch.as_tensor(content["lam"]).numpy()}
        except FileNotFoundError:
            raise RequestError(f"there is no file {str(path)!r}") from None
        except Exception as error:
            raise RequestError(
                f"{str(path)!r} is not in the classic layout (weight, bias, lam): {first_line(error)}"
            ) from None
        return cls(
            weights=weight,
            bias=bias,
            target_facts=facts,
            provenance={"estimator": {"name": "imported"}, "imported_from": str(path)},
        )


def _column(series: Any) -> NDArray[Any]:
    """A column of a data frame as an array; text comes back as fixed-width strings."""
    array = series.to_numpy()
    return array.astype(str) if array.dtype.kind == "O" or str(series.dtype) == "category" else np.asarray(array)


def _to_json(provenance: Mapping[str, Any]) -> tuple[str, dict[str, NDArray[Any]]]:
    """Provenance as JSON text, with arrays in a table of their own."""
    arrays: dict[str, NDArray[Any]] = {}

    def other(value: Any) -> Any:
        if isinstance(value, np.generic):
            return value.item()
        if isinstance(value, np.ndarray):
            name = f"array_{len(arrays)}"
            arrays[name] = value
            return {_ARRAY: name}
        return str(value)

    return json.dumps(provenance, default=other), arrays


def read_h5ad(path: str | Path) -> anndata.AnnData:
    """An AnnData file in memory.

    Parameters
    ----------
    path
        A file of `Attribution.save`, or any other ``.h5ad``.

    Raises
    ------
    RequestError
        when it is missing or unreadable.
    """
    import anndata

    if not os.path.isfile(path):
        raise RequestError(f"there is no file {str(path)!r}")
    try:
        return anndata.read_h5ad(path)
    except Exception as error:
        raise RequestError(f"{str(path)!r} is not a readable .h5ad file: {first_line(error)}") from None


def provenance_from(text: str, arrays: Mapping[str, Any]) -> dict[str, Any]:
    """Provenance from its JSON text and its table of arrays."""

    def back(item: dict[str, Any]) -> Any:
        return np.asarray(arrays[item[_ARRAY]]) if set(item) == {_ARRAY} else item

    found = json.loads(text, object_hook=back)
    if not isinstance(found, dict) or not isinstance(found.get("estimator", {}), dict):
        raise RequestError(f"the provenance {text[:60]!r} is none: a mapping was written, with one of the estimator")
    return found
