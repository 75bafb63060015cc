"""Where datasets lie that are too large to come with a package."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

from datamodels.errors import RequestError

VARIABLE = "DATAMODELS_DATA"


def find(
    what: str, folder: str | Path | None, marker: str, subfolders: Sequence[str], shared: Sequence[str], advice: str
) -> Path:
    """The first folder that holds `marker`, plain or as ``.gz``.

    Parameters
    ----------
    what
        Name of the dataset, for the error.
    folder
        The folder itself or one that has a subfolder of `subfolders`. None: the subfolders of
        ``$DATAMODELS_DATA``, then `shared` under ``/usr/share`` and under ``share`` of the environment.
        Not ``$DATAMODELS_DATA`` itself, since files of several datasets have the same names.
    advice
        How to get it, for the error.

    Raises
    ------
    RequestError
        when none does; the message lists them.
    """
    if folder is not None:
        places = [Path(folder), *(Path(folder) / sub for sub in subfolders)]
    else:
        root = os.environ.get(VARIABLE)
        places = [Path(root) / sub for sub in subfolders] if root else []
        places += [base / sub for base in (Path("/usr/share"), Path(sys.prefix) / "share") for sub in shared]
    for place in places:
        if (place / marker).is_file() or (place / f"{marker}.gz").is_file():
            return place
    looked = [str(place) for place in places]
    if folder is None and not os.environ.get(VARIABLE):
        looked.append(f"the folder of the variable {VARIABLE}, which is not set")
    raise RequestError(
        f"{what} is not there: looked for {marker} in {', '.join(looked)}. {advice}, and give that folder, or set "
        f"{VARIABLE} to it"
    )
