"""The compared methods of explaining a photograph, as cases without arguments.

The simpler methods use the fastest settings that were found, see README.md: copies run in batches where that
saves time.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from typing import Any

from benchmarks.harness import Case, use_threads
from benchmarks.networks import PLACES, SIDE, TARGET, Subject, subject
from iba_core import Explainer
from iba_core.bottleneck.statistics import Statistics
from iba_core.targets import main_output

STEPS, SAMPLES = 10, 10
"""The values of the paper."""

BRIEF_STEPS = 2

OURS, DEFAULT, ONE, FAST = "ours", "default", "one layer", "fast"
TAIL, PUBLISHED = "bare tail", "published"
INTEGRATED, OCCLUSION, GRAD_CAM = "integrated gradients", "occlusion", "Grad-CAM"

LABELS = {
    OURS: 'this library, `preset="paper"`, this layer',
    DEFAULT: "this library as it comes, two layers",
    ONE: 'this library, `preset="default"`, this layer',
    FAST: 'this library, `preset="fast"`, this layer',
    TAIL: "bare tail: forward, backward, nothing else",
    PUBLISHED: "published algorithm, written plainly",
    INTEGRATED: "Integrated Gradients, 50 steps (Captum)",
    OCCLUSION: "Occlusion, 196 patches of 16 by 16 (Captum)",
    GRAD_CAM: "Grad-CAM (Captum)",
}

INTEGRATION_STEPS = 50
INTEGRATION_BATCH = 10
OCCLUSION_SIDE = 16
"""Side of the patches in pixels. There are 14 by 14 patches, which do not overlap."""
OCCLUSION_BATCH = 14


@dataclass(frozen=True)
class Work:
    """One method, applied to one photograph.

    Attributes:
        whole: the whole explanation.
        brief: the same with fewer repetitions, to warm up and to measure the peak memory.
    """

    whole: Case
    brief: Case


def explanation(of: Subject) -> Work:
    """Explain one photograph and class with this library."""

    def run(steps: int) -> None:
        of.explainer.explain(of.x, TARGET, steps=steps, samples=SAMPLES)

    return Work(partial(run, STEPS), partial(run, BRIEF_STEPS))


def explanation_by(preset: str, of: Subject) -> Work:
    """Explain with a preset that has its own numbers of steps and samples."""

    def run() -> None:
        of.explainer.explain(of.x, TARGET, preset=preset)

    return Work(run, run)


def explanation_by_default(of: Subject) -> Work:
    """Explain at the layers that are chosen where none is named."""
    explainer = Explainer(of.adapter).load_packaged()

    def run() -> None:
        explainer.explain(of.x, TARGET)

    return Work(run, run)


def bare_tail(of: Subject) -> Work:
    """Make the passes of the tail that every implementation needs, without the head."""
    seconds = _seconds_of_tail(of)
    return Work(partial(seconds, STEPS, SAMPLES), partial(seconds, BRIEF_STEPS, SAMPLES))


def _seconds_of_tail(of: Subject) -> Callable[[int, int], float]:
    """Make a function that times steps of samples in the tail."""
    features = of.adapter.split(of.layer).features(of.adapter.to_inputs(of.x))
    if of.framework == "tensorflow":
        from benchmarks.plain_keras_tail import PlainKerasTail

        return PlainKerasTail(of.model, of.layer, features).seconds
    import torch

    from benchmarks.plain_tail import PlainTail, tail_modules

    modules = tail_modules(PLACES[of.title].network, of.model, of.layer)
    with torch.no_grad():
        whole = main_output(of.adapter.predict(torch.from_numpy(of.x)))
        # The rounding depends on the order of the features in memory.
        torch.testing.assert_close(modules(features), whole, rtol=1e-3, atol=1e-3 * float(whole.abs().max()))
    return PlainTail(modules, features).seconds


def published(of: Subject) -> Work:
    """Explain with the published algorithm in PyTorch."""
    import torch

    from benchmarks.published import PublishedBottleneck

    statistics = Statistics.of(of.explainer.estimator)
    mean, std = (torch.from_numpy(array).float() for array in (statistics.mean, statistics.std))
    layer = of.model.get_submodule(of.layer)
    bottleneck = PublishedBottleneck(of.model, layer, mean, std, torch.from_numpy(statistics.active))
    run = partial(bottleneck.explain, torch.from_numpy(of.x), TARGET, samples=SAMPLES)
    # All steps need the same memory.
    return Work(partial(run, steps=STEPS), partial(run, steps=1))


def integrated_gradients(of: Subject, batch: int = INTEGRATION_BATCH) -> Work:
    """Explain with Captum's Integrated Gradients in PyTorch; in brief, with two batches."""
    import torch
    from captum.attr import IntegratedGradients

    method = IntegratedGradients(_logits(of.model))
    run = partial(method.attribute, torch.from_numpy(of.x), target=TARGET, internal_batch_size=batch)
    return Work(partial(run, n_steps=INTEGRATION_STEPS), partial(run, n_steps=2 * batch))


