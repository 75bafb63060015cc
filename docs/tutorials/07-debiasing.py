# %% [markdown]
# # Debiasing
#
# Networks love shortcuts. If most of the coats in a training set are photographed in the same studio, the studio will do as a sign of "coat", until
# someone photographs a pullover there. Accuracy on average hides it; accuracy on the **worst group** does not.
#
# Here we plant such a shortcut, find with attributions *which training examples teach it*, remove them, train again, and measure. The method is
# **D3M** (Jain et al. 2024, [arXiv:2406.16846](https://arxiv.org/abs/2406.16846)). We compare it with what one would try first, balancing and
# random removal, and end with two cases in which it does not help.
#
# [The tutorial before this one](06-trak-and-hybrid.ipynb) explains TRAK. Full size takes about a minute on two quiet cores; nothing is downloaded:
# the 5,000 digits of MNIST come with `pip install 'datamodels-kit[mnist]'`.

# %%
import os
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np

import datamodels as dm
from datamodels.applications import debias, group_accuracies, group_alignment
from datamodels.datasets import mnist_5k
from datamodels.trak import trak_of_recipe

QUICK = "DATAMODELS_QUICK" in os.environ
N_TRAIN, N_TEST, NETWORKS, RUNS = (700, 600, 3, 4) if QUICK else (2000, 1600, 8, 10)
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "font.size": 11, "image.cmap": "gray_r"})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.6"

# %% [markdown]
# ## 1. A shortcut
#
# The task is easy: is a handwritten digit 0 to 4, or 5 to 9? We add a square to a corner of some pictures. In the training set it is there for
# 95 % of the large digits and 5 % of the small ones, so "square means large" is right 19 times of 20. In the test set
# square and digit have nothing to do with each other.
#
# Label and square make four **groups**. Two are large in training, and two are tiny: those in which the shortcut misleads.

# %%
SIDE = 4
GROUPS = ("small, plain", "small, square", "large, plain", "large, square")
base = mnist_5k(n_test=2500).coarse({"0 to 4": list(range(5)), "5 to 9": list(range(5, 10))})
base = base.subset(n_train=N_TRAIN, n_test=N_TEST, seed=0)


def plant(split, agrees, seed):
    """The split with a square that agrees with the label in a share of the pictures."""
    square = split.y ^ (np.random.default_rng(seed).random(len(split)) >= agrees)
    x, images = split.x.copy(), split.images.copy()
    x[square == 1, :, :SIDE, :SIDE], images[square == 1, :SIDE, :SIDE] = 1, 255
    return replace(split, x=x, images=images, hidden=2 * split.y + square)


def with_shortcut(agrees):
    splits = {"train": plant(base.train, agrees, 0), "test": plant(base.test, 0.5, 1)}
    return replace(base, name=f"square {agrees}", hidden_name="group", hidden_names=GROUPS, **splits)


data = with_shortcut(0.95)
train_group, test_group = data.train.hidden, data.test.hidden

# %%
figure, grid = plt.subplots(4, 10, figsize=(9, 4.2))
for group, row in enumerate(grid):
    for axes, i in zip(row, np.flatnonzero(train_group == group), strict=False):
        axes.imshow(data.train.images[i])
    for axes in row:
        axes.set_axis_off()
    counts = (train_group == group).sum(), (test_group == group).sum()
    title = f"{GROUPS[group]}: {counts[0]} training images, {counts[1]} test images"
    row[4].set_title(title, fontsize=10)
plt.show()

# %% [markdown]
# ## 2. What networks make of it
#
# A few networks on the whole training set; they differ by their luck. A design with explicit masks says who sees what: here, everyone everything.

# %%
recipe = dm.Recipe(hidden=(64,), epochs=10, lr=0.05, weight_decay=1e-3)
task = dm.TrainRecipe(recipe, data, outputs=("margins", "losses", "correct"))
design = dm.Design.explicit(np.ones((RUNS, N_TRAIN), dtype=bool))
store = dm.Store.open_or_create("runs/all", schema=task.schema, design=design)
dm.train(store, task, executor="inline", progress=False)

correct, losses = np.asarray(store.array("correct")), np.asarray(store.array("losses")).mean(axis=0)
by_group = group_accuracies(correct, test_group)  # networks x groups
plt.figure(figsize=(6.5, 3))
plt.bar(GROUPS, by_group.mean(axis=0), color=[BLUE, ORANGE, ORANGE, BLUE])
for group in range(4):
    plt.plot(np.full(RUNS, group), by_group[:, group], "k.", markersize=4)
