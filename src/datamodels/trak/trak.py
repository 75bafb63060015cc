"""TRAK: attribution from the gradients of a few trained models (Park et al., ICML 2023, arXiv:2303.14186)."""

from __future__ import annotations

import contextlib
import fnmatch
import hashlib
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodels.attribution import Attribution
from datamodels.errors import RequestError, first_line
from datamodels.files import replacing
from datamodels.progress import Progress
from datamodels.trak import batches
from datamodels.trak.features import Features
from datamodels.trak.gradients import Gradients
from datamodels.trak.outputs import State, resolve
from datamodels.trak.projections import projection_of
from datamodels.trak.scores import AUTO_RIDGE, Kernel, Query, Similarity, loss_factors, norms, stream_scores

UNITS = (
    "first-order estimate of the change of the target's model output when the train example joins the training set; "
    "comparable between train examples and targets, its scale is not calibrated"
)
_BASELINES = {
    "gradient dot product": (
        "inner product of the loss gradients, mean over checkpoints: how fast the target's loss falls per learning rate of "
        "a step of gradient descent on the train example",
        "arXiv:2102.05262",
    ),
    "gradient cosine": ("cosine of the loss gradients, mean over checkpoints: from -1 to 1", "arXiv:2102.05262"),
    "TracIn": (
        "first-order fall of the target's loss by a step of gradient descent on the train example, summed over checkpoints",
        "arXiv:2002.08484",
    ),
}
"""Units and paper of each."""


