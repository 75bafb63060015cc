"""Subgroups within malignant breast tumours: two kinds of learners, and what checks leave of them.

Perceptrons and gradient-boosted trees learn malignant from benign on the 569 tumours that come with scikit-learn (Wolberg, Street & Mangasarian
1995: 30 measurements of cell nuclei each). Each malignant tumour is a target of the models that did not see it; its datamodel says
which tumours spoke for it, and the datamodels are clustered. Nobody knows whether there are subgroups here. So the page asks
whether clusters come back, whether they are separate, whether shuffled labels give the same, whether they are but the size of the
tumour or how sure models are of it, whether what is learnt from one misses another, and whether the other learner finds them too.

    python examples/breast_cancer.py
    python examples/breast_cancer.py --quick

The page is index.html, the checks are in validation_perceptrons.html and validation_trees.html, and `datamodels explore RUN` opens the run.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from common import command_of, fitted, page, run, said, table
from numpy.typing import NDArray

from datamodels.applications.clustering import cluster
from datamodels.applications.subgroups import Subgroups, subgroups
from datamodels.applications.validation import Validation, validate
from datamodels.attribution import Attribution
from datamodels.datasets import Dataset, load, name_of
from datamodels.design import Design
from datamodels.errors import CampaignError
from datamodels.evaluation.lds import lds
from datamodels.experiment import Part, fill
from datamodels.files import replacing
from datamodels.regression.estimators import Ridge
from datamodels.regression.problem import Problem
from datamodels.report.validation_page import save_report
from datamodels.run import Run, RunAttribution, View
from datamodels.store import Store
from datamodels.training.campaign import train
from datamodels.training.ensemble import TrainRecipe
from datamodels.training.learners import LearnerTask, estimator_task
from datamodels.training.preparation import Preparation
from datamodels.training.recipes import Recipe

KEY = "train_margins"
LEARNERS = ("perceptrons", "trees")
SIZES = ("mean area", "worst area", "area error")  # radius and perimeter say the same
COMPONENTS = 5


@dataclass(frozen=True)
class Size:
    """How much is done by default."""

    tumours: int | None
    models: int
    trees: int
    most: int  # clusters
    refits: int
    shuffles: int
    null_models: int
    replicates: int


FULL = Size(None, 1500, 1500, 6, 4, 19, 100, 20)
QUICK = Size(200, 120, 120, 3, 2, 19, 20, 2)
# Chosen by the LDS on held-out models, among a handful for each learner; the share of the subsets is one for both.
RECIPE = Recipe(hidden=(32,), epochs=30, lr=0.05, weight_decay=1e-3)
ALPHA = 0.2


def tumours(out: Path, count: int | None) -> Dataset:
    """The tumours, or some of them, as a table in the run's folder, whose name is what loads it again."""
    from sklearn.datasets import load_breast_cancer

    file = out / "tumours.csv"
    if not file.exists():
        found = load_breast_cancer(as_frame=True)
        frame = found.data.assign(diagnosis=np.array(found.target_names)[found.target])
        out.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            frame.to_csv(temporary, index=False)
    name = name_of({"kind": "table", "path": str(file), "label": "diagnosis"})
    return load(f"{name}[{count},0]" if count else name)


def boosted() -> Any:
    """Gradient-boosted trees for some hundred examples."""
    from sklearn.ensemble import HistGradientBoostingClassifier

    return HistGradientBoostingClassifier(max_iter=20, max_leaf_nodes=8, learning_rate=0.2, min_samples_leaf=5)


def grown(path: Path, task: LearnerTask, design: Design, **how: Any) -> Store:
    """The complete store of trees."""
    from threadpoolctl import threadpool_limits

    store = Store.open_or_create(path, schema=task.schema, design=design)
    with threadpool_limits(1):  # of a few hundred tumours, threads wait for each other most of the time
        summary = train(store, task, **how)
    if not summary.ok:
        raise CampaignError(
            f"{len(summary.failed)} models failed; their logs are in {path / 'failures'}; run it again to retry"
        )
    return store


# -- do two learners agree? -------------------------------------------------------------------------------


def agreement(groups: Mapping[str, Subgroups]) -> list[dict[str, Any]]:
    """Per number of clusters: the adjusted Rand index between learners, and between refits of one learner on halves of its models."""
    from sklearn.metrics import adjusted_rand_score

    rows = []
    curves = {
        name: {int(row["setting"]): row["ari"] for row in found.curve.table()}
        for name, found in groups.items()
        if found.curve
    }
    for k in curves[LEARNERS[0]]:
        cut = [cluster(groups[name].embedding, "kmeans", k) for name in LEARNERS]
        within = {f"{name}, halves of the models": curves[name][k] for name in LEARNERS}
        rows.append({"clusters": k, "ARI between the learners": float(adjusted_rand_score(*cut)), **within})
    return rows