plt.axhline(correct.mean(), color="black", linewidth=1, linestyle="--")
plt.ylabel("accuracy on test images")
plt.title(f"one dot per network; dashed: all test images, {correct.mean():.0%}", fontsize=11)
plt.show()

# %% [markdown]
# Where square and label agree (blue) networks are nearly perfect, where they do not (orange) they are often wrong. The worst group is what we
# care about from here on.

# %% [markdown]
# ## 3. Which training images teach the shortcut?
#
# **Attribution** says how much each training image raises the margin of each test image. We take TRAK's, from a few networks on random halves.
#
# The test set is split once more: the **choice** half decides what is removed, the **report** half measures. Whoever uses the same images
# for both will find improvements in noise.

# %%
OPTIONS = {"checkpoints": NETWORKS, "projection": "sjlt", "dim": 512, "progress": False}
choice = np.arange(0, N_TEST, 2)
trak = trak_of_recipe(task, "runs/trak", **OPTIONS).attribution[choice]
print(trak)

# %% [markdown]
# D3M condenses this matrix W (training × test) to one number per training image, its **alignment**: its mean weight for the test images of each
# group, the groups weighed by how badly the networks do there.
#
# ```text
# alignment(j)  =  Σ over groups g of  v(g) × mean of W(j, i) over test images i in g,     v(g) ∝ exp(mean loss of g)
# ```
#
# Negative alignment: the image harms the groups that do badly. In three lines, and with the library:

# %%
groups = test_group[choice]
badly = np.exp([losses[choice][groups == g].mean() for g in range(4)])
share = badly / badly.sum()
by_hand = sum(share[g] * trak.weights[:, groups == g].mean(axis=1) for g in range(4))

alignment = group_alignment(trak, groups, losses[choice])
np.testing.assert_allclose(alignment, by_hand, atol=1e-5 * np.abs(by_hand).max())
print("weights of the groups:", ", ".join(f"{name} {v:.2f}" for name, v in zip(GROUPS, share, strict=True)))

# %% [markdown]
# Each dot below is a training image. Dots are spread a little in height, so that they do not hide each other.

# %%
plt.figure(figsize=(7.5, 3.2))
spread = np.random.default_rng(2).uniform(-0.3, 0.3, N_TRAIN)
colours = np.array([BLUE, ORANGE, ORANGE, BLUE])[train_group]
plt.scatter(alignment / np.abs(alignment).max(), train_group + spread, s=5, c=colours, alpha=0.5)
plt.axvline(0, color="black", linewidth=1)
plt.yticks(range(4), GROUPS)
plt.gca().invert_yaxis()
plt.gca().set(xlabel="alignment (largest = 1): left, it harms the worst groups; right, it helps them")
plt.show()

# %% [markdown]
# Nobody told the attribution what group a *training* image is in. Yet the tiny groups, in which square and label disagree (orange), lie to the
# right: they are what keeps the worst groups from being even worse. The large groups have most of their images near zero and a tail to the left:
# not every image of theirs teaches the shortcut. That is what balancing, which knows groups and nothing else, cannot see.

# %% [markdown]
# ## 4. Remove, retrain, measure
#
# `debias` does the whole experiment. It removes the k images of lowest alignment and trains networks on the rest, beside
#
# * all images; **random** removal of as many;
# * **class balanced**: as many images of each class as the smaller one has;
# * **group balanced**: as many of each group. This needs the group of every training image, which D3M does not;
# * **AutoD3M**: D3M without any group labels. It takes as groups the two sides of the strongest direction in which
#   attributions differ within a class.

# %%
HOW = {"replicates": RUNS, "executor": "inline", "progress": False}
found = debias(
    task, trak, test_group, train_groups=train_group, k=round(0.3 * N_TRAIN), auto=True, folder="runs/debias", **HOW
)
NAMES = {
    "all": "all images", "random": "random removal", "class_balanced": "classes balanced", "group_balanced": "groups balanced*",
    "d3m": "D3M", "auto_d3m": "AutoD3M",
}  # fmt: skip
for name, label in NAMES.items():
    one = found.outcomes[name]
    print(
        f"{label:17s} {one.n_train:5d} images: worst group {one.worst.value:.3f} ({one.worst.low:.3f} to {one.worst.high:.3f})"
    )

