"""A Dockerfile, and a script that runs the image on this machine and starts it again after 69 and 75."""

from __future__ import annotations

from dataclasses import replace

from stagewright.launch.heading import heading
from stagewright.launch.image import HOME, image_files
from stagewright.launch.job import NOTICE_SECONDS, RECIPE_FILE, RESTARTS, Job, is_named, is_url
from stagewright.launch.train_command import shell_text, train_words

_DATA = "/data"

_RUN = """\
set -u
docker build --tag {image} "$(dirname "$0")" || exit 2
mkdir -p runs

stopped=
trap 'signalled=yes; stopped=yes; docker stop --time {grace} {name} >/dev/null' TERM INT HUP

# 69: a rank was lost. 75: stopped on request, saved; not by this script, then by a notice or from elsewhere.
restarts=0
while :; do
    docker run --rm --init --name {name} {options} \\
        {image} \\
        {train} &
    container=$!
    code=
    while [ -z "$code" ]; do
        signalled=
        wait "$container"
        code=$?
        [ -z "$signalled" ] || code= # a signal ended the wait, perhaps not the container
    done
    restarts=$((restarts + 1))
    if [ -n "$stopped" ] || [ "$restarts" -gt {most} ]; then
        exit "$code"
    fi
    case $code in
    69 | 75) echo "ended with $code: started again ($restarts of {most})" ;;
    *) exit "$code" ;;
    esac
done
"""


def docker_files(job: Job, folder: str) -> dict[str, str]:
    """Returns the Dockerfile with what it copies, and the script by its name."""
    machines = job.machines
    here = not (is_url(job.data) or is_named(job.data))
    mounts = [f'--volume "$PWD/runs":{HOME}/runs']
    raw_data = None
    if here:
        raw_data = shell_text([job.data]) if job.data.startswith("/") else f'"$PWD"/{shell_text([job.data])}'
        mounts.append(f"--volume {raw_data}:{_DATA}:ro")
    mounts += [f"--volume {shell_text([f'{source}:{path}'])}" for source, path in job.mounts]
    options = [
        "--shm-size 8g",
        '--user "$(id -u):$(id -g)"',
        f"--env HOME={HOME}/runs/.home",
        *(["--gpus all"] if machines.gpus else []),
        *([f"--cpus {machines.cpus}"] if machines.cpus else []),
        *mounts,
    ]
    words = train_words(inside(job), _DATA if here else job.data)[1:]  # the image's entry point is the program
    body = _RUN.format(
        image=image_name(job),
        name=job.name,
        grace=NOTICE_SECONDS,
        most=RESTARTS,
        options=" \\\n        ".join(options),
        train=shell_text(words, indent="        "),
    )
    return {**image_files(job), f"{job.name}.docker.sh": f"#!/bin/bash\n{heading(job.command)}{body}"}


def docker_steps(job: Job, folder: str) -> list[str]:
    """Returns what to type next."""
    return [f"bash {folder}/{job.name}.docker.sh"]


def image_name(job: Job) -> str:
    """Returns the image's name: as given, or ``stagewright``."""
    return job.image or "stagewright"


def inside(job: Job) -> Job:
    """Returns the job with its recipe's file where the image has it."""
    if job.recipe_file is None:
        return job
    return replace(job, options={**job.options, "recipe": RECIPE_FILE})
