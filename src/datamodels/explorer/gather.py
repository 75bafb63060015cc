"""From a run's folder, or attribution files, to its `Content`. What is expensive is computed once and kept."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from datamodels.errors import RequestError
from datamodels.explorer.assemble import Opened, Sources, opened
from datamodels.explorer.content import Content
from datamodels.report.judging import Judgement

if TYPE_CHECKING:
    pass
from datamodels.explorer.gathering import Gathering


def gather(
    source: Sources,
    *,
    stores: Sources = (),
    test: str | Path | None = None,
    recipe: str | Path | None = None,
    group_by: str | None = None,
    annotated: str | Path | None = None,
    cache: str | Path | None = None,
    trust: bool = False,
    judged: Judgement | None = None,
    n_clusters: int | None = None,
    progress: bool = True,
) -> Content:
    """All that is shown of a run's folder or of attribution files.

    Parameters
    ----------
    source
        A folder with ``run.json``, or ``.h5ad`` files of attributions of the same targets, the first of which is shown first: a path,
        several, or name -> path.
    stores, test, recipe
        For files: stores that they were fitted on or are judged on, by default those that the files name; one that judges all of them;
        and a YAML file with the dataset, and how models were trained. Code that the recipe names is imported.
    group_by
        A column of targets whose values are the subgroups; by default k-means finds them.
    annotated
        An ``.h5ad`` whose observations are the targets: `group_by` is then a column of its obs, by default the one that ``subgroups
        --write-to`` has written. Rows are found by the names of targets, where these are known.
    cache
        Folder of what is computed once, for any number of sources; by default ``.explorer`` in the run's folder or beside the file.
    trust
        Whether code that ``run.json`` or a file names, as PKG.MODULE:FUNCTION of a dataset or of an architecture, may be imported
        and called.
    judged
        Scores that are known already. By default attributions are scored on their test stores, and the curve of a run is that of its
        ``results.json``.
    n_clusters
        Of subgroups that k-means finds; by default as many as hidden labels, else ten.
    progress
        Whether to show progress on standard error.

    Raises
    ------
    RequestError
        when there is nothing to show.
    """
    found = opened(source, stores=stores, test=test, recipe=recipe)
    return gather_opened(
        found,
        group_by=group_by,
        annotated=annotated,
        cache=cache,
        trust=trust,
        judged=judged,
        n_clusters=n_clusters,
        progress=progress,
    )


def gather_opened(
    found: Opened,
    *,
    group_by: str | None = None,
    annotated: str | Path | None = None,
    cache: str | Path | None = None,
    trust: bool = False,
    judged: Judgement | None = None,
    n_clusters: int | None = None,
    progress: bool = True,
) -> Content:
    """`gather` of what was opened."""
    if n_clusters is not None and (group_by is not None or annotated is not None):
        raise RequestError("a number of clusters is for k-means: leave it out where a column says the groups")
    made = Gathering(found, cache, trust or found.trusted, progress)
    return made.content(Judgement() if judged is None else judged, n_clusters, group_by, annotated)
