# %% [markdown]
# # TRAK, wrong labels and the hybrid
#
# Datamodels rest on thousands of trainings. Where one training takes hours, thousands are out of reach. **TRAK** (Park et al. 2023,
# [arXiv:2303.14186](https://arxiv.org/abs/2303.14186)) estimates the same numbers from the *gradients* of a few trained networks.
#
# We compute it by hand for one network, and with the library for ten; see how good it is, by the only judge that there is, models that were
# really retrained; put its scores into units; find wrong labels; and combine both worlds in a **hybrid**.
#
# You need to know what a gradient is. [The first tutorial](01-from-scratch.ipynb) explains datamodels and the LDS. Full size takes one to two
# minutes on two quiet cores; nothing is downloaded.

# %%
import os
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch

import datamodels as dm
from datamodels.datasets import load
from datamodels.evaluation import (
    compare_lds,
    counterfactual,
    evaluate_mislabels,
    mislabel_scores,
    plant_label_noise,
    removal_curve,
)
from datamodels.training.modules import module_of
from datamodels.trak import trak_of_recipe

QUICK = "DATAMODELS_QUICK" in os.environ
SIZE, TARGETS, NETWORKS = (400, 40, 4) if QUICK else (1300, 80, 10)
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "font.size": 11, "image.cmap": "gray_r"})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.6"

# %% [markdown]
# The task: is a handwritten digit 5 to 9, or 0 to 4? A **recipe** says how one network is trained, here a small perceptron.

# %%
data = load(f"digits[{SIZE},{TARGETS}]")
recipe = dm.Recipe(architecture="mlp", hidden=(32,), epochs=15, weight_decay=5e-3)
task = dm.TrainRecipe(recipe, data)
print(f"{len(data.train)} training digits, {len(data.test)} test digits, classes {data.class_names}")

# %% [markdown]
# ## 1. The idea, in five lines of mathematics
#
# Let f(z; θ) be the output of a network with parameters θ for example z: the **margin**, the logit of the right class minus that of the other one.
#
# 1. Near the trained θ, the network is nearly linear in its parameters: f(z; θ + d) ≈ f(z; θ) + φ(z)·d, where φ(z) is the gradient of f by θ.
# 2. A linear function in front of the logistic loss is logistic regression. Its "features" are the gradients φ.
# 3. What logistic regression would answer *without training example j* needs no retraining. One Newton step says (nearly) how much f(z) falls:
#
# ```text
# score(j, z)  =  φ(z)ᵀ (ΦᵀΦ + λ · I)⁻¹ φ(j)  ×  (1 − p(j))
# ```
#
# Φ has one row of gradients per training example; p(j) is the probability that the network gives to the label of j. Read it as two questions: do z
# and j pull at the same parameters, once common directions are discounted? And does the network still have to be pushed to get j right?
# (The exact step weighs the rows of Φ by p(1 − p); the paper leaves these weights out, and so does the library. λ, the **ridge**, keeps the
# inverse from blowing up; more on it below.)
#
# 4. A network has luck in it, so TRAK averages over a few networks, each trained on its own random half of the training set.
# 5. Gradients are long, one number per parameter. They are **projected** on a few hundred random directions, which keeps products nearly as they
#    are (Johnson and Lindenstrauss) and makes ΦᵀΦ small.

# %% [markdown]
# ## 2. By hand
#
# The library trains the networks and keeps their states; we take the first, and its gradients one by one. It is small enough to need no
# projection.

# %%
first = trak_of_recipe(task, "runs/trak", checkpoints=1, projection="none", progress=False)
network = module_of(recipe, data.train.x.shape[1:], data.n_classes)
network.load_state_dict(torch.load(first.checkpoints.files[0], weights_only=True)["state_dict"])


def gradients(split):
    """Gradient of each example's margin by all parameters, (examples, parameters)."""
    rows = []
    for x, y in zip(torch.from_numpy(split.x), split.y, strict=True):
        logits = network(x[None])[0]
        parts = torch.autograd.grad(logits[y] - logits[1 - y], list(network.parameters()))
        rows.append(torch.cat([part.flatten() for part in parts]))
    return torch.stack(rows).double().numpy()


