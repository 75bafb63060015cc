"""Human populations, found by what predictions of a world region rest on.

Models learn the region of 1,350 people of 79 populations from microsatellites (Rosenberg et al. 2005 and Wang et al. 2007, the eHGDP of
adegenet) and are told of no population. Each person is a target of the models that did not see them. Ridge datamodels of these margins
are embedded, clustered and compared with the populations, over several draws of the subsets; beside them stands what geneticists do
anyway, PCA of the genotypes. Genotypes that were not called are filled in inside each model's subset.

    apt-get install r-cran-adegenet && pip install rdata
    python examples/genetics.py
    python examples/genetics.py --plink cohort --label region --table people.csv --hidden village
    python examples/genetics.py --quick                     # simulated genotypes

The page is index.html, the checks are in validation.html, and `datamodels explore RUN` opens the run.
"""

from __future__ import annotations

import argparse
import colorsys
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from common import command_of, fitted, page, run, said, table
from numpy.typing import NDArray

from datamodels.applications.clustering import cluster, embed
from datamodels.applications.subgroups import subgroups
from datamodels.applications.validation import Validation, transfer, validate
from datamodels.applications.validation.transfer import has_pairs
from datamodels.attribution import Attribution
from datamodels.datasets import Dataset, load, name_of
from datamodels.errors import RequestError
from datamodels.evaluation.lds import lds
from datamodels.evaluation.retraining import Estimate
from datamodels.experiment import Part, fill
from datamodels.files import replacing
from datamodels.regression.estimators import Ridge
from datamodels.regression.problem import Problem
from datamodels.report.validation_page import save_report
from datamodels.run import Run, RunAttribution, View
from datamodels.store import Store
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.preparation import Preparation
from datamodels.training.recipes import Recipe

FILE = Path("/usr/lib/R/site-library/adegenet/data/eHGDP.rda")
KEY = "train_margins"
MAPS = ("datamodels", "PCA of genotypes")
RARE = 0.02  # alleles below this frequency are left out before any label is looked at


@dataclass(frozen=True)
class Size:
    """How models are trained and how much is done by default."""

    recipe: Recipe
    select: int
    alpha: float
    models: int
    seeds: int
    components: int
    refits: int
    replicates: int


# Chosen by the LDS on held-out models; the populations were not looked at.
FULL = Size(Recipe(architecture="linear", epochs=20, lr=0.01, weight_decay=1e-2), 1000, 0.1, 800, 3, 20, 2, 4)
QUICK = Size(Recipe(architecture="linear", epochs=4, lr=0.02), 150, 0.5, 96, 2, 6, 2, 2)


# -- genotypes ----------------------------------------------------------------------------------------


def write_ehgdp(file: Path, prefix: Path) -> None:
    """The eHGDP as a PLINK fileset, one variant per allele of a microsatellite, with ``PREFIX.csv`` of regions and populations."""
    if not file.is_file():
        raise RequestError(
            f"there is no {str(file)!r}: `apt-get install r-cran-adegenet` brings it (Debian, Ubuntu); say where it is with "
            "--file, bring genotypes of your own with --plink, or try --quick"
        )
    try:
        import rdata
    except ImportError:
        raise RequestError(f"{str(file)!r} is a file of R; `pip install rdata` reads it") from None
    import warnings

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # classes of R that it has no Python for
        found = vars(rdata.read_rda(file)["eHGDP"])
    frame = found["tab"].to_pandas()
    counts, alleles = frame.to_numpy(np.float32), frame.columns.to_numpy(str)
    facts = found["other"]["popInfo"]
    population = np.asarray(found["pop"]).astype(int) - 1  # as text, and from 1
    common = np.nanmean(counts, axis=0) / 2 >= RARE
    write_plink(
        prefix,
        counts[:, common],
        alleles[common],
        region=[str(name).replace("_", " ").title() for name in np.asarray(facts["Region"])[population]],
        population=[str(name) for name in np.asarray(facts["Population"])[population]],
    )


