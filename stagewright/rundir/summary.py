"""Reads summary.json, and records in it how long a run with a time budget took."""

from __future__ import annotations

import json
from typing import Any

from stagewright.errors import CheckpointError
from stagewright.plan.budget import Budget, Choice
from stagewright.rundir.directory import RunDir
from stagewright.storage.files import read_own, write_json
from stagewright.text import span_text


def read_summary(run: RunDir) -> dict[str, Any]:
    """Returns the content of ``summary.json``, or {} if there is none yet; CheckpointError if it is not valid JSON."""
    try:
        content = json.loads(read_own(run.summary))
        if not isinstance(content, dict):
            raise ValueError("it is not a JSON object")
        return content
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise CheckpointError(
            f"{run.summary} is damaged: {error}",
            "the file as it was written",
            f"stagewright resume {run.root} writes it again",
        ) from None


def recorded_choice(run: RunDir, budget: Budget) -> Choice | None:
    """Returns the choice that ``run`` recorded for the same budget when it began, or None if there is none."""
    account = run.read_env().get("budget") or {}
    return Choice.from_dict(account["choice"]) if account.get("asked") == budget.text else None


def record_actual_seconds(run: RunDir, budget: Budget) -> str | None:
    """Records in the summary of a finished run the seconds it took; returns a sentence for the user.

    Returns None if the run has no budget or is not finished.
    """
    summary = read_summary(run)
    account = summary.get("budget")
    if not account or summary.get("status") != "finished":
        return None
    account["actual_seconds"] = round(budget.spent_seconds, 2)
    write_json(run.summary, summary)
    share = 100 * account["actual_seconds"] / budget.seconds
    return (
        f"Budget {budget.text}: {span_text(account['predicted_seconds'])} predicted, "
        f"{span_text(account['actual_seconds'])} taken ({share:.1f} %)"
    )
