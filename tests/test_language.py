"""The repository's words: one for each thing, and plain ones.

A rule names a phrase that is not written, and a better one. The test searches every text file: code with its
docstrings, comments and errors, the documentation, and the names of the files (reported as line 0).
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]

FOLDERS = ("iba_core", "backends", "benchmarks", "tests", "docs", "overrides", ".ci")
SUFFIXES = {".py", ".md", ".toml", ".cff", ".yml", ".yaml", ".txt", ".css", ".html", ".pyi"}
NAMES = {"Makefile", "run"}

# Files that must name words that are not used any more.
EXEMPT = {Path(__file__).name, "CHANGELOG.md"}


@dataclass(frozen=True)
class Rule:
    """A phrase that is not written, and what is written instead."""

    phrase: str
    pattern: re.Pattern[str]
    better: str


GAP = r"""[\s#"'*_`]+"""
"""Between two words of a phrase: it may go on in the next line of a comment, a string or a list."""


def phrase(text: str, better: str, pattern: str | None = None) -> Rule:
    """A rule for a phrase of whole words, in any case, also where a line ends within it."""
    pattern = pattern or r"\b" + GAP.join(map(re.escape, text.split())) + r"\b"
    return Rule(text, re.compile(pattern, re.IGNORECASE), better)


def word(text: str, better: str, but: str = "") -> Rule:
    """A rule for a word and its plural: in prose, and as a part of snake_case and CamelCase names.

    `but` is what may not follow for the rule to apply.
    """
    lower = rf"(?<![A-Za-z]){text}s?(?![a-z])"
    forms = rf"{lower}|{text.capitalize()}s?(?![a-z])|(?<![A-Z]){text.upper()}S?(?![A-Z])"
    return Rule(text, re.compile(rf"(?:{forms}){but}"), better)


# A sentence ends at punctuation, at a paragraph or at a cell of a table. A dot within a name does not end it.
WITHIN_SENTENCE = r"(?:(?!\n[\s#]*\n)(?:[^.;:?!|`=\x22{}\[\]]|\.(?=\w)|`[^`]*`))*?"

FOUND = "(?P<found>"
"""Opens the group of what breaks a rule, where the pattern also matches what is fine."""

RULES = [
    phrase("of no account", "say what it does not change"),
    phrase("such as is", "the usual order of words"),
    phrase("shall", "'must', 'is to' or the plain verb"),
    phrase("whoever", "'users who', 'code that'"),
    phrase("as the output bears", "say what is compared"),
    phrase("does for a look", "'is enough for a first look'"),
    phrase("things do not go", "'are not supported'"),
    phrase("who wants it faster must do with", "'to go faster, use'"),
    phrase(
        "behind",
        "'after'",
        rf"\b(?:leav\w+|left)\b{WITHIN_SENTENCE}\bbehind\b|{FOUND}(?<![a-z])behind(?![a-z]))",
    ),
    # A list, "what it was and what would be right", is fine.
    phrase(
        "what ... what",
        "nouns",
        rf"\bwhat\b{WITHIN_SENTENCE}(?:\b(?:and|or)\s+(?:of\s+)?what\b|{FOUND}\bwhat\b))",
    ),
    phrase("by the book", "'assumption'"),
    phrase("hand over", "'donate'", r"\bhand(?:s|ed|ing)?[ _]over(?![a-z])"),
    phrase("until=", "'end_layer'", r"\bsplit\([^)\n]*\buntil\s*=(?!=)|\.until\b"),
    phrase("reads", "'readout_layers'", r"\.reads\b|\breads\s*=(?!=)"),
    word("cut", "'split'", but=r"(?!(?:[ _]\w+)?[ _](?:out|off|from|short)\b)"),
    word("lender", "'copy on write'"),
    word("detour", "'module-call patch'"),
    word("habit", "'assumption'"),
    word("circumstance", "'trace key'"),
    word("ground", "'fill'", but=r"(?![ _]?(?:truth|floor))"),
    Rule(
        "stand-in",
        re.compile(r"(?<![a-z])stand[-_]ins?(?![a-z])|StandIn|(?<![a-z])standins?(?![a-z])"),
        "'rewrite'",
    ),
]


def find(text: str) -> Iterator[tuple[int, Rule, str]]:
    """Everything in a text that breaks a rule: the line, the rule, and what was found."""
    for rule in RULES:
        for match in rule.pattern.finditer(text):
            if "found" in match.groupdict() and match["found"] is None:
                continue
            yield text.count("\n", 0, match.start()) + 1, rule, " ".join(match.group().split())


def files() -> list[Path]:
    """Every text file of the repository, as a path from its root."""
    found = [path for path in ROOT.iterdir() if path.is_file()]
    for folder in FOLDERS:
        found += (path for path in (ROOT / folder).rglob("*") if path.is_file())
    return sorted(
        path.relative_to(ROOT)
        for path in found
        if (path.suffix in SUFFIXES or path.name in NAMES) and path.name not in EXEMPT
    )


@pytest.mark.parametrize("path", files(), ids=str)
def test_words(path):
    found = [(0, *rest) for _, *rest in find(str(path))]
    found += sorted(find((ROOT / path).read_text(encoding="utf-8")), key=lambda entry: entry[0])
    broken = [f"{path}:{line}: {text!r}; write {rule.better}" for line, rule, text in found]
    assert not broken, "\n" + "\n".join(broken)


def test_every_folder_is_searched():
    searched = {path.parts[0] for path in files()}
    assert {"iba_core", "backends", "benchmarks", "tests", "docs", "README.md", "Makefile"} <= searched


# -- the check can fail ------------------------------------------------------------------------------

BROKEN = {
    "of no account": "# This is of no\n# account here.",
    "such as is": "a model such as is common",
    "shall": "The layer shall be named.",
    "whoever": "Whoever needs less",
    "as the output bears": 'raise Error("as the output "\n    "bears")',
    "does for a look": "that does for a look",
    "things do not go": "Three things do not go:",
    "who wants it faster must do with": "who wants it faster must do with fewer steps",
    "behind": "the layers behind the bottleneck",
    "what ... what": "It is what takes `a.b`,\n    in place of what left it.",
    "by the book": "done by the book",
    "hand over": "handing_over = True",
    "until=": 'split("a", until="b")',
    "reads": "self.reads = reads",
    "cut": "class KerasCut:",
    "lender": "self.z_lenders",
    "detour": "DETOURS = []",
    "habit": "self._habits",
    "circumstance": "under which circumstances",
    "ground": "problem.ground",
    "stand-in": "class StandIn:",
}

FINE = [
    "Marshall put the results after the layer and left nothing behind. It leaves no files behind.",
    "What is it? What does it do? Name the argument, what it was and\n    what would be right.",
    "A shortcut to cut out the middle of a picture, whose background and ground truth stay uncut.",
    "It reads files until the end. A reader reads: a file. (until, == reads)",
    "a handover, the inhabitants, a spread; an executor.cutoff, cutting; understanding",
    "Say what changed.\n\nSay what stays.",
]


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.phrase)
def test_a_rule_finds_what_it_names(rule):
    text = "First line.\n\n" + BROKEN[rule.phrase]
    assert (3, rule) in [(line, found) for line, found, _ in find(text)]


@pytest.mark.parametrize("text", FINE)
def test_no_false_alarms(text):
    assert [found for _, _, found in find(text)] == []
