"""Keeping the notes that frameworks write as they start out of the output."""

from __future__ import annotations

import logging
import os
import re
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

_STDERR = 2

# Google's logging library heeds no setting before it has started: its notes and warnings, and its excuse.
_CHATTER = re.compile(
    rb"WARNING: All log messages before absl::InitializeLog|[IW]\d{4} \d\d:\d\d:|[IW]\d{4,} ?\d"
)


def ask_for_quiet() -> None:
    """Set what tells the frameworks to be quiet, where the user has set nothing; before they are imported."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    logging.getLogger("tensorflow").setLevel(logging.ERROR)


@contextmanager
def quiet_start() -> Iterator[None]:
    """Context to import a framework in. What it writes to stderr comes out at the end, without its notes."""
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
