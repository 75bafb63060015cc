"""Judge a run or an attribution and write its page: the explorer as one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodels.explorer.content import Content
from datamodels.explorer.export import export
from datamodels.explorer.gather import gather
from datamodels.report.judging import Judgement, judge_file, judge_run, save_results

PAGE = "index.html"


def report_run(folder: str | Path, *, trust: bool = False, progress: bool = True) -> dict[str, Any]:
    """Judge the attributions of a run and write ``index.html`` and ``results.json`` beside ``run.json``.

    Parameters
    ----------
    trust
        As in `gather`.

    Returns
    -------
    dict
        ``attributions`` (name -> scores), ``curve``, ``subgroups`` and ``page``.
    """
    folder = Path(folder)
    judged = judge_run(folder, progress=progress)
    content = gather(folder, trust=trust, judged=judged, progress=progress)
    results = _results(judged, content, export(content, folder / PAGE))
    save_results(folder, results)
    return results


def report_attribution(
    path: str | Path,
    stores: Sequence[str | Path] = (),
    *,
    out: str | Path | None = None,
    masks_key: str | None = None,
    outputs_key: str | None = None,
    n_clusters: int | None = None,
) -> dict[str, Any]:
    """The page of one attribution file, beside it by default; with stores that hold unused rows, its scores too."""
    judged = judge_file(path, stores, masks_key=masks_key, outputs_key=outputs_key)
    content = gather(path, judged=judged, n_clusters=n_clusters)
    return _results(judged, content, export(content, Path(path).with_suffix(".html") if out is None else out))


def _results(judged: Judgement, content: Content, page: Path) -> dict[str, Any]:
    return {**judged.to_dict(), "subgroups": content.subgroups, "page": str(page)}
