"""The architectures, and at which of their layers they are explained."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import keras
from keras.src.applications import convnext

from tests.architectures import torch_models
from tests.architectures.subjects import KerasSubject, Subject, TorchSubject


@dataclass(frozen=True)
class Architecture:
    """An architecture in a small configuration.

    Attributes:
        name: of the test.
        make: gives the model.
        layers: three layers, an early, a middle and a late one, and the axes of their feature maps: C for
            channels, H, W and T for places.
        quick: those of the layers at which it always runs. The others are for the long runs.
        options: what the explainer has to be told.
    """

    name: str
    make: Callable[[], Subject]
    layers: Mapping[str, str]
    quick: Sequence[str] = ()
    options: Mapping[str, Any] = field(default_factory=dict)


def _torch(
    build: Callable[[], tuple[Any, Any]], layers: Mapping[str, str], quick: bool = False, **options: Any
) -> Architecture:
    always = tuple(layers) if quick else ()
    return Architecture(build.__name__, lambda: TorchSubject(*build()), layers, always, options)


def _keras(
    name: str, size: int, layers: Mapping[str, str], quick: bool = False, **options: Any
) -> Architecture:
    draws = {"images": lambda generator, n: generator.normal(size=(n, size, size, 3))}

    def build() -> keras.Model:
        # The applications of this architecture have 18 blocks or more; what makes them has any number.
        make = convnext.ConvNeXt if name == "ConvNeXt" else getattr(keras.applications, name)
        return make(weights=None, input_shape=(size, size, 3), classes=5, **options)

    always = tuple(layers)[1:2] if quick else ()
    return Architecture(name, lambda: KerasSubject(build, draws), layers, always)


m = torch_models
ARCHITECTURES = [
    _torch(
        m.vit,
        {
            "vit.embeddings.patch_embeddings.projection": "CHW",
            "vit.layers.0": "TC",
            "vit.layers.2.mlp.fc1": "TC",
        },
        quick=True,
    ),
    _torch(
        m.deit,
        {"deit.embeddings": "TC", "deit.layers.1.attention": "TC", "deit.layers.2.layernorm_before": "TC"},
    ),
    _torch(
        m.swin,
        {"swin.embeddings": "TC", "swin.encoder.layers.0": "TC", "swin.encoder.layers.1.blocks.0.mlp": "TC"},
        quick=True,
    ),
    _torch(
        m.swinv2,
        {"swinv2.embeddings.norm": "TC", "swinv2.encoder.layers.0.blocks.1": "TC", "swinv2.layernorm": "TC"},
    ),
    _torch(
        m.convnext,
        {
            "convnext.encoder.stages.0": "CHW",
            "convnext.encoder.stages.0.layers.0.pwconv2": "HWC",
            "convnext.encoder.stages.1.layers.0.dwconv": "CHW",
        },
        quick=True,
    ),
    _torch(
        m.convnextv2,
        {
            "convnextv2.embeddings": "CHW",
            "convnextv2.encoder.stages.0.layers.0.grn": "HWC",
            "convnextv2.encoder.stages.2": "CHW",
        },
    ),
    _torch(
        m.resnet,
        {
            "resnet.embedder.embedder": "CHW",
            "resnet.encoder.stages.0": "CHW",
            "resnet.encoder.stages.1.layers.0": "CHW",
        },
    ),
    _torch(
        m.mobilenetv2,
        {
            "mobilenet_v2.conv_stem.first_conv.convolution": "CHW",
            "mobilenet_v2.layer.2": "CHW",
            "mobilenet_v2.layer.6.expand_1x1": "CHW",
        },
    ),
    _torch(
        m.mobilevit,
        {
            "mobilevit.conv_stem": "CHW",
            "mobilevit.encoder.layer.2": "CHW",
            "mobilevit.encoder.layer.3.conv_projection": "CHW",
        },
    ),
    _torch(m.beit, {"beit.embeddings": "TC", "beit.layers.1": "TC", "beit.layers.2.mlp": "TC"}),
    _torch(
        m.pvt,
        {
            "pvt.encoder.patch_embeddings.0": "TC",
            "pvt.encoder.block.1.0.mlp.dense1": "TC",
            "pvt.encoder.patch_embeddings.2.projection": "CHW",
        },
    ),
    _torch(
        m.regnet,
        {
            "regnet.embedder": "CHW",
            "regnet.encoder.stages.1": "CHW",
            "regnet.encoder.stages.2.layers.1": "CHW",
        },
    ),
    _torch(
        m.segformer,
        {"segformer.stages.0": "CHW", "segformer.stages.1.blocks.0": "TC", "segformer.stages.2": "CHW"},
    ),
    _torch(
        m.dinov2,
        {"dinov2.embeddings": "TC", "dinov2.encoder.layer.1": "TC", "dinov2.encoder.layer.2.norm2": "TC"},
    ),
    _torch(
        m.bert,
        {"bert.embeddings": "TC", "bert.encoder.layer.1.attention": "TC", "bert.encoder.layer.2": "TC"},
        quick=True,
    ),
    _torch(
        m.roberta,
        {
            "roberta.embeddings.LayerNorm": "TC",
            "roberta.encoder.layer.0": "TC",
            "roberta.encoder.layer.2.output.dense": "TC",
        },
    ),
    _torch(
        m.distilbert,
        {
            "distilbert.embeddings": "TC",
            "distilbert.transformer.layer.1": "TC",
            "distilbert.transformer.layer.2.ffn": "TC",
        },
    ),
    _torch(m.gpt2, {"transformer.wte": "TC", "transformer.h.1": "TC", "transformer.ln_f": "TC"}),
    _torch(m.llama, {"model.embed_tokens": "TC", "model.layers.1": "TC", "model.layers.2.mlp.up_proj": "TC"}),
    _torch(
        m.t5,
        {
            "transformer.encoder.block.0": "TC",
            "transformer.encoder.block.1.layer.1": "TC",
            "transformer.decoder.block.1": "TC",
        },
    ),
    _torch(
        m.wav2vec2,
        {
            "wav2vec2.feature_extractor.conv_layers.0": "CT",
            "wav2vec2.feature_projection.projection": "TC",
            "wav2vec2.encoder.layers.1": "TC",
        },
    ),
    _torch(
        m.ast,
        {
            "audio_spectrogram_transformer.embeddings": "TC",
            "audio_spectrogram_transformer.layers.1": "TC",
            "audio_spectrogram_transformer.layernorm": "TC",
        },
    ),
    _torch(
        m.clip,
        {"vision_model.embeddings": "TC", "vision_model.encoder.layers.1": "TC", "visual_projection": "C"},
        output="logits_per_image",
    ),
    _torch(
        m.clip_five_captions,
        {
            "vision_model.embeddings.patch_embedding": "CHW",
            "vision_model.encoder.layers.0.mlp": "TC",
            "vision_model.post_layernorm": "C",
        },
        output="logits_per_image",
    ),
    _torch(
        m.siglip,
        {
            "vision_model.embeddings": "TC",
            "vision_model.encoder.layers.1": "TC",
            "vision_model.encoder.layers.2.mlp.fc2": "TC",
        },
        output="logits_per_image",
    ),
    _keras("VGG16", 32, {"block2_pool": "HWC", "block3_conv3": "HWC", "block5_conv3": "HWC"}, quick=True),
    _keras(
        "ResNet50", 32, {"conv2_block1_out": "HWC", "conv3_block2_1_relu": "HWC", "conv4_block6_out": "HWC"}
    ),
    _keras(
        "ResNet50V2",
        32,
        {"conv2_block2_preact_bn": "HWC", "conv3_block3_out": "HWC", "conv4_block5_out": "HWC"},
    ),
    _keras(
        "DenseNet121", 32, {"pool2_conv": "HWC", "conv3_block11_2_conv": "HWC", "conv4_block17_concat": "HWC"}
    ),
    _keras("EfficientNetB0", 32, {"stem_activation": "HWC", "block3b_add": "HWC", "block5b_add": "HWC"}),
    _keras(
        "EfficientNetV2B0",
        32,
        {"block2b_expand_activation": "HWC", "block3b_add": "HWC", "block5c_activation": "HWC"},
    ),
    _keras(
        "Xception", 71, {"block2_sepconv1_bn": "HWC", "block6_sepconv3": "HWC", "block13_sepconv2_bn": "HWC"}
    ),
    _keras("InceptionV3", 75, {"mixed0": "HWC", "mixed4": "HWC", "mixed7": "HWC"}),
    _keras(
        "NASNetMobile",
        32,
        {"normal_concat_1": "HWC", "reduction_concat_reduce_4": "HWC", "normal_concat_7": "HWC"},
    ),
    _keras(
        "MobileNetV2",
        32,
        {"Conv1_relu": "HWC", "block_3_project_BN": "HWC", "block_12_add": "HWC"},
        quick=True,
        alpha=0.35,
    ),
    _keras(
        "MobileNetV3Small",
        32,
        {
            "expanded_conv_squeeze_excite_mul": "HWC",
            "expanded_conv_3_project_bn": "HWC",
            "expanded_conv_7_add": "HWC",
        },
        quick=True,
    ),
    _keras(
        "ConvNeXt",
        32,
        {
            "convnext_stage_0_block_0_identity": "HWC",
            "convnext_stage_1_block_0_identity": "HWC",
            "convnext_stage_2_block_1_identity": "HWC",
        },
        depths=[1, 1, 2, 1],
        projection_dims=[8, 16, 24, 32],
    ),
]
