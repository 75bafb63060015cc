"""The command line: each command parses, calls one function, and prints.

Results go to standard output, as one JSON object with ``--json``; progress and messages go to standard
error. Exit status: 0 done, 1 ran and something failed, 2 the request was wrong.
"""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Sequence
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from datamodels.errors import DatamodelsError, RequestError, first_line
from datamodels.version import __version__

if TYPE_CHECKING:
    from datamodels.design import Design
    from datamodels.regression.estimators import Estimator

app = typer.Typer(
    name="datamodels",
    help="Which training examples made the model do that? Answered by retraining.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)

# Typer brings its own copy of click's exceptions in some releases; their base is reached through it.
_UsageProblem: Any = typer.BadParameter.__mro__[2]

_INTERRUPTED = 130  # what typer makes of Ctrl-C


class EstimatorName(StrEnum):
    lasso = "lasso"
    ridge = "ridge"
    elasticnet = "elasticnet"
    ols = "ols"
    difference = "difference"


class ExecutorName(StrEnum):
    local = "local"
    inline = "inline"


class MethodName(StrEnum):
    kmeans = "kmeans"
    hdbscan = "hdbscan"


StorePath = Annotated[Path, typer.Argument(help="Folder of the store.", metavar="STORE")]
StorePaths = Annotated[list[Path] | None, typer.Argument(help="Folders of stores.", metavar="STORE")]
AttributionPath = Annotated[Path, typer.Argument(help="Attribution file (.h5ad).", metavar="FILE")]
Json = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
MasksFile = Annotated[Path | None, typer.Option("--masks", help="Masks, .npy (m, n_train), instead of a store.")]
OutputsFile = Annotated[Path | None, typer.Option("--outputs", help="Outputs, .npy (m, ...), instead of a store.")]
MasksKey = Annotated[str, typer.Option(help="Key of the masks in the store.")]
OutputsKey = Annotated[str, typer.Option(help="Key of the outputs in the store.")]
RowRange = Annotated[str | None, typer.Option("--rows", help="Rows to use, START:STOP.")]
TargetRange = Annotated[str | None, typer.Option("--targets", help="Targets to use, START:STOP.")]
OfTrain = Annotated[bool, typer.Option("--targets-are-train", help="Target j is training example j.")]
Name = Annotated[EstimatorName, typer.Option("--estimator", help="How to regress.")]
Lambdas = Annotated[int | None, typer.Option("--lambdas", help="Number of lambdas on the path.")]
Eps = Annotated[float | None, typer.Option(help="Smallest lambda over the largest (lasso, elastic net).")]
L1Ratio = Annotated[float | None, typer.Option(help="Share of the l1 penalty (elastic net).")]
ValFraction = Annotated[float | None, typer.Option(help="Share of rows that choose lambda.")]
Folds = Annotated[int | None, typer.Option(help="Folds that choose lambda, instead of a share of rows.")]
Seed = Annotated[int, typer.Option(help="Seed.")]


# -- stores ---------------------------------------------------------------------------------------------


@app.command()
def init(
    store: StorePath,
    spec: Annotated[Path, typer.Option(help="JSON file: num_models and schema.")],
    alpha: Annotated[float | None, typer.Option(help="Share of the training set that one model sees.")] = None,
    n_train: Annotated[int | None, typer.Option(help="Number of training examples; gives the store a design.")] = None,
    kind: Annotated[
        str,
        typer.Option(help="fixed_size, bernoulli, grouped, stratified, antithetic, leave_one_out, explicit."),
    ] = "fixed_size",
    seed: Seed = 0,
    replicates: Annotated[int, typer.Option(help="Runs of the same subset.")] = 1,
    groups: Annotated[
        Path | None, typer.Option(help="Group of each training example, .npy or one per line (grouped).")
    ] = None,
    strata: Annotated[Path | None, typer.Option(help="Stratum of each training example (stratified).")] = None,
    masks: Annotated[Path | None, typer.Option(help="Masks to use, .npy bool (n_masks, n_train) (explicit).")] = None,
    labels: Annotated[
        Path | None,
        typer.Option(help="Class of each training example; lets train report subsets that lack one."),
    ] = None,
    as_json: Json = False,
) -> None:
    """Make a store. With a design, subsets are drawn by us; without, the task returns its own masks.

    Example: datamodels init runs/a --spec spec.json --alpha 0.5 --n-train 1300 --seed 1
    """
    from datamodels.spec import Spec
    from datamodels.store import Store

    parsed = Spec.read(spec)
    design = None
    if masks is not None or n_train is not None or alpha is not None:
        design = _design(parsed.num_models, alpha, n_train, kind, seed, replicates, groups, strata, masks)
    elif kind != "fixed_size" or groups or strata or seed or replicates != 1:
        raise RequestError("a design needs --n-train (and --alpha for most kinds)")
    made = Store.create(store, spec=parsed, design=design, labels=None if labels is None else _labels(labels))
    text = f"made a store of {made.n_models} models at {store}"
    _print({"store": str(store), "models": made.n_models, "keys": made.keys}, text, as_json)


def _design(
    n_models: int, alpha: float | None, n_train: int | None, kind: str, seed: int, replicates: int,
    groups: Path | None, strata: Path | None, masks: Path | None,
) -> Design:  # fmt: skip
    from datamodels.design import Design

    if masks is not None:
        if any(given is not None for given in (alpha, n_train, groups, strata)) or kind not in (
            "fixed_size",
            "explicit",
        ):
            raise RequestError(
                "--masks is a design by itself: leave out --alpha, --n-train, --kind, --groups and --strata"
            )
        import numpy as np

        return Design.explicit(np.load(masks, allow_pickle=False), replicates=replicates, seed=seed)
    if n_train is None:
        raise RequestError("--alpha needs --n-train, the number of training examples")
    return Design(
        n_train=n_train,
        alpha=alpha,
        n_models=n_models,
        seed=seed,
        kind=kind,  # type: ignore[arg-type]
        replicates=replicates,
        groups=None if groups is None else _labels(groups),
        strata=None if strata is None else _labels(strata),
    )


@app.command()
def train(
    store: StorePath,
    task: Annotated[
        str, typer.Option(help="PKG.MODULE:FUNCTION; takes index, and mask, rng, logdir if it names them.")
    ],
    jobs: Annotated[int | None, typer.Option(help="Worker processes; one per CPU by default.")] = None,
    executor: Annotated[
        ExecutorName, typer.Option(help="local: worker processes; inline: this process.")
    ] = ExecutorName.local,
    timeout: Annotated[float | None, typer.Option(help="Seconds that one row may take.")] = None,
    retries: Annotated[int, typer.Option(help="How often a failed row is tried again.")] = 0,
    threads: Annotated[int, typer.Option(help="Threads of torch and BLAS per worker.")] = 1,
    as_json: Json = False,
) -> None:
    """Run a task over the rows that are not complete. Running it again does what is missing.

    Example: datamodels train runs/a --task mypackage.train:main --jobs 8
    """
    from datamodels.training.campaign import train as run
    from datamodels.training.task import make_importable

    make_importable(Path.cwd())
    summary = run(store, task, executor=executor.value, jobs=jobs, timeout=timeout, retries=retries, threads=threads)
    state = "complete" if summary.ok else f"{len(summary.failed)} failed, {summary.pending} not done"
    _print(summary.to_dict(), f"{store}: {state}", as_json)
    if not summary.ok:
        raise typer.Exit(1)


@app.command()
def status(store: StorePath, as_json: Json = False) -> None:
    """How many rows are complete, failed and pending, and how long the rest will take.

    Example: datamodels status runs/a --json
    """
    from datamodels.progress import duration
    from datamodels.store import Store

    now = Store.open(store).status()
    text = f"{now.completed} of {now.models} complete, {now.failed} failed, {now.pending} pending"
    if now.rows_per_second:
        text += f"; {now.rows_per_second:.3g} rows/s, {duration(now.seconds_left)} left"
    _print(now.to_dict(), text, as_json)


@app.command()
def verify(store: StorePath, as_json: Json = False) -> None:
    """Recompute the checksum of every completed row; exit status 1 when one is bad.

    Example: datamodels verify runs/a
    """
    from datamodels.store import Store

    found = Store.open(store).verify()
    text = f"{found.checked} rows checked, " + (f"bad: {found.bad_rows}" if found.bad_rows else "all good")
    if not found.has_checksums:
        text += " (this folder has no checksums)"
    _print(found.to_dict(), text, as_json)
    if not found.ok:
        raise typer.Exit(1)


@app.command()
def extend(
    store: StorePath,
    models: Annotated[int, typer.Argument(help="How many models to add.")],
    as_json: Json = False,
) -> None:
    """Add models to a store in place; existing rows stay as they are.

    Example: datamodels extend runs/a 1000
    """
    from datamodels.store import Store

    opened = Store.open(store)
    opened.extend(models)
    _print({"store": str(store), "models": opened.n_models}, f"{store} has {opened.n_models} models now", as_json)


@app.command()
def merge(
    store: StorePath,
    other: Annotated[Path, typer.Argument(help="Store to copy completed rows from.", metavar="OTHER")],
    as_json: Json = False,
) -> None:
    """Copy completed rows from a store of the same design. Exit status 1 when rows conflict or are bad.

    Example: datamodels merge runs/a /mnt/usb/a
    """
    from datamodels.store import Store

    result = Store.open(store).merge(Store.open(other))
    text = f"copied {len(result.copied)} rows, {len(result.already_there)} were there"
    if result.conflicting:
        text += f"; rows with other content in {other}, left as they are here: {result.conflicting}"
    if result.bad_in_source:
        text += f"; rows that are damaged in {other}, not copied: {result.bad_in_source}"
    _print(result.to_dict(), text, as_json)
    if result.conflicting or result.bad_in_source:
        raise typer.Exit(1)


# -- fits -----------------------------------------------------------------------------------------------


@app.command()
def fit(
    out: Annotated[Path, typer.Option(help="File to write, .h5ad.")],
    stores: StorePaths = None,
    masks: MasksFile = None,
    outputs: OutputsFile = None,
    masks_key: MasksKey = "masks",
    outputs_key: OutputsKey = "margins",
    estimator: Name = EstimatorName.lasso,
    lambdas: Lambdas = None,
    eps: Eps = None,
    l1_ratio: L1Ratio = None,
    val_fraction: ValFraction = None,
    folds: Folds = None,
    rows: RowRange = None,
    targets: TargetRange = None,
    targets_are_train: OfTrain = False,
    seed: Annotated[int | None, typer.Option(help="Draws the rows that choose lambda.")] = None,
    as_json: Json = False,
) -> None:
    """Fit datamodels from stores, or from the arrays of masks and outputs.

    Example: datamodels fit runs/a --estimator lasso --rows 0:3500 --out lasso.h5ad

    Example: datamodels fit --masks train_masks_50pct.npy --outputs test_margins_50pct.npy --out lasso.h5ad
    """
    import numpy as np

    from datamodels.regression.fit import fit as run

    _writable(out, ".h5ad")
    chosen = _estimator(
        estimator,
        n_lambdas=lambdas,
        eps=eps,
        l1_ratio=l1_ratio,
        val_fraction=val_fraction,
        folds=folds,
        seed=seed,
    )
    attribution = run(
        stores or None,
        chosen,
        masks=masks,
        outputs=outputs,
        masks_key=masks_key,
        outputs_key=outputs_key,
        rows=_range(rows, "--rows"),
        targets=_range(targets, "--targets"),
        targets_are_train=targets_are_train or None,
    )
    attribution.save(out)
    facts = {"out": str(out), "n_train": attribution.n_train, "n_targets": attribution.n_targets}
    text = f"wrote {out}: {attribution.n_train} training examples x {attribution.n_targets} targets"
    for name, summary in (("gap", np.max), ("n_nonzero", np.median), ("val_r2", np.nanmean)):
        if name in attribution.target_facts and np.isfinite(attribution.target_facts[name]).any():
            facts[name] = float(summary(attribution.target_facts[name]))
    if "gap" in facts:
        text += f"; largest relative gap {facts['gap']:.1e}, median nonzeros {facts['n_nonzero']:.0f}"
    if "val_r2" in facts:
        text += f", mean validation R² {facts['val_r2']:.3f}"
    _print(facts, text, as_json)


@app.command()
def evaluate(
    file: AttributionPath,
    stores: StorePaths = None,
    masks: MasksFile = None,
    outputs: OutputsFile = None,
    masks_key: MasksKey = "masks",
    outputs_key: OutputsKey = "margins",
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
        rows=_range(rows, "--rows"),
        seed=seed,
    )
    low, high = score.lds_ci
    text = f"LDS {score.lds:.3f} ({score.confidence:.0%} interval {low:.3f} to {high:.3f})"
    if score.lds_ceiling is not None:
        text += f", noise ceiling {score.lds_ceiling:.3f}"
    text += f"; {score.n_models} models, {score.n_targets} targets; Pearson {score.pearson:.3f}, R² {score.r2:.3f}"
    _print(score.to_dict(), text, as_json)


@app.command()
def curve(
    stores: StorePaths = None,
    masks: MasksFile = None,
    outputs: OutputsFile = None,
    masks_key: MasksKey = "masks",
    outputs_key: OutputsKey = "margins",
    estimator: Name = EstimatorName.lasso,
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
        masks=masks,
        outputs=outputs,
        masks_key=masks_key,
        outputs_key=outputs_key,
        rows=_range(rows, "--rows"),
        targets=_range(targets, "--targets"),
        targets_are_train=targets_are_train or None,
    )
    facts = result.to_dict()
    lines = [
        f"{m:>9} models  LDS {s.lds:.3f}  ({s.lds_ci[0]:.3f} to {s.lds_ci[1]:.3f})"
        for m, s in zip(result.sizes, result.scores, strict=True)
    ]
    if result.asymptote is not None:
        lines.append(f"estimate for unlimited models: {result.asymptote:.3f}")
    if reach is not None:
        need, (low, high) = result.models_for(reach), result.models_for_interval(reach)
        facts["reach"] = {"lds": reach, "models": need, "models_ci": [low, high]}
        amounts = ["never" if end is None else f"{end:,.0f}" for end in (need, low, high)]
        lines.append(f"estimated models for LDS {reach}: {amounts[0]} (interval {amounts[1]} to {amounts[2]})")
    if plot is not None:
        save_plot(result, plot, ceiling=result.scores[-1].lds_ceiling)
        lines.append(f"wrote {plot}")
    _print(facts, "\n".join(lines), as_json)


# -- looking --------------------------------------------------------------------------------------------


@app.command()
def neighbours(
    file: AttributionPath,
    target: Annotated[int, typer.Argument(help="Target number.")],
    k: Annotated[int, typer.Option("-k", help="How many of each.")] = 10,
    as_json: Json = False,
) -> None:
    """The training examples that help and harm one target most.

    Example: datamodels neighbours lasso.h5ad 12 -k 5
    """
    from datamodels.applications.neighbours import neighbours as run
    from datamodels.attribution import Attribution

    found = run(Attribution.load(file), target, k)
    lines = []
    for name, top in (("most helpful", found.helpful), ("most harmful", found.harmful)):
        lines.append(f"{name} to target {target}:" + ("" if len(top.indices) else " none"))
        lines += [f"  train {i:>7}  {w:+.5g}" for i, w in zip(top.indices, top.weights, strict=True)]
    _print(found.to_dict(), "\n".join(lines), as_json)


@app.command()
def subgroups(
    file: AttributionPath,
    clusters: Annotated[int | None, typer.Option(help="Number of clusters (k-means).")] = None,
    method: Annotated[MethodName, typer.Option(help="How to cluster.")] = MethodName.kmeans,
    components: Annotated[int, typer.Option(help="Principal components to cluster on.")] = 10,
    labels: Annotated[
        Path | None, typer.Option(help="Hidden label of each target, .npy or one per line, to score against.")
    ] = None,
    features: Annotated[Path | None, typer.Option(help="Raw features of each target, .npy, for the baseline.")] = None,
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Cluster targets by the training examples that drive them.

    Example: datamodels subgroups ridge.h5ad --clusters 10 --labels digits.npy
    """
    import numpy as np

    from datamodels.applications.subgroups import subgroups as run
    from datamodels.attribution import Attribution

    truth = None if labels is None else _labels(labels)
    raw = None if features is None else np.load(features, allow_pickle=False)
    found = run(
        Attribution.load(file),
        n_clusters=clusters,
        method=method.value,
        n_components=components,
        labels=truth,
        features=raw,
        seed=seed,
    )
    lines = [f"{found.n_clusters} clusters of {len(found.clusters)} targets"]
    for row in found.table(truth):
        label = f"  {row['share']:>4.0%} {row['label']}" if truth is not None else ""
        lines.append(f"  cluster {row['cluster']:>3}  {row['size']:>6} targets{label}")
    if found.ari is not None:
        lines.append(f"against the labels: ARI {found.ari:.3f}, NMI {found.nmi:.3f}")
    if found.ari_baseline is not None:
        lines.append(f"raw features:       ARI {found.ari_baseline:.3f}, NMI {found.nmi_baseline:.3f}")
    _print({**found.to_dict(), "table": found.table(truth)}, "\n".join(lines), as_json)


@app.command()
def report(
    source: Annotated[
        Path, typer.Argument(help="Folder of a run, or an attribution file (.h5ad).", metavar="RUN|FILE")
    ],
    stores: Annotated[list[Path] | None, typer.Option("--store", help="Store to score a file on; may repeat.")] = None,
    masks_key: MasksKey = "masks",
    outputs_key: OutputsKey = "margins",
    clusters: Annotated[int, typer.Option(help="Clusters to show for a file.")] = 10,
    out: Annotated[Path | None, typer.Option(help="Page to write for a file; beside it by default.")] = None,
    as_json: Json = False,
) -> None:
    """Write one self-contained HTML page about a run or an attribution.

    Example: datamodels report runs/demo

    Example: datamodels report lasso.h5ad --store runs/a --out page.html
    """
    from datamodels.report.run_report import report_attribution, report_run

    if source.suffix == ".h5ad":
        results = report_attribution(
            source, stores or (), out=out, masks_key=masks_key, outputs_key=outputs_key, n_clusters=clusters
        )
    elif stores or out:
        raise RequestError("--store and --out go with an attribution file; a run's page lies in its folder")
    else:
        results = report_run(source)
    _print(results, f"wrote {results['page']}", as_json)


@app.command()
def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    models: Annotated[int, typer.Option(help="Networks per subset size; there are two sizes.")] = 4000,
    jobs: Annotated[int | None, typer.Option(help="Worker processes; one per CPU by default.")] = None,
    as_json: Json = False,
) -> None:
    """The whole flow on handwritten digits: thousands of networks, datamodels, proof, subgroups, a page.

    Example: datamodels demo --out runs/demo
    """
    from datamodels.demo import run_demo

    result = run_demo(out, models=models, jobs=jobs)
    if as_json:
        _print(result, "", True)
        return
    from rich.console import Console
    from rich.table import Table

    low, high = result["lds_ci"]
    table = Table(title=f"{result['models']:,} networks in {result['seconds']:.0f} s")
    for name in ("question", "answer", "to compare with"):
        table.add_column(name)
    table.add_row(
        "rank correlation with new models (LDS)",
        f"{result['lds']:.3f} ({low:.3f} to {high:.3f})",
        f"noise ceiling {result['lds_ceiling']:.3f}",
    )
    table.add_row(
        "hidden digits found (adjusted Rand index)",
        f"{result['ari']:.3f}",
        f"raw pixels {result['ari_baseline']:.3f}",
    )
    table.add_row(
        "hidden digits found (mutual information)",
        f"{result['nmi']:.3f}",
        f"raw pixels {result['nmi_baseline']:.3f}",
    )
    Console().print(table)
    print(f"open {result['page']} in a browser")


# -- helpers --------------------------------------------------------------------------------------------


def _print(facts: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(_finite(facts)) if as_json else text)


def _finite(value: Any) -> Any:
    """The same value with null in place of NaN and inf, which JSON does not have."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not abs(value) < float("inf") else value


def _range(text: str | None, option: str) -> slice | None:
    """``START:STOP``, either of which may be missing."""
    if text is None:
        return None
    start, colon, stop = text.partition(":")
    try:
        low, high = (int(part) if part else None for part in (start, stop))
    except ValueError:
        colon = ""
    if not colon or (low or 0) < 0 or (high or 0) < 0:
        raise RequestError(f"{option} is {text!r}; give START:STOP, like 0:3500 or 3500:")
    return slice(low, high)


def _labels(path: Path) -> Any:
    """Labels from a ``.npy`` file, or from a text file with one per line."""
    import numpy as np

    if not path.is_file():
        raise RequestError(f"there is no file {str(path)!r}")
    if path.suffix == ".npy":
        return np.load(path, allow_pickle=False)
    return np.array(path.read_text().split("\n")[: -1 if path.read_text().endswith("\n") else None])


def _writable(path: Path, suffix: str) -> None:
    """Refuse a wrong name before hours of work, not after."""
    if path.suffix != suffix:
        raise RequestError(f"--out is {str(path)!r}; it must end in {suffix}")


def _estimator(name: EstimatorName, **options: Any) -> Estimator:
    from datamodels.regression.estimators import ESTIMATORS

    kind = ESTIMATORS[name.value]
    given = {key: value for key, value in options.items() if value is not None}
    legal = set(kind.__dataclass_fields__)  # type: ignore[attr-defined]
    wrong = [key for key in given if key not in legal or (key == "l1_ratio" and name is EstimatorName.lasso)]
    if wrong:
        flags = {"n_lambdas": "lambdas"}
        raise RequestError(
            f"--{flags.get(wrong[0], wrong[0]).replace('_', '-')} has no meaning for --estimator {name.value}"
        )
    return kind(**given)


def _version(value: bool) -> None:
    if value:
        print(__version__)
        raise typer.Exit


@app.callback()
def _root(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; may stand anywhere.")] = False,
) -> None: ...


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    print(f"warning: {message}", file=sys.stderr)


def main(argv: Sequence[str] | None = None) -> None:
    """The ``datamodels`` command."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in arguments
    arguments = [argument for argument in arguments if argument != "--debug"] or ["--help"]
    warnings.showwarning = _show_warning
    try:
        status = app(arguments, prog_name="datamodels", standalone_mode=False)
    except (KeyboardInterrupt, typer.Abort):
        status = _INTERRUPTED
    except _UsageProblem as error:
        print(f"error: {' '.join(error.format_message().split())}", file=sys.stderr)
        status = 2
    except Exception as error:
        if debug:
            raise
        known = isinstance(error, DatamodelsError | ValueError | OSError | IndexError)
        hint = "" if known else " (--debug shows the traceback)"
        print(f"error: {first_line(error)}{hint}", file=sys.stderr)
        status = error.exit_status if isinstance(error, DatamodelsError) else 2 if known else 1
    if status == _INTERRUPTED:
        print("stopped; what is complete is kept, run it again to go on", file=sys.stderr)
        status = 1
    sys.exit(status or 0)


if __name__ == "__main__":
    main()
