"""Studies: what a study file says, as requests for ordinary runs. Needs no torch and no data."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from stagewright.errors import RecipeError
from stagewright.measures.metrics import Metric
from stagewright.plan.budget import Budget
from stagewright.recipe import recipes
from stagewright.recipe.duration import Duration
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest
from stagewright.storage.files import user_path
from stagewright.storage.json_text import parse_object
from stagewright.study.settings import Setting
from stagewright.study.space import Dimension, corner_values, dimension_of, variant_at
from stagewright.study.study_file import (
    FIRST_CONFIRMATION_SEED,
    EqualFields,
    SearchFields,
    StudyFields,
    fields_of,
    from_content,
    name_of,
)
from stagewright.study.variants import Variant, grid_variants, listed_variants, mapped
from stagewright.text import counted

_UNITS = {"epochs": "ep", "steps": "st", "images": "img"}


@dataclass(frozen=True)
class Equal:
    """What all runs of a study have the same of."""

    kind: Literal["epochs", "steps", "images", "time", "as_given"]
    """``as_given``: nothing; each run is as long as its recipe says."""
    value: str = ""
    """``10ep``, ``500st``, ``50000img`` or ``20m``; empty for ``as_given``."""

    @property
    def epochs(self) -> str | None:
        """The length for :attr:`stagewright.recipe.request.RecipeRequest.epochs`, in any unit; None if it is not given so."""
        return self.value if self.kind in _UNITS else None

    @property
    def budget(self) -> str | None:
        """The time of each run for ``train --budget``; None if runs have none."""
        return self.value if self.kind == "time" else None


@dataclass(frozen=True)
class Rungs:
    """When a search stops its worse runs."""

    first: float
    """Share of a run at the first rung, in (0, 1)."""
    eta: int
    """One of so many runs goes on, to so many times the share."""


@dataclass(frozen=True)
class Search:
    """How a search chooses variants."""

    space: Mapping[str, Dimension]
    trials: int
    sampler: Literal["tpe", "gp", "random", "qmc"]
    seed: int
    rungs: Rungs | None


@dataclass(frozen=True)
class Confirm:
    """The confirmation: the best variants, again with fresh seeds."""

    top: int
    """Number of variants."""
    seeds: int
    """Number of fresh seeds for each of them."""


@dataclass(frozen=True)
class Study:
    """A study: ordinary runs of one recipe that differ on purpose."""

    name: str
    """Of its file, or of the shipped study."""
    description: str
    data: str
    """DATA, as for ``train``."""
    recipe: str
    """A recipe's name or file, or the directory of an earlier run."""
    equal: Equal
    seeds: tuple[int, ...]
    variants: tuple[Variant, ...]
    """Of its grid or list; empty for a search."""
    search: Search | None
    confirm: Confirm | None
    metric: Metric
    """The measure on the validation images by which variants are compared."""
    no_test: bool
    """Whether it does without a test part, since DATA has none."""
    base: Recipe
    """The recipe without the changes of the study."""
    common: tuple[Setting, ...]
    """What ``set`` gives all runs."""
    content: Mapping[str, Any]
    """The file as plain data, with DATA and all defaults."""

    def request(self, variant: Variant, seed: int) -> RecipeRequest:
        """Returns what ``train`` gets for a run; with an :attr:`Equal.budget` it gets that too."""
        return RecipeRequest(_recipe_source(self.recipe), {"seed": seed}, self.equal.epochs, variant.overrides)

    def command(
        self, variant: Variant, seed: int, out: str, threads: int | None = None, *, hold_test: bool = True
    ) -> list[str]:
        """Returns the words of the command that trains the same to ``out``, with its test part closed unless ``hold_test`` is
        False, as in the confirmation."""
        words = ["stagewright", "train", self.data, "--recipe", _recipe_source(self.recipe)]
        for flag, value in (("--epochs", self.equal.epochs), ("--budget", self.equal.budget)):
            words += [] if value is None else [flag, value]
        for override in variant.overrides:
            words += ["--set", override]
        words += ["--seed", str(seed), "--out", out]
        words += [] if threads is None else ["--threads", str(threads)]
        return [*words, "--hold-test"] if hold_test else words

    def at(self, params: Mapping[str, Any]) -> Variant:
        """Returns the variant of a search with the values ``params`` along its dimensions: numbers, and labels of choices. The
        name is the same whenever the values are. ValueError for values outside the space, and without a search."""
        if self.search is None:
            raise ValueError(f"{self.name} is no search")
        return variant_at(self.search.space, params, self.common, self.base)

    @property
    def examples(self) -> tuple[Variant, ...]:
        """The variants that show whether all of the study can be carried out: all of a grid or list, and of a search those at the
        ends of its dimensions."""
        if self.search is None:
            return self.variants
        return tuple(self.at(values) for values in corner_values(self.search.space))

    @property
    def confirmation_seeds(self) -> tuple[int, ...]:
        """The fresh seeds of the confirmation, which no study has among its :attr:`seeds`."""
        count = self.confirm.seeds if self.confirm is not None else 0
        return tuple(range(FIRST_CONFIRMATION_SEED, FIRST_CONFIRMATION_SEED + count))


