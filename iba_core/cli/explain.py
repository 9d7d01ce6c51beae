"""``iba explain``: write and print maps of photographs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy.typing as npt

from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.cli.console import console, notes, paragraph, print_blocks, tracked
from iba_core.cli.network import Network
from iba_core.cli.photographs import find_photographs, make_folder
from iba_core.cli.results import LEGEND, Result, require_plotting, results_table
from iba_core.cli.statistics import load_statistics
from iba_core.errors import InputError
from iba_core.explainer import Explainer
from iba_core.files import shown
from iba_core.pictures.images import sample_crops
from iba_core.targets import ClassTarget

ESTIMATING = "Estimating the features"

CROPS = 256
"""Number of crops of the sample photographs to estimate statistics on, without a data set."""


def explain_photographs(
    paths: Sequence[Path],
    *,
    model: str,
    backend: str | None,
    layer: str | None,
    target: str | None,
    activation: str | None,
    stats: Path | None,
    out: Path,
    seed: int,
    preprocess: str | None,
    size: tuple[int, int] | None,
    settings: BottleneckSettings,
) -> None:
    """Explain photographs and print the results. The options are in `iba_core.cli.app`."""
    require_plotting()
    photographs = find_photographs(paths)
    network = Network.load(model, backend, preprocess, size)
    wanted = ClassTarget(network.class_index(target), activation)
    explainer = Explainer(network.adapter, layer)
    if stats is not None:
        load_statistics(explainer, network, stats)
    network.require_fit()
    _require_class(wanted, explainer.predict(network.inputs(photographs[0].load())))
    make_folder(out, photographs, (".png", ".safetensors"))
    if stats is None:
        fit_on_samples(explainer, network)

    results = []
    with tracked(photographs, "Explaining", len(photographs)) as waiting:
        for photograph in waiting:
            result = Result.of(
                photograph.name, photograph.load(), network, explainer, wanted, seed, **vars(settings)
            )
            result.save_picture(photograph.output(out, ".png"))
            result.attribution.save(photograph.output(out, ".safetensors"))
            results.append(result)

    stems = [shown(photograph.stem) for photograph in photographs]
    names = [f"{stem}.png, {stem}.safetensors" for stem in stems]
    entries = [
        ("Network", network.note),
        ("Pictures", pictures_note(network)),
        ("Layer", layer_note(explainer, layer, stats)),
        ("Statistics", _statistics_note(explainer, network, stats)),
        ("Written", "\n".join([f"to {shown(out)}:", *names])),
    ]
    width = console().width
    print_blocks(results_table(results), paragraph(LEGEND, width), notes(entries, width))


def _require_class(target: ClassTarget, outputs: npt.NDArray[Any]) -> None:
    """Check the class before the features are estimated; one probability stands for two classes.

    Raises:
        InputError: it does not fit the outputs.
    """
    if target.activation is None and outputs.ndim == 2 and outputs.shape[1] == 1:
        if not 0 <= outputs.min() <= outputs.max() <= 1:
            raise InputError(
                "the network has one output, which could be the logit of a class or a score: give "
                "--activation sigmoid_logits if its sigmoid is the probability of class 1; a score is "
                "explained in Python, with LogitTarget(0)"
            )
        target = replace(target, activation="sigmoid")
    target.resolve(outputs)


def fit_on_samples(explainer: Explainer, network: Network, description: str = ESTIMATING) -> None:
    """Estimate the distribution of the features on crops of the sample photographs."""
    crops = sample_crops(CROPS, network.preprocessing, data_format=network.adapter.data_format)
    with tracked(crops, description, CROPS) as batches:
        explainer.fit(batches, CROPS, progbar=False)


def pictures_note(network: Network) -> str:
    """Describe the preprocessing, and where it comes from."""
    return f"{network.preprocessing_summary}; {network.preprocessing_origin}"


def layer_note(explainer: Explainer, layer: str | None, stats: Path | None = None) -> str:
    """Name the layer, and how it was chosen."""
    if layer is not None:
        return f"{explainer.layer}"
    if stats is not None:
        return f"{explainer.layer}, the layer of the statistics"
    return f"{explainer.layer}, chosen automatically; iba layers lists all, --layer chooses another"


def _statistics_note(explainer: Explainer, network: Network, stats: Path | None) -> str:
    if stats is not None:
        return f"{shown(stats)}, of {explainer.estimator.n_samples():,} images"
    return (
        f"of {CROPS} crops of the packaged sample photographs, enough for a first look. For reliable "
        f"numbers, estimate them on your own pictures: iba estimate {network.source} FOLDER --out STATS"
    )
