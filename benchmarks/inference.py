"""Inference on a CPU: forward passes of six networks as stagewright runs them, against PyTorch as a user would write it.

Base: ``model.eval()`` under ``torch.inference_mode()``, float32, batches of 32 in torch's usual memory format. Ways:
channels-last memory; folded batch norms (stagewright/model/fold.py); both, which is what evaluations, ``predict`` and
``evaluate`` do in float32; both with oneDNN's fused activations (torch.jit.optimize_for_inference), which they do not; bfloat16
by autocast, with bfloat16 weights, and these in the folded network; these and close predictions again in float32
(stagewright/model/two_precisions.py), which is what they do on processors that are faster in bfloat16. Rounds alternate over all
ways; medians, ratios within rounds. Input is in its memory format and dtype before the clock starts.

With ``--weights`` (torchvision's MobileNetV2) and ``--photographs`` (a zip of JPEGs): the share of equal labels on 1,000 of them.

    python benchmarks/inference.py [--rounds 5] [--networks mobilenet_v2:160,...] [--weights FILE --photographs ZIP] [--out FILE]
"""

from __future__ import annotations

import argparse
import copy
import io
import json
import platform
import statistics
import subprocess
import sys
import time
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from PIL import Image
from torch import Tensor, nn
from torchvision import transforms

from stagewright.model.fold import find_pairs, folded_copy
from stagewright.model.two_precisions import TwoPrecisions, bfloat16_copy, close_calls

NETWORKS = "mobilenet_v2:160,resnet18:160,resnet50:160,convnext_tiny:160,swin_t:224,vit_b_16:224"
BATCH = 32
TWO_PRECISIONS = "bf16, close in fp32"
CLOSE_SHARE = 0.2
"""Share of the images that are computed again in float32 where the speed is measured; random weights make all classes close."""
Way = tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]
"""A forward pass, and what is done to its input before the clock starts."""


def channels_last(given: Tensor) -> Tensor:
    return given.to(memory_format=torch.channels_last)


