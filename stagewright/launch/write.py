"""Writes the files of a job; starts nothing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from stagewright.errors import StorageError
from stagewright.launch.docker import docker_files, docker_steps
from stagewright.launch.heading import MARK
from stagewright.launch.job import Job, Target
from stagewright.launch.jobset import jobset_files, jobset_steps
from stagewright.launch.sagemaker import MADE_BY, sagemaker_files, sagemaker_steps
from stagewright.launch.skypilot import skypilot_files, skypilot_steps
from stagewright.launch.slurm import slurm_files, slurm_steps
from stagewright.storage.files import make_folders, write_whole

Files = Callable[[Job, str], dict[str, str]]
Steps = Callable[[Job, str], list[str]]

_WAYS: dict[Target, tuple[Files, Steps]] = {
    "sagemaker": (sagemaker_files, sagemaker_steps),
    "skypilot": (skypilot_files, skypilot_steps),
    "slurm": (slurm_files, slurm_steps),
    "jobset": (jobset_files, jobset_steps),
    "docker": (docker_files, docker_steps),
}
_MOST_BYTES = 1 << 20


def job_files(job: Job, folder: str) -> dict[str, str]:
    """Returns the content of each file by its name; ``folder`` is the path at which the files will lie."""
    return _WAYS[job.target][0](job, folder)


def next_steps(job: Job, folder: str) -> list[str]:
    """Returns the commands that start the job."""
    return _WAYS[job.target][1](job, folder)


def write_job(job: Job, folder: Path) -> list[Path]:
    """Writes the job's files into ``folder`` and returns their paths. StorageError, before any is written, if a file of that name
    is there that ``launch`` has not made."""
    files = job_files(job, str(folder))
    for name in files:
        _refuse_strange(folder / name)
    make_folders(folder)
    for name, text in files.items():
        write_whole(folder / name, text)
        if text.startswith("#!"):
            (folder / name).chmod(0o755)
    return [folder / name for name in files]


def _refuse_strange(path: Path) -> None:
    if not path.exists():
        return
    try:
        with path.open("rb") as file:
            known = file.read(_MOST_BYTES).decode("utf-8", "replace")
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror or error}", "a file that can be read", "give another --out"
        ) from error
    if MARK not in known and MADE_BY not in known:
        raise StorageError(
            f"{path} is there, and stagewright launch has not made it",
            "a folder of its own for the job's files",
            f"--out another folder, or rename {path.name}",
        )
