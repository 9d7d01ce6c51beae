"""The rows of a report: what the pages know of each input and each of its explanations."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any

from iba_core.datasets.run import Record, Run
from iba_core.errors import IBAError
from iba_core.files import shown
from iba_core.report.layers import MapFile, is_inside, read_map, write_map, write_picture

MAPS, PICTURES = "maps", "pictures"
"""Folders of a report."""

_TOP_CLASSES = 5


@dataclass
class Rows:
    """What the script file of a report holds.

    Attributes:
        inputs: a dict for each input: id, name, path, picture.
        records: a dict for each explanation, with the place of its input.
    """

    inputs: list[dict[str, Any]] = field(default_factory=list)
    records: list[dict[str, Any]] = field(default_factory=list)
    _places: dict[str, int] = field(default_factory=dict)

    def add(self, record: Record, folder: Path) -> None:
        """Add a record, and write its images into the folder of the report.

        A result that is missing or damaged becomes an error of its row.
        """
        place = self._input(record, folder)
        values: dict[str, Any] = {
            "input": place,
            "target": shown(record.target),
            "setup": shown(record.setup),
            "layer": shown(record.layer),
            "name": _class_of(record),
            "index": record.class_index,
            "warnings": [shown(each) for each in record.warnings],
            "error": None if record.error is None else shown(record.error),
            "top": [
                [index, f"class {index}" if name is None else shown(name), _number(share) or 0.0]
                for index, name, share in record.top[:_TOP_CLASSES]
            ],
        }
        for name in ("probability", "bits", "bits_per_pixel", "survival", "seconds"):
            values[name] = _number(getattr(record, name))
        if record.error is None:
            try:
                found, values["map"] = _map_of(record, folder)
                values["peak"], values["size"] = found.top, found.size
            except IBAError as error:
                values["error"] = shown(error)
        self.records.append(values)

    def _input(self, record: Record, folder: Path) -> int:
        known = record.path or record.name
        if known not in self._places:
            self._places[known] = len(self.inputs)
            self.inputs.append(
                {
                    "id": _digest(known)[:12],
                    "name": shown(record.name),
                    "path": None if record.path is None else shown(record.path),
                    "picture": None,
                }
            )
        entry = self.inputs[self._places[known]]
        if entry["picture"] is None:
            entry["picture"] = _picture_of(record, folder)
        return self._places[known]


def as_script(values: Any) -> str:
    r"""A script that sets ``window.REPORT``, of letters that mean nothing in HTML or JavaScript.

    Example:
        >>> as_script(["</script>"])
        'window.REPORT=["\\u003c/script\\u003e"];\n'
    """
    # ASCII alone, so the separators U+2028 and U+2029 are escaped, too.
    text = json.dumps(values, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    for letter in "<>&'":
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return f"window.REPORT={text};\n"


def setups_of(run: Run) -> list[dict[str, Any]]:
    """The setups of a run for people: a label that tells them apart, and what they say."""
    setups = sorted(run.setups.items(), key=lambda entry: str(entry[1].get("started")))
    models = {str(setup.get("model")) for _, setup in setups}
    labels = []
    for _, setup in setups:
        parts = [str(setup.get("layer", "")), str(setup.get("model", "")) if len(models) > 1 else ""]
        labels.append(shown(", ".join(part for part in parts if part) or "setup"))
    numbered = [
        f"{label} ({labels[: place + 1].count(label)})" if labels.count(label) > 1 else label
        for place, label in enumerate(labels)
    ]
    return [
        {"id": shown(name), "label": label, "facts": _facts(setup)}
        for (name, setup), label in zip(setups, numbered, strict=True)
    ]


def _facts(values: dict[str, Any]) -> dict[str, list[tuple[str, str]]]:
    """Pairs of names and values, those of dicts under their own headings."""
    facts: dict[str, list[tuple[str, str]]] = {"": []}
    for name, value in values.items():
        label = shown(name.replace("_", " "))
        if isinstance(value, dict):
            facts[label.capitalize()] = _facts({key: _text(each) for key, each in value.items()})[""]
        else:
            facts[""].append((label, _text(value)))
    return facts


def _text(value: Any) -> str:
    if isinstance(value, (list, dict)):
        return shown(json.dumps(value).strip("[]"))
    return "none" if value is None else shown(value)


def _class_of(record: Record) -> str | None:
    if record.class_name is not None:
        return shown(record.class_name)
    return None if record.class_index is None else f"class {record.class_index}"


def _number(value: Any) -> float | None:
    return float(value) if isinstance(value, (int, float)) and isfinite(value) else None


def _digest(*parts: str) -> str:
    text = "\0".join(parts).encode("utf-8", "surrogatepass")
    return hashlib.sha256(text).hexdigest()[:24]


def _map_of(record: Record, folder: Path) -> tuple[MapFile, str]:
    name = f"{MAPS}/{_digest(record.key)}.png"
    found = read_map(folder / name)
    if found is None:
        found = write_map(folder / name, record.attribution().saliency[0])
    return found, name


def _picture_of(record: Record, folder: Path) -> str | None:
    source = record.input_path
    if source is None or not is_inside(record.folder, source):
        return None
    name = f"{PICTURES}/{_digest(record.input or '')}.jpg"
    return name if write_picture(folder / name, source) else None


def collected(records: Iterable[Record], folder: Path) -> Rows:
    """The rows of records, whose images are in the folder afterwards."""
    rows = Rows()
    for record in records:
        rows.add(record, folder)
    return rows
