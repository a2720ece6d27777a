"""The command line: parses arguments, calls the library, sets the exit code.

Modules that need torch are imported inside the functions, so that ``--help`` is fast. Exit codes: 0 success; 1 a bug in
stagewright, or a check that found problems or a difference; 2 an error that the user can fix (the message states how); 69 a
process of the run was lost, or its mirror; 75 stopped on request with the state saved (``stagewright resume``, or the same
command for ``data pack`` and ``train --folds``, continues); 130 after Ctrl-C, 143 after SIGTERM and 129 after SIGHUP in all
other commands.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any

import typer

from stagewright.cli import (
    compare,
    doctor,
    evaluate,
    finish,
    launch,
    machine,
    plan,
    predict,
    report,
    runs,
    study,
    track,
)
from stagewright.cli.arguments import StrictTyper
from stagewright.cli.data import data_app
from stagewright.cli.folds import FoldCount, is_folds, resume_folds, train_folds
from stagewright.cli.mirror import WAIT, AllowHttp, Mirror, Unfenced, Wait, mirror_settings
from stagewright.cli.options import (
    PROBE_SECONDS,
    BatchSize,
    BudgetText,
    CacheGb,
    ComputeThreads,
    Data,
    Device,
    Epochs,
    GetPrice,
    HoldTest,
    ImgSize,
    LearningRate,
    MetricLines,
    Model,
    NoPages,
    Overrides,
    Price,
    ProbeSeconds,
    Quiet,
    RecipeName,
    RunPlace,
    SaveMinutes,
    Seed,
    Spread,
    Tiny,
    Until,
    Weights,
    Workers,
    recipe_request,
    refuse_alone,
    speaker,
)
from stagewright.cli.outcome import close
from stagewright.cli.processes import (
    GRACE,
    RANK_TIMEOUT,
    Compress,
    Grace,
    MaxRestarts,
    Nnodes,
    Nproc,
    RankTimeout,
    Rdzv,
    compresses,
    launch_if_asked,
    together,
)
from stagewright.cli.recipes import recipes_app
from stagewright.cli.track import Track, chosen_trackers
from stagewright.cli.train_options import asked_budget, check_resume, metric_observers
from stagewright.distributed.verdict import is_launched, leave_verdict
from stagewright.errors import Cancelled, MirrorError, RankLost, RecipeError, StagewrightError, Stopped
from stagewright.storage.files import user_path
from stagewright.storage.objects import GET_PRICE
from stagewright.system.output import guarded, make_output_optional, tell
from stagewright.system.signals import EXIT_LOST, EXIT_STOPPED, CommandSignals
from stagewright.system.surroundings import as_storage_error

app = StrictTyper(
    name="stagewright",
    help="Trains image classifiers in stages: planned before it runs, exactly resumable, honest about what came out.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _show_version(wanted: bool) -> None:
    """Prints the versions of stagewright, torch and Python, and ends."""
    if wanted:
        from stagewright.bundle.versions import library_versions

        found = library_versions()
        print(f"stagewright {found['stagewright']}, torch {found['torch']}, Python {found['python']}")
        raise typer.Exit


@app.callback()
def stagewright(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the versions and exit.")
    ] = False,
) -> None:
    """The options without a command; their callbacks do the work."""


@app.command()
def train(
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
    device: Device = "auto",
    workers: Workers = None,
    threads: ComputeThreads = None,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=user_path, metavar="PATH", help="New run directory; default: runs/RECIPE-N. Never an existing run."
        ),
    ] = None,
    resume: Annotated[str, typer.Option(help="auto: continue the run in --out, if there is one; never.")] = "never",
    tiny: Tiny = False,
    folds: FoldCount = None,
    budget: BudgetText = None,
    price: Price = None,
    probe_seconds: ProbeSeconds = PROBE_SECONDS,
    save_minutes: SaveMinutes = 10.0,
    cache_gb: CacheGb = None,
    get_price: GetPrice = GET_PRICE,
    hold_test: HoldTest = False,
    until: Until = None,
    metric_lines: MetricLines = False,
    quiet: Quiet = False,
    no_pages: NoPages = False,
    trackers: Track = None,
    spread: Spread = None,
    nproc: Nproc = None,
    nnodes: Nnodes = "1",
    rdzv: Rdzv = None,
    grace: Grace = GRACE,
    max_restarts: MaxRestarts = 0,
    rank_timeout: RankTimeout = RANK_TIMEOUT,
    compress: Compress = None,
    mirror: Mirror = None,
    mirror_unfenced: Unfenced = False,
    mirror_wait: Wait = WAIT,
    allow_http: AllowHttp = False,
) -> None:
    """Plan, train, evaluate and report."""
    only_alone = {"--folds": folds, "--budget": budget}
    launch_if_asked((nproc, nnodes, rdzv), (grace, max_restarts), threads, device, only_alone)
    limit = asked_budget(budget, price, probe_seconds, epochs)
    check_resume(resume, out)
    from stagewright.api import train as training
    from stagewright.plan.execution import Execution

    chosen = recipe_request(recipe, overrides, model, weights, epochs, batch_size, lr, img_size, seed, spread)
    execution = Execution(
        device=device,
        workers=workers,
        threads=threads,
        compress=compresses(compress),
        **mirror_settings(mirror, mirror_unfenced, mirror_wait, allow_http),
        pages=not no_pages,
        track=chosen_trackers(trackers),
        hold_test=hold_test,
        quiet=quiet,
        save_minutes=save_minutes,
        probe_seconds=probe_seconds,
        cache_gb=cache_gb,
        get_price=get_price,
    )
    told = {"observers": metric_observers(metric_lines), "say": speaker(quiet)}
    common: dict[str, Any] = {"out": out, "tiny": tiny, "budget": limit, **told}
    if folds is not None:
        refuse_alone("--until", until is not None, "a single run")
        refuse_alone("--mirror", mirror is not None, "a single run")
        train_folds(data, folds, chosen, {**common, "execution": execution}, quiet)
        return

    def lead(execution: Execution, own: Any) -> Any:
        return training.train(
            data, chosen, resume=resume == "auto", until=until, party=own, execution=execution, **common
        )

    close(together(execution, rank_timeout, lead), quiet)


@app.command()
def resume(
    run: RunPlace,
    overrides: Overrides = None,
    out: Annotated[
        Path | None,
        typer.Option(parser=user_path, metavar="PATH", help="Where a mirror is fetched to; default: runs/NAME."),
    ] = None,
    data: Annotated[
        str | None, typer.Option(help="New location of the run's pictures, if they moved; their hashes are compared.")
    ] = None,
    verify: Annotated[
        str, typer.Option(help="data: compare the hashes of all pictures; changed: only of files that have changed.")
    ] = "changed",
    from_start: Annotated[
        bool, typer.Option("--from-start", help="Move the run's old record to a subfolder, and start at step 0.")
    ] = False,
    device: Device = "auto",
    workers: Workers = None,
    threads: ComputeThreads = None,
    save_minutes: SaveMinutes = 10.0,
    cache_gb: CacheGb = None,
    until: Until = None,
    metric_lines: MetricLines = False,
    quiet: Quiet = False,
    no_pages: NoPages = False,
    trackers: Track = None,
    nproc: Nproc = None,
    nnodes: Nnodes = "1",
    rdzv: Rdzv = None,
    grace: Grace = GRACE,
    max_restarts: MaxRestarts = 0,
    rank_timeout: RankTimeout = RANK_TIMEOUT,
    compress: Compress = None,
    mirror: Mirror = None,
    mirror_unfenced: Unfenced = False,
    mirror_wait: Wait = WAIT,
    allow_http: AllowHttp = False,
) -> None:
    """Resume a stopped or killed run, or folds; with --set, fork a run."""
    folds = not isinstance(run, str) and is_folds(run)
    only_alone = {"a directory of folds": run if folds else None}
    launch_if_asked((nproc, nnodes, rdzv), (grace, max_restarts), threads, device, only_alone)
    from stagewright.api import train as training
    from stagewright.plan.execution import Execution

    if verify not in ("data", "changed"):
        raise RecipeError(f"--verify {verify}", "data or changed", "--verify data compares every picture")
    execution = Execution(
        device=device,
        workers=workers,
        threads=threads,
        save_minutes=save_minutes,
        cache_gb=cache_gb,
        compress=compresses(compress),
        **mirror_settings(mirror, mirror_unfenced, mirror_wait, allow_http),
        pages=not no_pages,
        track=chosen_trackers(trackers),
        quiet=quiet,
    )
    if folds:
        single = {"--mirror": mirror, "--set": overrides, "--data": data, "--from-start": from_start, "--until": until}
        single["--verify"] = verify != "changed"
        for flag, given in single.items():
            refuse_alone(flag, bool(given), "the directory of a single run, such as one of the folds,")
        resume_folds(Path(run), execution, metric_observers(metric_lines), quiet)
        return

    def lead(execution: Execution, own: Any) -> Any:
        return training.resume(
            run,
            out=out,
            overrides=overrides or (),
            execution=execution,
            observers=metric_observers(metric_lines),
            from_start=from_start,
            data=data,
            verify=verify == "data",
            until=until,
            say=speaker(quiet),
            party=own,
        )

    close(together(execution, rank_timeout, lead), quiet)


app.add_typer(recipes_app, name="recipes")
app.add_typer(data_app, name="data")
app.add_typer(study.study_app, name="study")
finish.register(app)
report.register(app)
evaluate.register(app)
plan.register(app)
predict.register(app)
runs.register(app)
compare.register(app)
machine.register(app)
launch.register(app)
doctor.register(app)
track.register(app)


_OUTLIVING = (
    *("train", "resume", "finish", "demo", "report", "lr-find", "resume-check"),
    *("data pack", "data split", "data preview"),
)
"""Commands that continue if nobody reads their output any more, because they write files; all others end."""


_INTERRUPTED = 130


def main() -> None:
    """Entry point: runs the command; turns errors of stagewright and of the system into messages and exit codes."""
    from stagewright.storage.cache import give_libraries_a_cache

    os.environ.setdefault(
        "PYTHONSAFEPATH", "1"
    )  # torch's compile workers must not import from the current folder either
    give_libraries_a_cache()
    with guarded():
        if f"{' '.join(sys.argv[1:3])} ".startswith(tuple(f"{command} " for command in _OUTLIVING)):
            make_output_optional()
        code = _run()
    sys.exit(leave_verdict(code, "\n".join(_unsaid)) if is_launched() else code)


def _run() -> int:
    """Runs the command; returns the exit code."""
    try:
        with CommandSignals():
            code = _exit_code()
            sys.stdout.flush()
        return code
    except StagewrightError as error:
        return _say(f"error: {error}", EXIT_LOST if isinstance(error, MirrorError) else 2)
    except RankLost as lost:
        return _say(str(lost), EXIT_LOST)
    except Cancelled as cancelled:
        return _say(str(cancelled), EXIT_STOPPED if cancelled.resumable else 128 + cancelled.number)
    except Stopped as stopped:
        return _say(f"{stopped}; nothing was lost", EXIT_STOPPED)
    except BrokenPipeError:  # nobody reads the output any more
        return 1
    except Exception as error:
        if (message := as_storage_error(error)) is None:
            if is_launched():  # the launcher must hear of it
                traceback.print_exc()
                return 1
            raise
        return _say(f"error: {message}", 2)


def _exit_code() -> int:
    try:
        app(prog_name="stagewright")
    except SystemExit as end:  # typer ends with it
        if end.code == _INTERRUPTED:  # typer has turned a KeyboardInterrupt into it: a second Ctrl-C in a training
            return _say("interrupted", _INTERRUPTED)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    return 0


_unsaid: list[str] = []
"""What the launcher of several processes says for all that have the same to say."""


def _say(text: str, code: int) -> int:
    """Tells ``text`` on standard error; returns ``code``."""
    if is_launched():
        _unsaid.append(text)
    else:
        tell(text, sys.stderr)
    return code


if __name__ == "__main__":
    main()
