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
from stagewright.model.weightfile import State


def torchvision_weights(name: str, tag: str = "") -> WeightsEnum:
    """torchvision's entry for the weights ``tag`` of its model ``name``; without a tag those that it calls DEFAULT."""
    weights = torchvision.models.get_model_weights(name)
    return weights[tag or "DEFAULT"]


def weights_of_torchvision(name: str, tag: str = "") -> tuple[State, str]:
    """torchvision's weights of ``name``, and their name for a report; ModelError where they cannot be had.

    Its own builder makes the network that they belong to, as it knows how to read old files (DenseNet's).
    """
    weights = torchvision_weights(name, tag)
    file = Path(torch.hub.get_dir(), "checkpoints", Path(weights.url).name)
    source = f"torchvision:{name}.{weights.name}"
    with _fetching(source, weights.url, f"put the file at {file}"):
        model = torchvision.models.get_model(name, weights=weights, progress=False)
    return model.state_dict(), source


def weights_of_timm(name: str, tag: str, arguments: Mapping[str, Any]) -> tuple[State, str]:
    """timm's weights of ``name``, for a network built with ``arguments``, and their name for a report.

    ModelError where there are none, or they cannot be had.
    """
    full = f"{name}.{tag}" if tag else name
    config = timm.get_pretrained_cfg(full)
    if config is None or not timm.is_model_pretrained(full):
        family = name.partition("_")[0]
        raise ModelError(
            f"model.weights: default: timm has no pretrained weights for {full}",
            f"of its kind it has some for {', '.join(timm.list_pretrained(f'{family}*')[:8]) or 'none'}",
            "take one of these, or leave model.weights out to start from random weights",
        )
    if config.hf_hub_id:
        wanted = f"https://huggingface.co/{config.hf_hub_id}"
        folder = "models--" + config.hf_hub_id.replace("/", "--")
        place = f"copy the folder {folder} from a machine that has it into {HF_HUB_CACHE}"
    else:
        wanted = str(config.url)
        place = f"put the file into {Path(torch.hub.get_dir(), 'checkpoints')}"
    source = f"timm:{name}.{config.tag}" if config.tag else f"timm:{name}"
    with _fetching(source, wanted, place):
        model = timm.create_model(full, pretrained=True, **arguments)
    return model.state_dict(), source


@contextmanager
def _fetching(source: str, address: str, place: str) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # urllib, httpx, requests and huggingface_hub each have their own kinds
        text = str(error).strip().split("\n")[0] or type(error).__name__
        raise ModelError(
            f"the pretrained weights {source} could not be fetched from {address}: {text}",
            "a connection to that address, or a file that is there already",
            f"without one, {place}, or load a file of your own with model.weights: FILE",
        ) from error
