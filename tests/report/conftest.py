"""A realistic run directory, written through the documented file formats by nothing of stagewright's own."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

RunWriter = Callable[..., Path]

DIGITS = ["zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
STAGES = [
    {
        "name": "small",
        "image_size": 16,
        "batch_size": 64,
        "train": "head",
        "average": "none",
        "mixup": 0.2,
        "peak": 0.1,
    },
    {
        "name": "middle",
        "image_size": 24,
        "batch_size": 48,
        "train": "all",
        "average": "ema",
        "mixup": 0.2,
        "peak": 0.075,
    },
    {"name": "full", "image_size": 32, "batch_size": 32, "train": "all", "average": "swa", "mixup": 0.0, "peak": 0.02},
]


def _plan(lengths: list[int], classes: list[str], num_train: int) -> dict[str, Any]:
    stages, first = [], 0
    for index, (stage, length) in enumerate(zip(STAGES, lengths, strict=True)):
        given = length * stage["batch_size"] / num_train
        stages.append(
            {
                "index": index,
                "name": stage["name"],
                "first_step": first,
                "num_steps": length,
                "image_size": stage["image_size"],
                "batch_size": stage["batch_size"],
                "num_images": num_train,
                "data_fraction": 1.0,
                "epochs_asked": round(given, 1),
                "epochs_given": given,
                "train": stage["train"],
                "mix": {"mixup": stage["mixup"], "cutmix": 0.0},
                "average": {"kind": stage["average"]},
                "lr_first": stage["peak"] / 25,
                "lr_peak": stage["peak"],
                "lr_last": stage["peak"] / 100,
                "momentum_first": 0.9,
                "momentum_last": 0.9,
            }
        )
        first += length
    return {
        "digest": "3f" * 32,
        "recipe": {"name": "progressive", "seed": 3, "eval": {"select": "best"}, "model": {"name": "cifar_resnet18"}},
        "dataset": {"num_train": num_train, "num_val": 300, "num_test": 360, "classes": classes, "digest": "d1" * 32},
        "precision": "fp32",
        "eval_precision": "bf16",
        "total_steps": first,
        "stages": stages,
    }


def _curves(plan: dict[str, Any]) -> dict[str, np.ndarray]:
    """Per-step columns of a plausible training."""
    rng = np.random.default_rng(1)
    total = plan["total_steps"]
    step = np.arange(1, total + 1)
    stage, epoch, lr = np.zeros(total, int), np.zeros(total), np.zeros(total)
    done = 0.0
    for entry in plan["stages"]:
        part = slice(entry["first_step"], entry["first_step"] + entry["num_steps"])
        share = np.linspace(0, 1, entry["num_steps"])
        stage[part] = entry["index"]
        epoch[part] = done + share * entry["epochs_given"]
        done += entry["epochs_given"]
        peak = entry["lr_peak"]
        lr[part] = peak * np.minimum(
            0.04 + share / 0.2, 0.01 + np.cos(np.pi / 2 * np.maximum(share - 0.2, 0) / 0.8) ** 2
        )
    rise = 1 - np.exp(-4.5 * step / total)
    noise = rng.normal(0, 1, total)
    return {
        "step": step,
        "stage": stage,
        "epoch": epoch,
        "lr": lr,
        "momentum": 0.95 - 0.1 * lr / lr.max(),
        "loss": 2.3 - 2.0 * rise + np.where(stage < 2, 0.25, 0.0) + 0.18 * noise * (1.1 - rise),
        "top1": np.clip(10 + 86 * rise - np.where(stage < 2, 8, 0) + 5 * noise, 0, 100),
        "grad_norm": 1 + 0.2 * np.abs(noise),
    }


def _evaluations(plan: dict[str, Any], curves: dict[str, np.ndarray], steps: list[int]) -> Iterator[dict[str, Any]]:
    best = 0.0
    rng = np.random.default_rng(2)
    for at in steps:
        stage = next(s for s in reversed(plan["stages"]) if s["first_step"] < at)
        rise = 1 - np.exp(-4.5 * at / plan["total_steps"])
        raw = 300 * min(0.99, 0.1 + 0.84 * rise + rng.normal(0, 0.02))
        results = {
            "raw": {"loss": 2.3 - 1.95 * rise, "top1": round(raw) / 3, "top5": 99.0, "images": 300, "unreadable": 1}
        }
        kind = stage["average"]["kind"]
        if kind != "none":
            top1 = round(min(297.0, raw + 5)) / 3
            results[kind] = {"loss": 2.22 - 1.95 * rise, "top1": top1, "top5": 99.3, "images": 300, "unreadable": 1}
        chosen = max(results, key=lambda name: results[name]["top1"])
        better = results[chosen]["top1"] > best
        best = max(best, results[chosen]["top1"])
        yield {
            "kind": "evaluated",
            "step": at,
            "stage": stage["index"],
            "stage_name": stage["name"],
            "epoch": float(curves["epoch"][at - 1]),
            "split": "val",
            "train_loss": float(curves["loss"][max(0, at - 50) : at].mean()),
            "train_top1": float(curves["top1"][max(0, at - 50) : at].mean()),
            "results": results,
            "chosen": chosen,
            "best": bool(better),
            "clock": {"at": "2026-03-01T10:00:00Z", "train_seconds": _seconds(plan, at), "epoch_seconds": 12.3,
                      "eval_seconds": 0.8, "images_per_second": 1234.5, "memory_gb": 3.2},
        }  # fmt: skip


def _seconds(plan: dict[str, Any], step: int) -> float:
    """Training seconds after ``step`` updates: a step costs as its pictures' pixels do."""
    cost = 0.0
    for stage in plan["stages"]:
        inside = min(max(step - stage["first_step"], 0), stage["num_steps"])
        cost += inside * stage["batch_size"] * stage["image_size"] ** 2 / 4e5
    return cost


