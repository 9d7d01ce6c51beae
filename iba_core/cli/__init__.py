"""The command line, ``iba``: explain photographs without writing a program."""

from __future__ import annotations

import os
import sys
import traceback
from typing import Any

from iba_core.cli.quiet import ask_for_quiet, short_warnings
from iba_core.errors import IBAError
from iba_core.files import shown

DEBUG = "--debug"
"""Option that all commands take, at any place."""

INTERRUPTED = 130
"""Exit code after Ctrl-C, as in a shell: 128 plus the number of the signal."""


def main() -> int:
    """Run the command line on `sys.argv` and return the exit code.

    One of the library's errors, or a wrong option, gives one line on stderr and exit code 2; with ``--debug``
    after its traceback. Any other exception is a bug and keeps its traceback.

    Returns:
        0 for success, 2 for an error, 130 for an interruption.
    """
    ask_for_quiet()
    from typer import Abort, BadParameter

    from iba_core.cli.app import app

    # Typer exports only this one of its parser's exceptions. Its base class is that of all wrong options.
    usage_error: type[BaseException] = BadParameter.__mro__[1]
    for stream in (sys.stdout, sys.stderr):
        # Print a question mark for a letter that the terminal cannot show, instead of a traceback.
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")
    arguments = [argument for argument in sys.argv[1:] if argument != DEBUG]
    try:
        with short_warnings():
            code = app(args=arguments, prog_name="iba", standalone_mode=False)
        sys.stdout.flush()
    except IBAError as error:
        if DEBUG in sys.argv:
            traceback.print_exc()
        return _fail(str(error))
    except usage_error as error:
        wrong: Any = error
        return _fail(wrong.format_message())
    except (KeyboardInterrupt, Abort):
        print("iba: interrupted", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # The reader, such as `head`, has stopped reading. Keep Python from failing again at closing stdout.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return code or 0


def _fail(message: str) -> int:
    # A framework's message inside may have several lines; print one.
    print("iba: error:", shown(" ".join(message.split())), file=sys.stderr)
    return 2
