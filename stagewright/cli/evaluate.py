"""The command ``evaluate``."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Annotated

import typer

from stagewright.cli.options import AsJson, Device, Quiet, RunPath, Workers


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(evaluate)


def evaluate(
    run: RunPath,
    data: Annotated[str | None, typer.Argument(help="Other pictures, as for train; default: the run's own.")] = None,
    split: Annotated[
        str | None,
        typer.Option(help="Only this part: train, val or test; default: test of the run's own pictures, all of DATA."),
    ] = None,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set", help="How DATA is read, e.g. data.label=species; default: as the run's own table; repeatable."
        ),
    ] = None,
    map_class: Annotated[
        list[str] | None,
        typer.Option(metavar="THEIRS=OURS", help="A class of DATA is this class of the model; repeatable."),
    ] = None,
    drop_class: Annotated[
        list[str] | None, typer.Option(metavar="THEIRS", help="Leave out a class of DATA; repeatable.")
    ] = None,
    at: Annotated[
        str | None,
        typer.Option(
            metavar="AIM=P",
            help="First choose on the run's validation pictures from which probability on there is an answer, for precision=P or "
            "recall=P, and store it in the model; none removes it.",
        ),
    ] = None,
    class_name: Annotated[
        str | None, typer.Option("--class", metavar="NAME", help="The class that --at is about; default: all answers.")
    ] = None,
    device: Device = "auto",
    workers: Workers = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained model on the run's validation or test pictures, or on other pictures."""
    from stagewright.api.evaluate import evaluate as score
    from stagewright.api.operating import Target, choose_operating_point
    from stagewright.cli.evaluation_view import evaluation_view
    from stagewright.errors import DataError
    from stagewright.observers.progress_line import ProgressLine
    from stagewright.system.terminal import Terminal

    if class_name is not None and at is None:
        raise DataError(
            f"--class {class_name!r} without --at has no effect", "--class together with --at", "leave it out"
        )
    classes = _class_map(map_class or (), drop_class or ())
    with ProgressLine("reading the pictures", "evaluating", quiet=quiet) as progress:
        if at is not None:
            target = None if at == "none" else Target.parse(at, class_name)
            choose_operating_point(run, target, device=device, workers=workers, progress=progress)
        found = score(
            run,
            data,
            split=split,
            overrides=overrides or (),
            class_map=classes,
            device=device,
            workers=workers,
            progress=progress,
        )
    print(json.dumps(found.to_dict(), indent=1)) if as_json else Terminal().print(evaluation_view(found))


def _class_map(mapped: Sequence[str], dropped: Sequence[str]) -> dict[str, str | None]:
    """Returns the model's class of each class of DATA that ``--map-class`` and ``--drop-class`` name; None for a dropped one."""
    from stagewright.errors import DataError

    classes: dict[str, str | None] = {}
    for flag, texts in (("--map-class", mapped), ("--drop-class", dropped)):
        for text in texts:
            theirs, _, ours = text.partition("=") if flag == "--map-class" else (text, "", None)
            if not theirs or ours == "" or (ours or "").count("="):
                raise DataError(
                    f"{flag} {text!r}",
                    "THEIRS=OURS, two names of classes" if flag == "--map-class" else "the name of a class of DATA",
                    "write for example --map-class wolf=dog; names with = can be given from Python: class_map={...}",
                )
            if theirs in classes and classes[theirs] != ours:
                raise DataError(f"the class {theirs!r} is given twice", "one class for it", "leave one out")
            classes[theirs] = ours
    return classes
