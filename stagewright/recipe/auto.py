"""auto: chooses an ordinary recipe from facts about data and machine, and gives a reason for each choice.

The functions are pure and do not use torch: the same facts give the same recipe. What the user has set (``--model``,
``--weights``, ``--img-size``, ...) is part of the facts, so that the other values are chosen to fit it. Numbers without
another source come from ``benchmarks/auto.py``; docs/auto.md explains the rules to users.
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

_SMALL_PX = 64
"""Largest side in pixels of small images; a training from scratch uses them at their own size."""
_LARGE_SET = 100_000
"""Smallest number of images for training a large network from scratch."""
_MIN_MIX_EPOCHS = 80
"""Smallest number of epochs from scratch for mixup and cutmix; in shorter trainings they reduce the accuracy."""
_MIN_HEAD_STEPS = 150
"""Smallest number of updates of a new head; with a frozen body they cost very little time."""
_MIN_UPDATES = 60
"""Smallest number of updates of the body, however few images there are."""
_MIN_VAL_FOR_HEAD = 50
"""Smallest number of validation images for saying that the head suffices, as ``stop.head_suffices`` has it."""
_MOST_FOR_ALL_VIEWS, _MOST_FOR_VIEWS = 5_000, 20_000
"""Largest numbers of training images for 8 and for 4 cached views. MobileNetV2's features at 160 px are 50 kB a view."""
_MIN_VAL_IMAGES = 1_000
"""Smallest number of validation images for choosing the best of a run's evaluations. With 270 images, several evaluations
had only one error, and the first of them, from the middle of the run, was chosen."""
_MIN_IMBALANCE = 10.0
"""Smallest ratio of the largest class to the smallest one at which rare classes are sampled more often."""
_CIFAR_NETWORKS = ("cifar_resnet18", "cifar_preact_resnet18")
"""Networks for small images, whose first layers work at full resolution."""
_DEFAULTS = Recipe()
_CPU_NETWORKS = ("mobilenet_v2", "mobilenet_v3_large", "resnet18", "efficientnet_b0", "resnet50")
_CUDA_NETWORKS = ("resnet50", "convnext_tiny", "efficientnet_b0", "resnet18", "mobilenet_v2")
_TRANSFORMERS = re.compile(r"vit|swin|deit|beit|eva|mixer|xcit|cait|pit_|coat", re.IGNORECASE)
_SIZE_IN_NAME = re.compile(r"_(\d{3})(?:\D|$)")

EXPLANATION = """\
auto is the default recipe of train and plan. It is not a YAML file: it examines the pictures, the machine and the available
pretrained weights, and writes an ordinary recipe, with a reason for each choice, into the run's recipe.yaml.
`stagewright plan DATA` shows the choice before anything runs. Every flag and --set overrides it; the other values are chosen
to fit --model, --weights and --img-size.

Weights   --weights (a file, a run, default, none); else the library's, if they are stored on this machine or their host
          answers within 2 seconds; else random ones. Small pictures of digits or letters, or without colour, need none.
With pretrained weights
          as in finetune: mobilenet_v2 at 160 px on a CPU, resnet50 at 224 px on CUDA, for small pictures too; first the
          best head, found in seconds, then on a CPU the upper blocks on cached views, on CUDA everything; fewer pictures are
          trained for more epochs; the end of the run is the best of the head alone, the rest, and mixtures of both.
With random weights
          a small network for small sizes: cifar_resnet18 at the pictures' own size up to 64 px; on CUDA resnet18 or, from
          100,000 pictures on, resnet50 at up to 224 px; fewer pictures are trained for more epochs; mixing from 80 epochs on.
Flips     off for digits, letters, and pairs of classes that differ only by left and right.
Rare      classes are shown more often (sampling: square_root) if the largest class has 10 times as many pictures as the
          smallest.
Always    averaged weights (EMA); with fewer than 1,000 validation pictures the last weights instead of the best; batches of
          32 or 64 on a CPU, smaller if an epoch would have few updates.

docs/auto.md has the numbers; benchmarks compare auto with the recipes finetune and quick (`stagewright recipes show NAME`).
"""


