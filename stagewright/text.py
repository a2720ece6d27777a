"""Formats numbers and foreign text for people: durations, counts, percentages, names.

The console, the log and the report share these functions, so that a quantity looks the same everywhere. This module
imports nothing from the rest of the package.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterable, Sequence

ABSENT = "–"
_NEAR = 0.7
"""Similarity (difflib's ratio, 0 to 1) from which a name counts as near: one wrong letter of four, two of six. With 0.5,
``battery`` would be near to ``paper``."""


def seconds_text(seconds: float | None) -> str:
    """Returns a duration with about two digits: ``4.2 s``, ``45 s``, ``12 min``, ``3 h 20 min``, ``2 d 3 h``; an en dash
    for None, infinity and NaN. Negative durations are shown as 0."""
    if seconds is None or not math.isfinite(seconds):
        return ABSENT
    seconds = max(0.0, seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        hours, minutes = divmod(minutes, 60)
        return f"{hours} h {minutes} min" if minutes else f"{hours} h"
    days, hours = divmod(round(seconds / 3600), 24)
    return f"{days} d {hours} h" if hours else f"{days} d"


def number_text(value: float | None, form: str = ",.0f") -> str:
    """Returns ``value`` in the format ``form``, by default like ``1,234``; an en dash for None and NaN."""
    return ABSENT if value is None or math.isnan(value) else format(value, form)


def percent_text(percent: float | None, digits: int = 1) -> str:
    """Returns ``71.2 %`` for 71.2 (already a percentage, 0 to 100); an en dash for None and NaN."""
    text = number_text(percent, f".{digits}f")
    return text if text == ABSENT else f"{text} %"


def score_text(percent: float, pictures: str, low: float | None = None, high: float | None = None) -> str:
    """Returns how every command tells a top-1: ``top-1 24.80 % on 500 test pictures (95 % interval 21.22 to 28.77)``; all in
    percent, the interval left out if it is not known. ``pictures`` is their number with a noun."""
    interval = "" if low is None or high is None else f" (95 % interval {low:.2f} to {high:.2f})"
    return f"top-1 {percent:.2f} % on {pictures}{interval}"


def done_text(step: int, total_steps: int) -> str:
    """Returns how much of a plan is done: ``43 % of its plan (step 430 of 1,000)``; rounded down, so that 100 % is all of it."""
    share = 100 * step // max(1, total_steps)
    return f"{share if share or not step else 'under 1'} % of its plan (step {step:,} of {total_steps:,})"


def count_text(count: int, one: str, many: str | None = None) -> str:
    """Returns a count with its noun: ``1 picture``, ``1,234 pictures``. ``many`` is the plural if it is not ``one`` + s."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def size_text(count: float | None) -> str:
    """Returns a number of parameters with three digits: ``812``, ``11.2 k``, ``25.6 M``; an en dash for None."""
    if count is None:
        return ABSENT
    for unit, factor in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if count >= factor:
            return f"{count / factor:.3g} {unit}"
    return f"{count:.0f}"


def printable(text: object) -> str:
    """Returns ``text`` on one line and safe to print: file names may contain newlines, escape sequences or undecodable
    bytes."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "surrogatepass").decode() for c in str(text))


def visible(text: str) -> str:
    """Returns ``text`` with its lines and tabs, and everything else that is not printable as escape sequences: a terminal
    must show what is in a name and not obey it."""
    if _PLAIN.fullmatch(text):
        return text
    return "".join(c if c in "\n\t" else printable(c) for c in text)


_PLAIN = re.compile(r"[ -~\n\t]*")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_FORMULA = tuple("=+-@\t\r")
_NUMBER = re.compile(r"[-+]?(?:\d+\.?\d*|\.\d+)(?:[eE][-+]?\d+)?")


def table_cell(text: str) -> str:
    """Returns foreign text for a cell of a CSV file, which people open in a spreadsheet or show on a terminal.

    A spreadsheet takes text that begins with ``=``, ``+``, ``-`` or ``@`` for a formula, unless it is a number: such text gets an
    apostrophe in front, which :func:`from_table_cell` removes. Control characters other than line ends and tabs become escape
    sequences.
    """
    text = _CONTROL.sub(lambda found: printable(found[0]), text)
    return f"'{text}" if text.startswith(_FORMULA) and not _NUMBER.fullmatch(text) else text


def path_cell(path: str) -> str:
    """Returns a path for a cell, like :func:`table_cell`; instead of the apostrophe it gets ``./``, and still names the file."""
    cell = table_cell(path)
    return f"./{cell[1:]}" if cell.startswith("'") and not path.startswith("'") else cell


def from_table_cell(cell: str) -> str:
    """Returns the text that :func:`table_cell` was given, apart from control characters."""
    return cell[1:] if cell[:1] == "'" and table_cell(cell[1:]) == cell else cell


def shortened(text: str, width: int) -> str:
    """Returns ``text`` with its middle removed, at most ``width`` characters long. Names usually differ at their ends."""
    if len(text) <= width:
        return text
    tail = (width - 1) // 2
    return f"{text[: width - 1 - tail]}…{text[len(text) - tail :]}"


_UNITS = "%|s|ms|µs|min|h|d|[kKMG]i?B|px|img/s|images/s|k|M|G"
_WORD = re.compile(rf"\S+(?:(?<=\d) (?:{_UNITS})(?![\w/])\S*)*")


def words(text: str) -> list[str]:
    """Returns the parts of ``text`` that stay on one line: a number with its unit, as ``24.8 %`` or ``53 img/s``, and each other
    word."""
    return _WORD.findall(text)


def folded(text: str, width: int, measure: Callable[[str], int] = len) -> str:
    """Returns ``text`` with line ends in place of some blanks, so that its lines are at most ``width`` wide as ``measure`` counts
    them. Nothing else changes, not even the length. No number is divided from its unit; what is wider than a line, as a
    path, stays whole."""
    lines: list[str] = []
    for line in text.split("\n"):
        start = 0  # of the present line
        end = 0  # of the words that it has so far
        for word in _WORD.finditer(line):
            if measure(line[start : word.end()]) > width and end > start:
                lines.append(line[start : word.start() - 1])
                start = word.start()
            end = word.end()
        lines.append(line[start:])
    return "\n".join(lines)


def span_text(seconds: float) -> str:
    """Returns a time with about three digits: ``58.4 s``, ``12 min 30 s``, ``3 h 20 min``."""
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if round(seconds) < 3600:
        return "{} min {} s".format(*divmod(round(seconds), 60))
    return "{} h {} min".format(*divmod(round(seconds / 60), 60))


def compact(seconds: int) -> str:
    """Returns a time in the form that ``--budget`` accepts: ``45s``, ``2m30s``, ``1h30m``."""
    hours, rest = divmod(seconds, 3600)
    minutes, left = divmod(rest, 60)
    parts = ((hours, "h"), (minutes, "m"), (left, "s"))
    return "".join(f"{count}{unit}" for count, unit in parts if count) or "0s"


def some(names: Iterable[str], most: int = 10) -> str:
    """Returns the first ``most`` of ``names`` on one line, separated by commas, and how many more there are."""
    names = list(names)
    return ", ".join(map(printable, names[:most])) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def counted(number: int, noun: str) -> str:
    """Returns a number with its noun, like :func:`count_text`, for nouns with a plural in -es too: ``1,200 classes``."""
    plural = noun + ("es" if noun.endswith("s") else "s")
    return f"{number:,} {noun if number == 1 else plural}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Returns ``"; did you mean 'x'?"`` with the one of ``known`` that is most similar to ``word``, or an empty string if
    none is near. Upper and lower case do not matter. All suggestions of names come from here."""
    names: dict[str, str] = {}
    for name in known:
        names.setdefault(name.casefold(), name)
    match = difflib.get_close_matches(word.casefold(), list(names), n=1, cutoff=_NEAR)
    return f"; did you mean {names[match[0]]!r}?" if match else ""


def most_like(word: str, known: Iterable[str]) -> str:
    """Returns the one of ``known``, at least one, that is most similar to ``word``, however little. Upper and lower case do not
    matter."""
    names = {name.lower(): name for name in known}
    return names[difflib.get_close_matches(word.lower(), names, n=1, cutoff=0.0)[0]]


def near_names(names: Iterable[str], known: Sequence[str]) -> dict[str, str]:
    """Returns for each of ``names`` the one of ``known`` that is nearly the same, if there is one; each is used once.

    Names that differ only in case, blanks and punctuation come before names that are similar.
    """
    found: dict[str, str] = {}
    free = {_plain(name): name for name in known}
    for near in (
        lambda name: [name] if name in free else [],
        lambda name: difflib.get_close_matches(name, free, 1, 0.8),
    ):
        for name in names:
            if name not in found and (match := near(_plain(name))):
                found[name] = free.pop(match[0])
    return found


def _plain(name: str) -> str:
    return re.sub(r"[\W_]+", "", name).casefold() or name
