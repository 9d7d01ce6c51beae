"""The layer that is chosen where none is named, for each kind of data, and how its tokens are read."""

from __future__ import annotations

import numpy as np
import pytest

from iba_core import Explainer, InputError, Tokens

RNG = np.random.default_rng(0)
WIDTH, PATCHES = 12, (4, 6)
"""Features of a token, and the grid of the patches of an image of 16 x 24 pixels."""

KINDS = ["signal", "volume", "words", "patches"]


def torch_network(kind, shuffled=False):
    import torch
    from torch import nn

    torch.manual_seed(0)

    class Patches(nn.Module):
        """A class token, then the patches row by row; or the patches in another order."""

        def __init__(self):
            super().__init__()
            self.patch = nn.Conv2d(3, WIDTH, 4, stride=4)
            self.token = nn.Parameter(torch.randn(1, 1, WIDTH))
            self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(WIDTH, 2, 16, 0.0) for _ in range(3))
            for block in self.blocks:
                block.self_attn.batch_first = True
            self.head = nn.Linear(WIDTH, 5)

        def forward(self, x):
            patches = self.patch(x).flatten(2).transpose(1, 2)
            if shuffled:
                patches = patches[:, torch.randperm(24, generator=torch.Generator().manual_seed(0))]
            tokens = torch.cat([self.token.expand(len(x), -1, -1), patches], dim=1)
            for block in self.blocks:
                tokens = block(tokens)
            return self.head(tokens[:, 0])

    class Words(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding, self.read = nn.Embedding(30, WIDTH), nn.LSTM(WIDTH, 8, batch_first=True)
            self.head = nn.Linear(8, 5)

        def forward(self, ids):
            return self.head(self.read(self.embedding(ids))[0][:, -1])

    end = nn.Flatten(), nn.Linear(8, 5)
    pooled = nn.Conv1d(4, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool1d(1)
    network = {
        "signal": lambda: nn.Sequential(nn.Conv1d(2, 4, 3, padding=1), nn.ReLU(), *pooled, *end),
        "volume": lambda: nn.Sequential(
            nn.Conv3d(2, 4, 3, padding=1), nn.ReLU(), nn.MaxPool3d(2),
            nn.Conv3d(4, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool3d(1), *end,
        ),
        "words": Words,
        "patches": Patches,
    }[kind]()  # fmt: skip
    return network.eval()


def keras_network(kind, shuffled=False):
    import keras
    from keras import layers as of

    keras.utils.set_random_seed(0)

    class WithToken(of.Layer):
        def build(self, shape):
            self.token = self.add_weight(shape=(1, 1, WIDTH), initializer="random_normal")

        def call(self, patches):
            if shuffled:
                order = np.random.default_rng(0).permutation(24)
                patches = keras.ops.take(patches, order, axis=1)
            token = keras.ops.repeat(self.token, keras.ops.shape(patches)[0], axis=0)
            return keras.ops.concatenate([token, patches], axis=1)

    def patches():
        image = keras.Input((16, 24, 3))
        tokens = WithToken()(of.Reshape((24, WIDTH))(of.Conv2D(WIDTH, 4, strides=4)(image)))
        for number in range(3):
            looked = of.MultiHeadAttention(2, 6)(tokens, tokens)
            tokens = of.LayerNormalization()(of.Add(name=f"block_{number}")([tokens, looked]))
        return keras.Model(image, of.Dense(5)(tokens[:, 0]))

    return {
        "signal": lambda: keras.Sequential([
            keras.Input((50, 2)), of.Conv1D(4, 3, padding="same", activation="relu"),
            of.Conv1D(8, 3, padding="same", activation="relu"), of.GlobalAveragePooling1D(), of.Dense(5),
        ]),
        "volume": lambda: keras.Sequential([
            keras.Input((8, 10, 12, 2)), of.Conv3D(4, 3, padding="same", activation="relu"), of.MaxPool3D(),
            of.Conv3D(8, 3, padding="same", activation="relu"), of.GlobalAveragePooling3D(), of.Dense(5),
        ]),
        "words": lambda: keras.Sequential([
            keras.Input((None,), dtype="int32"), of.Embedding(30, WIDTH), of.LSTM(8), of.Dense(5),
        ]),
        "patches": patches,
    }[kind]()  # fmt: skip


def inputs_of(backend, kind):
    shape = {"signal": (50, 2), "volume": (8, 10, 12, 2), "patches": (16, 24, 3)}.get(kind)
    if shape is None:
        return np.random.default_rng(0).integers(1, 30, (6, 7))
    x = np.random.default_rng(0).normal(size=(6, *shape)).astype(np.float32)
    return np.moveaxis(x, -1, 1) if backend.name == "torch" else x


def network_of(backend, kind, **options):
    return (torch_network if backend.name == "torch" else keras_network)(kind, **options)


PLACES = {"signal": (50,), "volume": (8, 10, 12), "words": (7,), "patches": (16, 24)}
TOKENS = {"words": Tokens(any_length=True), "patches": Tokens(prefix=1, grid=PATCHES)}


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_is_chosen_and_its_map_fits_the_input(backend, kind):
    x = inputs_of(backend, kind)
    explainer = Explainer(network_of(backend, kind), steps=2, samples=2).fit([x], progbar=False)
    assert explainer.tokens == TOKENS.get(kind)
    attribution = explainer.explain(x[:2], target=1, seed=0)
    assert attribution.saliency.shape == (2, *PLACES[kind])
    assert attribution.complete
    if kind != "patches":
        np.testing.assert_allclose(
            attribution.saliency.reshape(2, -1).sum(axis=1), attribution.total_bits, rtol=1e-4
        )
    else:
        assert (attribution.saliency.sum(axis=(1, 2)) < attribution.total_bits).all()


def test_tokens_in_another_order_are_not_read_as_a_grid(backend):
    x = inputs_of(backend, "patches")
    explainer = Explainer(network_of(backend, "patches", shuffled=True)).fit([x], progbar=False)
    # What is left is the layer that gives the patches, before they lose their places.
    assert explainer.tokens is None
    assert len(explainer.estimator.shape) == 3


def test_what_is_read_is_kept_in_the_file(backend, tmp_path):
    model, x = network_of(backend, "words"), inputs_of(backend, "words")
    explainer = Explainer(model, steps=2, samples=2).fit([x], progbar=False)
    explainer.save(tmp_path / "statistics.safetensors")
    again = Explainer(model, steps=2, samples=2).load(tmp_path / "statistics.safetensors")
    assert again.tokens == explainer.tokens
    pair = [each.explain(x[:1], target=1, seed=0).saliency for each in (explainer, again)]
    np.testing.assert_array_equal(*pair)


def test_texts_may_have_any_length(backend):
    model = network_of(backend, "words")
    texts = [inputs_of(backend, "words")[:, :length] for length in (3, 7)]
    explainer = Explainer(model, steps=2, samples=2).fit(texts, progbar=False)
    assert explainer.settings.smooth_std == 0
    assert explainer.estimator.n_samples() == 6 * (3 + 7)
    for text in texts:
        attribution = explainer.explain(text[:2], target=1, seed=0)
        assert attribution.saliency.shape == (2, text.shape[1])
        assert explainer.predict_restricted(text[:2], attribution, seed=0).shape == (2, 10, 5)


def test_words_have_the_distribution_of_all_words(backend):
    model, x = network_of(backend, "words"), inputs_of(backend, "words")
    explainer = Explainer(model).fit([x], progbar=False)
    table = np.asarray(next(iter(explainer.adapter.weights().values()))[0])  # of the embedding
    words = table[x.reshape(-1)]
    np.testing.assert_allclose(explainer.estimator.mean(), words.mean(axis=0), atol=1e-6)
    np.testing.assert_allclose(explainer.estimator.std(), words.std(axis=0, ddof=1), atol=1e-6)


def test_any_length_is_for_tokens_without_prefix_and_grid():
    with pytest.raises(InputError, match="without prefix= and grid="):
        Tokens(prefix=1, any_length=True)
    with pytest.raises(InputError, match="without prefix= and grid="):
        Tokens(grid=(2, 2), any_length=True)
