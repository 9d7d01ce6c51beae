"""Fixtures for all tests: what runs one test body on every framework."""

import os

# TensorFlow reads this when it is first imported. Its start-up messages are no part of a test's output.
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from tests.backends import backend, both, framework

__all__ = ["backend", "both", "framework"]
