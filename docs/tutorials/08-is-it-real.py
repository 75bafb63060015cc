# %% [markdown]
# # Is it real?
#
# A fit gives every training example a weight for every prediction, and most of these numbers are noise. This tutorial
# shows how to tell. Five questions, each with its own tool:
#
# | question | tool | what comes back |
# |---|---|---|
# | Does the fit predict models that it has never seen? | `dm.lds` | a score, an interval, and what noise allows |
# | How large is one influence, and how sure is that? | `dm.intervals` | an estimate with a confidence interval |
# | Which influences are real? | `dm.select` | a list with a known share of errors |
# | Which come back, whatever models are used? | `dm.stability` | how often each example is among the strongest |
# | What happens if these examples are taken away? | `counterfactual` | predicted and actual changes |
#
# First a made-up world in which the true influences are known, so that every promise can be checked. Then real
# networks on real digits, where nothing is known but a trick supplies examples whose influence is exactly zero. If
# *datamodel*, *mask* and *margin* are new to you, begin with [the first tutorial](01-from-scratch.ipynb) or with
# [Concepts](../concepts.md).

# %%
import os

import matplotlib.pyplot as plt
import numpy as np
from scipy.stats import spearmanr

import datamodels as dm
from datamodels.applications import nearest_neighbours
from datamodels.errors import RequestError
from datamodels.evaluation import counterfactual, curve

