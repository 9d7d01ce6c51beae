"""``iba estimate``: estimate the distribution of a layer's features over a folder of images."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from iba_core.cli.console import console, notes, tracked
from iba_core.cli.explain import layer_note, pictures_note
from iba_core.cli.network import Network
from iba_core.cli.statistics import ESTIMATING, save_statistics
from iba_core.datasets.items import image_items
from iba_core.datasets.workers import require_workers
from iba_core.explainer import Explainer
from iba_core.files import require_writable, shown
from iba_core.pictures.images import image_files

_ADVISED = 1000
"""Number of images below which the output warns."""


def estimate_statistics(
    data: Path,
    *,
    model: str,
    backend: str | None,
    layer: str | Sequence[str] | None,
    out: Path,
    n_samples: int,
    batch_size: int,
    jobs: int | None,
    ray: str | None,
    gpus: float,
    preprocess: str | None,
    size: tuple[int, int] | None,
) -> None:
    """Estimate mean and standard deviation of a layer's features and write them to a file."""
    require_writable(out, "out")
    require_workers(jobs, ray, gpus)
    files = image_files(data)
    # A folder is often sorted by class, so its first files are not representative.
    order = np.random.default_rng(0).permutation(len(files))[:n_samples]
    chosen = [files[index] for index in order]
    network = Network.load(model, backend, preprocess, size)
    explainer = Explainer(network.adapter, layer)
    network.require_fit()
    items = image_items(
        [(path.name, str(path)) for path in chosen], network.preprocessing, network.adapter.data_format
    )
    with tracked(items, ESTIMATING, len(items)) as waiting:
        explainer.fit_dataset(
            waiting, n_samples, batch_size=batch_size, jobs=jobs, ray=ray, gpus=gpus, progbar=False
        )
    save_statistics(explainer, network, out)

    images = f"{len(chosen):,} of {len(files):,} in {shown(data)}, chosen at random"
    if len(chosen) == len(files):
        images = f"all {len(files):,} in {shown(data)}"
    if len(chosen) < _ADVISED:
        images += "; these are few, about 5000 are recommended"
    entries = [
        ("Network", network.note),
        ("Pictures", pictures_note(network)),
        ("Layer", layer_note(explainer, layer)),
        ("Images", images),
        ("Written", shown(out)),
    ]
    terminal = console()
    terminal.print(notes(entries, terminal.width))
