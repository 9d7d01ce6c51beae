"""Hugging Face models: their outputs, keyword inputs, masks, caches and hooks."""

import numpy as np
import pytest
import torch

from iba_core import Explainer, LayerError, Tokens
from iba_torch import TorchAdapter

transformers = pytest.importorskip("transformers", reason="nothing here depends on it but these models")

IDS = torch.randint(50, (2, 7), generator=torch.Generator().manual_seed(0))
MASK = torch.tensor([[1] * 7, [1] * 5 + [0] * 2])
SMALL = {"hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "intermediate_size": 32}


def image(size):
    generator = torch.Generator().manual_seed(0)
    return {"pixel_values": torch.randn(2, 3, size, size, generator=generator).double()}


def vit():
    config = transformers.ViTConfig(**SMALL, image_size=16, patch_size=4, num_labels=5)
    return transformers.ViTForImageClassification(config), image(16)


def swin():
    config = transformers.SwinConfig(
        image_size=32, embed_dim=8, depths=[2, 2], num_heads=[1, 2], window_size=4
    )
    return transformers.SwinForImageClassification(config), image(32)


def resnet():
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[2, 2])
    return transformers.ResNetForImageClassification(config), image(32)


def segformer():
    config = transformers.SegformerConfig(
        hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, num_attention_heads=[1, 1, 2, 2], decoder_hidden_size=16
    )
    return transformers.SegformerForSemanticSegmentation(config), image(32)


def bert():
    config = transformers.BertConfig(vocab_size=50, **SMALL)
    return transformers.BertForSequenceClassification(config), {"input_ids": IDS, "attention_mask": MASK}


def gpt2():
    config = transformers.GPT2Config(
        vocab_size=50, n_embd=16, n_layer=3, n_head=2, bos_token_id=0, eos_token_id=0
    )
    return transformers.GPT2LMHeadModel(config), {"input_ids": IDS, "attention_mask": MASK}


def t5():
    config = transformers.T5Config(vocab_size=50, d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    inputs = {"input_ids": IDS, "attention_mask": MASK, "decoder_input_ids": IDS[:, :4]}
    return transformers.T5ForConditionalGeneration(config), inputs


@pytest.fixture(params=[vit, swin, resnet, segformer, bert, gpt2, t5], ids=lambda build: build.__name__)
def model_and_inputs(request):
    torch.manual_seed(0)
    model, inputs = request.param()
    return model.double().eval(), inputs


@pytest.mark.parametrize("images", [1, 2])
def test_every_layer_can_be_split_at_or_says_why_not(model_and_inputs, images):
    model, inputs = model_and_inputs
    inputs = {name: array[:images] for name, array in inputs.items()}
    adapter = TorchAdapter(model)
    with torch.no_grad():
        expected = model(**inputs)
    done = 0
    for info in adapter.layers(inputs):
        split = adapter.split(info.name)
        try:
            split.features(inputs)
            with split.head(inputs):
                pass
        except LayerError as error:
            reasons = ("runs 2 times", "a feature map has the shape", "does not depend on layer")
            assert any(text in str(error) for text in reasons)  # noqa: PT017
            continue
        with split.head(inputs) as tail:
            for copies in (1, 3):
                z = tail.features.repeat_interleave(copies, 0)
                if "relative_position" in info.name:
                    # One image's table has the shape of a feature map, but not several images'.
                    continue
                output = tail(z)
                assert type(output) is type(expected)
                for key, wanted in expected.items():
                    if not isinstance(wanted, torch.Tensor):
                        continue
                    torch.testing.assert_close(
                        output[key], wanted.repeat_interleave(copies, 0), rtol=1e-9, atol=1e-11,
                        msg=lambda text, name=info.name: f"{name}: {text}",
                    )  # fmt: skip
        done += 1
    assert done > 20


def test_a_part_of_an_output_that_the_model_does_not_use():
    """The encoder's first output is the sequence; the classifier reads the pooled one alone."""
    model, inputs = bert()
    split = TorchAdapter(model).split("bert")
    with pytest.raises(LayerError, match="does not depend on layer 'bert'"), split.head(inputs) as tail:
        tail(tail.features.requires_grad_())


def test_a_vision_transformer_is_explained():
    torch.manual_seed(0)
    model, _ = vit()
    data = torch.randn(30, 3, 16, 16)
    explainer = Explainer(model, layer="vit.layers.1", tokens=Tokens(prefix=1, grid=(4, 4)))
    explainer.fit([data], progbar=False)
    attribution = explainer.explain(data[:2], target=[0, 3], seed=0)
    assert attribution.saliency.shape == (2, 16, 16)
    assert attribution.capacity.shape == (2, 17, 16)
    assert attribution.data_format == "channels_last"
    np.testing.assert_allclose(
        attribution.saliency.sum((1, 2)), attribution.capacity[:, 1:].sum((1, 2)) / np.log(2), rtol=1e-4
    )


def test_padding_is_passed_and_costs_nothing():
    torch.manual_seed(0)
    model, _ = bert()
    explainer = Explainer(model, layer="bert.encoder.layer.0")
    ids = torch.randint(50, (20, 7))
    explainer.fit([{"input_ids": ids, "attention_mask": torch.ones_like(ids)}], progbar=False)
    padding = np.broadcast_to(~MASK.bool().numpy()[..., None], (2, 7, 16))
    attribution = explainer.explain(
        {"input_ids": IDS, "attention_mask": MASK}, target=1, seed=0, pass_mask=padding
    )
    assert not attribution.capacity[padding].any()
    assert attribution.capacity[~padding].min() > -1e-6
    assert attribution.capacity[~padding].max() > 0
