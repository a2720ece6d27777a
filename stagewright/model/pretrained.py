"""Pretrained weights of torchvision and timm, fetched by the libraries themselves; a failed download says what to do.

Convention: what comes out is a state dict under the names of the library's own network with its own head, as it was
trained; :mod:`stagewright.model.weights` decides what of it fits.
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
from stagewright.model.weight_file import State


def torchvision_weights(found: ModelName) -> WeightsEnum:
    """torchvision's entry for the weights that the name means; without a tag those that it calls DEFAULT."""
    return torchvision.models.get_model_weights(found.name)[found.tag or "DEFAULT"]


def weights_of_torchvision(found: ModelName) -> tuple[State, str]:
    """torchvision's weights, and their name for a report; ModelError where they cannot be had.

    Its own builder makes the network that they belong to, as it knows how to read old files (DenseNet's).
    """
    weights = torchvision_weights(found)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    source = f"torchvision:{found.name}.{weights.name}"
    with _fetching(source, weights.url, f"put the file at {file}"):
        model = torchvision.models.get_model(found.name, weights=weights, progress=False)
    return model.state_dict(), source


def require_weights(found: ModelName) -> None:
    """ModelError where the library has no pretrained weights for the model; asks no network."""
    if found.library in ("stagewright", "python"):
        raise ModelError(
            f"model.weights: default: {found.name} has no pretrained weights",
            "none (random), a weights file, or the directory of an earlier run",
            "take a model of torchvision or timm (stagewright models lists them), or leave model.weights out",
        )
    if found.library == "timm" and not timm.is_model_pretrained(found.full_name):
        family = found.name.partition("_")[0]
        raise ModelError(
            f"model.weights: default: timm has no pretrained weights for {found.full_name}",
            f"of its kind it has some for {', '.join(timm.list_pretrained(f'{family}*')[:8]) or 'none'}",
            "take one of these, or leave model.weights out to start from random weights",
        )


def weights_of_timm(found: ModelName, arguments: Mapping[str, Any]) -> tuple[State, str]:
    """timm's weights for a network built with ``arguments``, and their name for a report.

    ModelError where they cannot be had.
    """
    config = timm.get_pretrained_cfg(found.full_name)
    assert config is not None, "require_weights comes first"
    if config.hf_hub_id:
        wanted = f"https://huggingface.co/{config.hf_hub_id}"
        folder = "models--" + config.hf_hub_id.replace("/", "--")
        place = f"copy the folder {folder} from a machine that has it into {HF_HUB_CACHE}"
    else:
        wanted = str(config.url)
        place = f"put the file into {Path(torch.hub.get_dir(), 'checkpoints')}"
    source = f"timm:{found.name}.{config.tag}" if config.tag else f"timm:{found.name}"
    with _fetching(source, wanted, place):
        model = timm.create_model(found.full_name, pretrained=True, **arguments)
    return model.state_dict(), source


@contextmanager
def _fetching(source: str, address: str, place: str) -> Iterator[None]:
    try:
        yield
    except MemoryError:
        raise
    except Exception as error:  # urllib, httpx, requests and huggingface_hub each have their own kinds
        text = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(
            f"the pretrained weights {source} could not be fetched from {address}: {text}",
            "a connection to that address, or a file that is there already",
            f"without one, {place}, or load a file of your own with model.weights: FILE",
        ) from error
