"""A JobSet for Kubernetes: one pod a node, each a launcher; 69 and 75 replace the pod, 1 and 2 fail the job at once."""

from __future__ import annotations

from typing import Any

from stagewright.launch.docker import inside
from stagewright.launch.heading import heading
from stagewright.launch.image import HOME, USER, image_files
from stagewright.launch.job import ANY, BAD_INPUT, BUG, LOST, NOTICE_SECONDS, PORT, RESTARTS, STOPPED, Job
from stagewright.launch.train_command import train_words
from stagewright.launch.yaml_file import yaml_text

_GROUP = "node"
_ZONE = "topology.kubernetes.io/zone"


def jobset_files(job: Job, folder: str) -> dict[str, str]:
    """Returns the JobSet by its name, and the image's files."""
    content = {
        "apiVersion": "jobset.x-k8s.io/v1alpha2",
        "kind": "JobSet",
        "metadata": {"name": job.name},
        "spec": {
            "network": {"enableDNSHostnames": True},
            "failurePolicy": {
                "maxRestarts": 0,
                "rules": [
                    {"name": "wouldComeAgain", "action": "FailJobSet", "onJobFailureReasons": ["PodFailurePolicy"]}
                ],
            },
            "replicatedJobs": [{"name": _GROUP, "replicas": 1, "template": {"spec": job_spec(job)}}],
        },
    }
    about = heading(
        job.command,
        f"{LOST}: a rank or a pod was lost; {STOPPED}: stopped on request, saved. Both go on from the mirror in another pod.",
    )
    return {f"{job.name}.jobset.yaml": yaml_text(content, about), **image_files(job)}


def job_spec(job: Job) -> dict[str, Any]:
    """Returns the spec of the Job (batch/v1), with a pod for each node."""
    machines = job.machines
    return {
        "completionMode": "Indexed",
        "completions": machines.nodes,
        "parallelism": machines.nodes,
        "backoffLimit": RESTARTS * machines.nodes,
        "podFailurePolicy": {
            "rules": [
                {"action": "FailJob", "onExitCodes": {"operator": "In", "values": [BUG, BAD_INPUT]}},
                # A node that is taken away, or drained, is no failure of the run.
                {"action": "Ignore", "onPodConditions": [{"type": "DisruptionTarget", "status": "True"}]},
                {"action": "Count", "onExitCodes": {"operator": "In", "values": [LOST, STOPPED]}},
            ]
        },
        "template": {"spec": _pod(job)},
    }


def _pod(job: Job) -> dict[str, Any]:
    machines = job.machines
    # Pod 0 of the first job, by the name that JobSet gives it: <set>-<group>-<job>-<pod>.<set>
    meeting = f"{job.name}-{_GROUP}-0-0.{job.name}:{PORT}"
    limits: dict[str, Any] = {}
    if machines.gpus:
        limits["nvidia.com/gpu"] = str(machines.gpus)
    if machines.cpus:
        limits["cpu"] = str(machines.cpus)
    container: dict[str, Any] = {
        "name": "stagewright",
        "image": job.image,
        "args": train_words(inside(job), job.data, meeting=meeting)[1:],
        "volumeMounts": [
            {"name": "runs", "mountPath": f"{HOME}/runs"},
            {"name": "shared-memory", "mountPath": "/dev/shm"},
            *({"name": f"mount-{at}", "mountPath": path} for at, (_, path) in enumerate(job.mounts)),
        ],
        "securityContext": {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}},
    }
    if limits:
        container["resources"] = {"limits": limits}
    claims = [
        {"name": f"mount-{at}", "persistentVolumeClaim": {"claimName": source}}
        for at, (source, _) in enumerate(job.mounts)
    ]
    pod: dict[str, Any] = {
        "restartPolicy": "Never",  # podFailurePolicy needs it
        "terminationGracePeriodSeconds": NOTICE_SECONDS,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container],
        "volumes": [
            {"name": "runs", "emptyDir": {}},
            {"name": "shared-memory", "emptyDir": {"medium": "Memory"}},
            *claims,
        ],
    }
    selector: dict[str, str] = {}
    if machines.zone not in (None, ANY):
        selector[_ZONE] = str(machines.zone)
    if machines.instance:
        selector["node.kubernetes.io/instance-type"] = machines.instance
    if selector:
        pod["nodeSelector"] = selector
    return pod


def jobset_steps(job: Job, folder: str) -> list[str]:
    """Returns what to type next."""
    return [
        f"docker build --tag {job.image} {folder}",
        f"docker push {job.image}",
        f"kubectl apply -f {folder}/{job.name}.jobset.yaml",
    ]
