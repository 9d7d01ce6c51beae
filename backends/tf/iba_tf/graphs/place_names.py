"""How users name the places in a model: ``"block/conv"``, ``"shared:1"``, ``"lstm[1]"``."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Protocol, TypeVar

_INDEX = re.compile(r"(?P<name>.+)\[(?P<index>\d+)\]")
_CALL_NUMBER = re.compile(r":\d+$")


class Named(Protocol):
    """What has a name: a path, and the number of the call where a layer runs several times."""

    @property
    def name(self) -> str:
        """The full name."""


N = TypeVar("N", bound=Named)


def split_index(name: str) -> tuple[str, int]:
    """A name and the number of the result that is meant, 0 where none is given.

    Example:
        >>> split_index("lstm[1]")
        ('lstm', 1)
    """
    match = _INDEX.fullmatch(name)
    return (match["name"], int(match["index"])) if match else (name, 0)


def matching(name: str, places: Iterable[N]) -> list[N]:
    """The places that a name stands for: all calls of a layer, or one.

    The full name counts before the name without a call's number, and the path before the last part.
    """
    places = list(places)
    for shortened in (str, _without_number, _last_part, _last_part_without_number):
        if found := [place for place in places if shortened(place.name) == name]:
            return found
    return []


def _without_number(name: str) -> str:
    return _CALL_NUMBER.sub("", name)


def _last_part(name: str) -> str:
    return name.rpartition("/")[2]


def _last_part_without_number(name: str) -> str:
    return _last_part(_without_number(name))
