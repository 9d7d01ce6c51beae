"""Architectures of the package transformers, in small configurations, and what is true of their layers.

Each function gives a model, and the inputs by name: a function that draws one for each image, or an array
that all images share.
"""

from __future__ import annotations

import numpy as np
import transformers
from torch import nn

from tests.architectures.subjects import Draw

CLASSES = 5
NARROW = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}
TEXT = {"vocab_size": 50, "num_labels": CLASSES, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def pictures(size: int) -> dict[str, Draw]:
    return {"pixel_values": lambda generator, n: generator.normal(size=(n, 3, size, size))}


def _ids(generator: np.random.Generator, n: int, length: int = 8) -> np.ndarray:
    ids = generator.integers(3, 50, size=(n, length))
    ids[:, -1] = 2
    return ids


def _attention(generator: np.random.Generator, n: int, length: int = 8) -> np.ndarray:
    mask = np.ones((n, length), int)
    mask[::2, 6:] = 0
    return mask


SENTENCES: dict[str, Draw] = {"input_ids": _ids, "attention_mask": _attention}
WHOLE_SENTENCES: dict[str, Draw] = {"input_ids": _ids}


# -- pictures ---------------------------------------------------------------------------------------


def vit():
    config = transformers.ViTConfig(**NARROW, image_size=16, patch_size=4, num_labels=CLASSES)
    return transformers.ViTForImageClassification(config), pictures(16)


def deit():
    config = transformers.DeiTConfig(**NARROW, image_size=16, patch_size=4, num_labels=CLASSES)
    return transformers.DeiTForImageClassificationWithTeacher(config), pictures(16)


def swin():
    config = transformers.SwinConfig(
        image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4,
        num_labels=CLASSES,
    )  # fmt: skip
    return transformers.SwinForImageClassification(config), pictures(32)


def swinv2():
    config = transformers.Swinv2Config(
        image_size=32, patch_size=2, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4,
        num_labels=CLASSES,
    )  # fmt: skip
    return transformers.Swinv2ForImageClassification(config), pictures(32)


def convnext():
    """Three channels, places and images may have one size: 8 pixels and 8 channels at the second stage."""
    config = transformers.ConvNextConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, image_size=32, num_labels=CLASSES,
        layer_scale_init_value=0.5,
    )  # fmt: skip
    return transformers.ConvNextForImageClassification(config), pictures(32)


def convnextv2():
    config = transformers.ConvNextV2Config(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, image_size=32, num_labels=CLASSES
    )
    return transformers.ConvNextV2ForImageClassification(config), pictures(32)


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[16, 32], depths=[2, 2], num_labels=CLASSES
    )
    return transformers.ResNetForImageClassification(config), pictures(32)


def mobilenetv2():
    config = transformers.MobileNetV2Config(depth_multiplier=0.35, num_labels=CLASSES, image_size=32)
    return transformers.MobileNetV2ForImageClassification(config), pictures(32)


def mobilevit():
    config = transformers.MobileViTConfig(
        image_size=32, patch_size=2, hidden_sizes=[16, 24, 32], neck_hidden_sizes=[8, 8, 16, 16, 24, 24, 32],
        num_attention_heads=2, num_labels=CLASSES, expand_ratio=2.0,
    )  # fmt: skip
    return transformers.MobileViTForImageClassification(config), pictures(32)


def beit():
    config = transformers.BeitConfig(
        **NARROW, image_size=16, patch_size=4, num_labels=CLASSES, use_relative_position_bias=True
    )
    return transformers.BeitForImageClassification(config), pictures(16)


def pvt():
    config = transformers.PvtConfig(
        image_size=32, depths=[1, 1, 1, 1], hidden_sizes=[8, 8, 16, 16], num_attention_heads=[1, 1, 2, 2],
        mlp_ratios=[2] * 4, num_labels=CLASSES,
    )  # fmt: skip
    return transformers.PvtForImageClassification(config), pictures(32)


