"""How do the maps of a Readout Bottleneck compare with per-sample maps on photographs not trained on?

EfficientNet-Lite0, cut after block 4. The readout network is trained, with the defaults of the library, on
crops of some of the packaged photographs laid over crops of others, with the network's own decisions as
targets; four other photographs are then explained.

    python benchmarks/readout_quality.py
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from scipy.ndimage import gaussian_filter
from scipy.stats import spearmanr
from torch.nn import functional

from iba_core.images import SAMPLE_IMAGES, sample_image
from iba_torch import IBA, IBAReadout, to_saliency_map
from iba_torch.efficientnet_lite import efficientnet_lite0

HELD_OUT = ("cat", "coffee", "flower", "rocket")
LAYER = "blocks.4"
READOUT_LAYERS = ("blocks.4", "blocks.10", "blocks.15")
PARTS = 16
COLUMNS = ("correlation", "rank correlation", "insertion", "deletion", "bits", "seconds")


def collages(network, names, n, seed):
    """Batches of eight: a crop of one photograph, shrunk, somewhere on a crop of another.

    What decides is then in one place, and around it is something else, of which a few photographs alone show
    too little. The targets are the network's decisions.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    pictures = [sample_image(name) for name in names]

    def crop(picture):
        return torch.from_numpy(network.preprocessing.random_crop(picture, generator, "channels_first"))

    for start in range(0, n, 8):
        images = []
        for index in range(start, start + 8):
            image = crop(pictures[generator.integers(len(pictures))])
            size = int(image.shape[-1] * generator.uniform(0.4, 0.8))
            top, left = generator.integers(0, image.shape[-1] - size + 1, 2)
            part = crop(pictures[index % len(pictures)])[None]
            part = functional.interpolate(part, (size, size), mode="bilinear", antialias=True)
            image[:, top : top + size, left : left + size] = part[0]
            images.append(image)
        batch = torch.stack(images)
        with torch.no_grad():
            yield batch, network(batch).argmax(1)


def perturbation_curve(network, image, target, saliency, mode):
    """Mean probability of the target while the most salient pixels come in, or go, part by part.

    What is not there is blurred.
    """
    blurred = torch.from_numpy(gaussian_filter(image.numpy(), (0, 10, 10)))
    start, end = (blurred, image) if mode == "insertion" else (image, blurred)
    rank = np.empty(saliency.size, int)
    rank[np.argsort(-saliency, axis=None, kind="stable")] = np.arange(saliency.size)
    rank = torch.from_numpy(rank.reshape(saliency.shape))
    stages = [torch.where(rank < saliency.size * part / PARTS, end, start) for part in range(PARTS + 1)]
    with torch.no_grad():
        probability = network(torch.stack(stages)).softmax(1)[:, target]
    return float(torch.trapezoid(probability, dx=1 / PARTS))


def constant_map(iba, network, image):
    """The map of a mask that is the same everywhere: what the features' size alone tells."""
    with torch.no_grad(), iba.restrict_flow():
        network(image[None])
        return to_saliency_map(iba.capacity(), image.shape[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=240)
    parser.add_argument("--epochs", type=int, default=6)
    options = parser.parse_args()

    torch.manual_seed(0)
    network = efficientnet_lite0()
    training = [name for name in SAMPLE_IMAGES if name not in HELD_OUT]
    data = list(collages(network, training, options.images, seed=0))
    check = list(collages(network, training, 64, seed=1))

    readout = IBAReadout(LAYER, READOUT_LAYERS, network)
    readout.estimate(network, data)
    begin = time.perf_counter()
    history = readout.fit(
        data, functional.cross_entropy, epochs=options.epochs, validation=check, seed=0, progbar=True
    )
    print(f"training: {len(history)} epochs of {options.images} images, {time.perf_counter() - begin:.0f} s")
    for report in history:
        print(
            f"  epoch {report.epoch + 1}: objective {report.objective:.3f}, loss {report.loss:.3f}, "
            f"nats per feature {report.information:.3f}, validation {report.validation:.3f}"
        )
    iba = IBA(network.get_submodule(LAYER), estimator=readout.estimator)

    methods = ("per sample", "readout", "constant mask", "random")
    rows = {name: [] for name in methods}
    for name in HELD_OUT:
        image = torch.from_numpy(network.preprocessing(sample_image(name), "channels_first"))
        with torch.no_grad():
            target = int(network(image[None]).argmax())

        def loss(x, target=target):
            return functional.cross_entropy(network(x), torch.full((len(x),), target))

        def explain(method, image=image, loss=loss):
            if method == "per sample":
                return iba.analyze(image[None], loss, seed=0)
            if method == "readout":
                return readout.analyze(image[None], network)
            if method == "constant mask":
                level = float(readout.alpha.mean())
                constant = IBA(network.get_submodule(LAYER), estimator=readout.estimator, initial_alpha=level)
                saliency = constant_map(constant, network, image)
                constant.detach()
                return saliency
            coarse = torch.from_numpy(np.random.default_rng(0).random((1, 1, 28, 28)))
            return functional.interpolate(coarse, image.shape[1:], mode="bilinear")[0, 0].numpy()

        maps = {}
        for method, results in rows.items():
            begin = time.perf_counter()
            maps[method] = explain(method)
            seconds = time.perf_counter() - begin
            same = maps["per sample"]
            results.append(
                (
                    np.corrcoef(maps[method].ravel(), same.ravel())[0, 1],
                    spearmanr(maps[method], same, axis=None).statistic,
                    perturbation_curve(network, image, target, maps[method], "insertion"),
                    perturbation_curve(network, image, target, maps[method], "deletion"),
                    maps[method].sum() if method != "random" else np.nan,
                    seconds if method in ("per sample", "readout") else np.nan,
                )
            )

    for index, title in [(None, "mean of the photographs"), *enumerate(HELD_OUT)]:
        table = Table("map", *COLUMNS, title=title)
        for method, results in rows.items():
            numbers = np.mean(results, axis=0) if index is None else results[index]
            table.add_row(method, *("" if np.isnan(x) else f"{x:.3g}" for x in numbers))
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
