"""Judge a run or attributions and write their page: the explorer as one file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from datamodels.attribution import Attribution
from datamodels.errors import RequestError, first_line
from datamodels.explorer.assemble import Opened, Sources, load_run, opened
from datamodels.explorer.content import Content
from datamodels.explorer.export import export
from datamodels.explorer.gather import gather, gather_opened
from datamodels.progress import note
from datamodels.report.judging import Judgement, judge, judge_run, save_results

PAGE = "index.html"


def report_run(
    folder: str | Path,
    *,
    group_by: str | None = None,
    annotated: str | Path | None = None,
    n_clusters: int | None = None,
    trust: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """Judge the attributions of a run and write ``index.html`` and ``results.json`` beside ``run.json``.

    Parameters
    ----------
    folder
        Of the run.
    group_by, annotated, n_clusters, trust
        As in `gather`.
    progress
        Whether to show progress on standard error.

    Returns
    -------
    dict
        ``attributions`` (name -> scores), ``curve``, ``subgroups`` and ``page``.
    """
    folder = Path(folder)
    load_run(folder)
    judged = judge_run(folder, progress=progress)
    content = gather(
        folder,
        group_by=group_by,
        annotated=annotated,
        n_clusters=n_clusters,
        trust=trust,
        judged=judged,
        progress=progress,
    )
    results = _results(judged, content, export(content, folder / PAGE))
    save_results(folder, results)
    return results


def report_attribution(
    source: Sources,
    stores: Sequence[str | Path] = (),
    *,
    test: str | Path | None = None,
    recipe: str | Path | None = None,
    group_by: str | None = None,
    annotated: str | Path | None = None,
    out: str | Path | None = None,
    masks_key: str | None = None,
    outputs_key: str | None = None,
    n_clusters: int | None = None,
    trust: bool = False,
    progress: bool = True,
) -> dict[str, Any]:
    """The page of attribution files, beside the first by default, with their scores on rows that the fits have not used.

    Parameters
    ----------
    source
        Attribution files, as in `gather`.
    stores, test
        As in `gather`; scores are of `test`, else of all `stores`, else of those that the files name, where rows are left.
    recipe, group_by, annotated, n_clusters, trust
        As in `gather`.
    out
        The page; by default beside the first file, with the suffix ``.html``.
    masks_key, outputs_key
        Of the stores that are judged on; those of the fit by default.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when stores are given and hold no unused row.
    """
    found = opened(source, stores=stores, test=test, recipe=recipe)
    judged = _judged(found, [*stores] if test is None else [test], masks_key, outputs_key)
    content = gather_opened(
        found,
        group_by=group_by,
        annotated=annotated,
        n_clusters=n_clusters,
        trust=trust,
        judged=judged,
        progress=progress,
    )
    return _results(judged, content, export(content, found.source.with_suffix(".html") if out is None else out))


def _judged(found: Opened, given: Sequence[str | Path], masks_key: str | None, outputs_key: str | None) -> Judgement:
    """Scores of the files of a run that was made of them; those on stores that nobody gave only where rows are left."""
    scores = {}
    for name, item in found.run.attributions.items():
        on = given or ([] if item.test is None else [found.run.place(found.root, item.test)])
        if not on:
            continue
        try:
            attribution = Attribution.load(found.root / item.path)
            scores[name] = judge(attribution, on, masks_key=masks_key, outputs_key=outputs_key)
        except RequestError as error:
            if given:
                raise
            note(f"{name} is not judged: {first_line(error)}")
    return Judgement(scores)


def _results(judged: Judgement, content: Content, page: Path) -> dict[str, Any]:
    return {**judged.to_dict(), "subgroups": content.subgroups, "page": str(page)}
