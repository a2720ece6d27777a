"""Plans of the shipped recipes as texts, reviewed as a diff: a changed default shows up here.

``make golden`` writes them anew.
"""

from __future__ import annotations

import io
import os
from pathlib import Path

import pytest
from rich.console import Console

from stagewright.cli.plan_view import plan_view
from stagewright.plan.plan import DatasetInfo, stage_ends
from stagewright.plan.resolve import resolve
from stagewright.recipe import recipes

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


# The hybrid strategy as its authors wrote it down (docs/systems.md, E), on ImageNet: per stage the data fraction, pixels,
# batch, epochs and learning rate over the base. Steps: epochs * fraction * 1,281,167 / batch, rounded.
HYBRID = """
coarse  0.50  128  1024  15  1.00   9384       0
medium  0.75  160   768  15  0.70  18767    9384
full    1.00  224   512  30  0.50  75068   28151
polish  1.00  224   512  20  0.25  50046  103219
"""


def test_hybrid_on_imagenet_is_the_authors_table_to_the_step() -> None:
    base = 0.4  # min(0.1 * 1024 / 256, 0.4)
    for span in ("run", "stage"):
        plan = resolve(recipes.load("hybrid", [f"lr.span={span}"]), IMAGENET)
        rows = [
            f"{s.name:<7} {s.data_fraction:.2f} {s.image_size:>4} {s.batch_size:>5} {s.epochs_given:>3.0f} "
            f"{s.peak_lr / base:>5.2f} {s.num_steps:>6} {s.first_step:>7}"
            for s in plan.stages
        ]
        assert [row.split() for row in rows] == [line.split() for line in HYBRID.strip().splitlines()]
        assert plan.total_steps == 153_265
        assert [stage.mix.mixup for stage in plan.stages] == [0.2, 0.2, 0.2, 0.0]
        highest = [stage_ends(stage)["lr_peak"] / base for stage in plan.stages]
        if span == "stage":  # each stage's own cycle rises to its share of the base
            assert highest == pytest.approx([1.0, 0.7, 0.5, 0.25], rel=1e-4)
        else:  # one cycle, which the first stage sees the top of, and falls through all the others
            assert highest[0] == pytest.approx(1.0, rel=1e-4)
            assert highest == sorted(highest, reverse=True)
            assert all(top <= share for top, share in zip(highest, (1.0, 0.7, 0.5, 0.25), strict=True))
