"""What would fail on rented machines is refused here, with the nearest value that is right."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from commands import typed

ROLE = "arn:aws:iam::123456789012:role/training"
SAGEMAKER = ("s3://b/leaves", "--on", "sagemaker", "--role", ROLE, "--region", "us-east-1", "--mirror", "s3://b/run")
SKYPILOT = ("s3://b/leaves", "--on", "skypilot", "--gpu-type", "L4", "--mirror", "s3://b/run")
JOBSET = ("s3://b/leaves", "--on", "jobset", "--image", "example.org/s", "--mirror", "s3://b/run")


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


REFUSED: list[tuple[tuple[str, ...], str, str]] = [
    # A wrong instance type, or one with another number of GPUs.
    (
        (*SAGEMAKER, "--gpus", "4", "--instance", "ml.g5.13xlarge"),
        "is not a type of SageMaker",
        "--instance ml.g5.12xlarge",
    ),
    (
        (*SAGEMAKER, "--gpus", "4", "--instance", "g5.12xlarge"),
        "is not a type of SageMaker",
        "--instance ml.g5.12xlarge",
    ),
    (
        (*SAGEMAKER, "--gpus", "2", "--instance", "ml.g6.12xlarge"),
        "has 4 GPUs, --gpus is 2",
        "--gpus 4, or --instance ml.g7e",
    ),
    (
        (*SAGEMAKER, "--gpus", "1", "--instance", "ml.g6.12xlarge"),
        "has 4 GPUs, --gpus is 1",
        "--instance ml.g6.2xlarge",
    ),
    ((*SAGEMAKER, "--gpus", "3"), "--gpus 3 with --on sagemaker", "--gpus 4"),
    ((*SKYPILOT, "--gpu-type", "l4"), "--gpu-type l4", "--gpu-type L4"),
    ((*SKYPILOT, "--gpu-type", "A100-80"), "--gpu-type A100-80", "--gpu-type A100-80GB"),
    ((*SKYPILOT, "--cloud", "asw"), "--cloud asw", "--cloud aws"),
    ((*SKYPILOT, "--instance", "ml.g6.12xlarge"), "a type of SageMaker", "--instance g6.12xlarge"),
    # Spot without a zone, a mirror, or where there is none.
    ((*SKYPILOT, "--spot"), "--spot without --zone", "--zone any"),
    ((*SKYPILOT, "--spot", "--region", "eu-west-1"), "--spot without --zone", "--zone eu-west-1a"),
    ((*JOBSET, "--spot", "--region", "europe-west4"), "--spot without --zone", "--zone europe-west4-a"),
    ((*SKYPILOT, "--region", "eu-west-1", "--zone", "us-east-1a"), "is not in --region eu-west-1", "--zone eu-west-1a"),
    ((*SKYPILOT[:-2], "--spot", "--zone", "any"), "--spot without --mirror", "--mirror s3://BUCKET/quick"),
    ((*SAGEMAKER[:-2], "--spot"), "--spot without --mirror", "--mirror s3://BUCKET/quick"),
    ((*JOBSET[:-2],), "--on jobset without --mirror", "--mirror s3://BUCKET/quick"),
    ((*SAGEMAKER[:-1], "gs://b/run"), "--mirror gs://b/run with --on sagemaker", "--mirror s3://b/run"),
    ((*SKYPILOT[:-1], "runs/copy"), "is not reached from another machine", "--mirror s3://runs/copy"),
    (("photos", "--on", "slurm", "--spot"), "--spot with --on slurm", "--partition"),
    (("photos", "--on", "docker", "--spot"), "--spot with --on docker", "leave it out"),
    # More GPUs than the plan has lanes.
    (
        ("photos", "--on", "slurm", "--nodes", "4", "--gpus", "4", "--spread", "8"),
        "make 16 processes",
        "--nodes 2 --gpus 4",
    ),
    (
        ("photos", "--on", "slurm", "--nodes", "2", "--gpus", "8", "--spread", "4"),
        "make 16 processes",
        "--nodes 1 --gpus 4",
    ),
    (
        ("photos", "--on", "slurm", "--nodes", "40", "--gpus", "8", "-b", "64"),
        "spread 320 over batches of 64",
        "spread: 64",
    ),
    # Data that the machines do not see, and the rest.
    ((*SAGEMAKER[1:], "photos"), "is a path of this machine", "aws s3 sync photos s3://BUCKET/photos"),
    ((*JOBSET[1:], "/data/leaves", "--mount", "claim:/other"), "is a path of this machine", "s3://BUCKET/leaves"),
    ((*SAGEMAKER, "--role", "training"), "--role training", "arn:aws:iam::"),
    (("photos", "--on", "slrum"), "--on slrum", "--on slurm"),
    (("photos", "--on", "docker", "--nodes", "2"), "--nodes 2 with --on docker", "--nodes 1"),
    (("photos", "--on", "slurm", "--name", "My Run"), "--name My Run", "--name my-run"),
    (("photos", "--on", "slurm", "--time-limit", "1m"), "--time-limit 1m", "24h"),
]


@pytest.mark.parametrize(("words", "given", "remedy"), REFUSED, ids=lambda one: one if isinstance(one, str) else "")
def test_it_is_refused_with_the_nearest_right_value(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: tuple[str, ...], given: str, remedy: str
) -> None:
    last: dict[str, int] = {}  # a later value replaces an earlier one of the same option
    for at, word in enumerate(words):
        if word.startswith("--") and word in last:
            words = (*words[: last[word]], "", "", *words[last[word] + 2 :])
        last[word] = at
    code, _, err = typed(capsys, monkeypatch, "launch", *filter(None, words), "-r", "quick")
    assert code == 2 and given in err, err
    assert remedy in err.split("to do:")[1], err
    assert not Path("launch").exists()


def test_what_the_message_says_to_do_is_accepted(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["photos", "--on", "slurm", "-r", "quick", "--spread", "6", "--nodes", "3", "--gpus", "4"]
    _, _, err = typed(capsys, monkeypatch, "launch", *words)
    remedy = re.search(r"--nodes (\d+) --gpus (\d+)", err.split("to do:")[1])
    assert remedy
    code, out, err = typed(capsys, monkeypatch, "launch", *words[:7], "--nodes", remedy[1], "--gpus", remedy[2])
    assert code == 0, err
    assert "sbatch launch/quick.slurm" in out
