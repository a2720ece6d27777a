"""The commands ``plan``, ``resume-check`` and ``lr-find``, which are used before a run."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated

import typer

from stagewright.cli.options import (
    PROBE_SECONDS,
    WIRE,
    AsJson,
    BatchSize,
    CacheGb,
    Data,
    Device,
    Epochs,
    GetPrice,
    ImgSize,
    LearningRate,
    Model,
    Overrides,
    Price,
    ProbeSeconds,
    Quiet,
    RecipeName,
    Seed,
    Spread,
    Tiny,
    Weights,
    Workers,
    recipe_request,
    refuse_alone,
    speaker,
)
from stagewright.storage.files import user_path
from stagewright.storage.objects import GET_PRICE


def register(app: typer.Typer) -> None:
    """Adds the commands to ``app``."""
    app.command()(plan)
    app.command("resume-check")(resume_check)
    app.command("lr-find")(lr_find)


def plan(
    data: Data,
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
    tiny: Tiny = False,
    device: Device = "auto",
    workers: Workers = None,
    probe: Annotated[
        bool,
        typer.Option(
            "--probe", help="Measure time, memory and disk space on this machine; with --price also the cost."
        ),
    ] = False,
    price: Price = None,
    devices: Annotated[
        str | None,
        typer.Option(
            metavar="N,N,HxN",
            help="Forecast for these numbers of devices on one host, or on H hosts with N each, such as 1,2,4,8,16x8; needs "
            "--probe or --from.",
        ),
    ] = None,
    source: Annotated[
        Path | None,
        typer.Option(
            "--from",
            parser=user_path,
            metavar="PATH",
            help="With --devices: what --probe --json has printed for this plan, on one device of the kind in question.",
        ),
    ] = None,
    wire: Annotated[
        str,
        typer.Option(
            "--wire", metavar="RATE", help="With --devices: bits a second between hosts, such as 10G or 100M."
        ),
    ] = WIRE,
    wire_within: Annotated[
        str | None,
        typer.Option(
            "--wire-within",
            metavar="RATE",
            help="With --devices: bits a second between the devices of a host; default: 80G for GPUs, 8G for processes on a CPU.",
        ),
    ] = None,
    cache_gb: CacheGb = None,
    get_price: GetPrice = GET_PRICE,
    probe_seconds: ProbeSeconds = PROBE_SECONDS,
    quiet: Quiet = False,
    as_json: AsJson = False,
    steps: Annotated[
        bool, typer.Option("--steps", help="With --json: also the hyper-parameters of each step.")
    ] = False,
) -> None:
    """Print the plan of a run, without training."""
    from stagewright.api.prepare import prepare, probed, tell_time
    from stagewright.cli.cost_view import cost_view, in_json
    from stagewright.cli.device_view import Asked, device_view
    from stagewright.cli.plan_view import plan_view
    from stagewright.errors import RecipeError
    from stagewright.plan.budget import check_price
    from stagewright.plan.execution import Execution
    from stagewright.system.terminal import Terminal

    began = time.perf_counter()
    check_price(price)
    refuse_alone("--probe-seconds", probe_seconds != PROBE_SECONDS and not probe, "--probe")
    refuse_alone("--steps", steps and not as_json, "--json")
    asked = Asked.parse(devices, source, wire, wire_within, price, probe=probe)
    if price is not None and not (probe or asked):
        raise RecipeError(
            f"--price {price:g} without --probe", "--price with --probe", "add --probe, which measures the time"
        )
    chosen = recipe_request(recipe, overrides, model, weights, epochs, batch_size, lr, img_size, seed, spread)
    execution = Execution(
        device=device,
        workers=workers,
        quiet=quiet,
        probe_seconds=probe_seconds,
        cache_gb=cache_gb,
        get_price=get_price,
    )
    dataset, made = prepare(data, chosen, execution, speaker(as_json), tiny=tiny)
    if chosen.is_auto and not (probe or as_json or tiny):
        tell_time(made, dataset, execution, speaker(as_json), began)
    costs = probed(made, dataset, execution, speaker(as_json)) if probe else None
    expected = None if asked is None else asked.forecasts(made, dataset, execution, costs)
    if as_json:
        content = made.to_json() | ({"hyper": list(made.steps())} if steps else {})
        content |= {"account": dataset.account.to_dict()}
        content |= {} if costs is None else in_json(made, costs, price)
        print(json.dumps(content | ({} if expected is None else {"devices": expected.to_json()}), indent=1))
    else:
        Terminal().print(plan_view(made))
        if costs is not None:
            Terminal().print("", cost_view(made, costs, price), sep="\n")
        if expected is not None:
            Terminal().print("", device_view(expected), sep="\n")


def resume_check(
    data: Data,
    recipe: RecipeName = "auto",
    overrides: Overrides = None,
    model: Model = None,
    steps: Annotated[
        int, typer.Option(min=1, max=100_000, help="Total number of updates, divided among the recipe's stages.")
    ] = 24,
    kills: Annotated[
        int, typer.Option(min=0, max=1_000, help="Number of random steps at which the run is killed.")
    ] = 3,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = None,
    ranks: Annotated[
        str | None,
        typer.Option(
            metavar="W,W,...",
            help="In place of kills: carry it out with 1 process and with each of these numbers, such as 1,2,3,4.",
        ),
    ] = None,
) -> None:
    """Test resuming: kill a short run at random steps, in an evaluation and at stage changes, and compare the results."""
    chosen = recipe_request(recipe, overrides, model, seed=seed)
    if ranks is not None:
        from stagewright.api.ranks_check import check_ranks

        numbers = _rank_numbers(ranks)
        if not check_ranks(
            data, chosen, steps=steps, ranks=numbers, device=device, workers=workers, say=speaker(False)
        ):
            raise typer.Exit(1)
        return
    from stagewright.api.resume_check import check

    if not check(data, chosen, steps=steps, kills=kills, device=device, workers=workers, say=speaker(False)):
        raise typer.Exit(1)


def _rank_numbers(text: str) -> list[int]:
    """Returns the numbers of ``--ranks``; RecipeError for anything else."""
    from stagewright.api.ranks_check import MOST_RANKS
    from stagewright.errors import RecipeError

    parts = text.split(",")
    if not all(part.isascii() and part.isdecimal() and 1 <= int(part) <= MOST_RANKS for part in parts):
        raise RecipeError(f"--ranks {text}", f"numbers of processes from 1 to {MOST_RANKS}", "write --ranks 1,2,3,4")
    return [int(part) for part in parts]


def lr_find(
    data: Data,
    recipe: RecipeName = "auto",
    overrides: Overrides = None,
    model: Model = None,
    weights: Weights = None,
    batch_size: BatchSize = None,
    img_size: ImgSize = None,
    seed: Seed = None,
    device: Device = "auto",
    workers: Workers = None,
    steps: Annotated[int, typer.Option(max=1_000_000, help="Number of updates in the range test.")] = 100,
    lr_min: Annotated[float, typer.Option(help="Learning rate of the first update.")] = 1e-7,
    lr_max: Annotated[float, typer.Option(help="Learning rate of the last update.")] = 10.0,
    suggest: Annotated[str, typer.Option(help="Suggestion to use: valley, steepest, minimum.")] = "valley",
    out: Annotated[
        Path,
        typer.Option(parser=user_path, metavar="PATH", help="Folder for lr-find.csv, lr-find.json and lr-find.png."),
    ] = Path("lr-find"),
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find a learning rate with a range test: a short training in which it rises until the loss diverges."""
    from stagewright.api.lr_find import lr_find as find
    from stagewright.cli.plan_view import lr_view
    from stagewright.plan.execution import Execution
    from stagewright.system.terminal import Terminal

    chosen = recipe_request(recipe, overrides, model, weights, batch_size=batch_size, img_size=img_size, seed=seed)
    execution = Execution(device=device, workers=workers, quiet=quiet)
    sweep = {"steps": steps, "lr_min": lr_min, "lr_max": lr_max, "suggest": suggest}
    made = find(data, chosen, out=out, execution=execution, say=speaker(as_json), **sweep)
    test, found = made.test, made.suggestions
    if as_json:
        counts = {"steps": len(test.lrs), "planned": test.planned, "skipped": test.skipped}
        files = {"csv": str(out / "lr-find.csv"), "plot": str(out / "lr-find.png")}
        print(json.dumps({**found.to_dict(), **counts, **files, "account": made.account.to_dict()}, indent=1))
    else:
        Terminal().print(lr_view(test, found, out))
