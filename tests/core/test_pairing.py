"""Pairs of layers, and where two models part: worked examples."""

import numpy as np
import pytest

from iba_core import InputError, LayerError
from iba_core.evaluation.model_comparison import where_they_part
from iba_core.evaluation.pairing import pair_layers, turned
from iba_core.framework.adapter import LayerInfo

FORMATS = ("channels_first", "channels_last")

# As PyTorch lists a block: before the layers in it.
FIRST = [
    LayerInfo("block", "Sequential", (4, 8, 8)),
    LayerInfo("block.conv", "Conv2d", (4, 8, 8)),
    LayerInfo("block.act", "ReLU", (4, 8, 8)),
    LayerInfo("split", "Two", None),
    LayerInfo("flat", "Flatten", (256,)),
    LayerInfo("head", "Linear", (3,)),
]


def keras_names(*names):
    shapes = [(8, 8, 4), (8, 8, 4), (256,), (3,)]
    kinds = ["Conv2D", "ReLU", "Flatten", "Dense"]
    return [LayerInfo(*each) for each in zip(names, kinds, shapes, strict=True)]


def test_names_pair_whatever_stands_between_their_parts():
    second = keras_names("Block_conv", "block/act", "flat", "head")
    pairs, by = pair_layers(FIRST, second, formats=FORMATS)
    assert by == "name"
    assert pairs == [
        ("block.conv", "Block_conv"),
        ("block.act", "block/act"),
        ("flat", "flat"),
        ("head", "head"),
    ]


def test_a_block_comes_after_what_is_in_it():
    second = [LayerInfo("block", "Add", (8, 8, 4)), *keras_names("block.conv", "block.act", "flat", "head")]
    pairs, _ = pair_layers(FIRST, second, "name", FORMATS)
    assert [ours for ours, _ in pairs] == ["block.conv", "block.act", "block", "flat", "head"]


def test_other_names_are_paired_by_shape_and_kind():
    second = keras_names("conv2d", "re_lu", "flatten", "dense")
    pairs, by = pair_layers(FIRST, second, formats=FORMATS)
    assert by == "shape"
    assert pairs == [
        ("block.conv", "conv2d"),
        ("block.act", "re_lu"),
        ("flat", "flatten"),
        ("head", "dense"),
    ]
    # A layer that the other model does not have has no partner, and the others keep theirs.
    assert pair_layers(FIRST, second[1:], formats=FORMATS)[0] == pairs[1:]
    assert pair_layers(FIRST, second, "order", FORMATS) == (pairs, "order")


def test_shapes_that_fit_in_no_layout_make_no_pair():
    second = [LayerInfo("head", "Dense", (4,)), LayerInfo("block.conv", "Conv2D", (4, 8, 8))]
    # (8, 8, 4) is what a model with the channels last would have; these have the shape of the first.
    assert pair_layers(FIRST, second, "name", FORMATS)[0] == [("block.conv", "block.conv")]
    with pytest.raises(
        InputError, match="no layers of the two models make a pair by name or shape; give pairs="
    ):
        pair_layers(FIRST, second[:1], formats=FORMATS)


def test_pairs_that_are_given_are_checked_and_put_in_order():
    second = keras_names("a", "b", "c", "d")
    pairs, by = pair_layers(FIRST, second, {"head": "d", "block.conv": "a"}, FORMATS)
    assert (pairs, by) == ([("block.conv", "a"), ("head", "d")], "you")
    with pytest.raises(LayerError, match=r"pairs names the layer 'e'"):
        pair_layers(FIRST, second, {"head": "e"}, FORMATS)
    with pytest.raises(LayerError, match=r"pairs names the layer 'block.convs'.*block.conv"):
        pair_layers(FIRST, second, {"block.convs": "a"}, FORMATS)


def test_an_order_needs_equal_numbers():
    with pytest.raises(InputError, match="which have 4 and 3"):
        pair_layers(FIRST, keras_names("a", "b", "c", "d")[:3], "order", FORMATS)


def test_shapes_turn():
    assert turned((8, 9, 4), "channels_last") == turned((4, 8, 9), "channels_first") == (4, 8, 9)
    assert turned((5,), "channels_last") == (5,)


@pytest.mark.parametrize(
    ("values", "place", "alone"),
    [
        ([1e-7, 1e-6, 2e-6, 1e-6], None, []),  # rounding
        ([1e-7, 1e-6, 5e-3, 9e-3, 7e-3], 2, []),  # a step that stays
        ([0.3, 0.2, 0.1], 0, []),  # from the first layer on
        ([1e-7, 1e-7, 0.2], 2, []),  # at the outputs alone
        ([1e-7, 0.8, 1e-7, 4e-7, 0.02, 0.03], 4, [1]),  # one that heals, and one that does not
        ([1e-7, 0.8, 1e-7], None, [1]),
        ([2e-5, 9e-5, 3e-4, 9e-4, 2e-3], None, []),  # it grows, by less than ten times the worst so far
        ([2e-5, 9e-5, 3e-4, 9e-4, 0.5, 0.4], 4, []),  # it grows, and then comes a step
        ([1e-7, np.nan, np.inf], 1, []),  # what is no number is no rounding
        ([0.0, 0.0, 0.0], None, []),
    ],
)
def test_where_they_part(values, place, alone):
    assert where_they_part(values, tolerance=1e-4) == (place, alone)