@dataclass(frozen=True, slots=True)
class Reason:
    """The reason for the values of some fields of the recipe."""

    fields: tuple[str, ...]
    """Paths such as ``model.name``; a path includes all fields below it."""
    text: str
    """One sentence."""


def preferred_models(facts: Facts) -> tuple[str, ...]:
    """Returns networks with pretrained weights that suit the machine. The first may be downloaded; the others are used only if
    their weights are already on this machine."""
    if facts.choices.model is not None:
        return (facts.choices.model,)
    return _CUDA_NETWORKS if facts.device == "cuda" else _CPU_NETWORKS


def wants_pretrained(facts: Facts) -> bool:
    """Whether pretrained weights would be used if they are available; if not, the search for them can be skipped."""
    choices = facts.choices
    if choices.weights is not None:
        return choices.weights != "none"
    if choices.model is None and choices.options:
        return False  # options without a model's name can only belong to the small network trained from scratch
    return choices.model is not None or not shows_symbols(facts, _SMALL_PX)


def choose(facts: Facts) -> tuple[Recipe, tuple[Reason, ...]]:
    """Returns the recipe for ``facts`` and the reasons. The reasons name every field that differs from ``Recipe``'s
    defaults."""
    draft = _fine_tuned(facts) if facts.weights.value is not None else _from_scratch(facts)
    _adapt_to_data(draft, facts)
    where = "a CUDA device" if facts.device == "cuda" else f"{facts.cores} CPU core{'s'[: facts.cores != 1]}"
    head = f"for {facts.num_train:,} training pictures of {len(facts.classes):,} classes on {where}"
    recipe = draft.recipe.changed(name=NAME, description=f"chosen by auto {head}")
    return recipe, (Reason(("name", "description"), f"Chosen {head}."), *draft.reasons)


def changed_fields(recipe: Recipe, other: Recipe = _DEFAULTS) -> tuple[str, ...]:
    """Returns the paths of the fields in which ``recipe`` differs from ``other``: ``name``, or ``part.name`` for parts such as
    ``model``."""
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
    """A recipe under construction, with the reasons so far."""

    def __init__(self, base: Recipe) -> None:
        self.recipe = base
        self.reasons: list[Reason] = []

    def set_fields(self, text: str, fields: Mapping[str, Any]) -> None:
        """Sets ``fields`` (values by path) and records ``text`` as their reason."""
        self.recipe = recipes.apply(self.recipe, [f"{path}={json.dumps(value)}" for path, value in fields.items()])
        self.reasons.append(Reason(tuple(fields), f"{text}."))

    def explain_rest(self, text: str) -> None:
        """Records ``text`` as the reason for every changed field that has no reason yet."""
        named = {path for reason in self.reasons for path in reason.fields} | {"name", "description"}
        left = [path for path in changed_fields(self.recipe) if not named & {path, path.partition(".")[0]}]
        self.reasons.append(Reason(tuple(left), f"{text}."))


def _fine_tuned(facts: Facts) -> _Draft:
    draft = _Draft(recipes.load("finetune"))
    choices, weights = facts.choices, facts.weights
    model = choices.model or weights.model or preferred_models(facts)[0]
    options = {**(weights.options if model == weights.model else {}), **choices.options}
    draft.set_fields(f"Model {model} with pretrained weights: {weights.why}", _model(model, weights.value, options))
    size, why = _fine_tuned_size(facts, model)
    draft.set_fields(f"{size} px: {why}", {"image_size": size})
    batch, why = _batch(facts, 64 if facts.device == "cuda" else 32)
    draft.set_fields(f"Batches of {batch}: {why}", {"batch_size": batch})
    epochs, why = _fine_tuned_epochs(facts, batch)
    draft.set_fields(f"{epochs} epochs after the head: {why}", {"epochs": f"{epochs}ep"})
    _head(draft, facts, batch, epochs)
    if facts.device == "cpu":
        _upper(draft, facts)
    _flip(draft, facts)
    draft.explain_rest(
        "The rest is as in finetune: rates that fall towards the first layers, label smoothing, averaged weights"
    )
    return draft


