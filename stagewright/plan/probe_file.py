"""Reads what ``stagewright plan --probe --json`` has printed: the costs of a plan, measured on this machine or another."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from stagewright.errors import RecipeError
from stagewright.plan.cost import Costs
from stagewright.plan.plan import Plan
from stagewright.plan.probe_plan import cost_fields
from stagewright.recipe.schema import problems
from stagewright.storage.files import MISSING, read_user_file, unreadable
from stagewright.storage.json_text import parse_object
from stagewright.text import some

_COSTS: TypeAdapter[Costs] = TypeAdapter(Costs)
_MOST_BYTES = 64 << 20
_SAME = ("model", "optimizer", "channels_last", "compile", "deterministic", "decode", "interpolation")
"""Fields of a recipe that the cost of a step depends on, but for those of stages."""
_HOW = "measure this plan on one of the devices: stagewright plan ... --probe --json > probe.json"


def read_probe(path: Path, plan: Plan) -> Costs:
    """Returns the costs in the file ``path``, which were measured for a plan whose stages cost what those of ``plan`` do.

    RecipeError for a missing file, for one without costs, with others than numbers from 0, or of a plan with other costs;
    StorageError for a file that cannot be read.
    """
    try:
        content = parse_object(read_user_file(path, most=_MOST_BYTES))
    except OSError as error:
        if error.errno not in MISSING:
            raise unreadable(path, error) from error
        raise RecipeError(f"--from {path}: there is no such file", "what plan --probe --json prints", _HOW) from None
    except ValueError as error:
        raise RecipeError(f"--from {path}: {error}", "what plan --probe --json prints", _HOW) from None
    if not isinstance(content.get("costs"), dict):
        raise RecipeError(f"--from {path}: it has no costs", "what plan --probe --json prints", f"add --probe: {_HOW}")
    try:
        costs = _COSTS.validate_json(json.dumps(content["costs"]), strict=True)
    except ValidationError as error:
        raise RecipeError(f"--from {path}: {problems(error)}", "an unchanged file of --probe --json", _HOW) from None
    if not all(math.isfinite(value) and value >= 0 for value in _numbers(content["costs"])):
        raise RecipeError(f"--from {path}: a cost is no number from 0", "an unchanged file of --probe --json", _HOW)
    try:
        measured = Plan.from_json({name: content[name] for name in ("digest", *Plan.model_fields) if name in content})
    except RecipeError as error:
        raise RecipeError(f"--from {path}: {error.given}", "an unchanged file of --probe --json", _HOW) from None
    differing = _differing(measured, plan)
    if differing or len(costs.stages) != len(plan.stages):
        raise RecipeError(
            f"--from {path}: measured for another plan: {some(differing or ['the number of stages'])}",
            "a probe of the same stages; their lengths and learning rates may differ",
            _HOW,
        )
    return costs


def _differing(measured: Plan, plan: Plan) -> list[str]:
    """Returns what the two plans have differently of that which the cost of a step depends on."""
    ours, theirs = plan.recipe, measured.recipe
    found = [name for name in _SAME if getattr(ours, name) != getattr(theirs, name)]
    if plan.precision != measured.precision:
        found.append(f"precision ({measured.precision} there, {plan.precision} here)")
    if len(plan.stages) != len(measured.stages):
        return [*found, f"{len(measured.stages)} stages there, {len(plan.stages)} here"]
    for own, other in zip(plan.stages, measured.stages, strict=True):
        here, there = cost_fields(own, False), cost_fields(other, False)
        found += [
            f"{name} of stage {own.name!r} ({there.get(name)} there, {value} here)"
            for name, value in here.items()
            if value != there.get(name)
        ]
    return found


def _numbers(content: Any) -> Iterator[float]:
    """Yields all numbers in ``content``, of JSON."""
    if isinstance(content, dict | list):
        for value in content.values() if isinstance(content, dict) else content:
            yield from _numbers(value)
    elif isinstance(content, int | float) and not isinstance(content, bool):
        yield content
