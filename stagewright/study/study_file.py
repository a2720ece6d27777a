"""The text of a study: a YAML file, or one of the studies in shipped/. Everything in it is checked here for its form.

What its values mean for a recipe is checked by :mod:`stagewright.study.definition`, what they mean on DATA by
:mod:`stagewright.study.checks`.
"""

from __future__ import annotations

from collections.abc import Mapping
from importlib import resources
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from stagewright.errors import RecipeError
from stagewright.measures.metrics import Metric
from stagewright.recipe.recipes import file_text, not_found
from stagewright.recipe.schema import problems
from stagewright.recipe.yaml_text import YamlError, load_yaml
from stagewright.storage.files import user_path
from stagewright.study.settings import is_field
from stagewright.text import nearest, some

_SHIPPED = resources.files("stagewright.study") / "shipped"
FIRST_CONFIRMATION_SEED = 1_000_000
"""The seeds of a study are below it, those of its confirmation begin with it: so they stay apart when seeds are added."""
_WAYS = ("grid", "variants", "search")
Seed = Annotated[int, Field(ge=0, lt=FIRST_CONFIRMATION_SEED)]
Text = Annotated[str, Field(min_length=1)]


class _Part(BaseModel):
    """A part of a study file: its types are exact, and it has no other keys."""

    model_config = ConfigDict(strict=True, extra="forbid", frozen=True)


class EqualFields(_Part):
    """What all runs have the same of; one of them."""

    epochs: int | float | str | None = None
    steps: int | str | None = None
    images: int | str | None = None
    time: str | None = None


class _RungsFields(_Part):
    """When a search looks at its runs and goes on with the best of them."""

    first: float | str
    """The share of a run after which it looks for the first time: ``10%`` or 0.1."""
    eta: Annotated[int, Field(ge=2, le=100)] = 3
    """One of so many goes on to the next rung, which is so many times as far."""


class SearchFields(_Part):
    """A search through a space."""

    space: Annotated[dict[str, Any], Field(min_length=1, max_length=100)]
    trials: Annotated[int, Field(ge=1, le=100_000)]
    sampler: Literal["tpe", "gp", "random", "qmc"] = "tpe"
    rungs: _RungsFields | None = None


class _ConfirmFields(_Part):
    """The runs with which the best variants are confirmed."""

    top: Annotated[int, Field(ge=1, le=1000)]
    seeds: Annotated[int, Field(ge=1, le=1000)]


class StudyFields(_Part):
    """A study file."""

    description: str = ""
    data: Text | None = None
    recipe: Text
    equal: EqualFields | Literal["as_given"] = "as_given"
    seeds: Annotated[list[Seed], Field(max_length=1000)]
    set: dict[str, Any] = Field(default_factory=dict)
    grid: dict[str, Any] | None = None
    variants: dict[Any, Any] | None = None
    search: SearchFields | None = None
    confirm: _ConfirmFields | None = None
    metric: Metric = "top1"
    """The measure on the validation images by which variants are compared."""
    test: Literal["none"] | None = None
    """``none``: DATA has no test part, and the study does without."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of a search's sampler."""


_INSIDE = {
    "search": tuple(SearchFields.model_fields),
    "search.rungs": ("first", "eta"),
    "equal": tuple(EqualFields.model_fields),
}
"""Keys that a person may write one level too high, by their place."""


def shipped() -> list[str]:
    """Returns the sorted names of the studies that are part of stagewright."""
    return sorted(file.name.removesuffix(".yaml") for file in _SHIPPED.iterdir() if file.name.endswith(".yaml"))


def text(source: str) -> str:
    """Returns the YAML of a shipped study or of a file, including comments; RecipeError if there is neither."""
    if source in shipped():
        return (_SHIPPED / f"{source}.yaml").read_text("utf-8")
    path = user_path(source)
    if (found := file_text(path)) is not None:
        return found
    raise RecipeError(
        f"{source!r}: {not_found(path, 'study')}",
        f"{', '.join(shipped())} or a YAML file" + nearest(source, shipped()),
        "stagewright study list lists the shipped ones; stagewright study print NAME prints one as a starting point",
    )


