"""doctor on a machine for runs: what is slow and what will fail, measured."""

from __future__ import annotations

import resource
from collections import namedtuple
from pathlib import Path

import pytest

from stagewright.errors import StorageError
from stagewright.preflight import doctor_machine
from stagewright.preflight.doctor import to_dicts
from stagewright.preflight.interconnect import measure_interconnect

USAGE = namedtuple("USAGE", "total used free")


def test_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    good = doctor_machine._disk(tmp_path / "runs")
    assert "MB/s written, fsync" in good.text and not list(tmp_path.iterdir())
    monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda folder: USAGE(10**12, 10**12, 10**9))
    full = doctor_machine._disk(tmp_path)
    assert full.verdict == "slow" and "1.0 GB free. Remedy: free some space" in full.text
    monkeypatch.setattr(doctor_machine, "_WRITE_BYTES", 10**18)
    assert doctor_machine._disk(tmp_path).verdict == "will fail"


def test_limits(monkeypatch: pytest.MonkeyPatch) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (1024, hard))
        files = doctor_machine._limits()[0]
        assert files.verdict == "slow" and "up to 1,024" in files.text and "Remedy: ulimit -n" in files.text
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    monkeypatch.setattr(doctor_machine.shutil, "disk_usage", lambda folder: USAGE(64 << 20, 0, 64 << 20))
    memory = doctor_machine._limits()[1]
    assert memory.verdict == "slow" and "--shm-size 8g" in memory.text


def test_a_store_without_rights_will_fail_and_one_without_conditions_is_named() -> None:
    def refused() -> bool:
        raise StorageError("s3://b/x: no right to write", "the right", "ask for s3:PutObject")

    checks = [doctor_machine.store_check("s3://b/x", trial) for trial in (lambda: True, lambda: False, refused)]
    assert [one["verdict"] for one in to_dicts(checks)] == ["ok", "slow", "will fail"]
    assert "--mirror-unfenced" in checks[1].text and "Remedy: ask for s3:PutObject" in checks[2].text


@pytest.mark.parametrize(
    ("ahead", "inexact", "verdict", "text"),
    [
        (0.3, 0.5, "ok", "within 0.8 s of the clock of s3://b/x; compare with the other hosts"),
        (-30.4, 0.5, "ok", "within 30.9 s"),
        (31.0, 0.5, "slow", "31 s ahead of the clock of s3://b/x: leases of predict --claim"),
        (
            -1000.0,
            0.5,
            "will fail",
            "1,000 s behind the clock of s3://b/x: stores refuse such requests. Remedy: set it by NTP",
        ),
    ],
)
def test_a_clock_that_is_wrong(ahead: float, inexact: float, verdict: str, text: str) -> None:
    check = doctor_machine.clock_check("s3://b/x", ahead, inexact)
    assert check.verdict == verdict and text in check.text


def test_processes_that_cannot_reach_each_other_will_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "none0")
    found = doctor_machine.interconnect(2, "cpu", 0.1)
    assert found.verdict == "will fail" and "GLOO_SOCKET_IFNAME" in found.text


def test_two_processes_have_a_rate_and_the_same_bits() -> None:
    found = measure_interconnect(2, "cpu", seconds=0.2)
    assert found.same_bits and found.ranks == 2 and 1e6 < found.all_to_all < 1e12 and found.all_reduce > 1e6


@pytest.mark.long
def test_threads_that_spin_are_found() -> None:
    found = doctor_machine._threads(1.0)
    assert "OMP_WAIT_POLICY=PASSIVE" in found.text or found.text == "one core"
