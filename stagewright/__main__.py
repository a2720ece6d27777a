"""``python -m stagewright``: the command line, with the current folder off the path before anything else is imported.

``-m`` puts that folder first, where a ``json.py`` beside someone's pictures would be run in place of the real one. What
stands above this line, here and in the package's ``__init__``, imports nothing that could lie there.
"""

import os
import sys


def leave_current_folder() -> None:
    """Takes off the path what ``-m`` has put first on it."""
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
