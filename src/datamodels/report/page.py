"""The page: what was run, whether it is right, and what it shows. Knows nothing of files."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from html import escape
from importlib.resources import files
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.applications.neighbours import Neighbours, neighbours
from datamodels.applications.subgroups import Subgroups
from datamodels.attribution import Attribution, Top
from datamodels.evaluation.curve import Curve
from datamodels.evaluation.lds import LDS
from datamodels.report.sprites import Sheet, sheet

_NEIGHBOURS = 8


@dataclass
class Examples:
    """How to show the examples of one split: names (k,), and pictures (k, height, width) or (k, height, width, 3) or None."""

    names: Sequence[str]
    images: NDArray[np.uint8] | None = None


@dataclass
class Page:
    """Everything that a page shows; parts that are None are left out."""

    title: str
    facts: list[tuple[str, str]]
    scores: dict[str, LDS]
    attribution: Attribution
    train: Examples
    targets: Examples
    shown_targets: Sequence[int]
    shown_name: str = ""
    curve: Curve | None = None
    curve_name: str = ""
    groups: Subgroups | None = None
    groups_name: str = ""
    labels: NDArray[Any] | None = None
    labels_name: str = "label"
    map_examples: Examples | None = None
    mean_outputs: NDArray[np.float64] | None = None
    commands: list[str] = field(default_factory=list)


def render(page: Page) -> str:
    """The page as one HTML text without outside references."""
    from plotly.offline import get_plotlyjs

    static = files("datamodels.report") / "static"
    near = [neighbours(page.attribution, int(target), _NEIGHBOURS) for target in page.shown_targets]
    mapped = page.map_examples or page.targets
    sheets = {
        "train": _sheet(
            page.train, (i for found in near for top in (found.helpful, found.harmful) for i in top.indices)
        ),
        "target": _sheet(page.targets, page.shown_targets),
        "map": None if page.groups is None else _sheet(mapped, range(len(mapped.names))),
    }
    parts = {
        "title": escape(page.title),
        "style": static.joinpath("page.css").read_text() + _sheet_css(sheets),
        "body": "\n".join(
            [
                _verdict(page),
                _facts(page),
                _scores(page),
                _neighbours(page, near, sheets),
                _map(page),
                _clusters(page),
            ]
        ),
        "data": json.dumps(_data(page, sheets), allow_nan=False).replace("<", "\\u003c"),
        "plotly": get_plotlyjs(),
        "script": static.joinpath("page.js").read_text(),
    }
    text = static.joinpath("page.html").read_text()
    return re.sub(r"<!--(\w+)-->", lambda found: parts[found[1]], text)  # one pass: values are not looked into


def _sheet(examples: Examples, shown: Iterable[int]) -> Sheet | None:
    """The pictures of the examples that the page shows; None when there are none."""
    chosen = np.unique(np.fromiter(shown, np.int64))
    return None if examples.images is None or not len(chosen) else sheet(examples.images, chosen)


def _sheet_css(sheets: dict[str, Sheet | None]) -> str:
    return "".join(
        f".{name}-picture{{background-image:url({s.uri});background-size:{100 * s.columns}% {100 * s.rows}%}}"
        for name, s in sheets.items()
        if s is not None
    )


def _verdict(page: Page) -> str:
    """The proof in one sentence."""
    name, best = page.shown_name, page.scores.get(page.shown_name)
    if best is None:
        return ""
    low, high = best.lds_ci
    ceiling = (
        f" The best that is possible against noisy single runs is about {best.lds_ceiling:.2f}."
        if best.lds_ceiling
        else ""
    )
    return (
        f"<p class=verdict>On {best.n_models:,} models that it has never seen, the {escape(name)} datamodel predicts the order of "
        f"outputs with a rank correlation of <b>{best.lds:.3f}</b> (95&nbsp;% interval {low:.3f} to {high:.3f}).{ceiling}</p>"
    )


def _facts(page: Page) -> str:
    rows = "".join(f"<tr><th>{escape(name)}<td>{escape(value)}" for name, value in page.facts)
    commands = "".join(f"<code>{escape(command)}</code><br>" for command in page.commands)
    again = f"<p>To make it again:<br>{commands}</p>" if commands else ""
    return f"<section><h2>What was run</h2><table class=facts>{rows}</table>{again}</section>"


def _scores(page: Page) -> str:
    if not page.scores:
        return ""
    rows = []
    for name, score in page.scores.items():
        ceiling = "" if score.lds_ceiling is None else f"{score.lds_ceiling:.3f}"
        rows.append(
            f"<tr><th>{escape(name)}<td>{score.lds:.3f}<td>{score.lds_ci[0]:.3f} to {score.lds_ci[1]:.3f}<td>{ceiling}"
            f"<td>{score.pearson:.3f}<td>{score.r2:.3f}<td>{score.n_models:,}<td>{score.n_targets:,}"
        )
    note = ""
    if page.curve is not None and page.curve.asymptote is not None:
        size, last = int(page.curve.sizes[-1]), page.curve.scores[-1].lds
        note = (
            f"<p>With {size:,} models the {escape(page.curve_name)} reaches {last:.3f}. Twice as many would reach about "
            f"{page.curve.at(2 * size):.3f}, without limit about {page.curve.asymptote:.3f}. These are estimates: they assume that "
            "1/LDS² falls in proportion to 1/models.</p>"
        )
    return (
        "<section><h2>Is it right?</h2><p>The linear datamodelling score (LDS) is the rank correlation between predicted and "
        "true outputs over models that the fit has not used, averaged over targets. Intervals are bootstraps over models and "
        "targets; a noise ceiling, where there is one, comes from repeated runs of the same subsets.</p>"
        "<div class=scroll><table><thead><tr><th>fit<th>LDS<th>95 % interval<th>noise ceiling<th>Pearson<th>R²<th>models<th>targets"
        f"<tbody>{''.join(rows)}</table></div><div class=plots>{'<div id=curve></div>' if page.curve else ''}<div id=histogram></div></div>{note}</section>"
    )


def _neighbours(page: Page, near: Sequence[Neighbours], sheets: dict[str, Sheet | None]) -> str:
    rows = [
        f"<div class=row><div class=target>{_picture('target', found.target, page.targets, sheets)}</div>"
        f"<div class=side>{_side(found.helpful, page, sheets, 'helpful')}</div>"
        f"<div class=side>{_side(found.harmful, page, sheets, 'harmful')}</div></div>"
        for found in near
    ]
    names = f"Names are the hidden {escape(page.labels_name)}." if page.labels is not None else ""
    return (
        f"<section><h2>Which training examples drive a prediction</h2><p>Weights of the {escape(page.shown_name)} datamodel, in "
        "output units: how much the output changes when the example joins the training set. "
        f"{names}</p>"
        "<div class=grid><div class='row head'><div class=target>target</div><div class=side>most helpful</div>"
        f"<div class=side>most harmful</div></div>{''.join(rows)}</div></section>"
    )


def _side(top: Top, page: Page, sheets: dict[str, Sheet | None], kind: str) -> str:
    if not len(top.indices):
        return "<span class=none>none</span>"
    cells = (
        f"<figure class={kind}>{_picture('train', int(i), page.train, sheets)}<figcaption>{weight:+.3f}</figcaption></figure>"
        for i, weight in zip(top.indices, top.weights, strict=True)
    )
    return "".join(cells)


def _picture(kind: str, i: int, examples: Examples, sheets: dict[str, Sheet | None]) -> str:
    what = "training example" if kind == "train" else "target"
    name, label = escape(str(examples.names[i])), f"{what} {i}"
    pictures = sheets[kind]
    if pictures is None:
        return f"<span class=label title='{label}'>{name}</span>"
    return (
        f"<div class='picture {kind}-picture' style='{pictures.style(i)}' role=img aria-label='{label}: {name}' "
        f"title='{label}'></div><span class=label>{name}</span>"
    )


def _map(page: Page) -> str:
    if page.groups is None:
        return ""
    return (
        f"<section><h2>The map of predictions</h2><p>Every point is a target; near points rest on the same training examples "
        f"(first two principal components of the unit-normalised {escape(page.groups_name)} datamodels). Hover for the example.</p>"
        "<p><label>Colour by <select id=colour></select></label></p><div id=map></div><div id=legend></div>"
        "<div id=hover hidden></div></section>"
    )


def _clusters(page: Page) -> str:
    groups = page.groups
    if groups is None:
        return ""
    agreement = ""
    if groups.ari is not None:
        agreement = (
            f"<p>Models never saw the {escape(page.labels_name)}. Clusters agree with it to an adjusted Rand index of "
            f"<b>{groups.ari:.3f}</b> (NMI {groups.nmi:.3f})"
        )
        if groups.ari_baseline is not None:
            agreement += (
                f"; the same pipeline on raw features reaches {groups.ari_baseline:.3f} (NMI {groups.nmi_baseline:.3f})"
            )
        agreement += ".</p>"
    labelled = page.labels is not None
    head = f"<th>commonest {escape(page.labels_name)}<th>share" if labelled else ""
    rows = ""
    for row in groups.table(page.labels):
        more = (
            f"<td>{escape(str(row['label']))}<td><meter value={row['share']:.3f}></meter> {row['share']:.0%}"
            if labelled
            else ""
        )
        rows += f"<tr><th>{row['cluster']}<td>{row['size']}{more}"
    return f"<section><h2>Subgroups</h2>{agreement}<table><thead><tr><th>cluster<th>targets{head}<tbody>{rows}</table></section>"


def _numbers(values: NDArray[np.float64]) -> list[float | None]:
    return [round(float(value), 3) if np.isfinite(value) else None for value in values]


def _data(page: Page, sheets: dict[str, Sheet | None]) -> dict[str, Any]:
    """What the script draws."""
    out: dict[str, Any] = {}
    if page.curve is not None:
        last = int(page.curve.sizes[-1])
        ahead = np.geomspace(last, 4 * last, 20)
        first = page.curve.scores[-1]
        out["curve"] = {
            "models": page.curve.sizes.tolist(),
            "lds": page.curve.lds.tolist(),
            "low": [score.lds_ci[0] for score in page.curve.scores],
            "high": [score.lds_ci[1] for score in page.curve.scores],
            "ahead": ahead.tolist() if page.curve.asymptote is not None else [],
            "estimate": [page.curve.at(m) for m in ahead],
            "ceiling": first.lds_ceiling,
            "name": page.curve_name,
        }
    out["histograms"] = {
        name: np.round(score.per_target[~np.isnan(score.per_target)], 4).tolist()
        for name, score in page.scores.items()
        if name in (page.shown_name, page.groups_name)
    }
    if page.groups is not None:
        colours = {"cluster": [str(c) for c in page.groups.clusters]}
        if page.labels is not None:
            colours = {page.labels_name: [str(label) for label in page.labels], **colours}
        pictures = sheets["map"]
        out["map"] = {
            "x": np.round(page.groups.embedding[:, 0], 5).tolist(),
            "y": np.round(page.groups.embedding[:, 1], 5).tolist() if page.groups.embedding.shape[1] > 1 else None,
            "names": [str(name) for name in (page.map_examples or page.targets).names],
            "colours": colours,
            "outputs": None if page.mean_outputs is None else _numbers(page.mean_outputs),
            "sheet": None if pictures is None else [pictures.columns, pictures.rows],
        }
    return out
