"""A task for SkyPilot's managed jobs, which start it again on another machine after 69, 75 and a preemption."""

from __future__ import annotations

import shlex
from typing import Any

from stagewright.launch.docker import inside
from stagewright.launch.heading import heading
from stagewright.launch.image import image_files, pinned_files, requirement
from stagewright.launch.job import ANY, LOST, PORT, STOPPED, Job, region_of
from stagewright.launch.train_command import shell_text, train_words
from stagewright.launch.yaml_file import yaml_text

_MEETING = '"$host:29400"'
assert str(PORT) in _MEETING


def skypilot_files(job: Job, folder: str) -> dict[str, str]:
    """Returns the task by its name, and what the machines install from ``folder``."""
    machines = job.machines
    zone = machines.zone if machines.zone != ANY else None
    region = machines.region or (region_of(zone) if zone else None)
    place = "/".join(part for part in (machines.cloud or ("*" if region else None), region, zone) if part)
    resources: dict[str, Any] = {
        "infra": place or None,
        "instance_type": machines.instance,
        "accelerators": f"{machines.gpu_type}:{machines.gpus}" if machines.gpu_type and machines.gpus else None,
        "cpus": f"{machines.cpus}+" if machines.cpus else None,
        "use_spot": machines.spot,
        "disk_size": machines.disk_gb,
        "image_id": f"docker:{job.image}" if job.image else None,
        "job_recovery": {"max_restarts_on_errors": 0, "recover_on_exit_codes": [LOST, STOPPED]},
    }
    install = f"python -m pip install --find-links . --constraint constraints.txt {shlex.quote(requirement())}\n"
    several = machines.nodes > 1
    first = "host=$(printf '%s\\n' \"$SKYPILOT_NODE_IPS\" | head -n 1)\n" if several else ""
    words = train_words(inside(job), job.data, meeting=_MEETING)
    task: dict[str, Any] = {
        "name": job.name,
        "num_nodes": machines.nodes,
        "workdir": folder,
        "resources": {name: value for name, value in resources.items() if value is not None},
        "setup": None if job.image else install,
        "run": f"{first}exec {shell_text(words, [_MEETING], indent='  ')}\n",
    }
    about = heading(
        job.command,
        f"{LOST}: a rank or a machine was lost; {STOPPED}: stopped on request, saved. Both go on from the mirror elsewhere.",
    )
    files = image_files(job) if job.image else pinned_files(job)
    return {f"{job.name}.sky.yaml": yaml_text({k: v for k, v in task.items() if v is not None}, about), **files}


def skypilot_steps(job: Job, folder: str) -> list[str]:
    """Returns what to type next."""
    build = [f"docker build --tag {job.image} {folder}", f"docker push {job.image}"] if job.image else []
    return [*build, f"sky jobs launch {folder}/{job.name}.sky.yaml"]
