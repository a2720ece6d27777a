"""The entry of a container on SageMaker: ``python -m stagewright.launch.sagemaker_entry``, process 1 of the container.

It reads ``/opt/ml/input`` (hyperparameters, hosts, channels), carries out ``stagewright train --resume auto`` with the run in
``/opt/ml/checkpoints``, which SageMaker copies to S3 and back, and copies the finished model to ``/opt/ml/model``. Signals are
passed on. The exit code is the run's; after an error its first 1,024 bytes are in ``/opt/ml/output/failure``.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

from stagewright.errors import RecipeError, StagewrightError, StorageError
from stagewright.launch.job import PORT, STOPPED, Value
from stagewright.launch.train_command import FLAGS, OPTIONS, option_words
from stagewright.storage.json_text import parse_json, parse_object
from stagewright.text import most_like

ROOT = Path("/opt/ml")
RUN = ROOT / "checkpoints" / "run"
MODEL = ROOT / "model"
FAILURE = ROOT / "output" / "failure"
_MOST_FAILURE = 1024
_MOST_CONFIG = 1 << 20
_TAIL_LINES = 400
_KEYS = ("data", "gpus", *OPTIONS)
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1)


@dataclass(frozen=True)
class Hosts:
    """The machines of the job, from ``resourceconfig.json``."""

    names: tuple[str, ...] = ("algo-1",)
    """Sorted; the first one leads."""
    own: str = "algo-1"
    interface: str | None = None
    """The network interface by which they reach each other."""


def main() -> int:
    """Carries out the run; returns the exit code."""
    try:
        parameters = read_parameters(_read("hyperparameters.json"))
        hosts = read_hosts(_read("resourceconfig.json"))
        words = train_words(parameters, hosts, read_channels(_read("inputdataconfig.json")))
    except StagewrightError as error:
        print(f"error: {error}", file=sys.stderr, flush=True)
        return _failed(2, f"error: {error}")
    before = _changed_at()
    code, said = carry_out(words, environment(hosts))
    if code in (0, STOPPED):
        leads = hosts.own == hosts.names[0] or _changed_at() != before  # SageMaker gives an earlier run to all hosts
        if code == 0 and leads and (len(hosts.names) == 1 or (RUN / "model").is_dir()):
            try:
                copy_model()
            except OSError as error:
                return _failed(2, f"error: the model cannot be copied to {MODEL}: {error}")
        return code
    return _failed(code, error_of(said) or f"stagewright train ended with {code}")


def read_parameters(data: bytes | None) -> dict[str, str]:
    """Returns the hyperparameters; RecipeError for values that are no text and for unknown names. Those of SageMaker's own tools
    (``sagemaker_...``) are left out."""
    found = {name: value for name, value in _object(data, "hyperparameters.json").items() if "sagemaker_" not in name}
    for name, value in found.items():
        if name not in _KEYS:
            raise RecipeError(
                f"the hyperparameter {name!r} is unknown",
                ", ".join(_KEYS),
                f"perhaps {most_like(name, _KEYS)} was meant",
            )
        if not isinstance(value, str):
            raise RecipeError(
                f"the hyperparameter {name} is {value!r}",
                "text, as SageMaker passes all values",
                f'"{name}": "{value}"',
            )
    return found


def read_hosts(data: bytes | None) -> Hosts:
    """Returns the machines; one if nothing is said. RecipeError for what is not SageMaker's form."""
    content = _object(data, "resourceconfig.json")
    if not content:
        return Hosts()
    names, own = content.get("hosts"), content.get("current_host")
    interface = content.get("network_interface_name")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names) or own not in names:
        raise RecipeError(
            f"resourceconfig.json: hosts {names!r}, current_host {own!r}",
            "a list of names, and one of them",
            "start the container as SageMaker does",
        )
    return Hosts(tuple(sorted(names)), str(own), interface if isinstance(interface, str) else None)


def read_channels(data: bytes | None) -> tuple[str, ...]:
    """Returns the names of the channels, sorted."""
    return tuple(sorted(_object(data, "inputdataconfig.json")))


def train_words(parameters: Mapping[str, str], hosts: Hosts, channels: Sequence[str]) -> list[str]:
    """Returns the words behind ``stagewright`` of the run that the parameters ask for. RecipeError for values that are none."""
    options: dict[str, Value] = {}
    for name, text in parameters.items():
        if name in ("data", "gpus"):
            continue
        options[name] = _flag(name, text) if name in FLAGS else _texts(text) if name == "set" else text
    words = ["train", parameters.get("data") or data_of(channels), *option_words(options)]
    words += ["--out", str(RUN), "--resume", "auto", "--metric-lines", "--quiet"]
    gpus = parameters.get("gpus", "auto")
    words += ["--device", "cpu"] if gpus == "0" else ["--nproc", gpus]
    if len(hosts.names) > 1:
        words += ["--nnodes", str(len(hosts.names)), "--rdzv", f"{hosts.names[0]}:{PORT}"]
    return words


