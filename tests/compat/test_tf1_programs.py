"""Whole programs of TensorFlow 1, each in a process of its own, since its switches are those of a process."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "programs" / "graphs.py"


@pytest.mark.parametrize("behaviour", ["v1", "branches"])
def test_programs_of_tensorflow_1_run(behaviour, tmp_path):
    environment = {**os.environ, "MPLBACKEND": "agg", "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    command = [sys.executable, str(PROGRAM), behaviour, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert "all done" in done.stdout, done.stderr[-3000:]
