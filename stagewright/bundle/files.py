"""The folder of a Bundle: where it is, and what its model.json says; stores an operating point or a test score in it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path

from pydantic import ValidationError

from stagewright.bundle.card import with_facts, with_operating_point
from stagewright.bundle.description import Description
from stagewright.errors import BundleError
from stagewright.measures.operating import OperatingPoint
from stagewright.recipe.schema import problems
from stagewright.storage.files import read_parsed, write_json, write_whole
from stagewright.storage.folders import old_folder
from stagewright.storage.json_text import parse_object

CARD = "README.md"
FORMAT = 1
"""Version of the folder's layout. A newer version is refused; older versions must stay readable."""
REMEDY = "copy the folder again from where it was made; load_bundle(..., verify=False) skips only the golden samples"


def find_bundle(given: Path) -> Path:
    """Returns the folder of the Bundle in ``given``, or in ``model/`` of a run's directory; BundleError without one."""
    for folder in (given, given / "model"):
        for place in (folder, old_folder(folder)):  # the old one exists after a crash between the two renames
            if (place / "model.json").is_file():
                return place
    unfinished = (given / "plan.json").is_file()
    raise BundleError(
        f"{given} contains no trained model (no model.json)" if given.exists() else f"{given} does not exist",
        "the directory of a finished run, or the Bundle in its folder model/",
        f"the run has not finished: stagewright finish {given}" if unfinished else "check the path",
    )


def read_description(folder: Path) -> Description:
    """Returns the content of the Bundle's model.json; BundleError if it is damaged or of a newer format."""
    path = folder / "model.json"
    try:
        content = read_parsed(path, parse_object)
        if type(content.get("format")) is int and content["format"] > FORMAT:
            raise BundleError(
                f"{path} is of format {content['format']}",
                f"formats up to {FORMAT}",
                "update stagewright: pip install -U",
            )
        return Description.read(content)
    except ValidationError as error:
        raise damaged(path, ValueError(problems(error))) from None
    except (FileNotFoundError, ValueError) as error:
        raise damaged(path, error) from None


def damaged(path: Path, error: Exception) -> BundleError:
    """Returns the error for the damaged file ``path``."""
    why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return BundleError(f"{path} is damaged: {why}", "the file as stagewright has written it", REMEDY)


def store_test_score(folder: Path, top1: float, opened: int) -> None:
    """Writes the top-1 on the test images, in percent, and how often they were ``opened`` into the model.json of the Bundle in
    ``folder``, and into its model card. Each file is written whole; doing it again gives the same.

    BundleError if model.json is damaged, StorageError if it cannot be written.
    """
    read_description(folder)
    content = read_parsed(folder / "model.json", parse_object)
    training = content["training"]
    scores = training.get("top1")
    training["top1"] = {**(scores if isinstance(scores, dict) else {}), "test": top1}
    training["test_part"] = "opened once" if opened == 1 else f"opened {opened} times"
    write_json(folder / "model.json", content)
    _rewrite_card(folder, lambda text: with_facts(text, training))


def store_operating_point(folder: Path, point: OperatingPoint) -> None:
    """Writes ``point`` into the model.json of the Bundle in ``folder``, completely or not at all, and into its model card.

    One that is as the defaults removes what was there. BundleError if model.json is damaged, StorageError if it cannot be
    written.
    """
    read_description(folder)
    content = read_parsed(folder / "model.json", parse_object)
    content.pop("operating", None)
    write_json(folder / "model.json", {**content, "operating": asdict(point)} if point else content)
    _rewrite_card(folder, lambda text: with_operating_point(text, point))


def _rewrite_card(folder: Path, changed: Callable[[str], str]) -> None:
    try:
        text = read_parsed(folder / CARD, bytes.decode)
    except (FileNotFoundError, UnicodeDecodeError):  # it is for people, who may have removed or changed it
        return
    write_whole(folder / CARD, changed(text))
