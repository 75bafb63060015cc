"""Commands about fits: fit, evaluate, calibrate, curve."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datamodels.cli.common import (
    AttributionPath,
    Eps,
    EstimatorName,
    EstimatorOption,
    ExecutorOptions,
    FittedMasksKey,
    FittedOutputsKey,
    Folds,
    Json,
    L1Ratio,
    Lambdas,
    MasksFile,
    MasksKey,
    Memory,
    OfTrain,
    OutputsFile,
    OutputsKey,
    PoolName,
    RowRange,
    Seed,
    StorePaths,
    TargetRange,
    ValFraction,
    emit,
    executor_of,
    parse_range,
    refuse_suffix,
    where,
)
from datamodels.errors import RequestError

if TYPE_CHECKING:
    from datamodels.regression.estimator import Estimator


def fit(
    out: Annotated[Path, typer.Option(help="File to write, .h5ad.")],
    stores: StorePaths = None,
    masks: MasksFile = None,
    outputs: OutputsFile = None,
    masks_key: MasksKey = "masks",
    outputs_key: OutputsKey = "margins",
    estimator: EstimatorOption = EstimatorName.lasso,
    lambdas: Lambdas = None,
    eps: Eps = None,
    l1_ratio: L1Ratio = None,
    val_fraction: ValFraction = None,
    folds: Folds = None,
    rows: RowRange = None,
    targets: TargetRange = None,
    targets_are_train: OfTrain = False,
    seed: Annotated[int | None, typer.Option(help="Draws the rows that choose lambda.")] = None,
    penalty: Annotated[
        Path | None, typer.Option(help="Penalty factors, .npy (n_train,) or (n_train, n_targets) (lasso, elastic net).")
    ] = None,
    prior: Annotated[
        Path | None,
        typer.Option(help="Attribution .h5ad that says which examples are likely to matter (lasso, elastic net)."),
    ] = None,
    offset: Annotated[
        Path | None,
        typer.Option(help="Attribution .h5ad to add to, as far as its slope goes (lasso, elastic net, ridge, ols)."),
    ] = None,
    memory: Memory = None,
    executor: PoolName = "local",
    executor_option: ExecutorOptions = None,
    follow: Annotated[
        bool, typer.Option("--watch", help="Refit as a running campaign completes rows; see --reach and --worth.")
    ] = False,
    reach: Annotated[
        float | None,
        typer.Option(help="With --watch: stop the campaign when the lower end of the LDS interval is here."),
    ] = None,
    worth: Annotated[
        float | None,
        typer.Option(help="With --watch: stop it when the missing rows raise the LDS by less than this, surely."),
    ] = None,
    patience: Annotated[
        float, typer.Option(help="With --watch: seconds without a campaign or a new row before it ends.")
    ] = 60.0,
    as_json: Json = False,
) -> None:
    """Fit datamodels from stores, or from the arrays of masks and outputs.

    Example: datamodels fit runs/a --estimator lasso --rows 0:3500 --out lasso.h5ad

    Example: datamodels fit runs/a --prior trak.h5ad --out hybrid.h5ad

    Example: datamodels fit runs/a --watch --reach 0.5 --out lasso.h5ad

    Example: datamodels fit s3://bucket/runs/a --executor ray --executor-option address=auto --out lasso.h5ad

    Example: datamodels fit --masks train_masks_50pct.npy --outputs test_margins_50pct.npy --out lasso.h5ad
    """
    import numpy as np

    from datamodels.attribution import Attribution
    from datamodels.regression.fit import fit as run
    from datamodels.regression.source import load_array

    refuse_suffix(out, ".h5ad")
    chosen = _estimator(
        estimator,
        n_lambdas=lambdas,
        eps=eps,
        l1_ratio=l1_ratio,
        val_fraction=val_fraction,
        folds=folds,
        seed=seed,
        prior=None if prior is None else Attribution.load(prior),
        offset=None if offset is None else Attribution.load(offset),
    )
    if follow or reach is not None or worth is not None:
        given = {
            "--masks": masks, "--outputs": outputs, "--rows": rows, "--targets": targets, "--penalty": penalty,
            "--targets-are-train": targets_are_train or None, "--memory": memory, "--offset": offset,
            "--executor": None if executor == "local" else executor,
        }  # fmt: skip
        wrong = [name for name, value in given.items() if value is not None]
        if wrong or not follow or len(stores or []) != 1:
            raise RequestError(
                "--reach and --worth go with --watch, which follows one store"
                + (f"; it does not go with {wrong[0]}" if wrong else "")
            )
        _watch((stores or [])[0], chosen, out, reach, worth, patience, masks_key, outputs_key, as_json)
        return
    attribution = run(
        stores or None,
        chosen,
        penalty_factors=None if penalty is None else load_array(penalty),
        memory=memory,
        executor=executor_of(executor, executor_option),
        **where(masks, outputs, masks_key, outputs_key, rows, targets, targets_are_train),
    )
    attribution.save(out)
    used = sum(len(source["rows"]) for source in attribution.provenance["sources"])
    facts: dict[str, Any] = {
        "out": str(out),
        "n_models": used,
        "n_train": attribution.n_train,
        "n_targets": attribution.n_targets,
    }
    text = f"wrote {out}: {used} models, {attribution.n_train} training examples, {attribution.n_targets} targets"
    for name, summary in (("gap", np.max), ("n_nonzero", np.median), ("val_r2", np.nanmedian)):
        if name in attribution.target_facts and np.isfinite(attribution.target_facts[name]).any():
            facts[name] = float(summary(attribution.target_facts[name]))
    if "gap" in facts:
        text += f"; largest relative gap {facts['gap']:.1e}, median nonzeros {facts['n_nonzero']:.0f}"
    if "val_r2" in facts:
        text += f", median validation R² {facts['val_r2']:.3f}"
    emit(facts, text, as_json)


def _watch(
    store: str,
    estimator: Estimator,
    out: Path,
    reach: float | None,
    worth: float | None,
    patience: float,
    masks_key: str,
    outputs_key: str,
    as_json: bool,
) -> None:
    from datamodels.evaluation.watch import Look
    from datamodels.evaluation.watch import watch as run
    from datamodels.progress import note

    def say(look: Look) -> None:
        low, high = look.score.lds_ci
        text = f"{look.n_models:>9} models  LDS {look.score.lds:.3f}  ({low:.3f} to {high:.3f})"
        if look.expected is not None:
            text += f"; expected {look.expected:.3f} when complete"
        if look.gain is not None:
            text += f", a gain of {max(look.gain[1], 0):.3f} at most"
        note(text)

    result = run(
        store,
        estimator,
        reach=reach,
        worth=worth,
        patience=patience,
        masks_key=masks_key,
        outputs_key=outputs_key,
        on_look=say,
    )
    result.attribution.save(out)
    facts = {"out": str(out), "ended": result.ended, "looks": [look.to_dict() for look in result.looks]}
    models = result.looks[-1].n_models
    emit(facts, f"wrote {out}: {models} models ({result.ended}); the models judged on are not among them", as_json)


def evaluate(
    file: AttributionPath,
    stores: StorePaths = None,
    masks: MasksFile = None,
    outputs: OutputsFile = None,
    masks_key: FittedMasksKey = None,
    outputs_key: FittedOutputsKey = None,
    rows: RowRange = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Score an attribution (LDS) on models that its fit has not used; used rows are an error.

    Example: datamodels evaluate lasso.h5ad runs/a --json
    """
    from datamodels.attribution import Attribution
    from datamodels.evaluation.lds import lds

    score = lds(
        Attribution.load(file),
        stores or None,
        masks=masks,
        outputs=outputs,
        masks_key=masks_key,
        outputs_key=outputs_key,
        rows=parse_range(rows, "--rows"),
        seed=seed,
    )
    low, high = score.lds_ci
    text = f"LDS {score.lds:.3f} ({score.confidence:.0%} interval {low:.3f} to {high:.3f})"
    if score.lds_ceiling is not None:
        text += f", noise ceiling {score.lds_ceiling:.3f}"
    text += f"; {score.n_models} models, {score.n_targets} targets; Pearson {score.pearson:.3f}, R² {score.r2:.3f}"
    emit(score.to_dict(), text, as_json)


