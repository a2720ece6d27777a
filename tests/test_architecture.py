"""The shape of the code, held by parsing it: who may import whom, what must not need torch, how long things may get."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
import time
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from layers import LAYERS

PACKAGE = Path(__file__).parent.parent / "stagewright"
MODULES = {
    ".".join(("stagewright", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
MODEL_CLASSES = {"CifarResNet"}
"""Classes that people see when they print a model."""
FACADE = "stagewright"
"""The package itself hands out names of api, bundle, plan and recipe, and is imported by nobody in it."""

TORCH_FREE = (
    *(
        "measures",
        "errors",
        "rng",
        "text",
        "storage",
        "recipe",
        "plan",
        "observers",
        "report",
        "cli",
        "rundir",
        "comparison",
    ),
    *("data.sources", "data.pack", "data.splits", "data.inspect", "data.manifest", "data.dataset", "data.partition"),
    *("data.sample", "data.load_times", "data.batches.order", "data.images.decode", "data.images.stored"),
    *("data.images.native", "data.images.memory_cache"),
    *("augment.geometry", "augment.draw", "augment.policies", "augment.matrices", "augment.custom"),
    *("distributed.launcher", "distributed.verdict", "distributed.workers"),
    *("system.machine", "system.output", "system.signals", "system.surroundings", "system.threads", "system.children"),
    "system.named_functions",
    *("training.clock", "training.read_watch", "training.paired", "data.picture_changes"),
    *("api.diff", "api.deciding", "api.data_difference", "distributed.tree"),
    *("distributed.members", "distributed.beats", "distributed.environment", "distributed.waits"),
)
"""Rooms and modules that must not need torch, apart from :data:`NEEDS_TORCH`."""
NEEDS_TORCH = ("rundir.checkpoint", "rundir.checkpoint_files", "rundir.ended", "rundir.logs", "cli.demo")


def imports(source: str) -> set[str]:
    """Modules of stagewright that ``source`` imports, also within functions and for type checkers alone."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            deeper = {f"{node.module}.{alias.name}" for alias in node.names}
            found.update(deeper & MODULES.keys() or {node.module})
    return {name for name in found if name in MODULES}


GRAPH = {name: imports(path.read_text()) - {name} for name, path in MODULES.items() if name != FACADE}


def room_of(module: str) -> str:
    """``recipe`` for ``stagewright.recipe.fields``."""
    return module.split(".")[1]


def absolute_path(room: str) -> tuple[int, int, int]:
    """Row, column, and position within a tuple; ValueError for a room that is in no layer."""
    for row, columns in enumerate(LAYERS):
        for column, one in enumerate(columns):
            rooms = one if isinstance(one, tuple) else (one,)
            if room in rooms:
                return row, column, rooms.index(room)
    raise ValueError(f"{room} is in no layer: give it a place in LAYERS")


def climbs(graph: dict[str, set[str]]) -> list[str]:
    """Imports that point upward or sideways."""
    found = []
    for module, others in graph.items():
        own = absolute_path(room_of(module))
        for other in others - {FACADE}:
            there = absolute_path(room_of(other))
            down = there[0] < own[0] or (there[:2] == own[:2] and there[2] <= own[2])
            if not down:
                found.append(f"{module} imports {other}")
    return sorted(found)


def circle(graph: dict[str, set[str]]) -> list[str]:
    """Nodes of a circle, or nothing."""
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        return list(error.args[1])
    return []


def test_every_import_points_downward() -> None:
    assert climbs(GRAPH) == []


@pytest.mark.parametrize(
    "source",
    [
        "from stagewright.training.loop import run_plan",
        "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from stagewright.training.session import Session",
        "def f():\n    import stagewright.api.train",
        "from stagewright.rundir import checkpoint",
        "from stagewright.data import manifest",
    ],
)
def test_an_import_that_points_upward_is_seen(source: str) -> None:
    """At the top, for type checkers alone, within a function; and one of a neighbour in the same row."""
    assert len(climbs({**GRAPH, "stagewright.model.zoo": imports(source)})) == 1


def test_no_circles_of_files_or_folders() -> None:
    assert circle(GRAPH) == []
    folders: dict[str, set[str]] = {}
    for module, others in GRAPH.items():
        own = module.rpartition(".")[0]
        folders.setdefault(own, set()).update({other.rpartition(".")[0] for other in others} - {own, FACADE})
    own_rooms = {name for name in folders if name.count(".") == 1}
    inner = {name: {other for other in others if other not in own_rooms} for name, others in folders.items()}
    assert circle(inner) == []
    assert circle({"a": {"b"}, "b": {"a"}}) != []


def test_only_api_and_preflight_import_the_loop() -> None:
    callers = {room_of(name) for name, others in GRAPH.items() if "stagewright.training.loop" in others}
    assert callers == {"api", "preflight"}  # the probe carries out a little of a run


def test_what_must_not_need_torch_does_not() -> None:
    """In one process with torch blocked, so that an import anywhere below is found."""
    names = [
        name
        for name in sorted(MODULES)
        for one in TORCH_FREE
        if f"{name}.".startswith(f"stagewright.{one}.") and not name.endswith("__main__")
    ]
    names = [name for name in names if name.removeprefix("stagewright.") not in NEEDS_TORCH]
    assert len(names) > 80
    code = "import sys, importlib\nsys.modules['torch'] = None\n" + "".join(
        f"importlib.import_module({n!r})\n" for n in names
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_is_instant() -> None:
    """``--help`` imports neither torch nor the rest; the time allowed is far above the 0.1 s measured, for noisy machines."""
    code = "import sys; sys.argv = ['stagewright', '--help']\nfrom stagewright.cli.main import main\n"
    code += "try: main()\nexcept SystemExit: pass\n"
    code += "heavy = {'torch', 'numpy', 'pydantic', 'rich', 'pyarrow'} & set(sys.modules); assert not heavy, heavy"
    start = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert time.perf_counter() - start < 5
    assert "resume-check" in done.stdout


def test_modules_and_functions_stay_small() -> None:
    for name, path in MODULES.items():
        text = path.read_text()
        assert len(text.splitlines()) <= 400, f"{name} has more than 400 lines"
        for node in ast.walk(ast.parse(text)):
            if isinstance(node, ast.FunctionDef) and node.end_lineno:
                # The parameters of a command are the list of its options.
                begin = node.body[0].lineno if name.startswith("stagewright.cli.") else node.lineno
                assert node.end_lineno - begin < 80, f"{name}.{node.name} has more than 80 lines"


def test_a_class_is_public_where_another_file_names_it() -> None:
    """Also where a test or an example does; every other class has a name that begins with an underscore."""
    root = PACKAGE.parent
    texts = {path: path.read_text() for path in [*MODULES.values(), *(root / "tests").rglob("*.py")]}
    words = {path: set(re.findall(r"\w+", text)) for path, text in texts.items()}
    for path in MODULES.values():
        for node in ast.parse(texts[path]).body:
            if isinstance(node, ast.ClassDef) and not node.name.startswith("_") and node.name not in MODEL_CLASSES:
                where = [other for other in words if other != path and node.name in words[other]]
                assert where, f"{path.name}: {node.name} is named in no other file: call it _{node.name}"


def test_public_things_have_docstrings() -> None:
    missing = []
    for name, path in MODULES.items():
        tree = ast.parse(path.read_text())
        if not ast.get_docstring(tree):
            missing.append(name)
        for node in tree.body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and not ast.get_docstring(node)
            ):
                missing.append(f"{name}.{node.name}")
    assert missing == []
