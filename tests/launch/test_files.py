"""The files of a job, judged by those who read them: AWS's own library, shellcheck, hadolint, SkyPilot, Kubernetes."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import botocore.session
import pytest
import yaml
from botocore.validate import ParamValidator
from commands import typed
from launch_env import python_with, run_with
from sample_events import make_event

from stagewright.launch.image import installed_versions
from stagewright.launch.instances import SAGEMAKER, SKYPILOT_GPUS
from stagewright.launch.sagemaker import MADE_BY, METRICS, metric_pattern
from stagewright.observers.metric_lines import metric_line
from stagewright.rundir.event_kinds import Evaluated

Write = Callable[..., tuple[Path, str]]
ROLE = "arn:aws:iam::123456789012:role/training"
SAGEMAKER_JOB = ("s3://photos/leaves", "--on", "sagemaker", "--gpus", "4", "--role", ROLE, "--region", "us-east-1")
JOBS: dict[str, tuple[str, ...]] = {
    "slurm": ("photos", "--on", "slurm", "--nodes", "2", "--gpus", "4"),
    "docker": ("my photos", "--on", "docker", "--gpus", "2", "--mount", "/big disk:/weights"),
    "sagemaker": (*SAGEMAKER_JOB, "--nodes", "2", "--spot", "--mirror", "s3://runs/leaves"),
    "skypilot": (
        *(
            "s3://photos/leaves",
            "--on",
            "skypilot",
            "--nodes",
            "2",
            "--gpus",
            "4",
            "--gpu-type",
            "L4",
            "--cloud",
            "aws",
        ),
        *("--spot", "--mirror", "s3://runs/leaves", "--zone", "us-east-1a"),
    ),
    "jobset": (
        *("/data/leaves", "--on", "jobset", "--nodes", "2", "--gpus", "4", "--cpus", "16", "--mount", "leaves:/data"),
        *("--spot", "--mirror", "s3://runs/leaves", "--zone", "us-east-1a", "--image", "example.org/stagewright:1"),
    ),
}
MORE = ("-r", "standard", "--set", "optimizer.weight_decay=0.05", "--set", "model.options={width: 4}", "--seed", "3")


@pytest.fixture
def written(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Write:
    """A function that types ``launch`` with the words of a job and returns the folder with its files, and what was printed."""
    monkeypatch.chdir(tmp_path)

    def write(*words: str) -> tuple[Path, str]:
        code, out, err = typed(capsys, monkeypatch, "launch", *words)
        assert code == 0, err
        return tmp_path / "launch", out + err

    return write


@pytest.fixture(params=list(JOBS))
def job(request: pytest.FixtureRequest, written: Write) -> tuple[str, Path, str]:
    return (request.param, *written(*JOBS[request.param], *MORE))


def test_each_file_carries_the_command_that_made_it_and_the_next_one_is_said(job: tuple[str, Path, str]) -> None:
    target, folder, said = job
    typed_words = f"stagewright launch {'s3://photos' if target in ('sagemaker', 'skypilot') else ''}"
    for path in folder.iterdir():
        assert typed_words in path.read_text(), path.name
    assert "nothing was started" in said and f"launch/standard.{'sky' if target == 'skypilot' else ''}" in said
    starts = {
        "slurm": "sbatch",
        "docker": "bash",
        "sagemaker": "aws sagemaker",
        "skypilot": "sky jobs",
        "jobset": "kubectl",
    }
    assert starts[target] in said


def test_scripts_pass_shellcheck_and_images_hadolint(job: tuple[str, Path, str]) -> None:
    target, folder, _ = job
    scripts = [path for path in folder.iterdir() if path.read_text().startswith("#!")]
    assert len(scripts) == (target in ("slurm", "docker"))
    if target == "skypilot":  # what its machines run is a script too
        task = yaml.safe_load((folder / "standard.sky.yaml").read_text())
        scripts = [folder / "setup.sh", folder / "run.sh"]
        for path, part in zip(scripts, ("setup", "run"), strict=True):
            path.write_text(f"#!/bin/bash\n{task[part]}")
    for script in scripts:
        found = subprocess.run([tool("shellcheck"), str(script)], capture_output=True, text=True, check=False)
        assert found.returncode == 0, found.stdout
    if (dockerfile := folder / "Dockerfile").exists():
        found = subprocess.run([tool("hadolint"), str(dockerfile)], capture_output=True, text=True, check=False)
        assert (found.returncode, found.stdout) == (0, "")


def test_the_image_is_slim_pinned_not_root_and_gets_signals(written: Write) -> None:
    folder, _ = written(*JOBS["docker"], *MORE)
    lines = (folder / "Dockerfile").read_text().splitlines()
    bases = [line for line in lines if line.startswith("FROM ")]
    assert all(re.match(rf"FROM python:3\.{sys.version_info.minor}-slim-", base) for base in bases) and len(bases) == 2
    assert "USER ${USER_ID}" in lines and "ARG USER_ID=1000" in lines and 'ENTRYPOINT ["stagewright"]' in lines
    pins = (folder / "constraints.txt").read_text().splitlines()[2:]
    assert pins == installed_versions() and all(re.fullmatch(r"[a-z0-9_.-]+==[\w.!]+", pin, re.I) for pin in pins)
    names = {pin.split("==")[0] for pin in pins}
    assert {"torch", "timm", "obstore", "numpy", "typing-extensions"} <= names and "pytest" not in names


def test_docker_sees_the_pictures_of_this_machine(written: Write) -> None:
    folder, _ = written(*JOBS["docker"], *MORE)
    text = (folder / "standard.docker.sh").read_text()
    assert """--volume "$PWD"/'my photos':/data:ro""" in text and "--volume '/big disk:/weights'" in text
    assert "train /data " in text.replace("\\\n", "") and "--gpus all" in text


def test_sagemakers_request_is_one_that_aws_accepts(written: Write) -> None:
    folder, said = written(*JOBS["sagemaker"], *MORE)
    request = json.loads((folder / "standard.sagemaker.json").read_text())
    service = botocore.session.get_session().get_service_model("sagemaker")
    shape = service.operation_model("CreateTrainingJob").input_shape
    report = ParamValidator().validate(request, shape)
    assert not report.has_errors(), report.generate_report()
    assert request["ResourceConfig"]["InstanceType"] in service.shape_for("TrainingInstanceType").enum  # type: ignore[attr-defined]
    assert request["ResourceConfig"]["InstanceCount"] == 2 and request["EnableManagedSpotTraining"] is True
    stopping = request["StoppingCondition"]
    assert stopping["MaxWaitTimeInSeconds"] >= stopping["MaxRuntimeInSeconds"] == 86_400
    assert request["CheckpointConfig"] == {"S3Uri": "s3://runs/leaves/checkpoints", "LocalPath": "/opt/ml/checkpoints"}
    assert all(isinstance(value, str) for value in request["HyperParameters"].values())
    assert request["HyperParameters"]["spread"] == "8" and request["HyperParameters"]["data"] == "s3://photos/leaves"
    assert "InputDataConfig" not in request and request["Environment"][MADE_BY].startswith("stagewright launch")
    for key, pattern in patterns(shape):
        value = request[key]
        assert re.fullmatch(pattern, value), (key, value)
    assert "--training-job-name" in said  # a second job of this name would be refused


def patterns(shape: object) -> list[tuple[str, str]]:
    """The patterns of the request's texts, which ParamValidator does not check."""
    members = shape.members  # type: ignore[attr-defined]
    return [(name, members[name].metadata["pattern"]) for name in ("TrainingJobName", "RoleArn")]


