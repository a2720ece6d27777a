"""The shape of the code, held by parsing it: who may import whom, what must not need torch, how long things may get."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parent.parent / "stagewright"
MODULES = {
    ".".join(("stagewright", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__"): path
    for path in PACKAGE.rglob("*.py")
}
NO_TORCH = {
    *(
        "errors",
        "rng",
        "duration",
        "schedule",
        "recipe",
        "parts",
        "options",
        "auto",
        "facts",
        "pending",
        "plancli",
        "recipes",
        "plan",
        "resolve",
        "planview",
        "events",
        "steplog",
        "clock",
        "lrcurve",
    ),
    *("wording", "sentences", "rundir", "claim", "execution", "readwatch", "cli", "stop", "data.verify"),
    *("storage.files", "storage.hashed", "storage.lock", "system.output", "system.threads"),
    *("budget", "costs", "costview", "rehearsal", "pace"),
    *("data.pack", "data.packcheck", "data.packfile", "data.packrecords", "data.packwriter", "data.packing"),
    *("data.splitting", "data.folds", "data.links", "data.splitsummary", "data.stored", "data.native", "data.times"),
    *(
        "data.inspect",
        "data.findings",
        "data.fingerprint",
        "data.inspectpage",
        "augment.draw",
        "augment.policies",
        "augment.matrices",
        "augment.custom",
        "augment.fields",
        "machine",
    ),
    *(
        "data.kept",
        "datacli",
        "data.manifest",
        "data.sources",
        "data.scan",
        "data.split",
        "data.decode",
        "data.order",
        "data.sample",
        "recipes.tiny",
        "augment.params",
    ),
}


def imports(path: Path, *, at_top: bool) -> set[str]:
    """Modules of stagewright that a file imports; at_top leaves out those inside functions and for type checkers."""
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        for child in ast.iter_child_nodes(node):
            if at_top and (
                isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef)
                or (isinstance(child, ast.If) and "TYPE_CHECKING" in ast.unparse(child.test))
            ):
                continue
            if isinstance(child, ast.Import):
                found.update(alias.name for alias in child.names)
            elif isinstance(child, ast.ImportFrom) and child.module:
                deeper = {f"{child.module}.{alias.name}" for alias in child.names}
                known = deeper & MODULES.keys()
                found.update(known or {child.module})
            visit(child)

    visit(ast.parse(path.read_text()))
    return found


def ours(path: Path) -> set[str]:
    return {name for name in imports(path, at_top=True) if name in MODULES}


def test_no_circles() -> None:
    graph = {name: ours(path) - {name} for name, path in MODULES.items()}
    try:
        tuple(TopologicalSorter(graph).static_order())
    except CycleError as error:
        pytest.fail(f"import circle: {' -> '.join(error.args[1])}")


@pytest.mark.parametrize(
    ("room", "may_not_know"),
    [
        (
            "storage",
            ("system", "recipe", "plan", "data", "model", "run", "rundir", "training", "session", "state", "report"),
        ),
        (
            "system",
            ("storage", "recipe", "plan", "data", "model", "run", "rundir", "training", "session", "state", "report"),
        ),
        ("model", ("recipe", "recipes", "plan", "run", "training", "session", "state")),
        ("data", ("model", "run", "training", "session", "state", "step", "report")),
        ("augment", ("model", "run", "training", "session", "state", "step", "report")),
        ("report", ("run", "training", "session", "state", "step", "model", "plan")),
        ("observers", ("run", "training", "session", "state", "step", "model")),
        ("plan", ("data", "model", "run", "training", "session", "state", "step", "report", "augment")),
        ("recipe", ("plan", "data", "model", "run", "training")),
        ("step", ("checkpoint", "events", "observers", "clock", "record", "run", "session")),
    ],
)
def test_who_may_know_whom(room: str, may_not_know: tuple[str, ...]) -> None:
    own = f"stagewright.{room}"
    for name, path in MODULES.items():
        if name == own or name.startswith(f"{own}."):
            reached = {one.removeprefix("stagewright.").split(".")[0] for one in ours(path)}
            assert not reached & set(may_not_know), f"{name} imports {reached & set(may_not_know)}"


def test_nobody_imports_the_loop_but_its_callers() -> None:
    callers = {name for name, path in MODULES.items() if "stagewright.run" in ours(path)}
    assert callers == {"stagewright.training", "stagewright.probe"}  # the probe carries out a little of a run


def test_what_must_not_need_torch_does_not() -> None:
    """In one process with torch blocked, so that an import anywhere below is found."""
    names = [f"stagewright.{name}" for name in sorted(NO_TORCH)]
    names += [name for name in MODULES if name.startswith("stagewright.report")]
    names += [name for name in MODULES if name.startswith("stagewright.observers")]
    names = [name for name in names if name in MODULES and not name.endswith("__main__")]
    code = "import sys, importlib\nsys.modules['torch'] = None\n" + "".join(
        f"importlib.import_module({n!r})\n" for n in names
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]


def test_help_is_instant() -> None:
    """``--help`` imports neither torch nor the rest; the time allowed is far above the 0.1 s measured, for noisy machines."""
    code = "import sys; sys.argv = ['stagewright', '--help']\nfrom stagewright.cli import main\n"
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
                assert node.end_lineno - node.lineno < 80, f"{name}.{node.name} has more than 80 lines"


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
