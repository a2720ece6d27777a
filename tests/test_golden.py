"""Plans of the shipped recipes as texts, reviewed as a diff: a changed default shows up here.

``make golden`` writes them anew.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from stagewright import recipes
from stagewright.plan import DatasetInfo
from stagewright.planview import plan_view
from stagewright.resolve import resolve

GOLDEN = Path(__file__).parent / "golden"
IMAGENET = DatasetInfo(
    num_train=1_281_167,
    num_val=50_000,
    num_test=0,
    classes=tuple(f"n{at:08d}" for at in range(1000)),
    digest="imagenet",
)
SMALL = DatasetInfo(num_train=1257, num_val=270, num_test=270, classes=tuple("0123456789"), digest="digits")


def text_of(name: str, info: DatasetInfo) -> str:
    plan = resolve(recipes.load(name), info)
    out = io.StringIO()
    Console(file=out, width=110, color_system=None).print(plan_view(plan))
    # The digest hangs on the last bits of logarithms, which differ between machines.
    lines = [line.rstrip().replace(plan.digest[:12], "...") for line in out.getvalue().splitlines()]
    lines += ["", f"evaluations {plan.eval_steps}", "", "step lr momentum weight_decay label_smoothing average_weight"]
    for at in range(10):
        step = at * (plan.total_steps - 1) // 9
        h = plan.hyper(step)
        numbers = (h.lr, h.momentum, h.weight_decay, h.label_smoothing, h.average_weight)
        lines.append(f"{step} " + " ".join(f"{number:.9g}" for number in numbers))
    return "\n".join(lines) + "\n"


@pytest.mark.parametrize("info", [IMAGENET, SMALL], ids=["imagenet", "small"])
@pytest.mark.parametrize("name", recipes.shipped())
def test_plan_is_as_reviewed(name: str, info: DatasetInfo) -> None:
    path = GOLDEN / f"{name}-{info.digest}.txt"
    text = text_of(name, info)
    if os.environ.get("STAGEWRIGHT_GOLDEN") == "write":
        path.write_text(text)
    assert path.is_file(), "make golden writes it"
    assert text == path.read_text(), f"the plan of {name} changed; if that is meant, make golden and review the diff"


@pytest.mark.skipif(
    "CI" in os.environ and os.environ.get("STAGEWRIGHT_GOLDEN") == "write", reason="never written in CI"
)
def test_no_golden_file_is_left_over() -> None:
    expected = {f"{name}-{info.digest}.txt" for name in recipes.shipped() for info in (IMAGENET, SMALL)}
    assert {path.name for path in GOLDEN.iterdir()} == expected
