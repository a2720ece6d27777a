"""The README.md of a Bundle: what the model is, what it scored, how to use it, how it sees pictures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from stagewright.system.named_functions import PREFIX, is_named

_MANY = 40


def card(content: Mapping[str, Any]) -> str:
    """Markdown for people, from the content of the Bundle's ``model.json``."""
    model, view, classes = content["model"], content["preprocessing"], content["classes"]
    facts = "\n".join(f"| {name} | {value} |" for name, value in _flat(content["training"]))
    shown = ", ".join(classes[:_MANY]) + (f" and {len(classes) - _MANY} more" if len(classes) > _MANY else "")
    seen = (
        f"the central square of {100 * view['crop']:g} % of the shorter side"
        if view["fit"] == "crop"
        else f"the central {100 * view['crop']:g} % of either side, squashed to a square"
    )
    side = view["image_size"]
    versions = ", ".join(f"{name} {version}" for name, version in content["versions"].items())
    return f"""# {model["name"]}: {len(classes)} classes

An image classifier with {model["parameters"]:,} parameters, trained by stagewright.{_code(model["name"])}

Classes: {shown}

## How it was trained and what it scored

| | |
|---|---|
{facts or "| nothing was recorded | |"}

## How to use it

    stagewright predict THIS_FOLDER photos/ --csv predictions.csv

or in Python:

    from stagewright import load_bundle
    for answer in load_bundle("THIS_FOLDER").predict("photos/"):
        print(answer.path, answer.classes)

Loading checks every file's SHA-256 and replays the {len(content["golden"])} pictures in `golden/`; it refuses to run where
the answers differ from those that were recorded.

## How it sees a picture

Upright (EXIF orientation applied), RGB, first frame; {seen}, resized to
{side} x {side} pixels ({view["interpolation"]}, antialiased); values in [0, 1], minus {_row(view["mean"])}, divided by
{_row(view["std"])}. For other code: the network is `{model["name"]}` with options `{model["options"]}`, its tensors are in
`weights.safetensors`, and `model.json` has all of this for programs.

Made with {versions}.
"""


def _code(name: str) -> str:
    """A sentence on a network that is code of the person's who trained it."""
    if not is_named(name):
        return ""
    module, _, function = name.removeprefix(PREFIX).partition(":")
    return (
        f" The network is made by the function\n`{function}` of the Python module `{module}`, which this folder does not hold: "
        "it must be importable where this is loaded."
    )


def _row(numbers: list[float]) -> str:
    return "(" + ", ".join(f"{number:g}" for number in numbers) + ")"


def _flat(facts: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Nested facts as rows; what is None is left out. Top-1 and top-5 are percent."""
    for name, value in facts.items():
        label = prefix + str(name).replace("_", " ")
        if isinstance(value, Mapping):
            yield from _flat(value, f"{label} ")
        elif value is not None:
            percent = isinstance(value, float) and "top" in label
            text = f"{value:.2f} %" if percent else str(value)
            yield label, text.replace("|", "\\|").replace("\n", " ")
