# %% [markdown]
# # Fast training of thousands of classifiers
#
# Datamodels ask for thousands of trained models, where everybody else trains one. This page is about making that cheap
# and safe: how to declare what is trained, what it costs, how much models differ, which share of the data each should
# see, what happens when the machine is switched off half-way, and how many models are enough.
#
# You should know what a datamodel is ([Datamodels from scratch](01-from-scratch.ipynb)) and have trained a small
# network before. Two to three minutes on two cores; no GPU, no download.

# %%
import os
import signal
import textwrap
import threading
import time
from dataclasses import replace

import matplotlib.pyplot as plt
import numpy as np
import torch
from sklearn.ensemble import RandomForestClassifier

import datamodels as dm
from datamodels.evaluation import curve, pilot, variances
from datamodels.training.learners import estimator_task
from datamodels.training.outputs import margins

QUICK = "DATAMODELS_QUICK" in os.environ
MODELS = 1000 if QUICK else 4000
plt.rcParams.update({"figure.dpi": 80, "figure.constrained_layout.use": True, "font.size": 11})
plt.rcParams.update({"axes.spines.top": False, "axes.spines.right": False})
BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "0.6"

# %% [markdown]
# ## 1. A recipe
#
# A **recipe** says how one model is trained: architecture, optimiser, schedule, epochs. It is data, not code, and it is
# checked before anything runs. A **task** joins it with a data set and with what is recorded of each model, here
# margins: the logit of the right class minus the largest other one, positive when the model is right.
#
# The data are the handwritten digits of scikit-learn, 1,300 to train and 497 to test on, with two classes: 5 to 9
# against 0 to 4.

# %%
recipe = dm.Recipe(architecture="mlp", hidden=(32,), epochs=15, batch_size=32, lr=0.1, weight_decay=5e-3)
task = dm.TrainRecipe(recipe, "digits")
data = task.data
print(f"{task.n_train} training digits, {len(data.test)} test digits, classes {data.class_names}")
print("each model leaves behind:", task.schema)

# %% [markdown]
# A **design** says who sees what: here each model gets its own random fifth of the training digits (`alpha=0.2`). A
# **store** is a folder with one row per model. `train` fills it, with a worker process per core.
#
# Before the clock starts, one model that does not count: the first model ever trained on a machine waits up to half a
# minute for the compiler, whose result is kept.


# %%
def new_store(name, n_models, alpha=0.2, seed=0, replicates=1, task=task):
    design = dm.Design(n_train=1300, alpha=alpha, n_models=n_models, seed=seed, replicates=replicates)
    return dm.Store.open_or_create(f"runs/{name}", schema=task.schema, design=design, labels=data.train.y)


dm.train(new_store("warm", 1), task, executor="inline", progress=False)
store = new_store("main", MODELS)
summary = dm.train(store, task, progress=False)
outputs = np.asarray(store.array("margins"))
print(f"{summary.done:,} networks in {summary.seconds:.1f} s, start of the workers included")
print(f"outputs {outputs.shape}, accuracy of a single network {(outputs > 0).mean():.3f}")
assert summary.ok

# %% [markdown]
# ## 2. What does the compiled engine gain?
#
# Linear models, perceptrons and small convolutional networks are trained by compiled code that keeps a whole model in
# the cache of one core. What would a plain loop take? Here is the one that most of us would write, in PyTorch, without
# a DataLoader or any bookkeeping.

# %%
x, y = torch.from_numpy(data.train.x), torch.from_numpy(data.train.y)
x_test = torch.from_numpy(data.test.x)
torch.set_num_threads(1)


def plain_loop(mask):
    chosen = torch.from_numpy(np.flatnonzero(mask))
    net = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU(), torch.nn.Linear(32, 2))
    for layer, gain in ((net[0], 2), (net[2], 1)):  # the recipe's first weights
        torch.nn.init.normal_(layer.weight, std=(gain / layer.in_features) ** 0.5)
        torch.nn.init.zeros_(layer.bias)
    optimiser = torch.optim.SGD(net.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-3)
    for rates in recipe.rates(recipe.total_steps(len(chosen))).reshape(recipe.epochs, -1):
        batches = chosen[torch.randperm(len(chosen))].split(recipe.batch_size)
        for rate, batch in zip(rates, batches, strict=True):
            optimiser.param_groups[0]["lr"] = rate
            optimiser.zero_grad()
            torch.nn.functional.cross_entropy(net(x[batch]), y[batch]).backward()
            optimiser.step()
    with torch.no_grad():
        return margins(net(x_test).numpy(), data.test.y)


