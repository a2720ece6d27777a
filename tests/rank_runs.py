"""Runs of stagewright as several processes, for tests: their pictures, their recipe, and the faults that they meet.

As a script it is the parent of the processes: it imports all of stagewright once and forks a process for each rank, which costs
a tenth of what starting them costs.
"""

from __future__ import annotations

import importlib
import itertools
import json
import os
import select
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ranks import Ranks, free_port

_PRELOADED = (
    *("stagewright.api.train", "stagewright.cli.main", "stagewright.distributed.heartbeat"),
    *("torch._dynamo", "torch._refs", "torchvision", "timm.models.vision_transformer", "sklearn.model_selection"),
)
"""What a training imports, also what torch and timm import when they first need it."""
QUIET = ("-q", "--no-pages", "-j", "1", "--device", "cpu", "--threads", "1")
"""Options of every run."""


class Parent:
    """The process that forks ranks, as a test sees it."""

    def __init__(self, folder: Path, process: subprocess.Popen[bytes]) -> None:
        self._folder, self._process, self._count = folder, process, 0

    def start(
        self,
        arguments: Sequence[str | Path],
        size: int,
        *,
        fault: Sequence[Mapping[str, Any]] = (),
        environments: Sequence[Mapping[str, str]] = ({},),
    ) -> Ranks:
        """Starts the command ``stagewright ARGUMENTS`` as ``size`` ranks, which meet each ``fault`` (:func:`meet_fault`).

        ``environments``: what is added to the environment of each rank, or of all.
        """
        self._count += 1
        own = self._folder / str(self._count)
        own.mkdir()
        if len(environments) == 1:
            environments = list(environments) * size
        order = {"folder": str(own), "arguments": list(map(str, arguments)), "faults": list(map(dict, fault))}
        order["environments"] = [{**one, "RANK": str(rank)} for rank, one in enumerate(environments)]
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Ranks(own, size, self._process)

    def run(self, arguments: Sequence[str | Path], size: int, code: int = 0, **more: Any) -> Ranks:
        """Does the same and waits; every rank must end with ``code``."""
        ranks = self.start(arguments, size, **more)
        codes = ranks.wait(120)
        assert codes == [code] * size, f"{codes}: {ranks._errors()}"
        return ranks


@contextmanager
def parent_of_ranks(folder: Path) -> Iterator[Parent]:
    """Context manager of the process that forks ranks; it ends what is left of them."""
    root = Path(__file__).parent.parent
    environment = {**os.environ, "PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "TORCH_CPP_LOG_LEVEL": "ERROR"}
    process = subprocess.Popen([sys.executable, __file__], env=environment, stdin=subprocess.PIPE)
    try:
        yield Parent(folder, process)
    finally:
        assert process.stdin is not None
        process.stdin.close()
        process.wait(30)


def write_pictures(folder: Path, *, train: int = 20, val: int = 9, test: int = 4) -> Path:
    """Writes ``train``, ``val`` and ``test`` pictures of each of three classes: stripes by angle; fewer of some for training."""
    import numpy as np
    from PIL import Image

    random = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val), ("test", test)):
        for label, name in enumerate(("across", "down", "slanted")):
            own = folder / split / name
            own.mkdir(parents=True)
            for at in range(count - (label if split == "train" else 0) * 3):  # for sampling to balance
                height, width = random.integers(20, 32, 2)
                y, x = np.mgrid[:height, :width]
                wave = np.sin((x, y, (x + y) / 1.4)[label] * random.uniform(0.5, 0.9) + random.uniform(0, 6))
                pixels = 128 + 70 * wave[..., None] + random.normal(0, 25, (height, width, 3))
                # Runs on equal pictures share what is decoded; a comment keeps tests that run side by side apart.
                image = Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
                image.save(own / f"{at:02d}.jpg", quality=95, comment="" if at else str(folder))
    return folder


RESNET = {"name": "cifar_resnet18", "drop_path": 0.2, "options": {"width": 4}}
VIT = {
    "name": "vit",
    "drop_path": 0.2,
    "options": {"patch": 4, "depth": 2, "heads": 2, "width": 16},
}
MIXED = {"mixup": 0.4, "cutmix": 1.0}


