"""What ``doctor`` finds of a machine for runs: GPUs, disk, limits, threads, the way between processes, the store of a mirror."""

from __future__ import annotations

import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch.cuda.nccl import version as nccl_version

from stagewright.errors import StagewrightError
from stagewright.preflight.doctor import Check
from stagewright.preflight.interconnect import BYTES, measure_interconnect
from stagewright.storage.files import check_room
from stagewright.system.machine import cores
from stagewright.text import number_text

_OPEN_FILES = 4096
_SHM_BYTES = 2 * 10**9
_FSYNC_MS = 50.0
_WRITE_BYTES = 64 << 20
_ROOM_BYTES = 10 * 10**9
_SLOW_LINK = {"cuda": 2e9, "cpu": 2e8}
"""Bytes a second between processes below which sending takes a share of each update that is felt."""
_SPUN = 1.5
_CLOCK_SECONDS = 30.0
_STORE_REFUSES_SECONDS = 900.0
"""S3 refuses requests signed by a clock that is further away (RequestTimeTooSkewed)."""

_SPIN = """
import sys, time
import torch
torch.set_num_threads(2)
x = torch.randn(256, 256)
for _ in range(50): x @ x
began, done = time.perf_counter(), 0
while time.perf_counter() - began < float(sys.argv[1]):
    for _ in range(10): torch.relu(x @ x).sum()
    done += 10
print(done / (time.perf_counter() - began))
"""


def machine_checks(folder: Path, *, ranks: int | None = None, seconds: float = 5.0) -> list[Check]:
    """Returns the checks of this machine; ``folder`` is where runs will lie. ``ranks``: processes between which the rates are
    measured; None: as many as there are GPUs, if there are several."""
    gpus = torch.cuda.device_count()
    ranks = ranks or (gpus if gpus > 1 else None)
    checks = [*_gpus(), _disk(folder), *_limits(), _threads(min(2.0, seconds))]
    return checks if ranks is None else [*checks, interconnect(ranks, "cuda" if gpus >= ranks else "cpu", seconds)]


def _gpus() -> list[Check]:
    """Returns a check of the driver, of NCCL and of peer access; none without GPUs."""
    if not torch.cuda.is_available():
        if shutil.which("nvidia-smi") is None:
            return []
        remedy = "install a driver for this version of torch, or a torch for this driver"
        text = f"nvidia-smi is there, but torch finds no GPU (built for CUDA {torch.version.cuda}). Remedy: {remedy}"
        return [Check("driver", False, text, fails=True)]
    count = torch.cuda.device_count()
    major = {torch.cuda.get_device_properties(at).name for at in range(count)}
    nccl = ".".join(map(str, nccl_version())) if torch.distributed.is_nccl_available() else "none"
    checks = [Check("GPUs", len(major) == 1, f"{count} x {', '.join(sorted(major))}, NCCL {nccl}")]
    pairs = [(a, b) for a in range(count) for b in range(count) if a != b]
    closed = [pair for pair in pairs if not torch.cuda.can_device_access_peer(*pair)]
    if pairs:
        text = f"{len(pairs) - len(closed)} of {len(pairs)} pairs of GPUs reach each other's memory"
        remedy = (
            ""
            if not closed
            else ". What they send goes through the host. Remedy: a machine with NVLink, or larger batches"
        )
        checks.append(Check("peer access", not closed, text + remedy))
    return checks


def _disk(folder: Path) -> Check:
    """Returns the rate of writing, the time of one fsync, and the free space where runs will lie."""
    place = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.is_dir())
    try:
        check_room(place, _WRITE_BYTES)
        with tempfile.NamedTemporaryFile(dir=place, prefix=".stagewright-doctor-") as file:
            block = os.urandom(1 << 20)
            began = time.perf_counter()
            for _ in range(_WRITE_BYTES >> 20):
                file.write(block)
            file.flush()
            os.fsync(file.fileno())
            rate = _WRITE_BYTES / (time.perf_counter() - began)
            times = []
            for _ in range(5):
                file.write(b"x")
                file.flush()
                began = time.perf_counter()
                os.fsync(file.fileno())
                times.append(time.perf_counter() - began)
    except Exception as error:
        return Check(
            "disk", False, f"{place}: {error}. Remedy: start where runs/ can be written, or give --out", fails=True
        )
    free, sync = shutil.disk_usage(place).free, 1000 * sorted(times)[2]
    text = f"{place}: {rate / 1e6:,.0f} MB/s written, fsync {sync:.1f} ms, {free / 1e9:,.1f} GB free"
    if free < _ROOM_BYTES:
        return Check("disk", False, f"{text}. Remedy: free some space; checkpoints of large networks need several GB")
    if sync > _FSYNC_MS:
        return Check("disk", False, f"{text}. Remedy: save less often (--save-minutes), or another disk for runs")
    return Check("disk", True, text)