def calibrate(
    file: AttributionPath,
    out: Annotated[Path, typer.Option(help="File to write, .h5ad.")],
    stores: StorePaths = None,
    masks: MasksFile = None,
    outputs: OutputsFile = None,
    masks_key: FittedMasksKey = None,
    outputs_key: FittedOutputsKey = None,
    rows: RowRange = None,
    as_json: Json = False,
) -> None:
    """Put scores into units of the output, on a few dozen models that they have not used.

    Example: datamodels calibrate trak.h5ad runs/a --rows 0:40 --out calibrated.h5ad
    """
    import numpy as np

    from datamodels.regression.calibration import calibrate as run

    refuse_suffix(out, ".h5ad")
    found = run(
        file,
        stores or None,
        masks=masks,
        outputs=outputs,
        masks_key=masks_key,
        outputs_key=outputs_key,
        rows=parse_range(rows, "--rows"),
    )
    found.save(out)
    made, noise = found.provenance["calibration"], found.target_facts["noise_sd"]
    facts = {
        "out": str(out),
        "n_models": made["n_models"],
        "n_targets": found.n_targets,
        "common_slope": made["common_slope"],
        "median_slope": float(np.median(found.target_facts["slope"])),
        "median_effect_sd": float(np.median(found.target_facts["effect_sd"])),
        "median_noise_sd": None if np.isnan(noise).all() else float(np.nanmedian(noise)),
    }
    text = (
        f"wrote {out}: {facts['n_models']} models, {facts['n_targets']} targets; common slope {facts['common_slope']:.3g}, "
        f"scores miss {facts['median_effect_sd']:.2g} per example (median sd)"
    )
    if facts["median_noise_sd"] is not None:
        text += f", noise of a run {facts['median_noise_sd']:.2g}"
    emit(facts, text, as_json)


