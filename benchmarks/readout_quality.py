"""Compare the maps of a readout bottleneck with per-sample maps, on photographs outside the training data.

    python -m benchmarks.readout_quality [--images N] [--epochs N] [--leave-out NAME ...]

EfficientNet-Lite0 is split after block 4. The readout network is trained to keep the network's own outputs,
on scenes made of parts of some of the packaged photographs. Four other photographs are then explained. These
four must not be used to choose settings. For that, ``--leave-out`` explains some of the training photographs
instead, does not train on them, and writes no results.
"""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from PIL import Image
from scipy.optimize import brentq
from scipy.stats import spearmanr
from torch.nn import functional

from benchmarks.harness import THREADS, Results, show
from benchmarks.tables import Column, markdown
from iba_core.evaluation import ScoredModel, deletion, insertion
from iba_core.pictures.images import SAMPLE_IMAGES, sample_image
from iba_core.targets import distribution_cross_entropy
from iba_torch import IBA, IBAReadout, to_saliency_map
from iba_torch.efficientnet_lite import efficientnet_lite0

HELD_OUT = ("cat", "coffee", "flower", "rocket")
LAYER = "blocks.4"
READOUT_LAYERS = ("blocks.4", "blocks.10", "blocks.15")
BATCH = 8

IMAGES, EPOCHS = 480, 5
READOUT: dict[str, Any] = {"initial_alpha": 0.0, "robust": True}
TRAINING: dict[str, Any] = {"lr": 1e-3, "beta": 10.0, "warm_up": 0}
"""The best settings for training on few photographs, found with some photographs outside `HELD_OUT`."""
RISING = 2 / 3
"""Share of the training in which beta rises."""

CONFIDENT = 0.4
"""Minimum probability of the predicted class on a scene."""
SHARE = 0.05
"""Maximum share of the scenes with the same predicted class."""
CANDIDATES = 16
"""Number of candidates for each scene."""

WAYS = ("per sample", "readout", "constant mask", "random")
"""The compared methods."""

Network = Any
Generator = np.random.Generator


def scenes(network: Network, names: Sequence[str], n: int, seed: int) -> torch.Tensor:
    """Make scenes of many classes on which the network is confident, (N, C, H, W) with N at most `n`.

    A few photographs show few objects. Small parts of them, on parts of others, show more. Scenes without a
    confident prediction are left out, since they do not show which information the network needs.
    """
    generator = np.random.Generator(np.random.Philox(seed))
    pictures = [sample_image(name) for name in names]
    found: list[torch.Tensor] = []
    classes: Counter[int] = Counter()
    for _ in range(0, CANDIDATES * n, BATCH):
        candidates = torch.stack([_scene(network, pictures, generator) for _ in range(BATCH)])
        best = _outputs(network, candidates).softmax(1).max(1)
        for image, probability, decision in zip(candidates, best.values, best.indices.tolist(), strict=True):
            if probability > CONFIDENT and classes[decision] < SHARE * n and len(found) < n:
                found.append(image)
                classes[decision] += 1
        if len(found) == n:
            break
    show(f"    {len(found)} scenes of {len(classes)} classes")
    return torch.stack(found)


def _scene(network: Network, pictures: list[Image.Image], generator: Generator) -> torch.Tensor:
    """Make a scene of a part of one photograph, with up to two smaller parts of others on it."""

    def part() -> torch.Tensor:
        picture = pictures[generator.integers(len(pictures))]
        size = np.array(picture.size) * np.sqrt(generator.uniform(0.1, 1))
        corner = generator.uniform(size=2) * (picture.size - size)
        window = picture.crop(tuple(map(int, (*corner, *(corner + size)))))
        x = torch.from_numpy(network.preprocessing.random_crop(window, generator, "channels_first"))
        # Vary the brightness and the white balance.
        gain = np.exp(generator.normal(0, 0.15) + generator.normal(0, 0.07, (3, 1, 1)))
        return (x * torch.from_numpy(gain).to(x.dtype) + generator.normal(0, 0.1)).clamp(-1, 1)

    scene = part()
    side = scene.shape[-1]
    for _ in range(generator.choice([0, 1, 1, 2])):
        size = int(side * generator.uniform(0.35, 0.9))
        top, left = generator.integers(0, side - size + 1, 2)
        small = functional.interpolate(part()[None], (size, size), mode="bilinear", antialias=True)
        scene[:, top : top + size, left : left + size] = small[0]
    return scene


