"""The Bundle: a trained model in one folder, with class names, preprocessing, golden samples and a card.

Convention: what a Bundle answers is checked against what it answered when it was saved. Loading hashes every file and
replays the golden samples through the whole chain (decode, crop, resize, normalise, network, in float32), and refuses
to run where an answer has drifted beyond :data:`TOLERANCE`.
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
from typing import Any

import torch
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor, nn

from stagewright.bundle.card import card
from stagewright.bundle.predict import Picture, answer
from stagewright.bundle.predictions import Prediction
from stagewright.bundle.preprocessing import Preprocessing, logits_of, upright
from stagewright.bundle.versions import changed_since, library_versions
from stagewright.data.images.decode import decode
from stagewright.errors import BundleError, ModelError, RecipeError, StorageError
from stagewright.model.catalog import find_model
from stagewright.model.zoo import create_model
from stagewright.storage.files import make_folder, make_folders, read_parsed, sync_directory, user_path

FORMAT = 1
"""Version of the folder's layout. A newer one is refused, an older one must stay readable."""
MAX_GOLDEN = 16
TOLERANCE = 1e-3
"""A logit may differ from the recorded one by this share of the largest recorded logit (0.1 where all are smaller).
Measured on MobileNetV2 with 15 photos: other batch sizes and numbers of threads 1.4e-6; a mean off by 0.015 in one channel
1.6e-2, a crop of 0.876 for 0.875 4e-2, bicubic for bilinear 0.17."""

_REMEDY = "take the folder anew from where it was made; load_bundle(..., verify=False) skips the golden samples only"


@dataclass(frozen=True, slots=True)
class BundleSpec:
    """What a Bundle says of its model. ``model``, ``options``, ``drop_path`` and ``image_size`` are create_model's."""

    model: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    image_size: int
    """That the network was built for; pictures are seen at ``preprocessing.image_size``."""
    options: Mapping[str, Any] = field(default_factory=dict)
    drop_path: float | None = None
    training: Mapping[str, Any] = field(default_factory=dict)
    """Facts for people, as JSON: accuracies in percent, which weights, plan digest, data."""

    def build(self) -> nn.Module:
        """The network with random weights, on the CPU."""
        return create_model(
            self.model,
            len(self.classes),
            image_size=self.image_size,
            drop_path=self.drop_path,
            options=self.options,
        )


@dataclass(frozen=True, slots=True)
class Bundle:
    """A trained model, read from its folder and checked: in eval mode, on its device."""

    folder: Path
    spec: BundleSpec
    model: nn.Module
    versions: Mapping[str, str]
    """Of the libraries that it was saved with."""

    @property
    def classes(self) -> tuple[str, ...]:
        """Names of the outputs, in their order."""
        return self.spec.classes

    @property
    def preprocessing(self) -> Preprocessing:
        return self.spec.preprocessing

    def predict(self, inputs: Picture | Iterable[Picture], batch_size: int = 32, topk: int = 5) -> Iterator[Prediction]:
        """What is in each of ``inputs``: paths, folders, globs or Pillow pictures, one or many; in order, lazily.

        A Prediction has the ``topk`` most probable classes (all, where there are fewer), softmax over all classes, equal
        ones in the classes' order. A picture that cannot be read has its ``error`` filled and stops nothing. The same
        inputs in the same batches give the same bits on one machine. DataError for a path, folder or glob that holds
        no picture.
        """
        return answer(self.model, self.spec.classes, self.spec.preprocessing, inputs, batch_size, topk)


def save_bundle(
    folder: Path, model: nn.Module, spec: BundleSpec, golden: Sequence[tuple[bytes | Image.Image, str]]
) -> None:
    """Writes the Bundle of ``model`` into ``folder``, whole or not at all, in place of an earlier one.

    ``golden`` are samples as the original bytes of a file and its extension, or as pictures, which are stored as PNG; the
    first 16 are kept. Their logits are recorded from the folder itself as it will be loaded: float32, on the CPU.
    BundleError where the weights do not fit ``spec`` or a sample is no picture, StorageError where the disk refuses.
    """
    # Now, not when it is written: a run that is moved or deleted meanwhile must not come back.
    make_folders(folder.parent)
    found = find_model(spec.model)
    tensors = {name: tensor.detach().to("cpu", copy=True).contiguous() for name, tensor in model.state_dict().items()}
    _require_finite(folder, tensors)
    rebuilt = _filled(spec, tensors, folder)
    samples = [_sample(at, data, ext) for at, (data, ext) in enumerate(golden[:MAX_GOLDEN])]
    logits = _replay(rebuilt, spec.preprocessing, samples, folder)
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
    }
    files["README.md"] = card(content).encode()
    content["files"] = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    files["model.json"] = (json.dumps(content, indent=1, ensure_ascii=False, default=_plain) + "\n").encode()
    _write(folder, files)


def _plain(value: Any) -> Any:
    """NumPy's and torch's numbers as Python's, all else (a Path, a date) as text."""
    return value.item() if hasattr(value, "item") else str(value)


