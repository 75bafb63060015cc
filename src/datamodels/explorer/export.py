"""The explorer as one HTML file: page, modules, Plotly and data, with no need of a server or a network."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from importlib.resources.abc import Traversable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from datamodels.errors import RequestError, first_line
from datamodels.explorer.content import SIDES, Content, Shown
from datamodels.explorer.weights import strongest
from datamodels.files import replacing

_ENTRY = "app.js"
_STYLE = '<link rel="stylesheet" href="static/style.css">'
_PLOTLY = '<script src="static/plotly.js"></script>'
_SCRIPT = '<script type="module" src="static/app.js"></script>'
POLICY = (
    "default-src 'none'; script-src 'unsafe-inline' 'unsafe-eval'; style-src 'unsafe-inline'; img-src data: blob:; "
    "font-src data:; worker-src blob:; connect-src 'none'; base-uri 'none'; form-action 'none'"
)
_KEPT = 100  # weights per target of attributions that have too many, exact, for lists
_MANY = 1_500_000  # weights of a sparse attribution that are kept whole
_ROUNDED = 6_000_000  # bytes, before base64, of all weights of the others, rounded
_DISTANCES = 2e10  # products that distances between all training examples may take
_PIXELS = 4_000_000  # of all pictures of a side

_IMPORT = re.compile(r"""import \{([^}'"]*)\} from (["'])\./([\w-]+\.js)\2;?""")
_EXPORT = re.compile(r"export (?=(?:async )?(?:function\*? ?|const |let |class )\w)")
_DECLARED = re.compile(r"(?:export )?(?:async )?(?:function\*?|const|let|var|class) (\w+)")


def export(content: Content, path: str | Path, *, umap: bool = False) -> Path:
    """Write the explorer of a content as one HTML file.

    Lists of dense attributions are of the 100 strongest weights per target. All their weights are there, rounded, where they fit in
    6 MB; else a what-if is refused when the 100 hold too little of what is asked for. It leaves out UMAP maps that were not drawn yet,
    duplicates in large datasets, and verification.

    Parameters
    ----------
    content
        What `gather` returned.
    path
        The file; one that is there is replaced in one step.
    umap
        Draw the UMAP of the subgroups' attribution, if it is not drawn yet (seconds to minutes).

    Raises
    ------
    RequestError
        when the file cannot be written, or there can be no UMAP.
    """
    path = Path(path)
    text = page(content, files("datamodels.explorer") / "static", umap=umap)
    try:
        with replacing(path) as temporary:
            temporary.write_text(text, encoding="utf-8")
    except OSError as error:
        raise RequestError(f"cannot write {str(path)!r}: {first_line(error)}") from None
    return path


def page(content: Content, static: Traversable, *, umap: bool = False) -> str:
    """The file's text, made of the page's files in a folder."""
    from plotly.offline import get_plotlyjs

    # "<" never stands in the data, so that nothing in it can end the script or begin a comment.
    data = json.dumps(data_of(content, umap=umap), allow_nan=False, separators=(",", ":")).replace("<", "\\u003c")
    script = bundle({item.name: item.read_text("utf-8") for item in static.iterdir() if item.name.endswith(".js")})
    parts = {
        _STYLE: f"<style>\n{_checked(static.joinpath('style.css').read_text('utf-8'), 'style')}\n</style>",
        _PLOTLY: f"<script>{_checked(get_plotlyjs(), 'script')}</script>",
        _SCRIPT: f'<script type="application/json" id="datamodels-data">{data}</script>\n'
        f'<script type="module">\n{_checked(script, "script")}\n</script>',
    }
    text = static.joinpath("index.html").read_text("utf-8")
    for line in parts:
        if text.count(line) != 1:
            raise RequestError(f"index.html must have the line {line} once")
    text = re.sub(
        "|".join(map(re.escape, parts)), lambda found: parts[found[0]], text
    )  # one pass: parts are not looked into
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
    title = f"<title>{escape(content.title)}</title>"
    text = re.sub("<title>.*?</title>", lambda _: title, text, count=1)
    return text.replace("<head>", f"<head>\n{policy}", 1)


def bundle(modules: Mapping[str, str], entry: str = _ENTRY) -> str:
    """Modules as one, each after those that it imports.

    Imports are ``import { a, b } from "./x.js"``, one per line, without renames; exports stand before a function, const, let or
    class. Names declared at the top level differ between modules.

    Raises
    ------
    RequestError
        when a module is written otherwise.
    """
    order: list[str] = []
    bodies: dict[str, str] = {}
    declared: dict[str, str] = {}

    def visit(name: str, path: tuple[str, ...]) -> None:
        if name in path:
            raise RequestError(f"modules import each other in a circle: {' -> '.join((*path, name))}")
        if name in bodies:
            return
        if name not in modules:
            raise RequestError(f"{path[-1] if path else 'the page'} imports {name}, which is not there")
        lines = []
        for line in modules[name].splitlines():
            found = _IMPORT.fullmatch(line.strip()) if line.startswith("import") else None
            if found:
                visit(found[3], (*path, name))
                _check_names(found[1], name, found[3], modules)
                continue
            kept = _EXPORT.sub("", line, count=1) if line.startswith("export") else line
            if re.match(r"(import|export)\b(?!\()", kept):
                raise RequestError(f"{name}: cannot inline the line {line!r}")
            lines.append(kept)
            top = _DECLARED.match(kept)
            if top and declared.setdefault(top[1], name) != name:
                raise RequestError(f"{name} and {declared[top[1]]} both declare {top[1]}")
            if re.match(r"(const|let|var) [\[{]", kept):
                raise RequestError(f"{name}: names taken apart at the top level cannot be told: {line!r}")
        bodies[name] = "\n".join(lines)
        order.append(name)

    visit(entry, ())
    return "\n".join(f"// {name}\n{bodies[name]}" for name in order)


def _check_names(names: str, importer: str, name: str, modules: Mapping[str, str]) -> None:
    exported = {
        found[1]
        for line in modules[name].splitlines()
        if line.startswith("export") and (found := _DECLARED.match(line))
    }
    for one in filter(None, (part.strip() for part in names.split(","))):
        if one not in exported:
            raise RequestError(f"{importer} imports {one!r}, which {name} does not export by that name")


def _checked(text: str, tag: str) -> str:
    if re.search(rf"</{tag}|<!--", text, re.IGNORECASE) and _ends_early(text, tag):
        raise RequestError(f"a {tag} of the page has </{tag} or <!-- in it, which would end it early")
    return text


def _ends_early(text: str, tag: str) -> bool:
    """Whether HTML would take a text for ended, or hide its end: ``</tag``, or ``<!--`` followed by ``<script``."""
    lower = text.lower()
    comment = lower.find("<!--")
    return f"</{tag}" in lower or (comment >= 0 and "<script" in lower[comment:])


def data_of(content: Content, *, umap: bool = False) -> dict[str, Any]:
    """What the page reads instead of asking a server, JSON-ready; arrays in base64."""
    meta = content.meta()
    maps = list(enumerate(meta["maps"]))
    drawn_now = [k for k, one in maps if umap and (one["method"], one["attribution"]) == ("UMAP", content.embedded)]
    if umap and not drawn_now:
        raise RequestError(f"there can be no UMAP: {content.no_umap()}; leave --umap out")
    maps = [(k, one) for k, one in maps if k in drawn_now or content.is_ready(k)]
    weights, sizes = {}, _rounded_sizes(content)
    for about, shown in zip(meta["attributions"], content.attributions, strict=True):
        about["cut"] = _KEPT if _is_cut(shown) else None
        about["steps"] = _steps(sizes[shown.name]) if shown.name in sizes else None
        weights[shown.name] = _weights(shown, about["cut"])
        if about["cut"] is not None:
            weights[shown.name]["size"] = _base64((shown.sums["positive"] - shown.sums["negative"]).astype("<f4"))
        if shown.name in sizes:
            weights[shown.name] |= _rounded(shown, sizes[shown.name])
        if shown.calibrated:
            weights[shown.name]["half_widths"] = _base64(shown.half_widths.astype("<f4"))
    drawn = {side: sprites(content, side) for side in SIDES}
    copies = content.n_train**2 * content.n_features <= _DISTANCES
    meta.update(
        maps=[about for _, about in maps],
        can_verify=False,
        sprites={side: None if made is None else made[0] for side, made in drawn.items()},
    )
    return {
        "meta": meta,
        "columns": {side: {c.name: _base64(c.packed) for c in content.columns[side]} for side in SIDES},
        "maps": {about["name"]: _base64(content.map(k).astype("<f4")) for k, about in maps},
        "weights": weights,
        "agreement": {
            f"{i}/{j}": _base64(np.stack([found["overlap"], found["cosine"]]))
            for j, second in enumerate(content.attributions)
            for i, first in enumerate(content.attributions[:j])
            for found in [content.agreement(first, second)]
        },
        "details": {
            side: [_short(content.details(side, i, copies=copies)) for i in range(content.size(side))] for side in SIDES
        },
        "names": {side: content.examples[side].snippets() for side in SIDES},
        "groups": content.groups,
        "sprites": {side: [] if made is None else made[1] for side, made in drawn.items()},
    }


def _is_cut(shown: Shown) -> bool:
    nonzero = shown.sums["n_nonzero"]
    return bool((shown.file.dense or nonzero.sum() > _MANY) and nonzero.max(initial=0) > _KEPT)


def _rounded_sizes(content: Content) -> dict[str, int]:
    """Bytes per weight, 2 or 1, of those attributions that are cut and whose weights all fit in rounded."""
    cut, size = [shown.name for shown in content.attributions if _is_cut(shown)], content.n_targets * content.n_train
    if 2 * size * len(cut) <= _ROUNDED:
        return dict.fromkeys(cut, 2)
    return dict.fromkeys(cut[: _ROUNDED // size], 1)


def _steps(size: int) -> int:
    """The parts in which the largest weight of a target is told."""
    return 2 ** (8 * size - 1) - 1


def _rounded(shown: Shown, size: int) -> dict[str, str]:
    """All weights as integers (n_train, n_targets), in units of each target's largest over `_steps`, and these ``units``."""
    file = shown.file
    whole, units = np.empty((file.n_train, file.n_targets), f"<i{size}"), np.empty(file.n_targets, "<f4")
    for start, stop in file.blocks():
        block = file.block(start, stop)
        rows = block if file.dense else block.toarray()
        units[start:stop] = np.abs(rows).max(axis=1) / _steps(size)
        unit = units[start:stop, None]
        whole[:, start:stop] = np.rint(np.divide(rows, unit, out=np.zeros_like(rows), where=unit > 0)).T
    return {"rounded": _base64(whole), "units": _base64(units)}


