"""A SLURM cluster of this machine alone, for tests: munged, slurmctld and slurmd's on loopback, from Debian's slurm-wlm.

Everything lies in one folder, and the daemons end with the context. :class:`CannotStart` says why there is none.
"""

from __future__ import annotations

import os
import secrets
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path

_NEEDED = ("munged", "slurmctld", "slurmd", "sbatch", "scontrol", "scancel", "squeue", "srun")
_CONF = """\
ClusterName=loopback
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket,cred_expire=5
CredType=cred/munge
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
SchedulerParameters=sched_interval=2,bf_interval=2
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
JobCompType=jobcomp/none
AccountingStorageType=accounting_storage/none
ReturnToService=2
KillWait=10
MessageTimeout=30
SlurmdTimeout=60
InactiveLimit=0
MpiDefault=none
{nodes}
PartitionName=low Nodes=ALL Default=YES PriorityTier=1 PreemptMode=REQUEUE GraceTime=60 MaxTime=INFINITE State=UP
PartitionName=high Nodes=ALL PriorityTier=9 PreemptMode=OFF MaxTime=INFINITE State=UP
"""


class CannotStart(Exception):
    """There is no cluster here, and why."""


class Cluster:
    """The cluster, as its users see it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.environment = {**os.environ, "SLURM_CONF": str(folder / "slurm.conf")}

    def call(self, *words: str, cwd: Path | None = None, **more: str) -> str:
        """Returns what one of SLURM's commands writes; it must succeed."""
        done = subprocess.run(
            words, cwd=cwd, env={**self.environment, **more}, capture_output=True, text=True, check=False, timeout=240
        )
        assert done.returncode == 0, f"{' '.join(words)}: {done.stderr}"
        return done.stdout.strip()

    def submit(self, script: Path | str, *options: str, cwd: Path, environment: Mapping[str, str] = {}) -> str:
        """Submits a script, and returns the job's number."""
        return self.call("sbatch", "--parsable", *options, str(script), cwd=cwd, **environment)

    def job(self, number: str) -> dict[str, str]:
        """Returns what SLURM knows of a job."""
        words = self.call("scontrol", "show", "job", number).split()
        return dict(word.split("=", 1) for word in words if "=" in word)

    def wait(self, number: str, *states: str, seconds: float = 120) -> dict[str, str]:
        """Waits until the job is in one of the states."""
        end = time.monotonic() + seconds
        while (found := self.job(number))["JobState"] not in states:
            assert time.monotonic() < end, f"job {number} is {found}\n{self.logs()}"
            time.sleep(0.3)
        return found

    def logs(self) -> str:
        """Returns the ends of the daemons' logs."""
        return "\n".join(f"{path.name}: {path.read_text()[-3000:]}" for path in sorted(self.folder.glob("*.log")))


@contextmanager
def slurm_cluster(folder: Path, names: Sequence[str]) -> Iterator[Cluster]:
    """Context manager of a cluster with a node of each of ``names``, all of them this machine."""
    missing = [name for name in _NEEDED if shutil.which(name) is None]
    if missing:
        raise CannotStart(f"needs {', '.join(missing)} (Debian: slurm-wlm)")
    if os.geteuid() != 0:
        raise CannotStart("needs root")
    folder.chmod(0o755)
    (folder / "state").mkdir()
    key = folder / "munge.key"
    key.write_bytes(secrets.token_bytes(1024))
    key.chmod(0o400)
    host = socket.gethostname()
    lines = "\n".join(
        f"NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={_free_port()} CPUs=2 RealMemory=1000 State=UNKNOWN"
        for name in names
    )
    (folder / "slurm.conf").write_text(_CONF.format(host=host, ctld=_free_port(), folder=folder, nodes=lines))
    (folder / "hosts").write_text(f"127.0.0.1 localhost {host} {' '.join(names)}\n")
    # Jobs find each node by its name, in a mount namespace of their daemon's own.
    inside = 'mount --bind "$0" /etc/hosts && exec "$@"'
    with_names = ("unshare", "--mount", "sh", "-c", inside, str(folder / "hosts"))
    cluster = Cluster(folder)
    with ExitStack() as daemons:
        munge_socket = str(folder / "munge.socket")
        daemons.enter_context(
            _daemon(
                cluster,
                "munged",
                *("--foreground", "--force", "--socket", munge_socket, "--key-file", str(key)),
                *("--log-file", str(folder / "munged.log"), "--pid-file", str(folder / "munged.pid")),
                *("--seed-file", str(folder / "munged.seed")),
            )
        )
        _until(lambda: Path(munge_socket).exists(), cluster)
        daemons.enter_context(_daemon(cluster, "slurmctld", "-D", "-c"))
        for name in names:
            daemons.enter_context(_daemon(cluster, *with_names, "slurmd", "-D", "-N", name))
        _until(lambda: _idle(cluster) == len(names), cluster)
        try:
            yield cluster
        finally:
            _end_jobs(cluster)


def _end_jobs(cluster: Cluster) -> None:
    """Cancels what still runs, and waits until its processes have ended; they would outlive the daemons."""
    end = time.monotonic() + 60
    while (jobs := cluster.call("squeue", "--noheader", "--format", "%A").split()) and time.monotonic() < end:
        cluster.call("scancel", *jobs)
        time.sleep(0.5)


@contextmanager
def _daemon(cluster: Cluster, *words: str) -> Iterator[None]:
    quiet = subprocess.DEVNULL
    process = subprocess.Popen(words, env=cluster.environment, stdout=quiet, stderr=quiet, stdin=quiet)
    try:
        yield
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


def _idle(cluster: Cluster) -> int:
    words = ("sinfo", "--noheader", "--Node", "--partition", "low", "--format", "%t")
    done = subprocess.run(words, env=cluster.environment, capture_output=True, text=True, check=False)
    return done.stdout.split().count("idle")


def _until(ready: object, cluster: Cluster, seconds: float = 20) -> None:
    assert callable(ready)
    end = time.monotonic() + seconds
    while not ready():
        if time.monotonic() > end:
            raise CannotStart(f"the daemons are not ready after {seconds:g} s: {cluster.logs()}")
        time.sleep(0.2)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
