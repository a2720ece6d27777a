"""Compares a study file with the one that a folder was begun with: it may ask for more of the same, not for something else."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from stagewright.errors import RecipeError
from stagewright.recipe.differences import differing, value_text
from stagewright.text import shortened, some

_MAY_CHANGE = ("description",)


def refuse_changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """RecipeError that names in what a study differs from the one of before; both are
    :attr:`~stagewright.study.definition.Study.content`. More seeds and more trials are allowed."""
    was, now = ({name: value for name, value in one.items() if name not in _MAY_CHANGE} for one in (old, new))
    if _has_more_seeds(was, now):
        was["seeds"] = now["seeds"]
    if _has_more_trials(was, now):
        was["search"] = {**was["search"], "trials": now["search"]["trials"]}
    found = differing(was, now)
    if found:
        named = (f"{path} ({_short(before)}, now {_short(after)})" for path, before, after in found)
        raise RecipeError(
            f"the study has changed since its beginning: {some(named, 6)}",
            "the study as it was begun, with more seeds or more search.trials at most",
            "take the change back, or begin the changed study in another folder with --out",
        )


def _has_more_seeds(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether ``now`` has all seeds of ``was``; in a search, which trains with the first one, that must stay the first."""
    old, new = was.get("seeds") or [], now.get("seeds") or []
    return set(old) <= set(new) and (now.get("search") is None or old[:1] == new[:1])


def _has_more_trials(was: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    old, new = was.get("search"), now.get("search")
    return old is not None and new is not None and old["trials"] <= new["trials"]


def _short(value: Any) -> str:
    return shortened(value_text(value), 40)
