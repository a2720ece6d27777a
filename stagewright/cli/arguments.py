"""The door of all arguments: nothing empty, nothing twice, no number without a value. Its help cuts no sentence."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperGroup, TyperOption

from stagewright.errors import RecipeError


class StrictTyper(typer.Typer):
    """A group of commands that are all :class:`_StrictCommand`, and are listed with whole sentences."""

    def __init__(self, **options: Any) -> None:
        super().__init__(cls=_ListingGroup, **options)

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Returns a decorator that adds a function as a command; arguments as for ``typer.Typer.command``."""
        return super().command(name, cls=_StrictCommand, **options)


class _ListingGroup(TyperGroup):
    """A group whose help has the first sentence of each command's help, folded where it is longer than a line, and not cut."""

    def format_commands(self, ctx: Any, formatter: Any) -> None:
        """Writes the names of the commands with their first sentences."""
        shown = {name: self.commands[name] for name in self.list_commands(ctx) if not self.commands[name].hidden}
        with formatter.section("Commands"):
            formatter.write_dl([(name, _first_sentence(one.help or "")) for name, one in shown.items()])


def _first_sentence(text: str) -> str:
    """Returns the first sentence of a docstring on one line, up to its full stop, semicolon or colon."""
    return _END.split(" ".join(text.split()), maxsplit=1)[0].rstrip(".") + "."


_END = re.compile(r"[.;:] ")


class _StrictCommand(TyperCommand):
    """A command that refuses what a shell passes by mistake: ``""`` from an unset variable, the same option twice with two
    values, ``nan`` and ``inf``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses ``args`` as click does; RecipeError for arguments that are empty, repeated or not finite."""
        if ctx.resilient_parsing:  # the shell asks how an unfinished line goes on
            return super().parse_args(ctx, args)
        _refuse_empty(ctx, args)
        _, _, given = self.make_parser(ctx).parse_args([*args])
        for parameter, times in Counter(given).items():
            single = isinstance(parameter, TyperOption) and not (
                parameter.multiple or parameter.is_flag or parameter.count
            )
            if times > 1 and single:
                name = max(parameter.opts, key=len)
                raise RecipeError(f"{name} is given {times} times", f"{name} once", "leave out all but one")
        rest = super().parse_args(ctx, args)
        for parameter in self.params:
            value = ctx.params.get(parameter.name or "")
            if isinstance(value, float) and not math.isfinite(value):
                name = max(parameter.opts, key=len)
                raise RecipeError(f"{name} {value}", "a finite number", f"give {name} a number, or leave it out")
        return rest


def _refuse_empty(ctx: Any, args: list[str]) -> None:
    """RecipeError if an argument is empty or blank, also in the form ``--option=``."""
    for at, text in enumerate(args):
        name, equals, value = text.partition("=")
        if text.strip() and not (text.startswith("--") and equals and not value.strip()):
            continue
        previous = args[at - 1] if at and args[at - 1].startswith("-") else ""
        what = (
            f"the value of {name}"
            if text.strip()
            else f"an argument behind {previous}"
            if previous
            else f"argument {at + 1}"
        )
        raise RecipeError(
            f"{ctx.info_name}: {what} is empty",
            "arguments with a value; . is the current folder",
            'write it out, or leave it out; an empty argument often comes from a shell variable that is not set ("$NAME")',
        )
