"""``python -m stagewright.report RUN...``: writes plots and report.html anew, from the run's files alone."""

from __future__ import annotations

import sys

from stagewright.errors import StagewrightError
from stagewright.report.write import write


def main() -> int:
    """Writes the report of every run named; 2 where one is none."""
    try:
        for run in sys.argv[1:]:
            print(write(run))
    except StagewrightError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