def _head(draft: _Draft, facts: Facts, batch: int, epochs: int) -> None:
    """Sets how the head is found: its optimum, or updates if the network's head is no linear layer; and whether it may do."""
    flip = 0.0 if why_not_flip(facts) else 0.5
    if facts.linear_head:
        view = "one view of each picture" if not flip else "each picture and its mirror image"
        text = f"First the best head on the frozen body: the optimum on {view}, which costs little"
        draft.set_fields(text, {"stages.0.augment.flip": flip})
    else:
        head = _between(12, -(-_MIN_HEAD_STEPS * batch // facts.num_train), 60)
        stage = draft.recipe.to_dict()["stages"]
        assert isinstance(stage, list)
        views = {"crop": "none", "flip": 0.0}
        updates = {"name": "head", "train": "head", "epochs": f"{head}ep", "augment": views, "lr": 2e-3}
        stages = [updates, {**stage[1], "epochs": f"{epochs}ep"}]
        text = f"First {head} epochs of the new head on the frozen body: it is no linear layer, whose optimum could be found"
        draft.set_fields(text, {"stages": stages})
    if facts.num_val >= _MIN_VAL_FOR_HEAD:
        text = "The run ends with the head if that makes so few errors that nothing better could be told apart from it"
        draft.set_fields(text, {"stop.head_suffices": True})


def _upper(draft: _Draft, facts: Facts) -> None:
    """Trains only the upper blocks, on cached views where there are few enough images."""
    fields: dict[str, Any] = {
        "stages.1.name": "upper",
        "stages.1.train": "upper",
        "stages.1.lr.peak": 1e-3,
        "stages.1.lr.batch": 32,
    }
    text = (
        "Then the upper blocks, which is where a network must change for other pictures, at a third of the cost of all"
    )
    if facts.num_train <= _MOST_FOR_VIEWS:
        views = 8 if facts.num_train <= _MOST_FOR_ALL_VIEWS else 4
        fields["stages.1.cache"] = {"views": views}
        text += f"; what stands before them runs once over {views} views of each picture"
    draft.set_fields(text, fields)
    draft.set_fields("Evaluated every second epoch: the epochs are short", {"eval.every": "2ep"})


def _model(name: str, weights: str | None, options: Mapping[str, Any]) -> dict[str, Any]:
    return {"model.name": name, "model.weights": weights, "model.options": dict(options)}


def _fine_tuned_size(facts: Facts, model: str) -> tuple[int, str]:
    if facts.choices.image_size is not None:
        return facts.choices.image_size, "as asked for"
    if own := _SIZE_IN_NAME.search(model):
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


def _fine_tuned_epochs(facts: Facts, batch: int) -> tuple[int, str]:
    """Returns the epochs after the head, and the reason."""
    if facts.choices.epochs is not None:
        return facts.choices.epochs, "as asked for"
    shown, least, most = (60_000, 4, 20) if facts.device == "cuda" else (20_000 * max(1.0, facts.cores / 4), 3, 12)
    few = -(-_MIN_UPDATES * batch // facts.num_train)
    epochs = _between(max(least, few), round(shown / facts.num_train), max(most, few))
    return epochs, f"{facts.num_train:,} pictures are {'few' if epochs > 10 else 'enough'} for that"


def _from_scratch(facts: Facts) -> _Draft:
    draft = _Draft(Recipe())
    model, options, why = _small_network(facts)
    words = f" ({', '.join(f'{name} {value}' for name, value in options.items())})" if options else ""
    fields = _model(model, None, options)
    draft.set_fields(f"Model {model}{words} from random weights: {facts.weights.why}; {why}", fields)
    size, why = _scratch_size(facts, model)
    draft.set_fields(f"{size} px: {why}", {"image_size": size})
    epochs, why = _scratch_epochs(facts, size)
    draft.set_fields(f"{epochs} epochs: {why}", {"epochs": f"{epochs}ep"})
    batch, why = _batch(facts, 64 if facts.device == "cpu" else 256 if facts.num_train >= _LARGE_SET else 128)
    draft.set_fields(f"Batches of {batch}: {why}", {"batch_size": batch})
    _scratch_augmentation(draft, facts, epochs)
    _flip(draft, facts)
    _scratch_optimizer(draft, model)
    return draft


def _small_network(facts: Facts) -> tuple[str, dict[str, Any], str]:
    """Returns a network to train from scratch, its options, and the reason."""
    choices = facts.choices
    if choices.model is not None:
        return choices.model, dict(choices.options), "the network is the one asked for"
    if facts.device == "cuda" and facts.longest > _SMALL_PX:
        if facts.num_train >= _LARGE_SET:
            return "resnet50", dict(choices.options), "there are pictures enough for a large network"
        return "resnet18", dict(choices.options), "there are too few pictures for a larger network"
    if facts.device == "cuda":
        wide = 64 if facts.num_train >= 5_000 else 32
        return "cifar_resnet18", {"width": wide, **choices.options}, "the network is made for small pictures"
    wide = 32 if facts.cores >= 8 else 16
    return "cifar_resnet18", {"width": wide, **choices.options}, "the network is narrow, for a CPU"


def _scratch_size(facts: Facts, model: str) -> tuple[int, str]:
    if facts.choices.image_size is not None:
        return facts.choices.image_size, "as asked for"
    side = f"the shorter sides of the pictures are {facts.side:,} px (median)"
    if model in _CIFAR_NETWORKS:
        if facts.longest <= _SMALL_PX:
            return max(16, -(-facts.side // 4) * 4), side
        return _SMALL_PX, f"{side}, and the network works at full resolution, which is slow on more"
    if own := _SIZE_IN_NAME.search(model):
        return int(own[1]), "the size that the network is made for"
    if _TRANSFORMERS.search(model) and model != "vit":
        return 224, "the size that such networks are made for"
    most = 224 if facts.device == "cuda" else 128
    return _between(32 if model == "vit" else 96, -(-facts.side // 32) * 32, most), side


def _scratch_epochs(facts: Facts, size: int) -> tuple[int, str]:
    if facts.choices.epochs is not None:
        return facts.choices.epochs, "as asked for"
    if facts.device == "cuda":
        shown, least, most = 5_000_000.0, 30, 150
    else:
        shown, most = 400_000 * (facts.cores / 2) * (32 / size) ** 2, 60
        least = 20 if facts.num_train <= 10_000 else 8
    if shows_symbols(facts, _SMALL_PX):
        most = 40
    epochs = _between(least, round(shown / facts.num_train), most)
    many = "are seen often, being few" if facts.num_train < 10_000 else "need fewer passes, being many"
    return epochs, f"learning from nothing takes long, and {facts.num_train:,} pictures {many}"


def _scratch_augmentation(draft: _Draft, facts: Facts, epochs: int) -> None:
    """Sets crops, mixing and label smoothing of a training from scratch, and stages if the end of the run differs."""
    signs = shows_symbols(facts, _SMALL_PX)
    learn: dict[str, Any] = {"name": "learn", "epochs": 0.9}
    settle: dict[str, Any] = {"name": "settle", "epochs": 0.1}
    if signs:
        draft.set_fields("Crops of 70 % and more: signs lose their meaning when cut", {"augment.scale": [0.7, 1.0]})
    elif facts.longest <= _SMALL_PX:
        draft.set_fields("Crops after padding, as usual for small pictures", {"augment.crop": "pad"})
    else:
        settle["augment"] = {"scale": [0.6, 1.0]}
        fields = {"augment.scale": [0.35, 1.0], "stages": [learn, settle]}
        draft.set_fields(
            "Crops of 35 % and more, as things may be anywhere in a photo; of 60 % in the last tenth", fields
        )
    if epochs >= _MIN_MIX_EPOCHS and not signs:
        learn["mix"] = {"mixup": 0.2, "cutmix": 1.0}
        settle["label_smoothing"] = 0.1
        why = f"Mixing until the last tenth of the run, since {epochs} epochs are long enough for it; then label smoothing"
        draft.set_fields(why, {"stages": [learn, settle]})
    else:
        draft.set_fields("Label smoothing of 0.05: a small network is soon too sure", {"label_smoothing": 0.05})


def _scratch_optimizer(draft: _Draft, model: str) -> None:
    if model == "vit" or _TRANSFORMERS.search(model):
        fields = {"optimizer.name": "adamw", "optimizer.weight_decay": 0.05, "optimizer.clip_norm": 1.0}
        draft.set_fields("AdamW and clipped gradients: transformers do not learn well with SGD", fields)
        rate = {"lr.peak": 1e-3, "lr.batch": 256, "lr.cap": 1e-3, "lr.warmup": 0.1}
        draft.set_fields("Learning rate: a warm-up, which transformers need, then a cosine", rate)
    else:
        draft.set_fields("SGD with Nesterov momentum", {"optimizer.nesterov": True, "optimizer.weight_decay": 5e-4})
        peak, batch = (0.2, 64) if model in _CIFAR_NETWORKS else (0.1, 128)
        rate = {"lr.schedule": "one_cycle", "lr.peak": peak, "lr.batch": batch, "lr.cap": 0.8}
        rate |= {"lr.warmup": 0.25, "lr.div": 10, "lr.final_div": 100}
        draft.set_fields(f"Learning rate: one cycle up to {peak} (for batches of {batch}), which learns fast", rate)
    draft.set_fields(
        "Averaged weights (EMA) beside the raw ones, of which the better are taken", {"average.kind": "ema"}
    )
    if draft.recipe.image_size <= 128:
        draft.set_fields(
            "The whole square of a picture is judged: at few pixels there is no margin to spare", {"eval.crop": 1.0}
        )


def _flip(draft: _Draft, facts: Facts) -> None:
    if why := why_not_flip(facts):
        draft.set_fields(f"No flips: {why}", {"augment.flip": 0.0})
    else:
        draft.set_fields("Flips: nothing says that a mirrored picture means something else", {"augment.flip": 0.5})


def _batch(facts: Facts, most: int) -> tuple[int, str]:
    """Returns the batch size, at most ``most``, halved while an epoch would have fewer than 16 updates (but not below 8), and
    the reason."""
    if facts.choices.batch_size is not None:
        return facts.choices.batch_size, "as asked for"
    if facts.device == "cpu" and facts.memory_gb < 8:
        most = min(most, 32)
    batch = most
    while batch > 8 and facts.num_train / batch < 16:
        batch //= 2
    return (
        batch,
        "as usual" if batch == most else f"{facts.num_train:,} pictures would make few updates a pass with more",
    )


def _adapt_to_data(draft: _Draft, facts: Facts) -> None:
    """Sets what depends only on the data: sampling of rare classes, groups, and the choice of the final weights."""
    ratio = facts.largest / max(1, facts.smallest)
    if ratio >= _MIN_IMBALANCE:
        text = f"Rare classes are shown more often: the largest has {ratio:,.0f} times the pictures of the smallest"
        draft.set_fields(text, {"sampling": "square_root"})
    if facts.groups:
        draft.set_fields(
            f"Groups ({facts.groups:,}) stay together in the split, so that the validation speaks of new ones", {}
        )
    if facts.num_val < _MIN_VAL_IMAGES:
        few = f"{facts.num_val:,} validation pictures are too few to tell the best of many evaluations"
        draft.set_fields(
            f"The weights at the end are taken, where the rate has come to rest: {few}", {"eval.select": "last"}
        )


def _between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