def data_of(channels: Sequence[str]) -> str:
    """Returns DATA in the channels: that of the only one or of ``training``; or the folder of ``train``, ``val`` and ``test``."""
    folder = ROOT / "input" / "data"
    if {"train", "val"} <= set(channels):
        return str(folder)
    if len(channels) == 1 or "training" in channels:
        return str(folder / ("training" if "training" in channels else channels[0]))
    raise RecipeError(
        f"no data: the channels are {', '.join(channels) or 'none'}, and there is no hyperparameter data",
        "one channel, a channel named training, channels train and val, or the hyperparameter data",
        "stagewright launch --on sagemaker DATA writes such a request",
    )


def environment(hosts: Hosts) -> dict[str, str]:
    """Returns the run's environment: this one, and with several hosts the network between them."""
    found = dict(os.environ)
    if len(hosts.names) > 1 and hosts.interface is not None:
        found.setdefault("GLOO_SOCKET_IFNAME", hosts.interface)
        found.setdefault("NCCL_SOCKET_IFNAME", hosts.interface)
    return found


def carry_out(words: Sequence[str], variables: Mapping[str, str]) -> tuple[int, list[str]]:
    """Runs ``stagewright WORDS``; returns its exit code and the last lines of its standard error, which are shown too."""
    RUN.parent.mkdir(parents=True, exist_ok=True)
    early: list[int] = []
    child: subprocess.Popen[bytes] | None = None

    def forward(number: int, frame: FrameType | None) -> None:
        if child is None:
            early.append(number)
        else:
            child.send_signal(number)

    for number in _SIGNALS:  # process 1 ignores signals without a handler
        signal.signal(number, forward)
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    child = subprocess.Popen([sys.executable, "-m", "stagewright", *words], env=dict(variables), stderr=subprocess.PIPE)
    for number in early:
        child.send_signal(number)
    assert child.stderr is not None
    thread = threading.Thread(target=_show, args=(child.stderr, tail), daemon=True)
    thread.start()
    code = child.wait()
    thread.join(5.0)
    return (128 - code if code < 0 else code), list(tail)


def error_of(lines: Sequence[str]) -> str:
    """Returns the error that the lines of standard error end with: from the last ``error:`` or ``Traceback`` on, or all."""
    starts = [at for at, line in enumerate(lines) if line.startswith(("error:", "Traceback "))]
    return "".join(lines[starts[-1] if starts else 0 :])


def copy_model() -> None:
    """Copies the finished model, summary and report from the run to ``/opt/ml/model``, which SageMaker packs and uploads."""
    shutil.copytree(RUN / "model", MODEL, dirs_exist_ok=True)
    for name in ("summary.json", "report.html"):
        if (RUN / name).is_file():
            shutil.copy2(RUN / name, MODEL / name)


def _changed_at() -> int | None:
    """Returns when this host's process, the one that leads, has written the run's summary; None if there is none."""
    try:
        return (RUN / "summary.json").stat().st_mtime_ns
    except OSError:
        return None


def _show(stream: IO[bytes], tail: deque[str]) -> None:
    for line in stream:
        sys.stderr.buffer.write(line)
        sys.stderr.buffer.flush()
        tail.append(line.decode("utf-8", "replace"))


def _failed(code: int, text: str) -> int:
    """Writes the first 1,024 bytes of ``text`` to ``/opt/ml/output/failure``; returns ``code``."""
    FAILURE.parent.mkdir(parents=True, exist_ok=True)
    FAILURE.write_bytes(text.encode()[:_MOST_FAILURE].decode("utf-8", "ignore").encode())
    return code


def _read(name: str) -> bytes | None:
    """Returns the bytes of a file of SageMaker's configuration; None if there is none."""
    path = ROOT / "input" / "config" / name
    try:
        with path.open("rb") as file:
            return file.read(_MOST_CONFIG)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(
            f"{path} cannot be read: {error.strerror or error}",
            "a file that can be read",
            "start the container as SageMaker does",
        ) from error


def _object(data: bytes | None, name: str) -> dict[str, Any]:
    try:
        return {} if data is None else parse_object(data)
    except ValueError as error:
        raise RecipeError(
            f"{name} cannot be read: {error}", "a JSON object", "start the container as SageMaker does"
        ) from None


def _flag(name: str, text: str) -> bool:
    if text.lower() not in ("true", "false"):
        raise RecipeError(
            f"the hyperparameter {name} is {text!r}", "true or false", f'"{name}": "true", or leave it out'
        )
    return text.lower() == "true"


def _texts(text: str) -> tuple[str, ...]:
    try:
        found = parse_json(text.encode())
    except ValueError:
        found = None
    if not isinstance(found, list) or not all(isinstance(one, str) for one in found):
        raise RecipeError(
            f"the hyperparameter set is {text!r}",
            "a list of texts as JSON",
            '"set": "[\\"optimizer.weight_decay=0.05\\"]"',
        )
    return tuple(found)


if __name__ == "__main__":
    sys.exit(main())
