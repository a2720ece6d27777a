"""Budgets: a time, or an amount of money at a price per hour, determines the length of a run before its plan is made.

All stages and the lengths within schedules are scaled by one factor, so that the learning rate reaches its end when the time
is over. The time of a run is predicted from measurements (:mod:`stagewright.plan.cost`). The result is an ordinary plan; the
training does not depend on the clock. The functions are pure and do not use torch.
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
"""Share of a budget that is left unused, since the measured times are not exact."""
EXIT_SECONDS = 1.0
"""Time that Python needs to end a process that has loaded torch and torchvision (measured on one core of 2025)."""
_MAX_OVERHEAD = 0.15
"""Largest share of a budget for evaluations and checkpoints; if they would take more, they become less frequent."""
MOST_EVALUATIONS = 200
"""Most evaluations of a run with a budget; where the recipe asks for more, they become less frequent."""
_PROBE_SHARE, _LONG_PROBE_SHARE, _LONGEST_PROBE = 0.1, 0.02, 60.0
_TIME = re.compile(r"(?:([0-9.]+)h)?(?:([0-9.]+)m)?(?:([0-9.]+)s)?")
_HALVINGS = 40


@dataclass(frozen=True)
class Budget:
    """The time that a run may take, from ``began`` until its process has ended."""

    text: str
    """The budget as the user has written it."""
    seconds: float
    price: float | None
    """Price of one hour, or None."""
    began: float
    """Start of the budget's time, on the clock of ``time.monotonic``."""

    @classmethod
    def parse(cls, text: str, price: float | None = None, *, began: float | None = None) -> Budget:
        """Parses a text such as ``45m``, or ``$5`` at ``price`` per hour; RecipeError lists the allowed forms.

        ``began`` is the start of the budget's time; None: now.
        """
        check_price(price)
        given = text.strip().lower().replace(" ", "")
        seconds = _money_seconds(given, price) if given.startswith("$") else time_seconds(given)
        if seconds is None or not 0 < seconds < math.inf:
            raise RecipeError(f"--budget {text!r}", FORMS, "write a time, or an amount of money together with --price")
        return cls(text.strip(), seconds, price, time.monotonic() if began is None else began)

    @property
    def spent_seconds(self) -> float:
        """Seconds of the budget that have passed."""
        return time.monotonic() - self.began

    def probe_seconds(self, asked: float) -> float:
        """Returns how long to measure: ``asked`` seconds, more for long budgets (the speed of a machine may change for longer
        than a few seconds), and at most a tenth of the budget."""
        return min(max(asked, min(_LONG_PROBE_SHARE * self.seconds, _LONGEST_PROBE)), _PROBE_SHARE * self.seconds)


def check_price(price: float | None) -> None:
    """Raises RecipeError unless ``price``, the price of an hour, is None or a finite number above 0."""
    if price is not None and not 0 < price < math.inf:
        raise RecipeError(f"--price {price:g}", "money for an hour, above 0, e.g. 2.5", "give what the machine costs")


def refuse_second_length(budget: str, epochs: object) -> None:
    """Raises RecipeError if ``epochs`` are given, i.e. not None, beside ``budget``, as the user has written both."""
    if epochs is not None:
        raise RecipeError(
            f"--budget {budget} with --epochs {epochs}",
            "only one of them, because both set the length",
            "leave one out",
        )


def time_seconds(text: str) -> float | None:
    """Returns the seconds of a time such as ``90s``, ``45m`` or ``1h30m``, or None if ``text`` is none."""
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
            f"--budget {text!r} without a price", FORMS, "give the price of an hour of this machine, e.g. --price 2.5"
        )
    try:
        return float(text.removeprefix("$")) / price * 3600
    except ValueError:
        return None


@dataclass(frozen=True)
class Choice:
    """The changes to a recipe that fit it into a budget; :func:`apply` repeats them."""

    factor: float
    """Factor on the lengths of all stages."""
    every: float | None
    """Distance between evaluations, and between checkpoints, as a share of the run; None: as in the recipe."""

    def to_dict(self) -> dict[str, Any]:
        return {"factor": self.factor, "every": self.every}

    @classmethod
    def from_dict(cls, content: Mapping[str, Any]) -> Choice:
        """Returns the choice from the result of :meth:`to_dict`."""
        return cls(content["factor"], content["every"])


@dataclass(frozen=True)
class _BudgetedPlan:
    """A plan that fits a budget."""

    budget: Budget
    choice: Choice
    plan: Plan
    expected: Forecast
    predicted_seconds: float
    """Predicted seconds from the start of the budget until all files of the run are written."""
    probe_seconds: float
    original_recipe: Recipe
    """The recipe before the changes."""

    def to_dict(self) -> dict[str, Any]:
        """Returns plain data for ``env.json`` and the summary."""
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
        """Returns the prediction as a sentence for the user."""
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
            text += f"; {many} instead of one every {self.original_recipe.eval.every}, which would take too much of the budget"
        return text


