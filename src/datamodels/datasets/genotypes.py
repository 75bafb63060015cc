"""Genotypes from PLINK files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from datamodels.datasets.base import Dataset
from datamodels.datasets.samples import (
    INSTALL,
    Missing,
    Unlabelled,
    column,
    dataset_of,
    read_table,
    spell,
    without_missing,
)
from datamodels.errors import RequestError, first_line

if TYPE_CHECKING:
    import pandas as pd

_FAM = ("fid", "iid", "father", "mother", "sex", "pheno")
_NO_PHENOTYPE = ["-9", "0", "NA", "na", "nan", "NaN", ""]


def from_plink(
    source: str | Path,
    label: str | Mapping[str, Any] = "pheno",
    *,
    table: pd.DataFrame | str | Path | None = None,
    sample: str = "iid",
    hidden: str | None = None,
    groups: str | None = None,
    obs: Sequence[str] | None = None,
    missing: Missing = "mean",
    unlabelled: Unlabelled = "refuse",
    name: str | None = None,
) -> Dataset:
    """Samples of ``.bed``, ``.bim`` and ``.fam`` files; all are training examples, and targets out of mask, see `Dataset`.

    x (samples, variants) holds 0, 1 or 2: how many copies of allele 1 of the ``.bim`` a sample has.

    Parameters
    ----------
    source
        The ``.bed`` file, with or without its suffix; the others lie beside it.
    label
        Column that models are trained on, or sample name (IID) -> label. Columns are those of the ``.fam`` (``fid``, ``iid``,
        ``father``, ``mother``, ``sex``, ``pheno``) and of `table`. ``pheno`` is missing where it is -9, 0 or NA, as in PLINK.
    table
        Further columns, with the names of samples (IID) in one of them: a data frame, ``.csv``, ``.tsv`` or ``.parquet``.
        Its columns go before those of the ``.fam``; its samples may be more, fewer and in another order.
    sample
        Column of `table` with the names of samples.
    hidden, obs, unlabelled, name
        As in `from_anndata`.
    groups
        Column of what goes in or out together, see `Split`; ``fid`` keeps families together.
    missing
        Genotypes that are not called: ``mean``: twice the frequency of allele 1 among all samples, those that a model does not
        see included; ``subset``: left missing, for `datamodels.training.preparation.Preparation` to fill in twice the frequency
        in each model's own subset; ``refuse``.

    Raises
    ------
    RequestError
        when files cannot be read or do not go together, or a column is not there.
    """
    try:
        from bed_reader import open_bed
    except ImportError:
        raise RequestError(f"PLINK files need bed-reader; {INSTALL}") from None

    bed = Path(source) if Path(source).suffix == ".bed" else Path(f"{source}.bed")
    for path in (bed, bed.with_suffix(".bim"), bed.with_suffix(".fam")):
        if not path.is_file():
            raise RequestError(f"there is no file {str(path)!r}; .bed, .bim and .fam lie side by side")
    try:
        with open_bed(bed, num_threads=1) as opened:
            x: NDArray[np.float32] = opened.read(dtype="float32", order="C")
            fam = {key: getattr(opened, key) for key in _FAM}
            variants = [
                f"{chromosome}:{position}" if sid == "." else str(sid)
                for sid, chromosome, position in zip(opened.sid, opened.chromosome, opened.bp_position, strict=True)
            ]
    except (OSError, ValueError, IndexError) as error:
        raise RequestError(f"cannot read {str(bed)!r} as a PLINK file: {first_line(error)}") from error
    facts = _facts(fam, table, sample)
    if isinstance(label, Mapping):
        facts["label"] = facts["iid"].map(dict(label))
    if name is None and isinstance(label, str) and (table is None or isinstance(table, str | Path)):
        options = {
            "label": label, "table": None if table is None else str(table), "sample": None if sample == "iid" else sample,
            "hidden": hidden, "groups": groups, "obs": obs, "missing": None if missing == "mean" else missing,
            "unlabelled": None if unlabelled == "refuse" else unlabelled,
        }  # fmt: skip
        name = spell("plink", source, options)
    return dataset_of(
        name or "plink",
        without_missing(x, missing, str(bed), variants),
        facts,
        "the .fam" if table is None else "the .fam with the table",
        ids=facts["iid"],
        feature_names=variants,
        label=label if isinstance(label, str) else "label",
        hidden=hidden,
        groups=groups,
        obs=obs,
        unlabelled=unlabelled,
    )


def _facts(fam: dict[str, NDArray[Any]], table: pd.DataFrame | str | Path | None, sample: str) -> pd.DataFrame:
    """Columns of the ``.fam`` and of the table, one row per sample of the ``.fam``."""
    import pandas as pd

    facts = pd.DataFrame(fam)
    facts["pheno"] = facts["pheno"].mask(facts["pheno"].isin(_NO_PHENOTYPE))
    measured = pd.to_numeric(facts["pheno"], errors="coerce")
    if (measured % 1 > 0).any():  # a trait that was measured, which is no class
        facts["pheno"] = measured
    if table is None:
        return facts
    more = read_table(table, text=[sample]) if isinstance(table, str | Path) else table
    names = column(more, sample, "the table").astype(str)
    for what, given in (("the table", names), ("the .fam", facts["iid"])):
        if given.duplicated().any():
            raise RequestError(
                f"{what} has the sample {given[given.duplicated()].iloc[0]!r} twice; a table goes with samples by their "
                "names (IID), so these must differ"
            )
    more = more.drop(columns=[sample]).set_index(names.to_numpy())
    if not facts["iid"].isin(more.index).any():
        raise RequestError(
            f"no sample of the .fam, like {facts['iid'].iloc[0]!r}, is in column {sample!r} of the table"
        )
    kept = facts.drop(columns=[name for name in more.columns if name in facts.columns])
    return pd.concat([kept, more.reindex(facts["iid"]).reset_index(drop=True)], axis=1)
