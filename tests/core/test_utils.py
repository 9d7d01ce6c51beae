import sys

import pytest
import tqdm

from iba_core.utils import get_tqdm, ifnone


@pytest.mark.parametrize("value", [0, 0.0, False, "", ()])
def test_ifnone_keeps_what_is_false_but_there(value):
    assert ifnone(value, 7) is value


def test_ifnone_replaces_none():
    assert ifnone(None, 7) == 7


def test_get_tqdm_counts():
    bar = get_tqdm()(range(3), disable=True)
    assert list(bar) == [0, 1, 2]


def test_get_tqdm_without_the_automatic_choice(monkeypatch):
    monkeypatch.setitem(sys.modules, "tqdm.auto", None)
    assert get_tqdm() is tqdm.tqdm
