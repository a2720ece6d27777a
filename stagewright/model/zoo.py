"""Builds models by name: torchvision's, timm's, stagewright's and a person's own, for a number of classes and a picture size.

Convention: every model maps normalised pictures (B, 3, H, W) to logits (B, num_classes), in training mode too:
auxiliary heads are omitted. :mod:`stagewright.model.catalog` resolves names. torchvision and timm are imported only when a
model of theirs is built, because their imports take seconds.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import torch
from torch import nn

from stagewright.errors import ModelError
from stagewright.model.catalog import ModelName, find_model, model_names
from stagewright.model.catalog import list_models as list_models
from stagewright.model.cifar import cifar_preact_resnet18, cifar_resnet18
from stagewright.model.groups import modes_kept
from stagewright.model.heads import narrow_wide_head
from stagewright.model.own import build_own
from stagewright.model.vit import vit
from stagewright.model.weights import WeightsReport, transfer
from stagewright.system.memory import out_of_memory
from stagewright.text import nearest

log = logging.getLogger(__name__)

Numbers = tuple[float, float, float]
IMAGENET: tuple[Numbers, Numbers] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))
"""Mean and standard deviation of ImageNet's training pictures in [0, 1], by channel."""

_OWN: dict[str, Callable[..., nn.Module]] = {
    "cifar_resnet18": cifar_resnet18,
    "cifar_preact_resnet18": cifar_preact_resnet18,
    "vit": vit,
}
_INCEPTIONS = ("googlenet", "inception_v3")
"""torchvision's networks with auxiliary heads. Their weights need mean and std 0.5, which torchvision applies inside the
network (transform_input); here the normalisation does this, so that the network does not depend on its weights."""
_SET_HERE = frozenset(("num_classes", "weights", "progress", "pretrained", "aux_logits", "transform_input", "in_chans"))
_OUTSIDE_CLASS = {"MobileNetV3": ("width_mult", "reduced_tail", "dilated")}
"""Arguments of torchvision's builders that they do not pass to the network's class."""


