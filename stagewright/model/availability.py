"""Finds out whether pretrained weights are available, without downloading them: in a cache, on a reachable host, or in a file.

All network requests have a time limit, and nothing is written.
"""

from __future__ import annotations

import os
import re
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import torch

from stagewright.errors import ModelError, StorageError, Unreadable
from stagewright.model.catalog import ModelName, model_names
from stagewright.model.weight_file import State, locate, read_tensors
from stagewright.storage.files import read_parsed
from stagewright.storage.json_text import parse_object

_COMMON = (
    *("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_16", "densenet121"),
)
"""Networks that a weights file is compared with; building one of them on torch's meta device takes milliseconds."""
_MIN_SHARE = 0.95
"""A file belongs to a network if it has at least this share of its tensors by name and shape, the head excluded."""
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
_OFFLINE = ("STAGEWRIGHT_OFFLINE", "HF_HUB_OFFLINE")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a library's pretrained weights for a model are."""

    address: str
    """URL from which they are downloaded."""
    file: Path | None
    """File in the local cache; None if they would have to be downloaded."""

    @property
    def host(self) -> str:
        """The host name in the address."""
        return urlsplit(self.address).hostname or self.address


@dataclass(frozen=True, slots=True)
class _Architecture:
    """A network as a recipe specifies it: name and constructor options."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)


def library_source(found: ModelName) -> Source | None:
    """Returns where ``model.weights: default`` gets the weights of ``found``, or None if the library has none."""
    checkpoints = Path(torch.hub.get_dir(), "checkpoints")
    if found.library == "torchvision":
        from stagewright.model.pretrained import torchvision_weights

        address = torchvision_weights(found).url
        return Source(address, _existing(checkpoints / address.rpartition("/")[2]))
    if found.library == "timm":
        import timm

        config = timm.get_pretrained_cfg(found.full_name)
        if config is None or not timm.is_model_pretrained(found.full_name):
            return None
        if config.hf_hub_id:
            return Source(f"https://huggingface.co/{config.hf_hub_id}", _in_hub_cache(str(config.hf_hub_id)))
        address = str(config.url)
        return Source(address, _existing(checkpoints / address.rpartition("/")[2]))
    return None


def answers(address: str, seconds: float) -> bool:
    """Returns whether an HTTP request for ``address`` succeeds within ``seconds``; it uses the same proxies as downloads.

    Returns False without a request if STAGEWRIGHT_OFFLINE or HF_HUB_OFFLINE is set. The request runs in a thread, so that the
    time limit also covers the DNS lookup, which has no timeout of its own.
    """
    if any(os.environ.get(name, "").lower() not in ("", "0", "false", "no") for name in _OFFLINE):
        return False
    found: list[bool] = []

    def ask() -> None:
        try:
            with urlopen(Request(address, method="HEAD"), timeout=seconds) as reply:
                found.append(reply.status < 400)
        except (OSError, ValueError):  # URLError and HTTPError are OSErrors; ValueError: not a URL
            found.append(False)

    asking = threading.Thread(target=ask, name="stagewright-reach", daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(found and found[0])


def architecture_of(source: Path) -> _Architecture | None:
    """Returns the network that the weights in ``source`` belong to, or None if it is unknown.

    A run or Bundle states its network. The tensors of any other file are compared with torchvision networks whose name occurs
    in the file's name, and then with common networks. Also returns None for a damaged file, because loading it reports the
    error. Raises Unreadable if the file cannot be read now.
    """
    try:
        path = locate(source).path
        card = path.with_name("model.json")
        if path.name == "weights.safetensors" and card.is_file():
            spec = read_parsed(card, parse_object)["model"]
            return _Architecture(str(spec["name"]), dict(spec["options"]))
        state = read_tensors(path).state
    except Unreadable:
        raise
    except (ModelError, StorageError, OSError, ValueError, KeyError, TypeError):
        return None
    shapes = {_WRAPPED.sub("", name): tensor.shape for name, tensor in state.items()}
    hinted = [name for name in model_names("torchvision") if name in path.stem.lower()]
    for name in dict.fromkeys([*sorted(hinted, key=len, reverse=True), *_COMMON]):
        if _share(name, shapes) >= _MIN_SHARE:
            return _Architecture(name)
    return None


def _share(name: str, shapes: Mapping[str, torch.Size]) -> float:
    """Returns the share, in [0, 1], of the network's tensors that ``shapes`` has with the same name and shape.

    For tensors with one row per class, the number of rows may differ.
    """
    from stagewright.model.zoo import create_model

    classes = 1009  # no network has a layer of this width, so it identifies the head's tensors
    try:
        with torch.device("meta"):
            ours: State = create_model(name, classes, image_size=224).state_dict()
    except ModelError:  # RegNets compute their widths with tensors, which fails on the meta device
        ours = create_model(name, classes, image_size=224).state_dict()
    counted = {key: tensor.shape for key, tensor in ours.items() if not key.endswith("num_batches_tracked")}
    same = sum(
        key in shapes and (shapes[key] == shape or (shape[:1] == (classes,) and shapes[key][1:] == shape[1:]))
        for key, shape in counted.items()
    )
    return same / len(counted)


def _existing(file: Path) -> Path | None:
    return file if file.is_file() else None


def _in_hub_cache(repository: str) -> Path | None:
    """Returns the weights file of ``repository`` in huggingface_hub's cache, under any file name that timm uses, or None."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE, "models--" + repository.replace("/", "--"), "snapshots")
    names = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
    found = (file for name in names for file in folder.glob(f"*/{name}"))
    return next((file for file in found if file.is_file()), None)
