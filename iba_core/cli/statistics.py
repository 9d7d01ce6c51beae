"""Statistics of a layer's features: their files, with the preprocessing, those that are packaged, a cache."""

from __future__ import annotations

import os
from contextlib import suppress
from functools import cache
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from platformdirs import user_cache_path

from iba_core.bottleneck.estimator import KIND
from iba_core.cli.console import tracked
from iba_core.cli.network import Network
from iba_core.datasets.run import digest, settings_dict
from iba_core.errors import IBAError, InputError
from iba_core.explainer import Explainer
from iba_core.pictures.images import sample_crops
from iba_core.state import read_state
from iba_core.zoo.statistics import packaged_facts

_PREPARED = "preprocessing"
_SUMMARY = "pictures"

ESTIMATING = "Estimating the features"

CROPS = 256
"""Number of crops of the sample photographs to estimate statistics on, without a data set."""

CACHE = "IBA_CACHE"
"""Environment variable with the folder to keep statistics in; empty to keep none."""


def save_statistics(explainer: Explainer, network: Network, path: Path) -> None:
    """Write the estimated statistics, and the preprocessing of the pictures."""
    facts = {_PREPARED: settings_dict(network.preprocessing), _SUMMARY: network.preprocessing_summary}
    explainer.save(path, facts)


def load_statistics(explainer: Explainer, network: Network, path: Path) -> None:
    """Read statistics that `save_statistics` or `Explainer.save` has written.

    Raises:
        InputError: the preprocessing of the statistics differs from that of `network`.
        StateError: the file is missing, of another kind, or for another layer.
    """
    explainer.load(path)
    _, known = read_state(path, KIND)
    # `Explainer.save` writes no preprocessing.
    if known.get(_PREPARED) not in (None, settings_dict(network.preprocessing)):
        raise InputError(
            f"stats={str(path)!r} are for another preprocessing ({known.get(_SUMMARY)}) than that of the "
            f"network ({network.preprocessing_summary}); give the same --preprocess and --size, or estimate "
            "them again"
        )


# -- without a data set -------------------------------------------------------------------------------


class Origin(NamedTuple):
    """What statistics are of."""

    text: str
    """Such as ``"700 photographs of ImageNet, packaged"``."""
    are_settled: bool
    """Whether more samples would change little."""


def statistics_without_data(
    explainer: Explainer, network: Network, description: str = ESTIMATING, *, keep: bool = True
) -> Origin:
    """Take the packaged statistics where they are of the network, else estimate some on crops.

    Args:
        explainer: explainer of the network, with layers or without.
        network: the network.
        description: text beside the progress bar.
        keep: see `fit_on_samples`.
    """
    facts = packaged_facts()
    if settings_dict(network.preprocessing) == facts["preprocessing"]:
        with suppress(IBAError):  # they are of another model, or of other layers
            explainer.load_packaged()
            return Origin(f"{facts['n_samples']} photographs of ImageNet, packaged", True)
    fit_on_samples(explainer, network, description, keep=keep)
    return Origin(f"{CROPS} crops of the packaged sample photographs", False)


def fit_on_samples(
    explainer: Explainer, network: Network, description: str = ESTIMATING, *, keep: bool = True
) -> None:
    """Estimate the distribution of the features on crops of the sample photographs, once for each network.

    Args:
        explainer: explainer of the network, with a layer or without.
        network: the network.
        description: text beside the progress bar.
        keep: take statistics that were estimated before, and keep these for the next time.
    """
    entry = _entry(explainer, network) if keep else None
    if entry is not None:
        with suppress(IBAError):  # there is none, it is damaged, or it is of an older version
            load_statistics(explainer, network, entry)
            return
    crops = sample_crops(CROPS, network.preprocessing, data_format=network.adapter.data_format)
    with tracked(crops, description, CROPS) as batches:
        explainer.fit(batches, CROPS, progbar=False)
    if entry is not None:
        with suppress(IBAError, OSError):  # the next time takes as long as this one
            entry.parent.mkdir(parents=True, exist_ok=True)
            save_statistics(explainer, network, entry)


def _entry(explainer: Explainer, network: Network) -> Path | None:
    """Where the statistics are kept; None if they are not."""
    wanted = os.environ.get(CACHE)
    if wanted == "":
        return None
    try:
        fingerprint = network.adapter.fingerprint()
    except InputError:  # nothing tells this model from another
        return None
    package = type(network.adapter).__module__.partition(".")[0]
    key = digest(
        fingerprint,
        explainer.layer,
        settings_dict(network.preprocessing),
        CROPS,
        network.framework,
        [_sources(name) for name in ("iba_core", package)],
    )
    folder = user_cache_path("iba-core") if wanted is None else Path(wanted)
    return folder / "statistics" / f"{key}.safetensors"


@cache
def _sources(package: str) -> str:
    """Hash of a package's code: what an older version has chosen and computed is not taken over."""
    spec = find_spec(package)
    content = sha256()
    for folder in (spec and spec.submodule_search_locations) or ():
        for file in sorted(Path(folder).rglob("*.py")):
            content.update(file.read_bytes())
    return content.hexdigest()
