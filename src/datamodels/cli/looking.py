"""Commands that look at results: neighbours, subgroups, demo."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from datamodels.cli.common import (
    AttributionPath,
    Json,
    MethodName,
    Seed,
    emit,
    read_labels,
    refuse_suffix,
)
from datamodels.cli.validating import parse_clusters, problem_of, stability_lines
from datamodels.errors import RequestError


def neighbours(
    file: AttributionPath,
    target: Annotated[str, typer.Argument(help="Target, by its number, or by its name where it has one.")],
    k: Annotated[int, typer.Option("-k", help="How many of each.")] = 10,
    by_name: Annotated[bool, typer.Option(help="TARGET is a name, also when it looks like a number.")] = False,
    as_json: Json = False,
) -> None:
    """The training examples that help and harm one target most.

    Example: datamodels neighbours lasso.h5ad 12 -k 5

    Example: datamodels neighbours cells.h5ad AAACCTGAGCCCAATT-1
    """
    from datamodels.applications.neighbours import neighbours as run
    from datamodels.attribution import IDS, Attribution

    attribution = Attribution.load(file)
    number = not by_name and target.removeprefix("-").isdecimal()
    if number and int(target) >= attribution.n_targets and target in attribution.target_facts.get(IDS, ()):
        raise RequestError(f"there is no target {target}, and one of that name: give --by-name")
    found = run(attribution, int(target) if number else target, k)
    lines = []
    said = f"target {found.target}" if found.id is None else f"target {found.target}, {found.id}"
    for name, top in (("most helpful", found.helpful), ("most harmful", found.harmful)):
        lines.append(f"{name} to {said}:" + ("" if len(top.indices) else " none"))
        names = [""] * len(top.indices) if top.ids is None else [f"  {one}" for one in top.ids]
        lines += [f"  train {i:>7}  {w:+10.4g}{n}" for i, w, n in zip(top.indices, top.weights, names, strict=True)]
    emit(found.to_dict(), "\n".join(lines), as_json)


def subgroups(
    file: AttributionPath,
    clusters: Annotated[
        str | None, typer.Option(help="Number of clusters (k-means), or 'stability' to choose it from the models.")
    ] = None,
    method: Annotated[MethodName, typer.Option(help="How to cluster.")] = MethodName.kmeans,
    components: Annotated[int, typer.Option(help="Principal components to cluster on.")] = 10,
    labels: Annotated[
        Path | None, typer.Option(help="Hidden label of each target, .npy or one per line, to score against.")
    ] = None,
    features: Annotated[Path | None, typer.Option(help="Raw features of each target, .npy, for the baseline.")] = None,
    resolution: Annotated[float | None, typer.Option(help="Of leiden: the larger, the more clusters.")] = None,
    stores: Annotated[
        list[str] | None,
        typer.Option("--store", help="Store of the fit, for stability; may repeat. What the fit says by default."),
    ] = None,
    write_to: Annotated[
        Path | None,
        typer.Option(help="AnnData file (.h5ad) whose observations are the targets, to annotate; with --out."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Annotated .h5ad to write.")] = None,
    key: Annotated[str, typer.Option(help="Name of the annotation in obs, obsm and uns.")] = "datamodels",
    seed: Seed = 0,
    as_json: Json = False,
) -> None:
    """Cluster targets by the training examples that drive them.

    Example: datamodels subgroups ridge.h5ad --clusters 10 --labels digits.npy

    Example: datamodels subgroups ridge.h5ad --method leiden --write-to cells.h5ad --out annotated.h5ad
    """
    import numpy as np

    from datamodels.applications.subgroups import subgroups as run
    from datamodels.applications.subgroups import write_to as annotate
    from datamodels.attribution import Attribution, read_h5ad
    from datamodels.files import replacing

    if (write_to is None) != (out is None):
        raise RequestError("--write-to and --out go together: the file to annotate, and the annotated one")
    if out is not None:
        refuse_suffix(out, ".h5ad")
    attribution, number = Attribution.load(file), parse_clusters(clusters)
    truth = None if labels is None else read_labels(labels)
    raw = None if features is None else np.load(features, allow_pickle=False)
    found = run(
        attribution,
        n_clusters=number,
        method=method.value,
        resolution=resolution,
        models=problem_of(attribution, stores) if number == "stability" else None,
        progress=True,
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
    if found.curve is not None:
        lines += stability_lines(found.curve)
    facts = {**found.to_dict(), "table": found.table(truth)}
    if write_to is not None and out is not None:
        annotated = annotate(read_h5ad(write_to), found, key=key)
        with replacing(out) as temporary:
            annotated.write_h5ad(temporary)
        facts["out"] = str(out)
        lines.append(f"wrote {out}: obs[{key!r}], obsm['X_{key}'], uns[{key!r}]")
    emit(facts, "\n".join(lines), as_json)


def demo(
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/demo"),
    models: Annotated[int, typer.Option(help="Networks per subset size; there are two sizes.")] = 4000,
    jobs: Annotated[
        int | None, typer.Option(help="Worker processes; by default one per CPU, or per GPU in use.")
    ] = None,
    as_json: Json = False,
) -> None:
    """The whole flow on handwritten digits: thousands of networks, datamodels, proof, subgroups, a page.

    Example: datamodels demo --out runs/demo
    """
    from datamodels.demo import run_demo

    result = run_demo(out, models=models, jobs=jobs)
    if as_json:
        emit(result, "", True)
        return
    from rich.console import Console
    from rich.table import Table

    low, high = result["lds_ci"]
    trained = "" if result["trained"] == result["models"] else f" ({result['trained']:,} of them trained now)"
    table = Table(title=f"{result['models']:,} networks{trained}, {result['seconds']:.0f} s")
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
