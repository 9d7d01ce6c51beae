"""Ctrl-C at random moments, sent from another process as a terminal does."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from tests.robustness.test_faults import SHARE
from tests.robustness.totals import write_totals

ROOT = Path(__file__).parents[2]

pytestmark = pytest.mark.skipif(os.name != "posix", reason="signals are sent as on POSIX")


def interrupt(name: str, count: int, seed: int = 0) -> Counter[str]:
    """Interrupt a program so many times; how often it said what afterwards."""
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    command = [sys.executable, "-W", "ignore", "-m", "tests.robustness.interrupted", name, str(count)]
    generator, said = random.Random(seed), Counter[str]()
    with subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True) as program:
        try:
            assert program.stdout is not None
            assert program.stdout.readline() == "ready\n"
            for _ in range(count):
                assert program.stdout.readline() == "busy\n"
                time.sleep(generator.uniform(0, 0.1))
                program.send_signal(signal.SIGINT)
                said[program.stdout.readline().strip()] += 1
        finally:
            program.kill()
    return said


# What holds for one framework's signals holds for the other's faults, and its start takes long.
def test_interrupts_from_another_process_leave_nothing():
    pytest.importorskip("torch")
    assert interrupt("torch", 12) == {"intact": 12}


@pytest.mark.soak
@pytest.mark.parametrize("name", ["torch", "tensorflow"])
def test_a_thousand_interrupts_from_another_process_leave_nothing(name):
    pytest.importorskip(name)
    count = max(20, round(1000 * SHARE))
    said = interrupt(name, count)
    write_totals(f"signals_{name}", {"interrupts": count, "left": count - said["intact"]})
    assert said == {"intact": count}
