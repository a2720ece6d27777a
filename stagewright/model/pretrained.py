"""Loads pretrained weights of torchvision and timm through the libraries; errors of a failed download state what to do.

The result is the state dict of the library's own network, with the head that it was trained with;
:mod:`stagewright.model.weights` decides which tensors fit another network.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from huggingface_hub.constants import HF_HUB_CACHE
from torchvision.models import WeightsEnum

from stagewright.errors import ModelError
from stagewright.model.catalog import ModelName
from stagewright.model.origin import Origin
from stagewright.model.weight_file import State


def torchvision_weights(found: ModelName) -> WeightsEnum:
    """Returns torchvision's weights entry for the name; without a tag, the entry DEFAULT."""
    return torchvision.models.get_model_weights(found.name)[found.tag or "DEFAULT"]


def weights_of_torchvision(found: ModelName) -> tuple[State, Origin]:
    """Returns torchvision's state dict and where it comes from; ModelError if the weights are not available.

    The weights are loaded by torchvision's own builder, because it can convert old files (DenseNet's).
    """
    weights = torchvision_weights(found)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    trained_on = _trained_on(len(weights.meta.get("categories") or ()))
    origin = Origin("library", f"{found.name}.{weights.name}", "torchvision", trained_on)
    with _download_errors(origin.source, weights.url, f"put the file at {file}"):
        model = torchvision.models.get_model(found.name, weights=weights, progress=False)
    return model.state_dict(), origin


def require_weights(found: ModelName) -> None:
    """Raises ModelError if the library has no pretrained weights for the model; makes no network request."""
    if found.library in ("stagewright", "python"):
        raise ModelError(
            f"model.weights: default: {found.name} has no pretrained weights",
            "none (random), a weights file, or the directory of an earlier run",
            "use a model of torchvision or timm (stagewright models lists them), or leave model.weights out",
        )
    if found.library == "timm" and not timm.is_model_pretrained(found.full_name):
        family = found.name.partition("_")[0]
        raise ModelError(
            f"model.weights: default: timm has no pretrained weights for {found.full_name}",
            f"models of this family with pretrained weights: {', '.join(timm.list_pretrained(f'{family}*')[:8]) or 'none'}",
            "use one of these, or leave model.weights out to start from random weights",
        )


def weights_of_timm(found: ModelName, arguments: Mapping[str, Any]) -> tuple[State, Origin]:
    """Returns timm's state dict for a network built with ``arguments``, and where it comes from.

    Raises ModelError if the weights are not available.
    """
    config = timm.get_pretrained_cfg(found.full_name)
    assert config is not None, "require_weights comes first"
    if config.hf_hub_id:
        address = f"https://huggingface.co/{config.hf_hub_id}"
        folder = "models--" + config.hf_hub_id.replace("/", "--")
        place = f"copy the folder {folder} from a machine that has it into {HF_HUB_CACHE}"
    else:
        address = str(config.url)
        place = f"put the file into {Path(torch.hub.get_dir(), 'checkpoints')}"
    name = f"{found.name}.{config.tag}" if config.tag else found.name
    origin = Origin("library", name, "timm", _trained_on(config.num_classes))
    with _download_errors(origin.source, address, place):
        model = timm.create_model(found.full_name, pretrained=True, **arguments)
    return model.state_dict(), origin


def _trained_on(num_classes: int) -> str:
    """Returns ``ImageNet`` if weights with ``num_classes`` outputs have a label set of it that timm lists, else ""."""
    from timm.data.imagenet_info import infer_imagenet_subset

    return "ImageNet" if infer_imagenet_subset({"num_classes": num_classes}) is not None else ""


@contextmanager
def _download_errors(source: str, address: str, place: str) -> Iterator[None]:
    """Turns errors of a download into a ModelError; ``place`` tells the user where to put the file by hand."""
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # urllib, httpx, requests and huggingface_hub each have their own exception types
        text = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(
            f"the pretrained weights {source} could not be fetched from {address}: {text}",
            "a connection to that address, or the file in the local cache",
            f"without a connection, {place}, or load a file of your own with model.weights: FILE",
        ) from error
