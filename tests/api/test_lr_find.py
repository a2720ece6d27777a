"""A learning rate from Python: that of the command, shown in a notebook, without files unless a folder is given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from commands import typed

import stagewright as sw
from stagewright.api.lr_find import LearningRates
from stagewright.errors import RangeTestError

QUIET = sw.Execution(device="cpu", workers=0, pages=False, quiet=True)
GIVEN: dict[str, Any] = {"model": "cifar_resnet18", "batch_size": 16, "image_size": 16, "seed": 1}
SMALL = ["model.options={width: 4}"]


def test_it_is_that_of_the_command(
    picture_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    found = sw.lr_find(
        picture_folder, "quick", overrides=SMALL, steps=60, lr_min=1e-4, execution=QUIET, say=lambda text: None, **GIVEN
    )
    assert (
        isinstance(found, LearningRates)
        and list(tmp_path.iterdir()) == []
        and 1e-4 < found.lr < 10
        and len(found.test.lrs) <= 60
    )
    flags = ["--model", "cifar_resnet18", "-b", 16, "--img-size", 16, "--seed", 1, "--set", SMALL[0], "--workers", 0]
    command = ("lr-find", picture_folder, "-r", "quick", *flags, "--steps", 60, "--lr-min", 1e-4, "--device", "cpu")
    code, out, err = typed(capsys, monkeypatch, *command, "--json", "-q")
    assert code == 0, err
    assert json.loads(out)["lr"] == found.lr == found.suggestions.lr
    written = np.loadtxt("lr-find/lr-find.csv", delimiter=",", skiprows=1)
    assert np.allclose(written[:, 1], found.test.lrs) and np.allclose(written[:, 2], found.test.losses)
    html = found._repr_html_()
    assert "valley (chosen)" in html and "<svg" in html and found.plot().png == Path("lr-find/lr-find.png").read_bytes()


def test_where_nothing_is_found_no_file_is_named(picture_folder: Path) -> None:
    with pytest.raises(RangeTestError) as caught:
        sw.lr_find(
            *(picture_folder, "quick"),
            overrides=SMALL,
            steps=60,
            lr_min=1e-12,
            lr_max=1e-9,
            execution=QUIET,
            say=lambda text: None,
            **GIVEN,
        )
    assert "lr-find.png" not in str(caught.value)
