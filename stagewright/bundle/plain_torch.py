"""The lines of Python that load a Bundle's weights with PyTorch alone, for its model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from stagewright.model.catalog import find_model
from stagewright.model.zoo import builder_arguments

_LINE = 80


def plain_torch(model: Mapping[str, Any], num_classes: int, view: Mapping[str, Any]) -> list[str]:
    """Returns lines that build the network, load ``weights.safetensors`` and answer for a picture.

    ``model`` and ``view`` are ``model`` and ``preprocessing`` of ``model.json``. The network is its library's, or stagewright's
    where the library has none of that name; ModelError for a name that no library has.
    """
    module, build = _builder(model, num_classes)
    side, crop = view["image_size"], view["crop"]
    share = "" if crop == 1 else f"{crop!r} * "
    part = f"w = h = {share}min(picture.size)"
    if view["fit"] == "squash":
        part = f"w, h = {share}picture.width, {share}picture.height"
    return [
        f"import torch, {module}" if "." not in module else f"import torch\nfrom {module} import create_model",
        "from PIL import Image, ImageOps",
        "from safetensors.torch import load_file",
        "from torchvision.transforms import v2",
        "",
        f"model = {build}",
        'model.load_state_dict(load_file("weights.safetensors"))',
        "model.eval()",
        "",
        'picture = ImageOps.exif_transpose(Image.open("x.jpg")).convert("RGB")',
        part,
        "left, top = (picture.width - w) / 2, (picture.height - h) / 2",
        f"kind = Image.Resampling.{view['interpolation'].upper()}",
        f"picture = picture.resize(({side}, {side}), kind, box=(left, top, left + w, top + h))",
        f"normalise = v2.Normalize({_row(view['mean'])}, {_row(view['std'])})",
        "tensor = normalise(v2.functional.pil_to_tensor(picture) / 255)",
        "with torch.inference_mode():",
        "    probabilities = model(tensor[None]).softmax(1)[0]",
    ]


def _builder(model: Mapping[str, Any], num_classes: int) -> tuple[str, str]:
    """Returns the module to import and the call that builds the network."""
    found = find_model(model["name"])
    options = dict(model["options"])
    if found.library in ("torchvision", "timm"):
        options.pop("drop_path_mode", None)  # of training
        given = {**builder_arguments(found, num_classes, model["image_size"]), **options}
        call = "torchvision.models.get_model" if found.library == "torchvision" else "timm.create_model"
        return found.library, _call(call, found.name, given)
    given = {"num_classes": num_classes, "image_size": model["image_size"]}
    return "stagewright.model.zoo", _call("create_model", str(found), given | ({"options": options} if options else {}))


def _call(function: str, name: str, given: Mapping[str, Any]) -> str:
    arguments = ", ".join([repr(name), *(f"{key}={value!r}" for key, value in given.items())])
    call = f"{function}({arguments})"
    return call if len(call) <= _LINE else f"{function}(\n    {arguments},\n)"


def _row(numbers: Sequence[float]) -> str:
    return "(" + ", ".join(map(repr, numbers)) + ")"
