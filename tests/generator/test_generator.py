"""Dozens of random networks: the library explains them right, or refuses. `make soak` judges thousands.

A seed that fails prints the command that shows its network, the layer and the difference.
"""

from __future__ import annotations

from contextlib import contextmanager

import numpy as np
import pytest

from iba_core.bottleneck import formulas, optimization
from iba_core.framework.layout import Layout, MapOrder
from tests.generator.judge import Judge, Verdict, differing, reason
from tests.generator.keras_bench import KerasBench
from tests.generator.soak import Record, judge, table, totals
from tests.generator.torch_bench import TorchBench
from tests.reference import resized

SEEDS = {
    # A map that is constant but for rounding; a pass that overwrites what is known of the input's axes; a
    # readout whose user says where the channels are; a normalisation of one row that no rewrite takes; a
    # write in place where steps and images are as many.
    "torch": (*range(40), 248, 1178, 3120, 3384, 3527),
    # An embedding after which time is reversed; an exchange whose trace is lost in a layer made of layers.
    "tensorflow": (*range(8), 21, 291),
}


@pytest.mark.parametrize(
    ("backend", "seed"), [(backend, seed) for backend, seeds in SEEDS.items() for seed in seeds]
)
def test_right_or_refused(backend, seed):
    record = judge(backend, seed)
    failures = [f"{each.face}: {each.text}" for each in record.verdicts if each.outcome == "failed"]
    assert not failures, "\n".join([record.command, *failures])
    assert record.verdicts


def test_a_seed_gives_the_same_network_again():
    for bench in (TorchBench, KerasBench):
        one, other = bench.draw(3), bench.draw(3)
        assert str(one.case) == str(other.case)
        np.testing.assert_array_equal(one.case.inputs[0], other.case.inputs[0])
        np.testing.assert_array_equal(one.outputs(one.case.inputs), other.outputs(other.case.inputs))


# -- the judge judges --------------------------------------------------------------------------------


def failing_faces(bench) -> set[str]:
    return {verdict.face for verdict in Judge(bench).run() if verdict.outcome == "failed"}


EXPLAINERS = {
    "Explainer, fitted",
    "Explainer, fitted, without rewrites",
    "Explainer, loaded",
    "Explainer, loaded, one image",
}


def test_a_formula_that_is_off_by_a_little_is_found(monkeypatch):
    def wrong(*args):
        return 1.01 * formulas.capacity_slope(*args)

    monkeypatch.setattr(optimization, "capacity_slope", wrong)
    assert failing_faces(TorchBench.draw(3)) >= {*EXPLAINERS, "IBA, estimated", "IBA, loaded"}


def test_channels_at_the_wrong_end_are_found(monkeypatch):
    right = Layout.of

    def wrong(shape, data_format, tokens=None):
        other = "channels_last" if data_format == "channels_first" else "channels_first"
        return right(shape, other if len(shape) == 3 else data_format, tokens)

    bench = next(bench for bench in map(TorchBench.draw, range(100)) if len(bench.case.place.features) == 3)
    monkeypatch.setattr(Layout, "of", wrong)
    assert failing_faces(bench) >= EXPLAINERS


def test_a_map_that_is_not_turned_back_is_found(monkeypatch):
    def is_exchanged(bench):
        order, sizes = bench.case.place.order, bench.case.signature.shapes[0]
        return order is not None and [place for place, _ in order] == [1, 0] and len(set(sizes)) == 3

    bench = next(bench for bench in map(TorchBench.draw, range(200)) if is_exchanged(bench))
    monkeypatch.setattr(MapOrder, "turn", lambda order, maps: maps)
    assert failing_faces(bench) >= {*EXPLAINERS, "IBA, loaded"}


def test_what_is_left_in_a_model_is_found(monkeypatch):
    bench = TorchBench.draw(2)
    predict = type(bench.adapter(True)).predict

    def wrong(adapter, inputs):
        bench.model.train(not bench.model.training)
        return predict(adapter, inputs)

    monkeypatch.setattr(type(bench.adapter(True)), "predict", wrong)
    verdict = next(each for each in Judge(bench).run() if each.face == "Explainer.predict")
    assert (verdict.outcome, verdict.text.partition(";")[0]) == ("failed", "changed: flags")


def test_exceptions_of_the_inside_are_found(monkeypatch):
    bench = TorchBench.draw(2)

    @contextmanager
    def wrong(split, inputs):
        raise KeyError("features")
        yield

    monkeypatch.setattr(type(bench.adapter(True).split(bench.case.layer)), "open_head", wrong)
    found = [each.text for each in Judge(bench).run() if each.outcome == "failed"]
    assert found
    assert all("raw KeyError" in text for text in found)


def test_totals_count_by_outcome_and_reason():
    right = Verdict("Explainer", "right", told="shared")
    refused = Verdict("Explainer", "refused", "LayerError: layer 'a.b' has 3 channels, not (2, 4)")
    records = [Record("torch", 1, "", True, (right, refused)), Record("torch", 2, "", False, (refused,))]
    counts = totals(records)
    assert (counts["networks"], counts["explanations"], counts["told"]) == (2, 3, 1)
    assert (counts["refused"], counts["refused_ordinary"], counts["failed"]) == (2, 1, 0)
    assert reason(refused.text) == "LayerError: layer '...' has N channels, not (...)"
    assert "1 o LayerError: layer '...' has N channels, not (...)" in table(records)


def test_the_reference_resizes_between_centres():
    maps = np.array([[0.0, 1.0]])
    np.testing.assert_allclose(resized(maps, (4,)), [[0.0, 0.25, 0.75, 1.0]])
    assert differing({"a": 1, "b": 2}, {"a": 1, "b": 3}) == ["b"]
