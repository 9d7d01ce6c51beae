"""Read a docstring's ``Example:`` section like ``Examples:``, which is the only form that griffe knows."""

from __future__ import annotations

import re
from typing import Any

import griffe

_HEADING = re.compile(r"^(\s*)Example:$", re.MULTILINE)


class SingularExamples(griffe.Extension):
    """Makes the heading plural before the docstring is parsed."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Run for each object that griffe has read."""
        if obj.docstring is not None:
            obj.docstring.value = _HEADING.sub(r"\1Examples:", obj.docstring.value)
