"""The page of a validation: what holds, what does not, and the numbers behind it."""

from __future__ import annotations

import base64
import io
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.applications.validation import Transfer, Validation
from datamodels.files import replacing

_COLOURS = {"holds": "#1f6fb2", "does not hold": "#c2462e", "not tested": "#888888"}
_MARKERS = 8
_SHAPES = "osD"  # with ten colours each, 30 looks
_NOISE = "#bbbbbb"
_TICKS = 15  # names of clusters beside each other
_AS_WRITTEN: dict[str, Any] = {"fontsize": 7, "parse_math": False}  # names of classes and columns, which may hold $
_BARS = 16  # pairs of subgroups with intervals; more are a table of colours


def save_report(validation: Validation, path: str | Path, *, title: str = "Are these subgroups real?") -> Path:
    """Write a validation as one self-contained HTML page.

    Parameters
    ----------
    validation
        What `validate` returned.
    path
        The file; one that is there is replaced in one step.
    title
        Of the page.
    """
    path = Path(path)
    with replacing(path) as temporary:
        temporary.write_text(render(validation, title=title))
    return path


def render(validation: Validation, *, title: str = "Are these subgroups real?") -> str:
    """The page as text without outside references."""
    rows = "".join(
        f"<tr><th>{escape(one.question)}<td style='color:{_COLOURS[one.word]};white-space:nowrap'><b>{one.word}</b>"
        f"<td>{escape(one.words)}"
        for one in validation.verdicts()
    )
    picture = io.BytesIO()
    figure_of(validation).savefig(picture, format="png", dpi=110)
    source = f"data:image/png;base64,{base64.b64encode(picture.getvalue()).decode()}"
    style = files("datamodels.report").joinpath("static/page.css").read_text()
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, '
        f'initial-scale=1"><title>{escape(title)}</title><link rel="icon" href="data:,"><style>{style}img{{max-width:100%}}</style>'
        f"</head><body><main><h1>{escape(title)}</h1><p class=verdict>{escape(validation.summary())}</p>"
        f"{f'<p>{escape(validation.warning())}</p>' if validation.warning() else ''}"
        f"<section><h2>The checks</h2><div class=scroll><table><tbody>{rows}</table></div></section>"
        f"<section><h2>The numbers</h2><img alt='figures of the checks' src='{source}'></section>"
        f"{_markers(validation)}</main></body></html>"
    )