train_features, test_features = gradients(data.train), gradients(data.test)
print("gradients of the training digits:", train_features.shape)

# %% [markdown]
# Then the formula, in four lines, with the mean squared length of a gradient as λ. The library must say the same.

# %%
ridge = (train_features**2).sum(axis=1).mean()
kernel = train_features.T @ train_features + ridge * np.eye(train_features.shape[1])
probabilities = network(torch.from_numpy(data.train.x)).softmax(dim=1).detach().numpy()
unsure = 1 - probabilities[np.arange(len(data.train)), data.train.y]
by_hand = train_features @ np.linalg.solve(kernel, test_features.T) * unsure[:, None]

difference = np.abs(by_hand - first.attribution.weights).max()
print(
    f"{by_hand.shape} scores; largest difference to the library's: {difference:.1e} (largest score {by_hand.max():.3f})"
)
np.testing.assert_allclose(first.attribution.weights, by_hand, atol=1e-3 * by_hand.max())

# %% [markdown]
# What do these scores say? Below, for three test digits, the five training digits of the highest scores (they help), and of the lowest (they harm).


# %%
def picture(scores, targets):
    figure, grid = plt.subplots(len(targets), 11, figsize=(9, 1.15 * len(targets)))
    for row, target in zip(grid, targets, strict=True):
        ranked = scores[:, target].argsort()
        row[0].imshow(data.test.images[target])
        row[0].set_title(f"test: {data.test.hidden[target]}", fontsize=10)
        for axes, j in zip(row[1:], [*ranked[::-1][:5], *ranked[:5]], strict=True):
            axes.imshow(data.train.images[j])
            axes.set_title(f"{scores[j, target]:+.3f}", fontsize=10, color=BLUE if scores[j, target] > 0 else ORANGE)
    for axes in grid.flat:
        axes.set_axis_off()
    figure.suptitle("test digit, five that help (blue) and five that harm (orange), with their scores", fontsize=11)
    plt.show()


picture(by_hand, [0, 1, 2])

# %% [markdown]
# Nobody told the network which digit is which: it knows two classes of five digits each. How often are the five best helpers of a test digit the same
# digit? Anything above one in five (the same class, drawn by lot) was found out.

# %%
helpers = by_hand.argsort(axis=0)[::-1][:5]
print(f"{(data.train.hidden[helpers] == data.test.hidden).mean():.0%} of the helpers are the same digit")

# %% [markdown]
# Well above chance, and far from always. But pretty pictures are weak evidence anyway: nearest neighbours in pixels look pretty, too.

# %% [markdown]
# ## 3. The judge: networks that were really retrained
#
# We train networks on random halves of the training set, each half twice, and ask: do scores predict which halves give a test digit a high
# margin? The prediction for a half is the sum of the scores of its members. The **LDS** is the rank correlation of predictions and true
# margins over halves, averaged over test digits. What nobody can pass, since training has luck in it, is the **ceiling**, estimated from
# the two runs of each half.
#
# Some of these networks will tune and calibrate (`TUNE`), and all numbers that we report come from the others (`REPORT`).

# %%
JUDGES, CUT = (160, 60) if QUICK else (400, 100)
TUNE, REPORT = slice(0, CUT), slice(CUT, JUDGES)
design = dm.Design(n_train=SIZE, alpha=0.5, n_models=JUDGES, replicates=2, seed=1)
judge = dm.Store.open_or_create("runs/judge", schema=task.schema, design=design)
dm.train(judge, task, progress=False)

found = dm.lds(first.attribution, judge, rows=REPORT)
low, high = found.lds_ci
print(f"one network, no retraining: LDS {found.lds:.3f} ({low:.3f} to {high:.3f}), ceiling {found.lds_ceiling:.3f}")

# %% [markdown]
# Gradients of *one* network, and its scores rank hundreds of retrained ones well above chance, which is 0.
#
# ### The ridge matters
#
# Why the mean squared length of a gradient? The inverse of ΦᵀΦ blows up directions in which training examples hardly differ, and noise with
# them; the ridge tames them. With too much of it, common directions are not discounted any more, and plain products of gradients are left. A
# direction is believed, then, when it is about as strong as one typical training example. The option `ridge` is in this unit, which no
# projection changes. We take more networks and a projection to 512 directions, and try others, by LDS on the networks set aside for tuning.