def curve(
    stores: StorePaths = None,
    masks: MasksFile = None,
    outputs: OutputsFile = None,
    masks_key: MasksKey = "masks",
    outputs_key: OutputsKey = "margins",
    estimator: EstimatorOption = EstimatorName.lasso,
    sizes: Annotated[str | None, typer.Option(help="Numbers of models, as 500,1000,2000.")] = None,
    held_out: Annotated[float, typer.Option(help="Share of rows to judge on.")] = 0.15,
    test: Annotated[Path | None, typer.Option(help="A store to judge on instead.")] = None,
    reach: Annotated[float | None, typer.Option(help="LDS to estimate the number of models for.")] = None,
    rows: RowRange = None,
    targets: TargetRange = None,
    targets_are_train: OfTrain = False,
    plot: Annotated[Path | None, typer.Option(help="Picture to write (.png, .svg, .pdf).")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """LDS against the number of models, and an estimate of how many more would reach a wanted LDS.

    Example: datamodels curve runs/a --sizes 500,1000,2000 --reach 0.6 --plot curve.png
    """
    from datamodels.evaluation.curve import curve as run
    from datamodels.evaluation.curve import save_plot

    try:
        numbers = None if sizes is None else [int(size) for size in sizes.split(",")]
    except ValueError:
        raise RequestError(f"--sizes is {sizes!r}; give whole numbers like 500,1000,2000") from None
    result = run(
        stores or None,
        estimator.value,
        sizes=numbers,
        held_out=held_out,
        test=test,
        seed=seed,
        **where(masks, outputs, masks_key, outputs_key, rows, targets, targets_are_train),
    )
    facts = result.to_dict()
    lines = [
        f"{m:>9} models  LDS {s.lds:.3f}  ({s.lds_ci[0]:.3f} to {s.lds_ci[1]:.3f})"
        for m, s in zip(result.sizes, result.scores, strict=True)
    ]
    if result.asymptote is not None:
        lines.append(f"estimate for unlimited models: {result.asymptote:.3f}")
    if reach is not None and result.asymptote is None:
        facts["reach"] = {"lds": reach, "models": None, "models_ci": None}
        lines.append("no estimate of more models: that needs at least two sizes with a positive LDS")
    elif reach is not None:
        need, (low, high) = result.models_for(reach), result.models_for_interval(reach)
        facts["reach"] = {"lds": reach, "models": need, "models_ci": [low, high]}
        amounts = ["never" if end is None else f"{end:,.0f}" for end in (need, low, high)]
        lines.append(f"estimated models for LDS {reach}: {amounts[0]} (interval {amounts[1]} to {amounts[2]})")
    if plot is not None:
        save_plot(result, plot, ceiling=result.scores[-1].lds_ceiling)
        lines.append(f"wrote {plot}")
    emit(facts, "\n".join(lines), as_json)


def _estimator(name: EstimatorName, **options: Any) -> Estimator:
    from datamodels.regression.estimators import ESTIMATORS

    kind = ESTIMATORS[name.value]
    given = {key: value for key, value in options.items() if value is not None}
    legal = set(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    wrong = [key for key in given if key not in legal]
    if wrong:
        flags = {"n_lambdas": "lambdas"}
        raise RequestError(
            f"--{flags.get(wrong[0], wrong[0]).replace('_', '-')} has no meaning for --estimator {name.value}"
        )
    return kind(**given)
