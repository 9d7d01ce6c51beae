"""Layouts, inputs and the discovery of backends."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest

from iba_core import InputError, LayerError
from iba_core.errors import closest
from iba_core.framework.adapter import backends, find_adapter, load_backend
from iba_core.framework.inputs import arrays_of, batch_size, check_shape, common_shape, inputs_of_batch, take
from iba_core.framework.layout import AxisPart, FeatureAxes, Layout, MapOrder, Tokens
from iba_core.framework.namespace import array_namespace


@pytest.mark.parametrize("shape", [(3,), (3, 4), (3, 4, 5), (3, 4, 5, 6)])
def test_permutations_are_inverse(shape):
    array = np.empty(shape)
    for data_format in ("channels_first", "channels_last"):
        layout = Layout.of(shape, data_format)
        there = array.transpose(layout.to_channels_first())
        assert there.shape[0] == shape[layout.channel_axis]
        assert there.shape[1:] == layout.spatial_shape(shape)
        assert there.transpose(layout.from_channels_first()).shape == shape


def test_impossible_layouts_are_errors():
    with pytest.raises(InputError, match="1 to 4 axes"):
        Layout.of((1, 2, 3, 4, 5), "channels_first")
    with pytest.raises(InputError, match="channel_axis=2"):
        Layout(2, 2)


def test_inputs_may_be_nested():
    a, b = np.arange(6).reshape(3, 2), np.arange(3)
    inputs = {"a": a, "rest": (b, None, 7), "table": np.eye(4)}
    assert [x.shape for x in arrays_of(inputs)] == [(3, 2), (3,), (4, 4)]
    assert batch_size(inputs) == 3
    part = take(inputs, 1, 3)
    np.testing.assert_array_equal(part["a"], a[1:])
    np.testing.assert_array_equal(part["rest"][0], b[1:])
    assert part["rest"][1:] == (None, 7)
    assert part["table"].shape == (4, 4)
    assert inputs_of_batch((a, b)) is a
    assert inputs_of_batch([a, b]) is a
    assert inputs_of_batch(inputs) is inputs


@pytest.mark.parametrize("nothing", [None, (), {"x": 3}, np.float32(3)])
def test_inputs_without_a_batch_are_errors(nothing):
    with pytest.raises(InputError, match="batch axis"):
        batch_size(nothing)
    with pytest.raises(InputError, match="empty tuple"):
        inputs_of_batch(())


def test_shapes_of_inputs_are_compared():
    check_shape((3, 32, 32), (3, 32, 32), channels_first=True)
    check_shape((3, 32, 40), (3, 32, None), channels_first=True)
    for given, known in (((3, 32, 40), (3, 32, 32)), ((3, 30, 40), (3, 32, None)), ((7,), (8,))):
        message = (
            rf"{', '.join(map(str, given))}\), but .* was estimated on inputs of shape \(batch, {known[0]}"
        )
        with pytest.raises(InputError, match=message):
            check_shape(given, known, channels_first=True)
    with pytest.raises(InputError, match=r"as in \(batch, 3, any, any\); the channels must come first"):
        check_shape((40, 32, 3), (3, None, None), channels_first=True)
    with pytest.raises(InputError, match=r"\(batch, 32, 32, 3\).*the channels must come first"):
        check_shape((32, 32, 3), (3, 32, 32), channels_first=True)
    with pytest.raises(InputError, match="the channels must come last"):
        check_shape((3, 32, 32), (32, 32, 3), channels_first=False)
    with pytest.raises(InputError, match="takes 3 channels"):
        check_shape((1, 32, 32), (3, 32, 32), channels_first=True)
    with pytest.raises(InputError, match="the number of axes differs"):
        check_shape((32, 32), (3, 32, 32), channels_first=True)


def test_axes_of_several_sizes_may_have_any():
    shape = None
    for seen, expected in (
        ((3, 8, 8), (3, 8, 8)),
        ((3, 8, 8), (3, 8, 8)),
        ((3, 8, 9), (3, 8, None)),
        ((3, 8, 8), (3, 8, None)),
        ((3, 7, 8), (3, None, None)),
        ((5, 5), (5, 5)),
    ):
        shape = common_shape(shape, seen)
        assert shape == expected


def test_closest_names_are_offered():
    names = ["features.15", "features.16", "features.17", "classifier"]
    assert closest("feature.17", names) == "the closest names are 'features.17', 'features.16', 'features.15'"
    assert closest("clasifier", names) == "the closest name is 'classifier'"
    assert closest("zzz", names) == "there are 'features.15', 'features.16', 'features.17' and 1 more"
    assert closest("zzz", []) == "there are none"


def test_backends_are_found_by_entry_point():
    pytest.importorskip("torch")
    pytest.importorskip("tensorflow")
    assert {"torch", "tensorflow"} <= set(backends())
    with pytest.raises(InputError, match="backend='jaxx' is not installed; there are"):
        load_backend("jaxx")
    with pytest.raises(InputError, match=r"model is of type builtins\.object, which no backend serves"):
        find_adapter(object())


def test_arrays_without_a_namespace_are_refused():
    with pytest.raises(TypeError):
        array_namespace("text")
    assert array_namespace(1.0).exp(0.0) == 1.0


def test_importing_the_core_imports_no_framework():
    program = (
        "import sys, iba_core, iba_core.framework.adapter; iba_core.framework.adapter.backends(); "
        "sys.exit(', '.join({'torch', 'tensorflow', 'keras', 'matplotlib'} & set(sys.modules)) or None)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)


def test_tokens_must_fill_their_grid():
    assert Layout.of((197, 8), "channels_last", Tokens(1, (14, 14))).places((197, 8)) == (14, 14)
    assert Layout.of((7, 8), "channels_last", Tokens(2)).places((7, 8)) == (5,)
    with pytest.raises(InputError, match="196 tokens, 1 of them in front, do not fit"):
        Layout.of((196, 8), "channels_last", Tokens(1, (14, 14))).places((196, 8))
    with pytest.raises(InputError, match="maps with 3 axes"):
        Layout.of((8, 8, 3), "channels_last", Tokens())
    with pytest.raises(InputError, match="prefix=-1"):
        Tokens(-1)
    with pytest.raises(InputError, match="grid="):
        Tokens(grid=(0, 3))


def test_a_layout_can_be_permuted():
    first = Layout.of((8, 4, 5), "channels_first")
    assert first.permuted((1, 2, 0)) == Layout.of((4, 5, 8), "channels_last")


class TestMapOrder:
    CHW = Layout(3, 0)

    @staticmethod
    def parts(*sources, size=4):
        """An axis for each argument, which is a set of axes of the input."""
        return [(AxisPart(size, frozenset(own)),) for own in sources]

    def order(self, *sources, wanted=(1, 2), layout=CHW, before=()):
        axes = FeatureAxes(self.parts(*sources), layout.ndim, [self.parts(*each) for each in before])
        found = MapOrder.of(layout, axes, wanted, "conv")
        return found.axes, found.against

    rows, columns, channels = {(1, False)}, {(2, False)}, {(0, False)}

    def test_axes_are_put_in_the_order_of_the_input(self):
        assert self.order(self.channels, self.rows, self.columns) == ((0, 1), ())
        assert self.order(self.channels, self.columns, self.rows) == ((1, 0), ())
        assert self.order((), {(2, True)}, self.rows) == ((1, 0), (1,))
        volume = [set(), {(3, False)}, {(1, False)}, {(2, True)}]
        assert self.order(*volume, wanted=(1, 2, 3), layout=Layout(4, 0)) == ((1, 2, 0), (1,))

    def test_the_last_axis_follows_from_the_others(self):
        assert self.order((), self.columns, ()) == ((1, 0), ())
        assert self.order((), (), self.columns) == ((0, 1), ())
        assert self.order((), self.rows | self.columns, self.rows) == ((1, 0), ())

    def test_what_is_not_known_stays(self):
        both = self.rows | self.columns
        for own in ((), self.channels, both):
            assert self.order((), own, own) == ((0, 1), ())
        # Half of a merged axis runs against the input: neither direction is that of all.
        assert self.order((), {(1, False), (1, True)}, self.columns) == ((0, 1), ())
        assert self.order((), self.rows, self.rows) == ((0, 1), ())

    def test_a_part_of_an_exchange_is_refused(self):
        with pytest.raises(LayerError, match="before layer 'conv', and does not show where all"):
            self.order((), {(3, False)}, (), (), wanted=(1, 2, 3), layout=Layout(4, 0))
        assert self.order((), {(1, True)}, (), (), wanted=(1, 2, 3), layout=Layout(4, 0)) == ((0, 1, 2), (0,))

    def test_an_exchange_whose_trace_is_lost_is_refused(self):
        moved = [self.channels, self.columns, self.rows]
        reversed_ = [{(1, True)}, self.columns]
        for before in ([moved], [reversed_], [[self.rows, self.columns], moved]):
            with pytest.raises(LayerError, match="does not show where all of them are there"):
                self.order((), (), (), before=before)
            # What is known at the layer itself counts.
            assert self.order((), self.rows, self.columns, before=before) == ((0, 1), ())
        for before in (
            [[self.channels, self.rows, self.columns]],
            [[self.columns]],
            [[(), self.rows | {(2, True)}]],
        ):
            assert self.order((), (), (), before=before) == ((0, 1), ())

    def test_a_map_with_other_places_than_the_input_is_sorted_where_all_are_known(self):
        assert self.order((), self.columns, self.channels, wanted=(1,)) == ((1, 0), ())
        assert self.order((), self.columns, (), wanted=(1,)) == ((0, 1), ())

    def test_tokens_are_turned_in_their_grid(self):
        merged = [(AxisPart(3, frozenset(self.columns)), AxisPart(2, frozenset(self.rows))), (AxisPart(8),)]
        for tokens, axes in (
            (Tokens(grid=(3, 2)), (1, 0)),
            (Tokens(grid=(2, 3)), (0, 1)),  # another grid than that of the axes
            (Tokens(prefix=1, grid=(3, 2)), (0, 1)),
            (None, (0,)),
        ):
            assert MapOrder.of(Layout(2, 1, tokens), FeatureAxes(merged, 3), (1, 2), "block").axes == axes

    def test_turning_moves_the_last_axes(self):
        maps = np.arange(12.0).reshape(1, 2, 2, 3)
        np.testing.assert_array_equal(MapOrder((1, 0), (0,)).turn(maps), maps.swapaxes(2, 3)[:, :, ::-1])
        assert MapOrder((0, 1)).turn(maps) is maps
