"""stagewright trains image classifiers in stages: planned before it runs, exactly resumable, honest about what came out.

import stagewright as sw
run = sw.train("photos/", recipe="finetune")
run.model.predict("x.jpg")
"""

# This module must only import modules that Python has already loaded: under ``python -m stagewright`` the current folder is
# still first on sys.path, and files in it must not be imported.
from importlib import import_module

TYPE_CHECKING = False
if TYPE_CHECKING:
    from stagewright.api.classifier import load_published as load_published
    from stagewright.api.data import inspect as inspect
    from stagewright.api.data import split as split
    from stagewright.api.evaluate import evaluate as evaluate
    from stagewright.api.finish import finish as finish
    from stagewright.api.load_bundle import load_bundle as load_bundle
    from stagewright.api.lr_find import lr_find as lr_find
    from stagewright.api.open_test import open_test as open_test
    from stagewright.api.prepare import make_plan as make_plan
    from stagewright.api.preview import preview as preview
    from stagewright.api.run import Run as Run
    from stagewright.api.train import resume as resume
    from stagewright.api.train import train as train
    from stagewright.bundle.bundle import Bundle as Bundle
    from stagewright.comparison.compared import compare as compare
    from stagewright.errors import StagewrightError as StagewrightError
    from stagewright.plan.budget import Budget as Budget
    from stagewright.plan.execution import Execution as Execution
    from stagewright.plan.plan import Plan as Plan
    from stagewright.recipe.recipe import Recipe as Recipe
    from stagewright.recipe.recipe import Stage as Stage
    from stagewright.report.runs import runs as runs
    from stagewright.rundir.event_kinds import Event as Event
    from stagewright.rundir.events import Observer as Observer
    from stagewright.study.folds import Folds as Folds
    from stagewright.study.folds import folds as folds

_HOMES = {
    "StagewrightError": "errors",
    "Bundle": "bundle.bundle",
    "load_bundle": "api.load_bundle",
    "compare": "comparison.compared",
    "Plan": "plan.plan",
    "Recipe": "recipe.recipe",
    "Stage": "recipe.recipe",
    "Execution": "plan.execution",
    "Budget": "plan.budget",
    "Event": "rundir.event_kinds",
    "Observer": "rundir.events",
    "Run": "api.run",
    "evaluate": "api.evaluate",
    "finish": "api.finish",
    "Folds": "study.folds",
    "folds": "study.folds",
    "inspect": "api.data",
    "load_published": "api.classifier",
    "lr_find": "api.lr_find",
    "make_plan": "api.prepare",
    "open_test": "api.open_test",
    "preview": "api.preview",
    "resume": "api.train",
    "runs": "report.runs",
    "split": "api.data",
    "train": "api.train",
}


def __getattr__(name: str) -> object:
    """Imports public names on first use, because the command line must show ``--help`` without importing torch."""
    if name not in _HOMES:
        raise AttributeError(f"module 'stagewright' has no attribute {name!r}")
    return getattr(import_module(f"stagewright.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(_HOMES)
