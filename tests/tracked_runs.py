"""A three-stage run that is killed and rolled back while trackers follow it; what the trackers must have in the end."""

from __future__ import annotations

import csv
import json
import os
import signal
import struct
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from stagewright.data.batches.batch import Batch
from stagewright.plan.plan import StagePlan
from stagewright.rundir.directory import RunDir
from stagewright.system.children import module_command
from stagewright.training.loop import AfterUpdate
from stagewright.training.session import Session

FAULT = 62
"""After this update the weights are spoilt."""
FIELDS: dict[str, Any] = {
    "model": {"name": "cifar_resnet18", "options": {"width": 4}},
    "image_size": 16,
    "batch_size": 8,
    "lr": {"schedule": "constant", "peak": 0.02},
    "augment": {"crop": "pad"},
    "average": {"kind": "ema", "half_life": "4st"},
    "stages": [
        {"name": "first", "epochs": "40st"},
        {"name": "second", "epochs": "40st", "image_size": 20},
        {"name": "third", "epochs": "40st"},
    ],
    "eval": {"every": "10st"},
    "checkpoints": {"every": "9st", "keep": 2},
    "guard": {"window": 4, "lr_factor_windows": 2},
}

_STEPS = {
    "epoch": "epoch",
    "stage": "stage",
    "lr": "train/lr",
    "momentum": "train/momentum",
    "loss": "train/loss",
    "top1": "train/top1",
    "grad_norm": "train/grad_norm",
}
_EVALUATIONS = {
    "val_loss": "val/loss",
    "val_top1": "val/top1",
    "average_loss": "val_average/loss",
    "average_top1": "val_average/top1",
    "train_loss": "since_evaluation/loss",
    "train_top1": "since_evaluation/top1",
}

Points = list[tuple[str, int, float]]
"""Tag, step, value."""


def break_once(session: Session) -> AfterUpdate:
    """Weights turn into NaN after update FAULT, in every process of the run until the guard has gone back."""

    def spoil(stage: StagePlan, batch: Batch) -> None:
        if session.state.step == FAULT and session.state.guard.rollbacks == 0:
            with torch.no_grad():
                next(session.state.model.parameters()).fill_(torch.nan)

    return spoil


def expected(run: Path) -> Points:
    """Every number of steps.csv and metrics.csv that trackers show, read with the csv module alone."""
    found: Points = []
    for name, tags in (("steps.csv", _STEPS), ("metrics.csv", _EVALUATIONS)):
        with open(run / name, newline="") as file:
            for row in csv.DictReader(file):
                found += [(tag, int(row["step"]), float(row[column])) for column, tag in tags.items() if row[column]]
    return found


def assert_same(found: Points, wanted: Points) -> None:
    """Fails unless both have the same points, each as often, their values equal as float64."""

    def key(points: Points) -> list[tuple[str, int, bytes]]:
        return sorted((tag, step, struct.pack("<d", value)) for tag, step, value in points)

    ours, theirs = key(found), key(wanted)
    missing, extra = sorted(set(theirs) - set(ours)), sorted(set(ours) - set(theirs))
    assert not missing and not extra, f"missing {missing[:5]} ({len(missing)}), too many {extra[:5]} ({len(extra)})"
    assert len(ours) == len(theirs), f"{len(ours)} points, {len(theirs)} wanted: some came more than once"


def without_result(points: Points) -> Points:
    """``points`` without those of the finished run as a whole."""
    return [one for one in points if not one[0].startswith("final/")]


def tensorboard_points(run: Path) -> Points:
    """The numbers in the event files of a run, as TensorBoard's own loader reads them: the float64 beside what it shows."""
    from tensorboard.backend.event_processing.event_file_loader import EventFileLoader
    from tensorboard.util import tensor_util

    found: Points = []
    for file in sorted((run / "trackers" / "tensorboard").glob("events.out.tfevents.*")):
        for event in EventFileLoader(str(file)).Load():
            for value in event.summary.value:
                if value.metadata.plugin_data.plugin_name == "scalars" or value.HasField("simple_value"):
                    (exact,) = value.tensor.double_val
                    assert np.float32(exact).tobytes() == tensor_util.make_ndarray(value.tensor).tobytes()
                    found.append((value.tag, event.step, exact))
    return found


