"""doctor: each check can be good and not good, and says what is so."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import namedtuple
from pathlib import Path

import pytest

from stagewright.data.images import native
from stagewright.preflight import doctor
from stagewright.preflight.doctor import cache_check, decoder, run_checks


def test_the_checks_of_this_machine_name_what_they_are_about() -> None:
    checks = {check.name: check for check in run_checks(seconds=0.05)}
    assert list(checks) == ["versions", "machine", "device", "cache", "decoder"]
    assert checks["versions"].good and "torch" in checks["versions"].text and "None" not in checks["versions"].text
    assert "cores" in checks["machine"].text
    assert checks["device"].good == ("no CUDA device" not in checks["device"].text)
    assert "CUDA None" not in checks["device"].text


def test_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = cache_check(tmp_path / "deep" / "cache")
    assert good.good and (tmp_path / "deep/cache").is_dir() and list((tmp_path / "deep/cache").iterdir()) == []
    (tmp_path / "file").write_text("")
    bad = cache_check(tmp_path / "file" / "cache")
    assert not bad.good and "cannot be written" in bad.text and "STAGEWRIGHT_CACHE" in bad.text
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(doctor.shutil, "disk_usage", lambda folder: usage(10**12, 10**12, 5 * 10**8))
    full = cache_check(tmp_path)
    assert not full.good and "0.5 GB free. To improve this: free some space" in full.text


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_cache_of_another_user(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    assert not cache_check(tmp_path).good


def test_decoder_that_is_built() -> None:
    found = decoder(0.05)
    assert found.good == native.available()
    assert ("crops/s" in found.text) and (found.good or "To improve this: " in found.text)


def test_decoder_that_is_switched_off_is_not_to_be_installed() -> None:
    code = "from stagewright.preflight.doctor import decoder; found = decoder(0.05); print(found.good, found.text)"
    environment = {**os.environ, "STAGEWRIGHT_NATIVE": "0"}
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("False Pillow: the native decoder is switched off")
    assert "To improve this: unset STAGEWRIGHT_NATIVE;" in said and "compiler" not in said
