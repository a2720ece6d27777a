"""Lists the runs in a folder, each as one row of facts and its score; only reads, and needs no torch.

Only small files of a run are read: summary, plan, environment, and the table of evaluations. A damaged run is a row that says so;
folders that are no runs are counted.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np

from stagewright.errors import CheckpointError, Unreadable
from stagewright.report.read import present_status, read_fields
from stagewright.report.results import Score
from stagewright.report.tables import read_numbers
from stagewright.rundir.json_fields import EnvFields, PlanFields, SummaryFields
from stagewright.storage.files import user_path
from stagewright.storage.lock import is_held
from stagewright.text import nearest

_DEPTH = 3
"""How far below the folder runs are looked for; not within a run."""
_FILES = ("plan.json", "events.jsonl", "summary.json")
_SECONDS = ("setup_seconds", "train_seconds", "eval_seconds", "checkpoint_seconds")


@dataclass(frozen=True, slots=True)
class RunRow:
    """A run in a list. What its files do not say is None or empty."""

    path: Path
    name: str
    """Its path relative to the folder that was listed."""
    status: str
    """As :attr:`stagewright.report.read.RunRecord.status`; or ``damaged``, with :attr:`problem`."""
    done: float | None
    """Share of the plan's updates that are done, 0 to 1."""
    data: str
    """DATA as it was given."""
    recipe: str
    model: str
    parameters: int | None
    """Of the network."""
    image_size: int | None
    """Side in pixels in the last stage."""
    seed: int | None
    split: str
    """``test``, or ``val`` if there is no score on test images; of an unfinished run the best validation score so far."""
    score: Score | None
    """Top-1 with its interval; the number of images is the plan's."""
    seconds: float | None
    """Of all processes of the run together."""
    created: str
    """When it began, in ISO 8601 with time zone."""
    problem: str = ""
    """What is wrong with its files."""

    def to_dict(self) -> dict[str, object]:
        """Returns the row as plain data for JSON; the score and its 95 % interval in percent."""
        score = self.score
        return {
            "path": str(self.path),
            **{
                name: getattr(self, name)
                for name in ("name", "status", "done", "data", "recipe", "model", "parameters")
            },
            **{name: getattr(self, name) for name in ("image_size", "seed", "split")},
            "top1": None if score is None else score.percent,
            "top1_interval": None if score is None else list(score.interval),
            "images": None if score is None else score.total,
            **{name: getattr(self, name) for name in ("seconds", "created", "problem")},
        }


@dataclass(frozen=True)
class Runs(Sequence[RunRow]):
    """The runs in a folder, the latest first."""

    rows: tuple[RunRow, ...]
    skipped: int = 0
    """Number of folders directly in it that neither are nor contain a run."""

    def __len__(self) -> int:
        return len(self.rows)

    @overload
    def __getitem__(self, at: int) -> RunRow: ...
    @overload
    def __getitem__(self, at: slice) -> Sequence[RunRow]: ...
    def __getitem__(self, at: int | slice) -> RunRow | Sequence[RunRow]:
        return self.rows[at]

    def to_dicts(self) -> list[dict[str, object]]:
        """Returns all rows as plain data, e.g. for ``pandas.DataFrame``."""
        return [row.to_dict() for row in self.rows]


def runs(folder: str | os.PathLike[str] = "runs") -> Runs:
    """Returns the runs in ``folder`` and up to three levels below, the latest first; or the run that ``folder`` is itself.

    CheckpointError if there is no such folder. Whatever is wrong with a run is in its row.
    """
    root = user_path(folder)
    if not root.is_dir():
        near = nearest(root.name, (other.name for other in root.parent.iterdir())) if root.parent.is_dir() else ""
        raise CheckpointError(
            f"{root}: no such directory{near}", "a folder with runs in it, such as runs", "check the path"
        )
    if (alone := _row(root, root.resolve().name)) is not None:
        return Runs((alone,))
    found: list[RunRow] = []
    skipped = 0
    for place in _folders(root):
        below = list(_below(place, place.name, _DEPTH))
        found += below
        skipped += not below
    return Runs(tuple(sorted(found, key=lambda row: (row.created, row.name), reverse=True)), skipped)


