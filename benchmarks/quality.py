"""Measure the quality of faster explanations against their time.

    python -m benchmarks.quality [--reference-samples N] [--references N]

EfficientNet-Lite0 is split at a layer where an explanation is fast. Each combination of settings explains ten
photographs, with two seeds. Its maps are compared with those of the default with the same seed and with the
other seed, and with a reference of 1,000 samples and 100 steps. A reference takes about ten minutes per
photograph; it is computed once and kept in ``benchmarks/cache``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.harness import Results, in_turns, interleaved, prepare, show
from benchmarks.networks import TARGET, subject
from benchmarks.tables import Column
from iba_core import Attribution, Explainer
from iba_core.bottleneck.settings import PRESETS, BottleneckSettings
from iba_core.evaluation import deletion, insertion
from iba_core.framework.layout import DataFormat
from iba_core.pictures.images import SAMPLE_IMAGES, sample_image
from iba_core.zoo.efficientnet_lite import PREPROCESSING

Array = np.ndarray[Any, Any]
Maps = dict[tuple[str, int, int], Array]
"""Maps by combination of settings ("way"), photograph and seed."""

TITLE = "EfficientNet-Lite0, blocks.10"
DEEP = "EfficientNet-Lite0, blocks.5"
CACHE = Path(__file__).parent / "cache"
TEXTURES = ("bricks", "grass", "gravel")
"""Sample images without an object."""
PHOTOGRAPHS = tuple(name for name in SAMPLE_IMAGES if name not in TEXTURES)
SEEDS = (0, 1)
CROPS = 130

WAYS: dict[str, dict[str, Any]] = {
    "default": {},
    **{f"{samples} samples": {"samples": samples} for samples in (1, 2, 3, 5, 20)},
    **{f"{samples} in pairs": {"samples": samples, "antithetic": True} for samples in (2, 4, 10)},
    "2, then 6": {"samples": 6, "early_steps": 5},
    **{f"2, then {n} in pairs": {"samples": n, "early_steps": 5, "antithetic": True} for n in (4, 6)},
    **{
        f"{steps} steps: 2, then {n} in pairs": {
            "samples": n,
            "early_steps": steps // 2,
            "early_samples": 2,
            "antithetic": True,
            "steps": steps,
            "learning_rate": 10 / steps,
        }
        for steps in (6, 8)
        for n in (4, 6)
    },
    "5 steps": {"steps": 5, "learning_rate": 2.0},
    "8 steps": {"steps": 8, "learning_rate": 1.25},
    "30 steps": {"steps": 30},
    "30 steps until 3 %": {"steps": 30, "tolerance": 0.03},
    "bfloat16": {"precision": "bfloat16"},
}
"""Combinations of hyperparameters that differ from the default. One is equal to the preset ``"fast"``."""

FAST_TIMES, FAST_CORRELATION, FAST_LOSS = 2.0, 0.97, 0.01
REFERENCE = {"samples": 1000, "steps": 100}
TIME_TICKS = (0.1, 0.2, 0.3, 0.5, 1, 2, 3, 5, 10, 20, 30, 50)


def measure(results: Results, reference_samples: int, references: int) -> None:
    """Compare all combinations of settings at one layer."""
    explainer, photographs = _studied(TITLE, "torch")
    targets = explainer.predict(photographs).argmax(axis=1)
    maps, bits, seconds = _explain_all(explainer, photographs, targets)
    wanted = min(references, len(PHOTOGRAPHS))
    perfect = [
        _reference(explainer, photographs[i], int(targets[i]), PHOTOGRAPHS[i], reference_samples)
        for i in range(wanted)
    ]
    table = results.table(
        f"Quality against time, {TITLE}, {len(PHOTOGRAPHS)} photographs",
        Column("Way"),
        Column("Time", ".2f"),
        Column("To the default's map", ".3f"),
        Column("Least", ".3f"),
        Column("To that of another seed", ".3f"),
        Column("To the reference", ".3f"),
        Column("Insertion", ".3f"),
        Column("Deletion", ".3f"),
        Column("Bits", ".2f"),
        note=(
            "Time and bits as shares of the default's. Means of the correlations with the default's maps of "
            "the same and of another seed, and with the reference of "
            f"{reference_samples} samples and {REFERENCE['steps']} steps ({wanted} photographs). Areas under "
            "insertion (high is good) and deletion (low is good). Ten steps unless it says otherwise; "
            "fewer are longer in proportion. 'In pairs' is antithetic, 'until 3 %' the tolerance."
        ),
    )
    for way in WAYS:
        areas = _areas(explainer, photographs, targets, maps, way)
        table.rows.append(
            [
                label(way),
                _median_ratio(seconds[way], seconds["default"]),
                *_correlations(maps, way),
                _mean(_correlation(maps[way, i, s], perfect[i]) for i in range(wanted) for s in SEEDS),
                *areas,
                float(np.mean([bits[way, i, s] / bits["default", i, s] for _, i, s in _runs(way)])),
            ]
        )
        show(f"    {table.rows[-1]}")
    results.data["seconds"] = {TITLE: seconds}
    results.data["correlations"] = {
        way: [_correlation(maps[way, i, s], maps["default", i, s]) for _, i, s in _runs(way)] for way in WAYS
    }
    rows = {row[0]: row for row in table.rows}
    fast, default = rows[label(_way_of("fast"))], rows[label("default")]
    results.goal("fast: correlation with the default's map", fast[2], at_least=FAST_CORRELATION)
    results.goal("fast: insertion, less the default's", fast[6] - default[6], at_least=-FAST_LOSS)
    results.goal("fast: deletion, less the default's", fast[7] - default[7], at_most=FAST_LOSS)


def measure_preset(results: Results, rounds: int, budget: float | None = None) -> None:
    """Time the preset ``"fast"`` against the default, in both frameworks and at two layers."""
    table = results.table(
        'preset="fast" against the default, one photograph',
        Column("Network"),
        Column("Framework"),
        Column("Default", ".3f", "s"),
        Column("Fast", ".3f", "s"),
        Column("Times faster", ".2f"),
        note="Medians of rounds in turns; the ratio is taken within rounds.",
    )
    for title in (DEEP, TITLE):
        for framework in ("torch", "tensorflow"):
            explainer, photographs = _studied(title, framework, one=True)

            def case(
                preset: str, explainer: Explainer = explainer, x: Array = photographs
            ) -> Callable[[], Any]:
                return lambda: explainer.explain(x, TARGET, seed=0, preset=preset)

            timings = interleaved({name: case(name) for name in ("default", "fast")}, rounds, budget=budget)
            results.timings(f"{title}, {framework}", timings)
            times = timings.ratio("default", "fast")
            table.rows.append([title, framework, timings.median("default"), timings.median("fast"), times])
            results.goal(f"fast: times faster, {title}, {framework}", times, at_least=FAST_TIMES)


def measure_compiled(results: Results, rounds: int) -> None:
    """Time explanations with and without the compiler of the framework."""
    table = results.table(
        "With and without the framework's compiler, one photograph",
        Column("Network"),
        Column("Framework"),
        Column("Uncompiled", ".3f", "s"),
        Column("Compiled", ".3f", "s"),
        Column("Compiling", ".0f", "s"),
        Column("Repaid after", ".0f", "images"),
        note="The compiler is torch.compile or XLA. Empty where compiled steps are not the faster ones.",
    )
    for framework in ("torch", "tensorflow"):
        plain, photographs = _studied(TITLE, framework, one=True)
        compiled = Explainer(
            plain.adapter.model, plain.layer, estimator=plain.estimator, compile=True, backend=framework
        )
        begin = perf_counter()
        compiled.explain(photographs, TARGET, seed=0)
        first = perf_counter() - begin

        def case(explainer: Explainer, x: Array = photographs) -> Callable[[], Any]:
            return lambda: explainer.explain(x, TARGET, seed=0)

        timings = interleaved({"uncompiled": case(plain), "compiled": case(compiled)}, rounds)
        results.timings(f"{TITLE}, {framework}, compiled", timings)
        uncompiled, later = timings.median("uncompiled"), timings.median("compiled")
        gain = uncompiled - later
        table.rows.append(
            [TITLE, framework, uncompiled, later, first - later, (first - later) / gain if gain > 0 else None]
        )


def plot(content: dict[str, Any], path: Path) -> None:
    """Draw the correlation with the reference, and insertion less deletion, against the time."""
    import matplotlib.pyplot as plt

    table = content["tables"][0]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4.6), layout="constrained")
    labels = []
    for row in sorted(table["rows"], key=lambda row: _style(row[0])[0] == "o"):
        way, time, _, _, other, reference, insertion, deletion, _ = row
        marker, colour = _style(way)
        for axis, value in zip(
            axes, (other if reference is None else reference, insertion - deletion), strict=True
        ):
            axis.plot(time, value, marker, color=colour, markersize=11 if marker in "*D" else 6)
            short = "fast" if marker == "*" else way
            labels.append(
                axis.annotate(short, (time, value), xytext=(5, 4), textcoords="offset points", fontsize=7)
            )
    for axis, label in zip(axes, ("correlation with the reference", "insertion less deletion"), strict=True):
        axis.set(xlabel="time, default = 1", ylabel=label, xscale="log")
        axis.margins(x=0.15)  # room for the labels at the right
        shown = axis.get_xlim()
        ticks = [tick for tick in TIME_TICKS if shown[0] <= tick <= shown[1]]
        axis.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    _hide_overlaps(figure, labels)
    figure.savefig(path, metadata={"Date": None})
    plt.close(figure)


def _hide_overlaps(figure: Any, labels: list[Any]) -> None:
    """Hide each label that overlaps an earlier one. The table has all names."""
    figure.draw_without_rendering()
    shown: list[Any] = []
    for label in labels:
        box = label.get_window_extent()
        if any(box.overlaps(other) for other in shown):
            label.set_visible(False)
        else:
            shown.append(box)


def _style(way: str) -> tuple[str, str]:
    if way == "default":
        return "D", "black"
    if "(fast)" in way:
        return "*", "tab:red"
    return "o", "tab:blue" if "pairs" in way else "tab:orange" if "steps" in way else "tab:gray"


def _studied(title: str, framework: str, one: bool = False) -> tuple[Explainer, Array]:
    """Make an explainer, fitted on crops of the sample images, and load the photographs, or one of them."""
    explainer = subject(title, framework, CROPS).explainer
    data_format: DataFormat = "channels_first" if framework == "torch" else "channels_last"
    names = ("cat",) if one else PHOTOGRAPHS
    return explainer, np.stack([PREPROCESSING(sample_image(name), data_format) for name in names])


def _explain_all(
    explainer: Explainer, photographs: Array, targets: Array
) -> tuple[Maps, dict[tuple[str, int, int], float], dict[str, list[float]]]:
    """Compute maps, bits and seconds for all combinations, in turns at each photograph."""
    maps: Maps = {}
    bits: dict[tuple[str, int, int], float] = {}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for way, settings in WAYS.items():
        explainer.explain(photographs[:1], int(targets[0]), seed=0, **settings)
        show(f"    warmed {way}")
    names = list(WAYS)
    for number, (i, seed) in enumerate((i, s) for i in range(len(PHOTOGRAPHS)) for s in SEEDS):
        for way in in_turns(names, number):
            begin = perf_counter()
            found = explainer.explain(photographs[i : i + 1], int(targets[i]), seed=seed, **WAYS[way])
            seconds[way].append(perf_counter() - begin)
            maps[way, i, seed] = found.saliency[0]
            bits[way, i, seed] = float(found.total_bits[0])
        show(f"    {PHOTOGRAPHS[i]}, seed {seed}")
    return maps, bits, seconds


def _reference(explainer: Explainer, photograph: Array, target: int, name: str, samples: int) -> Array:
    """Compute the map with very many samples and steps, or load it from the cache."""
    settings = {**REFERENCE, "samples": samples}
    facts = [
        TITLE,
        name,
        target,
        settings,
        CROPS,
        explainer.settings.beta,
        hashlib.sha256(photograph).hexdigest(),
    ]
    key = hashlib.sha256(json.dumps(facts).encode()).hexdigest()[:16]
    path = CACHE / f"reference-{name}-{key}.npz"
    if not path.is_file():
        show(f"    reference of {name}: {samples} samples, {settings['steps']} steps")
        found: Attribution = explainer.explain(
            photograph[None], target, seed=2**32 + 1, max_batch=32, progbar=True, **settings
        )
        CACHE.mkdir(exist_ok=True)
        np.savez(path, saliency=found.saliency[0])
    with np.load(path, allow_pickle=False) as content:
        return np.asarray(content["saliency"])


def _areas(
    explainer: Explainer, photographs: Array, targets: Array, maps: Maps, way: str
) -> tuple[float, float]:
    """Compute the mean areas under insertion and deletion over the photographs, with the first seed."""
    saliency = np.stack([maps[way, i, SEEDS[0]] for i in range(len(PHOTOGRAPHS))])
    means = [float(area(explainer, photographs, saliency, targets).mean()) for area in (insertion, deletion)]
    return means[0], means[1]


def _runs(way: str) -> list[tuple[str, int, int]]:
    return [(way, i, s) for i in range(len(PHOTOGRAPHS)) for s in SEEDS]


def _correlations(maps: Maps, way: str) -> tuple[float | None, float | None, float | None]:
    """Correlate with the default's maps: mean and minimum for the same seed, mean for the other seed."""
    same = [_correlation(maps[run], maps["default", *run[1:]]) for run in _runs(way)]
    others = (("default", i, SEEDS[1 - SEEDS.index(seed)]) for _, i, seed in _runs(way))
    other = _mean(_correlation(maps[run], maps[to]) for run, to in zip(_runs(way), others, strict=True))
    return (None, None, other) if way == "default" else (_mean(same), min(same), other)


