"""The command group ``data``: inspect a data set, split it, pack it, look at its batches, measure how fast it can be read."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from stagewright.cli.arguments import StrictTyper
from stagewright.cli.options import (
    BatchSize,
    Device,
    Epochs,
    ImgSize,
    Model,
    Overrides,
    Quiet,
    RecipeName,
    Seed,
    Tiny,
    Weights,
    recipe_request,
    refuse_alone,
    show_account,
    speaker,
)
from stagewright.plan.execution import MOST_WORKERS
from stagewright.storage.files import STDOUT, user_path, write_for_user
from stagewright.system.output import tell

data_app = StrictTyper(
    help="Inspect a data set, split it, pack it, look at its batches, measure how fast it can be read.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_QUALITY = 90
Source = Annotated[str, typer.Argument(metavar="DATA", help="As for train.")]
Settings = Annotated[
    list[str] | None,
    typer.Option("--set", help="Override how DATA is read, e.g. data.label=species or data.group=none; repeatable."),
]
Threads = Annotated[
    int | None, typer.Option("--workers", "-j", min=1, max=MOST_WORKERS, help="Number of threads; default: cores.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for a program.")]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="Replace existing output.")]


@data_app.command()
def inspect(
    data: Source,
    html: Annotated[
        str | None, typer.Option(metavar="PATH", help="Also write a page with thumbnails; - for standard output.")
    ] = None,
    overrides: Settings = None,
    seed: Annotated[
        int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of the split, if DATA has none (data.split_seed).")
    ] = None,
    workers: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Find problems of a data set: damage, duplicates, leaks, conflicting labels. Exit code 1 if one of them is serious."""
    from stagewright.api.data import inspect as inspect_files
    from stagewright.cli.data_views import print_inspection
    from stagewright.data.inspect.page import write_page
    from stagewright.errors import DataError
    from stagewright.system.terminal import Terminal

    on_stdout = html == STDOUT
    if on_stdout and as_json:
        raise DataError("--html - with --json", "one of them on standard output", "leave one out, or name a file")
    found = inspect_files(data, overrides=overrides or (), seed=seed, workers=workers, quiet=quiet)
    if html is not None:
        write_page(found, html)
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
    else:
        print_inspection(found, Terminal(sys.stderr if on_stdout else None))
        if html is not None and not on_stdout:
            print(f"Page   {html}")
    if found.serious:
        raise typer.Exit(1)


@data_app.command()
def split(
    data: Source,
    val: Annotated[float | None, typer.Option(help="Share of the validation split, in [0, 1).")] = None,
    test: Annotated[float | None, typer.Option(help="Share of the test split, in [0, 1).")] = None,
    group_by: Annotated[str | None, typer.Option(help="Column whose groups stay in one split; or none.")] = None,
    folds: Annotated[
        int | None, typer.Option(help="Number K of folds: K tables, each with another validation part.")
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=user_path, metavar="PATH", help="Table to write, .csv or .parquet; default: NAME-split.csv."
        ),
    ] = None,
    links: Annotated[
        Path | None, typer.Option(parser=user_path, metavar="PATH", help="Also write the split as folders of links.")
    ] = None,
    mode: Annotated[str, typer.Option(help="What --links writes: symlink, hardlink or copy.")] = "symlink",
    anew: Annotated[bool, typer.Option("--anew", help="Make a new split even if DATA already has one.")] = False,
    near: Annotated[
        str | None,
        typer.Option(
            metavar="ignore|together", help="Near duplicates (see data inspect); together: in one split or fold."
        ),
    ] = None,
    overwrite: Overwrite = False,
    overrides: Settings = None,
    seed: Annotated[int | None, typer.Option(min=0, max=2**63 - 1, help="Seed of the split (data.split_seed).")] = None,
    workers: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Write a stratified, grouped split, or K folds, as a table that train can read."""
    from stagewright.api.data import split as write_split
    from stagewright.cli.data_views import print_split
    from stagewright.errors import DataError
    from stagewright.system.terminal import Terminal

    refuse_alone("--mode", mode != "symlink" and links is None, "--links")
    if mode not in ("symlink", "hardlink", "copy"):
        raise DataError(f"--mode {mode}", "symlink, hardlink or copy", "choose one of them")
    made = write_split(
        data,
        val=val,
        test=test,
        group_by=group_by,
        near=near,
        folds=folds,
        out=out,
        links=links,
        mode=mode,
        anew=anew,
        overwrite=overwrite,
        overrides=overrides or (),
        seed=seed,
        workers=workers,
        quiet=quiet,
    )
    print(json.dumps(made.to_dict(), indent=1)) if as_json else print_split(made, Terminal())


@data_app.command()
def pack(
    data: Source,
    size: Annotated[
        int, typer.Option(help="Short side of the stored pictures in pixels; smaller ones keep their size.")
    ] = 256,
    encoding: Annotated[
        str, typer.Option("--format", help="jpeg, or raw: pixels, faster, 8 times the space.")
    ] = "jpeg",
    quality: Annotated[int, typer.Option(min=1, max=100, help="JPEG quality.")] = _QUALITY,
    order: Annotated[
        str, typer.Option(help="Of the stored pictures: mixed, by a key, or listed, which is by class in most data.")
    ] = "mixed",
    out: Annotated[
        str | None, typer.Option(metavar="PATH|URL", help="Folder to write, or s3://...; default: NAME.pack.")
    ] = None,
    overwrite: Overwrite = False,
    overrides: Settings = None,
    workers: Threads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Store smaller copies of all pictures in a few large files, which train reads several times as fast."""
    from stagewright.data.pack.build import pack as make
    from stagewright.data.sources.folders import name_of
    from stagewright.errors import DataError
    from stagewright.observers.progress_line import ProgressLine
    from stagewright.text import count_text, seconds_text

    if encoding not in ("jpeg", "raw"):
        raise DataError(f"--format {encoding}", "jpeg or raw", "choose one of them")
    if order not in ("mixed", "listed"):
        raise DataError(f"--order {order}", "mixed or listed", "choose one of them")
    refuse_alone("--quality", quality != _QUALITY and encoding != "jpeg", "--format jpeg")
    folder = out or f"{name_of(data)}.pack"
    with ProgressLine("scanning the pictures", "packing", quiet=quiet) as progress:
        made = make(
            data,
            folder,
            _settings(overrides),
            size=size,
            encoding=encoding,
            quality=quality,
            order=order,
            workers=workers or _cores(),
            overwrite=overwrite,
            progress=progress,
            say=None if as_json or quiet else tell,
        )
    if as_json:
        names = ("records", "bytes", "seconds", "excluded", "original_bytes", "made")
        content = {"folder": made.place, **{name: getattr(made, name) for name in names}}
        print(json.dumps({**content, "account": made.account.to_dict()}, indent=1))
        return
    room = f"{made.bytes / 1e6:,.1f} MB from {made.original_bytes / 1e6:,.1f} MB"
    tell(f"{folder}: {count_text(made.records, 'picture')}, {room}, {seconds_text(made.seconds)}")
    show_account(made.account)
    print(f"Train  stagewright train {folder}")


