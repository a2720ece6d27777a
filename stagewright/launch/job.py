"""What is asked of a rented machine: the run, the machines, and where the run's copy lies."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal, get_args

Target = Literal["sagemaker", "skypilot", "slurm", "jobset", "docker"]
TARGETS: tuple[Target, ...] = get_args(Target)

LOST, STOPPED, BAD_INPUT, BUG = 69, 75, 2, 1
"""Exit codes of a run: a rank or host was lost, and stopped on request with the state saved (both: start again); an error that
the user can correct, and one of stagewright (both: starting again does not help)."""
RESTARTS = 20
"""How often a job file starts a run again."""
NOTICE_SECONDS = 120
"""Seconds between SIGTERM and SIGKILL that job files ask for; the launcher's ``--grace`` is below it."""
PORT = 29_400
"""Port at which launchers on several machines meet."""
ANY = "any"
"""As ``zone``: any zone."""

Value = str | bool | tuple[str, ...]
"""Of an option: its text, given or not (a flag), or the texts of one that is repeated."""


@dataclass(frozen=True)
class Machines:
    """The machines of a job."""

    nodes: int = 1
    gpus: int = 1
    """GPUs of each machine; 0: it computes on the CPU."""
    cpus: int | None = None
    """Processor cores of each machine that are asked for; None: what the target gives."""
    instance: str | None = None
    """Instance type, in the provider's word."""
    gpu_type: str | None = None
    """Kind of GPU, in SkyPilot's or the cluster's word."""
    spot: bool = False
    region: str | None = None
    zone: str | None = None
    """Zone of the machines, :data:`ANY`, or None: not said."""
    cloud: str | None = None
    partition: str | None = None
    """SLURM's partition."""
    disk_gb: int = 100
    seconds: int = 24 * 3600
    """After so long the job is stopped, saved."""

    @property
    def processes(self) -> int:
        """Processes on each machine."""
        return max(1, self.gpus)

    @property
    def ranks(self) -> int:
        """Processes on all machines."""
        return self.nodes * self.processes


@dataclass(frozen=True)
class Job:
    """A run on machines of one kind."""

    target: Target
    name: str
    data: str
    options: Mapping[str, Value]
    """Options of ``stagewright train``, without the dashes: ``recipe``, ``spread``, ``set``."""
    machines: Machines = field(default_factory=Machines)
    mirror: str | None = None
    """URL of the copy of the run that outlives the machines."""
    image: str | None = None
    """Name of the container image."""
    role: str | None = None
    """SageMaker: ARN of the role."""
    mounts: tuple[tuple[str, str], ...] = ()
    """(source, path in the container): a folder (Docker), or a volume claim (JobSet)."""
    copies_data: bool = False
    """SageMaker: whether it copies DATA to the machines before the run."""
    recipe_file: str | None = None
    """Content of the recipe's file, if it is none that is shipped."""
    command: str = "stagewright launch"
    """The command that made the files."""

    @property
    def out(self) -> str:
        """The run's directory, relative to the folder in which the run is started."""
        return f"runs/{self.name}"


RECIPE_FILE = "recipe.yaml"
"""Name of a copied recipe beside the job's files."""


def region_of(zone: str) -> str | None:
    """Returns the region of a zone by its name: ``us-east-1`` of AWS's ``us-east-1a``, ``us-central1`` of Google's
    ``us-central1-a``; None for another form."""
    found = re.fullmatch(r"([a-z-]+-\d+)[a-z]|([a-z]+-[a-z]+\d+)-[a-z]", zone)
    return None if found is None else found[1] or found[2]


def is_url(text: str) -> bool:
    """Whether ``text`` is the URL of an object store."""
    return re.match(r"(s3|gs|az)://[^/]", text) is not None


def is_named(data: str) -> bool:
    """Whether DATA is a name that any machine can load: ``digits``, ``torchvision:CIFAR10``."""
    return data == "digits" or re.fullmatch(r"[a-z]{2,}:[^/].*", data) is not None