def test_data_that_sagemaker_copies_are_a_channel(written: Write) -> None:
    folder, _ = written(*SAGEMAKER_JOB, "--mirror", "s3://runs/leaves", "--copy-data", *MORE)
    request = json.loads((folder / "standard.sagemaker.json").read_text())
    (channel,) = request["InputDataConfig"]
    assert channel["ChannelName"] == "training" and "data" not in request["HyperParameters"]
    assert channel["DataSource"]["S3DataSource"]["S3Uri"] == "s3://photos/leaves"
    shape = (
        botocore.session.get_session().get_service_model("sagemaker").operation_model("CreateTrainingJob").input_shape
    )
    assert not ParamValidator().validate(request, shape).has_errors()
    assert "MaxWaitTimeInSeconds" not in request["StoppingCondition"]


def test_the_types_of_sagemaker_are_those_of_aws() -> None:
    service = botocore.session.get_session().get_service_model("sagemaker")
    types = set(service.shape_for("TrainingInstanceType").enum)  # type: ignore[attr-defined]
    assert set(SAGEMAKER) == {name for name in types if not name.startswith("ml.trn")}


def test_metric_patterns_find_the_numbers_of_a_metric_line() -> None:
    event = make_event("evaluated")
    assert isinstance(event, Evaluated)
    line = metric_line(event)
    found = {name: match[1] for name in METRICS if (match := re.search(metric_pattern(name), line))}
    assert found == dict(re.findall(r"(\w+)=(\S+)", line)) and "val_acc" in found


