"""Measures how often `evaluate --weights` gives the label that the library's own preset gives, on 1,000 photographs.

    python benchmarks/published.py --weights mobilenet_v2-imagenet.pth --photographs photos-250.zip imagenette-4k.zip
        [--count 1000] [--out benchmarks/results/published-cpu.json]

The zips hold JPEGs whose name or folder begins with a WordNet number. Of the last zip as many are taken, evenly, as are missing
from `--count`. The library's side is its own transform and network, image by image with Pillow; ours is `stagewright.evaluate`
on a folder. Beside them is the box view of a trained model (`eval.crop` 0.875), which is what such an evaluation used before.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import timm
import torch
import torchvision
from numpy.typing import NDArray
from PIL import Image
from timm.data.config import resolve_data_config
from timm.data.transforms_factory import create_transform
from torch import nn

import stagewright as sw
from stagewright.augment.normalise import normalise
from stagewright.bundle.preprocessing import Preprocessing
from stagewright.measures.intervals import wilson
from stagewright.model.zoo import IMAGENET

_WNID = re.compile(r"n\d{8}")


def unpacked(zips: list[Path], count: int, folder: Path) -> None:
    """Writes ``count`` photographs to folders of their WordNet numbers: all of the first zips, the rest evenly from the last."""
    left = count
    for at, path in enumerate(zips):
        with zipfile.ZipFile(path) as archive:
            names = sorted(name for name in archive.namelist() if name.endswith(".JPEG"))
            if at == len(zips) - 1:
                names = [names[round(place)] for place in np.linspace(0, len(names) - 1, min(left, len(names)))]
            for name in names:
                number = _WNID.findall(name)[0]
                (folder / number).mkdir(exist_ok=True)
                (folder / number / f"{at}-{Path(name).name}").write_bytes(archive.read(name))
            left -= len(names)


def own_answers(network: nn.Module, transform: Any, paths: list[Path]) -> NDArray[np.int64]:
    """Returns the label of each image by the library's transform and network."""
    found: list[int] = []
    with torch.inference_mode():
        for at in range(0, len(paths), 32):
            views = []
            for path in paths[at : at + 32]:
                with Image.open(path) as image:
                    views.append(transform(image.convert("RGB")))
            found += network(torch.stack(views)).argmax(1).tolist()
    return np.array(found)


def box_answers(network: nn.Module, paths: list[Path]) -> NDArray[np.int64]:
    """Returns the label of each image seen through the box of a trained model, 0.875 of the shorter side."""
    seen = Preprocessing(224, 0.875, "crop", "bilinear", *IMAGENET)

    def view(image: Image.Image) -> torch.Tensor:
        return normalise(torch.from_numpy(seen.view(image).copy()).permute(2, 0, 1)[None], *IMAGENET)[0]

    return own_answers(network, view, paths)


def measured(name: str, weights: Path, network: nn.Module, transform: Any, folder: Path) -> dict[str, Any]:
    """Returns the agreement of ``evaluate`` with the library's own pipeline for the model ``name``."""
    report = sw.evaluate(sw.load_published(weights, name, device="cpu"), folder, device="cpu")
    paths = [folder / path for path in report.paths.to_pylist()]
    theirs, ours = own_answers(network, transform, paths), report.result.predictions.predicted
    boxes = box_answers(network, paths)

    def share(answers: NDArray[np.int64], other: NDArray[np.int64]) -> dict[str, Any]:
        same = int((answers == other).sum())
        low, high = wilson(same, len(other))
        return {"same": same, "of": len(other), "percent": 100 * same / len(other), "interval": [100 * low, 100 * high]}

    return {
        "model": name,
        "view": report.notes[1],
        "agreement": share(ours, theirs),
        "agreement of the box view": share(boxes, theirs),
        "top1": {"ours": report.top1, "library": 100 * float((theirs == report.labels).mean())},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--weights", type=Path, required=True, help="ImageNet weights of mobilenet_v2")
    parser.add_argument("--photographs", type=Path, nargs="+", required=True)
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    state = torch.load(given.weights, weights_only=True)
    own = torchvision.models.mobilenet_v2()
    own.load_state_dict(state)
    own.eval()
    other = timm.create_model("mobilenetv2_100").eval()
    other.load_state_dict(dict(zip(other.state_dict(), state.values(), strict=True)))
    preset = torchvision.models.MobileNet_V2_Weights.IMAGENET1K_V1.transforms()
    config = resolve_data_config(pretrained_cfg=timm.create_model("mobilenetv2_100").pretrained_cfg, use_test_size=True)  # pyright: ignore
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        unpacked(given.photographs, given.count, folder)
        found = [
            measured("torchvision:mobilenet_v2.IMAGENET1K_V1", given.weights, own, preset, folder),
            measured("timm:mobilenetv2_100", given.weights, other, create_transform(**config), folder),
        ]
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
    versions = {"torch": torch.__version__, "torchvision": torchvision.__version__, "timm": timm.__version__}
    result = {
        **{"photographs": [path.name for path in given.photographs], "count": given.count, "device": "cpu"},
        **{"commit": commit, "versions": {**versions, "pillow": PIL.__version__}, "results": found},
    }
    text = json.dumps(result, indent=1)
    print(text)
    if given.out is not None:
        given.out.write_text(f"{text}\n")


if __name__ == "__main__":
    main()
