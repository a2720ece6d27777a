"""``python -m stagewright``: removes the current folder from ``sys.path``, then runs the command line.

``-m`` puts the current folder first, so a file ``json.py`` next to someone's images would be imported instead of the standard
library's. Until the folder is removed, this module and the package's ``__init__`` only import modules that Python has already
loaded.
"""

import os
import sys


def leave_current_folder() -> None:
    """Removes the entry that ``-m`` has put first on ``sys.path``."""
    if sys.flags.safe_path or not sys.path:
        return
    try:
        here = os.getcwd()
    except FileNotFoundError:
        return
    if sys.path[0] in ("", here):
        del sys.path[0]


if __name__ == "__main__":
    leave_current_folder()
    from stagewright.cli.main import main

    sys.argv[0] = "stagewright"
    main()
