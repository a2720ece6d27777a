"""The door through which all arguments of the command line come: nothing empty, nothing twice, no number without a value."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import typer
from typer.core import TyperCommand, TyperOption

from stagewright.errors import RecipeError


class StrictTyper(typer.Typer):
    """A group of commands that are all :class:`_StrictCommand`."""

    def command(self, name: str | None = None, **options: Any) -> Callable[[Any], Any]:
        """Returns a decorator that adds a function as a command; arguments as for ``typer.Typer.command``."""
        return super().command(name, cls=_StrictCommand, **options)


class _StrictCommand(TyperCommand):
    """A command that refuses what a shell passes by mistake: ``""`` from an unset variable, the same option twice with two
    values, ``nan`` and ``inf``."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """Parses ``args`` as click does; RecipeError for arguments that are empty, repeated or not finite."""
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