def recipe(model: Mapping[str, Any] = RESNET, optimizer: str = "sgd", steps: int = 3, **fields: Any) -> dict[str, Any]:
    """A recipe of six short stages that has all that could depend on the number of ranks."""
    last = "last:1" if model is VIT else "last:2"
    length, kept = {"epochs": f"{steps}st"}, {"cache": {"views": 2}, "mix": "none"}
    return {
        "model": dict(model),
        "image_size": 16,
        "batch_size": 48,
        "spread": 8,
        "optimizer": {"name": optimizer, "clip_norm": 1.0},
        "lr": {"schedule": "cosine", "peak": 0.05 if optimizer == "sgd" else 0.005},
        "sampling": "balanced",
        "label_smoothing": 0.1,
        "augment": {"crop": "random_resized", "scale": [0.4, 1.0], "flip": 0.5, "policy": "randaugment"},
        "mix": MIXED,
        "eval": {"every": f"{steps + 1}st"},
        "checkpoints": {"every": "2st"},
        "guard": {"window": 5},
        "data": {"max_unreadable": 0.5},
        "stages": [
            {"name": "optimum", "train": "head", "fit": "optimum", "mix": "none"}
            | {"augment": {"crop": "none", "policy": "none"}, "label_smoothing": 0.0},
            {"name": "head", "train": "head", **length},
            {"name": "features", "train": last, **length, **kept},
            {"name": "frozen", "train": last, **length},
            {
                "name": "all",
                "batch_size": 40,
                "image_size": 20,
                **length,
                "average": {"kind": "ema", "half_life": "2st"},
            },
            {"name": "swa", "batch_size": 40, **length}
            | {"average": {"kind": "swa", "every": "1st", "recalibrate": 50}},
        ],
        **fields,
    }


def store_environment(**more: str) -> list[dict[str, str]]:
    """How processes find the object store and their cache: the variables of this process, and ``more``."""
    names = [name for name in os.environ if name.startswith(("AWS_", "STAGEWRIGHT_"))]
    return [{**{name: os.environ[name] for name in names}, **more}]


def write_recipe(path: Path, fields: Mapping[str, Any]) -> Path:
    """Writes a recipe; JSON is YAML."""
    path.write_text(json.dumps(fields))
    return path


def unequal(one: Path, other: Path) -> list[str]:
    """In what two finished runs of the same plan differ, apart from times and from where they were carried out."""
    from stagewright.api.resume_check import differences
    from stagewright.rundir.directory import RunDir
    from stagewright.rundir.events import comparable, live_events

    found = [line for line in differences(RunDir(one), RunDir(other)) if not line.startswith("events.jsonl")]
    events = [comparable(live_events(run / "events.jsonl")) for run in (one, other)]
    for event in (event for own in events for event in own):
        event.pop("reasons", None)  # why an image cannot be read is said otherwise where decoded images are shared
    return found + [
        f"only in one: {event}" for event in events[0] + events[1] if (event in events[0]) != (event in events[1])
    ]


def meet_fault(fault: Mapping[str, Any], rank: int) -> None:
    """Lets this ``rank`` meet a fault if it is ``fault["rank"]`` (None: any).

    ``do`` is ``tree`` (additions in another order), ``spoil`` (the picture ``path`` becomes unreadable once it was found good),
    ``threads`` (it computes with two), ``slow`` (reads of pictures do not end from number ``read`` on, as of a network disk that
    is gone), or what happens when the rank is in ``phase`` at ``step``: a signal's name, ``error``, or ``fill`` (the disk of
    ``path`` is full); ``after`` seconds later, so that the others know from its beats where it is.
    """
    if fault["rank"] in (None, rank):
        {"tree": _change_tree, "spoil": _spoil, "slow": _never_read, "threads": _take_threads}.get(
            fault["do"], _strike
        )(fault)


def _change_tree(fault: Mapping[str, Any]) -> None:
    from stagewright.distributed import tree

    usual = tree._split
    tree._split = lambda first, end: end - 1 if end - first == 4 else usual(first, end)


def _spoil(fault: Mapping[str, Any]) -> None:
    from stagewright.api import train

    prepare = train.prepare

    def spoiling(*given: Any, **named: Any) -> Any:
        found = prepare(*given, **named)
        path = Path(fault["path"])
        content = path.read_bytes()
        path.unlink()
        path.write_bytes(content[:300])
        return found

    train.prepare = spoiling