def _limits() -> list[Check]:
    """Returns the limits of open files and of shared memory."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = Check("open files", True, f"up to {soft:,}")
    if soft != resource.RLIM_INFINITY and soft < _OPEN_FILES:
        remedy = f"ulimit -n {min(hard, 65_536) if hard > soft else 65_536}"
        files = Check(
            "open files", False, f"up to {soft:,}, which many processes can use up. Remedy: {remedy}", soft < 256
        )
    memory = Path("/dev/shm")
    if not memory.is_dir():
        return [files]
    room = shutil.disk_usage(memory).total
    text = f"/dev/shm has {room / 1e9:,.1f} GB"
    if room >= _SHM_BYTES:
        return [files, Check("shared memory", True, text)]
    fails = torch.cuda.device_count() > 1  # NCCL puts what GPUs of one machine send each other there
    return [files, Check("shared memory", False, f"{text}. Remedy: docker run --shm-size 8g", fails)]


def _threads(seconds: float) -> Check:
    """Returns whether two threads that compute wait for each other by spinning while another process uses a core, measured with
    and without a passive wait."""
    if cores() < 2:
        return Check("threads", True, "one core")
    busy = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        usual, passive, short = (
            _rate(seconds, more) for more in ({}, {"OMP_WAIT_POLICY": "PASSIVE"}, {"GOMP_SPINCOUNT": "1000"})
        )
    finally:
        busy.kill()
        busy.wait()
    best = max(passive, short)
    text = f"two beside a busy process: {number_text(usual)} products/s, {number_text(passive)} with OMP_WAIT_POLICY=PASSIVE, "
    text += f"{number_text(short)} with GOMP_SPINCOUNT=1000"
    if best > _SPUN * usual:
        name = "OMP_WAIT_POLICY=PASSIVE" if passive >= short else "GOMP_SPINCOUNT=1000"
        return Check(
            "threads", False, f"{text}. Remedy: export {name}, or --threads 1, where other processes compute too"
        )
    return Check("threads", True, text)


def _rate(seconds: float, more: dict[str, str]) -> float:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    words = [sys.executable, "-P", "-c", _SPIN, str(seconds)]
    return float(subprocess.run(words, env={**clean, **more}, capture_output=True, text=True, check=True).stdout)


def store_check(url: str, trial: Callable[[], bool]) -> Check:
    """Returns whether the store at ``url`` gives the rights that a mirror needs, and carries out conditional writes.

    ``trial`` tries them; it returns whether conditional writes work, and raises StagewrightError for a right that is missing."""
    try:
        conditional = trial()
    except StagewrightError as error:
        remedy = f". Remedy: {error.remedy}" if error.remedy else ""
        return Check("mirror", False, f"{error.given}{remedy}", fails=True)
    if not conditional:
        text = f"{url}: no conditional writes. Remedy: --mirror-unfenced, and one process at a time"
        return Check("mirror", False, text)
    return Check("mirror", True, f"{url}: written, read, listed and deleted; conditional writes work")


def clock_check(url: str, ahead: float, inexact: float) -> Check:
    """Returns whether this machine's clock is ``ahead`` seconds of that of the store at ``url``, exact to ``inexact`` seconds, as
    the clocks of all hosts should agree with it."""
    away = max(0.0, abs(ahead) - inexact)
    how = f"{abs(ahead):,.0f} s {'ahead of' if ahead > 0 else 'behind'} the clock of {url}"
    if away < _CLOCK_SECONDS:
        return Check(
            "clock", True, f"within {abs(ahead) + inexact:.1f} s of the clock of {url}; compare with the other hosts"
        )
    fails = away > _STORE_REFUSES_SECONDS
    why = "stores refuse such requests" if fails else "leases of predict --claim and times in logs are wrong by that"
    return Check("clock", False, f"{how}: {why}. Remedy: set it by NTP (chrony, systemd-timesyncd)", fails=fails)


def interconnect(ranks: int, device: str, seconds: float) -> Check:
    """Returns the rates between ``ranks`` processes of this machine, and whether they get the same bits."""
    try:
        found = measure_interconnect(ranks, device, seconds=seconds)
    except RuntimeError as error:
        remedy = "GLOO_SOCKET_IFNAME or NCCL_SOCKET_IFNAME names the network; NCCL_DEBUG=INFO says more"
        return Check("between processes", False, f"{error}. Remedy: {remedy}", fails=True)
    text = (
        f"{found.ranks} processes ({found.backend}), {BYTES >> 20} MB: all-reduce {found.all_reduce / 1e9:.2f} GB/s, "
    )
    text += f"all-to-all {found.all_to_all / 1e9:.2f} GB/s"
    if not found.same_bits:
        return Check(
            "between processes", False, f"{text}; they do NOT get the same bits. Remedy: replace the machine", True
        )
    if min(found.all_reduce, found.all_to_all) < _SLOW_LINK[device]:
        return Check("between processes", False, f"{text}; the same bits. Remedy: fewer processes, or larger batches")
    return Check("between processes", True, f"{text}; the same bits")
