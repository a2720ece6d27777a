"""What can go wrong for a user, each error saying what was given, what is allowed and what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class StagewrightError(Exception):
    """An error a user can cause and mend; the command line prints it without a traceback and exits with 2.

    ``given`` says what was found wrong, ``allowed`` what would be right, ``remedy`` what to do now.
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
    """A recipe, an override or a flag that cannot be meant."""


class DataError(StagewrightError):
    """Pictures, tables or splits that cannot be used."""


class ModelError(StagewrightError):
    """A model name, an option or weights that do not fit."""


class CheckpointError(StagewrightError):
    """A checkpoint or run directory that is damaged, foreign or full."""


class BundleError(StagewrightError):
    """A trained model that is incomplete or no longer answers as it did when it was saved."""


class StorageError(StagewrightError):
    """A place that cannot be written, or has too little room."""


class Unreadable(StorageError):
    """A file that is there and cannot be read now. It says nothing about its content, and nobody may take it for damage."""


class Diverged(StagewrightError):
    """Training produced numbers that are not finite; the last checkpoint is untouched."""


class NotFinite(StagewrightError):
    """A network answers pictures with numbers that are not finite: such an answer is no class, and no score is made of it."""

    def __init__(self, rows: Sequence[int], total: int, names: Sequence[str] = ()) -> None:
        self.rows, self.total, self.names = list(rows), total, list(names)
        listed = f": {', '.join(self.names[:5])}{' ...' if len(self.names) > 5 else ''}" if self.names else ""
        super().__init__(
            f"the network's answers to {len(self.rows):,} of {total:,} pictures are not finite numbers{listed}",
            "weights and pictures that give finite numbers",
            "where it is all of them the weights are spoilt: take an earlier checkpoint or train again with a lower learning "
            "rate; where it is a few, look at these pictures",
        )

    def __reduce__(self) -> tuple[type[NotFinite], tuple[list[int], int, list[str]]]:  # pyright: ignore[reportIncompatibleMethodOverride]
        return type(self), (self.rows, self.total, self.names)


class RangeTestError(StagewrightError):
    """A learning-rate range test that cannot be made, or whose curve suggests no learning rate."""


class Stopped(BaseException):
    """A stop was asked for (SIGTERM, SIGHUP, SIGUSR1, Ctrl-C); raised where there is nothing to save.

    No Exception, as KeyboardInterrupt is none: it may come out of any line of the set-up, and nothing that catches what
    reading, decoding or unpickling raises may take a stop for one of those.
    """


class Interrupted(Exception):
    """What is under way (an evaluation, a read that hangs) was given up because a stop was asked for; nothing was changed."""


def nearest(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the closest of ``known``, or an empty string where none is close."""
    match = difflib.get_close_matches(word, list(known), n=1, cutoff=0.5)
    return f"; did you mean {match[0]!r}?" if match else ""
