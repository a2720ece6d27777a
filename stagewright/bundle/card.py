"""The README.md of a Bundle, its model card: the model, its accuracy, its use and its preprocessing."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import Any

from stagewright.measures.operating import OperatingPoint
from stagewright.system.named_functions import PREFIX, is_named
from stagewright.text import printable

_MAX_CLASSES = 40
_FACTS = "## How it was trained and what it scored\n"
_OPERATING, _USE = "## When it answers\n", "## How to use it\n"


def card(content: Mapping[str, Any], code: Sequence[str] = ()) -> str:
    """Returns the model card as Markdown, from the content of the Bundle's ``model.json`` and the lines of
    :func:`stagewright.bundle.plain_torch.plain_torch`."""
    model, view, classes = content["model"], content["preprocessing"], content["classes"]
    more = len(classes) - _MAX_CLASSES
    names = content.get("names") or {}
    listed = [f"{names[name]} ({name})" if name in names else name for name in classes[:_MAX_CLASSES]]
    shown = ", ".join(map(_text, listed)) + (f" and {more} more" if more > 0 else "")
    seen = (
        f"the central square of {100 * view['crop']:g} % of the shorter side"
        if view["fit"] == "crop"
        else f"the central {100 * view['crop']:g} % of either side, squashed to a square"
    )
    side = view["image_size"]
    stopped = content["training"].get("stopped_at")
    part = f"\n\nThe training was stopped at {_text(stopped)}." if stopped else ""
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return f"""# {_text(model["name"])}: {len(classes)} classes

An image classifier with {model["parameters"]:,} parameters, trained by stagewright.{_code(model["name"])}{part}

Classes: {shown}

{_FACTS}
{_table(content["training"])}
## How to use it

    stagewright predict THIS_FOLDER photos/ --csv predictions.csv

or in Python:

    from stagewright import load_bundle
    for answer in load_bundle("THIS_FOLDER").predict("photos/"):
        print(answer.path, answer.classes)

Loading checks every file's SHA-256 and runs the model on the {len(content["golden"])} pictures in `golden/`; it raises an
error if the outputs differ from the recorded ones.

{_plain(code)}## Preprocessing

Upright (EXIF orientation applied), RGB, first frame; {seen}, resized to
{side} x {side} pixels ({view["interpolation"]}, antialiased); values in [0, 1], minus {_row(view["mean"])}, divided by
{_row(view["std"])}. For other code: the network is `{_quoted(model["name"])}` with options
`{_quoted(model["options"])}`, its tensors are in `weights.safetensors`, and `model.json` has all of this for programs.

Made with {versions}.
"""


def with_facts(text: str, training: Mapping[str, Any]) -> str:
    """Returns the model card ``text`` with the facts ``training`` of model.json in place of those that it had.

    A card that someone has written anew, without the section on them, stays as it is.
    """
    before, found, rest = text.partition(_FACTS)
    if not found:
        return text
    rest = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    return f"{before}{_FACTS}\n{_table(training)}\n{rest}"


def _table(training: Mapping[str, Any]) -> str:
    facts = "\n".join(f"| {name} | {value} |" for name, value in _flat(training))
    return f"| | |\n|---|---|\n{facts or '| nothing was recorded | |'}\n"


def with_operating_point(text: str, point: OperatingPoint) -> str:
    """Returns the model card ``text`` with what ``point`` says of the answers, in place of what it said before.

    A card that someone has written anew, without the section on its use, stays as it is.
    """
    before, found, rest = text.partition(_OPERATING)
    if found:
        rest = rest[rest.index("\n## ") + 1 :] if "\n## " in rest else ""
    else:
        before, found, rest = text.partition(_USE)
        rest = found + rest
    if not found:
        return text
    lines = "".join(f"- {_text(line)}\n" for line in point.lines())
    return f"{before}{_OPERATING}\n{lines}\n{rest}" if lines else before + rest


def _plain(code: Sequence[str]) -> str:
    """The section on the use without stagewright's ``predict``; empty without ``code``."""
    if not code:
        return ""
    lines = "\n".join(f"    {line}".rstrip() for line in "\n".join(code).splitlines())
    return f"""## Plain PyTorch

In this folder; the probabilities are in the order of `classes` in `model.json`:

{lines}

The network is that of `load_bundle("THIS_FOLDER").model` and gives the same logits for
the same tensor.

"""


def _code(name: str) -> str:
    """A sentence on a network that is code of the person's who trained it."""
    if not is_named(name):
        return ""
    module, _, function = name.removeprefix(PREFIX).partition(":")
    return (
        f" The network is made by the function\n`{_quoted(function)}` of the Python module "
        f"`{_quoted(module)}`, which this folder does not hold: it must be importable where this is loaded."
    )


def _row(numbers: list[float]) -> str:
    return "(" + ", ".join(f"{number:g}" for number in numbers) + ")"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields nested facts as (name, value) rows, without those that are None. Top-1 and top-5 are in percent."""
    for name, value in facts.items():
        label = prefix + str(name).replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label} ")
        elif value is not None:
            percent = isinstance(value, float) and "top" in label
            text = f"{value:.2f} %" if percent else str(value)
            yield label, _text(text)


def _text(value: object) -> str:
    """Returns text from names and files as Markdown that shows it as it is: neither HTML nor Markdown of its own."""
    return _MARKUP.sub(r"\\\g<0>", escape(printable(value), quote=False))


_MARKUP = re.compile(r"[\\`*_\[\]|~#]")


def _quoted(value: object) -> str:
    """Returns text for a code span, which shows everything but a backtick as it is."""
    return printable(value).replace("`", "'")