def name_of(source: str) -> str:
    """Returns the name of a study: that of the shipped one, or that of its file without its ending."""
    return source if source in shipped() else user_path(source).stem


def fields_of(source: str) -> StudyFields:
    """Returns the checked content of a study; RecipeError for everything that has not the form of one."""
    try:
        raw = load_yaml(text(source))
    except YamlError as error:
        raise RecipeError(
            f"{source} is not valid YAML: {error}", "a study file, each key once", "correct that line"
        ) from None
    if not isinstance(raw, dict):
        raise RecipeError(
            f"{source} contains {'nothing' if raw is None else f'a {type(raw).__name__}'}",
            "the keys of a study: recipe, seeds and grid, variants or search",
            "stagewright study print cifar-sweep prints one as a starting point",
        )
    return from_content(raw)


def from_content(raw: Mapping[str, Any]) -> StudyFields:
    """Returns the checked content of a study from plain data; RecipeError as for :func:`fields_of`."""
    _refuse_unknown(raw)
    ways = [way for way in _WAYS if raw.get(way) is not None]
    if len(ways) != 1:
        raise RecipeError(
            f"the study has {' and '.join(ways)}" if ways else "the study has neither grid nor variants nor search",
            "one of grid, variants, search",
            "leave all but one out" if ways else "add a grid, such as grid: {lr.peak: [0.01, 0.1]}",
        )
    _refuse_seeds(raw.get("seeds"))
    try:
        return StudyFields.model_validate(dict(raw))
    except ValidationError as error:
        raise RecipeError(f"study: {problems(error)}", "values as in docs/studies.md", "correct the file") from None


def _refuse_unknown(raw: Mapping[Any, Any]) -> None:
    """RecipeError for a key that a study does not have, with the place where it belongs or the nearest one."""
    parts: list[tuple[str, Any, type[BaseModel]]] = [
        ("", raw, StudyFields),
        ("equal", raw.get("equal"), EqualFields),
        ("search", raw.get("search"), SearchFields),
        ("confirm", raw.get("confirm"), _ConfirmFields),
    ]
    if isinstance(raw.get("search"), Mapping):
        parts.append(("search.rungs", raw["search"].get("rungs"), _RungsFields))
    for place, content, kind in parts:
        if not isinstance(content, Mapping):
            continue
        known = tuple(kind.model_fields)
        for key in content:
            if key not in known:
                raise _unknown(place, str(key), known, raw)


def _unknown(place: str, key: str, known: tuple[str, ...], raw: Mapping[Any, Any]) -> RecipeError:
    path = f"{place}.{key}".lstrip(".")
    if key == "rungs" and raw.get("search") is None:
        return RecipeError(
            "rungs without a search",
            "rungs inside search",
            "write search: {space: ..., trials: 40, rungs: ...}, or leave them out",
        )
    for inner, names in _INSIDE.items():
        if key in names and inner != place and inner.startswith(place):
            return RecipeError(f"{path}: this key belongs inside {inner}", f"{inner}: {{{key}: ...}}", "move it there")
    if not place and is_field(key):
        return RecipeError(
            f"{path}: a field of the recipe",
            "fields of the recipe within set, grid, variants or search",
            f"write set: {{{key}: ...}} for all runs, or grid: {{{key}: [...]}} for runs that differ in it",
        )
    return RecipeError(
        f"{path}: unknown key{nearest(key, known)}",
        f"here: {', '.join(known)}",
        "correct the key; docs/studies.md has all",
    )


def _refuse_seeds(seeds: Any) -> None:
    """RecipeError for missing and repeated seeds."""
    if not isinstance(seeds, list):
        if seeds is None:
            raise _seeds_error("the study has no seeds")
        return
    if not seeds:
        raise _seeds_error("seeds is empty")
    twice = [seed for at, seed in enumerate(seeds) if seed in seeds[:at]]
    if twice:
        raise _seeds_error(f"seeds: {some(map(str, twice))} given twice")


def _seeds_error(given: str) -> RecipeError:
    return RecipeError(
        given,
        "one or more whole numbers, each once",
        "write seeds: [0, 1, 2]: each variant runs once with each of them",
    )
