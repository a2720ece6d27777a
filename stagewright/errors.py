"""The exceptions that a user can meet. Each message states what was given, what is allowed and what to do."""

from __future__ import annotations

from collections.abc import Sequence


class StagewrightError(Exception):
    """An error that the user can correct. The command line prints it without a traceback and exits with code 2.

    ``given`` states what is wrong, ``allowed`` what would be correct, ``remedy`` what to do now.
    """

    def __init__(self, given: str, allowed: str = "", remedy: str = "") -> None:
        self.given, self.allowed, self.remedy = given, allowed, remedy
        lines = [given]
        if allowed:
            lines.append(f"  allowed: {allowed}")
        if remedy:
            lines.append(f"  to do:   {remedy}")
        super().__init__("\n".join(lines))

    def __reduce__(self) -> tuple[type[StagewrightError], tuple[str, str, str]]:
        return type(self), (self.given, self.allowed, self.remedy)


class RecipeError(StagewrightError):
    """A recipe, a study file, an override or a flag has an invalid value."""


class DataError(StagewrightError):
    """Images, tables or splits cannot be used."""


class ModelError(StagewrightError):
    """A model name, a model option or a weights file is unknown or does not match the model."""


class CheckpointError(StagewrightError):
    """A checkpoint or run directory is damaged, belongs to something else, or is already in use."""


class BundleError(StagewrightError):
    """A saved model (bundle) is incomplete, or no longer gives the outputs that it gave when it was saved."""


class StorageError(StagewrightError):
    """A file or folder cannot be read or written, or the disk has too little free space."""


class Unreadable(StorageError):
    """A file exists but cannot be read now. This does not mean that its content is damaged."""


class MirrorError(StagewrightError):
    """A mirror was taken over by another process, or lacks the trained model at the end; all of it is saved here. The command
    line ends with ``EXIT_LOST``."""


class WorldError(StagewrightError):
    """Several processes cannot work together as asked."""


class Diverged(StagewrightError):
    """Training produced infinity or NaN. The last checkpoint is unchanged."""


class NotFinite(StagewrightError):
    """A network's output contains infinity or NaN. Such an output names no class, so no score is computed from it."""

    def __init__(self, rows: Sequence[int], total: int, names: Sequence[str] = ()) -> None:
        self.rows, self.total, self.names = list(rows), total, list(names)
        listed = f": {', '.join(self.names[:5])}{' ...' if len(self.names) > 5 else ''}" if self.names else ""
        super().__init__(
            f"the network's outputs for {len(self.rows):,} of {total:,} pictures are not finite numbers{listed}",
            "weights and pictures that give finite numbers",
            "if all pictures are affected, the weights are unusable: take an earlier checkpoint or train again with a lower "
            "learning rate; if only a few are affected, look at these pictures",
        )

    def __reduce__(self) -> tuple[type[NotFinite], tuple[list[int], int, list[str]]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self), (self.rows, self.total, self.names)


class RangeTestError(StagewrightError):
    """A learning-rate range test cannot be run, or its curve suggests no learning rate."""


class Stopped(BaseException):
    """A stop was requested (SIGTERM, SIGHUP, SIGUSR1, Ctrl-C) while there was nothing to save.

    Like KeyboardInterrupt it is not an ``Exception``: a signal handler can raise it in any line of the set-up, and an
    ``except Exception`` around reading, decoding or unpickling must not catch it.
    """


class Cancelled(Stopped):
    """A signal (Ctrl-C, SIGTERM, SIGHUP) ended a command other than a training. One line states what was kept.

    ``number`` is the signal's; ``kept`` is set by the command that was ended, see :func:`stagewright.system.signals.keeps`.
    """

    def __init__(self, number: int, reason: str) -> None:
        super().__init__(f"stopped by {reason}")
        self.number, self.kept, self.resumable = number, "", False

    def __str__(self) -> str:
        return f"{self.args[0]}; {self.kept or 'no half-written file is left'}"


class RankLost(Exception):
    """A process of the run, or its host, was lost; nothing is damaged. The command line prints the line that says which, and
    ends with ``EXIT_LOST``: start again."""


class Interrupted(Exception):
    """The current operation (an evaluation, a read that hangs) was abandoned because a stop was requested; nothing was
    changed."""
