"""The container's entry, in a folder laid out as SageMaker's ``/opt/ml`` in a mount namespace of its own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

import stagewright as sw

ROOT = Path(__file__).parent.parent.parent
ENTRY = (sys.executable, "-m", "stagewright.launch.sagemaker_entry")
SMALL = [
    *("model.options={width: 4}", "image_size=16", "batch_size=16", "epochs=12ep", "data.val=0.2", "data.test=0.2"),
]
PARAMETERS = {
    "recipe": "quick",
    "set": json.dumps(SMALL),
    "gpus": "0",
    "no-pages": "true",
    "sagemaker_region": '"us-east-1"',
}


def layout(folder: Path, parameters: Mapping[str, Any], pictures: Path | None = None, **config: Any) -> Path:
    """A folder as SageMaker lays out ``/opt/ml``, with the pictures as the channel ``training``."""
    ml = folder / "ml"
    for name in ("input/config", "input/data", "model", "output", "checkpoints"):
        (ml / name).mkdir(parents=True)
    if pictures is not None:
        shutil.copytree(pictures, ml / "input/data/training")
        config["inputdataconfig"] = {"training": {"TrainingInputMode": "File", "S3DistributionType": "FullyReplicated"}}
    for name, content in {"hyperparameters": parameters, **config}.items():
        (ml / f"input/config/{name}.json").write_text(json.dumps(content))
    return ml


def started(ml: Path, host: str = "algo-1", hosts: Path | None = None) -> subprocess.Popen[str]:
    """The entry, in a namespace in which ``ml`` is ``/opt/ml`` and the host's name is ``host``."""
    names = f"mount --bind {hosts} /etc/hosts && " if hosts else ""
    inside = (
        f'mount -t tmpfs none /opt && mkdir /opt/ml && mount --bind "$0" /opt/ml && {names}hostname {host} && exec "$@"'
    )
    user = [] if os.geteuid() == 0 else ["--map-root-user"]
    trial = ["unshare", "--mount", "--uts", *user, "sh", "-c", inside, str(ml)]
    able = subprocess.run([*trial, "true"], capture_output=True, text=True, check=False)
    if able.returncode:
        pytest.skip(f"no mount namespace here: {able.stderr.strip()}")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*trial, *ENTRY], env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def ended(process: subprocess.Popen[str], code: int) -> str:
    """What the entry has said, once it has ended with ``code``."""
    out, err = process.communicate(timeout=240)
    assert process.returncode == code, out + err
    return out + err


def until_step(ml: Path, least: int, process: subprocess.Popen[str], seconds: float = 120) -> None:
    """Waits until the run has logged so many steps."""
    end, steps = time.monotonic() + seconds, ml / "checkpoints/run/steps.csv"
    while not steps.exists() or steps.read_text().count("\n") <= least:
        assert time.monotonic() < end and process.poll() is None, process.communicate()
        time.sleep(0.02)


def restored(ml: Path, *, follow: bool) -> None:
    """Replaces the checkpoints by what comes back from S3: no links or copies in their place, other times, no empty folders."""
    kept = ml / "kept"
    shutil.move(ml / "checkpoints", kept)
    (ml / "checkpoints").mkdir()
    for path in sorted(kept.rglob("*")):
        linked = any(part.is_symlink() for part in (path, *path.parents) if part.is_relative_to(kept))
        files = path.rglob("*") if path.is_symlink() and follow and path.is_dir() else [path]
        for file in files if follow or not linked else ():
            if file.is_file():
                target = ml / "checkpoints" / path.relative_to(kept) / file.relative_to(path)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target)
    shutil.rmtree(kept)


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory, picture_folder: Path) -> Path:
    """The same run without SageMaker and without an end before its time."""
    quiet = sw.Execution(device="cpu", pages=False, quiet=True)
    out = tmp_path_factory.mktemp("reference") / "run"
    return sw.train(picture_folder, "quick", overrides=SMALL, out=out, execution=quiet, say=lambda text: None).path


@pytest.mark.long
@pytest.mark.parametrize("follow", [False, True])
def test_stopped_moved_through_s3_and_started_again_with_the_same_bits(
    tmp_path: Path, picture_folder: Path, reference: Path, follow: bool
) -> None:
    hosts = {"current_host": "algo-1", "hosts": ["algo-1"], "network_interface_name": "eth0"}
    ml = layout(tmp_path, PARAMETERS, picture_folder, resourceconfig=hosts)
    process = started(ml)
    until_step(ml, 6, process)
    process.send_signal(signal.SIGTERM)
    ended(process, 75)
    assert not (ml / "output/failure").exists() and not list((ml / "model").iterdir())
    restored(ml, follow=follow)
    assert "[METRICS] epoch=" in ended(started(ml), 0)
    for name in ("weights.safetensors", "model.json"):
        assert (ml / "model" / name).is_file()
    assert (ml / "model/weights.safetensors").read_bytes() == (reference / "model/weights.safetensors").read_bytes()
    assert (ml / "checkpoints/run/metrics.csv").read_bytes() == (reference / "metrics.csv").read_bytes()
    assert '"status": "finished"' in (ml / "model/summary.json").read_text() and not (ml / "output/failure").exists()


@pytest.mark.long
def test_two_hosts_meet_and_the_one_that_leads_has_the_model(tmp_path: Path, picture_folder: Path) -> None:
    names = tmp_path / "hosts"
    names.write_text("127.0.0.1 localhost algo-1 algo-2\n")
    places: list[Path] = []
    for host in ("algo-1", "algo-2"):
        config = {"current_host": host, "hosts": ["algo-2", "algo-1"], "network_interface_name": "lo"}
        pictures = None
        places.append(layout(tmp_path / host, {**PARAMETERS, "spread": "2"}, pictures, resourceconfig=config))
        shutil.copytree(picture_folder, places[-1] / "input/data/training")
        (places[-1] / "input/config/inputdataconfig.json").write_text('{"training": {}}')
    both = [started(ml, host, names) for ml, host in zip(places, ("algo-1", "algo-2"), strict=True)]
    for process in both:
        ended(process, 0)
    # Both share the network's loopback, so that either may lead.
    assert sorted((ml / "model/weights.safetensors").is_file() for ml in places) == [False, True]


def test_the_first_bytes_of_the_error_are_in_the_failure_file(tmp_path: Path, picture_folder: Path) -> None:
    wrong = {**PARAMETERS, "set": json.dumps(["optimizer.nmae=sgd", *(f"optimizer.né{at}=1" for at in range(200))])}
    ml = layout(tmp_path, wrong, picture_folder)
    ended(started(ml), 2)
    failure = (ml / "output/failure").read_bytes()
    assert failure.decode().startswith("error: ") and "nmae" in failure.decode() and 1000 < len(failure) <= 1024


@pytest.mark.parametrize(
    ("parameters", "said"),
    [
        ({"recipe": "quick", "epoch": "3"}, "'epoch' is unknown"),
        ({"recipe": "quick", "epochs": 3}, "the hyperparameter epochs is 3"),
        ({"recipe": "quick", "set": "lr.peak=0.1"}, "a list of texts as JSON"),
        ({"recipe": "quick", "tiny": "yes"}, "true or false"),
        ({"recipe": "quick"}, "no data: the channels are none"),
    ],
)
def test_what_is_wrong_before_the_run_is_told_too(tmp_path: Path, parameters: dict[str, Any], said: str) -> None:
    ml = layout(tmp_path, parameters)
    assert said in ended(started(ml), 2)
    assert said in (ml / "output/failure").read_text()