def occlusion(of: Subject, batch: int = OCCLUSION_BATCH) -> Work:
    """Explain with Captum's Occlusion in PyTorch; in brief, with 16 large patches."""
    import torch
    from captum.attr import Occlusion

    method, x = Occlusion(_logits(of.model)), torch.from_numpy(of.x)

    def run(side: int) -> None:
        patch = (x.shape[1], side, side)
        with torch.no_grad():
            method.attribute(x, patch, strides=patch, target=TARGET, perturbations_per_eval=batch)

    return Work(partial(run, OCCLUSION_SIDE), partial(run, SIDE // 4))


def grad_cam(of: Subject) -> Work:
    """Explain with Captum's Grad-CAM at the same layer in PyTorch."""
    import torch
    from captum.attr import LayerGradCam

    method = LayerGradCam(_logits(of.model), of.model.get_submodule(of.layer))
    run = partial(method.attribute, torch.from_numpy(of.x), target=TARGET)
    return Work(run, run)


METHODS: dict[str, Callable[[Subject], Work]] = {
    OURS: explanation,
    DEFAULT: explanation_by_default,
    ONE: partial(explanation_by, "default"),
    FAST: partial(explanation_by, "fast"),
    TAIL: bare_tail,
    PUBLISHED: published,
    INTEGRATED: integrated_gradients,
    OCCLUSION: occlusion,
    GRAD_CAM: grad_cam,
}
"""The methods by name."""

IN_EVERY_FRAMEWORK = {OURS, DEFAULT, ONE, FAST, TAIL}
OF_THE_FIRST = {DEFAULT, INTEGRATED, OCCLUSION, GRAD_CAM}
"""Methods that do not depend on the layer, and are measured once."""


def works(of: Subject, names: Collection[str]) -> dict[str, Work]:
    """Prepare the methods that exist in a subject's framework.

    Args:
        of: network and photograph to explain.
        names: names of the methods, from `METHODS`.

    Returns:
        The methods by name.
    """
    return {
        name: make(of)
        for name, make in METHODS.items()
        if name in names and (of.framework == "torch" or name in IN_EVERY_FRAMEWORK)
    }


def works_for_memory(title: str, framework: str, names: list[str]) -> dict[str, Case]:
    """Prepare the brief form of the methods for `benchmarks.memory`."""
    use_threads([framework])
    return {name: work.brief for name, work in works(subject(title, framework), names).items()}


def _logits(model: Any) -> Any:
    """Wrap the network so that it returns a tensor, as Captum needs it."""
    if "transformers" not in sys.modules:
        return model
    from torch import nn
    from transformers import PreTrainedModel

    if not isinstance(model, PreTrainedModel):
        return model

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, x: Any) -> Any:
            return self.model(x).logits

    return Logits()
