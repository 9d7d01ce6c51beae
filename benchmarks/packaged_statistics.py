"""Estimate the statistics of EfficientNet-Lite0 that come with the library, or measure what they change.

    python -m benchmarks.packaged_statistics --images FOLDER --out FILE   # estimate and write
    python -m benchmarks.packaged_statistics                              # measure

The first takes all photographs of the folder in a random order of a fixed seed, prepared as the network asks
for. The same folder gives the same numbers, up to rounding. The second compares the bits of the packaged
photographs with these statistics and with those of crops of the same photographs, which are what the command
line takes for other networks. Its table is in ``results/packaged_statistics.json``.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from benchmarks.harness import Results, show, use_threads
from benchmarks.tables import Column
from iba_core import Attribution, Explainer, sample_crops, sample_image
from iba_core.bottleneck.estimator import KIND as ESTIMATOR
from iba_core.cli.statistics import CROPS
from iba_core.pictures.images import SAMPLE_IMAGES, image_batches, image_files
from iba_core.state import put_together, read_state, taken_out, write_state
from iba_core.zoo.efficientnet_lite import PREPROCESSING
from iba_core.zoo.statistics import KIND, compact, weights_fingerprint

LAYERS = ("blocks.4", "blocks.5", "blocks.7", "blocks.10")
"""The layer that is chosen automatically, and those of the documentation and the benchmarks."""

DATA = (
    "photographs of ImageNet (ILSVRC 2012), one of each class of as many, shorter side 256 pixels; the "
    "photographs are not part of the library"
)
BATCH = 20
SEED = 0


def photographs() -> np.ndarray[Any, Any]:
    """The packaged photographs as the network gets them."""
    return np.stack([PREPROCESSING(sample_image(name), "channels_first") for name in SAMPLE_IMAGES])


def estimated(folder: Path) -> Explainer:
    """Make an explainer of all layers with statistics of all photographs of a folder."""
    from iba_torch.efficientnet_lite import efficientnet_lite0

    paths = list(image_files(folder))
    order = np.random.default_rng(SEED).permutation(len(paths))
    batches = image_batches([paths[i] for i in order], PREPROCESSING, BATCH, "channels_first")
    return Explainer(efficientnet_lite0(), list(LAYERS)).fit(batches, len(paths))


def write(explainer: Explainer, out: Path) -> None:
    """Write the packaged file."""
    x = photographs()
    errors = {}
    for part in explainer.parts:
        # Of each photograph, half the difference of two draws: only the mean square says something.
        found = np.concatenate([part.bits_error(x[i : i + 1]) for i in range(len(x))])
        errors[part.layer] = float(np.sqrt(np.mean(np.square(found))))
        show(f"{part.layer}: standard error of the bits {100 * errors[part.layer]:.2f} %")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "all.safetensors"
        explainer.save(path)
        arrays, metadata = read_state(path, ESTIMATOR)
    states = [compact(taken_out(arrays, place)) for place in range(len(explainer.parts))]
    facts = {
        "network": "EfficientNet-Lite0",
        "weights": weights_fingerprint(explainer.adapter),
        "data": DATA,
        "n_samples": explainer.parts[0].estimator.n_samples(),
        "preprocessing": asdict(PREPROCESSING),
        "bits_errors": errors,
        "layers": metadata["layers"],
    }
    write_state(out, put_together(states), KIND, facts)
    show(f"written: {out}, {out.stat().st_size / 1000:,.0f} kB")


def explained(explainer: Explainer, x: np.ndarray[Any, Any]) -> list[Attribution]:
    """Explain photographs one by one, as the command line does."""
    found = []
    for i in range(len(x)):
        found.append(explainer.explain(x[i : i + 1], seed=SEED))
        show(f"    {explainer.layer}, photograph {i + 1} of {len(x)}: {found[-1].total_bits[0]:,.0f} bits")
    return found


def measure(layers: tuple[str, ...]) -> Results:
    """Compare the bits with packaged statistics and with those of crops."""
    from iba_torch.efficientnet_lite import efficientnet_lite0

    results, x, model = Results("packaged_statistics", photographs=len(SAMPLE_IMAGES)), photographs(), None
    table = results.table(
        "Bits with packaged statistics, less those with statistics of crops of a dozen photographs",
        Column("Layer"),
        Column("Mean bits"),
        Column("Mean difference"),
        Column("Least"),
        Column("Largest"),
        Column("Spearman of bits", ".2f"),
        Column("Mean correlation of maps", ".3f"),
    )
    for layer in layers:
        model = model or efficientnet_lite0()
        packaged = Explainer(model, layer).load_packaged()
        crops = Explainer(model, layer)
        crops.fit(sample_crops(CROPS, PREPROCESSING, data_format="channels_first"), progbar=False)
        ours, theirs = explained(packaged, x), explained(crops, x)
        bits = np.array([[each.total_bits[0] for each in found] for found in (ours, theirs)])
        change = bits[0] / bits[1] - 1
        maps = [
            np.corrcoef(a.capacity.sum(1).ravel(), b.capacity.sum(1).ravel())[0, 1]
            for a, b in zip(ours, theirs, strict=True)
        ]
        table.rows.append(
            [
                layer,
                f"{bits[0].mean():,.0f}",
                *(f"{100 * value:+.0f} %" for value in (change.mean(), change.min(), change.max())),
                float(stats.spearmanr(*bits)[0]),
                float(np.mean(maps)),
            ]
        )
        results.data[layer] = {"packaged": bits[0].tolist(), "crops": bits[1].tolist()}
    return results


def main() -> None:
    """Read the command line; estimate and write, or measure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, metavar="FOLDER", help="photographs to estimate on")
    parser.add_argument("--out", type=Path, metavar="FILE", help="file to write")
    parser.add_argument("--layers", nargs="+", default=["blocks.4", "blocks.10"], help="layers to measure at")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    use_threads(("torch",), given.threads)
    if given.images is None:
        measure(tuple(given.layers)).write()
    elif given.out is None:
        parser.error("--images needs --out FILE")
    else:
        write(estimated(given.images), given.out)


if __name__ == "__main__":
    main()