# %% [markdown]
# Three ways, all on one core: that loop, the library's `torch` engine (many models as one stack of tensors; it also
# runs on a GPU), and its `compiled` engine. `executor="inline"` trains in this very process, so that we can read its
# clock; for a few hundred small models that is also the quickest way, since worker processes take a second or two to
# start.

# %%
few, many = (20, 100) if QUICK else (40, 200)
torch.manual_seed(0)
warm = plain_loop(store.design.mask(0))
started = time.process_time()
loop = np.array([plain_loop(mask) for mask in store.masks(0, few)])
cost = {"plain loop": (time.process_time() - started) / few}
engines = {}
for engine in ("torch", "compiled"):
    engines[engine] = new_store(f"engine-{engine}", many)
    started = time.process_time()
    dm.train(engines[engine], replace(task, engine=engine, stack=50), executor="inline", progress=False)
    cost[engine] = (time.process_time() - started) / many
for name, seconds in cost.items():
    ratio = cost["plain loop"] / seconds
    print(f"{name:10s} {1e3 * seconds:6.2f} ms of one core per network: {ratio:.1f} times as fast as the loop")

# %%
figure, axes = plt.subplots(figsize=(6.5, 1.9))
bars = axes.barh(list(cost), [1e3 * seconds for seconds in cost.values()], color=[GREY, GREEN, BLUE])
axes.bar_label(bars, fmt="%.2f ms", padding=4)
axes.set(xlabel="milliseconds of one core per network", xlim=(0, 1.2e3 * cost["plain loop"]))
axes.invert_yaxis()
plt.show()

# %% [markdown]
# The ratio depends on the size of the network: it is largest for small ones, where Python's own work dominates, and
# shrinks for large convolutions, whose time is arithmetic in either case. `make bench-training` measures eight
# architectures, and [its table](../../benchmarks/RESULTS.md#training) also has a case that gains nothing.
#
# Speed is worthless if the models are others. Two checks: both engines give the same outputs up to rounding, network by
# network; and the plain loop, whose networks have other first weights and orders, reaches the same accuracy within the
# error.

# %%
a, b = (np.asarray(engines[engine].array("margins")) for engine in ("torch", "compiled"))
print(f"largest difference of a margin between engines: {np.abs(a - b).max():.1e} (margins: {np.abs(b).mean():.1f})")
assert np.abs(a - b).max() < 0.05
ours, theirs = ((values > 0).mean(axis=1) for values in (b, loop))
error = np.hypot(ours.std() / np.sqrt(many), theirs.std() / np.sqrt(few))
print(f"accuracy {ours.mean():.3f} and {theirs.mean():.3f} (loop); standard error of the difference {error:.3f}")
assert abs(ours.mean() - theirs.mean()) < 0.02 + 3 * error

# %% [markdown]
# ## 3. A row is a model, however it was made
#
# Row 17 of a design is one certain network: its subset, its first weights and its order of examples are drawn from
# (seed, 17) and nothing else. So it does not matter who trains it, when, or beside whom. Below the first 60 rows are
# made again in this process, seven at a time, and compared with those that the workers made, bit by bit; and row 17
# alone.

# %%
again = new_store("again", 60)
dm.train(again, replace(task, block_size=7), executor="inline", progress=False)
alone = new_store("alone", 60)
dm.train(alone, task, executor="inline", progress=False, rows=slice(17, 18))
assert np.array_equal(again.array("margins")[:], store.array("margins")[:60])
assert np.array_equal(alone.array("margins")[17], store.array("margins")[17])
assert np.array_equal(again.checksums(), store.checksums()[:60])
print("checksums of rows 16 to 18:", [f"{number:08x}" for number in store.checksums()[16:19]])

# %% [markdown]
# Every row carries a checksum, so this comparison also works between machines. The promise is bit for bit on one kind
# of processor; elsewhere, or on a GPU, rows are equal up to rounding.

