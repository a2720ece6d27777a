"""The Bundle: a trained model in one folder, with class names, preprocessing, golden samples and a model card.

Convention: a Bundle's outputs are compared with those recorded when it was saved. Loading checks the hash of every file and
runs the golden samples through the whole chain (decode, crop, resize, normalise, network, in float32). It raises an error if
an output differs by more than :data:`TOLERANCE`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from stagewright.bundle.card import card, with_operating_point
from stagewright.bundle.description import Description, operating_point, plain
from stagewright.bundle.files import CARD, FORMAT, REMEDY, damaged, find_bundle, read_description
from stagewright.bundle.inputs import Inputs
from stagewright.bundle.network import Network
from stagewright.bundle.plain_torch import plain_torch
from stagewright.bundle.predict import Picture, answer
from stagewright.bundle.predictions import Prediction
from stagewright.bundle.preprocessing import Preprocessing, logits_of, upright
from stagewright.bundle.versions import changed_since, library_versions
from stagewright.data.images.decode import decode
from stagewright.data.images.limits import MOST_PIXELS
from stagewright.errors import BundleError, ModelError, RecipeError, StorageError
from stagewright.measures.operating import OperatingPoint
from stagewright.model.catalog import find_model
from stagewright.model.zoo import create_model
from stagewright.storage.files import make_folder, make_folders, read_parsed, sync_directory, user_path
from stagewright.storage.folders import replace_folder
from stagewright.storage.json_text import parse_json, parse_object
from stagewright.system.machine import fast_bfloat16

MAX_GOLDEN = 16
TOLERANCE = 1e-3
"""Largest difference between a logit and the recorded one, as a share of the largest recorded logit (of 0.1 if all are
smaller). Measured differences of MobileNetV2 with 15 photos: other batch sizes and numbers of threads 1.4e-6; a mean that is
wrong by 0.015 in one channel 1.6e-2; a crop of 0.876 instead of 0.875 4e-2; bicubic instead of bilinear 0.17."""


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """The description of a Bundle's model. ``model``, ``options``, ``drop_path`` and ``image_size`` are create_model's."""

    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    image_size: int
    """Side in pixels for which the network was built; its inputs have the side ``preprocessing.image_size``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    drop_path: float | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    """Facts about the training, for the model card: accuracies in percent, which weights, plan digest, data."""
    fold: bool = True
    """Whether batch norms are folded into convolutions for predictions on CPUs."""
    operating: OperatingPoint = field(default_factory=OperatingPoint)
    """When it answers which class."""
    close_margin: float | None = None
    """Difference of two logits below which a prediction in bfloat16 is made again in float32, on CPUs that are faster in
    bfloat16; None: all predictions are in float32."""
    names: Mapping[str, str] = field(default_factory=dict)
    """Display names of classes; a class that it does not name is shown by its own name."""

    @property
    def shown(self) -> tuple[str, ...]:
        """The classes by the names that people see."""
        return tuple(self.names.get(name, name) for name in self.classes)

    def build(self) -> nn.Module:
        """Returns the network with random weights, on the CPU."""
        return create_model(
            self.model,
            len(self.classes),
            image_size=self.image_size,
            drop_path=self.drop_path,
            options=self.options,
        )


