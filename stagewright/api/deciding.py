"""What decides the result of a run beside its pictures: recipe, initial weights, how it computed, hardware, versions.

Each function returns in which of these facts two runs differ. A fact that a run has not recorded, as in files of older versions
or in damaged ones, is not compared but named in ``unknown``: nobody can tell whether the runs are equal there.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import groupby
from typing import Any

from stagewright.recipe.differences import differing
from stagewright.report.read import RunRecord
from stagewright.rundir.event_kinds import Resumed, Started
from stagewright.rundir.initial_weights import WeightsFields, origin_text
from stagewright.text import count_text

_COSMETIC = ("name", "description")
_IDLE = re.compile(r"(checkpoints|data\.names|data\.images)\b")
_READING = re.compile(r"data\b")
_HARDWARE = ("platform", "cpu", "cores")
_VERSIONS = ("stagewright", "git_commit", "python", "torch", "torchvision", "timm", "numpy", "pillow")
_CPU = re.compile(r"CPU, (\d+) threads?")
"""How :func:`stagewright.system.device.device_name` calls a CPU."""
_NAMES = {"fresh ones": "tensors fresh", "unused ones": "tensors unused"}
"""Lists of names of tensors, which say nothing more where their numbers differ."""

Facts = Mapping[str, Any]
"""Facts by name; one that is not recorded is missing."""


@dataclass(frozen=True, slots=True)
class Different:
    """A field with different values in two runs; None where one does not have it."""

    name: str
    one: Any
    other: Any


def recipe_differences(
    one: RunRecord, other: RunRecord, *, same_data: bool, unknown: list[str]
) -> tuple[list[Different], list[Different]]:
    """Returns the fields of the recipes, and the number of updates, that differ, and those that differ without an effect.

    Without an effect are how often a run saves, paths and display names, how the data are read where these are the same
    (``same_data``), and the path of initial weights that are the same. Names and descriptions of recipes are not compared.
    """
    if "recipe" not in one.plan or "recipe" not in other.plan:
        unknown.append("recipe")
        return [], []

    def content(run: RunRecord) -> Facts:
        recipe = {name: value for name, value in run.plan["recipe"].items() if name not in _COSMETIC}
        return recipe | {"(updates)": run.plan.get("total_steps")}

    def is_idle(name: str) -> bool:
        by_path = name == "model.weights" and _same_file(one.weights, other.weights)
        return by_path or bool(_IDLE.match(name) or (same_data and _READING.match(name)))

    places = [Different(*place) for place in differing(content(one), content(other))]
    return [found for found in places if not is_idle(found.name)], [found for found in places if is_idle(found.name)]


def weights_differences(one: RunRecord, other: RunRecord, unknown: list[str]) -> list[Different]:
    """Returns where the initial weights come from, what of them was loaded, and what each stage trains, if it differs."""
    if one.weights is None or other.weights is None:
        unknown.append("initial weights")
        return []
    first, second = one.weights, other.weights
    origin = [Different("origin", origin_text(first), origin_text(second))] * (_identity(first) != _identity(second))
    found = _compared(_weight_facts(first), _weight_facts(second), [])
    counted = {place.name for place in found}
    return origin + [place for place in found if _NAMES.get(place.name) not in counted]


def computing_differences(one: RunRecord, other: RunRecord, unknown: list[str]) -> list[Different]:
    """Returns how the runs computed, if it differs: device, threads, precision, decoder, micro-batch size, values that were
    measured before the plan was made, and pictures that could not be read."""
    found = _compared(_computing(one), _computing(other), unknown, ("device", "threads", "decoder", "precision"))
    if one.status == other.status == "finished":
        found += _compared(_outcome(one), _outcome(other), unknown)
    return found


def hardware_differences(one: RunRecord, other: RunRecord, unknown: list[str]) -> list[Different]:
    """Returns the facts about the machines on which the runs began that differ."""
    return _compared(_from_env(one, _HARDWARE), _from_env(other, _HARDWARE), unknown, _HARDWARE)


def version_differences(one: RunRecord, other: RunRecord, unknown: list[str]) -> list[Different]:
    """Returns the versions with which the runs began that differ, also of the code that their recipes name."""

    def code(run: RunRecord) -> Facts:
        return {name: (digest or "")[:12] for name, digest in run.env.get("functions", {}).items()}

    found = _compared(_from_env(one, _VERSIONS), _from_env(other, _VERSIONS), unknown, _VERSIONS)
    mine, theirs = code(one), code(other)
    names = [name for name in {**mine, **theirs} if mine.get(name) != theirs.get(name)]
    unknown += [name for name in mine if name not in names and not mine[name]]  # there was no file to read
    return found + [Different(name, mine.get(name), theirs.get(name)) for name in names]


def _compared(one: Facts, other: Facts, unknown: list[str], wanted: Iterable[str] = ()) -> list[Different]:
    """Returns the facts that differ; those which one of both has not recorded, and of ``wanted`` also what neither has, are
    appended to ``unknown``."""
    names = list(dict.fromkeys([*wanted, *one, *other]))
    unknown += [name for name in names if name not in one or name not in other]
    return [
        Different(name, one[name], other[name])
        for name in names
        if name in one and name in other and one[name] != other[name]
    ]


def _from_env(run: RunRecord, names: Iterable[str]) -> Facts:
    return {name: run.env[name] for name in names if name in run.env}


def _computing(run: RunRecord) -> Facts:
    plan, found = run.plan, dict[str, Any]()
    if places := _places(run):
        found["device"] = _in_turn(name for name, _ in places)
        if all(threads != 0 for _, threads in places):
            found["threads"] = _in_turn(threads for _, threads in places)
    known = {"decoder": run.env.get("decoder"), "precision": plan.get("precision")}
    known["evaluation precision"] = plan.get("eval_precision")
    found |= {name: value for name, value in known.items() if value is not None}
    sizes = [stage["micro_batch_size"] for stage in run.stages if "micro_batch_size" in stage]
    if sizes:
        lowered = run.summary.get("guard", {}).get("micro_batch_size")  # where memory ran out
        found["micro-batch size"] = _in_turn([*sizes, lowered] if lowered else sizes)
    if lanes := [stage["lanes"] for stage in run.stages if "lanes" in stage]:
        found["lanes"] = _in_turn(lanes)
    if (measured := plan.get("measured")) is not None:
        found["learning rate of lr: auto"] = measured.get("lr")
        found["layers of train: upper"] = measured.get("upper")
    return found


def _outcome(run: RunRecord) -> Facts:
    """Returns what has happened to a finished run that its plan does not say."""
    stopped = run.summary.get("stopped_at") is not None
    return {
        "unreadable pictures": run.summary.get("unreadable", 0),
        "finished early, after updates": run.summary.get("step") if stopped else None,
    }


def _places(run: RunRecord) -> list[tuple[str, int | None]]:
    """Returns the name of the device and the number of threads of each process whose work the run has kept; None threads on a
    device on which they decide nothing, 0 where they are not recorded."""
    found: list[tuple[int, str, str | None]] = []
    for event in (one.event for one in run.log):
        if isinstance(event, Started | Resumed):
            found = [place for place in found if place[0] < event.step]  # later ones have done nothing that counts
            if event.device is not None:
                found.append((event.step, event.device.partition(":")[0], event.device_name))
    return [_place(device, name) for _, device, name in found]


def _place(device: str, name: str | None) -> tuple[str, int | None]:
    if device != "cpu":
        return name or device, None
    match = _CPU.fullmatch(name or "")
    return "CPU", int(match[1]) if match else 0


def _in_turn(values: Iterable[Any]) -> Any:
    """Returns the one value, or several in words: ``4, then 2``."""
    in_turn = [value for value, _ in groupby(values)]
    return in_turn[0] if len(in_turn) == 1 else ", then ".join(map(str, in_turn))


def _identity(found: WeightsFields) -> Facts:
    """Returns what tells initial weights apart, without paths."""
    origin = found.origin
    content = origin.model_dump(include={"kind", "library", "sha256"})
    if origin.kind in ("library", "function"):
        content["name"] = origin.name
    run: Any = origin.run
    if run:
        content |= {"plan_digest": run.plan_digest, "step": run.step, "weights": run.weights}
    return content


def _same_file(one: WeightsFields | None, other: WeightsFields | None) -> bool:
    """Whether both are known to come from the same file or run, wherever it lies."""
    if one is None or other is None or one.origin.kind not in ("file", "run"):
        return False
    return _identity(one) == _identity(other)


def _weight_facts(found: WeightsFields) -> Facts:
    """Returns what was loaded and what each stage trains. The steps of stages are the recipe's business."""
    tensors = found.tensors
    facts: dict[str, Any] = {
        "head": f"rows of {count_text(found.head_rows, 'class', 'classes')}" if found.head == "rows" else found.head,
        "tensors loaded": tensors.loaded + tensors.resampled,
        "tensors resampled": tensors.resampled,
        "tensors fresh": tensors.fresh,
        "tensors unused": tensors.skipped,
        "parameters loaded": found.parameters.loaded,
        "parameters": found.parameters.all,
        "fresh ones": found.fresh,
        "unused ones": [one.name for one in found.skipped],
    }
    trained = [stage.trains if stage.fit == "updates" else f"{stage.trains} to its optimum" for stage in found.stages]
    return {
        **facts,
        "trained parts": ", then ".join(part for part, _ in groupby(trained)),
        "trained parameters": _in_turn(stage.parameters for stage in found.stages),
    }
