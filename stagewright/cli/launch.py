"""The command ``launch``: writes the files that start a run on rented or shared machines."""

from __future__ import annotations

import re
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagewright.cli.options import (
    BatchSize,
    Data,
    Epochs,
    HoldTest,
    ImgSize,
    LearningRate,
    Model,
    NoPages,
    Overrides,
    RecipeName,
    SaveMinutes,
    Seed,
    Spread,
    Tiny,
    Weights,
    Workers,
    recipe_request,
)
from stagewright.launch.train_command import OPTIONS
from stagewright.storage.files import user_path
from stagewright.system.output import tell

if TYPE_CHECKING:
    from stagewright.launch.job import Job, Target

On = Annotated[
    str | None, typer.Option("--on", metavar="TARGET", help="sagemaker, skypilot, slurm, jobset or docker; needed.")
]
Nodes = Annotated[int, typer.Option("--nodes", min=1, max=1000, help="Number of machines.")]
Gpus = Annotated[int, typer.Option("--gpus", min=0, max=64, help="GPUs of each machine; 0: it computes on the CPU.")]
Cpus = Annotated[int | None, typer.Option("--cpus", min=1, help="Processor cores of each machine.")]
Spot = Annotated[
    bool, typer.Option("--spot", help="Machines that may be taken away, at a lower price; needs --mirror.")
]
MirrorUrl = Annotated[
    str | None,
    typer.Option(
        "--mirror",
        metavar="URL",
        help="Where the run's copy lies: s3://, gs:// or az://. On SageMaker: its checkpoints and its output.",
    ),
]
Instance = Annotated[
    str | None, typer.Option("--instance", help="Type of the machines, e.g. ml.g6.12xlarge; default: by --gpus.")
]
GpuType = Annotated[str | None, typer.Option("--gpu-type", help="skypilot: kind of GPU, e.g. L4 or H100.")]
Cloud = Annotated[str | None, typer.Option("--cloud", help="skypilot: aws, gcp, azure, ...")]
Region = Annotated[str | None, typer.Option("--region", help="Region of the machines.")]
Zone = Annotated[str | None, typer.Option("--zone", help="skypilot, jobset: zone of the machines, or any.")]
Partition = Annotated[str | None, typer.Option("--partition", help="slurm: the partition.")]
Image = Annotated[str | None, typer.Option("--image", help="Name of the container image that is built.")]
Role = Annotated[str | None, typer.Option("--role", help="sagemaker: ARN of the role.")]
Disk = Annotated[int, typer.Option("--disk", min=10, max=16_000, help="Disk of each machine in GB.")]
TimeLimit = Annotated[str, typer.Option("--time-limit", metavar="TIME", help="Longest time, e.g. 90m or 24h.")]
CopyData = Annotated[
    bool, typer.Option("--copy-data", help="sagemaker: copy DATA (s3://) to the machines before the run.")
]
Mounts = Annotated[
    list[str] | None,
    typer.Option(
        "--mount", metavar="SOURCE:PATH", help="docker: a folder, jobset: a volume claim, at PATH; repeatable."
    ),
]
Name = Annotated[str | None, typer.Option("--name", help="Name of job and run; default: from the recipe.")]
Out = Annotated[Path, typer.Option("--out", parser=user_path, metavar="PATH", help="Folder for the files.")]


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(launch)


