"""``python -m datamodels.regression.compute_datamodels -C CONFIG.yaml [--data.data_path ..] [--cfg.out_dir ..]``"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from pydantic import BaseModel, ConfigDict, Field

from datamodels import options
from datamodels.attribution import Attribution
from datamodels.errors import RequestError
from datamodels.progress import note
from datamodels.regression import dataset_file
from datamodels.regression.problem import Problem
from datamodels.regression.source import Source
from datamodels.store import Store


class Data(BaseModel):
    """Which rows and targets: the options ``--data.NAME``."""

    model_config = ConfigDict(extra="forbid")

    data_path: Annotated[str, Field(min_length=1, description="file of write_dataset, or folder of a store")]
    num_train: Annotated[int, Field(ge=2, description="rows to fit on")]
    num_val: Annotated[int, Field(ge=1, description="rows to choose lambda on")]
    seed: Annotated[int | None, Field(ge=0, description="draws the validation rows")] = None
    target_start_ind: Annotated[int, Field(ge=0, description="first target")] = 0
    target_end_ind: Annotated[int, Field(ge=-1, description="one past the last target, -1 for all")] = -1
    x_name: Annotated[str, Field(description="key of the masks, for store folders")] = "masks"
    y_name: Annotated[str, Field(description="key of the outputs, for store folders")] = "margins"


class Config(BaseModel):
    """How to fit, and where results go: the options ``--cfg.NAME``."""

    model_config = ConfigDict(extra="forbid")

    k: Annotated[int, Field(ge=1, description="number of lambdas")]
    out_dir: Annotated[str, Field(min_length=1, description="folder for the results; made when absent")]
    eps: Annotated[float, Field(gt=0, lt=1, description="smallest lambda over the largest")] = 1e-5
    use_bias: Annotated[int, Field(ge=0, le=1, description="0 fits without intercept on uncentred outputs")] = 1
    batch_size: Annotated[float | None, Field(description="accepted, without effect")] = None
    lr: Annotated[float | None, Field(description="accepted, without effect")] = None
    num_workers: Annotated[float | None, Field(description="accepted, without effect")] = None


class EarlyStopping(BaseModel):
    model_config = ConfigDict(extra="forbid")

    check_every: Annotated[float | None, Field(description="accepted, without effect")] = None
    eps: Annotated[float | None, Field(description="accepted, without effect")] = None


_SECTIONS: dict[str, type[BaseModel]] = {"data": Data, "cfg": Config, "early_stopping": EarlyStopping}
_UNUSED = {"cfg": ("batch_size", "lr", "num_workers"), "early_stopping": ("check_every", "eps")}


def main(argv: Sequence[str] | None = None) -> None:
    """Fit lasso datamodels and write them in the classic layout."""
    options.command("datamodels.regression.compute_datamodels", main.__doc__ or "", _SECTIONS, argv, _compute)


def _compute(given: options.Options, sections: dict[str, Any]) -> str:
    for section in given.foreign_sections:
        note(f"note: section {section!r} of the config is not of this command")
    for section, names in _UNUSED.items():
        for name in names:
            if name in given.values[section]:
                note(f"note: {section}.{name} has no effect: the solver is exact and has no such setting")
    return f"wrote {compute_datamodels(sections['data'], sections['cfg']) / 'datamodels.pt'}"


def compute_datamodels(data: Data, config: Config) -> Path:
    """Fit lasso datamodels and write them in the classic layout, as ``python -m datamodels.regression.compute_datamodels`` does.

    Parameters
    ----------
    data
        Which rows and targets.
    config
        How to fit, and where results go.

    Returns
    -------
    Path
        The folder, with ``datamodels.pt``, ``regularization_path/`` and ``final_lambda/``.

    Raises
    ------
    RequestError
        when there are fewer rows than asked for, or results already.
    """
    out = Path(config.out_dir)
    taken = [name for name in ("datamodels.pt", "regularization_path", "final_lambda") if (out / name).exists()]
    if taken:
        raise RequestError(
            f"{str(out)!r} has results already ({', '.join(taken)}): choose another cfg.out_dir, or move them away"
        )
    problem = _read(data)
    wanted = data.num_train + data.num_val
    if wanted > problem.n_rows:
        raise RequestError(
            f"data.num_train {data.num_train} + data.num_val {data.num_val} are {wanted} rows; there are {problem.n_rows}"
        )
    from datamodels.regression.estimators import Lasso
    from datamodels.regression.fit import fit_problem

    estimator = Lasso(
        n_lambdas=config.k,
        eps=config.eps,
        val_fraction=data.num_val / wanted,
        seed=data.seed or 0,
        intercept=bool(config.use_bias),
    )
    _write(fit_problem(problem.take(np.arange(wanted)), estimator), out)
    return out


def _read(data: Data) -> Problem:
    path = Path(data.data_path)
    if path.is_dir():
        store = Store.open(path)
        source = Source.from_store(store, data.x_name, data.y_name)
        of_train = store.field(data.y_name).of == "train"
    else:
        arrays, meta = dataset_file.read(path)
        source = Source.from_arrays(arrays["masks"], arrays["outputs"], str(path))
        source = replace(source, units=np.array(arrays["units"]))
        of_train = meta.get("of") == "train"
    total = int(np.prod(source.outputs.shape[1:], dtype=np.int64))
    stop = total if data.target_end_ind == -1 else data.target_end_ind
    if not data.target_start_ind < stop <= total:
        raise RequestError(
            f"data.target_start_ind {data.target_start_ind} to data.target_end_ind {data.target_end_ind} is no range of "
            f"the {total} targets"
        )
    return Problem.assemble([source], slice(data.target_start_ind, stop), of_train)


def _write(attribution: Attribution, out: Path) -> None:
    """Write everything beside, then move it in, so that a killed run leaves no half of a result."""
    facts = dict(attribution.target_facts)
    facts["val_error"] = np.nanmin(facts["path_val_error"], axis=1)
    temporary = out.parent / f".{out.name}.{uuid.uuid4().hex}.tmp"
    try:
        for folder, names in {
            "regularization_path": {
                "lambdas": "path_lam",
                "val_error": "path_val_error",
                "n_nonzero": "path_n_nonzero",
            },
            "final_lambda": {"lambda": "lam", "val_error": "val_error", "n_nonzero": "n_nonzero", "gap": "gap"},
        }.items():
            (temporary / folder).mkdir(parents=True)
            for name, fact in names.items():
                np.save(temporary / folder / f"{name}.npy", facts[fact], allow_pickle=False)
        attribution.export_pt(temporary / "datamodels.pt")
        out.mkdir(parents=True, exist_ok=True)
        for name in ("regularization_path", "final_lambda", "datamodels.pt"):
            (temporary / name).rename(out / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


if __name__ == "__main__":
    main()
