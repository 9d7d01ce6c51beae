"""How do the maps of a Readout Bottleneck compare with per-sample maps on photographs not trained on?

EfficientNet-Lite0, cut after block 4. The readout network is trained on crops of some of the packaged
photographs, with the network's own decisions as targets; four other photographs are then explained.

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
from iba_torch import IBA, IBAReadout
from iba_torch.efficientnet_lite import efficientnet_lite0

HELD_OUT = ("cat", "coffee", "flower", "rocket")
LAYER = "blocks.4"
READOUT_LAYERS = ("blocks.4", "blocks.10", "blocks.15")
PARTS = 16


def crops(network, names, n, seed):
    """Random crops of the named photographs, in turns, with the network's decisions."""
    generator = np.random.Generator(np.random.Philox(seed))
    pictures = [sample_image(name) for name in names]
    x = torch.from_numpy(
        np.stack(
            [
                network.preprocessing.random_crop(pictures[i % len(pictures)], generator, "channels_first")
                for i in range(n)
            ]
        )
    )
    with torch.no_grad():
        return x, torch.cat([network(part) for part in x.split(16)]).argmax(1)


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


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--crops", type=int, default=144)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--beta", type=float, default=10.0)
    parser.add_argument("--lr", type=float, default=1e-3)
    options = parser.parse_args()

    torch.manual_seed(0)
    network = efficientnet_lite0()
    training = [name for name in SAMPLE_IMAGES if name not in HELD_OUT]
    data, check = (
        list(zip(*(part.split(8) for part in crops(network, training, n, seed)), strict=True))
        for n, seed in ((options.crops, 0), (32, 1))
    )

    readout = IBAReadout(LAYER, READOUT_LAYERS, network, beta=options.beta, initial_alpha=0)
    readout.estimate(network, data)
    begin = time.perf_counter()
    history = readout.fit(
        data,
        functional.cross_entropy,
        epochs=options.epochs,
        lr=options.lr,
        validation=check,
        seed=0,
        progbar=True,
    )
    print(f"training: {len(history)} epochs of {options.crops} crops, {time.perf_counter() - begin:.0f} s")
    for report in history:
        print(
            f"  epoch {report.epoch + 1}: objective {report.objective:.3f}, loss {report.loss:.3f}, "
            f"nats per feature {report.information:.3f}, validation {report.validation:.3f}"
        )
    iba = IBA(network.get_submodule(LAYER), beta=options.beta, estimator=readout.estimator)

    columns = ("correlation", "rank correlation", "insertion", "deletion", "bits", "seconds")
    rows = {name: [] for name in ("per sample", "readout", "random")}
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
                    seconds if method != "random" else np.nan,
                )
            )

    for index, title in [(None, "mean of the photographs"), *enumerate(HELD_OUT)]:
        table = Table("map", *columns, title=title)
        for method, results in rows.items():
            numbers = np.mean(results, axis=0) if index is None else results[index]
            table.add_row(method, *("" if np.isnan(x) else f"{x:.3g}" for x in numbers))
        Console(width=100).print(table)


if __name__ == "__main__":
    main()
