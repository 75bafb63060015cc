"""Commands for schedulers of clusters: sbatch writes a job file, share is what its jobs run."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated

import typer

from datamodels.cli.common import Json, Recipe, StorePath, emit
from datamodels.cli.stores import work_of
from datamodels.errors import RequestError

_Task = Annotated[str | None, typer.Option(help="PKG.MODULE:FUNCTION, as of train.")]
_Timeout = Annotated[float | None, typer.Option(help="Seconds that one row may take, as of train.")]
_Threads = Annotated[int, typer.Option(help="Threads of torch and BLAS per worker.")]


def sbatch(
    store: StorePath,
    out: Annotated[Path, typer.Option(help="File to write.")],
    task: _Task = None,
    recipe: Recipe = None,
    shares: Annotated[int, typer.Option(help="Number of array jobs; each does its share of the rows.")] = 64,
    partition: Annotated[str | None, typer.Option(help="As of sbatch; the site's by default.")] = None,
    account: Annotated[str | None, typer.Option(help="As of sbatch.")] = None,
    qos: Annotated[str | None, typer.Option(help="As of sbatch.")] = None,
    time: Annotated[str, typer.Option(help="Time limit of a job, minutes or [D-]HH:MM:SS.")] = "60",
    memory: Annotated[str | None, typer.Option(help="Memory of a job, as 8GB.")] = None,
    cpus: Annotated[int, typer.Option(help="CPUs of a job; every --threads of them run a worker.")] = 1,
    gpus: Annotated[int | None, typer.Option(help="GPUs of a job.")] = None,
    parallel: Annotated[int | None, typer.Option(help="How many jobs may run at the same time.")] = None,
    warning: Annotated[
        int, typer.Option(help="Seconds before the time limit at which a job is put back into the queue.")
    ] = 90,
    setup: Annotated[str, typer.Option(help="Shell commands that a job begins with.")] = "",
    timeout: _Timeout = None,
    threads: _Threads = 1,
    as_json: Json = False,
) -> None:
    """Write a job file for SLURM's sbatch: an array whose jobs share the rows that are not complete. Submitting it again
    does what is missing.

    Example: datamodels sbatch runs/a --recipe recipe.yaml --partition gpu --gpus 1 --out job.sh && sbatch job.sh
    """
    from datamodels.executors.slurm import Slurm
    from datamodels.files import replacing
    from datamodels.store import Store

    if shares < 1:
        raise RequestError(f"--shares is {shares}; give 1 or more")
    Slurm(time=time, cpus=cpus, gpus=gpus, parallel=parallel or 1, warning=warning)  # raises for what is not legal
    work_of(task, recipe)
    place = Store.open(store).address
    directives = {
        "job-name": "datamodels",
        "array": f"0-{shares - 1}" + (f"%{parallel}" if parallel else ""),
        "partition": partition,
        "account": account,
        "qos": qos,
        "time": time,
        "mem": memory,
        "cpus-per-task": cpus,
        "gpus-per-node": gpus,
        "signal": f"B:USR2@{warning}",
        "output": "datamodels-%A_%a.log",
        "open-mode": "append",
    }
    command = [sys.executable, "-m", "datamodels", "share", place, f"SHARE/{shares}"]
    command += ["--task", task] if task is not None else ["--recipe", str(Path(recipe or "").resolve())]
    command += ["--jobs", str(max(1, cpus // threads)), "--threads", str(threads)]
    command += [] if timeout is None else ["--timeout", f"{timeout:g}"]
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={value}" for name, value in directives.items() if value is not None),
        "#SBATCH --requeue",
        "",
        "# Before its time is up a job goes back into the queue; rows that are complete are not run again.",
        """trap 'scontrol requeue "${SLURM_ARRAY_JOB_ID}_${SLURM_ARRAY_TASK_ID}"' USR2""",
        f"cd {shlex.quote(str(Path.cwd()))} || exit",
        *([setup] if setup else []),
        shlex.join(command).replace("SHARE/", "${SLURM_ARRAY_TASK_ID}/") + " &",
        "wait $!",
    ]
    with replacing(out) as temporary:
        temporary.write_text("\n".join(lines) + "\n")
    emit({"file": str(out), "shares": shares}, f"wrote {out}: submit it with `sbatch {out}`", as_json)


def share(
    store: StorePath,
    part: Annotated[str, typer.Argument(help="Which share of how many, 0/64 to 63/64.", metavar="I/N")],
    task: _Task = None,
    recipe: Recipe = None,
    jobs: Annotated[
        int | None, typer.Option(help="Worker processes; by default one per CPU, or per GPU in use.")
    ] = None,
    timeout: _Timeout = None,
    threads: _Threads = 1,
    as_json: Json = False,
) -> None:
    """Run one of N shares of a store's rows on this machine, for array jobs of any scheduler. Exit status 1 when rows
    failed.

    Example: datamodels share runs/a 3/64 --recipe recipe.yaml
    """
    from datamodels.training.share import train_share

    index, slash, count = part.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and int(index) < int(count)):
        raise RequestError(f"the share is {part!r}; give I/N with I from 0 to N - 1, like 0/64")
    result = train_share(
        store,
        work_of(task, recipe),
        int(index),
        int(count),
        jobs=jobs,
        timeout=timeout,
        threads=threads,
        progress=not as_json,
    )
    text = f"share {part} of {store}: {result.done} rows done"
    if result.failed:
        text += f", {len(result.failed)} failed; run it again to retry"
    emit(result.to_dict(), text, as_json)
    if not result.ok:
        raise typer.Exit(1)