# %%
OPTIONS = {"checkpoints": NETWORKS, "projection": "sjlt", "dim": 512, "progress": False}


def scores(**options):
    return trak_of_recipe(task, "runs/trak", **{**OPTIONS, **options}).attribution


ridges = [0.001, 0.01, 0.1, 0.3, 1, 3, 10, 100]
tried = [dm.lds(scores(ridge=ridge), judge, rows=TUNE) for ridge in ridges]

# %%
plt.figure(figsize=(6.5, 3.2))
middle = np.array([one.lds for one in tried])
ends = np.array([one.lds_ci for one in tried]).T
plt.fill_between(ridges, *ends, color=BLUE, alpha=0.2, linewidth=0, label="95 % interval")
plt.plot(ridges, middle, "o-", color=BLUE, label="LDS on the tuning networks")
plt.axvline(1, color=ORANGE, linewidth=1, label="the default")
plt.gca().set(xscale="log", ylim=(0, 0.8), xlabel="ridge, in mean squared gradients", ylabel="LDS")
plt.legend(frameon=False, loc="lower right")
plt.show()
print(f"best of those tried: {ridges[int(np.argmax(middle))]:g}")
assert middle[ridges.index(1)] > middle.max() - 0.05 and middle[0] < middle.max() - 0.1

# %% [markdown]
# The curve is the lesson: the same gradients can be mediocre or good, and 1, the default, is about right. It is so on most datasets that we
# tried ([measured](../../benchmarks/RESULTS.md#gradients)), not on all. A few dozen retrained networks tell you whether it is on yours, and,
# in the next section, much more. Report on others, as we do.

# %%
trak = scores()
found = dm.lds(trak, judge, rows=REPORT)
low, high = found.lds_ci
print(f"{NETWORKS} networks: LDS {found.lds:.3f} ({low:.3f} to {high:.3f}), ceiling {found.lds_ceiling:.3f}")
assert found.lds_ci[0] > 0.15

# %% [markdown]
# ### How many networks?
#
# Networks and gradients are kept in the folder, so asking for more adds what is missing.

# %%
counts = [1, 2, 4] if QUICK else [1, 2, 5, 10, 20]
steps = [dm.lds(scores(checkpoints=count), judge, rows=REPORT) for count in counts]
middle = np.array([one.lds for one in steps])
error = np.abs(np.array([one.lds_ci for one in steps]).T - middle)
plt.figure(figsize=(6.5, 3))
plt.errorbar(counts, middle, error, fmt="o-", color=BLUE, capsize=3, label="TRAK")
plt.axhline(found.lds_ceiling, color="black", linewidth=1, label="noise ceiling")
plt.gca().set(xscale="log", ylim=(0, 0.8), xlabel="networks", ylabel="LDS on new networks")
plt.xticks(counts, counts)
plt.minorticks_off()
plt.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# A few networks go a long way, and the curve flattens below the ceiling: what is missing then is not luck that could be averaged away but the
# step from a network to its linear approximation.

# %% [markdown]
# ## 4. Into units of the output
#
# A score has no scale: its ranks mean something, its size does not. `calibrate` compares scores with the few retrained networks of `TUNE` and
# finds, per test digit, the factor between them, and how much the scores miss. After that a removal has a predicted size with an interval.

# %%
calibrated = dm.calibrate(trak, judge, rows=TUNE)
for name, one in (("scores", trak), ("calibrated", calibrated)):
    print(f"{name}: R² on the networks of REPORT {dm.lds(one, judge, rows=REPORT).r2:.2f}")

# %% [markdown]
# **R²** is the share of the variation that predictions explain; below 0 they are worse than always saying the mean. Now the test by deed: for each
# test digit, remove the 20 training digits of the highest scores from the whole training set, train again (ten times), and compare.

