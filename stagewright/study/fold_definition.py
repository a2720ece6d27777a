"""What the folds in a folder are: the file folds.json, made once, and the tables beside it."""

from __future__ import annotations

import contextlib
import datetime
import json
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from stagewright.data.sources.folders import absolute_path
from stagewright.data.splits.fold_data import FoldData, fold_name, given_folds, make_folds, table_names, write_folds
from stagewright.errors import CheckpointError, RecipeError
from stagewright.observers.progress_line import ProgressLine
from stagewright.plan.budget import Budget
from stagewright.recipe.recipe import Data, Recipe
from stagewright.recipe.request import RecipeRequest
from stagewright.rundir.json_fields import Count
from stagewright.storage import lock as locking
from stagewright.storage.files import remove_quietly
from stagewright.storage.json_text import Fields, parse_object
from stagewright.study.folder import opened, read_definition, refuse_other, write_definition
from stagewright.study.jobs import Manner, RequestFields, request_to_dict
from stagewright.system.machine import cores
from stagewright.text import count_text

FILE = "folds.json"
GIVEN = "given"
_KEPT = ("val", "split_seed", "names", "bad_images", "max_pixels", "max_unreadable")
"""Settings of how DATA is read that still mean something for the tables of the folds."""


class _FoldsFields(Fields):
    """folds.json: what the folds in a folder are, and how each of them trains."""

    format: Literal[1]
    data: str
    """DATA as it was given."""
    place: str
    """Where it was."""
    folds: Annotated[int, Field(ge=2, le=100)]
    given: bool
    """Whether DATA gave the folds."""
    seed: Annotated[int, Field(ge=0)]
    request: RequestFields
    """The recipe of the first run."""
    reading: dict[str, Any]
    """How DATA was read."""
    tiny: bool
    budget: str | None
    digest: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
    """Of the images and their folds (:attr:`stagewright.data.splits.fold_data.FoldData.digest`)."""
    images: Count
    """In the folds."""
    test_images: Count
    """In DATA's test part, which nothing here opens."""
    notes: list[str]
    created: str


def asked_for(data: str, k: int | str, request: RecipeRequest, tiny: bool, budget: Budget | None) -> dict[str, Any]:
    """Returns the settings of which a repeated command must have the same."""
    if isinstance(k, str) and k != GIVEN:
        raise RecipeError(
            f"--folds {k}",
            "a number of folds, or given: those in the column 'fold' of DATA, a table",
            "write --folds 5; or train TABLE --folds given",
        )
    known = data == "digits" or data.startswith("torchvision:")
    content = {
        "DATA": data if known else str(absolute_path(data)),
        "source": data,
        "folds": k,
        "request": request_to_dict(_for_tables(request)),
        "data": request.preliminary.data.model_dump(mode="json"),
        "seed": request.preliminary.seed,
        "tiny": tiny,
        "budget": None if budget is None else budget.text,
    }
    return parse_object(json.dumps(content).encode())  # as it is read again, so that both can be compared


def _for_tables(request: RecipeRequest) -> RecipeRequest:
    """Returns the request for the tables of the folds, whose columns are known: without the settings of how DATA is read."""
    if not request.is_auto:
        return RecipeRequest(recipe_for_tables(request.preliminary))
    data = request.preliminary.data
    values = data.model_dump(mode="json")
    kept = [f"data.{name}={json.dumps(values[name])}" for name in _KEPT if name in data.model_fields_set]
    others = [one for one in request.overrides if not one.strip().startswith(("data.", "data=", "data["))]
    return replace(request, overrides=(*others, *kept))


def recipe_for_tables(recipe: Recipe) -> Recipe:
    """Returns ``recipe`` without the settings of how DATA is read, which mean nothing for the tables of the folds."""
    values = recipe.data.model_dump(mode="json")
    return recipe.changed(data={name: values[name] for name in _KEPT if name in recipe.data.model_fields_set})


