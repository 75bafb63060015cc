"""A real SLURM of one node for tests: `python -m tests.slurm_cluster FOLDER COMMAND...` runs a command in it.

Needs root and Debian's `slurm-wlm`, `slurmdbd`, `munge` and `mariadb-server`; no systemd, no cgroups, and nothing outside of
its folder but free ports of the loopback. Accounting goes through slurmdbd, without which a cancelled job is forgotten.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

PROGRAMS = ("munged", "mariadbd", "mariadb-install-db", "slurmdbd", "slurmctld", "slurmd", "sbatch", "sacctmgr")
_START_SECONDS = 60.0


def missing() -> list[str]:
    """What has to be installed for a cluster, or ``root`` when that is what lacks."""
    path = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"
    lacking = [name for name in PROGRAMS if shutil.which(name, path=path) is None]
    return lacking + (["root"] if os.geteuid() else [])


@contextlib.contextmanager
def cluster(folder: Path) -> Iterator[dict[str, str]]:
    """Start a cluster whose files are in `folder`; gives the environment in which its commands find it, and ends it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o755)
    database, controller, node, accounts = _free_ports(4)
    environment = {
        **os.environ,
        "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin",
        "SLURM_CONF": str(folder / "slurm.conf"),
    }
    _write_settings(folder, database, controller, node, accounts)
    started: list[subprocess.Popen[bytes]] = []

    def start(*command: str) -> None:
        with (folder / f"{command[0]}.out").open("ab") as log:
            started.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log, start_new_session=True))

    def answers(*command: str) -> bool:
        for process in started:
            if process.poll() is not None:
                raise RuntimeError(f"{process.args} ended with {process.returncode}; see {folder}")
        return subprocess.run(command, env=environment, capture_output=True).returncode == 0

    try:
        start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", f"--key-file={folder}/munge.key",
              f"--pid-file={folder}/munged.pid", f"--log-file={folder}/munged.log", f"--seed-file={folder}/munge.seed")  # fmt: skip
        data = folder / "mariadb"
        if not data.is_dir():
            subprocess.run(
                ["mariadb-install-db", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-test-db"],
                env=environment, check=True, capture_output=True,
            )  # fmt: skip
        start("mariadbd", "--no-defaults", f"--datadir={data}", "--user=root", "--skip-grant-tables",
              "--bind-address=127.0.0.1", f"--port={database}", f"--socket={folder}/mariadb.socket",
              "--innodb-buffer-pool-size=64M", "--innodb-lock-wait-timeout=900", "--innodb-flush-log-at-trx-commit=0")  # fmt: skip
        _wait(lambda: _listens(database), "mariadbd")
        start("slurmdbd", "-D")
        _wait(lambda: answers("sacctmgr", "-i", "-Q", "show", "cluster"), "slurmdbd")
        subprocess.run(["sacctmgr", "-i", "-Q", "add", "cluster", "test"], env=environment, capture_output=True)
        start("slurmctld", "-D", "-i")
        start("slurmd", "-D")
        _wait(lambda: answers("sh", "-c", "sinfo -h -o %T | grep -qx idle"), "slurmd")
        yield environment
    finally:
        for process in reversed(started):
            process.terminate()
        for process in reversed(started):
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _write_settings(folder: Path, database: int, controller: int, node: int, accounts: int) -> None:
    host = socket.gethostname().partition(".")[0]
    for name in ("state", "spool"):
        (folder / name).mkdir(exist_ok=True)
    (folder / "slurm.conf").write_text(
        f"""ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={controller}
SlurmdPort={node}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
SwitchType=switch/none
MpiDefault=none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
AccountingStorageType=accounting_storage/slurmdbd
AccountingStorageHost=127.0.0.1
AccountingStoragePass={folder}/munge.socket
AccountingStoragePort={accounts}
SchedulerParameters=batch_sched_delay=0,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=1
KillWait=2
CompleteWait=0
MaxArraySize=6
NodeName={host} NodeAddr=127.0.0.1 CPUs=4 RealMemory=4000 State=UNKNOWN
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
PartitionName=main Nodes={host} Default=YES MaxTime=60 State=UP
PartitionName=urgent Nodes={host} PriorityTier=10 PreemptMode=OFF MaxTime=60 State=UP
"""
    )
    key = folder / "munge.key"
    if not key.exists():
        key.write_bytes(secrets.token_bytes(128))
    key.chmod(0o600)
    (folder / "slurmdbd.conf").write_text(
        f"""AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
DbdHost=localhost
DbdAddr=127.0.0.1
DbdPort={accounts}
SlurmUser=root
LogFile={folder}/slurmdbd.log
PidFile={folder}/slurmdbd.pid
StorageType=accounting_storage/mysql
StorageHost=127.0.0.1
StoragePort={database}
StorageUser=root
StorageLoc=slurm
"""
    )
    (folder / "slurmdbd.conf").chmod(0o600)
    (folder / "cgroup.conf").write_text("CgroupPlugin=cgroup/v1\nCgroupAutomount=no\n")


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


def _listens(port: int) -> bool:
    with socket.socket() as one:
        return one.connect_ex(("127.0.0.1", port)) == 0


def _wait(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + _START_SECONDS
    while not condition():
        if time.monotonic() > end:
            raise RuntimeError(f"{what} did not start in {_START_SECONDS:g} seconds")
        time.sleep(0.1)


if __name__ == "__main__":
    with cluster(Path(sys.argv[1] if len(sys.argv) > 1 else tempfile.mkdtemp()).resolve()) as inside:
        sys.exit(subprocess.run(sys.argv[2:] or ["bash"], env=inside).returncode)
