"""Options shared by several commands, and the recipe request that they make."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stagewright.cli.completion import recipe_fields, recipe_names, run_directories
from stagewright.plan.execution import MOST_WORKERS
from stagewright.storage.files import user_path
from stagewright.storage.objects import is_remote
from stagewright.system.output import tell

if TYPE_CHECKING:
    from stagewright.data.account import Account

Data = Annotated[
    str,
    typer.Argument(
        help="A folder of class folders; a folder with train/ val/ [test/]; a CSV or Parquet file; a pack; tar files of "
        "WebDataset; s3://... of these; digits; torchvision:NAME; hf:NAME."
    ),
]
RunPath = Annotated[
    Path,
    typer.Argument(parser=user_path, autocompletion=run_directories, help="A run directory, e.g. runs/quick-1."),
]


def run_place(text: str) -> Path | str:
    """Returns the URL of a mirror as it is, and the path of a run directory as :func:`user_path` does."""
    return text if is_remote(text) else user_path(text)


RunPlace = Annotated[
    Any,
    typer.Argument(
        parser=run_place,
        metavar="RUN",
        autocompletion=run_directories,
        help="A run directory, e.g. runs/quick-1, or a mirror, e.g. s3://bucket/prefix.",
    ),
]
RecipeName = Annotated[
    str,
    typer.Option("--recipe", "-r", autocompletion=recipe_names, help="A shipped recipe's name, or a YAML file."),
]
Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        autocompletion=recipe_fields,
        help="Override a recipe field, e.g. optimizer.weight_decay=0.05 or stages.0.epochs=3ep; repeatable.",
    ),
]
Model = Annotated[
    str | None, typer.Option(help="Any torchvision or timm model, cifar_resnet18, cifar_preact_resnet18, vit.")
]
Weights = Annotated[str | None, typer.Option(help="default (the library's), a weights file, a run directory, or none.")]
Epochs = Annotated[
    str | None,
    typer.Option(help="Length of the run: 30 or 30ep (epochs), 500st (steps); each stage keeps its share."),
]
BatchSize = Annotated[int | None, typer.Option("--batch-size", "-b", help="Pictures per update, over all devices.")]
LearningRate = Annotated[
    str | None, typer.Option("--lr", metavar="NUMBER|auto", help="Peak learning rate; auto: found by a range test.")
]
ImgSize = Annotated[int | None, typer.Option("--img-size", help="Image size in pixels (squares).")]
Seed = Annotated[int | None, typer.Option(help="Seed of all random numbers but the split (data.split_seed).")]
Spread = Annotated[
    int | None,
    typer.Option(
        "--spread", min=1, help="The most devices that this run may ever use: any number of them gives the same bits."
    ),
]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda, cuda:1.")]
Workers = Annotated[
    int | None,
    typer.Option(
        "--workers",
        "-j",
        min=0,
        max=MOST_WORKERS,
        help="Threads that read pictures; 0: read in the main thread; default: automatic.",
    ),
]
ComputeThreads = Annotated[
    int | None,
    typer.Option(
        "--threads", min=1, max=MOST_WORKERS, help="Threads that compute on a CPU; default: one for each core."
    ),
]
Tiny = Annotated[
    bool, typer.Option("--tiny", help="Test run: every stage in a few steps on small pictures, in under a minute.")
]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress on the terminal.")]
NoPages = Annotated[bool, typer.Option("--no-pages", help="Do not write plots and the report during the run.")]
HoldTest = Annotated[
    bool,
    typer.Option(
        "--hold-test",
        help="Leave the test part closed for good, also after a resume; evaluate RUN --split test --record opens it.",
    ),
]
SaveMinutes = Annotated[
    float, typer.Option(help="Save at least every so many minutes, in addition to the plan's checkpoints.")
]
Until = Annotated[
    str | None,
    typer.Option(
        metavar="PART",
        help="Pause at the first planned evaluation at this part of the run or later: 40%, 12ep or 5000st; resume goes on.",
    ),
]
BudgetText = Annotated[
    str | None,
    typer.Option(
        "--budget",
        help="Total time of the run, e.g. 90s, 45m, 1h30m, or its cost with --price, e.g. $5: measures this machine and "
        "chooses the length of the run. The time counts from the start of this command.",
    ),
]
Price = Annotated[
    float | None,
    typer.Option(
        help="Price of one hour of this machine in dollars, for --budget $ and plan --probe; of one device, for plan --devices."
    ),
]
WIRE = "10G"
"""Bits a second between hosts."""
PROBE_SECONDS = 10.0
ProbeSeconds = Annotated[
    float, typer.Option(help="Length of the speed measurement in seconds, for all stages together.")
]
CacheGb = Annotated[
    float | None,
    typer.Option(
        "--cache-gb",
        metavar="GB",
        help="Size of the cache on disk for pictures in an object store; default: a quarter of the free disk.",
    ),
]
GetPrice = Annotated[
    float,
    typer.Option("--get-price", help="Dollars for 1,000 requests to an object store, for what is said about costs."),
]
MetricLines = Annotated[
    bool,
    typer.Option("--metric-lines", help="Print a line [METRICS] epoch=... at each evaluation, for cloud services."),
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]


def recipe_request(
    name: str,
    overrides: list[str] | None,
    model: str | None = None,
    weights: str | None = None,
    epochs: str | None = None,
    batch_size: int | None = None,
    lr: str | None = None,
    img_size: int | None = None,
    seed: int | None = None,
    spread: int | None = None,
) -> Any:
    """Returns the request made by the common flags and ``--set``, which overrides them."""
    from stagewright.recipe.request import RecipeRequest, recipe_flags

    flags = recipe_flags(
        model=model, weights=weights, batch_size=batch_size, lr=lr, image_size=img_size, seed=seed, spread=spread
    )
    return RecipeRequest(name, flags, epochs, tuple(overrides or ()))


def budget_limit(text: str | None, price: float | None, epochs: str | None = None) -> Any:
    """Returns the budget, which counts from the start of this process, or None if none was given."""
    from stagewright.plan.budget import Budget, check_price, refuse_second_length
    from stagewright.system.machine import process_start_time

    check_price(price)
    if text is None:
        return None
    refuse_second_length(text, epochs)
    return Budget.parse(text, price, began=process_start_time())


def refuse_alone(flag: str, given: bool, other: str) -> None:
    """RecipeError if a flag is ``given``, i.e. not at its default, but ``other``, without which it has no effect, is not."""
    from stagewright.errors import RecipeError

    if given:
        raise RecipeError(
            f"{flag} without {other} has no effect", f"{flag} together with {other}", f"add {other}, or leave it out"
        )


def show_account(account: Account) -> None:
    """Prints what was left out and what could not be read."""
    for line in account.lines():
        tell(line)


def speaker(quiet: bool) -> Any:
    """Returns :func:`tell` for the messages of the set-up, or a function that does nothing if ``quiet``."""
    return (lambda text: None) if quiet else tell
