"""Memory in use: what is read, where it is written down."""

from __future__ import annotations

import json
import mmap
from pathlib import Path

import numpy as np
import pytest
import torch

import stagewright as sw
from stagewright.plan.execution import Execution
from stagewright.report.write import write
from stagewright.rundir.event_kinds import Evaluated, MemoryUse
from stagewright.rundir.event_lines import without_clock
from stagewright.rundir.event_text import sentence
from stagewright.rundir.events import read_events
from stagewright.system.memory import memory_in_use, peak_gb, reset_peak

CPU = torch.device("cpu")
SMALL = ["model.options={width: 4}", "image_size=16", "batch_size=16", "epochs=2ep", "data.val=0.2", "data.test=0.2"]

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/status").exists(), reason="resident memory is read from Linux's /proc"
)


def test_the_peak_of_a_stretch() -> None:
    reset_peak(CPU)
    base = peak_gb(CPU)
    # 256 MiB of the system's own: what malloc gave, the process may keep (stagewright.system.machine.disable_malloc_trim).
    with mmap.mmap(-1, 2**28) as block:
        np.frombuffer(block, np.uint8)[:] = 1
    assert peak_gb(CPU) - base > 0.2
    reset_peak(CPU)
    assert peak_gb(CPU) - base < 0.1
    now = memory_in_use(CPU)
    assert set(now) == {"resident_gb", "peak_gb"} and 0.01 < now["resident_gb"] <= now["peak_gb"] + 0.001


def test_a_run_tells_its_memory_at_fixed_points_and_its_peak_by_stage(picture_folder: Path, tmp_path: Path) -> None:
    quiet = Execution(device="cpu", workers=0, pages=False, quiet=True)
    run = sw.train(
        picture_folder, "quick", overrides=SMALL, out=tmp_path / "run", execution=quiet, say=lambda text: None
    )
    events = [one.event for one in read_events(run.path / "events.jsonl") if isinstance(one.event, MemoryUse)]
    assert list(events[0].points) == [
        *("at the start", "with the data read", "before the model", "with the model on the device")
    ]
    evaluations = [one for one in read_events(run.path / "events.jsonl") if isinstance(one.event, Evaluated)]
    assert len(events) == 1 + len(evaluations)
    assert list(events[-1].points) == ["at the end of the epoch", "after its evaluation"]
    assert without_clock(events[0]) == {"kind": "memory", "step": 0}  # all of it depends on the machine
    peaks = run.summary["memory_gb"]
    assert set(peaks) == {"learn", "settle"} and all(0.01 < peak < 100 for peak in peaks.values())
    told = sentence(events[0])
    assert told is not None and told in (run.path / "log.txt").read_text()
    page = write(run.path).read_text()
    assert '<th class="n">GB</th>' in page and page.count(f'<td class="n">{peaks["learn"]:.2f}</td>') >= 1
    env = json.loads((run.path / "env.json").read_text())
    assert "budget" not in env
