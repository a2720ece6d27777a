"""The batch script, carried out by SLURM itself: preempted, lost, cancelled, and finished with the bits of a run without it."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from slurm_cluster import CannotStart, Cluster, slurm_cluster

pytestmark = pytest.mark.long

ROOT = Path(__file__).parent.parent.parent
RUN = (
    *("--recipe", "quick", "--set", "model.options={width: 4}", "--set", "image_size=16", "--set", "batch_size=16"),
    *("--epochs", "40", "--set", "data.val=0.2", "--set", "data.test=0.2", "--spread", "2", "--no-pages"),
)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster of two nodes, whose programs find stagewright."""
    folder, programs = tmp_path_factory.mktemp("slurm"), tmp_path_factory.mktemp("bin")
    try:
        with slurm_cluster(folder, ("n0", "n1")) as found:
            own = programs / "stagewright"
            own.write_text(f'#!/bin/sh\nexec {sys.executable} -m stagewright "$@"\n')
            own.chmod(0o755)
            paths = {"PYTHONPATH": str(ROOT), "PATH": f"{programs}:{os.environ['PATH']}"}
            found.environment |= {**paths, "OMP_NUM_THREADS": "1"}
            yield found
    except CannotStart as reason:
        pytest.skip(f"no SLURM here: {reason}")


@pytest.fixture
def place(tmp_path: Path, picture_folder: Path) -> Path:
    """The folder in which a user works, with their pictures."""
    work = tmp_path / "work"
    work.mkdir()
    (work / "photos").symlink_to(picture_folder)
    return work


def write(cluster: Cluster, place: Path, *options: str, run: Sequence[str] = RUN) -> Path:
    """Writes the job's files with the command; returns the script."""
    cluster.call("stagewright", "launch", "photos", "--on", "slurm", "--gpus", "0", *run, *options, cwd=place)
    return place / "launch" / "quick.slurm"


def reference(cluster: Cluster, place: Path, run: Sequence[str] = RUN) -> Path:
    """The same run without SLURM."""
    cluster.call("stagewright", "train", "photos", *run, "--device", "cpu", "--quiet", "--out", "alone", cwd=place)
    return place / "alone"


def same_bits(one: Path, other: Path) -> bool:
    names = ("model/weights.safetensors", "metrics.csv")
    return all((one / name).read_bytes() == (other / name).read_bytes() for name in names)


def until_step(place: Path, least: int, seconds: float = 180) -> None:
    """Waits until the run has logged so many steps."""
    end = time.monotonic() + seconds
    path = place / "runs" / "quick" / "steps.csv"
    while not path.exists() or path.read_text().count("\n") <= least:
        assert time.monotonic() < end, [log.read_text() for log in (place / "launch").glob("*.log")]
        time.sleep(0.1)


def log_of(place: Path) -> str:
    return "\n".join(path.read_text() for path in (place / "launch").glob("*.log"))


def finished(cluster: Cluster, number: str, place: Path, restarts: int, run: Sequence[str] = RUN) -> None:
    """The job ends well, started again so often, with the bits of the run without SLURM."""
    found = cluster.wait(number, "COMPLETED", "FAILED", "CANCELLED", seconds=240)
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("COMPLETED", "0:0", str(restarts)), log_of(
        place
    )
    assert same_bits(place / "runs" / "quick", reference(cluster, place, run))


def test_a_preempted_job_is_queued_again_and_ends_with_the_same_bits(cluster: Cluster, place: Path) -> None:
    number = cluster.submit(write(cluster, place, "--partition", "low"), "--exclusive", "--nodelist", "n0", cwd=place)
    until_step(place, 20)
    urgent = ("sbatch", "--parsable", "--partition", "high", "--exclusive", "--nodelist", "n0", "--wrap", "true")
    cluster.wait(cluster.call(*urgent, "--output", "/dev/null", cwd=place), "COMPLETED")
    finished(cluster, number, place, 1)
    assert "saved" in log_of(place)


def test_a_signal_to_the_batch_shell_before_the_time_limit_saves_and_queues_again(
    cluster: Cluster, place: Path
) -> None:
    number = cluster.submit(write(cluster, place), cwd=place)
    until_step(place, 20)
    cluster.call("scancel", "--batch", "--signal=TERM", number)  # as --signal=B:TERM@120 does
    finished(cluster, number, place, 1)


def test_two_nodes_of_which_one_loses_its_rank(cluster: Cluster, place: Path) -> None:
    run = [{"40": "200"}.get(word, word) for word in RUN]
    number = cluster.submit(write(cluster, place, "--nodes", "2", run=run), cwd=place)
    until_step(place, 20)
    ranks = subprocess.run(
        ["pgrep", "-f", "stagewright train photos .*--nnodes 2"], capture_output=True, text=True, check=True
    )
    of_job = [int(pid) for pid in ranks.stdout.split() if f"SLURM_JOB_ID={number}" in environ(int(pid))]
    lost = [pid for pid in of_job if "LOCAL_RANK=" in environ(pid)]
    assert len(lost) == 2
    os.kill(lost[1], signal.SIGKILL)
    finished(cluster, number, place, 1, run)


def test_a_cancelled_job_and_one_with_bad_input_are_not_queued_again(cluster: Cluster, place: Path) -> None:
    number = cluster.submit(write(cluster, place), cwd=place)
    until_step(place, 20)
    cluster.call("scancel", number)
    assert cluster.wait(number, "CANCELLED", "COMPLETED", "FAILED")["JobState"] == "CANCELLED"
    (place / "photos").unlink()
    bad = cluster.submit(place / "launch" / "quick.slurm", cwd=place)
    found = cluster.wait(bad, "COMPLETED", "FAILED")
    assert (found["JobState"], found["ExitCode"], found["Restarts"]) == ("FAILED", "2:0", "0")
    time.sleep(8)  # longer than a job that is queued again must wait
    found = cluster.job(number)
    assert (found["JobState"], found["Restarts"]) == ("CANCELLED", "0")


def environ(pid: int) -> str:
    """The environment with which a process was started."""
    return Path(f"/proc/{pid}/environ").read_bytes().replace(b"\0", b"\n").decode()