def _sample(at: int, data: bytes | Image.Image, extension: str) -> tuple[str, bytes]:
    if isinstance(data, Image.Image):
        buffer = BytesIO()
        upright(data).save(buffer, format="PNG")
        return f"{at:02d}.png", buffer.getvalue()
    plain = "".join(letter for letter in extension.lower() if letter.isalnum())
    return f"{at:02d}.{plain or 'img'}", data


def _write(folder: Path, files: Mapping[str, bytes]) -> None:
    """All ``files`` below a temporary folder, then renamed: ``folder`` is the old or the new Bundle, also after a crash."""
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
        old = _old(folder)
        if folder.exists():
            shutil.rmtree(old, ignore_errors=True)
            folder.rename(old)
        fresh.rename(folder)
        sync_directory(folder.parent)
        shutil.rmtree(old, ignore_errors=True)
    except OSError as error:
        shutil.rmtree(fresh, ignore_errors=True)
        raise StorageError(
            f"the model cannot be written to {folder}: {error.strerror or error}",
            "a disk with room that this user may write",
            "make room, then resume the run: it writes the model anew from its last checkpoint",
        ) from error


def _old(folder: Path) -> Path:
    """Where the earlier Bundle lies while a new one takes its place."""
    return folder.with_name(f".{folder.name}.old")


def load_bundle(folder_or_run: Path | str, device: str | torch.device = "cpu", verify: bool = True) -> Bundle:
    """The Bundle in a folder, or in ``model/`` of a run's directory, checked.

    Every file's SHA-256 is compared with what ``model.json`` says; with ``verify`` the golden samples are replayed on
    ``device``. BundleError names the file that is missing or damaged, or the sample that drifted and how far.
    """
    folder = _located(user_path(folder_or_run))
    content = _content(folder)
    spec = _spec(folder, content)
    files = _files(folder, content["files"])
    try:
        tensors = load(files["weights.safetensors"])
    except (KeyError, SafetensorError) as error:
        raise _damaged(folder / "weights.safetensors", error) from None
    _require_finite(folder, tensors)
    model = _filled(spec, tensors, folder, content["versions"]).to(device)
    if verify:
        _verify(folder, model, spec, content, files)
    return Bundle(folder, spec, model, content["versions"])


def _located(given: Path) -> Path:
    for folder in (given, given / "model"):
        for place in (folder, _old(folder)):  # the old one where a crash hit between two renames
            if (place / "model.json").is_file():
                return place
    unfinished = (given / "plan.json").is_file()
    raise BundleError(
        f"{given} holds no trained model (no model.json)" if given.exists() else f"{given} does not exist",
        "the directory of a run that has finished, or the Bundle in its model/",
        f"the run has not finished: stagewright resume {given}" if unfinished else "check the path",
    )


def _content(folder: Path) -> dict[str, Any]:
    path = folder / "model.json"
    try:
        content = read_parsed(path, json.loads)
        newer = content["format"] > FORMAT
    except (FileNotFoundError, ValueError, KeyError, TypeError) as error:
        raise _damaged(path, error) from None
    if newer:
        raise BundleError(
            f"{path} is of format {content['format']}", f"formats up to {FORMAT}", "update stagewright: pip install -U"
        )
    return content


