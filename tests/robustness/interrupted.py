"""A program that another one interrupts: it explains on and on, and says after each interrupt what is left.

``python -m tests.robustness.interrupted torch 20`` writes ``ready``, then for each of 20 interrupts ``busy``
before and ``intact``, or what has changed, after it.
"""

from __future__ import annotations

import gc
import sys
import tempfile
from pathlib import Path

from iba_core.errors import IBAError
from tests.backends import BACKENDS
from tests.robustness.scenes import scenes
from tests.robustness.state import differences, model_state, process_state, same

NAMES = ("explain", "explain_iter", "activation maps", "predict")
"""Scenes that leave what they act on as it is."""


def main(name: str, count: int) -> None:
    """Be interrupted so many times."""
    backend = BACKENDS[name]()
    with tempfile.TemporaryDirectory() as folder:
        chosen = [scene for scene in scenes(backend, Path(folder)) if scene.name in NAMES]
        subjects = [scene.make() for scene in chosen]
        for scene, subject in zip(chosen, subjects, strict=True):
            scene.act(subject)
        expected = [scene.observe(subject) for scene, subject in zip(chosen, subjects, strict=True)]
        model, x = chosen[0].model, chosen[0].x

        def look() -> dict[str, object]:
            return process_state(backend) | model_state(backend, model, x)

        before = look()
        say("ready")
        for number in range(count):
            index = number % len(chosen)
            scene, subject = chosen[index], subjects[index]
            # No line between the two: an interrupt comes as soon as it is asked for.
            try:
                say("busy")
                while True:
                    scene.act(subject)
            except KeyboardInterrupt:
                pass
            except Exception as error:
                # What TensorFlow's C code raises where it has dropped the interrupt; all else goes on.
                if isinstance(error, IBAError):
                    raise
            changed = differences(before, look())
            gc.collect()
            if not same(scene.observe(subject), expected[index]):
                changed.append("the next result")
            say(f"{scene.name}: {changed}" if changed else "intact")


def say(text: str) -> None:
    """Write a line at once."""
    print(text, flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
