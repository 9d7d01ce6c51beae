"""Fixtures for all tests: what runs one test body on every framework."""

import atexit
import os
import shutil
import signal
import tempfile
import threading

# TensorFlow reads this when it is first imported. Its start-up messages are no part of a test's output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.backends import backend, both, framework

# The command line keeps statistics. Tests keep theirs to themselves.
os.environ["IBA_CACHE"] = tempfile.mkdtemp(prefix="iba-cache-")
atexit.register(shutil.rmtree, os.environ["IBA_CACHE"], ignore_errors=True)

# A program in the background ignores Ctrl-C, and so would the programs that the tests interrupt.
is_main = threading.current_thread() is threading.main_thread()
if is_main and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

__all__ = ["backend", "both", "framework"]