def create_model(
    name: str,
    num_classes: int,
    *,
    image_size: int,
    drop_path: float | None = None,
    options: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> nn.Module:
    """The model ``name`` with ``num_classes`` outputs, on the CPU, initialised from torch's global generator.

    ``image_size`` is used by networks that are built for one size (ViTs, Swin, mixers); give the size of the last stage. Some
    of them also accept other sizes (tested by :func:`check_image_sizes`). ``options`` are further arguments of the network's
    constructor. ``drop_path`` is the stochastic-depth rate of the last block, which decreases linearly to the first (timm:
    drop_path_rate); with the option ``drop_path_mode: constant`` all blocks have this rate (networks of torchvision and
    cifar_*). ``pretrained`` loads the library's weights; if their number of classes is different, the head is a new one
    (:mod:`stagewright.model.heads`). ``python:module:function`` calls a user's function (:mod:`stagewright.model.own`).
    ModelError for unknown names, for options or sizes that do not fit, and for weights that are not available.
    """
    model, report = create_with_report(
        name, num_classes, image_size=image_size, drop_path=drop_path, options=options, pretrained=pretrained
    )
    for line in report.lines() if report else []:
        log.info(line)
    return model


def create_outline(
    name: str, num_classes: int, *, image_size: int, options: Mapping[str, Any] | None = None
) -> nn.Module:
    """The network of :func:`create_model` to be looked at: without memory for its tensors where it can be built so, and without
    a change to torch's generator."""
    arguments: dict[str, Any] = {"image_size": image_size, "options": options}
    try:
        with torch.device("meta"):
            return create_model(name, num_classes, **arguments)
    except ModelError:  # RegNets compute their widths with tensors, which fails on the meta device
        with torch.random.fork_rng(devices=[]):
            return create_model(name, num_classes, **arguments)


def create_with_report(
    name: str,
    num_classes: int,
    *,
    image_size: int,
    drop_path: float | None = None,
    options: Mapping[str, Any] | None = None,
    pretrained: bool = False,
) -> tuple[nn.Module, WeightsReport | None]:
    """Like :func:`create_model`; also returns the report on the pretrained weights, or None if none were loaded."""
    found = find_model(name)
    if found.note:
        log.info(found.note)
    if pretrained:
        from stagewright.model import pretrained as library_weights

        library_weights.require_weights(found)
    if found.library == "python":
        return build_own(found, num_classes, dict(options or {}), drop_path), None
    given = dict(options or {})
    mode = given.pop("drop_path_mode", "linear")
    _check_drop_path(found, drop_path, mode)
    build = {"stagewright": _build_stagewright, "torchvision": _build_torchvision, "timm": _build_timm}[found.library]
    model = build(found, num_classes, image_size, drop_path, given)
    if (found.library == "torchvision" and drop_path is not None) or (found.library == "stagewright" and drop_path):
        _set_drop_path(model, found, drop_path, constant=mode == "constant")
    narrow_wide_head(model, num_classes)
    if not pretrained:
        return model, None
    from stagewright.model import pretrained as library_weights

    if found.library == "torchvision":
        state, origin = library_weights.weights_of_torchvision(found)
    else:
        state, origin = library_weights.weights_of_timm(found, _timm_sizes(found, image_size) | given)
    return model, transfer(model, state, origin, num_classes)


def _build_stagewright(
    found: ModelName, num_classes: int, image_size: int, drop_path: float | None, given: dict[str, Any]
) -> nn.Module:
    build = _OWN[found.name]
    arguments = _arguments(build)
    _check_options(found, given, [name for name in arguments if name not in ("image_size", "drop_path")])
    sized = {"image_size": image_size} if "image_size" in arguments else {}
    return _built(found, given, arguments, lambda: build(num_classes, **sized, **given, drop_path=drop_path or 0.0))


def _build_torchvision(
    found: ModelName, num_classes: int, image_size: int, drop_path: float | None, given: dict[str, Any]
) -> nn.Module:
    import torchvision

    build = torchvision.models.get_model_builder(found.name)
    allowed = _torchvision_arguments(found)
    _check_options(found, given, allowed)
    arguments = builder_arguments(found, num_classes, image_size)
    return _built(found, given, allowed, lambda: build(**{**arguments, **given}))


def _build_timm(
    found: ModelName, num_classes: int, image_size: int, drop_path: float | None, given: dict[str, Any]
) -> nn.Module:
    import timm

    network = _timm_network(found)
    known = _arguments(network) if network else []
    _check_options(found, given, None)
    arguments = builder_arguments(found, num_classes, image_size) | given
    if drop_path is not None:
        arguments["drop_path_rate"] = drop_path
    return _built(found, given, known, lambda: timm.create_model(found.name, **arguments))


def builder_arguments(found: ModelName, num_classes: int, image_size: int) -> dict[str, Any]:
    """Returns the arguments that a network of torchvision or timm gets from its library's builder beside its options:
    ``torchvision.models.get_model(name, **arguments)``, ``timm.create_model(name, **arguments)``."""
    if found.library == "timm":
        return {"num_classes": num_classes, **_timm_sizes(found, image_size)}
    arguments: dict[str, Any] = {"weights": None, "num_classes": num_classes}
    if found.name in _INCEPTIONS:
        arguments |= {"aux_logits": False, "transform_input": False, "init_weights": True}
    allowed = _torchvision_arguments(found)
    if "image_size" in allowed:
        arguments["image_size"] = image_size
    if "input_size" in allowed:
        arguments["input_size"] = (image_size, image_size)
    return arguments


def _torchvision_arguments(found: ModelName) -> list[str]:
    import torchvision

    network = inspect.signature(torchvision.models.get_model_builder(found.name)).return_annotation
    return [*_arguments(network), *_OUTSIDE_CLASS.get(network.__name__, ())]


def _timm_network(found: ModelName) -> type | None:
    """Returns the class of timm's model if its entry point is annotated with it (1295 of 1371 models, timm 1.0.31), or None."""
    from timm.models import model_entrypoint

    network = inspect.signature(model_entrypoint(found.name)).return_annotation
    return network if inspect.isclass(network) and network is not inspect.Signature.empty else None


def _timm_sizes(found: ModelName, image_size: int) -> dict[str, Any]:
    network = _timm_network(found)
    wanted = {"img_size": image_size, "dynamic_img_size": True, "strict_img_size": False}
    known = _arguments(network) if network else []
    return {name: value for name, value in wanted.items() if name in known}


def _built(found: ModelName, given: dict[str, Any], known: list[str], build: Callable[[], nn.Module]) -> nn.Module:
    """Returns ``build()``; an error of the constructor about its arguments becomes a ModelError."""
    try:
        return build()
    except (TypeError, ValueError, AssertionError, AttributeError, LookupError, ArithmeticError, RuntimeError) as error:
        if "drop_path_rate" in str(error) and "drop_path_rate" not in given:
            raise _no_drop_path(found) from None
        if out_of_memory(error):
            raise
        text = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(
            f"{found} cannot be built with options {given}: {text}",
            f"arguments of its constructor: {', '.join(known)}" if known else "what its constructor takes",
            "correct or remove model.options, or change image_size",
        ) from error


def _arguments(network: Callable[..., Any]) -> list[str]:
    """Returns the names of the constructor's arguments that a recipe may set."""
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(network).parameters.values()
    return [parameter.name for parameter in parameters if parameter.kind in named and parameter.name not in _SET_HERE]


def _check_options(found: ModelName, given: dict[str, Any], allowed: list[str] | None) -> None:
    """Raises ModelError for options that stagewright sets itself and, unless ``allowed`` is None, for options not in it.

    torchvision does not report all unknown names: its ConvNeXt and MobileNetV3 accept any keyword and ignore it.
    """
    for name in given:
        if name in _SET_HERE:
            raise ModelError(
                f"model.options.{name} cannot be set",
                "arguments of the network itself; classes, weights and input channels follow from data and recipe",
                "remove it",
            )
        if allowed is not None and name not in allowed:
            raise ModelError(
                f"model.options: {found} takes no {name!r}{nearest(name, allowed)}",
                f"{', '.join(allowed)}; drop_path_mode",
                "correct or remove it",
            )


def _check_drop_path(found: ModelName, drop_path: float | None, mode: object) -> None:
    if mode not in ("linear", "constant"):
        raise ModelError(f"model.options.drop_path_mode is {mode!r}", "linear, constant", "correct or remove it")
    if mode == "constant" and (found.library == "timm" or found.name == "vit"):
        raise ModelError(
            f"model.options.drop_path_mode: constant: {found.name} is a network of timm, which only scales drop-path linearly",
            "linear; constant for torchvision's networks, cifar_resnet18 and cifar_preact_resnet18",
            "remove drop_path_mode, or use torchvision's network of this kind",
        )
    if drop_path is not None and not 0.0 <= drop_path < 1.0:
        raise ModelError(
            f"model.drop_path is {drop_path}",
            "a probability from 0 to below 1, e.g. 0.1",
            "correct it, or leave it out",
        )


def _set_drop_path(model: nn.Module, found: ModelName, rate: float, constant: bool) -> None:
    """Sets every StochasticDepth to ``rate``, or scales their rates so that the largest is ``rate``.

    This is done after building, because many of torchvision's builders (swin_t, maxvit_t) fix the constructor's argument.
    """
    from torchvision.ops import StochasticDepth

    layers = [module for module in model.modules() if isinstance(module, StochasticDepth)]
    if found.name == "vit":
        return
    if not layers:
        raise _no_drop_path(found)
    largest = max(layer.p for layer in layers)
    for layer in layers:
        layer.p = rate if constant else rate * layer.p / largest if largest else 0.0


def _no_drop_path(found: ModelName) -> ModelError:
    twin = f", timm:{found.name}" if found.library == "torchvision" and found.name in model_names("timm") else ""
    return ModelError(
        f"model.drop_path: {found} has no stochastic depth",
        "torchvision's swin, convnext, efficientnet and maxvit; most of timm's (those with drop_path_rate); "
        f"cifar_resnet18, cifar_preact_resnet18, vit{twin}",
        "leave model.drop_path out, or use such a model",
    )


def model_normalisation(name: str) -> tuple[Numbers, Numbers]:
    """Returns (mean, std) by channel, for images in [0, 1], that the pretrained weights of ``name`` need.

    Returns ImageNet's for models without pretrained weights. ModelError for an unknown name.
    """
    found = find_model(name)
    if found.library == "timm":
        import timm

        config = timm.get_pretrained_cfg(found.full_name)
        return (_three(config.mean), _three(config.std)) if config is not None else IMAGENET
    if found.name in _INCEPTIONS and found.library == "torchvision":
        return (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
    if found.library == "torchvision":
        from stagewright.model.pretrained import torchvision_weights

        view = torchvision_weights(found).transforms()
        return _three(view.mean), _three(view.std)
    return IMAGENET


def _three(values: Iterable[float]) -> Numbers:
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def check_image_sizes(model: nn.Module, sizes: Iterable[int], num_classes: int) -> None:
    """Runs an image of each of ``sizes`` (pixels) through the model in eval mode, and restores its modes.

    ModelError for the first size that the network does not accept, or for which its output is not (1, num_classes).
    """
    parameter = next(model.parameters())
    with modes_kept(model):
        model.eval()
        for size in sorted(set(sizes)):
            picture = torch.zeros(1, 3, size, size, device=parameter.device, dtype=parameter.dtype)
            try:
                with torch.no_grad():
                    shape = tuple(model(picture).shape)
            except (RuntimeError, ValueError, TypeError, AssertionError, LookupError, ArithmeticError) as error:
                if out_of_memory(error):
                    raise
                raise _wrong_size(model, size, str(error).strip().split("\n")[0]) from error
            if shape != (1, num_classes):
                raise _wrong_size(model, size, f"it yields {shape} instead of (1, {num_classes})")


def _wrong_size(model: nn.Module, size: int, why: str) -> ModelError:
    return ModelError(
        f"{type(model).__name__} does not accept pictures of {size} x {size} pixels: {why}",
        "sizes that suit the network: enough for its downsampling, and for transformers a multiple of the patch",
        "change image_size in the recipe and its stages, or use a network that accepts any size (ResNets, timm's ViTs)",
    )