def _weights(shown: Shown, k: int | None) -> dict[str, str]:
    """Compressed rows, one per target."""
    rows = [strongest(shown.file.row(target), k) for target in range(shown.file.n_targets)]
    starts = np.concatenate([[0], np.cumsum([len(indices) for indices, _ in rows])])
    return {
        "indptr": _base64(starts.astype("<i4")),
        "indices": _base64(np.concatenate([indices for indices, _ in rows]).astype("<i4")),
        "values": _base64(np.concatenate([values for _, values in rows]).astype("<f4")),
    }


def sprites(content: Content, side: Any) -> tuple[dict[str, Any], list[str]] | None:
    """The sheets of one side as data URLs, smaller where there are too many pictures."""
    examples = content.examples[side]
    sheets = examples.sheets()
    if sheets is None:
        return None
    width, height = sheets["tile"]
    scale = min(1.0, (_PIXELS / (len(examples) * width * height)) ** 0.5)
    tile = (max(1, int(height * scale)), max(1, int(width * scale)))
    urls = [examples.sheet_url(number, tile) for number in range(len(sheets["pages"]))]
    return {**sheets, "tile": [tile[1], tile[0]]}, urls


def _short(value: Any) -> Any:
    """The same with numbers of five figures."""
    if isinstance(value, dict):
        return {name: _short(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_short(item) for item in value]
    return float(f"{value:.5g}") if isinstance(value, float) else value


def _base64(values: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(values).tobytes()).decode()
