"""The examples run as they stand, and do what they say."""

from __future__ import annotations

import copy
import importlib.util
import re
import subprocess
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch.amp.grad_scaler import GradScaler

from stagewright.engine.optim import make_optimizer
from stagewright.engine.state import TrainState
from stagewright.model.groups import parameter_groups

EXAMPLES = Path(__file__).parent.parent / "examples"


def test_minimal_learns_digits() -> None:
    done = subprocess.run([sys.executable, EXAMPLES / "minimal.py"], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    line = re.fullmatch(r"test top-1: (\S+) % with .*, (\S+) % with their moving average", done.stdout.splitlines()[-1])
    assert line is not None and min(map(float, line.groups())) > 90


@pytest.fixture
def minimal() -> ModuleType:
    spec = importlib.util.spec_from_file_location("minimal", EXAMPLES / "minimal.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def new_state(minimal: Any) -> TrainState:
    torch.manual_seed(0)
    model = minimal.network()
    optimizer = make_optimizer(parameter_groups(model, 5e-4, False), "sgd", lr=0.1, momentum=0.9, nesterov=True)
    return TrainState(model, model, optimizer, GradScaler("cpu", enabled=False))


def test_minimal_goes_on_from_any_step_as_it_says(minimal: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    pictures, labels, _, _ = minimal.load()
    monkeypatch.setattr(minimal, "STEPS", 6)
    kept: dict[int, Any] = {}
    step = minimal.train_step

    def keep_then_step(state: TrainState, *given: Any, **named: Any) -> Any:
        kept[state.step] = copy.deepcopy(state.content())
        return step(state, *given, **named)

    monkeypatch.setattr(minimal, "train_step", keep_then_step)
    whole = new_state(minimal)
    minimal.train(whole, pictures, labels)
    monkeypatch.setattr(minimal, "train_step", step)
    for stopped_at in range(6):
        again = new_state(minimal)
        again.restore(kept[stopped_at])
        minimal.train(again, pictures, labels, first_step=stopped_at)
        for own, other in (
            (whole.model.state_dict(), again.model.state_dict()),
            (whole.average.state(), again.average.state()),
        ):
            assert all(torch.equal(own[name], other[name]) for name in own) and own.keys() == other.keys()
