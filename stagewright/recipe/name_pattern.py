r"""Patterns that read a class or a group from the path of an image: ``(?P<label>[a-z]+)_\d+``.

A pattern comes from a recipe, and so perhaps from a stranger. RE2 (in pyarrow) matches it, in a time that grows linearly with the
length of a path, whatever the pattern: nothing explodes. The price is that RE2 has no lookaround and no backreferences, and that
``\w`` and ``\d`` are ASCII. Python's own parser is asked first, since it knows the position of a mistake. What passes both is a
pattern in either.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from typing import Annotated, Any

from pydantic import AfterValidator, BeforeValidator, ConfigDict, Discriminator, Tag

from stagewright.recipe.schema import Frozen

LONGEST = 1000
"""Maximum length of a pattern, in characters."""
_NAMED = re.compile(r"\(\?P<(\w*)>")


def _checked(pattern: str) -> str:
    """Returns ``pattern`` if it is valid; else ValueError with the position of the mistake, counted from 0."""
    if len(pattern) > LONGEST:
        raise ValueError(f"the pattern has {len(pattern):,} characters; at most {LONGEST:,} are allowed")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of sets that a later Python may read in another way
            re.compile(pattern)
    except re.error as error:
        raise ValueError(_refusal(pattern, error.msg, error.pos or 0)) from None
    except (RecursionError, OverflowError) as error:
        raise ValueError(f"{pattern!r} is no pattern: {error}") from None
    import pyarrow as pa  # most recipes have no pattern, and are read without it

    from stagewright.storage.parquet import pc

    try:
        pc.extract_regex(pa.array([""]), pattern=for_paths(pattern))
    except pa.ArrowInvalid as error:
        reason, _, fragment = str(error).removeprefix("Invalid regular expression: ").rpartition(": ")
        at = pattern.find(fragment) if fragment else -1
        raise ValueError(
            _refusal(pattern, f"{reason or fragment} {fragment if reason else ''}".strip(), max(at, 0))
            + "; lookaround, backreferences and repetitions above 1000 are not available"
        ) from None
    return pattern


def _refusal(pattern: str, reason: str, at: int) -> str:
    return f"{pattern!r} is no pattern: {reason} at position {at}: {pattern[:at]} >>> {pattern[at:]}"


def for_paths(pattern: str) -> str:
    """Returns the expression of RE2 that applies ``pattern`` to a path with ``/``: it must begin where the name of a folder or of
    the file begins, of several such places at the last one. Groups without a name do not capture."""
    return f"^(?s:.*/)?(?:{_without_unnamed_groups(pattern)})"


def _without_unnamed_groups(pattern: str) -> str:
    made, within, at = [], False, 0
    while at < len(pattern):
        letter, step = pattern[at], 1
        if letter == "\\":
            step = 2
        elif within:
            within = letter != "]"
        elif letter == "[":
            within = True
            step = 1 + len(re.match(r"\^?\]?", pattern[at + 1 :])[0])  # type: ignore[index]  # a ] in front is a letter
        made.append(pattern[at : at + step])
        if letter == "(" and not within and pattern[at + 1 : at + 2] != "?":
            made.append("?:")
        at += step
    return "".join(made)


class NamePattern(Frozen):
    """A pattern with a named group, as a mapping ``{pattern: TEXT}``."""

    model_config = ConfigDict(extra="forbid")

    pattern: Annotated[str, AfterValidator(_checked)]

    def __str__(self) -> str:
        """The pattern itself, a short form that is read back as the same."""
        return self.pattern


def _from_text(value: Any) -> Any:
    return {"pattern": value} if isinstance(value, str) and _NAMED.search(value) else value


def _with_group(name: str) -> Callable[[str | NamePattern | None], str | NamePattern | None]:
    def check(value: str | NamePattern | None) -> str | NamePattern | None:
        if isinstance(value, NamePattern) and name not in (found := _NAMED.findall(value.pattern)):
            has = f"it names {', '.join(found)}" if found else "it names none"
            raise ValueError(
                f"{value.pattern!r} has no group (?P<{name}>...), which says where the {name} is; {has}; write for "
                rf"example (?P<{name}>[^/]+)_\d+"
            )
        return value

    return check


def _form(value: Any) -> str:
    return "a-pattern" if isinstance(value, dict | NamePattern) else "a-text"


# The tags have dashes, which marks them as a form of a value and no field (stagewright.recipe.recipes).
_Either = Annotated[Annotated[str, Tag("a-text")] | Annotated[NamePattern, Tag("a-pattern")], Discriminator(_form)]
LabelText = Annotated[_Either | None, BeforeValidator(_from_text), AfterValidator(_with_group("label"))]
"""A column of a table, or a pattern with the group ``label``."""
GroupText = Annotated[_Either | None, BeforeValidator(_from_text), AfterValidator(_with_group("group"))]
"""A column of a table, or a pattern with the group ``group``."""