class TRAK:
    """Scores of train examples by projected gradients.

    With Φ_c (n, dim) the projected gradients of the model output at the train examples under checkpoint c, φ_c those of a
    target, and Q_c = 1 - p (for classification; -dℓ/df in general),

        τ = [mean_c Φ_c (Φ_cᵀΦ_c + ridge I)⁻¹ φ_c] × [mean_c Q_c].

    Parameters
    ----------
    model
        The architecture; its values are replaced by those of each checkpoint. It runs in eval mode, so batch norm uses its
        running statistics. Parameters with ``requires_grad`` off are left out; one that several layers share counts once.
    task
        ``"image_classification"`` or ``"text_classification"`` (log-odds margin of the label; batches (inputs..., labels)
        or dicts with ``labels``; outputs that are logits or have ``.logits``), ``"regression"``, ``"contrastive"``, an
        object with ``output`` and ``loss_weight`` (see `datamodels.trak.outputs.OutputObject`), or an object written for
        the `traker` package.
    projection
        ``"sjlt"``: one ±1 per coordinate; ``"rademacher"``: dense ±1/√dim; ``"none"``: the gradients themselves.
    dim
        Features per example.
    seed
        Of the projection.
    ridge
        Added to ΦᵀΦ of the projected gradients as they are; ``"auto"`` is 1e-3 of its mean diagonal, per checkpoint.
    params
        Names of parameters to use, or patterns like ``"layer4.*"``; all by default.
    device
        Where to compute; where the model is by default.
    out
        A folder for the features, which outlives the process; a temporary one by default.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any = "image_classification",
        projection: str = "sjlt",
        dim: int = 2048,
        seed: int = 0,
        ridge: float | Literal["auto"] = "auto",
        params: str | Sequence[str] | None = None,
        device: str | torch.device | None = None,
        out: str | Path | None = None,
    ) -> None:
        if ridge != "auto" and not (isinstance(ridge, int | float) and 0 <= ridge < math.inf):
            raise RequestError(f"ridge is {ridge!r}; give a number of at least 0, or 'auto' (default)")
        self.model = model if device is None else model.to(device)
        self.ridge, self.seed = ridge, seed
        self._task = resolve(task)
        self._names = _chosen(model, params)
        self._gradients = Gradients(self.model, self._task, self._names)
        self.projection = projection_of(projection, dim, seed, self._gradients.size)
        self.out = Path(tempfile.mkdtemp(prefix="datamodels-trak-") if out is None else out)
        if out is None:
            weakref.finalize(self, shutil.rmtree, self.out, ignore_errors=True)
        self._checkpoints: list[Mapping[str, Tensor] | str | Path] = []
        self._train: Iterable[Any] = ()
        self._features: list[Features] = []
        self._manifests: list[dict[str, Any]] = []

    # -- features -------------------------------------------------------------------------------------

    def featurize(
        self,
        train_loader: Iterable[Any],
        checkpoints: Sequence[Mapping[str, Tensor] | str | Path],
        *,
        rows: tuple[int, int] | None = None,
        progress: bool = False,
    ) -> None:
        """Compute the features of the train examples under every checkpoint; rows that are on disk are left alone.

        Parameters
        ----------
        train_loader
            Batches in a fixed order: a DataLoader without shuffling, or a list.
        checkpoints
            State dicts, or files of them.
        rows
            Only the train examples start..stop-1: for processes that share the work, and the folder.
        progress
            Whether to show a bar over all checkpoints, with rate and time left.

        Raises
        ------
        RequestError
            when the folder holds features of another model, checkpoint, projection, seed or number of examples, and when
            a checkpoint does not fit the model.
        """
        if not checkpoints or isinstance(checkpoints, str | Path | Mapping):
            raise RequestError("checkpoints must be a list of state dicts or of paths, at least one")
        n = batches.count(train_loader)
        start, stop = rows or (0, n)
        if not 0 <= start < stop <= n:
            raise RequestError(f"rows are {rows}; give (start, stop) within 0..{n}")
        self._checkpoints, self._train = list(checkpoints), train_loader
        self._features = []
        self._manifests = [self._manifest(self._state(checkpoint)) for checkpoint in self._checkpoints]
        self._features = [
            Features.open_or_create(self.out / f"checkpoint_{c:03d}", n, self.projection.dim, manifest)
            for c, manifest in enumerate(self._manifests)
        ]
        self._fill(self._features, train_loader, start, stop, "train gradients", progress)

    def score(
        self, target_loader: Iterable[Any], *, out: str | Path | None = None, progress: bool = False
    ) -> Attribution:
        """Scores of all train examples for the targets, an `Attribution` with weights (n, t) and bias 0.

        Parameters
        ----------
        target_loader
            Batches of targets with their labels, like those of the train examples.
        out
            A ``.npy`` file to stream the weights to; the attribution then reads them from there.
        progress
            Whether to show a bar over the targets' gradients, with rate and time left.

        Raises
        ------
        RequestError
            before `featurize`, while rows are missing, and for a kernel that is singular.
        """
        train = self._complete()
        kernels = [Kernel(one.rows(), self.ridge) for one in train]
        factors = [self._weights() / len(train)] * len(train)

        def query(c: int, target: Features) -> Query:
            rows = target.rows()
            return lambda columns: kernels[c].solve(rows[columns])

        rule = f"{AUTO_RIDGE:g} x mean diagonal, per checkpoint" if self.ridge == "auto" else "absolute"
        settings = {"ridge": self.ridge, "ridge_rule": rule, "ridges": [kernel.ridge for kernel in kernels]}
        provenance = self._provenance("TRAK", UNITS, "arXiv:2303.14186", settings)
        return self._attribution(target_loader, query, factors, provenance, out, progress)

    def similarity(
        self,
        target_loader: Iterable[Any],
        kind: Similarity = "dot",
        *,
        learning_rates: Sequence[float] | None = None,
        out: str | Path | None = None,
        progress: bool = False,
    ) -> Attribution:
        """Products of loss gradients: the baselines that TRAK has to beat, from the features that `featurize` computed.

        With ∇ℓ = -Q ∇f the loss gradient of an example, projected, and <., .> the inner product, the weight of a train
        example for a target is the mean over checkpoints of <∇ℓ_train, ∇ℓ_target>, or of their cosine (Charpiat et al.,
        "Input similarity from the neural network perspective", NeurIPS 2019, arXiv:2102.05262); with learning rates η_c it
        is Σ_c η_c <∇ℓ_train, ∇ℓ_target>, TracIn (Pruthi et al., NeurIPS 2020, arXiv:2002.08484). Positive weights belong
        to train examples that lower the target's loss, and so raise its output where its Q is positive, as it is for
        classification. Projections keep inner products in expectation, and cosines up to their noise.

        Parameters
        ----------
        target_loader, out, progress
            As in `score`.
        kind
            ``"dot"``, or ``"cosine"``, which is 0 for a gradient of zero.
        learning_rates
            Of each checkpoint, for TracIn, whose checkpoints lie along one training run: those of a `Recipe` after `stop`
            steps (`datamodels.training.ensemble.train_models`) have ``recipe.rates(recipe.total_steps(size))[stop - 1]``.

        Raises
        ------
        RequestError
            before `featurize`, while rows are missing, for gradients that are not finite, for another kind, and for
            learning rates that are not one per checkpoint.
        """
        if kind not in get_args(Similarity):
            raise RequestError(f"kind is {kind!r}; legal: {', '.join(get_args(Similarity))}")
        if kind == "cosine" and learning_rates is not None:
            raise RequestError("learning_rates go with kind 'dot', which is TracIn then; a cosine has none")
        train, shares = self._complete(), self._shares(learning_rates)
        factors = [
            share * loss_factors(one.rows(), one.weights(), kind, "train example")
            for one, share in zip(train, shares, strict=True)
        ]

        def query(_: int, target: Features) -> Query:
            rows, factor = target.rows(), loss_factors(target.rows(), target.weights(), kind, "target")
            return lambda columns: (rows[columns] * factor[columns, None]).astype(np.float32).T

        name = "gradient cosine" if kind == "cosine" else "gradient dot product" if learning_rates is None else "TracIn"
        settings = {} if learning_rates is None else {"learning_rates": shares.tolist()}
        provenance = self._provenance(name, *_BASELINES[name], settings)
        return self._attribution(target_loader, query, factors, provenance, out, progress)

    def self_influence(
        self, kind: Literal["trak", "dot"] = "trak", *, learning_rates: Sequence[float] | None = None
    ) -> NDArray[np.float64]:
        """Score of each train example for itself, (n,): large for examples that the model bends to fit, mislabels first.

        Parameters
        ----------
        kind
            ``"trak"``: the score for its own output. ``"dot"``: the mean over checkpoints of ‖∇ℓ‖².
        learning_rates
            Of each checkpoint, for kind ``"dot"``: Σ_c η_c ‖∇ℓ‖², the self-influence of TracIn.

        Raises
        ------
        RequestError
            as in `similarity`.
        """
        if kind not in ("trak", "dot"):
            raise RequestError(f"kind is {kind!r}; legal: trak, dot")
        if kind == "trak" and learning_rates is not None:
            raise RequestError("learning_rates go with kind 'dot', which is TracIn then; TRAK has none")
        train = self._complete()
        if kind == "trak":
            own = np.mean([Kernel(one.rows(), self.ridge).own_scores(one.rows()) for one in train], axis=0)
            return own * self._weights()
        squares = [(one.weights() * norms(one.rows(), one.weights(), "train example")) ** 2 for one in train]
        return self._shares(learning_rates) @ np.stack(squares)

    def _weights(self) -> NDArray[np.float64]:
        """Mean of Q over checkpoints, (n,)."""
        return np.mean([one.weights().astype(np.float64) for one in self._features], axis=0)

    def _shares(self, learning_rates: Sequence[float] | None) -> NDArray[np.float64]:
        """What each checkpoint counts, (C,)."""
        count = len(self._features)
        if learning_rates is None:
            return np.full(count, 1 / count)
        rates = np.asarray(learning_rates)
        if rates.shape != (count,) or rates.dtype.kind not in "iuf" or not ((rates >= 0) & np.isfinite(rates)).all():
            raise RequestError(
                f"learning_rates are {learning_rates!r}; give {count} numbers of at least 0, one per checkpoint, or none for "
                "the mean over checkpoints"
            )
        return rates.astype(np.float64)

    def _attribution(
        self,
        target_loader: Iterable[Any],
        query: Callable[[int, Features], Query],
        factors: Sequence[NDArray[np.floating]],
        provenance: dict[str, Any],
        out: str | Path | None,
        progress: bool,
    ) -> Attribution:
        """Σ_c factors_c Φ_c query_c; `query` makes one of the number of a checkpoint and the features of the targets."""
        n, t = self._features[0].n, batches.count(target_loader)
        with (
            _result(out, (n, t)) as scores,
            tempfile.TemporaryDirectory(prefix=".targets-", dir=self.out) as folder,
        ):
            targets = [
                Features.open_or_create(Path(folder) / str(c), t, self.projection.dim, {})
                for c in range(len(self._features))
            ]
            self._fill(targets, target_loader, 0, t, "target gradients", progress)
            queries = [query(c, one) for c, one in enumerate(targets)]
            stream_scores([one.rows() for one in self._features], queries, factors, scores)
        return Attribution(
            weights=scores if out is None else np.load(out, mmap_mode="r"),
            bias=np.zeros(t),
            train_facts={"loss_weight": self._weights()},
            provenance=provenance,
        )

    def _complete(self) -> list[Features]:
        if not self._features:
            raise RequestError("there are no features yet; call featurize(train_loader, checkpoints) first")
        for features in self._features:
            done = int(features.done().sum())
            if done < features.n:
                raise RequestError(
                    f"{str(features.path)!r} has features of {done} of {features.n} train examples; call featurize for the "
                    "others, or wait for the processes that do"
                )
        return self._features

    def _fill(
        self, every: Sequence[Features], loader: Iterable[Any], start: int, stop: int, title: str, progress: bool
    ) -> None:
        """Compute what is missing of rows start..stop-1 under every checkpoint."""
        missing = np.stack([~features.done() for features in every])
        missing[:, :start] = missing[:, stop:] = False
        total = len(every) * (stop - start)
        with Progress(title, total, "examples", show=progress, done=total - int(missing.sum())) as bar:
            for features, checkpoint, some in zip(every, self._checkpoints, missing, strict=True):
                if some.any():
                    self._fill_one(features, loader, self._state(checkpoint), some, (start, stop), bar)

    def _fill_one(
        self,
        features: Features,
        loader: Iterable[Any],
        state: tuple[State, State],
        missing: NDArray[np.bool_],
        rows: tuple[int, int],
        bar: Progress,
    ) -> None:
        """Batches that have missing rows, of one checkpoint."""
        params, buffers = state
        device = next(iter(params.values())).device
        with _evaluating(self.model):
            if self._task.prepare is not None:
                self._task.prepare(self.model, params, buffers, self._train)
            with features.writing() as write:
                for first, last, given in batches.walk(loader, features.n):
                    if missing[first:last].any():
                        found, weights = self._project(batches.on(given, device), params, buffers)
                        a, b = max(first, rows[0]), min(last, rows[1])
                        write(a, found[a - first : b - first], weights[a - first : b - first])
                        bar.advance(int(missing[a:b].sum()))

    def _project(self, batch: Any, params: State, buffers: State) -> tuple[Any, Any]:
        """Features (B, dim) and Q (B,) of a batch."""
        size, device = batches.size(batch), next(iter(params.values())).device
        found = torch.zeros(size, self.projection.dim, device=device)
        outputs: Tensor | None = None
        for piece in self._gradients.pieces(params, buffers, batch):
            found[piece.rows] += self.projection(piece.parts, piece.rows.stop - piece.rows.start, device)
            outputs = piece.outputs if outputs is None else outputs
        with torch.no_grad():
            if self._task.weight_of_output is not None and outputs is not None:
                weights = self._task.weight_of_output(outputs)
            else:
                weights = self._task.weight(self.model, params, buffers, batch)
        if weights.shape != (size,):
            raise RequestError(
                f"the loss weights have shape {tuple(weights.shape)} for {size} examples; one per example"
            )
        return found.cpu().numpy(), weights.float().cpu().numpy()

    # -- checkpoints ----------------------------------------------------------------------------------

    def _state(self, checkpoint: Mapping[str, Tensor] | str | Path) -> tuple[State, State]:
        """Parameters and buffers of a checkpoint, on the model's device."""
        content: Any = checkpoint
        if isinstance(checkpoint, str | Path):
            try:
                content = torch.load(checkpoint, map_location="cpu", weights_only=True)
            except Exception as error:
                raise RequestError(f"cannot read the checkpoint {str(checkpoint)!r}: {first_line(error)}") from None
            if isinstance(content, Mapping) and isinstance(content.get("state_dict"), Mapping):
                content = content["state_dict"]
        mine = self.model.state_dict()
        if not isinstance(content, Mapping) or {k: v.shape for k, v in mine.items()} != {
            key: getattr(value, "shape", None) for key, value in content.items()
        }:
            raise RequestError(
                f"the checkpoint {_brief(checkpoint)} is no state dict of the model: {_difference(mine, content)}"
            )
        params, buffers = (
            {name: content.get(name, old).detach().to(old) for name, old in pairs}
            for pairs in (self.model.named_parameters(), self.model.named_buffers())
        )
        return params, buffers

    def _manifest(self, state: tuple[State, State]) -> dict[str, Any]:
        params, buffers = state
        content = hashlib.sha256()
        for name, value in {**params, **buffers}.items():
            content.update(f"{name} {value.dtype} {tuple(value.shape)}\n".encode())
            content.update(value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
        chosen = "\n".join(f"{name} {tuple(params[name].shape)}" for name in self._names)
        return {
            "task": self._task.name,
            "projection": self.projection.name,
            "seed": None if self.projection.name == "none" else self.seed,
            "coordinates": self._gradients.size,
            "parameters": hashlib.sha256(chosen.encode()).hexdigest()[:16],
            "checkpoint": content.hexdigest()[:16],
        }

    def _provenance(self, name: str, units: str, paper: str, settings: Mapping[str, Any]) -> dict[str, Any]:
        return {
            "estimator": {
                "name": name,
                "task": self._task.name,
                "projection": self.projection.name,
                "dim": self.projection.dim,
                "seed": self._manifests[0]["seed"],
                "coordinates": self._gradients.size,
                **settings,
            },
            "checkpoints": [manifest["checkpoint"] for manifest in self._manifests],
            "n_checkpoints": len(self._manifests),
            "units": units,
            "paper": paper,
        }


def _chosen(model: nn.Module, params: str | Sequence[str] | None) -> list[str]:
    """Names of the parameters to use, each once, in the model's order."""
    aliases: dict[int, list[str]] = {}
    for name, value in model.named_parameters(remove_duplicate=False):
        if value.requires_grad:
            aliases.setdefault(id(value), []).append(name)
    if not aliases:
        raise RequestError("the model has no parameter with requires_grad, so there are no gradients")
    if params is None:
        return [names[0] for names in aliases.values()]
    patterns = [params] if isinstance(params, str) else list(params)
    every = [name for names in aliases.values() for name in names]
    for pattern in patterns:
        if not fnmatch.filter(every, pattern):
            raise RequestError(
                f"params has {pattern!r}, which names no parameter with requires_grad; the model has {', '.join(every[:8])}"
                f"{', ...' if len(every) > 8 else ''}"
            )
    chosen = [names[0] for names in aliases.values() if any(fnmatch.fnmatchcase(n, p) for n in names for p in patterns)]
    if not chosen:
        raise RequestError("params is empty; leave it out to use all parameters")
    return chosen


def _brief(checkpoint: Any) -> str:
    return repr(str(checkpoint)) if isinstance(checkpoint, str | Path) else f"({type(checkpoint).__name__})"


def _difference(mine: Mapping[str, Tensor], content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"it holds {type(content).__name__}"
    missing, extra = [k for k in mine if k not in content], [k for k in content if k not in mine]
    if missing or extra:
        return f"missing {missing[:4]}, unknown {extra[:4]}"
    other = next(k for k in mine if mine[k].shape != getattr(content[k], "shape", None))
    return f"{other!r} must have shape {tuple(mine[other].shape)}"


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while."""
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True


@contextlib.contextmanager
def _result(out: str | Path | None, shape: tuple[int, int]) -> Iterator[Any]:
    """An array to fill: in memory, or a memory map that becomes the file `out` when it is full."""
    if out is None:
        yield np.empty(shape, dtype=np.float32)
        return
    if Path(out).suffix != ".npy":
        raise RequestError(f"out is {str(out)!r}; it must end in .npy")
    with replacing(out) as temporary:
        scores = np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float32, shape=shape)
        yield scores
        scores.flush()