def figure_of(validation: Validation) -> Any:
    """All figures side by side, of matplotlib."""
    from matplotlib.figure import Figure

    draw = [_draw_map, _draw_stability]
    draw += [_draw_null] if validation.null is not None else []
    draw += [_draw_confounders] if validation.confounders is not None else []
    draw += [_draw_transfer] if validation.transfer is not None else []
    figure = Figure(figsize=(4.6 * min(len(draw), 3), 3.6 * -(-len(draw) // 3)), layout="constrained")
    for i, one in enumerate(draw):
        one(figure.add_subplot(-(-len(draw) // 3), min(len(draw), 3), i + 1), validation)
    return figure


def looks(clusters: NDArray[Any]) -> dict[int, tuple[str, str]]:
    """Colour and shape of each cluster: 30 differ; noise is grey."""
    from matplotlib import colormaps
    from matplotlib.colors import rgb2hex

    colours = [rgb2hex(colormaps["tab10"](k)) for k in range(10)]
    numbers = np.unique(clusters[clusters >= 0]).tolist()
    found = {one: (colours[k % 10], _SHAPES[k // 10 % len(_SHAPES)]) for k, one in enumerate(numbers)}
    return {-1: (_NOISE, ".")} | found if (clusters < 0).any() else found


def _draw_map(axes: Any, validation: Validation) -> None:
    groups = validation.groups
    second = groups.embedding[:, 1] if groups.embedding.shape[1] > 1 else np.zeros(len(groups.clusters))
    found = looks(groups.clusters)
    for number, (colour, shape) in found.items():
        members = groups.clusters == number
        name = "none" if number < 0 else str(number)
        axes.scatter(groups.embedding[members, 0], second[members], s=6, color=colour, marker=shape, label=name)
    axes.set(title="embedding", xlabel="component 1", ylabel="component 2")
    if len(found) <= 10 * len(_SHAPES) + 1:
        axes.legend(
            title="cluster", fontsize=6, title_fontsize=7, markerscale=2, ncols=-(-len(found) // 12), handletextpad=0.1,
            columnspacing=0.6, **({} if len(found) <= 12 else {"loc": "upper left", "bbox_to_anchor": (1, 1)}),
        )  # fmt: skip


def _draw_stability(axes: Any, validation: Validation) -> None:
    found = validation.stability
    at = np.arange(len(found.clusters))
    means = np.array([one.jaccard.value for one in found.clusters])
    spread = np.array(
        [[m - one.jaccard.low, one.jaccard.high - m] for m, one in zip(means, found.clusters, strict=True)]
    )
    axes.errorbar(at, means, yerr=np.abs(spread.T), fmt="o", color="#1f6fb2")
    for level in (0.6, 0.75):
        axes.axhline(level, color="#888888", linewidth=0.7, linestyle=":")
    axes.set(
        title=f"clusters in refits (ARI {found.ari.value:.2f})",
        xlabel="cluster",
        ylabel="Jaccard index",
        ylim=(0, 1.05),
    )
    names = [str(one.cluster) for one in found.clusters]
    step = -(-len(names) // _TICKS)
    axes.set_xticks(at[::step], names[::step], fontsize=7)


def _draw_null(axes: Any, validation: Validation) -> None:
    found = validation.null
    assert found is not None
    axes.hist(found.null, bins=20, color="#bbbbbb")
    axes.axvline(found.observed, color="#c2462e")
    axes.set(title=f"shuffled labels (p = {found.p:.3g})", xlabel="mean cosine of datamodels", ylabel="shuffles")


def _draw_confounders(axes: Any, validation: Validation) -> None:
    assert validation.confounders is not None
    rows = list(validation.confounders.columns)[::-1]
    colours = [_COLOURS["does not hold" if one.confounds(validation.level) else "holds"] for one in rows]
    axes.barh(np.arange(len(rows)), [one.effect for one in rows], color=colours)
    axes.set_yticks(np.arange(len(rows)), [f"{one.column} ({one.measure})" for one in rows], **_AS_WRITTEN)
    axes.set(title="known columns", xlabel="effect size", xlim=(0, 1))


def _draw_transfer(axes: Any, validation: Validation) -> None:
    """Pairs of subgroups with their intervals; where there are many, the accuracy lost as a colour, sure pairs marked."""
    found = validation.transfer
    assert found is not None
    axes.set_title("transfer between subgroups")
    if len(found.pairs) > _BARS:
        _draw_pairs(axes, found)
        return
    at = np.arange(len(found.pairs))
    drops = np.array([pair.drop for pair in found.pairs])
    axes.errorbar(drops[:, 0], at, xerr=np.abs(drops[:, 1:] - drops[:, :1]).T, fmt="o", color="#1f6fb2")
    axes.axvline(0, color="#888888", linewidth=0.7)
    names = [f"{found.class_names[pair.label]}: {pair.source} → {pair.to}" for pair in found.pairs]
    axes.set_yticks(at, names, **_AS_WRITTEN)
    axes.set_xlabel("accuracy lost")


def _draw_pairs(axes: Any, found: Transfer) -> None:
    groups = sorted({(pair.label, one) for pair in found.pairs for one in (pair.source, pair.to)})
    place = {group: k for k, group in enumerate(groups)}
    table, sure = np.full((len(groups), len(groups)), np.nan), []
    for pair in found.pairs:
        at = place[pair.label, pair.source], place[pair.label, pair.to]
        table[at] = pair.drop.value
        if pair.drop.low > 0:
            sure.append(at)
    image = axes.imshow(table, cmap="RdBu_r", vmin=-1, vmax=1, aspect="auto")
    axes.plot(*np.array(sure).reshape(-1, 2).T[::-1], ".", color="black", markersize=2, linestyle="none")
    axes.figure.colorbar(image, ax=axes, label="accuracy lost (dot: surely)")
    several = len({label for label, _ in groups}) > 1
    names = [f"{found.class_names[label]}: {one}" if several else str(one) for label, one in groups]
    step = -(-len(names) // _TICKS)
    how = {**_AS_WRITTEN, "fontsize": 6}
    axes.set_yticks(np.arange(len(names))[::step], names[::step], **how)
    axes.set_xticks(np.arange(len(names))[::step], names[::step], **how, rotation=90 if several else 0)
    axes.set(xlabel="tested on", ylabel="trained on")


def _markers(validation: Validation) -> str:
    found = validation.markers
    if found is None:
        return ""
    rows = ""
    for number, count in zip(found.clusters, found.counts(validation.level), strict=True):
        top = "; ".join(
            f"{escape(row['feature'])} ({row['auc']:.2f})" for row in found.of(int(number), _MARKERS, validation.level)
        )
        rows += f"<tr><th>{number}<td>{count}<td>{top or 'none'}"
    return (
        "<section><h2>Markers</h2><p>Features that differ between a cluster and the rest, with their AUC. They describe: the "
        "clusters were found through models of the same features, so their p-values prove nothing.</p><div class=scroll><table>"
        f"<thead><tr><th>cluster<th>features at FDR {validation.level:g}<th>strongest<tbody>{rows}</table></div></section>"
    )
