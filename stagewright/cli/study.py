"""The commands ``study ...``: many runs that differ on purpose."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagewright.cli.arguments import StrictTyper
from stagewright.cli.completion import study_names
from stagewright.cli.options import AsJson, ComputeThreads, Device, Quiet, Tiny, budget_limit, refuse_alone, speaker
from stagewright.cli.track import Track, chosen_trackers
from stagewright.storage.files import user_path

if TYPE_CHECKING:
    from stagewright.system.terminal import Terminal

study_app = StrictTyper(
    help="Many runs that differ on purpose: grids, lists of variants, searches.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

StudySource = Annotated[
    str,
    typer.Argument(
        autocompletion=study_names, metavar="FILE", help="A study file, or the name of a shipped study (study list)."
    ),
]
StudyData = Annotated[
    str | None, typer.Option("--data", help="DATA, in place of that in the file; a shipped study needs it.")
]
HourPrice = Annotated[float | None, typer.Option("--price", help="Price of one hour of this machine in dollars.")]
_PROBE_SECONDS = 5.0


@study_app.command("list")
def list_studies() -> None:
    """List the shipped studies."""
    from stagewright.cli.study_view import study_list

    print(study_list(shutil.get_terminal_size().columns if sys.stdout.isatty() else None))


@study_app.command("print")
def print_study(source: StudySource) -> None:
    """Print a study file, with its source and expected results, as a starting point."""
    from stagewright.study import study_file

    study_file.fields_of(source)  # raises for an invalid study
    print(study_file.text(source), end="")


@study_app.command("plan")
def plan_study(
    source: StudySource,
    data: StudyData = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=user_path, metavar="PATH", help="Where it would run, to look for room on that disk."),
    ] = None,
    device: Device = "auto",
    threads: ComputeThreads = None,
    tiny: Tiny = False,
    price: HourPrice = None,
    probe: Annotated[
        bool, typer.Option("--probe/--no-probe", help="Measure this machine to tell how long it takes.")
    ] = True,
    probe_seconds: Annotated[
        float, typer.Option(help="Length of a measurement in seconds, for each kind of run that costs the same.")
    ] = _PROBE_SECONDS,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Check a study and print its runs: plans, time, money and disk space. Trains nothing."""
    from stagewright.plan.budget import check_price
    from stagewright.study.definition import read_study

    check_price(price)
    refuse_alone("--price", price is not None and not probe, "--probe")
    refuse_alone("--probe-seconds", probe_seconds != _PROBE_SECONDS and not probe, "--probe")
    study = read_study(source, data)
    from stagewright.cli.study_view import study_in_json, study_view
    from stagewright.plan.execution import Execution
    from stagewright.study.checks import check_disk, check_study
    from stagewright.study.expected import expected
    from stagewright.system.terminal import Terminal

    execution = Execution(device=device, threads=threads, quiet=quiet, pages=False, probe_seconds=probe_seconds)
    say, folder = speaker(as_json or quiet), out or Path("runs")
    checked = check_study(study, execution, say, tiny=tiny)
    check_disk(checked, folder)
    times = expected(checked, execution, folder, say) if probe else None
    if as_json:
        print(json.dumps(study_in_json(checked, times, price), indent=1))
    else:
        Terminal(highlight=False).print(study_view(checked, times, price))


@study_app.command("run")
def run_study(
    source: StudySource,
    data: StudyData = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=user_path, metavar="PATH", help="Folder of the study; default: runs/NAME. The same joins."),
    ] = None,
    processes: Annotated[
        int | None,
        typer.Option("--processes", "-j", min=1, max=256, help="Runs at the same time; default: one a device."),
    ] = None,
    device: Device = "auto",
    devices: Annotated[
        str | None, typer.Option(help="Several devices, in turn: cuda:0,cuda:1. In place of --device.")
    ] = None,
    threads: ComputeThreads = None,
    storage: Annotated[
        str | None,
        typer.Option(
            metavar="URL",
            help="PostgreSQL server for workers on several hosts, without a password: postgresql://USER@HOST/NAME; "
            "or the variable STAGEWRIGHT_STORAGE.",
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option("--budget", help="No run begins that is not forecast to end in it: 6h; or $20 with --price."),
    ] = None,
    price: HourPrice = None,
    more: Annotated[
        int, typer.Option(min=0, help="So many of the best paused runs of a search go on to their end.")
    ] = 0,
    tiny: Tiny = False,
    trackers: Track = None,
    quiet: Quiet = False,
) -> None:
    """Carry out a study, or join those who work at it; the same command goes on after whatever ended it."""
    refuse_alone("--price", price is not None and budget is None, "--budget")
    refuse_alone("--device", devices is not None and device != "auto", "no --devices")
    limit, chosen = budget_limit(budget, price), chosen_trackers(trackers)
    from stagewright.study.definition import read_study

    study = read_study(source, data)
    from stagewright.plan.execution import Execution
    from stagewright.study import run
    from stagewright.system.terminal import Terminal

    places = tuple(one.strip() for one in (devices or "").split(",") if one.strip())
    manner = run.Manner(
        execution=Execution(device=device, threads=threads, track=chosen),
        processes=processes or max(1, len(places)),
        devices=places,
        storage=storage,
        budget=limit,
        more=more,
        tiny=tiny,
        say=speaker(quiet),
    )
    ledger = run.run_study(study, out, manner)
    if not quiet:
        _show(ledger.root, Terminal(highlight=False))


@study_app.command("show")
def show_study(
    folder: Annotated[
        Path, typer.Argument(parser=user_path, metavar="DIR", help="The folder that study run has printed.")
    ],
    as_json: AsJson = False,
) -> None:
    """Show how far a study is: its runs, the best so far, the time left. At any time, from any process."""
    from stagewright.study.ledger import Ledger
    from stagewright.study.status import study_status
    from stagewright.system.terminal import Terminal

    if as_json:
        print(json.dumps(study_status(Ledger(folder)).to_dict(), indent=1))
    else:
        _show(folder, Terminal(highlight=False))


def _show(folder: Path, terminal: Terminal) -> None:
    from stagewright.cli.study_status_view import status_view
    from stagewright.study.ledger import Ledger
    from stagewright.study.status import study_status

    terminal.print(status_view(study_status(Ledger(folder))))
