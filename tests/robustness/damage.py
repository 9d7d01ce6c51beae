"""Damage to files: seeded changes of bytes, and files that only a program could write."""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import safe_open
from safetensors.numpy import save_file

JUNK: tuple[Any, ...] = (
    None,
    True,
    -1,
    2.7,
    1e400,
    float("nan"),
    2**80,
    "",
    "x",
    "channels_last",
    [],
    [1, 2],
    ["a"],
    [[]],
    {},
    {"layer": 1},
)
"""Values that a file may hold in place of the right ones."""


def damaged_bytes(content: bytes, seed: int) -> bytes:
    """Flip bits, overwrite, move, repeat or leave out some of the bytes."""
    chance = random.Random(seed)
    data = bytearray(content)
    for _ in range(chance.choice((1, 1, 1, 2, 5, 20))):
        place, length = chance.randrange(len(data)), chance.choice((1, 2, 4, 8, 64))
        match chance.randrange(8):
            case 0 | 1 | 2:
                data[place] ^= 1 << chance.randrange(8)
            case 3:
                data[place] = chance.choice((0, 1, 10, 34, 91, 123, 127, 128, 255))
            case 4:
                data[place : place + length] = bytes([chance.choice((0, 255))]) * length
            case 5:
                other = chance.randrange(len(data))
                data[place : place + length] = data[other : other + length]
            case 6:
                del data[place : place + length]
            case _:
                del data[chance.choice((place, len(data) - 1, len(data) // 2)) :]
        if not data:
            break
    return bytes(data)


def rewritten_state(path: Path, seed: int) -> None:
    """Change what a state file says: another value, another array, an entry less. It loses its checksum."""
    chance = random.Random(seed)
    with safe_open(path, framework="numpy") as file:
        header = dict(file.metadata())
        arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    header.pop("iba_checksum", None)
    metadata = json.loads(header["iba_metadata"])
    for _ in range(chance.choice((1, 1, 2, 3))):
        if chance.random() < 0.5:
            _change_array(arrays, chance)
        else:
            metadata = _changed(metadata, chance)
    header["iba_metadata"] = json.dumps(metadata)
    if chance.random() < 0.05:
        header["iba_metadata"] = chance.choice(("[" * 50_000, "{", "", '{"a": 1e999}', "null", "\x00"))
    save_file(arrays, path, metadata=header)


def _change_array(arrays: dict[str, np.ndarray], chance: random.Random) -> None:
    if not arrays:
        return
    name = chance.choice(sorted(arrays))
    array = arrays.pop(name)
    match chance.randrange(9):
        case 0:
            return
        case 1:
            array = array[None]
        case 2:
            array = array.reshape(-1)[: array.size // 2]
        case 3:
            array = array.astype(chance.choice((np.int32, np.float16, np.bool_, np.float64)))
        case 4:
            arrays[chance.choice(("x", "mean", "training.best"))] = array
        case 5:
            array = np.zeros((0,), array.dtype)
        case _:
            # A copy with one value that cannot be, where the dtype has it.
            array = np.array(array)
            if array.size and array.dtype.kind == "f":
                array.reshape(-1)[chance.randrange(array.size)] = chance.choice((np.nan, np.inf, -5.5, 1e30))
            elif array.size:
                array.reshape(-1)[chance.randrange(array.size)] = chance.choice((-3, 0, 100))
    arrays[name] = np.ascontiguousarray(array)


def _changed(value: Any, chance: random.Random) -> Any:
    """The metadata with one entry changed, anywhere inside."""
    if isinstance(value, Mapping) and value and chance.random() < 0.85:
        key = chance.choice(sorted(value))
        if chance.random() < 0.2:
            return {name: entry for name, entry in value.items() if name != key}
        return {**value, key: _changed(value[key], chance)}
    if isinstance(value, list) and value and chance.random() < 0.6:
        place = chance.randrange(len(value))
        return [*value[:place], _changed(value[place], chance), *value[place + 1 :]]
    return chance.choice(JUNK)