def test_a_recipe_of_the_users_own_goes_along(written: Write, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text("name: mine\nepochs: 3ep\n")
    for target, words in JOBS.items():
        folder, _ = written(*words, "-r", "mine.yaml", "--out", "launch")
        if target == "slurm":  # the cluster sees the same files
            assert "--recipe mine.yaml" in (folder / "mine.slurm").read_text()
        else:
            assert "epochs: 3ep" in (folder / "recipe.yaml").read_text()
    request = json.loads((tmp_path / "launch" / "mine.sagemaker.json").read_text())
    copied = f"COPY --from=build /build/recipe.yaml {request['HyperParameters']['recipe']}"
    assert copied in (tmp_path / "launch" / "Dockerfile").read_text()


def test_nothing_of_the_users_is_overwritten(
    written: Write, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, _ = written(*JOBS["docker"], *MORE)
    written(*JOBS["docker"], *MORE, "--epochs", "3")  # its own files are written again
    assert "--epochs 3" in (folder / "standard.docker.sh").read_text()
    (folder / "Dockerfile").write_text("FROM scratch\n")
    (folder / "constraints.txt").unlink()
    code, _, err = typed(capsys, monkeypatch, "launch", *JOBS["docker"], *MORE)
    assert code == 2 and "Dockerfile is there, and stagewright launch has not made it" in err
    assert not (folder / "constraints.txt").exists() and (folder / "Dockerfile").read_text() == "FROM scratch\n"


@pytest.mark.long
def test_skypilot_takes_the_task(written: Write, tmp_path: Path) -> None:
    written(*JOBS["skypilot"], *MORE)
    python = python_with("skypilot", ["skypilot==0.14.1"])
    code = """
import json, pathlib, sys, sky, yaml
from sky.utils import common_utils, schemas
path = sys.argv[1]
common_utils.validate_schema(yaml.safe_load(open(path)), schemas.get_task_schema(), "task: ")
task = sky.Task.from_yaml(path)
(one,) = task.resources
sources = "".join(path.read_text() for path in pathlib.Path(sky.__file__).parent.rglob("*.py"))
names = [name for name in sys.argv[2:] if f"'{name}'" in sources]
print(json.dumps([task.num_nodes, one.use_spot, str(one.cloud), one.zone, one.accelerators, one.job_recovery, names]))
"""
    nodes, spot, cloud, zone, gpus, recovery, known = json.loads(
        run_with(python, code, "launch/standard.sky.yaml", *SKYPILOT_GPUS, cwd=tmp_path).splitlines()[-1]
    )
    assert (nodes, spot, cloud, zone, gpus) == (2, True, "AWS", "us-east-1a", {"L4": 4})
    assert recovery["recover_on_exit_codes"] == [69, 75] and recovery["max_restarts_on_errors"] == 0
    assert known == list(SKYPILOT_GPUS)
    bad = tmp_path / "launch" / "standard.sky.yaml"  # the judge does refuse
    bad.write_text(
        bad.read_text()
        .replace("recover_on_exit_codes:", "recover_on_exit_code:")
        .replace("num_nodes: 2", "num_nodes: two")
    )
    with pytest.raises(AssertionError, match="num_nodes"):
        run_with(python, code, bad, cwd=tmp_path)


@pytest.mark.long
def test_kubernetes_takes_the_jobset_and_its_failure_policy(written: Write, tmp_path: Path) -> None:
    written(*JOBS["jobset"], *MORE)
    python = python_with("kubernetes", ["kubeflow-trainer-api==2.3.0", "kubernetes-validate==1.37.0", "PyYAML==6.0.3"])
    code = """
import json, sys, yaml, kubernetes_validate
from kubeflow_trainer_api.models import JobsetV1alpha2JobSet as JobSet
content = yaml.safe_load(open(sys.argv[1]))
parsed = JobSet.from_dict(content)
assert parsed.to_dict() == content, "a field is unknown to JobSet"
spec = content["spec"]["replicatedJobs"][0]["template"]["spec"]
job = {"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "one"}, "spec": spec}
print(kubernetes_validate.validate(job, "1.34", strict=True))
"""
    assert run_with(python, code, "launch/standard.jobset.yaml", cwd=tmp_path).startswith("1.34")
    path = tmp_path / "launch" / "standard.jobset.yaml"
    for right, wrong in (
        ("action: FailJob\n", "action: Fail\n"),
        ("restartPolicy", "restartPolice"),
        ("onJobFailureReasons", "on"),
    ):
        (tmp_path / "bad.yaml").write_text(path.read_text().replace(right, wrong))
        with pytest.raises(AssertionError):
            run_with(python, code, "bad.yaml", cwd=tmp_path)
    rules = yaml.safe_load(path.read_text())["spec"]["replicatedJobs"][0]["template"]["spec"]["podFailurePolicy"][
        "rules"
    ]
    by_code = {code: rule["action"] for rule in rules for code in rule.get("onExitCodes", {}).get("values", ())}
    assert by_code == {1: "FailJob", 2: "FailJob", 69: "Count", 75: "Count"}


def tool(name: str) -> str:
    """A program of the environment in which the tests run."""
    path = Path(sys.executable).parent / name
    if not path.exists():
        pytest.skip(f"needs {name} (the extra dev)")
    return str(path)
