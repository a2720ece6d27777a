"""Collects the facts from which auto chooses a recipe: data set, machine, and available pretrained weights.

This is fast: sizes and classes are in the manifest, only a few images are opened to check for colour, and a download host is
contacted for at most :data:`PATIENCE` seconds, and only if its answer matters.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from stagewright.data.dataset import Dataset
from stagewright.errors import ModelError
from stagewright.model.availability import answers, architecture_of, library_source
from stagewright.model.catalog import find_model
from stagewright.model.groups import head_modules
from stagewright.model.zoo import create_model
from stagewright.plan.plan import Plan
from stagewright.recipe.auto import NAME, preferred_models, wants_pretrained
from stagewright.recipe.facts import Facts, UserChoices, Weights
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest
from stagewright.system.machine import cores, memory_bytes
from stagewright.system.named_functions import is_named

PATIENCE = 2.0
"""Seconds to wait for an answer of the host of pretrained weights."""
_LOOKED_AT = 16
_GRAY = 8
"""Largest difference between channels, in levels, of a grey image; in JPEGs of grey images they may differ by rounding."""


def choose_recipe(
    request: RecipeRequest, dataset: Dataset, device: torch.device, earlier: Plan | None = None
) -> tuple[Recipe, tuple[str, ...]]:
    """Returns the recipe that auto chooses for ``dataset`` on ``device``, and lines with the reasons.

    If auto has made the run's ``earlier`` plan for the same images, its recipe is used again: when a run is resumed, other
    weights may be available than at its beginning.
    """
    if earlier is not None and earlier.recipe.name == NAME and earlier.dataset.digest == dataset.manifest.digest:
        return request.reapply(earlier.recipe), ()
    recipe, reasons = request.resolve(survey(dataset, device, request.choices))
    first, *others = (reason.text for reason in reasons)
    return recipe, (f"Recipe auto: {first[0].lower()}{first[1:]}", *(f"- {text}" for text in others))


def survey(dataset: Dataset, device: torch.device, choices: UserChoices) -> Facts:
    """Returns the facts about ``dataset`` on ``device``, including the user's ``choices``."""
    manifest = dataset.manifest
    rows = manifest.rows("train")
    counts = np.bincount(manifest.labels[rows], minlength=len(manifest.classes))
    counts = counts[counts > 0]
    widths, heights = manifest.widths[rows], manifest.heights[rows]
    facts = Facts(
        source=manifest.source,
        classes=manifest.classes,
        num_train=len(rows),
        num_val=len(manifest.rows("val")),
        smallest=int(counts.min()),
        median=int(np.median(counts)),
        largest=int(counts.max()),
        side=int(np.median(np.minimum(widths, heights))),
        longest=int(max(widths.max(), heights.max())),
        one_size=bool((widths == widths[0]).all() and (heights == heights[0]).all()),
        gray=_gray_share(dataset, rows),
        groups=0 if manifest.groups is None else len(manifest.groups.drop_null().unique()),
        device="cuda" if device.type == "cuda" else "cpu",
        cores=cores(),
        memory_gb=_memory_gb(device),
        choices=choices,
    )
    facts = replace(facts, weights=find_weights(facts))
    return replace(facts, linear_head=_has_linear_head(facts))


def _has_linear_head(facts: Facts) -> bool:
    """Returns whether the head of the network that would be fine-tuned is one linear layer; True if there is none."""
    name = facts.choices.model or facts.weights.model
    if facts.weights.value is None or name is None or is_named(name):
        return True
    size = facts.choices.image_size or 224
    options = {**facts.weights.options, **facts.choices.options}
    try:
        with torch.random.fork_rng(devices=[]):
            model = create_model(name, len(facts.classes), image_size=size, options=options)
    except ModelError:
        return True  # the run explains what is wrong with it
    heads = head_modules(model)
    return len(heads) == 1 and isinstance(model.get_submodule(heads[0]), torch.nn.Linear)


def find_weights(facts: Facts) -> Weights:
    """Returns the initial weights: those the user requested, else those on this machine, else those that a host offers."""
    choices = facts.choices
    if choices.weights == "none":
        return Weights(None, None, "none were requested")
    if choices.weights == "default":
        return Weights("default", preferred_models(facts)[0], "the library's, as asked for")
    if choices.weights is not None:
        return _given(choices.weights, choices.model)
    if not wants_pretrained(facts):
        return Weights(None, None, "such pictures are small and simple enough to learn from alone")
    return _library_weights(preferred_models(facts))


def _given(source: str, model: str | None) -> Weights:
    name = Path(source).name
    if model is not None:
        return Weights(source, model, f"those of {name}, as asked for")
    found = architecture_of(Path(source))
    if found is None:
        return Weights(source, None, f"those of {name}, as asked for; which network they belong to could not be told")
    return Weights(source, found.model, f"those of {name}, which are of this network", found.options)


def _library_weights(models: tuple[str, ...]) -> Weights:
    """Returns the weights of the first of ``models`` if they are on this machine or their host answers, else those of the first
    model whose weights are on this machine."""
    sources = {model: library_source(find_model(model)) for model in models}
    for model, source in sources.items():
        if source is None:
            continue
        if source.file is not None:
            return Weights("default", model, f"the library's, which lie in {source.file.parent}")
        if model == models[0] and answers(source.address, PATIENCE):
            return Weights("default", model, f"the library's, from {source.host}, which answers")
    first = sources[models[0]]
    if first is None:
        return Weights(None, None, f"its library has no pretrained weights for {models[0]}")
    return Weights(None, None, f"none are on this machine, and {first.host} does not answer (--weights takes a file)")


def _gray_share(dataset: Dataset, rows: np.ndarray) -> float:
    """Returns the share of images without colour among a few evenly spaced ones; unreadable images count as coloured."""
    looked_at = rows[np.linspace(0, len(rows) - 1, min(_LOOKED_AT, len(rows))).astype(np.int64)]
    gray = 0
    for row in looked_at:
        try:
            pixels = np.asarray(dataset.images.load(int(row)).convert("RGB"), np.int16)
        except OSError:
            continue
        gray += int(np.ptp(pixels, axis=2).max() <= _GRAY)
    return gray / len(looked_at) if len(looked_at) else 0.0


def _memory_gb(device: torch.device) -> float:
    if device.type == "cuda":
        return torch.cuda.get_device_properties(device).total_memory / 2**30
    return (memory_bytes() or 0) / 2**30
