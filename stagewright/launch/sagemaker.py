"""The request CreateTrainingJob of SageMaker, with its image.

The container's entry is :mod:`stagewright.launch.sagemaker_entry`.
"""

from __future__ import annotations

import json
from typing import Any

from stagewright.launch.docker import inside
from stagewright.launch.heading import one_line
from stagewright.launch.image import HOME, image_files
from stagewright.launch.instances import USUAL
from stagewright.launch.job import RECIPE_FILE, Job
from stagewright.launch.train_command import as_strings

CHANNEL = "training"
METRICS = ("epoch", "train_loss", "train_acc", "val_loss", "val_acc")
MADE_BY = "STAGEWRIGHT_MADE_BY"
"""Variable of the container that holds the command that made the request; JSON has no comments."""
_LONGEST_VALUE = 512


def sagemaker_files(job: Job, folder: str) -> dict[str, str]:
    """Returns the request by its name, and the image's files."""
    return {f"{job.name}.sagemaker.json": json.dumps(training_job(job), indent=2) + "\n", **image_files(job)}


def training_job(job: Job) -> dict[str, Any]:
    """Returns the request. Its name must be another one each time, which the command to start it sees to; run directory and
    checkpoints stay those of ``job.name``."""
    machines = job.machines
    assert job.mirror is not None and job.role is not None
    options = {**inside(job).options, "gpus": str(machines.gpus)}
    if job.recipe_file is not None:
        options["recipe"] = f"{HOME}/{RECIPE_FILE}"
    if not job.copies_data:
        options["data"] = job.data
    request: dict[str, Any] = {
        "TrainingJobName": job.name,
        "RoleArn": job.role,
        "AlgorithmSpecification": {
            "TrainingImage": image_uri(job),
            "TrainingInputMode": "File",
            "ContainerEntrypoint": ["python", "-m", "stagewright.launch.sagemaker_entry"],
            "MetricDefinitions": [{"Name": name, "Regex": metric_pattern(name)} for name in METRICS],
        },
        "HyperParameters": as_strings(options),
        "OutputDataConfig": {"S3OutputPath": f"{job.mirror.rstrip('/')}/output"},
        "CheckpointConfig": {"S3Uri": f"{job.mirror.rstrip('/')}/checkpoints", "LocalPath": "/opt/ml/checkpoints"},
        "ResourceConfig": {
            "InstanceType": machines.instance or USUAL[machines.gpus],
            "InstanceCount": machines.nodes,
            "VolumeSizeInGB": machines.disk_gb,
        },
        "StoppingCondition": {"MaxRuntimeInSeconds": machines.seconds},
        "EnableManagedSpotTraining": machines.spot,
        "Environment": {MADE_BY: one_line(job.command)[:_LONGEST_VALUE]},
    }
    if machines.spot:  # time to wait for machines is counted too
        request["StoppingCondition"]["MaxWaitTimeInSeconds"] = 2 * machines.seconds
    if job.copies_data:
        source = {"S3DataType": "S3Prefix", "S3Uri": job.data, "S3DataDistributionType": "FullyReplicated"}
        request["InputDataConfig"] = [{"ChannelName": CHANNEL, "DataSource": {"S3DataSource": source}}]
    return request


def metric_pattern(name: str) -> str:
    """Returns the pattern that finds a number of ``--metric-lines``."""
    return rf"\[METRICS\].*\b{name}=([0-9.]+)"


def image_uri(job: Job) -> str:
    """Returns the image's name: as given, or ``stagewright`` in the registry of the role's account."""
    assert job.role is not None
    account = job.role.split(":")[4]
    return job.image or f"{account}.dkr.ecr.{job.machines.region}.amazonaws.com/stagewright:latest"


def sagemaker_steps(job: Job, folder: str) -> list[str]:
    """Returns what to type next."""
    region, image = job.machines.region, image_uri(job)
    registry = image.split("/")[0]
    login = (
        [
            f"aws ecr get-login-password --region {region} | docker login --username AWS --password-stdin {registry}",
        ]
        if ".dkr.ecr." in registry
        else []
    )
    return [
        *login,
        f"docker build --tag {image} {folder}",
        f"docker push {image}",
        f"aws sagemaker create-training-job --region {region} --cli-input-json file://{folder}/{job.name}.sagemaker.json "
        f'--training-job-name "{job.name}-$(date +%m%d-%H%M%S)"',
    ]