def _never_read(fault: Mapping[str, Any]) -> None:
    from stagewright.data.images.decode import FileImages

    usual, counts = FileImages.read, itertools.count(1)

    def read(self: FileImages, row: int) -> bytes:
        if next(counts) >= fault["read"]:
            with open(fault["fifo"]) as nobody_writes:
                nobody_writes.read()
        return usual(self, row)

    FileImages.read = read  # pyright: ignore[reportAttributeAccessIssue]


def _take_threads(fault: Mapping[str, Any]) -> None:
    from contextlib import nullcontext

    import torch

    from stagewright.api import ranks

    torch.set_num_threads(2)
    ranks.computing_with = lambda threads: nullcontext()


def _strike(fault: Mapping[str, Any]) -> None:
    from stagewright.training.ranks import Ranks as RanksOfRun

    usual = RanksOfRun.at

    def at(self: RanksOfRun, phase: str, step: int, note: str = "") -> None:
        usual(self, phase, step, note)
        if (phase, step) == (fault["phase"], fault["step"]):
            time.sleep(fault.get("after", 0.0))
            if fault["do"] == "error":
                raise ValueError("a fault of the test")
            if fault["do"] == "fill":
                _fill(Path(fault["path"]))
            else:
                os.kill(os.getpid(), signal.Signals[fault["do"]])

    RanksOfRun.at = at  # pyright: ignore[reportAttributeAccessIssue]


def _fill(folder: Path) -> None:
    with suppress(OSError), (folder / "filler").open("wb", buffering=0) as file:
        while file.write(bytes(4096)):
            continue


def _rank(order: Mapping[str, Any], rank: int) -> None:
    """The life of one process, from the fork to its end."""
    from stagewright.cli.main import main

    folder = Path(order["folder"])
    for number, name in ((1, "out"), (2, "err")):
        file = os.open(folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT)
        os.dup2(file, number)
    (folder / f"{rank}.writing").write_text(str(os.getpid()))
    (folder / f"{rank}.writing").rename(folder / f"{rank}.pid")
    code = 1
    try:
        for fault in order["faults"]:
            meet_fault(fault, rank)
        sys.argv = ["stagewright", *order["arguments"]]
        main()
    except SystemExit as ending:
        code = int(ending.code or 0)
    except BaseException:
        traceback.print_exc()
    with suppress(OSError):
        sys.stdout.flush()
        sys.stderr.flush()
    os._exit(code)


def _fork(order: Mapping[str, Any]) -> list[int]:
    """Starts the ranks of one run; returns their process numbers."""
    environments, port, pids = order["environments"], free_port(), []
    size = len(environments)
    for rank, own in enumerate(environments):
        if (pid := os.fork()) == 0:
            place = {"WORLD_SIZE": size, "LOCAL_RANK": rank, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
            os.environ.update({name: str(value) for name, value in place.items()} | {"MASTER_ADDR": "127.0.0.1"} | own)
            _rank(order, rank)
        pids.append(pid)
    return pids


def _main() -> None:
    for module in _PRELOADED:
        importlib.import_module(module)
    running: list[tuple[Path, list[int]]] = []
    codes: dict[int, int] = {}
    while True:
        if select.select([sys.stdin], [], [], 0.02)[0]:
            if not (line := sys.stdin.readline()):
                break
            order = json.loads(line)
            running.append((Path(order["folder"]), _fork(order)))
        with suppress(ChildProcessError):
            while (ended := os.waitpid(-1, os.WNOHANG))[0]:
                codes[ended[0]] = os.waitstatus_to_exitcode(ended[1])
        for own, pids in [one for one in running if all(pid in codes for pid in one[1])]:
            (own / "codes.writing").write_text(json.dumps([codes[pid] for pid in pids]))
            (own / "codes.writing").rename(own / "codes")
            running.remove((own, pids))
    for pid in [pid for _, pids in running for pid in pids if pid not in codes]:
        os.kill(pid, signal.SIGKILL)  # not waited for yet, so that the number is still its own
        time.sleep(0)


if __name__ == "__main__":
    _main()
