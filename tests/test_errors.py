"""Errors: every text of the package says what was given, what is allowed and what to do."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import stagewright
from stagewright import errors

PACKAGE = Path(stagewright.__file__).parent
PARTS = ("given", "allowed", "remedy")
OWN_TEXT = {"NotFinite"}
"""Classes that make their text themselves."""
NAMES = {
    name
    for name, one in vars(errors).items()
    if isinstance(one, type) and issubclass(one, errors.StagewrightError) and name not in OWN_TEXT
}


@dataclass(frozen=True)
class Made:
    """A place where an error is made, and the source of its parts."""

    place: str
    parts: dict[str, str]


def catalogue() -> Iterator[Made]:
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in NAMES):
                continue
            parts = dict(zip(PARTS, map(ast.unparse, node.args), strict=False))
            parts |= {one.arg or "": ast.unparse(one.value) for one in node.keywords}
            if any(isinstance(one, ast.Starred) for one in node.args):  # (given, *advice): two texts made together
                assert len(node.args) == 2, ast.unparse(node)
                parts["remedy"] = parts["allowed"]
            yield Made(f"{file.relative_to(PACKAGE)}:{node.lineno} {node.func.id}", parts)


def test_every_error_says_given_allowed_and_to_do() -> None:
    texts = list(catalogue())
    assert len(texts) > 250
    for made in texts:
        lacking = [part for part in PARTS if made.parts.get(part, "''") in ("''", '""')]
        assert not lacking, f"{made.place} lacks {', '.join(lacking)}: {made.parts.get('given')}"


def test_texts_are_sentences_of_one_line_without_an_end() -> None:
    """The terminal sets each part on a line of its own, after its name."""
    for made in catalogue():
        for part in PARTS:
            try:
                text = ast.literal_eval(made.parts[part])
            except (ValueError, SyntaxError):
                continue  # made of values
            assert "\n" not in text and not text.endswith((".", " ")), f"{made.place}, {part}: {text!r}"
            assert text[0] == text.strip()[0], f"{made.place}, {part}: {text!r}"


def test_remedies_are_things_to_do() -> None:
    for made in catalogue():
        remedy = made.parts["remedy"].strip("'\"")
        assert remedy not in ("correct it", "try again", "change it", "change them", "fix it"), made.place
