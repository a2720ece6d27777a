"""trackers/NAME.json in a run's directory: where a tracker has the run, and up to which step.

Written whole before and after each part that is sent. A part whose sending was interrupted is sent again just as it was: same
rows, same times. The file is a stranger's until it was compared with its fields: a run's directory may come from anyone.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from stagewright.errors import CheckpointError, StorageError
from stagewright.plan.plan import Plan
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import make_folder, read_own, write_json
from stagewright.storage.json_text import Fields, misfit, parse_object
from stagewright.trackers.names import resend

FOLDER = "trackers"
FORMAT = 1
_Step = Annotated[int, Field(ge=0, le=10**15)]
_Milliseconds = Annotated[int, Field(ge=0, le=10**15)]
_Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class _StateFields(Fields):
    format: Literal[1]
    tracker: Annotated[str, Field(max_length=40)]
    directory: Annotated[str, Field(max_length=4096)]
    plan_digest: _Digest
    remote: Annotated[str, Field(max_length=200, pattern=r"^[A-Za-z0-9_.-]+$")]
    opened: bool
    generation: Annotated[int, Field(ge=0, le=10**6)]
    sent: _Step
    sent_ms: _Milliseconds
    sending: _Step | None
    sending_ms: _Milliseconds
    rows_sha256: _Digest | None
    notes: Annotated[int, Field(ge=0, le=10**9)]
    result_sha256: _Digest | None


@dataclass
class State:
    """How far a tracker is with a run."""

    tracker: str
    directory: str
    """The run's directory when it was sent."""
    plan_digest: str
    remote: str
    """The run's id at the service."""
    opened: bool = False
    """Whether the service has the run under this id."""
    generation: int = 0
    """How often the run was sent anew (``--rebuild``)."""
    sent: int = 0
    """The step up to which everything was sent."""
    sent_ms: int = 0
    """The time given to that step, in milliseconds since 1970."""
    sending: int | None = None
    """The step up to which a part was being sent when this was written; None: nothing was."""
    sending_ms: int = 0
    rows_sha256: str | None = None
    """SHA-256 of the lines of steps.csv up to ``sent``."""
    notes: int = 0
    """How many notes were sent."""
    result_sha256: str | None = None
    """SHA-256 of the result that was sent."""


def state_path(run: RunDir, tracker: str) -> Path:
    """Returns the file of ``tracker`` in the directory of ``run``."""
    return run.root / FOLDER / f"{tracker}.json"


def new_state(run: RunDir, plan: Plan, tracker: str, generation: int = 0) -> State:
    """Returns the state of a tracker that has sent nothing. The id is made from plan and directory, and for a run that is sent
    anew from the time of its beginning too."""
    directory = str(run.root.resolve())
    parts = [plan.digest, directory, *([str(generation), str(run.read_env().get("created"))] if generation else [])]
    remote = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    return State(tracker, directory, plan.digest, remote, generation=generation)


def read_state(run: RunDir, plan: Plan, tracker: str) -> State | None:
    """Returns what trackers/NAME.json says, or None if there is none.

    CheckpointError if it is damaged, or belongs to a run of another directory that is still there. A directory that was moved, or
    copied to another machine, goes on as it was.
    """
    path = state_path(run, tracker)
    try:
        content = parse_object(read_own(path))
        if problem := misfit(content, _StateFields):
            raise ValueError(problem)
    except FileNotFoundError:
        return None
    except ValueError as error:
        raise CheckpointError(
            f"{path} is damaged: {error}", "the file as it was written", f"{resend(run.root, tracker)} sends all anew"
        ) from None
    state = State(**{name: content[name] for name in _StateFields.model_fields if name != "format"})
    if state.plan_digest != plan.digest or state.tracker != tracker:
        raise CheckpointError(
            f"{path} is of another plan ({state.plan_digest[:12]}; the run's is {plan.digest[:12]})",
            "the file that was written for this run",
            f"{resend(run.root, tracker)} sends this run under an id of its own",
        )
    here = run.root.resolve()
    if state.directory != str(here):
        if _is_same_plan(Path(state.directory), here, plan):
            raise CheckpointError(
                f"{path} belongs to the run in {state.directory}, of which {run.root} is a copy: both would be sent under the "
                f"id {state.remote}",
                "one directory under one id",
                f"{resend(run.root, tracker)} sends the copy under an id of its own",
            )
        state.directory = str(here)
    return state


def write_state(run: RunDir, state: State) -> None:
    """Writes the state, whole."""
    make_state_folder(run)
    write_json(state_path(run, state.tracker), {"format": FORMAT, **asdict(state)})


def make_state_folder(run: RunDir) -> Path:
    """Makes the folder ``trackers`` of ``run`` if need be, and returns it; CheckpointError if it leads elsewhere."""
    folder = run.root / FOLDER
    if folder.is_symlink():
        raise CheckpointError(
            f"{folder} is a link", "a folder of the run's own", "remove the link; stagewright makes the folder"
        )
    make_folder(folder)
    return folder


@contextlib.contextmanager
def only_one(run: RunDir, tracker: str) -> Iterator[bool]:
    """Context manager: yields whether this process alone sends ``run`` to ``tracker``. The kernel ends that with the process."""
    path = make_state_folder(run) / f"{tracker}.lock"
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        raise StorageError(
            f"{path}: {error.strerror}", "a folder that this user may write", "see its rights"
        ) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            yield False
        except OSError:  # a file system without locks
            yield True
        else:
            yield True
    finally:
        os.close(descriptor)


def _is_same_plan(other: Path, here: Path, plan: Plan) -> bool:
    """Returns whether ``other`` holds a run of the same plan, and is not the directory ``here`` by another name."""
    try:
        return not os.path.samefile(other, here) and RunDir(other).read_plan().digest == plan.digest
    except (OSError, CheckpointError, StorageError):
        return False