def _correlation(a: Array, b: Array) -> float:
    return float(np.corrcoef(a.ravel(), b.ravel())[0, 1])


def _mean(values: Any) -> float | None:
    found = list(values)
    return float(np.mean(found)) if found else None


def _median_ratio(seconds: list[float], to: list[float]) -> float:
    return float(np.median(np.divide(seconds, to)))


def label(way: str) -> str:
    """Return the name of a combination of settings in the table."""
    return f"{way} (fast)" if way == _way_of("fast") else way


def _way_of(preset: str) -> str:
    """Find the combination of settings that equals a preset."""
    plain = BottleneckSettings()
    wanted = plain.override(**PRESETS[preset])
    return next(way for way, settings in WAYS.items() if plain.override(**settings) == wanted)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--reference-samples", type=int, default=REFERENCE["samples"])
    parser.add_argument(
        "--references", type=int, default=4, help="number of photographs with a reference; 0 for none"
    )
    parser.add_argument("--rounds", type=int, default=7, help="maximum number of rounds to time the preset")
    options = parser.parse_args()
    prepare()
    results = Results("quality", photographs=list(PHOTOGRAPHS), seeds=list(SEEDS), threads=2)
    measure(results, options.reference_samples, options.references)
    measure_preset(results, options.rounds)
    measure_compiled(results, rounds=3)
    results.write()


if __name__ == "__main__":
    main()