def job_name(variant: Variant, seed: int) -> str:
    """Returns the name of the run of ``variant`` with ``seed``, and of its directory."""
    return f"{variant.name}-s{seed}"


def read_study(source: str, data: str | None = None) -> Study:
    """Returns the study in a file, or a shipped one by its name; on ``data``, if that is given, instead of the file's.

    Each variant's recipe is checked. RecipeError names what is wrong, what is allowed, and what to do.
    """
    return _study(name_of(source), fields_of(source), data)


def study_from_content(name: str, content: Mapping[str, Any]) -> Study:
    """Returns the study with the :attr:`Study.content` of an earlier one; RecipeError as for :func:`read_study`."""
    return _study(name, from_content(content), None)


def _study(name: str, fields: StudyFields, data: str | None) -> Study:
    place = data or fields.data
    if place is None:
        raise RecipeError(
            f"the study {name} has no data",
            "data: DATA in its file, or --data DATA",
            "name the pictures: a folder of class folders, a table, torchvision:NAME",
        )
    if fields.recipe == recipes.AUTO:
        raise RecipeError(
            "recipe: auto, which depends on the machine",
            "one recipe for all runs: a name, a file, or the directory of an earlier run",
            f"stagewright plan {place} shows what auto chooses here; name that, or a run that was trained with it",
        )
    base, common = recipes.load(_recipe_source(fields.recipe)), mapped(fields.set, "set")
    variants: tuple[Variant, ...] = ()
    if fields.grid is not None:
        variants = grid_variants(fields.grid, common, base)
    elif fields.variants is not None:
        variants = listed_variants(fields.variants, common, base)
    study = Study(
        name=name,
        description=fields.description,
        data=place,
        recipe=fields.recipe,
        equal=_equal(fields.equal),
        seeds=tuple(fields.seeds),
        variants=variants,
        search=None if fields.search is None else _search(fields.search, fields.seed),
        confirm=None if fields.confirm is None else Confirm(fields.confirm.top, fields.confirm.seeds),
        metric=fields.metric,
        no_test=fields.test == "none",
        base=base,
        common=common,
        content=parse_object(json.dumps({**fields.model_dump(mode="json"), "data": place}).encode()),
    )
    _check(study)
    return study


def _recipe_source(recipe: str) -> str:
    """Returns what ``--recipe`` takes: for the directory of a run the file of its recipe."""
    there = os.path.isfile(user_path(recipe) / "recipe.yaml")
    return os.path.join(recipe, "recipe.yaml") if there else recipe


def _equal(fields: EqualFields | Literal["as_given"]) -> Equal:
    if fields == "as_given":
        return Equal("as_given")
    given = {name: value for name, value in fields.model_dump().items() if value is not None}
    if len(given) != 1:
        raise RecipeError(
            f"equal has {' and '.join(given) or 'nothing'}",
            "one of epochs, steps, images, time",
            "write equal: {epochs: 10ep}",
        )
    kind, value = next(iter(given.items()))
    if kind == "time":
        _check_time(value)
        return Equal("time", value)
    unit = _UNITS[kind]
    try:
        length = Duration.parse(value if isinstance(value, str) and value.strip().endswith(unit) else f"{value}{unit}")
    except ValueError as error:
        raise _length_error(kind, value, f": {error}") from None
    if length.unit != kind or length.value <= 0:
        raise _length_error(kind, value, "")
    return Equal(kind, str(length))  # pyright: ignore[reportArgumentType] # one of the units


