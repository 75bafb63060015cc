"""Commands about which influences are real: select, stability, intervals."""

from __future__ import annotations

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datamodels.cli.common import (
    AttributionPath,
    FittedMasksKey,
    FittedOutputsKey,
    Json,
    Lambdas,
    MasksFile,
    MasksKey,
    OfTrain,
    OutputsFile,
    OutputsKey,
    RowRange,
    Seed,
    StorePaths,
    TargetRange,
    emit,
    refuse_suffix,
    where,
)
from datamodels.errors import RequestError

if TYPE_CHECKING:
    from datamodels.design import Design
    from datamodels.regression.estimators import Lasso


class KindName(StrEnum):
    bernoulli = "bernoulli"
    fixed_size = "fixed_size"


class VariantName(StrEnum):
    knockoff_plus = "knockoff+"
    knockoff = "knockoff"


Out = Annotated[Path, typer.Option(help="File to write, .h5ad.")]


def select(
    out: Out,
    stores: StorePaths = None,
    fdr: Annotated[float, typer.Option(help="False-discovery rate of each target.")] = 0.1,
    variant: Annotated[VariantName, typer.Option(help="'knockoff' controls the modified rate.")] = (
        VariantName.knockoff_plus
    ),
    kind: Annotated[
        KindName | None, typer.Option(help="How the masks were drawn, where no store says so; with --alpha.")
    ] = None,
    alpha: Annotated[float | None, typer.Option(help="Share of the training set in a subset, with --kind.")] = None,
    masks: MasksFile = None,
    outputs: OutputsFile = None,
    masks_key: MasksKey = "masks",
    outputs_key: OutputsKey = "margins",
    lambdas: Lambdas = None,
    rows: RowRange = None,
    targets: TargetRange = None,
    targets_are_train: OfTrain = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Select training examples whose influence is real, at a false-discovery rate (knockoffs).

    Example: datamodels select runs/a --fdr 0.1 --out selection.h5ad
    """
    from datamodels.regression.problem import Problem
    from datamodels.significance.knockoffs import select_problem

    refuse_suffix(out, ".h5ad")
    problem = Problem.build(
        stores or None,
        **where(masks, outputs, masks_key, outputs_key, rows, targets, targets_are_train),
    )
    law = _law(kind, alpha, problem.n_train, problem.n_rows)
    result = select_problem(problem, fdr, _lasso(lambdas), law, variant=variant.value, seed=seed)
    result.save(out)
    facts = result.to_dict()
    text = (
        f"wrote {out}: {facts['n_selected']} influences selected at false-discovery rate {fdr:g}"
        f"{'' if result.exact else ' (approximate: subset sizes are fixed)'}, median {facts['median_selected']:g} per "
        f"target, none for {facts['targets_without']} of {facts['n_targets']} targets; {result.n_models} models"
    )
    emit({"out": str(out), **facts}, text, as_json)


def stability(
    out: Out,
    stores: StorePaths = None,
    halves: Annotated[int, typer.Option(help="Half-samples, an even number.")] = 50,
    threshold: Annotated[float, typer.Option(help="Share of half-samples that must name an example.")] = 0.75,
    q: Annotated[
        int | None, typer.Option(help="Examples that a half-sample names; for a bound of 1 by default.")
    ] = None,
    masks: MasksFile = None,
    outputs: OutputsFile = None,
    masks_key: MasksKey = "masks",
    outputs_key: OutputsKey = "margins",
    rows: RowRange = None,
    targets: TargetRange = None,
    targets_are_train: OfTrain = False,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Select training examples that are strong on most half-samples of the models; any design will do.

    Example: datamodels stability runs/a --halves 50 --out stability.h5ad
    """
    from datamodels.significance.stability import stability as run

    refuse_suffix(out, ".h5ad")
    result = run(
        stores or None,
        halves=halves,
        threshold=threshold,
        q=q,
        seed=seed,
        **where(masks, outputs, masks_key, outputs_key, rows, targets, targets_are_train),
    )
    result.save(out)
    facts = result.to_dict()
    text = (
        f"wrote {out}: {facts['n_selected']} influences in at least {threshold:.0%} of {halves} half-samples, median "
        f"{facts['median_selected']:g} per target; expected wrong ones per target at most {result.bound:.2g} "
        f"(q = {result.q}); {result.n_models} models"
    )
    emit({"out": str(out), **facts}, text, as_json)


def intervals(
    file: AttributionPath,
    out: Out,
    stores: StorePaths = None,
    confidence: Annotated[float, typer.Option(help="Share of intervals that hold the true value.")] = 0.95,
    robust: Annotated[bool, typer.Option(help="Allow for noise that depends on the subset.")] = True,
    masks: MasksFile = None,
    outputs: OutputsFile = None,
    masks_key: FittedMasksKey = None,
    outputs_key: FittedOutputsKey = None,
    as_json: Json = False,
) -> None:
    """Confidence intervals and p-values of the weights of a lasso fit, from the rows it was fitted on.

    Example: datamodels intervals lasso.h5ad runs/a --out intervals.h5ad
    """
    from datamodels.significance.intervals import intervals as run

    refuse_suffix(out, ".h5ad")
    result = run(
        file,
        stores or None,
        confidence=confidence,
        robust=robust,
        masks=masks,
        outputs=outputs,
        masks_key=masks_key,
        outputs_key=outputs_key,
    )
    result.save(out)
    facts: dict[str, Any] = {"out": str(out), **result.to_dict()}
    error = facts["median_standard_error"]
    text = (
        f"wrote {out}: {confidence:.0%} intervals of {facts['n_train']} x {facts['n_targets']} weights, "
        f"{facts['share_excluding_0']:.1%} of them without 0; median standard error "
        f"{'unknown' if error is None else format(error, '.3g')}; {result.n_models} models"
    )
    emit(facts, text, as_json)


def _lasso(lambdas: int | None) -> Lasso:
    from datamodels.regression.estimators import Lasso

    return Lasso() if lambdas is None else Lasso(n_lambdas=lambdas)


def _law(kind: KindName | None, alpha: float | None, n_train: int, n_models: int) -> Design | None:
    """The law of masks that no store describes."""
    from datamodels.design import Design

    if (kind is None) != (alpha is None):
        raise RequestError("--kind and --alpha go together: they say how the masks were drawn")
    return None if kind is None else Design(n_train=n_train, alpha=alpha, n_models=n_models, kind=kind.value)