@dataclass(frozen=True, slots=True)
class Bundle:
    """A trained model, loaded from its folder and checked; it is in eval mode and on its device."""

    folder: Path
    spec: BundleSpec
    model: nn.Module
    versions: Mapping[str, str]
    """Versions of the libraries with which it was saved."""
    network: Network = field(repr=False, compare=False)
    """What predicts: the model, on CPUs with its batch norms folded."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        return self.spec.classes

    @property
    def preprocessing(self) -> Preprocessing:
        return self.spec.preprocessing

    def predict(
        self,
        inputs: Picture | Iterable[Picture] | Inputs,
        batch_size: int = 32,
        topk: int = 5,
        max_pixels: int = MOST_PIXELS,
        operating: OperatingPoint | None = None,
    ) -> Iterator[Prediction]:
        """Yields a Prediction for each of ``inputs``, in order and lazily: one image or many, also of several kinds.

        An image is a path (also of a folder, a table of paths, or a glob), a Pillow image, a uint8 array (height, width, 3) in
        the order RGB or (height, width) in grey, a uint8 tensor (3, height, width), the bytes of an image file, or a file opened
        with ``rb``. OpenCV has the order BGR: give ``image[:, :, ::-1]``.
        A Prediction has the ``topk`` most probable classes (all if there are fewer) by their display names, with softmax
        probabilities; equal ones keep their order. For an unreadable image it has an ``error``; the others are still predicted.
        Equal inputs in equal batches give equal bits on one machine. A file above ``max_pixels`` is unreadable. DataError where
        a path, folder or glob has no images, and for an input of another type, dtype or shape.

        ``operating`` decides on :attr:`Prediction.answer`; None: the operating point that is stored in the Bundle.
        """
        point = (self.spec.operating if operating is None else operating).checked(self.classes)
        network = self.network.present()
        return answer(network, self.spec.shown, self.preprocessing, inputs, batch_size, topk, max_pixels, point)


def save_bundle(
    folder: Path, model: nn.Module, spec: BundleSpec, golden: Sequence[tuple[bytes | Image.Image, str]]
) -> None:
    """Writes the Bundle of ``model`` to ``folder``, completely or not at all; it replaces an earlier one.

    ``golden`` are samples: either the bytes of an image file with its extension, or an image, which is stored as PNG. The first
    16 are used. Their logits are computed as after loading, in float32 on the CPU, and recorded. BundleError if the weights do
    not match ``spec`` or a sample is not an image; StorageError if the disk cannot be written.
    """
    # Created now and not when the files are written: a run that is moved or deleted meanwhile must not reappear.
    make_folders(folder.parent)
    found = find_model(spec.model)
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}
    _require_finite(folder, tensors)
    rebuilt = _network(spec, _with_weights(spec, tensors, folder), "fp32").present()
    samples = [_sample(at, data, ext) for at, (data, ext) in enumerate(golden[:MAX_GOLDEN])]
    logits = _golden_logits(rebuilt, spec.preprocessing, samples, folder)
    files = {
        "weights.safetensors": save(tensors),
        "golden.safetensors": save({"logits": logits}, metadata={"classes": json.dumps(spec.classes)}),
        **{f"golden/{name}": data for name, data in samples},
    }
    content: dict[str, Any] = {
        "format": FORMAT,
        "model": {
            "name": f"{found.library}:{found.name}",
            "options": dict(spec.options),
            "drop_path": spec.drop_path,
            "image_size": spec.image_size,
            "parameters": sum(parameter.numel() for parameter in model.parameters()),
        },
        "num_classes": len(spec.classes),
        "classes": list(spec.classes),
        "preprocessing": asdict(spec.preprocessing),
        "training": dict(spec.training),
        "versions": library_versions(),
        "golden": [name for name, _ in samples],
        **({} if spec.fold else {"fold": False}),
        **({} if spec.close_margin is None else {"close_margin": spec.close_margin}),
        **({"names": dict(spec.names)} if spec.names else {}),
        **({"operating": asdict(spec.operating)} if spec.operating else {}),
    }
    code = plain_torch(content["model"], len(spec.classes), content["preprocessing"])
    files[CARD] = with_operating_point(card(content, code), spec.operating).encode()
    content["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["model.json"] = (json.dumps(content, indent=1, ensure_ascii=False, default=plain) + "\n").encode()
    _write(folder, files)


def _sample(at: int, data: bytes | Image.Image, extension: str) -> tuple[str, bytes]:
    if isinstance(data, Image.Image):
        buffer = BytesIO()
        upright(data).save(buffer, format="PNG")
        return f"{at:02d}.png", buffer.getvalue()
    plain = "".join(letter for letter in extension.lower() if letter.isalnum())
    return f"{at:02d}.{plain or 'img'}", data


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """Writes ``files`` to a temporary folder and renames it: even after a crash, ``folder`` is the old or the new Bundle."""
    fresh = folder.with_name(f".{folder.name}.new")
    shutil.rmtree(fresh, ignore_errors=True)
    make_folder(fresh)
    try:
        (fresh / "golden").mkdir()
        for name, data in files.items():
            with (fresh / name).open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
        for directory in (fresh / "golden", fresh):
            sync_directory(directory)
        replace_folder(fresh, folder)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise StorageError(
            f"the model cannot be written to {folder}: {error.strerror or error}",
            "a disk with free space that this user may write",
            "free some space, then resume the run: it writes the model again from its last checkpoint",
        ) from error


def load_bundle(
    folder_or_run: Path | str,
    device: str | torch.device = "cpu",
    verify: bool = True,
    precision: Literal["auto", "fp32"] = "auto",
) -> Bundle:
    """Loads and checks the Bundle in a folder, or in ``model/`` of a run's directory.

    Every file's SHA-256 is compared with the one in ``model.json``; with ``verify`` the golden samples are run on ``device``
    and compared. With ``precision`` auto, a Bundle that allows it predicts in bfloat16 on a CPU that is faster in it, and again
    in float32 where two classes are close. BundleError names a missing or damaged file, or the sample whose output differs and by
    how much.
    """
    folder = find_bundle(user_path(folder_or_run))
    content = read_description(folder)
    spec = _spec(content)
    files = _files(folder, content.files)
    try:
        tensors = load(files["weights.safetensors"])
    except (KeyError, SafetensorError) as error:
        raise damaged(folder / "weights.safetensors", error) from None
    _require_finite(folder, tensors)
    model = _with_weights(spec, tensors, folder, content.versions).to(device)
    network = _network(spec, model, precision)
    if verify:
        _verify(folder, network.exact(), spec, content, files)
    return Bundle(folder, spec, model, content.versions, network)


def _network(spec: BundleSpec, model: nn.Module, precision: Literal["auto", "fp32"]) -> Network:
    margin = spec.close_margin if precision == "auto" and fast_bfloat16() else None
    return Network(model, spec.preprocessing.image_size, spec.fold, margin)


def _spec(content: Description) -> BundleSpec:
    return BundleSpec(
        model=content.model.name,
        classes=content.classes,
        preprocessing=Preprocessing(**content.preprocessing.model_dump()),
        image_size=content.model.image_size,
        options=content.model.options,
        drop_path=content.model.drop_path,
        training=content.training,
        fold=content.fold,
        operating=operating_point(content),
        close_margin=content.close_margin,
        names=content.names,
    )


def _files(folder: Path, hashes: Mapping[str, str]) -> dict[str, bytes]:
    """Reads the files that model.json lists, checks their hashes and returns their bytes by name."""
    files: dict[str, bytes] = {}
    for name, expected in hashes.items():
        if name == CARD:
            continue  # documentation, which people may edit
        path = folder / name
        try:
            files[name] = read_parsed(path, partial(_checked_hash, path, expected))
        except FileNotFoundError:
            raise BundleError(f"{path} is missing", f"the {len(hashes)} files that model.json lists", REMEDY) from None
    return files


def _checked_hash(path: Path, expected: str, data: bytes) -> bytes:
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise BundleError(
            f"{path} is not the file that was saved (SHA-256 {found[:12]}..., recorded {expected[:12]}...)",
            "files as stagewright has written them",
            REMEDY,
        )
    return data


def _require_finite(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Raises BundleError if a weight or an output is infinity or NaN, since such a network cannot classify."""
    if not_finite := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise BundleError(
            f"{folder}: {len(not_finite)} of {len(tensors)} tensors contain infinity or NaN, e.g. {not_finite[0]}",
            "finite weights",
            "take an earlier checkpoint (train --weights RUN/checkpoints/step_...), or train with a lower learning rate",
        )


