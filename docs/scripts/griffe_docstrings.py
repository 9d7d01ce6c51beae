r"""Prepare docstrings for the API reference, before griffe parses them.

The section ``Example:`` is read like ``Examples:``, the only form that griffe knows. Formulas, written as
``:math:`\lambda``` or in a block ``.. math::``, become MathML, which browsers show without a script.
"""

from __future__ import annotations

import re
from typing import Any

import griffe
from latex2mathml.converter import convert

_EXAMPLE = re.compile(r"^(\s*)Example:$", re.MULTILINE)
_INLINE = re.compile(r":math:`([^`]*)`")
_BLOCK = re.compile(r"^( *)\.\. math:: *(.*(?:\n\1 +\S.*)*)", re.MULTILINE)


def _mathml(latex: str, display: str) -> str:
    # The converter does not know LaTeX's sizes of brackets, which MathML finds by itself.
    plain = re.sub(r"\\[bB]ig+[lr]?", "", latex)
    return convert(" ".join(plain.split()), display=display)


def prepared(docstring: str) -> str:
    """A docstring in the form that the reference shows."""
    docstring = _EXAMPLE.sub(r"\1Examples:", docstring)
    docstring = _BLOCK.sub(lambda match: match[1] + _mathml(match[2].rstrip(" ,."), "block"), docstring)
    return _INLINE.sub(lambda match: _mathml(match[1], "inline"), docstring)


class Docstrings(griffe.Extension):
    """Applies `prepared` to the docstring of every object."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Run for each object that griffe has read."""
        if obj.docstring is not None:
            obj.docstring.value = prepared(obj.docstring.value)
