# %% [markdown]
# # Genetics
#
# Genomes carry the history of populations: people whose ancestors lived in the same place share variants. Suppose
# that we know only the *region* that people come from, and train models to tell it from genotypes. Do the datamodels
# of these models show the *populations* inside of the regions, which nobody told them of?
#
# They do, and there is a second answer: **principal component analysis (PCA) of the genotypes shows them better**.
# This is its home ground, and it is honest to begin with that. So why read on? Because on the way we meet what makes
# or breaks any analysis of related samples: families that leak from training into judging, missing genotypes, people
# of mixed ancestry who belong to no cluster, and the question of what may be concluded at all.
#
# Genotypes of real people are not for handing around, so this notebook simulates them by a known model. That has an
# advantage: we know the truth. Needs `pip install 'datamodels-kit[bio]'`; how to run on real data is at the end.

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from bed_reader import to_bed
from scipy.stats import mode, spearmanr
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import adjusted_rand_score
from sklearn.neighbors import NearestNeighbors
from threadpoolctl import threadpool_limits

import datamodels as dm
from datamodels.applications import cluster, embed, subgroups, validate
from datamodels.applications.validation import transfer
from datamodels.datasets import from_plink
from datamodels.regression.problem import Problem

QUICK = "DATAMODELS_QUICK" in os.environ
plt.rcParams.update({"figure.dpi": 80, "font.size": 10, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREY = "#0072B2", "#D55E00", "#999999"
COLOUR = {"north": "#0072B2", "east": "#E69F00", "south": "#009E73", "west": "#CC79A7"}
rng = np.random.default_rng(0)

# %% [markdown]
# ## People with a known history
#
# The model of **Balding and Nichols** (1995): a variant that had frequency *p* in the ancestors has, in a population
# that drifted apart from them, a frequency drawn from a beta distribution with mean *p* and variance *F p (1 − p)*.
# **F** (Wright's F_ST) says how far they drifted: here .03 from ancestors to each region, and .03 again from a region
# to each of its populations. Human continents differ by some .1, populations of one continent by .01 or so.


# %%
def drifted(p, f):
    """Allele frequencies after drift by F = f, one per variant."""
    size = (1 - f) / f
    return np.clip(rng.beta(p * size, (1 - p) * size), 0.01, 0.99)


regions, F, n_variants = list(COLOUR), 0.03, 800
ancestors = rng.uniform(0.1, 0.9, n_variants)
of_region = {region: drifted(ancestors, F) for region in regions}
populations = {f"{region} {k}": drifted(of_region[region], F) for region in regions for k in (1, 2, 3)}
spread = np.mean([(p - of_region[name[:-2]]) ** 2 for name, p in populations.items()])
found = spread / np.mean([p * (1 - p) for p in of_region.values()])
print(f"{len(populations)} populations; F between those of a region: {found:.3f}, asked for {F}")
assert abs(found - F) < 0.005

# %% [markdown]
# Now people: in each population families of three siblings, as family studies have them. Each child gets one of the
# two copies of each parent, parents are drawn from the population.
#
# One more place is **crossroads**, a town in the south whose people descend in part from "south 1" and in part from
# "north 1", in any proportion. They are the reminder that ancestry is a continuum.


# %%
def siblings(p, children):
    """Genotypes (children, variants): how many copies (0, 1, 2) of each variant, for children of two random parents."""
    parents = rng.random((2, 2, n_variants)) < p  # two parents with two copies each
    handed = rng.integers(0, 2, (children, 2, n_variants))
    return np.where(handed == 0, parents[:, 0], parents[:, 1]).sum(axis=1)


families, mixed = (6, 16) if QUICK else (8, 24)
people, rows = [], []
for name, p in populations.items():
    for _ in range(families):
        people.append(siblings(p, 3))
        rows += [{"region": name[:-2], "population": name, "family": f"f{len(people)}", "share": np.nan}] * 3
for share in np.linspace(0, 1, mixed):
    people.append(siblings(share * populations["north 1"] + (1 - share) * populations["south 1"], 1))
    rows += [{"region": "south", "population": "crossroads", "family": f"f{len(people)}", "share": share}]
genotypes, facts = np.concatenate(people).astype(np.float32), pd.DataFrame(rows)
print(genotypes.shape, "people x variants,", facts["family"].nunique(), "families")

# %% [markdown]
# Laboratories do not call every genotype. Let two kinds of arrays be used, of which one misses more; which person is
# on which is chance. Then everything is written as **PLINK** files, the usual format (`.bed` genotypes, `.bim`
# variants, `.fam` people), with a table beside them.

# %%
facts["array"] = rng.choice(["A", "B"], len(facts))
lacking = np.where(facts["array"] == "A", 0.01, 0.05)[:, None]
genotypes[rng.random(genotypes.shape) < lacking] = np.nan
facts["sample"] = [f"p{i}" for i in range(len(facts))]
names = {"iid": facts["sample"].tolist(), "fid": facts["family"].tolist(), "sid": [f"v{j}" for j in range(n_variants)]}
to_bed("cohort.bed", genotypes, properties=names, num_threads=1)
facts.drop(columns="family").to_csv("people.csv", index=False)

# %% [markdown]
# From here on it is as with files of your own. `label` is what models learn, `hidden` what no model sees, `groups`
# the families (`fid`, a column of the `.fam`), and `missing="subset"` leaves missing genotypes to be filled in later,
# by each model for itself.

# %%
data = from_plink(
    "cohort", "region", table="people.csv", sample="sample", hidden="population", groups="fid", missing="subset"
)
print(data.train.x.shape, data.class_names, f"{np.isnan(data.train.x).mean():.1%} missing")
facts = facts.set_index("sample").loc[data.train.ids].reset_index()
population, family, region = (facts[name].to_numpy() for name in ("population", "family", "region"))
pure = population != "crossroads"

# %% [markdown]
# ## What everybody does first
#
# PCA of the genotypes, missing ones as the mean of the variant. The first components of a structured sample are its
# history (Patterson, Price & Reich 2006).

# %%
filled = np.where(np.isnan(data.train.x), np.nanmean(data.train.x, axis=0), data.train.x).astype(float)
pca = PCA(10, svd_solver="full").fit_transform(filled)
fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained")
for ax, (a, b) in zip(axes, ((0, 1), (2, 3)), strict=True):
    for name in regions:
        for marker, k in (("o", 1), ("^", 2), ("s", 3)):
            members = population == f"{name} {k}"
            ax.scatter(*pca[members][:, [a, b]].T, s=12, color=COLOUR[name], marker=marker, linewidths=0)
        ax.scatter([], [], s=30, color=COLOUR[name], label=name)
    ax.scatter(*pca[~pure][:, [a, b]].T, s=18, color="black", marker="x", linewidths=1, label="crossroads")
    ax.set(xlabel=f"component {a + 1}", ylabel=f"component {b + 1}")
fig.legend(*ax.get_legend_handles_labels(), loc="outside right upper", frameon=False)
fig.suptitle("PCA of genotypes (markers: populations of a region)")
plt.show()

# %% [markdown]
# Regions part along the first components, populations along later ones, and crossroads is a bridge between two
# regions. No model was needed for that, and no label.
#
# ## Families leak
#
# Now models: logistic regressions that learn the region. There is no test set; every person is a target, judged by
# the models that did *not* see them ("out of mask"). Is that clean? Not with families: a model that has seen two
# siblings has nearly seen the third.
#
# Compare two ways to draw the subsets, each with the same share of people. `fixed_size` takes people one by one.
# `grouped` takes **whole families** in or out. Missing genotypes are filled in, and the most variable variants
# chosen, within each model's subset (`Preparation`), so that nothing leaks that way either.

# %%
task = dm.TrainRecipe(
    dm.Recipe(architecture="linear", epochs=20, lr=0.01, weight_decay=1e-2),
    data,
    splits=("train",),
    prepare=dm.Preparation(select=n_variants // 2, by="variance", impute=True),
)
models, alpha, key = 600 if QUICK else 2000, 0.35, "train_margins"


def run(folder, kind, seed=0):
    groups = data.train.groups if kind == "grouped" else None
    design = dm.Design(n_train=task.n_train, alpha=alpha, n_models=models, kind=kind, groups=groups, seed=seed)
    store = dm.Store.open_or_create(folder, schema=task.schema, design=design, ids=data.ids)
    assert dm.train(store, task, executor="inline" if QUICK else "local", progress=False).ok
    return store


stores = {"people one by one": run("runs/parted", "fixed_size"), "whole families": run("runs/families", "grouped")}
fits, fitted = {}, (0, models - models // 6)
sibling = (family[:, None] == family) & ~np.eye(len(family), dtype=bool)
for name, store in stores.items():
    masks, right = np.asarray(store.masks(0, models)), np.asarray(store.array(key)) > 0
    seen = masks.astype(np.float32) @ sibling  # how many siblings of each person each model has seen
    by_seen = [f"{k:.0f}: {right[~masks & pure & (seen == k)].mean():.1%}" for k in np.unique(seen[~masks & pure])]
    fits[name] = dm.fit(store, dm.Ridge(), outputs_key=key, rows=fitted, progress=False)
    score = dm.lds(fits[name], store)
    lds = f"LDS {score.lds:.2f} ({score.lds_ci[0]:.2f} to {score.lds_ci[1]:.2f})"
    print(f"subsets of {name}, {lds}\n    right about unseen people, by siblings seen: {', '.join(by_seen)}")

# %% [markdown]
# One by one, models know a person's region the better the more siblings of that person they have seen. They know the
# family, and the average over such people would flatter them. With whole families nobody's sibling is seen, and there
# is one number. (It is lower than the other's number for no sibling, and that is no leak: siblings repeat each other,
# so a subset of as many people holds fewer families, and less to learn from.)
#
# Both have a good **LDS**, the rank correlation of predicted and true outputs of models that the fit has not seen. It
# judges whether datamodels predict these models, not whether the models were a fair test.
#
# What does that do to datamodels? A **datamodel** has one weight per training person: how much the **margin** of the
# target (how far the model is from being wrong about it) rises when that person joins. Ridge regression fits them.
# Average their sizes by how the two are related:

# %%
kin = {
    "siblings": family[:, None] == family,
    "same population": population[:, None] == population,
    "same region": region[:, None] == region,
    "elsewhere": np.ones((len(region), len(region)), dtype=bool),
}
left = ~np.eye(len(region), dtype=bool) & pure & pure[:, None]
fig, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
height = {}
for shift, colour, name in ((-0.2, ORANGE, "people one by one"), (0.2, BLUE, "whole families")):
    remaining, height[name] = left.copy(), []
    for pairs in kin.values():
        height[name].append(np.abs(fits[name].weights)[pairs & remaining].mean())
        remaining &= ~pairs
    ax.bar(np.arange(4) + shift, height[name], 0.38, color=colour, label=f"subsets of {name}")
ax.set_xticks(range(4), list(kin))
ax.set(ylabel="mean |weight|, margin per person", xlabel="training person and target")
ax.legend(frameon=False)
plt.show()
assert height["people one by one"][0] > 3 * height["people one by one"][1]
assert height["whole families"][0] == 0 and height["whole families"][1] > height["whole families"][2]

# %% [markdown]
# Taken one by one, datamodels are mostly about siblings: clusters of them would be *families*, and a table of
# "influential people" a list of relatives. With whole families, the models that judge a person have seen none of that
# person's siblings, those weights are exactly zero, and what remains is the population. Cells of one donor, scans of
# one patient, sentences of one author: the same story, the same remedy, `kind="grouped"`.
#
# (What a weight means changes a little: a family is in or out as one, so only the *sum* over its members is known,
# and ridge gives each an equal share.)
#
# ## Populations that nobody told the models of
#
# From here on, whole families only. Mean weights between populations:

# %%
attribution = fits["whole families"]
order = sorted(populations, key=lambda name: (regions.index(name[:-2]), name)) + ["crossroads"]
block = np.array([[attribution.weights[np.ix_(population == a, population == b)].mean() for b in order] for a in order])
fig, ax = plt.subplots(figsize=(6.8, 5.2), layout="constrained")
image = ax.imshow(block, cmap="PuOr", vmin=-np.abs(block).max(), vmax=np.abs(block).max())
for edge in (2.5, 5.5, 8.5, 11.5):
    ax.axhline(edge, color="black", linewidth=0.6)
    ax.axvline(edge, color="black", linewidth=0.6)
ax.set_xticks(range(13), order, rotation=60, ha="right")
ax.set_yticks(range(13), order)
ax.set(xlabel="target: person of", ylabel="training person of")
fig.colorbar(image, ax=ax, label="mean weight, margin per person", shrink=0.8)
plt.show()

# %% [markdown]
# Models were told regions, the blocks of three. Within a block the diagonal is mostly darkest: a person's prediction
# rests on people of the *same population* most. And see the last row and column: people of crossroads, labelled
# "south", harm predictions of the north, and people of the north harm theirs: they are related, and carry another
# label.
#
# ## And PCA?
#
# Both get ten components of the same people. Scores against the twelve populations (crossroads is left out, since it
# is none): do the five nearest people *of other families* vote for the right population? Do clusters agree with
# populations (**ARI**: 1 the same, 0 chance; **k-means** is told that there are twelve, **Leiden** finds communities
# in the graph of neighbours)? *Labels alone* is what one gets by knowing the region and nothing else. For datamodels
# three independent runs.

# %%
truth = population[pure]


def scores(where):
    """How well an embedding (people, components) shows the populations."""
    where = where[pure]
    near = NearestNeighbors(n_neighbors=10).fit(where).kneighbors(return_distance=False)
    relative = family[pure][near] == family[pure][:, None]
    closest = np.take_along_axis(near, np.argsort(relative, axis=1, kind="stable")[:, :5], axis=1)
    codes = np.unique(truth, return_inverse=True)[1]
    return {
        "5 nearest": (mode(codes[closest], axis=1).mode == codes).mean(),
        "ARI, k-means (12)": adjusted_rand_score(truth, cluster(where, "kmeans", 12)),
        "ARI, Leiden": adjusted_rand_score(truth, cluster(where, "leiden", 1.0)),
    }


runs = [attribution]
for seed in (1, 2):
    store = run(f"runs/families-{seed}", "grouped", seed)
    runs.append(dm.fit(store, dm.Ridge(), outputs_key=key, rows=fitted, progress=False))
table = {f"datamodels, run {r}": scores(embed(one, 10)) for r, one in enumerate(runs)}
table["PCA of genotypes"] = scores(pca)
alone = adjusted_rand_score(truth, region[pure])
table["labels alone"] = {"ARI, k-means (12)": alone, "ARI, Leiden": alone}
table = pd.DataFrame(table).T
print(table.round(2).to_string(na_rep="-"))
assert table.loc["PCA of genotypes", "ARI, k-means (12)"] > 0.7
assert table.loc["datamodels, run 0", "ARI, k-means (12)"] > alone + 0.1

# %% [markdown]
# Datamodels know clearly more than the labels that they came from, so they did find populations. PCA knows more
# still. On real genotypes it is the same: `python examples/genetics.py`, 1,350 people of 79 populations,
# microsatellites, has PCA ahead in every score, for example .547 against .432 in the vote of the five nearest
# ([measured](../../benchmarks/RESULTS.md#subgroups-in-biomedical-data)).
#
# The reason is plain. PCA looks at all variants directly, and population structure is what varies most. A datamodel
# sees genotypes only through what a classifier of *regions* needs; what does not help to tell regions apart is lost
# on the way. Use datamodels here to ask what a *classifier* rests on, not to draw the map of a population.

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 4.6), layout="constrained")
maps = {"datamodels, families together": embed(attribution, 10), "PCA of genotypes": pca}
for ax, (title, where) in zip(axes, maps.items(), strict=True):
    with threadpool_limits(1):  # a small problem: threads would wait for each other
        flat = TSNE(init="pca", perplexity=20, random_state=0).fit_transform(where)
    for name in regions:
        for marker, k in (("o", 1), ("^", 2), ("s", 3)):
            members = population == f"{name} {k}"
            ax.scatter(*flat[members].T, s=14, color=COLOUR[name], marker=marker, linewidths=0)
        ax.scatter([], [], s=30, color=COLOUR[name], label=name)
    ax.scatter(*flat[~pure].T, s=18, color="black", marker="x", linewidths=1, label="crossroads")
    ax.set(title=title, xticks=[], yticks=[], xlabel="t-SNE 1", ylabel="t-SNE 2")
fig.legend(*ax.get_legend_handles_labels(), loc="outside lower center", ncols=5, frameon=False)
plt.show()

# %% [markdown]
# Markers (circle, triangle, square) are the three populations of a region. t-SNE lays ten components out in the
# plane; distances between islands mean little, and that regions part cleanly on the left is no finding, since a
# datamodel is about the person's own label.
#
# ## People between clusters
#
# Every clustering puts each person somewhere, also those of crossroads. But look at how sure the models are that they
# are of the south, against the true share of ancestry from the north:

# %%
store = stores["whole families"]
margin = np.where(np.asarray(store.masks(0, models)), np.nan, np.asarray(store.array(key)))
mean, share = np.nanmean(margin, axis=0)[~pure], facts["share"].to_numpy()[~pure]
groups = subgroups(attribution, method="leiden", n_components=10)
fig, ax = plt.subplots(figsize=(6.4, 3.6), layout="constrained")
for number, marker in zip(np.unique(groups.clusters[~pure]), "osD^v<>P*Xhp", strict=False):
    members = groups.clusters[~pure] == number
    ax.plot(share[members], mean[members], marker, color="black", fillstyle="none", label=f"cluster {number}")
ax.axhline(0, color=GREY, linewidth=0.8)
ax.set(xlabel="true share of ancestry from north 1", ylabel="mean margin for “south”,\nmodels that did not see them")
ax.legend(frameon=False, fontsize=8, title="Leiden says")
plt.show()
print(f"rank correlation of margin and ancestry: {spearmanr(share, mean).statistic:.2f}")
assert spearmanr(share, mean).statistic < -0.5

# %% [markdown]
# The margin falls with the share from the north until models call these people northern: it slides from one answer to
# the other, as ancestry does. Leiden has few answers for all of them. A cluster boundary between people is a decision
# of an algorithm, not a discovery.
#
# ## Are the subgroups real?
#
# `validate` asks what can be asked here. We leave out one of its tests on purpose: **shuffling labels** is valid only
# where labels could have fallen differently, and people of a population are alike in genotype *and* region. Without
# `task` it says "not tested".

# %%
lacking = np.isnan(data.train.x).mean(axis=1)
checked = validate(
    Problem.build(store, outputs_key=key, rows=fitted),
    groups,
    labels=region,
    columns={"array": facts["array"].to_numpy(), "missing genotypes": lacking},
    n_refits=3 if QUICK else 5,
    progress=False,
)
for one in checked.verdicts()[:5]:
    print(f"{one.question}: {one.word.upper()}")

print("\ncluster  people  families  commonest population  of crossroads  in refits")
for row, one in zip(groups.table(population), checked.stability.clusters, strict=True):
    members = groups.clusters == row["cluster"]
    kin, between = len(np.unique(family[members])), (members & ~pure).sum()
    most = f"{row['share']:4.0%} {row['label']:10}"
    print(
        f"{row['cluster']:7}  {row['size']:6}  {kin:8}  {most:20}  {between:13}  {one.word} ({one.jaccard.value:.2f})"
    )

# %% [markdown]
# Clusters are not single families, and the array does not go with them, because it was drawn by chance; in a real
# cohort, where cases may come from one laboratory and controls from another, that line is the first to look at. They
# are called "separate" although crossroads lies between two of them: the test asks whether *everything* is one cloud.
# And some do not come back in refits: at full size those with several people of crossroads, which is as it should be.
#
# **Transfer** asks whether it matters: do models that know a region from one cluster alone miss another cluster of
# it? It holds out whole families by itself, since the dataset knows them.

# %%
moved = transfer(task, groups.clusters, folder="runs/transfer", replicates=4, executor="inline", progress=False)
print(f"the drop of accuracy is sure in {len(moved.dropping)} of {len(moved.pairs)} pairs of clusters of one region")
for pair in sorted(moved.pairs, key=lambda pair: -pair.drop.value)[:3]:
    what = f"learnt from cluster {pair.source}, judged on {pair.to}"
    print(f"{what}: {pair.drop.value:+.2f} ({pair.drop.low:+.2f} to {pair.drop.high:+.2f})")

# %% [markdown]
# Large drops, and intervals that still hold zero: with a handful of families in a cluster, one family more or less
# changes the answer, and the interval says so. More people would not help; more *families* would.
#
# ## What can be concluded, and what must not
#
# From such an analysis one may say: *classifiers of this label rest on these groups of samples; most of the groups
# come back in other models; they are not the array and not single families; PCA shows them, too.* One may not say
# that the groups are kinds of people.
#
# **On labels and privacy.** "Region" and "population" are names that somebody gave when sampling: of a language, a
# village, a passport, a self-description. They are not written in genomes; human variation is mostly within any such
# group and changes gradually between them, and a cluster is no race. Choose the least label that the question needs,
# say where it comes from, and expect the people concerned to read what you write. A genotype identifies a person and
# speaks of relatives who were never asked. So does what you derive from it: a datamodel names the individuals that a
# prediction rests on and tells relatives from strangers (see the bars above), margins betray who was in a training
# set, and an exported page of the explorer carries names of samples. Treat stores, attributions and pages as
# individual-level data, under the same consent and access rules as the genotypes; publish sums over groups.
#
# ## On real genotypes
#
# * Files of yours: `from_plink("cohort", "region", table="people.csv", sample="IID", hidden="village", groups="fid",
#   missing="subset")` is all that changes above. Prune variants in linkage disequilibrium first (`plink2
#   --indep-pairwise`), and find relatives that the family column does not know by a kinship coefficient; put the
#   result into a column for `groups`.
# * The whole program, for your files: `python examples/genetics.py --plink cohort --label region --table people.csv
#   --hidden village`.
# * The human diversity panel behind the numbers above (eHGDP, Rosenberg et al. 2005) comes with an R package:
#   `apt-get install r-cran-adegenet`, `pip install rdata`, `python examples/genetics.py`.
#
# ## What to take away
#
# * PCA of genotypes is the method to beat for population structure, and datamodels do not beat it. They say what a
#   classifier rests on.
# * Relatives leak. Out of mask is not enough; draw whole families (donors, patients) with `kind="grouped"`.
# * Missing values, choice of variants, scaling: inside of each model's subset.
# * Clusters cut continua. Look at people between them before naming anything.
# * Attributions of people are data about people.
#
# ## Try
#
# 1. Halve the number of variants and double `F`. When do datamodels come close to PCA?
# 2. Give array B to the north alone and let it miss 20 % of the genotypes. What does `validate` say now, and is it
#    right?
# 3. Use `permutation_null` (`datamodels.applications.validation`) with `groups=population`: regions are then
#    reassigned among whole populations. What does that ask, and why is it a fairer null than shuffling people?
#
# Next: [TRAK, wrong labels and the hybrid](06-trak-and-hybrid.ipynb). Deeper: [Cells, genotypes,
# tables](../biomedical.md), [Are these subgroups real?](../validation.md).
