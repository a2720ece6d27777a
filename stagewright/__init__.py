"""stagewright trains image classifiers in stages: planned before it runs, exactly resumable, honest about what came out.

import stagewright as sw
run = sw.train("photos/", recipe="finetune")
run.model.predict("x.jpg")
"""

# No import here that is not there already when Python starts: under ``python -m stagewright`` the current folder still
# stands first on the path, and files in it must not be run.
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

    from stagewright.errors import StagewrightError as StagewrightError
    from stagewright.execution import Execution as Execution
    from stagewright.model.bundle import Bundle as Bundle
    from stagewright.model.bundle import load_bundle as load_bundle
    from stagewright.plan import Plan as Plan
    from stagewright.recipe import Recipe as Recipe
    from stagewright.recipe import Stage as Stage
    from stagewright.training import Run as Run
    from stagewright.training import resume as resume
    from stagewright.training import train as train

_HOMES = {
    "StagewrightError": "errors",
    "Bundle": "model.bundle",
    "load_bundle": "model.bundle",
    "Plan": "plan",
    "Recipe": "recipe",
    "Stage": "recipe",
    "Execution": "execution",
    "Run": "training",
    "resume": "training",
    "train": "training",
}


def __getattr__(name: str) -> "Any":
    """Public names, imported on first use: the command line must answer ``--help`` without torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stagewright' has no attribute {name!r}")
    return getattr(import_module(f"stagewright.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
