"""Processes that explain a data set, killed and not. For both frameworks: `make soak`."""

import os

import pytest

from iba_core.datasets import explain_dataset
from tests.backends import Torch, fitted
from tests.behaviour.test_datasets import (
    FAST,
    PREPROCESSING,
    assert_it_goes_on,
    assert_processes_give_what_one_gives,
    explained,
    kill_at_work,
    pictures,
)

__all__ = ["explained"]


@pytest.fixture(scope="module")
def explainer():
    return fitted(Torch())


def test_two_processes(explainer, tmp_path):
    assert_processes_give_what_one_gives(Torch(), explainer, tmp_path)


def test_a_killed_run(explainer, explained, tmp_path):
    names = pictures(tmp_path / "in", 40)
    pid = os.fork()
    if not pid:
        try:
            options = {"preprocessing": PREPROCESSING, **FAST}
            explain_dataset(explainer, tmp_path / "in", tmp_path / "run", **options)
        finally:
            os._exit(1)
    kill_at_work(pid, tmp_path / "run", lambda: os.waitpid(pid, os.WNOHANG)[0])
    os.waitpid(pid, 0)
    assert_it_goes_on(explainer, explained, names, tmp_path)
