"""The command ``predict``: answers are written as they come, so that an interruption keeps those that are there."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from stagewright.cli.options import AsJson, Device, Quiet, RunPath, refuse_alone
from stagewright.storage.files import STDOUT
from stagewright.system.output import tell

if TYPE_CHECKING:
    from stagewright.bundle.inputs import Inputs
    from stagewright.bundle.predictions import Prediction
    from stagewright.measures.operating import OperatingPoint


def register(app: typer.Typer) -> None:
    """Adds the command to ``app``."""
    app.command()(predict)


def predict(
    run: RunPath,
    images: Annotated[list[str], typer.Argument(help="Picture files, folders, globs, tables with a column of paths.")],
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="Number of classes per picture.")] = 5,
    csv: Annotated[
        str | None,
        typer.Option(metavar="PATH", help="Write a CSV file, row by row as they come; - for standard output."),
    ] = None,
    device: Device = "auto",
    batch_size: Annotated[int, typer.Option("--batch-size", "-b", min=1, max=65_536, help="Pictures at a time.")] = 32,
    overrides: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            help="How tables are read: data.path, data.images; default: as in the training; or data.max_pixels; repeatable.",
        ),
    ] = None,
    threshold: Annotated[
        list[str] | None,
        typer.Option(metavar="CLASS=P", help="Answer this class from the probability P on, before others; repeatable."),
    ] = None,
    min_confidence: Annotated[
        float | None, typer.Option(min=0.0, max=1.0, metavar="P", help="No answer below this probability.")
    ] = None,
    most_probable: Annotated[
        bool, typer.Option("--most-probable", help="Ignore the operating point that is stored in the model.")
    ] = False,
    out: Annotated[
        str | None, typer.Option(metavar="URL", help="With --claim: where the answers go, s3://BUCKET/PREFIX.")
    ] = None,
    claim: Annotated[
        bool, typer.Option("--claim", help="Share the work with other processes; DATA is a pack, a folder, tar files.")
    ] = False,
    block_rows: Annotated[
        int | None, typer.Option(min=1, max=1_000_000, help="With --claim: pictures in a block; default: 4096.")
    ] = None,
    lease: Annotated[
        float | None,
        typer.Option(min=1, max=86_400, help="With --claim: seconds until a block is taken over; default: 600."),
    ] = None,
    quiet: Quiet = False,
    as_json: AsJson = False,
) -> None:
    """Predict the classes of pictures; exit code 2 if none of them can be read."""
    for option, given in (("--out", out), ("--block-rows", block_rows), ("--lease", lease)):
        refuse_alone(option, given is not None and not claim, "--claim")
    if claim:
        others = {
            "--csv": csv,
            "--threshold": threshold,
            "--min-confidence": min_confidence,
            "--most-probable": most_probable,
        }
        _refuse_with_claim(
            [*(name for name, given in others.items() if given), *(["DATA"] if len(images) > 1 else [])], out
        )
        _predict_claimed(
            run, images[0], out or "", (top, batch_size, block_rows, lease), device, overrides, quiet, as_json
        )
        return
    from stagewright.api.load_bundle import load_bundle
    from stagewright.api.prediction_data import find_pictures
    from stagewright.errors import StorageError
    from stagewright.measures.operating import OperatingPoint
    from stagewright.observers.progress_line import ProgressLine
    from stagewright.system.device import choose_device
    from stagewright.system.signals import keeps, whole

    if as_json and csv == STDOUT:
        raise StorageError("--csv - with --json", "one of them on standard output", "leave one out, or name a file")
    shown = (as_json or csv == STDOUT) and sys.stdout.isatty()  # the answers themselves show the progress
    answers: _Answers | None = None
    try:
        with ProgressLine("predicting", quiet=quiet or shown) as progress:
            bundle = load_bundle(run, device=str(choose_device(device)))
            inputs, max_pixels = find_pictures(bundle, images, overrides or ())
            total = len(inputs.paths)
            point = OperatingPoint() if most_probable else bundle.spec.operating
            point = point.changed(_thresholds(threshold or ()), min_confidence).checked(bundle.classes)
            with ExitStack() as open_files:
                answers = _Answers(csv, as_json, min(top, len(bundle.classes)), inputs, point, open_files)
                with keeps(lambda: answers.kept(total)):
                    try:
                        for prediction in bundle.predict(inputs, batch_size, top, max_pixels, point):
                            with whole():  # else one more could be written than is counted
                                answers.add(prediction)
                            progress(answers.count, total)
                    finally:
                        answers.close()
    finally:
        if answers is not None:
            answers.show_table()  # only now, because the line of progress is drawn over what is printed meanwhile
    assert answers is not None
    answers.show()
    if len(answers.failed) == total:
        raise typer.Exit(2)


def _refuse_with_claim(others: Sequence[str], out: str | None) -> None:
    from stagewright.errors import StorageError

    if others:
        raise StorageError(
            f"--claim with {', '.join(others)}" + (" several times" if "DATA" in others else ""),
            "RUN, one DATA and --out URL, with --top, --batch-size, --device, --set, --block-rows and --lease",
            "leave it out",
        )
    if out is None:
        raise StorageError("--claim without --out", "the URL where the answers go", "--out s3://BUCKET/PREFIX")


def _predict_claimed(
    run: str | os.PathLike[str],
    data: str,
    out: str,
    numbers: tuple[int, int, int | None, float | None],
    device: str,
    overrides: Sequence[str] | None,
    quiet: bool,
    as_json: bool,
) -> None:
    """``numbers``: --top, --batch-size, --block-rows, --lease."""
    from stagewright.api.claimed_prediction import BLOCK_ROWS, LEASE_SECONDS, predict_claimed
    from stagewright.observers.progress_line import ProgressLine
    from stagewright.system.device import choose_device
    from stagewright.text import counted

    top, batch_size, block_rows, lease = numbers
    with ProgressLine("predicting", quiet=quiet or as_json) as progress:
        done = predict_claimed(
            run,
            data,
            out,
            device=choose_device(device),
            top=top,
            batch_size=batch_size,
            block_rows=block_rows or BLOCK_ROWS,
            lease_seconds=lease or LEASE_SECONDS,
            overrides=overrides or (),
            progress=progress,
            say=tell if not (quiet or as_json) else lambda text: None,
        )
    if as_json:
        print(json.dumps(asdict(done), indent=1))
        return
    tell(
        f"{done.url}: all {counted(done.images, 'picture')} are answered, in {counted(done.blocks, 'block')}; "
        f"{done.own_images:,} in {done.own_blocks:,} of them by this process"
        + (f", of which {done.failed:,} could not be read" if done.failed else "")
    )


def _thresholds(texts: Sequence[str]) -> dict[str, float]:
    """Returns the thresholds that ``--threshold`` gives, by class."""
    from stagewright.errors import DataError

    found: dict[str, float] = {}
    for text in texts:
        name, _, number = text.rpartition("=")
        try:
            found[name] = float(number)
        except ValueError:
            name = ""
        if not name:
            raise DataError(
                f"--threshold {text!r}", "CLASS=P, a class and a probability", "write for example --threshold wolf=0.3"
            )
    return found


class _Answers:
    """The predictions so far: in a CSV file, as JSON on standard output, or for a table at the end."""

    def __init__(
        self,
        csv: str | None,
        as_json: bool,
        num_classes: int,
        inputs: Inputs,
        point: OperatingPoint,
        open_files: ExitStack,
    ) -> None:
        from stagewright.bundle.predictions import CsvWriter, JsonWriter
        from stagewright.storage.lines import LineWriter

        self.count, self.inputs, self.point = 0, inputs, point
        self.unanswered = 0
        self.failed: list[tuple[str, str]] = []
        """(path, error) of the pictures without a prediction."""
        self.place = csv
        self.table: list[Prediction] | None = [] if csv is None and not as_json else None
        self.json = JsonWriter(open_files.enter_context(LineWriter(STDOUT))) if as_json else None
        self.csv = (
            None
            if csv is None
            else CsvWriter(open_files.enter_context(LineWriter(csv)), num_classes, answers=bool(point))
        )

    def add(self, prediction: Prediction) -> None:
        if self.csv is not None:
            self.csv.write(prediction)
        if self.json is not None:
            self.json.write(prediction)
        if self.table is not None:
            self.table.append(prediction)
        self.count += 1
        if not prediction.classes:
            self.failed.append((prediction.path, prediction.error or "no answer"))
        self.unanswered += bool(prediction.classes) and prediction.answer is None

    def close(self) -> None:
        """Completes the output with what is there, also after an interruption."""
        from stagewright.data.account import Account, by_reason

        self.account = Account(self.count - len(self.failed), self.inputs.left_out, by_reason(self.failed))
        if self.json is not None:
            self.json.close(self.account)

    def show_table(self) -> None:
        """Prints the table of the answers that are there, also after an interruption."""
        if self.table:
            from stagewright.cli.predictions_view import predictions_view
            from stagewright.system.terminal import Terminal

            Terminal().print(predictions_view(self.table))

    def show(self) -> None:
        """Says on standard error how tables were read, what was left out and what could not be read."""
        for line in (*self.inputs.notes, *self.point.lines(), *self.account.lines()):
            tell(line, sys.stderr)
        if self.point:
            tell(f"no answer for {self.unanswered:,} of {self.account.read:,} pictures", sys.stderr)
        if self.failed:
            where = f"no prediction for {len(self.failed):,} of {self.count:,} pictures"
            tell(f"{where}; the error of each is in the output", sys.stderr)

    def kept(self, total: int) -> str:
        place = "printed" if self.place is None or self.place == STDOUT else f"in {self.place}"
        return f"kept: {self.count:,} of {total:,} predictions, {place}" if self.count else ""