def launch(
    data: Data,
    on: On = None,
    recipe: RecipeName = "auto",
    overrides: Overrides = None,
    model: Model = None,
    weights: Weights = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    lr: LearningRate = None,
    img_size: ImgSize = None,
    seed: Seed = None,
    spread: Spread = None,
    workers: Workers = None,
    save_minutes: SaveMinutes = 10.0,
    tiny: Tiny = False,
    hold_test: HoldTest = False,
    no_pages: NoPages = False,
    nodes: Nodes = 1,
    gpus: Gpus = 1,
    cpus: Cpus = None,
    spot: Spot = False,
    mirror: MirrorUrl = None,
    instance: Instance = None,
    gpu_type: GpuType = None,
    cloud: Cloud = None,
    region: Region = None,
    zone: Zone = None,
    partition: Partition = None,
    image: Image = None,
    role: Role = None,
    disk: Disk = 100,
    time_limit: TimeLimit = "24h",
    copy_data: CopyData = False,
    mount: Mounts = None,
    name: Name = None,
    out: Out = Path("launch"),
) -> None:
    """Write the files that start a run on SageMaker, SkyPilot, SLURM, Kubernetes (JobSet) or Docker; nothing is started."""
    from stagewright.launch.checks import check_job, check_lanes
    from stagewright.launch.job import Job, Machines
    from stagewright.launch.write import next_steps, write_job

    target = _target(on)
    request = recipe_request(recipe, overrides, model, weights, epochs, batch_size, lr, img_size, seed, spread)
    seconds, where = _seconds(time_limit), (region, zone, cloud, partition)
    machines = Machines(nodes, gpus, cpus, instance, gpu_type, spot, *where, disk_gb=disk, seconds=seconds)
    own_file = _recipe_file(recipe)
    spread = check_lanes(request.preliminary, machines, complete=not (request.is_auto or tiny))
    asked = (recipe, tuple(overrides or ()), model, weights, epochs, batch_size, lr, img_size, seed)
    more = (spread if spread > 1 else None, workers, save_minutes if save_minutes != 10.0 else None)
    options = dict(zip(OPTIONS, (*asked, *more, tiny, hold_test, no_pages), strict=True))
    job = Job(
        target=target,
        name=name or _name(recipe),
        data=data,
        options={
            key: value if isinstance(value, tuple | bool) else str(value)
            for key, value in options.items()
            if value not in (None, False, ())
        },
        machines=machines,
        mirror=mirror,
        image=image,
        role=role,
        mounts=tuple(_mount(text) for text in mount or ()),
        copies_data=copy_data,
        recipe_file=own_file if target != "slurm" else None,
        command=shlex.join(["stagewright", *sys.argv[1:]]),
    )
    check_job(job)
    _say(job, [str(path) for path in write_job(job, out)], next_steps(job, str(out)))


def _target(on: str | None) -> Target:
    from stagewright.errors import RecipeError
    from stagewright.launch.job import TARGETS
    from stagewright.text import most_like

    targets: dict[str, Target] = {one: one for one in TARGETS}
    if on is None or on not in targets:
        near = "slurm" if on is None else most_like(on, TARGETS)
        raise RecipeError("launch without --on" if on is None else f"--on {on}", ", ".join(TARGETS), f"--on {near}")
    return targets[on]


def _say(job: Job, written: list[str], steps: list[str]) -> None:
    tell(f"Written, nothing was started: {', '.join(written)}")
    tell(f"Next, in this folder ({job.machines.ranks} process{'es' if job.machines.ranks > 1 else ''} in all):")
    for step in steps:
        print(f"    {step}")


def _seconds(text: str) -> int:
    from stagewright.errors import RecipeError
    from stagewright.plan.budget import time_seconds

    seconds = time_seconds(text.strip().lower())
    if seconds is None or not 300 <= seconds <= 28 * 86_400:
        raise RecipeError(f"--time-limit {text}", "a time from 5m to 672h (28 days)", "write for example 24h")
    return int(seconds)


def _recipe_file(recipe: str) -> str | None:
    """Returns the content of a recipe's file; None for the name of a shipped one."""
    path = Path(recipe)
    if path.suffix not in (".yaml", ".yml") or not path.is_file():
        return None
    return path.read_text(encoding="utf-8")


def _name(recipe: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", Path(recipe).stem.lower()).strip("-")[:40].strip("-") or "run"


def _mount(text: str) -> tuple[str, str]:
    from stagewright.errors import RecipeError

    source, colon, path = text.partition(":")
    if not (source and colon and path.startswith("/")):
        raise RecipeError(f"--mount {text}", "SOURCE:PATH with an absolute PATH", "--mount photos:/data")
    return source, path
