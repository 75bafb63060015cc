# %% [markdown]
# # Datamodels from scratch
#
# Which training examples made the model say that? A **datamodel** answers with one number per training example: how
# much it moves one output of the model when it joins the training set (Ilyas et al. 2022,
# [arXiv:2202.00622](https://arxiv.org/abs/2202.00622)).
#
# Here we build datamodels in about 60 lines of numpy, on real handwritten digits, and test them: first on models that
# they have never seen, then by removing examples and training again. In the second half the library does the same, and
# we check that both agree.
#
# You need numpy and the idea of a classifier. Everything runs in a minute or two on two cores; nothing is downloaded.

# %%
import os
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from sklearn.datasets import load_digits

import datamodels as dm
from datamodels.errors import RequestError

QUICK = "DATAMODELS_QUICK" in os.environ
MODELS, NEW = (1000, 100) if QUICK else (4000, 200)  # models to learn from, and new subsets to judge on
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "font.size": 11, "image.cmap": "gray_r"})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.6"

# %% [markdown]
# ## 1. The data and one model
#
# 300 digits to train on and 100 to test on, 8 × 8 pixels each. We keep the training set small on purpose: then every
# example matters, and a few thousand models are enough to say how much.

# %%
raw = load_digits()
order = np.random.default_rng(0).permutation(len(raw.target))
pixels = np.c_[raw.data / 16, np.ones(len(order))][order]  # 64 pixels in [0, 1] and a constant
digit, images = raw.target[order], raw.images[order]
N = 300
x, y = pixels[:N], digit[:N]
x_test, y_test = pixels[N : N + 100], digit[N : N + 100]

# %% [markdown]
# The model is softmax regression, a linear classifier of ten classes, trained by stochastic gradient descent: small
# random first weights, ten passes in random order, batches of about 16. `mask` says which training examples it may see,
# `rng` is its luck.


