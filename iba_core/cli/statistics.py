"""Files of statistics, with the preprocessing of the pictures."""

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
    """Write the estimated statistics, and the preprocessing of the pictures."""
    explainer.save(path, {_PREPARED: _facts(network), _SUMMARY: network.preprocessing_summary})


def load_statistics(explainer: Explainer, network: Network, path: Path) -> None:
    """Read statistics that `save_statistics` or `Explainer.save` has written.

    Raises:
        InputError: the preprocessing of the statistics differs from that of `network`.
        StateError: the file is missing, of another kind, or for another layer.
    """
    explainer.load(path)
    _, known = read_state(path, KIND)
    # `Explainer.save` writes no preprocessing.
    if known.get(_PREPARED) not in (None, _facts(network)):
        raise InputError(
            f"stats={str(path)!r} are for another preprocessing ({known.get(_SUMMARY)}) than that of the "
            f"network ({network.preprocessing_summary}); give the same --preprocess and --size, or estimate "
            "them again"
        )


def _facts(network: Network) -> dict[str, Any]:
    """Return the preprocessing in the form in which a file stores it."""
    facts: dict[str, Any] = json.loads(json.dumps(asdict(network.preprocessing)))
    return facts