def _with_weights(
    spec: BundleSpec, tensors: Mapping[str, Tensor], folder: Path, versions: Mapping[str, str] | None = None
) -> nn.Module:
    """Returns the network of ``spec`` with the weights ``tensors``, in eval mode; BundleError if they do not match it."""
    with torch.random.fork_rng(devices=[]):  # building draws random weights
        try:
            model = spec.build()
            model.load_state_dict(tensors, strict=True)
        except RecipeError as error:  # a user's function that cannot be imported or called
            raise BundleError(
                f"{folder}: its network is made by {spec.model}, which this Bundle does not hold: {error.given}",
                "the code that the network was trained with, importable here",
                error.remedy,
            ) from error
        except (ModelError, RuntimeError) as error:
            raise BundleError(
                f"{folder}: the weights do not fit {spec.model} as it is built here: {str(error).strip()[:400]}",
                f"the network they were trained in{changed_since(versions or {})}",
                "install the versions with which the Bundle was saved"
                if versions
                else "check the model's name and options",
            ) from error
    return model.eval()


def _verify(folder: Path, model: nn.Module, spec: BundleSpec, content: Description, files: Mapping[str, bytes]) -> None:
    try:
        golden = files["golden.safetensors"]
        recorded = load(golden)["logits"]
        size = int.from_bytes(golden[:8], "little")  # of the header; safetensors reads metadata only from files
        classes = tuple(parse_json(parse_object(golden[8 : 8 + size])["__metadata__"]["classes"].encode()))
    except (AttributeError, KeyError, TypeError, ValueError, SafetensorError) as error:
        raise damaged(folder / "golden.safetensors", error) from None
    if classes != spec.classes:
        pairs = enumerate(zip(classes, spec.classes, strict=False))
        at, (then, now) = next(((at, pair) for at, pair in pairs if pair[0] != pair[1]), (0, ("", "")))
        raise BundleError(
            f"{folder}: class {at} of model.json is {now!r}, but was {then!r} when the model was saved",
            "class names in the order in which the model was trained",
            REMEDY,
        )
    samples = [(name, files[f"golden/{name}"]) for name in content.golden]
    logits = _golden_logits(model, spec.preprocessing, samples, folder)
    if logits.shape != recorded.shape:
        raise damaged(folder / "golden.safetensors", ValueError(f"logits {tuple(recorded.shape)}"))
    for (name, _), now, then in zip(samples, logits, recorded, strict=True):
        _require_same(f"{folder}: the model's output has changed: on golden/{name}", spec, now, then, content)


