"""The catalog of model names: torchvision's, timm's and stagewright's own, and how a name is resolved.

A prefix selects the library (``timm:NAME``, ``torchvision:NAME``); without it, torchvision's model is used if both libraries
have the name. A tag selects the pretrained weights (``resnet50.a1_in1k``, ``resnet50.IMAGENET1K_V1``).
``python:module:function`` is a user's function, which :mod:`stagewright.model.own` calls.
"""

from __future__ import annotations

from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Literal

from stagewright.errors import ModelError
from stagewright.system.named_functions import PREFIX, is_named
from stagewright.text import nearest

Library = Literal["stagewright", "torchvision", "timm", "python"]

OWN = ("cifar_resnet18", "cifar_preact_resnet18", "vit")
"""Networks that stagewright defines itself."""
_LIBRARIES: tuple[Library, ...] = ("stagewright", "torchvision", "timm")


@dataclass(frozen=True, slots=True)
class ModelName:
    """A model name resolved to a library."""

    library: Library
    name: str
    tag: str = ""
    """Name of the pretrained weights; "" for the library's default."""
    note: str = ""
    """Notice for the user about the choice, e.g. that another library has the name too; "" if there is none."""

    @property
    def full_name(self) -> str:
        """``NAME.TAG`` as in timm, or ``NAME`` without a tag."""
        return f"{self.name}.{self.tag}" if self.tag else self.name

    def __str__(self) -> str:
        return f"{self.library}:{self.full_name}"


@cache
def model_names(library: Library) -> tuple[str, ...]:
    """Returns the names of all classifiers of the library; none for ``python``."""
    if library == "stagewright":
        return OWN
    if library == "python":
        return ()
    if library == "torchvision":
        import torchvision

        return tuple(torchvision.models.list_models(module=torchvision.models))
    import timm

    return tuple(timm.list_models())


def list_models(filter: str = "") -> list[tuple[str, Library]]:
    """Returns (name, library) of every model whose name contains ``filter`` or matches its wildcards (``*``, ``?``, ``[]``).

    The order is stagewright's own, torchvision's, timm's. Upper and lower case do not matter. ModelError if nothing
    matches.
    """
    pattern = (filter if any(sign in filter for sign in "*?[") else f"*{filter}*").casefold()
    found: list[tuple[str, Library]] = [
        (name, library) for library in _LIBRARIES for name in model_names(library) if fnmatchcase(name, pattern)
    ]
    if not found:
        known = [name for library in _LIBRARIES for name in model_names(library)]
        raise ModelError(
            f"no model's name contains or matches {filter!r}{nearest(filter, known)}",
            "part of a name such as resnet, or a pattern such as 'vit_*_224'",
            "stagewright models without a name lists them all",
        )
    return found


def find_model(name: str) -> ModelName:
    """Resolves ``name`` to a library's model; an unknown name raises a ModelError that suggests similar names."""
    if is_named(name):  # whether it is there, the import will tell
        return ModelName("python", name.removeprefix(PREFIX))
    prefix, colon, rest = name.partition(":")
    allowed: list[Library] = [library for library in _LIBRARIES if not colon or library == prefix]
    plain, _, tag = (rest if colon else name).partition(".")
    if plain in OWN and not tag and "stagewright" in allowed:  # without importing the libraries, which takes seconds
        return ModelName("stagewright", plain)
    found: list[Library] = [
        library for library in allowed if plain in model_names(library) and _has_tag(library, plain, tag)
    ]
    if not found:
        raise _unknown(name, plain, tag, allowed)
    others = [library for library in found[1:] if library == "timm"]
    note = f"{plain} exists in torchvision and in timm; torchvision's is used (timm:{plain} selects the other)"
    return ModelName(found[0], plain, tag, note if others and found[0] == "torchvision" else "")


def _has_tag(library: Library, plain: str, tag: str) -> bool:
    return not tag or tag in _tags(library, plain)


def _tags(library: Library, plain: str) -> list[str]:
    """Returns the names of the pretrained weights that the library has for its model ``plain``."""
    if library == "torchvision":
        import torchvision

        return [weights.name for weights in torchvision.models.get_model_weights(plain)]
    if library == "stagewright":
        return []
    import timm

    return [full.partition(".")[2] for full in timm.list_pretrained(f"{plain}.*")]


def _unknown(name: str, plain: str, tag: str, allowed: list[Library]) -> ModelError:
    counts = {library: len(model_names(library)) for library in allowed}
    having: list[Library] = [library for library in allowed if plain in model_names(library)]
    tags = [f"{plain}.{known}" for library in having for known in _tags(library, plain)]
    if tag and having:
        return ModelError(
            f"model {name!r}: {plain} has no pretrained weights {tag!r}{nearest(f'{plain}.{tag}', tags)}",
            ", ".join(tags[:12]) or f"{plain} has no pretrained weights at all",
            "use one of these, or the name alone for the library's default",
        )
    known = [known for library in allowed for known in model_names(library)]
    return ModelError(
        f"model {name!r} is unknown{nearest(plain, known)}",
        ", ".join(f"{count} of {library}" for library, count in counts.items())
        or "NAME, torchvision:NAME or timm:NAME (or stagewright:NAME), python:module:function (your own)",
        "stagewright models FILTER lists them, e.g. stagewright models resnet",
    )
