"""Files of statistics, which say how the pictures were prepared that they are of."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

from iba_core.bottleneck.estimator import KIND
from iba_core.cli.network import Network
from iba_core.errors import InputError
from iba_core.explainer import Explainer
from iba_core.state import read_state

_PREPARED = "preprocessing"
_SUMMARY = "pictures"


def save_statistics(explainer: Explainer, network: Network, path: Path) -> None:
    """Write what has been estimated, and what became of a picture before."""
    explainer.save(path, {_PREPARED: _facts(network), _SUMMARY: network.preprocessing_summary})


def load_statistics(explainer: Explainer, network: Network, path: Path) -> None:
    """Take over what `save_statistics`, or a program of one's own, has written.

    Raises:
        InputError: the pictures were prepared in another way than `network` is to prepare them.
        StateError: the file is missing, of another kind, or for another layer.
    """
    explainer.load(path)
    _, known = read_state(path, KIND)
    # A program of one's own may have left it out.
    if known.get(_PREPARED) not in (None, _facts(network)):
        raise InputError(
            f"stats={str(path)!r} are of pictures that were prepared otherwise ({known.get(_SUMMARY)}) than "
            f"these are to be ({network.preprocessing_summary}); give the same --preprocess and --size, or "
            "estimate them anew"
        )


def _facts(network: Network) -> dict[str, Any]:
    """The preprocessing, as it comes back from a file."""
    facts: dict[str, Any] = json.loads(json.dumps(asdict(network.preprocessing)))
    return facts