def agreed(rows: Sequence[Mapping[str, Any]], groups: Mapping[str, Subgroups]) -> str:
    """Whether the learners agree, in words."""
    from sklearn.metrics import adjusted_rand_score

    first, second = (groups[name] for name in LEARNERS)
    ari = float(adjusted_rand_score(first.clusters, second.clusters))
    every = [row["ARI between the learners"] for row in rows]
    row = next(row for row in rows if row["clusters"] == first.n_clusters)
    between, within = row["ARI between the learners"], min(row[f"{name}, halves of the models"] for name in LEARNERS)
    if within < 0.5:
        word = "too few models to tell, as halves of one learner's models do not agree either"
    elif between > 0.8 * within:
        word = "the two learners find the same subgroups"
    else:
        word = f"the two learners {'agree in part' if between > 0.4 else 'do not find the same subgroups'}"
    return (
        f"By stability, {LEARNERS[0]} have {first.n_clusters} clusters and {LEARNERS[1]} {second.n_clusters}; between them the adjusted Rand index is "
        f"{ari:.2f}. With {first.n_clusters} clusters of each it is {between:.2f} (over all numbers of clusters {min(every):.2f} to {max(every):.2f}), "
        f"where halves of one learner's models agree to {within:.2f} or more: {word}."
    )


# -- the checks ---------------------------------------------------------------------------------------------


def known(data: Dataset, targets: NDArray[np.int64], store: Store) -> dict[str, NDArray[Any]]:
    """What is known of the targets: their size, and how sure the models are of them that did not see them."""
    margins = np.asarray(store.array(KEY)[:], dtype=np.float64)[:, targets]
    unseen = ~np.asarray(store.masks(0, store.n_models), dtype=bool)[:, targets]
    names = list(data.feature_names or ())
    columns: dict[str, NDArray[Any]] = {name: data.train.x[targets, names.index(name)] for name in SIZES}
    return {**columns, "mean margin": (margins * unseen).sum(axis=0) / unseen.sum(axis=0)}


