"""Contexts that undo what they have done, also when an interrupt strikes while they do."""

import pytest

from iba_core.framework.while_used import WhileUsed
from iba_core.undo import undoing, undone_on_failure


class Interrupted(BaseException):
    pass


@pytest.mark.parametrize("error", [None, ValueError, Interrupted])
def test_it_is_undone_once(error):
    calls = []

    def use():
        with undoing(lambda: calls.append("undone")):
            if error is not None:
                raise error

    if error is None:
        use()
    else:
        with pytest.raises(error):
            use()
    assert calls == ["undone"]


def test_an_interrupt_in_the_midst_of_undoing():
    state, interrupts = {"first": 1, "second": 1}, [Interrupted()]

    def undo():
        state["first"] = 0
        if interrupts:
            raise interrupts.pop()
        state["second"] = 0

    with pytest.raises(Interrupted), undoing(undo):
        pass
    assert state == {"first": 0, "second": 0}


def test_a_change_lasts_while_it_is_used():
    changes = []

    class Change(WhileUsed):
        def _begin(self):
            if not changes:
                changes.append("there")

        def _end(self):
            changes.clear()

    change = Change()
    first, second = change.applied(), change.applied()
    with first:
        second.__enter__()
    # They overlap without being nested.
    assert changes == ["there"]
    second.__exit__(None, None, None)
    assert not changes


def test_what_fails_is_undone():
    done = []
    with undone_on_failure(lambda: done.append("undone")):
        done.append("whole")
    assert done == ["whole"]
    with pytest.raises(Interrupted), undone_on_failure(lambda: done.append("undone")):
        raise Interrupted
    assert done == ["whole", "undone"]
