"""Runs of made-up explanations, for tests of what is made of a run."""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from iba_core import Attribution
from iba_core.datasets.run import Record, Run

HOSTILE = "<img src=x onerror=\"document.title='owned'\">'\"&</script>\u2028\u2029{{7919*7907}}.jpg"
"""A name of a file that must not become anything but text."""

SIDE = 24


def attribution(saliency: np.ndarray) -> Attribution:
    """An attribution of one input with a map."""
    map_ = np.asarray(saliency, np.float32)
    steps = np.zeros((2, 1), np.float32)
    return Attribution(
        saliency=map_[None],
        capacity=np.zeros((1, 2, *map_.shape), np.float32),
        mask=np.zeros((1, 2, *map_.shape), np.float32),
        outputs=np.zeros((1, 3), np.float32),
        model_losses=steps,
        informations=steps,
        layer="conv",
        data_format="channels_first",
    )


def spot(x: int, y: int, peak: float = 1.0) -> np.ndarray:
    """A map with a spot."""
    across, down = np.meshgrid(np.arange(SIDE), np.arange(SIDE))
    return peak * np.exp(-((across - x) ** 2 + (down - y) ** 2) / 8.0)


def add(run: Run, name: str, map_: np.ndarray | None = None, picture: bool = True, **facts: Any) -> Record:
    """Add an explanation with its files, or a failure where there is no map."""
    setup = facts.get("setup", "first")
    target = facts.pop("target", "predicted")
    key = hashlib.sha256(f"{name}|{target}|{setup}".encode()).hexdigest()[:32]
    values: dict[str, Any] = {"key": key, "name": name, "target": target, "setup": setup, "layer": "conv"}
    if map_ is not None:
        attribution(map_).save(run.folder / "results" / f"{key}.safetensors")
        bits = float(map_.sum())
        values |= {"bits": bits, "bits_per_pixel": bits / map_.size, "survival": 0.9, "probability": 0.8}
        values |= {"seconds": 0.5, "class_index": 1, "class_name": "tabby", "top": ((1, "tabby", 0.8),)}
        if picture:
            file = f"inputs/{hashlib.sha256(name.encode()).hexdigest()[:12]}.png"
            pixels = np.zeros((SIDE, SIDE, 3), np.uint8)
            pixels[:, :, 1] = np.linspace(60, 220, SIDE)
            Image.fromarray(pixels).save(run.folder / file)
            values["input"] = file
    record = Record(**{**values, **facts})
    run.add(record)
    return record


def example_run(folder: Path) -> Run:
    """A run of five inputs at two layers, one of them with a hostile name, one broken."""
    run = Run(folder)
    settings = {"beta": 10.0, "steps": 10}
    for number, (name, layer) in enumerate((("first", "conv"), ("second", "deep"))):
        run.begin(
            {
                "id": name,
                "started": f"2026-01-0{number + 1}",
                "model": "net",
                "layer": layer,
                "settings": settings,
            }
        )
    add(run, "cats/one.jpg", spot(4, 6, 2.0), class_name="tabby", bits=300.0, path="/photos/cats/one.jpg")
    add(run, "cats/one.jpg", spot(18, 6, 1.0), setup="second", bits=150.0, path="/photos/cats/one.jpg")
    add(
        run,
        "dogs/ten.jpg",
        spot(8, 8),
        class_name="beagle",
        class_index=2,
        bits=80.0,
        survival=0.3,
        warnings=("it is lost",),
    )
    add(run, "dogs/two.jpg", spot(8, 9), class_name="beagle", class_index=2, bits=900.0, survival=None)
    add(run, HOSTILE, spot(2, 2), class_name="</script><b>bold</b>", bits=20.0)
    add(run, "broken.jpg", error="it is no image <i>at all</i>")
    return run
