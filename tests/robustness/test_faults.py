"""Errors and interrupts at any moment leave nothing, neither in the model nor in the process."""

from __future__ import annotations

import gc
import os
import random
import threading

import pytest

from iba_core import Explainer
from tests.backends import Torch
from tests.robustness.campaign import INTERRUPTS, Report, run_campaign
from tests.robustness.faults import FUSE
from tests.robustness.networks import LAYER, images, network
from tests.robustness.totals import write_totals

pytestmark = pytest.mark.filterwarnings("ignore:the model reads some of its input by a way around")

KINDS = ("line", "call", "backward", *INTERRUPTS)

QUICK = {
    "torch": (
        2,
        (
            *("explain", "explain first", "explain_iter", "fit", "save", "activation maps"),
            *("training of a concept", "readout's analysis"),
            *("IBA.estimate", "IBA.analyze", "IBA.restrict_flow"),
        ),
    ),
    # Each scene is traced and compiled anew, which takes seconds.
    "tensorflow": (2, ("explain", "activation maps", "IBALayer.fit", "IBALayer.analyze")),
}
"""How many faults of each kind go into a scene, and into which scenes."""

WEIGHTS = {
    "line": 0.03,
    "call": 0.015,
    "backward": 0.01,
    "interrupt": 0.03,
    "framework": 0.01,
    "signal": 0.01,
}
"""Part of the faults of a long round that goes, by kind, into a scene with a share of 1."""

ROUND = 2500
"""Faults and interrupts in a long round of all scenes. Each prepares the scenes anew, which takes long."""

SHARE = float(os.environ.get("IBA_SOAK_SHARE", "1"))
"""What part of the long runs is to be done."""


def kinds(count: int) -> dict[str, float]:
    """As many faults of each kind; signals reach the main thread alone."""
    is_main = threading.current_thread() is threading.main_thread()
    return {kind: count for kind in KINDS if kind != "signal" or is_main}


def test_nothing_is_left(backend, tmp_path):
    count, only = QUICK[backend.name]
    # Without signals: their moments are others each time, and they strike the frameworks' own code as well.
    wanted = {kind: number for kind, number in kinds(count).items() if kind != "signal"}
    *_, report = run_campaign(backend, tmp_path, wanted, only=only)
    assert not report.findings, "\n".join(report.findings)
    assert report.total(interrupts=True) > 2 * count
    assert report.total(interrupts=False) > 2 * count


def totals(report: Report) -> dict[str, int]:
    """Numbers of faults and interrupts, and of those that left something."""
    counts = {"faults": report.total(False), "interrupts": report.total(True), "left": len(report.findings)}
    for (_, kind), count in report.counts.items():
        counts[f"at_{kind}"] = counts.get(f"at_{kind}", 0) + count
    return counts


@pytest.mark.soak
def test_ten_thousand_faults_and_interrupts_leave_nothing(backend, tmp_path):
    wanted, report, rounds = 10_000 * SHARE, Report(), 0
    # What the imports have made is looked at no more.
    gc.collect()
    gc.freeze()

    def missing(interrupts: bool) -> float:
        return max(0.0, wanted - report.total(interrupts))

    while missing(True) or missing(False):
        aims = {interrupts: min(ROUND, missing(interrupts)) for interrupts in (True, False)}
        counts = {kind: WEIGHTS[kind] * aims[kind in INTERRUPTS] for kind in kinds(1)}
        folder = tmp_path / str(rounds)
        folder.mkdir()
        for _ in run_campaign(backend, folder, counts, seed=1000 * rounds, report=report):
            path = write_totals(f"faults_{backend.name}", totals(report))
            # A run that is ended early has said what it has found.
            path.with_suffix(".txt").write_text("\n".join(report.findings), encoding="utf-8")
        rounds += 1
    assert not report.findings, "\n".join(report.findings)


# -- the user's own errors -----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (RuntimeError, "view size is not compatible with input tensor's size and stride"),
        (RuntimeError, "one of the variables has been modified by an in-place operation"),
        (ValueError, "no preview server"),
        (TypeError, "wrong stride"),
        (AttributeError, "not contiguous"),
        (OSError, "in-place"),
    ],
)
def test_an_error_of_the_users_code_passes_unchanged(error, text):
    """Its text may hold the words of PyTorch's own errors."""
    torch = pytest.importorskip("torch")
    backend = Torch()
    model, x = network(backend), images(backend, 2)
    makes = [
        lambda: Explainer(model, LAYER, steps=2, samples=2).fit([x], progbar=False),
        lambda: backend.module("concepts").GradCAM(model, [LAYER]),
    ]
    for make, act in zip(
        makes, [lambda e: e.explain(x, 1, seed=0).capacity, lambda c: c(x, [0, 1])], strict=True
    ):
        expected = act(make())
        for kind, occurrences in (("call", (0, 1, 2, 4)), ("backward", (0,))):
            for occurrence in occurrences:
                subject, raised = make(), error(text)
                with FUSE.armed(kind, occurrence, raised), pytest.raises(error) as found:
                    act(subject)
                assert found.value is raised
                assert FUSE.counts[kind] == occurrence + 1, "the pass is run again"
                assert torch.equal(torch.from_numpy(act(subject)), torch.from_numpy(expected))


def test_an_error_of_a_users_layer_keeps_its_text(backend):
    model, x = network(backend), images(backend, 2)
    explainer = Explainer(model, LAYER, steps=2, samples=2).fit([x], progbar=False)
    expected = explainer.explain(x, 1, seed=0).capacity
    error = ValueError("no preview server: wrong view of the stride")
    with (
        FUSE.armed("call", 1, error),
        pytest.raises(Exception, match="no preview server: wrong view") as found,
    ):
        explainer.explain(x, 1, seed=0)
    assert backend.name != "torch" or found.value is error
    assert (explainer.explain(x, 1, seed=0).capacity == expected).all()


def test_the_search_can_fail(backend, tmp_path, monkeypatch):
    """A fault that leaves something is found."""
    original = Explainer.explain

    def careless(self, *args, **kwargs):
        state = random.getstate()
        random.seed(1)
        result = original(self, *args, **kwargs)
        random.setstate(state)
        return result

    monkeypatch.setattr(Explainer, "explain", careless)
    (report,) = run_campaign(backend, tmp_path, {"call": 1}, only=("explain",))
    assert "changed ['random: " in report.findings[0]
