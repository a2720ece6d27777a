"""auto: from facts about data and machine to an ordinary recipe, with a sentence of reason behind each choice.

Pure and without torch: the same facts give the same recipe. What a person has given (``--model``, ``--weights``,
``--img-size``, ...) is among the facts, so that the rest is chosen around it. Numbers without another source come from
``benchmarks/auto.py``; docs/auto.md tells the rules to people.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from stagewright.recipe import recipes
from stagewright.recipe.facts import Facts, shows_symbols, why_not_flip
from stagewright.recipe.recipe import Recipe

NAME = recipes.AUTO

_SMALL = 64
"""Pictures whose longest side is at most so many pixels are used at their size when training from scratch."""
_LARGE = 100_000
"""From so many pictures on, a large network can be trained from scratch."""
_MIXED = 80
"""From so many epochs from scratch on, pictures are mixed: in shorter trainings that costs more than it brings."""
_HEAD_STEPS = 150
"""Updates that a new head gets at least; on a frozen body they cost next to nothing."""
_TO_CHOOSE = 1_000
"""Validation pictures that it takes to choose between the evaluations of a run: of 270, the first of many that got all but
one right was the choice, from the middle of the run."""
_IMBALANCED = 10.0
"""From this ratio of the largest class to the smallest on, rare classes are shown more often."""
_OWN = ("cifar_resnet18", "cifar_preact_resnet18")
"""Networks that begin at full resolution."""
_DEFAULTS = Recipe()
_FOR_CPU = ("mobilenet_v2", "mobilenet_v3_large", "resnet18", "efficientnet_b0", "resnet50")
_FOR_CUDA = ("resnet50", "convnext_tiny", "efficientnet_b0", "resnet18", "mobilenet_v2")
_TRANSFORMERS = re.compile(r"vit|swin|deit|beit|eva|mixer|xcit|cait|pit_|coat", re.IGNORECASE)
_OWN_SIZE = re.compile(r"_(\d{3})(?:\D|$)")
_RATES = {"mobilenet_v2": (160, 65.0), "cifar_resnet18": (32, 450.0)}
"""Of networks that were measured: at so many pixels, pictures a second and core in training (cifar_resnet18: width 16)."""

EXPLANATION = """\
auto is the default of train and plan. It is no YAML file: it looks at the pictures, the machine and the pretrained weights
within reach, and writes an ordinary recipe, with a sentence of reason behind each choice, into the run's recipe.yaml.
`stagewright plan DATA` shows the choice before anything runs; every flag and --set overrides it, and the rest is chosen
around --model, --weights and --img-size.

Weights   --weights (a file, a run, default, none); else the library's, if they lie on this machine or their host answers
          within 2 seconds; else random ones. Small pictures of digits or letters, or without colour, need none.
With them as in finetune: mobilenet_v2 at 160 px on a CPU, resnet50 at 224 px on CUDA, for small pictures too; the head
          first, then everything, for more epochs the fewer pictures there are.
Without   a small network for small sizes: cifar_resnet18 at the pictures' own size up to 64 px, on CUDA resnet18 or, from
          100,000 pictures on, resnet50 at up to 224 px; more epochs for fewer pictures; mixing from 80 epochs on.
Flips     off for digits, letters, and classes that tell left from right.
Rare      classes are shown more often (sampling: square_root) where the largest has 10 times the smallest's pictures.
Always    averaged weights (EMA); with under 1,000 validation pictures the weights at the end, not the best of all; batches
          of 64 on a CPU, smaller where a pass would have few updates.

docs/auto.md has the numbers; `stagewright recipes show finetune` and `quick` are what it is measured against.
"""


@dataclass(frozen=True, slots=True)
class Reason:
    """Why some fields of the recipe are as they are."""

    fields: tuple[str, ...]
    """Paths such as ``model.name``; a path covers all below it."""
    text: str
    """One sentence."""


def preferred_models(facts: Facts) -> tuple[str, ...]:
    """Networks whose pretrained weights suit the machine: the first is the one to fetch, the others do if they are at hand."""
    if facts.asked.model is not None:
        return (facts.asked.model,)
    return _FOR_CUDA if facts.device == "cuda" else _FOR_CPU


def wants_pretrained(facts: Facts) -> bool:
    """Whether pretrained weights would be used if there were some; where not, nobody needs to look for them."""
    asked = facts.asked
    if asked.weights is not None:
        return asked.weights != "none"
    if asked.model is None and asked.options:
        return False  # without a model's name, they can only be meant for the small network
    return asked.model is not None or not shows_symbols(facts, _SMALL)


def choose(facts: Facts) -> tuple[Recipe, tuple[Reason, ...]]:
    """The recipe for ``facts``, and why: the reasons name every field in which it differs from a Recipe's defaults."""
    draft = _fine_tuned(facts) if facts.weights.value is not None else _from_scratch(facts)
    _for_the_data(draft, facts)
    where = "a CUDA device" if facts.device == "cuda" else f"{facts.cores} CPU core{'s'[: facts.cores != 1]}"
    head = f"for {facts.num_train:,} training pictures of {len(facts.classes):,} classes on {where}"
    recipe = draft.recipe.changed(name=NAME, description=f"chosen by auto {head}")
    return recipe, (Reason(("name", "description"), f"Chosen {head}."), *draft.reasons)


