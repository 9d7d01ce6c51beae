"""Start of the command ``iba``.

It is a package of its own, since Python imports a package before any of its modules: an interruption while
NumPy or a framework is imported is one line, too.
"""

from __future__ import annotations

import os
import signal
import sys
from typing import Any

__all__ = ["catch_interruptions", "main"]

_INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell: 128 plus the number of the signal."""

_BACK_TO_NORMAL = b"\r\x1b[2K\x1b[?25h"
"""Wipes the line of a progress bar, and shows the cursor again."""


def catch_interruptions() -> None:
    """End the program with one line and exit code 130 when the user presses Ctrl-C, at any moment.

    No exception is raised, which some code would swallow or turn into another. Nothing has to be restored,
    but for files that are half written: they are removed.
    """
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as a shell asks of what runs in the background
        return
    try:
        # Its own, since stderr is held back while a framework is imported.
        stderr = os.dup(2)
    except OSError:
        stderr = None

    def end(number: int, frame: Any) -> None:
        if (files := sys.modules.get("iba_core.files")) is not None and hasattr(files, "discard_unfinished"):
            files.discard_unfinished()
        if stderr is not None:
            os.write(stderr, (_BACK_TO_NORMAL if os.isatty(stderr) else b"") + b"iba: interrupted\n")
        os._exit(_INTERRUPTED)

    signal.signal(signal.SIGINT, end)


def main() -> int:
    """Run the command line on `sys.argv` and return the exit code, see `iba_core.cli.main`."""
    catch_interruptions()
    from iba_core.cli import main as run

    return run()
