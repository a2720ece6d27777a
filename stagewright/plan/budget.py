"""Budgets: a time, or money at a price an hour, becomes the length of a run before its plan is made.

All stages are stretched or shrunk by one factor, lengths within schedules with them, so that the learning rate has come all
the way down when the time is up. What a run of a length takes is what was measured (:mod:`stagewright.plan.cost`); from there
on it is an ordinary plan, and nothing looks at the clock any more. Pure, no torch.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagewright.errors import RecipeError
from stagewright.plan.cost import Costs, Forecast, forecast
from stagewright.plan.plan import Plan
from stagewright.plan.resolve import resolve
from stagewright.recipe.duration import Duration
from stagewright.recipe.recipe import LR, Average, Recipe
from stagewright.text import compact, count_text, span_text

FORMS = "90s, 45m, 2h, 1h30m, or $5 together with --price"
RESERVE = 0.02
"""Share of a budget that is not planned for: measurements are never quite what happens."""
EXIT_SECONDS = 1.0
"""Python tidies up so long before a process that has loaded torch and torchvision is gone (measured on one core of 2025)."""
_ASIDE = 0.15
"""Evaluations and saves that would take more than this share of a budget become rarer."""
_MOST_EVALUATIONS = 200
_PROBE_SHARE, _LONG_PROBE_SHARE, _LONGEST_PROBE = 0.1, 0.02, 60.0
_TIME = re.compile(r"(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s)?")
_HALVINGS = 40


@dataclass(frozen=True)
class Budget:
    """How long a run may take, from ``began`` on, until its process is gone."""

    text: str
    """As it was given."""
    seconds: float
    price: float | None
    """Of an hour."""
    began: float
    """When the time began, by ``time.monotonic``."""

    @classmethod
    def parse(cls, text: str, price: float | None = None, *, began: float | None = None) -> Budget:
        """The budget of a text such as ``45m``, or of ``$5`` at ``price`` an hour; RecipeError names the forms.

        ``began`` is the moment from which it counts; now where it is absent.
        """
        check_price(price)
        given = text.strip().lower().replace(" ", "")
        seconds = _money_seconds(given, price) if given.startswith("$") else _time_seconds(given)
        if seconds is None or not 0 < seconds < math.inf:
            raise RecipeError(f"--budget {text!r}", FORMS, "write a time, or an amount of money with its price an hour")
        return cls(text.strip(), seconds, price, time.monotonic() if began is None else began)

    @property
    def spent_seconds(self) -> float:
        """What is gone of it by now."""
        return time.monotonic() - self.began

    def probe_seconds(self, asked: float) -> float:
        """How long to measure: as ``asked``, longer for long budgets (a machine's moods last longer than seconds), and at
        most a tenth of the budget."""
        return min(max(asked, min(_LONG_PROBE_SHARE * self.seconds, _LONGEST_PROBE)), _PROBE_SHARE * self.seconds)


def check_price(price: float | None) -> None:
    """RecipeError unless ``price``, what an hour costs, is absent or a finite number above 0."""
    if price is not None and not 0 < price < math.inf:
        raise RecipeError(f"--price {price:g}", "money for an hour, above 0, e.g. 2.5", "give what the machine costs")


def _time_seconds(text: str) -> float | None:
    match = _TIME.fullmatch(text)
    if match is None or not any(match.groups()):
        return None
    try:
        return sum(float(part) * unit for part, unit in zip(match.groups(), (3600, 60, 1), strict=True) if part)
    except ValueError:
        return None


def _money_seconds(text: str, price: float | None) -> float | None:
    if price is None:
        raise RecipeError(
            f"--budget {text!r} without a price", FORMS, "say what an hour of this machine costs, e.g. --price 2.5"
        )
    try:
        return float(text.removeprefix("$")) / price * 3600
    except ValueError:
        return None


@dataclass(frozen=True)
class Choice:
    """What was changed in a recipe to fit a budget; :func:`apply` changes it again in the same way."""

    factor: float
    """On the lengths of all stages."""
    every: float | None
    """Share of the run between evaluations, and between checkpoints; None: as the recipe says."""

    def to_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "every": self.every}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Choice:
        """The choice that :meth:`to_dict` gave."""
        return cls(content["factor"], content["every"])


@dataclass(frozen=True)
class BudgetedPlan:
    """A plan that fits a budget."""

    budget: Budget
    choice: Choice
    plan: Plan
    expected: Forecast
    predicted_seconds: float
    """From the beginning of the budget until all of the run is written."""
    probe_seconds: float
    usual: Recipe
    """The recipe as it was given."""

    def to_dict(self) -> dict[str, Any]:
        """For ``env.json`` and the summary."""
        return {
            "asked": self.budget.text,
            "seconds": self.budget.seconds,
            "price": self.budget.price,
            "predicted_seconds": round(self.predicted_seconds, 2),
            "probe_seconds": round(self.probe_seconds, 2),
            "steps": self.plan.total_steps,
            "choice": self.choice.to_dict(),
            "text": self.sentence(),
        }

    def sentence(self) -> str:
        """What a person is told."""
        plan, expected, last = self.plan, self.expected, self.plan.stages[-1]
        text = (
            f"budget {self.budget.text}: {count_text(plan.total_steps, 'step')} ({last.epochs_before + last.epochs_given:.4g} "
            f"epochs, {self.choice.factor:.3g} times the recipe's length) should end after "
            f"{span_text(self.predicted_seconds)}: training {span_text(expected.train_seconds)}, evaluation "
            f"{span_text(expected.eval_seconds)}, checkpoints {span_text(expected.checkpoint_seconds)}, the finish "
            f"{span_text(expected.finish_seconds)}, the rest set-up and measuring"
        )
        if self.choice.every is not None:
            many = count_text(len(plan.eval_steps), "evaluation")
            text += f"; {many}, and not one every {self.usual.eval.every}, which would take too much of it"
        return text


def fit(plan: Plan, costs: Costs, budget: Budget, *, save_minutes: float = 10.0) -> BudgetedPlan:
    """The longest plan like ``plan`` that ends within ``budget``, where ``costs`` were measured for its stages.

    What is gone of the budget by now counts. RecipeError, which names the least budget, where one epoch in all does not
    fit (or one step a stage, for recipes that are shorter).
    """
    spent = budget.spent_seconds
    room = (1 - RESERVE) * budget.seconds - EXIT_SECONDS - spent

    def tried(factor: float) -> tuple[Choice, Plan, Forecast]:
        return _plan_at_factor(plan, factor, costs, budget, save_minutes)

    low = least_factor(plan)
    best = tried(low)
    if best[2].ahead_seconds > room:
        raise _too_short(budget, plan, best[1], (spent + best[2].ahead_seconds + EXIT_SECONDS) / (1 - RESERVE))
    high = 2 * low
    while (found := tried(high))[2].ahead_seconds <= room:
        low, best, high = high, found, 2 * high
    for _ in range(_HALVINGS):
        middle = (low + high) / 2
        found = tried(middle)
        if found[2].ahead_seconds > room:
            high = middle
        elif found[1].total_steps == best[1].total_steps:
            break
        else:
            low, best = middle, found
    choice, chosen, expected = best
    return BudgetedPlan(
        budget, choice, chosen, expected, spent + expected.ahead_seconds, costs.probe_seconds, plan.recipe
    )


def least_factor(plan: Plan) -> float:
    """Factor on the lengths of ``plan`` that leaves one epoch in all, or one step of its shortest stage where it has less."""
    epochs = plan.stages[-1].epochs_before + plan.stages[-1].epochs_given
    return 1 / epochs if epochs > 1 else 1 / min(stage.num_steps for stage in plan.stages)


def apply(plan: Plan, choice: Choice) -> Plan:
    """``plan`` with its recipe changed as ``choice`` says."""
    recipe = scaled(plan.recipe, choice.factor)
    if choice.every is not None:
        every = Duration(choice.every, "run")
        recipe = recipe.changed(
            eval={**recipe.eval.model_dump(exclude_unset=True), "every": every},
            checkpoints={**recipe.checkpoints.model_dump(exclude_unset=True), "every": every},
        )
    return resolve(recipe, plan.dataset, precision=plan.precision, measured=plan.measured)


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """``recipe`` with every length times ``factor``: of stages, warm-ups, milestones, half-lives. Shares stay shares.

    Epochs are rounded down to four digits, steps and images to whole ones, at least 1.
    """
    stages: list[dict[str, Any]] = []
    shared = False
    for stage in recipe.stages:
        content = stage.model_dump(exclude_unset=True)
        shared = shared or stage.epochs is None or stage.epochs.unit == "run"
        if stage.epochs is not None:
            content["epochs"] = _times(stage.epochs, factor)
        if stage.lr is not None:
            content["lr"] = _lr_times(stage.lr, factor)
        if stage.average is not None:
            content["average"] = _half_life_times(stage.average, factor)
        stages.append(content)
    changes: dict[str, Any] = {"stages": tuple(stages), "lr": _lr_times(recipe.lr, factor)}
    changes["average"] = _half_life_times(recipe.average, factor)
    if shared:
        changes["epochs"] = _times(recipe.epochs, factor)
    return recipe.changed(**changes)


def _times(length: Duration, factor: float) -> Duration:
    value = length.value * factor
    if length.unit == "run" or value <= 0:
        return length
    if length.unit != "epochs":
        return Duration(float(max(1, math.floor(value))), length.unit)
    # Through decimal text: 10 ** -3 as a float would leave 0.30000000000000004.
    digits = 3 - math.floor(math.log10(value))
    shift = 10.0 ** abs(digits)
    floored = math.floor(value * shift) / shift if digits >= 0 else math.floor(value / shift) * shift
    return Duration(float(f"{floored:.10g}"), "epochs")


def _lr_times(lr: LR, factor: float) -> dict[str, Any]:
    content = lr.model_dump(exclude_unset=True)
    if "warmup" in content:
        content["warmup"] = _times(lr.warmup, factor)
    if "milestones" in content:
        content["milestones"] = {str(_times(Duration.parse(at), factor)): to for at, to in lr.milestones.items()}
    return content


def _half_life_times(average: Average, factor: float) -> dict[str, Any]:
    content = average.model_dump(exclude_unset=True)
    if "half_life" in content:
        content["half_life"] = _times(average.half_life, factor)
    return content


def _plan_at_factor(
    plan: Plan, factor: float, costs: Costs, budget: Budget, save_minutes: float
) -> tuple[Choice, Plan, Forecast]:
    """The plan times ``factor``, with evaluations and saves made rarer where they would take too much of the budget."""
    usual = Choice(factor, None)
    countless = factor * len(_marks(plan)) > 10 * _MOST_EVALUATIONS  # no need to list them all to know
    made = apply(plan, Choice(factor, 1 / _MOST_EVALUATIONS) if countless else usual)
    expected = forecast(made, costs, save_minutes=save_minutes)
    count, aside = len(_marks(made)), expected.eval_seconds + expected.checkpoint_seconds
    if not countless and aside <= _ASIDE * budget.seconds and count <= _MOST_EVALUATIONS:
        return usual, made, expected
    affordable = _ASIDE * budget.seconds / max(aside / count, 1e-9)
    between = max(1, int(min(affordable, _MOST_EVALUATIONS)) - len(plan.stages) + 1)  # each stage's end is one besides
    rare = Choice(factor, math.ceil(1e4 / between) / 1e4)
    fewer = apply(plan, rare)
    if not countless and len(_marks(fewer)) >= count:
        return usual, made, expected
    return rare, fewer, forecast(fewer, costs, save_minutes=save_minutes)


def _marks(plan: Plan) -> set[int]:
    """Steps after which something is evaluated or saved."""
    return {*plan.eval_steps, *plan.save_steps}


def _too_short(budget: Budget, plan: Plan, least: Plan, seconds: float) -> RecipeError:
    epochs = plan.stages[-1].epochs_before + plan.stages[-1].epochs_given
    what = "one epoch" if epochs > 1 else "one step a stage"
    allowed = math.ceil(seconds / 5) * 5 if seconds < 600 else math.ceil(seconds / 60) * 60
    money = f" (${allowed / 3600 * budget.price:.2f})" if budget.price is not None else ""
    return RecipeError(
        f"--budget {budget.text} does not suffice for {what} in all ({count_text(least.total_steps, 'step')}) on this machine",
        f"--budget {compact(allowed)}{money} or more, with set-up, measuring, evaluation and checkpoints",
        "give more time, or take a smaller model, image_size or data_fraction; nothing was written",
    )
