"""The public function ``lr_find``: a learning rate from a range test."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from stagewright.api.prepare import gather
from stagewright.api.run import Say
from stagewright.data.account import Account
from stagewright.plan.execution import Execution
from stagewright.plan.lr_curve import MEANING, RangeTest, Suggestions, lr_text
from stagewright.preflight.lr_find import caption, find_lr
from stagewright.preflight.range_test import Sweep
from stagewright.recipe.recipe import Recipe
from stagewright.recipe.request import RecipeRequest, as_request, recipe_flags
from stagewright.report.drawing import Drawing
from stagewright.storage.files import user_path
from stagewright.system.notebook import table
from stagewright.system.output import tell


@dataclass(frozen=True, eq=False)
class LearningRates:
    """What a range test has found."""

    test: RangeTest
    """Its curve."""
    suggestions: Suggestions
    """Learning rates by method, and sentences on how reliable they are."""
    account: Account
    """How many images DATA has, and what was left out."""
    caption: str
    """A description of the test."""

    @property
    def lr(self) -> float:
        """The chosen learning rate."""
        return self.suggestions.lr

    def plot(self) -> Drawing:
        """Returns the curve with the suggestions, which a notebook shows."""
        from stagewright.report.lr_plot import draw_range_test
        from stagewright.report.theme import themed

        with themed():
            return draw_range_test(self.test, self.suggestions, self.caption)

    def _repr_html_(self) -> str:
        found = self.suggestions
        rows = [
            (f"{name} (chosen)" if name == found.chosen else name, lr_text(lr), MEANING[name])
            for name, lr in found.lrs.items()
        ]
        return table(("suggestion", "LR", "what it is"), rows, left=3) + self.plot()._repr_html_()


def lr_find(  # the function behind `stagewright lr-find`: most keywords are its options, by the same names
    data: str | Path,
    recipe: str | Path | Recipe | RecipeRequest = "auto",
    *,
    overrides: Sequence[str] = (),
    model: str | Callable[..., object] | None = None,
    weights: str | Path | None = None,
    batch_size: int | None = None,
    image_size: int | None = None,
    seed: int | None = None,
    steps: int = 100,
    lr_min: float = 1e-7,
    lr_max: float = 10.0,
    suggest: str = "valley",
    out: str | Path | None = None,
    execution: Execution | None = None,
    say: Say = tell,
) -> LearningRates:
    """Trains ``steps`` updates in which the learning rate rises from ``lr_min`` to ``lr_max``, and returns the rates that the
    loss suggests. Nothing of the training is kept; ``out`` is a folder for the curve as CSV, JSON and PNG.

    ``suggest`` is the method that chooses: valley, steepest or minimum. The other arguments are those of
    :func:`stagewright.api.train.train`. RangeTestError if there is no descent to choose from, StagewrightError for all else
    that a caller can fix.
    """
    flags = recipe_flags(model=model, weights=weights, batch_size=batch_size, image_size=image_size, seed=seed)
    execution = execution or Execution()
    dataset, resolved = gather(data, as_request(recipe, overrides, flags), execution, say)
    sweep = Sweep(lr_min, lr_max, steps)
    folder = None if out is None else user_path(out)
    test, found = find_lr(resolved, dataset, execution, sweep=sweep, choose=suggest, out=folder)
    return LearningRates(test, found, dataset.account, caption(resolved, sweep))
