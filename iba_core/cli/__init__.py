"""The command line, ``iba``: explain photographs without writing a program."""

from __future__ import annotations

import os
import sys
from typing import Any

from iba_core.cli.quiet import ask_for_quiet
from iba_core.errors import IBAError

INTERRUPTED = 130
"""Exit code after Ctrl-C, as shells give it: 128 and the number of the signal."""


def main() -> int:
    """Run the command line on `sys.argv` and return the exit code.

    An error that the library raises on purpose, or a wrong option, is one line on stderr and exit code 2.
    Anything else is a bug and keeps its traceback.
    """
    ask_for_quiet()
    from typer import Abort, BadParameter

    from iba_core.cli.app import app

    # Of its parser's exceptions Typer exports this one alone; its base is that of all wrong options.
    usage_error: type[BaseException] = BadParameter.__mro__[1]
    for stream in (sys.stdout, sys.stderr):
        # A terminal that cannot show a letter shall get a question mark, not a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    try:
        code = app(prog_name="iba", standalone_mode=False)
        sys.stdout.flush()
    except IBAError as error:
        return _fail(str(error))
    except usage_error as error:
        wrong: Any = error
        return _fail(wrong.format_message())
    except (KeyboardInterrupt, Abort):
        print("iba: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has seen enough. Python would complain once more as it closes stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code or 0


def _fail(message: str) -> int:
    # One line, whatever a framework's own message in it looks like.
    print("iba: error:", " ".join(message.split()), file=sys.stderr)
    return 2
