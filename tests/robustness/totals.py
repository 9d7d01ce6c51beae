"""Totals of the long runs: one flat JSON object for each suite, which the README quotes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "build" / "soak"


def write_totals(name: str, counts: Mapping[str, float]) -> Path:
    """Write what a suite has counted to ``build/soak/NAME.json``.

    Args:
        name: of the suite, such as ``"faults_pytorch"``.
        counts: numbers by what was counted, in lower-case words with underscores.

    Returns:
        The file, which is replaced in one step.
    """
    FOLDER.mkdir(parents=True, exist_ok=True)
    path = FOLDER / f"{name}.json"
    unfinished = path.with_suffix(f".{os.getpid()}")
    unfinished.write_text(json.dumps(dict(counts), indent=2) + "\n", encoding="utf-8")
    unfinished.replace(path)
    return path