def differing(recipe: Recipe, other: Recipe = _DEFAULTS) -> tuple[str, ...]:
    """Paths of the fields, one level into parts such as ``model``, in which ``recipe`` differs from ``other``."""
    found: list[str] = []
    default = other.to_dict()
    for name, value in recipe.to_dict().items():
        usual = default[name]
        if value == usual:
            continue
        if isinstance(value, dict) and isinstance(usual, dict):
            found += [f"{name}.{key}" for key in value if value[key] != usual.get(key)]
        else:
            found.append(name)
    return tuple(found)


class _Draft:
    """A recipe in the making, with the reasons so far."""

    def __init__(self, base: Recipe) -> None:
        self.recipe = base
        self.reasons: list[Reason] = []

    def put(self, text: str, fields: Mapping[str, Any]) -> None:
        """Sets ``fields``, by path, for the reason ``text``."""
        self.recipe = recipes.override(self.recipe, [f"{path}={json.dumps(value)}" for path, value in fields.items()])
        self.reasons.append(Reason(tuple(fields), f"{text}."))

    def rest(self, text: str) -> None:
        """Gives ``text`` as the reason for every field that no reason names yet."""
        named = {path for reason in self.reasons for path in reason.fields} | {"name", "description"}
        left = [path for path in differing(self.recipe) if not named & {path, path.partition(".")[0]}]
        self.reasons.append(Reason(tuple(left), f"{text}."))


def _fine_tuned(facts: Facts) -> _Draft:
    draft = _Draft(recipes.load("finetune"))
    asked, weights = facts.asked, facts.weights
    model = asked.model or weights.model or preferred_models(facts)[0]
    options = {**(weights.options if model == weights.model else {}), **asked.options}
    draft.put(f"Model {model} with pretrained weights: {weights.why}", _model(model, weights.value, options))
    size, why = _fine_tuned_size(facts, model)
    draft.put(f"{size} px: {why}", {"image_size": size})
    batch, why = _batch(facts, 64)
    draft.put(f"Batches of {batch}: {why}", {"batch_size": batch})
    head, others, why = _fine_tuned_epochs(facts, batch)
    text = f"{head} epochs of the new head on the frozen body, which cost little, then {others} with the body: {why}"
    draft.put(text, {"epochs": f"{head + others}ep", **_shares(draft.recipe, head, others)})
    _flip(draft, facts)
    draft.rest(
        "The rest is as in finetune: rates that fall towards the first layers, label smoothing, averaged weights"
    )
    return draft


def _model(name: str, weights: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"model.name": name, "model.weights": weights, "model.options": dict(options)}


def _shares(recipe: Recipe, head: int, others: int) -> dict[str, float]:
    """Shares of the run for stages that train the head alone, ``head`` epochs in all, and for the others, as they were."""
    shares = [stage.epochs.value if stage.epochs else 1.0 for stage in recipe.stages]
    alone = [stage.train == "head" for stage in recipe.stages]
    found: dict[str, float] = {}
    for at, share in enumerate(shares[:-1]):
        whole = sum(other for other, same in zip(shares, alone, strict=True) if same == alone[at])
        found[f"stages.{at}.epochs"] = round(share / whole * (head if alone[at] else others) / (head + others), 3)
    return found | {f"stages.{len(shares) - 1}.epochs": round(1 - sum(found.values()), 3)}


def _fine_tuned_size(facts: Facts, model: str) -> tuple[int, str]:
    if facts.asked.image_size is not None:
        return facts.asked.image_size, "as asked for"
    if own := _OWN_SIZE.search(model):
        return int(own[1]), "the size that its weights were made for"
    if _TRANSFORMERS.search(model):
        return 224, "the size that weights of such networks are mostly made for"
    size, why = (
        (224, "the size of the weights") if facts.device == "cuda" else (160, "half the work of 224 px, on a CPU")
    )
    side = f"the shorter sides of the pictures are {facts.side:,} px (median)"
    if facts.side >= size:
        return size, f"{why}; {side}"
    return size, f"{side}, but weights from larger pictures do better when small ones are enlarged"