# %%
K, RUNS = (10, 5) if QUICK else (20, 10)
removed = counterfactual(
    task, calibrated, targets=range(TARGETS // 2), k=K, replicates=RUNS, folder="runs/removed", progress=False
)
changes = removed.of("attribution")
predicted, actual = (
    np.array(values) for values in zip(*[(one.predicted, one.actual.value) for one in changes], strict=True)
)
ends = np.array([[one.predicted_low, one.predicted_high] for one in changes])

# %%
plt.figure(figsize=(5, 3.8))
lowest = min(predicted.min(), actual.min()) * 1.05
plt.plot([lowest, 0], [lowest, 0], color=GREY, linewidth=1)
plt.errorbar(
    predicted, actual, xerr=np.abs(ends.T - predicted), fmt="o", color=BLUE, markersize=4, linewidth=1, alpha=0.8
)
plt.xlabel("predicted change of the margin, 95 % interval")
plt.ylabel(f"change in {RUNS} retrained networks")
plt.show()
inside = np.mean((ends[:, 0] < actual) & (actual < ends[:, 1]))
slope = predicted @ actual / (predicted @ predicted)
print(
    f"correlation {np.corrcoef(predicted, actual)[0, 1]:.2f}, actual / predicted {slope:.2f}, {inside:.0%} within the interval"
)
assert np.corrcoef(predicted, actual)[0, 1] > 0.3 and inside > 0.6

# %% [markdown]
# Margins fall where they should, by roughly what was predicted. Expect no ratio of exactly 1, and fewer than 95 % within: effects are counted as
# adding up, which networks do not promise; the examples were chosen for their high scores; and we calibrated on halves and removed from
# the whole set, in which what is left covers more for what is gone ([measured shares](../mathematics.md#calibration)).

# %% [markdown]
# ## 5. The hybrid: gradients propose, retraining decides
#
# Can the two be combined? The **lasso** is regression that pays for every weight, so that most are exactly 0. A hybrid uses TRAK in it:
#
# * `Lasso(prior=trak)`: training examples with large scores pay less, so they are chosen first; direction and size come from the
#   retrained models alone;
# * `Lasso(prior=trak, offset=trak)`: the scores are believed, times a slope, and the lasso fits what they miss.
#
# How far scores are trusted is chosen per test digit on held-out models; "not at all" is one of the choices. First, models to fit:

# %%
SIZES = [60, 120, 240] if QUICK else [125, 250, 500, 1000]
design = dm.Design(n_train=SIZE, alpha=0.5, n_models=SIZES[-1], seed=0)
store = dm.Store.open_or_create("runs/half", schema=task.schema, design=design)
dm.train(store, task, progress=False)

METHODS = {
    "lasso": dm.Lasso(),
    "hybrid, prior": dm.Lasso(prior=trak),
    "hybrid, prior and offset": dm.Lasso(prior=trak, offset=trak),
}
compared = {}
for size in SIZES:
    fits = {name: dm.fit(store, how, rows=(0, size), progress=False) for name, how in METHODS.items()}
    compared[size] = compare_lds({**fits, "TRAK": trak}, judge, rows=REPORT, reference="lasso")

# %% [markdown]
# The learning curves, with TRAK itself as a level line: it uses none of these models.

# %%
plt.figure(figsize=(7.5, 3.8))
styles = {
    "lasso": ("s-", BLUE),
    "hybrid, prior": ("o-", GREEN),
    "hybrid, prior and offset": ("D-", ORANGE),
    "TRAK": ("--", "black"),
}
for name, (style, colour) in styles.items():
    middle = np.array([compared[size].scores[name].lds for size in SIZES])
    error = np.abs(np.array([compared[size].scores[name].lds_ci for size in SIZES]).T - middle)
    plt.errorbar(SIZES, middle, None if name == "TRAK" else error, fmt=style, color=colour, capsize=3, label=name)
plt.axhline(found.lds_ceiling, color=GREY, linewidth=1, label="noise ceiling")
plt.gca().set(xscale="log", ylim=(0, 0.8), xlabel="retrained networks that were fitted", ylabel="LDS on new networks")
plt.xticks(SIZES, SIZES)
plt.minorticks_off()
plt.legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
plt.show()

# %% [markdown]
# Intervals of single curves overlap more than they should, since hard test digits and hard halves are hard for all methods. The
# fair comparison is *paired*: the difference to the lasso on the same networks, resampled together.

# %%
for size in SIZES:
    for name, gap in compared[size].differences.items():
        print(f"{size:5d} models, {name:25s} minus lasso: {gap.value:+.3f} ({gap.low:+.3f} to {gap.high:+.3f})")
gap = compared[SIZES[0]].differences["hybrid, prior and offset"]
assert gap.low > 0

# %% [markdown]
# Read it from left to right. With few models, TRAK by itself wins, and a plain lasso is far behind; even a hybrid must spend some of the
# models on finding out how far to trust the scores. With more of them, retrained models correct what gradients get wrong, and the hybrid with offset
# passes TRAK. Given enough, the lasso catches up with all of them: a hint is worth most where data are scarce.
#
# What it does *not* show is that this is cheaper. It depends on what a training costs:

# %%
run = trak_of_recipe(task, "runs/trak", **OPTIONS)
print(f"training one of these networks: {1000 * run.checkpoints.seconds:.1f} ms of CPU")

# %% [markdown]
# A few milliseconds: here a thousand retrained networks cost about as much as TRAK of ten. Where a training takes minutes or hours,
# gradients cost next to nothing beside it, and TRAK with calibration, or a hybrid, is what you can afford.

# %% [markdown]
# ## 6. Wrong labels
#
# A wrong label stands alone: no other example argues for it. Three ways to notice:
#
# * **self-influence**: the score of a training example *for itself*. Large where only its own presence speaks for its label;
# * **harm**: minus its mean score for test digits (whose labels are right);
# * **out-of-mask margin**: its mean margin under models that did *not* see it, by its own (wrong) label. It needs retrained models, no gradients.
#
# We make a tenth of the labels wrong, and keep secret which. Half of the test digits are targets here; the other half will judge.

# %%
whole = load("digits") if not QUICK else load("digits[400,400]")
labels, wrong = plant_label_noise(whole.train.y, 0.1, seed=0, n_classes=2)
train = replace(whole.train, y=labels)
noisy, judging = (
    replace(whole, name=name, train=train, test=whole.test.take(np.arange(start, len(whole.test), 2)))
    for start, name in ((0, "noisy"), (1, "noisy, judged"))
)
noisy_task = dm.TrainRecipe(recipe, noisy, splits=("test", "train"))
print(f"{wrong.sum()} of {len(wrong)} labels are wrong now")

# %%
design = dm.Design(n_train=len(train), alpha=0.5, n_models=100 if QUICK else 400, seed=7)
noisy_store = dm.Store.open_or_create("runs/noisy", schema=noisy_task.schema, design=design)
dm.train(noisy_store, noisy_task, progress=False)
noisy_trak = trak_of_recipe(noisy_task, "runs/noisy_trak", **OPTIONS).attribution

suspicion = {
    "TRAK, on itself": mislabel_scores(noisy_trak, "self_influence"),
    "margin when not seen": mislabel_scores(noisy_store, "out_of_mask"),
    "the same, 20 models": mislabel_scores(noisy_store, "out_of_mask", rows=(0, 20)),
    "TRAK, harm to test digits": mislabel_scores(noisy_trak, "influence"),
}

# %% [markdown]
# **AUC** is the probability that a wrong label is more suspicious than a right one: 0.5 is guessing, 1 perfect. **Precision** is the share of
# truly wrong ones among as many of the most suspicious as there are wrong labels.

# %%
for name, values in suspicion.items():
    score = evaluate_mislabels(values, wrong)
    print(
        f"{name:26s} AUC {score.auc:.3f} ({score.auc_ci[0]:.3f} to {score.auc_ci[1]:.3f}), precision {score.precision:.2f}"
    )
assert evaluate_mislabels(suspicion["TRAK, on itself"], wrong).auc > 0.85
assert evaluate_mislabels(suspicion["margin when not seen"], wrong).auc > 0.9

# %% [markdown]
# The store of retrained models shows *why* it works. Each dot is a training digit: its mean margin under networks that saw it, against that under
# networks that did not.

# %%
masks, margins = noisy_store.masks(), np.asarray(noisy_store.array("train_margins"))
seen = np.where(masks, margins, 0).sum(axis=0) / masks.sum(axis=0)
plt.figure(figsize=(5.4, 3.8))
unseen = -suspicion["margin when not seen"]
for chosen, colour, name in ((~wrong, BLUE, "right label"), (wrong, ORANGE, "wrong label")):
    plt.plot(unseen[chosen], seen[chosen], "o", color=colour, markersize=3, alpha=0.5, label=name)
plt.axline((0, 0), slope=1, color=GREY, linewidth=1, zorder=0)
plt.xlabel("margin under networks that did not see it")
plt.ylabel("margin under networks that saw it")
plt.legend(frameon=False, markerscale=2, loc="lower right")
plt.show()

# %% [markdown]
# On the diagonal, seeing an example makes no difference: the others teach the same. Wrong labels lie to the left: unseen, networks contradict
# them. How far a dot is above the diagonal is its **memorisation**: more for labels that stand alone, though weight decay keeps these networks from
# believing most wrong labels even when they see them. A right label to the left is worth a look as well: it is an odd digit. Here are
# the most suspicious ones, by the way that needs gradients only:

# %%
figure, grid = plt.subplots(2, 12, figsize=(9, 2.1))
for axes, j in zip(grid.flat, suspicion["TRAK, on itself"].argsort()[::-1][:24], strict=True):
    axes.imshow(train.images[j])
    axes.set_axis_off()
    axes.set_title(noisy.class_names[labels[j]], fontsize=9, color=ORANGE if wrong[j] else "black")
figure.suptitle("most suspicious training digits with their labels; orange: the label was made wrong", fontsize=11)
plt.show()

# %% [markdown]
# ### Does removing them help?
#
# Finding wrong labels is one thing, a better model another. We remove the most suspicious tenth, retrain, and look at accuracy on the judging half
# of the test digits. For comparison: a random tenth, and the tenth that truly is wrong, which nobody knows in practice.

# %%
judged = dm.TrainRecipe(recipe, judging)
ranked = {name: -values for name, values in suspicion.items() if "20" not in name} | {
    "the truly wrong": -wrong.astype(float)
}
curve = removal_curve(
    judged, ranked, shares=(0.1,), replicates=5 if QUICK else 20, folder="runs/cleaned", progress=False
)
print(f"nothing removed: {curve.base.value:.3f} ({curve.base.low:.3f} to {curve.base.high:.3f})")
for point in curve.points:
    gain = point.beyond_base
    print(
        f"{point.method:26s} {point.accuracy.value:.3f}, gain {gain.value:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"
    )

# %% [markdown]
# Compare with the table of AUCs: what finds wrong labels best need not be what cleans best, for an example may have a wrong label and do no harm,
# and one with a right label may mislead. And gains are small where the network is robust already. Intervals are over training runs; the test
# digits are taken as they are, so a gain smaller than one or two digits of a hundred may not hold on others.

# %% [markdown]
# ## What to take away
#
# * TRAK is logistic regression on gradients: what would change without this example, to first order, from a few networks.
# * Its ridge matters a lot, and one mean squared gradient is a good one. Judge, and tune if need be, on a few dozen networks that were really
#   retrained; `calibrate` then gives units and intervals.
# * A hybrid lets retrained models correct the scores: best where you can afford some retraining, but not thousands.
# * Wrong labels show by self-influence, or by margins of models that did not see them, which a handful of models on halves gives already.
# * Whether any of this is cheaper than retraining depends on what *your* training costs.
#
# ## Try
#
# 1. Change `dim` to 64 and to 1024 in section 3. Does the best ridge move? Does its LDS? And with networks of a fifth of the digits?
# 2. Replace the margin by the loss in `gradients`. What happens to test digits that the network gets right with certainty, and why?
# 3. Use `dm.Ridge(offset=trak)` and `dm.Lasso(offset=trak)` in section 5. When does believing beat hinting?
#
# **Next:** [Debiasing](07-debiasing.ipynb). **Deeper:** [Gradients, hybrids, and judging by retraining](../gradients.md),
# [how calibration works](../mathematics.md#calibration), and at full size `examples/compare_methods.py` and `examples/mislabels.py`
# ([examples](../../examples/README.md)).
