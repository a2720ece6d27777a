"""The words of ``stagewright train`` that a job carries out."""

from __future__ import annotations

import json
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from stagewright.launch.job import Job, Value

OPTIONS = (
    *("recipe", "set", "model", "weights", "epochs", "batch-size", "lr", "img-size", "seed", "spread", "workers"),
    *("save-minutes", "tiny", "hold-test", "no-pages"),
)
"""Options of ``train`` that a job may carry."""
FLAGS = ("tiny", "hold-test", "no-pages")


def option_words(options: Mapping[str, Value]) -> list[str]:
    """Returns ``--name value`` for each option, in the order of :data:`OPTIONS`."""
    words: list[str] = []
    for name in OPTIONS:
        value = options.get(name)
        if value is True:
            words.append(f"--{name}")
        elif isinstance(value, str):
            words += [f"--{name}", value]
        elif isinstance(value, tuple):
            for one in value:
                words += [f"--{name}", one]
    return words


def train_words(job: Job, data: str, *, meeting: str | None = None) -> list[str]:
    """Returns the words of the command that begins the run, or continues it where it was left.

    ``data`` and ``meeting`` (HOST:PORT, with several machines) as the machine sees them.
    """
    machines = job.machines
    words = ["stagewright", "train", data, *option_words(job.options), "--out", job.out, "--resume", "auto"]
    words += ["--nproc", str(machines.gpus)] if machines.gpus else ["--device", "cpu"]
    if machines.nodes > 1:
        assert meeting is not None
        words += ["--nnodes", str(machines.nodes), "--rdzv", meeting]
    if job.mirror is not None:
        words += ["--mirror", job.mirror]
    return [*words, "--metric-lines", "--quiet"]


def shell_text(words: Sequence[str], raw: Sequence[str] = (), indent: str = "    ") -> str:
    """Returns ``words`` as lines of a shell command, an option a line. Words in ``raw`` are the shell's own (``"$host:29400"``)
    and are not quoted."""
    lines: list[str] = []
    for word in words:
        text = word if word in raw else shlex.quote(word)
        if lines and word.startswith("--"):
            lines.append(text)
        else:
            lines[-1:] = [f"{lines[-1]} {text}" if lines else text]
    return f" \\\n{indent}".join(lines)


def as_strings(options: Mapping[str, Any]) -> dict[str, str]:
    """Returns options as SageMaker's hyperparameters, all strings: lists as JSON, flags as ``true``."""
    return {
        name: json.dumps(list(value)) if isinstance(value, tuple) else "true" if value is True else str(value)
        for name, value in options.items()
        if value is not None and value is not False
    }
