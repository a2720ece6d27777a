"""``python -m stagewright``: the command line."""

from __future__ import annotations

from stagewright.cli import main

main()
