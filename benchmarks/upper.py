"""Measures how much faster an epoch is on cached views of the upper blocks than with all layers, interleaved in one process.

    python benchmarks/upper.py [--rounds 7] [--out benchmarks/results/upper-cpu.json]

For each network one update of a batch: all layers with batch norms in training (what `train: all` does), all layers with frozen,
folded norms (`norm: frozen`), and `train: upper` on features (`cache`). Images are random and loaded; an epoch is as many updates
for each, and the cached one reads no images, so the ratios of whole epochs are higher. The time to compute the features, which a
stage spends once for each view, is given for one image.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from stagewright.data.batches.batch import Batch
from stagewright.engine.build import build_state
from stagewright.engine.cut import find_cut
from stagewright.engine.frozen_features import cut_in_two
from stagewright.engine.frozen_norms import FrozenNorms
from stagewright.engine.numerics import numerics_of, prepare_torch
from stagewright.engine.step import update
from stagewright.model.block_costs import upper_blocks
from stagewright.model.fold import find_pairs, skeleton
from stagewright.model.groups import apply_trainable, set_train_mode
from stagewright.plan.plan import DatasetInfo
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

NETWORKS = (("mobilenet_v2", 160), ("resnet18", 160), ("resnet50", 160), ("convnext_tiny", 160), ("vit_b_16", 224))
BATCH = 32


def updates(name: str, size: int) -> tuple[dict[str, Callable[[], object]], dict[str, Any]]:
    """Returns the updates to time, by name, and facts about the cut."""
    info = DatasetInfo(num_train=BATCH, num_val=0, num_test=0, classes=tuple("abcdefghij"), digest="")
    device = torch.device("cpu")
    images = torch.randn(BATCH, 3, size, size).to(memory_format=torch.channels_last)
    blank = torch.zeros(2, 3, size, size)
    found: dict[str, Callable[[], object]] = {}
    facts: dict[str, Any] = {}

    def made(train: str, norm: str) -> tuple[nn.Module, Callable[..., Callable[[], object]]]:
        plain = {
            "model": {"name": name},
            "image_size": size,
            "batch_size": BATCH,
            "epochs": "1000st",
            "train": train,
            "norm": norm,
            "optimizer": {"name": "adamw"},
        }
        plan = resolve(recipes.from_dict(plain), info)
        prepare_torch(plan.recipe, device)
        state, _ = build_state(plan, device)
        stage, numerics = plan.stages[0], numerics_of(plan, state.model)
        apply_trainable(state.model, stage.train)
        set_train_mode(state.model, stage.norm)

        def timed(given: Tensor, forward: Callable[[Tensor], Tensor]) -> Callable[[], object]:
            batch = Batch(0, given, torch.arange(BATCH) % 10, torch.ones(BATCH, dtype=torch.bool), ())
            return lambda: update(state, plan, stage, batch, numerics, forward=forward)

        return state.model, timed

    model, timed = made("all", "train")
    found["all layers"] = timed(images, model)
    model, timed = made("all", "frozen")
    pairs = find_pairs(model, blank[:1])
    found["all layers, norms frozen"] = timed(images, FrozenNorms(model, pairs, skeleton(model, pairs)))
    upper = f"last:{upper_blocks(model, blank)}"
    model, timed = made(upper, "frozen")
    cut = find_cut(model, blank)
    assert cut is not None
    parts = cut_in_two(model, cut, pairs, blank, frozen=True)
    found["upper blocks on features"] = timed(parts.lower(images), parts.upper)
    found["features of a batch"] = lambda: parts.lower(images)
    facts |= {"train": upper, "cut": cut.name, "kilobytes_a_view": round(cut.bytes_each / 1000, 1)}
    return found, facts


def measured(name: str, size: int, rounds: int) -> dict[str, Any]:
    """Returns seconds and ratios of one network."""
    works, facts = updates(name, size)
    for work in works.values():
        work()
    times: dict[str, list[float]] = {key: [] for key in works}
    for _ in range(rounds):
        for key, work in works.items():
            began = time.perf_counter()
            work()
            times[key].append(time.perf_counter() - began)
    base = times["all layers"]
    ratios = {key: [b / one for b, one in zip(base, own, strict=True)] for key, own in times.items()}
    return {
        **facts,
        "px": size,
        "milliseconds": {key: round(1000 * statistics.median(own), 1) for key, own in times.items()},
        "times_as_fast": {key: round(statistics.median(own), 2) for key, own in ratios.items()},
        "range": {key: [round(min(own), 2), round(max(own), 2)] for key, own in ratios.items()},
    }


def main() -> None:
    """Measures all networks and writes the results."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--networks", nargs="*", default=[name for name, _ in NETWORKS])
    parser.add_argument("--out", type=Path)
    given = parser.parse_args()
    found: dict[str, Any] = {}
    for name, size in NETWORKS:
        if name in given.networks:
            found[name] = measured(name, size, given.rounds)
            print(name, json.dumps(found[name]["times_as_fast"]), flush=True)
    if given.out is not None:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        head = {
            "command": f"python benchmarks/upper.py --rounds {given.rounds}",
            "commit": commit,
            "device": f"CPU, {torch.get_num_threads()} threads, {torch.backends.cpu.get_cpu_capability()}",
            "torch": torch.__version__,
            "batch": BATCH,
            "rounds": given.rounds,
        }
        given.out.write_text(json.dumps({**head, "networks": found}, indent=1) + "\n")


if __name__ == "__main__":
    main()
