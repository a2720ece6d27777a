"""The command that mends a split, written out so that it can be typed as it stands."""

from __future__ import annotations

import os
import shlex
from itertools import count

from stagewright.data.sources.folders import name_of
from stagewright.recipe.recipe import Data


def new_split(source: str, settings: Data) -> str:
    """Returns the command that makes a new split of ``source``, read with ``settings``, as a table that does not exist yet.

    Near duplicates stay together in it, also mirrored ones.
    """
    name = name_of(source)
    table = next(out for at in count(1) if not os.path.lexists(out := f"{name}-split{f'-{at}' if at > 1 else ''}.csv"))
    words = ["stagewright", "data", "split", source, "--anew", "--near", "together"]
    for field in sorted(settings.model_fields_set):
        value = getattr(settings, field)
        if value is not None and field not in ("split", "near"):  # --anew is data.split=none
            words += ["--set", f"data.{field}={value}"]
    words += ["--seed", str(settings.split_seed)] if settings.split_seed else []
    return shlex.join([*words, "--out", table])