def _outputs(network: Network, x: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return torch.cat([network(batch) for batch in x.split(BATCH)])


def train(network: Network, names: Sequence[str], images: int, epochs: int) -> tuple[IBAReadout, float]:
    """Train a readout, and time the training in seconds."""
    torch.manual_seed(0)
    x = scenes(network, names, images, seed=0)
    x = x[: len(x) // BATCH * BATCH]
    data = Shuffled(x, _outputs(network, x).softmax(1))
    readout = IBAReadout(LAYER, list(READOUT_LAYERS), network, **READOUT)
    readout.estimate(network, data)
    begin = perf_counter()
    steps = epochs * len(data)
    settings = {**TRAINING, "beta_steps": int(RISING * steps)}
    history = readout.fit(data, distribution_cross_entropy, epochs=epochs, seed=0, progbar=True, **settings)
    seconds = perf_counter() - begin
    for report in history:
        show(
            f"    epoch {report.epoch + 1}: loss {report.loss:.3f}, nats per feature {report.information:.3f}"
        )
    show(f"    {steps} steps, {seconds:.0f} s")
    return readout, seconds


class Shuffled:
    """Batches of the same images, in another order each time."""

    def __init__(self, x: torch.Tensor, y: torch.Tensor) -> None:
        self._x, self._y = x, y

    def __len__(self) -> int:
        return len(self._x) // BATCH

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        order = torch.randperm(len(self._x))
        return ((self._x[chosen], self._y[chosen]) for chosen in order.split(BATCH))


def measure(results: Results, network: Network, readout: IBAReadout, names: Sequence[str]) -> None:
    """Explain the held-out photographs by every method."""
    found = _explained(network, readout, names)
    gains = np.mean(found["readout"], axis=0) - np.mean(found["constant mask"], axis=0)
    for what, index, sense in (
        ("correlation", 0, "at_least"),
        ("insertion", 2, "at_least"),
        ("deletion", 3, "at_most"),
    ):
        gain = float(gains[index])
        results.goal(f"{what}, less that of the constant mask", gain, **{sense: 0.0})
    for index, title in [(None, "Mean of the photographs not trained on"), *enumerate(names)]:
        table = results.table(
            title,
            Column("Map"),
            Column("Correlation", ".3f"),
            Column("Rank correlation", ".3f"),
            Column("Insertion", ".3f"),
            Column("Deletion", ".3f"),
            Column("Bits", ",.0f"),
            Column("Time", ".2f", "s"),
        )
        for way in WAYS:
            numbers: list[Any] = np.array(found[way]).mean(0).tolist() if index is None else found[way][index]
            bits, seconds = numbers[4:]
            timed = way in ("per sample", "readout")
            table.rows.append(
                [way, *numbers[:4], None if way == "random" else bits, seconds if timed else None]
            )


def _explained(network: Network, readout: IBAReadout, names: Sequence[str]) -> dict[str, list[list[float]]]:
    """Explain photographs by every method.

    Returns:
        For each method and photograph: the correlation and the rank correlation with the per-sample map,
        the areas under insertion and deletion, the bits, and the seconds.
    """
    iba = IBA(network.get_submodule(LAYER), estimator=readout.estimator)
    scored = ScoredModel(network)
    found: dict[str, list[list[float]]] = {way: [] for way in WAYS}
    for name in names:
        image = torch.from_numpy(network.preprocessing(sample_image(name), "channels_first"))
        target = int(_outputs(network, image[None]).argmax())

        works = _works(network, readout, iba, image, target)
        maps: dict[str, Any] = {}
        for way in WAYS:
            begin = perf_counter()
            maps[way] = works[way]()
            seconds, same = perf_counter() - begin, maps["per sample"]
            found[way].append(
                [
                    float(np.corrcoef(maps[way].ravel(), same.ravel())[0, 1]),
                    float(spearmanr(maps[way], same, axis=None).statistic),
                    float(insertion(scored, image[None], maps[way][None], target)[0]),
                    float(deletion(scored, image[None], maps[way][None], target)[0]),
                    float(maps[way].sum()),
                    seconds,
                ]
            )
    return found


def _works(
    network: Network, readout: IBAReadout, iba: IBA, image: torch.Tensor, target: int
) -> dict[str, Callable[[], Any]]:
    """Make the methods of explaining an image."""

    def loss(x: torch.Tensor) -> torch.Tensor:
        return functional.cross_entropy(network(x), torch.full((len(x),), target))

    def constant_at(level: float) -> Any:
        mask = IBA(network.get_submodule(LAYER), estimator=readout.estimator, initial_alpha=level)
        try:
            with torch.no_grad(), mask.restrict_flow():
                network(image[None])
                return to_saliency_map(mask.capacity(), image.shape[1:])
        finally:
            mask.detach()

    def constant() -> Any:
        # Choose the level with as many bits as the readout has.
        wanted = readout.analyze(image[None], network).sum()
        return constant_at(brentq(lambda level: constant_at(level).sum() - wanted, -10.0, 10.0, xtol=1e-3))

    def random() -> Any:
        coarse = torch.from_numpy(np.random.default_rng(0).random((1, 1, 28, 28)))
        return functional.interpolate(coarse, image.shape[1:], mode="bilinear")[0, 0].numpy()

    return {
        "per sample": lambda: iba.analyze(image[None], loss, seed=0),
        "readout": lambda: readout.analyze(image[None], network),
        "constant mask": constant,
        "random": random,
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--threads", type=int, default=THREADS)
    others = [name for name in SAMPLE_IMAGES if name not in HELD_OUT]
    parser.add_argument("--leave-out", nargs="+", choices=others, metavar="NAME", default=[])
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    network = efficientnet_lite0()
    results = Results(
        "readout_quality", images=options.images, epochs=options.epochs, threads=options.threads
    )
    trained = [name for name in others if name not in options.leave_out]
    readout, seconds = train(network, trained, options.images, options.epochs)
    results.data["training_seconds"] = seconds
    measure(results, network, readout, options.leave_out or HELD_OUT)
    if options.leave_out:
        print(markdown(results.as_json()))
    else:
        results.write()


if __name__ == "__main__":
    main()
