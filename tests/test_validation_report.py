"""All checks of subgroups together: their verdicts, the report and the page with its figures."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import pairwise, permutations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from datamodels import Design, Ridge, Store, TrainRecipe, fit, train
from datamodels.applications.subgroups import Subgroups, subgroups
from datamodels.applications.validation import Validation, confounding, validate
from datamodels.applications.validation.stability import ClusterStability, OneCluster, Separation, Spread
from datamodels.applications.validation.transfer import OnePair, Transfer
from datamodels.applications.validation.validate import _donors_seen
from datamodels.errors import RequestError
from datamodels.evaluation.retraining import Estimate
from datamodels.regression.problem import Problem
from datamodels.report.validation_page import figure_of, looks, render, save_report
from tests.test_subgroups import one_thread, problem
from tests.validation_data import QUICK, RECIPE, cells, modes, of

__all__ = ["one_thread"]  # fixtures


# -- verdicts -----------------------------------------------------------------------------------------


def whole(tmp_path: Path, *, labelled: bool, **options: Any) -> tuple[Validation, NDArray[Any]]:
    data, mode = modes(160 if labelled else 100, labelled=labelled)
    task = TrainRecipe(RECIPE, data, splits=("train",))
    design = Design(n_train=task.n_train, alpha=0.5, n_models=240)
    store = Store.create(tmp_path / "runs", schema=task.schema, design=design)
    assert train(store, task, **QUICK).ok
    rows = Problem.build(store, outputs_key="train_margins")
    attribution = fit(store, Ridge(), outputs_key="train_margins", progress=False)
    groups = subgroups(attribution, n_clusters=4 if labelled else 3, n_components=4)
    options = {"columns": {"mode": mode.astype(str)}, **options} if labelled else options
    found = validate(
        rows, groups, task=task, folder=tmp_path / "check", n_refits=2, shuffles=19, null_models=20, replicates=4,
        x=data.train.flat, **options, **QUICK,
    )  # fmt: skip
    return found, mode


def test_planted_subgroups_hold_and_what_they_are_is_named(tmp_path: Path) -> None:
    from sklearn.metrics import adjusted_rand_score

    found, mode = whole(tmp_path, labelled=True)
    assert adjusted_rand_score(mode, found.groups.clusters) > 0.9
    words = {one.question: one.word for one in found.verdicts()}
    assert words.pop("Clusters are no known confounder") == "does not hold"
    assert set(words.values()) == {"holds"}
    assert "mode: strong association (Cramér's V = 0.9" in found.report()
    free = replace(found, confounders=None)
    assert free.holds
    assert (
        free.summary()
        == "The subgroups passed every check that was made. Not tested: Clusters are no known confounder."
    )
    page = save_report(found, tmp_path / "page.html").read_text()
    assert "does not hold" in page
    assert "data:image/png;base64," in page
    assert "http" not in page.replace("http-equiv", "")
    json.dumps(found.to_dict())


def test_labels_drawn_by_lot_do_not_pass(tmp_path: Path) -> None:
    found, _ = whole(tmp_path, labelled=False)
    assert found.null is not None
    assert found.null.p > 0.05
    assert not found.holds
    assert "Do not report these subgroups" in found.summary()
    assert "Datamodels of shuffled labels agree as well as these do" in found.report()


def test_without_the_recipe_the_report_says_what_was_not_tested() -> None:
    data, labels = problem()
    found = validate(data, of(data, 3), labels=labels, n_refits=3, progress=False)
    assert not found.holds
    text = found.report()
    assert "too little was tested" in text or "the labels again" in text
    assert "Datamodels depend on the labels: NOT TESTED" in text
    assert "the clusters are the labels again, nothing hidden" in text
    assert "not tested" in render(found)
    with pytest.raises(RequestError, match="task and folder go together"):
        validate(data, of(data, 3), task=TrainRecipe(RECIPE, modes()[0]))
    with pytest.raises(RequestError, match="labels have shape"):
        validate(data, of(data, 3), labels=[1])


def test_too_few_donors_are_said_and_the_rest_is_tested(tmp_path: Path) -> None:
    data = cells(groups=4, each=15)
    rows, _ = problem(
        n_groups=3, per_group=20, m=80
    )  # other models of as many targets: what they are does not matter here
    task = TrainRecipe(RECIPE, data, splits=("train",))
    rows = replace(rows, train_columns=np.arange(60))
    groups = Subgroups(np.repeat([0, 1, 2], 20), np.random.default_rng(0).normal(size=(60, 4)), "kmeans")
    how: dict[str, Any] = {"task": task, "folder": tmp_path, "n_refits": 2, "replicates": 2, **QUICK}
    found = validate(rows, groups, **how)
    assert found.null is None
    assert not found.holds
    assert "NOT TESTED. The dataset's donors leave too little to shuffle" in found.report()
    assert "and there are 6 ways to" in found.report()
    assert found.donors_seen == 60
    assert "Donors were not kept together: 60 of 60 targets" in found.report()
    assert "Donors were not kept together" in render(found)
    assert "cannot be tested: fewer than 2 donors in" in found.report()
    with pytest.raises(RequestError, match="there are 6 ways to"):
        validate(rows, groups, donors=data.train.groups, **how)


@pytest.mark.parametrize("kind", ["grouped", "fixed_size"])
def test_models_that_saw_the_donors_of_targets_are_counted(kind: Any) -> None:
    data = cells(groups=12, each=5)
    task = TrainRecipe(RECIPE, data, splits=("train",))
    extra = {"groups": data.train.groups} if kind == "grouped" else {}
    masks = Design(n_train=60, alpha=0.5, n_models=40, kind=kind, **extra).masks()
    rows = replace(Problem.build(masks=masks, outputs=np.zeros((40, 60))), train_columns=np.arange(60))
    expected = 0 if kind == "grouped" else 60
    assert _donors_seen(rows, task, None, None) == expected
    assert _donors_seen(rows, task, False, None) is None
    lone = np.arange(60)
    assert _donors_seen(rows, task, lone, None) == 0
    both = replace(task, dataset=replace(data, test=data.train.take([0, 59])))
    tested = Problem.build(masks=masks, outputs=np.zeros((40, 2)))
    assert _donors_seen(tested, both, None, None) == 2
    assert _donors_seen(tested, both, None, np.array([0, 99])) == 1


# -- figures ------------------------------------------------------------------------------------------


def many(n_clusters: int, n_classes: int) -> Validation:
    """A validation of many clusters, made up."""
    clusters = np.r_[np.repeat(np.arange(n_clusters), 10), -1, -1]
    groups = Subgroups(clusters, np.random.default_rng(0).normal(size=(len(clusters), 2)), "hdbscan")
    spread = Spread(0.8, 0.7, 0.9)
    stable = ClusterStability(
        spread,
        tuple(OneCluster(k, 10, spread) for k in range(n_clusters)),
        Separation(0.9, 0.5, 0.01),
        20,
        0.95,
        np.zeros(20),
    )
    pairs = [(a % n_classes, a, b) for a, b in permutations(range(n_clusters), 2) if a % n_classes == b % n_classes]
    drops = tuple(OnePair(*pair, 5, Estimate(0.3, 0.1, 0.4), Estimate(1, 0, 2)) for pair in pairs)
    return Validation(groups, stable, transfer=Transfer(drops, 10, 0.95, ("T cell", "monocyte")[:n_classes]))


def test_names_with_dollars_are_drawn_as_they_are() -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    named = many(4, 2)
    assert named.transfer is not None
    clusters = named.groups.clusters
    columns = {"cost_$\\foo$": np.arange(len(clusters)) * 0.5, "a$b_c$d": np.arange(len(clusters)) % 3}
    for count in (4, 20):
        one = many(count, 2)
        assert one.transfer is not None
        one = replace(one, transfer=replace(one.transfer, class_names=("$\\foo$", "$x_1$")))
        if count == 4:
            one = replace(one, confounders=confounding(clusters, columns))
        figure = figure_of(one)
        FigureCanvasAgg(figure).draw()
        texts = {tick.get_text() for axes in figure.axes for tick in axes.get_yticklabels()}
        assert any("$\\foo$" in text for text in texts)
        assert all(
            not tick.get_parse_math()
            for axes in figure.axes
            for tick in axes.get_yticklabels()
            if "$" in tick.get_text()
        )


@pytest.mark.parametrize(("n_clusters", "n_classes"), [(4, 2), (30, 1), (30, 2), (60, 2)])
def test_figures_of_many_clusters_can_be_read(n_clusters: int, n_classes: int) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    validation = many(n_clusters, n_classes)
    found = looks(validation.groups.clusters)
    assert len(set(found.values())) == min(n_clusters, 30) + 1
    figure = figure_of(validation)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    titles = [axes.get_title() for axes in figure.axes]
    assert titles[:3] == ["embedding", "clusters in refits (ARI 0.80)", "transfer between subgroups"]
    for axes in figure.axes:
        for axis in (axes.xaxis, axes.yaxis):
            boxes = [tick.get_window_extent(canvas.get_renderer()) for tick in axis.get_ticklabels() if tick.get_text()]
            assert not any(one.overlaps(other) for one, other in pairwise(boxes)), (axes.get_title(), axis)
    assert bool(figure.axes[2].images) == (n_clusters > 4)
    assert (figure.axes[0].get_legend() is None) == (n_clusters > 30)
    if n_clusters == 30:
        box, inside = figure.axes[0].get_legend().get_window_extent(), figure.bbox
        assert inside.x0 <= box.x0 <= box.x1 <= inside.x1
        assert inside.y0 <= box.y0 <= box.y1 <= inside.y1