def wandb_points(rows: Sequence[Mapping[str, Any]]) -> Points:
    """The numbers in rows of W&B's history, which writes those that are not finite as text."""
    return [
        (tag, int(row["_step"]), float(value))
        for row in rows
        for tag, value in row.items()
        if not tag.startswith("_") and not isinstance(value, dict)
    ]


def offline_rows(file: Path) -> list[dict[str, Any]]:
    """The rows of history in a .wandb file: blocks of 32 KiB with records in parts (LevelDB's log), each a message of W&B's."""
    from wandb.proto.wandb_internal_pb2 import Record  # pyright: ignore[reportAttributeAccessIssue]

    data, at, begun, rows = file.read_bytes(), 7, b"", []
    assert data[:4] == b":W&B"
    while at + 7 <= len(data):
        if (left := 32768 - at % 32768) < 7:
            at += left
            continue
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        begun = data[at + 7 : at + 7 + length] if kind in (1, 2) else begun + data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):
            record = Record.FromString(begun)
            if record.WhichOneof("record_type") == "history":
                items = {one.key or "/".join(one.nested_key): json.loads(one.value_json) for one in record.history.item}
                rows.append({"_step": record.history.step.num, **items})
    return rows


class Trackers:
    """Processes beside a run, one for each tracker, as the training begins them; they can be killed."""

    def __init__(self, run: RunDir, environment: Mapping[str, str], names: Sequence[str]) -> None:
        self.run, self.names = run, tuple(names)
        self.environment = {**os.environ, **environment}
        self.processes: dict[str, subprocess.Popen[bytes]] = {}

    def start(self, *names: str, at_the_end: float | None = None) -> None:
        for name in names or self.names:
            more = [] if at_the_end is None else ["--at-the-end", str(at_the_end)]
            command = module_command("stagewright.trackers", [str(self.run.root), name, *more])
            self.processes[name] = subprocess.Popen(
                command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self.environment, process_group=0
            )

    def kill(self, *names: str) -> None:
        for name in names or self.names:
            process = self.processes.pop(name)
            process.send_signal(signal.SIGKILL)
            process.communicate()

    def sent(self, name: str) -> int:
        """How far a tracker says it is."""
        try:
            return json.loads((self.run.root / "trackers" / f"{name}.json").read_bytes())["sent"]
        except FileNotFoundError:
            return 0

    def await_step(self, step: int, *names: str, seconds: float = 90.0) -> None:
        """Returns when the trackers have sent up to ``step``."""
        until = time.monotonic() + seconds
        for name in names or self.names:
            while self.sent(name) < step:
                assert time.monotonic() < until, f"{name} is at step {self.sent(name)}, not at {step}"
                time.sleep(0.1)

    def end(self, *names: str) -> dict[str, tuple[int, str]]:
        """Ends as a training does: closes the pipes, and waits. Returns exit codes and what was said."""
        ending = {name: self.processes.pop(name) for name in names or tuple(self.processes)}
        for process in ending.values():
            assert process.stdin is not None
            process.stdin.close()
            process.stdin = None
        told = {}
        for name, process in ending.items():
            out, _ = process.communicate(timeout=120)
            told[name] = (process.returncode, out.decode())
        return told


def track(run: Path, name: str, environment: Mapping[str, str], *flags: str) -> subprocess.CompletedProcess[str]:
    """Runs ``stagewright track RUN --to NAME``."""
    command = module_command("stagewright", ["track", str(run), "--to", name, *flags])
    return subprocess.run(command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=180)


def pids_of(run: Path) -> list[int]:
    """The tracker processes of a run, whoever began them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                words = (entry / "cmdline").read_bytes().split(b"\0")
            except OSError:
                continue
            if b"stagewright.trackers" in words and str(run).encode() in words and entry.name != str(os.getpid()):
                found.append(int(entry.name))
    return found
