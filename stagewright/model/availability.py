"""Whether pretrained weights can be had, found out without fetching them: in a cache, from a host that answers, in a file.

Nothing here waits longer than it is told to, and nothing is written.
"""

from __future__ import annotations

import json
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

_COMMON = (
    *("mobilenet_v2", "mobilenet_v3_large", "mobilenet_v3_small", "resnet18", "resnet34", "resnet50", "resnet101"),
    *("efficientnet_b0", "convnext_tiny", "swin_t", "vit_b_16", "densenet121"),
)
"""What a weights file without a telling name is held against; building one of them without memory takes milliseconds."""
_SAME = 0.95
"""A file with this share of a network's tensors by name and shape, the head's aside, is of that network."""
_WRAPPED = re.compile(r"^(?:module\.|_orig_mod\.)+")
_OFFLINE = ("STAGEWRIGHT_OFFLINE", "HF_HUB_OFFLINE")


@dataclass(frozen=True, slots=True)
class Source:
    """Where a library's pretrained weights for a model are."""

    address: str
    """That they are fetched from."""
    file: Path | None
    """That they lie in already; None: they would be fetched."""

    @property
    def host(self) -> str:
        """The name of the machine in the address."""
        return urlsplit(self.address).hostname or self.address


@dataclass(frozen=True, slots=True)
class Architecture:
    """A network as a recipe names it."""

    model: str
    options: Mapping[str, Any] = field(default_factory=dict)


def library_source(found: ModelName) -> Source | None:
    """Where ``model.weights: default`` would take the weights of ``found`` from; None where there are none."""
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
    """Whether the host of ``address`` answers for it within ``seconds``, by the proxies that downloads would use.

    False at once where STAGEWRIGHT_OFFLINE or HF_HUB_OFFLINE is set. The wait is bounded whatever hangs, also the
    look-up of the name, which knows no time limit of its own.
    """
    if any(os.environ.get(name, "").lower() not in ("", "0", "false", "no") for name in _OFFLINE):
        return False
    found: list[bool] = []

    def ask() -> None:
        try:
            with urlopen(Request(address, method="HEAD"), timeout=seconds) as reply:
                found.append(reply.status < 400)
        except (OSError, ValueError):  # URLError and HTTPError are OSErrors; ValueError: no address at all
            found.append(False)

    asking = threading.Thread(target=ask, name="stagewright-reach", daemon=True)
    asking.start()
    asking.join(seconds)
    return bool(found and found[0])


def architecture_of(source: Path) -> Architecture | None:
    """Which network the weights in ``source`` belong to: a run or Bundle says so, a file is held against common networks.

    The file's name may hint at any network of torchvision; its tensors decide. None where none fits, or what is there
    is damaged: loading it will say so. Unreadable where it cannot be read now.
    """
    try:
        path, _ = locate(source)
        card = path.with_name("model.json")
        if path.name == "weights.safetensors" and card.is_file():
            told = read_parsed(card, json.loads)["model"]
            return Architecture(str(told["name"]), dict(told["options"]))
        state, _ = read_tensors(path)
    except Unreadable:
        raise
    except (ModelError, StorageError, OSError, ValueError, KeyError, TypeError):
        return None
    shapes = {_WRAPPED.sub("", name): tensor.shape for name, tensor in state.items()}
    hinted = [name for name in model_names("torchvision") if name in path.stem.lower()]
    for name in dict.fromkeys([*sorted(hinted, key=len, reverse=True), *_COMMON]):
        if _share(name, shapes) >= _SAME:
            return Architecture(name)
    return None


def _share(name: str, shapes: Mapping[str, torch.Size]) -> float:
    """Share of the network's tensors that ``shapes`` has; of the tensors with a row for each class, the names count."""
    from stagewright.model.zoo import create_model

    classes = 1009  # no network has a layer of that width, so that the head's tensors are known by it
    try:
        with torch.device("meta"):
            ours: State = create_model(name, classes, image_size=224).state_dict()
    except ModelError:  # RegNets compute their widths with tensors, and need memory to be built
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
    """The weights of ``repository`` in huggingface_hub's cache, in any of the names that timm looks for."""
    from huggingface_hub.constants import HF_HUB_CACHE

    folder = Path(HF_HUB_CACHE, "models--" + repository.replace("/", "--"), "snapshots")
    names = ("model.safetensors", "open_clip_model.safetensors", "pytorch_model.bin", "open_clip_pytorch_model.bin")
    found = (file for name in names for file in folder.glob(f"*/{name}"))
    return next((file for file in found if file.is_file()), None)