def draw(path: Path, groups: Mapping[str, Subgroups], area: NDArray[Any]) -> Path:
    """Both maps side by side: above with the clusters of the perceptrons in colour, below with the area of the tumours."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 10.5), layout="constrained")
    axes = figure.subplots(2, 2)
    first = groups[LEARNERS[0]].clusters
    colours = ("#1f6fb2", "#c2462e", "#3a9a5b", "#8d5fb0", "#c99a1c", "#555555")
    for column, name in enumerate(LEARNERS):
        flat = groups[name].embedding[:, :2]
        for number in np.unique(first):
            axes[0, column].scatter(
                *flat[first == number].T, s=26, c=colours[number % 6], label=str(number), linewidths=0
            )
        shown = axes[1, column].scatter(*flat.T, s=26, c=np.log10(area), cmap="viridis", linewidths=0)
        axes[0, column].set_title(f"datamodels of {name}", fontsize=15)
        for one in axes[:, column]:
            one.set(xlabel="component 1", ylabel="component 2", xticks=[], yticks=[])
    axes[0, 1].legend(title="cluster of the\nperceptrons", loc="center left", bbox_to_anchor=(1, 0.5), frameon=False)
    figure.colorbar(shown, ax=axes[1, 1], label="log10 of the mean area", shrink=0.8)
    figure.savefig(path, dpi=110)
    return path


# -- the whole --------------------------------------------------------------------------------------------------


def options(argv: Sequence[str] | None) -> argparse.Namespace:
    """The options of the script, with the `size`, the `how` of training and the `command` that they come to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=int, help=f"perceptrons ({FULL.models:,})")
    parser.add_argument("--trees", type=int, help=f"ensembles of trees ({FULL.trees:,})")
    parser.add_argument("--out", type=Path, help="folder of the run (runs/breast_cancer)")
    parser.add_argument("--jobs", type=int, help="worker processes; by default one per CPU")
    parser.add_argument("--quick", action="store_true", help="200 tumours, few models")
    given = parser.parse_args(argv)
    given.size = QUICK if given.quick else FULL
    given.models, given.trees = given.models or given.size.models, given.trees or given.size.trees
    if min(given.models, given.trees) < 48:
        parser.error(f"--models is {given.models}, --trees {given.trees}; give 48 or more")
    given.out = given.out or Path("runs") / f"breast_cancer{'-quick' if given.quick else ''}"
    given.how = {"progress": not given.quick, **({"executor": "inline"} if given.quick else {"jobs": given.jobs})}
    given.command = command_of("breast_cancer", argv)
    return given


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Train both learners, fit, judge, cluster, compare, check, draw. Returns what ``results.json`` holds."""
    given = options(argv)
    size, out = given.size, given.out
    data = tumours(out, size.tumours)
    targets = np.flatnonzero(data.train.y == data.class_names.index("malignant"))
    task = TrainRecipe(RECIPE, data.name, splits=("train",), prepare=Preparation(scale=True))
    forest = estimator_task(boosted, data.train.x, data.train.y, splits=("train",), eps=1e-3)
    stores: dict[str, Store] = {}
    for suffix, share, seed, replicates in (("", 1.0, 0, 1), ("_test", 1 / 8, 1, 2)):
        count, trees = (int(share * total) // 2 * 2 for total in (given.models, given.trees))
        part = Part(f"perceptrons{suffix}", task, ALPHA, count, seed=seed, replicates=replicates)
        stores[part.name] = fill(
            out / part.name, part, jobs=1 if given.quick else given.jobs, progress=not given.quick
        )[0]
        design = Design(n_train=len(data.train), alpha=ALPHA, n_models=trees, seed=seed, replicates=replicates)
        stores[f"trees{suffix}"] = grown(out / f"trees{suffix}", forest, design, **given.how)
    attributions = {
        name: fitted(out / f"{name}.h5ad", stores[name], Ridge(), outputs_key=KEY, targets=targets) for name in LEARNERS
    }
    Run(
        title="Subgroups within malignant breast tumours",
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        dataset=data.name,
        task="datamodels.training.ensemble:TrainRecipe",
        commands=[given.command],
        recipe={"perceptrons": RECIPE.changed(), "trees": {"estimator": repr(boosted())}},
        stores={name: name for name in stores},
        attributions={name: RunAttribution(path=f"{name}.h5ad", store=name, test=f"{name}_test") for name in LEARNERS},
        view=View(neighbours=LEARNERS[0], embedding=LEARNERS[0]),
    ).save(out)
    results: dict[str, Any] = {"tumours": len(data.train), "malignant": len(targets), "page": str(out / "index.html")}
    results["lds"] = {name: lds(one, stores[f"{name}_test"]).to_dict() for name, one in attributions.items()}
    problems = {name: Problem.build(stores[name], outputs_key=KEY, targets=targets) for name in LEARNERS}
    groups = {name: clustered(given, attributions[name], problems[name]) for name in LEARNERS}
    results["agreement"] = agreement(groups)
    results["words"] = agreed(results["agreement"], groups)
    validations: dict[str, Validation] = {}
    for name in LEARNERS:
        columns = known(data, targets, stores[name])
        retrain = {"task": task, "folder": out / "check"} if name == "perceptrons" else {}
        validations[name] = validate(
            problems[name], groups[name], labels=np.array(data.class_names)[data.train.y[targets]], columns=columns,
            x=data.train.x[targets], feature_names=data.feature_names, n_refits=size.refits, shuffles=size.shuffles,
            null_models=size.null_models, replicates=size.replicates, **retrain, **given.how,
        )  # fmt: skip
        save_report(
            validations[name],
            out / f"validation_{name}.html",
            title=f"Malignant tumours, {name}: are these subgroups real?",
        )
    results["validation"] = {
        name: {"summary": one.summary(), **{answer.question: answer.word for answer in one.verdicts()}}
        for name, one in validations.items()
    }
    picture = draw(out / "maps.png", groups, data.train.x[targets, list(data.feature_names or ()).index("mean area")])
    write(given, results, validations, picture)
    return results


def clustered(given: argparse.Namespace, attribution: Attribution, models: Problem) -> Subgroups:
    """As many clusters as come back when datamodels are refitted on halves of the models."""
    return subgroups(
        attribution, n_clusters="stability", models=models, max_clusters=given.size.most, n_refits=given.size.refits,
        n_components=COMPONENTS,
    )  # fmt: skip


def write(
    given: argparse.Namespace, results: Mapping[str, Any], validations: Mapping[str, Validation], picture: Path
) -> None:
    """The page and ``results.json``; the same words on the screen."""
    judged = "; ".join(f"{name}: {said(results['lds'][name])}" for name in LEARNERS)
    first = (
        f"{results['tumours']} tumours, of which the {results['malignant']} malignant are clustered by the datamodels of their margins, each fitted on "
        f"models that did not see it (subsets of {ALPHA:.0%}; {given.models:,} perceptrons, {given.trees:,} ensembles of trees). {judged}. Recipes "
        "were chosen by this LDS. No true subgroups are known."
    )
    content: list[Any] = [first, results["words"], picture]
    content.append(
        "Above: colours are clusters of the perceptrons, in both maps. Below: the area of the nuclei, which models see."
    )
    content.append(results["agreement"])
    spoken = [first, results["words"], table(results["agreement"])]
    for name, found in validations.items():
        content += [f"Checks of the {found.groups.n_clusters} clusters of {name}: {found.summary()}"]
        content.append([{"question": one.question, "answer": one.word, "words": one.words} for one in found.verdicts()])
        spoken.append(f"{name.upper()}: {found.report()}")
    page(given.out / "index.html", "Are there subgroups within malignant breast tumours?", content)
    with replacing(given.out / "results.json") as temporary:
        temporary.write_text(json.dumps(results, indent=1))
    print("\n\n".join([*spoken, f"page: {results['page']}"]))


if __name__ == "__main__":
    run(main)
