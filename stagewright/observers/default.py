"""The observers of every run: console, log file, pages."""

from __future__ import annotations

from stagewright.observers.console import Console
from stagewright.observers.report_pages import Pages
from stagewright.observers.text_log import TextLog
from stagewright.observers.tracker_processes import TrackerProcesses
from stagewright.plan.execution import Execution
from stagewright.plan.plan import Plan
from stagewright.rundir.directory import RunDir
from stagewright.rundir.events import Observer


def default_observers(run: RunDir, plan: Plan, execution: Execution) -> list[Observer]:
    """Returns the console, the log file, unless they are switched off the report pages, and what sends the run to trackers."""
    stages = [(stage.name, stage.first_step, stage.num_steps) for stage in plan.stages]
    own: list[Observer] = [Console(plan.total_steps, stages, quiet=execution.quiet), TextLog(run.log)]
    pages = [Pages(run.root)] if execution.pages else []
    return [*own, *([TrackerProcesses(run.root, execution.track)] if execution.track else []), *pages]
