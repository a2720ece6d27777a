"""Refuses what would fail on a rented machine after it has begun to cost, each with the nearest value that is right."""

from __future__ import annotations

import re
from collections.abc import Callable

from stagewright.errors import RecipeError, WorldError
from stagewright.launch.instances import SAGEMAKER, SKYPILOT_GPUS, USUAL, gpu_counts, nearest_with
from stagewright.launch.job import ANY, Job, Machines, Target, is_named, is_url, region_of
from stagewright.plan.lanes import asked_spread
from stagewright.plan.recipe_lanes import recipe_lanes
from stagewright.recipe.recipe import Recipe
from stagewright.text import most_like

_VANISHING: tuple[Target, ...] = ("sagemaker", "skypilot", "jobset")
"""Targets whose disks are gone when the job ends."""
_CLOUDS = ("aws", "gcp", "azure", "lambda", "runpod", "nebius", "oci", "kubernetes")
_NAME = re.compile(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?")
_ROLE = re.compile(r"arn:aws[a-z-]*:iam::\d{12}:role/?[\w+=,.@/-]+")


def check_job(job: Job) -> None:
    """Raises RecipeError for what cannot be so: name, spot without mirror or zone, instance type, data that are not there."""
    if not _NAME.fullmatch(job.name):
        near = re.sub(r"[^a-z0-9]+", "-", job.name.lower()).strip("-")[:40].strip("-") or "run"
        raise RecipeError(
            f"--name {job.name}",
            "1 to 40 small letters, digits and single dashes, no dash at the ends",
            f"--name {near}",
        )
    _check_spot(job)
    _check_mirror(job)
    _check_zone(job)
    _check_data(job)
    _BY_TARGET[job.target](job)


def check_lanes(recipe: Recipe, machines: Machines, *, complete: bool) -> int:
    """Returns the ``spread`` of the run: the recipe's own, or all ranks.

    WorldError for more GPUs on all nodes than lanes that the plan has for certain, RecipeError for a batch with fewer images than
    lanes. ``complete``: whether the recipe's batch sizes are final; ``auto`` chooses them later.
    """
    spread = asked_spread(recipe.spread, machines.ranks)
    lanes = min(recipe_lanes(recipe, machines.ranks).values(), default=spread) if complete else spread
    if machines.ranks > lanes:
        gpus = min(machines.processes, lanes)
        fitting = f"--nodes {lanes // gpus} --gpus {gpus}"
        raise WorldError(
            f"--nodes {machines.nodes} with --gpus {machines.gpus} make {machines.ranks} processes, but the plan divides each "
            f"update into {lanes} lane{'s' if lanes > 1 else ''}",
            f"1 to {lanes} processes",
            f"{fitting}, or --spread {machines.ranks}, which is another plan",
        )
    return spread


def _check_spot(job: Job) -> None:
    if not job.machines.spot or job.target in _VANISHING:
        return
    if job.target == "slurm":
        remedy = "leave it out; --partition NAME chooses a partition, and a preempted job is queued again in any case"
        raise RecipeError("--spot with --on slurm", "machines of the cluster's partitions", remedy)
    raise RecipeError(
        "--spot with --on docker",
        "Docker starts the run on a machine that you have rented already",
        "leave it out; notices of a spot machine are heeded all the same (docs/launch.md)",
    )


def _check_mirror(job: Job) -> None:
    mirror, target = job.mirror, job.target
    if mirror is None:
        if target not in _VANISHING:
            return
        what = "--spot without --mirror" if job.machines.spot else f"--on {target} without --mirror"
        raise RecipeError(
            f"{what}: the machine's disk is gone when it is taken away, or when the job ends",
            "--mirror URL, where the run's copy lies",
            f"--mirror s3://BUCKET/{job.name}",
        )
    if not is_url(mirror):
        near = f"s3://{mirror.split('://')[-1].strip('/') or f'BUCKET/{job.name}'}"
        raise RecipeError(
            f"--mirror {mirror} is not reached from another machine",
            "s3://, gs:// or az:// with a bucket",
            f"--mirror {near}",
        )
    if target == "sagemaker" and not mirror.startswith("s3://"):
        near = f"s3://{mirror.split('://')[1]}"
        raise RecipeError(f"--mirror {mirror} with --on sagemaker", "s3://BUCKET/PREFIX", f"--mirror {near}")


def _check_zone(job: Job) -> None:
    machines = job.machines
    zone, region = machines.zone, machines.region
    if job.target not in ("skypilot", "jobset"):
        if zone is not None:
            choosing = {"sagemaker": "SageMaker chooses the zone", "slurm": "--partition chooses the machines"}
            raise RecipeError(
                f"--zone {zone} with --on {job.target}", choosing.get(job.target, "no zone"), "leave --zone out"
            )
        return
    first = f"{region}{'-a' if region[-1:].isdigit() and region.count('-') == 1 else 'a'}" if region else "us-east-1a"
    if machines.spot and zone is None:
        raise RecipeError(
            "--spot without --zone: capacity differs by zone, and what is sent between zones or regions is paid for",
            f"--zone {first} or another, near the mirror; or --zone {ANY}, wherever there is room",
            f"--zone {first if region else ANY}",
        )
    if zone is not None and zone != ANY and region is None and job.target == "skypilot" and region_of(zone) is None:
        raise RecipeError(f"--zone {zone} without --region", "--region with --zone", "add the zone's --region")
    if zone is not None and zone != ANY and region is not None and not zone.startswith(region):
        raise RecipeError(f"--zone {zone} is not in --region {region}", f"a zone of {region}", f"--zone {first}")


def _check_data(job: Job) -> None:
    data, target = job.data, job.target
    if is_url(data) or is_named(data) or target in ("slurm", "docker"):
        return
    if target == "jobset" and any(data == path or data.startswith(f"{path}/") for _, path in job.mounts):
        return
    others = f"s3://BUCKET/{data.rstrip('/').split('/')[-1]}"
    mount = ", or a claim: --mount CLAIM:/data with DATA under /data" if target == "jobset" else ""
    copies = " --copy-data" if target == "sagemaker" else ""
    raise RecipeError(
        f"{data} is a path of this machine, which --on {target} does not see",
        f"a URL such as {others}{mount}, or a name such as digits or torchvision:CIFAR10",
        f"copy it there (aws s3 sync {data} {others}), then give {others}{copies}",
    )


def _check_sagemaker(job: Job) -> None:
    machines = job.machines
    if job.role is None or not _ROLE.fullmatch(job.role):
        raise RecipeError(
            f"--role {job.role}" if job.role else "--on sagemaker without --role",
            "the ARN of a role that SageMaker may take",
            "--role arn:aws:iam::123456789012:role/ROLE, with your account and role",
        )
    if machines.region is None:
        raise RecipeError("--on sagemaker without --region", "the region of the job", "--region us-east-1")
    if job.copies_data and not job.data.startswith("s3://"):
        raise RecipeError(f"--copy-data with {job.data}", "DATA as s3://BUCKET/PREFIX", "leave --copy-data out")
    instance, gpus = machines.instance, machines.gpus
    if instance is None:
        if gpus not in USUAL:
            near = min(gpu_counts(), key=lambda count: (abs(count - gpus), -count))
            counts = ", ".join(map(str, gpu_counts()))
            raise RecipeError(f"--gpus {gpus} with --on sagemaker", f"types have {counts} GPUs", f"--gpus {near}")
        return
    if instance not in SAGEMAKER:
        near = most_like(instance, [name for name, count in SAGEMAKER.items() if count == gpus] or SAGEMAKER)
        raise RecipeError(
            f"--instance {instance} is not a type of SageMaker's training",
            f"{len(SAGEMAKER)} types such as ml.g6.12xlarge",
            f"--instance {near}",
        )
    count = SAGEMAKER[instance]
    if count is not None and count != gpus:
        raise RecipeError(
            f"--instance {instance} has {count} GPU{'' if count == 1 else 's'}, --gpus is {gpus}",
            f"--gpus {count}, or a type with {gpus}",
            f"--gpus {count}" + (f", or --instance {nearest_with(instance, gpus)}" if gpus in gpu_counts() else ""),
        )


def _check_skypilot(job: Job) -> None:
    machines = job.machines
    if machines.cloud is not None and machines.cloud not in _CLOUDS:
        raise RecipeError(
            f"--cloud {machines.cloud}", ", ".join(_CLOUDS), f"--cloud {most_like(machines.cloud, _CLOUDS)}"
        )
    kind = machines.gpu_type
    if machines.gpus and kind is None and machines.instance is None:
        raise RecipeError(
            f"--gpus {machines.gpus} without --gpu-type",
            "a kind of GPU in SkyPilot's word",
            "--gpu-type L4 (sky gpus list)",
        )
    if kind is not None and kind not in SKYPILOT_GPUS:
        raise RecipeError(
            f"--gpu-type {kind}", f"one of {', '.join(SKYPILOT_GPUS)}", f"--gpu-type {most_like(kind, SKYPILOT_GPUS)}"
        )
    if machines.instance is not None and machines.instance.startswith("ml."):
        raise RecipeError(
            f"--instance {machines.instance} is a type of SageMaker",
            "a type of the cloud itself",
            f"--instance {machines.instance.removeprefix('ml.')}",
        )


def _check_jobset(job: Job) -> None:
    if job.image is None:
        raise RecipeError(
            "--on jobset without --image",
            "the image's name in a registry that the cluster reaches",
            "--image REGISTRY/stagewright",
        )


def _check_slurm(job: Job) -> None:
    if job.machines.instance is not None:
        raise RecipeError(
            f"--instance {job.machines.instance} with --on slurm", "machines of a partition", "--partition NAME"
        )


def _check_docker(job: Job) -> None:
    if job.machines.nodes > 1:
        raise RecipeError(
            f"--nodes {job.machines.nodes} with --on docker",
            "--nodes 1: Docker starts containers on one machine",
            "--nodes 1, or --on slurm, skypilot or jobset",
        )


_BY_TARGET: dict[Target, Callable[[Job], None]] = {
    "sagemaker": _check_sagemaker,
    "skypilot": _check_skypilot,
    "slurm": _check_slurm,
    "jobset": _check_jobset,
    "docker": _check_docker,
}