def _fine_tuned_epochs(facts: Facts, batch: int) -> tuple[int, int, str]:
    """Epochs of the head and of everything, and why."""
    shown, least, most = (60_000, 4, 30) if facts.device == "cuda" else (12_000 * max(1.0, facts.cores / 4), 2, 20)
    everything = _between(least, round(shown / facts.num_train), most)
    head = _between(12, -(-_HEAD_STEPS * batch // facts.num_train), 60)
    return head, everything, f"{facts.num_train:,} pictures are {'few' if everything > 10 else 'enough'} for that"


def _from_scratch(facts: Facts) -> _Draft:
    draft = _Draft(Recipe())
    model, options, why = _small_network(facts)
    words = f" ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else ""
    fields = _model(model, None, options)
    draft.put(f"Model {model}{words} from random weights: {facts.weights.why}; {why}", fields)
    size, why = _scratch_size(facts, model)
    draft.put(f"{size} px: {why}", {"image_size": size})
    epochs, why = _scratch_epochs(facts, size)
    draft.put(f"{epochs} epochs: {why}", {"epochs": f"{epochs}ep"})
    batch, why = _batch(facts, 64 if facts.device == "cpu" else 256 if facts.num_train >= _LARGE else 128)
    draft.put(f"Batches of {batch}: {why}", {"batch_size": batch})
    _scratch_pictures(draft, facts, epochs)
    _flip(draft, facts)
    _scratch_optimizer(draft, model)
    return draft


def _small_network(facts: Facts) -> tuple[str, dict[str, Any], str]:
    """A network to train from scratch, its options, and why it."""
    asked = facts.asked
    if asked.model is not None:
        return asked.model, dict(asked.options), "the network is the one asked for"
    if facts.device == "cuda" and facts.longest > _SMALL:
        if facts.num_train >= _LARGE:
            return "resnet50", dict(asked.options), "there are pictures enough for a large network"
        return "resnet18", dict(asked.options), "there are too few pictures for a larger network"
    if facts.device == "cuda":
        wide = 64 if facts.num_train >= 5_000 else 32
        return "cifar_resnet18", {"width": wide, **asked.options}, "the network is made for small pictures"
    wide = 32 if facts.cores >= 8 else 16
    return "cifar_resnet18", {"width": wide, **asked.options}, "the network is narrow, for a CPU"


def _scratch_size(facts: Facts, model: str) -> tuple[int, str]:
    if facts.asked.image_size is not None:
        return facts.asked.image_size, "as asked for"
    side = f"the shorter sides of the pictures are {facts.side:,} px (median)"
    if model in _OWN:
        if facts.longest <= _SMALL:
            return max(16, -(-facts.side // 4) * 4), side
        return _SMALL, f"{side}, and the network works at full resolution, which is slow on more"
    if own := _OWN_SIZE.search(model):
        return int(own[1]), "the size that the network is made for"
    if _TRANSFORMERS.search(model) and model != "vit":
        return 224, "the size that such networks are made for"
    most = 224 if facts.device == "cuda" else 128
    return _between(32 if model == "vit" else 96, -(-facts.side // 32) * 32, most), side


def _scratch_epochs(facts: Facts, size: int) -> tuple[int, str]:
    if facts.asked.epochs is not None:
        return facts.asked.epochs, "as asked for"
    if facts.device == "cuda":
        shown, least, most = 5_000_000.0, 30, 150
    else:
        shown, most = 400_000 * (facts.cores / 2) * (32 / size) ** 2, 60
        least = 20 if facts.num_train <= 10_000 else 8
    if shows_symbols(facts, _SMALL):
        most = 40
    epochs = _between(least, round(shown / facts.num_train), most)
    many = "are seen often, being few" if facts.num_train < 10_000 else "need fewer passes, being many"
    return epochs, f"learning from nothing takes long, and {facts.num_train:,} pictures {many}"


def _scratch_pictures(draft: _Draft, facts: Facts, epochs: int) -> None:
    """Crops, mixing, label smoothing and, where the end of the run is to differ, stages of a training from scratch."""
    signs = shows_symbols(facts, _SMALL)
    learn: dict[str, Any] = {"name": "learn", "epochs": 0.9}
    settle: dict[str, Any] = {"name": "settle", "epochs": 0.1}
    if signs:
        draft.put("Crops of 70 % and more: signs lose their meaning when cut", {"augment.scale": [0.7, 1.0]})
    elif facts.longest <= _SMALL:
        draft.put("Crops after padding, as usual for small pictures", {"augment.crop": "pad"})
    else:
        settle["augment"] = {"scale": [0.6, 1.0]}
        fields = {"augment.scale": [0.35, 1.0], "stages": [learn, settle]}
        draft.put("Crops of 35 % and more, as things may be anywhere in a photo; of 60 % in the last tenth", fields)
    if epochs >= _MIXED and not signs:
        learn["mix"] = {"mixup": 0.2, "cutmix": 1.0}
        settle["label_smoothing"] = 0.1
        why = f"Mixing until the last tenth of the run, since {epochs} epochs are long enough for it; then label smoothing"
        draft.put(why, {"stages": [learn, settle]})
    else:
        draft.put("Label smoothing of 0.05: a small network is soon too sure", {"label_smoothing": 0.05})


def _scratch_optimizer(draft: _Draft, model: str) -> None:
    if model == "vit" or _TRANSFORMERS.search(model):
        fields = {"optimizer.name": "adamw", "optimizer.weight_decay": 0.05, "optimizer.clip_norm": 1.0}
        draft.put("AdamW and clipped gradients: transformers do not learn well with SGD", fields)
        rate = {"lr.peak": 1e-3, "lr.batch": 256, "lr.cap": 1e-3, "lr.warmup": 0.1}
        draft.put("Learning rate: a warm-up, which transformers need, then a cosine", rate)
    else:
        draft.put("SGD with Nesterov momentum", {"optimizer.nesterov": True, "optimizer.weight_decay": 5e-4})
        peak, batch = (0.2, 64) if model in _OWN else (0.1, 128)
        rate = {"lr.schedule": "one_cycle", "lr.peak": peak, "lr.batch": batch, "lr.cap": 0.8}
        rate |= {"lr.warmup": 0.25, "lr.div": 10, "lr.final_div": 100}
        draft.put(f"Learning rate: one cycle up to {peak} (for batches of {batch}), which learns fast", rate)
    draft.put("Averaged weights (EMA) beside the raw ones, of which the better are taken", {"average.kind": "ema"})
    if draft.recipe.image_size <= 128:
        draft.put(
            "The whole square of a picture is judged: at few pixels there is no margin to spare", {"eval.crop": 1.0}
        )


def _flip(draft: _Draft, facts: Facts) -> None:
    if why := why_not_flip(facts):
        draft.put(f"No flips: {why}", {"augment.flip": 0.0})
    else:
        draft.put("Flips: nothing says that a mirrored picture means something else", {"augment.flip": 0.5})


def _batch(facts: Facts, most: int) -> tuple[int, str]:
    """The largest power of two that leaves a pass 16 updates and more, and why."""
    if facts.asked.batch_size is not None:
        return facts.asked.batch_size, "as asked for"
    if facts.device == "cpu" and facts.memory_gb < 8:
        most = min(most, 32)
    batch = most
    while batch > 8 and facts.num_train / batch < 16:
        batch //= 2
    return (
        batch,
        "as usual" if batch == most else f"{facts.num_train:,} pictures would make few updates a pass with more",
    )


def _for_the_data(draft: _Draft, facts: Facts) -> None:
    """What uneven classes, groups and missing parts ask for, whatever the network."""
    ratio = facts.largest / max(1, facts.smallest)
    if ratio >= _IMBALANCED:
        text = f"Rare classes are shown more often: the largest has {ratio:,.0f} times the pictures of the smallest"
        draft.put(text, {"sampling": "square_root"})
    if facts.groups:
        draft.put(
            f"Groups ({facts.groups:,}) stay together in the split, so that the validation speaks of new ones", {}
        )
    if facts.num_val < _TO_CHOOSE:
        few = f"{facts.num_val:,} validation pictures are too few to tell the best of many evaluations"
        draft.put(f"The weights at the end are taken, where the rate has come to rest: {few}", {"eval.select": "last"})


def expected_seconds(facts: Facts, recipe: Recipe) -> float | None:
    """About how long training takes, evaluations included; None where nothing was measured to tell it from."""
    known = _RATES.get(recipe.model.name)
    if known is None or facts.device == "cuda":
        return None
    pixels, rate = known
    width = recipe.model.options.get("width", 16)
    cost = (recipe.image_size / pixels) ** 2 * (width / 16) ** 1.5 / (rate * facts.cores)
    shown = 0.0
    for stage in recipe.resolved_stages():
        if stage.train == "head":  # on a frozen body: each picture once, forwards
            shown += (facts.num_train + facts.num_val) / 3
        elif stage.epochs is not None:
            epochs = stage.epochs.value * (recipe.epochs.value if stage.epochs.unit == "run" else 1.0)
            shown += epochs * (facts.num_train + facts.num_val / 3)
    return shown * cost


def expectation(facts: Facts, recipe: Recipe) -> tuple[Reason, ...]:
    """A sentence on how long training takes, where there is something to tell it from."""
    seconds = expected_seconds(facts, recipe)
    if seconds is None:
        return ()
    minutes = max(1, round(seconds / 60))
    length = f"{minutes} minute{'s'[: minutes != 1]}" if minutes < 90 else f"{minutes / 60:.0f} hours"
    return (Reason((), f"Training takes in the order of {length} on this machine."),)


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