def regnet():
    config = transformers.RegNetConfig(
        embedding_size=8,
        hidden_sizes=[8, 16, 24, 32],
        depths=[1, 1, 2, 1],
        groups_width=4,
        num_labels=CLASSES,
    )
    return transformers.RegNetForImageClassification(config), pictures(64)


def segformer():
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], num_labels=CLASSES
    )
    return transformers.SegformerForImageClassification(config), pictures(32)


def dinov2():
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=3, num_attention_heads=2, mlp_ratio=2, image_size=16, patch_size=4,
        num_labels=CLASSES,
    )  # fmt: skip
    return transformers.Dinov2ForImageClassification(config), pictures(16)


# -- text -------------------------------------------------------------------------------------------


def bert():
    return transformers.BertForSequenceClassification(transformers.BertConfig(**TEXT, **NARROW)), SENTENCES


def roberta():
    config = transformers.RobertaConfig(**{**TEXT, "pad_token_id": 1, "bos_token_id": 0}, **NARROW)
    return transformers.RobertaForSequenceClassification(config), SENTENCES


def distilbert():
    config = transformers.DistilBertConfig(
        vocab_size=50, dim=16, n_layers=3, n_heads=2, hidden_dim=32, num_labels=CLASSES, pad_token_id=0
    )
    return transformers.DistilBertForSequenceClassification(config), SENTENCES


def gpt2():
    config = transformers.GPT2Config(**TEXT, n_embd=16, n_layer=3, n_head=2, n_positions=32)
    return transformers.GPT2ForSequenceClassification(config), WHOLE_SENTENCES


def llama():
    config = transformers.LlamaConfig(**TEXT, **NARROW, num_key_value_heads=1)
    return transformers.LlamaForSequenceClassification(config), WHOLE_SENTENCES


def t5():
    config = transformers.T5Config(
        **TEXT, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2, decoder_start_token_id=0
    )
    return transformers.T5ForSequenceClassification(config), SENTENCES


# -- sounds -----------------------------------------------------------------------------------------


def wav2vec2():
    config = transformers.Wav2Vec2Config(
        **NARROW, vocab_size=12, num_labels=CLASSES,
        conv_dim=(8, 16), conv_kernel=(10, 3), conv_stride=(5, 2),
        num_feat_extract_layers=2, num_conv_pos_embeddings=8, num_conv_pos_embedding_groups=2,
        classifier_proj_size=16,
    )  # fmt: skip
    sounds: dict[str, Draw] = {"input_values": lambda generator, n: generator.normal(size=(n, 200))}
    return transformers.Wav2Vec2ForSequenceClassification(config), sounds


def ast():
    config = transformers.ASTConfig(
        **NARROW, patch_size=4, frequency_stride=4, time_stride=4, max_length=16, num_mel_bins=8,
        num_labels=CLASSES,
    )  # fmt: skip
    spectra: dict[str, Draw] = {"input_values": lambda generator, n: generator.normal(size=(n, 16, 8))}
    return transformers.ASTForAudioClassification(config), spectra


# -- pictures and text ------------------------------------------------------------------------------


def _two_towers(family: str) -> nn.Module:
    vision = {**NARROW, "image_size": 16, "patch_size": 4}
    text = {**NARROW, "vocab_size": 50, "max_position_embeddings": 8, "eos_token_id": 2, "bos_token_id": 1}
    config = getattr(transformers, f"{family}Config")(vision_config=vision, text_config=text)
    return getattr(transformers, f"{family}Model")(config)


def _captions(n: int) -> np.ndarray:
    return _ids(np.random.default_rng(7), n)


def clip():
    """As many captions as images."""
    return _two_towers("CLIP"), {**pictures(16), "input_ids": _captions(3)}


def clip_five_captions():
    return _two_towers("CLIP"), {**pictures(16), "input_ids": _captions(5)}


def siglip():
    return _two_towers("Siglip"), {**pictures(16), "input_ids": _captions(3)}
