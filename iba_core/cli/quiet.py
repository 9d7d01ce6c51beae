"""Suppress the messages that frameworks print at their start."""

from __future__ import annotations

import logging
import os
import re
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from iba_core.files import shown

_STDERR = 2

# Messages of Google's logging library, which ignores all settings before its own initialisation.
_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:\d\d:|[IW]\d{4,} ?\d"
)


def ask_for_quiet() -> None:
    """Tell the frameworks to be quiet, unless the user has set otherwise, before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextmanager
def short_warnings() -> Iterator[None]:
    """Show a warning as one line, as errors are."""

    def shortened(
        message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
    ) -> str:
        return f"iba: warning: {shown(' '.join(str(message).split()))}\n"

    usual = warnings.formatwarning
    warnings.formatwarning = shortened
    try:
        with warnings.catch_warnings():
            # A letter that the font of a figure lacks is drawn as a box.
            warnings.filterwarnings("ignore", "Glyph .* missing from")
            yield
    finally:
        warnings.formatwarning = usual


@contextmanager
def quiet_start() -> Iterator[None]:
    """Hold back stderr while a framework is imported, then print it without the framework's messages."""
    try:
        original = os.dup(_STDERR)
    except OSError:  # there is no stderr
        yield
        return
    with tempfile.TemporaryFile() as written:
        os.dup2(written.fileno(), _STDERR)
        try:
            yield
        finally:
            os.dup2(original, _STDERR)
            os.close(original)
            written.seek(0)
            kept = [line for line in written if not _CHATTER.match(line)]
            os.write(_STDERR, b"".join(kept))