# %%
plt.figure(figsize=(7, 3.2))
order = sorted(NAMES, key=lambda name: found.outcomes[name].worst.value)
worst = [found.outcomes[name].worst for name in order]
error = [[one.value - one.low for one in worst], [one.high - one.value for one in worst]]
colours = [ORANGE if "d3m" in name else GREY for name in order]
plt.barh([NAMES[name] for name in order], [one.value for one in worst], xerr=error, color=colours, capsize=3)
plt.plot([found.outcomes[name].accuracy.value for name in order], range(len(order)), "ko", label="all report images")
plt.gca().set(xlim=(0, 1), xlabel="accuracy of the worst group (bars, 95 % over networks) and of all")
plt.legend(frameon=False, loc="lower right", bbox_to_anchor=(1, 1))
plt.show()
gain, over_random = found.outcomes["d3m"].beyond_all, found.outcomes["d3m"].beyond_random
print(f"D3M minus all images: {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")
print(f"D3M minus random removal: {over_random.value:+.3f} ({over_random.low:+.3f} to {over_random.high:+.3f})")
assert gain.low > 0 and over_random.low > 0

# %% [markdown]
# Removing images at random makes things no better, rather worse: fewer counterexamples are left. Balancing classes does next to nothing, since
# classes *are* nearly balanced. D3M and AutoD3M gain much, with nothing but images that were there. The starred bar is what group labels for the
# whole training set buy; whether D3M comes close or passes it depends on how few images the smallest group leaves to balance with.
#
# Intervals are over training runs: other luck, and other random draws. The report images are taken as they are.

# %% [markdown]
# ## 5. What was removed?

# %%
kept = found.keep["d3m"]
for group, name in enumerate(GROUPS):
    members = train_group == group
    print(f"{name:14s} {members.sum():4d} images, removed {(~kept)[members].mean():.0%}")

figure, grid = plt.subplots(2, 12, figsize=(9, 2.3))
ranked = alignment.argsort()
for axes, i in zip(grid.flat, [*ranked[:12], *ranked[::-1][:12]], strict=True):
    axes.imshow(data.train.images[i])
    axes.set_axis_off()
for row, title in zip(grid, ("lowest alignment: removed first", "highest alignment: kept longest"), strict=True):
    row[5].set_title(title, fontsize=10)
plt.show()

# %% [markdown]
# The rare groups are spared, although D3M was never told which training images are in them: the last row is full of them. Of the large groups
# it takes some and leaves others. *Which* ones is not a thing to read off by eye, and one should not pretend to.
#
# ## 6. How many?
#
# k is a choice. Below, worst-group accuracy against the share that is removed. Had we picked the best k by this curve and reported its height,
# we would have used the report images twice; a third part of the test set would have to measure it.

# %%
shares = [0.05, 0.3, 0.6] if QUICK else [0.02, 0.05, 0.1, 0.2, 0.4, 0.6, 0.8]
sweep = [
    debias(task, trak, test_group, k=round(share * N_TRAIN), folder=f"runs/sweep/{share}", **HOW).outcomes
    for share in shares
]
plt.figure(figsize=(7, 3.3))
for method, label, colour, style in (("d3m", "D3M", ORANGE, "o-"), ("random", "random removal", GREY, "s--")):
    worst = np.array([sweep[0]["all"].worst, *(one[method].worst for one in sweep)])  # value, low, high
    plt.fill_between([0, *shares], worst[:, 1], worst[:, 2], color=colour, alpha=0.2, linewidth=0)
    plt.plot([0, *shares], worst[:, 0], style, color=colour, label=f"{label}: worst group")
    plt.plot(
        [0, *shares],
        [sweep[0]["all"].accuracy.value, *(one[method].accuracy.value for one in sweep)],
        ":",
        color=colour,
    )
plt.gca().set(ylim=(0, 1), xlabel="share of the training images removed", ylabel="accuracy (dotted: of all images)")
plt.legend(frameon=False, loc="lower left")
plt.show()

# %% [markdown]
# Random removal shows that it is not the size of the training set that matters, but who is in it. The curve of D3M rises fast and flattens: one
# need not know k well. It cannot stay so for ever, since somewhere too little is left to learn the digits from.

# %% [markdown]
# ## 7. Another attribution
#
# D3M takes any `Attribution`: scores of other packages, or datamodels of retrained networks. Which is better? The **LDS** can tell before anything is
# removed: the rank correlation of what an attribution predicts with the margins of networks that were really retrained. Here are
# ridge datamodels, judged beside TRAK on a hundred networks that neither has used.