# %%
def train(mask, rng):
    """Logits (100, 10) of the test digits, by a model that saw the training digits in `mask` (300,)."""
    seen, weights = np.flatnonzero(mask), 0.01 * rng.normal(size=(x.shape[1], 10))
    for _ in range(10):
        for batch in np.array_split(rng.permutation(seen), len(seen) // 16):
            logits = x[batch] @ weights
            p = np.exp(logits - logits.max(axis=1, keepdims=True))
            p /= p.sum(axis=1, keepdims=True)
            p[np.arange(len(batch)), y[batch]] -= 1
            weights -= x[batch].T @ p / len(batch)
    return x_test @ weights


# %% [markdown]
# Of each test digit we record one number, the **margin**: the logit of the right digit minus the largest of the other
# nine. It is positive when the model is right, and large when it is sure. Margins are better to explain than
# right-or-wrong, since they change before the answer does.


# %%
def margins(logits):
    """How far the right digit is ahead of the best wrong one, (100,)."""
    rows = np.arange(len(y_test))
    others = logits.copy()
    others[rows, y_test] = -np.inf
    return logits[rows, y_test] - others.max(axis=1)


everything = margins(train(np.ones(N, dtype=bool), np.random.default_rng(0)))
print(f"trained on all {N} digits: {(everything > 0).mean():.0%} of the test digits are right")
print("margins of the first five:", everything[:5].round(2))

# %% [markdown]
# ## 2. Subsets and masks
#
# To see what an example does, train with it and without it. One pair of trainings per example would drown in the noise
# of training, so we do it for all examples at once: each model sees a random **training subset**, and regression sorts
# out afterwards who did what.
#
# The share of the training set that a model sees is called **α** (alpha); here it is one half. The subset is written
# down as a **mask**: 300 truth values, true for the examples that are in.


# %%
def random_mask(rng, alpha=0.5):
    mask = np.zeros(N, dtype=bool)
    mask[rng.choice(N, round(alpha * N), replace=False)] = True
    return mask


mask = random_mask(np.random.default_rng(1))
tiles = np.where(mask[:, None, None], images[:N] / 16, 0.12 * images[:N] / 16).reshape(10, 30, 8, 8)
plt.figure(figsize=(9, 3.2))
plt.imshow(np.pad(tiles, [(0, 0), (0, 0), (1, 1), (1, 1)]).transpose(0, 2, 1, 3).reshape(100, 300))
plt.title(f"One training subset: {mask.sum()} of {N} digits are in, the pale ones are out")
plt.axis("off")
plt.show()

# %% [markdown]
# ## 3. A few thousand models
#
# The expensive part is a loop. It leaves two tables: `masks` (models × training examples) and `outputs` (models × test
# digits).

# %%
rng = np.random.default_rng(2)
masks = np.array([random_mask(rng) for _ in range(MODELS)])
outputs = np.array([margins(train(mask, rng)) for mask in masks])
print(
    f"masks {masks.shape}, outputs {outputs.shape}; a model is right on {(outputs > 0).mean():.0%} of the test digits"
)

# %% [markdown]
# How much do models differ? Below, the margin of three test digits over all models: one that nearly every model gets
# right, one that half of them get wrong, and one in between. Same test digit, same algorithm; only subset and luck
# differ. This spread is what we want to explain.

# %%
right = (outputs > 0).mean(axis=0)
shown = [int(np.abs(right - share).argmin()) for share in (0.99, 0.8, 0.5)]
figure, panels = plt.subplots(1, 3, figsize=(9, 2.6), sharey=True)
for axes, target in zip(panels, shown, strict=True):
    axes.hist(outputs[:, target], bins=40, color=BLUE)
    axes.axvline(0, ymax=0.55, color="black", linewidth=1)
    axes.set(title=f"a {y_test[target]}, right in {right[target]:.0%}", xlabel="margin")
    inset = axes.inset_axes([0.02, 0.62, 0.3, 0.36])
    inset.imshow(images[N + target])
    inset.set_axis_off()
panels[0].set_ylabel("models")
plt.show()

# %% [markdown]
# ## 4. Regress outputs on masks
#
# Now the datamodel: for each test digit, the linear function of the mask that predicts its margin best, margin ≈ bias +
# Σ weight of *j* over the examples *j* that are in. The **weight** of example *j* is in units of the margin: how much
# the margin rises, on average, when *j* joins. Least squares does it in three lines, for all 100 test digits together.


# %%
def least_squares(masks, outputs):
    """Weights (300, 100) and bias (100,): one column, one datamodel, per test digit."""
    solution = np.linalg.lstsq(np.c_[np.ones(len(masks)), masks], outputs, rcond=None)[0]
    return solution[1:], solution[0]


weights, bias = least_squares(masks, outputs)
print(f"weights {weights.shape}; the largest weight for test digit 0 is {weights[:, 0].max():.2f} of margin")

# %% [markdown]
# ## 5. Is it right? The LDS
#
# A regression always returns numbers. Before we look at them we ask if they predict anything: train *new* models on
# *new* subsets, predict their margins from their masks alone, and compare ranks. The Spearman correlation (the
# correlation of ranks) over new models, averaged over test digits, is the **linear datamodelling score, LDS**: 0 is
# guessing, 1 is a perfect ranking.
#
# Training is noisy, so 1 is out of reach: two models of the *same* subset differ by their luck. Each new subset is
# therefore trained twice. If two such runs correlate with ρ, then whoever knew the exact average margin of every subset
# would still score only about √ρ against single runs. That is the **noise ceiling**; an LDS is judged against it, not
# against 1.


# %%
def spearman(a, b):
    """Correlation of ranks in each column, (100,)."""
    a, b = (values.argsort(axis=0).argsort(axis=0) - (len(values) - 1) / 2 for values in (a, b))
    return (a * b).sum(axis=0) / np.sqrt((a**2).sum(axis=0) * (b**2).sum(axis=0))


new_masks = np.array([random_mask(rng) for _ in range(NEW)])
first, second = (np.array([margins(train(mask, rng)) for mask in new_masks]) for _ in range(2))
ceiling = np.sqrt(spearman(first, second).mean())
score = spearman(new_masks @ weights + bias, first)
print(f"LDS of least squares on {NEW} new models: {score.mean():.3f}, noise ceiling {ceiling:.3f}")

# %% [markdown]
# ## 6. How many models, and why ridge
#
# Least squares has a famous weakness: with about as many models as training examples it fits the noise exactly and
# predicts nothing. **Ridge** regression pays for large weights: it minimises ‖y − b − Zw‖²/2m + λ‖w‖²/2, where the
# columns of Z are the masks, centred and scaled. We take the λ that predicts a held-out 15 % of the models best.


# %%
def ridge(masks, outputs, lam):
    mean, scale = masks.mean(axis=0), masks.std(axis=0)
    z, centre = (masks - mean) / scale, outputs.mean(axis=0)
    values, vectors = np.linalg.eigh(z.T @ z / len(z))
    along = vectors.T @ (z.T @ (outputs - centre)) / len(z)
    weights = vectors @ (along / (values[:, None] + lam)) / scale[:, None]  # in units of margin per example again
    return weights, centre - mean @ weights


def tuned_ridge(masks, outputs):
    cut = int(0.85 * len(masks))
    tried = {lam: ridge(masks[:cut], outputs[:cut], lam) for lam in np.geomspace(1e-3, 10, 13)}
    errors = {lam: ((masks[cut:] @ w + b - outputs[cut:]) ** 2).mean() for lam, (w, b) in tried.items()}
    return ridge(masks, outputs, min(errors, key=errors.get))


# %% [markdown]
# Those are all the methods we need. The next picture has the LDS of both against the number of models.

# %%
sizes = [size for size in (100, 200, 300, 400, 600, 1000, 2000, 4000) if size <= MODELS]
for fit, colour, name in ((tuned_ridge, BLUE, "ridge"), (least_squares, ORANGE, "least squares")):
    scores = []
    for size in sizes:
        w, b = fit(masks[:size], outputs[:size])
        scores.append(spearman(new_masks @ w + b, first).mean())
    plt.plot(sizes, scores, "o-" if fit is tuned_ridge else "s--", color=colour, label=name)
plt.gcf().set_size_inches(7, 3.4)
plt.axhline(ceiling, color="black", linewidth=1, label="noise ceiling")
plt.axvline(N, color=GREY, linewidth=1, linestyle=":", label="as many models as training digits")
plt.gca().set(
    xscale="log",
    xticks=sizes,
    xticklabels=sizes,
    ylim=(-0.05, 1),
    xlabel="models that were fitted",
    ylabel="LDS on new models",
)
plt.minorticks_off()
plt.legend(frameon=False, loc="lower right")
plt.show()

# %% [markdown]
# Two things to read off. Least squares collapses where the number of models passes the number of examples, and recovers
# after; ridge does not collapse. And both still rise at the right end: what separates them from the ceiling is partly a
# lack of models, and partly that a sum of single effects is not the whole truth.

# %% [markdown]
# ## 7. Who helped?
#
# Now we may look. For three test digits, the five training digits of the largest weights ("helpers"), and the five most
# negative ones. Negative weights belong to examples that *lower* the margin, mostly look-alikes of another class, and
# now and then the same digit in another handwriting.

# %%
weights, bias = tuned_ridge(masks, outputs)


def picture(weights, targets):
    figure, grid = plt.subplots(len(targets), 11, figsize=(9, 1.15 * len(targets)))
    for row, target in zip(grid, targets, strict=True):
        ranked = weights[:, target].argsort()
        row[0].imshow(images[N + target])
        row[0].set_title(f"test: {y_test[target]}", fontsize=10)
        for axes, j in zip(row[1:], [*ranked[::-1][:5], *ranked[:5]], strict=True):
            axes.imshow(images[j])
            axes.set_title(
                f"{y[j]}: {weights[j, target]:+.2f}", fontsize=10, color=BLUE if weights[j, target] > 0 else ORANGE
            )
    for axes in grid.flat:
        axes.set_axis_off()
    figure.suptitle(
        "test digit, its five helpers (blue), and five that harm it (orange): class and weight", fontsize=11
    )
    plt.show()


picture(weights, shown)

# %% [markdown]
# That looks sensible, and looking sensible proves little. One number: how often is a helper of the same class as the
# test digit? By chance it would be one in ten.

# %%
helpers = weights.argsort(axis=0)[::-1][:5]
same = (y[helpers] == y_test).mean()
harmers_same = (y[weights.argsort(axis=0)[:5]] == y_test).mean()
print(f"of the same class as the test digit: {same:.0%} of the helpers, {harmers_same:.0%} of the harmful")
assert same > 0.7 > 0.3 > harmers_same

# %% [markdown]
# ## 8. Does a weight mean what it says?
#
# A weight is a claim about what *would* happen, so we make it happen. For 20 test digits: draw random subsets that hold
# its *k* strongest helpers, put *k* random other digits in their place, train both, and compare the change of the
# margin with the prediction: the weights that came in minus those that went out. The size of the subset stays the same,
# since subsets of that size are all that the datamodel knows of.


# %%
def swap(target, k, repeats=30):
    """Predicted and actual change of the margin, means over subsets, and the standard error of the latter."""
    top, changes = weights[:, target].argsort()[::-1][:k], []
    for seed in range(repeats):
        rng = np.random.default_rng([3, target, seed])
        others = rng.permutation(np.setdiff1d(np.arange(N), top))
        with_top, without = np.zeros((2, N), dtype=bool)
        with_top[top] = without[others[-k:]] = True
        with_top[others[: N // 2 - k]] = without[others[: N // 2 - k]] = True
        before, after = (margins(train(mask, rng))[target] for mask in (with_top, without))
        changes.append([weights[without, target].sum() - weights[with_top, target].sum(), after - before])
    return *np.mean(changes, axis=0), np.std(changes, axis=0)[1] / np.sqrt(repeats)


# %%
plt.figure(figsize=(6, 4))
for k, marker, colour in ((20, "D", GREY), (10, "^", ORANGE), (3, "s", GREEN), (1, "o", BLUE)):
    predicted, actual, error = np.array([swap(target, k) for target in range(20)]).T
    plt.errorbar(
        predicted, actual, yerr=1.96 * error, fmt=marker, color=colour, markersize=4, linewidth=1, label=f"{k}"
    )
    ratio, both = predicted @ actual / (predicted @ predicted), np.corrcoef(predicted, actual)[0, 1]
    print(f"k = {k:2d}: correlation {both:.2f}, actual / predicted {ratio:.2f}")
    if k == 3:
        assert both > 0.8
        assert 0.7 < ratio < 1.7
plt.axline((0, 0), slope=1, color="black", linewidth=1)
plt.gca().set(xlabel="predicted change of the margin", ylabel="change after retraining, 95 %")
plt.legend(frameon=False, title="helpers swapped")
plt.show()

# %% [markdown]
# Points near the line: weights are about effects, not just about likeness. Two departures are worth knowing. The ratio
# is somewhat above 1 because ridge shrinks weights, the more so with few models. And it grows with the number of
# helpers: when all of them go at once, none is left to stand in for the others, and a sum of single effects cannot know
# that.
#
# What this does not show: that any one weight out of 300 is exact, or real at all. [Which influences are
# real?](../which-are-real.md) is about that.

# %% [markdown]
# ## 9. The same with the library
#
# `datamodels` keeps the five things that we just made by hand: a **design** draws the masks, a **store** keeps the
# outputs, **train** runs a task over all rows (one row is one model), **fit** regresses, and **lds** judges.
#
# The design draws masks that anyone can draw again: row 7 is the same mask on every machine. The task is the function
# from above. It names what it wants: the row's `mask`, and the row's own generator `rng`.


# %%
def task(mask, rng):
    return {"margins": margins(train(mask, rng))}


schema = {"margins": {"shape": (100,), "dtype": "float64"}}
design = dm.Design(n_train=N, alpha=0.5, n_models=MODELS, seed=0)
store = dm.Store.open_or_create(Path("runs/digits"), schema=schema, design=design)
summary = dm.train(store, task, progress=False)
print(f"{summary.done} models trained; complete: {store.completed().all()}")

# %% [markdown]
# All cores worked on it: functions that are defined in a notebook travel to worker processes by value, so nothing has
# to be put into a file. Stop the cell and run it again, and it trains what is missing.
#
# Is row 7 of the store what our own loop would have made? Same mask, same luck, by hand:

# %%
by_hand = margins(train(design.mask(7), design.rng(7)))
print(np.c_[by_hand, store.array("margins")[7]][:4])
assert np.array_equal(store.masks()[7], design.mask(7))
np.testing.assert_allclose(store.array("margins")[7], by_hand, atol=1e-9)

# %% [markdown]
# Now fit. The library chooses λ for every test digit separately. At those λ our own `ridge` must give the same weights,
# and they do, to the precision of the float32 in which weights are kept.

# %%
attribution = dm.fit(store, dm.Ridge(), progress=False)
ours, our_bias = ridge(store.masks(), np.asarray(store.array("margins")), attribution.target_facts["lam"])
print(f"{attribution}: the largest difference of a weight is {np.abs(ours - attribution.weights).max():.1e}")
np.testing.assert_allclose(attribution.weights, ours, atol=1e-6)

# %% [markdown]
# For the LDS, a second design with another seed and two runs (`replicates`) of each subset. `lds` adds what our loop
# left out: an interval, by bootstrap over subsets and test digits.

# %%
new = dm.Design(n_train=N, alpha=0.5, n_models=2 * NEW, seed=1, replicates=2)
judge = dm.Store.open_or_create(Path("runs/judge"), schema=schema, design=new)
dm.train(judge, task, progress=False)
found = dm.lds(attribution, judge)
print(f"library: LDS {found.lds:.4f} ({found.lds_ci[0]:.3f} to {found.lds_ci[1]:.3f}), ceiling {found.lds_ceiling:.4f}")

truth = np.asarray(judge.array("margins"))
score = spearman(judge.masks() @ ours + our_bias, truth).mean()
ceiling = np.sqrt(spearman(truth[::2], truth[1::2]).mean())
print(f"by hand: LDS {score:.4f}, ceiling {ceiling:.4f}")
np.testing.assert_allclose([score, ceiling], [found.lds, found.lds_ceiling], atol=1e-3)

# %% [markdown]
# It also refuses what we could have done by mistake: judging a fit on the models that it was fitted on.

# %%
try:
    dm.lds(attribution, store, rows=(0, 100))
except RequestError as refusal:
    print(refusal)

# %% [markdown]
# Last: the weights of sections 4 to 7 came from other models on other subsets. How far do two independent sets of
# models agree on the weights? Each point below is one training digit's weight for one of the three test digits,
# estimated twice.

# %%
figure, panels = plt.subplots(1, 3, figsize=(9, 3.1))
for axes, target in zip(panels, shown, strict=True):
    axes.plot(weights[:, target], attribution.weights[:, target], "o", markersize=3, color=BLUE, alpha=0.6)
    both = np.corrcoef(weights[:, target], attribution.weights[:, target])[0, 1]
    axes.set(title=f"a {y_test[target]}: correlation {both:.2f}", xlabel="weight, by hand")
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1, zorder=0)
panels[0].set_ylabel("weight, library")
plt.show()
agreement = [np.corrcoef(weights[:, t], attribution.weights[:, t])[0, 1] for t in range(100)]
print(f"mean correlation over all 100 test digits: {np.mean(agreement):.2f}")
assert np.mean(agreement) > 0.5

# %% [markdown]
# The large weights agree; the cloud around zero is mostly noise. More models make it thinner, by a half for every
# factor of four.
#
# `attribution.top` lists helpers, and a fit is one file that opens in every AnnData tool:

# %%
top = attribution.top(shown[2], k=5)
print([f"digit {j}, a {y[j]}: {weight:+.2f}" for j, weight in zip(top.indices, top.weights, strict=True)])
attribution.save("runs/digits.h5ad")
again = dm.Attribution.load("runs/digits.h5ad")
assert np.array_equal(again.weights, attribution.weights)

# %% [markdown]
# ## What to take away
#
# * A datamodel is a linear regression of a model's output on *who was in the training set*; its weights are effects in
#   units of the output.
# * It takes many models: several times as many as there are training examples, unless regression is penalised.
# * Judge before you look: LDS on models that were not fitted, beside the noise ceiling. Then test what matters by
#   retraining.
# * Single weights near zero are noise; the ranking of the strong ones is what you can use.
# * The library does the same arithmetic, plus all cores, interruption, intervals, λ per target and guards against
#   judging on used models.
#
# ## Try
#
# 1. Change α to 0.2 in `random_mask` and in the designs. What happens to accuracy, to the ceiling and to the pictures?
# 2. Relabel ten training digits wrongly before section 2. Which sign do their weights have, and for which test digits?
# 3. Replace `dm.Ridge()` by `dm.Lasso()`, which sets most weights to exactly 0. Compare the LDS at 400 models and at
#    all of them. Why does the winner depend on the number of models?
#
# **Next:** [Fast training of thousands of classifiers](02-fast-training.ipynb). **Deeper:** [Concepts](../concepts.md),
# [Mathematics](../mathematics.md).