def ways(model: nn.Module, size: int) -> dict[str, Way]:
    """The ways to run ``model``; without batch norms to fold only those without folding."""
    pairs = find_pairs(model, torch.randn(1, 3, size, size))
    last = copy.deepcopy(model).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]

    def autocast(given: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return last(given)

    half = copy.deepcopy(last).bfloat16()
    found: dict[str, Way] = {
        "eager": (model, lambda given: given),
        "channels_last": (last, channels_last),
        "bf16": (autocast, channels_last),
        "bf16 weights": (half, lambda given: channels_last(given).bfloat16()),
    }
    exact = folded_copy(model, pairs).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    fast = bfloat16_copy(exact, torch.zeros(2, 3, size, size))
    assert fast is not None
    found[TWO_PRECISIONS] = (TwoPrecisions(exact, fast), channels_last)
    if pairs:
        folded = folded_copy(model, pairs)
        both = copy.deepcopy(folded).to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        example = channels_last(torch.randn(BATCH, 3, size, size))
        fused = torch.jit.optimize_for_inference(torch.jit.freeze(torch.jit.trace(both, example, check_trace=False)))
        half_folded = copy.deepcopy(both).bfloat16()
        found["folded"] = (folded, lambda given: given)
        found["folded, channels_last"] = (both, channels_last)
        found["folded, channels_last, fused"] = (fused, channels_last)
        found["folded, channels_last, bf16 weights"] = (half_folded, lambda given: channels_last(given).bfloat16())
    return found


def measure(name: str, size: int, rounds: int) -> dict[str, object]:
    """Median seconds of a batch by way, and the median ratio to eager in the same round."""
    torch.manual_seed(0)
    model = getattr(torchvision.models, name)().eval()
    given = torch.randn(BATCH, 3, size, size)
    runs = {way: (forward, prepare(given)) for way, (forward, prepare) in ways(model, size).items()}
    both = runs[TWO_PRECISIONS][0]
    assert isinstance(both, TwoPrecisions)
    top = both.fast(channels_last(given).bfloat16()).float().topk(2, dim=1).values
    both.margin = float((top[:, 0] - top[:, 1]).quantile(CLOSE_SHARE))
    seconds: dict[str, list[float]] = {way: [] for way in runs}
    for at in range(-2, rounds):  # torch.jit optimises in its first two calls
        for way, (forward, prepared) in runs.items():
            if at == -2 and "fused" not in way:
                continue
            start = time.perf_counter()
            forward(prepared)
            if at >= 0:
                seconds[way].append(time.perf_counter() - start)
    result: dict[str, object] = {}
    for way, times in seconds.items():
        ratios = [base / own for base, own in zip(seconds["eager"], times, strict=True)]
        result[way] = {
            "median_s": round(statistics.median(times), 4),
            "fastest_s": round(min(times), 4),
            "ratio": round(statistics.median(ratios), 3),
            "ratio_range": [round(min(ratios), 3), round(max(ratios), 3)],
        }
        print(
            f"{name} {size}: {way:36} {statistics.median(times):8.3f} s  {statistics.median(ratios):5.2f}", flush=True
        )
    return result


def agreement(weights: Path, photographs: Path, count: int = 1000) -> dict[str, object]:
    """Share of equal labels with eager float32, MobileNetV2 with trained weights at 160 pixels, by way."""
    model = torchvision.models.mobilenet_v2().eval()
    model.load_state_dict(torch.load(weights, weights_only=True))
    view = transforms.Compose(
        [
            transforms.Resize(183),
            transforms.CenterCrop(160),
            transforms.ToTensor(),
            transforms.Normalize((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ]
    )
    labels: dict[str, list[int]] = {}
    largest: dict[str, float] = {}
    runs = {way: run for way, run in ways(model, 160).items() if "fused" not in way}
    again = 0
    with zipfile.ZipFile(photographs) as archive:
        names = sorted(
            name for name in archive.namelist() if "val/" in name and name.lower().endswith((".jpg", ".jpeg"))
        )
        names = names[:: max(1, len(names) // count)][:count]
        for at in range(0, len(names), BATCH):
            images = [Image.open(io.BytesIO(archive.read(name))).convert("RGB") for name in names[at : at + BATCH]]
            given = torch.stack([torch.as_tensor(view(image)) for image in images])
            base = model(given)
            for way, (forward, prepare) in runs.items():
                logits = forward(prepare(given)).float()
                if isinstance(forward, TwoPrecisions):
                    fast = forward.fast(prepare(given).bfloat16()).float()
                    again += int(close_calls(fast, forward.margin or 0.0).sum())
                labels.setdefault(way, []).extend(logits.argmax(dim=1).tolist())
                largest[way] = max(largest.get(way, 0.0), float((logits - base).abs().max()))
    result: dict[str, object] = {"photographs": len(names), "computed again": again}
    print(f"labels: {again} of {len(names)} computed again in float32", flush=True)
    for way, own in labels.items():
        equal = sum(a == b for a, b in zip(labels["eager"], own, strict=True))
        result[way] = {"equal_percent": round(100 * equal / len(names), 2), "largest_difference": largest[way]}
        print(f"labels: {way:36} {100 * equal / len(names):6.2f} % equal, logits within {largest[way]:.2g}", flush=True)
    return result


def _processor() -> dict[str, object]:
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    found = {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in lines)}
    flags = set(found.get("flags", "").split())
    return {
        "name": found.get("model name", platform.processor()),
        "threads": torch.get_num_threads(),
        "flags": sorted(flags & {"avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16"}),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--networks", default=NETWORKS)
    parser.add_argument("--weights", type=Path)
    parser.add_argument("--photographs", type=Path)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    warnings.filterwarnings("ignore", category=DeprecationWarning)
    commit = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True).stdout.strip()
    result: dict[str, object] = {
        "command": f"python benchmarks/inference.py --rounds {args.rounds}",
        "commit": commit,
        "device": _processor(),
        "versions": {
            "python": sys.version.split()[0],
            "torch": torch.__version__,
            "torchvision": torchvision.__version__,
        },
        "batch_size": BATCH,
        "networks": {},
    }
    networks: dict[str, object] = {}
    with torch.inference_mode():
        if args.weights and args.photographs:
            result["labels"] = agreement(args.weights, args.photographs)
        for network in args.networks.split(","):
            name, _, size = network.partition(":")
            networks[network] = measure(name, int(size), args.rounds)
            result["networks"] = networks
            if args.out:
                args.out.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
