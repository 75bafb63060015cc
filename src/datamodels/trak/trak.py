"""TRAK: attribution from the gradients of a few trained models (Park et al., ICML 2023, arXiv:2303.14186)."""

from __future__ import annotations

import contextlib
import hashlib
import math
import shutil
import tempfile
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.executors.pool import MakePool, pool_of
from datamodels.files import replacing
from datamodels.progress import Progress
from datamodels.trak import batches
from datamodels.trak.checkpoints import Checkpoint, chosen_names, hash_of, read_state, refuse_equal, unwrapped
from datamodels.trak.features import Features
from datamodels.trak.gradients import Gradients
from datamodels.trak.outputs import State, resolve
from datamodels.trak.projections import projection_of
from datamodels.trak.ranges import Range, ranges_of
from datamodels.trak.scores import (
    RIDGE_UNIT,
    Kernel,
    Similarity,
    loss_factors,
    norms,
    refuse_infinite,
    scale,
    stream_scores,
)

MOST_COORDINATES = 16_384
"""Without a projection: the kernel of so many takes 2 GB."""

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
_KEPT_KERNELS = 1 << 30  # bytes


class TRAK:
    """Scores of train examples by projected gradients (Park et al. 2023, arXiv:2303.14186).

    With Φ_c (n, dim) the projected gradients of the model output at the train examples under checkpoint c, φ_c those of a
    target, and Q_c = 1 - p (for classification; -dℓ/df in general),

        τ = [mean_c Φ_c (Φ_cᵀΦ_c + λ_c I)⁻¹ φ_c] × [mean_c Q_c].

    Parameters
    ----------
    model
        The architecture; its values are replaced by those of each checkpoint. It runs in eval mode, so batch norm uses its
        running statistics. Of ``DataParallel`` the module within is used, also from its state dicts. Parameters with ``requires_grad`` off are left out; one that several layers share counts once.
    task
        ``"image_classification"`` or ``"text_classification"`` (log-odds margin of the label; batches (inputs..., labels)
        or dicts with ``labels``; outputs that are logits or have ``.logits``), ``"regression"``, ``"contrastive"``, an
        object with ``output`` and ``loss_weight`` (see `datamodels.trak.outputs.OutputObject`), or an object written for
        the `traker` package.
    projection
        ``"sjlt"``: one ±1 per coordinate; ``"rademacher"``: dense ±1/√dim; ``"none"``: the gradients themselves, of at most
        16,384 coordinates.
    dim
        Features per example.
    seed
        Of the projection.
    ridge
        λ_c in units of the mean squared length of the n projected gradients under checkpoint c, at least 0. Projections keep
        lengths, so it does not depend on `dim`. LDS is best near 1 to 3 in six of the seven settings that we tried
        (``benchmarks/trak.py --part ridge``).
    params
        Names of parameters to use, or patterns like ``"layer4.*"``; all by default.
    device
        Where to compute; where the model is by default.
    out
        A folder for the features, which outlives the process and refuses features of something else; a temporary one by
        default, which makes room for them.

    Raises
    ------
    RequestError
        when a value is wrong, or the model does not go with the task.
    """

    def __init__(
        self,
        model: nn.Module,
        task: Any = "image_classification",
        *,
        projection: str = "sjlt",
        dim: int = 2048,
        seed: int = 0,
        ridge: float = 1.0,
        params: str | Sequence[str] | None = None,
        device: str | torch.device | None = None,
        out: str | Path | None = None,
    ) -> None:
        if not (isinstance(ridge, int | float | np.integer | np.floating) and 0 <= ridge < math.inf):
            raise RequestError(
                f"ridge is {ridge!r}; give a number of at least 0, in mean squared gradients (default 1)"
            )
        self.model = unwrapped(model, device)
        self.ridge = float(ridge)
        self._task = resolve(task)
        self._names = chosen_names(self.model, params)
        self._gradients = Gradients(self.model, self._task, self._names)
        self.projection = projection_of(projection, dim, seed, self._gradients.size)
        self.seed = int(seed)
        self.out = Path(tempfile.mkdtemp(prefix="datamodels-trak-") if out is None else out)
        self._temporary = out is None
        if self._temporary:
            weakref.finalize(self, shutil.rmtree, self.out, ignore_errors=True)
        self._checkpoints: list[Checkpoint] = []
        self._train: Iterable[Any] = ()
        self._features: list[Features] = []
        self._manifests: list[dict[str, Any]] = []
        self._kernels: dict[int, tuple[float, Kernel]] = {}

    # -- features -------------------------------------------------------------------------------------

    def featurize(
        self,
        train_loader: Iterable[Any],
        checkpoints: Sequence[Checkpoint],
        *,
        rows: tuple[int, int] | None = None,
        executor: str | MakePool = "local",
        progress: bool = True,
    ) -> None:
        """Compute the features of the train examples under every checkpoint; rows that are on disk are left alone.

        Parameters
        ----------
        train_loader
            Batches in a fixed order: a DataLoader without shuffling, or a list. A first pass over it counts and hashes the
            examples.
        checkpoints
            State dicts that nothing changes any more, or files of them; no two the same.
        rows
            Only the train examples start..stop-1: for processes that share the work, and the folder.
        executor
            ``local``: this process. ``"ray"`` or its settings, `datamodels.executors.Ray`: ranges of examples on a cluster
            whose nodes all see the folder ``out``; checkpoints, model and loader are sent there.
        progress
            Whether to show a bar over all checkpoints, with rate and time left.

        Raises
        ------
        RequestError
            when the folder holds features of another model, task, checkpoint, projection or seed, or of other train
            examples; when a checkpoint does not fit the model, or two are the same; when a label is no class, and when the
            outputs do not depend on the parameters.
        """
        if not checkpoints or isinstance(checkpoints, str | Path | Mapping):
            raise RequestError("checkpoints must be a list of state dicts or of paths, at least one")
        if self.projection.name == "none" and self.projection.dim > MOST_COORDINATES:
            raise RequestError(
                f"projection 'none' keeps all {self.projection.dim:,} coordinates of a gradient, and {MOST_COORDINATES:,} are the "
                "most; give projection='sjlt' and dim=..., or fewer params"
            )
        self._features, self._kernels = [], {}
        n, data = batches.identity(train_loader)
        start, stop = _range(rows, n)
        self._train = train_loader
        self._checkpoints = [Path(one).resolve() if isinstance(one, str | Path) else one for one in checkpoints]
        hashes = [hash_of(read_state(self.model, checkpoint)) for checkpoint in self._checkpoints]
        refuse_equal(hashes)
        self._manifests = [self._manifest(one, data) for one in hashes]
        features = [self._opened(c, n) for c in range(len(hashes))]
        missing = np.stack([~one.done() for one in features])
        missing[:, :start] = missing[:, stop:] = False
        total = len(features) * (stop - start)
        with (
            pool_of(executor) as pool,
            Progress("train gradients", total, "examples", show=progress, done=total - int(missing.sum())) as bar,
        ):
            if pool.shared and self._temporary:
                raise RequestError(
                    "features of a temporary folder stay on this machine: give out=..., a folder all nodes see"
                )
            ranges = ranges_of(missing, pool.slots)
            there = [Features(one.path.resolve(), one.n, one.dim) for one in features]
            work = partial(self._fill, there, missing, None if pool.shared else bar.advance)
            for one, _ in zip(ranges, pool.map(work, ranges), strict=True):
                if pool.shared:
                    bar.advance(one.missing)
        self._features = features

    def __getstate__(self) -> dict[str, Any]:
        """For processes that compute features."""
        return {**self.__dict__, "_kernels": {}}

    def score(
        self, target_loader: Iterable[Any], *, out: str | Path | None = None, progress: bool = True
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
            before `featurize`, while rows are missing, for gradients that are not finite, and for a kernel that is singular.
        """
        train = self._complete()
        factors = [self._weights() / len(train)] * len(train)
        added: list[float] = []

        def query(c: int) -> Callable[[Features], None]:
            kernel = self._kernel(c)
            added.append(kernel.added)
            return lambda target: kernel.solve(target.rows(writable=True))

        weights = self._products(target_loader, query, factors, out, progress)
        settings = {"ridge": self.ridge, "ridge_unit": RIDGE_UNIT, "lambdas": added}
        return self._attribution(weights, "TRAK", UNITS, "arXiv:2303.14186", settings)

    def similarity(
        self,
        target_loader: Iterable[Any],
        kind: Similarity = "dot",
        *,
        learning_rates: Sequence[float] | None = None,
        out: str | Path | None = None,
        progress: bool = True,
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

        def change(target: Features) -> None:
            scale(target.rows(writable=True), loss_factors(target.rows(), target.weights(), kind, "target"))

        weights = self._products(target_loader, lambda _: change, factors, out, progress)
        name = "gradient cosine" if kind == "cosine" else "gradient dot product" if learning_rates is None else "TracIn"
        settings = {} if learning_rates is None else {"learning_rates": shares.tolist()}
        return self._attribution(weights, name, *_BASELINES[name], settings)

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
            pulls = self._weights()
            return pulls * np.mean([self._kernel(c).own_scores(one.rows()) for c, one in enumerate(train)], axis=0)
        squares = [(one.weights() * norms(one.rows(), one.weights(), "train example")) ** 2 for one in train]
        return self._shares(learning_rates) @ np.stack(squares)

    def _weights(self) -> NDArray[np.float64]:
        """Mean of Q over checkpoints, (n,)."""
        with np.errstate(invalid="ignore"):
            found = np.mean([one.weights().astype(np.float64) for one in self._features], axis=0)
        refuse_infinite(found, "train example")
        return found

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

    def _kernel(self, c: int) -> Kernel:
        """Of checkpoint c; kept for the next call where all of them take little memory."""
        known = self._kernels.get(c)
        if known is not None and known[0] == self.ridge:
            return known[1]
        kernel = Kernel(self._features[c].rows(), self.ridge)
        if len(self._features) * kernel.nbytes <= _KEPT_KERNELS:
            self._kernels[c] = self.ridge, kernel
        return kernel

    def _products(
        self,
        target_loader: Iterable[Any],
        query: Callable[[int], Callable[[Features], None]],
        factors: Sequence[NDArray[np.floating]],
        out: str | Path | None,
        progress: bool,
    ) -> NDArray[np.float32]:
        """Σ_c factors_c Φ_c query_cᵀ, (n, t); `query` of the number of a checkpoint changes the targets' features in place."""
        n, t = self._features[0].n, batches.count(target_loader)
        everything = np.ones(t, dtype=bool)
        with (
            _result(out, (n, t)) as scores,
            tempfile.TemporaryDirectory(prefix=".targets-", dir=self.out) as folder,
        ):
            queries = []
            with Progress("target gradients", t * len(self._features), "examples", show=progress) as bar:
                for c in range(len(self._features)):
                    target = Features.open_or_create(Path(folder) / str(c), t, self.projection.dim, {})
                    change = query(c)
                    self._fill_one(c, target, target_loader, everything, (0, t), bar.advance)
                    change(target)
                    del change  # with its kernel, before the next is made
                    queries.append(target.rows())
            stream_scores([one.rows() for one in self._features], queries, factors, scores)
        return scores if out is None else np.load(out, mmap_mode="r")

    def _attribution(
        self, weights: NDArray[np.float32], name: str, units: str, paper: str, settings: Mapping[str, Any]
    ) -> Attribution:
        estimator = {
            "name": name,
            "task": self._task.name,
            "projection": self.projection.name,
            "dim": self.projection.dim,
            "seed": self._manifests[0]["seed"],
            "coordinates": self._gradients.size,
            **settings,
        }
        return Attribution(
            weights=weights,
            bias=np.zeros(weights.shape[1]),
            train_facts={"loss_weight": self._weights()},
            provenance={
                "estimator": estimator,
                "checkpoints": [manifest["checkpoint"] for manifest in self._manifests],
                "n_checkpoints": len(self._manifests),
                "units": units,
                "paper": paper,
            },
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

    def _manifest(self, checkpoint: str, data: str) -> dict[str, Any]:
        """What features depend on, of the hashes of a checkpoint and of the train examples."""
        shapes = {name: tuple(value.shape) for name, value in self.model.named_parameters()}
        chosen = "\n".join(f"{name} {shapes[name]}" for name in self._names)
        return {
            "task": self._task.name,
            "projection": self.projection.name,
            "seed": None if self.projection.name == "none" else self.seed,
            "coordinates": self._gradients.size,
            "parameters": hashlib.sha256(chosen.encode()).hexdigest()[:16],
            "checkpoint": checkpoint,
            "data": data,
        }

    def _opened(self, c: int, n: int) -> Features:
        """Features of checkpoint c; those of something else give way where the folder is a temporary one."""
        path, given = self.out / f"checkpoint_{c:03d}", (n, self.projection.dim, self._manifests[c])
        try:
            return Features.open_or_create(path, *given)
        except RequestError:
            if not self._temporary:
                raise
        shutil.rmtree(path)
        return Features.open_or_create(path, *given)

    def _fill(
        self, features: list[Features], missing: NDArray[np.bool_], advance: Callable[[int], None] | None, part: Range
    ) -> None:
        """The missing examples (checkpoints, n) of a range."""
        c, rows = part.checkpoint, (part.start, part.stop)
        some = np.zeros_like(missing[c])
        some[slice(*rows)] = missing[c, slice(*rows)]
        self._fill_one(c, features[c], self._train, some, rows, advance)

    def _fill_one(
        self,
        c: int,
        features: Features,
        loader: Iterable[Any],
        missing: NDArray[np.bool_],
        rows: tuple[int, int],
        advance: Callable[[int], None] | None,
    ) -> None:
        """Batches that have missing rows, under checkpoint c."""
        params, buffers = read_state(self.model, self._checkpoints[c])
        if hash_of((params, buffers)) != self._manifests[c]["checkpoint"]:
            raise RequestError(
                f"checkpoint {c} has other values than when featurize was called; give copies that nothing trains, "
                "{k: v.clone() for k, v in model.state_dict().items()}, or files"
            )
        self._gradients.recheck()
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
                        if advance:
                            advance(int(missing[a:b].sum()))

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


def _range(rows: Any, n: int) -> tuple[int, int]:
    """(start, stop) of the rows that are asked for; all n for None."""
    if rows is None:
        return 0, n
    whole = isinstance(rows, tuple | list) and all(isinstance(row, int | np.integer) for row in rows)
    if not whole or len(rows) != 2 or not 0 <= rows[0] < rows[1] <= n:
        raise RequestError(f"rows are {rows!r}; give (start, stop) within 0..{n}")
    return int(rows[0]), int(rows[1])


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
