"""Train the readout of EfficientNet-Lite0 that comes with the library, and measure it.

    python -m benchmarks.packaged_readout --images FOLDER --masks FOLDER --out FILE   # train and write
    python -m benchmarks.packaged_readout --images FOLDER [--limit N]                 # measure

Every ninth photograph of the folder, from the fifth on, is neither trained on nor used for any choice. The
others are explained one by one, which takes two seconds each; their masks are kept in ``--masks``, so that a
training that was stopped goes on. What the readout reads of a photograph is computed once. The network first
learns to give the masks, and then to keep the answer as well. What is measured is in
``results/packaged_readout.json``.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from time import perf_counter, process_time
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from benchmarks.harness import Results, show, use_threads
from benchmarks.tables import Column
from iba_core import Explainer
from iba_core.bottleneck.settings import BottleneckSettings
from iba_core.bottleneck.statistics import Statistics
from iba_core.evaluation import ScoredModel, degradation
from iba_core.framework.layout import Layout
from iba_core.pictures.images import image_files, load_image
from iba_core.readout.evidence import AnswerReader
from iba_core.readout.formulas import WEIGHTS, FeatureMap, Readout, ReadoutConstants
from iba_core.readout.model import NestedPass
from iba_core.readout.packaged import packaged_readout, write_packaged
from iba_core.readout.state import SETTINGS, ReadoutState
from iba_core.zoo.efficientnet_lite import PREPROCESSING

LAYER = "blocks.4"
BATCH = 8
PREPROCESSING_SHAPE = (3, 224, 224)
HELD_OUT = slice(4, None, 9)
STEPS = 14
"""Of a curve of degradation."""
DATA = (
    "photographs of ImageNet (ILSVRC 2012), each of another class, shorter side 256 pixels; the "
    "photographs are not part of the library"
)

DISTILLING, KEEPING = 5, 6
"""Epochs of learning the masks alone, and of keeping the answer as well."""
RATE = 1e-3
BETA, TEACHER_WEIGHT = 4.0, 5.0
"""Weights of the information and of the distance from the masks, beside the cross-entropy of the class."""


class Sample(NamedTuple):
    """What training needs of one photograph, in half precision."""

    features: torch.Tensor
    evidence: torch.Tensor
    mask: torch.Tensor
    target: int


def prepared(path: Path) -> torch.Tensor:
    """A photograph as the network gets it, (1, 3, H, W)."""
    return torch.from_numpy(PREPROCESSING(load_image(path), "channels_first"))[None]


def mask_of(explainer: Explainer, path: Path, folder: Path) -> NDArray[np.float16]:
    """The per-sample mask of a photograph, from the folder if it is there."""
    kept = folder / f"{path.stem}.npy"
    if not kept.exists():
        found = explainer.explain(prepared(path), seed=0).mask[0].astype(np.float16)
        np.save(kept, found)
    mask: NDArray[np.float16] = np.load(kept)
    return mask


class Training:
    """Trains a network of the readout on photographs.

    Args:
        explainer: a per-sample explainer at the readout's layer.
    """

    def __init__(self, explainer: Explainer) -> None:
        self.explainer, self.framework = explainer, explainer.adapter.framework
        self.split = explainer.adapter.split(LAYER)
        estimator = explainer.estimator
        active = estimator.active_neurons(BottleneckSettings().active_neurons_threshold)
        statistics = Statistics(estimator.mean(), estimator.std(), active)
        shape = statistics.mean.shape
        own = FeatureMap(shape, Layout.of(shape, "channels_first"))
        self.readout = Readout(own, (own,), robust=True, gradients=True)
        self.constants: ReadoutConstants = self.readout.constants(
            statistics, [statistics], BottleneckSettings(), self.tensor
        )
        self.answers = AnswerReader(self.framework, relu=False)
        start = self.readout.initial_weights(-3.0, seed=0)
        self.weights = [torch.tensor(each, dtype=torch.float32, requires_grad=True) for each in start]

    @staticmethod
    def tensor(array: Any) -> torch.Tensor:
        """A tensor in single precision, or a boolean one."""
        made = torch.from_numpy(np.array(array))
        return made.float() if made.is_floating_point() else made

    def sample(self, path: Path, masks: Path) -> Sample:
        """Read a photograph."""
        with self.split.head(prepared(path)) as tail:
            nested = NestedPass(tail.features, (tail.features,), tail.run, tail.carry)
            evidence = self.readout.read_answer(self.answers, nested, self.constants)
            assert evidence is not None
            target = int(tail(tail.features).argmax())
            features = tail.features[0].detach().half()
        mask = torch.from_numpy(mask_of(self.explainer, path, masks))
        return Sample(features, evidence[0].detach().half(), mask, target)

    def run(self, samples: Sequence[Sample]) -> None:
        """Both parts of the training."""
        image = torch.zeros(BATCH, *PREPROCESSING_SHAPE)
        with self.split.head(image) as tail:
            for name, epochs, keeping in (("masks", DISTILLING, False), ("answer", KEEPING, True)):
                optimizer = torch.optim.Adam(self.weights, lr=RATE)
                steps = epochs * (len(samples) // BATCH)
                schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, RATE, steps + 1, pct_start=0.1)
                for epoch in range(epochs):
                    begin, terms = perf_counter(), []
                    for batch in shuffled(samples, seed=epoch):
                        objective, found = self.objective(batch, tail if keeping else None)
                        optimizer.zero_grad()
                        objective.backward()
                        torch.nn.utils.clip_grad_norm_(self.weights, 1.0)
                        optimizer.step()
                        schedule.step()
                        terms.append(found)
                    means = ", ".join(f"{mean:.3f}" for mean in np.mean(terms, axis=0))
                    show(f"    {name}, epoch {epoch + 1}: {means}; {perf_counter() - begin:.0f} s")

    def objective(self, batch: Sequence[Sample], tail: Any) -> tuple[torch.Tensor, list[float]]:
        """The objective, and its terms: distance, cross-entropy, nats per feature."""
        features, evidence, masks = (
            torch.stack([sample[place] for sample in batch]).float() for place in range(3)
        )
        restricted = self.readout.restricted(
            self.weights,
            features,
            (features,),
            torch.randn_like(features),
            self.constants,
            evidence=evidence,
        )
        distance = self.readout.distance(restricted.alpha, masks, self.constants)
        if tail is None:
            return distance, [float(distance.detach())]
        with torch.enable_grad():
            targets = torch.tensor([sample.target for sample in batch])
            loss = functional.cross_entropy(tail(restricted.z), targets)
        nats = restricted.capacity.mean()
        terms = [float(each.detach()) for each in (distance, loss, nats)]
        return loss + BETA * nats + TEACHER_WEIGHT * distance, terms


def shuffled(samples: Sequence[Sample], seed: int) -> Iterator[list[Sample]]:
    """Whole batches in a random order."""
    order = np.random.default_rng(seed).permutation(len(samples))
    for start in range(0, len(order) - BATCH + 1, BATCH):
        yield [samples[i] for i in order[start : start + BATCH]]


def trained(explainer: Explainer, paths: Sequence[Path], masks: Path) -> Any:
    """Train a readout on photographs."""
    from iba_torch import IBAReadout

    torch.manual_seed(0)
    training = Training(explainer)
    samples = []
    for path in paths:
        samples.append(training.sample(path, masks))
        if len(samples) % 50 == 0:
            show(f"    {len(samples)} of {len(paths)} photographs read")
    training.run(samples)
    moments = explainer.estimator.state_dict()
    arrays = {f"{group}.{name}": moments[name] for group in ("bottleneck", "readouts.0") for name in moments}
    weights = [weight.detach().numpy() for weight in training.weights]
    made = IBAReadout(LAYER, [LAYER], explainer.adapter.model, robust=True, gradients=True)
    facts = {
        "framework": "torch",
        "layer": LAYER,
        "readout_layers": [LAYER],
        "data_formats": ["channels_first"] * 2,
        "input_shape": PREPROCESSING_SHAPE,
        "settings": {name: getattr(made, name) for name in SETTINGS},
    }
    named = {f"network.{name}": weight for name, weight in zip(WEIGHTS, weights, strict=True)}
    return made.load_state(ReadoutState.of(arrays | named, facts))


class Measured(NamedTuple):
    """What is measured of a map, of one photograph each."""

    correlation: float
    area: float
    survival: float
    bits: float
    seconds: float


def measure(results: Results, paths: Sequence[Path], backend: str) -> None:
    """Compare the packaged readout with per-sample maps on photographs, in one framework."""
    if backend == "torch":
        from iba_torch.efficientnet_lite import efficientnet_lite0

        layout: Any = "channels_first"
    else:
        from iba_tf.efficientnet_lite import efficientnet_lite0

        layout = "channels_last"
    model = efficientnet_lite0()
    default = Explainer(model, LAYER).load_packaged()
    started = Explainer(model, LAYER, warm_start=packaged_readout(model)).load_packaged()
    ways = {
        "per sample": lambda x: default.explain(x, seed=0),
        "readout": lambda x: started.explain(x, seed=0),
        "readout, keep=0.9": lambda x: started.explain(x, seed=0, keep=0.9),
        "readout and 4 steps": lambda x: started.explain(x, seed=0, steps=4),
        "constant mask": lambda x: constant.explain(x, seed=0),
    }
    constant = Explainer(model, LAYER, steps=1, samples=2, learning_rate=0.0, initial_alpha=-1.0)
    constant.load_packaged()
    scored, found = ScoredModel(model), {name: [] for name in ways}
    for number, path in enumerate(paths):
        x = PREPROCESSING(load_image(path), layout)[None]
        target = int(default.predict(x).argmax())
        wanted = None
        for name, way in ways.items():
            begin = process_time()
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", UserWarning)  # of lost answers, which are counted here
                made = way(x)
            seconds = process_time() - begin
            places = made.capacity_channels_first().sum(1).ravel()
            wanted = places if wanted is None else wanted
            correlation = float(np.corrcoef(places, wanted)[0, 1])
            area = float(degradation(scored, x, made.saliency, target, steps=STEPS)[0])
            survival = float(made.survival[0])
            found[name].append(Measured(correlation, area, survival, float(made.total_bits[0]), seconds))
        show(f"    {backend}, photograph {number + 1} of {len(paths)}")
    tabulate(results, f"{len(paths)} photographs not trained on, {backend}", found)


def tabulate(results: Results, title: str, found: Mapping[str, Sequence[Measured]]) -> None:
    """Add the table of what was measured, by the names of the maps."""
    table = results.table(
        title,
        Column("Map"),
        Column("Correlation", ".3f"),
        Column("Least tenth", ".3f"),
        Column("Area of degradation", ".3f"),
        Column("Answer kept", ".2f"),
        Column("Kept above half", ".2f"),
        Column("Bits", ",.0f"),
        Column("Time", ".2f", "s"),
    )
    for name, rows in found.items():
        correlations, areas, survivals, bits, times = map(np.array, zip(*rows, strict=True))
        table.rows.append(
            [
                name,
                float(correlations.mean()),
                float(np.quantile(correlations, 0.1)),
                float(areas.mean()),
                float(np.median(survivals)),
                float((survivals > 0.5).mean()),
                float(bits.mean()),
                float(np.median(times)),
            ]
        )


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--masks", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--backend", choices=("torch", "tensorflow"), action="append")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args()
    use_threads(("torch", "tensorflow"), options.threads)
    paths = list(image_files(options.images))
    if options.out is None:
        held_out = paths[HELD_OUT][: options.limit]
        results = Results("packaged_readout", photographs=len(held_out), threads=options.threads)
        for backend in options.backend or ("torch", "tensorflow"):
            measure(results, held_out, backend)
        results.write()
        return
    if options.masks is None:
        parser.error("--out needs --masks, a folder to keep the masks in")
    from iba_torch.efficientnet_lite import efficientnet_lite0

    options.masks.mkdir(parents=True, exist_ok=True)
    others = [path for path in paths if path not in paths[HELD_OUT]][: options.limit]
    explainer = Explainer(efficientnet_lite0(), LAYER).load_packaged()
    readout = trained(explainer, others, options.masks)
    write_packaged(options.out, readout, {"data": DATA, "n_samples": len(others)})
    show(f"written: {options.out}, {options.out.stat().st_size / 1000:,.0f} kB")


if __name__ == "__main__":
    main()
