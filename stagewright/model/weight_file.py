"""Reads weights files: state dicts, also those nested in training checkpoints.

Files are read with ``weights_only=True``, so code in them is never run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load
from torch import Tensor

from stagewright.errors import ModelError, Unreadable
from stagewright.model.origin import RunOrigin
from stagewright.storage.files import read_parsed, unreadable, user_path
from stagewright.storage.json_text import parse_object

State = dict[str, Tensor]

_WRAPPERS = (
    *("state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema"),  # before the raw weights, as in timm
    *("state_dict", "model_state_dict", "model_state", "model", "net", "network", "weights", "module", "params"),
)
# Checkpoints of timm contain its arguments, others contain scores as NumPy scalars.
_SAFE_TYPES: list[Any] = [argparse.Namespace, np.dtype, np.float64(0).__reduce__()[0]]
_SAFE_TYPES += [type(np.dtype(kind)) for kind in ("f4", "f8", "i4", "i8")]


class _Located(NamedTuple):
    """A weights file, and what stands beside it."""

    path: Path
    classes: list[str] | None = None
    """The class names of the ``model.json`` of a Bundle; None without one."""
    run: RunOrigin | None = None
    """The run of which it is the model or a checkpoint; None for other files."""


class _Tensors(NamedTuple):
    """The content of a weights file."""

    state: State
    """The tensors by name, on the CPU."""
    note: str
    """A sentence that names the entry of the file with the tensors; "" if they are at the top level."""
    sha256: str
    """Of the file, hexadecimal."""


def locate(source: Path) -> _Located:
    """Returns the file with the tensors, and what is known about it from a ``model.json`` or ``meta.json`` next to it.

    ``source`` is that file, a Bundle, or a run's directory. Raises ModelError if there is no such file or model.json is damaged.
    """
    source = user_path(source)
    if os.path.isdir(source):
        found = [folder / "weights.safetensors" for folder in (source / "model", source)]
        path = next((file for file in found if file.is_file()), None)
        if path is None:
            states = sorted(source.glob("checkpoints/*/state.pt"))
            raise ModelError(
                f"{source} holds no trained model (no model/weights.safetensors)",
                "a weights file, or the directory of a run that has finished",
                f"stagewright finish {source} makes one of its checkpoint; or use a checkpoint itself: {states[-1]}"
                if states
                else "check the path",
            )
    elif os.path.isfile(source):
        path = source
    else:
        raise ModelError(
            f"weights {str(source)!r}: there is no such file or directory",
            "default (the library's pretrained weights), a .pth, .pt, .bin or .safetensors file, or a run's directory",
            "check the path; relative paths are resolved against the current directory",
        )
    card = path.with_name("model.json")
    if path.name != "weights.safetensors" or not card.is_file():
        return _Located(path, run=_run_of_checkpoint(path))
    try:
        content = read_parsed(card, parse_object)
        return _Located(path, _class_names(content), _run_of_bundle(path, content))
    except ValueError as error:
        raise ModelError(
            f"{card} is damaged: {error}",
            "the model.json that was written with the weights",
            "restore it from a copy, or copy the weights file to another folder and load it from there (without class names)",
        ) from None


def _class_names(content: Mapping[str, object]) -> list[str]:
    names = content.get("classes")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError("classes is not a list of names")
    return names


def _run_of_bundle(path: Path, content: Mapping[str, object]) -> RunOrigin | None:
    """Returns the run that made the Bundle with the weights ``path``; None if its model.json names none."""
    told = content.get("training")
    training: Mapping[str, object] = told if isinstance(told, Mapping) else {}
    digest, step, weights = (training.get(name) for name in ("plan_digest", "step", "weights"))
    if not isinstance(digest, str) or not isinstance(step, int) or not isinstance(weights, str):
        return None
    folder = path.parent.parent if path.parent.name == "model" else path.parent
    return RunOrigin(str(folder), digest, step, weights)


def _run_of_checkpoint(path: Path) -> RunOrigin | None:
    """Returns the run of the checkpoint ``checkpoints/STEP/state.pt``; None for other files, and if its meta.json is damaged."""
    folder = path.parent
    if path.name != "state.pt" or folder.parent.name != "checkpoints":
        return None
    try:
        meta = read_parsed(folder / "meta.json", parse_object)
    except (FileNotFoundError, ValueError):
        return None
    digest, step = meta.get("plan_digest"), meta.get("step")
    if not isinstance(digest, str) or not isinstance(step, int):
        return None
    return RunOrigin(str(folder.parent.parent), digest, step, "raw")


def read_tensors(path: Path) -> _Tensors:
    """Returns the tensors of the weights file ``path``.

    Raises ModelError for a file that is damaged, contains Python objects other than numbers and strings, or has no tensors;
    Unreadable if the file cannot be read now.
    """
    try:
        if path.suffix == ".safetensors":
            state, sha256 = read_parsed(path, lambda data: (load(data), _sha256(data)))
            return _Tensors(state, "", sha256)
        content, sha256 = read_parsed(path, lambda data: (_unpickled(data), _sha256(data)))
    except (Unreadable, FileNotFoundError) as error:
        raise error if isinstance(error, Unreadable) else unreadable(path, error) from error
    except SafetensorError as error:
        raise _unreadable(path, str(error)) from None
    except (
        Exception
    ) as error:  # torch.load's unpickler, zip reader and legacy reader raise many types for invalid files
        foreign = re.search(r"GLOBAL (\S+)", str(error))
        detail = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"[:160]
        why = f"it holds Python objects ({foreign[1]})" if foreign else f"it is not a file of torch.save ({detail})"
        raise _unreadable(path, why) from None
    state, keys = _unwrap(content)
    if not state:
        raise _unreadable(path, f"it has no tensors by name, but {_contents(content)}")
    return _Tensors(state, f"taken from its entry {'.'.join(keys)!r}" if keys else "", sha256)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _unpickled(data: bytes) -> object:
    with torch.serialization.safe_globals(_SAFE_TYPES):
        return torch.load(io.BytesIO(data), map_location="cpu", weights_only=True)


def _unwrap(content: object, depth: int = 0) -> tuple[State, list[str]]:
    if not isinstance(content, Mapping) or depth > 3:
        return {}, []
    for key in _WRAPPERS:
        if isinstance(content.get(key), Mapping):
            state, keys = _unwrap(content[key], depth + 1)
            if state:
                return state, [key, *keys]
    return {str(name): tensor for name, tensor in content.items() if isinstance(tensor, Tensor)}, []


def _contents(content: object) -> str:
    if not isinstance(content, Mapping):
        return f"a {type(content).__name__}"
    return f"entries {', '.join([str(key) for key in content][:6]) or 'of no kind'}"


def _unreadable(path: Path, why: str) -> ModelError:
    return ModelError(
        f"{path} cannot be read as weights: {why}",
        "a state dict as written by torch.save(model.state_dict(), ...) or safetensors, also inside a checkpoint "
        f"under one of {', '.join(_WRAPPERS[:7])}, ...",
        "convert it with the program that wrote it: torch.save(model.state_dict(), 'weights.pth')",
    )