@data_app.command()
def preview(
    data: Source,
    recipe: RecipeName = "auto",
    overrides: Overrides = None,
    model: Model = None,
    weights: Weights = None,
    epochs: Epochs = None,
    batch_size: BatchSize = None,
    img_size: ImgSize = None,
    seed: Seed = None,
    tiny: Tiny = False,
    stage: Annotated[
        str | None, typer.Option(help="Name of a stage, whose steps --step counts; default: the whole run.")
    ] = None,
    step: Annotated[
        int | None, typer.Option(min=0, help="Number of the update, from 0 as in the plan; default: the first.")
    ] = None,
    shown: Annotated[int, typer.Option("--images", min=1, help="Number of pictures of the batch to show.")] = 32,
    html: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Page to write; - for standard output; default: preview.html."),
    ] = None,
    as_png: Annotated[str | None, typer.Option("--png", metavar="PATH", help="Also, or only, a PNG.")] = None,
    device: Device = "auto",
    quiet: Quiet = False,
) -> None:
    """Show the training pictures of a step exactly as the network is fed them: augmented, mixed, with labels."""
    from stagewright.api.preview import preview as look
    from stagewright.plan.execution import Execution

    targets = [(html or "preview.html", "to_html")] if html or not as_png else []
    targets += [(as_png, "to_png")] if as_png else []
    on_stdout = STDOUT in (html, as_png)
    chosen = recipe_request(recipe, overrides, model, weights, epochs, batch_size, None, img_size, seed)
    execution = Execution(device=device, quiet=quiet)
    say = speaker(quiet or on_stdout)
    found = look(data, chosen, stage=stage, step=step, tiny=tiny, shown=shown, execution=execution, say=say)
    for fact in found.facts:
        say(fact)
    for target, form in targets:
        write_for_user(target, getattr(found, form)())
        if not on_stdout:
            print(f"Preview  {target}")


@data_app.command()
def bench(
    data: Source,
    image_size: Annotated[
        list[int] | None,
        typer.Option("--img-size", min=4, max=4096, help="Image sizes to measure, in pixels; repeatable."),
    ] = None,
    threads: Annotated[
        list[int] | None,
        typer.Option("--threads", "-j", min=0, max=MOST_WORKERS, help="Numbers of threads; repeatable."),
    ] = None,
    model: Annotated[str | None, typer.Option(help="Also measure how fast this model trains on this machine.")] = None,
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, max=65_536)] = 64,
    seconds: Annotated[float, typer.Option(min=0.05, max=3600, help="Length of each measurement in seconds.")] = 2.0,
    sample: Annotated[int, typer.Option(min=8, max=10**9, help="Number of pictures for the measurements.")] = 500,
    packs: Annotated[bool, typer.Option(help="Also measure packed copies of these pictures.")] = True,
    peers: Annotated[bool, typer.Option(help="Also measure torchvision's ImageFolder and DataLoader.")] = True,
    device: Annotated[str, typer.Option(help="Where the model trains: auto, cpu, cuda.")] = "auto",
    overrides: Settings = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Measure how fast pictures can be read and what takes the time; ends with advice."""
    from stagewright.cli.machine_view import benchmark_view
    from stagewright.observers.progress_line import ProgressLine
    from stagewright.preflight.loader_bench import BenchSettings
    from stagewright.preflight.loader_bench import bench as measure
    from stagewright.system.terminal import Terminal

    refuse_alone("--device", device != "auto" and model is None, "--model")
    say = (lambda text: None) if as_json or quiet else (lambda text: tell(text, sys.stderr))
    with ProgressLine("looking at the pictures", "measuring", quiet=quiet) as progress:
        found = measure(
            data,
            _settings(overrides),
            BenchSettings(image_size or [224], threads, batch_size, seconds, sample, packs, peers),
            model=model,
            device=device,
            progress=progress,
            say=say,
        )
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    Terminal().print(benchmark_view(found))
    show_account(found.account)


def _settings(overrides: list[str] | None) -> Any:
    """Returns how DATA is read: the defaults with the given ``--set data.*``."""
    from stagewright.recipe.recipes import data_settings

    return data_settings(overrides or ())


def _cores() -> int:
    from stagewright.system.machine import cores

    return cores()
