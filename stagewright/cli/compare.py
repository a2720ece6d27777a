"""The command ``compare``."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stagewright.cli.completion import run_directories
from stagewright.cli.options import Quiet, refuse_alone, speaker
from stagewright.storage.files import user_path, write_whole

if TYPE_CHECKING:
    from stagewright.comparison.compared import Compared


class _Format(StrEnum):
    TEXT = "text"
    MD = "md"
    CSV = "csv"
    JSON = "json"
    HTML = "html"


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(compare)


def compare(
    places: Annotated[
        list[Path],
        typer.Argument(
            parser=user_path,
            autocompletion=run_directories,
            metavar="STUDY|RUN RUN...",
            help="The folder of a study, or two or more runs, finished or not; or a study file, which is carried out first.",
        ),
    ],
    format: Annotated[_Format, typer.Option("--format", help="How it is told.")] = _Format.TEXT,
    margin: Annotated[float, typer.Option(help="Percentage points below which a difference is of no interest.")] = 0.5,
    level: Annotated[float, typer.Option(help="Level of the intervals in percent.")] = 95.0,
    measure: Annotated[
        bool,
        typer.Option("--measure", help="Measure first what each row costs on this machine, with nothing beside it."),
    ] = False,
    out: Annotated[
        Path | None,
        typer.Option(
            parser=user_path, metavar="FILE", help="Where to write it; a page's default: compare.html beside the runs."
        ),
    ] = None,
    data: Annotated[str | None, typer.Option("--data", help="DATA of a study file, in place of its own.")] = None,
    quiet: Quiet = False,
) -> None:
    """Compare recipes: which is better, which cannot be told apart, and at what cost."""
    from stagewright.comparison.compared import check
    from stagewright.comparison.compared import compare as compared
    from stagewright.system.terminal import Terminal

    check(margin, level)
    refuse_alone("--out", out is not None and format is _Format.TEXT, "--format md, csv, json or html")
    places = _carried_out(places, data, quiet)
    if measure:
        _measure(places, quiet or format is not _Format.TEXT)
    found = compared(places, margin=margin, level=level)
    if format is _Format.TEXT:
        from stagewright.cli.compare_view import compare_view

        Terminal(highlight=False).print(compare_view(found))
        return
    if format is _Format.HTML and out is None:
        from stagewright.comparison.page import default_place

        out = default_place(found)
    content = _written(found, format, out)
    if out is None:
        print(content, end="")
    else:
        write_whole(out, content)
        print(out)


def _measure(places: list[Path], quiet: bool) -> None:
    """Measures one run of each entry; the others of it cost the same."""
    from stagewright.comparison.entries import entries_of
    from stagewright.preflight.model_costs import measure_costs

    runs = [entry.records[0].path for entry in entries_of(places).entries if entry.records]
    measure_costs(runs, say=speaker(quiet))


def _written(found: Compared, format: _Format, out: Path | None) -> str:
    from stagewright.comparison import formats

    if format is _Format.MD:
        return formats.markdown(found)
    if format is _Format.CSV:
        return formats.comma_separated(found)
    if format is _Format.JSON:
        return json.dumps(formats.plain(found), indent=1) + "\n"
    from stagewright.comparison.page import page

    return page(found, out)


def _carried_out(places: list[Path], data: str | None, quiet: bool) -> list[Path]:
    """Returns ``places``; in place of a study file the folder of its study, which is carried out first."""
    from stagewright.study.study_file import shipped

    source = str(places[0])
    is_study = places[0].is_file() or (not places[0].exists() and source in shipped())
    refuse_alone("--data", data is not None and not is_study, "a study file")
    if len(places) != 1 or not is_study:
        return places
    from stagewright.plan.execution import Execution
    from stagewright.study import run
    from stagewright.study.definition import read_study

    manner = run.Manner(execution=Execution(), say=speaker(quiet))
    return [run.run_study(read_study(source, data), None, manner).root]