# %% [markdown]
# ## 4. How much do models differ, and why?
#
# Two things make two models differ: their **subsets**, which datamodels explain, and **luck** (first weights, order of
# examples), which nothing explains. To tell them apart, train each subset twice (`replicates=2`): what differs between
# runs of one subset is luck. The share of the variance that is due to subsets is called **reliability**.
#
# How large each part is depends on **alpha**, the share of the training set that a model sees.

# %%
ALPHAS = (0.05, 0.1, 0.2, 0.5)
by_alpha = {}
for alpha in ALPHAS:
    part = new_store(f"alpha-{alpha}", 160 if QUICK else 300, alpha=alpha, seed=1, replicates=2)
    dm.train(part, task, executor="inline", progress=False)
    by_alpha[alpha] = np.asarray(part.array("margins"), dtype=float)
parts = {alpha: variances(values.reshape(-1, 2, values.shape[1])) for alpha, values in by_alpha.items()}

# %%
figure, (left, middle, right) = plt.subplots(1, 3, figsize=(9, 3))
labels, at = [f"{alpha:g}" for alpha in ALPHAS], np.arange(len(ALPHAS))
left.boxplot([(by_alpha[alpha] > 0).mean(axis=1) for alpha in ALPHAS], positions=at, widths=0.6, showfliers=False)
left.set(title="accuracy of single networks", xlabel="alpha")
hard = int(np.abs((by_alpha[0.2] > 0).mean(axis=0) - 0.6).argmin())
for body in middle.violinplot([by_alpha[alpha][:, hard] for alpha in ALPHAS], positions=at, widths=0.9)["bodies"]:
    body.set(facecolor=BLUE, alpha=0.5)
middle.axhline(0, color="black", linewidth=1)
middle.set(title=f"margin of test digit {hard}", xlabel="alpha")
signal_part, noise = ([getattr(parts[alpha], name) for alpha in ALPHAS] for name in ("signal", "noise"))
right.bar(at, signal_part, color=BLUE, label="subset")
right.bar(at, noise, bottom=signal_part, color=GREY, label="luck")
right.set(title="variance of a margin", xlabel="alpha", ylim=(0, 1.35 * np.max(np.add(signal_part, noise))))
right.legend(frameon=False, ncols=2, loc="upper center")
for axes in (left, middle, right):
    axes.set_xticks(at, labels)
plt.show()
for alpha, found in parts.items():
    low, high = found.reliability_ci
    print(f"alpha {alpha:4g}: reliability {found.reliability:.2f} ({low:.2f} to {high:.2f})")
assert all(found.signal > 0 and found.reliability_ci[0] > 0 for found in parts.values())

# %% [markdown]
# With small subsets, networks are worse, and luck rules. With large ones they are good and alike. A campaign wants
# networks that have learnt the task, differ, and differ *because of their subsets*.

# %% [markdown]
# ## 5. A pilot chooses
#
# Before thousands of models, a **pilot** trains a few dozen of each recipe at each alpha, and compares two things:
# reliability, and models per hour. The number of models that one needs goes with 1 / reliability, so their product says
# which setting gets certain weights first. Let it choose between our perceptron and a linear model.

# %%
recipes = {"mlp": recipe, "linear": dm.Recipe(architecture="linear", epochs=15, batch_size=32, weight_decay=5e-3)}
tried = (0.1, 0.5) if QUICK else (0.1, 0.2, 0.5)
found = pilot(task, recipes=recipes, alphas=tried, masks=8 if QUICK else 16, jobs=1 if QUICK else 2, progress=False)
found.table()

# %%
for reason in found.reasons:
    print(textwrap.fill(reason, 92), end="\n\n")

# %% [markdown]
# Read the reasons to the end. A linear model is cheap, and its outputs follow its subset closely, so its weights are
# certain soon; but they are weights of a *linear model*, which gets more digits wrong. A pilot compares costs. Which
# model you want explained is your decision; here it is the perceptron.

# %%
figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3))
for name, colour, marker in (("mlp", BLUE, "o"), ("linear", ORANGE, "s")):
    mine = [one for one in found.settings if one.recipe == name]
    spread = np.array([np.abs(np.subtract(one.reliability_ci, one.reliability)) for one in mine]).T
    alphas, style = [one.alpha for one in mine], {"fmt": marker + "-", "color": colour, "label": name, "capsize": 3}
    left.errorbar(alphas, [one.accuracy for one in mine], [2 * one.accuracy_se for one in mine], **style)
    right.errorbar(alphas, [one.reliability for one in mine], spread, **style)