def _length_error(kind: str, value: Any, why: str) -> RecipeError:
    example = {"epochs": "10ep", "steps": "500st", "images": "50000img"}[kind]
    return RecipeError(
        f"equal.{kind}: {value!r}{why}", f"a length above 0, such as {example}", f"write {kind}: {example}"
    )


def _check_time(value: str) -> None:
    try:
        Budget.parse(value)  # also refuses an amount of money, which would need a price
    except RecipeError:
        raise RecipeError(f"equal.time: {value!r}", "a time for each run: 90s, 45m, 2h", "write time: 20m") from None


def _search(fields: SearchFields, seed: int) -> Search:
    space = {name: dimension_of(name, given) for name, given in fields.space.items()}
    rungs = None if fields.rungs is None else Rungs(_share(fields.rungs.first), fields.rungs.eta)
    return Search(space, fields.trials, fields.sampler, seed, rungs)


def _share(given: float | str) -> float:
    try:
        share = float(given.strip().removesuffix("%")) / 100 if isinstance(given, str) else float(given)
    except ValueError:
        share = 0.0
    if not 0 < share < 1 or (isinstance(given, str) and not given.strip().endswith("%")):
        raise RecipeError(
            f"search.rungs.first: {given!r}", "a share of a run, above 0 and below 100%", "write first: 10%"
        )
    return share


def _check(study: Study) -> None:
    """RecipeError if a variant makes no valid recipe, has another length than all, or cannot be confirmed or compared."""
    for variant in study.examples:
        try:
            recipe = study.request(variant, study.seeds[0]).preliminary
        except RecipeError as error:
            raise RecipeError(f"variant {variant.name}: {error.given}", error.allowed, error.remedy) from None
        _check_length(study, variant, recipe)
        _check_metric(study, variant, recipe)
    if study.confirm is not None:
        _check_confirm(study, study.confirm)


def _check_length(study: Study, variant: Variant, recipe: Recipe) -> None:
    if study.equal.epochs is None:
        return
    asked = Duration.parse(study.equal.epochs)
    lengths = [stage.epochs or Duration(1.0, "run") for stage in recipe.timed]
    own = [recipe.epochs] if all(one.unit == "run" for one in lengths) else lengths
    rounding = 0.0 if asked.unit == "epochs" else 0.5 * len(own)  # each stage has whole steps and images
    same_unit = all(one.unit == asked.unit for one in own)
    if not same_unit or abs(sum(one.value for one in own) - asked.value) > rounding + 1e-6 * asked.value:
        raise RecipeError(
            f"variant {variant.name} is {' + '.join(map(str, own))} long, but equal says {asked} for all",
            "variants that leave the length to equal, or equal: as_given",
            "leave out what sets epochs in set and in the variants, or write equal: as_given",
        )


def _check_metric(study: Study, variant: Variant, recipe: Recipe) -> None:
    if study.metric in ("top1", "log_loss") or recipe.eval.metric == study.metric:
        return
    raise RecipeError(
        f"metric: {study.metric}, which the runs of variant {variant.name} do not log",
        f"top1 and log_loss, and the recipe's eval.metric (here {recipe.eval.metric})",
        f"write set: {{eval.metric: {study.metric}}}, or another metric",
    )


def _check_confirm(study: Study, confirm: Confirm) -> None:
    count = len(study.variants) if study.search is None else study.search.trials
    what = "variant" if study.search is None else "trial"
    if confirm.top > count:
        raise RecipeError(
            f"confirm.top is {confirm.top}, but the study has {counted(count, what)}",
            f"1 to {count}",
            f"write confirm: {{top: {min(count, 3)}, seeds: {confirm.seeds}}}",
        )