def begin(root: Path, asked: Mapping[str, Any], request: RecipeRequest, manner: Manner) -> None:
    """Decides the folds and writes everything that exists before the first run."""
    count, reading = asked["folds"], request.preliminary.data
    with opened(root, FILE, table_names(count) if isinstance(count, int) else _ANY_TABLES) as own:
        if (root / FILE).exists():  # another process was faster
            return
        with ProgressLine("looking at the pictures", "comparing them", quiet=manner.execution.quiet) as progress:
            made = _folds_of(asked["source"], count, reading, progress)
        write_folds(root, made)
        content = {
            "format": 1,
            "data": asked["source"],
            "place": asked["DATA"],
            "folds": made.num_folds,
            "given": count == GIVEN,
            "seed": asked["seed"],
            "request": asked["request"],
            "reading": asked["data"],
            "tiny": asked["tiny"],
            "budget": asked["budget"],
            "digest": made.digest,
            "images": int(made.sizes.sum()),
            "test_images": made.num_test,
            "notes": [*made.notes],
            "created": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        }
        write_definition(root, FILE, content, own)
    for line in _told(made, asked["source"]):
        manner.say(line)


def undo(root: Path) -> None:
    """Removes what :func:`begin` has written to ``root``, if no run has begun there."""
    known = definition(root)
    count = known["folds"]
    if any((root / fold_name(at, count) / "plan.json").exists() for at in range(count)):
        return
    for name in (FILE, *table_names(count), locking.NAME):
        remove_quietly(root / name)
    with contextlib.suppress(OSError):  # it was there before, or holds something else
        root.rmdir()


_ANY_TABLES = frozenset(name for count in range(2, 101) for name in table_names(count))


def _folds_of(source: str, count: int | str, reading: Data, progress: Any) -> FoldData:
    if isinstance(count, int):
        return make_folds(source, reading, count, workers=cores(), progress=progress)
    return given_folds(source, reading, workers=cores(), progress=progress)


def _told(made: FoldData, source: str) -> Iterator[str]:
    smallest, largest = int(made.sizes.min()), int(made.sizes.max())
    each = f"{smallest:,}" if smallest == largest else f"{smallest:,} to {largest:,}"
    yield from made.notes
    yield f"{made.num_folds} folds of {source}, of {each} pictures; each run is tested on one and trained on the others."
    if made.num_test:
        yield f"{count_text(made.num_test, 'picture')} of the test part are in no fold and stay closed."


def check_same(root: Path, asked: Mapping[str, Any]) -> None:
    """CheckpointError if the folds in ``root`` were begun with other settings."""
    known = definition(root)
    names = {
        "DATA": "place",
        "request": "request",
        "data": "reading",
        "seed": "seed",
        "tiny": "tiny",
        "budget": "budget",
    }
    old = {name: known[field] for name, field in names.items()}
    old["folds"] = GIVEN if known["given"] else known["folds"]
    new = {name: value for name, value in asked.items() if name != "source"}
    refuse_other(root, _flat(old), _flat(new), f"stagewright resume {root}")


def _flat(asked: Mapping[str, Any]) -> dict[str, Any]:
    """Returns settings with the fields of the recipe beside the others, as a user names them."""
    rest = {name: value for name, value in asked.items() if name != "request"}
    request = dict(asked["request"])
    recipe = request.pop("recipe", None) or {}
    described = {name: value for name, value in recipe.items() if name not in ("description", "data", "seed")}
    given = {name: value for name, value in request.items() if value is not None and name != "name"}
    return {**rest, **described, "recipe": recipe.get("name", request.get("name")), **given}


def definition(root: Path) -> dict[str, Any]:
    """Returns the content of folds.json in ``root``; CheckpointError if there is none, or a damaged one."""
    if not (root / FILE).is_file():
        raise CheckpointError(
            f"{root} holds no folds",
            f"a folder with a {FILE}, written by train --folds",
            "give the folder that train printed",
        )
    return read_definition(root, FILE, _FoldsFields)