left.set(xlabel="alpha", ylabel="accuracy ± 2 standard errors")
right.set(xlabel="alpha", ylabel="reliability, 95 % interval", ylim=(0, 1))
left.legend(frameon=False)
plt.show()

# %% [markdown]
# ## 6. Interrupted
#
# Now we pull the plug. A second thread waits until some networks of a new campaign are done, and then sends what
# Ctrl-C, or the stop button of a notebook, sends.

# %%
broken = new_store("broken", MODELS)


def pull_the_plug():
    while broken.completed().sum() < 100:
        time.sleep(0.02)
    os.kill(os.getpid(), signal.SIGINT)


plug = threading.Thread(target=pull_the_plug)
plug.start()
try:
    dm.train(broken, replace(task, block_size=50), progress=False)
    plug.join()
except KeyboardInterrupt:
    print(f"interrupted with {broken.completed().sum()} of {MODELS} networks complete")

# %% [markdown]
# A row is complete or it does not exist, so there is nothing to repair. The same call again trains the rest; and the
# result is, bit by bit, the store of section 1, which nobody interrupted. `extend` adds more rows later: those that
# exist stay as they are.

# %%
status = broken.status()
print(f"{status.completed} complete, {status.pending} pending, {status.failed} failed")
summary = dm.train(broken, replace(task, block_size=50), progress=False)
print(f"trained now: {summary.done}")
assert np.array_equal(broken.checksums(), store.checksums())
broken.extend(40)
summary = dm.train(broken, task, executor="inline", progress=False)
assert summary.done == 40
assert np.array_equal(broken.checksums()[:MODELS], store.checksums())

# %% [markdown]
# The same holds for a killed worker, a full disk or a machine that is switched off: see [Store
# format](../store-format.md) for what survives which accident.

# %% [markdown]
# ## 7. How many models are enough?
#
# Fit datamodels on a growing number of models, and judge each fit on the same models that it has not seen. The score is
# the **LDS**: how well predicted outputs rank those models, 1 being perfect. `curve` does this, with intervals, and
# extrapolates.
#
# The networks of section 4 at the same alpha are the judges: each subset is there twice, so the LDS also gets its
# **ceiling**, what luck leaves for anyone to predict. And to see if extrapolation can be trusted, it sees the first
# half of the models only; then comes what all of them give.

