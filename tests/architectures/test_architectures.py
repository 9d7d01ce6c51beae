"""Real architectures are explained as the formulas say, whatever the batch, after fit and after load."""

from __future__ import annotations

from collections import Counter
from functools import lru_cache

import numpy as np
import pytest

from iba_core import Explainer, LayerError
from tests.architectures import torch_models
from tests.architectures.subjects import TorchSubject
from tests.architectures.table import ARCHITECTURES, Architecture
from tests.reference import Bottleneck, Settings, Statistics, relative_error, saliency
from tests.robustness.totals import write_totals

IMAGES, TARGETS = 3, [1, 0, 2]
SETTINGS = Settings(steps=2, samples=2, initial_alpha=1.0, seed=3)
TOLERANCE = 1e-7

CASES = [
    pytest.param(
        architecture,
        layer,
        id=f"{architecture.name}-{layer}",
        marks=[] if layer in architecture.quick else pytest.mark.soak,
    )
    for architecture in ARCHITECTURES
    for layer in architecture.layers
]


@pytest.fixture(scope="module", autouse=True)
def totals(request):
    """Counts the maps that are right, and keeps the counts of a long run, by package."""
    counts = Counter()
    yield counts
    for package in sorted({package for package, *_ in counts}):
        own = {key: count for key, count in counts.items() if key[0] == package}
        names = {name for _, name, _ in own}
        # Fewer are run by `make test`.
        if len(names) >= 10:
            found = {"architectures": len(names), "layers": len(own), "maps": sum(own.values())}
            write_totals(f"architectures_{package}", found | {"failed": request.session.testsfailed})


@lru_cache(maxsize=1)
def subject_of(name: str):
    """The model, for all of its layers, which follow one another."""
    return next(each.make() for each in ARCHITECTURES if each.name == name)


@pytest.mark.parametrize(("architecture", "layer"), CASES)
def test_an_architecture_is_explained_as_the_formulas_say(
    architecture: Architecture, layer, tmp_path, totals
):
    subject, axes = subject_of(architecture.name), architecture.layers[layer]
    batches, inputs = [subject.draw(size, seed=size) for size in (IMAGES, 5)], subject.draw(IMAGES, seed=0)
    statistics = Statistics.of(np.concatenate([subject.features(batch, layer) for batch in batches]))
    features, right = subject.features(inputs, layer), []
    settings = SETTINGS
    for image, target in enumerate(TARGETS):

        def slope(z, image=image, target=target):
            return subject.slopes(inputs, layer, image, z, target)

        bottleneck = Bottleneck(features[image], statistics, axes.index("C"), settings)
        if settings is SETTINGS:
            # A beta at which the model's loss counts as much as the capacity, in this architecture and layer.
            bottleneck = bottleneck.balanced(slope)
            settings = bottleneck.settings
        alpha = bottleneck.optimised(slope)
        assert np.abs(alpha - settings.initial_alpha).mean() > 0.2
        right.append(bottleneck.capacity(alpha))
    right = np.stack(right)
    channels_last = (
        {"data_format": "channels_last"} if axes == "HWC" and "torch" in type(subject).__name__ else {}
    )

    def make() -> Explainer:
        options = {name: getattr(settings, name) for name in ("beta", "steps", "samples", "initial_alpha")}
        return Explainer(subject.model, layer=layer, **options, **architecture.options, **channels_last)

    fitted = make().fit([subject.given(batch) for batch in batches], progbar=False)
    fitted.save(tmp_path / "statistics.safetensors")
    orders = ((IMAGES,), (1,)) if layer in architecture.quick else ((IMAGES, 1), (1, IMAGES))
    for explainer, order in zip((fitted, make()), orders, strict=True):
        if explainer is not fitted:
            explainer.load(tmp_path / "statistics.safetensors")
        for images in order:
            some = subject.of_images(inputs, lambda x, n=images: x[:n])
            found = explainer.explain(subject.given(some), target=TARGETS[:images], seed=settings.seed)
            assert relative_error(found.outputs, subject.outputs(some)) < TOLERANCE
            assert relative_error(found.capacity, right[:images]) < TOLERANCE
            check_saliency(found.saliency, right[:images], axes, inputs)
            package = "transformers" if isinstance(subject, TorchSubject) else "keras_applications"
            totals[package, architecture.name, layer] += images


def check_saliency(found, capacity, axes, inputs):
    """Bits at each place, on the pixels of the input where it is a picture as the feature map is."""
    first = next(iter(inputs.values()))
    shape = None
    if set(axes) == {"C", "H", "W"}:
        shape = first.shape[2:] if first.shape[1] == 3 else first.shape[1:3]
    assert relative_error(found, saliency(capacity, axes.index("C"), shape)) < TOLERANCE


@pytest.mark.parametrize(
    ("build", "layer", "message"),
    [
        # Windows and patches stand in the batch; a table of positions is the same for all images.
        (torch_models.swin, "swin.encoder.layers.0.blocks.0.attention", "a feature map has the shape"),
        (torch_models.mobilevit, "mobilevit.encoder.layer.2.transformer", "a feature map has the shape"),
        (torch_models.beit, "beit.layers.0.relative_position_bias", "a feature map has the shape"),
        (torch_models.llama, "model.rotary_emb", "a feature map has the shape"),
        # The captions, which all images share; the sequence, of which the classifier reads something else.
        (torch_models.clip, "text_model.encoder.layers.1", "text_model.encoder.layers.1"),
        (torch_models.bert, "bert", "does not depend on layer 'bert'"),
    ],
    ids=lambda each: getattr(each, "__name__", None),
)
@pytest.mark.parametrize("images", [1, IMAGES])
def test_a_layer_without_a_feature_map_of_each_image_is_refused(build, layer, message, images):
    subject = TorchSubject(*build())
    batches = [subject.given(subject.draw(size, seed=size)) for size in (images, 5)]
    output = "logits_per_image" if build is torch_models.clip else None
    with pytest.raises(LayerError, match=message):
        Explainer(subject.model, layer, output=output).fit(batches, progbar=False).explain(
            batches[0], target=1
        )
