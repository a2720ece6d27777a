"""``python -m stagewright.report RUN...``: writes plots and report.html again, only from the run's files."""

from __future__ import annotations

import sys

from stagewright.errors import StagewrightError
from stagewright.report.write import write
from stagewright.system.output import guarded


def main() -> int:
    """Writes the report of every run named on the command line; returns exit code 2 if one is not a run, else 0."""
    with guarded():
        try:
            for run in sys.argv[1:]:
                print(write(run))
        except StagewrightError as error:
            print(f"error: {error}", file=sys.stderr)
            return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