# %%
MODELS = 250 if QUICK else 600
margins = dm.TrainRecipe(recipe, data)
design = dm.Design(n_train=N_TRAIN, alpha=0.5, n_models=MODELS, seed=0)
half = dm.Store.open_or_create("runs/half", schema=margins.schema, design=design)
dm.train(half, margins, progress=False)
ridge = dm.fit(half, dm.Ridge(), targets=choice, rows=(0, MODELS - 100), progress=False)
retrained = debias(task, ridge, test_group, k=round(0.3 * N_TRAIN), folder="runs/ridge", **HOW).outcomes["d3m"]
for name, one, outcome in (
    (f"TRAK, {NETWORKS} networks", trak, found.outcomes["d3m"]),
    (f"ridge, {MODELS - 100} networks", ridge, retrained),
):
    judged = dm.lds(one, half, rows=(MODELS - 100, MODELS))
    print(f"{name:20s} LDS {judged.lds:.3f}, worst group after D3M {outcome.worst.value:.3f}")

# %% [markdown]
# A few hundred networks are few for that many weights per test image; with more of them ridge gains (try it). Without a look at the LDS one would
# not know which of the two to believe.

# %% [markdown]
# ## 8. Where it does not help
#
# D3M chooses among the examples that are there. Two limits follow.
#
# **No shortcut.** If the square says nothing about the label, the worst group is worst by chance or because its digits are harder, and removing
# images costs accuracy like any removal.
#
# **No counterexample.** If the square *always* agrees with the label, the networks of all subsets believe in it. No training
# image argues against it, so there is nothing to keep.

# %%
cases = {"no shortcut (50 %)": 0.5, "shortcut (95 %)": 0.95, "no counterexample (100 %)": 1.0}
judged = {}
for name, agrees in cases.items():
    other = dm.TrainRecipe(recipe, with_shortcut(agrees))
    scores = trak_of_recipe(other, f"runs/case/{agrees}/trak", **{**OPTIONS, "checkpoints": 3}).attribution[choice]
    judged[name] = debias(
        other, scores, other.data.test.hidden, k=round(0.3 * N_TRAIN), folder=f"runs/case/{agrees}", **HOW
    )

# %%
plt.figure(figsize=(7.5, 3))
METHODS = (("all", "all images", GREY), ("random", "random removal", BLUE), ("d3m", "D3M", ORANGE))
for shift, (method, label, colour) in enumerate(METHODS):
    worst = np.array([one.outcomes[method].worst for one in judged.values()])
    error = np.abs(worst[:, 1:] - worst[:, :1]).T
    plt.bar(np.arange(3) + 0.27 * (shift - 1), worst[:, 0], 0.25, yerr=error, color=colour, capsize=3, label=label)
plt.xticks(range(3), judged)
plt.gca().set(ylim=(0, 1), ylabel="accuracy of the worst group")
plt.legend(frameon=False, ncols=3, loc="lower center", bbox_to_anchor=(0.5, 1))
plt.show()
for name, one in judged.items():
    gain = one.outcomes["d3m"].beyond_all
    print(f"{name:26s} D3M minus all images: {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})")
no_shortcut, _, hopeless = (one.outcomes["d3m"].beyond_all.value for one in judged.values())
assert no_shortcut < 0.1 and hopeless < 0.2

# %% [markdown]
# So first find out whether there is a problem: accuracy by group, on test images in which the shortcut is broken. Without such test images neither
# D3M nor anybody else can know. What helps in the last case are more and other data, not fewer.
#
# There is more that it does not do. It does not say that what it removed was wrong: the images are fine, and another model may learn well from
# them. And it helps the groups that were measured; others may pay. Look at all of them:

# %%
for name in ("all", "d3m"):
    print(NAMES[name], dict(zip(GROUPS, np.round(found.outcomes[name].groups, 2).tolist(), strict=True)))

# %% [markdown]
# ## What to take away
#
# * Averages hide shortcuts. Measure groups, and choose and report on different test examples.
# * D3M removes the training examples that push the worst groups down, found by attribution; it needs no group labels of the training set, and AutoD3M
#   needs none at all.
# * Compare with random removal of equal size, always: removing examples changes accuracy by itself.
# * Without counterexamples in the training set, or without a shortcut, it cannot help.
#
# ## Try
#
# 1. Let the square agree with the label in 80 % and in 99 % of the training images. Where is the gain largest, and why?
# 2. Give `debias` the ten digits as groups instead (`base.test.y` before `coarse`, or `mnist_5k(...).test.y`). What is removed now?
# 3. Keep what D3M keeps and balance its groups on top: is that better than either? Use `balanced_mask` on `train_group[kept]`, and measure with
#    `dm.Design.explicit`.
#
# **Next:** [Is it real?](08-is-it-real.ipynb) **Deeper:** [Gradients, hybrids, and judging by retraining](../gradients.md), and on
# Fashion-MNIST and a census `examples/debias.py` ([examples](../../examples/README.md)).
