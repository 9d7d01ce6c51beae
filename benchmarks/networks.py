"""The measured networks in both frameworks, each with a photograph to explain.

EfficientNet-Lite0 has its ImageNet weights. The others have random weights, drawn so that the signal neither
vanishes nor explodes. Times do not depend on the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from iba_core import Explainer, Tokens
from iba_core.framework.adapter import ModelAdapter
from iba_core.pictures.images import sample_crops, sample_image
from iba_core.zoo.efficientnet_lite import PREPROCESSING

TARGET = 282
"""The class "tiger cat", which the photograph shows."""

SIDE = 224


@dataclass(frozen=True)
class Place:
    """A layer of a network.

    Attributes:
        network: name of the network.
        title: name for readers.
        layers: name of the layer in each framework that has the network.
        tokens: how to read the layer's features if they are tokens.
    """

    network: str
    title: str
    layers: dict[str, str]
    tokens: Tokens | None = None


PLACES = {
    place.title: place
    for place in (
        Place(
            "efficientnet-lite0",
            "EfficientNet-Lite0, blocks.5",
            {"torch": "blocks.5", "tensorflow": "blocks.5"},
        ),
        Place(
            "efficientnet-lite0",
            "EfficientNet-Lite0, blocks.10",
            {"torch": "blocks.10", "tensorflow": "blocks.10"},
        ),
        Place(
            "resnet-50",
            "ResNet-50, layer2",
            {"torch": "resnet.encoder.stages.1", "tensorflow": "conv3_block4_out"},
        ),
        Place("vgg-16", "VGG-16, conv4_1", {"torch": "conv4_1", "tensorflow": "block4_conv1"}),
        Place("vit-b-16", "ViT-B/16, block 6", {"torch": "vit.layers.5"}, Tokens(prefix=1, grid=(14, 14))),
    )
}


@dataclass(frozen=True)
class Subject:
    """A network and a photograph to explain, in one framework.

    Attributes:
        title: title of its place in `PLACES`.
        framework: ``"torch"`` or ``"tensorflow"``.
        model: the network.
        layer: layer at which it is split.
        explainer: explainer, fitted at the layer.
        x: input of the network for one photograph, NumPy array (1, ...).
    """

    title: str
    framework: str
    model: Any
    layer: str
    explainer: Explainer
    x: np.ndarray

    @property
    def adapter(self) -> ModelAdapter:
        """Adapter of the network."""
        return self.explainer.adapter


def subject(title: str, framework: str, crops: int = 16) -> Subject:
    """Make the network and layer of `PLACES` with this title, with statistics of crops of photographs."""
    place = PLACES[title]
    model = _BUILDERS[framework][place.network]()
    data_format = "channels_first" if framework == "torch" else "channels_last"
    layer = place.layers[framework]
    explainer = Explainer(model, layer, tokens=place.tokens)
    explainer.fit(sample_crops(crops, PREPROCESSING, data_format=data_format), progbar=False)
    x = PREPROCESSING(sample_image("cat"), data_format)[None]
    return Subject(title, framework, model, layer, explainer, x)


def packaged(framework: str, layer: str) -> Explainer:
    """Make an explainer of EfficientNet-Lite0 with the packaged statistics of a layer."""
    return Explainer(_BUILDERS[framework]["efficientnet-lite0"](), layer).load_packaged()


def _torch_efficientnet() -> Any:
    from iba_torch.efficientnet_lite import efficientnet_lite0

    return efficientnet_lite0()


def _keras_efficientnet() -> Any:
    from iba_tf.efficientnet_lite import efficientnet_lite0

    return efficientnet_lite0()


def _torch_resnet() -> Any:
    from transformers import ResNetConfig, ResNetForImageClassification

    return ResNetForImageClassification(ResNetConfig(num_labels=1000)).eval()


def _torch_vit() -> Any:
    from transformers import ViTConfig, ViTForImageClassification

    return ViTForImageClassification(ViTConfig(num_labels=1000)).eval()


def _torch_vgg() -> Any:
    """Make VGG-16: K. Simonyan and A. Zisserman, 2015, table 1, configuration D."""
    from torch import nn

    layers: dict[str, nn.Module] = {}
    channels_in = 3
    for stage, (convolutions, channels) in enumerate(((2, 64), (2, 128), (3, 256), (3, 512), (3, 512)), 1):
        for number in range(1, convolutions + 1):
            convolution = nn.Conv2d(channels_in, channels, 3, padding=1)
            layers[f"conv{stage}_{number}"] = nn.Sequential(convolution, nn.ReLU())
            channels_in = channels
        layers[f"pool{stage}"] = nn.MaxPool2d(2)
    layers["flatten"] = nn.Flatten()
    for number, (width_in, width) in enumerate(((512 * 7 * 7, 4096), (4096, 4096)), 1):
        layers[f"fc{number}"] = nn.Sequential(nn.Linear(width_in, width), nn.ReLU(), nn.Dropout())
    layers["fc3"] = nn.Linear(4096, 1000)
    model = nn.Sequential()
    for name, layer in layers.items():
        model.add_module(name, layer)
    for module in model.modules():
        if isinstance(module, (nn.Conv2d, nn.Linear)):
            nn.init.kaiming_normal_(module.weight, nonlinearity="relu")
            nn.init.zeros_(module.bias)
    return model.eval()


def _keras_application(name: str) -> Callable[[], Any]:
    def build() -> Any:
        import keras

        return getattr(keras.applications, name)(weights=None, classifier_activation=None)

    return build


_BUILDERS: dict[str, dict[str, Callable[[], Any]]] = {
    "torch": {
        "efficientnet-lite0": _torch_efficientnet,
        "resnet-50": _torch_resnet,
        "vgg-16": _torch_vgg,
        "vit-b-16": _torch_vit,
    },
    "tensorflow": {
        "efficientnet-lite0": _keras_efficientnet,
        "resnet-50": _keras_application("ResNet50"),
        "vgg-16": _keras_application("VGG16"),
    },
}
