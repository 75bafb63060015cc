"""What SLURM says about jobs: `squeue` for those that it remembers, accounting for older ones."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass

from datamodels.errors import CampaignError

_PATIENCE = 60.0  # seconds that a command may take
_MAX_ARRAY = 1001  # SLURM's own default
LIVE = frozenset(
    ("PENDING", "RUNNING", "SUSPENDED", "COMPLETING", "CONFIGURING", "REQUEUED", "REQUEUE_FED", "REQUEUE_HOLD", "RESIZING",
     "RESV_DEL_HOLD", "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED")
)  # fmt: skip
FORGOTTEN = "forgotten by SLURM"


class NoAnswerError(CampaignError):
    """A command of SLURM failed."""


@dataclass(frozen=True)
class JobState:
    """SLURM's word for a job's state, and its reason (of a job that waits: why)."""

    name: str
    reason: str = ""

    @property
    def live(self) -> bool:
        return self.name in LIVE


def largest_array() -> int:
    """How many jobs one array may have."""
    found = re.search(r"^MaxArraySize\s*=\s*(\d+)", _run("scontrol", "show", "config"), re.MULTILINE)
    return int(found[1]) if found else _MAX_ARRAY


def job_named(name: str) -> str | None:
    """The number of the job of a name, when SLURM knows it."""
    lines = _run("squeue", "--noheader", "--states=all", f"--name={name}", "--format=%F").split()
    return lines[0] if lines else None


def states(keys: Iterable[str]) -> dict[str, JobState]:
    """The states of jobs, ``12``, and of jobs of an array, ``12_0``.

    Those that ended long ago are looked up in the accounting; those that nobody knows any more are missing.

    Raises
    ------
    NoAnswerError
        when SLURM does not answer; nothing follows from that.
    """
    wanted = set(keys)
    if not wanted:
        return {}
    found: dict[str, JobState] = {}
    numbers = ",".join(sorted({key.partition("_")[0] for key in wanted}))
    try:
        text = _run("squeue", "--noheader", "--array", "--states=all", f"--jobs={numbers}", "--format=%F|%K|%T|%r")
    except NoAnswerError as error:
        if "Invalid job id" not in str(error):
            raise
        text = ""
    for line in text.splitlines():
        job, index, name, reason = line.split("|", 3)
        found[job if index == "N/A" else f"{job}_{index}"] = JobState(name, reason)
    return found | _accounted(sorted(wanted - found.keys()))


def _accounted(jobs: list[str]) -> dict[str, JobState]:
    """The last states that the accounting has; it may be off, or late."""
    if not jobs:
        return {}
    try:
        text = _run("sacct", "--noheader", "--allocations", "--parsable2", f"--jobs={','.join(jobs)}", "-oJobID,State")
    except NoAnswerError:
        return {}
    found = {}
    for line in text.splitlines():
        job, _, name = line.partition("|")
        found[job] = JobState((name.split() or [""])[0])  # CANCELLED by 1000
    return found


def cancel(jobs: Iterable[str]) -> None:
    """Cancel jobs; those that have ended are left alone."""
    _run("scancel", *jobs)


def _run(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PATIENCE)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise NoAnswerError(f"SLURM does not answer: {error}") from None
    if done.returncode:
        said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NoAnswerError(f"SLURM does not answer: {command[0]}: {said[-1]}")
    return done.stdout