QUICK = "DATAMODELS_QUICK" in os.environ
plt.rcParams.update({"figure.dpi": 80, "font.size": 11, "axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#999999"  # told apart by colour-blind readers, too

# %% [markdown]
# ## A world in which the truth is known
#
# 160 training examples are points in the plane, half of them of class "a" and half of class "b". The model is the
# simplest one that deserves the name: **a vote of the neighbours**. To predict a new point, each training example
# within reach votes for its own class, more strongly the nearer it is. The output we record is the **margin**: votes
# for the right class minus votes for the wrong one. Training has randomness of its own, here a normal number that is
# added, as random first weights would do in a network.
#
# So the true influence of example *j* on target *t* is its vote: positive when the labels agree, negative when not,
# and *exactly zero* out of reach.

# %%
rng = np.random.default_rng(0)
n_train, n_targets, reach, noise = 160, 30, 0.7, 1.0

label = np.arange(n_train) % 2
points = rng.normal(size=(n_train, 2)) + np.where(label[:, None] == 1, 0.6, -0.6)
targets = rng.uniform(-1.6, 1.6, size=(n_targets, 2))
target_label = (targets.sum(axis=1) > 0).astype(int)

distance = np.linalg.norm(points[:, None] - targets, axis=2)
size = np.clip(1 - (distance / reach) ** 2, 0, None)
votes = np.where(label[:, None] == target_label, size, -size)  # the truth, (n_train, n_targets)
print(
    f"{n_train} examples, {n_targets} targets; {(votes != 0).mean():.0%} of the {votes.size:,} influences are not zero"
)

# %% [markdown]
# One target of the world: who votes for it, who against.

# %%
shown = int(np.argmax((votes < 0).sum(axis=0) * (votes > 0).sum(axis=0)))
fig, ax = plt.subplots(figsize=(5.4, 4.6), layout="constrained")
ax.scatter(*points.T, s=18, c=GREY, marker="o", linewidths=0, label="no influence")
for sign, colour, marker, name in ((1, BLUE, "^", "helps"), (-1, ORANGE, "v", "harms")):
    voters = sign * votes[:, shown] > 0
    ax.scatter(*points[voters].T, s=30 + 130 * size[voters, shown], c=colour, marker=marker, linewidths=0, label=name)
ax.scatter(*targets[shown], s=150, c="black", marker="*", label="the target")
ax.add_patch(plt.Circle(targets[shown], reach, fill=False, linestyle=":", color="black"))
ax.set(xlabel="feature 1", ylabel="feature 2", title="True influences on one target", aspect="equal")
ax.set(xlim=targets[shown, 0] + np.array([-1.6, 1.6]), ylim=targets[shown, 1] + np.array([-1.6, 1.6]))
ax.legend(frameon=False, loc="upper left", bbox_to_anchor=(1, 1))
plt.show()

# %% [markdown]
# Now forget the truth and do what one does with any model: train it many times on random subsets, record the outputs.
# `Design(kind="bernoulli")` flips a fair coin for every example in every subset, which is what the strictest of the
# tools below wants. The second store has *other* subsets, each of them trained twice (`replicates=2`); it is there to
# judge with.
#
# A task can be any function, also one defined in a notebook. `executor="inline"` trains in this process, which for
# models that take microseconds is faster than worker processes (the default, and right for anything that takes
# longer).


# %%
def vote(mask, rng):
    """One training: `mask` says who is in the training set."""
    return {"margins": mask @ votes + noise * rng.normal(size=n_targets)}


def run(folder, **design):
    schema = {"margins": {"shape": (n_targets,), "dtype": "float32"}}
    design = dm.Design(n_train=n_train, alpha=0.5, kind="bernoulli", **design)
    store = dm.Store.open_or_create(folder, schema=schema, design=design)
    assert dm.train(store, vote, executor="inline", progress=False).ok
    return store


n_models = 600 if QUICK else 1200
store = run("runs/votes", n_models=n_models, seed=0)
judge = run("runs/votes-judge", n_models=400, seed=1, replicates=2)
attribution = dm.fit(store, dm.Lasso(), progress=False)
print(attribution, "from", n_models, "models")

# %% [markdown]
# ## Does it predict models that it has not seen?
#
# The **LDS** (linear datamodelling score) takes models that the fit has not used, predicts their outputs from their
# subsets alone, and asks for each target how well predicted and true outputs agree in rank. 1 is perfect order, 0 is
# none.
#
# Two numbers belong to it. The **interval** comes from a bootstrap over models and targets: it says what another set
# of judges would have given. The **ceiling** says what is possible at all. Training is noisy, so even the true
# influences do not predict a single run perfectly; the two runs of each subset show how noisy. Here we can check it,
# because we have the truth: as an attribution of its own, it should score just about the ceiling.

# %%
score = dm.lds(attribution, judge)
truth = dm.Attribution.from_scores(votes, orientation="train_by_target", method="truth", provenance={"sources": []})
of_truth = dm.lds(truth, judge)
print(f"LDS {score.lds:.3f}, interval {score.lds_ci[0]:.3f} to {score.lds_ci[1]:.3f}, ceiling {score.lds_ceiling:.3f}")
print(f"the truth itself scores {of_truth.lds:.3f}")
assert abs(of_truth.lds - score.lds_ceiling) < 0.06
assert 0.5 < score.lds < score.lds_ceiling + 0.05

# %% [markdown]
# The truth scores what the ceiling promised, far below 1. So never compare an LDS with 1; compare it with its
# ceiling. How many models does it take to get there? `curve` fits on growing numbers of models and judges each on the
# same unseen ones.

# %%
sizes = [75, 150, 300, 600] if QUICK else [75, 150, 300, 600, 1200]
growth = curve(store, dm.Lasso(), test=judge, sizes=sizes, progress=False)
low, high = np.array([one.lds_ci for one in growth.scores]).T
fig, ax = plt.subplots(figsize=(6, 3.6), layout="constrained")
ax.fill_between(growth.sizes, low, high, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
ax.plot(growth.sizes, growth.lds, "o-", color=BLUE, label="lasso")
ax.axhline(score.lds_ceiling, color="black", linestyle="--", label="noise ceiling, from replicates")
ax.axhline(of_truth.lds, color=GREEN, linestyle=":", label="the true influences")
ax.set(xscale="log", xlabel="models that were fitted", ylabel="LDS on unseen models", ylim=(0, 0.85))
ax.set_xticks(sizes, sizes)
ax.minorticks_off()
ax.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# Near the ceiling, more models buy little *prediction*. They still buy certainty about single weights, as we will
# see: a good LDS does not mean that each weight is right, it means that their errors mostly cancel in sums.
#
# ### Why used rows are refused
#
# Ask for a score on models that were fitted, and there is none:

# %%
try:
    dm.lds(attribution, store, rows=(0, 100))
except RequestError as error:
    print(error)

# %% [markdown]
# That is no pedantry. Let us shuffle the outputs among the models, so that there is *nothing* to find, and fit plain
# least squares to them.

# %%
masks, outputs = np.asarray(store.masks(0, n_models)), np.asarray(store.array("margins"))
nonsense = outputs[np.random.default_rng(1).permutation(n_models)]
used = n_models * 2 // 3
fitted = dm.fit(masks=masks, outputs=nonsense, estimator=dm.LeastSquares(), rows=(0, used), progress=False)

guess = fitted.predict(masks[:used])
flattering = np.mean([spearmanr(guess[:, t], nonsense[:used, t]).statistic for t in range(n_targets)])
honest = dm.lds(fitted, masks=masks, outputs=nonsense)  # takes the rows that the fit has not used, by itself
print(f"on the rows that were fitted: {flattering:.2f}")
print(f"on unseen rows: {honest.lds:.2f} ({honest.lds_ci[0]:.2f} to {honest.lds_ci[1]:.2f})")
assert flattering > 0.25 and abs(honest.lds) < 0.1

# %% [markdown]
# Where nothing is to be found, the score on used rows looks like a respectable result. An attribution therefore
# carries the numbers of the rows that it has used (also into its file), and `lds` leaves them out or refuses. The
# second run of a subset that was used counts as used, too.
#
# ## How large is an influence, and how sure is that?
#
# The lasso predicts well *because* it shrinks weights towards zero, which makes it a poor judge of a single one.
# `dm.intervals` takes the shrinkage back (the **debiased lasso**): to each weight it adds what the example still
# explains of the residuals. That works because we drew the subsets ourselves, so how examples go together is known.
# What comes back is an estimate of E[output | j in] − E[output | j out], with a standard error.

# %%
sure = dm.intervals(attribution, store, confidence=0.95, progress=False)
order = np.argsort(votes[:, shown])
fig, axes = plt.subplots(1, 2, figsize=(9, 3.8), layout="constrained", sharey=True)
real = votes[order, shown] != 0
for ax, values, title in (
    (axes[0], attribution.weights, "Weights of the lasso"),
    (axes[1], sure.estimate, "Debiased, with 95 % intervals"),
):
    ax.plot(votes[order, shown], color="black", linewidth=1.5, label="truth", zorder=3)
    for which, colour, name in ((~real, GREY, "no influence"), (real, BLUE, "influence")):
        at = np.flatnonzero(which)
        ax.plot(at, values[order[at], shown], ".", color=colour, label=name, markersize=5)
        if values is sure.estimate:
            ax.vlines(
                at, sure.low[order[at], shown], sure.high[order[at], shown], color=colour, linewidth=0.7, alpha=0.6
            )
    ax.set(title=title, xlabel="training examples, by their true influence")
axes[0].set_ylabel("influence on the margin")
axes[0].legend(frameon=False)
plt.show()

# %% [markdown]
# Left, weights of real influences are pulled to zero and many false ones are left over. Right, estimates scatter
# evenly around the truth. Do the intervals keep their promise? Count how many hold the true value: 95 % should,
# whether the influence is zero or not.

# %%
holds = (sure.low <= votes) & (votes <= sure.high)
for name, which in (("all", votes < np.inf), ("zero influence", votes == 0), ("real influence", votes != 0)):
    print(f"{name:>15}: {holds[which].mean():.1%} of {which.sum():,} intervals hold the truth")
assert 0.92 < holds.mean() < 0.98

# %% [markdown]
# They do. The intervals of one target come from the same models, so they are not independent of each other, but on
# average they are right.
#
# What they do **not** do is make a list. It is tempting to call every example with p < .05 an influence:

# %%
significant = sure.p_value < 0.05
wrong = (significant & (votes == 0)).sum(axis=0) / np.maximum(significant.sum(axis=0), 1)
print(f"examples with p < .05, per target: {significant.sum(axis=0).mean():.1f}")
print(f"of these without any influence: {wrong.mean():.0%}")

# %% [markdown]
# Nothing is broken: 5 % of the many examples without influence get p < .05 by chance, and that is a large part of a
# short list. A list needs a tool that controls the share of errors *in the list*.
#
# ## Which influences are real?
#
# That share is called the **false-discovery rate** (FDR). **Knockoffs** control it by an idea that fits datamodels
# perfectly. We drew the masks by coin flips. So flip the coins again: every example gets a decoy, a second column
# that *no model has ever seen*. Fit examples and decoys together. An example without influence is no better than its
# decoy, so whichever of the two gets the larger weight is a coin flip as well. The decoys that win show how many
# examples win by luck.

# %%
chosen = dm.select(store, fdr=0.2, progress=False)
null, real = chosen.statistic[votes == 0], chosen.statistic[votes != 0]
fig, ax = plt.subplots(figsize=(6.4, 3.4), layout="constrained")
bins = np.linspace(-0.2, 0.6, 65)
ax.hist(np.clip(null, -0.2, 0.6), bins, color=GREY, label="no influence")
ax.hist(np.clip(real, -0.2, 0.6), bins, color=BLUE, alpha=0.8, label="real influence")
ax.axvline(np.median(chosen.threshold), color="black", linestyle="--", label="threshold, median over targets")
ax.set(yscale="log", xlabel="|weight of the example| − |weight of its decoy|", ylabel="pairs of example and target")
ax.legend(frameon=False)
plt.show()
print(f"exact promise: {chosen.exact}; {chosen.counts().mean():.1f} examples selected per target")

# %% [markdown]
# Grey is symmetric about zero: that symmetry is all that the promise needs, no linearity and no normal noise. On the
# right, real influences stand out.
#
# A rate is a promise about the *average over campaigns*. So let us run the whole thing again and again, ask for
# several rates, and compare with what we got.

# %%
rates = [0.05, 0.1, 0.2, 0.3, 0.4]
campaigns = 3 if QUICK else 12
realised, found = np.empty((2, campaigns, len(rates)))
for c in range(campaigns):
    design = dm.Design(n_train=n_train, alpha=0.5, n_models=n_models, kind="bernoulli", seed=100 + c)
    subsets = design.masks()
    margins = subsets @ votes + noise * np.random.default_rng(c).normal(size=(n_models, n_targets))
    for r, rate in enumerate(rates):
        selected = dm.select(masks=subsets, outputs=margins, design=design, fdr=rate, progress=False).selected
        realised[c, r] = ((selected & (votes == 0)).sum(axis=0) / np.maximum(selected.sum(axis=0), 1)).mean()
        found[c, r] = (selected & (votes != 0)).sum() / (votes != 0).sum()
error = 2 * realised.std(axis=0, ddof=1) / np.sqrt(campaigns)
for rate, got, more, share in zip(rates, realised.mean(axis=0), error, found.mean(axis=0), strict=True):
    print(f"asked for {rate:.2f}: realised {got:.3f} ± {more:.3f}, found {share:.0%} of the real influences")
assert (realised.mean(axis=0) < np.array(rates) + 0.05).all()

# %%
fig, axes = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
axes[0].plot([0, 0.45], [0, 0.45], color="black", linestyle="--", label="what was asked for")
axes[0].errorbar(
    rates, realised.mean(axis=0), error, fmt="o-", color=BLUE, capsize=3, label="knockoffs, ± 2 standard errors"
)
axes[0].axhline(wrong.mean(), color=ORANGE, linestyle=":", label="list of p < .05")
axes[0].set(xlabel="false-discovery rate, asked for", ylabel="share of the list that is wrong", ylim=(0, 0.55))
axes[0].legend(frameon=False, loc="upper left", fontsize=9)
axes[1].plot(rates, found.mean(axis=0), "o-", color=GREEN)
axes[1].set(xlabel="false-discovery rate, asked for", ylabel="share of real influences found", ylim=(0, 1.02))
plt.show()

# %% [markdown]
# Up to chance, realised rates stay at or below the diagonal. Two things to know when you use it:
#
# * At small rates little is found. The method selects either nothing or at least 1 / rate examples, so a rate of .05
#   needs twenty real influences on the *same* target. Ask for .1 or .2; power also grows with models.
# * `exact=True` needs `kind="bernoulli"`. Subsets of one fixed size are approximate, and wrong where many influences
#   push the same way: see the table in [Which influences are real?](../which-are-real.md)
#
# ## Which come back?
#
# **Stability selection** asks nothing of the design. Split the models at random into halves, fit each, note the
# strongest examples, repeat: who is on the list nearly every time? Its bound on the number of errors is a worst case,
# so it is the most cautious of the three.

# %%
back = dm.stability(store, halves=10 if QUICK else 30, progress=False)
print(f"a half names {back.q} examples per target; expected errors per target at most {back.bound:.1f}\n")
print(f"{'list':>28}  {'right':>6} {'wrong':>6}   per target")
lists = {
    "lasso, weight not 0": attribution.weights != 0,
    "p < .05": significant,
    "knockoffs, rate .2": chosen.selected,
    "stability": back.selected,
}
for name, chosen_by in lists.items():
    right, errors = ((chosen_by & which).sum(axis=0).mean() for which in (votes != 0, votes == 0))
    print(f"{name:>28}  {right:6.1f} {errors:6.1f}")
print(f"{'there are':>28}  {(votes != 0).sum(axis=0).mean():6.1f} {0:6.1f}")
assert (back.selected & (votes == 0)).sum(axis=0).mean() <= back.bound

# %% [markdown]
# From top to bottom fewer wrong ones, and fewer right ones too. There is no best row; there is what an error costs
# you.
#
# ## Real networks
#
# Now perceptrons (networks with one hidden layer) on handwritten digits. Each learns whether an image shows one of 0
# to 4 or one of 5 to 9, from a random half of 300 images; 100 others are the targets. Nobody knows the true
# influences.

# %%
task = dm.TrainRecipe(dm.Recipe(hidden=(32,), epochs=15, weight_decay=5e-3), "digits[300,100]")
n, models = task.n_train, 1000 if QUICK else 2500
stores = {}
for name, count, seed, replicates in (("fit", models, 0, 1), ("judge", 200 if QUICK else 600, 1, 2)):
    design = dm.Design(n_train=n, alpha=0.5, n_models=count, kind="bernoulli", seed=seed, replicates=replicates)
    stores[name] = dm.Store.open_or_create(f"runs/digits-{name}", schema=task.schema, design=design)
    assert dm.train(stores[name], task, executor="inline" if QUICK else "local", progress=False).ok
digits = dm.fit(stores["fit"], dm.Lasso(), progress=False)
judged = dm.lds(digits, stores["judge"])
print(f"LDS {judged.lds:.3f} ({judged.lds_ci[0]:.3f} to {judged.lds_ci[1]:.3f}), ceiling {judged.lds_ceiling:.3f}")
assert 0.3 < judged.lds < judged.lds_ceiling + 0.05

# %% [markdown]
# The fit predicts unseen networks, not far below what noise allows. But is *this* weight real?
#
# Here is the trick. **Ghosts**: 100 more names on the list of training examples, which no network has ever opened.
# Since nobody looked, we may flip their coins *now*, after training, and pretend they had been there all along. Their
# true influence on everything is exactly zero, so whatever a method says about them is wrong.

# %%
n_ghosts, some = 100, np.arange(0, 100, 4)
living = np.asarray(stores["fit"].masks(0, models))
ghosts = dm.Design(n_train=n_ghosts, alpha=0.5, n_models=models, kind="bernoulli", seed=99).masks()
both = np.hstack([living, ghosts])
margins = np.asarray(stores["fit"].array("margins"))[:, some]
ghost = np.arange(n + n_ghosts) >= n
law = dm.Design(n_train=n + n_ghosts, alpha=0.5, n_models=models, kind="bernoulli")

haunted = dm.fit(masks=both, outputs=margins, progress=False)
picked = dm.select(masks=both, outputs=margins, design=law, fdr=0.1, progress=False).selected
around = dm.intervals(haunted, masks=both, outputs=margins, progress=False)
holds_0 = (around.low <= 0) & (around.high >= 0)

print("                         ghosts   others")
for name, share in (("weight in the lasso", haunted.weights != 0), ("interval holds 0", holds_0), ("selected", picked)):
    print(f"{name:>22}   {share[ghost].mean():6.1%}   {share[~ghost].mean():6.1%}")
print(f"ghosts among the selected: {picked[ghost].sum() / picked.sum():.1%}")
assert 0.9 < holds_0[ghost].mean() < 0.99
assert picked[ghost].sum() <= 0.15 * picked.sum()

# %% [markdown]
# The lasso gives a weight to many ghosts: *not zero* means nothing. The intervals hold zero for nearly all of them,
# as promised, and hardly a ghost gets past the knockoffs.
#
# Note how *many* real examples are selected. A network's output depends a little on nearly everything it has seen;
# "real" means "can be told from zero with this many models", not "important". For that, look at sizes. One
# prediction, with the five most helpful and the five most harmful of its selected examples:

# %%
data, target = task.data, int(np.argmin(digits.weights.min(axis=0)))
chosen = dm.select(stores["fit"], fdr=0.2, targets=[target], progress=False).of(0)
interval = dm.intervals(digits[[target]], stores["fit"], progress=False)
size = interval.estimate[chosen, 0]
fig, axes = plt.subplots(2, 6, figsize=(9, 3.9), layout="constrained")
for row, (word, members) in enumerate(
    (("helps", chosen[np.argsort(-size)][:5]), ("harms", chosen[np.argsort(size)][:5]))
):
    for column, j in enumerate([None, *members]):
        ax = axes[row, column]
        ax.axis("off")
        if j is None and row == 0:
            ax.imshow(data.test.images[target], cmap="gray_r")
            ax.set_title(f"target: a {data.hidden_names[data.test.hidden[target]]}", fontsize=10)
        elif j is not None:
            middle, half = interval.estimate[j, 0], (interval.high[j, 0] - interval.low[j, 0]) / 2
            ax.imshow(data.train.images[j], cmap="gray_r")
            ax.set_title(
                f"{word}: a {data.hidden_names[data.train.hidden[j]]}\n{middle:+.2f} ± {half:.2f}", fontsize=10
            )
plt.show()

# %% [markdown]
# Numbers are changes of the margin when the image joins the training set, with 95 % intervals. Those intervals were
# not adjusted for having picked the extremes: the largest of many estimates tends to be too large.
#
# ## Take them away and look
#
# All of the above is about random halves of the data. What one wants to know is often another question: *if these ten
# images had not been there, what would the network have said?* The direct answer is to retrain without them.
# `counterfactual` does so for the ten most helpful examples of several targets, several times each, and compares with
# what the datamodel predicted, and with removing ten random examples.
#
# Beside the datamodel stands a cheap rival, **nearest neighbours**: similar images with the same label help.
# Similarities have no units, so `dm.calibrate` finds the scale at which they predict margins best, on the judges. For
# the datamodel it does the same, and notes how exact predicted changes are.

# %%
near = nearest_neighbours(data.train.x, data.test.x, data.train.y, data.test.y, metric="euclidean")
methods = {
    "datamodel": dm.calibrate(digits, stores["judge"]),
    "neighbours": dm.calibrate(near, stores["judge"]),
}
retrained = counterfactual(
    task, methods, targets=some, k=10, replicates=4 if QUICK else 10,
    folder="runs/retrained", executor="inline" if QUICK else "local", progress=False,
)  # fmt: skip
print("              mean change   predicted and actual over targets")
for name in methods:
    mean, same = np.mean([change.actual.value for change in retrained.of(name)]), retrained.agreement(name)
    order = f"rank correlation {same.spearman:.2f} ({same.low:.2f} to {same.high:.2f})"
    print(f"{name:>12}  {mean:+11.2f}   {order}, slope {same.slope:.2f}")
print(f"{'random':>12}  {np.mean([change.random.value for change in retrained.of('datamodel')]):+11.2f}")

# %%
fig, ax = plt.subplots(figsize=(5.6, 4.6), layout="constrained")
ends = []
for name, colour, marker in (("datamodel", BLUE, "o"), ("neighbours", ORANGE, "s")):
    changes = retrained.of(name)
    x, y = np.array([change.predicted for change in changes]), np.array([change.actual.value for change in changes])
    bars = [y - [change.actual.low for change in changes], [change.actual.high for change in changes] - y]
    ax.errorbar(x, y, bars, fmt=marker, color=colour, markersize=5, elinewidth=0.8, label=name)
    ends += [x.min(), y.min()]
ax.plot([min(ends), 0], [min(ends), 0], color="black", linestyle="--", label="as predicted")
ax.axhline(0, color=GREY, linewidth=0.8)
ax.set(xlabel="predicted change of the margin", ylabel="actual change, 95 % intervals over runs")
ax.set_title("Without the ten most helpful images")
ax.legend(frameon=False)
plt.show()

# %%
changes = retrained.of("datamodel")
inside = np.mean([change.predicted_low <= change.actual.value <= change.predicted_high for change in changes])
print(f"intervals of predictions that hold the actual change: {inside:.0%} of {len(changes)} (asked for: 95 %)")
assert retrained.agreement("datamodel").spearman > 0.3
assert np.mean([change.beyond_random.value for change in changes]) < 0

# %% [markdown]
# What a datamodel calls helpful *is* what the prediction rests on: the margin falls when it goes, and nothing much
# happens when random images go. (Neighbours matter as well, but their predictions are all about the same, whatever
# happens.) The size is right to first order, too, although these networks saw all of the data and the datamodel was
# fitted on halves. But networks are not sums: remove many of a digit's images and what is left matters more. That is
# why the intervals of predicted changes, which take effects as additive, hold less often than they say; and why a
# claim about a removal should be checked by removal.
#
# ## Which to use when
#
# | you want to say | use | beware |
# |---|---|---|
# | "my datamodels predict" | `dm.lds` | give it replicates, for the ceiling; it says nothing about one weight |
# | "A is better than B" | `compare_lds` | the interval of the *difference*, on the same unseen models |
# | "this image counts this much" | `dm.intervals` | one weight at a time; not the extremes of many |
# | "these are the influences" | `dm.select` | discernible is not important; do not try seeds until you like one |
# | "these, whatever the design" | `dm.stability` | finds less, takes longer |
# | "without them, it would be different" | `counterfactual` | some hundred models; this training set, this recipe |
# | "the decision would flip" | `brittleness` | more models |
#
# The last two train more models; they and `compare_lds` are in `datamodels.evaluation`.
#
# ## What to take away
#
# * A score on used models is worthless; a score without its ceiling is half a score.
# * A weight that is not zero means nothing. An interval speaks about one influence, knockoffs about a list.
# * Intervals and knockoffs kept their promises where the truth was known, and with ghosts where it was not. You can
#   add ghosts to any store of yours.
# * "Real" is not "large". With enough models, nearly every example is real.
# * Intervals of predicted removals did not: networks are not sums. Retraining is the judge that assumes nothing.
#
# ## Try
#
# 1. Make the votes noisier (`noise = 3.0`; a store remembers its models, so give it another folder). Which of the
#    five tools tells you first that models are too few?
# 2. Draw the subsets with `kind="fixed_size"` and let all votes be positive (`votes = np.abs(votes)`, `reach = 2.0`).
#    What does `exact` say now, and what happens to the realised rate?
# 3. Use `brittleness` (`datamodels.evaluation`) to find, for a few digits, the smallest set of images whose removal
#    flips the prediction. How does its size go with the margin?
#
# You have reached the end of the tutorials. [Which influences are real?](../which-are-real.md) has the definitions
# and the limits, [Are these subgroups real?](../validation.md) the same for clusters, and `python
# examples/compare_methods.py` ([examples](../../examples/README.md)) compares ten ways of attribution.