def fit(plan: Plan, costs: Costs, budget: Budget, *, save_minutes: float = 10.0) -> _BudgetedPlan:
    """Returns ``plan`` scaled to the longest length that ends within ``budget``; ``costs`` were measured for its stages.

    Time of the budget that has already passed is taken into account. RecipeError, with the smallest possible budget, if not
    even one epoch in total fits (or one step per stage, if the recipe is shorter than an epoch).
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
    return _BudgetedPlan(
        budget, choice, chosen, expected, spent + expected.ahead_seconds, costs.probe_seconds, plan.recipe
    )


def least_factor(plan: Plan) -> float:
    """Returns the factor that shortens ``plan`` to one epoch in total, or, if it is shorter, its shortest stage to one step.

    Stages that find an optimum have no length and do not count. RecipeError if there are only such stages.
    """
    timed = [stage for stage in plan.stages if stage.fit == "updates"]
    if not timed:
        raise RecipeError(
            "a budget for a recipe whose stages all have fit: optimum",
            "a recipe with a stage whose length can be scaled",
            "leave the budget out; stagewright plan DATA --probe says how long it takes",
        )
    epochs = sum(stage.epochs_given for stage in timed)
    return 1 / epochs if epochs > 1 else 1 / min(stage.num_steps for stage in timed)


def apply(plan: Plan, choice: Choice) -> Plan:
    """Returns the plan of ``plan``'s recipe with the changes of ``choice``."""
    recipe = scaled(plan.recipe, choice.factor)
    if choice.every is not None:
        every = Duration(choice.every, "run")
        recipe = recipe.changed(
            eval={**recipe.eval.model_dump(exclude_unset=True), "every": every},
            checkpoints={**recipe.checkpoints.model_dump(exclude_unset=True), "every": every},
        )
    return resolve(recipe, plan.dataset, precision=plan.precision, measured=plan.measured)


def scaled(recipe: Recipe, factor: float) -> Recipe:
    """Returns ``recipe`` with all lengths (stages, warm-ups, milestones, half-lives) times ``factor``. Shares of the run do not
    change.

    Epochs are rounded down to four digits, steps and images to whole numbers, at least 1.
    """
    stages: list[dict[str, Any]] = []
    shared = False
    for stage in recipe.stages:
        content = stage.model_dump(exclude_unset=True)
        shared = shared or (stage.fit == "updates" and (stage.epochs is None or stage.epochs.unit == "run"))
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
    """Returns the plan scaled by ``factor``, with fewer evaluations and checkpoints if they would take too much of the
    budget."""
    usual = Choice(factor, None)
    countless = factor * len(_marks(plan)) > 10 * MOST_EVALUATIONS  # clearly too many, so they need not be computed
    made = apply(plan, Choice(factor, 1 / MOST_EVALUATIONS) if countless else usual)
    expected = forecast(made, costs, save_minutes=save_minutes)
    count, aside = len(_marks(made)), expected.eval_seconds + expected.checkpoint_seconds
    if not countless and aside <= _MAX_OVERHEAD * budget.seconds and count <= MOST_EVALUATIONS:
        return usual, made, expected
    affordable = _MAX_OVERHEAD * budget.seconds / max(aside / count, 1e-9)
    between = max(1, int(min(affordable, MOST_EVALUATIONS)) - len(plan.stages) + 1)  # the end of each stage adds one
    rare = Choice(factor, math.ceil(1e4 / between) / 1e4)
    fewer = apply(plan, rare)
    if not countless and len(_marks(fewer)) >= count:
        return usual, made, expected
    return rare, fewer, forecast(fewer, costs, save_minutes=save_minutes)


def _marks(plan: Plan) -> set[int]:
    """Returns the steps after which the model is evaluated or a checkpoint is saved."""
    return {*plan.eval_steps, *plan.save_steps}


def _too_short(budget: Budget, plan: Plan, least: Plan, seconds: float) -> RecipeError:
    epochs = plan.stages[-1].epochs_before + plan.stages[-1].epochs_given
    what = "one epoch" if epochs > 1 else "one step a stage"
    allowed = math.ceil(seconds / 5) * 5 if seconds < 600 else math.ceil(seconds / 60) * 60
    money = f" (${allowed / 3600 * budget.price:.2f})" if budget.price is not None else ""
    return RecipeError(
        f"--budget {budget.text} is not enough for {what} in total ({count_text(least.total_steps, 'step')}) on this machine",
        f"--budget {compact(allowed)}{money} or more, including set-up, measuring, evaluation and checkpoints",
        "give more time, or take a smaller model, image_size or data_fraction; nothing was written",
    )