# %%
judges = dm.Store.open("runs/alpha-0.2")
sizes = [MODELS // 16, MODELS // 8, MODELS // 4, MODELS // 2]
how = {"test": judges, "targets": slice(0, 100), "draws": 300, "progress": False}
early = curve(store, dm.Lasso(), sizes=sizes, **how)
(measured,) = curve(store, dm.Lasso(), sizes=[MODELS], **how).scores
forecast, ceiling, (low, high) = early.at(MODELS), measured.lds_ceiling, measured.lds_ci
print(f"forecast for {MODELS:,} models: LDS {forecast:.3f}")
print(f"measured with {MODELS:,} models: LDS {measured.lds:.3f} ({low:.3f} to {high:.3f}), ceiling {ceiling:.3f}")
assert abs(forecast - measured.lds) < 0.15
assert early.lds[0] < early.lds[-1] < measured.lds < ceiling

# %%
plt.figure(figsize=(6.5, 3.4))
ahead = np.geomspace(sizes[-1], 6 * MODELS, 50)
intervals = np.array([score.lds_ci for score in early.scores]).T
plt.fill_between(sizes, *intervals, color=BLUE, alpha=0.2, linewidth=0)
plt.plot(sizes, early.lds, "o-", color=BLUE, label="measured, 95 % interval")
plt.plot(ahead, [early.at(n) for n in ahead], "--", color=GREY, label="forecast from these")
spread = [[measured.lds - low], [high - measured.lds]]
plt.errorbar([MODELS], [measured.lds], spread, fmt="D", color=ORANGE, capsize=3, label="what came")
plt.axhline(ceiling, color="black", linewidth=1, label="ceiling")
plt.xscale("log")
ticks = [*sizes, MODELS, 4 * MODELS]
plt.xticks(ticks, [f"{n:,}" for n in ticks])
plt.minorticks_off()
plt.gca().set(xlabel="models that were fitted", ylabel="LDS on models not fitted", ylim=(0, 1))
plt.legend(frameon=False, loc="lower right", fontsize=9)
plt.show()

# %% [markdown]
# "Enough" is where the curve is flat against what you need it for: rankings of helpers and hidden groups need less than
# reliable single weights.
#
# The forecast is an estimate from a formula, 1/LDS² = a + c/models. It may be off for twice as many models, and for ten
# times as many it is not to be believed: it knows nothing of the ceiling, and here it runs through it. Use it to decide
# on the next batch of models, then look again; `datamodels fit --watch` does so while a campaign runs.

# %% [markdown]
# ## 8. Your own network, and other learners
#
# Whatever is trained, the call is the same. A network of your own is a function that returns a `torch.nn.Module`;
# anything with `fit` and `predict_proba` is a learner. Both are defined in this notebook and travel to worker processes
# by value, so no file is needed.


# %%
def small_cnn(shape, n_classes):
    return torch.nn.Sequential(
        torch.nn.Conv2d(shape[0], 16, 3), torch.nn.GELU(), torch.nn.Conv2d(16, 16, 3), torch.nn.GELU(),
        torch.nn.Flatten(), torch.nn.Linear(16 * 16, n_classes),
    )  # fmt: skip


own = dm.Recipe(architecture=small_cnn, epochs=15, batch_size=32, optimizer="adamw", lr=0.01)
tasks = {
    "perceptron": task,
    "own network": dm.TrainRecipe(own, "digits:pictures"),
    "random forest": estimator_task(
        lambda: RandomForestClassifier(30), data.train.x, data.train.y, data.test.x, data.test.y
    ),
}
right, took = {}, {}
for name, one in tasks.items():
    part = new_store(f"learner-{name}", 30 if QUICK else 80, task=one)
    summary = dm.train(part, one, progress=False)
    assert summary.ok
    right[name] = (np.asarray(part.array("margins")) > 0).mean(axis=0)
    print(f"{name:14s} {summary.done} models, accuracy {right[name].mean():.3f}")

# %% [markdown]
# All three saw the same subsets. Do they find the same test digits hard? Each point is one test digit; its place is the
# share of models that get it right.

# %%
figure, panels = plt.subplots(1, 2, figsize=(9, 3.4), sharey=True)
for axes, name, colour in zip(panels, ("own network", "random forest"), (GREEN, ORANGE), strict=True):
    axes.plot(right["perceptron"], right[name], "o", markersize=4, color=colour, alpha=0.4, markeredgewidth=0)
    axes.axline((0, 0), slope=1, color=GREY, linewidth=1, zorder=0)
    both = np.corrcoef(right["perceptron"], right[name])[0, 1]
    axes.set(title=f"{name}: correlation {both:.2f}", xlabel="right, share of perceptrons")
    assert both > 0.3
panels[0].set_ylabel("right, share of models")
plt.show()

# %% [markdown]
# Partly. What is hard belongs to the data as well as to the learner, and so do datamodels: they explain the learner
# that was trained.
#
# Mind the costs: your own module goes through the `torch` engine, which is slower on a CPU than compiled code, and a
# learner of another library is trained one model at a time.

# %% [markdown]
# ## What to take away
#
# * A recipe is data; task + design + store make a campaign; `train` does what is missing, on all cores.
# * A small network costs about a millisecond or a few of one core, so thousands are a matter of seconds.
# * Rows are reproducible one by one: interruption, number of workers and order leave no trace.
# * Look at reliability and accuracy against alpha before you spend: a pilot does. It knows costs, not purposes.
# * A curve of the LDS tells how many models are enough, and its forecast is an estimate.
#
# ## Try
#
# 1. Double `hidden`. What happens to cost, accuracy and reliability?
# 2. Make the forecast of section 7 from the three smallest sizes alone, and for `dm.Ridge()`. When does it fail?
# 3. Give the store a [sweep](../training.md#sweeps) over `lr`, and find out whether the learning rate or the subset
#    matters more to a margin.
#
# **Next:** [Hidden subclasses in images](03-hidden-subclasses.ipynb). **Deeper:** [Training thousands of
# models](../training.md), [Past one machine](../clusters.md).
