"""Heatmaps of learnt concepts, from their embeddings."""

from __future__ import annotations

from collections.abc import Sequence
from os import PathLike
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from iba_core.arguments import require_sequence, require_type
from iba_core.concepts.data import resize_map
from iba_core.concepts.detection import ModelStump, filters_of
from iba_core.concepts.embedding import ConceptEmbedding
from iba_core.concepts.hyperplanes import same_padding, windows
from iba_core.concepts.laplace import logit_variance, moderated, with_bias
from iba_core.errors import InputError
from iba_core.files import as_path, require_writable
from iba_core.framework.adapter import Inputs, Model
from iba_core.framework.arrays import require_array
from iba_core.framework.framework import require_finite
from iba_core.framework.inputs import arrays_of, require_inputs
from iba_core.framework.layout import DataFormat, Layout
from iba_core.framework.namespace import sigmoid
from iba_core.pictures.images import Picture
from iba_core.pictures.plotting import (
    COLORMAP,
    axes_to_draw_into,
    caption,
    plot_saliency_map,
    require_matplotlib,
    save_figure,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FloatArray = npt.NDArray[np.floating]

_CHUNK = 32
"""Number of feature maps to process at once."""


def member_distances(
    maps: FloatArray, embeddings: Sequence[ConceptEmbedding], factors: FloatArray | None = None
) -> FloatArray:
    """Compute the signed distance of the window around every place from each hyperplane of an ensemble.

    Args:
        maps: (N, H, W, C), feature maps.
        embeddings: E hyperplanes with normal vectors (C, kh, kw).
        factors: (E, P, P), posteriors of their weights, which moderate the distances; see
            `iba_core.concepts.laplace`. None for certain weights.

    Returns:
        (E, N, H, W), float64.

    Raises:
        InputError: maps and embeddings have different numbers of channels.

    Example:
        >>> plane = ConceptEmbedding([3.0, 4.0], bias=-10.0)
        >>> member_distances(np.array([[[[2.0, 1.0], [2.0, 3.5]]]]), [plane])
        array([[[[ 0., 10.]]]])
    """
    weight, bias = filters_of(embeddings)
    if maps.shape[-1] != weight.shape[1]:
        raise InputError(f"the layer has {maps.shape[-1]} channels, but the concept {weight.shape[1]}")
    kernel_size = weight.shape[2:]
    padding = same_padding(kernel_size)
    columns = weight.reshape(len(weight), -1).T
    parts = []
    for start in range(0, len(maps), _CHUNK):
        rows = windows(maps[start : start + _CHUNK].astype(np.float64), kernel_size, padding)
        logits = np.moveaxis(rows @ columns + bias, -1, 0)
        if factors is not None:
            phi = rows.reshape(-1, rows.shape[-1])
            phi = with_bias(phi, factors.shape[-1] > phi.shape[-1])
            products = (phi @ factors.reshape(-1, factors.shape[-1]).T).T
            logits = moderated(logits, logit_variance(products, len(factors)).reshape(logits.shape))
        parts.append(logits)
    return np.concatenate(parts, axis=1)


def mean_probability(
    maps: FloatArray, embeddings: Sequence[ConceptEmbedding], factors: FloatArray | None = None
) -> FloatArray:
    """Compute the probability of the concept at every place, the mean over the members of an ensemble.

    Args:
        maps: (N, H, W, C), feature maps.
        embeddings: E hyperplanes with normal vectors (C, kh, kw).
        factors: (E, P, P), posteriors of their weights; None for certain weights.

    Returns:
        (N, H, W), float64.
    """
    probabilities: FloatArray = sigmoid(member_distances(maps, embeddings, factors)).mean(axis=0)
    return probabilities


def locate(
    model: Model,
    embeddings: ConceptEmbedding | Sequence[ConceptEmbedding],
    inputs: Inputs,
    layer: str | None = None,
    backend: str | None = None,
    data_format: DataFormat | None = None,
) -> npt.NDArray[np.float32]:
    """Find a concept in images.

    Args:
        model: the model that the concept was learnt for, of any framework.
        embeddings: the concept, or the members of an ensemble, whose probabilities are averaged.
        inputs: a batch of images as the model takes them; of several inputs, the first one.
        layer: layer of the embeddings; by default their `layer_id`.
        backend: name of the backend; None to derive it from the model.
        data_format: where the channels of the layer's output are; None to find that out.

    Returns:
        float32 (B, height, width), with height and width of the images: the probability of the concept,
        linear between the places of the feature map.

    Raises:
        InputError: no layer is known, or it does not fit the concept.
        LayerError: the model has no such layer.

    Example:
        >>> import torch
        >>> model = torch.nn.Sequential(torch.nn.AvgPool2d(2), torch.nn.Flatten())
        >>> red = ConceptEmbedding([9.0, -9.0, -9.0], bias=-4.0, layer_id="0")
        >>> image = torch.zeros(1, 3, 2, 4)
        >>> image[:, 0, :, 2:] = 1.0
        >>> locate(model, red, image).round(1)[0, 0]
        array([0. , 0.3, 0.7, 1. ], dtype=float32)
    """
    if isinstance(embeddings, ConceptEmbedding):
        embeddings = [embeddings]
    require_sequence("embeddings", embeddings, "concept embeddings")
    for embedding in embeddings:
        require_type("embeddings", embedding, ConceptEmbedding, "concept embeddings")
    layer = embeddings[0].layer_id if layer is None else layer
    if layer is None:
        raise InputError("layer is missing; give it, or embeddings with a layer_id")
    stump = ModelStump(model, layer, backend, data_format)
    images = require_inputs("inputs", inputs, stump.adapter.to_inputs)
    shape = tuple(int(size) for size in next(arrays_of(images)).shape)
    if len(shape) < 3:
        raise InputError(f"inputs has shape {shape}; a batch of images was expected")
    for array in arrays_of(images):
        require_finite(stump.adapter.framework.to_numpy(array), "inputs")
    probabilities = mean_probability(stump.maps(images), embeddings)
    probabilities = stump.order.turn(probabilities)
    height, width = Layout.of(shape[1:], stump.split.input_format).spatial_shape(shape[1:])
    return np.stack([resize_map(heatmap, (height, width)) for heatmap in probabilities])


def plot_heatmap(picture: Picture, heatmap: npt.ArrayLike, title: str = "", ax: Axes | None = None) -> Axes:
    """Draw a heatmap over a picture in grey, with a line where the probability is one half.

    Args:
        picture: Pillow image or uint8 array (H, W, 3).
        heatmap: (H, W), probabilities.
        title: line above the picture.
        ax: axes to draw into; a new figure of pyplot if None.

    Returns:
        The axes.

    Raises:
        InputError: picture and heatmap differ in size.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> ax = plot_heatmap(np.zeros((2, 2, 3), np.uint8), [[0.1, 0.9], [0.2, 0.4]], "cat")
        >>> ax.get_title()
        'cat'
    """
    values = require_array("heatmap", heatmap, ndim=2, least=0, most=1, form="one map (H, W)")
    values = values.astype(np.float64)
    require_type("title", title, str, "a text")
    pixels = _pixels(picture)
    if pixels.shape[:2] != values.shape:
        raise InputError(f"heatmap has shape {values.shape} and picture {pixels.shape}; resize one of them")
    ax = axes_to_draw_into(ax)
    grey = pixels if pixels.ndim == 2 else pixels.mean(axis=-1)
    ax.imshow(grey, cmap="gray", vmin=0, vmax=255)
    shown = ax.imshow(values, cmap=COLORMAP, vmin=0, vmax=1, alpha=0.2 + 0.5 * values)
    if values.min() < 0.5 < values.max():
        ax.contour(values, levels=[0.5], colors="white", linewidths=1)
    bar = ax.figure.colorbar(shown, ax=ax, shrink=0.8)
    if bar.solids is not None:
        bar.solids.set_alpha(1)
    bar.set_label("probability")
    ax.set_axis_off()
    ax.set_title(caption(title), fontsize=11, parse_math=False)
    return ax


def save_heatmap(
    path: str | PathLike[str],
    picture: Picture,
    heatmap: npt.ArrayLike,
    title: str = "",
    bits: npt.ArrayLike | None = None,
) -> None:
    """Write a PNG with the picture and, beside it, the heatmap over it. This needs no pyplot and no display.

    With `bits`, a third panel shows which places the network needs to see the concept: the saliency map of
    ``Explainer(model, layer).fit(data).explain(x, target=embedding)``, with `layer` at that of the concept
    or before it.

    Args:
        path: path of the file, ending in ``.png``.
        picture: Pillow image or uint8 array (H, W, 3).
        heatmap: (H, W), probabilities.
        title: line above the heatmap.
        bits: (H, W), saliency map of the concept in bits per pixel; None for no such panel.

    Raises:
        InputError: picture and maps differ in size, or the file cannot be written.
        MissingDependencyError: matplotlib is not installed.

    Example:
        >>> import tempfile
        >>> heatmap = [[0.1, 0.9], [0.2, 0.4]]
        >>> save_heatmap(tempfile.mkdtemp() + "/cat.png", np.zeros((2, 2, 3), np.uint8), heatmap, "cat")
    """
    path = as_path(path, "path")
    values = require_array("heatmap", heatmap, ndim=2, least=0, most=1, form="one map (H, W)")
    require_matplotlib()
    require_writable(path)
    from matplotlib.figure import Figure

    height, width = values.shape
    panel, panels = 3.2 / max(height, width), 2 if bits is None else 3
    inches = panels * width * panel + panels - 1.0
    figure = Figure(figsize=(inches, height * panel + 0.4), layout="constrained")
    left, middle, *right = figure.subplots(1, panels)
    plot_heatmap(picture, heatmap, title, middle)
    left.imshow(_pixels(picture), cmap="gray")
    left.set_axis_off()
    if bits is not None:
        require_array("bits", bits, shape=values.shape, least=0, form="one map like the heatmap")
        plot_saliency_map(bits, _pixels(picture), right[0], colorbar_fontsize=10, colorbar_size=0.12)
        right[0].set_axis_off()
        right[0].set_title("needed to see it", fontsize=11)
    # The layout does not know of the labels beside the colour bar of bits.
    save_figure(figure, path, **({} if bits is None else {"bbox_inches": "tight"}))


def _pixels(picture: Picture) -> npt.NDArray[Any]:
    """The grey or RGB values of a picture, (H, W) or (H, W, 3 or 4)."""
    pixels = require_array("picture", picture, ndim=(2, 3), form="a picture (H, W, 3)")
    if pixels.ndim == 3 and pixels.shape[2] not in (3, 4):
        raise InputError(f"picture has shape {pixels.shape}; (H, W) or (H, W, 3) was expected")
    return pixels
