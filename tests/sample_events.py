"""Plausible events of every kind, for tests that need one."""

from __future__ import annotations

from typing import Any

from stagewright.rundir.event_kinds import KINDS, AgainstHead, ChosenWeights, Event, Rejected, Result, ScoreRange

TIME = "2026-01-02T03:04:05.678+00:00"

FIELDS: dict[str, dict[str, Any]] = {
    "started": {"step": 0, "device": "cpu", "device_name": "CPU, 2 threads"},
    "resumed": {
        "step": 150,
        "checkpoint": "step_000150",
        "rejected": (Rejected(name="step_000200", reason="torn"),),
        **{"device": "cpu", "device_name": "CPU, 2 threads"},
    },
    "stage": {"step": 100, "stage": 1, "name": "middle", "trainable": 11_173_962, "frozen": 1_000},
    "evaluated": {
        **{"step": 200, "stage": 1, "stage_name": "middle", "epoch": 3.0, "split": "val"},
        **{"train_loss": 1.23456, "train_top1": 61.2345},
        "results": {
            "raw": Result(loss=1.1111, top1=65.0, top5=95.0, images=300, unreadable=0),
            "ema": Result(loss=1.0, top1=66.1, top5=96.0, images=300, unreadable=0),
        },
        **{"chosen": "ema", "best": True, "train_seconds": 60.0, "memory_gb": 3.2, "eval_seconds": 0.8},
        **{"epoch_seconds": 12.34, "images_per_second": 1234.5, "eta_seconds": 190.0},
    },
    "saved": {"step": 200, "checkpoint": "step_000200", "stage": "middle", "peak_gb": 3.2},
    "memory": {"step": 0, "points": {"at the start": {"resident_gb": 1.0, "peak_gb": 1.5}}},
    "bad_image": {"step": 151, "rows": (3,), "paths": ("cat/a.jpg",), "reasons": ("truncated",)},
    "skipped": {"step": 152, "reason": "fp16 overflow"},
    "rolled_back": {
        **{"step": 140, "number": 1, "at": 151, "found": 160, "fault": "not finite", "reason": "the loss is nan"},
        "remedy": "the images of that step are looked at one by one",
    },
    "suspect": {
        **{"step": 140, "update": 151, "rows": (3,), "paths": ("cat/a.jpg",), "verdict": "left out from here on"},
        "guilty": True,
    },
    "ended_early": {"step": 250, "reason": "loss has not improved on 0.5 in 3 evaluations"},
    "notice": {"step": 0, "text": "two\nlines"},
    "stopped": {"step": 160, "reason": "SIGTERM"},
    "finished": {
        **{"step": 300, "chosen": ChosenWeights(step=200, weights="ema"), "val_top1": 66.1, "test_top1": None},
        "against_head": {"val": AgainstHead(points=1.5, low=-0.5, high=3.4, gained=5, lost=1, images=266)},
        "ranges": {"val": ScoreRange(images=266, low=60.2, high=71.5)},
        "loading": "reading images kept up",
    },
    "interim_finished": {
        **{"step": 129, "total_steps": 300, "chosen": ChosenWeights(step=100, weights="ema")},
        **{"val_top1": 61.5, "test_top1": None},
    },
    "tested": {
        **{"step": 300, "number": 1, "weights": ChosenWeights(step=200, weights="ema"), "top1": 64.5},
        "range": ScoreRange(images=300, low=58.9, high=69.7),
    },
    "progress": {
        **{"step": 1234, "stage": 1, "loss": 1.2345, "top1": 71.234, "lr": 0.0123, "memory_gb": 3.21},
        **{"images_per_second": 1234.5, "eta_seconds": 720.0},
    },
    "evaluating": {"step": 200, "done": 64, "total": 300},
    "computing": {"step": 0, "done": 64, "total": 300, "what": "features of train images"},
}


def make_event(kind: str, **changes: Any) -> Event:
    """An event of ``kind``, with the fields in ``changes`` in place of the usual ones."""
    return KINDS[kind](**{"time": TIME, **FIELDS[kind], **changes})