def _clocked(kind: str, step: int, **payload: Any) -> dict[str, Any]:
    return {"kind": kind, "step": step, **payload, "clock": {"at": "2026-03-01T10:00:00Z"}}


def _write_lines(path: Path, events: list[dict[str, Any]]) -> None:
    path.write_text("".join(json.dumps(event) + "\n" for event in events), encoding="utf-8")


def _write_csv(path: Path, columns: dict[str, Any]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(columns)
        writer.writerows(zip(*(np.asarray(column).tolist() for column in columns.values()), strict=True))


def _write_parquets(folder: Path, classes: list[str], num_train: int, groups: bool, shared_groups: bool) -> None:
    rng = np.random.default_rng(4)
    count = len(classes)
    sizes = {"train": num_train, "val": 301, "test": 360}
    rows: dict[str, list[Any]] = {"path": [], "hash": [], "label": [], "split": [], "group": []}
    (folder / "evaluations").mkdir()
    for at, (split, size) in enumerate(sizes.items()):
        labels = np.arange(size) % count
        sites = [
            f"site {'ABCDEFGHIJKL'[(at * 4 if not shared_groups else 0) + i % 4]}" if groups else None
            for i in range(size)
        ]
        rows["path"] += [f"{split}/{i:06}.png" for i in range(size)]
        rows["hash"] += [f"{at}{i:031x}" for i in range(size)]
        rows["label"] += labels.tolist()
        rows["split"] += [at] * size
        rows["group"] += sites
        if split == "train":
            continue
        hard = (labels % 5) / 25
        wrong = rng.random(size) < 0.04 + hard
        predicted = np.where(wrong, (labels + rng.integers(1, 4, size) ** 2) % count, labels)
        readable = np.ones(size, dtype=bool)
        readable[0] = split != "val"
        columns = {
            "path": pa.array(rows["path"][-size:]),
            "label": pa.array(labels, pa.int32()),
            "predicted": pa.array(predicted, pa.int32()),
            "probability": pa.array(np.full(size, 0.9), pa.float32()),
            "true_probability": pa.array(np.full(size, 0.8), pa.float32()),
            "group": pa.array(sites, pa.string()),
            "readable": pa.array(readable),
        }
        pq.write_table(pa.table(columns), folder / "evaluations" / f"{split}.parquet")
    types = {"label": pa.int32(), "split": pa.int8()}
    table = pa.table({name: pa.array(values, types.get(name, pa.string())) for name, values in rows.items()})
    pq.write_table(table.replace_schema_metadata({"source": "photos/"}), folder / "manifest.parquet")


def _events(plan: dict[str, Any], evaluations: list[dict[str, Any]], at: int, restart: bool) -> list[dict[str, Any]]:
    """All events up to step ``at``; with ``restart``, one process was lost past a checkpoint in the middle stage."""
    events = [_clocked("started", 0)]
    stages = [_clocked("stage", s["first_step"], stage=s["index"], name=s["name"], trainable=11_173_962, frozen=0)
              for s in plan["stages"]]  # fmt: skip
    for event in sorted((*stages, *evaluations), key=lambda event: event["step"]):
        if event["step"] <= at:
            events.append(event)
            if event["kind"] == "evaluated":
                events.append(_clocked("saved", event["step"], checkpoint=f"step_{event['step']:06}"))
    if restart:
        saved = [event["step"] for event in events if event["kind"] == "saved"]
        back = saved[len(saved) // 2]
        cut = next(i for i, e in enumerate(events) if e["kind"] == "saved" and e["step"] == back) + 1
        lost = [event for event in events[cut:] if event["step"] > back][:2]
        rejected = [{"name": f"step_{back + 9:06}", "reason": "state.pt does not match its hash"}]
        resumed = _clocked("resumed", back, checkpoint=f"step_{back:06}", rejected=rejected)
        broken = _clocked("bad_image", back + 1, rows=[17], paths=["train/<b>bad</b>.jpg"], reasons=["truncated"])
        events = [*events[:cut], *lost, resumed, broken, *events[cut:]]
    return events


def write_run(
    folder: Path,
    *,
    lengths: tuple[int, int, int] = (300, 400, 300),
    classes: list[str] | None = None,
    until: int | None = None,
    restart: bool = True,
    groups: bool = True,
    shared_groups: bool = False,
    num_evaluations: int = 20,
) -> Path:
    """A finished run, or, with ``until``, one that has come to that step and still runs."""
    classes = classes or DIGITS
    folder.mkdir(parents=True)
    plan = _plan(list(lengths), classes, num_train=1500)
    total = plan["total_steps"]
    at = total if until is None else until
    steps = sorted({round(total * k / num_evaluations) for k in range(1, num_evaluations + 1)})
    plan["eval_steps"] = plan["save_steps"] = steps
    curves = _curves(plan)
    evaluations = [event for event in _evaluations(plan, curves, steps) if event["step"] <= at]
    best = next((e for e in reversed(evaluations) if e["best"]), None)
    events = _events(plan, evaluations, at, restart and len(evaluations) > 3)
    (folder / "plan.json").write_text(json.dumps(plan))
    _write_csv(folder / "steps.csv", {name: column[:at] for name, column in curves.items()})
    ticks = sorted({*range(50, at + 1, 50), *(e["step"] for e in evaluations)})
    seconds = [_seconds(plan, tick) for tick in ticks]
    _write_csv(folder / "timing.csv", {"step": ticks, "train_seconds": seconds, "images_per_second": [1234.5] * len(ticks),
                                       "memory_gb": [3.2] * len(ticks)})  # fmt: skip
    summary = {
        "status": "running" if until is not None else "finished", "name": folder.name, "recipe": "progressive",
        "data": "photos/", "model": "cifar_resnet18", "step": at, "total_steps": total, "seed": 3, "precision": "fp32",
        "device": "cpu", "train_seconds": _seconds(plan, at), "eval_seconds": 21.5, "checkpoint_seconds": 4.2,
        "setup_seconds": 6.1, "wall_seconds": _seconds(plan, at) + 60, "restarts": int(restart), "parameters": 11_173_962,
        "images_per_second": 1234.5, "parent": None, "unreadable": 1, "error": None, "plan_digest": plan["digest"],
    }  # fmt: skip
    if until is None and best is not None:
        _write_parquets(folder, classes, 1500, groups, shared_groups)
        chosen = {"step": best["step"], "weights": best["chosen"], "stage": best["stage"]}
        counts = {split: _top1(folder / "evaluations" / f"{split}.parquet") for split in ("val", "test")}
        summary |= {"chosen": chosen, "top1": counts, "candidates": {k: v["top1"] for k, v in best["results"].items()}}
        events.append(_clocked("finished", total, chosen=chosen, val_top1=counts["val"], test_top1=counts["test"]))
    (folder / "summary.json").write_text(json.dumps(summary))
    _write_lines(folder / "events.jsonl", events)
    env = {
        "python": "3.11.2", "platform": "Linux-6.1-x86_64", "cpu": "AMD EPYC 7B13", "cores": 2, "ram_gb": 15.6,
        "torch": "2.15.0", "torchvision": "0.29.2", "timm": "1.0.31", "numpy": "2.4.6", "pillow": "13.0.0",
        "stagewright": "0.1.0", "git_commit": "0123abcd" * 5, "device": "cpu", "device_name": "AMD EPYC 7B13",
        "command": "stagewright train 'my photos/' --recipe progressive --set 'stages.0.lr=0.1'", "data": "my photos/",
        "created": "2026-03-01T09:58:00+00:00",
    }  # fmt: skip
    (folder / "env.json").write_text(json.dumps(env))
    weights = {
        "origin": {"kind": "library", "library": "torchvision", "name": "swin_t.IMAGENET1K_V1", "trained_on": "ImageNet"},
        "tensors": {"loaded": 183, "resampled": 0, "fresh": 2, "fresh_in_head": 2, "skipped": 2},
        "head": "fresh", "head_rows": 0, "resampled": [], "fresh": ["head.weight", "head.bias"],
        "skipped": [{"name": "head.weight", "reason": "the head has 1000 classes in the source"}],
        "parameters": {"loaded": 27_519_354, "all": 27_527_044},
        "stages": [
            {"name": stage["name"], "train": "all", "trains": "all", "parameters": 27_527_044,
             "steps": stage["num_steps"], "fit": "updates"}
            for stage in plan["stages"]
        ],
    }  # fmt: skip
    (folder / "weights.json").write_text(json.dumps(weights))
    return folder


def _top1(path: Path) -> float:
    table = pq.read_table(path)
    labels, predicted, readable = (table.column(c).to_numpy() for c in ("label", "predicted", "readable"))
    return 100 * float((labels == predicted)[readable].mean())


@pytest.fixture(scope="session")
def make_run() -> RunWriter:
    """The writer of run directories; see :func:`write_run` for its arguments."""
    return write_run


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One finished run of three stages, restarted once, that no test may change."""
    return write_run(tmp_path_factory.mktemp("runs") / "progressive-1")