def _spec(folder: Path, content: Mapping[str, Any]) -> BundleSpec:
    try:
        model, view = content["model"], dict(content["preprocessing"])
        if len(content["classes"]) != content["num_classes"]:
            raise ValueError(f"{len(content['classes'])} classes are named, num_classes is {content['num_classes']}")
        if not (
            isinstance(content["files"], dict)
            and {f"golden/{name}" for name in content["golden"]} <= content["files"].keys()
        ):
            raise ValueError("files does not list the golden samples")
        if not isinstance(content["versions"], dict):
            raise ValueError("versions is no object")
        view |= {"mean": tuple(view["mean"]), "std": tuple(view["std"])}
        return BundleSpec(
            model=model["name"],
            classes=tuple(content["classes"]),
            preprocessing=Preprocessing(**view),
            image_size=model["image_size"],
            options=model["options"],
            drop_path=model["drop_path"],
            training=content["training"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise _damaged(folder / "model.json", error) from None


def _damaged(path: Path, error: Exception) -> BundleError:
    why = f"{error} is missing" if isinstance(error, KeyError) else str(error)
    return BundleError(f"{path} is damaged: {why}", "the file as stagewright wrote it", _REMEDY)


def _files(folder: Path, hashes: Mapping[str, str]) -> dict[str, bytes]:
    """The bytes of the files that model.json lists, each with the hash that it should have."""
    files: dict[str, bytes] = {}
    for name, expected in hashes.items():
        path = folder / name
        try:
            files[name] = read_parsed(path, partial(_as_saved, path, expected))
        except FileNotFoundError:
            raise BundleError(f"{path} is missing", f"the {len(hashes)} files that model.json lists", _REMEDY) from None
    return files


def _as_saved(path: Path, expected: str, data: bytes) -> bytes:
    if (found := hashlib.sha256(data).hexdigest()) != expected:
        raise BundleError(
            f"{path} is not the file that was saved (SHA-256 {found[:12]}..., recorded {expected[:12]}...)",
            "files as stagewright wrote them",
            _REMEDY,
        )
    return data


def _require_finite(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """BundleError where a weight or an answer is no finite number: such a network answers with nonsense."""
    if spoilt := [name for name, tensor in tensors.items() if not bool(torch.isfinite(tensor).all())]:
        raise BundleError(
            f"{folder}: {len(spoilt)} of {len(tensors)} tensors hold numbers that are not finite, e.g. {spoilt[0]}",
            "finite weights",
            "take an earlier checkpoint (train --weights RUN/checkpoints/step_...), or train with a lower learning rate",
        )


def _filled(
    spec: BundleSpec, tensors: Mapping[str, Tensor], folder: Path, versions: Mapping[str, str] | None = None
) -> nn.Module:
    """The network of ``spec`` with exactly ``tensors``, in eval mode."""
    with torch.random.fork_rng(devices=[]):  # building draws random weights: the caller's stream must not notice
        try:
            model = spec.build()
            model.load_state_dict(tensors, strict=True)
        except RecipeError as error:  # a function of one's own that cannot be imported or called
            raise BundleError(
                f"{folder}: its network is made by {spec.model}, which this Bundle does not hold: {error.given}",
                "the code that the network was trained with, importable here",
                error.remedy,
            ) from error
        except (ModelError, RuntimeError) as error:
            raise BundleError(
                f"{folder}: the weights do not fit {spec.model} as it is built here: {str(error).strip()[:400]}",
                f"the network they were trained in{changed_since(versions or {})}",
                "install the versions that the Bundle was saved with"
                if versions
                else "check the model's name and options",
            ) from error
    return model.eval()


def _verify(
    folder: Path, model: nn.Module, spec: BundleSpec, content: Mapping[str, Any], files: Mapping[str, bytes]
) -> None:
    try:
        golden = files["golden.safetensors"]
        recorded = load(golden)["logits"]
        size = int.from_bytes(golden[:8], "little")  # of the header, which safetensors reads from files alone
        classes = tuple(json.loads(json.loads(golden[8 : 8 + size])["__metadata__"]["classes"]))
    except (KeyError, TypeError, ValueError, SafetensorError) as error:
        raise _damaged(folder / "golden.safetensors", error) from None
    if classes != spec.classes:
        pairs = enumerate(zip(classes, spec.classes, strict=False))
        at, (then, now) = next(((at, pair) for at, pair in pairs if pair[0] != pair[1]), (0, ("", "")))
        raise BundleError(
            f"{folder}: class {at} of model.json is {now!r}, but was {then!r} when the model was saved",
            "class names in the order in which the model was trained",
            _REMEDY,
        )
    samples = [(name, files[f"golden/{name}"]) for name in content["golden"]]
    logits = _replay(model, spec.preprocessing, samples, folder)
    if logits.shape != recorded.shape:
        raise _damaged(folder / "golden.safetensors", ValueError(f"logits {tuple(recorded.shape)}"))
    for (name, _), now, then in zip(samples, logits, recorded, strict=True):
        _require_same(f"{folder}: the model no longer answers as it did: on golden/{name}", spec, now, then, content)


def _require_same(where: str, spec: BundleSpec, now: Tensor, then: Tensor, content: Mapping[str, Any]) -> None:
    drift = float((now - then).abs().max())
    allowed = TOLERANCE * max(0.1, float(then.abs().nan_to_num(0.0).max()))
    if not drift <= allowed:
        names = [spec.classes[int(row.argmax())] for row in (then, now)]
        raise BundleError(
            f"{where} a logit is off by {drift:.3g} (its class was {names[0]!r}, now {names[1]!r})",
            f"differences up to {allowed:.3g}{changed_since(content['versions'])}",
            "install the versions that it was saved with, or take the folder anew from where it was made; "
            "load_bundle(..., verify=False) loads it as it is",
        )


def _replay(model: nn.Module, view: Preprocessing, samples: Sequence[tuple[str, bytes]], folder: Path) -> Tensor:
    """Logits of the golden samples, float32 (N, classes) on the CPU: all in one batch. BundleError unless they are finite."""
    views = []
    for name, data in samples:
        try:
            views.append(view.view(decode(data)))
        except (OSError, ValueError) as error:
            raise BundleError(
                f"golden sample {name} cannot be read: {error}", "pictures that Pillow reads", _REMEDY
            ) from None
    if not views:
        return torch.zeros(0, 0)
    logits = logits_of(model, view.batch(views, next(model.parameters()).device)).cpu()
    _require_finite(
        folder, {f"the logits of golden/{name}": row for (name, _), row in zip(samples, logits, strict=True)}
    )
    return logits
