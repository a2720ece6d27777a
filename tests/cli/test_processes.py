"""Commands that several processes carry out: what is refused before one is started."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from commands import typed

from stagewright.cli.processes import _count
from stagewright.errors import WorldError


@pytest.mark.parametrize(
    ("words", "given"),
    [
        (["--nproc", "2", "--budget", "1m"], "--budget with several processes"),
        (["--nproc", "2", "--folds", "3"], "--folds with several processes"),
        (["--nproc", "0"], "--nproc 0"),
        (["--nproc", "two"], "--nproc two"),
        (["--nproc", "2", "--nnodes", "2"], "--nnodes 2 without --rdzv"),
        (["--nnodes", "1:2"], "--nnodes 1:2 without --rdzv"),
        (["--nproc", "2", "--rdzv", "somewhere"], "--rdzv somewhere"),
    ],
)
def test_refused_before_a_process_is_started(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, words: list[str], given: str
) -> None:
    """And before the data are looked at: here are none."""
    monkeypatch.chdir(tmp_path)
    code, out, err = typed(capsys, monkeypatch, "train", "nowhere", "--device", "cpu", *words)
    assert (code, out) == (2, "") and given in err
    assert err.count("allowed:") == err.count("to do:") == 1
    assert list(tmp_path.iterdir()) == []


def test_a_directory_of_folds_has_one_process(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Whether the launcher is asked for, or another one has started this process."""
    (tmp_path / "folds.json").write_text("{}")
    code, _, err = typed(capsys, monkeypatch, "resume", tmp_path, "--device", "cpu", "--nproc", "2")
    assert code == 2 and "a directory of folds with several processes" in err
    place = {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "29500"}
    for name, value in place.items():
        monkeypatch.setenv(name, value)
    code, _, err = typed(capsys, monkeypatch, "resume", tmp_path, "--device", "cpu")
    assert code == 2 and "a directory of folds with several processes" in err


def test_one_process_for_each_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a machine that says that it has two."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert _count("auto", "cuda") == _count("2", "cuda") == 2
    with pytest.raises(WorldError) as caught:
        _count("3", "cuda")
    assert "--nproc 3, but this machine has 2 GPUs" in caught.value.given
    assert "1 to 2" in caught.value.allowed and "--device cpu" in caught.value.remedy
    assert _count("3", "cuda:0") == 3, "all on one device"
    assert _count("3", "cpu") == 3 and _count("auto", "cpu") == 1 and _count(None, "cuda") == 1
