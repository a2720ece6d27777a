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


def run() -> None:
    """Entry point of the command ``stagewright``: imports the command line, which takes a while, and runs it."""
    import signal

    # Until the command takes its signals, Ctrl-C ends the process without a traceback. Ignored signals stay ignored.
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from stagewright.cli.main import main

    main()


if __name__ == "__main__":
    leave_current_folder()
    sys.argv[0] = "stagewright"
    run()