def _below(place: Path, name: str, depth: int) -> Iterator[RunRow]:
    row = _row(place, name)
    if row is not None:
        yield row
    elif depth > 1:
        for inner in _folders(place):
            yield from _below(inner, f"{name}/{inner.name}", depth - 1)


def _folders(place: Path) -> list[Path]:
    try:
        with os.scandir(place) as entries:
            names = [entry.name for entry in entries if not entry.name.startswith(".") and entry.is_dir()]
    except OSError:
        return []
    return [place / name for name in sorted(names)]


def _row(place: Path, name: str) -> RunRow | None:
    """Returns the row of the run in ``place``; None if it is no run."""
    if not any(os.path.isfile(place / file) for file in _FILES):
        return None
    problems: list[str] = []
    try:
        summary = read_fields(place / "summary.json", SummaryFields, problems)
        plan = read_fields(place / "plan.json", PlanFields, problems)
        env = read_fields(place / "env.json", EnvFields, problems)
        evaluated = read_numbers(place / "metrics.csv", ("step", "val_top1", "average_top1"), problems)
    except Unreadable as error:
        return _damaged(place, name, error.given)
    if "stages" not in plan and "status" not in summary:
        foreign = not problems and not os.path.isfile(place / "events.jsonl")
        return (
            None if foreign else _damaged(place, name, "; ".join(problems) or "plan.json and summary.json are missing")
        )
    recipe, stages = plan.get("recipe", {}), plan.get("stages") or [{}]
    total = plan.get("total_steps") or summary.get("total_steps")
    step = max([summary.get("step") or 0, *evaluated["step"][-1:].astype(int).tolist()])
    split, score = _score(summary, plan.get("dataset", {}), evaluated)
    seconds = [summary[part] for part in _SECONDS if part in summary]
    return RunRow(
        path=place,
        name=name,
        status=present_status(summary, is_held(place)),
        done=min(1.0, step / total) if total else None,
        data=summary.get("data") or env.get("data") or "",
        recipe=summary.get("recipe") or recipe.get("name", ""),
        model=summary.get("model") or recipe.get("model", {}).get("name", ""),
        parameters=summary.get("parameters"),
        image_size=stages[-1].get("image_size"),
        seed=summary.get("seed", recipe.get("seed")),
        split=split,
        score=score,
        seconds=sum(seconds) if seconds else None,
        created=env.get("created") or "",
        problem="; ".join(problems),
    )


def _damaged(place: Path, name: str, problem: str) -> RunRow:
    return RunRow(place, name, "damaged", None, "", "", "", None, None, None, "", None, None, "", problem)


def _score(
    summary: dict[str, Any], dataset: dict[str, Any], evaluated: dict[str, np.ndarray]
) -> tuple[str, Score | None]:
    """Returns the split, and its score: of the final weights or, before they are chosen, the best on validation images."""
    for split in ("test", "val"):
        percent = (summary.get("top1") or {}).get(split)
        if percent is not None and (score := _of_percent(percent, dataset.get(f"num_{split}"))) is not None:
            return split, score
    tops = np.concatenate([evaluated["val_top1"], evaluated["average_top1"]])
    tops = tops[np.isfinite(tops)]
    best = _of_percent(float(tops.max()), dataset.get("num_val")) if len(tops) else None
    return ("val", best) if best is not None else ("", None)


def _of_percent(percent: float, images: int | None) -> Score | None:
    """Returns the score of ``percent`` correct of ``images``; None if that cannot be."""
    return Score(round(percent / 100 * images), images) if images and 0 <= percent <= 100 else None