def write_simulated(prefix: Path, seed: int = 0) -> None:
    """Three regions of three populations of 12 people each: alleles drift from the ancestors to a region, and on to a population."""
    rng = np.random.default_rng(seed)

    def drifted(frequencies: NDArray[np.float64], distance: float) -> NDArray[np.float64]:
        size = (1 - distance) / distance  # Balding & Nichols 1995
        return np.clip(rng.beta(frequencies * size, (1 - frequencies) * size), 0.01, 0.99)

    ancestors = rng.uniform(0.1, 0.9, 300)
    people = [
        rng.binomial(2, drifted(region, 0.08), (12, len(ancestors)))
        for region in (drifted(ancestors, 0.1) for _ in range(3))
        for _ in range(3)
    ]
    counts = np.concatenate(people).astype(np.float32)
    counts[rng.random(counts.shape) < 0.03] = np.nan
    number = np.repeat(np.arange(9), 12)
    write_plink(
        prefix,
        counts,
        np.array([f"v{j}" for j in range(len(ancestors))]),
        region=[("north", "middle", "south")[k // 3] for k in number],
        population=[f"village {k}" for k in number],
    )


def write_plink(
    prefix: Path, counts: NDArray[np.float32], variants: NDArray[np.str_], **columns: Sequence[str]
) -> None:
    """Counts (people, variants) of an allele as .bed, .bim and .fam, and the people's columns as ``PREFIX.csv``."""
    import pandas as pd
    from bed_reader import to_bed

    prefix.parent.mkdir(parents=True, exist_ok=True)
    names = [f"p{i}" for i in range(len(counts))]
    to_bed(f"{prefix}.bed", counts, properties={"iid": names, "sid": variants.tolist()}, num_threads=1)
    frame = pd.DataFrame({"sample": names, **columns})
    frame["missing genotypes"] = np.isnan(counts).mean(axis=1)
    with replacing(Path(f"{prefix}.csv")) as temporary:  # last, so that it says that all are there
        frame.to_csv(temporary, index=False)


def genotypes(given: argparse.Namespace) -> Dataset:
    """What models are trained on; its name is what loads it again."""
    if given.plink is not None:
        told = {"label": given.label, "table": given.table, "sample": given.sample, "hidden": given.hidden}
        told = {name: value for name, value in told.items() if value is not None}
        return load(name_of({"kind": "plink", "path": given.plink, **told, "missing": "subset", "unlabelled": "drop"}))
    prefix = given.out / "genotypes"
    if not Path(f"{prefix}.csv").exists():
        if given.quick:
            write_simulated(prefix)
        else:
            write_ehgdp(given.file, prefix)
    told = {
        "label": "region",
        "table": f"{prefix}.csv",
        "sample": "sample",
        "hidden": "population",
        "missing": "subset",
    }
    return load(name_of({"kind": "plink", "path": str(prefix), **told, "obs": ["missing genotypes"]}))


# -- maps and how well they show what was hidden ----------------------------------------------------------


def filled(x: NDArray[np.float32]) -> NDArray[np.float32]:
    """Missing genotypes as the mean of their variant: for PCA, which has no subsets."""
    known = np.where(np.isnan(x).all(axis=0), 0, x)
    return np.where(np.isnan(known), np.nanmean(known, axis=0), known)


def genotype_map(x: NDArray[np.float32], components: int) -> NDArray[np.float64]:
    """PCA of the genotypes, (people, components)."""
    from sklearn.decomposition import PCA

    whole = filled(x)
    return PCA(min(components, *whole.shape), svd_solver="full").fit_transform(whole.astype(np.float64))


def scores(where: NDArray[np.float64], truth: NDArray[Any], seed: int) -> dict[str, float]:
    """How well an embedding (people, components) shows groups (people,) that it was not told of."""
    from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score
    from sklearn.model_selection import LeaveOneOut, cross_val_predict
    from sklearn.neighbors import KNeighborsClassifier

    kinds = len(np.unique(truth))
    out: dict[str, float] = {}
    for name, method, setting in (("Leiden", "leiden", 1.0), (f"k-means, {kinds}", "kmeans", kinds)):
        found = cluster(where, method, setting, seed, starts=5)
        out[f"ARI ({name})"] = float(adjusted_rand_score(truth, found))
        out[f"NMI ({name})"] = float(normalized_mutual_info_score(truth, found))
    near = cross_val_predict(KNeighborsClassifier(5), where, truth, cv=LeaveOneOut())
    out["5-NN accuracy"] = float((near == truth).mean())
    return out


def interval(values: Sequence[float]) -> list[float]:
    """Mean, and Student's 95 % interval of the mean over seeds."""
    return list(Estimate.mean(np.asarray(values), 0.95))


def compared(per_seed: Mapping[str, list[dict[str, float]]], labels: Mapping[str, float]) -> list[dict[str, Any]]:
    """One row per score: each map's mean and interval over seeds, and their difference."""
    rows = []
    for name in next(iter(per_seed.values()))[0]:
        both = {which: [one[name] for one in found] for which, found in per_seed.items()}
        mine, theirs = (both[which] for which in MAPS)
        difference = interval(np.subtract(mine, theirs).tolist())
        better = MAPS[0] if difference[1] > 0 else MAPS[1] if difference[2] < 0 else "undecided"
        rows.append(
            {
                "score": name,
                **{which: bracket(interval(values)) for which, values in both.items()},
                "difference": bracket(difference),
                "better": better,
                "labels alone": labels.get(name.split()[0]),
            }
        )
    return rows


def bracket(values: Sequence[float]) -> str:
    mean, low, high = values
    return f"{mean:.3f} ({low:.3f} to {high:.3f})"


def draw(path: Path, maps: Mapping[str, NDArray[np.float64]], data: Dataset) -> Path:
    """Both maps side by side, laid out in the plane by t-SNE: a hue per class, a shade per hidden group."""
    from matplotlib.figure import Figure
    from sklearn.manifold import TSNE

    y = data.train.y
    hidden = y if data.train.hidden is None else data.train.hidden
    colours = np.empty((len(y), 3))
    hues = {}
    for code in range(data.n_classes):
        kinds = np.unique(hidden[y == code])
        for rank, kind in enumerate(kinds):
            light = 0.35 + 0.4 * (rank + 0.5) / len(kinds)
            colours[(y == code) & (hidden == kind)] = colorsys.hls_to_rgb(code / data.n_classes, light, 0.75)
        hues[data.class_names[code]] = colorsys.hls_to_rgb(code / data.n_classes, 0.5, 0.75)
    figure = Figure(figsize=(14, 7.4), layout="constrained")
    for axes, (title, where) in zip(figure.subplots(1, 2), maps.items(), strict=True):
        flat = TSNE(2, perplexity=min(30, len(y) // 4), init="pca", random_state=0, n_jobs=1).fit_transform(where)
        axes.scatter(*flat.T, s=14, c=colours, linewidths=0)
        axes.set(title=title, xticks=[], yticks=[])
        axes.title.set_fontsize(15)
    handles = [figure.axes[0].scatter([], [], color=colour, s=60, label=name) for name, colour in hues.items()]
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=min(7, len(handles)),
        frameon=False,
        fontsize=12,
        handletextpad=0.1,
    )
    figure.savefig(path, dpi=110)
    return path


# -- the checks ---------------------------------------------------------------------------------------------


def checked(given: argparse.Namespace, task: TrainRecipe, attribution: Attribution, store: Store) -> Validation:
    """Everything about the clusters that can be asked honestly here.

    Not the permutation null: people of one population are not exchangeable, and the region is a fact of the population.
    """
    size, data = given.size, task.data
    models = Problem.build(store, outputs_key=KEY)
    groups = subgroups(attribution, method="leiden", n_components=size.components)
    known = {
        name: values for name, values in data.train.obs.items() if values.dtype.kind in "iuf" and len(set(values)) > 1
    }
    lacking = {"missing genotypes": np.isnan(data.train.x).mean(axis=1)}
    found = validate(
        models, groups, labels=np.array(data.class_names)[data.train.y], columns={**lacking, **known},
        n_refits=size.refits, progress=not given.quick,
    )  # fmt: skip
    if not has_pairs(groups.clusters, data.train.y):
        return found
    moved = transfer(
        task,
        groups.clusters,
        folder=given.out / "transfer",
        replicates=size.replicates,
        progress=not given.quick,
        **given.how,
    )
    return replace(found, transfer=moved)


# -- the whole --------------------------------------------------------------------------------------------------


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the script, with the `size`, the `how` of retraining and the `command` that they come to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--file", type=Path, default=FILE, help="eHGDP.rda of adegenet (%(default)s)")
    parser.add_argument("--plink", metavar="PREFIX", help="genotypes of your own: PREFIX.bed, .bim and .fam")
    parser.add_argument(
        "--label", default="pheno", help="with --plink: column that models are trained on (%(default)s)"
    )
    parser.add_argument("--hidden", help="with --plink: column that no model sees, to compare clusters with")
    parser.add_argument("--table", help="with --plink: .csv, .tsv or .parquet with more columns of the samples")
    parser.add_argument("--sample", default="iid", help="with --table: its column of sample names (%(default)s)")
    parser.add_argument("--models", type=int, help=f"models per seed ({FULL.models:,})")
    parser.add_argument("--seeds", type=int, help=f"draws of all subsets, 2 or more ({FULL.seeds})")
    parser.add_argument("--out", type=Path, help="folder of the run (runs/genetics)")
    parser.add_argument("--jobs", type=int, help="worker processes; by default one per CPU")
    parser.add_argument("--quick", action="store_true", help="simulated genotypes, few models")
    given = parser.parse_args(argv)
    given.size = QUICK if given.quick else FULL
    given.models, given.seeds = given.models or given.size.models, given.seeds or given.size.seeds
    if given.models < 48 or given.seeds < 2:
        parser.error(f"--models is {given.models}, --seeds {given.seeds}; give 48 or more and 2 or more")
    given.out = given.out or Path("runs") / f"genetics{'-quick' if given.quick else ''}"
    given.how = {"executor": "inline"} if given.quick else {"jobs": given.jobs}
    given.command = command_of("genetics", argv)
    return given


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train, fit, judge, compare with PCA, check, draw. Returns what ``results.json`` holds."""
    given = options(argv)
    size, out, data = given.size, given.out, genotypes(given)
    select = min(size.select, data.train.x.shape[1])
    task = TrainRecipe(
        size.recipe, data.name, splits=("train",), prepare=Preparation(select=select, by="variance", impute=True)
    )
    names = [f"seed{seed}" for seed in range(given.seeds)]
    parts = [Part(name, task, size.alpha, given.models, seed=seed) for seed, name in enumerate(names)]
    parts.append(Part("test", task, size.alpha, given.models // 8 * 2, seed=1000, replicates=2))
    jobs = 1 if given.quick else given.jobs
    stores = {part.name: fill(out / part.name, part, jobs=jobs, progress=not given.quick)[0] for part in parts}
    attributions = {name: fitted(out / f"{name}.h5ad", stores[name], Ridge(), outputs_key=KEY) for name in names}
    Run(
        title=f"{data.hidden_name or 'groups'} behind {len(data.class_names)} labels",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=data.name,
        task="datamodels.training.ensemble:TrainRecipe",
        commands=[given.command],
        recipe={"all": {**size.recipe.changed(), "select": select}},
        stores={part.name: part.name for part in parts},
        attributions={name: RunAttribution(path=f"{name}.h5ad", store=name, test="test") for name in names},
        view=View(neighbours=names[0], embedding=names[0]),
    ).save(out)
    judged = [lds(attribution, stores["test"]).to_dict() for attribution in attributions.values()]
    margins = np.asarray(stores[names[0]].array(KEY)[:])
    unseen = ~np.asarray(stores[names[0]].masks(0, given.models), dtype=bool)
    accuracy = float((margins > 0)[unseen].mean())
    by_pca = genotype_map(data.train.x, size.components)
    maps = [embed(attribution, size.components) for attribution in attributions.values()]
    results: dict[str, Any] = {"people": len(data.train), "variants": data.train.x.shape[1], "models": given.models}
    results |= {"seeds": given.seeds, "accuracy": accuracy, "lds": judged, "page": str(out / "index.html")}
    results["scores"] = []
    if data.train.hidden is not None:
        from sklearn.metrics import adjusted_rand_score, normalized_mutual_info_score

        truth, y = data.train.hidden, data.train.y
        alone = {"ARI": float(adjusted_rand_score(truth, y)), "NMI": float(normalized_mutual_info_score(truth, y))}
        both = {MAPS[0]: [scores(where, truth, seed) for seed, where in enumerate(maps)]}
        both[MAPS[1]] = [scores(by_pca, truth, seed) for seed in range(given.seeds)]
        results["scores"] = compared(both, alone)
    validation = checked(given, task, attributions[names[0]], stores[names[0]])
    results["validation"] = {"summary": validation.summary()}
    results["validation"] |= {one.question: one.word for one in validation.verdicts()}
    save_report(validation, out / "validation.html", title="Leiden clusters of seed 0: are these subgroups real?")
    picture = draw(out / "maps.png", dict(zip(MAPS, (maps[0], by_pca), strict=True)), data)
    write(given, data, results, validation, picture)
    return results


def write(
    given: argparse.Namespace, data: Dataset, results: Mapping[str, Any], validation: Validation, picture: Path
) -> None:
    """The page and ``results.json``; the same words on the screen."""
    first = (
        f"{len(data.train):,} people, {data.train.x.shape[1]:,} alleles ({np.isnan(data.train.x).mean():.1%} not called), labels: "
        f"{', '.join(data.class_names)}. {results['seeds']} times {results['models']:,} {given.size.recipe.architecture} models, each on "
        f"{given.size.alpha:.0%} of the people; accuracy on people that a model did not see {results['accuracy']:.3f}. Datamodels of seed 0: "
        f"{said(results['lds'][0])}. The recipe was chosen by the LDS of smaller runs."
    )
    rows = results["scores"]
    words = [verdict(rows, str(data.hidden_name))] if rows else []
    why = (
        "Labels were not shuffled: the region is a fact of a population, and people of one population are alike, so a shuffle among "
        "people would break more than the labels. Known columns: the share of genotypes that were not called."
    )
    checks = [{"question": one.question, "answer": one.word, "words": one.words} for one in validation.verdicts()]
    content: list[Any] = [first, *words, *([rows] if rows else []), picture]
    content.append(
        f"t-SNE of {given.size.components} components. A hue is a label, a shade one {data.hidden_name or 'label'}. Left: "
        "datamodels of seed 0. Right: PCA of the genotypes, missing ones filled with the mean, which knows no label. A datamodel is of the margin of the person's own "
        "label, so that labels part cleanly on the left is no finding; what is inside of one label is."
    )
    content += [
        f"Checks of the {validation.groups.n_clusters} Leiden clusters of seed 0: {validation.summary()} {why}",
        checks,
    ]
    page(
        given.out / "index.html",
        f"What {data.hidden_name or 'group'} hides behind {len(data.class_names)} labels?",
        content,
    )
    with replacing(given.out / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1))
    print(
        "\n\n".join(
            [first, *words, *([table(rows)] if rows else []), validation.report(), why, f"page: {results['page']}"]
        )
    )


def verdict(rows: Sequence[Mapping[str, Any]], what: str) -> str:
    """Who wins, in words."""
    wins = {name: [row["score"] for row in rows if row["better"] == name] for name in (*MAPS, "undecided")}
    parts = [
        f"{', '.join(scored)}: {name if name != 'undecided' else 'no difference that is sure'}"
        for name, scored in wins.items()
        if scored
    ]
    return (
        f"Which map shows the {what}s better ({len(rows)} scores, intervals over seeds)? {'; '.join(parts)}. Intervals are over subsets and "
        "starts of clustering, for these people; they say nothing about other people."
    )


if __name__ == "__main__":
    run(main)
