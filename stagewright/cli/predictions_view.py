"""Terminal output of ``stagewright predict``: a table with one row for each image."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence

from rich.console import RenderableType
from rich.text import Text

from stagewright.bundle.predictions import Prediction
from stagewright.system.tables import FittingTable
from stagewright.text import printable


def predictions_view(predictions: Sequence[Prediction]) -> RenderableType:
    """Returns a table with the class that is answered for each image, its percentage, the next two classes, or the error.

    A folder that contains all images is shown once, above the table.
    """
    folders = {os.path.dirname(prediction.path) for prediction in predictions}
    shared = os.path.commonpath(folders) if len(predictions) > 1 and all(folders) and _comparable(folders) else ""
    title = Text(printable(f"in {shared}")) if shared else None
    table = FittingTable(title, title_style="dim")
    table.add_column("picture")
    table.add_column("class")
    table.add_column("probability", justify="right", no_wrap=True)
    table.add_column("next")
    for prediction in predictions:
        path = Text(printable(os.path.relpath(prediction.path, shared) if shared else prediction.path))
        if not prediction.classes:
            table.add_row(path, Text(printable(prediction.error or "no answer"), style="red"), "", "")
            continue
        name, probability, style = prediction.answer, prediction.answer_probability, "bold"
        others = [one for one in prediction.classes if one[0] != name][:2]
        if name is None or probability is None:
            name, probability, style = "no answer", None, "yellow"
        runners = ", ".join(f"{printable(other)} {100 * share:.1f} %" for other, share in others)
        share = "" if probability is None else f"{100 * probability:.1f} %"
        table.add_row(path, Text(printable(name), style=style), share, Text(runners, style="dim"))
    return table


def _comparable(folders: Iterable[str]) -> bool:
    """Whether all of ``folders`` are absolute or all are relative; otherwise they have no common path."""
    return len({os.path.isabs(folder) for folder in folders}) == 1
