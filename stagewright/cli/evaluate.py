"""The command ``evaluate``."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Annotated

import typer

from stagewright.cli.completion import run_directories
from stagewright.cli.options import AsJson, ComputeThreads, Device, Quiet, Workers, refuse_alone

_Map = Annotated[
    list[str] | None,
    typer.Option(
        "--map",
        "--map-class",
        metavar="THEIRS=OURS,...|FILE",
        help="Which class of the model a class of DATA is; or a .csv, .tsv or .json of such pairs; repeatable.",
    ),
]
_Weights = Annotated[
    str | None,
    typer.Option(
        help="Published ImageNet weights instead of a run, seen as they were measured: resnet50.IMAGENET1K_V1, "
        "timm:resnet50.a1_in1k; or, with --model, a file or default."
    ),
]
_Overrides = Annotated[
    list[str] | None,
    typer.Option(
        "--set", help="How DATA is read, e.g. data.label=species; default: as the run's own table; repeatable."
    ),
]
_Out = Annotated[
    str | None, typer.Option(metavar="FILE", help="Write each answer, with names, to a .csv or .parquet file.")
]
_Near = Annotated[
    bool,
    typer.Option(
        help="Recognise near duplicates of training pictures too, for which these are read; else equal files."
    ),
]
_At = Annotated[
    str | None,
    typer.Option(
        metavar="AIM=P",
        help="First choose on the run's validation pictures from which probability on there is an answer, for precision=P or "
        "recall=P, and store it in the model; none removes it.",
    ),
]
_Split = Annotated[
    str | None,
    typer.Option(help="Only this part: train, val or test; default: test of the run's own pictures, all of DATA."),
]
_Drop = Annotated[list[str] | None, typer.Option(metavar="THEIRS", help="Leave out a class of DATA; repeatable.")]
_Again = Annotated[bool, typer.Option("--again", help="With --record: open a test part that was opened before.")]
_Record = Annotated[
    bool,
    typer.Option(
        "--record",
        help="Score the run's test part as its finish does, and record it: opens what train --hold-test has left closed.",
    ),
]
_ClassName = Annotated[
    str | None, typer.Option("--class", metavar="NAME", help="The class that --at is about; default: all answers.")
]


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(evaluate)


def evaluate(
    run: Annotated[
        str | None,
        typer.Argument(
            metavar="RUN",
            autocompletion=run_directories,
            help="A run directory, e.g. runs/quick-1; with --weights there is none, only DATA.",
        ),
    ] = None,
    data: Annotated[
        str | None,
        typer.Argument(metavar="DATA", help="Other pictures, as for train; default: the run's own."),
    ] = None,
    split: _Split = None,
    overrides: _Overrides = None,
    map_class: _Map = None,
    drop_class: _Drop = None,
    out: _Out = None,
    near: _Near = True,
    weights: _Weights = None,
    model: Annotated[str | None, typer.Option(help="The network of a weights file, e.g. mobilenet_v2.")] = None,
    at: _At = None,
    class_name: _ClassName = None,
    record: _Record = False,
    again: _Again = False,
    device: Device = "auto",
    workers: Workers = None,
    threads: ComputeThreads = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Evaluate a trained model on the run's validation or test pictures, or on other pictures."""
    place, data = _places(run, data, weights, model)
    refuse_alone("--again", again and not record, "--record")
    refuse_alone("--threads", threads is not None and not record, "--record")
    if record:
        others = {
            "DATA": data,
            "--weights": weights,
            "--set": overrides,
            "--map": map_class,
            "--drop-class": drop_class,
        }
        others |= {"--out": out, "--at": at, "--split": split not in (None, "test"), "--no-near": not near}
        _record(place, others, again, device, workers, threads, quiet, as_json)
        return
    from stagewright.api.class_map import read_class_map
    from stagewright.api.classifier import load_published
    from stagewright.api.evaluate import evaluate as score
    from stagewright.api.evaluation_table import check_table_path
    from stagewright.api.operating import Target, choose_operating_point
    from stagewright.cli.evaluation_view import evaluation_view
    from stagewright.observers.progress_line import ProgressLine
    from stagewright.system.terminal import Terminal

    refuse_alone("--class", class_name is not None and at is None, "--at")
    refuse_alone("--at", at is not None and weights is not None, "a run, which has validation pictures,")
    classes = read_class_map(map_class or (), drop_class or ())
    if out is not None:
        check_table_path(out)
    with ProgressLine("reading the pictures", "comparing with the training", "evaluating", quiet=quiet) as progress:
        if at is not None:
            target = None if at == "none" else Target.parse(at, class_name)
            choose_operating_point(place, target, device=device, workers=workers, progress=progress)
        found = score(
            place if weights is None else load_published(weights, model, device=device),
            data,
            split=split,
            overrides=overrides or (),
            class_map=classes,
            near=near,
            device=device,
            workers=workers,
            progress=progress,
        )
    if out is not None:
        found.write(out)
    print(json.dumps(found.to_dict(), indent=1)) if as_json else Terminal().print(evaluation_view(found))
    if out is not None and not (quiet or as_json):
        print(f"Answers  {out}")


def _record(
    run: str,
    others: Mapping[str, object],
    again: bool,
    device: str,
    workers: int | None,
    threads: int | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """Carries out ``evaluate RUN --record``; RecipeError if any of ``others``, which do not belong to it, is given."""
    from stagewright.errors import RecipeError

    if wrong := [name for name, given in others.items() if given]:
        raise RecipeError(
            f"--record with {', '.join(wrong)}",
            "stagewright evaluate RUN --split test --record [--again]: all test pictures of the run, as its finish scores them",
            "leave the others out; once it is open, evaluate RUN can be given them",
        )
    from stagewright.api.open_test import open_test
    from stagewright.observers.progress_line import ProgressLine
    from stagewright.plan.execution import Execution

    execution = Execution(device=device, workers=workers, threads=threads)
    said: list[str] = []
    with ProgressLine("evaluating", quiet=quiet) as progress:
        done = open_test(run, again=again, execution=execution, say=said.append, progress=progress)
    summary = done.summary
    if as_json:
        names = ("top1", "top5", "loss", "measures")
        content = {name: (summary.get(name) or {}).get("test") for name in names}
        print(json.dumps({**content, "opened": (summary.get("test") or {}).get("opened")}, indent=1))
        return
    print("\n".join(said))
    if not quiet:
        print(f"Answers  {done.path / 'evaluations' / 'test.parquet'}")
        if (done.path / "report.html").is_file():
            print(f"Report   {done.path / 'report.html'}")


def _places(run: str | None, data: str | None, weights: str | None, model: str | None) -> tuple[str, str | None]:
    """Returns the run and DATA that the arguments name; with ``weights`` the run is empty."""
    from stagewright.errors import RecipeError

    if weights is None and model is not None:
        raise RecipeError(
            f"--model {model} without --weights", "--model together with --weights", "leave it out: a run has a model"
        )
    if weights is not None and (run is None or data is not None):
        given = "no DATA" if run is None else f"RUN {run}"
        raise RecipeError(
            f"--weights {weights} with {given}", "stagewright evaluate --weights WEIGHTS DATA", "give DATA and no run"
        )
    if run is None:
        raise RecipeError("no run is given", "RUN, or --weights WEIGHTS and DATA", "stagewright evaluate runs/quick-1")
    return (run, data) if weights is None else ("", run)