def _require_same(where: str, spec: BundleSpec, now: Tensor, then: Tensor, content: Description) -> None:
    drift = float((now - then).abs().max())
    allowed = TOLERANCE * max(0.1, float(then.abs().nan_to_num(0.0).max()))
    if not drift <= allowed:
        names = [spec.classes[int(row.argmax())] for row in (then, now)]
        raise BundleError(
            f"{where} a logit differs by {drift:.3g} (the class was {names[0]!r}, now it is {names[1]!r})",
            f"differences up to {allowed:.3g}{changed_since(content.versions)}",
            "install the versions with which it was saved, or copy the folder again from where it was made; "
            "load_bundle(..., verify=False) loads it without this check",
        )


def _golden_logits(model: nn.Module, view: Preprocessing, samples: Sequence[tuple[str, bytes]], folder: Path) -> Tensor:
    """Returns the logits of the golden samples, float32 (N, classes) on the CPU; BundleError if one is infinity or NaN."""
    views = []
    for name, data in samples:
        try:
            views.append(view.view(decode(data)))
        except (OSError, ValueError) as error:
            raise BundleError(
                f"golden sample {name} cannot be read: {error}", "pictures that Pillow can read", REMEDY
            ) from None
    if not views:
        return torch.zeros(0, 0)
    logits = logits_of(model, view.batch(views, next(model.parameters()).device)).cpu()
    _require_finite(
        folder, {f"the logits of golden/{name}": row for (name, _), row in zip(samples, logits, strict=True)}
    )
    return logits
