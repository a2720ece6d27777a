"""The test part of a run that leaves it closed (``train --hold-test``), and how often a test part was opened.

The one door: whoever reads the images of a run takes its manifest from :func:`readable_manifest`, or from a session, which closes
it as well. In a closed manifest the test images are in no split. The hold is written into env.json before the first step, and
repeated in summary.json; it is never taken back. Once the final model was scored on the test part, which only
:func:`stagewright.api.open_test.open_test` does, its images and answers may be read as those of other runs.

Openings are counted by the events, which are written before the results: whatever ends the process, none is lost.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from stagewright.data.manifest import Manifest
from stagewright.errors import CheckpointError, DataError
from stagewright.rundir.directory import RunDir
from stagewright.rundir.event_kinds import Finished, InterimFinished, OpenedTest
from stagewright.rundir.events import LoggedEvent
from stagewright.rundir.summary import read_summary
from stagewright.storage.files import write_json

Hold = bool | str
"""Whether a run leaves its test part closed; a sentence says who alone opens it."""


def hold_of(run: RunDir) -> Hold:
    """Returns whether ``run`` leaves its test part closed; a sentence if someone alone opens it."""
    return run.read_env().get("hold_test") or bool((_summary(run).get("test") or {}).get("held"))


def keep_hold(run: RunDir, wanted: Hold) -> None:
    """Writes into env.json that ``run``, which this process has locked, leaves its test part closed, if that is ``wanted`` and
    was not so before."""
    if wanted and not hold_of(run):
        write_json(run.env, {**run.read_env(), "hold_test": wanted})


def is_closed(run: RunDir) -> bool:
    """Returns whether nobody may read the test images of ``run``: it leaves them closed, and its model was not scored on them."""
    return bool(hold_of(run)) and not _is_scored(_summary(run))


def is_closed_by(env: Mapping[str, Any], summary: Mapping[str, Any]) -> bool:
    """Returns the same as :func:`is_closed`, of a run with this content of env.json and summary.json."""
    held = env.get("hold_test") or (summary.get("test") or {}).get("held")
    return bool(held) and not _is_scored(summary)


def readable_manifest(run: RunDir) -> Manifest:
    """Returns the manifest of ``run`` for readers of its images: the test part is closed where :func:`is_closed` says so.

    DataError if the file does not exist or is damaged.
    """
    manifest = Manifest.read(run.manifest)
    return manifest.closed() if is_closed(run) else manifest


def still_closed(run: RunDir, what: str = "") -> DataError:
    """Returns the error for something that would read the closed test part of ``run``; ``what`` says which images are of it."""
    holder = hold_of(run)
    opens = f"once, for the final number: stagewright evaluate {run.root} --split test --record opens it"
    if isinstance(holder, str):
        opens = f"nothing: {holder}"
    return DataError(
        f"{what} of the test part of {run.root}, which stays closed (train --hold-test)"
        if what
        else f"the test part of {run.root} stays closed: the run was begun with train --hold-test",
        f"the validation part: stagewright evaluate {run.root} --split val",
        opens,
    )


def times_opened(events: Iterable[LoggedEvent]) -> int:
    """Returns how often a run with these events has scored its test part: at a finish or an opening, also at one that a later
    event supersedes. What an interrupted process has done again at the same step counts once."""
    found: set[tuple[str, int]] = set()
    for one in events:
        event = one.event
        if isinstance(event, OpenedTest):
            found.add((event.kind, event.number))
        elif isinstance(event, Finished | InterimFinished) and event.test_top1 is not None:
            found.add((event.kind, event.step))
    return len(found)


def _is_scored(summary: Mapping[str, Any]) -> bool:
    return (summary.get("top1") or {}).get("test") is not None


def _summary(run: RunDir) -> Mapping[str, Any]:
    """Content of summary.json; {} if it is damaged, which leaves closed what is closed."""
    try:
        return read_summary(run)
    except CheckpointError:
        return {}
